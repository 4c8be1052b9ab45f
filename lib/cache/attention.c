/* Binding of lib/attn to the cache: the public attention functions. */
#include "cache/cache_internal.h"

pkv_status pkvi_attention_bind(struct pkv_cache *cache, const pkv_config *config)
{
    (void)config;
    cache->attention = NULL;
    return PKV_OK;
}

void pkvi_attention_unbind(struct pkv_cache *cache)
{
    cache->attention = NULL;
}
