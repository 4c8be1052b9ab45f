/* adaptive: evict the page that earns least for the room it takes.
 *
 * Time is counted in requests (in a live index: in sequences that let go of their pages). When a
 * page is used, its class is set from what is known then:
 *
 *     partial        the last block of a request, not full: almost never used again
 *     new            first use, below a widely used page (or none): a new conversation
 *     new, continued first use, below a page of one earlier request: a further turn of one
 *     used           by the number of uses (2, 3-4, 5-8, more) and the time since the last one
 *                    (six steps of a factor of four)
 *
 * For each class and age (two buckets per factor of two) it counts how many pages were used again
 * at that age and how many grew older, pages remembered as ghosts included, so that ages beyond the
 * cache's reach are learned too. That gives hazards, and from them the value of a page: over all
 * times one could decide to keep it, the most hits per page and unit of time (the Gittins index of
 * a page whose reuse follows the class's hazards). Unlike LRU it knows that a conversation will
 * hardly return within seconds, that one which returned several times will return again, and when.
 *
 * LRU is a good policy on some workloads, and values learned from the past may mislead. What LRU
 * would hold is known exactly (the pages last used since some request), so its hits are counted
 * beside the own ones, and while they are ahead the policy follows LRU (partial blocks first).
 *
 * Pages of one request and class form a segment and age together. Segments stand in lists by class
 * and bucket, a bitmap ordered by value tells the worst list that is not empty, and its oldest
 * segment gives its leaves. All steps are amortised O(1); every RECOMPUTE requests the values are
 * computed anew in O(classes x buckets^2), about 10 us.
 *
 * The constants below were chosen once, for all traces: see docs/prefix.md. */
#include "adaptive.h"
#include "prefix/policies.h"
#include "prefix/policy.h"

#include <string.h>

#define CLASSES PKVI_ADAPTIVE_CLASSES
#define BUCKETS PKVI_ADAPTIVE_BUCKETS
#define LISTS (CLASSES * BUCKETS)
#define RANK_WORDS ((LISTS + 63u) / 64u)

#define GHOSTS_PER_PAGE 4u   /* remembered pages: this many per page of capacity … */
#define GHOSTS_MIN 8192u     /* … or so many */
#define RECOMPUTE 32u        /* requests between computations of the values */
#define HALVE_AFTER 200000.0 /* events (plus 8 per page) after which counts are halved */

#define GUARD_PERIOD                                                                               \
    2048u /* references (or a quarter of the capacity) between comparisons with LRU */
#define GUARD_SLACK 64.0  /* hits by which LRU may be ahead … */
#define GUARD_SHARE 0.005 /* … and this share of its hits, before it is followed */
#define GUARD_KEEP 0.75   /* what is kept of the sums from period to period */
#define GUARD_HOLD 4u     /* periods that LRU is followed at first; doubles each time */

struct links {
    uint32_t newer, older;
};

struct ends {
    uint32_t newest, oldest;
};

/* Two kinds of lists of segments, both by (class, bucket), each in order of age. */
enum kind {
    AGING,  /* every segment: to count who grows older */
    GIVING, /* segments with a leaf that may go */
    KINDS
};

struct segment {
    uint32_t time;    /* of the last use of its pages */
    uint32_t members; /* pages and ghosts; 0 = free */
    struct ends leaves;
    struct links link[KINDS];
    uint8_t class;
    uint8_t bucket[KINDS];
    bool giving;
};

struct adaptive {
    struct pkvi_policy base;
    uint32_t now;              /* number of the running request */
    uint32_t current[CLASSES]; /* its segments */
    struct segment *segment;   /* [0] is used when memory for more is refused */
    uint32_t n_segments, segment_capacity, free_segment;
    struct ends list[KINDS][CLASSES][BUCKETS];
    uint64_t filled[RANK_WORDS];     /* bit r: the GIVING list of rank r has segments */
    uint16_t rank[CLASSES][BUCKETS]; /* place in the order of value, worst first */
    uint16_t by_rank[LISTS];
    struct pkvi_adaptive_counts counts;
    double events; /* uses counted since the counts were last halved */
    uint32_t since_computed;
    struct pkvi_queue ghosts;
    /* What LRU would hold: the pages used at request lru_from or later. */
    uint32_t *used_at; /* ring by request: pages last used then */
    uint32_t ring_size, lru_from;
    uint64_t lru_pages;
    double own_hits, lru_hits; /* recent ones */
    uint64_t references;       /* in this period */
    uint32_t hold, hold_left;  /* periods to follow LRU: next time, still */
    bool follow_lru;
    double value[CLASSES][BUCKETS];
};

/* In pkvi_member: a = time of the last use, b = segment or PKVI_NIL, list = class, count = what
 * follows, flags with one more bit. */
#define LEAF 0x80u
#define MOST_USES 63u

static void order_lists(struct adaptive *a);

static struct adaptive *self(struct pkvi_policy *policy)
{
    return (struct adaptive *)policy;
}

static struct pkvi_member *member(const struct adaptive *a, uint32_t id)
{
    return pkvi_policy_member(&a->base, id);
}

static uint32_t uses_of(const struct pkvi_member *m)
{
    return m->count & MOST_USES;
}
static uint32_t interval_of(const struct pkvi_member *m)
{
    return m->count >> 6 & 7u;
}
static bool continues(const struct pkvi_member *m)
{
    return m->count >> 9;
}

static void describe(struct pkvi_member *m, uint32_t uses, uint32_t interval, bool continued)
{
    uses = pkvi_min_u32(uses, MOST_USES);
    m->count = (uint16_t)(uses | interval << 6 | (uint32_t)continued << 9);
}

/* Steps of a factor of four: below 4, 16, 64, 256, 1024, more. */
static uint32_t interval_step(uint32_t age)
{
    return age < 4 ? 0 : pkvi_min_u32(pkvi_log2_u32(age) / 2, 5);
}

static uint32_t class_of(const struct pkvi_member *m, bool partial)
{
    uint32_t uses = uses_of(m);
    if (partial) return 0;
    if (uses <= 1) return continues(m) ? 2 : 1;
    uint32_t often = uses == 2 ? 0 : uses <= 4 ? 1 : uses <= 8 ? 2 : 3;
    return 3 + often * 6 + interval_of(m);
}

/* ---- what LRU would do -------------------------------------------------------------------------
 */

static uint32_t *used_at(struct adaptive *a, uint32_t time)
{
    return &a->used_at[time & (a->ring_size - 1)];
}

/* Makes the ring reach from lru_from to now; shortens LRU's reach when memory is refused. */
static void reach(struct adaptive *a)
{
    if (a->now - a->lru_from < a->ring_size) return;
    struct pkvi_mem *mem = a->base.ix->mem;
    uint32_t wider = 2 * a->ring_size;
    uint32_t *ring = pkvi_mem_array(mem, wider, sizeof *ring);
    if (ring) {
        for (uint32_t t = a->lru_from; t != a->now; t++)
            ring[t & (wider - 1)] = *used_at(a, t);
        pkvi_mem_free_array(mem, a->used_at, a->ring_size, sizeof *ring);
        a->used_at = ring;
        a->ring_size = wider;
    } else {
        a->lru_pages -= *used_at(a, a->lru_from++);
    }
}

static void lru_enter(struct adaptive *a)
{
    ++*used_at(a, a->now);
    a->lru_pages++;
    while (a->lru_pages > a->base.capacity)
        a->lru_pages -= *used_at(a, a->lru_from++);
}

static void lru_leave(struct adaptive *a, uint32_t time)
{
    if (time < a->lru_from) return;
    --*used_at(a, time);
    a->lru_pages--;
}

/* Once per period: LRU is followed while the learned values do worse than it. */
static void compare_with_lru(struct adaptive *a)
{
    uint64_t period = pkvi_max_u64(a->base.capacity / 4, GUARD_PERIOD);
    if (a->references < period) return;
    a->references = 0;
    if (a->follow_lru) {
        if (--a->hold_left > 0) return;
        a->follow_lru = false;
        a->own_hits = a->lru_hits = 0;
    } else if (a->own_hits < a->lru_hits * (1 - GUARD_SHARE) - GUARD_SLACK) {
        a->follow_lru = true;
        a->hold_left = a->hold;
        if (a->hold < UINT32_C(1) << 30) a->hold *= 2;
    } else {
        a->own_hits *= GUARD_KEEP;
        a->lru_hits *= GUARD_KEEP;
        return;
    }
    order_lists(a);
}

/* ---- lists of segments
 * --------------------------------------------------------------------------- */

static struct ends *list_of(struct adaptive *a, uint32_t s, enum kind kind)
{
    const struct segment *segment = &a->segment[s];
    return &a->list[kind][segment->class][segment->bucket[kind]];
}

static void note_giving(struct adaptive *a, uint32_t s, bool filled)
{
    uint32_t rank = a->rank[a->segment[s].class][a->segment[s].bucket[GIVING]];
    if (filled)
        pkvi_bitmap_set(a->filled, rank);
    else
        pkvi_bitmap_clear(a->filled, rank);
}

/* Puts a segment at the newest or the oldest end of its list. */
static void enlist(struct adaptive *a, uint32_t s, enum kind kind, bool newest)
{
    struct ends *list = list_of(a, s, kind);
    struct links *link = &a->segment[s].link[kind];
    *link = (struct links){PKVI_NIL, PKVI_NIL};
    if (list->newest == PKVI_NIL) {
        list->newest = list->oldest = s;
    } else if (newest) {
        link->older = list->newest;
        a->segment[list->newest].link[kind].newer = s;
        list->newest = s;
    } else {
        link->newer = list->oldest;
        a->segment[list->oldest].link[kind].older = s;
        list->oldest = s;
    }
    if (kind == GIVING) note_giving(a, s, true);
}

static void delist(struct adaptive *a, uint32_t s, enum kind kind)
{
    struct ends *list = list_of(a, s, kind);
    struct links link = a->segment[s].link[kind];
    if (link.newer != PKVI_NIL)
        a->segment[link.newer].link[kind].older = link.older;
    else
        list->newest = link.older;
    if (link.older != PKVI_NIL)
        a->segment[link.older].link[kind].newer = link.newer;
    else
        list->oldest = link.newer;
    if (kind == GIVING && list->newest == PKVI_NIL) note_giving(a, s, false);
}

static bool widen_segments(struct adaptive *a)
{
    uint32_t wider = a->segment_capacity ? 2 * a->segment_capacity : 64;
    struct segment *segment = pkvi_mem_grow_array(a->base.ix->mem, a->segment, a->segment_capacity,
                                                  wider, sizeof *segment);
    if (!segment) return false;
    a->segment = segment;
    a->segment_capacity = wider;
    return true;
}

static uint32_t new_segment(struct adaptive *a, uint32_t class)
{
    uint32_t s = a->free_segment;
    if (s != PKVI_NIL) {
        a->free_segment = a->segment[s].link[AGING].newer;
    } else {
        if (a->n_segments == a->segment_capacity && !widen_segments(a)) return 0;
        s = a->n_segments++;
    }
    a->segment[s] =
        (struct segment){.time = a->now, .class = (uint8_t) class, .leaves = {PKVI_NIL, PKVI_NIL}};
    enlist(a, s, AGING, true);
    return s;
}

/* A page or ghost leaves its segment; an empty one is freed unless the request still fills it. */
static void leave_segment(struct adaptive *a, uint32_t id)
{
    uint32_t s = member(a, id)->b;
    member(a, id)->b = PKVI_NIL;
    if (s != PKVI_NIL) lru_leave(a, member(a, id)->a);
    if (s == PKVI_NIL || --a->segment[s].members > 0 || s == 0) return;
    if (a->current[a->segment[s].class] == s) a->current[a->segment[s].class] = PKVI_NIL;
    delist(a, s, AGING);
    a->segment[s].link[AGING].newer = a->free_segment;
    a->free_segment = s;
}

/* ---- leaves: pages of a segment that may go
 * ------------------------------------------------------ */

static void add_leaf(struct adaptive *a, uint32_t id)
{
    struct pkvi_member *m = member(a, id);
    struct segment *segment = &a->segment[m->b];
    m->newer = PKVI_NIL;
    m->older = segment->leaves.newest;
    if (m->older != PKVI_NIL)
        member(a, m->older)->newer = id;
    else
        segment->leaves.oldest = id;
    segment->leaves.newest = id;
    m->flags |= LEAF;
    if (segment->giving) return;
    segment->giving = true;
    segment->bucket[GIVING] = segment->bucket[AGING];
    enlist(a, m->b, GIVING, segment->time == a->now);
}

static void remove_leaf(struct adaptive *a, uint32_t id)
{
    struct pkvi_member *m = member(a, id);
    m->flags &= (uint8_t)~PKVI_MEMBER_PARKED;
    if (!(m->flags & LEAF)) return;
    struct segment *segment = &a->segment[m->b];
    if (m->newer != PKVI_NIL)
        member(a, m->newer)->older = m->older;
    else
        segment->leaves.newest = m->older;
    if (m->older != PKVI_NIL)
        member(a, m->older)->newer = m->newer;
    else
        segment->leaves.oldest = m->newer;
    m->flags &= (uint8_t)~LEAF;
    if (segment->leaves.newest != PKVI_NIL) return;
    delist(a, m->b, GIVING);
    segment->giving = false;
}

/* Sets a page aside until the index says that what blocks it is gone. */
static void park(struct adaptive *a, uint32_t id)
{
    remove_leaf(a, id);
    member(a, id)->flags |= PKVI_MEMBER_PARKED;
}

static bool has_kids_before_it(const struct adaptive *a, const struct pkvi_member *m)
{
    return a->base.leaf_first && m->kids;
}

/* A page above an evicted one may be a leaf now. */
static void reconsider(struct adaptive *a, uint32_t id)
{
    if (id == PKVI_NIL || !pkvi_node_has(pkvi_node(a->base.ix, id), a->base.group)) return;
    struct pkvi_member *m = member(a, id);
    if (m->b == PKVI_NIL || m->flags & LEAF || has_kids_before_it(a, m)) return;
    m->flags &= (uint8_t)~PKVI_MEMBER_PARKED;
    if (pkvi_policy_blocked(&a->base, id))
        m->flags |= PKVI_MEMBER_PARKED;
    else
        add_leaf(a, id);
}

/* ---- learning
 * ------------------------------------------------------------------------------------ */

/* Sorts the lists by value (a merge sort, so that equals keep their order: older pages first). */
static void sort_lists(struct adaptive *a)
{
    uint16_t other[LISTS], *from = a->by_rank, *to = other;
    const double *value = &a->value[0][0];
    for (uint32_t run = 1; run < LISTS; run *= 2) {
        for (uint32_t low = 0; low < LISTS; low += 2 * run) {
            uint32_t middle = pkvi_min_u32(low + run, LISTS);
            uint32_t high = pkvi_min_u32(low + 2 * run, LISTS);
            for (uint32_t i = low, j = middle, k = low; k < high; k++)
                to[k] = i < middle && (j >= high || value[from[i]] <= value[from[j]]) ? from[i++]
                                                                                      : from[j++];
        }
        uint16_t *swap = from;
        from = to;
        to = swap;
    }
    if (from != a->by_rank) memcpy(a->by_rank, from, sizeof a->by_rank);
}

static void order_lists(struct adaptive *a)
{
    uint32_t n = 0;
    if (a->follow_lru) { /* partial blocks, then by age */
        for (uint32_t b = BUCKETS; b-- > 0;)
            a->by_rank[n++] = (uint16_t)b;
        for (uint32_t b = BUCKETS; b-- > 0;)
            for (uint32_t c = 1; c < CLASSES; c++)
                a->by_rank[n++] = (uint16_t)(c * BUCKETS + b);
    } else {
        for (uint32_t c = 0; c < CLASSES; c++)
            for (uint32_t b = BUCKETS; b-- > 0;)
                a->by_rank[n++] = (uint16_t)(c * BUCKETS + b);
        sort_lists(a);
    }
    memset(a->filled, 0, sizeof a->filled);
    for (uint32_t r = 0; r < LISTS; r++) {
        uint32_t c = a->by_rank[r] / BUCKETS, b = a->by_rank[r] % BUCKETS;
        a->rank[c][b] = (uint16_t)r;
        if (a->list[GIVING][c][b].newest != PKVI_NIL) pkvi_bitmap_set(a->filled, r);
    }
}

static void forget_half(struct adaptive *a)
{
    for (uint32_t c = 0; c < CLASSES; c++)
        for (uint32_t b = 0; b < BUCKETS; b++) {
            a->counts.reused[c][b] /= 2;
            a->counts.survived[c][b] /= 2;
        }
    a->events /= 2;
}

static void compute_values(struct adaptive *a)
{
    if (a->events > HALVE_AFTER + 8.0 * (double)a->base.capacity) forget_half(a);
    pkvi_adaptive_values(&a->counts, a->value);
    order_lists(a);
    a->since_computed = 0;
}

/* Moves what has grown out of a bucket, and counts it in every bucket it survived. */
static void age_list(struct adaptive *a, enum kind kind, uint32_t c, uint32_t b)
{
    uint32_t s;
    while ((s = a->list[kind][c][b].oldest) != PKVI_NIL) {
        struct segment *segment = &a->segment[s];
        uint32_t bucket = pkvi_adaptive_bucket(a->now - segment->time);
        if (bucket <= b) return;
        for (uint32_t passed = b; kind == AGING && passed < bucket; passed++)
            a->counts.survived[c][passed] += segment->members;
        delist(a, s, kind);
        segment->bucket[kind] = (uint8_t)bucket;
        enlist(a, s, kind, true);
    }
}

/* Promptly, not in batches: pages that cross into a bucket of little value are the ones to go, and
 * if they came in batches others would have to go in between. */
static void grow_older(struct adaptive *a)
{
    for (int kind = 0; kind < KINDS; kind++)
        for (uint32_t c = 0; c < CLASSES; c++)
            for (uint32_t b = BUCKETS - 1; b-- > 0;)
                age_list(a, (enum kind)kind, c, b);
}

static void count_use(struct adaptive *a, struct pkvi_member *m)
{
    uint32_t age = a->now - m->a;
    if (m->a >= a->lru_from) a->lru_hits += 1;
    a->counts.reused[m->list][pkvi_adaptive_bucket(age)] += 1;
    a->events += 1;
    describe(m, uses_of(m) + 1, interval_step(age), continues(m));
}

/* ---- the policy
 * ---------------------------------------------------------------------------------- */

static bool setup(struct pkvi_policy *policy)
{
    struct adaptive *a = self(policy);
    memset(a->list, 0xff, sizeof a->list);
    memset(a->current, 0xff, sizeof a->current);
    pkvi_queue_init(&a->ghosts);
    a->free_segment = PKVI_NIL;
    a->now = 1;
    a->hold = GUARD_HOLD;
    a->ring_size = 64;
    a->used_at = pkvi_mem_array(policy->ix->mem, a->ring_size, sizeof *a->used_at);
    if (!a->used_at) return false;
    if (!widen_segments(a)) {
        pkvi_mem_free_array(policy->ix->mem, a->used_at, a->ring_size, sizeof *a->used_at);
        return false;
    }
    compute_values(a);
    new_segment(a, 1);
    return true;
}

static void teardown(struct pkvi_policy *policy)
{
    struct adaptive *a = self(policy);
    pkvi_mem_free_array(policy->ix->mem, a->used_at, a->ring_size, sizeof *a->used_at);
    pkvi_mem_free_array(policy->ix->mem, a->segment, a->segment_capacity, sizeof *a->segment);
}

static void begin(struct pkvi_policy *policy, uint32_t request)
{
    (void)request;
    struct adaptive *a = self(policy);
    memset(a->current, 0xff, sizeof a->current);
    a->now++;
    reach(a);
    *used_at(a, a->now) = 0;
    grow_older(a);
    compare_with_lru(a);
    if (++a->since_computed >= RECOMPUTE) compute_values(a);
}

/* Until the request ends the page is in no segment, and so cannot go. */
static void touch(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use)
{
    (void)use;
    struct adaptive *a = self(policy);
    count_use(a, member(a, id));
    a->own_hits += 1;
    a->references++;
    remove_leaf(a, id);
    leave_segment(a, id);
}

static void insert(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use)
{
    (void)use;
    struct adaptive *a = self(policy);
    struct pkvi_member *m = member(a, id);
    uint32_t parent = pkvi_node(policy->ix, id)->parent;
    a->references++;
    if (pkvi_is_ghost(policy, id)) {
        pkvi_ghost_revive(policy, &a->ghosts, id);
        count_use(a, m);
        leave_segment(a, id);
    } else {
        const struct pkvi_member *above = parent == PKVI_NIL ? NULL : member(a, parent);
        uint32_t uses = above ? uses_of(above) : 0;
        describe(m, 1, 0, uses == 2 || (uses == 1 && continues(above)));
        m->a = a->now;
        m->list = 1;
        m->b = PKVI_NIL;
    }
    if (parent != PKVI_NIL && policy->leaf_first) remove_leaf(a, parent);
}

static void finish(struct pkvi_policy *policy, const uint32_t *path, uint32_t n,
                   const uint32_t *next_use, bool partial_last)
{
    (void)next_use;
    struct adaptive *a = self(policy);
    for (uint32_t i = n; i-- > 0;) {
        uint32_t id = path[i];
        if (id == PKVI_NIL) continue;
        struct pkvi_member *m = member(a, id);
        remove_leaf(a, id);
        leave_segment(a, id);
        uint32_t c = class_of(m, partial_last && i + 1 == n);
        if (a->current[c] == PKVI_NIL) a->current[c] = new_segment(a, c);
        m->b = a->current[c];
        m->list = a->segment[m->b].class;
        m->a = a->now;
        a->segment[m->b].members++;
        lru_enter(a);
        if (!has_kids_before_it(a, m)) add_leaf(a, id);
    }
}

static uint32_t first_of_rank(const struct adaptive *a, uint32_t rank)
{
    uint32_t list = a->by_rank[rank];
    return a->list[GIVING][list / BUCKETS][list % BUCKETS].oldest;
}

/* Among the classes in the bucket of this rank. */
static uint32_t oldest_segment(const struct adaptive *a, uint32_t rank)
{
    uint32_t best = first_of_rank(a, rank);
    if (rank < BUCKETS) return best; /* partial blocks */
    uint32_t bucket = a->by_rank[rank] % BUCKETS;
    for (uint32_t c = a->by_rank[rank] / BUCKETS + 1; c < CLASSES; c++) {
        uint32_t s = a->list[GIVING][c][bucket].oldest;
        if (s != PKVI_NIL && a->segment[s].time < a->segment[best].time) best = s;
    }
    return best;
}

static uint32_t victim(struct pkvi_policy *policy)
{
    struct adaptive *a = self(policy);
    uint32_t rank = 0;
    while ((rank = pkvi_bitmap_next(a->filled, LISTS, rank)) != PKVI_BITMAP_NONE) {
        uint32_t s = a->follow_lru ? oldest_segment(a, rank) : first_of_rank(a, rank);
        uint32_t id = a->segment[s].leaves.oldest;
        if (!pkvi_policy_blocked(policy, id)) return id;
        park(a, id);
    }
    return PKVI_NIL;
}

static void drop_oldest_ghost(struct adaptive *a)
{
    leave_segment(a, a->ghosts.oldest);
    pkvi_ghost_drop_oldest(&a->base, &a->ghosts);
}

static void remove_member(struct pkvi_policy *policy, uint32_t id, bool evicted)
{
    struct adaptive *a = self(policy);
    remove_leaf(a, id);
    if (policy->leaf_first) reconsider(a, pkvi_node(policy->ix, id)->parent);
    if (!evicted || member(a, id)->b == PKVI_NIL) {
        leave_segment(a, id);
        return;
    }
    pkvi_ghost_push(policy, &a->ghosts, id);
    uint64_t most = pkvi_max_u64(GHOSTS_PER_PAGE * policy->capacity, GHOSTS_MIN);
    while (a->ghosts.size > most)
        drop_oldest_ghost(a);
}

static void unpark(struct pkvi_policy *policy, uint32_t id)
{
    reconsider(self(policy), id);
}

static void forget(struct pkvi_policy *policy, uint32_t id)
{
    struct adaptive *a = self(policy);
    leave_segment(a, id);
    pkvi_ghost_revive(policy, &a->ghosts, id);
}

const struct pkvi_policy_ops pkvi_policy_adaptive = {
    .name = "adaptive",
    .bytes = sizeof(struct adaptive),
    .leaf_first = true,
    .setup = setup,
    .teardown = teardown,
    .begin = begin,
    .finish = finish,
    .touch = touch,
    .insert = insert,
    .victim = victim,
    .remove = remove_member,
    .unpark = unpark,
    .forget = forget,
};
