/* pagedkv: counters and events. */
#ifndef PAGEDKV_STATS_H
#define PAGEDKV_STATS_H

#include "types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* All counters are kept up to date as things happen: reading is O(groups), never a scan. */
typedef struct pkv_stats {
    size_t struct_size;         /* set by the caller to sizeof(pkv_stats) */
    uint64_t memory_limit;
    uint64_t region_bytes;      /* memory behind regions, as charged to the limit: whole regions, and
                                 * of split ones the units that have memory */
    uint64_t metadata_bytes;    /* requested from the allocator by this cache */
    uint64_t metadata_bytes_allocator; /* jemalloc's own count for the private arena; 0 with libc */
    uint64_t metadata_bytes_peak;
    uint64_t region_bytes_peak;
    uint64_t pages_total;       /* with memory behind them */
    uint64_t pages_used;        /* referenced by a table, batch or caller */
    uint64_t pages_cached;      /* only in the prefix index: reclaimable */
    uint64_t pages_free;        /* with memory, unused */
    uint64_t pages_shared;      /* used with two or more references */
    uint64_t bytes_used;        /* pages_used in bytes */
    uint64_t bytes_live;        /* bytes of the token slots in use, shared pages counted once per
                                 * holder's table; waste = 1 - live/used when nothing is shared */
    uint64_t sequences, batches;
    uint64_t tokens;            /* committed tokens over live sequences */
    uint64_t page_allocs, page_frees, page_copies, pages_sealed, pages_evicted, pages_reclaimed,
        pages_window_released;
    uint64_t reserve_failures;
    uint64_t events_dropped;
    uint64_t prefix_lookups, prefix_tokens_asked, prefix_tokens_hit, prefix_nodes;
    uint64_t evict_regret_steps, evict_regret_checks;
    uint64_t bytes_held;        /* of region_bytes: pages that are used, cached or parked */
    uint64_t pages_unbacked;    /* in split regions, their memory given back */
    uint64_t regions, regions_split; /* regions, and those charged page by page, without huge pages */
    uint64_t reserved[4];
    uint64_t pages_open, bytes_open; /* open pages of quantised groups in use */
    uint64_t vectors_flagged;        /* keys and values (of a token, head and layer) that a sealed page
                                      * could not hold: not finite, or beyond f16 */
    uint64_t pages_unsealed;         /* sealed pages that a sequence went on writing in (a truncate or a
                                      * prefix match ended inside): dequantised and sealed again */
} pkv_stats;

/* PKV_EVERSION for an unknown struct_size. MT-safe; counters are each exact, together a snapshot
 * only when the cache is quiescent. O(groups). */
PKV_API pkv_status pkv_cache_stats(pkv_cache *cache, pkv_stats *stats);

/* One group's share. */
typedef struct pkv_group_stats {
    size_t struct_size;
    uint64_t pages_total, pages_used, pages_cached, pages_free, page_bytes, regions;
    uint64_t pages_open, open_page_bytes; /* quantised groups: open pages in use (not counted in
                                           * pages_used), and their size; else 0 */
} pkv_group_stats;
PKV_API pkv_status pkv_cache_group_stats(pkv_cache *cache, uint32_t group, pkv_group_stats *stats);

/* What happened. `page`, `seq` and `aux` are 0 where nothing is said of them. */
enum {
    PKV_EVENT_PAGE_ALLOC = 1,   /* page: now used */
    PKV_EVENT_PAGE_FREE = 2,    /* page: nobody's any more */
    PKV_EVENT_PAGE_SHARE = 3,   /* page: reference count 1 -> 2 */
    PKV_EVENT_PAGE_COPY = 4,    /* copy-on-write; page: the copy, seq: its writer, aux: page index of the
                                 * source */
    PKV_EVENT_PAGE_SEAL = 5,    /* page: full and committed, seq, aux: its logical page number */
    PKV_EVENT_PAGE_PUBLISH = 6, /* page: now in the prefix index */
    PKV_EVENT_PAGE_EVICT = 7,   /* dropped by an eviction policy; page, seq, aux: its logical number */
    PKV_EVENT_PAGE_RECLAIM = 8, /* page: cached in the prefix index, taken back */
    PKV_EVENT_PAGE_WINDOW = 9,  /* left a sliding window; page, seq, aux: its logical number */
    PKV_EVENT_REGION_MAP = 10,  /* aux: number of the region in its group (page index / pages per
                                 * region) */
    PKV_EVENT_REGION_UNMAP = 11, /* aux: likewise; also when the region moves to another group */
    PKV_EVENT_LIMIT = 12,        /* aux: new limit in bytes */
    PKV_EVENT_EVICT_REGRET = 13  /* a step wanted a dropped page; seq, aux: (layer, head) pairs that did */
};

typedef struct pkv_event {
    uint64_t number; /* increases by one per event, dropped ones included */
    uint64_t time_ns;
    uint64_t aux;
    pkv_page page;
    uint64_t seq;    /* id of the sequence concerned, or 0 */
    uint32_t group;
    int32_t kind;         /* PKV_EVENT_*; skip kinds you do not know */
    uint64_t reserved[2]; /* 0 in this version */
} pkv_event;

/* Takes up to `capacity` events, oldest first; *n = how many. A full ring drops the newest and
 * counts it (pkv_stats.events_dropped). MT-safe. O(n). */
PKV_API pkv_status pkv_cache_events(pkv_cache *cache, pkv_event *events, uint32_t capacity,
                                    uint32_t *n);

#ifdef __cplusplus
}
#endif
#endif
