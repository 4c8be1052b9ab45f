#ifndef PAGEDKV_STATS_H
#define PAGEDKV_STATS_H
#include "types.h"
#ifdef __cplusplus
extern "C" {
#endif
typedef struct pkv_stats {
    size_t struct_size;
    uint64_t memory_limit;
    uint64_t region_bytes;
    uint64_t metadata_bytes;
    uint64_t metadata_bytes_allocator;
    uint64_t metadata_bytes_peak;
    uint64_t region_bytes_peak;
    uint64_t pages_total;
    uint64_t pages_used;
    uint64_t pages_cached;
    uint64_t pages_free;
    uint64_t pages_shared;
    uint64_t bytes_used;
    uint64_t bytes_live;
    uint64_t sequences, batches;
    uint64_t tokens;
    uint64_t page_allocs, page_frees, page_copies, pages_sealed, pages_evicted, pages_reclaimed,
        pages_window_released;
    uint64_t reserve_failures;
    uint64_t events_dropped;
    uint64_t prefix_lookups, prefix_tokens_asked, prefix_tokens_hit, prefix_nodes;
    uint64_t evict_regret_steps, evict_regret_checks;
    uint64_t reserved[8];
} pkv_stats;
PKV_API pkv_status pkv_cache_stats(pkv_cache *cache, pkv_stats *stats);
typedef struct pkv_group_stats {
    size_t struct_size;
    uint64_t pages_total, pages_used, pages_cached, pages_free, page_bytes, regions;
} pkv_group_stats;
PKV_API pkv_status pkv_cache_group_stats(pkv_cache *cache, uint32_t group, pkv_group_stats *stats);
enum {
    PKV_EVENT_PAGE_ALLOC = 1,
    PKV_EVENT_PAGE_FREE = 2,
    PKV_EVENT_PAGE_SHARE = 3,
    PKV_EVENT_PAGE_COPY = 4,
    PKV_EVENT_PAGE_SEAL = 5,
    PKV_EVENT_PAGE_PUBLISH = 6,
    PKV_EVENT_PAGE_EVICT = 7,
    PKV_EVENT_PAGE_RECLAIM = 8,
    PKV_EVENT_PAGE_WINDOW = 9,
    PKV_EVENT_REGION_MAP = 10,
    PKV_EVENT_REGION_UNMAP = 11,
    PKV_EVENT_LIMIT = 12,
    PKV_EVENT_EVICT_REGRET = 13
};
typedef struct pkv_event {
    uint64_t number;
    uint64_t time_ns;
    uint64_t aux;
    pkv_page page;
    uint64_t seq;
    uint32_t group;
    int32_t kind;
    uint64_t reserved[2];
} pkv_event;
PKV_API pkv_status pkv_cache_events(pkv_cache *cache, pkv_event *events, uint32_t capacity,
                                    uint32_t *n);
#ifdef __cplusplus
}
#endif
#endif
