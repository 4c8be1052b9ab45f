#include "stats/stats.h"

pkv_status pkvi_stats_init(struct pkvi_stats *stats, struct pkvi_mem *mem, uint32_t event_capacity,
                           pkv_clock_fn clock, void *clock_user, struct pkvi_lock_ranks *ranks)
{
    *stats = (struct pkvi_stats){0};
    struct pkvi_events *events = &stats->events;
    events->clock = clock;
    events->clock_user = clock_user;
    if (event_capacity) {
        events->ring = pkvi_mem_array(mem, event_capacity, sizeof *events->ring);
        if (!events->ring) return PKV_ENOMEM;
    }
    if (!pkvi_mutex_init(&events->lock, PKVI_RANK_EVENTS, ranks)) {
        pkvi_mem_free_array(mem, events->ring, event_capacity, sizeof *events->ring);
        return PKV_ENOMEM;
    }
    events->capacity = event_capacity;
    return PKV_OK;
}

void pkvi_stats_destroy(struct pkvi_stats *stats, struct pkvi_mem *mem)
{
    struct pkvi_events *events = &stats->events;
    pkvi_mem_free_array(mem, events->ring, events->capacity, sizeof *events->ring);
    events->ring = NULL;
    pkvi_mutex_destroy(&events->lock);
}

void pkvi_stats_fill(const struct pkvi_stats *stats, pkv_stats *out)
{
    out->sequences = pkvi_counter(stats, PKVI_COUNT_SEQUENCES);
    out->batches = pkvi_counter(stats, PKVI_COUNT_BATCHES);
    out->tokens = pkvi_counter(stats, PKVI_COUNT_TOKENS);
    out->bytes_live = pkvi_counter(stats, PKVI_COUNT_BYTES_LIVE);
    out->page_copies = pkvi_counter(stats, PKVI_COUNT_PAGE_COPIES);
    out->pages_sealed = pkvi_counter(stats, PKVI_COUNT_PAGES_SEALED);
    out->pages_unsealed = pkvi_counter(stats, PKVI_COUNT_PAGES_UNSEALED);
    out->vectors_flagged = pkvi_counter(stats, PKVI_COUNT_VECTORS_FLAGGED);
    out->pages_evicted = pkvi_counter(stats, PKVI_COUNT_PAGES_EVICTED);
    out->pages_reclaimed = pkvi_counter(stats, PKVI_COUNT_PAGES_RECLAIMED);
    out->pages_window_released = pkvi_counter(stats, PKVI_COUNT_PAGES_WINDOW_RELEASED);
    out->reserve_failures = pkvi_counter(stats, PKVI_COUNT_RESERVE_FAILURES);
    out->prefix_lookups = pkvi_counter(stats, PKVI_COUNT_PREFIX_LOOKUPS);
    out->prefix_tokens_asked = pkvi_counter(stats, PKVI_COUNT_PREFIX_TOKENS_ASKED);
    out->prefix_tokens_hit = pkvi_counter(stats, PKVI_COUNT_PREFIX_TOKENS_HIT);
    out->prefix_nodes = pkvi_counter(stats, PKVI_COUNT_PREFIX_NODES);
    out->evict_regret_steps = pkvi_counter(stats, PKVI_COUNT_EVICT_REGRET_STEPS);
    out->evict_regret_checks = pkvi_counter(stats, PKVI_COUNT_EVICT_REGRET_CHECKS);
    out->events_dropped = atomic_load_explicit(&stats->events.dropped, memory_order_relaxed);
}
