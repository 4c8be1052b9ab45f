/* The offline optimum, for replays: the page whose next use (a request number) is farthest goes
 * first, the deepest of equals. An ancestor is used whenever its descendant is, so this never takes
 * a page before those that hang on it.
 *
 * All pages whose next use is request r lie on r's path. Per r there is one queue with the deepest
 * page at the oldest end: a request pushes its pages from last to first, and pages already there
 * are deeper. The farthest queue that is not empty is found in a bitmap with three levels, so every
 * step is O(1).
 *
 *   opt         always inserts;
 *   opt-bypass  does not insert a block whose own next use is not nearer than the victim's. */
#include "index/policies.h"
#include "index/policy.h"

#define LEVELS 4

struct opt {
    struct pkvi_policy base;
    struct pkvi_queue *queue; /* by request number */
    struct pkvi_queue never;  /* never used again */
    uint64_t *level[LEVELS];  /* bit r of level 0: queue[r] has members; bit w of level l + 1: word
                                 w of level l is not zero */
    uint32_t n_queues;        /* 0 or 64 << k */
    uint32_t request;         /* the running one */
};

static size_t words_of(uint32_t n_queues, int level)
{
    size_t bits = n_queues;
    for (int l = 0; l <= level; l++)
        bits = PKVI_BITMAP_WORDS(bits);
    return bits;
}

static bool setup(struct pkvi_policy *policy)
{
    pkvi_queue_init(&((struct opt *)policy)->never);
    return true;
}

static void teardown(struct pkvi_policy *policy)
{
    struct opt *opt = (struct opt *)policy;
    struct pkvi_mem *mem = policy->ix->mem;
    if (opt->queue) pkvi_mem_free_array(mem, opt->queue, opt->n_queues, sizeof *opt->queue);
    for (int l = 0; l < LEVELS; l++)
        if (opt->level[l])
            pkvi_mem_free_array(mem, opt->level[l], words_of(opt->n_queues, l),
                                sizeof **opt->level);
}

static void mark(struct opt *opt, uint32_t r)
{
    for (int l = 0; l < LEVELS; l++, r /= 64)
        pkvi_bitmap_set(opt->level[l], r);
}

static void unmark(struct opt *opt, uint32_t r)
{
    for (int l = 0; l < LEVELS; l++, r /= 64) {
        pkvi_bitmap_clear(opt->level[l], r);
        if (opt->level[l][r / 64]) return;
    }
}

/* Makes queue r exist. When memory is refused everything stays, and r counts as never. */
static bool widen(struct opt *opt, uint32_t r)
{
    struct opt next = *opt;
    next.n_queues = opt->n_queues ? opt->n_queues : 1024;
    while (next.n_queues <= r && next.n_queues < UINT32_C(1) << 31)
        next.n_queues *= 2;
    if (next.n_queues <= r) return false;
    struct pkvi_mem *mem = opt->base.ix->mem;
    next.queue = pkvi_mem_array(mem, next.n_queues, sizeof *next.queue);
    bool complete = next.queue;
    for (int l = 0; l < LEVELS; l++) {
        next.level[l] = pkvi_mem_array(mem, words_of(next.n_queues, l), sizeof **next.level);
        complete = complete && next.level[l];
    }
    if (!complete) {
        teardown(&next.base);
        return false;
    }
    for (uint32_t i = 0; i < next.n_queues; i++) {
        if (i >= opt->n_queues)
            pkvi_queue_init(&next.queue[i]);
        else if ((next.queue[i] = opt->queue[i]).size)
            mark(&next, i);
    }
    teardown(&opt->base);
    *opt = next;
    return true;
}

static struct pkvi_queue *queue_of(struct opt *opt, uint32_t id)
{
    uint32_t r = pkvi_policy_member(&opt->base, id)->a;
    return r == UINT32_MAX ? &opt->never : &opt->queue[r];
}

/* The queue of next use r, made if need be. */
static struct pkvi_queue *queue_for(struct opt *opt, uint32_t *r)
{
    if (*r >= opt->n_queues && *r != UINT32_MAX && !widen(opt, *r)) *r = UINT32_MAX;
    return *r == UINT32_MAX ? &opt->never : &opt->queue[*r];
}

static void take_out(struct opt *opt, uint32_t id)
{
    uint32_t r = pkvi_policy_member(&opt->base, id)->a;
    struct pkvi_queue *queue = queue_of(opt, id);
    pkvi_queue_remove(&opt->base, queue, id);
    if (r != UINT32_MAX && queue->size == 0) unmark(opt, r);
}

static void begin(struct pkvi_policy *policy, uint32_t request)
{
    ((struct opt *)policy)->request = request;
}

/* Until the request's end, when it gets its place, a new page waits at its own next use. */
static void insert(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use)
{
    (void)use;
    struct opt *opt = (struct opt *)policy;
    uint32_t r = opt->request;
    struct pkvi_queue *queue = queue_for(opt, &r);
    pkvi_policy_member(policy, id)->a = r;
    pkvi_queue_push_parked(policy, queue, id);
    if (r != UINT32_MAX && queue->size == 1) mark(opt, r);
}

/* Moves what stands together at the end of path[0..n) to its next use. Returns how many. */
static uint32_t move(struct opt *opt, const uint32_t *path, const uint32_t *next_use, uint32_t n)
{
    uint32_t to = next_use ? next_use[n - 1] : UINT32_MAX;
    struct pkvi_queue *queue = queue_for(opt, &to); /* may move the queues */
    const uint32_t from = pkvi_policy_member(&opt->base, path[n - 1])->a;
    uint32_t moved =
        pkvi_queue_move_run(&opt->base, queue_of(opt, path[n - 1]), queue, path, next_use, n);
    for (uint32_t i = n - moved; i < n; i++)
        pkvi_policy_member(&opt->base, path[i])->a = to;
    if (from != UINT32_MAX && opt->queue[from].size == 0) unmark(opt, from);
    if (to != UINT32_MAX && queue->size == moved) mark(opt, to);
    return moved;
}

static void finish(struct pkvi_policy *policy, const uint32_t *path, uint32_t n,
                   const uint32_t *next_use, bool partial_last)
{
    (void)partial_last;
    while (n > 0) {
        if (path[n - 1] == PKVI_NIL) {
            n--;
            continue;
        }
        n -= move((struct opt *)policy, path, next_use, n);
    }
}

/* The farthest queue with members, or PKVI_NIL. */
static uint32_t farthest(const struct opt *opt)
{
    if (opt->n_queues == 0) return PKVI_NIL;
    size_t word = words_of(opt->n_queues, LEVELS - 1);
    while (word > 0 && !opt->level[LEVELS - 1][word - 1])
        word--;
    if (word == 0) return PKVI_NIL;
    size_t at = word - 1;
    for (int l = LEVELS - 1; l >= 0; l--)
        at = at * 64 + 63 - (size_t)__builtin_clzll(opt->level[l][at]);
    return (uint32_t)at;
}

/* What the running request pins stands in its own queue or was placed by it: skip that. */
static uint32_t victim(struct pkvi_policy *policy)
{
    struct opt *opt = (struct opt *)policy;
    uint32_t id = pkvi_queue_oldest(policy, &opt->never);
    if (id != PKVI_NIL) return id;
    uint32_t r = farthest(opt);
    return r == PKVI_NIL ? PKVI_NIL : pkvi_queue_oldest(policy, &opt->queue[r]);
}

static bool refuses(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use)
{
    return use->next_use >= pkvi_policy_member(policy, id)->a;
}

static void remove_member(struct pkvi_policy *policy, uint32_t id, bool evicted)
{
    (void)evicted;
    take_out((struct opt *)policy, id);
}

const struct pkvi_policy_ops pkvi_policy_opt = {
    .name = "opt",
    .bytes = sizeof(struct opt),
    .leaf_first = true,
    .offline = true,
    .setup = setup,
    .teardown = teardown,
    .begin = begin,
    .finish = finish,
    .insert = insert,
    .victim = victim,
    .remove = remove_member,
};

const struct pkvi_policy_ops pkvi_policy_opt_bypass = {
    .name = "opt-bypass",
    .bytes = sizeof(struct opt),
    .leaf_first = true,
    .offline = true,
    .bypass = true,
    .setup = setup,
    .teardown = teardown,
    .begin = begin,
    .finish = finish,
    .insert = insert,
    .victim = victim,
    .refuses = refuses,
    .remove = remove_member,
};
