/* The public eviction functions. */
#include <math.h>

#include "cache/evict.h"

static struct pkvi_evict *module_of(const struct pkv_cache *cache)
{
    return pkvi_evict_of(cache);
}

/* ---- policies ------------------------------------------------------------------------------- */

/* Is this group meant? */
static bool applies(const struct pkv_cache *cache, uint32_t asked, uint32_t group)
{
    return asked == group || (asked == PKV_EVICT_FULL_GROUPS && cache->groups[group].window == 0);
}

/* Resolves a config for every group it is meant for: policies[g], NULL elsewhere. On failure all
 * are given back. */
static pkv_status resolve(pkv_cache *cache, const char *caller, uint32_t asked,
                          const pkv_evict_config *config, struct pkvi_evict_policy **policies,
                          char *text, size_t capacity)
{
    char reason[192] = "";
    if (asked >= cache->n_groups && asked != PKV_EVICT_FULL_GROUPS) {
        pkvi_text(text, capacity, "group: %u of %u", asked, cache->n_groups);
        return pkvi_fail(cache, PKV_EINVAL, "%s: group %u of %u", caller, asked, cache->n_groups);
    }
    for (uint32_t g = 0; g < cache->n_groups; g++)
        policies[g] = NULL;
    for (uint32_t g = 0; config && g < cache->n_groups; g++) {
        if (!applies(cache, asked, g)) continue;
        const pkv_status status = pkvi_evict_policy_create(module_of(cache), g, config,
                                                           &policies[g], reason, sizeof reason);
        if (status == PKV_OK) continue;
        while (g-- > 0)
            pkvi_evict_policy_unref(policies[g]);
        pkvi_text(text, capacity, "%s", reason);
        return pkvi_fail(cache, status, "%s: %s", caller, reason);
    }
    pkvi_text(text, capacity, "%s", "");
    return PKV_OK;
}

pkv_status pkv_evict_check(pkv_cache *cache, uint32_t group, const pkv_evict_config *config,
                           char *text, size_t capacity)
{
    if (!cache || !config) return PKV_EINVAL;
    struct pkvi_evict_policy *policies[PKV_MAX_GROUPS];
    const pkv_status status =
        resolve(cache, "evict_check", group, config, policies, text, capacity);
    for (uint32_t g = 0; status == PKV_OK && g < cache->n_groups; g++)
        pkvi_evict_policy_unref(policies[g]);
    return status;
}

pkv_status pkv_cache_set_evict(pkv_cache *cache, uint32_t group, const pkv_evict_config *config)
{
    if (!cache) return PKV_EINVAL;
    struct pkvi_evict_policy *policies[PKV_MAX_GROUPS];
    const pkv_status status = resolve(cache, "cache_set_evict", group, config, policies, NULL, 0);
    for (uint32_t g = 0; status == PKV_OK && g < cache->n_groups; g++)
        if (applies(cache, group, g)) pkvi_evict_set_default(module_of(cache), g, policies[g]);
    return status;
}

pkv_status pkv_seq_set_evict(pkv_seq handle, uint32_t group, const pkv_evict_config *config)
{
    struct pkvi_seq *seq;
    pkv_status status = pkvi_seq_get_idle(handle, "seq_set_evict", &seq);
    if (status != PKV_OK) return status;
    struct pkv_cache *cache = handle.cache;
    struct pkvi_evict_policy *policies[PKV_MAX_GROUPS];
    status = resolve(cache, "seq_set_evict", group, config, policies, NULL, 0);
    if (status != PKV_OK) return status;

    struct pkvi_evict_seq *es = pkvi_seq_evict(seq);
    if (!es) status = pkvi_evict_seq_create(module_of(cache), false, &es);
    struct pkvi_evict_target targets[PKV_MAX_GROUPS];
    uint64_t groups = 0;
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        targets[g] = pkvi_evict_target_of(seq, g);
        if (applies(cache, group, g)) groups |= UINT64_C(1) << g;
    }
    if (status == PKV_OK) status = pkvi_evict_seq_set(es, groups, policies, targets);
    if (status == PKV_OK) {
        seq->state[PKVI_HOOK_EVICT] = es;
        return PKV_OK;
    }
    for (uint32_t g = 0; g < cache->n_groups; g++)
        pkvi_evict_policy_unref(policies[g]);
    if (es && es != pkvi_seq_evict(seq)) pkvi_evict_seq_destroy(es);
    return pkvi_fail(cache, status, "seq_set_evict: no memory for the policy's state");
}

/* ---- questions ------------------------------------------------------------------------------ */

/* The sequence, and the group is in range. */
static pkv_status look_up(pkv_seq handle, uint32_t group, const void *out, const char *caller,
                          struct pkvi_seq **seq)
{
    const pkv_status status = pkvi_seq_get(handle, caller, seq);
    if (status != PKV_OK) return status;
    if (!out) return pkvi_fail(handle.cache, PKV_EINVAL, "%s: an output is NULL", caller);
    if (group >= handle.cache->n_groups)
        return pkvi_fail(handle.cache, PKV_EINVAL, "%s: group %u of %u", caller, group,
                         handle.cache->n_groups);
    return PKV_OK;
}

pkv_status pkv_seq_get_evict(pkv_seq handle, uint32_t group, pkv_evict_config *config)
{
    struct pkvi_seq *seq;
    const pkv_status status = look_up(handle, group, config, "seq_get_evict", &seq);
    if (status != PKV_OK) return status;
    if (!pkvi_evict_config_known(config->struct_size))
        return pkvi_fail(handle.cache, PKV_EVERSION, "seq_get_evict: struct_size %zu is unknown",
                         config->struct_size);
    const struct pkvi_evict_policy *policy = pkvi_evict_seq_policy(pkvi_seq_evict(seq), group);
    if (!policy) return pkv_evict_config_init(config, config->struct_size, PKV_EVICT_NONE, 0);
    pkvi_struct_write(config, config->struct_size, pkvi_evict_policy_config(policy));
    return PKV_OK;
}

pkv_status pkv_seq_position(pkv_seq handle, uint32_t group, uint64_t *position)
{
    struct pkvi_seq *seq;
    const pkv_status status = look_up(handle, group, position, "seq_position", &seq);
    if (status == PKV_OK) *position = seq->length;
    return status;
}

pkv_status pkv_seq_runs(pkv_seq handle, uint32_t group, pkv_evict_run *runs, uint32_t capacity,
                        uint32_t *n)
{
    struct pkvi_seq *seq;
    const pkv_status status = look_up(handle, group, n, "seq_runs", &seq);
    if (status != PKV_OK) return status;
    if (!runs && capacity != 0)
        return pkvi_fail(handle.cache, PKV_EINVAL, "seq_runs: runs is NULL");
    const uint32_t shift = handle.cache->page_shift;
    const struct pkvi_table *table = &seq->tables[group];
    uint32_t total = 0;
    for (struct pkvi_run run = {0}; pkvi_table_next_run(table, &run);)
        total += (uint64_t)run.first_logical << shift < seq->length;
    *n = total;
    if (total > capacity)
        return pkvi_fail(handle.cache, PKV_ERANGE, "seq_runs: room for %u of %u runs", capacity,
                         total);
    uint32_t i = 0;
    for (struct pkvi_run run = {0}; i < total && pkvi_table_next_run(table, &run); i++) {
        const uint64_t first = (uint64_t)run.first_logical << shift;
        const uint64_t end = first + ((uint64_t)run.n_pages << shift);
        runs[i] = (pkv_evict_run){
            .first = first,
            .n_tokens = pkvi_min_u64(end, seq->length) - first,
            .shift = (uint64_t)(run.first_logical - run.first_resident) << shift,
        };
    }
    return PKV_OK;
}

pkv_status pkv_seq_evict_info(pkv_seq handle, uint32_t group, pkv_evict_info *info)
{
    struct pkvi_seq *seq;
    const pkv_status status = look_up(handle, group, info, "seq_evict_info", &seq);
    if (status != PKV_OK) return status;
    if (!pkvi_size_known(info->struct_size, PKVI_LEAST_OUTPUT, sizeof *info))
        return pkvi_fail(handle.cache, PKV_EVERSION, "seq_evict_info: struct_size %zu is unknown",
                         info->struct_size);
    const struct pkvi_evict_target target = pkvi_evict_target_of(seq, group);
    pkv_evict_info ours;
    pkvi_evict_seq_info(pkvi_seq_evict(seq), group, &target, &ours);
    pkvi_struct_write(info, info->struct_size, &ours);
    return PKV_OK;
}

pkv_status pkv_seq_tainted(pkv_seq handle, uint32_t *tainted)
{
    struct pkvi_seq *seq;
    const pkv_status status = look_up(handle, 0, tainted, "seq_tainted", &seq);
    if (status == PKV_OK) *tainted = pkvi_evict_tainted(pkvi_seq_evict(seq));
    return status;
}

pkv_status pkv_seq_page_scores(pkv_seq handle, uint32_t group, uint32_t *logical, float *scores,
                               uint32_t capacity, uint32_t *n)
{
    struct pkvi_seq *seq;
    const pkv_status status = look_up(handle, group, n, "seq_page_scores", &seq);
    if (status != PKV_OK) return status;
    if ((!logical || !scores) && capacity != 0)
        return pkvi_fail(handle.cache, PKV_EINVAL, "seq_page_scores: an array is NULL");
    const struct pkvi_evict_target target = pkvi_evict_target_of(seq, group);
    *n = target.table->resident;
    if (*n > capacity)
        return pkvi_fail(handle.cache, PKV_ERANGE, "seq_page_scores: room for %u of %u pages",
                         capacity, *n);
    pkvi_evict_seq_scores(pkvi_seq_evict(seq), group, &target, logical, scores);
    return PKV_OK;
}

/* ---- mass ----------------------------------------------------------------------------------- */

pkv_status pkv_seq_feed_mass(pkv_seq handle, uint32_t group, const float *mass, uint32_t n)
{
    struct pkvi_seq *seq;
    const pkv_status status = look_up(handle, group, mass, "seq_feed_mass", &seq);
    if (status != PKV_OK) return status;
    const uint64_t id = atomic_load_explicit(&seq->batch, memory_order_acquire);
    const struct pkvi_batch *batch = id != 0 ? pkvi_slots_get(&handle.cache->batches, id) : NULL;
    if (!batch || batch->phase != PKVI_BATCH_RESERVED)
        return pkvi_fail(handle.cache, PKV_ESTATE, "seq_feed_mass: not in a reserved batch");
    if (n != seq->tables[group].resident)
        return pkvi_fail(handle.cache, PKV_EINVAL, "seq_feed_mass: %u values for %u pages", n,
                         seq->tables[group].resident);
    for (uint32_t i = 0; i < n; i++)
        if (!(mass[i] >= 0) || isinf(mass[i]))
            return pkvi_fail(handle.cache, PKV_EINVAL, "seq_feed_mass: value %u is %g", i,
                             (double)mass[i]);
    if (pkvi_evict_feed_any(pkvi_seq_evict(seq), group, mass, n) != PKV_OK)
        return pkvi_fail(handle.cache, PKV_ENOMEM, "seq_feed_mass: no memory for the sums");
    return PKV_OK;
}

pkv_status pkv_seq_wants_mass(pkv_seq handle, uint32_t group, uint32_t *wants)
{
    struct pkvi_seq *seq;
    const pkv_status status = look_up(handle, group, wants, "seq_wants_mass", &seq);
    if (status == PKV_OK) *wants = pkvi_evict_mass_rows(pkvi_seq_evict(seq), group) != 0;
    return status;
}
