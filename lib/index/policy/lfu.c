/* LFU: the page used least often since it came goes first, among equals the one used longest ago.
 * One queue per number of uses (saturating at 65,535) and a bitmap of those that are not empty:
 * O(1), apart from the search in the bitmap (64 queues per step). */
#include "index/policies.h"
#include "index/policy.h"

#define MOST_USES UINT16_MAX

struct lfu {
    struct pkvi_policy base;
    struct pkvi_queue *queue; /* by number of uses; [0] is not used */
    uint64_t *filled;         /* bit u: queue[u] may have members in its chain */
    uint32_t n_queues;        /* a multiple of 64 */
};

static void teardown(struct pkvi_policy *policy)
{
    struct lfu *lfu = (struct lfu *)policy;
    struct pkvi_mem *mem = policy->ix->mem;
    if (lfu->queue) pkvi_mem_free_array(mem, lfu->queue, lfu->n_queues, sizeof *lfu->queue);
    if (lfu->filled) pkvi_mem_free_array(mem, lfu->filled, lfu->n_queues / 64, sizeof *lfu->filled);
}

/* Makes room for one more number of uses. When memory is refused counting stops there. */
static bool widen(struct lfu *lfu)
{
    struct pkvi_mem *mem = lfu->base.ix->mem;
    uint32_t wider = lfu->n_queues ? 2 * lfu->n_queues : 64;
    if (wider > MOST_USES + 1u) return false;
    struct pkvi_queue *queue = pkvi_mem_array(mem, wider, sizeof *queue);
    uint64_t *filled = pkvi_mem_array(mem, wider / 64, sizeof *filled);
    if (!queue || !filled) {
        if (queue) pkvi_mem_free_array(mem, queue, wider, sizeof *queue);
        if (filled) pkvi_mem_free_array(mem, filled, wider / 64, sizeof *filled);
        return false;
    }
    for (uint32_t u = 0; u < wider; u++)
        if (u < lfu->n_queues)
            queue[u] = lfu->queue[u];
        else
            pkvi_queue_init(&queue[u]);
    for (uint32_t w = 0; w < lfu->n_queues / 64; w++)
        filled[w] = lfu->filled[w];
    teardown(&lfu->base);
    lfu->queue = queue;
    lfu->filled = filled;
    lfu->n_queues = wider;
    return true;
}

static bool setup(struct pkvi_policy *policy)
{
    return widen((struct lfu *)policy);
}

static void place(struct lfu *lfu, uint32_t id, uint32_t uses)
{
    pkvi_policy_member(&lfu->base, id)->count = (uint16_t)uses;
    pkvi_queue_push_newest(&lfu->base, &lfu->queue[uses], id);
    pkvi_bitmap_set(lfu->filled, uses);
}

static void touch(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use)
{
    (void)use;
    struct lfu *lfu = (struct lfu *)policy;
    uint32_t uses = pkvi_policy_member(policy, id)->count;
    pkvi_queue_remove(policy, &lfu->queue[uses], id);
    if (uses + 1 < lfu->n_queues || widen(lfu)) uses++;
    place(lfu, id, uses);
}

static void insert(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use)
{
    (void)use;
    place((struct lfu *)policy, id, 1);
}

static uint32_t victim(struct pkvi_policy *policy)
{
    struct lfu *lfu = (struct lfu *)policy;
    uint32_t uses = 0;
    while ((uses = pkvi_bitmap_next(lfu->filled, lfu->n_queues, uses + 1)) != PKVI_BITMAP_NONE) {
        uint32_t id = pkvi_queue_oldest(policy, &lfu->queue[uses]);
        if (id != PKVI_NIL) return id;
        if (lfu->queue[uses].oldest == PKVI_NIL) pkvi_bitmap_clear(lfu->filled, uses);
    }
    return PKVI_NIL;
}

static void remove_member(struct pkvi_policy *policy, uint32_t id, bool evicted)
{
    (void)evicted;
    struct lfu *lfu = (struct lfu *)policy;
    pkvi_queue_remove(policy, &lfu->queue[pkvi_policy_member(policy, id)->count], id);
}

static void unpark(struct pkvi_policy *policy, uint32_t id)
{
    struct lfu *lfu = (struct lfu *)policy;
    uint32_t uses = pkvi_policy_member(policy, id)->count;
    pkvi_queue_unpark(policy, &lfu->queue[uses], id);
    pkvi_bitmap_set(lfu->filled, uses);
}

const struct pkvi_policy_ops pkvi_policy_lfu = {
    .name = "lfu",
    .bytes = sizeof(struct lfu),
    .setup = setup,
    .teardown = teardown,
    .touch = touch,
    .insert = insert,
    .victim = victim,
    .remove = remove_member,
    .unpark = unpark,
};
