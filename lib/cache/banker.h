/* The safe-state check behind admission, over plain numbers.
 *
 * Resources are pages per group. A group can hand out the pages that are free in its own regions;
 * beyond that it takes whole regions from a common stock. A state is safe if its holders can be put
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
    uint64_t regions;                    /* regions that may go to any group */
    uint64_t free[PKV_MAX_GROUPS];       /* pages that only this group can use */
    uint64_t cap[PKV_MAX_GROUPS];        /* pages the group may take at all (max_pages) */
    uint64_t per_region[PKV_MAX_GROUPS]; /* pages that a region gives; 0 = the group takes none */
};

/* One holder. */
struct pkvi_holder {
    uint64_t *need; /* [n_groups] pages it may still take before it ends */
    uint64_t *back; /* [n_groups] pages it holds now and gives back at its end */
    bool back_known;
    uint32_t id; /* the caller's */
};

/* Fills holder->back; called at most once per holder and check, only when the answer needs it. */
typedef void (*pkvi_back_fn)(void *context, struct pkvi_holder *holder);

/* Can the bank hand out need[0..n_groups) now? O(groups). */
bool pkvi_bank_can(const struct pkvi_bank *bank, const uint64_t *need);

/* Takes pages out for good, as far as there are any; returns whether all were there. O(groups). */
bool pkvi_bank_take(struct pkvi_bank *bank, const uint64_t *pages);

/* Pages per group that need[] lacks; all zero if the bank can hand it out. */
void pkvi_bank_missing(const struct pkvi_bank *bank, const uint64_t *need, uint32_t *missing);

/* Is the state safe? `order` is scratch for n entries; holders must have finite needs. If not and
 * `stuck` is not NULL, *stuck is the holder with the smallest need among those that can never end
 * and *bank what it would find. O(n * groups) if the bank can serve all at once, else
 * O(n log n + n * groups * rounds), where one round suffices if there is one group. */
bool pkvi_bank_safe(struct pkvi_bank *bank, struct pkvi_holder *holders, uint32_t n,
                    uint32_t *order, pkvi_back_fn back, void *context, uint32_t *stuck);

#endif
