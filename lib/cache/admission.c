/* Admission: claims and the safe-state rule (docs/architecture.md, "Admission"). */
#include <pagedkv/admission.h>

#include <string.h>

#include "cache/config_limits.h"
#include "cache/demand.h"
#include "cache/prefix.h"

pkv_status pkvi_admission_init(struct pkv_cache *cache)
{
    return pkvi_tickets_init(cache);
}

void pkvi_admission_destroy(struct pkv_cache *cache)
{
    pkvi_demand_free(cache);
    pkvi_tickets_destroy(cache);
}

void pkvi_admission_trim(struct pkv_cache *cache)
{
    pkvi_mutex_lock(&cache->admission_lock);
    pkvi_demand_free(cache);
    pkvi_mutex_unlock(&cache->admission_lock);
}

/* Is there only the one, newcomer or ticket, and does nobody else hold a page? */
static bool is_alone(const struct pkv_cache *cache, bool newcomer)
{
    const struct pkvi_admission *admission = cache->admission;
    if (admission->n + newcomer != 1) return false;
    for (uint32_t g = 0; g < cache->n_groups; g++)
        if (pkvi_pool_out(&cache->groups[g].pool) !=
            (newcomer ? 0 : admission->seqs[0]->tables[g].resident))
            return false;
    return true;
}

/* How many sequences could never end once entries [0, n) of the batch are reserved; UINT32_MAX if
 * not even the batch could have its pages. */
static uint32_t stuck_after(struct pkv_cache *cache, const struct pkvi_batch *batch, uint32_t n)
{
    uint32_t stuck = UINT32_MAX;
    /* The last two looks are for one that is alone. */
    for (int at = 0; at < (is_alone(cache, false) ? 4 : 2) && stuck != 0; at++) {
        struct pkvi_demand demand = {.cache = cache,
                                     .batch = batch,
                                     .n_entries = n,
                                     .exact = at % 2 != 0,
                                     .alone = at >= 2};
        const bool there = pkvi_demand_read(&demand);
        const uint32_t now = there ? pkvi_demand_stuck(&demand, NULL) : UINT32_MAX;
        stuck = pkvi_min_u32(stuck, now);
    }
    return stuck;
}

/* Admitting leaves the configured pages of every group alone. */
static void keep_watermark(const struct pkv_cache *cache, struct pkvi_bank *bank)
{
    for (uint32_t g = 0; g < cache->n_groups; g++)
        bank->keep[g] = cache->watermark_pages;
}

/* One look, see is_safe; returns how many are stuck. */
static uint32_t look(struct pkvi_demand *demand, pkv_admit_outlook *outlook, uint32_t *missing)
{
    struct pkv_cache *cache = demand->cache;
    const bool there = pkvi_demand_read(demand);
    keep_watermark(cache, &demand->bank);
    if (outlook && !demand->exact)
        pkvi_demand_figures(demand, &outlook->claimed_bytes, &outlook->available_bytes);
    uint32_t stuck = cache->admission->n;
    const uint32_t n_stuck = pkvi_demand_stuck(demand, &stuck);
    if (n_stuck != 0 && demand->exact && missing) pkvi_demand_missing(demand, stuck, missing);
    return there ? n_stuck : UINT32_MAX;
}

/* Is the state safe with the newcomer (NULL = as it is) and the watermark? Else missing[] (may be
 * NULL) says what the first that is stuck lacks, zeros if safe. */
static bool is_safe(struct pkv_cache *cache, const struct pkvi_newcomer *newcomer,
                    pkv_admit_outlook *outlook, uint32_t *missing)
{
    uint32_t lacking[PKV_MAX_GROUPS] = {0};
    uint32_t n_stuck = 1;
    for (int at = 0; at < (is_alone(cache, newcomer != NULL) ? 4 : 2) && n_stuck != 0; at++) {
        struct pkvi_demand demand = {
            .cache = cache, .newcomer = newcomer, .exact = at % 2 != 0, .alone = at >= 2};
        n_stuck = look(&demand, outlook, lacking);
    }
    for (uint32_t g = 0; missing && g < cache->n_groups; g++)
        missing[g] = n_stuck != 0 ? lacking[g] : 0;
    return n_stuck == 0;
}

/* ---- probe ---------------------------------------------------------------------------------- */

static pkv_status check_claim(struct pkv_cache *cache, const char *caller,
                              uint64_t max_tokens, uint64_t has)
{
    if (max_tokens == 0) return pkvi_fail(cache, PKV_EINVAL, "%s: max_tokens is 0", caller);
    if (max_tokens > PKVI_MAX_LENGTH)
        return pkvi_fail(cache, PKV_ERANGE, "%s: max_tokens %llu exceeds %d", caller,
                         (unsigned long long)max_tokens, PKVI_MAX_LENGTH);
    if (max_tokens < has)
        return pkvi_fail(cache, PKV_EINVAL, "%s: max_tokens is %llu, but %llu are there already",
                         caller, (unsigned long long)max_tokens, (unsigned long long)has);
    return PKV_OK;
}

/* What a sequence needs that begins with n_tokens tokens: pages, and a copy of the last one if that is
 * shared in part, beside all that a window keeps. */
static void imagine(const struct pkv_cache *cache, struct pkvi_newcomer *newcomer, uint64_t claim,
                    uint64_t n_tokens)
{
    const bool copies = n_tokens < claim && (n_tokens & (cache->page_tokens - 1u)) != 0;
    const uint64_t pages = pkvi_pages_for(cache, claim) - pkvi_pages_for(cache, n_tokens);
    for (uint32_t g = 0; g < cache->n_groups; g++)
        newcomer->need[g] =
            pkvi_min_u64(pages, pkvi_ticket_most_held(cache, NULL, g)) + (copies ? 1u : 0u);
}

pkv_status pkv_admit_probe(pkv_cache *cache, uint64_t max_tokens, uint64_t shared_tokens,
                           uint32_t *safe, uint32_t *missing, uint32_t n_groups)
{
    if (!cache) return PKV_EINVAL;
    if (!safe) return pkvi_fail(cache, PKV_EINVAL, "admit_probe: safe is NULL");
    const pkv_status status =
        check_claim(cache, "admit_probe", max_tokens, shared_tokens);
    if (status != PKV_OK) return status;
    if (missing && n_groups != cache->n_groups)
        return pkvi_fail(cache, PKV_EINVAL, "admit_probe: the cache has %u groups, not %u",
                         cache->n_groups, n_groups);
    /* Who holds them is not known: as many as there are may be cached ones, which count as free now. */
    const uint64_t shared = shared_tokens >> cache->page_shift;
    struct pkvi_newcomer newcomer = {.grant = NULL};
    imagine(cache, &newcomer, max_tokens, shared << cache->page_shift);
    for (uint32_t g = 0; g < cache->n_groups; g++)
        newcomer.idle[g] =
            pkvi_min_u64(pkvi_min_u64(shared, pkvi_ticket_most_held(cache, NULL, g)),
                         pkvi_pool_cached(&cache->groups[g].pool));
    pkvi_mutex_lock(&cache->admission_lock);
    *safe = is_safe(cache, &newcomer, NULL, missing);
    pkvi_mutex_unlock(&cache->admission_lock);
    return PKV_OK;
}

#define LEAST_OUTLOOK 32u /* up to available_bytes */

/* What probe_match is given, but for the match. */
static pkv_status check_outlook(struct pkv_cache *cache, const pkv_match *match,
                                uint64_t max_tokens, const pkv_admit_outlook *outlook,
                                const uint32_t *missing, uint32_t n_groups)
{
    if (!outlook) return pkvi_fail(cache, PKV_EINVAL, "admit_probe_match: outlook is NULL");
    if (!pkvi_size_known(outlook->struct_size, LEAST_OUTLOOK, sizeof *outlook))
        return pkvi_fail(cache, PKV_EVERSION, "admit_probe_match: struct_size %zu is unknown",
                         outlook->struct_size);
    if (missing && n_groups != cache->n_groups)
        return pkvi_fail(cache, PKV_EINVAL, "admit_probe_match: the cache has %u groups, not %u",
                         cache->n_groups, n_groups);
    return check_claim(cache, "admit_probe_match", max_tokens,
                                      match ? match->n_tokens : 0);
}

/* What the prefix index asks while it is locked: a match that is looked at does not get stale. */
struct question {
    struct pkv_cache *cache;
    struct pkvi_newcomer newcomer;
    pkv_admit_outlook *outlook;
    uint32_t *missing;
    bool safe;
};

static pkv_status answer(void *context, const struct pkvi_prefix_grant *grant)
{
    struct question *q = context;
    q->newcomer.grant = grant;
    memcpy(q->newcomer.idle, grant->idle, sizeof grant->idle);
    q->safe = is_safe(q->cache, &q->newcomer, q->outlook, q->missing);
    return q->safe ? PKV_OK : PKV_EUNSAFE;
}

pkv_status pkv_admit_probe_match(pkv_cache *cache, const pkv_match *match, uint64_t max_tokens,
                                 pkv_admit_outlook *outlook, uint32_t *missing, uint32_t n_groups)
{
    if (!cache) return PKV_EINVAL;
    pkv_status status = PKV_OK;
    struct pkvi_prefix *prefix = NULL;
    if (match) status = pkvi_prefix_for_match(cache, "admit_probe_match", match, &prefix);
    if (status == PKV_OK)
        status = check_outlook(cache, match, max_tokens, outlook, missing, n_groups);
    if (status != PKV_OK) return status;
    pkv_admit_outlook ours = {.struct_size = sizeof ours};
    uint32_t lacking[PKV_MAX_GROUPS];
    struct question q = {.cache = cache, .outlook = &ours, .missing = lacking};
    imagine(cache, &q.newcomer, max_tokens, match ? match->n_tokens : 0);
    pkvi_mutex_lock(&cache->admission_lock);
    if (match)
        status = pkvi_prefix_look(prefix, match, answer, &q);
    else
        q.safe = is_safe(cache, &q.newcomer, q.outlook, q.missing);
    pkvi_mutex_unlock(&cache->admission_lock);
    if (status != PKV_OK && status != PKV_EUNSAFE)
        return pkvi_fail(cache, status, "admit_probe_match: %s", pkv_status_text(status));
    ours.safe = q.safe;
    pkvi_struct_write(outlook, outlook->struct_size, &ours);
    if (missing) memcpy(missing, lacking, n_groups * sizeof *missing);
    return PKV_OK;
}

/* ---- tickets -------------------------------------------------------------------------------- */

static pkv_status admit(struct pkvi_seq *seq, uint64_t max_tokens)
{
    struct pkv_cache *cache = seq->cache;
    const pkv_status status = pkvi_tickets_make_room(cache);
    if (status != PKV_OK) return status;
    pkvi_ticket_add(seq, max_tokens);
    if (is_safe(cache, NULL, NULL, NULL)) return PKV_OK;
    pkvi_ticket_remove(seq);
    return PKV_EUNSAFE;
}

static pkv_status report(struct pkv_cache *cache, const char *caller, pkv_status status,
                         uint64_t max_tokens)
{
    if (status == PKV_OK) return status;
    if (status == PKV_EUNSAFE)
        return pkvi_fail(cache, status,
                         "%s: with a claim of %llu tokens not every sequence could end", caller,
                         (unsigned long long)max_tokens);
    return pkvi_fail(cache, status, "%s: %s", caller, pkv_status_text(status));
}

pkv_status pkv_admit(pkv_seq handle, uint64_t max_tokens)
{
    struct pkvi_seq *seq;
    pkv_status status = pkvi_seq_get_idle(handle, "admit", &seq);
    if (status != PKV_OK) return status;
    struct pkv_cache *cache = handle.cache;
    status = check_claim(cache, "admit", max_tokens, seq->length);
    if (status != PKV_OK) return status;
    if (seq->claim != 0) return pkvi_fail(cache, PKV_ESTATE, "admit: the sequence has a ticket");
    pkvi_mutex_lock(&cache->admission_lock);
    status = admit(seq, max_tokens);
    pkvi_mutex_unlock(&cache->admission_lock);
    return report(cache, "admit", status, max_tokens);
}

/* Attaches under a ticket that the sequence has from the moment at which its pages are known to be
 * there. Its need is too much until they are in its tables, which nobody asks about meanwhile. */
static pkv_status attach_admitted(struct pkvi_seq *seq, struct pkvi_prefix *prefix,
                                  const pkv_match *match, uint64_t max_tokens)
{
    struct pkv_cache *cache = seq->cache;
    struct question q = {.cache = cache};
    imagine(cache, &q.newcomer, max_tokens, match->n_tokens);
    pkvi_mutex_lock(&cache->admission_lock);
    pkv_status status = pkvi_tickets_make_room(cache);
    struct pkvi_prefix_grant grant;
    if (status == PKV_OK) status = pkvi_prefix_take(seq, prefix, match, answer, &q, &grant);
    if (status == PKV_OK) pkvi_ticket_add(seq, max_tokens);
    pkvi_mutex_unlock(&cache->admission_lock);
    if (status == PKV_OK) pkvi_prefix_hand_over(seq, prefix, match->n_tokens, &grant);
    return status;
}

pkv_status pkv_admit_attach(pkv_seq handle, const pkv_match *match, uint64_t max_tokens)
{
    struct pkvi_seq *seq = NULL;
    struct pkvi_prefix *prefix = NULL;
    pkv_status status = pkvi_seq_get_idle(handle, "admit_attach", &seq);
    struct pkv_cache *cache = handle.cache;
    if (status == PKV_OK) status = pkvi_prefix_for_match(cache, "admit_attach", match, &prefix);
    if (status == PKV_OK)
        status = check_claim(cache, "admit_attach", max_tokens, match->n_tokens);
    if (status != PKV_OK) return status;
    if (seq->length != 0)
        return pkvi_fail(cache, PKV_ESTATE, "admit_attach: the sequence is not empty");
    if (seq->claim != 0)
        return pkvi_fail(cache, PKV_ESTATE, "admit_attach: the sequence has a ticket");
    return report(cache, "admit_attach", attach_admitted(seq, prefix, match, max_tokens),
                  max_tokens);
}

bool pkvi_admission_bears_pin(struct pkvi_seq *seq)
{
    struct pkv_cache *cache = seq->cache;
    pkvi_ticket_changed(seq);
    pkvi_mutex_lock(&cache->admission_lock);
    uint32_t after = stuck_after(cache, NULL, 0);
    if (after != 0) {
        seq->n_pins--;
        if (after <= stuck_after(cache, NULL, 0)) after = 0;
        seq->n_pins++;
    }
    pkvi_mutex_unlock(&cache->admission_lock);
    return after == 0;
}

pkv_status pkv_admit_release(pkv_seq handle)
{
    struct pkvi_seq *seq;
    const pkv_status status = pkvi_seq_get_idle(handle, "admit_release", &seq);
    if (status != PKV_OK) return status;
    if (seq->claim == 0)
        return pkvi_fail(handle.cache, PKV_ESTATE, "admit_release: the sequence has no ticket");
    pkvi_ticket_forget(seq);
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

/* May the ticket need at most what the sum has of it, or will that be read again? */
static bool needs_are_counted(const struct pkvi_seq *seq, uint32_t ticket)
{
    const struct pkvi_admission *admission = seq->cache->admission;
    if (admission->all_marked || !pkvi_list_empty(&seq->marked)) return true;
    uint64_t need[PKV_MAX_GROUPS];
    const struct pkvi_step no_step = {0};
    pkvi_ticket_need(seq, &no_step, NULL, need);
    bool fits = true;
    for (uint32_t g = 0; g < seq->cache->n_groups; g++)
        fits = fits &&
               need[g] <= admission->counted[(size_t)ticket * seq->cache->n_groups + g];
    return fits;
}

pkv_status pkvi_admission_verify(struct pkv_cache *cache, char *text, size_t capacity)
{
    const struct pkvi_admission *admission = cache->admission;
    for (uint32_t i = 0; i < admission->n; i++) {
        const struct pkvi_seq *seq = admission->seqs[i];
        if (seq->claim != 0 && seq->claim_index == i &&
            pkvi_slots_get(&cache->sequences, seq->id) == seq) {
            if (needs_are_counted(seq, i)) continue;
            pkvi_text(text, capacity, "admission: ticket %u may need more than is counted", i);
            return PKV_ECORRUPT;
        }
        pkvi_text(text, capacity, "admission: ticket %u does not belong to a live sequence", i);
        return PKV_ECORRUPT;
    }
    return PKV_OK;
}
