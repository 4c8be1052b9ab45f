/* Admission: claims and the safe-state rule (docs/architecture.md, "Admission"). */
#include <pagedkv/admission.h>

#include <string.h>

#include "cache/banker.h"
#include "cache/cache_internal.h"
#include "cache/config_limits.h"

/* Sequences with a ticket, and the scratch that a check of all of them plus one needs: it grows
 * when a ticket is given, so that checks allocate nothing. */
struct pkvi_admission {
    struct pkvi_seq **seqs; /* [capacity] */
    uint32_t n, capacity;
    /* Scratch, for capacity + 1 holders: */
    struct pkvi_holder *holders;
    uint64_t *pages; /* need and back of each holder: 2 * n_groups */
    uint32_t *order;
    uint32_t *adds; /* [capacity] logical pages that the batch under check adds */
};

/* ---- memory ------------------------------------------------------------------------------------
 */

static void free_arrays(struct pkv_cache *cache, struct pkvi_admission *admission)
{
    struct pkvi_mem *mem = &cache->mem;
    const size_t n = (size_t)admission->capacity + 1;
    pkvi_mem_free_array(mem, admission->seqs, n, sizeof *admission->seqs);
    pkvi_mem_free_array(mem, admission->holders, n, sizeof *admission->holders);
    pkvi_mem_free_array(mem, admission->pages, n * 2 * cache->n_groups, sizeof *admission->pages);
    pkvi_mem_free_array(mem, admission->order, n, sizeof *admission->order);
    pkvi_mem_free_array(mem, admission->adds, n, sizeof *admission->adds);
}

static pkv_status set_capacity(struct pkv_cache *cache, uint32_t capacity)
{
    struct pkvi_mem *mem = &cache->mem;
    struct pkvi_admission *old = cache->admission;
    struct pkvi_admission grown = {.n = old->n, .capacity = capacity};
    const size_t n = (size_t)capacity + 1;
    grown.seqs = pkvi_mem_array(mem, n, sizeof *grown.seqs);
    grown.holders = pkvi_mem_array(mem, n, sizeof *grown.holders);
    grown.pages = pkvi_mem_array(mem, n * 2 * cache->n_groups, sizeof *grown.pages);
    grown.order = pkvi_mem_array(mem, n, sizeof *grown.order);
    grown.adds = pkvi_mem_array(mem, n, sizeof *grown.adds);
    if (grown.seqs == NULL || grown.holders == NULL || grown.pages == NULL || grown.order == NULL ||
        grown.adds == NULL) {
        free_arrays(cache, &grown);
        return PKV_ENOMEM;
    }
    if (old->n != 0) memcpy(grown.seqs, old->seqs, old->n * sizeof *grown.seqs);
    free_arrays(cache, old);
    *old = grown;
    for (size_t i = 0; i < n; i++) {
        old->holders[i].need = old->pages + i * 2 * cache->n_groups;
        old->holders[i].back = old->holders[i].need + cache->n_groups;
    }
    return PKV_OK;
}

pkv_status pkvi_admission_init(struct pkv_cache *cache)
{
    cache->admission = pkvi_mem_zalloc(&cache->mem, sizeof *cache->admission);
    if (cache->admission == NULL) return PKV_ENOMEM;
    const pkv_status status = set_capacity(cache, 0);
    if (status != PKV_OK) {
        pkvi_mem_free(&cache->mem, cache->admission, sizeof *cache->admission);
        cache->admission = NULL;
    }
    return status;
}

void pkvi_admission_destroy(struct pkv_cache *cache)
{
    free_arrays(cache, cache->admission);
    pkvi_mem_free(&cache->mem, cache->admission, sizeof *cache->admission);
    cache->admission = NULL;
}

/* ---- from tables to numbers --------------------------------------------------------------------
 */

/* What the pools can hand out. Cached pages count as free: a reserve reclaims them. Empty regions
 * can move between pools, so their pages count as regions. */
static void read_bank(struct pkv_cache *cache, struct pkvi_bank *bank)
{
    bank->n_groups = cache->n_groups;
    bank->regions = 0;
    if (cache->storage != PKV_STORAGE_EXTERNAL)
        bank->regions =
            pkvi_budget_region_room(&cache->budget) / cache->regions.config.region_bytes;
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        struct pkvi_pool *pool = &cache->groups[g].pool;
        struct pkvi_pool_counts counts;
        pkvi_pool_counts(pool, &counts);
        const uint64_t out = counts.used;
        bank->free[g] = counts.total - out;
        bank->per_region[g] = 0;
        bank->cap[g] = UINT64_MAX;
        if (pool->config.max_pages != 0)
            bank->cap[g] = pool->config.max_pages > out ? pool->config.max_pages - out : 0;
        if (cache->storage == PKV_STORAGE_EXTERNAL) continue;
        bank->per_region[g] = pool->per_region.d;
        const uint64_t empty = atomic_load_explicit(&pool->n_empty, memory_order_relaxed);
        bank->regions += empty;
        bank->free[g] -= empty * pool->per_region.d;
    }
}

/* Most pages a sequence holds at once in a group when it steps one token at a time, or UINT64_MAX:
 * bounded by a sliding window, or by what the module in charge of eviction says. Pins void both. */
static uint64_t most_held(const struct pkv_cache *cache, const struct pkvi_seq *seq, uint32_t g)
{
    uint64_t most = UINT64_MAX;
    if (seq != NULL && seq->n_pins != 0) return most;
    const uint32_t window = cache->groups[g].window;
    if (window != 0) most = (((uint64_t)window + cache->page_tokens - 2) >> cache->page_shift) + 1;
    for (int slot = 0; slot < PKVI_HOOK_SLOTS; slot++) {
        const struct pkvi_hooks *hooks = cache->hooks[slot];
        if (hooks == NULL || hooks->most_held == NULL) continue;
        most = pkvi_min_u64(most, hooks->most_held(cache->hook_context[slot], seq, g));
    }
    return most;
}

/* Pages of a group's table that come back when the sequence ends: nobody else has a reference. */
static uint64_t exclusive_pages(const struct pkvi_seq *seq, uint32_t g)
{
    const struct pkvi_pool *pool = &seq->cache->groups[g].pool;
    uint64_t n = 0;
    uint32_t cursor = 0;
    struct pkvi_resident r;
    while (pkvi_table_next(&seq->tables[g], &cursor, &r))
        n += pkvi_pool_refs(pool, r.page) == 1;
    return n;
}

/* Must the next write into the sequence's partial tail copy it? */
static bool tail_is_shared(const struct pkvi_seq *seq, uint32_t g)
{
    const struct pkv_cache *cache = seq->cache;
    if ((seq->length & (cache->page_tokens - 1u)) == 0) return false;
    const uint32_t page =
        pkvi_table_page(&seq->tables[g], (uint32_t)(seq->length >> cache->page_shift));
    return page != PKVI_NO_PAGE && pkvi_pool_is_shared(&cache->groups[g].pool, page);
}

/* Needs of an admitted sequence if `adds` logical pages are reserved for it now; `copies` = its
 * partial tail is copied by that. */
static void read_need(const struct pkvi_seq *seq, uint32_t adds, bool copies, uint64_t *need)
{
    const struct pkv_cache *cache = seq->cache;
    const uint64_t claimed = pkvi_pages_for(cache, seq->claim);
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        const uint64_t next = (uint64_t)seq->tables[g].next + adds;
        uint64_t more = claimed > next ? claimed - next : 0;
        const uint64_t most = most_held(cache, seq, g);
        if (more != 0 && most != UINT64_MAX) {
            const uint64_t held = exclusive_pages(seq, g) + adds;
            more = pkvi_min_u64(more, most > held ? most - held : 0);
        }
        if (!copies && seq->length < seq->claim && tail_is_shared(seq, g)) more++;
        need[g] = more;
    }
}

/* Context of a check: the batch whose entries [0, n_entries) are taken as reserved, or NULL. */
struct check {
    struct pkv_cache *cache;
    const struct pkvi_batch *batch;
    uint32_t n_entries;
};

static void read_back(void *context, struct pkvi_holder *holder)
{
    const struct check *check = context;
    const struct pkvi_admission *admission = check->cache->admission;
    if (holder->id >= admission->n) return; /* a probe's: known from the start */
    const struct pkvi_seq *seq = admission->seqs[holder->id];
    for (uint32_t g = 0; g < check->cache->n_groups; g++)
        holder->back[g] = exclusive_pages(seq, g) + admission->adds[holder->id];
}

static uint32_t pages_added(const struct pkvi_entry *entry)
{
    const struct pkvi_seq *seq = entry->seq;
    return (uint32_t)(pkvi_pages_for(seq->cache, seq->length + entry->n_tokens) -
                      pkvi_pages_for(seq->cache, seq->length));
}

/* Fills the holders of all admitted sequences, and takes what the batch would take. False if that
 * alone is not there. */
static bool prepare(const struct check *check, struct pkvi_bank *bank)
{
    struct pkv_cache *cache = check->cache;
    struct pkvi_admission *admission = cache->admission;
    uint64_t taken[PKV_MAX_GROUPS] = {0};
    memset(admission->adds, 0, ((size_t)admission->n + 1) * sizeof *admission->adds);
    memset(admission->order, 0, ((size_t)admission->n + 1) * sizeof *admission->order);
    for (uint32_t i = 0; i < check->n_entries; i++) {
        const struct pkvi_entry *entry = &check->batch->entries[i];
        const uint32_t adds = pages_added(entry);
        for (uint32_t g = 0; g < cache->n_groups; g++)
            taken[g] += adds + (tail_is_shared(entry->seq, g) ? 1u : 0u);
        if (entry->seq->claim == 0) continue;
        admission->adds[entry->seq->claim_index] = adds;
        admission->order[entry->seq->claim_index] = 1; /* it is in the batch */
    }
    for (uint32_t i = 0; i < admission->n; i++) {
        struct pkvi_holder *holder = &admission->holders[i];
        holder->id = i;
        holder->back_known = false;
        read_need(admission->seqs[i], admission->adds[i], admission->order[i] != 0, holder->need);
    }
    read_bank(cache, bank);
    return pkvi_bank_take(bank, taken);
}

/* Is the state safe once entries [0, n) of the batch are reserved? */
static bool safe_after(struct pkv_cache *cache, const struct pkvi_batch *batch, uint32_t n)
{
    struct pkvi_admission *admission = cache->admission;
    struct check check = {cache, batch, n};
    struct pkvi_bank bank;
    if (!prepare(&check, &bank)) return false;
    return pkvi_bank_safe(&bank, admission->holders, admission->n, admission->order, read_back,
                          &check, NULL);
}

/* Keeps the configured pages of every group out of what is handed out. */
static bool take_watermark(const struct pkv_cache *cache, struct pkvi_bank *bank)
{
    uint64_t pages[PKV_MAX_GROUPS];
    for (uint32_t g = 0; g < cache->n_groups; g++)
        pages[g] = cache->watermark_pages;
    return pkvi_bank_take(bank, pages);
}

/* ---- probe -------------------------------------------------------------------------------------
 */

static pkv_status check_claim(struct pkv_cache *cache, const char *caller, uint64_t max_tokens)
{
    if (max_tokens == 0) return pkvi_fail(cache, PKV_EINVAL, "%s: max_tokens is 0", caller);
    if (max_tokens > PKVI_MAX_LENGTH)
        return pkvi_fail(cache, PKV_ERANGE, "%s: max_tokens %llu exceeds %d", caller,
                         (unsigned long long)max_tokens, PKVI_MAX_LENGTH);
    return PKV_OK;
}

/* The holder of a sequence that does not exist yet. Its shared pages may be cached ones, which
 * count as free until then: they are taken out, and come back at its end. */
static void imagine(struct pkv_cache *cache, struct pkvi_bank *bank, struct pkvi_holder *holder,
                    uint64_t max_tokens, uint64_t shared_tokens)
{
    const uint64_t shared = shared_tokens >> cache->page_shift;
    const uint64_t pages = pkvi_pages_for(cache, max_tokens) - shared;
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        const uint64_t most = most_held(cache, NULL, g);
        const uint64_t cached =
            atomic_load_explicit(&cache->groups[g].pool.cached, memory_order_relaxed);
        const uint64_t attached =
            pkvi_min_u64(pkvi_min_u64(pkvi_min_u64(shared, most), cached), bank->free[g]);
        bank->free[g] -= attached;
        holder->need[g] = pkvi_min_u64(pages, most);
        holder->back[g] = attached;
    }
    holder->back_known = true;
}

static bool probe(struct pkv_cache *cache, uint64_t max_tokens, uint64_t shared_tokens,
                  uint32_t *missing)
{
    struct pkvi_admission *admission = cache->admission;
    struct check check = {cache, NULL, 0};
    struct pkvi_bank bank;
    prepare(&check, &bank);
    struct pkvi_holder *newcomer = &admission->holders[admission->n];
    newcomer->id = admission->n;
    imagine(cache, &bank, newcomer, max_tokens, shared_tokens);
    const bool watermark = take_watermark(cache, &bank);
    uint32_t stuck = admission->n;
    const bool safe = pkvi_bank_safe(&bank, admission->holders, admission->n + 1, admission->order,
                                     read_back, &check, &stuck);
    memset(missing, 0, cache->n_groups * sizeof *missing);
    if (watermark && safe) return true;
    pkvi_bank_missing(&bank, admission->holders[stuck].need, missing);
    for (uint32_t g = 0; g < cache->n_groups && !watermark; g++)
        missing[g] = pkvi_max_u32(missing[g], 1);
    return false;
}

pkv_status pkv_admit_probe(pkv_cache *cache, uint64_t max_tokens, uint64_t shared_tokens,
                           uint32_t *safe, uint32_t *missing, uint32_t n_groups)
{
    if (cache == NULL) return PKV_EINVAL;
    if (safe == NULL) return pkvi_fail(cache, PKV_EINVAL, "admit_probe: safe is NULL");
    const pkv_status status = check_claim(cache, "admit_probe", max_tokens);
    if (status != PKV_OK) return status;
    if (shared_tokens > max_tokens)
        return pkvi_fail(cache, PKV_EINVAL, "admit_probe: %llu shared tokens of %llu",
                         (unsigned long long)shared_tokens, (unsigned long long)max_tokens);
    if (missing != NULL && n_groups != cache->n_groups)
        return pkvi_fail(cache, PKV_EINVAL, "admit_probe: the cache has %u groups, not %u",
                         cache->n_groups, n_groups);
    uint32_t lacking[PKV_MAX_GROUPS];
    pkvi_mutex_lock(&cache->admission_lock);
    *safe = probe(cache, max_tokens, shared_tokens, lacking);
    pkvi_mutex_unlock(&cache->admission_lock);
    if (missing != NULL) memcpy(missing, lacking, n_groups * sizeof *missing);
    return PKV_OK;
}

/* ---- tickets -----------------------------------------------------------------------------------
 */

static void add_claim(struct pkvi_admission *admission, struct pkvi_seq *seq, uint64_t max_tokens)
{
    seq->claim = max_tokens;
    seq->claim_index = admission->n;
    admission->seqs[admission->n++] = seq;
}

static void remove_claim(struct pkvi_admission *admission, struct pkvi_seq *seq)
{
    struct pkvi_seq *last = admission->seqs[--admission->n];
    admission->seqs[seq->claim_index] = last;
    last->claim_index = seq->claim_index;
    seq->claim = 0;
    seq->claim_index = 0;
}

static pkv_status admit(struct pkvi_seq *seq, uint64_t max_tokens)
{
    struct pkv_cache *cache = seq->cache;
    struct pkvi_admission *admission = cache->admission;
    if (admission->n == admission->capacity) {
        const pkv_status status = set_capacity(cache, 2 * admission->capacity + 16);
        if (status != PKV_OK) return status;
    }
    add_claim(admission, seq, max_tokens);
    struct check check = {cache, NULL, 0};
    struct pkvi_bank bank;
    bool safe = prepare(&check, &bank);
    safe = take_watermark(cache, &bank) && safe;
    safe = safe && pkvi_bank_safe(&bank, admission->holders, admission->n, admission->order,
                                  read_back, &check, NULL);
    if (safe) return PKV_OK;
    remove_claim(admission, seq);
    return PKV_EUNSAFE;
}

pkv_status pkv_admit(pkv_seq handle, uint64_t max_tokens)
{
    struct pkvi_seq *seq;
    pkv_status status = pkvi_seq_get_idle(handle, "admit", &seq);
    if (status == PKV_OK) status = check_claim(handle.cache, "admit", max_tokens);
    if (status != PKV_OK) return status;
    struct pkv_cache *cache = handle.cache;
    if (max_tokens < seq->length)
        return pkvi_fail(cache, PKV_EINVAL, "admit: max_tokens %llu, the sequence has %llu already",
                         (unsigned long long)max_tokens, (unsigned long long)seq->length);
    if (seq->claim != 0) return pkvi_fail(cache, PKV_ESTATE, "admit: the sequence has a ticket");
    pkvi_mutex_lock(&cache->admission_lock);
    status = admit(seq, max_tokens);
    pkvi_mutex_unlock(&cache->admission_lock);
    if (status == PKV_ENOMEM) return pkvi_fail(cache, status, "admit: no memory for the ticket");
    if (status != PKV_OK)
        return pkvi_fail(cache, status,
                         "admit: with a claim of %llu tokens not every sequence could end",
                         (unsigned long long)max_tokens);
    return PKV_OK;
}

void pkvi_admission_forget(struct pkvi_seq *seq)
{
    if (seq->claim == 0) return;
    struct pkv_cache *cache = seq->cache;
    pkvi_mutex_lock(&cache->admission_lock);
    remove_claim(cache->admission, seq);
    pkvi_mutex_unlock(&cache->admission_lock);
}

pkv_status pkv_admit_release(pkv_seq handle)
{
    struct pkvi_seq *seq;
    const pkv_status status = pkvi_seq_get_idle(handle, "admit_release", &seq);
    if (status != PKV_OK) return status;
    if (seq->claim == 0)
        return pkvi_fail(handle.cache, PKV_ESTATE, "admit_release: the sequence has no ticket");
    pkvi_admission_forget(seq);
    return PKV_OK;
}

/* ---- batches -----------------------------------------------------------------------------------
 */

pkv_status pkv_admit_check_batch(pkv_batch handle, uint32_t *blocked)
{
    struct pkvi_batch *batch;
    const pkv_status status = pkvi_batch_get(handle, "admit_check_batch", &batch);
    if (status != PKV_OK) return status;
    struct pkv_cache *cache = handle.cache;
    if (blocked == NULL) return pkvi_fail(cache, PKV_EINVAL, "admit_check_batch: blocked is NULL");
    if (batch->phase != PKVI_BATCH_OPEN)
        return pkvi_fail(cache, PKV_ESTATE, "admit_check_batch: the batch is reserved already");
    pkvi_mutex_lock(&cache->admission_lock);
    bool safe = safe_after(cache, batch, batch->n_entries);
    /* Taking more can only make a state less safe: find the longest prefix that stays safe. */
    uint32_t low = 0;
    uint32_t high = batch->n_entries;
    while (!safe && low + 1 < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (safe_after(cache, batch, middle))
            low = middle;
        else
            high = middle;
    }
    pkvi_mutex_unlock(&cache->admission_lock);
    if (safe) return PKV_OK;
    *blocked = low;
    return pkvi_fail(cache, PKV_EUNSAFE,
                     "admit_check_batch: with entry %u not every sequence could end", low);
}

pkv_status pkvi_admission_verify(struct pkv_cache *cache, char *text, size_t capacity)
{
    const struct pkvi_admission *admission = cache->admission;
    for (uint32_t i = 0; i < admission->n; i++) {
        const struct pkvi_seq *seq = admission->seqs[i];
        if (seq->claim != 0 && seq->claim_index == i &&
            pkvi_slots_get(&cache->sequences, seq->id) == seq)
            continue;
        pkvi_text(text, capacity, "admission: ticket %u does not belong to a live sequence", i);
        return PKV_ECORRUPT;
    }
    return PKV_OK;
}
