/* Binds lib/evict to the cache: the hooks. */
#include "cache/attention.h"
#include "cache/evict.h"

#include <string.h>

struct evict_binding {
    struct pkv_cache *cache;
    struct pkvi_evict *evict;
};

struct pkvi_evict *pkvi_evict_of(const struct pkv_cache *cache)
{
    const struct evict_binding *binding = cache->hook_context[PKVI_HOOK_EVICT];
    return binding->evict;
}

/* ---- what the module asks of the cache ------------------------------------------------------ */

static bool target_pinned(const void *owner, uint32_t logical)
{
    return pkvi_seq_pinned(owner, logical);
}

static bool target_drop(void *owner, uint32_t group, uint32_t logical)
{
    return pkvi_seq_drop(owner, group, logical) == PKV_OK;
}

static bool target_restore(void *owner, uint32_t group, uint32_t logical, uint32_t page)
{
    struct pkvi_seq *seq = owner;
    struct pkv_cache *cache = seq->cache;
    if (pkvi_table_insert(&seq->tables[group], &cache->mem, logical, page) != PKV_OK) return false;
    pkvi_count(&cache->stats, PKVI_COUNT_BYTES_LIVE,
               cache->groups[group].token_bytes << cache->page_shift);
    return true;
}

struct pkvi_evict_target pkvi_evict_target_of(struct pkvi_seq *seq, uint32_t group)
{
    return (struct pkvi_evict_target){
        .table = &seq->tables[group],
        .length = seq->length,
        .handle = pkvi_seq_handle(seq),
        .owner = seq,
        .pinned = seq->n_pins != 0 ? target_pinned : NULL,
        .unpins = seq->unpins,
        .drop = target_drop,
        .restore = target_restore,
    };
}

/* ---- hooks ---------------------------------------------------------------------------------- */

static pkv_status on_create(void *context, struct pkvi_seq *seq)
{
    const struct evict_binding *binding = context;
    if (!pkvi_evict_has_default(binding->evict)) return PKV_OK;
    struct pkvi_evict_seq *es;
    const pkv_status status = pkvi_evict_seq_create(binding->evict, true, &es);
    if (status == PKV_OK) seq->state[PKVI_HOOK_EVICT] = es;
    return status;
}

static pkv_status on_fork(void *context, const struct pkvi_seq *parent, struct pkvi_seq *child)
{
    (void)context;
    if (!pkvi_seq_evict(parent)) return PKV_OK;
    struct pkvi_evict_seq *es;
    const pkv_status status = pkvi_evict_seq_fork(pkvi_seq_evict(parent), &es);
    if (status == PKV_OK) child->state[PKVI_HOOK_EVICT] = es;
    return status;
}

static void on_destroy(void *context, struct pkvi_seq *seq)
{
    (void)context;
    pkvi_evict_seq_destroy(pkvi_seq_evict(seq));
    seq->state[PKVI_HOOK_EVICT] = NULL;
}

static bool on_restorable(void *context, const struct pkvi_seq *seq, uint32_t group,
                          uint32_t logical, uint64_t n_tokens)
{
    (void)context;
    return pkvi_evict_restorable(pkvi_seq_evict(seq), group, logical, n_tokens);
}

static pkv_status on_prepare_truncate(void *context, struct pkvi_seq *seq, uint64_t n_tokens)
{
    (void)context;
    const struct pkvi_evict_seq *es = pkvi_seq_evict(seq);
    struct pkv_cache *cache = seq->cache;
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        const uint32_t n = pkvi_evict_undone_pages(es, g, n_tokens);
        if (n == 0) continue;
        const pkv_status status = pkvi_table_reserve(&seq->tables[g], &cache->mem, n);
        if (status != PKV_OK) return status;
    }
    return PKV_OK;
}

static void on_truncate(void *context, struct pkvi_seq *seq, uint64_t n_tokens)
{
    (void)context;
    struct pkvi_evict_seq *es = pkvi_seq_evict(seq);
    if (!es) return;
    for (uint32_t g = 0; g < seq->cache->n_groups; g++) {
        const struct pkvi_evict_target target = pkvi_evict_target_of(seq, g);
        pkvi_evict_truncate(es, g, &target, n_tokens);
    }
    pkvi_evict_truncated(es, n_tokens);
}

static void on_attach(void *context, struct pkvi_seq *seq, uint64_t n_tokens)
{
    (void)context;
    (void)n_tokens;
    struct pkvi_evict_seq *es = pkvi_seq_evict(seq);
    if (!es) return;
    for (uint32_t g = 0; g < seq->cache->n_groups; g++) {
        const struct pkvi_evict_target target = pkvi_evict_target_of(seq, g);
        pkvi_evict_attached(es, g, &target);
    }
}

static void cancel_entries(struct pkvi_batch *batch, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        struct pkvi_evict_seq *es = pkvi_seq_evict(batch->entries[i].seq);
        for (uint32_t g = 0; es && g < batch->cache->n_groups; g++)
            pkvi_evict_cancel(es, g);
    }
}

static pkv_status on_reserve(void *context, struct pkvi_batch *batch)
{
    (void)context;
    for (uint32_t i = 0; i < batch->n_entries; i++) {
        struct pkvi_seq *seq = batch->entries[i].seq;
        struct pkvi_evict_seq *es = pkvi_seq_evict(seq);
        for (uint32_t g = 0; es && g < batch->cache->n_groups; g++) {
            const struct pkvi_evict_target target = pkvi_evict_target_of(seq, g);
            const pkv_status status =
                pkvi_evict_reserve(es, g, &target, batch->entries[i].n_tokens);
            if (status == PKV_OK) continue;
            cancel_entries(batch, i + 1);
            return status;
        }
    }
    return PKV_OK;
}

static void on_rollback(void *context, struct pkvi_batch *batch)
{
    (void)context;
    cancel_entries(batch, batch->n_entries);
}

static void report_regret(struct pkvi_seq *seq, struct pkvi_evict_seq *es, uint32_t group)
{
    struct pkv_cache *cache = seq->cache;
    uint64_t checks, regrets;
    if (!pkvi_evict_take_regret(es, group, &checks, &regrets)) return;
    pkvi_count(&cache->stats, PKVI_COUNT_EVICT_REGRET_CHECKS, checks);
    if (regrets == 0) return;
    pkvi_count(&cache->stats, PKVI_COUNT_EVICT_REGRET_STEPS, 1);
    if (pkvi_events_on(&cache->stats))
        pkvi_event(&cache->stats, PKV_EVENT_EVICT_REGRET, group, PKV_PAGE_NONE, seq->id, regrets);
}

static void on_commit(void *context, struct pkvi_batch *batch)
{
    (void)context;
    for (uint32_t i = 0; i < batch->n_entries; i++) {
        const struct pkvi_entry *entry = &batch->entries[i];
        struct pkvi_evict_seq *es = pkvi_seq_evict(entry->seq);
        for (uint32_t g = 0; es && g < batch->cache->n_groups; g++) {
            if (!pkvi_evict_seq_policy(es, g)) continue;
            const struct pkvi_evict_target target = pkvi_evict_target_of(entry->seq, g);
            pkvi_evict_commit(es, g, &target, entry->seq->length - entry->accepted,
                              entry->accepted);
            report_regret(entry->seq, es, g);
        }
    }
}

/* Journal pages of the requester's own sequences: nobody else may touch those of others. */
static uint32_t on_reclaim(void *context, uint32_t group, uint32_t n, struct pkvi_batch *requester)
{
    (void)context;
    uint32_t freed = 0;
    for (uint32_t i = 0; requester && i < requester->n_entries && freed < n; i++)
        freed +=
            pkvi_evict_journal_release(pkvi_seq_evict(requester->entries[i].seq), group, n - freed);
    return freed;
}

static uint32_t on_reclaimable(void *context, uint32_t group, const struct pkvi_batch *requester)
{
    (void)context;
    uint32_t n = 0;
    for (uint32_t i = 0; requester && i < requester->n_entries; i++)
        n += pkvi_evict_journal_pages(pkvi_seq_evict(requester->entries[i].seq), group);
    return n;
}

static void on_holders(void *context, uint32_t group, uint32_t *holders, uint32_t n_holders)
{
    const struct evict_binding *binding = context;
    const struct pkvi_slots *slots = &binding->cache->sequences;
    for (uint32_t slot = 0; slot < slots->used; slot++) {
        const struct pkvi_seq *seq = pkvi_slots_at(slots, slot);
        if (seq) pkvi_evict_journal_count(pkvi_seq_evict(seq), group, holders, n_holders);
    }
}

static pkv_status on_verify(void *context, char *text, size_t capacity)
{
    const struct evict_binding *binding = context;
    struct pkv_cache *cache = binding->cache;
    for (uint32_t slot = 0; slot < cache->sequences.used; slot++) {
        struct pkvi_seq *seq = pkvi_slots_at(&cache->sequences, slot);
        if (!seq) continue;
        for (uint32_t g = 0; g < cache->n_groups; g++) {
            const struct pkvi_evict_target target = pkvi_evict_target_of(seq, g);
            const char *complaint = pkvi_evict_seq_check(pkvi_seq_evict(seq), g, &target);
            if (!complaint) continue;
            pkvi_text(text, capacity, "sequence %#llx, group %u: %s", (unsigned long long)seq->id,
                      g, complaint);
            return PKV_ECORRUPT;
        }
    }
    return PKV_OK;
}

static void on_cache_destroy(void *context)
{
    struct evict_binding *binding = context;
    pkvi_evict_destroy(binding->evict);
    pkvi_mem_free(&binding->cache->mem, binding, sizeof *binding);
}

static const struct pkvi_hooks evict_hooks = {
    .seq_create = on_create,
    .seq_fork = on_fork,
    .seq_destroy = on_destroy,
    .prepare_truncate = on_prepare_truncate,
    .seq_truncate = on_truncate,
    .seq_attach = on_attach,
    .reserve = on_reserve,
    .rollback = on_rollback,
    .commit = on_commit,
    .reclaim = on_reclaim,
    .reclaimable = on_reclaimable,
    .restorable = on_restorable,
    .holders = on_holders,
    .verify = on_verify,
    .destroy = on_cache_destroy,
};

pkv_status pkvi_evict_bind(struct pkv_cache *cache, const pkv_config *config)
{
    struct pkvi_mem *mem = &cache->mem;
    struct evict_binding *binding = pkvi_mem_zalloc(mem, sizeof *binding);
    struct pkvi_evict_group *groups = pkvi_mem_array(mem, cache->n_groups, sizeof *groups);
    pkv_status status = binding && groups ? PKV_OK : PKV_ENOMEM;
    for (uint32_t g = 0; g < cache->n_groups && status == PKV_OK; g++) {
        struct pkvi_group *group = &cache->groups[g];
        groups[g] = (struct pkvi_evict_group){
            .pool = &group->pool,
            .layout = &group->layout,
            .kernels = cache->attention->model.kernels,
            .layer_bytes = group->layer_bytes,
            .page_bytes = group->page_bytes,
            .n_layers = group->n_layers,
            .kv_heads = group->kv_heads,
            .window = group->window,
            .bytes = cache->storage != PKV_STORAGE_NONE,
            .rope = config->rope && pkvi_config_rope(config, g).rotary_dims != 0,
        };
    }
    if (status == PKV_OK)
        status =
            pkvi_evict_create(&binding->evict, mem, cache->page_tokens, groups, cache->n_groups);
    pkvi_mem_free_array(mem, groups, cache->n_groups, sizeof *groups);
    if (status != PKV_OK) {
        pkvi_mem_free(mem, binding, sizeof *binding);
        return status;
    }
    binding->cache = cache;
    cache->hooks[PKVI_HOOK_EVICT] = &evict_hooks;
    cache->hook_context[PKVI_HOOK_EVICT] = binding;
    return PKV_OK;
}
