/* Binds states (lib/state) to the cache: a sequence's slots, and those that a step writes to. */
#include <string.h>

#include "cache/cache_internal.h"

/* Of a reserved batch: a row of slots per state that is written, of one entry after another. */
struct batch_states {
    size_t bytes;
    uint32_t n_rows;
    uint32_t *first; /* [n_entries] an entry's first row */
    uint32_t *rows;  /* [n_rows][states.n] */
};

/* ---- sequences ------------------------------------------------------------------------------ */

static pkv_status on_create(void *context, struct pkvi_seq *seq)
{
    (void)context;
    seq->state[PKVI_HOOK_STATE] = pkvi_states_create(&seq->cache->states);
    return pkvi_states_of(seq) ? PKV_OK : PKV_ENOMEM;
}

static pkv_status on_fork(void *context, const struct pkvi_seq *parent, struct pkvi_seq *child)
{
    (void)context;
    child->state[PKVI_HOOK_STATE] = pkvi_states_fork(&child->cache->states, pkvi_states_of(parent));
    return pkvi_states_of(child) ? PKV_OK : PKV_ENOMEM;
}

static void on_destroy(void *context, struct pkvi_seq *seq)
{
    (void)context;
    pkvi_states_destroy(&seq->cache->states, pkvi_states_of(seq));
    seq->state[PKVI_HOOK_STATE] = NULL;
}

static bool can_truncate(void *context, const struct pkvi_seq *seq, uint64_t n_tokens)
{
    (void)context;
    return pkvi_states_can_rewind(pkvi_states_of(seq), n_tokens);
}

static void on_truncate(void *context, struct pkvi_seq *seq, uint64_t n_tokens)
{
    (void)context;
    pkvi_states_rewind(&seq->cache->states, pkvi_states_of(seq), n_tokens);
}

/* ---- reserve -------------------------------------------------------------------------------- */

static struct batch_states *new_batch_states(const struct pkvi_batch *batch)
{
    struct pkv_cache *cache = batch->cache;
    uint64_t n_rows = 0;
    for (uint32_t i = 0; i < batch->n_entries; i++)
        n_rows += pkvi_state_rows(&batch->entries[i]);
    if (n_rows > UINT32_MAX) return NULL;
    const size_t numbers = batch->n_entries + (size_t)n_rows * cache->states.n;
    const size_t bytes = sizeof(struct batch_states) + numbers * sizeof(uint32_t);
    struct batch_states *states = pkvi_mem_alloc(&cache->mem, bytes);
    if (!states) return NULL;
    *states = (struct batch_states){
        .bytes = bytes, .n_rows = (uint32_t)n_rows, .first = (uint32_t *)(void *)(states + 1)};
    states->rows = states->first + batch->n_entries;
    uint32_t first = 0;
    for (uint32_t i = 0; i < batch->n_entries; i++) {
        states->first[i] = first;
        first += pkvi_state_rows(&batch->entries[i]);
    }
    return states;
}

/* Slots of one state group for every row; `slots` has room for them. */
static pkv_status take_slots(struct pkvi_batch *batch, uint32_t s, uint32_t n, uint32_t *slots)
{
    struct pkv_cache *cache = batch->cache;
    struct pkvi_pool *pool = &cache->states.groups[s].pool;
    pkv_status status = pkvi_pool_alloc(pool, n, slots);
    for (int attempt = 0; attempt < PKVI_ALLOC_ATTEMPTS && status == PKV_ENOPAGES; attempt++) {
        if (!pkvi_cache_reclaim_slots(cache, s, n)) break;
        status = pkvi_pool_alloc(pool, n, slots);
    }
    if (status != PKV_ENOPAGES) return status;
    uint32_t *missing = &batch->shortfall[cache->n_groups + s];
    *missing = pkvi_max_u32(pkvi_pool_missing(pool, n), 1);
    return pkvi_fail(cache, status, "batch_reserve: %u slots of state group %u are missing",
                     *missing, s);
}

static pkv_status on_reserve(void *context, struct pkvi_batch *batch)
{
    (void)context;
    struct pkv_cache *cache = batch->cache;
    const uint32_t n_groups = cache->states.n;
    struct batch_states *states = new_batch_states(batch);
    if (!states) return PKV_ENOMEM;
    const uint32_t n = states->n_rows;
    uint32_t *slots = pkvi_mem_array(&cache->mem, (size_t)n * n_groups, sizeof *slots);
    pkv_status status = slots ? PKV_OK : PKV_ENOMEM;
    uint32_t taken = 0;
    for (; taken < n_groups && status == PKV_OK; taken += status == PKV_OK)
        status = take_slots(batch, taken, n, slots + (size_t)taken * n);
    for (uint32_t s = 0; s < taken; s++) {
        if (status != PKV_OK)
            pkvi_pool_unref(&cache->states.groups[s].pool, n, slots + (size_t)s * n);
        for (uint32_t r = 0; r < n; r++)
            states->rows[(size_t)r * n_groups + s] = slots[(size_t)s * n + r];
    }
    pkvi_mem_free_array(&cache->mem, slots, (size_t)n * n_groups, sizeof *slots);
    if (status == PKV_OK)
        batch->state[PKVI_HOOK_STATE] = states;
    else
        pkvi_mem_free(&cache->mem, states, states->bytes);
    return status;
}

static void free_batch_states(struct pkvi_batch *batch, struct batch_states *states)
{
    batch->state[PKVI_HOOK_STATE] = NULL;
    pkvi_mem_free(&batch->cache->mem, states, states->bytes);
}

static void on_rollback(void *context, struct pkvi_batch *batch)
{
    (void)context;
    struct batch_states *states = batch->state[PKVI_HOOK_STATE];
    if (!states) return;
    const struct pkvi_state_set *set = &batch->cache->states;
    for (uint32_t r = 0; r < states->n_rows; r++)
        pkvi_state_unref(set, states->rows + (size_t)r * set->n);
    free_batch_states(batch, states);
}

/* ---- commit --------------------------------------------------------------------------------- */

/* Number of the entry's row that stands for its first `accepted` tokens; UINT32_MAX = none. */
static uint32_t row_after(const struct pkvi_entry *entry, uint32_t accepted)
{
    const uint32_t rest = entry->n_tokens - accepted, n = pkvi_state_rows(entry);
    return accepted != 0 && rest < n ? n - 1 - rest : UINT32_MAX;
}

static bool can_accept(void *context, const struct pkvi_batch *batch, uint32_t entry,
                       uint32_t accepted)
{
    (void)context;
    return accepted == 0 || row_after(&batch->entries[entry], accepted) != UINT32_MAX;
}

static void on_commit(void *context, struct pkvi_batch *batch)
{
    (void)context;
    struct batch_states *states = batch->state[PKVI_HOOK_STATE];
    if (!states) return;
    const struct pkvi_state_set *set = &batch->cache->states;
    for (uint32_t i = 0; i < batch->n_entries; i++) {
        const struct pkvi_entry *entry = &batch->entries[i];
        const uint32_t kept = row_after(entry, entry->accepted);
        for (uint32_t k = 0; k < pkvi_state_rows(entry); k++) {
            const uint32_t *row = states->rows + (size_t)(states->first[i] + k) * set->n;
            if (k != kept) {
                pkvi_state_unref(set, row);
                continue;
            }
            pkvi_states_advance(set, pkvi_states_of(entry->seq), row);
            for (uint32_t s = 0; s < set->n; s++)
                pkvi_pool_seal(&set->groups[s].pool, 1, &row[s]); /* nobody changes it any more */
        }
    }
    free_batch_states(batch, states);
}

const uint32_t *pkvi_state_of_entry(const struct pkvi_batch *batch, uint32_t entry)
{
    const struct batch_states *states = batch->state[PKVI_HOOK_STATE];
    return states->rows + (size_t)states->first[entry] * batch->cache->states.n;
}

/* ---- verify --------------------------------------------------------------------------------- */

/* Counts the references of sequences and batches on one group's slots. */
static pkv_status count_holders(const struct pkv_cache *cache, uint32_t s, uint32_t *holders,
                                uint32_t n, char *text, size_t capacity)
{
    for (uint32_t slot = 0; slot < cache->sequences.used; slot++) {
        const struct pkvi_seq *seq = pkvi_slots_at(&cache->sequences, slot);
        if (!seq) continue;
        const char *broken =
            pkvi_states_check(&cache->states, pkvi_states_of(seq), seq->length, s, holders, n);
        if (!broken) continue;
        pkvi_text(text, capacity, "sequence %#llx, state group %u: %s", (unsigned long long)seq->id,
                  s, broken);
        return PKV_ECORRUPT;
    }
    for (uint32_t slot = 0; slot < cache->batches.used; slot++) {
        const struct pkvi_batch *batch = pkvi_slots_at(&cache->batches, slot);
        const struct batch_states *states = batch ? batch->state[PKVI_HOOK_STATE] : NULL;
        for (uint32_t r = 0; states && r < states->n_rows; r++)
            holders[states->rows[(size_t)r * cache->states.n + s]]++;
    }
    return PKV_OK;
}

pkv_status pkvi_state_verify(struct pkv_cache *cache, char *text, size_t capacity)
{
    pkv_status status = PKV_OK;
    for (uint32_t s = 0; s < cache->states.n && status == PKV_OK; s++) {
        struct pkvi_pool *pool = &cache->states.groups[s].pool;
        const uint32_t n = pkvi_pool_index_limit(pool);
        uint32_t *holders = pkvi_mem_scratch(&cache->mem, (size_t)n + 1, sizeof *holders);
        if (!holders) {
            pkvi_text(text, capacity, "verify: no memory to count references");
            return PKV_ENOMEM;
        }
        status = count_holders(cache, s, holders, n, text, capacity);
        if (status == PKV_OK) status = pkvi_pool_verify(pool, holders, n, text, capacity);
        pkvi_mem_free_scratch(&cache->mem, holders, (size_t)n + 1, sizeof *holders);
    }
    return status;
}

/* ---- bind ----------------------------------------------------------------------------------- */

static const struct pkvi_hooks hooks = {
    .seq_create = on_create,
    .seq_fork = on_fork,
    .seq_destroy = on_destroy,
    .can_truncate = can_truncate,
    .seq_truncate = on_truncate,
    .reserve = on_reserve,
    .rollback = on_rollback,
    .can_accept = can_accept,
    .commit = on_commit,
};

void pkvi_state_bind(struct pkv_cache *cache)
{
    if (cache->states.n == 0) return;
    cache->hooks[PKVI_HOOK_STATE] = &hooks;
    cache->hook_context[PKVI_HOOK_STATE] = cache;
}
