/* Creation, destruction and reclaim. */
#include <string.h>

#include "cache/cache_internal.h"
#include "cache/config_limits.h"

static uint64_t os_clock(void *user)
{
    const struct pkvi_os *os = user;
    return os->clock_ns(os->user);
}

/* ---- create: a ladder of steps, each with its undo --------------------------------------------
 */

/* Bytes of the cache's own struct and of what debug builds add. */
static size_t shell_bytes(const struct pkv_cache *cache)
{
    return sizeof *cache + (cache->ranks != NULL ? sizeof *cache->ranks : 0);
}

static void free_shell(struct pkvi_mem *mem, struct pkv_cache *cache)
{
    pkvi_mem_free(mem, cache->ranks, sizeof *cache->ranks);
    pkvi_mem_free(mem, cache, sizeof *cache);
    pkvi_mem_destroy(mem);
}

/* The cache's own struct comes from the allocator that it describes: the allocator is set up on the
 * stack first and moves into the struct. */
static pkv_status create_shell(const pkv_config *config, uint64_t limit, struct pkv_cache **out)
{
    struct pkvi_mem mem;
    const pkv_status status = pkvi_mem_init(&mem, config->allocator);
    if (status != PKV_OK) return status;
    struct pkv_cache *cache = pkvi_mem_zalloc(&mem, sizeof *cache);
    if (cache == NULL) {
        pkvi_mem_destroy(&mem);
        return PKV_ENOMEM;
    }
#ifdef PKV_DEBUG
    cache->ranks = pkvi_mem_zalloc(&mem, sizeof *cache->ranks);
    if (cache->ranks == NULL) {
        free_shell(&mem, cache);
        return PKV_ENOMEM;
    }
#endif
    if (!pkvi_budget_init(&cache->budget, limit, cache->ranks)) {
        free_shell(&mem, cache);
        return PKV_ENOMEM;
    }
    cache->mem = mem;
    if (!pkvi_mem_attach(&cache->mem, &cache->budget, shell_bytes(cache))) {
        pkvi_budget_destroy(&cache->budget);
        free_shell(&mem, cache);
        return PKV_ENOMEM;
    }
    *out = cache;
    return PKV_OK;
}

static void destroy_shell(struct pkv_cache *cache)
{
    pkvi_mem_detach(&cache->mem, shell_bytes(cache));
    pkvi_budget_destroy(&cache->budget);
    struct pkvi_mem mem = cache->mem;
    free_shell(&mem, cache);
}

static pkv_status init_locks(struct pkv_cache *cache)
{
    if (!pkvi_mutex_init(&cache->lock, PKVI_RANK_CACHE, cache->ranks)) return PKV_ENOMEM;
    if (!pkvi_mutex_init(&cache->admission_lock, PKVI_RANK_ADMISSION, cache->ranks)) {
        pkvi_mutex_destroy(&cache->lock);
        return PKV_ENOMEM;
    }
    if (!pkvi_mutex_init(&cache->error_lock, PKVI_RANK_ERROR, cache->ranks)) {
        pkvi_mutex_destroy(&cache->admission_lock);
        pkvi_mutex_destroy(&cache->lock);
        return PKV_ENOMEM;
    }
    return PKV_OK;
}

static void destroy_locks(struct pkv_cache *cache)
{
    pkvi_mutex_destroy(&cache->error_lock);
    pkvi_mutex_destroy(&cache->admission_lock);
    pkvi_mutex_destroy(&cache->lock);
}

static pkv_status init_pools(struct pkv_cache *cache, const pkv_config *config)
{
    const struct pkvi_regions_config regions = {
        .region_bytes = pkvi_geometry_region_bytes(config),
        .mapped = config->storage == PKV_STORAGE_HOST,
        .huge = config->huge_pages != 0,
        .dont_fork = config->fork_policy != 0,
        .numa_node = config->numa_node,
    };
    if (!pkvi_regions_init(&cache->regions, &regions, &cache->budget, cache->os, cache->ranks))
        return PKV_ENOMEM;
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        struct pkvi_group *group = &cache->groups[g];
        const pkv_group_config given = pkvi_config_group(config, g);
        const struct pkvi_pool_config pool = {
            .group = g,
            .page_bytes = group->page_bytes,
            .layer_bytes = group->layer_bytes,
            .max_pages = given.max_pages,
            .storage = config->storage,
            .external_base = given.external_base,
            .external_bytes = given.external_bytes,
            .debug = config->debug,
        };
        const pkv_status status = pkvi_pool_init(&group->pool, &pool, &cache->regions, &cache->mem,
                                                 &cache->stats, cache->ranks);
        if (status == PKV_OK) continue;
        while (g-- > 0)
            pkvi_pool_destroy(&cache->groups[g].pool);
        pkvi_regions_destroy(&cache->regions);
        return status;
    }
    return PKV_OK;
}

static void destroy_pools(struct pkv_cache *cache)
{
    for (uint32_t g = cache->n_groups; g-- > 0;)
        pkvi_pool_destroy(&cache->groups[g].pool);
    pkvi_regions_destroy(&cache->regions);
}

static void unbind_modules(struct pkv_cache *cache)
{
    for (int slot = PKVI_HOOK_SLOTS - 1; slot >= 0; slot--) {
        const struct pkvi_hooks *hooks = cache->hooks[slot];
        cache->hooks[slot] = NULL;
        if (hooks != NULL && hooks->destroy != NULL) hooks->destroy(cache->hook_context[slot]);
    }
    pkvi_attention_unbind(cache);
}

static pkv_status bind_modules(struct pkv_cache *cache, const pkv_config *config)
{
    pkv_status status = pkvi_attention_bind(cache, config);
    if (status != PKV_OK) return status;
    status = pkvi_prefix_bind(cache, config);
    if (status == PKV_OK) status = pkvi_evict_bind(cache, config);
    if (status != PKV_OK) unbind_modules(cache);
    return status;
}

static pkv_status fill(struct pkv_cache *cache, const pkv_config *config)
{
    pkv_status status = init_locks(cache);
    if (status != PKV_OK) return status;
    status = pkvi_stats_init(&cache->stats, &cache->mem, config->event_capacity, cache->clock,
                             cache->clock_user, cache->ranks);
    if (status != PKV_OK) goto no_stats;
    status = pkvi_geometry_init(cache, config);
    if (status != PKV_OK) goto no_geometry;
    status = init_pools(cache, config);
    if (status != PKV_OK) goto no_pools;
    status = pkvi_admission_init(cache);
    if (status != PKV_OK) goto no_admission;
    pkvi_slots_init(&cache->sequences, config->max_sequences, cache->os);
    pkvi_slots_init(&cache->batches, config->max_batches, cache->os);
    status = bind_modules(cache, config);
    if (status == PKV_OK) return PKV_OK;
    pkvi_admission_destroy(cache);
no_admission:
    destroy_pools(cache);
no_pools:
    pkvi_geometry_free(cache);
no_geometry:
    pkvi_stats_destroy(&cache->stats, &cache->mem);
no_stats:
    destroy_locks(cache);
    return status;
}

pkv_status pkvi_cache_create(const pkv_config *given, const struct pkvi_os *os, pkv_cache **out)
{
    if (out == NULL) return PKV_EINVAL;
    pkv_status status = pkv_config_check(given, NULL, 0);
    if (status != PKV_OK) return status;
    pkv_config ours;
    const pkv_config *config = &ours;
    pkvi_config_read(given, &ours);
    const uint64_t limit =
        config->memory_limit != 0 ? config->memory_limit : PKVI_DEFAULT_MEMORY_LIMIT;
    struct pkv_cache *cache;
    status = create_shell(config, limit, &cache);
    if (status != PKV_OK) return status;
    cache->os = os;
    atomic_init(&cache->exports, os->clock_ns(os->user) | 1);
    cache->storage = config->storage;
    cache->debug = config->debug;
    cache->watermark_pages = config->watermark_pages;
    cache->log = (struct pkvi_log){config->log, config->log_user};
    cache->clock = config->clock != NULL ? config->clock : os_clock;
    /* The default clock's context is the constant hook table; the function takes it as such. */
    cache->clock_user = config->clock != NULL ? config->clock_user : (void *)(uintptr_t)os;
    status = fill(cache, config);
    if (status != PKV_OK) {
        destroy_shell(cache);
        return status;
    }
    cache->empty_metadata = atomic_load_explicit(&cache->budget.metadata, memory_order_relaxed);
    *out = cache;
    return PKV_OK;
}

pkv_status pkv_cache_create(const pkv_config *config, pkv_cache **cache)
{
    return pkvi_cache_create(config, pkvi_os_default(), cache);
}

void pkv_cache_destroy(pkv_cache *cache)
{
    if (cache == NULL) return;
    pkvi_batches_destroy(cache);
    for (uint32_t slot = 0; slot < cache->sequences.used; slot++) {
        struct pkvi_seq *seq = pkvi_slots_at(&cache->sequences, slot);
        if (seq != NULL) pkvi_seq_destroy(seq);
    }
    unbind_modules(cache);
    pkvi_slots_destroy(&cache->batches, &cache->mem);
    pkvi_slots_destroy(&cache->sequences, &cache->mem);
    pkvi_admission_destroy(cache);
    destroy_pools(cache);
    pkvi_geometry_free(cache);
    pkvi_stats_destroy(&cache->stats, &cache->mem);
    destroy_locks(cache);
    destroy_shell(cache);
}

/* ---- reclaim ------------------------------------------------------------------------
 */

uint64_t pkvi_cache_reclaim_bytes(struct pkv_cache *cache, uint64_t bytes)
{
    uint64_t freed = 0;
    for (int slot = 0; slot < PKVI_HOOK_SLOTS && freed < bytes; slot++) {
        const struct pkvi_hooks *hooks = cache->hooks[slot];
        if (hooks != NULL && hooks->reclaim_bytes != NULL)
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
        if (hooks != NULL && hooks->reclaim != NULL)
            freed += hooks->reclaim(cache->hook_context[slot], group, n - freed, requester);
    }
    if (freed >= n || cache->storage == PKV_STORAGE_EXTERNAL) return freed != 0;
    const struct pkvi_pool *pool = &cache->groups[group].pool;
    const uint64_t units = pkvi_ceil_div_u64(n - freed, pkvi_pool_unit_pages(pool));
    return (pkvi_cache_reclaim_bytes(cache, units * pkvi_pool_unit_bytes(pool)) | freed) != 0;
}

uint32_t pkvi_cache_hopeless(struct pkv_cache *cache, uint32_t group, uint32_t n,
                             const struct pkvi_batch *requester)
{
    struct pkvi_pool *pool = &cache->groups[group].pool;
    const uint64_t missing = pkvi_pool_missing(pool, n);
    if (missing == 0) return 0;
    const struct pkvi_hooks *evict = cache->hooks[PKVI_HOOK_EVICT];
    uint64_t evictable = 0, most = pkvi_pool_cached(pool);
    if (evict != NULL && evict->reclaimable != NULL)
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
