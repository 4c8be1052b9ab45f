#include "plot_axis.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static double round_step(double rough, bool bytes)
{
    if (bytes) return exp2(ceil(log2(rough)));
    double base = pow(10, floor(log10(rough))), m = rough / base;
    return base * (m <= 1 ? 1 : m <= 2 ? 2 : m <= 5 ? 5 : 10);
}

static void linear_ticks(plot_axis *axis, bool widen)
{
    double step = round_step((axis->high - axis->low) / 6, axis->bytes);
    if (widen) {
        axis->low = floor(axis->low / step + 1e-9) * step;
        axis->high = ceil(axis->high / step - 1e-9) * step;
    }
    axis->step = step;
    for (double i = ceil(axis->low / step - 1e-9);
         i * step <= axis->high + step * 1e-9 && axis->n_ticks < PLOT_MAX_TICKS; i++)
        axis->ticks[axis->n_ticks++] = i * step;
}

static void log_ticks(plot_axis *axis)
{
    int first = (int)floor(log10(axis->low)), last = (int)ceil(log10(axis->high));
    bool dense = last - first <= 3;
    for (int e = first; e <= last; e++) {
        static const double parts[] = {1, 2, 5};
        for (int i = 0; i < (dense ? 3 : 1); i++) {
            double tick = parts[i] * pow(10, e);
            if (tick >= axis->low * 0.999 && tick <= axis->high * 1.001 &&
                axis->n_ticks < PLOT_MAX_TICKS)
                axis->ticks[axis->n_ticks++] = tick;
        }
    }
}

void plot_axis_make(plot_axis *axis, double low, double high, bool log, bool widen, bool bytes)
{
    memset(axis, 0, sizeof *axis);
    axis->log10 = log;
    axis->bytes = bytes;
    if (!(high > low)) {
        double by = low == 0 ? 1 : fabs(low) * 0.1;
        low = log ? low / 2 : low - (low == 0 ? 0 : by);
        high = log ? high * 2 : high + by;
    }
    axis->low = low;
    axis->high = high;
    if (log)
        log_ticks(axis);
    else
        linear_ticks(axis, widen);
}

void plot_axis_set_ticks(plot_axis *axis, const double *ticks, size_t n)
{
    axis->n_ticks = 0;
    axis->step = 0;
    for (size_t i = 0; i < n && axis->n_ticks < PLOT_MAX_TICKS; i++)
        if (ticks[i] >= axis->low && ticks[i] <= axis->high)
            axis->ticks[axis->n_ticks++] = ticks[i];
}

double plot_axis_place(const plot_axis *axis, double value)
{
    if (axis->log10) return log(value / axis->low) / log(axis->high / axis->low);
    return (value - axis->low) / (axis->high - axis->low);
}

static void format_bytes(double value, char *text, size_t capacity)
{
    static const char *const names[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    size_t i = 0;
    while (fabs(value) >= 1024 && i + 1 < sizeof names / sizeof names[0])
        value /= 1024, i++;
    snprintf(text, capacity, "%.4g %s", value, names[i]);
}

void plot_axis_format(const plot_axis *axis, double value, char *text, size_t capacity)
{
    if (fabs(value) < axis->step * 1e-6) value = 0;
    if (axis->bytes)
        format_bytes(value, text, capacity);
    else if (fabs(value) >= 1e9)
        snprintf(text, capacity, "%.4gG", value / 1e9);
    else if (fabs(value) >= 1e6)
        snprintf(text, capacity, "%.4gM", value / 1e6);
    else if (fabs(value) >= 1e4)
        snprintf(text, capacity, "%.4gk", value / 1e3);
    else
        snprintf(text, capacity, "%.4g", value);
}
