/* Taking pages out of regions and putting them back; growth. */
#include "pool/internal.h"

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
    reclass(pool, slot, region);
}

/* Takes n pages (at most free_pages) out of the regions. Counts them as out, not as allocated. */
static void take(struct pkvi_pool *pool, uint32_t n, struct taken to)
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
    reclass(pool, slot, region);
}

/* ---- allocation ----------------------------------------------------------------------------- */

/* Locks; takes between `least` and `most` pages if they are there, or none. */
static uint32_t take_if_free(struct pkvi_pool *pool, uint32_t least, uint32_t most, struct taken to)
{
    pkvi_mutex_lock(&pool->lock);
    uint32_t n = (uint32_t)pkvi_min_u64(free_pages(pool), most);
    if (n < least) n = 0;
    if (PKVI_LIKELY(n)) {
        take(pool, n, to);
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

/* Adds one region, whole or split. grow_lock held, lock not. */
static pkv_status add_region(struct pkvi_pool *pool, bool split)
{
    uint32_t slot;
    if (!pkvi_pool_pop_slot(pool, &slot)) return PKV_ENOPAGES;
    void *base;
    pkv_status status = split ? pkvi_regions_map(pool->regions, true, &base)
                              : pkvi_regions_get(pool->regions, pool, &base);
    if (status == PKV_OK && !pkvi_pool_ensure_slots(pool, slot + 1)) {
        pkvi_regions_put(pool->regions, base, split ? 0 : pool->regions->config.region_bytes);
        status = PKV_ENOMEM;
    }
    pkvi_mutex_lock(&pool->lock);
    if (status == PKV_OK) {
        if (slot >= atomic_load_explicit(&pool->n_slots, memory_order_relaxed))
            atomic_store_explicit(&pool->n_slots, slot + 1, memory_order_release);
        pkvi_pool_install(pool, slot, base, split);
    } else {
        pkvi_pool_push_slot(pool, slot);
    }
    pkvi_mutex_unlock(&pool->lock);
    if (status == PKV_OK)
        pkvi_event(pool->stats, PKV_EVENT_REGION_MAP, pool->config.group, PKV_PAGE_NONE, 0, slot);
    return status;
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
    pkv_status whole = add_region(pool, false);
    if (whole == PKV_OK) ++*added;
    if (whole != PKV_ENOPAGES) return whole;
    uint64_t wanted = pkvi_ceil_div_u64(n, unit_pages(pool)) * pool->unit_bytes;
    uint64_t room = pkvi_budget_region_room(pool->regions->budget);
    if (room < pool->unit_bytes && pkvi_regions_squeeze(pool->regions, wanted - room, pool) == 0 &&
        pkvi_budget_region_room(pool->regions->budget) < pool->unit_bytes)
        return PKV_ENOPAGES;
    if (counter_get(&pool->cold) != 0) return PKV_OK;
    pkv_status split = add_region(pool, true);
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
