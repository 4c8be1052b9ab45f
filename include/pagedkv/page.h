/* pagedkv: single pages, for hosts that keep their own tables (ids-only use).
 *
 * A page has a reference count. Allocating gives one reference; the page is free again when the
 * last is released. A handle whose page was freed is PKV_ESTALE in every call: double free and use
 * after free are errors, never corruption. The references of the host are counted apart from those
 * of sequences and the prefix index, so the host can only release its own: it may add a reference
 * to a page of a sequence (pkv_seq_pages), for instance while a transfer reads it, and releasing it
 * once too often is PKV_ESTALE as well. Contents of fresh pages are undefined. All calls on pages
 * are MT-safe. */
#ifndef PAGEDKV_PAGE_H
#define PAGEDKV_PAGE_H

#include "types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Allocates n pages of a group, all or nothing (PKV_ENOPAGES). O(n). */
PKV_API pkv_status pkv_page_alloc(pkv_cache *cache, uint32_t group, uint32_t n, pkv_page *pages);

/* Adds one reference to each of n pages, all or nothing. O(n). */
PKV_API pkv_status pkv_page_ref(pkv_cache *cache, uint32_t group, uint32_t n,
                                const pkv_page *pages);

/* Releases one reference of each of n pages, all or nothing (if one is stale none is touched).
 * O(n). */
PKV_API pkv_status pkv_page_unref(pkv_cache *cache, uint32_t group, uint32_t n,
                                  const pkv_page *pages);

/* References of a page. O(1). */
PKV_API pkv_status pkv_page_refs(pkv_cache *cache, uint32_t group, pkv_page page, uint32_t *refs);

/* Address of one layer's part of a page (HOST and EXTERNAL storage; PKV_ENOTSUP otherwise). `layer`
 * is the index inside the group. Valid while the caller holds a reference. O(1). */
PKV_API pkv_status pkv_page_address(pkv_cache *cache, uint32_t group, pkv_page page, uint32_t layer,
                                    void **address);

/* A magazine: a small stack of free pages that one thread at a time uses without locks. Give each
 * allocating thread its own. `capacity` pages at most (1..4096) are parked in it: they count as
 * free, but only this magazine hands them out, and their regions are not given back meanwhile.
 * Pages may cross freely: out of a magazine and back through pkv_page_unref, another magazine, or
 * the other way round. Magazines still there when the cache is destroyed go with it. */
typedef struct pkv_magazine pkv_magazine;
PKV_API pkv_status pkv_magazine_create(pkv_cache *cache, uint32_t group, uint32_t capacity,
                                       pkv_magazine **magazine);
/* Returns parked pages to the pool. NULL is allowed. */
PKV_API void pkv_magazine_destroy(pkv_magazine *magazine);
/* One page out of, or back into, the magazine; refills and spills half its capacity at a time.
 * alloc: PKV_ENOPAGES, PKV_ENOMEM, PKV_EINVAL (NULL); unlike pkv_page_alloc it takes no cached pages
 * from the prefix index. free: releases one reference; PKV_ESTALE.
 * O(1), without locks but for refills and spills. The detail of an error is not kept. */
PKV_API pkv_status pkv_magazine_alloc(pkv_magazine *magazine, pkv_page *page);
PKV_API pkv_status pkv_magazine_free(pkv_magazine *magazine, pkv_page page);

#ifdef __cplusplus
}
#endif
#endif
