/* The region slots of a pool: filled, emptied, and the per-page data that goes with them. */
#include "pool/internal.h"

/* Makes the per-page data of slots 0..n-1 exist. grow_lock held (or nobody else there yet). */
bool pkvi_pool_ensure_slots(struct pkvi_pool *pool, uint32_t n)
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
void pkvi_pool_install(struct pkvi_pool *pool, uint32_t slot, void *base, bool split)
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
    reclass(pool, slot, region);
}

bool pkvi_pool_pop_slot(struct pkvi_pool *pool, uint32_t *slot)
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
void pkvi_pool_push_slot(struct pkvi_pool *pool, uint32_t slot)
{
    if (slot >= atomic_load_explicit(&pool->n_slots, memory_order_relaxed)) return;
    region_at(pool, slot)->next = pool->empty_slots;
    pool->empty_slots = slot + 1;
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
    pkvi_pool_push_slot(pool, slot);
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

/* Forgets vacant slots at the end and makes the stack of the others anew, lowest on top; the
 * highest generation of their pages must not come again. Returns the number of slots left. Lock
 * held. */
static uint32_t forget_slots(struct pkvi_pool *pool)
{
    const uint32_t before = pkvi_pool_index_limit(pool);
    uint32_t n = atomic_load_explicit(&pool->n_slots, memory_order_relaxed);
    while (n != 0 && region_at(pool, n - 1)->pages == 0)
        n--;
    atomic_store_explicit(&pool->n_slots, n, memory_order_release);
    pool->empty_slots = 0;
    for (uint32_t slot = n; slot-- > 0;)
        if (region_at(pool, slot)->pages == 0) pkvi_pool_push_slot(pool, slot);
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
