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

/* Changes the memory limit at run time. Growing always succeeds. Shrinking takes the memory of free
 * pages back, in whatever regions they lie, then reclaims unreferenced cached pages; it succeeds as
 * soon as used pages and metadata fit (pkv_cache_limit_shortfall). Otherwise the call returns
 * PKV_EBUSY and the limit stays as it was (already reclaimed cached pages stay reclaimed: they were
 * nobody's). MT-safe. O(reclaimed pages + pages of the regions touched). */
PKV_API pkv_status pkv_cache_set_limit(pkv_cache *cache, uint64_t bytes);

/* Unmaps every wholly free region now, and gives scratch and metadata of regions that are gone back.
 * *bytes (may be NULL) = bytes of page memory given back. MT-safe. */
PKV_API pkv_status pkv_cache_trim(pkv_cache *cache, uint64_t *bytes);

/* What stands in the way of a limit, in bytes. */
typedef struct pkv_limit_shortfall {
    size_t struct_size; /* set by the caller to sizeof(pkv_limit_shortfall) */
    uint64_t bytes;     /* of the following must go before the limit is accepted; 0 = it would be */
    uint64_t needed;    /* the smallest limit that would be accepted now */
    uint64_t sequences; /* pages that sequences and open batches hold */
    uint64_t host;      /* pages of which the host holds a reference */
    uint64_t magazines; /* free pages parked in magazines */
    uint64_t metadata;  /* after giving back what nobody uses */
    uint64_t cached;    /* not in the way: pages only the prefix index knows, reclaimed first. Those
                         * under a firm pin stay all the same (prefix.h). */
    uint64_t reserved[4];
} pkv_limit_shortfall;

/* Would pkv_cache_set_limit accept `bytes`, and if not, why? Changes nothing but unused scratch.
 * PKV_EINVAL, PKV_EVERSION. MT-safe; a snapshot. O(pages). */
PKV_API pkv_status pkv_cache_limit_shortfall(pkv_cache *cache, uint64_t bytes,
                                             pkv_limit_shortfall *shortfall);

/* Moves pages out of sparse regions into gaps of full ones, `max_bytes` of them at most, gives
 * regions that are empty then back, and makes split regions whole again, with huge pages, as far as
 * the limit has room. Pages of which the host holds a reference or that an open batch, an eviction
 * that can be undone or a magazine holds stay. Sequences, forks and the prefix index follow; ids,
 * addresses and exported tables that the host keeps of moved pages without a reference are stale
 * (an incremental block table writes the new ones). Needs room below the limit only for gaps whose
 * memory went back. *moved (may be NULL) = bytes moved. HOST storage; PKV_ENOTSUP otherwise;
 * PKV_ENOMEM: nothing moved. The cache must be quiescent: no other call running. O(pages + table
 * entries). */
PKV_API pkv_status pkv_cache_compact(pkv_cache *cache, uint64_t max_bytes, uint64_t *moved);

/* Copies pages from[i] to to[i] (indices inside the group), in order or not: no page occurs twice. The
 * library calls it before anything changed; any status but PKV_OK leaves everything as it was. The
 * copies must be done, or ordered before whatever uses the pages next, when it returns. It must not
 * call the library. */
typedef pkv_status (*pkv_move_fn)(void *user, uint32_t group, uint32_t n, const uint32_t *from,
                                  const uint32_t *to);

/* The same for any storage: the host copies, group by group. In an external buffer pages move to the
 * front: if nothing had to stay, those in use then lie at [0, used). Returns what `copy` returned.
 * PKV_EINVAL if copy is NULL (HOST: the library copies). */
PKV_API pkv_status pkv_cache_compact_with(pkv_cache *cache, uint64_t max_bytes, pkv_move_fn copy,
                                          void *user, uint64_t *moved);

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
    pkv_dtype dtype;      /* of keys and values, of open pages if quantised; 0 where they differ */
    uint32_t pages_per_region;
    uint64_t page_bytes;  /* bytes of one page: all layers of the group */
    uint64_t layer_bytes; /* bytes of one layer's part of a page */
    uint64_t token_bytes; /* bytes of K and V of one token in all layers of the group */
    pkv_dtype dtype_k, dtype_v;
    pkv_storage storage;
    uint32_t page_tokens;
    uint64_t open_page_bytes; /* quantised groups: bytes of an open page; else 0 */
} pkv_group_info;

PKV_API pkv_status pkv_cache_group_info(pkv_cache *cache, uint32_t group, pkv_group_info *info);

/* Number of groups with pages, and the group and the index inside it of a model layer. */
PKV_API pkv_status pkv_cache_group_count(pkv_cache *cache, uint32_t *n_groups);
PKV_API pkv_status pkv_cache_layer_group(pkv_cache *cache, uint32_t layer, uint32_t *group,
                                         uint32_t *index);

#ifdef __cplusplus
}
#endif
#endif
