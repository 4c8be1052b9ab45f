/* Open pages of quantised groups: which sequence and which batch holds them (open_pages.h). */
#include "cache/open_pages.h"

#include <string.h>

#include "cache/attention.h"

/* Of a reserved batch: pages[entry * n_groups + group] is an array of open pages. */
struct batch_open {
    size_t bytes;
    uint32_t n_entries; /* whose pages are held */
    const uint32_t **pages;
    uint32_t *n;    /* [n_entries] pages in each array of an entry */
    bool *in_place; /* the same places: page 0 is the sequence's own, the batch has no reference */
};

static size_t seq_bytes(const struct pkv_cache *cache)
{
    return cache->n_groups * sizeof(uint32_t);
}

/* Of a sequence: one page per group. */
static uint32_t *pages_of(const struct pkvi_seq *seq)
{
    return seq->state[PKVI_HOOK_OPEN];
}

static bool is_quantised(const struct pkv_cache *cache, uint32_t g)
{
    return cache->groups[g].quantised;
}

static bool has_tail(const struct pkvi_seq *seq, uint64_t length)
{
    return (length & (seq->cache->page_tokens - 1u)) != 0;
}

uint32_t pkvi_open_tail(const struct pkvi_seq *seq, uint32_t group)
{
    return pages_of(seq) ? pages_of(seq)[group] : PKVI_NO_PAGE;
}

static void let_go(struct pkvi_seq *seq, uint32_t g)
{
    uint32_t *page = &pages_of(seq)[g];
    if (*page == PKVI_NO_PAGE) return;
    pkvi_pool_unref(&seq->cache->groups[g].open_pool, 1, page);
    *page = PKVI_NO_PAGE;
}

/* ---- sequences ------------------------------------------------------------------------------ */

static pkv_status on_create(void *context, struct pkvi_seq *seq)
{
    (void)context;
    struct pkv_cache *cache = seq->cache;
    uint32_t *pages = pkvi_mem_alloc(&cache->mem, seq_bytes(cache));
    if (!pages) return PKV_ENOMEM;
    for (uint32_t g = 0; g < cache->n_groups; g++)
        pages[g] = PKVI_NO_PAGE;
    seq->state[PKVI_HOOK_OPEN] = pages;
    return PKV_OK;
}

static pkv_status on_fork(void *context, const struct pkvi_seq *parent, struct pkvi_seq *child)
{
    const pkv_status status = on_create(context, child);
    if (status != PKV_OK) return status;
    for (uint32_t g = 0; g < child->cache->n_groups; g++) {
        const uint32_t page = pkvi_open_tail(parent, g);
        if (page == PKVI_NO_PAGE) continue;
        pkvi_pool_ref(&child->cache->groups[g].open_pool, 1, &page);
        pages_of(child)[g] = page;
    }
    return PKV_OK;
}

static void on_destroy(void *context, struct pkvi_seq *seq)
{
    (void)context;
    if (!pages_of(seq)) return;
    for (uint32_t g = 0; g < seq->cache->n_groups; g++)
        let_go(seq, g);
    pkvi_mem_free(&seq->cache->mem, pages_of(seq), seq_bytes(seq->cache));
    seq->state[PKVI_HOOK_OPEN] = NULL;
}

static void on_truncate(void *context, struct pkvi_seq *seq, uint64_t n_tokens)
{
    (void)context;
    const uint32_t shift = seq->cache->page_shift;
    if (has_tail(seq, n_tokens) && n_tokens >> shift == seq->length >> shift) return;
    for (uint32_t g = 0; g < seq->cache->n_groups; g++)
        let_go(seq, g);
}

/* ---- reserve -------------------------------------------------------------------------------- */

/* Logical pages that get new tokens. */
static uint32_t pages_touched(const struct pkvi_entry *entry)
{
    const struct pkv_cache *cache = entry->seq->cache;
    return (uint32_t)(pkvi_pages_for(cache, entry->seq->length + entry->n_tokens) -
                      (entry->seq->length >> cache->page_shift));
}

bool pkvi_open_is_own(const struct pkvi_seq *seq, uint32_t group)
{
    const uint32_t page = pkvi_open_tail(seq, group);
    return page != PKVI_NO_PAGE && pkvi_pool_refs(&seq->cache->groups[group].open_pool, page) == 1;
}

bool pkvi_open_reseals(const struct pkvi_seq *seq, uint32_t group, uint64_t n_tokens)
{
    const uint32_t page_tokens = seq->cache->page_tokens;
    return is_quantised(seq->cache, group) && has_tail(seq, seq->length) &&
           pkvi_open_tail(seq, group) == PKVI_NO_PAGE &&
           (seq->length & (page_tokens - 1u)) + n_tokens >= page_tokens;
}

uint32_t pkvi_open_needed(const struct pkvi_entry *entry, uint32_t group)
{
    if (!is_quantised(entry->seq->cache, group)) return 0;
    return pages_touched(entry) - pkvi_open_is_own(entry->seq, group);
}

/* One allocation for everything the batch notes; NULL without memory. */
static struct batch_open *new_state(const struct pkvi_batch *batch)
{
    struct pkv_cache *cache = batch->cache;
    const size_t places = (size_t)batch->n_entries * cache->n_groups;
    uint64_t pages = 0;
    for (uint32_t i = 0; i < batch->n_entries; i++)
        pages += pages_touched(&batch->entries[i]);
    pages *= cache->n_groups;
    const size_t head = (sizeof(struct batch_open) + 15) & ~(size_t)15;
    const size_t numbers = (size_t)pages + batch->n_entries;
    const size_t bytes = head + places * (sizeof(uint32_t *) + 1) + numbers * sizeof(uint32_t);
    struct batch_open *open = pkvi_mem_zalloc(&cache->mem, bytes);
    if (!open) return NULL;
    open->bytes = bytes;
    open->pages = (const uint32_t **)(void *)((unsigned char *)open + head);
    open->n = (uint32_t *)(void *)(open->pages + places);
    uint32_t *at = open->n + batch->n_entries;
    open->in_place = (bool *)(at + pages);
    for (uint32_t i = 0; i < batch->n_entries; i++) {
        open->n[i] = pages_touched(&batch->entries[i]);
        for (uint32_t g = 0; g < cache->n_groups; g++, at += open->n[i])
            if (is_quantised(cache, g)) open->pages[(size_t)i * cache->n_groups + g] = at;
    }
    return open;
}

/* The batch's references to the pages of one place go, but for place `kept` (none: UINT32_MAX). */
static void drop_pages(struct pkvi_batch *batch, const struct batch_open *open, uint32_t entry,
                       uint32_t g, uint32_t kept)
{
    const size_t at = (size_t)entry * batch->cache->n_groups + g;
    const uint32_t n = open->n[entry], first = open->in_place[at];
    struct pkvi_pool *pool = &batch->cache->groups[g].open_pool;
    const uint32_t stop = kept < n ? kept : n;
    if (first < stop) pkvi_pool_unref(pool, stop - first, open->pages[at] + first);
    const uint32_t from = pkvi_max_u32(first, kept < n ? kept + 1 : n);
    if (from < n) pkvi_pool_unref(pool, n - from, open->pages[at] + from);
}

static void free_state(struct pkvi_batch *batch, struct batch_open *open)
{
    batch->state[PKVI_HOOK_OPEN] = NULL;
    pkvi_mem_free(&batch->cache->mem, open, open->bytes);
}

/* Takes the entry's pages of one group out of the pool. */
static pkv_status take_pages(struct pkvi_batch *batch, struct batch_open *open, uint32_t entry,
                             uint32_t g)
{
    struct pkv_cache *cache = batch->cache;
    const struct pkvi_entry *at = &batch->entries[entry];
    const size_t place = (size_t)entry * cache->n_groups + g;
    uint32_t *pages = (uint32_t *)(uintptr_t)open->pages[place];
    const bool in_place = pkvi_open_is_own(at->seq, g);
    const uint32_t n = open->n[entry] - in_place;
    pkv_status status = PKV_ENOPAGES;
    for (int attempt = 0; attempt < PKVI_ALLOC_ATTEMPTS && status == PKV_ENOPAGES; attempt++) {
        status = pkvi_pool_alloc(&cache->groups[g].open_pool, n, pages + in_place);
        if (status != PKV_ENOPAGES) break;
        if (!pkvi_cache_reclaim_for(cache, &cache->groups[g].open_pool, n)) break;
    }
    if (status == PKV_ENOPAGES) {
        batch->shortfall[g] = pkvi_max_u32(pkvi_pool_missing(&cache->groups[g].open_pool, n), 1);
        return pkvi_fail(cache, status, "batch_reserve: %u open pages of group %u are missing",
                         batch->shortfall[g], g);
    }
    if (status != PKV_OK) return status;
    open->in_place[place] = in_place;
    if (in_place) pages[0] = pkvi_open_tail(at->seq, g);
    return PKV_OK;
}

/* Gives the tail's tokens to the batch's open page: from the sequence's own, which others see, or
 * out of the sealed page. */
static void fill_tail(struct pkvi_batch *batch, const struct batch_open *open, uint32_t entry,
                      uint32_t g)
{
    struct pkv_cache *cache = batch->cache;
    struct pkvi_group *group = &cache->groups[g];
    const struct pkvi_seq *seq = batch->entries[entry].seq;
    const size_t place = (size_t)entry * cache->n_groups + g;
    if (!has_tail(seq, seq->length) || open->in_place[place]) return;
    const uint32_t from = pkvi_open_tail(seq, g), to = open->pages[place][0];
    const bool bytes = cache->storage == PKV_STORAGE_HOST;
    unsigned char *dst = bytes ? pkvi_pool_address(&group->open_pool, to) : NULL;
    if (from != PKVI_NO_PAGE) {
        if (bytes) memcpy(dst, pkvi_pool_address(&group->open_pool, from), group->open_page_bytes);
        pkvi_count(&cache->stats, PKVI_COUNT_PAGE_COPIES, 1);
        return;
    }
    pkvi_count(&cache->stats, PKVI_COUNT_PAGES_UNSEALED, 1);
    if (!bytes) return;
    const uint32_t page =
        pkvi_table_page(&seq->tables[g], (uint32_t)(seq->length >> cache->page_shift));
    const unsigned char *src = pkvi_pool_address(&group->pool, page);
    for (uint32_t layer = 0; layer < group->n_layers; layer++)
        cache->attention->model.kernels->unseal(
            &group->layout, src + layer * group->layer_bytes, &group->open_layout,
            dst + layer * group->open_layer_bytes, 0, group->kv_heads);
}

static void undo(struct pkvi_batch *batch, struct batch_open *open)
{
    for (uint32_t i = 0; i < open->n_entries; i++)
        for (uint32_t g = 0; g < batch->cache->n_groups; g++)
            if (is_quantised(batch->cache, g)) drop_pages(batch, open, i, g, UINT32_MAX);
    free_state(batch, open);
}

static pkv_status on_reserve(void *context, struct pkvi_batch *batch)
{
    (void)context;
    struct pkv_cache *cache = batch->cache;
    struct batch_open *open = new_state(batch);
    if (!open) return PKV_ENOMEM;
    for (uint32_t i = 0; i < batch->n_entries; i++) {
        for (uint32_t g = 0; g < cache->n_groups; g++) {
            if (!is_quantised(cache, g)) continue;
            const pkv_status status = take_pages(batch, open, i, g);
            if (status == PKV_OK) continue;
            while (g-- > 0)
                if (is_quantised(cache, g)) drop_pages(batch, open, i, g, UINT32_MAX);
            undo(batch, open);
            return status;
        }
        open->n_entries = i + 1;
    }
    for (uint32_t i = 0; i < batch->n_entries; i++)
        for (uint32_t g = 0; g < cache->n_groups; g++)
            if (is_quantised(cache, g)) fill_tail(batch, open, i, g);
    batch->state[PKVI_HOOK_OPEN] = open;
    return PKV_OK;
}

static void on_rollback(void *context, struct pkvi_batch *batch)
{
    (void)context;
    if (batch->state[PKVI_HOOK_OPEN]) undo(batch, batch->state[PKVI_HOOK_OPEN]);
}

/* ---- commit --------------------------------------------------------------------------------- */

/* The sequence keeps the open page that its new tail is in; its old one goes if it wrote elsewhere.
 */
static void settle(struct pkvi_batch *batch, const struct batch_open *open, uint32_t entry,
                   uint32_t g)
{
    const struct pkvi_entry *at = &batch->entries[entry];
    struct pkvi_seq *seq = at->seq;
    const uint32_t shift = batch->cache->page_shift;
    const size_t place = (size_t)entry * batch->cache->n_groups + g;
    const uint64_t before = seq->length - at->accepted;
    uint32_t kept = UINT32_MAX;
    if (has_tail(seq, seq->length)) kept = (uint32_t)((seq->length >> shift) - (before >> shift));
    if (open->in_place[place] && kept == 0) {
        drop_pages(batch, open, entry, g, UINT32_MAX);
        return;
    }
    let_go(seq, g);
    if (kept != UINT32_MAX) pages_of(seq)[g] = open->pages[place][kept];
    drop_pages(batch, open, entry, g, kept);
}

static void on_commit(void *context, struct pkvi_batch *batch)
{
    (void)context;
    struct batch_open *open = batch->state[PKVI_HOOK_OPEN];
    if (!open) return;
    for (uint32_t i = 0; i < batch->n_entries; i++)
        for (uint32_t g = 0; g < batch->cache->n_groups; g++) {
            if (!is_quantised(batch->cache, g)) continue;
            if (batch->entries[i].accepted == 0)
                drop_pages(batch, open, i, g, UINT32_MAX);
            else
                settle(batch, open, i, g);
        }
    free_state(batch, open);
}

const uint32_t *const *pkvi_open_of_entry(const struct pkvi_batch *batch, uint32_t entry)
{
    const struct batch_open *open = batch->state[PKVI_HOOK_OPEN];
    return open ? open->pages + (size_t)entry * batch->cache->n_groups : NULL;
}

/* ---- what a host with pages of its own must do ---------------------------------------------- */

pkv_status pkv_batch_open_pages(pkv_batch handle, uint32_t entry, uint32_t group,
                                pkv_open_page *pages, uint32_t capacity, uint32_t *n)
{
    struct pkvi_batch *batch;
    const pkv_status status = pkvi_batch_get_reserved(handle, "batch_open_pages", &batch);
    if (status != PKV_OK) return status;
    struct pkv_cache *cache = handle.cache;
    if (!n) return pkvi_fail(cache, PKV_EINVAL, "batch_open_pages: n is NULL");
    if (entry >= batch->n_entries)
        return pkvi_fail(cache, PKV_EINVAL, "batch_open_pages: entry %u of %u", entry,
                         batch->n_entries);
    if (group >= cache->n_groups)
        return pkvi_fail(cache, PKV_EINVAL, "batch_open_pages: group %u of %u", group,
                         cache->n_groups);
    if (!pages && capacity != 0)
        return pkvi_fail(cache, PKV_EINVAL, "batch_open_pages: pages is NULL");
    const struct batch_open *open = batch->state[PKVI_HOOK_OPEN];
    *n = open && is_quantised(cache, group) ? open->n[entry] : 0;
    if (*n > capacity)
        return pkvi_fail(cache, PKV_ERANGE, "batch_open_pages: room for %u pages, there are %u",
                         capacity, *n);
    const struct pkvi_seq *seq = batch->entries[entry].seq;
    struct pkvi_group *g = &cache->groups[group];
    const uint32_t first = (uint32_t)(seq->length >> cache->page_shift);
    for (uint32_t i = 0; i < *n; i++) {
        const size_t place = (size_t)entry * cache->n_groups + group;
        const uint32_t tail = i == 0 ? (uint32_t)seq->length & (cache->page_tokens - 1u) : 0;
        const bool fill = tail != 0 && !open->in_place[place];
        const uint32_t from = fill ? pkvi_open_tail(seq, group) : PKVI_NO_PAGE;
        pages[i] = (pkv_open_page){
            .logical = first + i,
            .n_tokens = tail,
            .open = pkvi_pool_id(&g->open_pool, open->pages[place][i]),
            .sealed = pkvi_pool_id(&g->pool, pkvi_table_page(&seq->tables[group], first + i)),
            .from = from != PKVI_NO_PAGE ? pkvi_pool_id(&g->open_pool, from) : PKV_PAGE_NONE,
            .fill = fill,
        };
    }
    return PKV_OK;
}

/* ---- verify --------------------------------------------------------------------------------- */

pkv_status pkvi_open_holders(const struct pkv_cache *cache, uint32_t g, uint32_t *holders,
                             uint32_t n, char *text, size_t capacity)
{
    for (uint32_t slot = 0; slot < cache->sequences.used; slot++) {
        const struct pkvi_seq *seq = pkvi_slots_at(&cache->sequences, slot);
        if (!seq) continue;
        const uint32_t page = pkvi_open_tail(seq, g);
        if (page == PKVI_NO_PAGE) continue;
        if (page >= n || !has_tail(seq, seq->length)) {
            pkvi_text(text, capacity, "sequence %#llx, group %u: open page %u %s",
                      (unsigned long long)seq->id, g, page,
                      page >= n ? "does not exist" : "without a partial tail");
            return PKV_ECORRUPT;
        }
        holders[page]++;
    }
    for (uint32_t slot = 0; slot < cache->batches.used; slot++) {
        const struct pkvi_batch *batch = pkvi_slots_at(&cache->batches, slot);
        const struct batch_open *open = batch ? batch->state[PKVI_HOOK_OPEN] : NULL;
        for (uint32_t i = 0; open && i < batch->n_entries; i++) {
            const size_t at = (size_t)i * cache->n_groups + g;
            for (uint32_t k = open->in_place[at]; k < open->n[i]; k++)
                holders[open->pages[at][k]]++;
        }
    }
    return PKV_OK;
}

/* ---- bind ----------------------------------------------------------------------------------- */

static const struct pkvi_hooks hooks = {
    .seq_create = on_create,
    .seq_fork = on_fork,
    .seq_destroy = on_destroy,
    .seq_truncate = on_truncate,
    .reserve = on_reserve,
    .rollback = on_rollback,
    .commit = on_commit,
};

void pkvi_open_bind(struct pkv_cache *cache)
{
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        if (!is_quantised(cache, g)) continue;
        cache->hooks[PKVI_HOOK_OPEN] = &hooks;
        cache->hook_context[PKVI_HOOK_OPEN] = cache;
    }
}
