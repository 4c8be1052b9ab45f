/* From tables and pools to the numbers of the safe-state check (banker.h). */
#ifndef PKVI_CACHE_DEMAND_H
#define PKVI_CACHE_DEMAND_H

#include "cache/tickets.h"
#include "prefix/prefix.h"

/* A sequence that would be admitted: what it may need once it has attached what it is given. */
struct pkvi_newcomer {
    uint64_t need[PKV_MAX_GROUPS];
    uint64_t idle[PKV_MAX_GROUPS];         /* pages of its match that nobody holds yet */
    const struct pkvi_prefix_grant *grant; /* all pages of the match; NULL = not known */
};

/* A check under way: entries [0, n_entries) of the batch (NULL = none) are taken as reserved. */
struct pkvi_demand {
    struct pkv_cache *cache;
    const struct pkvi_batch *batch;
    uint32_t n_entries;
    const struct pkvi_newcomer *newcomer; /* NULL = none */
    bool exact; /* look at every holder, and every unit if need be; else only at sums */
    bool alone; /* nobody else waits: set aside only what metadata the one will bring along */
    bool blind; /* no memory to count who holds the newcomer's pages */
    uint64_t total[PKV_MAX_GROUPS]; /* unless exact: pages that all may still take */
    struct pkvi_bank bank;
    uint64_t open_bytes; /* of the stock, for open pages and states that only the step holds */
    bool short_of_open;  /* admitted sequences could not all have theirs */
    /* Per group: entries that take pages and have not ended; and units of which nothing will be in
     * use once they have: those the batch opens, and those that others left. */
    uint32_t openers[PKV_MAX_GROUPS];
    uint64_t emptied[PKV_MAX_GROUPS];
};

/* Reads the bank, takes what the batch and the newcomer would take, and finds what all may still
 * need: as a sum, in O(groups + entries + tickets that changed), or if exact per holder, the
 * newcomer last, in O(sequences * groups + entries + pages of the newcomer). False if what would be
 * taken is not there. */
bool pkvi_demand_read(struct pkvi_demand *demand);

/* How many holders could never end, as pkvi_demand_read left things; 0 = safe. Unless demand->exact,
 * only a quick 0 is tried: everything fits at once, in O(groups); else the answer is the number of
 * all. Exact: see pkvi_bank_stuck, plus O(pages). */
uint32_t pkvi_demand_stuck(struct pkvi_demand *demand, uint32_t *stuck);

/* What pkvi_demand_read left, in bytes: of all needs, and of what there is for them. Not exact. */
void pkvi_demand_figures(const struct pkvi_demand *demand, uint64_t *claimed, uint64_t *available);

/* After pkvi_demand_stuck said that some holder is stuck: pages per group that come short before
 * holder `stuck` could go on, open pages included. */
void pkvi_demand_missing(const struct pkvi_demand *demand, uint32_t stuck, uint32_t *missing);

/* Frees the counters of ended holders. */
void pkvi_demand_free(struct pkv_cache *cache);

#endif
