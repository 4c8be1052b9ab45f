/* prefix: the prefix index of a cache. Finished pages of sequences stay known in a tree of nodes
 * (lib/index), are matched by later sequences, and are reclaimed in the order of a replacement
 * policy, per layer group and quota domain.
 *
 * The module sees pools and page tables, never a cache, a sequence or a batch:
 * lib/cache/bind_prefix.c binds it. Every function takes the index's lock (rank PREFIX) itself and
 * is MT-safe; a pkvi_prefix_seq is used by its sequence's writer only. */
#ifndef PKVI_PREFIX_PREFIX_H
#define PKVI_PREFIX_PREFIX_H

#include <pagedkv/prefix.h>

#include "mem/mem.h"
#include "pool/pool.h"
#include "state/state.h"
#include "stats/stats.h"
#include "table/table.h"

struct pkvi_prefix;
struct pkvi_prefix_seq;

struct pkvi_prefix_group {
    struct pkvi_pool *pool;
    uint32_t window; /* tokens; 0 = full attention. A state group: PKVI_STATE_WINDOW */
};

/* What a sequence that goes on behind a page needs of a state group is the state at the page's end,
 * and nothing of earlier pages: a window of one key beside the query's own. */
#define PKVI_STATE_WINDOW 2u

struct pkvi_prefix_config {
    uint32_t page_tokens; /* power of two */
    uint32_t n_groups; /* state groups included: the last n_states */
    uint32_t n_states;
    const struct pkvi_prefix_group *groups; /* copied */
    const char *policy;                     /* NULL = "lru-leaf"; must be an online policy */
    uint64_t key[2];                        /* never {0,0} */
    pkv_clock_fn clock;
    void *clock_user;
    pkv_cache *cache; /* only ever copied into matches and compared */
};

/* Is there an online policy of this name? NULL = the default. */
bool pkvi_prefix_policy_known(const char *name);

/* Also installs the pools' idle hooks: before the second thread. PKV_EINVAL (policy), PKV_ENOMEM.
 */
pkv_status pkvi_prefix_create(const struct pkvi_prefix_config *config, struct pkvi_mem *mem,
                              struct pkvi_stats *stats, struct pkvi_lock_ranks *ranks,
                              struct pkvi_prefix **prefix);
/* All sequences are gone; frees every cached page, so the pools must still exist. */
void pkvi_prefix_destroy(struct pkvi_prefix *prefix);

/* ---- sequences ------------------------------------------------------------------------------ */

/* State of a new sequence in the default namespace. PKV_ENOMEM. O(1). */
pkv_status pkvi_prefix_seq_create(struct pkvi_prefix *prefix, struct pkvi_prefix_seq **seq);
pkv_status pkvi_prefix_seq_fork(struct pkvi_prefix *prefix, const struct pkvi_prefix_seq *parent,
                                struct pkvi_prefix_seq **child);
/* NULL is allowed. */
void pkvi_prefix_seq_destroy(struct pkvi_prefix *prefix, struct pkvi_prefix_seq *seq);
/* The sequence is being shortened to n_tokens. O(pages given up). */
void pkvi_prefix_seq_truncate(struct pkvi_prefix *prefix, struct pkvi_prefix_seq *seq,
                              uint64_t n_tokens);
/* The sequence must be empty (the caller checks). PKV_EINVAL, PKV_ENOMEM. */
pkv_status pkvi_prefix_seq_set_space(struct pkvi_prefix *prefix, struct pkvi_prefix_seq *seq,
                                     const pkv_namespace *space);
void pkvi_prefix_seq_set_retention(struct pkvi_prefix_seq *seq, uint32_t priority, uint64_t ttl_ns);

/* ---- publishing ----------------------------------------------------------------------------- */

/* Asked per finished page: under which salt (0 = none) may logical page i be published? False: not,
 * nor any later one. */
typedef bool (*pkvi_publish_fn)(void *context, uint32_t logical, uint64_t *salt);

/* Leading tokens of the sequence whose ids are known, or UINT64_MAX: it wants no more of them. */
uint64_t pkvi_prefix_seq_known(struct pkvi_prefix *prefix, struct pkvi_prefix_seq *seq);

/* Where the pages of a sequence that publishes are. */
struct pkvi_prefix_source {
    const struct pkvi_table *tables;  /* one per group with pages */
    const struct pkvi_states *states; /* NULL = there are no state groups */
    uint64_t length;                  /* position of the states' live row */
};

/* Ids of committed tokens from position `first` on. Ignored if ids before them are missing. NULL =
 * they are missing themselves. States are published at the ends of pages, where place.c wants them
 * and where the sequence has a checkpoint. `may` NULL = everything without
 * salt. Never fails: what needs memory that is refused is not published. O(1) without a finished
 * page. */
void pkvi_prefix_publish(struct pkvi_prefix *prefix, struct pkvi_prefix_seq *seq,
                         const struct pkvi_prefix_source *source, uint64_t first,
                         const int32_t *tokens, uint32_t n, pkvi_publish_fn may, void *context);
/* Where a sequence of `length` tokens that is to get n_tokens should end its next step, so that a
 * state worth publishing lies there (place.c). O(log n_tokens). */
uint64_t pkvi_prefix_seq_stop(const struct pkvi_prefix *prefix, const struct pkvi_prefix_seq *seq,
                              uint64_t length, uint64_t n_tokens);

/* ---- matching ------------------------------------------------------------------------------- */

/* See pkv_prefix_match; salt as in pkvi_evict_salt. PKV_EINVAL, PKV_ENOMEM (a new namespace). */
pkv_status pkvi_prefix_match(struct pkvi_prefix *prefix, const pkv_namespace *space,
                             const int32_t *tokens, uint64_t n, uint64_t salt, pkv_match *match);
/* The same in a sequence's namespace. */
pkv_status pkvi_prefix_match_seq(struct pkvi_prefix *prefix, const struct pkvi_prefix_seq *seq,
                                 const int32_t *tokens, uint64_t n, uint64_t salt,
                                 pkv_match *match);

/* Pages of a match with one reference each, per group: logical first[g].. first[g] + n[g] - 1. */
struct pkvi_prefix_grant {
    uint32_t first[PKV_MAX_GROUPS], n[PKV_MAX_GROUPS];
    uint32_t *pages[PKV_MAX_GROUPS]; /* into `memory` */
    uint64_t idle[PKV_MAX_GROUPS];   /* how many of them nobody held before */
    uint32_t *memory;
    size_t capacity;
    uint32_t first_salted; /* logical page; UINT32_MAX = none */
};

/* Asked, with the index locked, about pages that are about to be taken (they have no reference yet):
 * PKV_OK, or why not. Takes no lock of rank PREFIX or before. */
typedef pkv_status (*pkvi_grant_fn)(void *context, const struct pkvi_prefix_grant *grant);

/* Calls `ask` (never NULL) about the pages of a match and takes none. As grant. */
pkv_status pkvi_prefix_look(struct pkvi_prefix *prefix, const pkv_match *match, pkvi_grant_fn ask,
                            void *context);

/* Is the match whole, and may a sequence with this salt have its pages? PKV_EINVAL, PKV_EFOREIGN,
 * PKV_ESTALE; PKV_ESTATE if they were computed under an eviction policy of another salt. O(1). */
pkv_status pkvi_prefix_may_grant(struct pkvi_prefix *prefix, const pkv_match *match, uint64_t salt);
/* Takes references to what was matched, if `ask` (may be NULL) has nothing against it, and puts the
 * (empty) sequence's state behind it. On failure (as may_grant, what `ask` says, PKV_ENOMEM) nothing
 * changed. It is not undone: the caller must be able to use the pages. O(pages). */
pkv_status pkvi_prefix_grant(struct pkvi_prefix *prefix, struct pkvi_prefix_seq *seq,
                             const pkv_match *match, uint64_t salt, pkvi_grant_fn ask,
                             void *context, struct pkvi_prefix_grant *grant);
/* Frees the grant's memory; the references are the caller's. */
void pkvi_prefix_grant_free(struct pkvi_prefix *prefix, struct pkvi_prefix_grant *grant);

/* ---- reclaim, pins, quotas, namespaces ------------------------------------------------------ */

/* A page that has this owner (pkvi_pool_owner) lies elsewhere now. Quiescent. O(1). */
void pkvi_prefix_moved(struct pkvi_prefix *prefix, uint32_t group, void *owner, uint32_t page);
/* Frees up to n cached pages of a group; returns how many. */
uint64_t pkvi_prefix_reclaim_pages(struct pkvi_prefix *prefix, uint32_t group, uint64_t n);
/* Frees cached pages of any group until `bytes` are free; returns the bytes. */
uint64_t pkvi_prefix_reclaim_bytes(struct pkvi_prefix *prefix, uint64_t bytes);

pkv_status pkvi_prefix_pin(struct pkvi_prefix *prefix, const pkv_match *match, uint32_t priority,
                           uint64_t ttl_ns, pkv_pin *pin);
pkv_status pkvi_prefix_unpin(struct pkvi_prefix *prefix, pkv_pin pin);
pkv_status pkvi_prefix_drop(struct pkvi_prefix *prefix, const pkv_namespace *space,
                            uint64_t *pages);
pkv_status pkvi_prefix_set_quota(struct pkvi_prefix *prefix, const pkv_namespace *space,
                                 const pkv_prefix_quota *quota);
pkv_status pkvi_prefix_get_stats(struct pkvi_prefix *prefix, const pkv_namespace *space,
                                 pkv_prefix_stats *stats);
pkv_status pkvi_prefix_digests(struct pkvi_prefix *prefix, const pkv_match *match,
                               pkv_digest *digests, uint32_t capacity);

/* See pkv_prefix_list. PKV_EINVAL, PKV_ERANGE. */
pkv_status pkvi_prefix_list(struct pkvi_prefix *prefix, const pkv_namespace *space,
                            pkv_prefix_node *nodes, int32_t *tokens, uint32_t capacity,
                            uint32_t *n);

/* Every invariant, given all n sequences that there are (NULL among them are skipped); PKV_ECORRUPT
 * names the first broken one, PKV_ENOMEM. Quiescent only. O(nodes + sequences). */
pkv_status pkvi_prefix_verify(struct pkvi_prefix *prefix, struct pkvi_prefix_seq *const *seqs,
                              uint32_t n, char *text, size_t capacity);

#endif
