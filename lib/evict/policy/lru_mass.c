/* LRU_MASS: a page that gets notable mass is "used"; drop the one used longest ago (Hu et al.,
 * "RaaS"). Table scores: last_use = the state's step of the last use, flag SEEN = has a last_use
 * (new pages start as used), score = the last share. */
#include "evict/evict_internal.h"

enum { SEEN = 1u };

static uint32_t mass_rows(const pkv_evict_config *config)
{
    (void)config;
    return UINT32_MAX;
}

static void observe(const struct pkvi_evict_call *call, const float *share, uint32_t rows)
{
    (void)rows;
    struct pkvi_table *table = call->table;
    const uint32_t step = (uint32_t)call->state->mass_steps; /* wraps after 2^32 steps */
    const float threshold = call->policy->config.epsilon / (float)table->resident;
    uint32_t i = 0;
    for (uint32_t slot = table->head; slot < table->end; slot++) {
        if (table->page[slot] == PKVI_NO_PAGE) continue;
        struct pkvi_page_score *s = &table->score[slot];
        s->score = share[i];
        if (share[i] > s->peak) s->peak = share[i];
        if (share[i] > threshold || !(s->flags & SEEN)) {
            s->last_use = step;
            s->flags |= SEEN;
        }
        i++;
    }
}

/* Minus the steps since the last use: exact in float up to 2^24 steps ago, saturating beyond. */
static float idle(const struct pkvi_evict_call *call, uint32_t slot)
{
    if (!call->table->score) return 0;
    const struct pkvi_page_score *s = &call->table->score[slot];
    if (!(s->flags & SEEN)) return 0;
    const uint32_t ago = (uint32_t)call->state->mass_steps - s->last_use;
    return -(float)(ago < (1u << 24) ? ago : (1u << 24));
}

static void score(const struct pkvi_evict_call *call, struct pkvi_candidate *list, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        list[i].score = idle(call, list[i].logical);
}

const struct pkvi_evict_ops pkvi_evict_lru_mass = {
    .name = "lru-mass",
    .kind = PKV_EVICT_LRU_MASS,
    .needs = PKVI_NEEDS_MASS | PKVI_NEEDS_SCORES,
    .mass_rows = mass_rows,
    .observe = observe,
    .score = score,
    .peek = idle,
};
