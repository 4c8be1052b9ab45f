/* pagedkv: creation, limits and inspection of a cache. */
#ifndef PAGEDKV_CACHE_H
#define PAGEDKV_CACHE_H

#include "config.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Creates a cache. `config` is not kept. Errors: PKV_EINVAL (NULL or a bad field: see
 * pkv_config_check for the text), PKV_EVERSION, PKV_ENOTSUP (config.isa), PKV_ENOMEM, PKV_EIO (no
 * randomness for the prefix index's key). The caller owns *cache. */
PKV_API pkv_status pkv_cache_create(const pkv_config *config, pkv_cache **cache);

/* Destroys a cache with everything in it; NULL is allowed. No other call on this cache, its
 * sequences, batches or plans may run or follow. Plans must be destroyed first. */
PKV_API void pkv_cache_destroy(pkv_cache *cache);

/* Changes the memory limit at run time. Growing always succeeds. Shrinking reclaims unreferenced
 * cached pages, then unmaps whole free regions; if what is in use does not fit the new limit the
 * call returns PKV_EBUSY and the limit stays as it was (already reclaimed cached pages stay
 * reclaimed: they were nobody's). MT-safe. O(reclaimed pages + regions). */
PKV_API pkv_status pkv_cache_set_limit(pkv_cache *cache, uint64_t bytes);

/* Unmaps every wholly free region now. *bytes (may be NULL) = bytes given back. MT-safe. */
PKV_API pkv_status pkv_cache_trim(pkv_cache *cache, uint64_t *bytes);

/* Walks every invariant (pool free lists, reference counts against all tables and the index,
 * accounting against the limit, checksums if enabled). PKV_ECORRUPT names the first broken one in
 * text[0..capacity). The cache must be quiescent: no other call running. O(everything). */
PKV_API pkv_status pkv_cache_verify(pkv_cache *cache, char *text, size_t capacity);

/* Copies the detail of the most recent failure of any call on this cache ("batch: sequence 7 is
 * listed twice") into text, NUL-terminated, and returns its code; PKV_OK and "" if none. MT-safe;
 * with several threads failing at once it is one of theirs. */
PKV_API pkv_status pkv_cache_last_error(pkv_cache *cache, char *text, size_t capacity);

/* What a group looks like after creation. */
typedef struct pkv_group_info {
    size_t struct_size; /* set by the caller to sizeof(pkv_group_info) */
    uint32_t n_layers, kv_heads, q_heads, head_dim_k, head_dim_v, window;
    pkv_dtype dtype;      /* of keys and values; 0 where they differ */
    uint32_t pages_per_region;
    uint64_t page_bytes;  /* bytes of one page: all layers of the group */
    uint64_t layer_bytes; /* bytes of one layer's part of a page */
    uint64_t token_bytes; /* bytes of K and V of one token in all layers of the group */
    pkv_dtype dtype_k, dtype_v;
    pkv_storage storage;
    uint32_t page_tokens;
} pkv_group_info;

PKV_API pkv_status pkv_cache_group_info(pkv_cache *cache, uint32_t group, pkv_group_info *info);

/* Number of groups, and the group and the index inside it of a model layer. */
PKV_API pkv_status pkv_cache_group_count(pkv_cache *cache, uint32_t *n_groups);
PKV_API pkv_status pkv_cache_layer_group(pkv_cache *cache, uint32_t layer, uint32_t *group,
                                         uint32_t *index);

#ifdef __cplusplus
}
#endif
#endif
