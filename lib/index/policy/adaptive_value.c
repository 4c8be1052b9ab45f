/* adaptive: from counts to hazards, and from hazards to the value of keeping a page. */
#include "adaptive.h"

#define CLASSES PKVI_ADAPTIVE_CLASSES
#define BUCKETS PKVI_ADAPTIVE_BUCKETS

#define FIRST_HAZARD 0.05  /* assumed for the youngest bucket */
#define HAZARD_DECLINE 0.5 /* assumed from bucket to bucket */
#define POOL_WEIGHT 1000.0 /* pages that the assumption counts for */
#define CLASS_WEIGHT 500.0 /* pages that the average of all classes counts for */
#define RATIO_WEIGHT 50.0  /* hits that equality of the classes counts for */

/* Hazards per bucket, averaged over the classes. */
static void pool_hazards(const struct pkvi_adaptive_counts *a, double *hazard)
{
    double assumed = FIRST_HAZARD;
    for (uint32_t b = 0; b < BUCKETS; b++) {
        double hits = 0, all = 0;
        for (uint32_t c = 0; c < CLASSES; c++) {
            hits += a->reused[c][b];
            all += a->reused[c][b] + a->survived[c][b];
        }
        hazard[b] = (hits + POOL_WEIGHT * assumed) / (all + POOL_WEIGHT);
        assumed = HAZARD_DECLINE * hazard[b];
    }
}

/* A class's own hazards, drawn to the average scaled by how the class does as a whole. */
static void class_hazards(const struct pkvi_adaptive_counts *a, uint32_t c, const double *pooled,
                          double *hazard)
{
    double hits = RATIO_WEIGHT, expected = RATIO_WEIGHT;
    for (uint32_t b = 0; b < BUCKETS; b++) {
        hits += a->reused[c][b];
        expected += (a->reused[c][b] + a->survived[c][b]) * pooled[b];
    }
    for (uint32_t b = 0; b < BUCKETS; b++) {
        double assumed = pooled[b] * hits / expected;
        if (assumed > 1) assumed = 1;
        hazard[b] = (a->reused[c][b] + CLASS_WEIGHT * assumed) /
                    (a->reused[c][b] + a->survived[c][b] + CLASS_WEIGHT);
    }
}

/* The best ratio of expected hits to expected time over all moments to give up. */
static double best_ratio(const double *hazard, const double *width, uint32_t from)
{
    double alive = 1, hits = 0, time = 0, best = 0;
    for (uint32_t b = from; b < BUCKETS; b++) {
        hits += alive * hazard[b];
        time += alive * width[b] * (1 - 0.5 * hazard[b]);
        alive *= 1 - hazard[b];
        if (hits > best * time) best = hits / time;
    }
    return best;
}

void pkvi_adaptive_values(const struct pkvi_adaptive_counts *counts, double value[CLASSES][BUCKETS])
{
    double pooled[BUCKETS], hazard[BUCKETS], width[BUCKETS];
    for (uint32_t b = 0; b < BUCKETS; b++)
        width[b] = b == 1
                       ? 1 /* no age */
                       : pkvi_adaptive_bucket_start(b + 1) - (double)pkvi_adaptive_bucket_start(b);
    pool_hazards(counts, pooled);
    for (uint32_t c = 0; c < CLASSES; c++) {
        class_hazards(counts, c, pooled, hazard);
        for (uint32_t b = 0; b < BUCKETS; b++)
            value[c][b] = best_ratio(hazard, width, b);
    }
}
