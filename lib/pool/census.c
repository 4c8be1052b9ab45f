/* What a pool has, as numbers. */
#include "pool/internal.h"

uint64_t pkvi_pool_obtainable(struct pkvi_pool *pool)
{
    pkvi_mutex_lock(&pool->lock);
    uint64_t n_free = free_pages(pool);
    uint64_t held = counter_get(&pool->out) + counter_get(&pool->cached);
    uint64_t held_units = counter_get(&pool->held_units);
    pkvi_mutex_unlock(&pool->lock);
    if (pool->config.storage == PKV_STORAGE_EXTERNAL) return n_free;
    uint64_t units = pkvi_regions_available(pool->regions) / pool->unit_bytes;
    uint64_t pages = units * unit_pages(pool);
    if (unit_pages(pool) != 1) pages += held_units * unit_pages(pool) - held;
    pages = pkvi_max_u64(pages, n_free); /* others may have taken room meanwhile */
    return pkvi_min_u64(pages, pool->max_index - held);
}

uint32_t pkvi_pool_missing(struct pkvi_pool *pool, uint32_t n)
{
    uint64_t obtainable = pkvi_pool_obtainable(pool);
    return obtainable >= n ? 0 : n - (uint32_t)obtainable;
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
        .cold = counter_get(&pool->cold),
        .parked = parked,
        .held_bytes = pkvi_pool_held_bytes(pool),
        .regions = pool->n_whole + pool->n_split,
        .split = pool->n_split,
        .allocs = counter_get(&pool->allocs) + allocs,
        .frees = counter_get(&pool->frees) + frees,
    };
    pkvi_mutex_unlock(&pool->lock);
}

uint64_t pkvi_pool_hosted(struct pkvi_pool *pool)
{
    uint64_t n = 0;
    pkvi_mutex_lock(&pool->lock);
    const uint32_t limit = pkvi_pool_index_limit(pool);
    for (uint32_t page = 0; page < limit; page++) {
        const uint64_t word = load_word(word_at(pool, page));
        n += refs_of(word) != 0 && ((word & PKVI_WORD_MAGAZINE) != 0 || aux_at(pool, page)->host);
    }
    pkvi_mutex_unlock(&pool->lock);
    return n;
}

uint32_t pkvi_pool_used_in_unit(const struct pkvi_pool *pool, uint32_t unit)
{
    const uint32_t first = unit * unit_pages(pool);
    const uint32_t end =
        (uint32_t)pkvi_min_u64((uint64_t)first + unit_pages(pool), pkvi_pool_index_limit(pool));
    uint32_t used = 0;
    for (uint32_t page = first; page < end; page++)
        used += (load_word(word_at(pool, page)) & (PKVI_WORD_REFS | PKVI_WORD_MAGAZINE)) != 0;
    return used;
}

/* Units with used or parked pages. Lock held. */
static uint64_t count_used_units(const struct pkvi_pool *pool)
{
    const uint32_t units = pkvi_div(pool->per_unit, pkvi_pool_index_limit(pool) +
                                                        unit_pages(pool) - 1);
    uint64_t n = 0;
    for (uint32_t unit = 0; unit < units; unit++)
        n += pkvi_pool_used_in_unit(pool, unit) != 0;
    return n;
}

void pkvi_pool_census(struct pkvi_pool *pool, bool exact, struct pkvi_pool_census *census)
{
    pkvi_mutex_lock(&pool->lock);
    const uint64_t out = counter_get(&pool->out);
    uint64_t units = out;
    census->cap = pool->max_index - out;
    if (unit_pages(pool) != 1)
        units = exact && counter_get(&pool->cached) != 0 ? count_used_units(pool)
                                                         : counter_get(&pool->held_units);
    if (pool->config.storage == PKV_STORAGE_EXTERNAL)
        *census = (struct pkvi_pool_census){.own = counter_get(&pool->total) - out,
                                            .cap = census->cap};
    else
        *census = (struct pkvi_pool_census){.own = units * unit_pages(pool) - out,
                                            .used_bytes = units * pool->unit_bytes,
                                            .cap = census->cap};
    pkvi_mutex_unlock(&pool->lock);
}
