#include "plot.h"

#include <cairo.h>
#include <cairo-svg.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parse.h"
#include "plot_axis.h"

enum { WIDTH = 960, PANEL_HEIGHT = 300, HEAD = 64, LEFT = 92, LEGEND = 190 };
#define FONT "DejaVu Sans"

/* The Okabe–Ito colours, which stay distinct for colour-blind readers, and two more. */
static const double palette[][3] = {
    {0.00, 0.45, 0.70}, {0.90, 0.60, 0.00}, {0.00, 0.62, 0.45}, {0.80, 0.40, 0.00},
    {0.80, 0.47, 0.65}, {0.34, 0.71, 0.91}, {0.35, 0.35, 0.35}, {0.94, 0.89, 0.26},
    {0.45, 0.20, 0.60}, {0.60, 0.75, 0.20}, {0.55, 0.30, 0.15}, {0.85, 0.10, 0.25},
};

typedef struct frame {
    cairo_t *cr;
    const plot_panel *panel;
    double left, top, right, bottom; /* the plot area */
    double floor;                    /* the panel's lower edge */
    plot_axis x, y;
} frame;

static void use_colour(cairo_t *cr, size_t i, double alpha)
{
    const double *c = palette[i % (sizeof palette / sizeof palette[0])];
    cairo_set_source_rgba(cr, c[0], c[1], c[2], alpha);
}

static void use_font(cairo_t *cr, double size, bool bold)
{
    cairo_select_font_face(cr, FONT, CAIRO_FONT_SLANT_NORMAL,
                           bold ? CAIRO_FONT_WEIGHT_BOLD : CAIRO_FONT_WEIGHT_NORMAL);
    cairo_set_font_size(cr, size);
}

/* align: 0 = text starts at x, 0.5 = centred, 1 = ends at x. */
static void draw_text(cairo_t *cr, double x, double y, double align, const char *text)
{
    cairo_text_extents_t e;
    cairo_text_extents(cr, text, &e);
    cairo_move_to(cr, x - align * e.x_advance, y);
    cairo_show_text(cr, text);
}

static double text_width(cairo_t *cr, const char *text)
{
    cairo_text_extents_t e;
    cairo_text_extents(cr, text, &e);
    return e.x_advance;
}

static double at_x(const frame *f, double x)
{
    return f->left + plot_axis_place(&f->x, x) * (f->right - f->left);
}

static double at_y(const frame *f, double y)
{
    return f->bottom - plot_axis_place(&f->y, y) * (f->bottom - f->top);
}

static double series_x(const plot_series *s, size_t i)
{
    return s->x != NULL ? s->x[i] : (double)i;
}

/* Range of everything in a panel; false if there is no point at all. */
static bool panel_range(const plot_panel *p, double x[2], double y[2])
{
    bool any = false;
    x[0] = y[0] = INFINITY;
    x[1] = y[1] = -INFINITY;
    for (size_t k = 0; k < p->n_series; k++) {
        for (size_t i = 0; i < p->series[k].n; i++) {
            double a = series_x(&p->series[k], i), b = p->series[k].y[i];
            if (!isfinite(a) || !isfinite(b) || (p->log_x && a <= 0)) continue;
            any = true;
            x[0] = fmin(x[0], a), x[1] = fmax(x[1], a);
            y[0] = fmin(y[0], b), y[1] = fmax(y[1], b);
        }
    }
    return any;
}

static bool make_axes(frame *f)
{
    const plot_panel *p = f->panel;
    double x[2], y[2];
    if (!panel_range(p, x, y)) return false;
    if (p->n_categories > 0) x[0] = -0.5, x[1] = (double)p->n_categories - 0.5;
    if (p->y_from_zero || p->n_categories > 0) y[0] = fmin(y[0], 0);
    bool fixed = p->y_min < p->y_max;
    if (fixed) y[0] = p->y_min, y[1] = p->y_max;
    plot_axis_make(&f->x, x[0], x[1], p->log_x, false, false);
    plot_axis_make(&f->y, y[0], y[1], false, !fixed, p->y_log2_bytes);
    if (p->x_ticks != NULL) plot_axis_set_ticks(&f->x, p->x_ticks, p->n_x_ticks);
    return true;
}

static void draw_grid(const frame *f)
{
    cairo_t *cr = f->cr;
    char text[32];
    cairo_set_line_width(cr, 1);
    use_font(cr, 12, false);
    for (size_t i = 0; i < f->y.n_ticks; i++) {
        double y = floor(at_y(f, f->y.ticks[i])) + 0.5;
        cairo_set_source_rgb(cr, 0.88, 0.88, 0.88);
        cairo_move_to(cr, f->left, y);
        cairo_line_to(cr, f->right, y);
        cairo_stroke(cr);
        cairo_set_source_rgb(cr, 0.2, 0.2, 0.2);
        plot_axis_format(&f->y, f->y.ticks[i], text, sizeof text);
        draw_text(cr, f->left - 8, y + 4, 1, text);
    }
    for (size_t i = 0; f->panel->n_categories == 0 && i < f->x.n_ticks; i++) {
        double x = floor(at_x(f, f->x.ticks[i])) + 0.5;
        cairo_set_source_rgb(cr, 0.92, 0.92, 0.92);
        cairo_move_to(cr, x, f->top);
        cairo_line_to(cr, x, f->bottom);
        cairo_stroke(cr);
        cairo_set_source_rgb(cr, 0.2, 0.2, 0.2);
        plot_axis_format(&f->x, f->x.ticks[i], text, sizeof text);
        draw_text(cr, x, f->bottom + 18, 0.5, text);
    }
}

/* Do the names need more room than their bars have? Then they are drawn at an angle. */
static bool names_are_slanted(cairo_t *cr, const plot_panel *p)
{
    double widest = 0;
    use_font(cr, 12, false);
    for (size_t i = 0; i < p->n_categories; i++)
        widest = fmax(widest, text_width(cr, p->categories[i]));
    return p->n_categories > 0 && widest > (WIDTH - LEGEND - LEFT) / (double)p->n_categories - 6;
}

static void draw_category_names(const frame *f)
{
    const plot_panel *p = f->panel;
    bool slanted = names_are_slanted(f->cr, p);
    cairo_set_source_rgb(f->cr, 0.2, 0.2, 0.2);
    use_font(f->cr, slanted ? 11 : 12, false);
    for (size_t i = 0; i < p->n_categories; i++) {
        cairo_save(f->cr);
        cairo_translate(f->cr, at_x(f, (double)i) + (slanted ? 6 : 0), f->bottom + 16);
        if (slanted) cairo_rotate(f->cr, -0.5);
        draw_text(f->cr, 0, 0, slanted ? 1 : 0.5, p->categories[i]);
        cairo_restore(f->cr);
    }
}

static void draw_labels(const frame *f)
{
    cairo_t *cr = f->cr;
    cairo_set_source_rgb(cr, 0.1, 0.1, 0.1);
    cairo_set_line_width(cr, 1.2);
    cairo_move_to(cr, f->left, f->top);
    cairo_line_to(cr, f->left, f->bottom);
    cairo_line_to(cr, f->right, f->bottom);
    cairo_stroke(cr);
    if (f->panel->title != NULL) {
        use_font(cr, 14, true);
        draw_text(cr, f->left, f->top - 10, 0, f->panel->title);
    }
    use_font(cr, 13, false);
    if (f->panel->x_label != NULL)
        draw_text(cr, (f->left + f->right) / 2, f->floor - 14, 0.5, f->panel->x_label);
    if (f->panel->y_label != NULL) {
        cairo_save(cr);
        cairo_translate(cr, 18, (f->top + f->bottom) / 2);
        cairo_rotate(cr, -1.57079632679489662);
        draw_text(cr, 0, 0, 0.5, f->panel->y_label);
        cairo_restore(cr);
    }
}

/* Leaves the path of a series as current path. Points that fall on the same pixel column as the one
 * before are merged into its vertical extent, so that long series give small files. */
static void series_path(const frame *f, const plot_series *s)
{
    cairo_t *cr = f->cr;
    bool started = false, step = s->style == PLOT_STEP || s->style == PLOT_AREA;
    double last_x = 0, last_y = 0, low = 0, high = 0;
    for (size_t i = 0; i < s->n; i++) {
        double a = series_x(s, i), b = s->y[i];
        if (!isfinite(a) || !isfinite(b) || (f->panel->log_x && a <= 0)) {
            started = false;
            continue;
        }
        double x = at_x(f, a), y = at_y(f, b);
        if (!started) {
            cairo_move_to(cr, x, y);
            low = high = y;
        } else if (x - last_x < 0.4 && i + 1 < s->n && s->n > 2000) {
            if (y < low || y > high) cairo_line_to(cr, last_x, y);
            low = fmin(low, y), high = fmax(high, y), last_y = y;
            continue;
        } else {
            if (step) cairo_line_to(cr, x, last_y);
            cairo_line_to(cr, x, y);
            low = high = y;
        }
        started = true;
        last_x = x, last_y = y;
    }
}

static void draw_bars(const frame *f, const plot_series *s, size_t index)
{
    double slot = (f->right - f->left) / (double)f->panel->n_categories;
    double bar = slot * 0.8 / (double)f->panel->n_series;
    double zero = at_y(f, fmax(0, f->y.low));
    char text[32];
    for (size_t i = 0; i < s->n && i < f->panel->n_categories; i++) {
        if (!isfinite(s->y[i])) continue;
        double x = at_x(f, (double)i) - slot * 0.4 + bar * (double)index, y = at_y(f, s->y[i]);
        use_colour(f->cr, index, 1);
        cairo_rectangle(f->cr, x, fmin(y, zero), bar * 0.94, fabs(zero - y));
        cairo_fill(f->cr);
        if (bar < 22) continue;
        cairo_set_source_rgb(f->cr, 0.2, 0.2, 0.2);
        use_font(f->cr, 10, false);
        snprintf(text, sizeof text, "%.3g", s->y[i]);
        draw_text(f->cr, x + bar * 0.47, y - 3, 0.5, text);
    }
}

static void draw_points(const frame *f, const plot_series *s)
{
    for (size_t i = 0; i < s->n; i++) {
        double a = series_x(s, i), b = s->y[i];
        if (!isfinite(a) || !isfinite(b) || (f->panel->log_x && a <= 0)) continue;
        cairo_arc(f->cr, at_x(f, a), at_y(f, b), 3.2, 0, 6.2831853071795865);
        cairo_fill(f->cr);
    }
}

static void draw_series(const frame *f, const plot_series *s, size_t index)
{
    cairo_t *cr = f->cr;
    if (s->style == PLOT_BAR) {
        draw_bars(f, s, index);
        return;
    }
    cairo_set_line_width(cr, s->style == PLOT_POINTS ? 1.3 : 1.6);
    cairo_set_line_join(cr, CAIRO_LINE_JOIN_ROUND);
    if (s->style == PLOT_AREA && s->n > 0) {
        series_path(f, s);
        double x;
        cairo_get_current_point(cr, &x, NULL);
        cairo_line_to(cr, x, f->bottom);
        cairo_line_to(cr, at_x(f, series_x(s, 0)), f->bottom);
        cairo_close_path(cr);
        use_colour(cr, index, 0.25);
        cairo_fill(cr);
    }
    use_colour(cr, index, 1);
    series_path(f, s);
    cairo_stroke(cr);
    if (s->style == PLOT_POINTS) draw_points(f, s);
}

static void draw_marks(const frame *f)
{
    cairo_t *cr = f->cr;
    const double dash[] = {5, 4};
    use_font(cr, 11, false);
    for (size_t i = 0; i < f->panel->n_marks; i++) {
        const plot_mark *m = &f->panel->marks[i];
        if (m->x < f->x.low || m->x > f->x.high) continue;
        double x = at_x(f, m->x);
        cairo_set_source_rgb(cr, 0.75, 0.05, 0.15);
        cairo_set_line_width(cr, 1.2);
        cairo_set_dash(cr, dash, 2, 0);
        cairo_move_to(cr, x, f->top);
        cairo_line_to(cr, x, f->bottom);
        cairo_stroke(cr);
        cairo_set_dash(cr, NULL, 0, 0);
        double wide = text_width(cr, m->label);
        bool flip = x + 6 + wide > f->right;
        cairo_set_source_rgba(cr, 1, 1, 1, 0.8);
        cairo_rectangle(cr, flip ? x - 7 - wide : x + 3, f->top + 1, wide + 4, 15);
        cairo_fill(cr);
        cairo_set_source_rgb(cr, 0.75, 0.05, 0.15);
        draw_text(cr, flip ? x - 5 : x + 5, f->top + 12, flip ? 1 : 0, m->label);
    }
}

static void draw_legend(const frame *f)
{
    cairo_t *cr = f->cr;
    double x = f->right + 16, y = f->top + 8;
    use_font(cr, 12, false);
    for (size_t i = 0; i < f->panel->n_series; i++, y += 20) {
        const plot_series *s = &f->panel->series[i];
        use_colour(cr, i, 1);
        if (s->style == PLOT_BAR || s->style == PLOT_AREA)
            cairo_rectangle(cr, x, y - 5, 18, 10);
        else
            cairo_rectangle(cr, x, y - 1.5, 18, 3);
        cairo_fill(cr);
        if (s->style == PLOT_POINTS) {
            cairo_arc(cr, x + 9, y, 3.2, 0, 6.2831853071795865);
            cairo_fill(cr);
        }
        cairo_set_source_rgb(cr, 0.1, 0.1, 0.1);
        draw_text(cr, x + 25, y + 4, 0, s->label);
    }
}

static int draw_panel(cairo_t *cr, const plot_panel *panel, double top, tool_error *err)
{
    bool slanted = names_are_slanted(cr, panel);
    frame f = {.cr = cr,
               .panel = panel,
               .left = LEFT,
               .right = WIDTH - LEGEND,
               .top = top + 30,
               .bottom = top + PANEL_HEIGHT - (slanted ? 100 : 52),
               .floor = top + PANEL_HEIGHT};
    if (!make_axes(&f))
        return tool_fail(err, "--plot: nothing to show in '%s'",
                         panel->title != NULL ? panel->title : "the plot");
    draw_grid(&f);
    if (panel->n_categories > 0) draw_category_names(&f);
    cairo_save(cr);
    cairo_rectangle(cr, f.left, f.top - 14, f.right - f.left + 1, f.bottom - f.top + 15);
    cairo_clip(cr);
    for (size_t i = 0; i < panel->n_series; i++)
        draw_series(&f, &panel->series[i], i);
    cairo_restore(cr);
    draw_marks(&f);
    draw_labels(&f);
    draw_legend(&f);
    return 0;
}

static int draw_all(cairo_t *cr, const char *title, const char *subtitle, const plot_panel *panels,
                    size_t n_panels, tool_error *err)
{
    cairo_set_source_rgb(cr, 1, 1, 1);
    cairo_paint(cr);
    cairo_set_source_rgb(cr, 0.05, 0.05, 0.05);
    use_font(cr, 18, true);
    draw_text(cr, 20, 28, 0, title);
    if (subtitle != NULL) {
        cairo_set_source_rgb(cr, 0.3, 0.3, 0.3);
        use_font(cr, 12, false);
        draw_text(cr, 20, 48, 0, subtitle);
    }
    for (size_t i = 0; i < n_panels; i++)
        if (draw_panel(cr, &panels[i], HEAD + (double)i * PANEL_HEIGHT, err) != 0) return -1;
    return 0;
}

int plot_write_svg(const char *path, const char *title, const char *subtitle,
                   const plot_panel *panels, size_t n_panels, tool_error *err)
{
    double height = HEAD + (double)n_panels * PANEL_HEIGHT + 8;
    cairo_surface_t *surface = cairo_svg_surface_create(path, WIDTH, height);
    cairo_t *cr = cairo_create(surface);
    int code = 0;
    if (cairo_status(cr) == CAIRO_STATUS_SUCCESS)
        code = draw_all(cr, title, subtitle, panels, n_panels, err);
    cairo_status_t status = cairo_status(cr);
    cairo_destroy(cr);
    cairo_surface_finish(surface);
    if (status == CAIRO_STATUS_SUCCESS) status = cairo_surface_status(surface);
    cairo_surface_destroy(surface);
    if (status != CAIRO_STATUS_SUCCESS)
        return tool_fail(err, "%.200s: cannot write the plot: %s", path,
                         cairo_status_to_string(status));
    return code;
}
