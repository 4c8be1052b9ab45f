/* Counters and events. */
#include <pagedkv/stats.h>

#include "cache/cache_internal.h"

static uint64_t open_pages(struct pkvi_group *group)
{
    if (!group->quantised) return 0;
    struct pkvi_pool_counts counts;
    pkvi_pool_counts(&group->open_pool, &counts);
    return counts.used;
}

pkv_status pkv_cache_stats(pkv_cache *cache, pkv_stats *stats)
{
    if (!cache) return PKV_EINVAL;
    if (!stats) return pkvi_fail(cache, PKV_EINVAL, "cache_stats: stats is NULL");
    if (!pkvi_size_known(stats->struct_size, PKVI_LEAST_OUTPUT, sizeof *stats))
        return pkvi_fail(cache, PKV_EVERSION, "cache_stats: struct_size %zu is unknown",
                         stats->struct_size);
    pkv_stats out = {0};
    struct pkvi_budget *budget = &cache->budget;
    out.memory_limit = atomic_load_explicit(&budget->limit, memory_order_relaxed);
    out.region_bytes = atomic_load_explicit(&budget->regions, memory_order_relaxed);
    out.region_bytes_peak = atomic_load_explicit(&budget->regions_peak, memory_order_relaxed);
    out.metadata_bytes = atomic_load_explicit(&budget->metadata, memory_order_relaxed);
    out.metadata_bytes_peak = atomic_load_explicit(&budget->metadata_peak, memory_order_relaxed);
    out.metadata_bytes_allocator = pkvi_mem_allocator_bytes(&cache->mem);
    pkvi_stats_fill(&cache->stats, &out);
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        struct pkvi_pool_counts counts;
        pkvi_pool_counts(&cache->groups[g].pool, &counts);
        out.pages_total += counts.total;
        out.pages_used += counts.used;
        out.pages_cached += counts.cached;
        out.pages_free += counts.free;
        out.pages_shared += counts.shared;
        out.bytes_used += counts.used * cache->groups[g].page_bytes;
        out.page_allocs += counts.allocs;
        out.page_frees += counts.frees;
        out.bytes_held += counts.held_bytes;
        out.pages_unbacked += counts.cold;
        out.regions += counts.regions;
        out.regions_split += counts.split;
        if (!cache->groups[g].quantised) continue;
        pkvi_pool_counts(&cache->groups[g].open_pool, &counts);
        out.pages_open += counts.used;
        out.bytes_open += counts.used * cache->groups[g].open_page_bytes;
        out.bytes_held += counts.held_bytes;
        out.pages_unbacked += counts.cold;
        out.regions += counts.regions;
        out.regions_split += counts.split;
    }
    for (uint32_t s = 0; s < cache->states.n; s++) {
        struct pkvi_pool_counts counts;
        pkvi_pool_counts(&cache->states.groups[s].pool, &counts);
        out.bytes_held += counts.held_bytes;
        out.pages_unbacked += counts.cold;
        out.regions += counts.regions;
        out.regions_split += counts.split;
    }
    pkvi_struct_write(stats, stats->struct_size, &out);
    return PKV_OK;
}

pkv_status pkv_cache_group_stats(pkv_cache *cache, uint32_t group, pkv_group_stats *stats)
{
    if (!cache) return PKV_EINVAL;
    if (!stats) return pkvi_fail(cache, PKV_EINVAL, "cache_group_stats: stats is NULL");
    if (!pkvi_size_known(stats->struct_size, PKVI_LEAST_OUTPUT, sizeof *stats))
        return pkvi_fail(cache, PKV_EVERSION, "cache_group_stats: struct_size %zu is unknown",
                         stats->struct_size);
    if (group >= cache->n_groups)
        return pkvi_fail(cache, PKV_EINVAL, "cache_group_stats: group %u of %u", group,
                         cache->n_groups);
    struct pkvi_pool_counts counts;
    pkvi_pool_counts(&cache->groups[group].pool, &counts);
    const pkv_group_stats out = {
        .pages_total = counts.total,
        .pages_used = counts.used,
        .pages_cached = counts.cached,
        .pages_free = counts.free,
        .page_bytes = cache->groups[group].page_bytes,
        .regions = counts.regions,
        .pages_open = open_pages(&cache->groups[group]),
        .open_page_bytes = cache->groups[group].open_page_bytes,
    };
    pkvi_struct_write(stats, stats->struct_size, &out);
    return PKV_OK;
}

pkv_status pkv_cache_events(pkv_cache *cache, pkv_event *events, uint32_t capacity, uint32_t *n)
{
    if (!cache) return PKV_EINVAL;
    if (!n) return pkvi_fail(cache, PKV_EINVAL, "cache_events: n is NULL");
    if (!events && capacity != 0)
        return pkvi_fail(cache, PKV_EINVAL, "cache_events: events is NULL");
    *n = pkvi_events_take(&cache->stats, events, capacity);
    return PKV_OK;
}
