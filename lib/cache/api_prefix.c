/* The public functions of the prefix index. */
#include "cache/evict.h"
#include "cache/prefix.h"

/* The module, or a failure in the name of the calling function. */
static pkv_status module_of(pkv_cache *cache, const char *caller, struct pkvi_prefix **prefix)
{
    *prefix = NULL;
    if (!cache) return PKV_EINVAL;
    if (!pkvi_prefix_binding_of(cache))
        return pkvi_fail(cache, PKV_ENOTSUP, "%s: the cache has no prefix index", caller);
    *prefix = pkvi_prefix_binding_of(cache)->prefix;
    return PKV_OK;
}

static pkv_status report(pkv_cache *cache, const char *caller, pkv_status status)
{
    if (status == PKV_OK) return PKV_OK;
    return pkvi_fail(cache, status, "%s: %s", caller, pkv_status_text(status));
}

#define LEAST_MATCH 104u /* all of it: the library's own words end it */
#define LEAST_QUOTA 24u  /* up to max */

/* What a match function is given. */
static pkv_status check_match(pkv_cache *cache, const char *caller, const int32_t *tokens,
                              uint64_t n, const pkv_match *match)
{
    if (!match || (!tokens && n != 0))
        return pkvi_fail(cache, PKV_EINVAL, "%s: a NULL argument", caller);
    if (!pkvi_size_known(match->struct_size, LEAST_MATCH, sizeof *match))
        return pkvi_fail(cache, PKV_EVERSION, "%s: struct_size %zu of the match is unknown", caller,
                         match->struct_size);
    return PKV_OK;
}

pkv_status pkv_prefix_match(pkv_cache *cache, const pkv_namespace *space, const int32_t *tokens,
                            uint64_t n, pkv_match *match)
{
    struct pkvi_prefix *prefix;
    pkv_status status = module_of(cache, "prefix_match", &prefix);
    if (status == PKV_OK) status = check_match(cache, "prefix_match", tokens, n, match);
    if (status != PKV_OK) return status;
    return report(cache, "prefix_match", pkvi_prefix_match(prefix, space, tokens, n, 0, match));
}

pkv_status pkv_seq_match(pkv_seq handle, const int32_t *tokens, uint64_t n, pkv_match *match)
{
    struct pkvi_seq *seq = NULL;
    struct pkvi_prefix *prefix = NULL;
    pkv_status status = pkvi_seq_get(handle, "seq_match", &seq);
    if (status == PKV_OK) status = module_of(handle.cache, "seq_match", &prefix);
    if (status == PKV_OK) status = check_match(handle.cache, "seq_match", tokens, n, match);
    if (status != PKV_OK) return status;
    struct pkvi_evict_seq *evict = pkvi_seq_evict(seq);
    const uint64_t salt = evict ? pkvi_evict_salt(evict) : 0;
    return report(handle.cache, "seq_match",
                  pkvi_prefix_match_seq(prefix, pkvi_prefix_of(seq), tokens, n, salt, match));
}

/* Room in the tables for what will be attached: nothing may fail once the index has moved the
 * sequence. */
static pkv_status make_room(struct pkvi_seq *seq, const pkv_match *match)
{
    struct pkv_cache *cache = seq->cache;
    const uint32_t pages = (uint32_t)pkvi_pages_for(cache, match->n_tokens);
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        const uint32_t first = pkvi_window_first(cache, &cache->groups[g], match->n_tokens);
        const uint32_t n = pages > first ? pages - first : 0;
        const pkv_status status = pkvi_table_reserve(&seq->tables[g], &cache->mem, n);
        if (status != PKV_OK) return status;
    }
    return PKV_OK;
}

pkv_status pkvi_prefix_for_match(pkv_cache *cache, const char *caller, const pkv_match *match,
                                 struct pkvi_prefix **prefix)
{
    const pkv_status status = module_of(cache, caller, prefix);
    return status == PKV_OK ? check_match(cache, caller, NULL, 0, match) : status;
}

pkv_status pkvi_prefix_take(struct pkvi_seq *seq, struct pkvi_prefix *prefix,
                            const pkv_match *match, pkvi_grant_fn ask, void *context,
                            struct pkvi_prefix_grant *grant)
{
    const uint64_t salt = pkvi_evict_salt(pkvi_seq_evict(seq));
    pkv_status status = pkvi_prefix_may_grant(prefix, match, salt);
    if (status == PKV_OK) status = make_room(seq, match);
    if (status == PKV_OK)
        status = pkvi_prefix_grant(prefix, pkvi_prefix_of(seq), match, salt, ask, context, grant);
    return status;
}

void pkvi_prefix_hand_over(struct pkvi_seq *seq, struct pkvi_prefix *prefix, uint64_t n_tokens,
                           struct pkvi_prefix_grant *grant)
{
    struct pkv_cache *cache = seq->cache;
    struct pkvi_attach attach[PKV_MAX_GROUPS];
    for (uint32_t g = 0; g < cache->n_groups; g++)
        attach[g] = (struct pkvi_attach){
            .first = grant->first[g], .n = grant->n[g], .pages = grant->pages[g]};
    const pkv_status status = pkvi_seq_attach(seq, n_tokens, attach, PKVI_HOOK_PREFIX);
    PKVI_ASSERT(status == PKV_OK); /* empty, idle, and room was made */
    (void)status;
    if (cache->states.n != 0 && n_tokens != 0) {
        uint32_t row[PKV_MAX_GROUPS];
        for (uint32_t s = 0; s < cache->states.n; s++)
            row[s] = grant->pages[cache->n_groups + s][0];
        pkvi_states_advance(&cache->states, pkvi_states_of(seq), row);
    }
    if (grant->first_salted != UINT32_MAX)
        pkvi_evict_depend(pkvi_seq_evict(seq), grant->first_salted);
    pkvi_prefix_grant_free(prefix, grant);
}

pkv_status pkv_seq_attach(pkv_seq handle, const pkv_match *match)
{
    struct pkvi_seq *seq = NULL;
    struct pkvi_prefix *prefix = NULL;
    pkv_status status = pkvi_seq_get_idle(handle, "seq_attach", &seq);
    if (status == PKV_OK)
        status = pkvi_prefix_for_match(handle.cache, "seq_attach", match, &prefix);
    if (status != PKV_OK) return status;
    if (seq->length != 0)
        return pkvi_fail(handle.cache, PKV_ESTATE, "seq_attach: the sequence is not empty");
    struct pkvi_prefix_grant grant;
    status = pkvi_prefix_take(seq, prefix, match, NULL, NULL, &grant);
    if (status == PKV_ESTATE)
        return pkvi_fail(handle.cache, status,
                         "seq_attach: the match needs an eviction policy that the sequence lacks");
    if (status != PKV_OK) return report(handle.cache, "seq_attach", status);
    pkvi_prefix_hand_over(seq, prefix, match->n_tokens, &grant);
    return PKV_OK;
}

pkv_status pkv_seq_set_namespace(pkv_seq handle, const pkv_namespace *space)
{
    struct pkvi_seq *seq = NULL;
    struct pkvi_prefix *prefix = NULL;
    pkv_status status = pkvi_seq_get_idle(handle, "seq_set_namespace", &seq);
    if (status == PKV_OK) status = module_of(handle.cache, "seq_set_namespace", &prefix);
    if (status != PKV_OK) return status;
    if (seq->length != 0)
        return pkvi_fail(handle.cache, PKV_ESTATE, "seq_set_namespace: the sequence is not empty");
    return report(handle.cache, "seq_set_namespace",
                  pkvi_prefix_seq_set_space(prefix, pkvi_prefix_of(seq), space));
}

pkv_status pkv_seq_missing_tokens(pkv_seq handle, uint64_t *first, uint64_t *n)
{
    struct pkvi_seq *seq = NULL;
    struct pkvi_prefix *prefix = NULL;
    pkv_status status = pkvi_seq_get(handle, "seq_missing_tokens", &seq);
    if (status == PKV_OK) status = module_of(handle.cache, "seq_missing_tokens", &prefix);
    if (status != PKV_OK) return status;
    if (!first || !n)
        return pkvi_fail(handle.cache, PKV_EINVAL, "seq_missing_tokens: a NULL argument");
    *first = pkvi_min_u64(pkvi_prefix_seq_known(prefix, pkvi_prefix_of(seq)), seq->length);
    *n = seq->length - *first;
    return PKV_OK;
}

/* The sequence publishes again: the commit of a batch it may be in must not be skipped. */
static void wake(struct pkvi_seq *seq)
{
    if (!seq->quiet[PKVI_HOOK_PREFIX]) return;
    seq->quiet[PKVI_HOOK_PREFIX] = false;
    const uint64_t id = atomic_load_explicit(&seq->batch, memory_order_acquire);
    struct pkvi_batch *batch;
    if (id != 0 && pkvi_batch_get((pkv_batch){seq->cache, id}, "seq_set_tokens", &batch) == PKV_OK)
        batch->n_with_state[PKVI_HOOK_PREFIX]++;
}

pkv_status pkv_seq_set_tokens(pkv_seq handle, uint64_t first, const int32_t *tokens, uint32_t n)
{
    struct pkvi_seq *seq = NULL;
    struct pkvi_prefix *prefix = NULL;
    pkv_status status = pkvi_seq_get(handle, "seq_set_tokens", &seq);
    if (status == PKV_OK) status = module_of(handle.cache, "seq_set_tokens", &prefix);
    if (status != PKV_OK) return status;
    if (!tokens && n != 0)
        return pkvi_fail(handle.cache, PKV_EINVAL, "seq_set_tokens: tokens is NULL");
    if (first > seq->length || n > seq->length - first)
        return pkvi_fail(handle.cache, PKV_EINVAL,
                         "seq_set_tokens: [%llu, +%u) of %llu committed tokens",
                         (unsigned long long)first, n, (unsigned long long)seq->length);
    const uint64_t known = pkvi_prefix_seq_known(prefix, pkvi_prefix_of(seq));
    if (known == UINT64_MAX || n == 0) return PKV_OK;
    if (first != known)
        return pkvi_fail(handle.cache, PKV_EINVAL,
                         "seq_set_tokens: the first missing id is that of token %llu, not %llu",
                         (unsigned long long)known, (unsigned long long)first);
    struct pkvi_evict_seq *evict = pkvi_seq_evict(seq);
    const struct pkvi_prefix_source source = pkvi_prefix_source_of(seq);
    pkvi_prefix_publish(prefix, pkvi_prefix_of(seq), &source, first, tokens, n,
                        evict ? pkvi_prefix_may_publish : NULL, evict);
    if (first + n == seq->length) wake(seq);
    return PKV_OK;
}

pkv_status pkv_seq_set_retention(pkv_seq handle, uint32_t priority, uint64_t ttl_ns)
{
    struct pkvi_seq *seq = NULL;
    struct pkvi_prefix *prefix = NULL;
    pkv_status status = pkvi_seq_get_idle(handle, "seq_set_retention", &seq);
    if (status == PKV_OK) status = module_of(handle.cache, "seq_set_retention", &prefix);
    if (status != PKV_OK) return status;
    if (priority > PKV_PRIORITY_MAX)
        return pkvi_fail(handle.cache, PKV_EINVAL, "seq_set_retention: priority %u exceeds %u",
                         priority, PKV_PRIORITY_MAX);
    pkvi_prefix_seq_set_retention(pkvi_prefix_of(seq), priority, ttl_ns);
    return PKV_OK;
}

pkv_status pkv_prefix_pin(pkv_cache *cache, const pkv_match *match, uint32_t priority,
                          uint64_t ttl_ns, pkv_pin *pin)
{
    struct pkvi_prefix *prefix;
    pkv_status status = module_of(cache, "prefix_pin", &prefix);
    if (status == PKV_OK) status = check_match(cache, "prefix_pin", NULL, 0, match);
    if (status != PKV_OK) return status;
    if (!pin) return pkvi_fail(cache, PKV_EINVAL, "prefix_pin: pin is NULL");
    return report(cache, "prefix_pin", pkvi_prefix_pin(prefix, match, priority, ttl_ns, pin));
}

pkv_status pkv_prefix_unpin(pkv_cache *cache, pkv_pin pin)
{
    struct pkvi_prefix *prefix;
    const pkv_status status = module_of(cache, "prefix_unpin", &prefix);
    if (status != PKV_OK) return status;
    return report(cache, "prefix_unpin", pkvi_prefix_unpin(prefix, pin));
}

pkv_status pkv_prefix_drop(pkv_cache *cache, const pkv_namespace *space, uint64_t *pages)
{
    struct pkvi_prefix *prefix;
    const pkv_status status = module_of(cache, "prefix_drop", &prefix);
    if (status != PKV_OK) return status;
    return report(cache, "prefix_drop", pkvi_prefix_drop(prefix, space, pages));
}

pkv_status pkv_prefix_set_quota(pkv_cache *cache, const pkv_namespace *space,
                                const pkv_prefix_quota *quota)
{
    struct pkvi_prefix *prefix;
    const pkv_status status = module_of(cache, "prefix_set_quota", &prefix);
    if (status != PKV_OK) return status;
    if (!quota) return pkvi_fail(cache, PKV_EINVAL, "prefix_set_quota: quota is NULL");
    pkv_prefix_quota ours;
    if (!pkvi_size_known(quota->struct_size, LEAST_QUOTA, sizeof ours))
        return pkvi_fail(cache, PKV_EVERSION, "prefix_set_quota: struct_size %zu is unknown",
                         quota->struct_size);
    pkvi_struct_read(&ours, sizeof ours, quota, quota->struct_size);
    if (ours.reserved[0] != 0 || ours.reserved[1] != 0)
        return pkvi_fail(cache, PKV_EINVAL, "prefix_set_quota: reserved is not zero");
    return report(cache, "prefix_set_quota", pkvi_prefix_set_quota(prefix, space, &ours));
}

pkv_status pkv_prefix_get_stats(pkv_cache *cache, const pkv_namespace *space,
                                pkv_prefix_stats *stats)
{
    struct pkvi_prefix *prefix;
    const pkv_status status = module_of(cache, "prefix_get_stats", &prefix);
    if (status != PKV_OK) return status;
    if (!stats) return pkvi_fail(cache, PKV_EINVAL, "prefix_get_stats: stats is NULL");
    if (!pkvi_size_known(stats->struct_size, PKVI_LEAST_OUTPUT, sizeof *stats))
        return pkvi_fail(cache, PKV_EVERSION, "prefix_get_stats: struct_size %zu is unknown",
                         stats->struct_size);
    pkv_prefix_stats ours;
    const pkv_status found = pkvi_prefix_get_stats(prefix, space, &ours);
    if (found == PKV_OK) pkvi_struct_write(stats, stats->struct_size, &ours);
    return report(cache, "prefix_get_stats", found);
}

pkv_status pkv_prefix_list(pkv_cache *cache, const pkv_namespace *space, pkv_prefix_node *nodes,
                           int32_t *tokens, uint32_t capacity, uint32_t *n)
{
    struct pkvi_prefix *prefix;
    const pkv_status status = module_of(cache, "prefix_list", &prefix);
    if (status != PKV_OK) return status;
    if (!n || (capacity != 0 && (!nodes || !tokens)))
        return pkvi_fail(cache, PKV_EINVAL, "prefix_list: a NULL argument");
    return report(cache, "prefix_list",
                  pkvi_prefix_list(prefix, space, nodes, tokens, capacity, n));
}

pkv_status pkv_prefix_reclaim(pkv_cache *cache, uint32_t group, uint64_t n, uint64_t *freed)
{
    struct pkvi_prefix *prefix;
    const pkv_status status = module_of(cache, "prefix_reclaim", &prefix);
    if (status != PKV_OK) return status;
    if (group >= pkvi_all_groups(cache))
        return pkvi_fail(cache, PKV_EINVAL, "prefix_reclaim: group %u of %u", group,
                         pkvi_all_groups(cache));
    const uint64_t pages = pkvi_prefix_reclaim_pages(prefix, group, n);
    if (freed) *freed = pages;
    return PKV_OK;
}

pkv_status pkv_prefix_digests(pkv_cache *cache, const pkv_match *match, pkv_digest *digests,
                              uint32_t capacity)
{
    struct pkvi_prefix *prefix;
    pkv_status status = module_of(cache, "prefix_digests", &prefix);
    if (status == PKV_OK) status = check_match(cache, "prefix_digests", NULL, 0, match);
    if (status != PKV_OK) return status;
    if (!digests && capacity != 0)
        return pkvi_fail(cache, PKV_EINVAL, "prefix_digests: digests is NULL");
    return report(cache, "prefix_digests", pkvi_prefix_digests(prefix, match, digests, capacity));
}
