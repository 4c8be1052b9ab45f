/* Mean, extremes and percentiles of a list of values. */
#ifndef TOOLS_COMMON_STATS_SUMMARY_H
#define TOOLS_COMMON_STATS_SUMMARY_H

#include <stddef.h>

typedef struct stats_summary {
    size_t n;
    double mean, min, p50, p90, p95, p99, max; /* NaN when n is 0 */
} stats_summary;

/* Sorts `values` in place. Percentile p is the value at rank ceil(p·n) (nearest rank). */
stats_summary stats_summarise(double *values, size_t n);

#endif
