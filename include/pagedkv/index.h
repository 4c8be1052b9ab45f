/* pagedkv: the prefix index on its own, without a cache.
 *
 * For hosts that manage their blocks themselves and for replaying traces. A block is identified by
 * a 64-bit number that already stands for the block and everything before it (a chained hash, or
 * the number a trace gives it); the index decides which blocks stay resident in a given number of
 * pages. The prefix index of a cache (prefix.h) is the same code, with tokens instead of numbers.
 *
 * An index is used by one thread at a time; different indexes are independent. */
#ifndef PAGEDKV_INDEX_H
#define PAGEDKV_INDEX_H

#include "config.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pkv_index pkv_index;

/* "Never used again" for next_use, and the capacity that nothing exceeds. */
#define PKV_INDEX_NEVER UINT32_MAX
#define PKV_INDEX_UNLIMITED UINT64_MAX

typedef struct pkv_index_config {
    size_t struct_size;             /* set by pkv_index_config_init */
    uint64_t pages;                 /* capacity; default PKV_INDEX_UNLIMITED */
    const char *policy;             /* by name (pkv_policy_name); NULL = "lru-leaf" */
    uint64_t memory_limit;          /* bytes of metadata; 0 = no limit (default) */
    const pkv_allocator *allocator; /* copied; NULL as in pkv_config */
    uint64_t key[2];      /* test override of the hash key: {0,0} = random; both all ones = every
                           * block in one bucket */
    size_t dense_ids;     /* every id is below this (numbered 0, 1, …): a table of 4 bytes per id
                           * finds a block, without hashing. 0 = any ids (default) */
    uint64_t reserved[7]; /* zero */
} pkv_index_config;

/* Fills defaults; PKV_EVERSION for an unknown size. */
PKV_API pkv_status pkv_index_config_init(pkv_index_config *config, size_t size);

/* PKV_EINVAL (NULL, unknown policy), PKV_EVERSION, PKV_ENOMEM. The caller owns *index. */
PKV_API pkv_status pkv_index_create(const pkv_index_config *config, pkv_index **index);
PKV_API void pkv_index_destroy(pkv_index *index); /* NULL is allowed */

/* Replays one request of n blocks, ids[0..n):
 *
 *   1. *hits = the number of leading blocks that are resident.
 *   2. All n blocks are pinned until the call ends. In order, each block is used: a resident one is
 *      the policy's hit (also beyond the first hole), another one is inserted; when the index is
 *      full the policy's victim among unpinned pages makes room, and where there is none the block
 *      is not inserted.
 *   3. The policy sees the end of the request.
 *
 * next_use[0..n): for offline policies, the number (counted from 0, one per call) of the next
 * request that uses the block, or PKV_INDEX_NEVER; NULL otherwise. partial_last: the last block is
 * not full. On PKV_ENOMEM *hits is untouched and the rest of the request was not inserted; the
 * index stays usable. PKV_ERANGE: an id is not below dense_ids; nothing has happened. O(n),
 * expected; amortised. */
PKV_API pkv_status pkv_index_replay(pkv_index *index, const uint64_t *ids, uint32_t n,
                                    const uint32_t *next_use, int partial_last, uint32_t *hits);

/* Leading blocks of ids[0..n) that are resident; changes nothing. PKV_ERANGE: the first that
 * is not is not below dense_ids. O(matched). */
PKV_API pkv_status pkv_index_match(const pkv_index *index, const uint64_t *ids, uint32_t n,
                                   uint32_t *hits);

typedef struct pkv_index_stats {
    size_t struct_size; /* set by the caller */
    uint64_t pages;     /* resident */
    uint64_t nodes;     /* with those remembered without a page */
    uint64_t metadata_bytes;
    uint64_t requests; /* replayed so far */
    uint64_t reserved[4];
} pkv_index_stats;
PKV_API pkv_status pkv_index_get_stats(const pkv_index *index, pkv_index_stats *stats);

/* Walks every invariant; PKV_ECORRUPT names the first broken one in text. O(nodes). */
PKV_API pkv_status pkv_index_verify(const pkv_index *index, char *text, size_t capacity);

/* Names of the replacement policies, i = 0, 1, … until NULL; static storage. `offline` (may be
 * NULL) = 1 if the policy needs next_use, hence cannot serve a cache. MT-safe. */
PKV_API const char *pkv_policy_name(uint32_t i, uint32_t *offline);

#ifdef __cplusplus
}
#endif
#endif
