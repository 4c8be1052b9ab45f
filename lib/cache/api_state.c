/* Public functions on recurrent states. */
#include <pagedkv/state.h>

#include "cache/cache_internal.h"
#include "cache/prefix.h"

static pkv_status check_group(struct pkv_cache *cache, const char *caller, uint32_t state)
{
    if (state < cache->states.n) return PKV_OK;
    return pkvi_fail(cache, PKV_EINVAL, "%s: state group %u of %u", caller, state, cache->states.n);
}

static pkv_status check_any(struct pkv_cache *cache, const char *caller)
{
    if (cache->states.n != 0) return PKV_OK;
    return pkvi_fail(cache, PKV_ENOTSUP, "%s: the cache has no state groups", caller);
}

/* ---- state groups --------------------------------------------------------------------------- */

pkv_status pkv_cache_state_count(pkv_cache *cache, uint32_t *n)
{
    if (!cache) return PKV_EINVAL;
    if (!n) return pkvi_fail(cache, PKV_EINVAL, "cache_state_count: n is NULL");
    *n = cache->states.n;
    return PKV_OK;
}

pkv_status pkv_cache_state_info(pkv_cache *cache, uint32_t state, pkv_state_info *info)
{
    if (!cache) return PKV_EINVAL;
    if (!info) return pkvi_fail(cache, PKV_EINVAL, "cache_state_info: info is NULL");
    if (!pkvi_size_known(info->struct_size, PKVI_LEAST_OUTPUT, sizeof *info))
        return pkvi_fail(cache, PKV_EVERSION, "cache_state_info: struct_size %zu is unknown",
                         info->struct_size);
    const pkv_status status = check_group(cache, "cache_state_info", state);
    if (status != PKV_OK) return status;
    struct pkvi_state_group *group = &cache->states.groups[state];
    struct pkvi_pool_counts counts;
    pkvi_pool_counts(&group->pool, &counts);
    const pkv_state_info out = {
        .n_layers = group->n_layers,
        .group = cache->n_groups + state,
        .state_bytes = group->state_bytes,
        .layer_bytes = group->layer_bytes,
        .slot_bytes = group->slot_bytes,
        .slots_used = counts.used,
        .slots_free = counts.free,
        .slots_total = counts.total,
        .slots_cached = counts.cached,
    };
    pkvi_struct_write(info, info->struct_size, &out);
    return PKV_OK;
}

pkv_status pkv_state_address(pkv_cache *cache, uint32_t state, pkv_page slot, uint32_t layer,
                             void **address)
{
    if (!cache) return PKV_EINVAL;
    pkv_status status = check_group(cache, "state_address", state);
    if (status != PKV_OK) return status;
    if (!address) return pkvi_fail(cache, PKV_EINVAL, "state_address: address is NULL");
    struct pkvi_state_group *group = &cache->states.groups[state];
    if (layer >= group->n_layers)
        return pkvi_fail(cache, PKV_EINVAL, "state_address: layer %u of %u", layer,
                         group->n_layers);
    status = pkvi_pool_address_id(&group->pool, slot, layer, address);
    if (status == PKV_OK) return PKV_OK;
    return pkvi_fail(cache, status,
                     status == PKV_ENOTSUP ? "state_address: the cache holds no bytes"
                                           : "state_address: the slot is not held");
}

/* ---- steps ---------------------------------------------------------------------------------- */

static pkv_status check_entry(const struct pkvi_batch *batch, const char *caller, uint32_t entry)
{
    if (entry < batch->n_entries) return PKV_OK;
    return pkvi_fail(batch->cache, PKV_EINVAL, "%s: entry %u of %u", caller, entry,
                     batch->n_entries);
}

pkv_status pkv_batch_keep_states(pkv_batch handle, uint32_t entry, uint32_t n)
{
    struct pkvi_batch *batch;
    pkv_status status = pkvi_batch_get(handle, "batch_keep_states", &batch);
    if (status == PKV_OK) status = check_any(handle.cache, "batch_keep_states");
    if (status != PKV_OK) return status;
    if (batch->phase != PKVI_BATCH_OPEN)
        return pkvi_fail(handle.cache, PKV_ESTATE, "batch_keep_states: the batch is reserved");
    status = check_entry(batch, "batch_keep_states", entry);
    if (status != PKV_OK) return status;
    if (n == 0 || n > batch->entries[entry].n_tokens)
        return pkvi_fail(handle.cache, PKV_EINVAL,
                         "batch_keep_states: %u states of entry %u, which has %u new tokens", n,
                         entry, batch->entries[entry].n_tokens);
    batch->entries[entry].n_states = n;
    return PKV_OK;
}

static pkv_page slot_id(const struct pkv_cache *cache, uint32_t state, uint32_t slot)
{
    if (slot == PKVI_NO_PAGE) return PKV_PAGE_NONE;
    return pkvi_pool_id(&cache->states.groups[state].pool, slot);
}

pkv_status pkv_batch_states(pkv_batch handle, uint32_t entry, uint32_t state, pkv_page *from,
                            pkv_page *to, uint32_t capacity, uint32_t *n)
{
    struct pkvi_batch *batch;
    pkv_status status = pkvi_batch_get_reserved(handle, "batch_states", &batch);
    if (status == PKV_OK) status = check_entry(batch, "batch_states", entry);
    if (status == PKV_OK) status = check_group(handle.cache, "batch_states", state);
    if (status != PKV_OK) return status;
    struct pkv_cache *cache = handle.cache;
    if (!n || (!to && capacity != 0))
        return pkvi_fail(cache, PKV_EINVAL, "batch_states: to or n is NULL");
    *n = pkvi_state_rows(&batch->entries[entry]);
    if (*n > capacity)
        return pkvi_fail(cache, PKV_ERANGE, "batch_states: room for %u slots, there are %u",
                         capacity, *n);
    const uint32_t *rows = pkvi_state_of_entry(batch, entry);
    for (uint32_t i = 0; i < *n; i++)
        to[i] = slot_id(cache, state, rows[(size_t)i * cache->states.n + state]);
    if (from) *from = slot_id(cache, state, pkvi_states_of(batch->entries[entry].seq)->live[state]);
    return PKV_OK;
}

/* ---- sequences ------------------------------------------------------------------------------ */

pkv_status pkv_seq_state(pkv_seq handle, uint32_t state, pkv_page *slot)
{
    struct pkvi_seq *seq;
    pkv_status status = pkvi_seq_get(handle, "seq_state", &seq);
    if (status == PKV_OK) status = check_group(handle.cache, "seq_state", state);
    if (status != PKV_OK) return status;
    if (!slot) return pkvi_fail(handle.cache, PKV_EINVAL, "seq_state: slot is NULL");
    *slot = slot_id(handle.cache, state, pkvi_states_of(seq)->live[state]);
    return PKV_OK;
}

pkv_status pkv_seq_checkpoint(pkv_seq handle)
{
    struct pkvi_seq *seq;
    pkv_status status = pkvi_seq_get_idle(handle, "seq_checkpoint", &seq);
    if (status == PKV_OK) status = check_any(handle.cache, "seq_checkpoint");
    if (status != PKV_OK) return status;
    struct pkv_cache *cache = handle.cache;
    struct pkvi_states *states = pkvi_states_of(seq);
    if (seq->length == 0)
        return pkvi_fail(cache, PKV_EINVAL, "seq_checkpoint: the sequence is empty");
    if (pkvi_states_find(states, seq->length) != UINT32_MAX) return PKV_OK;
    int attempt = 0;
    do
        status = pkvi_states_mark(&cache->states, states, seq->length);
    while (pkvi_cache_retry(cache, status, attempt++, 0));
    if (status == PKV_OK) return PKV_OK;
    return pkvi_fail(cache, status, "seq_checkpoint: no memory for %u checkpoints",
                     states->n_marks + 1);
}

pkv_status pkv_seq_drop_checkpoint(pkv_seq handle, uint64_t n_tokens)
{
    struct pkvi_seq *seq;
    pkv_status status = pkvi_seq_get_idle(handle, "seq_drop_checkpoint", &seq);
    if (status == PKV_OK) status = check_any(handle.cache, "seq_drop_checkpoint");
    if (status != PKV_OK) return status;
    const uint32_t place = pkvi_states_find(pkvi_states_of(seq), n_tokens);
    if (place == UINT32_MAX)
        return pkvi_fail(handle.cache, PKV_EINVAL, "seq_drop_checkpoint: there is none at %llu",
                         (unsigned long long)n_tokens);
    pkvi_states_unmark(&handle.cache->states, pkvi_states_of(seq), place);
    return PKV_OK;
}

pkv_status pkv_seq_checkpoints(pkv_seq handle, uint64_t *n_tokens, uint32_t capacity, uint32_t *n)
{
    struct pkvi_seq *seq;
    pkv_status status = pkvi_seq_get(handle, "seq_checkpoints", &seq);
    if (status == PKV_OK) status = check_any(handle.cache, "seq_checkpoints");
    if (status != PKV_OK) return status;
    if (!n || (!n_tokens && capacity != 0))
        return pkvi_fail(handle.cache, PKV_EINVAL, "seq_checkpoints: n_tokens or n is NULL");
    const struct pkvi_states *states = pkvi_states_of(seq);
    *n = states->n_marks;
    if (*n > capacity)
        return pkvi_fail(handle.cache, PKV_ERANGE,
                         "seq_checkpoints: room for %u positions, there are %u", capacity, *n);
    for (uint32_t i = 0; i < *n; i++)
        n_tokens[i] = states->marks[i];
    return PKV_OK;
}

pkv_status pkv_seq_state_stop(pkv_seq handle, uint64_t n_tokens, uint64_t *stop)
{
    struct pkvi_seq *seq;
    pkv_status status = pkvi_seq_get(handle, "seq_state_stop", &seq);
    if (status == PKV_OK) status = check_any(handle.cache, "seq_state_stop");
    if (status != PKV_OK) return status;
    if (!stop) return pkvi_fail(handle.cache, PKV_EINVAL, "seq_state_stop: stop is NULL");
    const struct pkvi_prefix_binding *binding = pkvi_prefix_binding_of(handle.cache);
    *stop = binding
                ? pkvi_prefix_seq_stop(binding->prefix, pkvi_prefix_of(seq), seq->length, n_tokens)
                : n_tokens;
    return PKV_OK;
}
