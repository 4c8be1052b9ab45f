/* pagedkv: prefix index. Finished pages of token sequences stay known after the sequence that
 * computed them ended, so that a later sequence with the same leading tokens can use them:
 *
 *     pkv_match match = {.struct_size = sizeof match};
 *     pkv_prefix_match(cache, &space, tokens, n - 1, &match);  // read-only; n - 1: the model needs
 *     pkv_seq_create(cache, &seq);                             // at least one token to run on
 *     pkv_seq_attach(seq, &match);                             // length is match.n_tokens now
 *     … batches with tokens[match.n_tokens .. n) …             // full pages are published at
 * commit
 *
 * - A match compares tokens, page by page, never only hashes. The hash that finds candidates is
 *   keyed per cache.
 * - A namespace (tenant, adapter, salt: opaque bytes) never matches another.
 * - A match may end inside a page: the page is shared, and copied when the sequence first writes.
 * - A hit is the longest prefix for which every layer group has what it needs: all pages for full
 *   attention, the pages of the window for a sliding-window group.
 * - Pages that no sequence holds stay matchable until their memory is needed. Then a replacement
 *   policy (pkv_config.prefix_policy; names: pkv_policy_name in index.h) chooses, in full-attention
 *   groups a page without published pages after it, as long as there is one that nobody holds.
 * - Token ids are what publishes: from pkv_batch_add, or later from pkv_batch_set_tokens or
 *   pkv_seq_set_tokens. A sequence publishes nothing behind a token whose id is missing.
 *
 * All functions are MT-safe; functions on a sequence as in sequence.h. They return PKV_ENOTSUP if
 * the cache was created with prefix = 0. */
#ifndef PAGEDKV_PREFIX_H
#define PAGEDKV_PREFIX_H

#include "types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A namespace: any bytes, compared exactly. NULL or size 0 = the default namespace. Copied where
 * kept. At most PKV_MAX_NAMESPACE_BYTES. */
typedef struct pkv_namespace {
    const void *bytes;
    size_t size;
} pkv_namespace;
#define PKV_MAX_NAMESPACE_BYTES 4096

/* What a match found. Plain data: no references are held, nothing needs to be released. */
typedef struct pkv_match {
    size_t struct_size; /* set by the caller to sizeof(pkv_match) */
    pkv_cache *cache;
    uint64_t n_tokens;       /* tokens that pkv_seq_attach would give; 0 = no hit */
    uint32_t n_pages;        /* full pages among them */
    uint32_t partial_tokens; /* tokens of one more, partly usable page */
    uint64_t opaque[9];      /* the library's own */
} pkv_match;

/* Finds the longest known prefix of tokens[0..n) in a namespace (NULL = default). Changes nothing
 * but counters. An unknown namespace is a match of 0 tokens. O(matched pages + log fan-out of the
 * last one). */
PKV_API pkv_status pkv_prefix_match(pkv_cache *cache, const pkv_namespace *space,
                                    const int32_t *tokens, uint64_t n, pkv_match *match);

/* As pkv_prefix_match in the sequence's namespace; if the sequence has eviction policies whose
 * drops depend on the token count alone (evict.h), pages that were computed under the same policies
 * match too. */
PKV_API pkv_status pkv_seq_match(pkv_seq seq, const int32_t *tokens, uint64_t n, pkv_match *match);

/* Makes an empty sequence hold the matched tokens and puts it into the match's namespace. All or
 * nothing: PKV_ESTALE if some matched page was reclaimed meanwhile (match again), PKV_ESTATE if the
 * sequence is not empty or lacks the eviction policies under which the pages were computed (a match
 * of pkv_seq_match with another sequence), PKV_EFOREIGN, PKV_ENOMEM. A match of 0 tokens only sets
 * the namespace. O(matched pages). */
PKV_API pkv_status pkv_seq_attach(pkv_seq seq, const pkv_match *match);

/* The namespace a sequence publishes to. Only while it is empty: PKV_ESTATE. Forks inherit it. */
PKV_API pkv_status pkv_seq_set_namespace(pkv_seq seq, const pkv_namespace *space);

/* Which token ids the index still lacks of the sequence's committed tokens: *n from position *first on.
 * 0 if it has all, or wants none because the sequence publishes nothing further. O(1). */
PKV_API pkv_status pkv_seq_missing_tokens(pkv_seq seq, uint64_t *first, uint64_t *n);

/* Gives ids of committed tokens that were not known when their batch was committed: positions
 * [first, first + n). An asynchronous host commits step n before the tokens that step n - 1 sampled
 * are known, and gives them here when they are: pages that become complete by it are published at
 * once. `first` must be the first that is missing, so that ids come in order; ids that a batch gave
 * behind such a gap are to be given again. Allowed while the sequence is in an open batch. What an
 * eviction policy or a window took meanwhile is not published. PKV_EINVAL if `first` is another
 * position or the range exceeds the sequence's length; ids that are not wanted (missing_tokens says 0)
 * are ignored. O(n). */
PKV_API pkv_status pkv_seq_set_tokens(pkv_seq seq, uint64_t first, const int32_t *tokens,
                                      uint32_t n);

/* How long pages that this sequence publishes from now on are worth keeping, for the policy
 * "priority" (lowest first, least recently used among equals; the other policies ignore it):
 * priority 0..PKV_PRIORITY_MAX for ttl_ns nanoseconds after each use (0 = for ever), then 0, behind
 * those that have 0 already. */
#define PKV_PRIORITY_DEFAULT 50
#define PKV_PRIORITY_MAX 100
PKV_API pkv_status pkv_seq_set_retention(pkv_seq seq, uint32_t priority, uint64_t ttl_ns);

/* A pin keeps matched pages from being reclaimed, under every policy, until its time runs out or it
 * is released. When nothing else is left to reclaim, the pin of the lowest priority gives way, the
 * one that ends first among equals; PKV_PIN_FIRM never does. generation << 32 | slot. */
typedef uint64_t pkv_pin;
#define PKV_PIN_FIRM (PKV_PRIORITY_MAX + 1)

/* Pins what `match` found: its full pages (and the partly used one). ttl_ns 0 = until released.
 * PKV_ESTALE as for attach, PKV_EINVAL for a match of 0 tokens. Prefer a pin that ends by itself.
 * O(log pins + pages). */
PKV_API pkv_status pkv_prefix_pin(pkv_cache *cache, const pkv_match *match, uint32_t priority,
                                  uint64_t ttl_ns, pkv_pin *pin);

/* Releases a pin. PKV_ESTALE if it was released, ran out, or gave way. O(log pins + pages). */
PKV_API pkv_status pkv_prefix_unpin(pkv_cache *cache, pkv_pin pin);

/* Forgets everything published in a namespace: nothing of it matches any more, its pins are gone,
 * and pages that no sequence holds are freed. Live sequences keep their pages and publish nothing
 * further until they are empty (pkv_seq_truncate to 0); empty ones go on as if nothing had happened.
 * *pages (may be NULL) = pages freed. O(pages of the namespace, log fan-out each). */
PKV_API pkv_status pkv_prefix_drop(pkv_cache *cache, const pkv_namespace *space, uint64_t *pages);

/* Quota of a namespace, in published pages of each layer group. */
typedef struct pkv_prefix_quota {
    size_t struct_size;   /* set by the caller */
    uint64_t share;       /* pages it may keep before it counts as beyond its share; when memory is
                           * short, namespaces beyond their share (and those without a quota) give
                           * pages in turn, the others only after them */
    uint64_t max;         /* most pages it may have published; at the limit it replaces its own;
                           * 0 = no limit */
    uint64_t reserved[2]; /* zero */
} pkv_prefix_quota;

/* Gives a namespace a quota of its own, or changes it. Only before the first page is published in
 * it, or if it has a quota already: PKV_ESTATE. PKV_ENOMEM. What is beyond a smaller max and may go
 * is freed at once, the rest when the namespace next publishes. O(1) and O(1) or O(log) a page freed.
 */
PKV_API pkv_status pkv_prefix_set_quota(pkv_cache *cache, const pkv_namespace *space,
                                        const pkv_prefix_quota *quota);

/* Counters of a namespace, kept as things happen. */
typedef struct pkv_prefix_stats {
    size_t struct_size;                        /* set by the caller */
    uint64_t lookups;                          /* matches asked for */
    uint64_t tokens_asked;                     /* their tokens */
    uint64_t tokens_hit;                       /* … of which found */
    uint64_t pages;                            /* published pages now, over all groups */
    uint64_t pages_published, pages_reclaimed; /* so far */
    uint64_t pages_duplicate; /* finished pages whose content was published already */
    uint64_t pins;            /* live pins */
    uint64_t reserved[6];
} pkv_prefix_stats;

/* PKV_EINVAL for a namespace never used. O(1). */
PKV_API pkv_status pkv_prefix_get_stats(pkv_cache *cache, const pkv_namespace *space,
                                        pkv_prefix_stats *stats);

/* A node of the index: one page of tokens behind those of its parent. */
typedef struct pkv_prefix_node {
    uint64_t id;          /* generation << 32 | number: of this node alone */
    uint64_t groups;      /* bit g: it has a page in group g; 0 = it is there for others' sake */
    uint64_t salt;        /* of the eviction policies it was computed under; 0 = none */
    uint32_t parent;      /* place of its parent in the list, UINT32_MAX for a first page */
    uint32_t depth;       /* pages before it */
    uint64_t reserved[2]; /* 0 in this version */
} pkv_prefix_node;

/* Everything that is published in a namespace, parents before their children: nodes[i] and its tokens
 * [i * page_tokens, (i + 1) * page_tokens). For a router or a tier that must know again what is
 * cached, as after events were dropped. One moment of the index, which is locked meanwhile. *n = how
 * many nodes there are; PKV_ERANGE if that exceeds capacity (nothing written but *n). An unknown
 * namespace has none. O(nodes of the namespace). */
PKV_API pkv_status pkv_prefix_list(pkv_cache *cache, const pkv_namespace *space,
                                   pkv_prefix_node *nodes, int32_t *tokens, uint32_t capacity,
                                   uint32_t *n);

/* Frees up to n cached pages of a group that nobody holds, in the policy's order; *freed (may be
 * NULL) = how many. Never needed for allocation: reserve does it by itself. O(1) or O(log) a page.
 */
PKV_API pkv_status pkv_prefix_reclaim(pkv_cache *cache, uint32_t group, uint64_t n,
                                      uint64_t *freed);

/* A stable 256-bit digest of a page and everything before it, the same in every process: SHA-256
 * over the digest before it and the page's tokens in little-endian order, starting from the
 * namespace's bytes and page_tokens. For names in remote tiers. */
typedef struct pkv_digest {
    uint8_t bytes[32];
} pkv_digest;

/* Digests of the full pages of a match: digests[0..match->n_pages). PKV_ERANGE if capacity is too
 * small, PKV_ESTALE as for attach, PKV_ENOTSUP in a build without nettle. Computed when first asked
 * for and kept with the page. O(pages). */
PKV_API pkv_status pkv_prefix_digests(pkv_cache *cache, const pkv_match *match, pkv_digest *digests,
                                      uint32_t capacity);

/* The same from tokens alone, whether published or not: n / page_tokens digests. MT-safe. */
PKV_API pkv_status pkv_digest_tokens(const pkv_namespace *space, uint32_t page_tokens,
                                     const int32_t *tokens, uint64_t n, pkv_digest *digests,
                                     uint64_t capacity);

#ifdef __cplusplus
}
#endif
#endif
