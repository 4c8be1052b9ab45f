/* CALLBACK: the host scores the evictable pages. */
#include "evict/evict_internal.h"

#define CHUNK 64u

static void score(const struct pkvi_evict_call *call, struct pkvi_candidate *list, uint32_t n)
{
    const pkv_evict_config *config = &call->policy->config;
    uint32_t logical[CHUNK];
    float scores[CHUNK];
    for (uint32_t first = 0; first < n; first += CHUNK) {
        const uint32_t part = pkvi_min_u32(n - first, CHUNK);
        for (uint32_t i = 0; i < part; i++) {
            logical[i] = call->table->logical[list[first + i].logical];
            scores[i] = 0;
        }
        config->score(config->score_user, call->target->handle, call->group, call->target->length,
                      logical, scores, part);
        for (uint32_t i = 0; i < part; i++)
            list[first + i].score = scores[i];
    }
}

const struct pkvi_evict_ops pkvi_evict_callback = {
    .name = "callback",
    .kind = PKV_EVICT_CALLBACK,
    .needs = PKVI_NEEDS_SCORES,
    .score = score,
};
