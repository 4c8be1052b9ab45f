/* Binding of lib/prefix to the cache: hooks and the public prefix functions. */
#include "cache/cache_internal.h"

pkv_status pkvi_prefix_bind(struct pkv_cache *cache, const pkv_config *config)
{
    (void)config;
    cache->hooks[PKVI_HOOK_PREFIX] = NULL;
    cache->hook_context[PKVI_HOOK_PREFIX] = NULL;
    return PKV_OK;
}
