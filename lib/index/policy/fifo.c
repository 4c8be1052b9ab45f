/* FIFO: the page that came first goes first, however often it was used. */
#include "index/policies.h"
#include "index/policy.h"

struct fifo {
    struct pkvi_policy base;
    struct pkvi_queue queue;
};

static bool setup(struct pkvi_policy *policy)
{
    pkvi_queue_init(&((struct fifo *)policy)->queue);
    return true;
}

static void insert(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use)
{
    (void)use;
    pkvi_queue_push_newest(policy, &((struct fifo *)policy)->queue, id);
}

static uint32_t victim(struct pkvi_policy *policy)
{
    return pkvi_queue_oldest(policy, &((struct fifo *)policy)->queue);
}

static void remove_member(struct pkvi_policy *policy, uint32_t id, bool evicted)
{
    (void)evicted;
    pkvi_queue_remove(policy, &((struct fifo *)policy)->queue, id);
}

static void unpark(struct pkvi_policy *policy, uint32_t id)
{
    pkvi_queue_unpark(policy, &((struct fifo *)policy)->queue, id);
}

const struct pkvi_policy_ops pkvi_policy_fifo = {
    .name = "fifo",
    .bytes = sizeof(struct fifo),
    .setup = setup,
    .insert = insert,
    .victim = victim,
    .remove = remove_member,
    .unpark = unpark,
};
