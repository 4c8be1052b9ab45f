/* Walks every invariant of a pool. Reports the first that does not hold; changes nothing. */
#include "pool/internal.h"

struct walk {
    struct pkvi_pool *pool;
    const uint32_t *holders;
    uint32_t n_holders;
    char *text;
    size_t capacity;
    uint64_t total, used, cached, shared, parked, free_listed, cold, held_units;
    uint32_t split;
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
    uint32_t external = pool->config.storage == PKV_STORAGE_EXTERNAL;
    if (listed != pool->n_whole + pool->n_split + external)
        return BROKEN(walk, "group %u: %u regions are listed or full, %u exist", pool->config.group,
                      listed, pool->n_whole + pool->n_split);
    return PKV_OK;
}

/* The list of regions with cold units holds exactly those. */
static pkv_status check_cold_list(struct walk *walk)
{
    const struct pkvi_pool *pool = walk->pool;
    uint32_t n_slots = atomic_load(&pool->n_slots), listed = 0, previous = 0;
    for (uint32_t at = pool->cold_regions; at; at = region_at(pool, at - 1)->cold_next) {
        if (at > n_slots || ++listed > n_slots)
            return BROKEN(walk, "group %u: the list of cold units leaves the table or loops",
                          pool->config.group);
        const struct pkvi_region *region = region_at(pool, at - 1);
        if (!region->split || !region->cold_units || region->cold_prev != previous)
            return BROKEN(walk, "group %u: region %u is wrongly listed as cold", pool->config.group,
                          at - 1);
        previous = at;
    }
    for (uint32_t slot = 0; slot < n_slots; slot++)
        listed -= region_at(pool, slot)->cold_units != 0;
    if (listed != 0)
        return BROKEN(walk, "group %u: a region with cold units is not listed", pool->config.group);
    return PKV_OK;
}

/* The cold stack of one region: its units, each once, flagged, and none of their pages in use. */
static pkv_status check_cold(struct walk *walk, uint32_t slot)
{
    const struct pkvi_pool *pool = walk->pool;
    const struct pkvi_region *region = region_at(pool, slot);
    uint32_t units = 0, pages = 0, flagged = 0;
    if (region->transit)
        return BROKEN(walk, "group %u: region %u has units in transit", pool->config.group, slot);
    for (uint32_t at = region->cold_head; at; at = unit_aux(pool, slot, at - 1)->next) {
        if (at > units_of(pool, region) || ++units > region->cold_units)
            return BROKEN(walk, "group %u: the cold stack of region %u loops", pool->config.group,
                          slot);
        pages += pages_in(pool, region, at - 1);
    }
    for (uint32_t u = 0; u < units_of(pool, region); u++) {
        if (unit_aux(pool, slot, u)->cold) {
            flagged++;
            for (uint32_t i = 0; i < pages_in(pool, region, u); i++)
                if ((uint32_t)load_word(
                        word_at(pool, slot * pool->per_region.d + u * unit_pages(pool) + i)))
                    return BROKEN(walk, "group %u: unit %u of region %u is in use without memory",
                                  pool->config.group, u, slot);
        }
        for (uint32_t i = 0, held = 0; i < pages_in(pool, region, u) && !held; i++) {
            held = (uint32_t)load_word(word_at(
                       pool, slot * pool->per_region.d + u * unit_pages(pool) + i)) != 0;
            walk->held_units += held;
        }
    }
    if (units != region->cold_units || flagged != units || pages != region->cold_pages)
        return BROKEN(walk, "group %u: region %u says %u units are cold, %u are listed, %u flagged",
                      pool->config.group, slot, region->cold_units, units, flagged);
    walk->cold += pages;
    walk->split += region->split;
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
        if (status == PKV_OK) status = check_cold(walk, slot);
        walk->total += pages - region->cold_pages;
    }
    /* A slot without region must not have pages in use either. */
    uint32_t fresh = region->pages ? region->fresh : 0;
    for (uint32_t k = 0; k < pages && status == PKV_OK; k++)
        status = check_page(walk, base + k, k >= fresh, &unlisted);
    if (status == PKV_OK && listed + region->cold_pages != unlisted)
        return BROKEN(walk, "group %u: region %u lost track of %u free pages", pool->config.group,
                      slot, unlisted - region->cold_pages - listed);
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
    if (!status) status = check_counter(walk, "are cold", counter_get(&pool->cold), walk->cold);
    if (!status && unit_pages(pool) != 1)
        status = check_counter(walk, "(units) are held", counter_get(&pool->held_units),
                               walk->held_units);
    if (!status) status = check_counter(walk, "(regions) are split", pool->n_split, walk->split);
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
    if (!status) status = check_cold_list(&walk);
    uint32_t n_slots = atomic_load(&pool->n_slots);
    for (uint32_t slot = 0; slot < n_slots && !status; slot++)
        status = check_region(&walk, slot);
    if (!status) status = check_totals(&walk);
    pkvi_mutex_unlock(&pool->lock);
    return status;
}
