/* Region memory: from the OS, and between pools. */
#include "pool/internal.h"

/* The next pool behind `at` (NULL = the first), or NULL; the regions' lock is held. */
static struct pkvi_pool *next_pool(struct pkvi_regions *regions, const struct pkvi_pool *at)
{
    struct pkvi_list *next = at ? at->link.next : regions->pools.next;
    return next == &regions->pools ? NULL : PKVI_CONTAINER_OF(next, struct pkvi_pool, link);
}

/* Takes an empty region out of some pool but `except`; the regions' lock is held. */
static bool take_empty(struct pkvi_regions *regions, const struct pkvi_pool *except, enum give kind,
                       void **base, uint64_t *charge)
{
    for (struct pkvi_pool *pool = NULL; (pool = next_pool(regions, pool));)
        if (pool != except && pkvi_pool_give_region(pool, kind, base, charge)) return true;
    return false;
}

static bool under_pressure(void *context, uint64_t bytes)
{
    return pkvi_regions_squeeze(context, bytes, NULL) != 0;
}

bool pkvi_regions_init(struct pkvi_regions *regions, const struct pkvi_regions_config *config,
                       struct pkvi_budget *budget, const struct pkvi_os *os,
                       struct pkvi_lock_ranks *ranks)
{
    *regions = (struct pkvi_regions){.config = *config, .budget = budget, .os = os};
    pkvi_list_init(&regions->pools);
    if (!pkvi_mutex_init(&regions->lock, PKVI_RANK_REGIONS, ranks)) return false;
    budget->pressure = under_pressure;
    budget->pressure_context = regions;
    return true;
}

void pkvi_regions_destroy(struct pkvi_regions *regions)
{
    PKVI_ASSERT(pkvi_list_empty(&regions->pools));
    regions->budget->pressure = NULL;
    pkvi_mutex_destroy(&regions->lock);
}

void pkvi_regions_add(struct pkvi_regions *regions, struct pkvi_pool *pool)
{
    pkvi_mutex_lock(&regions->lock);
    pkvi_list_push_back(&regions->pools, &pool->link);
    pkvi_mutex_unlock(&regions->lock);
}

void pkvi_regions_remove(struct pkvi_regions *regions, struct pkvi_pool *pool)
{
    pkvi_mutex_lock(&regions->lock);
    pkvi_list_remove(&pool->link);
    pkvi_mutex_unlock(&regions->lock);
}

pkv_status pkvi_regions_get(struct pkvi_regions *regions, struct pkvi_pool *pool, void **base)
{
    pkv_status status = PKV_ENOPAGES;
    *base = NULL;
    if (pkvi_budget_charge_region(regions->budget, regions->config.region_bytes)) {
        status = pkvi_regions_map(regions, false, base);
        if (status == PKV_OK) return PKV_OK;
        pkvi_budget_release_region(regions->budget, regions->config.region_bytes);
    }
    uint64_t charge;
    pkvi_mutex_lock(&regions->lock);
    if (take_empty(regions, pool, GIVE_WHOLE, base, &charge)) status = PKV_OK;
    pkvi_mutex_unlock(&regions->lock);
    return status;
}

/* ---- giving memory back --------------------------------------------------------------------- */

/* Empty regions of all pools but one, until `bytes` are given back. The regions' lock is held. */
static uint64_t give_empty(struct pkvi_regions *regions, uint64_t bytes, enum give kind,
                           const struct pkvi_pool *except)
{
    uint64_t given = 0, charge;
    void *base;
    while (given < bytes && take_empty(regions, except, kind, &base, &charge)) {
        given += pkvi_regions_put(regions, base, charge);
    }
    return given;
}

uint64_t pkvi_regions_trim(struct pkvi_regions *regions, uint64_t bytes)
{
    pkvi_mutex_lock(&regions->lock);
    uint64_t given = give_empty(regions, bytes, GIVE_ANY, NULL);
    pkvi_mutex_unlock(&regions->lock);
    pkvi_regions_trim_metadata(regions);
    return given;
}

uint64_t pkvi_regions_squeeze(struct pkvi_regions *regions, uint64_t bytes,
                              const struct pkvi_pool *except)
{
    uint64_t most = pkvi_max_u64(bytes, regions->config.region_bytes / 16);
    pkvi_mutex_lock(&regions->lock);
    uint64_t given = give_empty(regions, bytes, GIVE_WHOLE, except);
    for (enum squeeze kind = SQUEEZE_SPLIT; kind <= SQUEEZE_FULL && given < bytes; kind++) {
        for (struct pkvi_pool *pool = NULL; (pool = next_pool(regions, pool));) {
            /* What lies behind the last page of a region is no pool's use. */
            if (pool == except && kind != SQUEEZE_FULL) continue;
            uint64_t more;
            while (given < bytes && (more = pkvi_pool_squeeze(pool, kind, most - given)) != 0)
                given += more;
        }
    }
    pkvi_mutex_unlock(&regions->lock);
    return given;
}

/* The list does not change: pools come and go with their cache. Their growth locks rank below the
 * list's. */
void pkvi_regions_trim_metadata(struct pkvi_regions *regions)
{
    for (struct pkvi_pool *pool = NULL;;) {
        pkvi_mutex_lock(&regions->lock);
        pool = next_pool(regions, pool);
        pkvi_mutex_unlock(&regions->lock);
        if (!pool) return;
        pkvi_pool_trim_metadata(pool);
    }
}

void pkvi_regions_heal(struct pkvi_regions *regions)
{
    const uint64_t room = pkvi_max_u64(pkvi_budget_limit(regions->budget) / 16,
                                       2 * (uint64_t)regions->config.region_bytes);
    for (struct pkvi_pool *pool = NULL;;) {
        pkvi_mutex_lock(&regions->lock);
        pool = next_pool(regions, pool);
        pkvi_mutex_unlock(&regions->lock);
        if (!pool) return;
        while (pkvi_pool_heal(pool, room, true))
            ;
    }
}

pkv_status pkvi_regions_set_limit(struct pkvi_regions *regions, uint64_t limit)
{
    bool trimmed = false;
    while (!pkvi_budget_try_limit(regions->budget, limit)) {
        uint64_t used = pkvi_budget_used(regions->budget);
        if (used <= limit || pkvi_regions_squeeze(regions, used - limit, NULL)) continue;
        if (trimmed) return PKV_EBUSY;
        pkvi_regions_trim(regions, 0);
        trimmed = true;
    }
    return PKV_OK;
}

/* ---- figures -------------------------------------------------------------------------------- */

static uint64_t held_bytes(struct pkvi_regions *regions)
{
    uint64_t held = 0;
    pkvi_mutex_lock(&regions->lock);
    for (struct pkvi_pool *pool = NULL; (pool = next_pool(regions, pool));)
        held += pkvi_pool_held_bytes(pool);
    pkvi_mutex_unlock(&regions->lock);
    return held;
}

uint64_t pkvi_regions_available(struct pkvi_regions *regions)
{
    uint64_t held = held_bytes(regions), bound = pkvi_budget_for_pages(regions->budget);
    return bound > held ? bound - held : 0;
}

uint64_t pkvi_regions_spare(struct pkvi_regions *regions)
{
    uint64_t held = held_bytes(regions);
    uint64_t charged = atomic_load_explicit(&regions->budget->regions, memory_order_relaxed);
    return charged > held ? charged - held : 0;
}

pkv_status pkvi_regions_verify(struct pkvi_regions *regions, char *text, size_t capacity)
{
    uint64_t bytes = atomic_load(&regions->lost);
    pkvi_mutex_lock(&regions->lock);
    for (struct pkvi_pool *pool = NULL; (pool = next_pool(regions, pool));) {
        pkvi_mutex_lock(&pool->lock);
        uint32_t n_slots = atomic_load(&pool->n_slots);
        for (uint32_t slot = 0; slot < n_slots; slot++) {
            const struct pkvi_region *region = region_at(pool, slot);
            if (region->pages) bytes += pkvi_pool_charge(pool, region);
        }
        pkvi_mutex_unlock(&pool->lock);
    }
    pkvi_mutex_unlock(&regions->lock);
    uint64_t charged = atomic_load(&regions->budget->regions);
    if (bytes != charged) {
        pkvi_text(text, capacity, "budget: %llu bytes of regions are charged but pools hold %llu",
                  (unsigned long long)charged, (unsigned long long)bytes);
        return PKV_ECORRUPT;
    }
    uint64_t used = pkvi_budget_used(regions->budget), limit = atomic_load(&regions->budget->limit);
    if (used > limit) {
        pkvi_text(text, capacity, "budget: %llu bytes in use exceed the limit of %llu",
                  (unsigned long long)used, (unsigned long long)limit);
        return PKV_ECORRUPT;
    }
    return PKV_OK;
}

/* Largest share of a region that is lost behind its last page, over all groups, in 1/2^20. */
static uint64_t worst_waste(uint64_t region, const uint64_t *page_bytes, uint32_t n_groups)
{
    uint64_t worst = 0;
    for (uint32_t i = 0; i < n_groups; i++)
        worst = pkvi_max_u64(worst, ((region % page_bytes[i]) << 20) / region);
    return worst;
}

size_t pkvi_regions_choose(const uint64_t *page_bytes, uint32_t n_groups, uint64_t limit)
{
    const uint64_t granule = PKVI_OS_GRANULE, good_waste = (1u << 20) / 32;
    uint64_t room = pkvi_budget_capacity(limit), largest = 0;
    for (uint32_t i = 0; i < n_groups; i++)
        largest = pkvi_max_u64(largest, page_bytes[i]);
    if (!n_groups || largest > room) return 0;

    uint64_t first = pkvi_max_u64(pkvi_ceil_div_u64(largest, granule),
                                  pkvi_min_u64(room / 64 / granule, (8u << 20) / granule));
    first = pkvi_max_u64(first, 1);
    uint64_t last = pkvi_min_u64(pkvi_max_u64(32, 2 * first), room / 4 / granule);
    uint64_t best = first, best_waste = UINT64_MAX;
    for (uint64_t n = first; n <= pkvi_max_u64(first, last); n++) {
        uint64_t waste = worst_waste(n * granule, page_bytes, n_groups);
        if (waste < best_waste) {
            best = n;
            best_waste = waste;
        }
        if (waste <= good_waste) break;
    }
    return (size_t)(best * granule);
}
