/* The fixed points at which the cache calls the prefix index and the eviction module.
 *
 * Each of the two modules is bound to the cache by a file of this directory (bind_prefix.c,
 * bind_evict.c) that fills one `struct pkvi_hooks` and keeps a context; the modules themselves
 * (lib/prefix, lib/evict) never see a cache, a sequence or a batch. Every pointer may be NULL: the
 * point is then skipped. The cache calls the hooks in the order of their slots and undoes in the
 * opposite order. The batch points (reserve, rollback, commit) are skipped if no sequence of
 * the batch has state of the module, or all that have are marked quiet.
 *
 * Rules: a hook that returns a status may refuse, and has then changed nothing; the cache rolls
 * back what came before it. A hook that returns void cannot fail: whatever it needs was allocated
 * at an earlier point, or it does less (publication silently skipped). No cache lock is held while
 * a hook runs, except where said. */
#ifndef PKVI_CACHE_HOOKS_H
#define PKVI_CACHE_HOOKS_H

#include <stddef.h>
#include <stdint.h>

#include <pagedkv/status.h>

struct pkvi_seq;
struct pkvi_batch;

enum {
    PKVI_HOOK_STATE = 0, /* before the index, which publishes what a commit made */
    PKVI_HOOK_PREFIX = 1,
    PKVI_HOOK_EVICT = 2,
    PKVI_HOOK_OPEN = 3,
    PKVI_HOOK_SLOTS = 4
};

struct pkvi_hooks {
    /* A sequence was created: seq->state[slot] is NULL and may be set. */
    pkv_status (*seq_create)(void *context, struct pkvi_seq *seq);

    /* `child` was forked from `parent`: length, tables, pins are in place already. */
    pkv_status (*seq_fork)(void *context, const struct pkvi_seq *parent, struct pkvi_seq *child);

    /* `seq` is going away; its tables still hold its pages. Frees seq->state[slot]. Also called to
     * undo a seq_create or seq_fork whose later steps failed. */
    void (*seq_destroy)(void *context, struct pkvi_seq *seq);

    /* The logical page holds position n_tokens, which the sequence wants to be shortened to, and is
     * not in the table: will seq_truncate put it back? Changes nothing. */
    bool (*restorable)(void *context, const struct pkvi_seq *seq, uint32_t group, uint32_t logical,
                       uint64_t n_tokens);

    /* May the sequence go on at n_tokens, below its length, as far as this module is concerned? */
    bool (*can_truncate)(void *context, const struct pkvi_seq *seq, uint64_t n_tokens);

    /* `seq` is about to be shortened from seq->length to n_tokens: makes room for everything that
     * seq_truncate will put back. May refuse; what room was made may stay. */
    pkv_status (*prepare_truncate)(void *context, struct pkvi_seq *seq, uint64_t n_tokens);

    /* `seq` is being shortened from seq->length to n_tokens; length and tables are still the old
     * ones. May put pages back into the tables. */
    void (*seq_truncate)(void *context, struct pkvi_seq *seq, uint64_t n_tokens);

    /* pkvi_seq_attach filled the empty `seq` with n_tokens (length is set already). Not for the
     * slot that called it: see pkvi_seq_attach. */
    void (*seq_attach)(void *context, struct pkvi_seq *seq, uint64_t n_tokens);

    /* The last step of a reserve: pages of all new tokens are in the tables. Allocate everything
     * that commit will need. A refusal makes the whole reserve fail. batch->state[slot] is the
     * module's own, kept until commit or abort. */
    pkv_status (*reserve)(void *context, struct pkvi_batch *batch);

    /* The batch is aborted, or a later hook refused the reserve: undo `reserve`. Tables still hold
     * the reserved pages. Frees batch->state[slot]. */
    void (*rollback)(void *context, struct pkvi_batch *batch);

    /* May entry number `entry` be committed with its first `accepted` new tokens only? */
    bool (*can_accept)(void *context, const struct pkvi_batch *batch, uint32_t entry,
                       uint32_t accepted);

    /* The batch is committed: lengths have advanced by entry.accepted tokens each, surplus pages of
     * a partial commit are gone, window pages are still there. Publish full pages, observe, drop
     * pages with pkvi_seq_drop. Frees batch->state[slot]. Window release follows. */
    void (*commit)(void *context, struct pkvi_batch *batch);

    /* Pages are short: free at least n pages of `group` if that is possible without touching a
     * sequence in a batch. Returns how many pages of the group became free. `requester` is the
     * batch in need, or NULL. */
    uint32_t (*reclaim)(void *context, uint32_t group, uint32_t n, struct pkvi_batch *requester);

    /* Pages of `group` that reclaim could free for this requester, at most. */
    uint32_t (*reclaimable)(void *context, uint32_t group, const struct pkvi_batch *requester);

    /* Bytes are short: free at least `bytes` of pages over all groups (smaller limit, or another
     * group's region is needed). Returns the page bytes freed. */
    uint64_t (*reclaim_bytes)(void *context, uint64_t bytes);

    /* pkv_cache_compact: the page with this owner lies elsewhere now. The cache is quiescent. */
    void (*moved)(void *context, uint32_t group, void *owner, uint32_t page);

    /* pkv_cache_verify: adds the references that the module itself holds on pages of a group to
     * holders[page]. */
    void (*holders)(void *context, uint32_t group, uint32_t *holders, uint32_t n_holders);

    /* pkv_cache_verify: NULL-safe text of the first broken invariant, PKV_ECORRUPT. The cache is
     * quiescent. */
    pkv_status (*verify)(void *context, char *text, size_t capacity);

    /* The cache is being destroyed: all sequences are gone, pools still exist. */
    void (*destroy)(void *context);
};

#endif
