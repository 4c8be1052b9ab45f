/* MASS: drop the page with the least attention mass.
 *
 *     S <- gamma^r S + (1 - gamma^r) m      r rows observed at once, m = mean share of a row
 *     score = S / (1 - gamma^age)           age in observed rows: young pages are not punished
 *
 * gamma = 1: S <- S + r m, score = S / age (H2O, normalised by lifetime; H2O's plain sum without
 * normalize_age). gamma = 0: the last row alone (TOVA).
 * Table scores: score = S, last_use = age, peak = largest share seen. */
#include <math.h>

#include "evict/evict_internal.h"

uint32_t pkvi_mass_rows_seen(const struct pkvi_evict_call *call, uint32_t logical, uint32_t rows)
{
    const uint64_t begin = (uint64_t)logical << call->page_shift;
    const uint64_t behind = call->target->length > begin ? call->target->length - begin : 0;
    return behind < rows ? (uint32_t)behind : rows;
}

void pkvi_mass_update(struct pkvi_page_score *score, float share, float gamma, uint32_t rows,
                      uint32_t seen)
{
    if (seen == 0) return;
    if (share > score->peak) score->peak = share;
    score->last_use = score->last_use > UINT32_MAX - seen ? UINT32_MAX : score->last_use + seen;
    if (gamma >= 1) {
        score->score += share * (float)rows;
        return;
    }
    const float decay = seen == 1 ? gamma : powf(gamma, (float)seen);
    /* A page that only the last `seen` of `rows` rows could see got its share from those. */
    const float mean = share * ((float)rows / (float)seen);
    score->score = decay * score->score + (1 - decay) * mean;
}

float pkvi_mass_value(const struct pkvi_page_score *score, const pkv_evict_config *config)
{
    const uint32_t age = score->last_use;
    if (!config->normalize_age || age == 0) return score->score;
    if (config->gamma >= 1) return score->score / (float)age;
    const float weight = 1 - powf(config->gamma, (float)age);
    return weight > 0 ? score->score / weight : score->score;
}

static uint32_t mass_rows(const pkv_evict_config *config)
{
    return config->gamma > 0 ? UINT32_MAX : 1;
}

static void observe(const struct pkvi_evict_call *call, const float *share, uint32_t rows)
{
    const float gamma = call->policy->config.gamma;
    struct pkvi_table *table = call->table;
    uint32_t i = 0;
    if (rows == 1 && gamma < 1) { /* decode: every page saw the one row */
        for (uint32_t slot = table->head; slot < table->end; slot++)
            if (table->page[slot] != PKVI_NO_PAGE)
                pkvi_mass_update(&table->score[slot], share[i++], gamma, 1, 1);
        return;
    }
    for (uint32_t slot = table->head; slot < table->end; slot++) {
        if (table->page[slot] == PKVI_NO_PAGE) continue;
        const uint32_t seen = pkvi_mass_rows_seen(call, table->logical[slot], rows);
        pkvi_mass_update(&table->score[slot], share[i++], gamma, rows, seen);
    }
}

static void score(const struct pkvi_evict_call *call, struct pkvi_candidate *list, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        list[i].score =
            pkvi_mass_value(&call->table->score[list[i].logical], &call->policy->config);
}

static float peek(const struct pkvi_evict_call *call, uint32_t slot)
{
    if (!call->table->score) return 0;
    return pkvi_mass_value(&call->table->score[slot], &call->policy->config);
}

const struct pkvi_evict_ops pkvi_evict_mass = {
    .name = "mass",
    .kind = PKV_EVICT_MASS,
    .needs = PKVI_NEEDS_MASS | PKVI_NEEDS_SCORES,
    .mass_rows = mass_rows,
    .observe = observe,
    .score = score,
    .peek = peek,
};
