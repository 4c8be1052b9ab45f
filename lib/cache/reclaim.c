/* Getting memory back where pages or metadata lack it, cheapest first, and trying again. Knows the
 * pools, the budget and the modules' hooks, but no sequence and no batch. */
#include "cache/cache_internal.h"
#include "cache/hooks.h"

uint64_t pkvi_cache_reclaim_bytes(struct pkv_cache *cache, uint64_t bytes)
{
    uint64_t freed = 0;
    for (int slot = 0; slot < PKVI_HOOK_SLOTS && freed < bytes; slot++) {
        const struct pkvi_hooks *hooks = cache->hooks[slot];
        if (hooks && hooks->reclaim_bytes)
            freed += hooks->reclaim_bytes(cache->hook_context[slot], bytes - freed);
    }
    return freed;
}

/* Gets pages back so that a pool can hand out n more of `group`: prefix index, then eviction, then
 * other groups' cached pages, whose memory it can have. False if nothing came back. */
static bool reclaim(struct pkv_cache *cache, uint32_t group, uint32_t n,
                    struct pkvi_batch *requester)
{
    uint32_t freed = 0;
    for (int slot = 0; slot < PKVI_HOOK_SLOTS && freed < n; slot++) {
        const struct pkvi_hooks *hooks = cache->hooks[slot];
        if (hooks && hooks->reclaim)
            freed += hooks->reclaim(cache->hook_context[slot], group, n - freed, requester);
    }
    if (freed >= n || cache->storage == PKV_STORAGE_EXTERNAL) return freed != 0;
    const struct pkvi_pool *pool = &cache->groups[group].pool;
    const uint64_t units = pkvi_ceil_div_u64(n - freed, pkvi_pool_unit_pages(pool));
    return (pkvi_cache_reclaim_bytes(cache, units * pkvi_pool_unit_bytes(pool)) | freed) != 0;
}

uint64_t pkvi_cache_reclaimable(const struct pkv_cache *cache, uint32_t group,
                                const struct pkvi_batch *requester)
{
    const struct pkvi_hooks *evict = cache->hooks[PKVI_HOOK_EVICT];
    uint64_t pages = pkvi_pool_cached(&cache->groups[group].pool);
    if (evict && evict->reclaimable)
        pages += evict->reclaimable(cache->hook_context[PKVI_HOOK_EVICT], group, requester);
    return pages;
}

uint32_t pkvi_cache_hopeless(struct pkv_cache *cache, uint32_t group, uint32_t n,
                             const struct pkvi_batch *requester)
{
    struct pkvi_pool *pool = &cache->groups[group].pool;
    const uint64_t missing = pkvi_pool_missing(pool, n);
    if (missing == 0) return 0;
    const struct pkvi_hooks *evict = cache->hooks[PKVI_HOOK_EVICT];
    uint64_t evictable = 0, most = pkvi_pool_cached(pool);
    if (evict && evict->reclaimable)
        evictable = evict->reclaimable(cache->hook_context[PKVI_HOOK_EVICT], group, requester);
    const uint64_t bound = pkvi_pool_bound(pool);
    /* Memory of other groups' cached pages. */
    uint64_t others = 0;
    for (uint32_t g = 0; g < cache->n_groups && cache->storage != PKV_STORAGE_EXTERNAL; g++) {
        const struct pkvi_pool *other = &cache->groups[g].pool;
        if (g == group) continue;
        others += pkvi_ceil_div_u64(pkvi_pool_cached(other), pkvi_pool_unit_pages(other)) *
                  pkvi_pool_unit_bytes(other);
    }
    for (uint32_t s = 0; s < cache->states.n && cache->storage != PKV_STORAGE_EXTERNAL; s++) {
        const struct pkvi_pool *other = &cache->states.groups[s].pool;
        others += pkvi_ceil_div_u64(pkvi_pool_cached(other), pkvi_pool_unit_pages(other)) *
                  pkvi_pool_unit_bytes(other);
    }
    most += evictable + others / pkvi_pool_unit_bytes(pool) * pkvi_pool_unit_pages(pool) +
            (others != 0 ? pkvi_pool_unit_pages(pool) : 0);
    const uint64_t held = pkvi_pool_out(pool);
    const uint64_t stays = held > evictable ? held - evictable : 0;
    const uint64_t within = bound > stays ? bound - stays : 0;
    const uint64_t beyond = n > within ? n - within : 0;
    return (uint32_t)pkvi_max_u64(beyond, missing > most ? missing - most : 0);
}

uint32_t pkvi_cache_missing(struct pkv_cache *cache, uint32_t group, uint32_t n, uint32_t at_least,
                            struct pkvi_batch *requester)
{
    struct pkvi_pool *pool = &cache->groups[group].pool;
    uint32_t missing = pkvi_pool_missing(pool, n);
    if (missing < at_least && reclaim(cache, group, at_least, requester))
        missing = pkvi_pool_missing(pool, n);
    else if (missing < at_least)
        missing = at_least;
    while (missing != 0) {
        const uint32_t hopeless = pkvi_cache_hopeless(cache, group, n, requester);
        if (hopeless != 0) return hopeless;
        if (!reclaim(cache, group, missing, requester)) break;
        missing = pkvi_pool_missing(pool, n);
    }
    return missing;
}

bool pkvi_cache_reclaim_for(struct pkv_cache *cache, struct pkvi_pool *pool, uint32_t n)
{
    /* Of what the pool has no free page for; a part of a unit may be there already. */
    const uint64_t unit_bytes = pkvi_pool_unit_bytes(pool);
    const uint64_t units =
        pkvi_ceil_div_u64(pkvi_pool_missing(pool, n), pkvi_pool_unit_pages(pool));
    const uint64_t there = pkvi_regions_available(&cache->regions) % unit_bytes;
    const uint64_t bytes = units != 0 ? units * unit_bytes - there : 1;
    uint64_t cached = 0;
    for (uint32_t g = 0; g < cache->n_groups; g++)
        cached += pkvi_pool_cached(&cache->groups[g].pool) * cache->groups[g].page_bytes;
    for (uint32_t s = 0; s < cache->states.n; s++)
        cached +=
            pkvi_pool_cached(&cache->states.groups[s].pool) * cache->states.groups[s].slot_bytes;
    return cached >= bytes && pkvi_cache_reclaim_bytes(cache, bytes) != 0;
}

bool pkvi_cache_reclaim_slots(struct pkv_cache *cache, uint32_t state, uint32_t n)
{
    struct pkvi_pool *pool = &cache->states.groups[state].pool;
    const struct pkvi_hooks *prefix = cache->hooks[PKVI_HOOK_PREFIX];
    const uint32_t missing = pkvi_pool_missing(pool, n);
    if (prefix && missing != 0 && pkvi_pool_cached(pool) != 0 &&
        prefix->reclaim(cache->hook_context[PKVI_HOOK_PREFIX], cache->n_groups + state, missing,
                        NULL) != 0)
        return true;
    return cache->storage != PKV_STORAGE_EXTERNAL && pkvi_cache_reclaim_for(cache, pool, n);
}

bool pkvi_cache_retry(struct pkv_cache *cache, pkv_status status, int attempt, uint64_t bytes)
{
    if (status != PKV_ENOMEM || attempt >= PKVI_ALLOC_ATTEMPTS) return false;
    if (cache->storage == PKV_STORAGE_EXTERNAL) return false; /* pages take no room */
    uint64_t wanted = pkvi_max_u64(bytes, PKVI_RETRY_BYTES);
    const uint64_t limit = pkvi_budget_limit(&cache->budget);
    const uint64_t metadata = atomic_load_explicit(&cache->budget.metadata, memory_order_relaxed);
    if (metadata > limit || wanted > limit - metadata) return false;
    wanted = pkvi_min_u64(wanted << attempt, limit - metadata); /* some arrays are large */
    for (bool first = true;; first = false) {
        const uint64_t used = pkvi_budget_used(&cache->budget);
        const uint64_t room = used < limit ? limit - used : 0;
        if (room >= wanted) return !first; /* at once: it was not the limit that refused */
        const uint64_t spare = pkvi_regions_spare(&cache->regions);
        if (room + spare >= wanted) return true;
        if (pkvi_cache_reclaim_bytes(cache, wanted - room - spare) == 0) return false;
    }
}
