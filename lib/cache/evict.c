/* Binding of lib/evict to the cache: hooks and the public evict functions. */
#include "cache/cache_internal.h"

pkv_status pkvi_evict_bind(struct pkv_cache *cache, const pkv_config *config)
{
    (void)config;
    cache->hooks[PKVI_HOOK_EVICT] = NULL;
    cache->hook_context[PKVI_HOOK_EVICT] = NULL;
    return PKV_OK;
}
