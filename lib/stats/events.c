#include "stats/stats.h"

void pkvi_event(struct pkvi_stats *stats, int32_t kind, uint32_t group, pkv_page page, uint64_t seq,
                uint64_t aux)
{
    struct pkvi_events *events = &stats->events;
    if (!events->capacity) return;
    uint64_t now = events->clock(events->clock_user);
    pkvi_mutex_lock(&events->lock);
    uint64_t number = events->number++;
    if (events->count == events->capacity) {
        atomic_fetch_add_explicit(&events->dropped, 1, memory_order_relaxed);
    } else {
        uint32_t at = (events->head + events->count) & (events->capacity - 1);
        events->ring[at] = (pkv_event){.number = number,
                                       .time_ns = now,
                                       .aux = aux,
                                       .page = page,
                                       .seq = seq,
                                       .group = group,
                                       .kind = kind};
        events->count++;
    }
    pkvi_mutex_unlock(&events->lock);
}

uint32_t pkvi_events_take(struct pkvi_stats *stats, pkv_event *out, uint32_t capacity)
{
    struct pkvi_events *events = &stats->events;
    if (!events->capacity) return 0;
    pkvi_mutex_lock(&events->lock);
    uint32_t n = pkvi_min_u32(capacity, events->count);
    for (uint32_t i = 0; i < n; i++)
        out[i] = events->ring[(events->head + i) & (events->capacity - 1)];
    events->head = (events->head + n) & (events->capacity - 1);
    events->count -= n;
    pkvi_mutex_unlock(&events->lock);
    return n;
}
