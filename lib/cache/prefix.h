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

/* What an eviction policy that dropped pages allows to be published; context is the sequence's
 * eviction state. */
bool pkvi_prefix_may_publish(void *context, uint32_t logical, uint64_t *salt);

#endif
