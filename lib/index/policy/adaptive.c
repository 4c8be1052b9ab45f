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
 * LRU is a good policy on some workloads, and values learned from the past may mislead: a guard
 * (adaptive_guard.c) bounds what may be lost to it.
 *
 * Pages of one request and class form a segment and age together. Segments stand in lists by class
 * and bucket, a bitmap ordered by value tells the worst list that is not empty, and its oldest
 * segment gives its leaves. All steps are amortised O(1); every RECOMPUTE requests the values are
 * computed anew in O(classes x buckets^2), about 10 us.
 *
 * The constants below were chosen once, for all traces: see docs/prefix.md. */
#include "adaptive.h"
#include "index/policies.h"
#include "index/policy.h"

#include <string.h>

#define CLASSES PKVI_ADAPTIVE_CLASSES
#define BUCKETS PKVI_ADAPTIVE_BUCKETS

#define GHOSTS_PER_PAGE 4u   /* remembered pages: this many per page of capacity … */
#define GHOSTS_MIN 8192u     /* … or so many */
#define RECOMPUTE 32u        /* requests between computations of the values */
#define HALVE_AFTER 200000.0 /* events (plus 8 per page) after which counts are halved */

#define MOST_USES 63u

static struct pkvi_adaptive *self(struct pkvi_policy *policy)
{
    return (struct pkvi_adaptive *)policy;
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

/* Sets a page aside until the index says that what blocks it is gone. */
static void park(struct pkvi_adaptive *a, uint32_t id)
{
    pkvi_adaptive_remove_leaf(a, id);
    pkvi_adaptive_member(a, id)->flags |= PKVI_MEMBER_PARKED;
}

static bool has_kids_before_it(const struct pkvi_adaptive *a, const struct pkvi_member *m)
{
    return a->base.leaf_first && m->kids;
}

/* A page above an evicted one may be a leaf now. */
static void reconsider(struct pkvi_adaptive *a, uint32_t id)
{
    if (id == PKVI_NIL || !pkvi_node_has(pkvi_node(a->base.ix, id), a->base.group)) return;
    struct pkvi_member *m = pkvi_adaptive_member(a, id);
    if (m->b == PKVI_NIL || m->flags & PKVI_ADAPTIVE_LEAF || has_kids_before_it(a, m)) return;
    m->flags &= (uint8_t)~PKVI_MEMBER_PARKED;
    if (pkvi_policy_blocked(&a->base, id))
        m->flags |= PKVI_MEMBER_PARKED;
    else
        pkvi_adaptive_add_leaf(a, id);
}

/* ---- learning ------------------------------------------------------------------------------- */

static void forget_half(struct pkvi_adaptive *a)
{
    for (uint32_t c = 0; c < CLASSES; c++)
        for (uint32_t b = 0; b < BUCKETS; b++) {
            a->counts.reused[c][b] /= 2;
            a->counts.survived[c][b] /= 2;
        }
    a->events /= 2;
}

static void compute_values(struct pkvi_adaptive *a)
{
    if (a->events > HALVE_AFTER + 8.0 * (double)a->base.capacity) forget_half(a);
    pkvi_adaptive_values(&a->counts, a->value);
    pkvi_adaptive_order(a);
    a->since_computed = 0;
}

static void count_use(struct pkvi_adaptive *a, struct pkvi_member *m, bool ghost)
{
    pkvi_adaptive_guard_use(a, m, ghost);
    uint32_t age = a->now - m->a;
    a->counts.reused[m->list][pkvi_adaptive_bucket(age)] += 1;
    a->events += 1;
    describe(m, uses_of(m) + 1, interval_step(age), continues(m));
}

/* ---- the policy ----------------------------------------------------------------------------- */

static bool setup(struct pkvi_policy *policy)
{
    struct pkvi_adaptive *a = self(policy);
    memset(a->list, 0xff, sizeof a->list);
    memset(a->current, 0xff, sizeof a->current);
    pkvi_queue_init(&a->ghosts);
    a->free_segment = PKVI_NIL;
    a->now = 1;
    if (!pkvi_adaptive_guard_setup(a)) return false;
    if (!pkvi_adaptive_widen(a)) {
        pkvi_adaptive_guard_teardown(a);
        return false;
    }
    compute_values(a);
    pkvi_adaptive_new_segment(a, 1);
    return true;
}

static void teardown(struct pkvi_policy *policy)
{
    struct pkvi_adaptive *a = self(policy);
    pkvi_adaptive_guard_teardown(a);
    pkvi_mem_free_array(policy->ix->mem, a->segment, a->segment_capacity, sizeof *a->segment);
}

static void begin(struct pkvi_policy *policy, uint32_t request)
{
    (void)request;
    struct pkvi_adaptive *a = self(policy);
    memset(a->current, 0xff, sizeof a->current);
    a->now++;
    pkvi_adaptive_guard_begin(a);
    pkvi_adaptive_grow_older(a);
    if (++a->since_computed >= RECOMPUTE) compute_values(a);
}

/* Until the request ends the page is in no segment, and so cannot go. */
static void touch(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use)
{
    (void)use;
    struct pkvi_adaptive *a = self(policy);
    struct pkvi_member *m = pkvi_adaptive_member(a, id);
    count_use(a, m, false);
    if (m->b == PKVI_NIL) return;
    pkvi_adaptive_remove_leaf(a, id);
    pkvi_adaptive_leave_segment(a, id);
    pkvi_adaptive_guard_hold(a);
}

static void insert(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use)
{
    (void)use;
    struct pkvi_adaptive *a = self(policy);
    struct pkvi_member *m = pkvi_adaptive_member(a, id);
    uint32_t parent = pkvi_node(policy->ix, id)->parent;
    if (pkvi_is_ghost(policy, id)) {
        pkvi_ghost_revive(policy, &a->ghosts, id);
        count_use(a, m, true);
        pkvi_adaptive_leave_segment(a, id);
    } else {
        const struct pkvi_member *above =
            parent == PKVI_NIL ? NULL : pkvi_adaptive_member(a, parent);
        uint32_t uses = above ? uses_of(above) : 0;
        describe(m, 1, 0, uses == 2 || (uses == 1 && continues(above)));
        m->a = a->now;
        m->list = 1;
        m->b = PKVI_NIL;
    }
    pkvi_adaptive_guard_hold(a);
    if (parent != PKVI_NIL && policy->leaf_first) pkvi_adaptive_remove_leaf(a, parent);
}

static void finish(struct pkvi_policy *policy, const uint32_t *path, uint32_t n,
                   const uint32_t *next_use, bool partial_last)
{
    (void)next_use;
    struct pkvi_adaptive *a = self(policy);
    for (uint32_t i = n; i-- > 0;) {
        uint32_t id = path[i];
        if (id == PKVI_NIL) continue;
        struct pkvi_member *m = pkvi_adaptive_member(a, id);
        if (m->b == PKVI_NIL) pkvi_adaptive_guard_release(a);
        pkvi_adaptive_remove_leaf(a, id);
        pkvi_adaptive_leave_segment(a, id);
        uint32_t c = class_of(m, partial_last && i + 1 == n);
        if (a->current[c] == PKVI_NIL) a->current[c] = pkvi_adaptive_new_segment(a, c);
        m->b = a->current[c];
        m->list = a->segment[m->b].class;
        m->a = a->now;
        a->segment[m->b].members++;
        pkvi_adaptive_guard_enter(a);
        if (!has_kids_before_it(a, m)) pkvi_adaptive_add_leaf(a, id);
    }
}

static uint32_t choose(struct pkvi_adaptive *a)
{
    if (pkvi_adaptive_may_stray(a)) return pkvi_adaptive_worst(a);
    uint32_t id = pkvi_adaptive_worst_outside(a);
    return id != PKVI_NIL ? id : pkvi_adaptive_oldest(a);
}

static uint32_t victim(struct pkvi_policy *policy)
{
    struct pkvi_adaptive *a = self(policy);
    uint32_t id;
    while ((id = choose(a)) != PKVI_NIL && pkvi_policy_blocked(policy, id))
        park(a, id);
    return id;
}

static void drop_oldest_ghost(struct pkvi_adaptive *a)
{
    uint32_t id = a->ghosts.oldest;
    pkvi_adaptive_guard_forget(a, pkvi_adaptive_member(a, id));
    pkvi_adaptive_leave_segment(a, id);
    pkvi_ghost_drop_oldest(&a->base, &a->ghosts);
}

static void remove_member(struct pkvi_policy *policy, uint32_t id, bool evicted)
{
    struct pkvi_adaptive *a = self(policy);
    pkvi_adaptive_remove_leaf(a, id);
    if (policy->leaf_first) reconsider(a, pkvi_node(policy->ix, id)->parent);
    const struct pkvi_member *m = pkvi_adaptive_member(a, id);
    if (m->b == PKVI_NIL) {
        pkvi_adaptive_guard_release(a);
        return;
    }
    if (!evicted) {
        pkvi_adaptive_leave_segment(a, id);
        return;
    }
    pkvi_adaptive_guard_evict(a, m);
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
    struct pkvi_adaptive *a = self(policy);
    pkvi_adaptive_guard_forget(a, pkvi_adaptive_member(a, id));
    pkvi_adaptive_leave_segment(a, id);
    pkvi_ghost_revive(policy, &a->ghosts, id);
}

const struct pkvi_policy_ops pkvi_policy_adaptive = {
    .name = "adaptive",
    .bytes = sizeof(struct pkvi_adaptive),
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
