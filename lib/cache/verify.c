/* pkv_cache_verify: every invariant, from tables down to regions. */
#include <stdarg.h>
#include <stdio.h>

#include "cache/cache_internal.h"
#include "cache/open_pages.h"

struct verify {
    struct pkv_cache *cache;
    char *text;
    size_t capacity;
};

static pkv_status broken(struct verify *v, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static pkv_status broken(struct verify *v, const char *format, ...)
{
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    if (vsnprintf(text, sizeof text, format, arguments) < 0) text[0] = '\0';
    va_end(arguments);
    pkvi_text(v->text, v->capacity, "%s", text);
    return PKV_ECORRUPT;
}

static const struct pkvi_seq *live_seq(const struct pkv_cache *cache, uint32_t slot)
{
    return pkvi_slots_at(&cache->sequences, slot);
}

static const struct pkvi_batch *batch_of(const struct pkvi_seq *seq)
{
    return pkvi_slots_get(&seq->cache->batches, atomic_load(&seq->batch));
}

/* New tokens that the sequence's reserved batch holds pages for. */
static uint64_t reserved_tokens(const struct pkvi_seq *seq)
{
    const struct pkvi_batch *batch = atomic_load(&seq->batch) != 0 ? batch_of(seq) : NULL;
    if (!batch || batch->phase != PKVI_BATCH_RESERVED) return 0;
    for (uint32_t i = 0; i < batch->n_entries; i++)
        if (batch->entries[i].seq == seq) return batch->entries[i].n_tokens;
    return 0;
}

static pkv_status check_table(struct verify *v, const struct pkvi_seq *seq, uint32_t g)
{
    const struct pkv_cache *cache = v->cache;
    const struct pkvi_table *table = &seq->tables[g];
    const unsigned long long id = seq->id;
    const char *complaint = pkvi_table_check(table);
    if (complaint) return broken(v, "sequence %#llx, group %u: %s", id, g, complaint);
    const uint64_t tokens = seq->length + reserved_tokens(seq);
    if (table->next != pkvi_pages_for(cache, tokens))
        return broken(v, "sequence %#llx, group %u: %u logical pages for %llu tokens", id, g,
                      table->next, (unsigned long long)tokens);
    if ((seq->length & (cache->page_tokens - 1u)) != 0 &&
        pkvi_table_find(table, (uint32_t)(seq->length >> cache->page_shift)) == PKVI_NO_SLOT)
        return broken(v, "sequence %#llx, group %u: the partial tail is not resident", id, g);
    const uint32_t limit = pkvi_pool_index_limit(&cache->groups[g].pool);
    const uint32_t first = pkvi_window_first(cache, &cache->groups[g], seq->length);
    uint32_t cursor = 0;
    struct pkvi_resident r;
    while (pkvi_table_next(table, &cursor, &r)) {
        if (r.page >= limit)
            return broken(v, "sequence %#llx, group %u: page %u does not exist", id, g, r.page);
        if (r.logical < first && !pkvi_seq_pinned(seq, r.logical))
            return broken(v, "sequence %#llx, group %u: page %u is held outside the window", id, g,
                          r.logical);
    }
    return PKV_OK;
}

/* Tables of every sequence, and the sums that the counters must equal. */
static pkv_status check_sequences(struct verify *v)
{
    const struct pkv_cache *cache = v->cache;
    uint64_t live = 0;
    uint64_t tokens = 0;
    uint64_t bytes = 0;
    for (uint32_t slot = 0; slot < cache->sequences.used; slot++) {
        const struct pkvi_seq *seq = live_seq(cache, slot);
        if (!seq) continue;
        if (seq->cache != cache || (uint32_t)seq->id != slot)
            return broken(v, "sequence slot %u: holds a foreign object", slot);
        if (atomic_load(&seq->batch) != 0 && !batch_of(seq))
            return broken(v, "sequence %#llx: its batch has ended", (unsigned long long)seq->id);
        for (uint32_t g = 0; g < cache->n_groups; g++) {
            const pkv_status status = check_table(v, seq, g);
            if (status != PKV_OK) return status;
            bytes += pkvi_resident_tokens(seq, g) * cache->groups[g].token_bytes;
        }
        live++;
        tokens += seq->length;
    }
    const struct pkvi_stats *stats = &cache->stats;
    if (live != cache->sequences.live || live != pkvi_counter(stats, PKVI_COUNT_SEQUENCES))
        return broken(v, "counter: sequences is %llu, %llu are live",
                      (unsigned long long)pkvi_counter(stats, PKVI_COUNT_SEQUENCES),
                      (unsigned long long)live);
    if (tokens != pkvi_counter(stats, PKVI_COUNT_TOKENS))
        return broken(v, "counter: tokens is %llu, sequences hold %llu",
                      (unsigned long long)pkvi_counter(stats, PKVI_COUNT_TOKENS),
                      (unsigned long long)tokens);
    if (bytes != pkvi_counter(stats, PKVI_COUNT_BYTES_LIVE))
        return broken(v, "counter: bytes_live is %llu, tables hold %llu",
                      (unsigned long long)pkvi_counter(stats, PKVI_COUNT_BYTES_LIVE),
                      (unsigned long long)bytes);
    return PKV_OK;
}

static pkv_status check_batches(struct verify *v)
{
    const struct pkv_cache *cache = v->cache;
    uint64_t open = 0;
    for (uint32_t slot = 0; slot < cache->batches.used; slot++) {
        const struct pkvi_batch *batch = pkvi_slots_at(&cache->batches, slot);
        if (!batch) continue;
        open++;
        for (uint32_t i = 0; i < batch->n_entries; i++)
            if (atomic_load(&batch->entries[i].seq->batch) != batch->id)
                return broken(v, "batch %#llx: entry %u does not belong to it",
                              (unsigned long long)batch->id, i);
    }
    if (open != pkvi_counter(&cache->stats, PKVI_COUNT_BATCHES))
        return broken(v, "counter: batches is %llu, %llu are open",
                      (unsigned long long)pkvi_counter(&cache->stats, PKVI_COUNT_BATCHES),
                      (unsigned long long)open);
    return PKV_OK;
}

/* Counts the references that the library holds on every page of one of a group's pools; may find
 * something broken. */
typedef pkv_status (*count_fn)(const struct pkv_cache *cache, uint32_t g, uint32_t *holders,
                               uint32_t n, char *text, size_t capacity);

/* Those of tables and batches. */
static pkv_status table_holders(const struct pkv_cache *cache, uint32_t g, uint32_t *holders,
                                uint32_t n, char *text, size_t capacity)
{
    (void)text;
    (void)capacity;
    for (uint32_t slot = 0; slot < cache->sequences.used; slot++) {
        const struct pkvi_seq *seq = live_seq(cache, slot);
        if (!seq) continue;
        uint32_t cursor = 0;
        struct pkvi_resident r;
        while (pkvi_table_next(&seq->tables[g], &cursor, &r))
            holders[r.page]++;
    }
    for (uint32_t slot = 0; slot < cache->batches.used; slot++) {
        const struct pkvi_batch *batch = pkvi_slots_at(&cache->batches, slot);
        if (!batch || batch->phase != PKVI_BATCH_RESERVED) continue;
        for (uint32_t i = 0; i < batch->n_copies; i++)
            if (batch->copies[i].group == g) holders[batch->copies[i].src]++;
    }
    for (int slot = 0; slot < PKVI_HOOK_SLOTS; slot++) {
        const struct pkvi_hooks *hooks = cache->hooks[slot];
        if (hooks && hooks->holders) hooks->holders(cache->hook_context[slot], g, holders, n);
    }
    return PKV_OK;
}

static pkv_status check_pool(struct verify *v, uint32_t g, struct pkvi_pool *pool, count_fn count)
{
    struct pkv_cache *cache = v->cache;
    const uint32_t n = pkvi_pool_index_limit(pool);
    uint32_t *holders = pkvi_mem_scratch(&cache->mem, (size_t)n + 1, sizeof *holders);
    if (!holders) {
        pkvi_text(v->text, v->capacity, "verify: no memory to count references");
        return PKV_ENOMEM;
    }
    pkv_status status = count(cache, g, holders, n, v->text, v->capacity);
    if (status == PKV_OK) status = pkvi_pool_verify(pool, holders, n, v->text, v->capacity);
    pkvi_mem_free_scratch(&cache->mem, holders, (size_t)n + 1, sizeof *holders);
    return status;
}

static pkv_status check_group(struct verify *v, uint32_t g)
{
    struct pkvi_group *group = &v->cache->groups[g];
    pkv_status status = check_pool(v, g, &group->pool, table_holders);
    if (status == PKV_OK && group->quantised)
        status = check_pool(v, g, &group->open_pool, pkvi_open_holders);
    return status;
}

static pkv_status verify_all(struct verify *v)
{
    struct pkv_cache *cache = v->cache;
    pkv_status status = check_batches(v);
    if (status == PKV_OK) status = check_sequences(v);
    if (status == PKV_OK) status = pkvi_regions_verify(&cache->regions, v->text, v->capacity);
    for (uint32_t g = 0; g < cache->n_groups && status == PKV_OK; g++)
        status = check_group(v, g);
    if (status == PKV_OK) status = pkvi_state_verify(cache, v->text, v->capacity);
    if (status == PKV_OK) status = pkvi_admission_verify(cache, v->text, v->capacity);
    for (int slot = 0; slot < PKVI_HOOK_SLOTS && status == PKV_OK; slot++) {
        const struct pkvi_hooks *hooks = cache->hooks[slot];
        if (hooks && hooks->verify)
            status = hooks->verify(cache->hook_context[slot], v->text, v->capacity);
    }
    return status;
}

pkv_status pkv_cache_verify(pkv_cache *cache, char *text, size_t capacity)
{
    if (!cache) return PKV_EINVAL;
    struct verify v = {.cache = cache, .text = text, .capacity = capacity};
    char own[256];
    if (!text || capacity == 0) {
        v.text = own;
        v.capacity = sizeof own;
    }
    v.text[0] = '\0';
    const pkv_status status = verify_all(&v);
    if (status != PKV_OK) return pkvi_fail(cache, status, "cache_verify: %s", v.text);
    return PKV_OK;
}
