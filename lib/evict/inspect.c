/* evict: what can be asked about a sequence's state. */
#include <math.h>

#include "evict/evict_internal.h"

void pkvi_evict_seq_info(const struct pkvi_evict_seq *es, uint32_t group,
                         const struct pkvi_evict_target *target, pkv_evict_info *info)
{
    const struct pkvi_table *table = target->table;
    *info = (pkv_evict_info){.resident_pages = table->resident};
    if (!es) return;
    const struct pkvi_evict_state *state = &es->groups[group];
    const struct pkvi_evict_policy *policy = state->policy;
    info->pages_evicted = state->evicted;
    info->pages_restored = state->restored;
    info->tainted = pkvi_evict_tainted(es);
    info->salt = es->depend_from != UINT64_MAX && !info->tainted ? es->salt : 0;
    if (es->evict->groups[group].window == 0)
        info->dropped_tokens = (uint64_t)(table->next - table->resident) << es->evict->page_shift;
    else
        info->dropped_tokens = state->gone << es->evict->page_shift;
    if (!policy) return;
    info->kind = policy->config.kind;
    info->position_mode = policy->config.position_mode;
    info->budget_pages = policy->budget_pages;
    info->sink_pages = policy->sink_pages;
    info->window_pages = policy->recent_pages;
    info->journal_pages = state->journal.count;
    info->mass_steps = state->mass_steps;
    info->regret_checks = atomic_load_explicit(&state->regret.checks, memory_order_relaxed);
    info->regrets = atomic_load_explicit(&state->regret.hits, memory_order_relaxed);
    info->regret_steps = state->regret.step_hits;
}

void pkvi_evict_seq_scores(const struct pkvi_evict_seq *es, uint32_t group,
                           const struct pkvi_evict_target *target, uint32_t *logical, float *scores)
{
    const bool active = es && es->groups[group].policy;
    uint32_t cursor = 0, i = 0;
    struct pkvi_resident page;
    while (pkvi_table_next(target->table, &cursor, &page)) {
        logical[i] = page.logical;
        scores[i] = 0;
        if (active) {
            /* The call is only read through. */
            const struct pkvi_evict_call call =
                pkvi_evict_call((struct pkvi_evict_seq *)(uintptr_t)es, group, target);
            const struct pkvi_evict_ops *ops = call.policy->ops;
            if (!pkvi_evict_drops(ops) || page.logical < call.first || page.logical >= call.end ||
                pkvi_evict_is_pinned(&call, page.logical))
                scores[i] = INFINITY;
            else if (ops->peek)
                scores[i] = ops->peek(&call, page.slot);
        }
        i++;
    }
}

void pkvi_evict_journal_count(const struct pkvi_evict_seq *es, uint32_t group, uint32_t *holders,
                              uint32_t n_holders)
{
    if (!es) return;
    const struct pkvi_journal *journal = &es->groups[group].journal;
    for (uint32_t i = 0; i < journal->count; i++) {
        const uint32_t page = pkvi_journal_at(journal, i)->page;
        if (page < n_holders) holders[page]++;
    }
}

const char *pkvi_evict_seq_check(const struct pkvi_evict_seq *es, uint32_t group,
                                 const struct pkvi_evict_target *target)
{
    if (!es) return NULL;
    const struct pkvi_evict_state *state = &es->groups[group];
    const struct pkvi_journal *journal = &state->journal;
    if (es->depend_from > es->taint_from) return "evict: tainted before it depends";
    if (state->gone > state->evicted) return "evict: more evictions undone than made";
    if (!state->policy) return journal->count != 0 ? "evict: a journal without a policy" : NULL;
    if (journal->count > state->gone) return "evict: the journal holds undone evictions";
    uint64_t last = 0;
    for (uint32_t i = 0; i < journal->count; i++) {
        const struct pkvi_journal_entry *entry = pkvi_journal_at(journal, i);
        if (entry->length < last || entry->length > target->length)
            return "evict: journal lengths are out of order";
        if (pkvi_table_find(target->table, entry->logical) != PKVI_NO_SLOT)
            return "evict: a journalled page is resident";
        last = entry->length;
    }
    if (state->acc_n > state->acc_capacity) return "evict: accumulators are too small";
    /* Outside of a step a table may lack scores: they all are 0 then. */
    if ((state->policy->ops->needs & PKVI_NEEDS_MASS) && state->acc_n > 0 && !target->table->score)
        return "evict: scores are missing";
    return NULL;
}
