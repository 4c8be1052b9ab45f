/* TOPK: nothing is dropped; attention reads the best pages (Tang et al., "Quest"). The selection by
 * bounds happens inside attention; this file says how many and which are always read. */
#include "evict/evict_internal.h"

const struct pkvi_evict_ops pkvi_evict_topk_ops = {
    .name = "topk",
    .kind = PKV_EVICT_TOPK,
};

bool pkvi_evict_topk(const struct pkvi_evict_seq *es, uint32_t group, struct pkvi_evict_topk *rule)
{
    if (!es) return false;
    const struct pkvi_evict_state *state = &es->groups[group];
    const struct pkvi_evict_policy *policy = state->policy;
    if (!policy || policy->config.kind != PKV_EVICT_TOPK || !state->reserved) return false;
    if (state->reserved_new > PKVI_TOPK_MAX_ROWS) return false;
    if (state->reserved_full <= policy->budget_pages) return false;
    rule->pages = policy->budget_pages;
    rule->first = policy->sink_pages;
    rule->recent = policy->recent_pages;
    return true;
}
