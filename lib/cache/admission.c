/* Admission: claims and the safe-state rule (docs/architecture.md, "Admission"). */
#include <pagedkv/admission.h>

#include <string.h>

#include "cache/config_limits.h"
#include "cache/demand.h"

/* ---- memory --------------------------------------------------------------------------------- */

static void free_arrays(struct pkv_cache *cache, struct pkvi_admission *admission)
{
    struct pkvi_mem *mem = &cache->mem;
    const size_t n = (size_t)admission->capacity + 1;
    pkvi_mem_free_array(mem, admission->seqs, n, sizeof *admission->seqs);
    pkvi_mem_free_array(mem, admission->holders, n, sizeof *admission->holders);
    pkvi_mem_free_array(mem, admission->pages, n * 3 * cache->n_groups, sizeof *admission->pages);
    pkvi_mem_free_array(mem, admission->order, n, sizeof *admission->order);
    pkvi_mem_free_array(mem, admission->steps, n, sizeof *admission->steps);
}

static pkv_status set_capacity(struct pkv_cache *cache, uint32_t capacity)
{
    struct pkvi_mem *mem = &cache->mem;
    struct pkvi_admission *old = cache->admission;
    struct pkvi_admission grown = *old;
    grown.capacity = capacity;
    const size_t n = (size_t)capacity + 1;
    grown.seqs = pkvi_mem_array(mem, n, sizeof *grown.seqs);
    grown.holders = pkvi_mem_array(mem, n, sizeof *grown.holders);
    grown.pages = pkvi_mem_array(mem, n * 3 * cache->n_groups, sizeof *grown.pages);
    grown.order = pkvi_mem_array(mem, n, sizeof *grown.order);
    grown.steps = pkvi_mem_array(mem, n, sizeof *grown.steps);
    if (!grown.seqs || !grown.holders || !grown.pages || !grown.order || !grown.steps) {
        free_arrays(cache, &grown);
        return PKV_ENOMEM;
    }
    if (old->n != 0) memcpy(grown.seqs, old->seqs, old->n * sizeof *grown.seqs);
    free_arrays(cache, old);
    *old = grown;
    for (size_t i = 0; i < n; i++) {
        old->holders[i].need = old->pages + i * 3 * cache->n_groups;
        old->holders[i].back = old->holders[i].need + cache->n_groups;
        old->holders[i].units = old->holders[i].back + cache->n_groups;
    }
    return PKV_OK;
}

pkv_status pkvi_admission_init(struct pkv_cache *cache)
{
    cache->admission = pkvi_mem_zalloc(&cache->mem, sizeof *cache->admission);
    if (!cache->admission) return PKV_ENOMEM;
    const pkv_status status = set_capacity(cache, 0);
    if (status != PKV_OK) {
        pkvi_mem_free(&cache->mem, cache->admission, sizeof *cache->admission);
        cache->admission = NULL;
    }
    return status;
}

void pkvi_admission_destroy(struct pkv_cache *cache)
{
    struct pkvi_admission *admission = cache->admission;
    pkvi_demand_free(cache);
    free_arrays(cache, admission);
    pkvi_mem_free(&cache->mem, cache->admission, sizeof *cache->admission);
    cache->admission = NULL;
}

void pkvi_admission_trim(struct pkv_cache *cache)
{
    pkvi_mutex_lock(&cache->admission_lock);
    pkvi_demand_free(cache);
    pkvi_mutex_unlock(&cache->admission_lock);
}

/* How many sequences could never end once entries [0, n) of the batch are reserved; UINT32_MAX if
 * not even the batch could have its pages. */
static uint32_t stuck_after(struct pkv_cache *cache, const struct pkvi_batch *batch, uint32_t n)
{
    uint32_t stuck = UINT32_MAX;
    for (int exact = 0; exact < 2 && stuck != 0; exact++) {
        struct pkvi_demand demand = {
            .cache = cache, .batch = batch, .n_entries = n, .exact = exact != 0};
        stuck = UINT32_MAX;
        if (pkvi_demand_read(&demand))
            stuck = pkvi_demand_stuck(&demand, cache->admission->n, NULL);
    }
    return stuck;
}

/* Admitting leaves the configured pages of every group alone. */
static void keep_watermark(const struct pkv_cache *cache, struct pkvi_bank *bank)
{
    for (uint32_t g = 0; g < cache->n_groups; g++)
        bank->keep[g] = cache->watermark_pages;
}

/* ---- probe ---------------------------------------------------------------------------------- */

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
    uint64_t attached[PKV_MAX_GROUPS];
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        const uint64_t most = pkvi_demand_most_held(cache, NULL, g);
        const uint64_t cached = pkvi_pool_cached(&cache->groups[g].pool);
        attached[g] = pkvi_min_u64(pkvi_min_u64(shared, most), cached);
        holder->need[g] = pkvi_min_u64(pages, most);
        holder->back[g] = attached[g];
    }
    pkvi_bank_take(bank, attached, holder->units);
}

static bool probe(struct pkv_cache *cache, uint64_t max_tokens, uint64_t shared_tokens, bool exact,
                  uint32_t *missing)
{
    struct pkvi_admission *admission = cache->admission;
    struct pkvi_demand demand = {.cache = cache, .n_to_come = 1, .exact = exact};
    pkvi_demand_read(&demand);
    struct pkvi_holder *newcomer = &admission->holders[admission->n];
    newcomer->id = admission->n;
    imagine(cache, &demand.bank, newcomer, max_tokens, shared_tokens);
    keep_watermark(cache, &demand.bank);
    uint32_t stuck = admission->n;
    const bool safe = pkvi_demand_stuck(&demand, admission->n + 1, &stuck) == 0;
    memset(missing, 0, cache->n_groups * sizeof *missing);
    if (safe) return true;
    pkvi_demand_missing(&demand, stuck, missing);
    return false;
}

pkv_status pkv_admit_probe(pkv_cache *cache, uint64_t max_tokens, uint64_t shared_tokens,
                           uint32_t *safe, uint32_t *missing, uint32_t n_groups)
{
    if (!cache) return PKV_EINVAL;
    if (!safe) return pkvi_fail(cache, PKV_EINVAL, "admit_probe: safe is NULL");
    const pkv_status status = check_claim(cache, "admit_probe", max_tokens);
    if (status != PKV_OK) return status;
    if (shared_tokens > max_tokens)
        return pkvi_fail(cache, PKV_EINVAL, "admit_probe: %llu shared tokens of %llu",
                         (unsigned long long)shared_tokens, (unsigned long long)max_tokens);
    if (missing && n_groups != cache->n_groups)
        return pkvi_fail(cache, PKV_EINVAL, "admit_probe: the cache has %u groups, not %u",
                         cache->n_groups, n_groups);
    uint32_t lacking[PKV_MAX_GROUPS];
    pkvi_mutex_lock(&cache->admission_lock);
    *safe = probe(cache, max_tokens, shared_tokens, false, lacking) ||
            probe(cache, max_tokens, shared_tokens, true, lacking);
    pkvi_mutex_unlock(&cache->admission_lock);
    if (missing) memcpy(missing, lacking, n_groups * sizeof *missing);
    return PKV_OK;
}

/* ---- tickets -------------------------------------------------------------------------------- */

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
    for (int exact = 0; exact < 2; exact++) {
        struct pkvi_demand demand = {.cache = cache, .exact = exact != 0};
        pkvi_demand_read(&demand);
        keep_watermark(cache, &demand.bank);
        if (pkvi_demand_stuck(&demand, admission->n, NULL) == 0) return PKV_OK;
    }
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

/* ---- batches -------------------------------------------------------------------------------- */

pkv_status pkv_admit_check_batch(pkv_batch handle, uint32_t *blocked)
{
    struct pkvi_batch *batch;
    const pkv_status status = pkvi_batch_get(handle, "admit_check_batch", &batch);
    if (status != PKV_OK) return status;
    struct pkv_cache *cache = handle.cache;
    if (!blocked) return pkvi_fail(cache, PKV_EINVAL, "admit_check_batch: blocked is NULL");
    if (batch->phase != PKVI_BATCH_OPEN)
        return pkvi_fail(cache, PKV_ESTATE, "admit_check_batch: the batch is reserved already");
    pkvi_mutex_lock(&cache->admission_lock);
    uint32_t low = 0;
    uint32_t high = batch->n_entries;
    uint32_t after = stuck_after(cache, batch, high);
    if (after != 0) {
        /* A state that is unsafe already (a fork without ticket, a smaller limit) must not become
         * worse. Taking more never helps anybody else: find the longest prefix that may go on. */
        const uint32_t before = stuck_after(cache, batch, 0);
        while (after > before && low + 1 < high) {
            const uint32_t middle = low + (high - low) / 2;
            if (stuck_after(cache, batch, middle) <= before)
                low = middle;
            else
                high = middle;
        }
        if (after <= before) after = 0;
    }
    pkvi_mutex_unlock(&cache->admission_lock);
    if (after == 0) return PKV_OK;
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
