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

#endif
