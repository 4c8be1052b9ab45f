/* stats: counters and the event ring of one cache. Pools keep their page counters themselves
 * (under the lock they hold anyway, see pool.h); what is counted elsewhere is here. */
#ifndef PKVI_STATS_STATS_H
#define PKVI_STATS_STATS_H

#include <pagedkv/stats.h>

#include "mem/mem.h"

/* Cache-wide counters. Gauges go up and down, the others only up. */
enum pkvi_counter {
    PKVI_COUNT_SEQUENCES,  /* gauge */
    PKVI_COUNT_BATCHES,    /* gauge */
    PKVI_COUNT_TOKENS,     /* gauge: committed tokens of live sequences */
    PKVI_COUNT_BYTES_LIVE, /* gauge: see pkv_stats.bytes_live */
    PKVI_COUNT_PAGE_COPIES,
    PKVI_COUNT_PAGES_SEALED,
    PKVI_COUNT_PAGES_UNSEALED,
    PKVI_COUNT_VECTORS_FLAGGED,
    PKVI_COUNT_PAGES_EVICTED,
    PKVI_COUNT_PAGES_RECLAIMED,
    PKVI_COUNT_PAGES_WINDOW_RELEASED,
    PKVI_COUNT_RESERVE_FAILURES,
    PKVI_COUNT_PREFIX_LOOKUPS,
    PKVI_COUNT_PREFIX_TOKENS_ASKED,
    PKVI_COUNT_PREFIX_TOKENS_HIT,
    PKVI_COUNT_PREFIX_NODES, /* gauge */
    PKVI_COUNT_EVICT_REGRET_STEPS,
    PKVI_COUNT_EVICT_REGRET_CHECKS,
    PKVI_COUNTERS
};

/* Bounded ring of events, oldest first; full = the newest is dropped and counted. */
struct pkvi_events {
    struct pkvi_mutex lock;
    pkv_event *ring; /* `capacity` entries, NULL if capacity == 0 */
    uint32_t capacity;
    uint32_t head, count; /* guarded by lock */
    uint64_t number;      /* guarded by lock: number of the next event */
    _Atomic uint64_t dropped;
    pkv_clock_fn clock;
    void *clock_user;
};

struct pkvi_stats {
    _Atomic uint64_t counter[PKVI_COUNTERS];
    struct pkvi_events events;
};

/* event_capacity: 0 or a power of two. clock gives an event's time. PKV_ENOMEM. */
pkv_status pkvi_stats_init(struct pkvi_stats *stats, struct pkvi_mem *mem, uint32_t event_capacity,
                           pkv_clock_fn clock, void *clock_user, struct pkvi_lock_ranks *ranks);
void pkvi_stats_destroy(struct pkvi_stats *stats, struct pkvi_mem *mem);

/* Adds to / subtracts from a counter. One relaxed atomic each (about 5 ns): call once per batch
 * with the sum, not once per page. MT-safe. */
static inline void pkvi_count(struct pkvi_stats *stats, enum pkvi_counter counter, uint64_t n)
{
    atomic_fetch_add_explicit(&stats->counter[counter], n, memory_order_relaxed);
}
static inline void pkvi_uncount(struct pkvi_stats *stats, enum pkvi_counter counter, uint64_t n)
{
    atomic_fetch_sub_explicit(&stats->counter[counter], n, memory_order_relaxed);
}
static inline uint64_t pkvi_counter(const struct pkvi_stats *stats, enum pkvi_counter counter)
{
    return atomic_load_explicit(&stats->counter[counter], memory_order_relaxed);
}

/* Copies every counter of this module into the public struct (other fields stay). O(1), MT-safe. */
void pkvi_stats_fill(const struct pkvi_stats *stats, pkv_stats *out);

/* True if events are recorded at all: lets callers skip building them. */
static inline bool pkvi_events_on(const struct pkvi_stats *stats)
{
    return PKVI_UNLIKELY(stats->events.capacity != 0);
}

/* Records one event (number and time are filled in here). Nothing if events are off. MT-safe; may
 * be called with a pool's lock held. O(1). */
void pkvi_event(struct pkvi_stats *stats, int32_t kind, uint32_t group, pkv_page page, uint64_t seq,
                uint64_t aux);

/* Takes up to `capacity` events out, oldest first; returns how many. MT-safe. */
uint32_t pkvi_events_take(struct pkvi_stats *stats, pkv_event *events, uint32_t capacity);

#endif
