/* The memory limit at run time. */
#include "cache/cache_internal.h"
#include "cache/config_limits.h"

static pkv_status check_bytes(struct pkv_cache *cache, const char *caller, uint64_t bytes)
{
    if (bytes != 0 && bytes <= PKVI_MAX_MEMORY) return PKV_OK;
    return pkvi_fail(cache, PKV_EINVAL, "%s: %llu is not in 1..%llu", caller,
                     (unsigned long long)bytes, (unsigned long long)PKVI_MAX_MEMORY);
}

/* Scratch kept for reuse and metadata of regions that are gone. */
static void trim_metadata(struct pkv_cache *cache)
{
    pkvi_batches_trim(cache);
    pkvi_admission_trim(cache);
    pkvi_regions_trim_metadata(&cache->regions);
}

pkv_status pkv_cache_set_limit(pkv_cache *cache, uint64_t bytes)
{
    if (!cache) return PKV_EINVAL;
    pkv_status status = check_bytes(cache, "cache_set_limit", bytes);
    if (status != PKV_OK) return status;
    const bool grows = bytes > pkvi_budget_limit(&cache->budget);
    status = pkvi_regions_set_limit(&cache->regions, bytes);
    if (status == PKV_EBUSY) trim_metadata(cache);
    while (status == PKV_EBUSY) {
        status = pkvi_regions_set_limit(&cache->regions, bytes);
        const uint64_t used = pkvi_budget_used(&cache->budget);
        if (status == PKV_EBUSY &&
            pkvi_cache_reclaim_bytes(cache, used > bytes ? used - bytes : 1) == 0)
            break;
    }
    if (status != PKV_OK)
        return pkvi_fail(cache, status, "cache_set_limit: %llu bytes are in use, %llu asked for",
                         (unsigned long long)pkvi_budget_used(&cache->budget),
                         (unsigned long long)bytes);
    if (grows)
        pkvi_regions_heal(&cache->regions);
    else
        trim_metadata(cache);
    if (pkvi_events_on(&cache->stats))
        pkvi_event(&cache->stats, PKV_EVENT_LIMIT, 0, PKV_PAGE_NONE, 0, bytes);
    return PKV_OK;
}

pkv_status pkv_cache_trim(pkv_cache *cache, uint64_t *bytes)
{
    if (!cache) return PKV_EINVAL;
    trim_metadata(cache);
    const uint64_t given = pkvi_regions_trim(&cache->regions, UINT64_MAX);
    if (bytes) *bytes = given;
    return PKV_OK;
}

pkv_status pkv_cache_limit_shortfall(pkv_cache *cache, uint64_t bytes,
                                     pkv_limit_shortfall *shortfall)
{
    if (!cache) return PKV_EINVAL;
    pkv_status status = check_bytes(cache, "cache_limit_shortfall", bytes);
    if (status != PKV_OK) return status;
    if (!shortfall) return pkvi_fail(cache, PKV_EINVAL, "cache_limit_shortfall: shortfall is NULL");
    if (!pkvi_size_known(shortfall->struct_size, PKVI_LEAST_OUTPUT, sizeof *shortfall))
        return pkvi_fail(cache, PKV_EVERSION, "cache_limit_shortfall: struct_size %zu is unknown",
                         shortfall->struct_size);
    trim_metadata(cache);
    pkv_limit_shortfall out = {0};
    uint64_t used = 0;
    for (uint32_t g = 0; g < cache->n_groups && cache->storage != PKV_STORAGE_EXTERNAL; g++) {
        struct pkvi_pool *pool = &cache->groups[g].pool;
        struct pkvi_pool_census census;
        struct pkvi_pool_counts counts;
        pkvi_pool_census(pool, true, &census);
        pkvi_pool_counts(pool, &counts);
        const uint64_t unit = pkvi_pool_unit_bytes(pool);
        used += census.used_bytes;
        out.cached += counts.cached * unit / pkvi_pool_unit_pages(pool);
        out.host += pkvi_pool_hosted(pool) * unit / pkvi_pool_unit_pages(pool);
        out.magazines += counts.parked * unit / pkvi_pool_unit_pages(pool);
        if (!cache->groups[g].quantised) continue;
        pkvi_pool_census(&cache->groups[g].open_pool, true, &census);
        used += census.used_bytes;
    }
    for (uint32_t s = 0; s < cache->states.n && cache->storage != PKV_STORAGE_EXTERNAL; s++) {
        struct pkvi_pool_census census;
        struct pkvi_pool *pool = &cache->states.groups[s].pool;
        pkvi_pool_census(pool, true, &census);
        out.cached +=
            pkvi_pool_cached(pool) * pkvi_pool_unit_bytes(pool) / pkvi_pool_unit_pages(pool);
        used += census.used_bytes;
    }
    out.metadata = atomic_load_explicit(&cache->budget.metadata, memory_order_relaxed);
    const uint64_t others = out.host + out.magazines;
    out.sequences = used > others ? used - others : 0;
    out.needed = used + out.metadata;
    out.bytes = out.needed > bytes ? out.needed - bytes : 0;
    pkvi_struct_write(shortfall, shortfall->struct_size, &out);
    return PKV_OK;
}
