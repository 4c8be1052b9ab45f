/* Batches: begin, add, commit, abort. Reserving is in reserve.c. */
#include <string.h>

#include "cache/cache_internal.h"
#include "cache/config_limits.h"

/* ---- objects -------------------------------------------------------------------------------- */

static void free_batch(struct pkvi_batch *batch)
{
    struct pkv_cache *cache = batch->cache;
    struct pkvi_mem *mem = &cache->mem;
    pkvi_mem_free_array(mem, batch->entries, batch->entry_capacity, sizeof *batch->entries);
    pkvi_mem_free_array(mem, batch->growing, batch->entry_capacity, sizeof *batch->growing);
    pkvi_mem_free_array(mem, batch->tokens, batch->token_capacity, sizeof *batch->tokens);
    pkvi_mem_free_array(mem, batch->copies, batch->copy_capacity, sizeof *batch->copies);
    pkvi_mem_free_array(mem, batch->copy_counts, batch->copy_count_capacity,
                        sizeof *batch->copy_counts);
    pkvi_mem_free_array(mem, batch->pages, batch->page_capacity, sizeof *batch->pages);
    pkvi_mem_free_array(mem, batch->shortfall, pkvi_all_groups(cache), sizeof *batch->shortfall);
    pkvi_mem_free_array(mem, batch->needed, cache->n_groups, sizeof *batch->needed);
    pkvi_mem_free(mem, batch, sizeof *batch);
}

static struct pkvi_batch *new_batch(struct pkv_cache *cache)
{
    struct pkvi_batch *batch = pkvi_mem_zalloc(&cache->mem, sizeof *batch);
    if (!batch) return NULL;
    batch->cache = cache;
    batch->shortfall =
        pkvi_mem_array(&cache->mem, pkvi_all_groups(cache), sizeof *batch->shortfall);
    batch->needed = pkvi_mem_array(&cache->mem, cache->n_groups, sizeof *batch->needed);
    if (batch->shortfall && batch->needed) return batch;
    free_batch(batch);
    return NULL;
}

void pkvi_batches_trim(struct pkv_cache *cache)
{
    pkvi_mutex_lock(&cache->lock);
    struct pkvi_batch *batch = cache->free_batches;
    cache->free_batches = NULL;
    pkvi_mutex_unlock(&cache->lock);
    while (batch) {
        struct pkvi_batch *next = batch->next_free;
        free_batch(batch);
        batch = next;
    }
}

void pkvi_batches_destroy(struct pkv_cache *cache)
{
    for (uint32_t slot = 0; slot < cache->batches.used; slot++) {
        struct pkvi_batch *batch = pkvi_slots_at(&cache->batches, slot);
        if (!batch) continue;
        if (batch->phase == PKVI_BATCH_RESERVED) pkvi_unreserve(batch);
        pkvi_slots_remove(&cache->batches, batch->id);
        free_batch(batch);
    }
    pkvi_batches_trim(cache);
}

static pkv_status begin(struct pkv_cache *cache, pkv_batch *out)
{
    pkvi_mutex_lock(&cache->lock);
    struct pkvi_batch *batch = cache->free_batches;
    if (batch) cache->free_batches = batch->next_free;
    pkvi_mutex_unlock(&cache->lock);
    if (!batch) batch = new_batch(cache);
    if (!batch) return pkvi_fail(cache, PKV_ENOMEM, "batch_begin: no memory for a batch");
    batch->phase = PKVI_BATCH_OPEN;
    pkvi_mutex_lock(&cache->lock);
    const pkv_status status = pkvi_slots_insert(&cache->batches, &cache->mem, batch, &batch->id);
    if (status != PKV_OK) {
        batch->next_free = cache->free_batches;
        cache->free_batches = batch;
    }
    pkvi_mutex_unlock(&cache->lock);
    if (status == PKV_ERANGE)
        return pkvi_fail(cache, status, "batch_begin: %u batches are open, the most allowed",
                         cache->batches.limit);
    if (status != PKV_OK) return pkvi_fail(cache, status, "batch_begin: no memory for a handle");
    pkvi_count(&cache->stats, PKVI_COUNT_BATCHES, 1);
    *out = (pkv_batch){cache, batch->id};
    return PKV_OK;
}

pkv_status pkv_batch_begin(pkv_cache *cache, pkv_batch *out)
{
    if (!cache) return PKV_EINVAL;
    if (!out) return pkvi_fail(cache, PKV_EINVAL, "batch_begin: batch is NULL");
    pkv_status status;
    int attempt = 0;
    do
        status = begin(cache, out);
    while (pkvi_cache_retry(cache, status, attempt++, 0));
    return status;
}

/* Makes the handle stale, lets go of the sequences and keeps the arrays for the next batch. */
static void end_batch(struct pkvi_batch *batch)
{
    struct pkv_cache *cache = batch->cache;
    for (uint32_t i = 0; i < batch->n_entries; i++)
        atomic_store_explicit(&batch->entries[i].seq->batch, 0, memory_order_release);
    batch->n_entries = 0;
    batch->n_rows = 0;
    batch->n_with_tokens = 0;
    memset(batch->n_with_state, 0, sizeof batch->n_with_state);
    batch->n_token_ids = 0;
    batch->n_copies = 0;
    memset(batch->shortfall, 0, pkvi_all_groups(cache) * sizeof *batch->shortfall);
    pkvi_uncount(&cache->stats, PKVI_COUNT_BATCHES, 1);
    pkvi_mutex_lock(&cache->lock);
    pkvi_slots_remove(&cache->batches, batch->id);
    batch->next_free = cache->free_batches;
    cache->free_batches = batch;
    pkvi_mutex_unlock(&cache->lock);
}

/* ---- add ------------------------------------------------------------------------------------ */

/* Room for n more token ids. */
static pkv_status token_room(struct pkvi_batch *batch, uint32_t n)
{
    if (n <= batch->token_capacity - batch->n_token_ids) return PKV_OK;
    uint64_t capacity = batch->token_capacity == 0 ? 64 : batch->token_capacity;
    while (capacity < batch->n_token_ids + n)
        capacity *= 2;
    int32_t *tokens = pkvi_mem_grow_array(&batch->cache->mem, batch->tokens, batch->token_capacity,
                                          capacity, sizeof *tokens);
    if (!tokens) return PKV_ENOMEM;
    batch->tokens = tokens;
    batch->token_capacity = capacity;
    return PKV_OK;
}

static pkv_status make_room(struct pkvi_batch *batch, bool with_tokens, uint32_t n_tokens)
{
    struct pkvi_mem *mem = &batch->cache->mem;
    if (batch->n_entries == batch->entry_capacity) {
        const uint32_t capacity = batch->entry_capacity == 0 ? 16 : 2 * batch->entry_capacity;
        uint32_t *growing = pkvi_mem_array(mem, capacity, sizeof *growing);
        if (!growing) return PKV_ENOMEM;
        struct pkvi_entry *entries = pkvi_mem_grow_array(mem, batch->entries, batch->entry_capacity,
                                                         capacity, sizeof *entries);
        if (!entries) {
            pkvi_mem_free_array(mem, growing, capacity, sizeof *growing);
            return PKV_ENOMEM;
        }
        pkvi_mem_free_array(mem, batch->growing, batch->entry_capacity, sizeof *growing);
        batch->entries = entries;
        batch->growing = growing; /* filled anew by each reserve */
        batch->entry_capacity = capacity;
    }
    return with_tokens ? token_room(batch, n_tokens) : PKV_OK;
}

static pkv_status check_add(const struct pkvi_batch *batch, pkv_seq handle, uint32_t n_tokens,
                            struct pkvi_seq **seq)
{
    struct pkv_cache *cache = batch->cache;
    if (PKVI_UNLIKELY(batch->phase != PKVI_BATCH_OPEN))
        return pkvi_fail(cache, PKV_ESTATE, "batch_add: the batch is reserved already");
    if (PKVI_UNLIKELY(!handle.cache))
        return pkvi_fail(cache, PKV_EINVAL, "batch_add: a zeroed sequence handle");
    if (PKVI_UNLIKELY(handle.cache != cache))
        return pkvi_fail(cache, PKV_EFOREIGN, "batch_add: the sequence belongs to another cache");
    if (PKVI_UNLIKELY(n_tokens == 0))
        return pkvi_fail(cache, PKV_EINVAL, "batch_add: n_tokens is 0");
    const pkv_status status = pkvi_seq_get(handle, "batch_add", seq);
    if (status != PKV_OK) return status;
    if (PKVI_UNLIKELY(n_tokens > PKVI_MAX_LENGTH - (*seq)->length))
        return pkvi_fail(cache, PKV_ERANGE,
                         "batch_add: sequence %#llx would exceed %d tokens (has %llu, adds %u)",
                         (unsigned long long)handle.id, PKVI_MAX_LENGTH,
                         (unsigned long long)(*seq)->length, n_tokens);
    return PKV_OK;
}

/* Claims the sequence for the batch. */
static pkv_status take_seq(const struct pkvi_batch *batch, struct pkvi_seq *seq)
{
    uint64_t expected = 0;
    if (PKVI_LIKELY(atomic_compare_exchange_strong_explicit(
            &seq->batch, &expected, batch->id, memory_order_acq_rel, memory_order_acquire)))
        return PKV_OK;
    if (expected == batch->id)
        return pkvi_fail(batch->cache, PKV_EINVAL, "batch_add: sequence %#llx is listed twice",
                         (unsigned long long)seq->id);
    return pkvi_fail(batch->cache, PKV_EBUSY, "batch_add: sequence %#llx is in another open batch",
                     (unsigned long long)seq->id);
}

/* Adds an entry to the counts that tell which hooks have anything to do. */
static void count_entry(struct pkvi_batch *batch, const struct pkvi_entry *entry)
{
    for (int slot = 0; slot < PKVI_HOOK_SLOTS; slot++)
        batch->n_with_state[slot] += entry->seq->state[slot] != NULL && !entry->seq->quiet[slot];
    batch->n_with_tokens += entry->tokens != PKVI_NO_TOKENS;
}

pkv_status pkv_batch_add(pkv_batch handle, pkv_seq seq_handle, const int32_t *tokens,
                         uint32_t n_tokens)
{
    struct pkvi_batch *batch;
    struct pkvi_seq *seq;
    pkv_status status = pkvi_batch_get(handle, "batch_add", &batch);
    if (status == PKV_OK) status = check_add(batch, seq_handle, n_tokens, &seq);
    if (status != PKV_OK) return status;
    int attempt = 0;
    do
        status = make_room(batch, tokens, n_tokens);
    while (pkvi_cache_retry(handle.cache, status, attempt++, (uint64_t)n_tokens * sizeof *tokens));
    if (PKVI_UNLIKELY(status != PKV_OK))
        return pkvi_fail(handle.cache, status, "batch_add: no memory for the entry");
    status = take_seq(batch, seq);
    if (status != PKV_OK) return status;
    batch->entries[batch->n_entries++] = (struct pkvi_entry){
        .seq = seq,
        .first_row = batch->n_rows,
        .n_tokens = n_tokens,
        .tokens = tokens ? batch->n_token_ids : PKVI_NO_TOKENS,
    };
    batch->n_rows += n_tokens;
    if (tokens) {
        memcpy(batch->tokens + batch->n_token_ids, tokens, n_tokens * sizeof *tokens);
        batch->n_token_ids += n_tokens;
    }
    count_entry(batch, &batch->entries[batch->n_entries - 1]);
    return PKV_OK;
}

pkv_status pkv_batch_set_tokens(pkv_batch handle, uint32_t index, const int32_t *tokens, uint32_t n)
{
    struct pkvi_batch *batch;
    pkv_status status = pkvi_batch_get(handle, "batch_set_tokens", &batch);
    if (status != PKV_OK) return status;
    if (index >= batch->n_entries)
        return pkvi_fail(handle.cache, PKV_EINVAL, "batch_set_tokens: entry %u of %u", index,
                         batch->n_entries);
    struct pkvi_entry *entry = &batch->entries[index];
    if (!tokens || n != entry->n_tokens)
        return pkvi_fail(handle.cache, PKV_EINVAL,
                         "batch_set_tokens: %u ids for the %u new tokens of entry %u",
                         !tokens ? 0 : n, entry->n_tokens, index);
    if (entry->tokens == PKVI_NO_TOKENS) {
        int attempt = 0;
        do
            status = token_room(batch, n);
        while (pkvi_cache_retry(handle.cache, status, attempt++, (uint64_t)n * sizeof *tokens));
        if (status != PKV_OK)
            return pkvi_fail(handle.cache, status, "batch_set_tokens: no memory for the ids");
        entry->tokens = batch->n_token_ids;
        batch->n_token_ids += n;
        batch->n_with_tokens++;
    }
    memcpy(batch->tokens + entry->tokens, tokens, n * sizeof *tokens);
    return PKV_OK;
}

/* Closes the gap that an entry leaves in the token ids. */
static void remove_tokens(struct pkvi_batch *batch, uint32_t index)
{
    const struct pkvi_entry *entry = &batch->entries[index];
    if (entry->tokens == PKVI_NO_TOKENS) return;
    const uint64_t behind = entry->tokens + entry->n_tokens;
    memmove(batch->tokens + entry->tokens, batch->tokens + behind,
            (batch->n_token_ids - behind) * sizeof *batch->tokens);
    batch->n_token_ids -= entry->n_tokens;
    /* Ids that came late do not stand in the order of the entries. */
    for (uint32_t i = 0; i < batch->n_entries; i++)
        if (batch->entries[i].tokens != PKVI_NO_TOKENS && batch->entries[i].tokens >= behind)
            batch->entries[i].tokens -= entry->n_tokens;
}

pkv_status pkv_batch_remove(pkv_batch handle, uint32_t index)
{
    struct pkvi_batch *batch;
    const pkv_status status = pkvi_batch_get(handle, "batch_remove", &batch);
    if (status != PKV_OK) return status;
    if (batch->phase != PKVI_BATCH_OPEN)
        return pkvi_fail(handle.cache, PKV_ESTATE, "batch_remove: the batch is reserved already");
    if (index >= batch->n_entries)
        return pkvi_fail(handle.cache, PKV_EINVAL, "batch_remove: entry %u of %u", index,
                         batch->n_entries);
    struct pkvi_seq *seq = batch->entries[index].seq;
    const uint32_t n_tokens = batch->entries[index].n_tokens;
    remove_tokens(batch, index);
    batch->n_entries--;
    batch->n_rows -= n_tokens;
    memmove(&batch->entries[index], &batch->entries[index + 1],
            (batch->n_entries - index) * sizeof *batch->entries);
    for (uint32_t i = index; i < batch->n_entries; i++)
        batch->entries[i].first_row -= n_tokens;
    batch->n_with_tokens = 0;
    memset(batch->n_with_state, 0, sizeof batch->n_with_state);
    for (uint32_t i = 0; i < batch->n_entries; i++)
        count_entry(batch, &batch->entries[i]);
    atomic_store_explicit(&seq->batch, 0, memory_order_release);
    return PKV_OK;
}

/* ---- reserve, commit, abort ----------------------------------------------------------------- */

pkv_status pkv_batch_reserve(pkv_batch handle)
{
    struct pkvi_batch *batch;
    pkv_status status = pkvi_batch_get(handle, "batch_reserve", &batch);
    if (status != PKV_OK) return status;
    if (batch->phase != PKVI_BATCH_OPEN)
        return pkvi_fail(handle.cache, PKV_ESTATE, "batch_reserve: the batch is reserved already");
    int attempt = 0;
    do
        status = pkvi_reserve(batch);
    while (pkvi_cache_retry(handle.cache, status, attempt++, 0));
    if (PKVI_UNLIKELY(status != PKV_OK)) {
        pkvi_count(&handle.cache->stats, PKVI_COUNT_RESERVE_FAILURES, 1);
        return status;
    }
    batch->phase = PKVI_BATCH_RESERVED;
    return PKV_OK;
}

/* Seals the pages that became full between two lengths. */
static uint32_t seal(struct pkvi_seq *seq, uint64_t before, uint64_t after)
{
    struct pkv_cache *cache = seq->cache;
    const uint32_t first = (uint32_t)(before >> cache->page_shift);
    const uint32_t end = (uint32_t)(after >> cache->page_shift);
    const bool checksum = (cache->debug & PKV_DEBUG_CHECKSUM) != 0;
    const bool events = pkvi_events_on(&cache->stats);
    if (!checksum && !events) return end - first;
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        struct pkvi_pool *pool = &cache->groups[g].pool;
        for (uint32_t l = first; l < end; l++) {
            const uint32_t page = pkvi_table_page(&seq->tables[g], l);
            if (checksum) pkvi_pool_seal(pool, 1, &page);
            if (events)
                pkvi_event(&cache->stats, PKV_EVENT_PAGE_SEAL, g, pkvi_pool_id(pool, page), seq->id,
                           l);
        }
    }
    return end - first;
}

static void advance(struct pkvi_batch *batch)
{
    struct pkv_cache *cache = batch->cache;
    const uint32_t shift = cache->page_shift;
    uint64_t tokens = 0;
    uint64_t sealed = 0;
    for (uint32_t i = 0; i < batch->n_entries; i++) {
        struct pkvi_entry *entry = &batch->entries[i];
        struct pkvi_seq *seq = entry->seq;
        const uint64_t before = seq->length;
        const uint32_t n = entry->accepted;
        const uint64_t after = before + n;
        if (n < entry->n_tokens) pkvi_unreserve_entry(batch, i, after);
        seq->length = after;
        tokens += n;
        if (before >> shift != after >> shift) sealed += seal(seq, before, after);
    }
    pkvi_count(&cache->stats, PKVI_COUNT_TOKENS, tokens);
    pkvi_count(&cache->stats, PKVI_COUNT_BYTES_LIVE, tokens * cache->token_bytes);
    if (sealed != 0) pkvi_count(&cache->stats, PKVI_COUNT_PAGES_SEALED, sealed * cache->n_groups);
}

void pkvi_batch_commit(struct pkvi_batch *batch)
{
    struct pkv_cache *cache = batch->cache;
    advance(batch);
    /* A page that was new may be a tail now, and somebody may have got hold of it meanwhile. */
    pkvi_tickets_changed_by(batch);
    for (int slot = 0; slot < PKVI_HOOK_SLOTS; slot++) {
        const struct pkvi_hooks *hooks = cache->hooks[slot];
        if (hooks && hooks->commit) hooks->commit(cache->hook_context[slot], batch);
    }
    if (cache->n_windows != 0)
        for (uint32_t i = 0; i < batch->n_entries; i++)
            pkvi_seq_release_window(batch->entries[i].seq);
    for (uint32_t i = 0; i < batch->n_copies; i++) {
        const struct pkvi_copy *copy = &batch->copies[i];
        if (copy->src != PKVI_NO_PAGE)
            pkvi_pool_unref(&cache->groups[copy->group].pool, 1, &copy->src);
    }
    end_batch(batch);
}

pkv_status pkv_batch_commit(pkv_batch handle)
{
    struct pkvi_batch *batch;
    const pkv_status status = pkvi_batch_get_reserved(handle, "batch_commit", &batch);
    if (status != PKV_OK) return status;
    for (uint32_t i = 0; i < batch->n_entries; i++)
        batch->entries[i].accepted = batch->entries[i].n_tokens;
    pkvi_batch_commit(batch);
    return PKV_OK;
}

bool pkvi_batch_can_accept(const struct pkvi_batch *batch, uint32_t entry, uint32_t accepted)
{
    const struct pkv_cache *cache = batch->cache;
    for (int slot = 0; slot < PKVI_HOOK_SLOTS; slot++) {
        const struct pkvi_hooks *hooks = cache->hooks[slot];
        if (hooks && hooks->can_accept &&
            !hooks->can_accept(cache->hook_context[slot], batch, entry, accepted))
            return false;
    }
    return true;
}

pkv_status pkv_batch_commit_partial(pkv_batch handle, const uint32_t *accepted, uint32_t n)
{
    struct pkvi_batch *batch;
    const pkv_status status = pkvi_batch_get_reserved(handle, "batch_commit_partial", &batch);
    if (status != PKV_OK) return status;
    if (!accepted && n != 0)
        return pkvi_fail(handle.cache, PKV_EINVAL, "batch_commit_partial: accepted is NULL");
    if (n != batch->n_entries)
        return pkvi_fail(handle.cache, PKV_EINVAL,
                         "batch_commit_partial: %u numbers for %u entries", n, batch->n_entries);
    for (uint32_t i = 0; i < n; i++)
        if (accepted[i] > batch->entries[i].n_tokens)
            return pkvi_fail(handle.cache, PKV_EINVAL,
                             "batch_commit_partial: entry %u has %u new tokens, not %u", i,
                             batch->entries[i].n_tokens, accepted[i]);
    for (uint32_t i = 0; i < n; i++)
        if (!pkvi_batch_can_accept(batch, i, accepted[i]))
            return pkvi_fail(
                handle.cache, PKV_EDROPPED,
                "batch_commit_partial: entry %u has no state after %u of its %u tokens", i,
                accepted[i], batch->entries[i].n_tokens);
    for (uint32_t i = 0; i < n; i++)
        batch->entries[i].accepted = accepted[i];
    pkvi_batch_commit(batch);
    return PKV_OK;
}

pkv_status pkv_batch_abort(pkv_batch handle)
{
    struct pkvi_batch *batch;
    const pkv_status status = pkvi_batch_get(handle, "batch_abort", &batch);
    if (status != PKV_OK) return status;
    if (batch->phase == PKVI_BATCH_RESERVED) pkvi_unreserve(batch);
    end_batch(batch);
    return PKV_OK;
}

/* ---- questions ------------------------------------------------------------------------------ */

pkv_status pkv_batch_shortfall(pkv_batch handle, uint32_t *missing, uint32_t n_groups)
{
    struct pkvi_batch *batch;
    const pkv_status status = pkvi_batch_get(handle, "batch_shortfall", &batch);
    if (status != PKV_OK) return status;
    if (!missing) return pkvi_fail(handle.cache, PKV_EINVAL, "batch_shortfall: missing is NULL");
    if (n_groups != handle.cache->n_groups && n_groups != pkvi_all_groups(handle.cache))
        return pkvi_fail(handle.cache, PKV_EINVAL,
                         "batch_shortfall: the cache has %u groups, not %u", handle.cache->n_groups,
                         n_groups);
    memcpy(missing, batch->shortfall, n_groups * sizeof *missing);
    return PKV_OK;
}

pkv_status pkv_batch_size(pkv_batch handle, uint32_t *n_entries, uint64_t *n_tokens)
{
    struct pkvi_batch *batch;
    const pkv_status status = pkvi_batch_get(handle, "batch_size", &batch);
    if (status != PKV_OK) return status;
    if (!n_entries || !n_tokens)
        return pkvi_fail(handle.cache, PKV_EINVAL, "batch_size: n_entries or n_tokens is NULL");
    *n_entries = batch->n_entries;
    *n_tokens = batch->n_rows;
    return PKV_OK;
}

pkv_status pkv_batch_copies(pkv_batch handle, pkv_copy *copies, uint32_t capacity, uint32_t *n)
{
    struct pkvi_batch *batch;
    const pkv_status status = pkvi_batch_get_reserved(handle, "batch_copies", &batch);
    if (status != PKV_OK) return status;
    if (!n) return pkvi_fail(handle.cache, PKV_EINVAL, "batch_copies: n is NULL");
    if (!copies && capacity != 0)
        return pkvi_fail(handle.cache, PKV_EINVAL, "batch_copies: copies is NULL");
    *n = batch->n_copies;
    if (capacity < batch->n_copies)
        return pkvi_fail(handle.cache, PKV_ERANGE, "batch_copies: room for %u of %u copies",
                         capacity, batch->n_copies);
    for (uint32_t i = 0; i < batch->n_copies; i++) {
        const struct pkvi_copy *copy = &batch->copies[i];
        const struct pkvi_pool *pool = &handle.cache->groups[copy->group].pool;
        copies[i] = (pkv_copy){
            .group = copy->group,
            .n_tokens = copy->n_tokens,
            .src = pkvi_pool_id(pool, copy->src),
            .dst = pkvi_pool_id(pool, copy->dst),
        };
    }
    return PKV_OK;
}
