#ifndef PAGEDKV_PAGE_H
#define PAGEDKV_PAGE_H
#include "types.h"
#ifdef __cplusplus
extern "C" {
#endif
PKV_API pkv_status pkv_page_alloc(pkv_cache *cache, uint32_t group, uint32_t n, pkv_page *pages);
PKV_API pkv_status pkv_page_ref(pkv_cache *cache, uint32_t group, uint32_t n,
                                const pkv_page *pages);
PKV_API pkv_status pkv_page_unref(pkv_cache *cache, uint32_t group, uint32_t n,
                                  const pkv_page *pages);
PKV_API pkv_status pkv_page_refs(pkv_cache *cache, uint32_t group, pkv_page page, uint32_t *refs);
PKV_API pkv_status pkv_page_address(pkv_cache *cache, uint32_t group, pkv_page page, uint32_t layer,
                                    void **address);
typedef struct pkv_magazine pkv_magazine;
PKV_API pkv_status pkv_magazine_create(pkv_cache *cache, uint32_t group, uint32_t capacity,
                                       pkv_magazine **magazine);
PKV_API void pkv_magazine_destroy(pkv_magazine *magazine);
PKV_API pkv_status pkv_magazine_alloc(pkv_magazine *magazine, pkv_page *page);
PKV_API pkv_status pkv_magazine_free(pkv_magazine *magazine, pkv_page page);
#ifdef __cplusplus
}
#endif
#endif
