/* Single pages and magazines: the public face of the pools. */
#include <pagedkv/page.h>

#include "cache/cache_internal.h"

/* Checks what all functions here share and finds the pool. */
static pkv_status open_pool(struct pkv_cache *cache, const char *caller, uint32_t group,
                            struct pkvi_pool **pool)
{
    if (!cache) return PKV_EINVAL;
    if (group >= cache->n_groups)
        return pkvi_fail(cache, PKV_EINVAL, "%s: group %u of %u", caller, group, cache->n_groups);
    *pool = &cache->groups[group].pool;
    return PKV_OK;
}

static pkv_status check_array(struct pkv_cache *cache, const char *caller, uint32_t n,
                              const pkv_page *pages)
{
    if (!pages && n != 0) return pkvi_fail(cache, PKV_EINVAL, "%s: pages is NULL", caller);
    return PKV_OK;
}

pkv_status pkv_page_alloc(pkv_cache *cache, uint32_t group, uint32_t n, pkv_page *pages)
{
    struct pkvi_pool *pool = NULL;
    pkv_status status = open_pool(cache, "page_alloc", group, &pool);
    if (status == PKV_OK) status = check_array(cache, "page_alloc", n, pages);
    if (status != PKV_OK) return status;
    for (int attempt = 0; attempt < PKVI_ALLOC_ATTEMPTS; attempt++) {
        status = pkvi_pool_alloc_ids(pool, n, pages);
        if (status != PKV_ENOPAGES || pkvi_cache_missing(cache, group, n, attempt != 0, NULL) != 0)
            break;
    }
    if (status == PKV_ENOPAGES)
        return pkvi_fail(cache, status, "page_alloc: group %u has no %u pages", group, n);
    if (status != PKV_OK)
        return pkvi_fail(cache, status, "page_alloc: no memory for a region of group %u", group);
    return PKV_OK;
}

pkv_status pkv_page_ref(pkv_cache *cache, uint32_t group, uint32_t n, const pkv_page *pages)
{
    struct pkvi_pool *pool = NULL;
    pkv_status status = open_pool(cache, "page_ref", group, &pool);
    if (status == PKV_OK) status = check_array(cache, "page_ref", n, pages);
    if (status != PKV_OK) return status;
    status = pkvi_pool_ref_ids(pool, n, pages);
    if (status != PKV_OK)
        return pkvi_fail(cache, status, "page_ref: a page of group %u is not in use", group);
    pkvi_tickets_changed(cache); /* it may be somebody's tail */
    return PKV_OK;
}

pkv_status pkv_page_unref(pkv_cache *cache, uint32_t group, uint32_t n, const pkv_page *pages)
{
    struct pkvi_pool *pool = NULL;
    pkv_status status = open_pool(cache, "page_unref", group, &pool);
    if (status == PKV_OK) status = check_array(cache, "page_unref", n, pages);
    if (status != PKV_OK) return status;
    status = pkvi_pool_unref_ids(pool, n, pages);
    if (status != PKV_OK)
        return pkvi_fail(cache, status, "page_unref: a page of group %u is not the host's", group);
    return PKV_OK;
}

pkv_status pkv_page_refs(pkv_cache *cache, uint32_t group, pkv_page page, uint32_t *refs)
{
    struct pkvi_pool *pool = NULL;
    pkv_status status = open_pool(cache, "page_refs", group, &pool);
    if (status != PKV_OK) return status;
    if (!refs) return pkvi_fail(cache, PKV_EINVAL, "page_refs: refs is NULL");
    status = pkvi_pool_refs_id(pool, page, refs);
    if (status != PKV_OK)
        return pkvi_fail(cache, status, "page_refs: page %#llx of group %u is not in use",
                         (unsigned long long)page, group);
    return PKV_OK;
}

pkv_status pkv_page_address(pkv_cache *cache, uint32_t group, pkv_page page, uint32_t layer,
                            void **address)
{
    struct pkvi_pool *pool = NULL;
    pkv_status status = open_pool(cache, "page_address", group, &pool);
    if (status != PKV_OK) return status;
    if (!address) return pkvi_fail(cache, PKV_EINVAL, "page_address: address is NULL");
    if (layer >= cache->groups[group].n_layers)
        return pkvi_fail(cache, PKV_EINVAL, "page_address: layer %u of %u in group %u", layer,
                         cache->groups[group].n_layers, group);
    if (cache->storage == PKV_STORAGE_NONE)
        return pkvi_fail(cache, PKV_ENOTSUP, "page_address: PKV_STORAGE_NONE has no addresses");
    status = pkvi_pool_address_id(pool, page, layer, address);
    if (status != PKV_OK)
        return pkvi_fail(cache, status, "page_address: page %#llx of group %u is not in use",
                         (unsigned long long)page, group);
    return PKV_OK;
}

pkv_status pkv_magazine_create(pkv_cache *cache, uint32_t group, uint32_t capacity,
                               pkv_magazine **magazine)
{
    struct pkvi_pool *pool = NULL;
    pkv_status status = open_pool(cache, "magazine_create", group, &pool);
    if (status != PKV_OK) return status;
    if (!magazine) return pkvi_fail(cache, PKV_EINVAL, "magazine_create: magazine is NULL");
    status = pkvi_magazine_create(pool, capacity, magazine);
    if (status == PKV_EINVAL)
        return pkvi_fail(cache, status, "magazine_create: capacity %u is not in 1..4096", capacity);
    if (status != PKV_OK)
        return pkvi_fail(cache, status, "magazine_create: no memory for %u pages", capacity);
    return PKV_OK;
}
