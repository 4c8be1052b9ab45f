/* Units: which of a pool's are held, cold, or free.
 *
 * A unit is what the budget is charged for in a split region: one page, or several small ones that
 * share OS pages. Cold units wait in a stack of their region; squeeze.c moves units there and back.
 */
#include "pool/internal.h"

/* ---- what a unit is ------------------------------------------------------------------------- */

/* Most pages of a unit. */
#define MAX_UNIT 16u

static uint64_t round_up(uint64_t bytes, uint64_t to)
{
    return (bytes + to - 1) / to * to;
}

uint32_t pkvi_pool_choose_unit(uint64_t page_bytes, uint64_t os_page, uint64_t *unit_bytes)
{
    /* Large pages are rounded up: one page, one unit, is worth 3 % at most. */
    *unit_bytes = round_up(page_bytes, os_page);
    if ((*unit_bytes - page_bytes) * 32 <= page_bytes) return 1;
    uint32_t best = 1;
    uint64_t least = UINT64_MAX;
    for (uint32_t n = 1; n <= MAX_UNIT; n++) {
        uint64_t bytes = n * page_bytes, unit = round_up(bytes, os_page);
        uint64_t waste = ((unit - bytes) << 16) / unit;
        if (waste >= least) continue;
        least = waste;
        best = n;
        *unit_bytes = unit;
        if (waste <= (1u << 16) / 64) break;
    }
    return best;
}

uint64_t pkvi_pool_cost(uint64_t page_bytes, uint64_t os_page, uint64_t n)
{
    uint64_t unit_bytes;
    uint32_t pages = pkvi_pool_choose_unit(page_bytes, os_page, &unit_bytes);
    return pkvi_ceil_div_u64(n, pages) * unit_bytes;
}

uint64_t pkvi_pool_charge(const struct pkvi_pool *pool, const struct pkvi_region *region)
{
    if (!region->split) return pool->regions->config.region_bytes;
    return (units_of(pool, region) - region->cold_units) * pool->unit_bytes;
}

/* ---- units of several pages: which of them are held ----------------------------------------- */

/* Are the pages of a unit other than `page` free? */
static bool others_free(const struct pkvi_pool *pool, uint32_t page)
{
    uint32_t slot = pkvi_div(pool->per_region, page), base = slot * pool->per_region.d;
    uint32_t u = pkvi_div(pool->per_unit, page - base), first = base + u * unit_pages(pool);
    uint32_t n = pages_in(pool, region_at(pool, slot), u);
    for (uint32_t i = 0; i < n; i++)
        if (first + i != page && !page_is_free(pool, first + i)) return false;
    return true;
}

void pkvi_pool_unit_taken(struct pkvi_pool *pool, uint32_t page)
{
    if (others_free(pool, page)) counter_add(&pool->held_units, 1);
}

void pkvi_pool_unit_freed(struct pkvi_pool *pool, uint32_t page)
{
    if (others_free(pool, page)) counter_add(&pool->held_units, UINT64_MAX);
}

/* ---- cold stacks; lock held ----------------------------------------------------------------- */

static void link_cold(struct pkvi_pool *pool, uint32_t slot, struct pkvi_region *region)
{
    region->cold_prev = 0;
    region->cold_next = pool->cold_regions;
    if (region->cold_next) region_at(pool, region->cold_next - 1)->cold_prev = slot + 1;
    pool->cold_regions = slot + 1;
}

void pkvi_pool_unlink_cold(struct pkvi_pool *pool, struct pkvi_region *region)
{
    if (region->cold_prev)
        region_at(pool, region->cold_prev - 1)->cold_next = region->cold_next;
    else
        pool->cold_regions = region->cold_next;
    if (region->cold_next) region_at(pool, region->cold_next - 1)->cold_prev = region->cold_prev;
    region->cold_next = region->cold_prev = 0;
}

void pkvi_pool_push_cold(struct pkvi_pool *pool, uint32_t slot, struct pkvi_region *region,
                         uint32_t u)
{
    struct pkvi_page_aux *aux = unit_aux(pool, slot, u);
    uint32_t pages = pages_in(pool, region, u);
    aux->cold = true;
    aux->next = region->cold_head;
    region->cold_head = u + 1;
    if (region->cold_units++ == 0) link_cold(pool, slot, region);
    region->cold_pages += pages;
    counter_add(&pool->cold, pages);
}

uint32_t pkvi_pool_pop_cold(struct pkvi_pool *pool, uint32_t slot, struct pkvi_region *region)
{
    uint32_t u = region->cold_head - 1, pages = pages_in(pool, region, u);
    struct pkvi_page_aux *aux = unit_aux(pool, slot, u);
    region->cold_head = aux->next;
    aux->cold = false;
    region->cold_pages -= pages;
    if (--region->cold_units == 0) pkvi_pool_unlink_cold(pool, region);
    counter_add(&pool->cold, 0 - (uint64_t)pages);
    return u;
}

void pkvi_pool_chill(struct pkvi_pool *pool, uint32_t slot)
{
    struct pkvi_region *region = region_at(pool, slot);
    for (uint32_t u = units_of(pool, region); u-- > 0;)
        pkvi_pool_push_cold(pool, slot, region, u); /* the first comes out first */
}

void pkvi_pool_push_free(struct pkvi_pool *pool, uint32_t slot, struct pkvi_region *region,
                         uint32_t u)
{
    uint32_t base = slot * pool->per_region.d, n = pages_in(pool, region, u);
    for (uint32_t i = n; i-- > 0;) {
        uint32_t k = u * unit_pages(pool) + i;
        pkvi_pool_poison(pool, base + k);
        aux_at(pool, base + k)->next = region->free_head;
        region->free_head = k + 1;
    }
    region->free_count += n;
    counter_add(&pool->total, n);
}

void pkvi_pool_restack(struct pkvi_pool *pool, uint32_t slot, struct pkvi_region *region)
{
    uint32_t base = slot * pool->per_region.d, fresh = region->fresh;
    region->free_head = 0;
    region->free_count = 0;
    region->fresh = region->pages;
    for (uint32_t u = units_of(pool, region); u-- > 0;) {
        if (unit_aux(pool, slot, u)->cold) continue;
        for (uint32_t i = pages_in(pool, region, u); i-- > 0;) {
            uint32_t k = u * unit_pages(pool) + i;
            if (!page_is_free(pool, base + k)) continue;
            if (k >= fresh) pkvi_pool_poison(pool, base + k);
            aux_at(pool, base + k)->next = region->free_head;
            region->free_head = k + 1;
            region->free_count++;
        }
    }
}
