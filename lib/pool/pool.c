/* Taking pages out of regions and putting them back. */
#include "pool/internal.h"

/* ---- lists of regions by class; lock held --------------------------------------------------- */

/* Fuller regions come first when pages are taken, so that sparse ones get a chance to become empty,
 * and whole ones before split ones. Three partial classes are enough for that and keep a region
 * from moving at every page. */
static uint32_t class_of(const struct pkvi_region *region)
{
    uint32_t free_count = region->free_count, pages = region->pages;
    if (!free_count) return CLASS_FULL;
    if (region->split) return CLASS_SPLIT;
    if (free_count == pages) return CLASS_EMPTY;
    if (free_count <= pages / 4) return 1;
    return free_count <= pages - pages / 4 ? 2 : CLASS_MOSTLY_FREE;
}

void pkvi_pool_unlink(struct pkvi_pool *pool, struct pkvi_region *region)
{
    if (region->class == CLASS_FULL) return; /* full regions are in no list */
    if (region->prev)
        region_at(pool, region->prev - 1)->next = region->next;
    else
        pool->class_head[region->class] = region->next;
    if (region->next) region_at(pool, region->next - 1)->prev = region->prev;
    region->class = CLASS_FULL;
    region->next = region->prev = 0;
}

static void link_region(struct pkvi_pool *pool, uint32_t slot, struct pkvi_region *region,
                        uint32_t class)
{
    region->class = (uint8_t) class;
    if (class == CLASS_FULL) return;
    region->prev = 0;
    region->next = pool->class_head[class];
    if (region->next) region_at(pool, region->next - 1)->prev = slot + 1;
    pool->class_head[class] = slot + 1;
    if (class != CLASS_EMPTY) return;
    /* Everything was freed: forget the stack, so that pages come out in ascending order again. */
    region->free_head = 0;
    region->fresh = 0;
}

void pkvi_pool_reclass(struct pkvi_pool *pool, uint32_t slot, struct pkvi_region *region)
{
    uint32_t class = class_of(region);
    if (class == region->class) return;
    pkvi_pool_unlink(pool, region);
    link_region(pool, slot, region, class);
}

/* ---- pages in and out; lock held ------------------------------------------------------------ */

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
    if (PKVI_UNLIKELY(unit_pages(pool) != 1)) pkvi_pool_unit_taken(pool, page);
    _Atomic uint64_t *word = word_at(pool, page);
    uint64_t old = load_word(word);
    PKVI_ASSERT((uint32_t)old == 0); /* no references, no flags */
    uint64_t generation = old ? old : pool->first_generation;
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

void pkvi_pool_take(struct pkvi_pool *pool, uint32_t n, struct taken to)
{
    uint32_t done = 0;
    for (uint32_t class = 1; done < n; class ++) {
        PKVI_ASSERT(class < PKVI_REGION_CLASSES);
        while (done < n && pool->class_head[class]) {
            uint32_t slot = pool->class_head[class] - 1;
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
    region->barren = false;
    if (PKVI_UNLIKELY(unit_pages(pool) != 1)) pkvi_pool_unit_freed(pool, page);
    pkvi_pool_reclass(pool, slot, region);
}

/* ---- allocation ----------------------------------------------------------------------------- */

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

/* Pages that are free now. */
static uint64_t count_free(struct pkvi_pool *pool)
{
    pkvi_mutex_lock(&pool->lock);
    uint64_t n = free_pages(pool);
    pkvi_mutex_unlock(&pool->lock);
    return n;
}

/* Room that must stay before a split region is made whole again: else the next step would split
 * another. */
static uint64_t ample(const struct pkvi_pool *pool)
{
    return pkvi_max_u64(pkvi_budget_limit(pool->regions->budget) / 16,
                        2 * (uint64_t)pool->regions->config.region_bytes);
}

/* Gets memory for n more pages, or for some of them: from the limit's room, whole regions first;
 * else what other pools do not use, by the unit. *added counts regions. grow_lock held. */
static pkv_status grow(struct pkvi_pool *pool, uint32_t n, uint32_t *added)
{
    if (counter_get(&pool->cold) != 0 && pkvi_pool_heal(pool, ample(pool), false)) return PKV_OK;
    if (pkvi_pool_back(pool, n) != 0) return PKV_OK;
    pkv_status whole = pkvi_pool_add_region(pool, false);
    if (whole == PKV_OK) ++*added;
    if (whole != PKV_ENOPAGES) return whole;
    uint64_t wanted = pkvi_ceil_div_u64(n, unit_pages(pool)) * pool->unit_bytes;
    uint64_t room = pkvi_budget_region_room(pool->regions->budget);
    if (room < pool->unit_bytes && pkvi_regions_squeeze(pool->regions, wanted - room, pool) == 0 &&
        pkvi_budget_region_room(pool->regions->budget) < pool->unit_bytes)
        return PKV_ENOPAGES;
    if (counter_get(&pool->cold) != 0) return PKV_OK;
    pkv_status split = pkvi_pool_add_region(pool, true);
    if (split == PKV_OK) ++*added;
    return split;
}

/* Grows until `least` pages are free, and takes them. */
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
        uint64_t n_free = count_free(pool);
        if (n_free < least) status = grow(pool, least - (uint32_t)n_free, &added);
    }
    void *base;
    uint64_t charge;
    while (status != PKV_OK && added-- && pkvi_pool_give_region(pool, GIVE_ANY, &base, &charge))
        pkvi_regions_put(pool->regions, base, charge);
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

/* ---- addresses ------------------------------------------------------------------------------ */

void *pkvi_pool_address(const struct pkvi_pool *pool, uint32_t page)
{
    uint32_t slot = pkvi_div(pool->per_region, page);
    char *base = atomic_load_explicit(&region_at(pool, slot)->base, memory_order_acquire);
    if (!base) return NULL;
    uint32_t k = page - slot * pool->per_region.d;
    if (PKVI_LIKELY(unit_pages(pool) == 1)) return base + k * pool->unit_bytes;
    uint32_t u = pkvi_div(pool->per_unit, k);
    return base + u * pool->unit_bytes + (k - u * unit_pages(pool)) * pool->config.page_bytes;
}
