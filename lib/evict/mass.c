/* evict: attention mass of a step.
 *
 * Threads add in fixed point, so the sum does not depend on their order: 28 fractional bits, and
 * 2^36 row-heads fit. At commit the sums become shares of the step's total, so it does not matter
 * whether all layers and heads were fed or some. */
#include <math.h>
#include <string.h>

#include "evict/evict_internal.h"

#define MASS_ONE 268435456.0f /* 2^28 */
#define FEED_BLOCK 64u
#define MASS_MAX 34359738368.0f /* one value at most 2^35 */

pkv_status pkvi_evict_mass_reserve(struct pkvi_evict_state *state, struct pkvi_mem *mem,
                                   uint32_t resident)
{
    if (resident > state->acc_capacity) {
        const uint32_t capacity = resident + resident / 4 + 8;
        uint64_t *acc = pkvi_mem_array(mem, capacity, sizeof *acc);
        float *share = pkvi_mem_array(mem, capacity, sizeof *share);
        if (!acc || !share) {
            pkvi_mem_free_array(mem, acc, capacity, sizeof *acc);
            pkvi_mem_free_array(mem, share, capacity, sizeof *share);
            return PKV_ENOMEM;
        }
        pkvi_evict_mass_free(state, mem);
        state->acc = acc;
        state->share = share;
        state->acc_capacity = capacity;
    }
    state->acc_n = resident;
    return PKV_OK;
}

void pkvi_evict_mass_free(struct pkvi_evict_state *state, struct pkvi_mem *mem)
{
    if (state->acc_capacity == 0) return;
    pkvi_mem_free_array(mem, state->acc, state->acc_capacity, sizeof *state->acc);
    pkvi_mem_free_array(mem, state->share, state->acc_capacity, sizeof *state->share);
    state->acc = NULL;
    state->share = NULL;
    state->acc_capacity = 0;
}

uint32_t pkvi_evict_mass_rows(const struct pkvi_evict_seq *es, uint32_t group)
{
    if (!es) return 0;
    const struct pkvi_evict_policy *policy = es->groups[group].policy;
    if (!policy || !policy->ops->mass_rows || es->groups[group].skips_mass) return 0;
    return policy->ops->mass_rows(&policy->config);
}

static void add_one(uint64_t *acc, float mass)
{
    if (!(mass > 0)) return; /* NaN too */
    const float value = mass < MASS_MAX ? mass : isinf(mass) ? 0 : MASS_MAX;
    __atomic_fetch_add(acc, (uint64_t)(value * MASS_ONE), __ATOMIC_RELAXED);
}

void pkvi_evict_feed(struct pkvi_evict_seq *es, uint32_t group, const float *mass, uint32_t n_heads,
                     uint32_t n)
{
    if (!es) return;
    struct pkvi_evict_state *state = &es->groups[group];
    if (state->acc_n == 0 || n != state->acc_n) return;
    /* Atomics are the expensive part: heads are summed first, a block of pages at a time. */
    for (uint32_t first = 0; first < n; first += FEED_BLOCK) {
        const uint32_t width = pkvi_min_u32(n - first, FEED_BLOCK);
        float sum[FEED_BLOCK];
        memcpy(sum, mass + first, width * sizeof *sum);
        for (uint32_t h = 1; h < n_heads; h++)
            for (uint32_t i = 0; i < width; i++)
                sum[i] += mass[(size_t)h * n + first + i];
        for (uint32_t i = 0; i < width; i++)
            add_one(&state->acc[first + i], sum[i]);
    }
    if (!atomic_load_explicit(&state->fed, memory_order_relaxed))
        atomic_store_explicit(&state->fed, 1, memory_order_relaxed);
}

/* What resident page i was given, by attention and by the host. */
static double sum_of(const struct pkvi_evict_state *state, uint32_t i)
{
    return (double)state->acc[i] / (double)MASS_ONE + pkvi_evict_feed_sum(&state->feed, i);
}

bool pkvi_evict_mass_take(struct pkvi_evict_state *state, uint32_t resident)
{
    const uint32_t n = state->acc_n;
    state->acc_n = 0;
    if (!atomic_load_explicit(&state->fed, memory_order_relaxed)) return false;
    atomic_store_explicit(&state->fed, 0, memory_order_relaxed);
    /* A partial commit may have taken surplus pages away at the end. */
    double total = 0;
    for (uint32_t i = 0; i < resident && i < n; i++)
        total += sum_of(state, i);
    const double scale = total > 0 ? 1 / total : 0;
    for (uint32_t i = 0; i < resident; i++)
        state->share[i] = i < n ? (float)(sum_of(state, i) * scale) : 0;
    memset(state->acc, 0, n * sizeof *state->acc);
    state->feed.any = false;
    return total > 0;
}

void pkvi_evict_mass_pool(const struct pkvi_table *table, float *share, uint32_t n)
{
    uint32_t cursor = 0;
    struct pkvi_resident page;
    float before = 0; /* the previous page's own share, if it is the logical neighbour */
    uint32_t last = UINT32_MAX;
    for (uint32_t i = 0; i < n && pkvi_table_next(table, &cursor, &page); i++) {
        const float own = share[i];
        const bool adjacent = last != UINT32_MAX && last + 1 == page.logical;
        if (adjacent && share[i - 1] < own) share[i - 1] = own;
        if (adjacent && before > own) share[i] = before;
        before = own;
        last = page.logical;
    }
}
