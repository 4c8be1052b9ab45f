/* Creation and destruction. */
#include <string.h>

#include "cache/cache_internal.h"
#include "cache/config_limits.h"
#include "cache/open_pages.h"

static uint64_t os_clock(void *user)
{
    const struct pkvi_os *os = user;
    return os->clock_ns(os->user);
}

/* ---- create: a ladder of steps, each with its undo ------------------------------------------ */

/* Bytes of the cache's own struct and of what debug builds add. */
static size_t shell_bytes(const struct pkv_cache *cache)
{
    return sizeof *cache + (cache->ranks ? sizeof *cache->ranks : 0);
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
    if (!cache) {
        pkvi_mem_destroy(&mem);
        return PKV_ENOMEM;
    }
#ifdef PKV_DEBUG
    cache->ranks = pkvi_mem_zalloc(&mem, sizeof *cache->ranks);
    if (!cache->ranks) {
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

static pkv_status init_open_pool(struct pkv_cache *cache, struct pkvi_group *group,
                                 const struct pkvi_pool_config *sealed)
{
    struct pkvi_pool_config pool = *sealed;
    pool.page_bytes = group->open_page_bytes;
    pool.layer_bytes = group->open_layer_bytes;
    pool.max_pages = 0;
    return pkvi_pool_init(&group->open_pool, &pool, &cache->regions, &cache->mem, &cache->stats,
                          cache->ranks);
}

/* The pools of the first n groups, state groups last, and the regions. */
static void destroy_pools(struct pkv_cache *cache, uint32_t n)
{
    for (; n > cache->n_groups; n--)
        pkvi_pool_destroy(&cache->states.groups[n - 1 - cache->n_groups].pool);
    while (n-- > 0) {
        if (cache->groups[n].quantised) pkvi_pool_destroy(&cache->groups[n].open_pool);
        pkvi_pool_destroy(&cache->groups[n].pool);
    }
    pkvi_regions_destroy(&cache->regions);
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
    for (uint32_t g = 0; g < pkvi_all_groups(cache); g++) {
        struct pkvi_group *group = g < cache->n_groups ? &cache->groups[g] : NULL;
        struct pkvi_state_group *states = group ? NULL : &cache->states.groups[g - cache->n_groups];
        const pkv_group_config given = pkvi_config_group(config, g);
        const struct pkvi_pool_config pool = {
            .group = g,
            .page_bytes = group ? group->page_bytes : states->slot_bytes,
            .layer_bytes = group ? group->layer_bytes : states->layer_bytes,
            .max_pages = given.max_pages,
            .storage = config->storage,
            .external_base = given.external_base,
            .external_bytes = given.external_bytes,
            .debug = config->debug,
        };
        pkv_status status =
            pkvi_pool_init(group ? &group->pool : &states->pool, &pool, &cache->regions,
                           &cache->mem, &cache->stats, cache->ranks);
        if (status == PKV_OK && group && group->quantised) {
            status = init_open_pool(cache, group, &pool);
            if (status != PKV_OK) pkvi_pool_destroy(&group->pool);
        }
        if (status == PKV_OK) continue;
        destroy_pools(cache, g);
        return status;
    }
    return PKV_OK;
}

static void unbind_modules(struct pkv_cache *cache)
{
    for (int slot = PKVI_HOOK_SLOTS - 1; slot >= 0; slot--) {
        const struct pkvi_hooks *hooks = cache->hooks[slot];
        cache->hooks[slot] = NULL;
        if (hooks && hooks->destroy) hooks->destroy(cache->hook_context[slot]);
    }
    pkvi_attention_unbind(cache);
}

static pkv_status bind_modules(struct pkv_cache *cache, const pkv_config *config)
{
    pkv_status status = pkvi_attention_bind(cache, config);
    if (status != PKV_OK) return status;
    status = pkvi_prefix_bind(cache, config);
    if (status == PKV_OK) status = pkvi_evict_bind(cache, config);
    if (status == PKV_OK) pkvi_open_bind(cache);
    if (status == PKV_OK) pkvi_state_bind(cache);
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
    destroy_pools(cache, pkvi_all_groups(cache));
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
    if (!out) return PKV_EINVAL;
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
    cache->clock = config->clock ? config->clock : os_clock;
    /* The default clock's context is the constant hook table; the function takes it as such. */
    cache->clock_user = config->clock ? config->clock_user : (void *)(uintptr_t)os;
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
    if (!cache) return;
    pkvi_batches_destroy(cache);
    for (uint32_t slot = 0; slot < cache->sequences.used; slot++) {
        struct pkvi_seq *seq = pkvi_slots_at(&cache->sequences, slot);
        if (seq) pkvi_seq_destroy(seq);
    }
    unbind_modules(cache);
    pkvi_slots_destroy(&cache->batches, &cache->mem);
    pkvi_slots_destroy(&cache->sequences, &cache->mem);
    pkvi_admission_destroy(cache);
    destroy_pools(cache, pkvi_all_groups(cache));
    pkvi_geometry_free(cache);
    pkvi_stats_destroy(&cache->stats, &cache->mem);
    destroy_locks(cache);
    destroy_shell(cache);
}
