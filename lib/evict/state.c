/* evict: the state of one sequence: creation, fork, change of policy, room for a commit. */
#include <string.h>

#include "evict/evict_internal.h"

static size_t seq_bytes(const struct pkvi_evict *evict)
{
    return sizeof(struct pkvi_evict_seq) + evict->n_groups * sizeof(struct pkvi_evict_state);
}

/* Frees what a group's state holds and leaves it without a policy; life counters stay. */
static void state_clear(struct pkvi_evict *evict, uint32_t group, struct pkvi_evict_state *state)
{
    const struct pkvi_evict_group *info = &evict->groups[group];
    struct pkvi_mem *mem = evict->mem;
    if (!state->policy) return;
    atomic_fetch_sub_explicit(&evict->n_meters, state->policy->config.regret, memory_order_relaxed);
    pkvi_evict_mass_free(state, mem);
    pkvi_evict_feed_free(&state->feed, mem);
    if (state->candidate_capacity != 0)
        pkvi_mem_free_array(mem, state->candidates, state->candidate_capacity,
                            sizeof *state->candidates);
    pkvi_journal_free(&state->journal, info->pool, mem);
    pkvi_regret_free(&state->regret, mem, info);
    pkvi_keydiff_free(state->keydiff, mem);
    pkvi_evict_policy_unref(state->policy);
    *state = (struct pkvi_evict_state){
        .evicted = state->evicted, .restored = state->restored, .gone = state->gone};
}

static void count_meter(struct pkvi_evict *evict, const struct pkvi_evict_policy *policy)
{
    atomic_fetch_add_explicit(&evict->n_meters, policy->config.regret, memory_order_relaxed);
}

/* What a policy keeps from its first moment on. */
static pkv_status state_begin(struct pkvi_evict *evict, uint32_t group,
                              struct pkvi_evict_state *state, struct pkvi_evict_policy *policy)
{
    struct pkvi_keydiff *keydiff = NULL;
    if (policy->ops->needs & PKVI_NEEDS_KEYS) {
        const pkv_status status = pkvi_keydiff_create(&keydiff, evict->mem, &evict->groups[group]);
        if (status != PKV_OK) return status;
    }
    state->policy = policy;
    state->keydiff = keydiff;
    return PKV_OK;
}

pkv_status pkvi_evict_seq_create(struct pkvi_evict *evict, bool defaults,
                                 struct pkvi_evict_seq **es)
{
    struct pkvi_evict_seq *s = pkvi_mem_zalloc(evict->mem, seq_bytes(evict));
    if (!s) return PKV_ENOMEM;
    if (!pkvi_mutex_init(&s->feeding, PKVI_RANK_EVICT, NULL)) {
        pkvi_mem_free(evict->mem, s, seq_bytes(evict));
        return PKV_ENOMEM;
    }
    s->evict = evict;
    s->depend_from = s->taint_from = s->left_out = UINT64_MAX;
    for (uint32_t g = 0; defaults && g < evict->n_groups; g++) {
        pkvi_mutex_lock(&evict->lock);
        struct pkvi_evict_policy *policy = evict->defaults[g];
        pkvi_evict_policy_ref(policy);
        pkvi_mutex_unlock(&evict->lock);
        if (!policy) continue;
        const pkv_status status = state_begin(evict, g, &s->groups[g], policy);
        if (status != PKV_OK) {
            pkvi_evict_policy_unref(policy);
            pkvi_evict_seq_destroy(s);
            return status;
        }
        count_meter(evict, policy);
    }
    *es = s;
    return PKV_OK;
}

void pkvi_evict_seq_destroy(struct pkvi_evict_seq *es)
{
    if (!es) return;
    struct pkvi_evict *evict = es->evict;
    for (uint32_t g = 0; g < evict->n_groups; g++)
        state_clear(evict, g, &es->groups[g]);
    pkvi_mutex_destroy(&es->feeding);
    pkvi_mem_free(evict->mem, es, seq_bytes(evict));
}

static pkv_status state_copy(struct pkvi_evict *evict, uint32_t group, struct pkvi_evict_state *to,
                             const struct pkvi_evict_state *from)
{
    to->evicted = from->evicted;
    to->restored = from->restored;
    to->gone = from->gone;
    if (!from->policy) return PKV_OK;
    pkvi_evict_policy_ref(from->policy);
    to->policy = from->policy;
    count_meter(evict, from->policy);
    to->steps = from->steps;
    to->mass_steps = from->mass_steps;
    to->cursor = from->cursor;
    to->unpins = from->unpins;
    pkv_status status = PKV_OK;
    if (from->keydiff) status = pkvi_keydiff_copy(&to->keydiff, from->keydiff, evict->mem);
    if (status == PKV_OK)
        status = pkvi_regret_copy(&to->regret, &from->regret, evict->mem, &evict->groups[group]);
    return status;
}

pkv_status pkvi_evict_seq_fork(const struct pkvi_evict_seq *parent, struct pkvi_evict_seq **child)
{
    struct pkvi_evict *evict = parent->evict;
    struct pkvi_evict_seq *s;
    pkv_status status = pkvi_evict_seq_create(evict, false, &s);
    if (status != PKV_OK) return status;
    s->depend_from = parent->depend_from;
    s->taint_from = parent->taint_from;
    s->salt = parent->salt;
    for (uint32_t g = 0; g < evict->n_groups && status == PKV_OK; g++)
        status = state_copy(evict, g, &s->groups[g], &parent->groups[g]);
    if (status != PKV_OK) {
        pkvi_evict_seq_destroy(s);
        return status;
    }
    *child = s;
    return PKV_OK;
}

/* A state with the policy, ready to replace the old one without further memory. */
static pkv_status prepare(struct pkvi_evict *evict, uint32_t group,
                          const struct pkvi_evict_state *old, struct pkvi_evict_state *fresh,
                          struct pkvi_evict_policy *policy, const struct pkvi_evict_target *target)
{
    *fresh = (struct pkvi_evict_state){
        .evicted = old->evicted, .restored = old->restored, .gone = old->gone};
    if (!policy) return PKV_OK;
    pkv_status status = state_begin(evict, group, fresh, policy);
    if (status == PKV_OK && (policy->ops->needs & PKVI_NEEDS_MASS))
        status = pkvi_table_enable_scores(target->table, evict->mem);
    if (status == PKV_OK && fresh->keydiff)
        status = pkvi_keydiff_reserve(fresh->keydiff, evict->mem, target->table->resident);
    return status;
}

static void apply(struct pkvi_evict_seq *es, uint32_t group, const struct pkvi_evict_state *fresh,
                  const struct pkvi_evict_target *target)
{
    struct pkvi_evict_state *state = &es->groups[group];
    struct pkvi_table *table = target->table;
    state_clear(es->evict, group, state);
    *state = *fresh;
    if (!state->policy) return;
    count_meter(es->evict, state->policy);
    if (table->score && table->end > table->head)
        memset(table->score + table->head, 0, (table->end - table->head) * sizeof *table->score);
    const struct pkvi_evict_call call = pkvi_evict_call(es, group, target);
    if (call.policy->ops->sealed) call.policy->ops->sealed(&call, 0, pkvi_evict_full_pages(&call));
}

pkv_status pkvi_evict_seq_set(struct pkvi_evict_seq *es, uint64_t groups,
                              struct pkvi_evict_policy *const *policies,
                              const struct pkvi_evict_target *targets)
{
    struct pkvi_evict *evict = es->evict;
    struct pkvi_evict_state *fresh = pkvi_mem_array(evict->mem, evict->n_groups, sizeof *fresh);
    if (!fresh) return PKV_ENOMEM;
    pkv_status status = PKV_OK;
    for (uint32_t g = 0; g < evict->n_groups && status == PKV_OK; g++)
        if (groups >> g & 1)
            status = prepare(evict, g, &es->groups[g], &fresh[g], policies[g], &targets[g]);
    for (uint32_t g = 0; g < evict->n_groups; g++) {
        if (status != PKV_OK)
            pkvi_keydiff_free(fresh[g].keydiff, evict->mem);
        else if (groups >> g & 1)
            apply(es, g, &fresh[g], &targets[g]);
    }
    pkvi_mem_free_array(evict->mem, fresh, evict->n_groups, sizeof *fresh);
    /* What comes depends on evictions of two policies: no salt says that. */
    if (status == PKV_OK && es->depend_from != UINT64_MAX)
        pkvi_evict_mark(es, targets[0].length, true);
    return status;
}

const struct pkvi_evict_policy *pkvi_evict_seq_policy(const struct pkvi_evict_seq *es,
                                                      uint32_t group)
{
    return es ? es->groups[group].policy : NULL;
}

/* ---- reserve -------------------------------------------------------------------------------- */

static pkv_status reserve_candidates(struct pkvi_evict_state *state, struct pkvi_mem *mem,
                                     uint32_t n)
{
    if (n <= state->candidate_capacity) return PKV_OK;
    const uint32_t capacity = n + n / 4 + 8;
    struct pkvi_candidate *candidates = pkvi_mem_array(mem, capacity, sizeof *candidates);
    if (!candidates) return PKV_ENOMEM;
    if (state->candidate_capacity != 0)
        pkvi_mem_free_array(mem, state->candidates, state->candidate_capacity, sizeof *candidates);
    state->candidates = candidates;
    state->candidate_capacity = capacity;
    return PKV_OK;
}

pkv_status pkvi_evict_reserve(struct pkvi_evict_seq *es, uint32_t group,
                              const struct pkvi_evict_target *target, uint32_t n_new)
{
    struct pkvi_evict_state *state = &es->groups[group];
    const struct pkvi_evict_policy *policy = state->policy;
    if (!policy) return PKV_OK;
    struct pkvi_mem *mem = es->evict->mem;
    const uint32_t resident = target->table->resident;
    const uint32_t needs = policy->ops->needs;
    /* Full pages that the commit may have to drop. */
    const uint64_t length = target->length + n_new;
    const bool tail = (length & (es->evict->page_tokens - 1)) != 0;
    const uint32_t full = resident - (tail && resident > 0);
    uint32_t drops = full > policy->budget_pages ? full - policy->budget_pages : 0;
    if (!pkvi_evict_drops(policy->ops)) drops = 0;

    pkv_status status = PKV_OK;
    if (needs & PKVI_NEEDS_MASS) {
        status = pkvi_table_enable_scores(target->table, mem);
        if (status == PKV_OK) status = pkvi_evict_mass_reserve(state, mem, resident);
    }
    if (status == PKV_OK && (needs & PKVI_NEEDS_SCORES) && drops > 0)
        status = reserve_candidates(state, mem, resident);
    if (status == PKV_OK && state->keydiff)
        status = pkvi_keydiff_reserve(state->keydiff, mem, resident);
    if (status == PKV_OK && policy->config.journal_steps > 0 && drops > 0)
        status = pkvi_journal_reserve(&state->journal, mem, drops);
    if (status == PKV_OK && policy->config.regret) {
        state->regret.due = state->regret.steps % policy->config.regret_every == 0;
        status = pkvi_regret_reserve(&state->regret, mem, &es->evict->groups[group],
                                     policy->config.regret_pages, drops);
    }
    state->reserved = true;
    state->reserved_new = n_new;
    state->skips_mass = n_new == 1 && length % policy->config.mass_every != 0;
    /* Pages at or after the tail are all resident. */
    state->reserved_full =
        resident - (target->table->next - (uint32_t)(target->length >> es->evict->page_shift));
    struct pkvi_evict_topk rule;
    if (pkvi_evict_topk(es, group, &rule)) es->left_out = target->length;
    if (status != PKV_OK) pkvi_evict_cancel(es, group);
    return status;
}

void pkvi_evict_cancel(struct pkvi_evict_seq *es, uint32_t group)
{
    struct pkvi_evict_state *state = &es->groups[group];
    if (state->acc_n != 0) memset(state->acc, 0, state->acc_n * sizeof *state->acc);
    state->acc_n = 0;
    state->feed.any = false;
    es->left_out = UINT64_MAX;
    state->reserved = false;
    state->skips_mass = false;
    atomic_store_explicit(&state->fed, 0, memory_order_relaxed);
    state->regret.due = false;
    atomic_store_explicit(&state->regret.step_hit, 0, memory_order_relaxed);
}
