/* Axes of a plot: range, round ticks, and their texts. Private to plot.c and its tests. */
#ifndef TOOLS_SIM_PLOT_AXIS_H
#define TOOLS_SIM_PLOT_AXIS_H

#include <stdbool.h>
#include <stddef.h>

enum { PLOT_MAX_TICKS = 32 };

typedef struct plot_axis {
    double low, high; /* low < high */
    bool log10, bytes;
    double step; /* between ticks; 0 when ticks were given */
    double ticks[PLOT_MAX_TICKS];
    size_t n_ticks;
} plot_axis;

/* Chooses ticks at 1, 2 or 5 times a power of ten (bytes: powers of two). `widen` moves the ends
 * out to the next tick. A range without extent is widened; a log axis needs low > 0. */
void plot_axis_make(plot_axis *axis, double low, double high, bool log10, bool widen, bool bytes);

/* Uses exactly these ticks, those inside the range. */
void plot_axis_set_ticks(plot_axis *axis, const double *ticks, size_t n);

/* Position of a value: 0 at low, 1 at high. */
double plot_axis_place(const plot_axis *axis, double value);

/* Text of a tick: "0.25", "20k", "4 GiB". */
void plot_axis_format(const plot_axis *axis, double value, char *text, size_t capacity);

#endif
