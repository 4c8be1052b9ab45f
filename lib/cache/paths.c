/* Trees: the accepted path of each entry is kept, the rest rolled back. */
#include "cache/attention.h"
#include "cache/open_pages.h"

static pkv_status check_path(const struct pkvi_batch *batch, const char *caller, uint32_t entry,
                             const uint32_t *kept, uint32_t n)
{
    struct pkv_cache *cache = batch->cache;
    const uint32_t n_tokens = batch->entries[entry].n_tokens;
    if (n > n_tokens)
        return pkvi_fail(cache, PKV_EINVAL, "%s: entry %u has %u new tokens, not %u", caller, entry,
                         n_tokens, n);
    for (uint32_t i = 0; i < n; i++)
        if (kept[i] >= n_tokens || (i > 0 && kept[i] <= kept[i - 1]))
            return pkvi_fail(cache, PKV_EINVAL,
                             "%s: entry %u, place %u: token %u of %u does not ascend", caller,
                             entry, i, kept[i], n_tokens);
    return PKV_OK;
}

/* A state stands for all tokens before it, in the order of the entry. */
static pkv_status check_state(const struct pkvi_batch *batch, uint32_t entry, const uint32_t *kept,
                              uint32_t n)
{
    struct pkv_cache *cache = batch->cache;
    if (cache->states.n != 0 && n != 0 && kept[n - 1] != n - 1)
        return pkvi_fail(cache, PKV_ENOTSUP,
                         "batch_commit_paths: entry %u leaves tokens out, and has states", entry);
    if (!pkvi_batch_can_accept(batch, entry, n))
        return pkvi_fail(cache, PKV_EDROPPED,
                         "batch_commit_paths: entry %u has no state after %u of its %u tokens",
                         entry, n, batch->entries[entry].n_tokens);
    return PKV_OK;
}

/* Keys, values and token ids of one entry move to the first places. */
static void keep(struct pkvi_batch *batch, uint32_t index, const uint32_t *kept, uint32_t n)
{
    struct pkv_cache *cache = batch->cache;
    struct pkvi_entry *entry = &batch->entries[index];
    entry->accepted = n;
    if (entry->tokens != PKVI_NO_TOKENS)
        for (uint32_t i = 0; i < n; i++)
            batch->tokens[entry->tokens + i] = batch->tokens[entry->tokens + kept[i]];
    if (cache->storage != PKV_STORAGE_HOST) return;
    const struct pkvi_attn_entry attn = {
        .tables = entry->seq->tables,
        .length = entry->seq->length,
        .n_tokens = entry->n_tokens,
        .open = pkvi_open_of_entry(batch, index),
    };
    for (uint32_t g = 0; g < cache->n_groups; g++)
        for (uint32_t layer = 0; layer < cache->groups[g].n_layers; layer++)
            pkvi_transfer_keep(&cache->attention->model, g, layer, &attn, kept, n);
}

pkv_status pkv_batch_commit_paths(pkv_batch handle, const uint32_t *kept, const uint32_t *n_kept,
                                  uint32_t n)
{
    struct pkvi_batch *batch;
    pkv_status status = pkvi_batch_get_reserved(handle, "batch_commit_paths", &batch);
    if (status != PKV_OK) return status;
    if (!n_kept && n != 0)
        return pkvi_fail(handle.cache, PKV_EINVAL, "batch_commit_paths: n_kept is NULL");
    if (n != batch->n_entries)
        return pkvi_fail(handle.cache, PKV_EINVAL, "batch_commit_paths: %u numbers for %u entries",
                         n, batch->n_entries);
    uint64_t at = 0;
    for (uint32_t i = 0; i < n; at += n_kept[i++]) {
        if (!kept && n_kept[i] != 0)
            return pkvi_fail(handle.cache, PKV_EINVAL, "batch_commit_paths: kept is NULL");
        status = check_path(batch, "batch_commit_paths", i, kept + at, n_kept[i]);
        if (status == PKV_OK) status = check_state(batch, i, kept + at, n_kept[i]);
        if (status != PKV_OK) return status;
    }
    at = 0;
    for (uint32_t i = 0; i < n; at += n_kept[i++])
        keep(batch, i, kept + at, n_kept[i]);
    pkvi_batch_commit(batch);
    return PKV_OK;
}

/* ---- what a host with pages of its own must do ---------------------------------------------- */

/* The longest copy that starts at place i: neighbours on both sides, in one page each. */
static uint32_t run_length(const struct pkv_cache *cache, uint64_t length, const uint32_t *kept,
                           uint32_t n, uint32_t i)
{
    const uint32_t mask = cache->page_tokens - 1u;
    uint32_t run = 1;
    while (i + run < n && kept[i + run] == kept[i] + run &&
           ((length + kept[i] + run) & mask) != 0 && ((length + i + run) & mask) != 0)
        run++;
    return run;
}

static pkv_page page_of_new(const struct pkvi_batch *batch, uint32_t entry, uint32_t group,
                            uint64_t position)
{
    struct pkvi_group *g = &batch->cache->groups[group];
    const struct pkvi_seq *seq = batch->entries[entry].seq;
    const uint32_t shift = batch->cache->page_shift;
    const uint32_t logical = (uint32_t)(position >> shift);
    if (!g->quantised) return pkvi_pool_id(&g->pool, pkvi_table_page(&seq->tables[group], logical));
    const uint32_t *open = pkvi_open_of_entry(batch, entry)[group];
    return pkvi_pool_id(&g->open_pool, open[logical - (uint32_t)(seq->length >> shift)]);
}

pkv_status pkv_batch_path_copies(pkv_batch handle, uint32_t entry, uint32_t group,
                                 const uint32_t *kept, uint32_t n_kept, pkv_slot_copy *copies,
                                 uint32_t capacity, uint32_t *n)
{
    struct pkvi_batch *batch;
    pkv_status status = pkvi_batch_get_reserved(handle, "batch_path_copies", &batch);
    if (status != PKV_OK) return status;
    struct pkv_cache *cache = handle.cache;
    if (!n || (!kept && n_kept != 0) || (!copies && capacity != 0))
        return pkvi_fail(cache, PKV_EINVAL, "batch_path_copies: n, kept or copies is NULL");
    if (entry >= batch->n_entries || group >= cache->n_groups)
        return pkvi_fail(cache, PKV_EINVAL, "batch_path_copies: entry %u of %u, group %u of %u",
                         entry, batch->n_entries, group, cache->n_groups);
    status = check_path(batch, "batch_path_copies", entry, kept, n_kept);
    if (status != PKV_OK) return status;
    const uint64_t length = batch->entries[entry].seq->length;
    uint32_t total = 0;
    for (uint32_t i = 0, run; i < n_kept; i += run) {
        run = run_length(cache, length, kept, n_kept, i);
        total += kept[i] != i;
    }
    *n = total;
    if (total > capacity)
        return pkvi_fail(cache, PKV_ERANGE, "batch_path_copies: room for %u of %u copies", capacity,
                         total);
    const uint32_t mask = cache->page_tokens - 1u;
    for (uint32_t i = 0, run, at = 0; i < n_kept; i += run) {
        run = run_length(cache, length, kept, n_kept, i);
        if (kept[i] == i) continue;
        copies[at++] = (pkv_slot_copy){
            .group = group,
            .open = cache->groups[group].quantised,
            .src = page_of_new(batch, entry, group, length + kept[i]),
            .dst = page_of_new(batch, entry, group, length + i),
            .src_slot = (uint32_t)(length + kept[i]) & mask,
            .dst_slot = (uint32_t)(length + i) & mask,
            .n_tokens = run,
        };
    }
    return PKV_OK;
}
