/* What bind_prefix.c and api_prefix.c share. */
#ifndef PKVI_CACHE_PREFIX_H
#define PKVI_CACHE_PREFIX_H

#include "cache/cache_internal.h"
#include "prefix/prefix.h"

struct pkvi_prefix_binding {
    struct pkv_cache *cache;
    struct pkvi_prefix *prefix;
};

static inline struct pkvi_prefix_binding *pkvi_prefix_binding_of(const struct pkv_cache *cache)
{
    return cache->hook_context[PKVI_HOOK_PREFIX];
}

static inline struct pkvi_prefix_seq *pkvi_prefix_of(const struct pkvi_seq *seq)
{
    return seq->state[PKVI_HOOK_PREFIX];
}

/* The prefix index for a function that takes a match, or a failure in its name (PKV_EINVAL,
 * PKV_EVERSION, PKV_ENOTSUP). */
pkv_status pkvi_prefix_for_match(pkv_cache *cache, const char *caller, const pkv_match *match,
                                 struct pkvi_prefix **prefix);
/* Where its pages and states are. */
static inline struct pkvi_prefix_source pkvi_prefix_source_of(const struct pkvi_seq *seq)
{
    return (struct pkvi_prefix_source){
        .tables = seq->tables, .states = pkvi_states_of(seq), .length = seq->length};
}

/* Takes a match's pages for an empty sequence if `ask` (may be NULL) agrees (pkvi_prefix_grant),
 * with room for them in its tables; then nothing can keep hand_over from giving them to it. */
pkv_status pkvi_prefix_take(struct pkvi_seq *seq, struct pkvi_prefix *prefix,
                            const pkv_match *match, pkvi_grant_fn ask, void *context,
                            struct pkvi_prefix_grant *grant);
void pkvi_prefix_hand_over(struct pkvi_seq *seq, struct pkvi_prefix *prefix, uint64_t n_tokens,
                           struct pkvi_prefix_grant *grant);

/* What an eviction policy that dropped pages allows to be published; context is the sequence's
 * eviction state. */
bool pkvi_prefix_may_publish(void *context, uint32_t logical, uint64_t *salt);

#endif
