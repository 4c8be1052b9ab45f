/* A small seeded generator (xoshiro256**, seeded through splitmix64) for workloads: the same seed
 * gives the same numbers on every machine. Not for secrets. */
#ifndef TOOLS_COMMON_RANDOM_H
#define TOOLS_COMMON_RANDOM_H

#include <stdint.h>

typedef struct tool_random {
    uint64_t state[4];
} tool_random;

void random_seed(tool_random *r, uint64_t seed);
uint64_t random_u64(tool_random *r);
/* Uniform in [0, 1). */
double random_unit(tool_random *r);
/* Uniform in [0, bound), bound >= 1. */
uint64_t random_below(tool_random *r, uint64_t bound);
/* Standard normal (Box–Muller), exponential of the given mean, and log-normal with the given median
 * and sigma of the logarithm. */
double random_normal(tool_random *r);
double random_exponential(tool_random *r, double mean);
double random_lognormal(tool_random *r, double median, double sigma);

#endif
