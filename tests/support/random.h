/* A small seeded generator for tests, and the seed of a run. */
#ifndef PKVT_RANDOM_H
#define PKVT_RANDOM_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* Seed from PKV_SEED, or the clock; printed, so that a failing run can be repeated. */
static inline uint64_t pkvt_seed(const char *test)
{
    const char *text = getenv("PKV_SEED");
    uint64_t seed = text ? strtoull(text, NULL, 0) : (uint64_t)time(NULL);
    printf("%s: PKV_SEED=%llu\n", test, (unsigned long long)seed);
    return seed;
}

/* splitmix64 */
static inline uint64_t pkvt_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* Uniform in 0..n-1 (n > 0), good enough for tests. */
static inline uint32_t pkvt_below(uint64_t *state, uint32_t n)
{
    return (uint32_t)(pkvt_random(state) % n);
}

#endif
