/* pagedkv: recurrent states (Mamba, gated delta rules, short convolutions).
 *
 * A *state group* (pkv_group_config.state_bytes) has no pages: each of its layers keeps one state per
 * sequence, of a fixed size. A *slot* holds one state of all layers of the group. State groups stand
 * behind the groups with pages in pkv_config.groups; functions that take a group take one with pages,
 * functions of this header a state group, counted from 0.
 *
 * A state, once committed, is never changed. A step reads the state before its tokens in one slot
 * and writes the state after them to another:
 *
 *     pkv_batch_reserve(batch)                      also takes the slots of every entry
 *     pkv_batch_states(batch, entry, state, &from, &to, 1, &n)
 *     pkv_state_address(cache, state, to, layer, &address)
 *     … the host computes: from -> to …             (in place: it copies first)
 *     pkv_batch_commit(batch)                       `to` is the sequence's state, `from` may be freed
 *     or pkv_batch_abort(batch)                     `from` still is
 *
 * So forks share a state, a checkpoint is a further holder of the slot, and rolling back takes an
 * earlier slot: no state is ever copied by the library. Between steps a sequence holds one slot per
 * state group and one per checkpoint that nobody else has.
 *
 * Speculation: pkv_batch_keep_states asks for the states after each of the last tokens of an entry;
 * pkv_batch_commit_partial can then accept up to any of them.
 *
 * Slots count against memory_limit, and against the group's max_pages, and are reserved all or
 * nothing with the pages. They are not moved by pkv_cache_compact.
 *
 * In the prefix index (prefix.h) states are published at ends of pages: where a step of a page or more
 * ended, every 16 pages of single tokens, and where the host made a checkpoint, if the token ids are
 * known by then. A match is the longest prefix whose pages are all there and that has a state at its
 * end; pkv_seq_attach makes that state the sequence's. pkv_seq_state_stop says where a prompt's steps
 * should end. Published states that nobody holds are reclaimed like pages, by the same policy; quotas
 * count them like a group's pages. Functions of prefix.h take them for the pages of group
 * pkv_state_info.group.
 *
 * Storages: HOST; EXTERNAL and NONE by
 * the slot's index (pkv_page_index), which is dense per state group. */
#ifndef PAGEDKV_STATE_H
#define PAGEDKV_STATE_H

#include "types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- state groups --------------------------------------------------------------------------- */

typedef struct pkv_state_info {
    size_t struct_size;   /* set by the caller to sizeof(pkv_state_info) */
    uint32_t n_layers;
    uint32_t group;       /* its place in pkv_config.groups; the group of its events */
    uint64_t state_bytes; /* one layer's state */
    uint64_t layer_bytes; /* from one layer's state to the next in a slot: a multiple of 64 */
    uint64_t slot_bytes;  /* n_layers * layer_bytes */
    uint64_t slots_used;  /* held by sequences, checkpoints and reserved batches */
    uint64_t slots_free;  /* with memory, unused */
    uint64_t slots_total; /* with memory */
    uint64_t slots_cached; /* only in the prefix index: reclaimable */
    uint64_t reserved[3]; /* 0 in this version */
} pkv_state_info;

/* Number of state groups. MT-safe, O(1). */
PKV_API pkv_status pkv_cache_state_count(pkv_cache *cache, uint32_t *n);

/* Geometry and use of one. PKV_EINVAL, PKV_EVERSION (struct_size). MT-safe, O(1). */
PKV_API pkv_status pkv_cache_state_info(pkv_cache *cache, uint32_t state, pkv_state_info *info);

/* Address of one layer's state in a slot: state_bytes bytes, aligned to 64; what is in a slot that
 * nobody wrote is undefined. PKV_ESTALE for a slot that is not held, PKV_ENOTSUP with
 * PKV_STORAGE_NONE, PKV_EINVAL. MT-safe, O(1). */
PKV_API pkv_status pkv_state_address(pkv_cache *cache, uint32_t state, pkv_page slot,
                                     uint32_t layer, void **address);

/* ---- steps ---------------------------------------------------------------------------------- */

/* Entry number `entry` wants the states after each of its last n new tokens (1..its new tokens), not
 * only after the last: each takes a slot per state group until the batch ends. Before reserve, or
 * after one that failed; a later call replaces an earlier one. PKV_EINVAL, PKV_ESTATE (reserved),
 * PKV_ENOTSUP (no state groups). O(1).
 *
 * pkv_batch_commit_partial may accept none of an entry's tokens, or as many as one of these states
 * stands for: anything else is PKV_EDROPPED and the batch stays reserved. */
PKV_API pkv_status pkv_batch_keep_states(pkv_batch batch, uint32_t entry, uint32_t n);

/* Slots of a reserved batch's entry. *from: the state before its new tokens, to be read only;
 * PKV_PAGE_NONE if the sequence is empty: start from the model's initial state. to[0..*n): where the
 * states after the last *n tokens go, in order, 1 or what pkv_batch_keep_states asked for. from may
 * be NULL. PKV_ERANGE if capacity is too small (only *n is written); to may be NULL with capacity 0.
 * PKV_ESTATE unless reserved, PKV_EINVAL. O(n). */
PKV_API pkv_status pkv_batch_states(pkv_batch batch, uint32_t entry, uint32_t state, pkv_page *from,
                                    pkv_page *to, uint32_t capacity, uint32_t *n);

/* ---- sequences ------------------------------------------------------------------------------ */

/* The slot of the state after a sequence's last committed token; PKV_PAGE_NONE if it has none. Valid
 * until the sequence changes. PKV_EINVAL. O(1). */
PKV_API pkv_status pkv_seq_state(pkv_seq seq, uint32_t state, pkv_page *slot);

/* Keeps the present state, in every state group, so that pkv_seq_truncate can come back to here:
 * the slots stay held, nothing is copied. Truncating to anywhere but 0, the length, or a checkpoint
 * is PKV_EDROPPED. Forks inherit checkpoints; those behind a truncation go. A second checkpoint at
 * the same place does nothing. PKV_EINVAL for an empty sequence, PKV_EBUSY, PKV_ENOTSUP (no state
 * groups), PKV_ENOMEM. Amortised O(groups). */
PKV_API pkv_status pkv_seq_checkpoint(pkv_seq seq);

/* Gives up the checkpoint at n_tokens. PKV_EINVAL if there is none, PKV_EBUSY. O(checkpoints). */
PKV_API pkv_status pkv_seq_drop_checkpoint(pkv_seq seq, uint64_t n_tokens);

/* Positions of the sequence's checkpoints, ascending: at most `capacity` to n_tokens[], their number
 * to *n; PKV_ERANGE if capacity is too small (only *n is written); n_tokens may be NULL with
 * capacity 0. O(checkpoints). */
PKV_API pkv_status pkv_seq_checkpoints(pkv_seq seq, uint64_t *n_tokens, uint32_t capacity,
                                       uint32_t *n);

/* Where the next step of a sequence that is to get n_tokens tokens in all (its prompt) should end, so
 * that a state worth keeping is published there: *stop is in (length, n_tokens], or n_tokens if the
 * sequence has so many. The ends that follow are: where the match that was attached (one of 0 tokens,
 * too) was cut short for want of a state, the last end of a page before n_tokens, and before that
 * distances that double, from 16 pages on. A host may stop elsewhere, or more often. Without a prefix
 * index: n_tokens. PKV_EINVAL, PKV_ENOTSUP (no state groups). O(log n_tokens). */
PKV_API pkv_status pkv_seq_state_stop(pkv_seq seq, uint64_t n_tokens, uint64_t *stop);

#ifdef __cplusplus
}
#endif

#endif
