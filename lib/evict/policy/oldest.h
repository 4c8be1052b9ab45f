/* Dropping in order of age, shared by WINDOW and SINK. */
#ifndef PKVI_EVICT_OLDEST_H
#define PKVI_EVICT_OLDEST_H

#include "evict/evict_internal.h"

/* The oldest evictable page, or PKVI_NO_PAGE. Remembers how far everything is gone or pinned, so
 * that each page is looked at once until a pin is taken away, which begins anew: O(log resident)
 * per page, and per pinned page once. */
static inline uint32_t pkvi_evict_oldest(const struct pkvi_evict_call *call)
{
    struct pkvi_evict_state *state = call->state;
    const struct pkvi_table *table = call->table;
    if (state->unpins != call->target->unpins) {
        state->unpins = call->target->unpins;
        state->cursor = 0;
    }
    uint32_t logical = pkvi_max_u32(state->cursor, call->first);
    for (;; logical++) {
        const uint32_t slot = pkvi_table_seek(table, logical);
        logical = slot != PKVI_NO_SLOT ? table->logical[slot] : call->end;
        if (logical >= call->end) break;
        if (!pkvi_evict_is_pinned(call, logical)) break;
    }
    state->cursor = pkvi_max_u32(state->cursor, pkvi_min_u32(logical, call->end));
    return logical < call->end ? logical : PKVI_NO_PAGE;
}

/* Age as a score: older goes first. */
static inline float pkvi_evict_age_score(const struct pkvi_evict_call *call, uint32_t slot)
{
    return (float)call->table->logical[slot];
}

#endif
