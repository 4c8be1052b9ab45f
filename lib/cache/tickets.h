/* Tickets: the sequences that are admitted, their claims, and what each may still need. The sum of
 * all needs is kept: whatever changes a need marks the ticket, and only marked ones are read again. */
#ifndef PKVI_CACHE_TICKETS_H
#define PKVI_CACHE_TICKETS_H

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
    uint64_t *counted;               /* [capacity][n_groups]: what total[] has of each */
    uint64_t total[PKV_MAX_GROUPS];  /* pages that all may still take, but for the marked ones */
    struct pkvi_list marked;         /* tickets whose need must be read again: pkvi_seq.marked */
    bool all_marked;
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
    bool match_held; /* in this check a newcomer holds pages beside those that have references */
};

/* PKV_ENOMEM. Undone by destroy. */
pkv_status pkvi_tickets_init(struct pkv_cache *cache);
void pkvi_tickets_destroy(struct pkv_cache *cache);

/* Room for one more ticket. PKV_ENOMEM changes nothing. Amortised O(1). */
pkv_status pkvi_tickets_make_room(struct pkv_cache *cache);
/* Gives the sequence a ticket, for which there is room, or takes it back. O(groups). */
void pkvi_ticket_add(struct pkvi_seq *seq, uint64_t claim);
void pkvi_ticket_remove(struct pkvi_seq *seq);

/* admission->total is right, or too much where a tail was shared and is not any more. O(groups) per
 * marked ticket. */
void pkvi_tickets_read_marked(struct pkv_cache *cache);

/* Pages that an admitted sequence may still take once the step is reserved; `own` (NULL = unknown,
 * taken as none) are the pages per group that come free as it moves on. */
void pkvi_ticket_need(const struct pkvi_seq *seq, const struct pkvi_step *step, const uint64_t *own,
                      uint64_t *need);
/* Pages that the step takes in one group: new ones, and the copy of a shared tail. */
uint64_t pkvi_ticket_takes(const struct pkvi_seq *seq, const struct pkvi_step *step,
                           uint32_t group);
/* Most pages a sequence (NULL = one yet to come) holds at once in a group when it steps one token
 * at a time, or UINT64_MAX: what a sliding window and its pins keep. O(pins). */
uint64_t pkvi_ticket_most_held(const struct pkv_cache *cache, const struct pkvi_seq *seq,
                               uint32_t group);

#endif
