/* Dropping in order of age, shared by WINDOW and SINK. */
#ifndef PKVI_EVICT_OLDEST_H
#define PKVI_EVICT_OLDEST_H

#include "evict/evict_internal.h"

/* The oldest evictable page, or PKVI_NO_PAGE. Remembers how far everything is gone, so that over a
 * sequence's life each logical page is looked at once; O(log resident) per page, plus one step per
 * pinned page in the way. */
static inline uint32_t pkvi_evict_oldest(const struct pkvi_evict_call *call)
{
    struct pkvi_evict_state *state = call->state;
    uint32_t logical = pkvi_max_u32(state->cursor, call->first);
    bool passed_pin = false;
    for (; logical < call->end; logical++) {
        const bool held = pkvi_table_find(call->table, logical) != PKVI_NO_SLOT;
        if (held && !pkvi_evict_is_pinned(call, logical)) break;
        /* A pin may be taken away later: do not walk past it for good. */
        passed_pin = passed_pin || held;
        if (!passed_pin) state->cursor = logical + 1;
    }
    return logical < call->end ? logical : PKVI_NO_PAGE;
}

/* Age as a score: older goes first. */
static inline float pkvi_evict_age_score(const struct pkvi_evict_call *call, uint32_t slot)
{
    return (float)call->table->logical[slot];
}

#endif
