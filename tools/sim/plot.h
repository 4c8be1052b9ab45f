/* Plots as SVG files, drawn with Cairo: one or more panels under a common title, each with axes,
 * ticks, grid, units and a legend beside it. */
#ifndef TOOLS_SIM_PLOT_H
#define TOOLS_SIM_PLOT_H

#include <stdbool.h>
#include <stddef.h>

#include "tool_error.h"

typedef enum plot_style {
    PLOT_LINE,   /* straight lines between points */
    PLOT_STEP,   /* the value holds until the next point */
    PLOT_AREA,   /* as PLOT_STEP, filled down to the axis */
    PLOT_POINTS, /* markers and thin lines */
    PLOT_BAR     /* one bar per category; x is ignored */
} plot_style;

/* Points with a NaN are left out and interrupt the line. Arrays belong to the caller. */
typedef struct plot_series {
    const char *label;
    const double *x; /* NULL: 0, 1, 2, … */
    const double *y;
    size_t n;
    plot_style style;
} plot_series;

/* A dashed vertical line with a text at its top. */
typedef struct plot_mark {
    double x;
    const char *label;
} plot_mark;

typedef struct plot_panel {
    const char *title;             /* may be NULL */
    const char *x_label, *y_label; /* with units: "time (s)" */
    const plot_series *series;
    size_t n_series;
    const plot_mark *marks;
    size_t n_marks;
    bool log_x;                    /* base-10 axis; x must be > 0 */
    bool y_from_zero;              /* the axis starts at 0 */
    double y_min, y_max;           /* fixed range if y_min < y_max */
    const char *const *categories; /* bars: names under the axis, n_categories of them */
    size_t n_categories;
    const double *x_ticks; /* ticks only at these places (page sizes …); NULL = chosen */
    size_t n_x_ticks;
    bool y_log2_bytes; /* y values are bytes: ticks read "4 GiB" */
} plot_panel;

/* Writes the file; -1 with err if a panel has nothing to show or the file cannot be written. */
int plot_write_svg(const char *path, const char *title, const char *subtitle,
                   const plot_panel *panels, size_t n_panels, tool_error *err);

#endif
