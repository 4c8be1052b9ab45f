/* Compaction: pages of sparse regions move into the gaps of full ones.
 *
 *   count     references that tables of idle sequences hold: they can follow
 *   plan      which page goes where, in every group            (changes nothing)
 *   copy      the bytes, by the library or by the host         (free pages are written)
 *   move      page states, tables, the prefix index            (cannot fail) */
#include <string.h>

#include "cache/cache_internal.h"

/* One group's share. */
struct moves {
    uint32_t n;
    uint32_t limit;    /* pages of the group when counted */
    uint32_t *holders; /* [limit + 1] references of idle sequences' tables; later: where it went */
    uint32_t *from, *to; /* [capacity] */
    uint32_t capacity;
};

static void free_moves(struct pkv_cache *cache, struct moves *moves)
{
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        struct moves *m = &moves[g];
        pkvi_mem_free_scratch(&cache->mem, m->holders, (size_t)m->limit + 1, sizeof *m->holders);
        pkvi_mem_free_scratch(&cache->mem, m->from, (size_t)m->capacity + 1, sizeof *m->from);
        pkvi_mem_free_scratch(&cache->mem, m->to, (size_t)m->capacity + 1, sizeof *m->to);
    }
}

/* Every live sequence that no open batch has. */
static struct pkvi_seq *next_idle(const struct pkv_cache *cache, uint32_t *slot)
{
    while (*slot < cache->sequences.used) {
        struct pkvi_seq *seq = pkvi_slots_at(&cache->sequences, (*slot)++);
        if (seq && atomic_load(&seq->batch) == 0) return seq;
    }
    return NULL;
}

static void count_holders(const struct pkv_cache *cache, uint32_t g, uint32_t *holders)
{
    uint32_t slot = 0;
    for (const struct pkvi_seq *seq; (seq = next_idle(cache, &slot)) != NULL;) {
        uint32_t cursor = 0;
        struct pkvi_resident r;
        while (pkvi_table_next(&seq->tables[g], &cursor, &r))
            holders[r.page]++;
    }
}

/* Plans the moves of one group, of *left bytes at most. */
static pkv_status plan_group(struct pkv_cache *cache, uint32_t g, struct moves *m, uint64_t *left)
{
    struct pkvi_pool *pool = &cache->groups[g].pool;
    const uint64_t page_bytes = pkvi_pool_page_bytes(pool);
    const uint64_t most =
        pkvi_min_u64(*left / page_bytes, pkvi_pool_out(pool) + pkvi_pool_cached(pool));
    if (most == 0) return PKV_OK;
    /* Gaps without memory can be filled, too, as far as the limit has room. */
    if (cache->storage != PKV_STORAGE_EXTERNAL) pkvi_pool_back(pool, (uint32_t)most);
    m->limit = pkvi_pool_index_limit(pool);
    m->capacity = (uint32_t)most;
    m->holders = pkvi_mem_scratch(&cache->mem, (size_t)m->limit + 1, sizeof *m->holders);
    m->from = pkvi_mem_scratch(&cache->mem, (size_t)m->capacity + 1, sizeof *m->from);
    m->to = pkvi_mem_scratch(&cache->mem, (size_t)m->capacity + 1, sizeof *m->to);
    const size_t bytes = pkvi_pool_plan_bytes(pool);
    void *scratch = pkvi_mem_scratch(&cache->mem, 1, bytes);
    const bool there = m->holders && m->from && m->to && scratch;
    if (there) {
        count_holders(cache, g, m->holders);
        m->n = pkvi_pool_plan_moves(pool, m->holders, scratch, m->capacity, m->from, m->to);
        *left -= m->n * page_bytes;
    }
    pkvi_mem_free_scratch(&cache->mem, scratch, 1, bytes);
    return there ? PKV_OK : PKV_ENOMEM;
}

static pkv_status copy_bytes(struct pkv_cache *cache, uint32_t g, const struct moves *m)
{
    const struct pkvi_pool *pool = &cache->groups[g].pool;
    for (uint32_t i = 0; i < m->n; i++)
        memcpy(pkvi_pool_address(pool, m->to[i]), pkvi_pool_address(pool, m->from[i]),
               pkvi_pool_page_bytes(pool));
    return PKV_OK;
}

/* The prefix index's and the tables' view. */
static void redirect(struct pkv_cache *cache, uint32_t g, struct moves *m)
{
    const struct pkvi_pool *pool = &cache->groups[g].pool;
    memset(m->holders, 0, ((size_t)m->limit + 1) * sizeof *m->holders);
    for (uint32_t i = 0; i < m->n; i++) {
        m->holders[m->from[i]] = m->to[i] + 1;
        void *owner = pkvi_pool_owner(pool, m->to[i]);
        for (int slot = 0; slot < PKVI_HOOK_SLOTS && owner; slot++) {
            const struct pkvi_hooks *hooks = cache->hooks[slot];
            if (hooks && hooks->moved) hooks->moved(cache->hook_context[slot], g, owner, m->to[i]);
        }
    }
    uint32_t slot = 0;
    for (struct pkvi_seq *seq; (seq = next_idle(cache, &slot)) != NULL;) {
        uint32_t cursor = 0;
        struct pkvi_resident r;
        while (pkvi_table_next(&seq->tables[g], &cursor, &r))
            if (m->holders[r.page] != 0)
                pkvi_table_replace(&seq->tables[g], r.logical, m->holders[r.page] - 1);
    }
}

static pkv_status compact(struct pkv_cache *cache, uint64_t max_bytes, pkv_move_fn copy, void *user,
                          struct moves *moves)
{
    uint64_t left = max_bytes;
    pkv_status status = PKV_OK;
    for (uint32_t g = 0; g < cache->n_groups && status == PKV_OK; g++)
        status = plan_group(cache, g, &moves[g], &left);
    if (status != PKV_OK) return pkvi_fail(cache, status, "cache_compact: no memory for the plan");
    for (uint32_t g = 0; g < cache->n_groups && status == PKV_OK; g++) {
        if (moves[g].n == 0) continue;
        status = copy ? copy(user, g, moves[g].n, moves[g].from, moves[g].to)
                      : copy_bytes(cache, g, &moves[g]);
    }
    if (status != PKV_OK) return pkvi_fail(cache, status, "cache_compact: the host did not copy");
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        if (moves[g].n == 0) continue;
        pkvi_pool_move(&cache->groups[g].pool, moves[g].n, moves[g].from, moves[g].to);
        redirect(cache, g, &moves[g]);
    }
    return PKV_OK;
}

pkv_status pkv_cache_compact_with(pkv_cache *cache, uint64_t max_bytes, pkv_move_fn copy,
                                  void *user, uint64_t *moved)
{
    if (!cache) return PKV_EINVAL;
    if (!copy && cache->storage != PKV_STORAGE_HOST)
        return pkvi_fail(cache, PKV_EINVAL,
                         "cache_compact: copy is NULL, and the bytes are not the library's");
    struct moves moves[PKV_MAX_GROUPS] = {{0}};
    const pkv_status status = compact(cache, max_bytes, copy, user, moves);
    uint64_t bytes = 0;
    for (uint32_t g = 0; g < cache->n_groups; g++)
        bytes += moves[g].n * pkvi_pool_page_bytes(&cache->groups[g].pool);
    free_moves(cache, moves);
    if (status != PKV_OK) return status;
    if (moved) *moved = bytes;
    pkvi_regions_trim(&cache->regions, UINT64_MAX);
    pkvi_regions_heal(&cache->regions);
    return PKV_OK;
}

pkv_status pkv_cache_compact(pkv_cache *cache, uint64_t max_bytes, uint64_t *moved)
{
    if (cache && cache->storage != PKV_STORAGE_HOST)
        return pkvi_fail(cache, PKV_ENOTSUP,
                         "cache_compact: the bytes are not the library's: cache_compact_with");
    return pkv_cache_compact_with(cache, max_bytes, NULL, NULL, moved);
}
