/* evict: what happens at a commit: observe, note sealed pages, drop down to the budget. */
#include "evict/evict_internal.h"

struct pkvi_evict_call pkvi_evict_call(struct pkvi_evict_seq *es, uint32_t group,
                                       const struct pkvi_evict_target *target)
{
    struct pkvi_evict_state *state = &es->groups[group];
    const struct pkvi_evict_policy *policy = state->policy;
    const uint32_t shift = es->evict->page_shift;
    const uint64_t length = target->length;
    /* Page i is protected by the window if its last position is >= length - W. */
    const uint64_t window = policy->window_tokens;
    const uint32_t end = length > window ? (uint32_t)((length - window) >> shift) : 0;
    return (struct pkvi_evict_call){
        .es = es,
        .state = state,
        .policy = policy,
        .info = &es->evict->groups[group],
        .target = target,
        .table = target->table,
        .group = group,
        .page_shift = shift,
        .first = policy->sink_pages,
        .end = end,
    };
}

/* Resident full pages. The tail is always resident. */
static uint32_t full_resident(const struct pkvi_evict_call *call)
{
    const uint64_t mask = (UINT64_C(1) << call->page_shift) - 1;
    const uint32_t resident = call->table->resident;
    return resident - ((call->target->length & mask) != 0 && resident > 0);
}

static void observe(const struct pkvi_evict_call *call, uint32_t n_new)
{
    struct pkvi_evict_state *state = call->state;
    const uint32_t resident = call->table->resident;
    if (!pkvi_evict_mass_take(state, resident) || n_new == 0) return;
    const pkv_evict_config *config = &call->policy->config;
    if (config->pool) pkvi_evict_mass_pool(call->table, state->share, resident);
    state->mass_steps++;
    const uint32_t rows = call->policy->ops->mass_rows(config);
    call->policy->ops->observe(call, state->share, rows < n_new ? rows : n_new);
}

/* Drops one page; false if the owner refuses (then nothing changed). */
static bool drop(const struct pkvi_evict_call *call, uint32_t logical, bool journal)
{
    struct pkvi_evict_state *state = call->state;
    const struct pkvi_evict_policy *policy = call->policy;
    const uint32_t slot = pkvi_table_find(call->table, logical);
    PKVI_ASSERT(slot != PKVI_NO_SLOT);
    if (slot == PKVI_NO_SLOT) return false;
    const uint32_t page = call->table->page[slot];
    struct pkvi_journal_entry entry = {
        .length = call->target->length, .step = state->steps, .logical = logical, .page = page};
    if (call->table->score) entry.score = call->table->score[slot];

    if (policy->ops->forget) policy->ops->forget(call, logical);
    if (policy->config.regret) pkvi_regret_keep(&state->regret, call->info, logical, page);
    journal = journal && policy->config.journal_steps > 0 &&
              state->journal.count < state->journal.capacity;
    if (journal) pkvi_journal_add(&state->journal, call->info->pool, &entry);
    if (!call->target->drop(call->target->owner, call->group, logical)) return false;
    state->evicted++;
    state->gone++;
    return true;
}

/* Evictable pages with their scores, as a heap; returns how many. */
static uint32_t gather(const struct pkvi_evict_call *call)
{
    struct pkvi_evict_state *state = call->state;
    struct pkvi_candidate *list = state->candidates;
    uint32_t n = 0, cursor = 0;
    struct pkvi_resident page;
    while (n < state->candidate_capacity && pkvi_table_next(call->table, &cursor, &page)) {
        if (page.logical >= call->end) break;
        if (page.logical < call->first || pkvi_evict_is_pinned(call, page.logical)) continue;
        list[n++] = (struct pkvi_candidate){.logical = page.slot};
    }
    if (n == 0) return 0;
    call->policy->ops->score(call, list, n);
    for (uint32_t i = 0; i < n; i++) {
        list[i].score = pkvi_score_clean(list[i].score);
        list[i].logical = call->table->logical[list[i].logical];
    }
    pkvi_heap_build(list, n);
    return n;
}

static uint32_t evict_down(const struct pkvi_evict_call *call, bool journal)
{
    const struct pkvi_evict_policy *policy = call->policy;
    if (full_resident(call) <= policy->budget_pages) return 0;
    uint32_t left = policy->ops->score ? gather(call) : 0;
    uint32_t dropped = 0;
    while (full_resident(call) > policy->budget_pages) {
        uint32_t victim = PKVI_NO_PAGE;
        if (!policy->ops->score)
            victim = policy->ops->victim(call);
        else if (left > 0)
            victim = pkvi_heap_pop(call->state->candidates, &left).logical;
        if (victim == PKVI_NO_PAGE || !drop(call, victim, journal)) break;
        dropped++;
    }
    /* Pins are the host's choice, so what was dropped instead, or could not be dropped, is not a
     * function of the length. */
    const bool pinned = call->target->pinned;
    const bool kept =
        pinned && call->es->depend_from != UINT64_MAX && full_resident(call) > policy->budget_pages;
    if (dropped > 0 || kept)
        pkvi_evict_mark(call->es, call->target->length, pinned || !policy->ops->by_length);
    return dropped;
}

uint32_t pkvi_evict_commit(struct pkvi_evict_seq *es, uint32_t group,
                           const struct pkvi_evict_target *target, uint64_t old_length,
                           uint32_t n_new)
{
    struct pkvi_evict_state *state = &es->groups[group];
    const struct pkvi_evict_policy *policy = state->policy;
    if (!policy) return 0;
    const struct pkvi_evict_ops *ops = policy->ops;
    const struct pkvi_evict_call call = pkvi_evict_call(es, group, target);
    state->steps++;
    if (state->journal.count > 0 && state->steps >= policy->config.journal_steps)
        pkvi_journal_expire(&state->journal, call.info->pool,
                            state->steps - policy->config.journal_steps + 1);
    if (ops->observe) observe(&call, n_new);
    const uint32_t first = (uint32_t)(old_length >> call.page_shift);
    const uint32_t end = pkvi_evict_full_pages(&call);
    if (ops->sealed && end > first) ops->sealed(&call, first, end);
    if (policy->config.regret) {
        state->regret.steps++;
        state->regret.due = false;
        if (atomic_exchange_explicit(&state->regret.step_hit, 0, memory_order_relaxed))
            state->regret.step_hits++;
    }
    struct pkvi_evict_topk rule;
    if (n_new > 0 && pkvi_evict_topk(es, group, &rule)) pkvi_evict_mark(es, old_length, true);
    es->left_out = UINT64_MAX;
    state->reserved = false;
    state->skips_mass = false;
    return pkvi_evict_drops(ops) ? evict_down(&call, true) : 0;
}

void pkvi_evict_attached(struct pkvi_evict_seq *es, uint32_t group,
                         const struct pkvi_evict_target *target)
{
    const struct pkvi_evict_policy *policy = es->groups[group].policy;
    if (!policy) return;
    const struct pkvi_evict_call call = pkvi_evict_call(es, group, target);
    if (policy->ops->sealed) policy->ops->sealed(&call, 0, pkvi_evict_full_pages(&call));
    if (policy->ops->by_length) evict_down(&call, false);
}

bool pkvi_evict_compact(const struct pkvi_evict_seq *es, uint32_t group)
{
    if (!es) return false;
    const struct pkvi_evict_policy *policy = es->groups[group].policy;
    return policy && policy->config.position_mode == PKV_POSITION_COMPACT;
}

/* ---- truncation ----------------------------------------------------------------------------- */

bool pkvi_evict_restorable(const struct pkvi_evict_seq *es, uint32_t group, uint32_t logical,
                           uint64_t n_tokens)
{
    if (!es) return false;
    const struct pkvi_journal *journal = &es->groups[group].journal;
    for (uint32_t i = journal->count; i-- > 0;) {
        const struct pkvi_journal_entry *entry = pkvi_journal_at(journal, i);
        if (entry->length <= n_tokens) return false;
        if (entry->logical == logical) return true;
    }
    return false;
}

/* Is the entry's page wanted again at n_tokens? Not past the new end, nor out of the group's own
 * window. */
static bool comes_back(const struct pkvi_evict_seq *es, uint32_t group,
                       const struct pkvi_journal_entry *entry, uint64_t n_tokens)
{
    const uint32_t shift = es->evict->page_shift;
    const uint32_t window = es->evict->groups[group].window;
    const uint64_t seen = window != 0 && n_tokens >= window ? n_tokens - window + 1 : 0;
    return (uint64_t)entry->logical << shift < n_tokens && entry->logical >= seen >> shift;
}

uint32_t pkvi_evict_undone_pages(const struct pkvi_evict_seq *es, uint32_t group, uint64_t n_tokens)
{
    if (!es) return 0;
    const struct pkvi_journal *journal = &es->groups[group].journal;
    uint32_t n = 0;
    for (uint32_t i = journal->count; i-- > 0;) {
        const struct pkvi_journal_entry *entry = pkvi_journal_at(journal, i);
        if (entry->length <= n_tokens) break;
        n += comes_back(es, group, entry, n_tokens);
    }
    return n;
}

/* Undoes the newest journal entry. */
static void undo(const struct pkvi_evict_call *call, uint64_t n_tokens)
{
    struct pkvi_evict_state *state = call->state;
    struct pkvi_journal *journal = &state->journal;
    const struct pkvi_journal_entry entry = *pkvi_journal_at(journal, journal->count - 1);
    journal->count--;
    if (!comes_back(call->es, call->group, &entry, n_tokens)) {
        pkvi_pool_unref(call->info->pool, 1, &entry.page);
        state->gone--;
        return;
    }
    const bool restored =
        call->target->restore(call->target->owner, call->group, entry.logical, entry.page);
    PKVI_ASSERT(restored);
    if (!restored) { /* the owner made no room */
        pkvi_pool_unref(call->info->pool, 1, &entry.page);
        return;
    }
    const uint32_t slot = pkvi_table_find(call->table, entry.logical);
    if (call->table->score) call->table->score[slot] = entry.score;
    state->gone--;
    state->restored++;
    if (entry.logical < state->cursor) state->cursor = entry.logical;
    if (call->policy->config.regret)
        pkvi_regret_forget(&state->regret, call->info, entry.logical, entry.logical + 1);
    if (call->policy->ops->restored) call->policy->ops->restored(call, entry.logical);
}

/* Evictions of pages beyond the new end are no longer missed. In a window group pages are missing
 * that nobody evicted, so that only an end at 0 tells. */
static void forget_beyond(struct pkvi_evict_seq *es, uint32_t group, const struct pkvi_table *table,
                          uint64_t n_tokens)
{
    struct pkvi_evict_state *state = &es->groups[group];
    if (n_tokens == 0) state->gone = 0;
    if (state->gone == 0 || es->evict->groups[group].window != 0) return;
    const uint64_t page_tokens = UINT64_C(1) << es->evict->page_shift;
    const uint32_t pages = (uint32_t)((n_tokens + page_tokens - 1) >> es->evict->page_shift);
    uint32_t beyond = 0, slot = pkvi_table_seek(table, pages);
    struct pkvi_resident page;
    while (slot != PKVI_NO_SLOT && pkvi_table_next(table, &slot, &page))
        beyond++;
    state->gone = pkvi_min_u64(state->gone, pages - (table->resident - beyond));
}

/* Does the sequence, shortened to n_tokens, hold what a policy that decides by length alone leaves
 * to every sequence of that length? What such a policy dropped further on is not there again. */
static bool holds_by_length(const struct pkvi_evict_call *call, uint64_t n_tokens)
{
    const uint32_t window = call->info->window;
    const uint64_t seen = window != 0 && n_tokens >= window ? n_tokens - window + 1 : 0;
    const uint32_t full = (uint32_t)(n_tokens >> call->page_shift);
    const uint32_t budget = call->policy->budget_pages;
    const uint32_t recent = budget - pkvi_min_u32(call->first, budget);
    for (uint32_t l = (uint32_t)(seen >> call->page_shift); l < full; l++) {
        if (full > budget && l >= call->first && l < full - recent) l = full - recent;
        if (l < full && pkvi_table_find(call->table, l) == PKVI_NO_SLOT) return false;
    }
    return true;
}

void pkvi_evict_truncate(struct pkvi_evict_seq *es, uint32_t group,
                         const struct pkvi_evict_target *target, uint64_t n_tokens)
{
    struct pkvi_evict_state *state = &es->groups[group];
    if (!state->policy) {
        forget_beyond(es, group, target->table, n_tokens);
        return;
    }
    const struct pkvi_evict_call call = pkvi_evict_call(es, group, target);
    struct pkvi_journal *journal = &state->journal;
    while (journal->count > 0 && pkvi_journal_at(journal, journal->count - 1)->length > n_tokens)
        undo(&call, n_tokens);
    forget_beyond(es, group, target->table, n_tokens);
    if (call.policy->ops->truncate) call.policy->ops->truncate(&call, n_tokens);
    if (call.policy->ops->by_length && es->depend_from != UINT64_MAX)
        es->irregular = es->irregular || !holds_by_length(&call, n_tokens);
    const uint32_t full = (uint32_t)(n_tokens >> call.page_shift);
    if (state->cursor > full) state->cursor = full; /* pages will come again with these numbers */
    if (call.policy->config.regret) pkvi_regret_forget(&state->regret, call.info, full, UINT32_MAX);
}

uint32_t pkvi_evict_journal_pages(const struct pkvi_evict_seq *es, uint32_t group)
{
    return es ? es->groups[group].journal.count : 0;
}

uint32_t pkvi_evict_journal_release(struct pkvi_evict_seq *es, uint32_t group, uint32_t n)
{
    if (!es || !es->groups[group].policy) return 0;
    return pkvi_journal_release(&es->groups[group].journal, es->evict->groups[group].pool, n);
}
