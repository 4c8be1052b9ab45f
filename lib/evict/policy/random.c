/* RANDOM: drop any evictable page: the baseline that a policy has to beat. Stateless: the choice is
 * a function of the seed and of how many evictions stand, so an undone eviction is made again. */
#include "evict/evict_internal.h"

#define TRIES 64u

/* SplitMix64's output function (Steele, Lea, Flood 2014). */
static uint64_t hash(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

static bool evictable(const struct pkvi_evict_call *call, uint32_t slot)
{
    const struct pkvi_table *table = call->table;
    const uint32_t logical = table->logical[slot];
    return table->page[slot] != PKVI_NO_PAGE && logical >= call->first && logical < call->end &&
           !pkvi_evict_is_pinned(call, logical);
}

static uint32_t victim(const struct pkvi_evict_call *call)
{
    const struct pkvi_table *table = call->table;
    const uint32_t slots = table->end - table->head;
    if (slots == 0) return PKVI_NO_PAGE;
    const uint64_t base = hash(call->policy->config.seed ^ hash(call->state->gone));
    /* At least half the slots hold pages; most of these are evictable. */
    for (uint32_t i = 0; i < TRIES; i++) {
        const uint32_t slot = table->head + (uint32_t)(hash(base + i) % slots);
        if (evictable(call, slot)) return table->logical[slot];
    }
    /* Few are: take the next from a random place on. */
    for (uint32_t i = 0; i < slots; i++) {
        const uint32_t slot = table->head + (uint32_t)((base + i) % slots);
        if (evictable(call, slot)) return table->logical[slot];
    }
    return PKVI_NO_PAGE;
}

const struct pkvi_evict_ops pkvi_evict_random = {
    .name = "random",
    .kind = PKV_EVICT_RANDOM,
    .victim = victim,
};
