/* Moving pages, so that sparse regions become free ones. */
#include <stdlib.h>
#include <string.h>

#include "pool/internal.h"

/* A region by how many of its pages stay for certain: those are filled, the others emptied. */
struct rank {
    uint32_t slot, used, fixed;
};

struct plan {
    struct pkvi_pool *pool;
    const uint32_t *holders; /* references that may be moved along, per page */
    struct rank *ranks;      /* fullest first */
    uint32_t n_ranks;
};

static bool in_use(uint64_t word)
{
    return (uint32_t)word != 0;
}

/* Does everybody who knows the page follow it? Cached pages are known to their owner alone. */
static bool is_movable(const struct plan *plan, uint32_t page)
{
    const uint64_t word = load_word(word_at(plan->pool, page));
    if (!in_use(word) || (word & PKVI_WORD_MAGAZINE)) return false;
    return aux_at(plan->pool, page)->host == 0 && refs_of(word) == plan->holders[page];
}

/* Free, and with memory. Pages never handed out do not enter before their turn. */
static bool is_target(const struct plan *plan, uint32_t page)
{
    struct pkvi_pool *pool = plan->pool;
    const uint32_t slot = pkvi_div(pool->per_region, page), k = page - slot * pool->per_region.d;
    return !in_use(load_word(word_at(pool, page))) &&
           !unit_aux(pool, slot, pkvi_div(pool->per_unit, k))->cold;
}

static int by_fullness(const void *a, const void *b)
{
    const struct rank *x = a, *y = b;
    if ((x->fixed != 0) != (y->fixed != 0)) return x->fixed != 0 ? -1 : 1;
    if (x->used != y->used) return x->used > y->used ? -1 : 1;
    return x->slot < y->slot ? -1 : 1;
}

static void rank_regions(struct plan *plan)
{
    struct pkvi_pool *pool = plan->pool;
    const uint32_t n_slots = atomic_load_explicit(&pool->n_slots, memory_order_relaxed);
    for (uint32_t slot = 0; slot < n_slots; slot++) {
        const struct pkvi_region *region = region_at(pool, slot);
        if (region->pages == 0) continue;
        struct rank rank = {.slot = slot};
        for (uint32_t k = 0; k < region->pages; k++) {
            const uint32_t page = slot * pool->per_region.d + k;
            rank.used += in_use(load_word(word_at(pool, page)));
            rank.fixed += in_use(load_word(word_at(pool, page))) && !is_movable(plan, page);
        }
        plan->ranks[plan->n_ranks++] = rank;
    }
    qsort(plan->ranks, plan->n_ranks, sizeof *plan->ranks, by_fullness);
}

/* A place in the order of pages: region by rank, then index. */
struct finger {
    uint32_t rank, k;
};

static uint32_t page_at(const struct plan *plan, struct finger at)
{
    return plan->ranks[at.rank].slot * plan->pool->per_region.d + at.k;
}

static bool is_before(struct finger a, struct finger b)
{
    return a.rank != b.rank ? a.rank < b.rank : a.k < b.k;
}

/* The next free page from the front, and the next movable one from the back; false at the end. */
static bool next_target(const struct plan *plan, struct finger *low)
{
    for (; low->rank < plan->n_ranks; low->rank++, low->k = 0)
        for (; low->k < region_at(plan->pool, plan->ranks[low->rank].slot)->pages; low->k++)
            if (is_target(plan, page_at(plan, *low))) return true;
    return false;
}

static bool next_source(const struct plan *plan, struct finger *high)
{
    for (;;) {
        for (; high->k > 0; high->k--)
            if (is_movable(plan, page_at(plan, (struct finger){high->rank, high->k - 1})))
                return true;
        if (high->rank == 0) return false;
        high->k = region_at(plan->pool, plan->ranks[--high->rank].slot)->pages;
    }
}

uint32_t pkvi_pool_plan_moves(struct pkvi_pool *pool, const uint32_t *holders, void *scratch,
                              uint32_t most, uint32_t *from, uint32_t *to)
{
    struct plan plan = {.pool = pool, .holders = holders, .ranks = scratch};
    uint32_t n = 0;
    pkvi_mutex_lock(&pool->lock);
    rank_regions(&plan);
    if (plan.n_ranks != 0) {
        struct finger low = {0, 0}, high = {plan.n_ranks, 0};
        while (n < most && next_target(&plan, &low) && next_source(&plan, &high)) {
            const struct finger source = {high.rank, high.k - 1};
            if (!is_before(low, source)) break;
            from[n] = page_at(&plan, source);
            to[n++] = page_at(&plan, low);
            low.k++;
            high.k--;
        }
    }
    pkvi_mutex_unlock(&pool->lock);
    return n;
}

size_t pkvi_pool_plan_bytes(struct pkvi_pool *pool)
{
    return ((size_t)atomic_load_explicit(&pool->n_slots, memory_order_relaxed) + 1) *
           sizeof(struct rank);
}

/* Everything known of a page, from one to another. Lock held. */
static void move_state(struct pkvi_pool *pool, uint32_t from, uint32_t to)
{
    _Atomic uint64_t *source = word_at(pool, from), *target = word_at(pool, to);
    struct pkvi_page_aux *old = aux_at(pool, from), *new = aux_at(pool, to);
    const uint64_t word = load_word(source);
    const uint64_t generation =
        load_word(target) ? generation_of(load_word(target)) : pool->first_generation;
    if (unit_pages(pool) != 1) pkvi_pool_unit_taken(pool, to);
    atomic_store_explicit(&new->owner, atomic_load_explicit(&old->owner, memory_order_relaxed),
                          memory_order_release);
    new->host = 0;
    new->sealed = old->sealed;
    if (pool->config.debug & PKV_DEBUG_CHECKSUM)
        memcpy(pkvi_segvec_at(&pool->checksums, to, sizeof(uint64_t)),
               pkvi_segvec_at(&pool->checksums, from, sizeof(uint64_t)), sizeof(uint64_t));
    store_word(target, generation | (word & UINT64_C(0xffffffff)));
    atomic_store_explicit(&old->owner, NULL, memory_order_release);
    old->sealed = false;
    store_word(source, next_generation(word));
    if (unit_pages(pool) != 1) pkvi_pool_unit_freed(pool, from);
    pkvi_pool_poison(pool, from);
}

void pkvi_pool_move(struct pkvi_pool *pool, uint32_t n, const uint32_t *from, const uint32_t *to)
{
    pkvi_mutex_lock(&pool->lock);
    for (uint32_t i = 0; i < n; i++)
        move_state(pool, from[i], to[i]);
    const uint32_t n_slots = atomic_load_explicit(&pool->n_slots, memory_order_relaxed);
    for (uint32_t slot = 0; slot < n_slots && n != 0; slot++) {
        struct pkvi_region *region = region_at(pool, slot);
        if (region->pages == 0) continue;
        pkvi_pool_restack(pool, slot, region);
        region->barren = false;
        reclass(pool, slot, region);
    }
    pkvi_mutex_unlock(&pool->lock);
}
