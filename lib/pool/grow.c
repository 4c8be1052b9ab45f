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

/* Puts a region into a vacant slot and into the lists where it belongs. Lock held. */
static void install(struct pkvi_pool *pool, uint32_t slot, void *base, bool split)
{
    struct pkvi_region *region = region_at(pool, slot);
    *region = (struct pkvi_region){.pages = pkvi_pool_slot_pages(pool, slot), .split = split};
    atomic_store_explicit(&region->base, base, memory_order_release);
    if (split) {
        region->fresh = region->pages;
        pool->n_split++;
        pkvi_pool_chill(pool, slot);
        return;
    }
    region->free_count = region->pages;
    pool->n_whole++;
    counter_add(&pool->total, region->pages);
    pkvi_pool_reclass(pool, slot, region);
}

static bool pop_slot(struct pkvi_pool *pool, uint32_t *slot)
{
    pkvi_mutex_lock(&pool->lock);
    uint32_t n_slots = atomic_load_explicit(&pool->n_slots, memory_order_relaxed);
    bool found = true;
    if (pool->empty_slots) {
        *slot = pool->empty_slots - 1;
        pool->empty_slots = region_at(pool, *slot)->next;
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

pkv_status pkvi_pool_add_region(struct pkvi_pool *pool, bool split)
{
    uint32_t slot;
    if (!pop_slot(pool, &slot)) return PKV_ENOPAGES;
    void *base;
    pkv_status status = split ? pkvi_regions_map_split(pool->regions, &base)
                              : pkvi_regions_get(pool->regions, pool, &base);
    if (status == PKV_OK && !ensure_slots(pool, slot + 1)) {
        pkvi_regions_put(pool->regions, base, split ? 0 : pool->regions->config.region_bytes);
        status = PKV_ENOMEM;
    }
    pkvi_mutex_lock(&pool->lock);
    if (status == PKV_OK) {
        if (slot >= atomic_load_explicit(&pool->n_slots, memory_order_relaxed))
            atomic_store_explicit(&pool->n_slots, slot + 1, memory_order_release);
        install(pool, slot, base, split);
    } else {
        push_slot(pool, slot);
    }
    pkvi_mutex_unlock(&pool->lock);
    if (status == PKV_OK)
        pkvi_event(pool->stats, PKV_EVENT_REGION_MAP, pool->config.group, PKV_PAGE_NONE, 0, slot);
    return status;
}

void *pkvi_pool_detach(struct pkvi_pool *pool, uint32_t slot, uint64_t *charge)
{
    struct pkvi_region *region = region_at(pool, slot);
    PKVI_ASSERT(region->free_count + region->cold_pages == region->pages && !region->transit);
    *charge = pkvi_pool_charge(pool, region);
    pkvi_pool_unlink(pool, region);
    if (region->cold_units) pkvi_pool_unlink_cold(pool, region);
    for (uint32_t u = region->cold_head; u;) {
        struct pkvi_page_aux *aux = unit_aux(pool, slot, u - 1);
        aux->cold = false;
        u = aux->next;
    }
    void *base = atomic_load_explicit(&region->base, memory_order_relaxed);
    counter_add(&pool->total, 0 - (uint64_t)region->free_count);
    counter_add(&pool->cold, 0 - (uint64_t)region->cold_pages);
    if (region->split)
        pool->n_split--;
    else
        pool->n_whole--;
    const struct pkvi_region none = {.base = NULL};
    *region = none;
    push_slot(pool, slot);
    if (pkvi_events_on(pool->stats))
        pkvi_event(pool->stats, PKV_EVENT_REGION_UNMAP, pool->config.group, PKV_PAGE_NONE, 0, slot);
    return base;
}

/* A split region without used and cached pages; slot + 1, 0 = none. Lock held. */
static uint32_t find_split(const struct pkvi_pool *pool)
{
    for (uint32_t at = pool->cold_regions; at; at = region_at(pool, at - 1)->cold_next) {
        const struct pkvi_region *region = region_at(pool, at - 1);
        if (region->free_count + region->cold_pages == region->pages) return at;
    }
    for (uint32_t at = pool->class_head[CLASS_SPLIT]; at; at = region_at(pool, at - 1)->next) {
        const struct pkvi_region *region = region_at(pool, at - 1);
        if (region->free_count == region->pages) return at;
    }
    return 0;
}

bool pkvi_pool_give_region(struct pkvi_pool *pool, enum give kind, void **base, uint64_t *charge)
{
    pkvi_mutex_lock(&pool->lock);
    uint32_t at = pool->class_head[CLASS_EMPTY];
    if (!at && kind == GIVE_ANY) at = find_split(pool);
    if (at) *base = pkvi_pool_detach(pool, at - 1, charge);
    pkvi_mutex_unlock(&pool->lock);
    return at != 0;
}

/* Forgets vacant slots at the end and makes the stack of the others anew, lowest on top; the highest
 * generation of their pages must not come again. Returns the number of slots left. Lock held. */
static uint32_t forget_slots(struct pkvi_pool *pool)
{
    const uint32_t before = pkvi_pool_index_limit(pool);
    uint32_t n = atomic_load_explicit(&pool->n_slots, memory_order_relaxed);
    while (n != 0 && region_at(pool, n - 1)->pages == 0)
        n--;
    atomic_store_explicit(&pool->n_slots, n, memory_order_release);
    pool->empty_slots = 0;
    for (uint32_t slot = n; slot-- > 0;)
        if (region_at(pool, slot)->pages == 0) push_slot(pool, slot);
    for (uint32_t page = pkvi_pool_index_limit(pool); page < before; page++) {
        const uint64_t word = load_word(word_at(pool, page));
        if (word > pool->first_generation) pool->first_generation = word;
    }
    return n;
}

void pkvi_pool_trim_metadata(struct pkvi_pool *pool)
{
    pkvi_mutex_lock(&pool->grow_lock); /* no slot is being filled, no vector grows */
    pkvi_mutex_lock(&pool->lock);
    const uint32_t slots = forget_slots(pool), pages = pkvi_pool_index_limit(pool);
    pkvi_mutex_unlock(&pool->lock);
    pkvi_segvec_trim(&pool->words, pool->mem, pages);
    pkvi_segvec_trim(&pool->aux, pool->mem, pages);
    if (pool->config.debug & PKV_DEBUG_CHECKSUM)
        pkvi_segvec_trim(&pool->checksums, pool->mem, pages);
    pkvi_segvec_trim(&pool->slots, pool->mem, slots);
    pkvi_mutex_unlock(&pool->grow_lock);
}

static bool init_external(struct pkvi_pool *pool)
{
    if (!ensure_slots(pool, 1)) return false;
    atomic_store(&pool->n_slots, 1);
    install(pool, 0, pool->config.external_base, false);
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
