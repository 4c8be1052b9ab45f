#ifndef PAGEDKV_CACHE_H
#define PAGEDKV_CACHE_H
#include "config.h"
#ifdef __cplusplus
extern "C" {
#endif
PKV_API pkv_status pkv_cache_create(const pkv_config *config, pkv_cache **cache);
PKV_API void pkv_cache_destroy(pkv_cache *cache);
PKV_API pkv_status pkv_cache_set_limit(pkv_cache *cache, uint64_t bytes);
PKV_API pkv_status pkv_cache_trim(pkv_cache *cache, uint64_t *bytes);
PKV_API pkv_status pkv_cache_verify(pkv_cache *cache, char *text, size_t capacity);
PKV_API pkv_status pkv_cache_last_error(pkv_cache *cache, char *text, size_t capacity);
typedef struct pkv_group_info {
    size_t struct_size;
    uint32_t n_layers, kv_heads, q_heads, head_dim_k, head_dim_v, window;
    pkv_dtype dtype;
    uint32_t pages_per_region;
    uint64_t page_bytes;
    uint64_t layer_bytes;
    uint64_t token_bytes;
    pkv_dtype dtype_k, dtype_v;
    pkv_storage storage;
    uint32_t page_tokens;
} pkv_group_info;
PKV_API pkv_status pkv_cache_group_info(pkv_cache *cache, uint32_t group, pkv_group_info *info);
PKV_API pkv_status pkv_cache_group_count(pkv_cache *cache, uint32_t *n_groups);
PKV_API pkv_status pkv_cache_layer_group(pkv_cache *cache, uint32_t layer, uint32_t *group,
                                         uint32_t *index);
#ifdef __cplusplus
}
#endif
#endif
