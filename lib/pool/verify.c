/* Walks every invariant of a pool. Reports the first that does not hold; changes nothing. */
#include "pool/internal.h"

struct walk {
    struct pkvi_pool *pool;
    const uint32_t *holders;
    uint32_t n_holders;
    char *text;
    size_t capacity;
    uint64_t total, used, cached, shared, parked, regions, free_listed, empty;
};

/* Names a broken invariant; always PKV_ECORRUPT. */
#define BROKEN(walk, ...)                                                                          \
    (pkvi_text((walk)->text, (walk)->capacity, "pool: " __VA_ARGS__), PKV_ECORRUPT)

/* Every list holds exactly the regions of its class, properly linked. */
static pkv_status check_lists(struct walk *walk)
{
    struct pkvi_pool *pool = walk->pool;
    uint32_t n_slots = atomic_load(&pool->n_slots), listed = 0;
    for (uint32_t class = 1; class < PKVI_REGION_CLASSES; class ++) {
        uint32_t previous = 0;
        for (uint32_t at = pool->class_head[class]; at; at = region_at(pool, at - 1)->next) {
            if (at > n_slots || ++listed > n_slots)
                return BROKEN(walk, "group %u: list of class %u leaves the table or loops",
                              pool->config.group, class);
            const struct pkvi_region *region = region_at(pool, at - 1);
            if (region->class != class || region->prev != previous || !region->pages)
                return BROKEN(walk, "group %u: region %u is in the wrong list", pool->config.group,
                              at - 1);
            previous = at;
        }
    }
    for (uint32_t slot = 0; slot < n_slots; slot++)
        listed += region_at(pool, slot)->pages && region_at(pool, slot)->class == CLASS_FULL;
    if (n_slots == pool->max_slots && pool->empty_slots) {
        const struct pkvi_region *last = region_at(pool, n_slots - 1);
        if (last->pages && last->class == CLASS_EMPTY)
            return BROKEN(walk,
                          "group %u: an empty region lies in the last slot, slot %u is vacant",
                          pool->config.group, pool->empty_slots - 1);
    }
    uint32_t external = pool->config.storage == PKV_STORAGE_EXTERNAL;
    if (listed != pool->n_regions + external)
        return BROKEN(walk, "group %u: %u regions are listed or full, %u exist", pool->config.group,
                      listed, pool->n_regions);
    return PKV_OK;
}

/* The free stack of one region: *n pages, each once (a loop would exceed the count). */
static pkv_status check_stack(struct walk *walk, uint32_t slot, uint32_t *n)
{
    struct pkvi_pool *pool = walk->pool;
    const struct pkvi_region *region = region_at(pool, slot);
    uint32_t base = slot * pool->per_region.d;
    *n = 0;
    for (uint32_t at = region->free_head; at; at = aux_at(pool, base + at - 1)->next) {
        if (at > region->fresh)
            return BROKEN(walk, "group %u: the free stack of region %u holds a page never used",
                          pool->config.group, slot);
        if (++*n > region->pages)
            return BROKEN(walk, "group %u: the free stack of region %u loops", pool->config.group,
                          slot);
        uint32_t page = base + at - 1;
        if ((uint32_t)load_word(word_at(pool, page)))
            return BROKEN(walk, "group %u: page %u is free but referenced or owned",
                          pool->config.group, page);
        if (!pkvi_pool_poison_intact(pool, page))
            return BROKEN(walk, "group %u: page %u was written after it was freed",
                          pool->config.group, page);
    }
    if (region->free_count != *n + region->pages - region->fresh)
        return BROKEN(walk, "group %u: region %u says %u pages are free, %u are",
                      pool->config.group, slot, region->free_count,
                      *n + region->pages - region->fresh);
    walk->free_listed += region->free_count;
    walk->empty += region->free_count == region->pages;
    return PKV_OK;
}

static pkv_status check_bytes(struct walk *walk, uint32_t page)
{
    struct pkvi_pool *pool = walk->pool;
    if (!(pool->config.debug & PKV_DEBUG_CHECKSUM) || !aux_at(pool, page)->sealed) return PKV_OK;
    const uint64_t *sum = pkvi_segvec_at(&pool->checksums, page, sizeof *sum);
    if (*sum != pkvi_pool_checksum(pool, page))
        return BROKEN(walk, "group %u: the bytes of sealed page %u changed", pool->config.group,
                      page);
    return PKV_OK;
}

static pkv_status check_page(struct walk *walk, uint32_t page, bool fresh, uint32_t *unlisted)
{
    struct pkvi_pool *pool = walk->pool;
    uint64_t word = load_word(word_at(pool, page)), refs = refs_of(word);
    const struct pkvi_page_aux *aux = aux_at(pool, page);
    uint64_t held = walk->holders ? walk->holders[page] : 0;
    bool owned = word & PKVI_WORD_OWNED, magazine = word & PKVI_WORD_MAGAZINE;
    uint64_t host = magazine ? refs : aux->host;

    if (fresh && (uint32_t)word)
        return BROKEN(walk, "group %u: page %u was never handed out but is in use",
                      pool->config.group, page);
    if (owned != (atomic_load(&aux->owner) != NULL))
        return BROKEN(walk, "group %u: page %u has an owner without flag or a flag without owner",
                      pool->config.group, page);
    if (magazine && (owned || held))
        return BROKEN(walk, "group %u: page %u came from a magazine but a table or index holds it",
                      pool->config.group, page);
    if (host > refs || (walk->holders && held + host != refs))
        return BROKEN(walk,
                      "group %u: page %u has %llu references, %llu of tables and %llu of the host",
                      pool->config.group, page, (unsigned long long)refs, (unsigned long long)held,
                      (unsigned long long)host);
    walk->used += refs > 0;
    walk->shared += refs > 1;
    walk->cached += !refs && owned;
    walk->parked += !refs && magazine;
    *unlisted += !fresh && !(uint32_t)word;
    return refs || owned ? check_bytes(walk, page) : PKV_OK;
}

static pkv_status check_region(struct walk *walk, uint32_t slot)
{
    struct pkvi_pool *pool = walk->pool;
    const struct pkvi_region *region = region_at(pool, slot);
    uint32_t base = slot * pool->per_region.d, listed = 0, unlisted = 0;
    uint32_t pages = pkvi_pool_slot_pages(pool, slot);
    pkv_status status = PKV_OK;
    if (region->pages) {
        if (region->pages != pages || region->fresh > pages)
            return BROKEN(walk, "group %u: region %u has a wrong size", pool->config.group, slot);
        status = check_stack(walk, slot, &listed);
        walk->total += pages;
    }
    /* A slot without region must not have pages in use either. */
    uint32_t fresh = region->pages ? region->fresh : 0;
    for (uint32_t k = 0; k < pages && status == PKV_OK; k++)
        status = check_page(walk, base + k, k >= fresh, &unlisted);
    if (status == PKV_OK && listed != unlisted)
        return BROKEN(walk, "group %u: region %u lost track of %u free pages", pool->config.group,
                      slot, unlisted - listed);
    return status;
}

static pkv_status check_counter(struct walk *walk, const char *what, uint64_t says, uint64_t is)
{
    if (says == is) return PKV_OK;
    return BROKEN(walk, "group %u: %llu pages %s, the counter says %llu", walk->pool->config.group,
                  (unsigned long long)is, what, (unsigned long long)says);
}

static pkv_status check_totals(struct walk *walk)
{
    struct pkvi_pool *pool = walk->pool;
    uint64_t parked = 0;
    for (struct pkvi_list *at = pool->magazines.next; at != &pool->magazines; at = at->next)
        parked += atomic_load(&PKVI_CONTAINER_OF(at, pkv_magazine, link)->parked);
    pkv_status status = check_counter(walk, "exist", counter_get(&pool->total), walk->total);
    if (!status) status = check_counter(walk, "are parked in magazines", parked, walk->parked);
    if (!status)
        status = check_counter(walk, "are out", counter_get(&pool->out), walk->used + walk->parked);
    if (!status)
        status = check_counter(walk, "are cached", counter_get(&pool->cached), walk->cached);
    if (!status)
        status = check_counter(walk, "are shared", counter_get(&pool->shared), walk->shared);
    if (!status) status = check_counter(walk, "are free", free_pages(pool), walk->free_listed);
    if (!status)
        status =
            check_counter(walk, "(regions) are empty", atomic_load(&pool->n_empty), walk->empty);
    return status;
}

pkv_status pkvi_pool_verify(struct pkvi_pool *pool, const uint32_t *holders, uint32_t n_holders,
                            char *text, size_t capacity)
{
    struct walk walk = {.pool = pool,
                        .holders = holders,
                        .n_holders = n_holders,
                        .text = text,
                        .capacity = capacity};
    pkvi_mutex_lock(&pool->lock);
    pkv_status status = PKV_OK;
    if (holders && n_holders < pkvi_pool_index_limit(pool)) status = PKV_EINVAL;
    if (!status) status = check_lists(&walk);
    uint32_t n_slots = atomic_load(&pool->n_slots);
    for (uint32_t slot = 0; slot < n_slots && !status; slot++)
        status = check_region(&walk, slot);
    if (!status) status = check_totals(&walk);
    pkvi_mutex_unlock(&pool->lock);
    return status;
}
