/* adaptive: what its files share. adaptive.c says how it works.
 *
 *   adaptive.c        the policy: what the index tells it, and its answers
 *   adaptive_lists.c  segments, the lists they stand in, and the leaves they offer
 *   adaptive_value.c  from counts to the value of keeping a page
 *   adaptive_guard.c  what LRU would have done, and how far the policy may stray from it */
#ifndef PKVI_INDEX_POLICY_ADAPTIVE_H
#define PKVI_INDEX_POLICY_ADAPTIVE_H

#include "index/policy.h"

#define PKVI_ADAPTIVE_CLASSES 27u
#define PKVI_ADAPTIVE_BUCKETS 36u
#define PKVI_ADAPTIVE_LISTS (PKVI_ADAPTIVE_CLASSES * PKVI_ADAPTIVE_BUCKETS)
#define PKVI_ADAPTIVE_WORDS ((PKVI_ADAPTIVE_LISTS + 63u) / 64u)

/* In pkvi_member: a = time of the last use, b = segment or PKVI_NIL, list = class, count = uses and
 * intervals, flags with one more bit. */
#define PKVI_ADAPTIVE_LEAF 0x80u

/* Per class and age. */
struct pkvi_adaptive_counts {
    double reused[PKVI_ADAPTIVE_CLASSES][PKVI_ADAPTIVE_BUCKETS];   /* used again at this age */
    double survived[PKVI_ADAPTIVE_CLASSES][PKVI_ADAPTIVE_BUCKETS]; /* grew older than that */
};

struct pkvi_adaptive_links {
    uint32_t newer, older;
};

struct pkvi_adaptive_ends {
    uint32_t newest, oldest;
};

/* Two kinds of lists of segments, both by (class, bucket), each in order of age. */
enum pkvi_adaptive_kind {
    PKVI_ADAPTIVE_AGING,  /* every segment: to count who grows older */
    PKVI_ADAPTIVE_GIVING, /* segments with a leaf that may go */
    PKVI_ADAPTIVE_KINDS
};

/* Pages and ghosts of one class that were used last by one request. */
struct pkvi_adaptive_segment {
    uint32_t time;    /* of that request */
    uint32_t members; /* 0 = free */
    struct pkvi_adaptive_ends leaves;
    struct pkvi_adaptive_links link[PKVI_ADAPTIVE_KINDS];
    uint8_t class;
    uint8_t bucket[PKVI_ADAPTIVE_KINDS];
    bool giving;
};

/* Pages that LRU would hold and the policy gave up are counted in two groups, because nearly none
 * of the first kind is missed. */
enum pkvi_adaptive_group { PKVI_ADAPTIVE_PARTIAL, PKVI_ADAPTIVE_FULL, PKVI_ADAPTIVE_GROUPS };

/* What was used last by one request. */
struct pkvi_adaptive_moment {
    uint32_t used;                          /* pages and ghosts */
    uint32_t missing[PKVI_ADAPTIVE_GROUPS]; /* those of them given up before LRU would have */
};

/* LRU beside the policy: it would hold what was used at request `from` or later, the pages held by
 * running requests, and some of what was used at from - 1. */
struct pkvi_adaptive_guard {
    struct pkvi_adaptive_moment *ring; /* by request, from - 1 to now */
    uint32_t ring_size, from;
    uint64_t pages;                         /* used at `from` or later */
    uint64_t held;                          /* by running requests */
    uint64_t missing[PKVI_ADAPTIVE_GROUPS]; /* sum over the ring, from `from` on */
    double missed[PKVI_ADAPTIVE_GROUPS];    /* of those that were missing: asked for in time … */
    double dropped[PKVI_ADAPTIVE_GROUPS];   /* … or LRU dropped them too */
    double share[PKVI_ADAPTIVE_GROUPS];     /* expected to be asked for */
    double risk;                            /* hits expected to be lost on what is missing */
    double credit;                          /* own hits, less nearly all of LRU's */
};

struct pkvi_adaptive {
    struct pkvi_policy base;
    uint32_t now;                            /* number of the running request */
    uint32_t current[PKVI_ADAPTIVE_CLASSES]; /* its segments */
    struct pkvi_adaptive_segment *segment;   /* [0] is used when memory for more is refused */
    uint32_t n_segments, segment_capacity, free_segment;
    struct pkvi_adaptive_ends list[PKVI_ADAPTIVE_KINDS][PKVI_ADAPTIVE_CLASSES]
                                  [PKVI_ADAPTIVE_BUCKETS];
    /* The GIVING lists that have segments: in order of value, worst first, and in order of age,
     * oldest first. */
    uint64_t by_value[PKVI_ADAPTIVE_WORDS];
    uint64_t by_age[PKVI_ADAPTIVE_WORDS];
    uint16_t rank[PKVI_ADAPTIVE_CLASSES][PKVI_ADAPTIVE_BUCKETS]; /* place in the order of value */
    uint16_t of_rank[PKVI_ADAPTIVE_LISTS];
    uint64_t outside[PKVI_ADAPTIVE_WORDS]; /* by rank: lists in or beyond this bucket */
    uint32_t outside_bucket;
    struct pkvi_adaptive_counts counts;
    double events; /* uses counted since the counts were last halved */
    uint32_t since_computed;
    struct pkvi_queue ghosts;
    struct pkvi_adaptive_guard guard;
    double value[PKVI_ADAPTIVE_CLASSES][PKVI_ADAPTIVE_BUCKETS];
};

static inline struct pkvi_member *pkvi_adaptive_member(const struct pkvi_adaptive *a, uint32_t id)
{
    return pkvi_policy_member(&a->base, id);
}

/* Buckets start at ages 1, 2, 3, 4, 6, 8, 12, 16, …; the second one is empty. */
static inline uint32_t pkvi_adaptive_bucket(uint32_t age)
{
    if (age < 2) return 0;
    uint32_t log = pkvi_log2_u32(age);
    return pkvi_min_u32(2 * log + (age >> (log - 1) & 1u), PKVI_ADAPTIVE_BUCKETS - 1);
}

static inline uint32_t pkvi_adaptive_bucket_start(uint32_t bucket)
{
    uint32_t power = UINT32_C(1) << bucket / 2;
    return bucket < 2 ? 1 + bucket : bucket % 2 ? power + power / 2 : power;
}

/* The value of a page by class and age: over all times one could decide to keep it, the most
 * expected hits per unit of time. O(classes x buckets^2). */
void pkvi_adaptive_values(const struct pkvi_adaptive_counts *counts,
                          double value[PKVI_ADAPTIVE_CLASSES][PKVI_ADAPTIVE_BUCKETS]);

/* ---- segments and leaves (adaptive_lists.c); all O(1) unless noted -------------------------- */

/* Makes room for more segments. False when memory is refused. */
bool pkvi_adaptive_widen(struct pkvi_adaptive *a);
/* A segment of the running request; 0 when memory is refused. */
uint32_t pkvi_adaptive_new_segment(struct pkvi_adaptive *a, uint32_t class);
/* A page or ghost leaves its segment, if it is in one. */
void pkvi_adaptive_leave_segment(struct pkvi_adaptive *a, uint32_t id);
/* A page of a segment may go. */
void pkvi_adaptive_add_leaf(struct pkvi_adaptive *a, uint32_t id);
/* It may not, or it is gone. */
void pkvi_adaptive_remove_leaf(struct pkvi_adaptive *a, uint32_t id);
/* Sorts the lists by value. O(lists log lists). */
void pkvi_adaptive_order(struct pkvi_adaptive *a);
/* Moves segments that have grown out of their bucket. O(lists), amortised O(1) per segment. */
void pkvi_adaptive_grow_older(struct pkvi_adaptive *a);
/* The leaf worth least; the leaf worth least of those LRU would not hold; the leaf used longest
 * ago. PKVI_NIL if there is none. O(classes). */
uint32_t pkvi_adaptive_worst(const struct pkvi_adaptive *a);
uint32_t pkvi_adaptive_worst_outside(struct pkvi_adaptive *a);
uint32_t pkvi_adaptive_oldest(const struct pkvi_adaptive *a);

/* ---- the guard (adaptive_guard.c); all amortised O(1) --------------------------------------- */

bool pkvi_adaptive_guard_setup(struct pkvi_adaptive *a);
void pkvi_adaptive_guard_teardown(struct pkvi_adaptive *a);
/* a->now has advanced. */
void pkvi_adaptive_guard_begin(struct pkvi_adaptive *a);
/* A page or ghost that was used before is used again: before its member changes. */
void pkvi_adaptive_guard_use(struct pkvi_adaptive *a, const struct pkvi_member *m, bool ghost);
/* A page or ghost was used at a->now, or is not any more what its member says. */
void pkvi_adaptive_guard_enter(struct pkvi_adaptive *a);
void pkvi_adaptive_guard_leave(struct pkvi_adaptive *a, uint32_t time);
/* A running request holds one more page; or holds it no longer. */
void pkvi_adaptive_guard_hold(struct pkvi_adaptive *a);
void pkvi_adaptive_guard_release(struct pkvi_adaptive *a);
/* A page becomes a ghost; a ghost is forgotten. */
void pkvi_adaptive_guard_evict(struct pkvi_adaptive *a, const struct pkvi_member *m);
void pkvi_adaptive_guard_forget(struct pkvi_adaptive *a, const struct pkvi_member *m);

/* May a page go that LRU would keep? */
static inline bool pkvi_adaptive_may_stray(const struct pkvi_adaptive *a)
{
    return a->guard.credit >= a->guard.risk;
}

#endif
