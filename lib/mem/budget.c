#include "mem/mem.h"

#define READ(field) atomic_load_explicit(&(field), memory_order_relaxed)
#define WRITE(field, value) atomic_store_explicit(&(field), (value), memory_order_relaxed)

/* Room that pages leave for metadata from the start, and beyond what there is. */
static uint64_t headroom(uint64_t limit)
{
    return limit / 512 + (UINT64_C(64) << 10);
}

static uint64_t spare(uint64_t limit)
{
    return limit / 1024 + (UINT64_C(16) << 10);
}

bool pkvi_budget_init(struct pkvi_budget *budget, uint64_t limit, struct pkvi_lock_ranks *ranks)
{
    *budget = (struct pkvi_budget){.limit = limit};
    return pkvi_mutex_init(&budget->lock, PKVI_RANK_BUDGET, ranks);
}

void pkvi_budget_destroy(struct pkvi_budget *budget)
{
    pkvi_mutex_destroy(&budget->lock);
}

/* a - b, or 0. */
static uint64_t above(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

uint64_t pkvi_budget_beside(uint64_t limit, uint64_t metadata)
{
    return above(limit, pkvi_max_u64(metadata + spare(limit), headroom(limit)));
}

uint64_t pkvi_budget_for_pages(struct pkvi_budget *budget)
{
    return pkvi_budget_beside(READ(budget->limit), READ(budget->metadata));
}

uint64_t pkvi_budget_region_room(struct pkvi_budget *budget)
{
    return above(pkvi_budget_for_pages(budget), READ(budget->regions));
}

uint64_t pkvi_budget_capacity(uint64_t limit)
{
    return above(limit, headroom(limit));
}

/* Counters only fall outside the lock, so what the check saw cannot have become too little. */
static void add(_Atomic uint64_t *counter, _Atomic uint64_t *peak, uint64_t bytes)
{
    uint64_t now = atomic_fetch_add_explicit(counter, bytes, memory_order_relaxed) + bytes;
    if (now > READ(*peak)) WRITE(*peak, now);
}

bool pkvi_budget_charge_region(struct pkvi_budget *budget, uint64_t bytes)
{
    pkvi_mutex_lock(&budget->lock);
    bool fits = bytes <= pkvi_budget_region_room(budget);
    if (fits) add(&budget->regions, &budget->regions_peak, bytes);
    pkvi_mutex_unlock(&budget->lock);
    return fits;
}

uint64_t pkvi_budget_charge_units(struct pkvi_budget *budget, uint64_t bytes, uint64_t n)
{
    pkvi_mutex_lock(&budget->lock);
    n = pkvi_min_u64(n, pkvi_budget_region_room(budget) / bytes);
    if (n != 0) add(&budget->regions, &budget->regions_peak, n * bytes);
    pkvi_mutex_unlock(&budget->lock);
    return n;
}

void pkvi_budget_release_region(struct pkvi_budget *budget, uint64_t bytes)
{
    uint64_t before = atomic_fetch_sub_explicit(&budget->regions, bytes, memory_order_relaxed);
    PKVI_ASSERT(before >= bytes);
    (void)before;
}

static bool charge_metadata_once(struct pkvi_budget *budget, uint64_t bytes)
{
    pkvi_mutex_lock(&budget->lock);
    bool fits = bytes <= above(READ(budget->limit), pkvi_budget_used(budget));
    if (fits) add(&budget->metadata, &budget->metadata_peak, bytes);
    pkvi_mutex_unlock(&budget->lock);
    return fits;
}

/* True if the hook gave something up, or others did meanwhile. */
static bool make_room(struct pkvi_budget *budget, uint64_t bytes)
{
    uint64_t room = above(READ(budget->limit), pkvi_budget_used(budget));
    return room >= bytes || budget->pressure(budget->pressure_context, bytes - room);
}

bool pkvi_budget_charge_metadata(struct pkvi_budget *budget, uint64_t bytes)
{
    while (!charge_metadata_once(budget, bytes))
        if (!budget->pressure || !make_room(budget, bytes)) return false;
    return true;
}

void pkvi_budget_release_metadata(struct pkvi_budget *budget, uint64_t bytes)
{
    uint64_t before = atomic_fetch_sub_explicit(&budget->metadata, bytes, memory_order_relaxed);
    PKVI_ASSERT(before >= bytes);
    (void)before;
}

bool pkvi_budget_try_limit(struct pkvi_budget *budget, uint64_t limit)
{
    pkvi_mutex_lock(&budget->lock);
    bool fits = pkvi_budget_used(budget) <= limit;
    if (fits) WRITE(budget->limit, limit);
    pkvi_mutex_unlock(&budget->lock);
    return fits;
}
