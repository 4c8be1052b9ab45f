/* pagedkv: batches. begin → add … → reserve → (plan, write, attend) → commit or abort.
 * Reserve is all-or-nothing over all sequences and groups. */
#ifndef PAGEDKV_BATCH_H
#define PAGEDKV_BATCH_H

#include "types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Opens a batch. PKV_ERANGE when max_batches are open. MT-safe. */
PKV_API pkv_status pkv_batch_begin(pkv_cache *cache, pkv_batch *batch);

/* Adds n_tokens new tokens (>= 1) of `seq`. `tokens` are the token ids, copied: any int32, negative
 * ones too (a host may number images or adapters there); they are only ever compared for equality.
 * NULL when the host does not know them yet (pkv_batch_set_tokens, pkv_seq_set_tokens) or does not
 * want prefix publication for them (the sequence then publishes nothing further). A
 * sequence may be added once per batch (PKV_EINVAL) and be in one batch at a time (PKV_EBUSY).
 * PKV_ERANGE beyond 2^31 - 1 tokens, PKV_EFOREIGN, PKV_ESTATE after reserve. Amortised O(1) plus the
 * copy. */
PKV_API pkv_status pkv_batch_add(pkv_batch batch, pkv_seq seq, const int32_t *tokens,
                                 uint32_t n_tokens);

/* Gives the ids of entry number `entry`'s new tokens, when they were not known at pkv_batch_add, or
 * gives others: at any time before commit or abort. n must be the entry's number of new tokens, of
 * which a partial commit takes the first. PKV_EINVAL (also for tokens NULL), PKV_ENOMEM. O(n). */
PKV_API pkv_status pkv_batch_set_tokens(pkv_batch batch, uint32_t entry, const int32_t *tokens,
                                        uint32_t n);

/* Takes entry number `entry` out again, before reserve or after one that failed; its sequence is as
 * if it had not been added. Entries behind it move up by one, order kept, so the numbers of
 * pkv_admit_check_batch, pkv_plan_set_tree and the results of exports mean the entries as they are
 * afterwards. An empty batch may be reserved and committed. PKV_EINVAL for an entry that does not exist,
 * PKV_ESTATE once reserved. O(entries + token ids behind it). */
PKV_API pkv_status pkv_batch_remove(pkv_batch batch, uint32_t entry);

/* Reserves pages for every new token, reclaiming unreferenced cached pages if needed. On
 * PKV_ENOPAGES nothing changed and pkv_batch_shortfall tells how many pages are missing; the
 * batch stays open and may be aborted, or reserved again after something was freed or an entry was
 * removed.
 * O(sequences + new pages). */
PKV_API pkv_status pkv_batch_reserve(pkv_batch batch);

/* Pages missing per group after the last failed reserve (zeros after a success). n_groups must be the
 * number of groups with pages, or of all groups: then slots missing in state groups follow. */
PKV_API pkv_status pkv_batch_shortfall(pkv_batch batch, uint32_t *missing, uint32_t n_groups);

/* Ends a reserved batch: lengths advance, full pages are sealed and published, pages that left
 * their window are released, the eviction policy runs. PKV_ESTATE without reserve. The handle is
 * stale afterwards. O(sequences + sealed pages). */
PKV_API pkv_status pkv_batch_commit(pkv_batch batch);

/* As commit, but entry i keeps only its first accepted[i] (0..n_tokens) new tokens: the verified
 * part of a speculative step. The rest is rolled back before anything is sealed or published.
 * `n` must equal the number of entries. With state groups the state after accepted[i] tokens must have
 * been asked for (pkv_batch_keep_states), else PKV_EDROPPED. */
PKV_API pkv_status pkv_batch_commit_partial(pkv_batch batch, const uint32_t *accepted, uint32_t n);

/* As commit, for entries that are trees (pkv_plan_set_tree): entry i keeps the n_kept[i] new tokens
 * whose indices inside the entry stand next in `kept`, ascending: a path from a root to the last
 * accepted node. They become its tokens in that order, with their ids; the others are rolled back
 * before anything is sealed or published. What attention and the indices see afterwards is what a step
 * with just these tokens had left, bit by bit, if each kept token's key was written for its place
 * in the path (its depth in the tree).
 *
 * HOST storage: the library moves keys and values to their new slots and seals the pages that end up full
 * once more; all layers must have been written. With other storages the host has done the copies of
 * pkv_batch_path_copies before. That the path is one of the tree is the caller's to know. `n` must
 * equal the number of entries; kept may be NULL if nothing is. PKV_EINVAL (indices not ascending or not
 * below n_tokens, another n), PKV_ENOTSUP (state groups, and an entry that leaves tokens out),
 * PKV_EDROPPED (state groups: as commit_partial), PKV_ESTATE without reserve: nothing changed, the batch
 * stays open.
 * O(commit + kept tokens that move x layers + pages behind the first of them). */
PKV_API pkv_status pkv_batch_commit_paths(pkv_batch batch, const uint32_t *kept,
                                          const uint32_t *n_kept, uint32_t n);

/* Slots [src_slot, src_slot + n_tokens) of page src, copied to dst_slot of page dst, in all layers of
 * the group. The two ranges may overlap: to be copied as if ascending, slot by slot. */
typedef struct pkv_slot_copy {
    uint32_t group;
    uint32_t open; /* 1: open pages of a quantised group (pkv_batch_open_pages) */
    pkv_page src, dst;
    uint32_t src_slot, dst_slot, n_tokens;
    uint32_t reserved[3];
} pkv_slot_copy;

/* What pkv_batch_commit_paths has to move in one entry and group, in the order in which it must be
 * done, for hosts whose pages the library does not touch: after the step and before the commit. Open
 * pages that end up full are quantised anew afterwards. Writes at most `capacity` copies and the
 * total to *n; PKV_ERANGE if capacity is too small (nothing written but *n). copies may be NULL with
 * capacity 0. Errors as pkv_batch_commit_paths. O(n_kept). */
PKV_API pkv_status pkv_batch_path_copies(pkv_batch batch, uint32_t entry, uint32_t group,
                                         const uint32_t *kept, uint32_t n_kept,
                                         pkv_slot_copy *copies, uint32_t capacity, uint32_t *n);

/* Ends a batch in any state as if it had never begun. The handle is stale afterwards. */
PKV_API pkv_status pkv_batch_abort(pkv_batch batch);

/* Number of entries and of new tokens over all entries. O(1). */
PKV_API pkv_status pkv_batch_size(pkv_batch batch, uint32_t *n_entries, uint64_t *n_tokens);

/* A page to copy before the step: copy-on-write of a shared partial tail. Executed by the library
 * for PKV_STORAGE_HOST; with other storages by the host between reserve and the step. */
typedef struct pkv_copy {
    uint32_t group;
    uint32_t n_tokens; /* token slots in use: [0, n_tokens) need copying */
    pkv_page src, dst;
    uint64_t reserved; /* 0: later versions may copy between slots other than the first */
} pkv_copy;

/* The copies of a reserved batch, in (entry, group) order, hence deterministic. Writes at most
 * `capacity` entries and the total to *n; PKV_ERANGE if capacity is too small (nothing written but
 * *n). copies may be NULL with capacity 0. */
PKV_API pkv_status pkv_batch_copies(pkv_batch batch, pkv_copy *copies, uint32_t capacity,
                                    uint32_t *n);

/* Quantised groups: an open page that gets new tokens in this step (config.h). */
typedef struct pkv_open_page {
    uint32_t logical;  /* logical page of the sequence */
    uint32_t n_tokens; /* its slots [0, n_tokens) hold tokens from before the step */
    pkv_page open;     /* where the new tokens go */
    pkv_page sealed;   /* the page of the table: quantise into it if the step fills the page */
    pkv_page from;     /* open page to copy the n_tokens from; or, with n_tokens > 0 and `open` not yet
                        * filled (see fill), PKV_PAGE_NONE: dequantise them from `sealed` */
    uint32_t fill;     /* 1: slots [0, n_tokens) must be filled before the step */
    uint32_t reserved[3];
} pkv_open_page;

/* The open pages of a reserved batch's entry in a quantised group, in logical order. HOST storage:
 * the library fills and seals them (pkv_write); with NONE the host does, after the copies of
 * pkv_batch_copies. Ids of open pages are a numbering of their own. Writes at most `capacity`
 * entries and the total to *n (0 in groups that are not quantised); PKV_ERANGE if capacity is too
 * small (nothing written but *n). pages may be NULL with capacity 0. O(pages). */
PKV_API pkv_status pkv_batch_open_pages(pkv_batch batch, uint32_t entry, uint32_t group,
                                        pkv_open_page *pages, uint32_t capacity, uint32_t *n);

#ifdef __cplusplus
}
#endif
#endif
