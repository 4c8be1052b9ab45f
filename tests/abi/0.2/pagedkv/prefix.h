#ifndef PAGEDKV_PREFIX_H
#define PAGEDKV_PREFIX_H
#include "types.h"
#ifdef __cplusplus
extern "C" {
#endif
typedef struct pkv_namespace {
    const void *bytes;
    size_t size;
} pkv_namespace;
#define PKV_MAX_NAMESPACE_BYTES 4096
typedef struct pkv_match {
    size_t struct_size;
    pkv_cache *cache;
    uint64_t n_tokens;
    uint32_t n_pages;
    uint32_t partial_tokens;
    uint64_t opaque[9];
} pkv_match;
PKV_API pkv_status pkv_prefix_match(pkv_cache *cache, const pkv_namespace *space,
                                    const int32_t *tokens, uint64_t n, pkv_match *match);
PKV_API pkv_status pkv_seq_match(pkv_seq seq, const int32_t *tokens, uint64_t n, pkv_match *match);
PKV_API pkv_status pkv_seq_attach(pkv_seq seq, const pkv_match *match);
PKV_API pkv_status pkv_seq_set_namespace(pkv_seq seq, const pkv_namespace *space);
#define PKV_PRIORITY_DEFAULT 50
#define PKV_PRIORITY_MAX 100
PKV_API pkv_status pkv_seq_set_retention(pkv_seq seq, uint32_t priority, uint64_t ttl_ns);
typedef uint64_t pkv_pin;
#define PKV_PIN_FIRM (PKV_PRIORITY_MAX + 1)
PKV_API pkv_status pkv_prefix_pin(pkv_cache *cache, const pkv_match *match, uint32_t priority,
                                  uint64_t ttl_ns, pkv_pin *pin);
PKV_API pkv_status pkv_prefix_unpin(pkv_cache *cache, pkv_pin pin);
PKV_API pkv_status pkv_prefix_drop(pkv_cache *cache, const pkv_namespace *space, uint64_t *pages);
typedef struct pkv_prefix_quota {
    size_t struct_size;
    uint64_t share;
    uint64_t max;
    uint64_t reserved[2];
} pkv_prefix_quota;
PKV_API pkv_status pkv_prefix_set_quota(pkv_cache *cache, const pkv_namespace *space,
                                        const pkv_prefix_quota *quota);
typedef struct pkv_prefix_stats {
    size_t struct_size;
    uint64_t lookups;
    uint64_t tokens_asked;
    uint64_t tokens_hit;
    uint64_t pages;
    uint64_t pages_published, pages_reclaimed;
    uint64_t pages_duplicate;
    uint64_t pins;
    uint64_t reserved[6];
} pkv_prefix_stats;
PKV_API pkv_status pkv_prefix_get_stats(pkv_cache *cache, const pkv_namespace *space,
                                        pkv_prefix_stats *stats);
PKV_API pkv_status pkv_prefix_reclaim(pkv_cache *cache, uint32_t group, uint64_t n,
                                      uint64_t *freed);
typedef struct pkv_digest {
    uint8_t bytes[32];
} pkv_digest;
PKV_API pkv_status pkv_prefix_digests(pkv_cache *cache, const pkv_match *match, pkv_digest *digests,
                                      uint32_t capacity);
PKV_API pkv_status pkv_digest_tokens(const pkv_namespace *space, uint32_t page_tokens,
                                     const int32_t *tokens, uint64_t n, pkv_digest *digests,
                                     uint64_t capacity);
#ifdef __cplusplus
}
#endif
#endif
