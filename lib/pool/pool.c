/* Creation and end of a pool. */
#include "pool/internal.h"

static bool layout(struct pkvi_pool *pool)
{
    const struct pkvi_pool_config *config = &pool->config;
    const struct pkvi_regions *regions = pool->regions;
    uint64_t per_region = 0;
    uint32_t per_unit = 1;
    if (!config->page_bytes) return false;
    pool->unit_bytes = config->page_bytes;
    uint64_t bound = config->max_pages ? config->max_pages : UINT64_MAX;
    if (config->storage == PKV_STORAGE_EXTERNAL) {
        per_region = pkvi_min_u64(config->external_bytes / config->page_bytes, bound);
        if (per_region > MAX_PAGE_INDEX) return false;
        bound = per_region;
        pool->max_slots = 1;
    } else {
        uint64_t os_page = regions->config.mapped ? regions->os->page_bytes(regions->os->user) : 1;
        per_unit = pkvi_pool_choose_unit(config->page_bytes, os_page, &pool->unit_bytes);
        per_region = regions->config.region_bytes / pool->unit_bytes * per_unit;
        if (!per_region || per_region > MAX_PAGE_INDEX) return false;
        bound = pkvi_min_u64(bound, MAX_PAGE_INDEX / per_region * per_region);
        pool->max_slots = (uint32_t)pkvi_ceil_div_u64(bound, per_region);
    }
    if (!per_region) return false;
    pool->max_index = (uint32_t)bound;
    pool->per_region = pkvi_divisor((uint32_t)per_region);
    pool->per_unit = pkvi_divisor(per_unit);
    return true;
}

static bool init_external(struct pkvi_pool *pool)
{
    if (!pkvi_pool_ensure_slots(pool, 1)) return false;
    atomic_store(&pool->n_slots, 1);
    pkvi_pool_install(pool, 0, pool->config.external_base, false);
    pool->n_whole = 0; /* it is nobody's to give away */
    return true;
}

static void destroy_vectors(struct pkvi_pool *pool)
{
    pkvi_segvec_destroy(&pool->words, pool->mem);
    pkvi_segvec_destroy(&pool->aux, pool->mem);
    pkvi_segvec_destroy(&pool->checksums, pool->mem);
    pkvi_segvec_destroy(&pool->slots, pool->mem);
}

pkv_status pkvi_pool_init(struct pkvi_pool *pool, const struct pkvi_pool_config *config,
                          struct pkvi_regions *regions, struct pkvi_mem *mem,
                          struct pkvi_stats *stats, struct pkvi_lock_ranks *ranks)
{
    *pool = (struct pkvi_pool){.config = *config, .regions = regions, .mem = mem, .stats = stats};
    pool->first_generation = UINT64_C(1) << 32;
    if (config->storage != PKV_STORAGE_HOST) pool->config.debug = 0; /* bytes are not ours */
    if (!layout(pool)) return PKV_EINVAL;
    pkvi_segvec_init(&pool->words, sizeof(_Atomic uint64_t), regions->os);
    pkvi_segvec_init(&pool->aux, sizeof(struct pkvi_page_aux), regions->os);
    pkvi_segvec_init(&pool->checksums, sizeof(uint64_t), regions->os);
    pkvi_segvec_init(&pool->slots, sizeof(struct pkvi_region), regions->os);
    pkvi_list_init(&pool->magazines);
    pkvi_list_init(&pool->link);
    if (!pkvi_mutex_init(&pool->lock, PKVI_RANK_POOL, ranks)) return PKV_ENOMEM;
    if (!pkvi_mutex_init(&pool->grow_lock, PKVI_RANK_GROW, ranks)) {
        pkvi_mutex_destroy(&pool->lock);
        return PKV_ENOMEM;
    }
    if (config->storage != PKV_STORAGE_EXTERNAL) {
        pkvi_regions_add(regions, pool);
    } else if (!init_external(pool)) {
        destroy_vectors(pool);
        pkvi_mutex_destroy(&pool->grow_lock);
        pkvi_mutex_destroy(&pool->lock);
        return PKV_ENOMEM;
    }
    return PKV_OK;
}

void pkvi_pool_destroy(struct pkvi_pool *pool)
{
    pkvi_magazines_free_all(pool);
    if (pool->config.storage != PKV_STORAGE_EXTERNAL) {
        pkvi_regions_remove(pool->regions, pool);
        uint32_t n_slots = atomic_load(&pool->n_slots);
        for (uint32_t slot = 0; slot < n_slots; slot++) {
            struct pkvi_region *region = region_at(pool, slot);
            if (region->pages)
                pkvi_regions_put(pool->regions, atomic_load(&region->base),
                                 pkvi_pool_charge(pool, region));
        }
    }
    destroy_vectors(pool);
    pkvi_mutex_destroy(&pool->grow_lock);
    pkvi_mutex_destroy(&pool->lock);
}

void pkvi_pool_set_idle(struct pkvi_pool *pool, pkvi_idle_fn idle, void *context)
{
    pool->idle = idle;
    pool->idle_context = context;
}
