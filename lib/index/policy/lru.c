/* LRU: the page used longest ago goes first. Two orders of touching a request's pages:
 *
 *   lru       each page when the request comes to it, front to back;
 *   lru-leaf  all pages at the end of the request, from last to first, so that a page is always
 *             older than its parent and leaves go before what they hang on. */
#include "index/policies.h"
#include "index/policy.h"

struct lru {
    struct pkvi_policy base;
    struct pkvi_queue queue;
};

static bool setup(struct pkvi_policy *policy)
{
    pkvi_queue_init(&((struct lru *)policy)->queue);
    return true;
}

static void touch(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use)
{
    (void)use;
    pkvi_queue_renew(policy, &((struct lru *)policy)->queue, id);
}

static void insert(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use)
{
    (void)use;
    pkvi_queue_push_newest(policy, &((struct lru *)policy)->queue, id);
}

/* Until the end of its request, or its last holder, it cannot go. */
static void insert_leaf_first(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use)
{
    (void)use;
    pkvi_queue_push_parked(policy, &((struct lru *)policy)->queue, id);
}

static void finish_leaf_first(struct pkvi_policy *policy, const uint32_t *path, uint32_t n,
                              const uint32_t *next_use, bool partial_last)
{
    (void)next_use;
    (void)partial_last;
    struct lru *lru = (struct lru *)policy;
    while (n > 0) {
        if (path[n - 1] == PKVI_NIL) {
            n--;
            continue;
        }
        n -= pkvi_queue_move_run(policy, &lru->queue, &lru->queue, path, NULL, n);
    }
}

static uint32_t victim(struct pkvi_policy *policy)
{
    return pkvi_queue_oldest(policy, &((struct lru *)policy)->queue);
}

static void remove_member(struct pkvi_policy *policy, uint32_t id, bool evicted)
{
    (void)evicted;
    pkvi_queue_remove(policy, &((struct lru *)policy)->queue, id);
}

static void unpark(struct pkvi_policy *policy, uint32_t id)
{
    pkvi_queue_unpark(policy, &((struct lru *)policy)->queue, id);
}

const struct pkvi_policy_ops pkvi_policy_lru = {
    .name = "lru",
    .bytes = sizeof(struct lru),
    .setup = setup,
    .touch = touch,
    .insert = insert,
    .victim = victim,
    .remove = remove_member,
    .unpark = unpark,
};

const struct pkvi_policy_ops pkvi_policy_lru_leaf = {
    .name = "lru-leaf",
    .bytes = sizeof(struct lru),
    .leaf_first = true,
    .setup = setup,
    .finish = finish_leaf_first,
    .insert = insert_leaf_first,
    .victim = victim,
    .remove = remove_member,
    .unpark = unpark,
};
