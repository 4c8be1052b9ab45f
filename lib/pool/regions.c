/* Region memory: from the OS, and between pools. */
#include "pool/internal.h"

static bool take_empty(struct pkvi_regions *regions, const struct pkvi_pool *except, void **base)
{
    bool found = false;
    pkvi_mutex_lock(&regions->lock);
    for (struct pkvi_list *at = regions->pools.next; at != &regions->pools && !found;
         at = at->next) {
        struct pkvi_pool *pool = PKVI_CONTAINER_OF(at, struct pkvi_pool, link);
        found = pool != except && pkvi_pool_give_region(pool, base);
    }
    pkvi_mutex_unlock(&regions->lock);
    return found;
}

static bool give_one_back(void *context)
{
    struct pkvi_regions *regions = context;
    void *base;
    if (!take_empty(regions, NULL, &base)) return false;
    pkvi_regions_put(regions, base);
    return true;
}

bool pkvi_regions_init(struct pkvi_regions *regions, const struct pkvi_regions_config *config,
                       struct pkvi_budget *budget, const struct pkvi_os *os,
                       struct pkvi_lock_ranks *ranks)
{
    *regions = (struct pkvi_regions){.config = *config, .budget = budget, .os = os};
    pkvi_list_init(&regions->pools);
    if (!pkvi_mutex_init(&regions->lock, PKVI_RANK_REGIONS, ranks)) return false;
    budget->pressure = give_one_back;
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

static void *map_region(struct pkvi_regions *regions)
{
    const struct pkvi_regions_config *config = &regions->config;
    const struct pkvi_os *os = regions->os;
    void *base = os->map(os->user, config->region_bytes, PKVI_OS_GRANULE);
    if (!base) return NULL;
    /* Advice: what is refused costs speed, not correctness. */
    if (config->huge) os->advise_huge(os->user, base, config->region_bytes);
    if (config->dont_fork) os->advise_dont_fork(os->user, base, config->region_bytes);
    if (config->numa_node >= 0)
        os->advise_numa(os->user, base, config->region_bytes, config->numa_node);
    return base;
}

pkv_status pkvi_regions_get(struct pkvi_regions *regions, struct pkvi_pool *pool, void **base)
{
    pkv_status status = PKV_ENOPAGES;
    if (pkvi_budget_charge_region(regions->budget, regions->config.region_bytes)) {
        *base = NULL;
        if (!regions->config.mapped) return PKV_OK;
        *base = map_region(regions);
        if (*base) return PKV_OK;
        pkvi_budget_release_region(regions->budget, regions->config.region_bytes);
        status = PKV_ENOMEM;
    }
    return take_empty(regions, pool, base) ? PKV_OK : status;
}

void pkvi_regions_put(struct pkvi_regions *regions, void *base)
{
    const struct pkvi_os *os = regions->os;
    if (base) os->unmap(os->user, base, regions->config.region_bytes);
    pkvi_budget_release_region(regions->budget, regions->config.region_bytes);
}

uint64_t pkvi_regions_empty(struct pkvi_regions *regions, const struct pkvi_pool *except)
{
    uint64_t n = 0;
    pkvi_mutex_lock(&regions->lock);
    for (struct pkvi_list *at = regions->pools.next; at != &regions->pools; at = at->next) {
        struct pkvi_pool *pool = PKVI_CONTAINER_OF(at, struct pkvi_pool, link);
        if (pool != except) n += atomic_load_explicit(&pool->n_empty, memory_order_relaxed);
    }
    pkvi_mutex_unlock(&regions->lock);
    return n;
}

uint64_t pkvi_regions_trim(struct pkvi_regions *regions, uint64_t bytes)
{
    uint64_t given = 0;
    while (given < bytes && give_one_back(regions))
        given += regions->config.region_bytes;
    return given;
}

pkv_status pkvi_regions_set_limit(struct pkvi_regions *regions, uint64_t limit)
{
    while (!pkvi_budget_try_limit(regions->budget, limit)) {
        uint64_t used = pkvi_budget_used(regions->budget);
        if (used > limit && !pkvi_regions_trim(regions, used - limit)) return PKV_EBUSY;
    }
    return PKV_OK;
}

pkv_status pkvi_regions_verify(struct pkvi_regions *regions, char *text, size_t capacity)
{
    uint64_t bytes = 0;
    pkvi_mutex_lock(&regions->lock);
    for (struct pkvi_list *at = regions->pools.next; at != &regions->pools; at = at->next) {
        struct pkvi_pool *pool = PKVI_CONTAINER_OF(at, struct pkvi_pool, link);
        bytes += pool->n_regions * (uint64_t)regions->config.region_bytes;
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
    if (room < granule || largest > room) return 0;

    uint64_t first = pkvi_max_u64(pkvi_ceil_div_u64(largest, granule),
                                  pkvi_min_u64(room / 64 / granule, (8u << 20) / granule));
    first = pkvi_max_u64(first, 1);
    if (first * granule > room) return 0;
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
