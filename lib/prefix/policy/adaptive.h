/* adaptive: what it counts, and what pages are worth. */
#ifndef PKVI_PREFIX_POLICY_ADAPTIVE_H
#define PKVI_PREFIX_POLICY_ADAPTIVE_H

#include "base/base.h"

#define PKVI_ADAPTIVE_CLASSES 27u
#define PKVI_ADAPTIVE_BUCKETS 36u

/* Per class and age. */
struct pkvi_adaptive_counts {
    double reused[PKVI_ADAPTIVE_CLASSES][PKVI_ADAPTIVE_BUCKETS];   /* used again at this age */
    double survived[PKVI_ADAPTIVE_CLASSES][PKVI_ADAPTIVE_BUCKETS]; /* grew older than that */
};

/* Buckets start at ages 1, 2, 3, 4, 6, 8, 12, 16, …; the second one is empty. */
static inline uint32_t pkvi_adaptive_bucket(uint32_t age)
{
    if (age < 2) return 0;
    uint32_t log = pkvi_log2_u32(age);
    return pkvi_min_u32(2 * log + (age >> (log - 1) & 1u), PKVI_ADAPTIVE_BUCKETS - 1);
}

static inline uint32_t pkvi_adaptive_bucket_start(uint32_t bucket)
{
    uint32_t power = UINT32_C(1) << bucket / 2;
    return bucket < 2 ? 1 + bucket : bucket % 2 ? power + power / 2 : power;
}

/* The value of a page by class and age: over all times one could decide to keep it, the most
 * expected hits per unit of time. O(classes x buckets^2). */
void pkvi_adaptive_values(const struct pkvi_adaptive_counts *counts,
                          double value[PKVI_ADAPTIVE_CLASSES][PKVI_ADAPTIVE_BUCKETS]);

#endif
