#include "stats_summary.h"

#include <math.h>
#include <stdlib.h>

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double rank(const double *sorted, size_t n, double p)
{
    size_t k = (size_t)ceil(p * (double)n - 1e-9);
    return sorted[k == 0 ? 0 : k - 1];
}

stats_summary stats_summarise(double *values, size_t n)
{
    if (n == 0) return (stats_summary){0, NAN, NAN, NAN, NAN, NAN, NAN, NAN};
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += values[i];
    qsort(values, n, sizeof *values, ascending);
    return (stats_summary){n,
                           sum / (double)n,
                           values[0],
                           rank(values, n, 0.50),
                           rank(values, n, 0.90),
                           rank(values, n, 0.95),
                           rank(values, n, 0.99),
                           values[n - 1]};
}
