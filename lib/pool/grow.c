/* How a pool gets and loses regions, its creation and its end. */
#include "pool/internal.h"

uint32_t pkvi_pool_slot_pages(const struct pkvi_pool *pool, uint32_t slot)
{
    uint32_t all = pool->per_region.d;
    uint64_t before = (uint64_t)slot * all;
    uint64_t bound = pool->config.max_pages ? pool->config.max_pages : UINT64_MAX;
    return bound - before < all ? (uint32_t)(bound - before) : all;
}

static bool layout(struct pkvi_pool *pool)
{
    const struct pkvi_pool_config *config = &pool->config;
    uint64_t per_region = 0;
    if (!config->page_bytes) return false;
    if (config->storage == PKV_STORAGE_EXTERNAL) {
        per_region = config->external_bytes / config->page_bytes;
        if (config->max_pages) per_region = pkvi_min_u64(per_region, config->max_pages);
        if (per_region > MAX_PAGE_INDEX) return false;
        pool->max_slots = 1;
    } else {
        per_region = pool->regions->config.region_bytes / config->page_bytes;
        if (!per_region || per_region > MAX_PAGE_INDEX) return false;
        uint64_t pages = pkvi_min_u64(config->max_pages ? config->max_pages : UINT64_MAX,
                                      MAX_PAGE_INDEX / per_region * per_region);
        pool->max_slots = (uint32_t)pkvi_ceil_div_u64(pages, per_region);
    }
    if (!per_region) return false;
    pool->per_region = pkvi_divisor((uint32_t)per_region);
    return true;
}

/* Makes the per-page data of slots 0..n-1 exist. grow_lock held (or nobody else there yet). */
static bool ensure_slots(struct pkvi_pool *pool, uint32_t n)
{
    uint32_t pages = (n - 1) * pool->per_region.d + pkvi_pool_slot_pages(pool, n - 1);
    if (!pkvi_segvec_ensure(&pool->slots, pool->mem, n)) return false;
    if (!pkvi_segvec_ensure(&pool->aux, pool->mem, pages)) return false;
    if (pool->config.debug & PKV_DEBUG_CHECKSUM)
        if (!pkvi_segvec_ensure(&pool->checksums, pool->mem, pages)) return false;
    /* Last: an index below this capacity is taken to have everything. */
    return pkvi_segvec_ensure(&pool->words, pool->mem, pages);
}

void pkvi_pool_install(struct pkvi_pool *pool, uint32_t slot, void *base, uint32_t pages)
{
    struct pkvi_region *region = region_at(pool, slot);
    region->free_head = 0;
    region->fresh = 0;
    region->pages = pages;
    region->free_count = pages;
    region->class = CLASS_FULL; /* linked nowhere; reclass moves it */
    region->next = region->prev = 0;
    atomic_store_explicit(&region->base, base, memory_order_release);
    pool->n_regions++;
    counter_add(&pool->total, pages);
    pkvi_pool_reclass(pool, slot, region);
}

static bool pop_slot(struct pkvi_pool *pool, uint32_t *slot)
{
    pkvi_mutex_lock(&pool->lock);
    uint32_t n_slots = atomic_load_explicit(&pool->n_slots, memory_order_relaxed);
    bool found = true;
    if (pool->empty_slots) {
        /* The last slot, which max_pages may cut short, only if there is no other. */
        uint32_t *link = &pool->empty_slots;
        struct pkvi_region *top = region_at(pool, *link - 1);
        if (*link == pool->max_slots && top->next) link = &top->next;
        *slot = *link - 1;
        *link = region_at(pool, *slot)->next;
    } else if (n_slots < pool->max_slots) {
        *slot = n_slots; /* becomes used when the region is installed; growth is serialised */
    } else {
        found = false;
    }
    pkvi_mutex_unlock(&pool->lock);
    return found;
}

/* Makes a slot vacant. Lock held. */
static void push_slot(struct pkvi_pool *pool, uint32_t slot)
{
    if (slot >= atomic_load_explicit(&pool->n_slots, memory_order_relaxed)) return;
    region_at(pool, slot)->next = pool->empty_slots;
    pool->empty_slots = slot + 1;
}

pkv_status pkvi_pool_add_region(struct pkvi_pool *pool)
{
    uint32_t slot;
    if (!pop_slot(pool, &slot)) return PKV_ENOPAGES;
    void *base;
    pkv_status status = pkvi_regions_get(pool->regions, pool, &base);
    if (status == PKV_OK && !ensure_slots(pool, slot + 1)) {
        pkvi_regions_put(pool->regions, base);
        status = PKV_ENOMEM;
    }
    pkvi_mutex_lock(&pool->lock);
    if (status == PKV_OK) {
        if (slot >= atomic_load_explicit(&pool->n_slots, memory_order_relaxed))
            atomic_store_explicit(&pool->n_slots, slot + 1, memory_order_release);
        pkvi_pool_install(pool, slot, base, pkvi_pool_slot_pages(pool, slot));
    } else {
        push_slot(pool, slot);
        pkvi_pool_settle(pool);
    }
    pkvi_mutex_unlock(&pool->lock);
    if (status == PKV_OK)
        pkvi_event(pool->stats, PKV_EVENT_REGION_MAP, pool->config.group, PKV_PAGE_NONE, 0, slot);
    return status;
}

/* Takes the empty region of a slot out; returns its base. Lock held. */
static void *detach(struct pkvi_pool *pool, uint32_t slot)
{
    struct pkvi_region *region = region_at(pool, slot);
    pkvi_pool_unlink(pool, region);
    void *base = atomic_load_explicit(&region->base, memory_order_relaxed);
    atomic_store_explicit(&region->base, NULL, memory_order_relaxed);
    counter_add(&pool->total, 0u - (uint64_t)region->pages);
    region->pages = region->free_count = 0;
    pool->n_regions--;
    push_slot(pool, slot);
    return base;
}

/* Does the last slot, which max_pages may cut short, hold an empty region? Lock held. */
static bool last_is_empty(const struct pkvi_pool *pool)
{
    if (atomic_load_explicit(&pool->n_slots, memory_order_relaxed) != pool->max_slots) return false;
    const struct pkvi_region *region = region_at(pool, pool->max_slots - 1);
    return region->pages != 0 && region->class == CLASS_EMPTY;
}

void pkvi_pool_settle(struct pkvi_pool *pool)
{
    if (!pool->empty_slots || !last_is_empty(pool)) return;
    const uint32_t slot = pool->empty_slots - 1; /* not the last: that is not vacant */
    pool->empty_slots = region_at(pool, slot)->next;
    void *base = detach(pool, pool->max_slots - 1);
    pkvi_pool_install(pool, slot, base, pkvi_pool_slot_pages(pool, slot));
}

/* Takes one empty region out, that of the last slot first. Lock held. */
static bool remove_empty(struct pkvi_pool *pool, void **base, uint32_t *slot)
{
    if (!pool->class_head[CLASS_EMPTY]) return false;
    *slot = last_is_empty(pool) ? pool->max_slots - 1 : pool->class_head[CLASS_EMPTY] - 1;
    *base = detach(pool, *slot);
    return true;
}

bool pkvi_pool_give_region(struct pkvi_pool *pool, void **base)
{
    uint32_t slot;
    pkvi_mutex_lock(&pool->lock);
    bool found = remove_empty(pool, base, &slot);
    pkvi_mutex_unlock(&pool->lock);
    if (found)
        pkvi_event(pool->stats, PKV_EVENT_REGION_UNMAP, pool->config.group, PKV_PAGE_NONE, 0, slot);
    return found;
}

static bool init_external(struct pkvi_pool *pool)
{
    if (!ensure_slots(pool, 1)) return false;
    atomic_store(&pool->n_slots, 1);
    pkvi_pool_install(pool, 0, pool->config.external_base, pool->per_region.d);
    /* It is nobody's to give away: it never enters the list of empty regions. */
    pool->n_regions = 0;
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
    if (config->storage != PKV_STORAGE_HOST) pool->config.debug = 0; /* bytes are not ours */
    if (!layout(pool)) return PKV_EINVAL;
    pkvi_segvec_init(&pool->words, sizeof(_Atomic uint64_t));
    pkvi_segvec_init(&pool->aux, sizeof(struct pkvi_page_aux));
    pkvi_segvec_init(&pool->checksums, sizeof(uint64_t));
    pkvi_segvec_init(&pool->slots, sizeof(struct pkvi_region));
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
            if (region->pages) pkvi_regions_put(pool->regions, atomic_load(&region->base));
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
