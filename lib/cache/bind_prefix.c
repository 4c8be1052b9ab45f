/* Binds lib/prefix to the cache: the hooks. */
#include "cache/evict.h"
#include "cache/prefix.h"

/* ---- hooks ---------------------------------------------------------------------------------- */

static pkv_status on_create(void *context, struct pkvi_seq *seq)
{
    const struct pkvi_prefix_binding *binding = context;
    struct pkvi_prefix_seq *state;
    const pkv_status status = pkvi_prefix_seq_create(binding->prefix, &state);
    if (status == PKV_OK) seq->state[PKVI_HOOK_PREFIX] = state;
    return status;
}

static pkv_status on_fork(void *context, const struct pkvi_seq *parent, struct pkvi_seq *child)
{
    const struct pkvi_prefix_binding *binding = context;
    struct pkvi_prefix_seq *state;
    const pkv_status status = pkvi_prefix_seq_fork(binding->prefix, pkvi_prefix_of(parent), &state);
    if (status == PKV_OK) child->state[PKVI_HOOK_PREFIX] = state;
    return status;
}

static void on_destroy(void *context, struct pkvi_seq *seq)
{
    const struct pkvi_prefix_binding *binding = context;
    pkvi_prefix_seq_destroy(binding->prefix, pkvi_prefix_of(seq));
    seq->state[PKVI_HOOK_PREFIX] = NULL;
}

static void on_truncate(void *context, struct pkvi_seq *seq, uint64_t n_tokens)
{
    const struct pkvi_prefix_binding *binding = context;
    pkvi_prefix_seq_truncate(binding->prefix, pkvi_prefix_of(seq), n_tokens);
    seq->quiet[PKVI_HOOK_PREFIX] = false;
}

/* What an eviction policy that dropped pages allows to be published. */
bool pkvi_prefix_may_publish(void *context, uint32_t logical, uint64_t *salt)
{
    switch (pkvi_evict_publication(context, logical, salt)) {
    case PKVI_PUBLISH_PLAIN:
        *salt = 0;
        return true;
    case PKVI_PUBLISH_SALTED:
        return true;
    default:
        return false;
    }
}

static void on_commit(void *context, struct pkvi_batch *batch)
{
    const struct pkvi_prefix_binding *binding = context;
    for (uint32_t i = 0; i < batch->n_entries; i++) {
        const struct pkvi_entry *entry = &batch->entries[i];
        struct pkvi_seq *seq = entry->seq;
        struct pkvi_evict_seq *evict = pkvi_seq_evict(seq);
        const struct pkvi_prefix_source source = pkvi_prefix_source_of(seq);
        pkvi_prefix_publish(binding->prefix, pkvi_prefix_of(seq), &source,
                            seq->length - entry->accepted,
                            entry->tokens == PKVI_NO_TOKENS ? NULL : batch->tokens + entry->tokens,
                            entry->accepted, evict ? pkvi_prefix_may_publish : NULL, evict);
        /* Tokens without ids: it publishes nothing further, unless they come, or it is shortened.
         */
        if (entry->tokens == PKVI_NO_TOKENS && entry->accepted != 0)
            seq->quiet[PKVI_HOOK_PREFIX] = true;
    }
}

static uint32_t on_reclaim(void *context, uint32_t group, uint32_t n, struct pkvi_batch *requester)
{
    (void)requester;
    const struct pkvi_prefix_binding *binding = context;
    return (uint32_t)pkvi_prefix_reclaim_pages(binding->prefix, group, n);
}

static uint64_t on_reclaim_bytes(void *context, uint64_t bytes)
{
    const struct pkvi_prefix_binding *binding = context;
    return pkvi_prefix_reclaim_bytes(binding->prefix, bytes);
}

static pkv_status on_verify(void *context, char *text, size_t capacity)
{
    const struct pkvi_prefix_binding *binding = context;
    struct pkv_cache *cache = binding->cache;
    const uint32_t n = cache->sequences.used;
    struct pkvi_prefix_seq **seqs = pkvi_mem_scratch(&cache->mem, (size_t)n + 1, sizeof *seqs);
    if (!seqs) return PKV_ENOMEM;
    for (uint32_t slot = 0; slot < n; slot++) {
        const struct pkvi_seq *seq = pkvi_slots_at(&cache->sequences, slot);
        if (seq) seqs[slot] = pkvi_prefix_of(seq);
    }
    const pkv_status status = pkvi_prefix_verify(binding->prefix, seqs, n, text, capacity);
    pkvi_mem_free_scratch(&cache->mem, seqs, (size_t)n + 1, sizeof *seqs);
    return status;
}

static void on_cache_destroy(void *context)
{
    struct pkvi_prefix_binding *binding = context;
    pkvi_prefix_destroy(binding->prefix);
    pkvi_mem_free(&binding->cache->mem, binding, sizeof *binding);
}

static void on_moved(void *context, uint32_t group, void *owner, uint32_t page)
{
    const struct pkvi_prefix_binding *binding = context;
    pkvi_prefix_moved(binding->prefix, group, owner, page);
}

static const struct pkvi_hooks hooks = {
    .seq_create = on_create,
    .seq_fork = on_fork,
    .seq_destroy = on_destroy,
    .seq_truncate = on_truncate,
    .commit = on_commit,
    .reclaim = on_reclaim,
    .reclaim_bytes = on_reclaim_bytes,
    .moved = on_moved,
    .verify = on_verify,
    .destroy = on_cache_destroy,
};

/* ---- bind ----------------------------------------------------------------------------------- */

static pkv_status choose_key(const struct pkv_cache *cache, const pkv_config *config,
                             uint64_t key[2])
{
    key[0] = config->prefix_key[0];
    key[1] = config->prefix_key[1];
    if (key[0] != 0 || key[1] != 0) return PKV_OK;
    return cache->os->random(cache->os->user, key, 2 * sizeof *key) ? PKV_OK : PKV_EIO;
}

static pkv_status create_module(struct pkv_cache *cache, const pkv_config *config,
                                struct pkvi_prefix_binding *binding)
{
    struct pkvi_prefix_group groups[PKV_MAX_GROUPS];
    for (uint32_t g = 0; g < cache->n_groups; g++)
        groups[g] = (struct pkvi_prefix_group){.pool = &cache->groups[g].pool,
                                               .window = cache->groups[g].window};
    for (uint32_t s = 0; s < cache->states.n; s++)
        groups[cache->n_groups + s] = (struct pkvi_prefix_group){
            .pool = &cache->states.groups[s].pool, .window = PKVI_STATE_WINDOW};
    struct pkvi_prefix_config prefix = {
        .page_tokens = cache->page_tokens,
        .n_groups = pkvi_all_groups(cache),
        .n_states = cache->states.n,
        .groups = groups,
        .policy = config->prefix_policy,
        .clock = cache->clock,
        .clock_user = cache->clock_user,
        .cache = cache,
    };
    const pkv_status status = choose_key(cache, config, prefix.key);
    if (status != PKV_OK) return status;
    return pkvi_prefix_create(&prefix, &cache->mem, &cache->stats, cache->ranks, &binding->prefix);
}

pkv_status pkvi_prefix_bind(struct pkv_cache *cache, const pkv_config *config)
{
    cache->hooks[PKVI_HOOK_PREFIX] = NULL;
    cache->hook_context[PKVI_HOOK_PREFIX] = NULL;
    if (config->prefix == 0) return PKV_OK;
    struct pkvi_prefix_binding *binding = pkvi_mem_zalloc(&cache->mem, sizeof *binding);
    if (!binding) return PKV_ENOMEM;
    binding->cache = cache;
    const pkv_status status = create_module(cache, config, binding);
    if (status != PKV_OK) {
        pkvi_mem_free(&cache->mem, binding, sizeof *binding);
        return status;
    }
    cache->hooks[PKVI_HOOK_PREFIX] = &hooks;
    cache->hook_context[PKVI_HOOK_PREFIX] = binding;
    return PKV_OK;
}
