/* Where a page lies: region slots and addresses. */
#include "pool/internal.h"

uint32_t pkvi_pool_slot_pages(const struct pkvi_pool *pool, uint32_t slot)
{
    uint32_t all = pool->per_region.d;
    uint64_t before = (uint64_t)slot * all;
    uint64_t bound = pool->config.max_pages ? pool->config.max_pages : UINT64_MAX;
    return bound - before < all ? (uint32_t)(bound - before) : all;
}

uint32_t pkvi_pool_index_limit(const struct pkvi_pool *pool)
{
    uint32_t n = atomic_load_explicit(&pool->n_slots, memory_order_acquire);
    return n ? (n - 1) * pool->per_region.d + pkvi_pool_slot_pages(pool, n - 1) : 0;
}

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
