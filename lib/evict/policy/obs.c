/* OBS: the mass of the last rows of the prompt decides (Li et al., "SnapKV", at page granularity,
 * and chunk by chunk so that the bound holds during prefill too): an entry of several tokens is
 * prompt, and its last obs_rows rows replace what earlier chunks said. In decode as MASS.
 * Table scores as MASS; flag OBSERVED: the score is a complete mean, whatever its age. */
#include <math.h>

#include "evict/evict_internal.h"

/* Entries of at least so many tokens are prompt; shorter ones are decode or speculative steps. */
#define PROMPT_ROWS 16u

enum { OBSERVED = 1u };

static uint32_t mass_rows(const pkv_evict_config *config)
{
    return config->obs_rows;
}

static void observe(const struct pkvi_evict_call *call, const float *share, uint32_t rows)
{
    const pkv_evict_config *config = &call->policy->config;
    struct pkvi_table *table = call->table;
    const bool prompt = rows >= pkvi_min_u32(PROMPT_ROWS, config->obs_rows);
    uint32_t i = 0;
    for (uint32_t slot = table->head; slot < table->end; slot++) {
        if (table->page[slot] == PKVI_NO_PAGE) continue;
        struct pkvi_page_score *s = &table->score[slot];
        const uint32_t seen = pkvi_mass_rows_seen(call, table->logical[slot], rows);
        if (prompt && seen > 0) {
            *s = (struct pkvi_page_score){.score = share[i] * ((float)rows / (float)seen),
                                          .peak = share[i],
                                          .last_use = 1,
                                          .flags = OBSERVED};
        } else {
            pkvi_mass_update(s, share[i], config->gamma, rows, seen);
        }
        i++;
    }
}

static float value(const struct pkvi_page_score *s, const pkv_evict_config *config)
{
    /* The prompt's mean weighs as one row; only with a plain sum is there something to divide. */
    if ((s->flags & OBSERVED) && config->gamma < 1) return s->score;
    return pkvi_mass_value(s, config);
}

static void score(const struct pkvi_evict_call *call, struct pkvi_candidate *list, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        list[i].score = value(&call->table->score[list[i].logical], &call->policy->config);
}

static float peek(const struct pkvi_evict_call *call, uint32_t slot)
{
    if (!call->table->score) return 0;
    return value(&call->table->score[slot], &call->policy->config);
}

const struct pkvi_evict_ops pkvi_evict_obs = {
    .name = "obs",
    .kind = PKV_EVICT_OBS,
    .needs = PKVI_NEEDS_MASS | PKVI_NEEDS_SCORES,
    .mass_rows = mass_rows,
    .observe = observe,
    .score = score,
    .peek = peek,
};
