/* pagedkv: sequences. A sequence has one writer at a time; different sequences may be used from
 * different threads at once. From pkv_batch_add until the batch's commit or abort every call here that
 * would change the sequence returns PKV_EBUSY. */
#ifndef PAGEDKV_SEQUENCE_H
#define PAGEDKV_SEQUENCE_H

#include "types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Creates an empty sequence. PKV_ERANGE when max_sequences are live, PKV_ENOMEM. MT-safe, O(groups). */
PKV_API pkv_status pkv_seq_create(pkv_cache *cache, pkv_seq *seq);

/* Releases the sequence's references. Published pages stay matchable until reclaimed. A second
 * destroy is PKV_ESTALE. MT-safe for different sequences. O(pages). */
PKV_API pkv_status pkv_seq_destroy(pkv_seq seq);

/* Creates a child with the same tokens, sharing every page; whoever first writes into the shared
 * partial tail copies it (copy-on-write, at reserve). The child inherits pins and eviction policy,
 * not the admission ticket. O(pages). */
PKV_API pkv_status pkv_seq_fork(pkv_seq seq, pkv_seq *child);

/* Shortens the sequence to its first n_tokens (speculative rollback); n_tokens == length is a
 * no-op, more is PKV_EINVAL. PKV_EDROPPED if the new end lies in evicted territory, if a window
 * group no longer holds what a query at n_tokens would need, or if there are state groups and no
 * checkpoint at n_tokens > 0 (state.h); PKV_ENOMEM if evictions would have to
 * be undone (evict.h, journal_steps) and there is no memory for that. O(pages released). */
PKV_API pkv_status pkv_seq_truncate(pkv_seq seq, uint64_t n_tokens);

/* Number of committed tokens. O(1). */
PKV_API pkv_status pkv_seq_length(pkv_seq seq, uint64_t *n_tokens);

/* Keeps the pages of tokens [begin, end) from being dropped by eviction policies and by sliding
 * windows, in every group; ranges accumulate, at most 64 per sequence (PKV_ERANGE), and may reach
 * beyond the length. What is dropped already stays dropped. Forks inherit them. Unpinning removes
 * exactly one earlier range (PKV_EINVAL if there is none) and releases at once what only it kept
 * beyond a window. A pin of a sequence with a ticket (admission.h) is refused, PKV_EUNSAFE, if with
 * it fewer admitted sequences could end: a window with pins holds more pages. O(ranges + pages
 * released), and the cost of pkv_admit_probe. */
PKV_API pkv_status pkv_seq_pin(pkv_seq seq, uint64_t begin, uint64_t end);
PKV_API pkv_status pkv_seq_unpin(pkv_seq seq, uint64_t begin, uint64_t end);

typedef struct pkv_seq_info {
    size_t struct_size;      /* set by the caller */
    uint64_t length;         /* committed tokens */
    uint64_t resident_tokens;/* tokens held by the group asked for */
    uint32_t resident_pages; /* pages held by the group asked for */
    uint32_t shared_pages;   /* of these, held by others too */
    uint32_t dropped_pages;  /* full pages no longer held (evicted or out of window) */
    uint32_t in_batch;       /* 1 while part of an open batch */
} pkv_seq_info;

/* State of a sequence in one group. O(pages). */
PKV_API pkv_status pkv_seq_get_info(pkv_seq seq, uint32_t group, pkv_seq_info *info);

/* Writes the physical pages of [first, first + n) logical pages: PKV_PAGE_NONE where not held.
 * PKV_EINVAL if the range exceeds the table. While the sequence is in a reserved batch the pages of
 * the new tokens are there, too. O(n). */
PKV_API pkv_status pkv_seq_pages(pkv_seq seq, uint32_t group, uint32_t first, uint32_t n,
                                 pkv_page *pages);

#ifdef __cplusplus
}
#endif
#endif
