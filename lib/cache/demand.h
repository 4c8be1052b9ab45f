/* From tables and pools to the numbers of the safe-state check (banker.h). */
#ifndef PKVI_CACHE_DEMAND_H
#define PKVI_CACHE_DEMAND_H

#include "cache/banker.h"
#include "cache/cache_internal.h"

/* What the batch under check does to an admitted sequence. */
struct pkvi_step {
    uint32_t adds;     /* logical pages that it adds */
    uint32_t n_tokens; /* 0: it is not in the batch */
};

/* Sequences with a ticket, and the scratch that a check of all of them plus one needs: it grows
 * when a ticket is given. Guarded by cache->admission_lock. */
struct pkvi_admission {
    struct pkvi_seq **seqs; /* [capacity] */
    uint32_t n, capacity;
    /* Scratch, for capacity + 1 holders: */
    struct pkvi_holder *holders;
    uint64_t *pages; /* need, back and units of each holder: 3 * n_groups */
    uint32_t *order;
    struct pkvi_step *steps;
    /* Per group: how many holders of a page have ended in the check under way, by page index:
     * check number << 32 | count. Grows with the pool; where it cannot, shared pages never count as
     * coming back, which errs on the safe side. */
    uint64_t *ended[PKV_MAX_GROUPS];
    uint32_t n_ended[PKV_MAX_GROUPS];
    /* Per group whose units have several pages: pages still in use in each, in the same form. */
    uint64_t *in_use[PKV_MAX_GROUPS];
    uint32_t n_in_use[PKV_MAX_GROUPS];
    uint32_t check;
};

/* A check under way: entries [0, n_entries) of the batch (NULL = none) are taken as reserved. */
struct pkvi_demand {
    struct pkv_cache *cache;
    const struct pkvi_batch *batch;
    uint32_t n_entries;
    uint32_t n_to_come; /* sequences without pages that are imagined besides */
    bool exact; /* look at every holder, and every unit if need be; else only at sums */
    struct pkvi_bank bank;
    uint64_t open_bytes; /* of the stock, for open pages that only the step itself holds */
    bool short_of_open;  /* admitted sequences could not all have theirs */
    /* Per group: entries that take pages and have not ended; and units of which nothing will be in
     * use once they have: those the batch opens, and those that others left. */
    uint32_t openers[PKV_MAX_GROUPS];
    uint64_t emptied[PKV_MAX_GROUPS];
};

/* Reads the bank, fills the holders of all admitted sequences (upper bounds of their needs) and
 * takes what the batch would take. False if that alone is not there. O(sequences * groups +
 * entries). */
bool pkvi_demand_read(struct pkvi_demand *demand);

/* How many of the first n holders could never end, as pkvi_demand_read left things; 0 = safe.
 * Unless demand->exact, only a quick 0 is tried: everything fits at once, in O(n * groups); else
 * the answer is n. Exact: see pkvi_bank_stuck, plus O(pages). */
uint32_t pkvi_demand_stuck(struct pkvi_demand *demand, uint32_t n, uint32_t *stuck);

/* Most pages a sequence (NULL = one yet to come) holds at once in a group when it steps one token
 * at a time, or UINT64_MAX: bounded by a sliding window, or by what the module in charge of
 * eviction says. Pins void both. */
uint64_t pkvi_demand_most_held(const struct pkv_cache *cache, const struct pkvi_seq *seq,
                               uint32_t group);

/* After pkvi_demand_stuck said that some holder is stuck: pages per group that come short before
 * holder `stuck` could go on, open pages included. */
void pkvi_demand_missing(const struct pkvi_demand *demand, uint32_t stuck, uint32_t *missing);

/* Frees the counters of ended holders. */
void pkvi_demand_free(struct pkv_cache *cache);

#endif
