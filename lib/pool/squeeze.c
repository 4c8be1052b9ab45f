/* Memory comes to the regions of a pool and goes from them, by the unit.
 *
 * A unit on its way to the cold stack (the OS is asked without the pool's lock) is in transit: in
 * no stack, its pages not free, still charged. */
#include "pool/internal.h"

/* ---- memory comes --------------------------------------------------------------------------- */

/* Gives memory to at most n units of a region; returns how many pages became free. Lock held. */
static uint32_t back_region(struct pkvi_pool *pool, uint32_t slot, uint32_t n)
{
    enum { AT_ONCE = 64 };
    uint32_t units[AT_ONCE], before;
    struct pkvi_region *region = region_at(pool, slot);
    before = region->free_count;
    n = pkvi_min_u32(n, pkvi_min_u32(region->cold_units, AT_ONCE));
    n = (uint32_t)pkvi_budget_charge_units(pool->regions->budget, pool->unit_bytes, n);
    for (uint32_t i = 0; i < n; i++)
        units[i] = pkvi_pool_pop_cold(pool, slot, region);
    for (uint32_t i = n; i-- > 0;)
        pkvi_pool_push_free(pool, slot, region, units[i]);
    region->barren = false;
    reclass(pool, slot, region);
    return region->free_count - before;
}

uint32_t pkvi_pool_back(struct pkvi_pool *pool, uint32_t n)
{
    uint32_t backed = 0;
    pkvi_mutex_lock(&pool->lock);
    while (backed < n && pool->cold_regions) {
        uint32_t units = pkvi_div(pool->per_unit, n - backed + unit_pages(pool) - 1);
        uint32_t pages = back_region(pool, pool->cold_regions - 1, units);
        if (pages == 0) break;
        backed += pages;
    }
    pkvi_mutex_unlock(&pool->lock);
    return backed;
}

/* A split region to make whole: one with cold units, or any; slot + 1, 0 = none. Lock held. */
static uint32_t to_heal(const struct pkvi_pool *pool, bool full)
{
    if (pool->cold_regions || !full || pool->n_split == 0) return pool->cold_regions;
    uint32_t n_slots = atomic_load_explicit(&pool->n_slots, memory_order_relaxed);
    for (uint32_t slot = 0; slot < n_slots; slot++) {
        const struct pkvi_region *region = region_at(pool, slot);
        if (region->pages != 0 && region->split && region->transit == 0) return slot + 1;
    }
    return 0;
}

bool pkvi_pool_heal(struct pkvi_pool *pool, uint64_t room, bool full)
{
    struct pkvi_regions *regions = pool->regions;
    struct pkvi_budget *budget = regions->budget;
    void *base = NULL;
    bool healed = false;
    pkvi_mutex_lock(&regions->lock); /* nobody else takes the region away meanwhile */
    pkvi_mutex_lock(&pool->lock);
    uint32_t slot = to_heal(pool, full);
    if (slot-- != 0) {
        struct pkvi_region *region = region_at(pool, slot);
        uint64_t more = regions->config.region_bytes - pkvi_pool_charge(pool, region);
        healed = pkvi_budget_region_room(budget) >= more + room &&
                 pkvi_budget_charge_region(budget, more);
        while (healed && region->cold_units)
            pkvi_pool_push_free(pool, slot, region, pkvi_pool_pop_cold(pool, slot, region));
        if (healed) {
            base = atomic_load_explicit(&region->base, memory_order_relaxed);
            region->split = false;
            pool->n_split--;
            pool->n_whole++;
            reclass(pool, slot, region);
        }
    }
    pkvi_mutex_unlock(&pool->lock);
    if (base && regions->config.huge)
        regions->os->advise_huge(regions->os->user, base, regions->config.region_bytes);
    pkvi_mutex_unlock(&regions->lock);
    return healed;
}

/* ---- memory goes ---------------------------------------------------------------------------- */

/* Units that lose their memory at once, as runs of neighbours. */
struct runs {
    uint32_t n, units;
    struct run {
        uint32_t first, n;
        bool kept; /* the OS refused: it has its memory yet */
    } run[64];
};

static bool unit_is_free(const struct pkvi_pool *pool, uint32_t slot,
                         const struct pkvi_region *region, uint32_t u)
{
    if (unit_aux(pool, slot, u)->cold) return false;
    uint32_t first = slot * pool->per_region.d + u * unit_pages(pool);
    for (uint32_t i = pages_in(pool, region, u); i-- > 0;)
        if (!page_is_free(pool, first + i)) return false;
    return true;
}

/* Takes the free units at the end of a region, `most` at most, into transit. Lock held. */
static void collect(struct pkvi_pool *pool, uint32_t slot, struct pkvi_region *region,
                    uint64_t most, struct runs *runs)
{
    runs->n = runs->units = 0;
    for (uint32_t u = units_of(pool, region); u-- > 0 && runs->units < most;) {
        if (!unit_is_free(pool, slot, region, u)) continue;
        if (runs->n == 0 || runs->run[runs->n - 1].first != u + 1) {
            if (runs->n == sizeof runs->run / sizeof *runs->run) break;
            runs->run[runs->n++] = (struct run){.first = u + 1};
        }
        runs->run[runs->n - 1].first--;
        runs->run[runs->n - 1].n++;
        runs->units++;
        unit_aux(pool, slot, u)->cold = true;
        region->transit++;
    }
}

/* Asks the OS to take the runs' memory, and what lies behind the last unit if the region was whole:
 * false if it refuses that, then it took nothing. No pool's lock held. */
static bool decommit(const struct pkvi_pool *pool, char *base, uint64_t end, bool was_whole,
                     struct runs *runs)
{
    const struct pkvi_regions *regions = pool->regions;
    const struct pkvi_os *os = regions->os;
    const uint64_t region_bytes = regions->config.region_bytes;
    if (!base) return true;
    if (was_whole) {
        os->advise_small(os->user, base, region_bytes);
        if (end < region_bytes && !os->decommit(os->user, base + end, region_bytes - end)) {
            if (regions->config.huge) os->advise_huge(os->user, base, region_bytes);
            return false;
        }
    }
    for (uint32_t i = 0; i < runs->n; i++) {
        struct run *run = &runs->run[i];
        run->kept = !os->decommit(os->user, base + run->first * pool->unit_bytes,
                                  run->n * pool->unit_bytes);
    }
    return true;
}

/* The units in transit become cold, or free again where the OS refused; returns how many are cold.
 * Lock held. */
static uint32_t settle(struct pkvi_pool *pool, uint32_t slot, struct pkvi_region *region,
                       const struct runs *runs, bool all_kept)
{
    uint32_t cooled = 0;
    for (uint32_t i = 0; i < runs->n; i++) {
        const struct run *run = &runs->run[i];
        for (uint32_t u = run->first + run->n; u-- > run->first;) {
            region->transit--;
            if (!all_kept && !run->kept) {
                pkvi_pool_push_cold(pool, slot, region, u);
                cooled++;
            } else {
                unit_aux(pool, slot, u)->cold = false;
                pkvi_pool_push_free(pool, slot, region, u);
            }
        }
    }
    return cooled;
}

/* Lock held. */
static void become_split(struct pkvi_pool *pool, struct pkvi_region *region, bool split)
{
    region->split = split;
    pool->n_split += split ? 1u : UINT32_MAX;
    pool->n_whole += split ? UINT32_MAX : 1u;
}

/* Takes up to `bytes` from a region; returns what it gave back. *refused: the OS kept it whole. The
 * regions' lock is held. */
static uint64_t squeeze_region(struct pkvi_pool *pool, uint32_t slot, uint64_t bytes, bool *refused)
{
    struct runs runs;
    struct pkvi_region *region = region_at(pool, slot);
    void *gone = NULL;
    pkvi_mutex_lock(&pool->lock);
    const bool was_whole = !region->split;
    char *base = atomic_load_explicit(&region->base, memory_order_relaxed);
    const uint64_t end = units_of(pool, region) * pool->unit_bytes;
    collect(pool, slot, region, pkvi_ceil_div_u64(bytes, pool->unit_bytes), &runs);
    const uint32_t had = region->free_count;
    pkvi_pool_restack(pool, slot, region);
    counter_add(&pool->total, 0 - (uint64_t)(had - region->free_count)); /* those in transit */
    if (was_whole) become_split(pool, region, true);
    reclass(pool, slot, region);
    pkvi_mutex_unlock(&pool->lock);

    *refused = !decommit(pool, base, end, was_whole, &runs);

    pkvi_mutex_lock(&pool->lock);
    uint64_t given = settle(pool, slot, region, &runs, *refused) * pool->unit_bytes;
    if (was_whole && *refused)
        become_split(pool, region, false);
    else if (was_whole)
        given += pool->regions->config.region_bytes - end;
    region->barren = given == 0;
    reclass(pool, slot, region);
    if (region->split && region->cold_units == units_of(pool, region)) {
        uint64_t nothing;
        gone = pkvi_pool_detach(pool, slot, &nothing);
    }
    pkvi_mutex_unlock(&pool->lock);
    pkvi_budget_release_region(pool->regions->budget, given);
    if (gone) pkvi_regions_put(pool->regions, gone, 0);
    return given;
}

/* A region of the kind that squeeze has not looked at in vain; slot + 1, 0 = none. Locks. */
static uint32_t next_victim(struct pkvi_pool *pool, enum squeeze kind)
{
    uint32_t found = 0;
    pkvi_mutex_lock(&pool->lock);
    if (kind == SQUEEZE_SPLIT) {
        for (found = pool->class_head[CLASS_SPLIT]; found; found = region_at(pool, found - 1)->next)
            if (!region_at(pool, found - 1)->barren) break;
    } else if (kind == SQUEEZE_WHOLE) {
        for (uint32_t class = CLASS_MOSTLY_FREE; class > 0 && !found; class --)
            found = pool->class_head[class];
    } else if (pool->n_whole != 0) {
        uint32_t n_slots = atomic_load_explicit(&pool->n_slots, memory_order_relaxed);
        for (uint32_t slot = 0; slot < n_slots && !found; slot++) {
            const struct pkvi_region *region = region_at(pool, slot);
            uint64_t end = units_of(pool, region) * pool->unit_bytes;
            if (region->pages && !region->split && end < pool->regions->config.region_bytes)
                found = slot + 1;
        }
    }
    pkvi_mutex_unlock(&pool->lock);
    return found;
}

uint64_t pkvi_pool_squeeze(struct pkvi_pool *pool, enum squeeze kind, uint64_t bytes)
{
    for (;;) {
        bool refused = false;
        uint32_t slot = next_victim(pool, kind);
        if (slot == 0) return 0;
        uint64_t given = squeeze_region(pool, slot - 1, bytes, &refused);
        if (given != 0 || refused) return given;
    }
}
