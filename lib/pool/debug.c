/* Debug aids: poison on free, checksums of sealed pages. All of them touch whole pages. */
#include <string.h>

#include <xxhash.h>

#include "pool/internal.h"

/* All ones is a NaN in every float format pages may hold. */
#define POISON 0xff

void pkvi_pool_poison(const struct pkvi_pool *pool, uint32_t page)
{
    if (PKVI_LIKELY(!(pool->config.debug & PKV_DEBUG_POISON))) return;
    memset(pkvi_pool_address(pool, page), POISON, pool->config.page_bytes);
}

bool pkvi_pool_poison_intact(const struct pkvi_pool *pool, uint32_t page)
{
    if (!(pool->config.debug & PKV_DEBUG_POISON)) return true;
    const unsigned char *bytes = pkvi_pool_address(pool, page);
    size_t n = pool->config.page_bytes;
    /* Every byte equals its successor and the first is the poison. */
    return bytes[0] == POISON && memcmp(bytes, bytes + 1, n - 1) == 0;
}

uint64_t pkvi_pool_checksum(const struct pkvi_pool *pool, uint32_t page)
{
    return XXH3_64bits(pkvi_pool_address(pool, page), pool->config.page_bytes);
}

void pkvi_pool_seal(struct pkvi_pool *pool, uint32_t n, const uint32_t *pages)
{
    if (!(pool->config.debug & PKV_DEBUG_CHECKSUM)) return;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t sum = pkvi_pool_checksum(pool, pages[i]);
        pkvi_mutex_lock(&pool->lock);
        *(uint64_t *)pkvi_segvec_at(&pool->checksums, pages[i], sizeof sum) = sum;
        aux_at(pool, pages[i])->sealed = true;
        pkvi_mutex_unlock(&pool->lock);
    }
}

void pkvi_pool_unseal(struct pkvi_pool *pool, uint32_t page)
{
    if (!(pool->config.debug & PKV_DEBUG_CHECKSUM)) return;
    pkvi_mutex_lock(&pool->lock);
    aux_at(pool, page)->sealed = false;
    pkvi_mutex_unlock(&pool->lock);
}
