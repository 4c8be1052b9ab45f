/* Taking pages out of regions and putting them back. */
#include "pool/internal.h"

/* ---- lists of regions by fullness; lock held ---- */

/* Fuller regions come first when pages are taken, so that sparse ones get a chance to become empty.
 * Three partial classes are enough for that and keep a region from moving at every page. */
static uint32_t class_of(const struct pkvi_region *region)
{
    uint32_t free_count = region->free_count, pages = region->pages;
    if (!free_count) return CLASS_FULL;
    if (free_count == pages) return CLASS_EMPTY;
    if (free_count <= pages / 4) return 1;
    return free_count <= pages - pages / 4 ? 2 : 3;
}

void pkvi_pool_unlink(struct pkvi_pool *pool, struct pkvi_region *region)
{
    if (region->class == CLASS_FULL) return; /* full regions are in no list */
    if (region->prev)
        region_at(pool, region->prev - 1)->next = region->next;
    else
        pool->class_head[region->class] = region->next;
    if (region->next) region_at(pool, region->next - 1)->prev = region->prev;
    if (region->class == CLASS_EMPTY)
        atomic_store_explicit(&pool->n_empty,
                              atomic_load_explicit(&pool->n_empty, memory_order_relaxed) - 1,
                              memory_order_relaxed);
    region->class = CLASS_FULL;
    region->next = region->prev = 0;
}

static void link_region(struct pkvi_pool *pool, uint32_t slot, struct pkvi_region *region,
                        uint32_t class)
{
    region->class = class;
    if (class == CLASS_FULL) return;
    region->prev = 0;
    region->next = pool->class_head[class];
    if (region->next) region_at(pool, region->next - 1)->prev = slot + 1;
    pool->class_head[class] = slot + 1;
    if (class != CLASS_EMPTY) return;
    /* Everything was freed: forget the stack, so that pages come out in ascending order again. */
    region->free_head = 0;
    region->fresh = 0;
    atomic_store_explicit(&pool->n_empty,
                          atomic_load_explicit(&pool->n_empty, memory_order_relaxed) + 1,
                          memory_order_relaxed);
}

void pkvi_pool_reclass(struct pkvi_pool *pool, uint32_t slot, struct pkvi_region *region)
{
    uint32_t class = class_of(region);
    if (class == region->class) return;
    pkvi_pool_unlink(pool, region);
    link_region(pool, slot, region, class);
    if (class == CLASS_EMPTY && slot + 1 == pool->max_slots) pkvi_pool_settle(pool);
}

/* ---- pages in and out; lock held ---- */

/* Freed pages first, then the never used ones in ascending order. */
static uint32_t pop_page(struct pkvi_pool *pool, struct pkvi_region *region, uint32_t base)
{
    region->free_count--;
    if (!region->free_head) return base + region->fresh++;
    uint32_t page = base + region->free_head - 1;
    region->free_head = aux_at(pool, page)->next;
    return page;
}

/* Gives a free page to its holder; returns its id. */
static pkv_page hand_over(struct pkvi_pool *pool, uint32_t page, enum holder holder)
{
    _Atomic uint64_t *word = word_at(pool, page);
    uint64_t old = load_word(word);
    PKVI_ASSERT((uint32_t)old == 0); /* no references, no flags */
    uint64_t generation = old ? old : UINT64_C(1) << 32;
    store_word(word, generation | (holder == HOLDER_MAGAZINE ? PKVI_WORD_MAGAZINE : 1));
    if (holder == HOLDER_HOST) aux_at(pool, page)->host = 1;
    return generation | page;
}

static void take_from(struct pkvi_pool *pool, uint32_t slot, uint32_t n, uint32_t at,
                      struct taken to)
{
    struct pkvi_region *region = region_at(pool, slot);
    uint32_t base = slot * pool->per_region.d;
    for (uint32_t i = 0; i < n; i++) {
        pkv_page id = hand_over(pool, pop_page(pool, region, base), to.holder);
        if (to.holder == HOLDER_LIBRARY)
            to.pages[at + i] = pkv_page_index(id);
        else
            to.ids[at + i] = id;
    }
    pkvi_pool_reclass(pool, slot, region);
}

/* The region of a class that pages are taken from next; an empty one in the last slot only if
 * there is no other (pkvi_pool_settle). */
static uint32_t next_slot(const struct pkvi_pool *pool, uint32_t class)
{
    const uint32_t at = pool->class_head[class];
    const uint32_t next = region_at(pool, at - 1)->next;
    return (class == CLASS_EMPTY && at == pool->max_slots && next ? next : at) - 1;
}

void pkvi_pool_take(struct pkvi_pool *pool, uint32_t n, struct taken to)
{
    uint32_t done = 0;
    for (uint32_t class = 1; done < n; class ++) {
        PKVI_ASSERT(class < PKVI_REGION_CLASSES);
        while (done < n && pool->class_head[class]) {
            uint32_t slot = next_slot(pool, class);
            uint32_t k = pkvi_min_u32(n - done, region_at(pool, slot)->free_count);
            take_from(pool, slot, k, done, to);
            done += k;
        }
    }
    counter_add(&pool->out, n);
}

void pkvi_pool_put(struct pkvi_pool *pool, uint32_t page)
{
    uint32_t slot = pkvi_div(pool->per_region, page);
    struct pkvi_region *region = region_at(pool, slot);
    struct pkvi_page_aux *aux = aux_at(pool, page);
    aux->sealed = false;
    aux->next = region->free_head;
    region->free_head = page - slot * pool->per_region.d + 1;
    region->free_count++;
    pkvi_pool_reclass(pool, slot, region);
}

/* ---- allocation ---- */

/* Locks; takes between `least` and `most` pages if they are there, or none. */
static uint32_t take_if_free(struct pkvi_pool *pool, uint32_t least, uint32_t most, struct taken to)
{
    pkvi_mutex_lock(&pool->lock);
    uint32_t n = (uint32_t)pkvi_min_u64(free_pages(pool), most);
    if (n < least) n = 0;
    if (PKVI_LIKELY(n)) {
        pkvi_pool_take(pool, n, to);
        if (to.holder != HOLDER_MAGAZINE) counter_add(&pool->allocs, n);
    }
    pkvi_mutex_unlock(&pool->lock);
    return n;
}

/* Adds regions until `least` pages are free, and takes them. */
static pkv_status grow_and_take(struct pkvi_pool *pool, uint32_t least, uint32_t most,
                                struct taken to, uint32_t *got)
{
    if (pool->config.storage == PKV_STORAGE_EXTERNAL) return PKV_ENOPAGES;
    pkv_status status = PKV_OK;
    uint32_t added = 0;
    pkvi_mutex_lock(&pool->grow_lock);
    /* Hopeless requests must not map regions only to give them back. */
    if (pkvi_pool_obtainable(pool) < least) status = PKV_ENOPAGES;
    while (status == PKV_OK) {
        *got = take_if_free(pool, least, most, to);
        if (*got) break;
        status = pkvi_pool_add_region(pool);
        if (status == PKV_OK) added++;
    }
    void *base;
    while (status != PKV_OK && added-- && pkvi_pool_give_region(pool, &base))
        pkvi_regions_put(pool->regions, base);
    pkvi_mutex_unlock(&pool->grow_lock);
    return status;
}

static void record_allocs(struct pkvi_pool *pool, uint32_t n, struct taken from)
{
    for (uint32_t i = 0; i < n; i++) {
        pkv_page id =
            from.holder == HOLDER_LIBRARY ? pkvi_pool_id(pool, from.pages[i]) : from.ids[i];
        pkvi_event(pool->stats, PKV_EVENT_PAGE_ALLOC, pool->config.group, id, 0, 0);
    }
}

pkv_status pkvi_pool_obtain(struct pkvi_pool *pool, uint32_t least, uint32_t most, struct taken to,
                            uint32_t *got)
{
    *got = take_if_free(pool, least, most, to);
    if (PKVI_UNLIKELY(!*got)) {
        pkv_status status = grow_and_take(pool, least, most, to, got);
        if (status != PKV_OK) return status;
    }
    if (pkvi_events_on(pool->stats) && to.holder != HOLDER_MAGAZINE) record_allocs(pool, *got, to);
    return PKV_OK;
}

pkv_status pkvi_pool_alloc(struct pkvi_pool *pool, uint32_t n, uint32_t *pages)
{
    uint32_t got;
    struct taken to = {.holder = HOLDER_LIBRARY, .pages = pages};
    return n ? pkvi_pool_obtain(pool, n, n, to, &got) : PKV_OK;
}

pkv_status pkvi_pool_alloc_ids(struct pkvi_pool *pool, uint32_t n, pkv_page *ids)
{
    uint32_t got;
    struct taken to = {.holder = HOLDER_HOST, .ids = ids};
    return n ? pkvi_pool_obtain(pool, n, n, to, &got) : PKV_OK;
}

/* ---- figures ---- */

uint64_t pkvi_pool_obtainable(struct pkvi_pool *pool)
{
    pkvi_mutex_lock(&pool->lock);
    uint64_t n_free = free_pages(pool);
    uint64_t held = counter_get(&pool->out) + counter_get(&pool->cached);
    uint64_t slots = pool->max_slots - pool->n_regions;
    pkvi_mutex_unlock(&pool->lock);
    if (pool->config.storage == PKV_STORAGE_EXTERNAL) return n_free;
    struct pkvi_regions *regions = pool->regions;
    uint64_t more = pkvi_budget_region_room(regions->budget) / regions->config.region_bytes +
                    pkvi_regions_empty(regions, pool);
    uint64_t pages = n_free + pkvi_min_u64(more, slots) * pool->per_region.d;
    if (pool->config.max_pages) pages = pkvi_min_u64(pages, pool->config.max_pages - held);
    return pages;
}

uint32_t pkvi_pool_missing(struct pkvi_pool *pool, uint32_t n)
{
    uint64_t obtainable = pkvi_pool_obtainable(pool);
    return obtainable >= n ? 0 : n - (uint32_t)obtainable;
}

uint32_t pkvi_pool_index_limit(const struct pkvi_pool *pool)
{
    uint32_t n = atomic_load_explicit(&pool->n_slots, memory_order_acquire);
    return n ? (n - 1) * pool->per_region.d + pkvi_pool_slot_pages(pool, n - 1) : 0;
}

void pkvi_pool_counts(struct pkvi_pool *pool, struct pkvi_pool_counts *counts)
{
    uint64_t parked = 0, allocs = 0, frees = 0;
    pkvi_mutex_lock(&pool->lock);
    for (struct pkvi_list *at = pool->magazines.next; at != &pool->magazines; at = at->next) {
        const pkv_magazine *magazine = PKVI_CONTAINER_OF(at, pkv_magazine, link);
        parked += atomic_load_explicit(&magazine->parked, memory_order_relaxed);
        allocs += counter_get(&magazine->allocs);
        frees += counter_get(&magazine->frees);
    }
    *counts = (struct pkvi_pool_counts){
        .total = counter_get(&pool->total),
        .used = counter_get(&pool->out) - parked,
        .cached = counter_get(&pool->cached),
        .free = free_pages(pool) + parked,
        .shared = counter_get(&pool->shared),
        .regions = pool->n_regions,
        .allocs = counter_get(&pool->allocs) + allocs,
        .frees = counter_get(&pool->frees) + frees,
    };
    pkvi_mutex_unlock(&pool->lock);
}

void *pkvi_pool_address(const struct pkvi_pool *pool, uint32_t page)
{
    uint32_t slot = pkvi_div(pool->per_region, page);
    char *base = atomic_load_explicit(&region_at(pool, slot)->base, memory_order_acquire);
    if (!base) return NULL;
    return base + (uint64_t)(page - slot * pool->per_region.d) * pool->config.page_bytes;
}
