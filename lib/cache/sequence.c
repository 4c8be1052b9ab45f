/* Sequences: create, fork, truncate, attach, destroy. */
#include <string.h>

#include "cache/cache_internal.h"
#include "cache/config_limits.h"

static size_t seq_bytes(const struct pkv_cache *cache)
{
    return sizeof(struct pkvi_seq) + cache->n_groups * sizeof(struct pkvi_table);
}

/* Bytes of the token slots that a sequence uses in all groups. */
static uint64_t live_bytes(const struct pkvi_seq *seq)
{
    uint64_t bytes = 0;
    for (uint32_t g = 0; g < seq->cache->n_groups; g++)
        bytes += pkvi_resident_tokens(seq, g) * seq->cache->groups[g].token_bytes;
    return bytes;
}

/* ---- life ----------------------------------------------------------------------------------- */

/* A sequence object with empty tables, not yet in the slot table. */
static struct pkvi_seq *new_seq(struct pkv_cache *cache)
{
    struct pkvi_seq *seq = pkvi_mem_zalloc(&cache->mem, seq_bytes(cache));
    if (!seq) return NULL;
    seq->cache = cache;
    pkvi_list_init(&seq->marked);
    for (uint32_t g = 0; g < cache->n_groups; g++)
        pkvi_table_init(&seq->tables[g]);
    return seq;
}

static void free_seq(struct pkvi_seq *seq)
{
    struct pkv_cache *cache = seq->cache;
    for (uint32_t g = 0; g < cache->n_groups; g++)
        pkvi_table_clear(&seq->tables[g], &cache->mem, &cache->groups[g].pool);
    pkvi_mem_free_array(&cache->mem, seq->pins, seq->pin_capacity, sizeof *seq->pins);
    pkvi_mem_free(&cache->mem, seq, seq_bytes(cache));
}

static pkv_status register_seq(struct pkvi_seq *seq, const char *caller)
{
    struct pkv_cache *cache = seq->cache;
    pkvi_mutex_lock(&cache->lock);
    const pkv_status status = pkvi_slots_insert(&cache->sequences, &cache->mem, seq, &seq->id);
    pkvi_mutex_unlock(&cache->lock);
    if (status == PKV_ERANGE)
        return pkvi_fail(cache, status, "%s: %u sequences are live, the most allowed", caller,
                         cache->sequences.limit);
    if (status != PKV_OK) return pkvi_fail(cache, status, "%s: no memory for a handle", caller);
    return PKV_OK;
}

static void unregister_seq(struct pkvi_seq *seq)
{
    struct pkv_cache *cache = seq->cache;
    pkvi_mutex_lock(&cache->lock);
    pkvi_slots_remove(&cache->sequences, seq->id);
    pkvi_mutex_unlock(&cache->lock);
}

static void call_destroy_hooks(struct pkvi_seq *seq, int from)
{
    struct pkv_cache *cache = seq->cache;
    for (int slot = from; slot >= 0; slot--) {
        const struct pkvi_hooks *hooks = cache->hooks[slot];
        if (hooks && hooks->seq_destroy) hooks->seq_destroy(cache->hook_context[slot], seq);
    }
}

/* Announces a new sequence (parent NULL) or a fork to the modules. */
static pkv_status call_create_hooks(struct pkvi_seq *seq, const struct pkvi_seq *parent)
{
    struct pkv_cache *cache = seq->cache;
    for (int slot = 0; slot < PKVI_HOOK_SLOTS; slot++) {
        const struct pkvi_hooks *hooks = cache->hooks[slot];
        if (!hooks) continue;
        pkv_status status = PKV_OK;
        if (!parent && hooks->seq_create)
            status = hooks->seq_create(cache->hook_context[slot], seq);
        if (parent && hooks->seq_fork)
            status = hooks->seq_fork(cache->hook_context[slot], parent, seq);
        if (status == PKV_OK) continue;
        call_destroy_hooks(seq, slot - 1);
        return status;
    }
    return PKV_OK;
}

static pkv_status create(struct pkv_cache *cache, pkv_seq *out)
{
    struct pkvi_seq *seq = new_seq(cache);
    if (!seq) return pkvi_fail(cache, PKV_ENOMEM, "seq_create: no memory for a sequence");
    pkv_status status = register_seq(seq, "seq_create");
    if (status != PKV_OK) {
        free_seq(seq);
        return status;
    }
    status = call_create_hooks(seq, NULL);
    if (status != PKV_OK) {
        unregister_seq(seq);
        free_seq(seq);
        return pkvi_fail(cache, status, "seq_create: no memory for a sequence's state");
    }
    pkvi_count(&cache->stats, PKVI_COUNT_SEQUENCES, 1);
    *out = pkvi_seq_handle(seq);
    return PKV_OK;
}

pkv_status pkv_seq_create(pkv_cache *cache, pkv_seq *out)
{
    if (!cache) return PKV_EINVAL;
    if (!out) return pkvi_fail(cache, PKV_EINVAL, "seq_create: seq is NULL");
    pkv_status status;
    int attempt = 0;
    do
        status = create(cache, out);
    while (pkvi_cache_retry(cache, status, attempt++, 0));
    return status;
}

void pkvi_seq_destroy(struct pkvi_seq *seq)
{
    struct pkv_cache *cache = seq->cache;
    pkvi_ticket_forget(seq);
    unregister_seq(seq);
    call_destroy_hooks(seq, PKVI_HOOK_SLOTS - 1);
    pkvi_uncount(&cache->stats, PKVI_COUNT_SEQUENCES, 1);
    pkvi_uncount(&cache->stats, PKVI_COUNT_TOKENS, seq->length);
    pkvi_uncount(&cache->stats, PKVI_COUNT_BYTES_LIVE, live_bytes(seq));
    free_seq(seq);
}

pkv_status pkv_seq_destroy(pkv_seq handle)
{
    struct pkvi_seq *seq;
    const pkv_status status = pkvi_seq_get_idle(handle, "seq_destroy", &seq);
    if (status != PKV_OK) return status;
    pkvi_seq_destroy(seq);
    return PKV_OK;
}

/* ---- fork ----------------------------------------------------------------------------------- */

static pkv_status copy_pins(struct pkvi_seq *child, const struct pkvi_seq *parent)
{
    if (parent->n_pins == 0) return PKV_OK;
    child->pins = pkvi_mem_array(&child->cache->mem, parent->n_pins, sizeof *child->pins);
    if (!child->pins) return PKV_ENOMEM;
    child->n_pins = child->pin_capacity = parent->n_pins;
    memcpy(child->pins, parent->pins, parent->n_pins * sizeof *child->pins);
    return PKV_OK;
}

static pkv_status fork_seq(struct pkvi_seq *parent, pkv_seq *out)
{
    struct pkv_cache *cache = parent->cache;
    struct pkvi_seq *child = new_seq(cache);
    if (!child) return pkvi_fail(cache, PKV_ENOMEM, "seq_fork: no memory for a sequence");
    child->length = parent->length;
    child->unpins = parent->unpins;
    pkv_status status = copy_pins(child, parent);
    for (uint32_t g = 0; g < cache->n_groups && status == PKV_OK; g++)
        status = pkvi_table_fork(&child->tables[g], &parent->tables[g], &cache->mem,
                                 &cache->groups[g].pool);
    if (status != PKV_OK) {
        free_seq(child);
        return pkvi_fail(cache, status, "seq_fork: no memory for the child's tables");
    }
    status = register_seq(child, "seq_fork");
    if (status != PKV_OK) {
        free_seq(child);
        return status;
    }
    status = call_create_hooks(child, parent);
    if (status != PKV_OK) {
        unregister_seq(child);
        free_seq(child);
        return pkvi_fail(cache, status, "seq_fork: no memory for the child's state");
    }
    pkvi_count(&cache->stats, PKVI_COUNT_SEQUENCES, 1);
    pkvi_count(&cache->stats, PKVI_COUNT_TOKENS, child->length);
    pkvi_count(&cache->stats, PKVI_COUNT_BYTES_LIVE, live_bytes(child));
    pkvi_ticket_changed(parent); /* its tail is shared now */
    *out = pkvi_seq_handle(child);
    return PKV_OK;
}

pkv_status pkv_seq_fork(pkv_seq handle, pkv_seq *out)
{
    struct pkvi_seq *parent;
    pkv_status status = pkvi_seq_get_idle(handle, "seq_fork", &parent);
    if (status != PKV_OK) return status;
    if (!out) return pkvi_fail(handle.cache, PKV_EINVAL, "seq_fork: child is NULL");
    int attempt = 0;
    do
        status = fork_seq(parent, out);
    while (pkvi_cache_retry(handle.cache, status, attempt++, 0));
    return status;
}

/* ---- truncate ------------------------------------------------------------------------------- */

/* Is the page not held, and no module will put it back? */
static bool is_lost(const struct pkvi_seq *seq, uint32_t g, uint32_t logical, uint64_t n_tokens)
{
    const struct pkv_cache *cache = seq->cache;
    if (pkvi_table_find(&seq->tables[g], logical) != PKVI_NO_SLOT) return false;
    for (int slot = 0; slot < PKVI_HOOK_SLOTS; slot++) {
        const struct pkvi_hooks *hooks = cache->hooks[slot];
        if (hooks && hooks->restorable &&
            hooks->restorable(cache->hook_context[slot], seq, g, logical, n_tokens))
            return false;
    }
    return true;
}

/* May the sequence continue at n_tokens in this group? The page that the next token shares must be
 * there, and of a window everything the window itself (not a policy) took away. */
static bool can_continue_at(const struct pkvi_seq *seq, uint32_t g, uint64_t n_tokens)
{
    const struct pkv_cache *cache = seq->cache;
    const struct pkvi_table *table = &seq->tables[g];
    if ((n_tokens & (cache->page_tokens - 1u)) != 0 &&
        is_lost(seq, g, (uint32_t)(n_tokens >> cache->page_shift), n_tokens))
        return false;
    const uint32_t pages = (uint32_t)pkvi_pages_for(cache, n_tokens);
    const uint32_t stop = pkvi_min_u32(table->released, pages);
    for (uint32_t l = pkvi_window_first(cache, &cache->groups[g], n_tokens); l < stop; l++)
        if (is_lost(seq, g, l, n_tokens)) return false;
    return true;
}

/* May the sequence go on at n_tokens, as far as the modules are concerned? */
static bool modules_can_truncate(const struct pkvi_seq *seq, uint64_t n_tokens)
{
    const struct pkv_cache *cache = seq->cache;
    for (int slot = 0; slot < PKVI_HOOK_SLOTS; slot++) {
        const struct pkvi_hooks *hooks = cache->hooks[slot];
        if (hooks && hooks->can_truncate &&
            !hooks->can_truncate(cache->hook_context[slot], seq, n_tokens))
            return false;
    }
    return true;
}

/* Room for everything that the modules will put back. */
static pkv_status prepare_truncate(struct pkvi_seq *seq, uint64_t n_tokens)
{
    struct pkv_cache *cache = seq->cache;
    for (int slot = PKVI_HOOK_SLOTS - 1; slot >= 0; slot--) {
        const struct pkvi_hooks *hooks = cache->hooks[slot];
        if (!hooks || !hooks->prepare_truncate) continue;
        const pkv_status status = hooks->prepare_truncate(cache->hook_context[slot], seq, n_tokens);
        if (status != PKV_OK)
            return pkvi_fail(cache, status, "seq_truncate: no memory to undo evictions");
    }
    return PKV_OK;
}

pkv_status pkv_seq_truncate(pkv_seq handle, uint64_t n_tokens)
{
    struct pkvi_seq *seq;
    const pkv_status status = pkvi_seq_get_idle(handle, "seq_truncate", &seq);
    if (status != PKV_OK) return status;
    struct pkv_cache *cache = handle.cache;
    if (n_tokens > seq->length)
        return pkvi_fail(cache, PKV_EINVAL, "seq_truncate: %llu tokens, the sequence has %llu",
                         (unsigned long long)n_tokens, (unsigned long long)seq->length);
    if (n_tokens == seq->length) return PKV_OK;
    for (uint32_t g = 0; g < cache->n_groups; g++)
        if (!can_continue_at(seq, g, n_tokens))
            return pkvi_fail(cache, PKV_EDROPPED,
                             "seq_truncate: group %u no longer holds what position %llu needs", g,
                             (unsigned long long)n_tokens);
    if (!modules_can_truncate(seq, n_tokens))
        return pkvi_fail(cache, PKV_EDROPPED, "seq_truncate: there is no checkpoint at %llu",
                         (unsigned long long)n_tokens);
    int attempt = 0;
    pkv_status prepared;
    do
        prepared = prepare_truncate(seq, n_tokens);
    while (pkvi_cache_retry(cache, prepared, attempt++, 0));
    if (prepared != PKV_OK) return prepared;
    for (int slot = PKVI_HOOK_SLOTS - 1; slot >= 0; slot--) {
        const struct pkvi_hooks *hooks = cache->hooks[slot];
        if (hooks && hooks->seq_truncate)
            hooks->seq_truncate(cache->hook_context[slot], seq, n_tokens);
    }
    const uint64_t before = live_bytes(seq);
    const uint32_t pages = (uint32_t)pkvi_pages_for(cache, n_tokens);
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        struct pkvi_table *table = &seq->tables[g];
        pkvi_table_truncate(table, &cache->groups[g].pool, pages);
        const uint32_t first = pkvi_window_first(cache, &cache->groups[g], n_tokens);
        if (table->released > first) table->released = first;
    }
    pkvi_uncount(&cache->stats, PKVI_COUNT_TOKENS, seq->length - n_tokens);
    seq->length = n_tokens;
    pkvi_uncount(&cache->stats, PKVI_COUNT_BYTES_LIVE, before - live_bytes(seq));
    pkvi_ticket_changed(seq);
    return PKV_OK;
}

/* ---- attach, for bind_prefix.c -------------------------------------------------------------- */

static pkv_status check_attach(const struct pkvi_seq *seq, uint64_t n_tokens)
{
    struct pkv_cache *cache = seq->cache;
    if (atomic_load_explicit(&seq->batch, memory_order_acquire) != 0)
        return pkvi_fail(cache, PKV_EBUSY, "seq_attach: the sequence is in an open batch");
    bool empty = seq->length == 0;
    for (uint32_t g = 0; g < cache->n_groups; g++)
        empty = empty && seq->tables[g].next == 0;
    if (!empty) return pkvi_fail(cache, PKV_ESTATE, "seq_attach: the sequence is not empty");
    if (n_tokens > PKVI_MAX_LENGTH)
        return pkvi_fail(cache, PKV_ERANGE, "seq_attach: %llu tokens are too many",
                         (unsigned long long)n_tokens);
    return PKV_OK;
}

pkv_status pkvi_seq_attach(struct pkvi_seq *seq, uint64_t n_tokens,
                           const struct pkvi_attach *groups, int from)
{
    struct pkv_cache *cache = seq->cache;
    const pkv_status status = check_attach(seq, n_tokens);
    if (status != PKV_OK) return status;
    /* Room first: empty tables that own arrays are a legal state, so nothing needs undoing. */
    for (uint32_t g = 0; g < cache->n_groups; g++)
        if (pkvi_table_reserve(&seq->tables[g], &cache->mem, groups[g].n) != PKV_OK)
            return pkvi_fail(cache, PKV_ENOMEM, "seq_attach: no memory for the tables");
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        PKVI_ASSERT(groups[g].first + groups[g].n == pkvi_pages_for(cache, n_tokens));
        pkvi_table_attach(&seq->tables[g], groups[g].first, groups[g].pages, groups[g].n);
    }
    seq->length = n_tokens;
    pkvi_count(&cache->stats, PKVI_COUNT_TOKENS, n_tokens);
    pkvi_count(&cache->stats, PKVI_COUNT_BYTES_LIVE, live_bytes(seq));
    for (int slot = 0; slot < PKVI_HOOK_SLOTS; slot++) {
        const struct pkvi_hooks *hooks = cache->hooks[slot];
        if (slot != from && hooks && hooks->seq_attach)
            hooks->seq_attach(cache->hook_context[slot], seq, n_tokens);
    }
    pkvi_ticket_changed(seq);
    return PKV_OK;
}

/* ---- questions ------------------------------------------------------------------------------ */

pkv_status pkv_seq_length(pkv_seq handle, uint64_t *n_tokens)
{
    struct pkvi_seq *seq;
    const pkv_status status = pkvi_seq_get(handle, "seq_length", &seq);
    if (status != PKV_OK) return status;
    if (!n_tokens) return pkvi_fail(handle.cache, PKV_EINVAL, "seq_length: n_tokens is NULL");
    *n_tokens = seq->length;
    return PKV_OK;
}

pkv_status pkv_seq_get_info(pkv_seq handle, uint32_t group, pkv_seq_info *info)
{
    struct pkvi_seq *seq;
    const pkv_status status = pkvi_seq_get(handle, "seq_get_info", &seq);
    if (status != PKV_OK) return status;
    struct pkv_cache *cache = handle.cache;
    if (!info) return pkvi_fail(cache, PKV_EINVAL, "seq_get_info: info is NULL");
    if (!pkvi_size_known(info->struct_size, PKVI_LEAST_OUTPUT, sizeof *info))
        return pkvi_fail(cache, PKV_EVERSION, "seq_get_info: struct_size %zu is unknown",
                         info->struct_size);
    if (group >= cache->n_groups)
        return pkvi_fail(cache, PKV_EINVAL, "seq_get_info: group %u of %u", group, cache->n_groups);
    const struct pkvi_table *table = &seq->tables[group];
    uint32_t shared = 0;
    uint32_t cursor = 0;
    struct pkvi_resident r;
    while (pkvi_table_next(table, &cursor, &r))
        shared += pkvi_pool_refs(&cache->groups[group].pool, r.page) > 1;
    const pkv_seq_info out = {
        .length = seq->length,
        .resident_tokens = pkvi_resident_tokens(seq, group),
        .resident_pages = table->resident,
        .shared_pages = shared,
        .dropped_pages = table->next - table->resident,
        .in_batch = atomic_load_explicit(&seq->batch, memory_order_acquire) != 0,
    };
    pkvi_struct_write(info, info->struct_size, &out);
    return PKV_OK;
}

pkv_status pkv_seq_pages(pkv_seq handle, uint32_t group, uint32_t first, uint32_t n,
                         pkv_page *pages)
{
    struct pkvi_seq *seq;
    const pkv_status status = pkvi_seq_get(handle, "seq_pages", &seq);
    if (status != PKV_OK) return status;
    struct pkv_cache *cache = handle.cache;
    if (group >= cache->n_groups)
        return pkvi_fail(cache, PKV_EINVAL, "seq_pages: group %u of %u", group, cache->n_groups);
    if (!pages && n != 0) return pkvi_fail(cache, PKV_EINVAL, "seq_pages: pages is NULL");
    const struct pkvi_table *table = &seq->tables[group];
    if (first > table->next || n > table->next - first)
        return pkvi_fail(cache, PKV_EINVAL, "seq_pages: [%u, +%u) exceeds the table of %u pages",
                         first, n, table->next);
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t page = pkvi_table_page(table, first + i);
        pages[i] =
            page == PKVI_NO_PAGE ? PKV_PAGE_NONE : pkvi_pool_id(&cache->groups[group].pool, page);
    }
    return PKV_OK;
}
