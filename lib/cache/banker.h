/* The safe-state check behind admission, over plain numbers.
 *
 * Resources are pages per group. A group takes its pages from a common stock of bytes, by the unit:
 * one page, or several small ones (pool/pool.h); those that are free in units with used pages it can
 * hand out beyond that. A state is safe if its holders can be put
 * in an order in which each can take all it may still need, end, and give back all it holds before
 * the next one's turn. See docs/architecture.md, "Admission". */
#ifndef PKVI_CACHE_BANKER_H
#define PKVI_CACHE_BANKER_H

#include <stdbool.h>
#include <stdint.h>

#include <pagedkv/types.h>

/* What can be handed out now. */
struct pkvi_bank {
    uint32_t n_groups;
    uint64_t stock;                      /* bytes that may go to any group */
    uint64_t debt;                       /* bytes that are held beyond what there is: what comes back
                                          * pays them first; stock is 0 until then */
    uint64_t free[PKV_MAX_GROUPS];       /* pages that only this group can use */
    uint64_t cap[PKV_MAX_GROUPS];        /* pages the group may take at all (max_pages) */
    uint64_t keep[PKV_MAX_GROUPS];       /* pages that must be left whenever some are handed out */
    uint64_t per_unit[PKV_MAX_GROUPS];   /* pages of a unit; 0 = the group takes none from the stock */
    uint64_t unit_bytes[PKV_MAX_GROUPS]; /* > 0 */
};

/* One holder. */
struct pkvi_holder {
    uint64_t *need;  /* [n_groups] pages it may still take before it ends */
    uint64_t *back;  /* [n_groups] pages that come back when it ends, set by `end` */
    uint64_t *units; /* [n_groups] units of which they leave nothing in use, so that they return to
                      * the stock, set by `end` */
    uint32_t id;     /* the caller's */
};

/* What the check asks about holders, in the order in which they end in its imagination. */
struct pkvi_bank_ops {
    void *context;
    /* Now that those before it have ended, the holder may need less: lowers need[] if so. May be
     * NULL. */
    void (*refresh)(void *context, struct pkvi_holder *holder);
    /* The holder ends: sets back[]. A page that several hold comes back with the last of them. */
    void (*end)(void *context, struct pkvi_holder *holder);
};

/* Can the bank hand out need[0..n_groups) now? O(groups). */
bool pkvi_bank_can(const struct pkvi_bank *bank, const uint64_t *need);

/* Takes pages out, as far as there are any; returns whether all were there. opened[] (may be NULL)
 * = units that each group took for it. O(groups). */
bool pkvi_bank_take(struct pkvi_bank *bank, const uint64_t *pages, uint64_t *opened);

/* Pages per group that need[] lacks; all zero if the bank can hand it out. */
void pkvi_bank_missing(const struct pkvi_bank *bank, const uint64_t *need, uint32_t *missing);

/* How many holders could never end; 0 = the state is safe. `order` is scratch for n entries. If
 * some are stuck and `stuck` is not NULL, *stuck is the one with the smallest need, and *bank what
 * it would find. O(n * groups), and no call of ops, if the bank can serve all at once; else O(n log
 * n + n * groups * rounds) and one end per holder, where one round suffices if there is one group.
 */
uint32_t pkvi_bank_stuck(struct pkvi_bank *bank, struct pkvi_holder *holders, uint32_t n,
                         uint32_t *order, const struct pkvi_bank_ops *ops, uint32_t *stuck);

#endif
