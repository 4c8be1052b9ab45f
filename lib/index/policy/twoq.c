/* 2Q, full version (Johnson and Shasha, VLDB 1994): a FIFO for new pages (Kin = a quarter), a ghost
 * FIFO of those that left it (Kout = a half), and an LRU for pages asked for while they were
 * ghosts. A use while in the first FIFO changes nothing. */
#include "index/policies.h"
#include "index/policy.h"

enum { IN, MAIN };

struct twoq {
    struct pkvi_policy base;
    struct pkvi_queue queue[2];
    struct pkvi_queue ghosts;
};

static bool setup(struct pkvi_policy *policy)
{
    struct twoq *twoq = (struct twoq *)policy;
    pkvi_queue_init(&twoq->queue[IN]);
    pkvi_queue_init(&twoq->queue[MAIN]);
    pkvi_queue_init(&twoq->ghosts);
    return true;
}

static void touch(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use)
{
    (void)use;
    struct twoq *twoq = (struct twoq *)policy;
    if (pkvi_policy_member(policy, id)->list == MAIN)
        pkvi_queue_renew(policy, &twoq->queue[MAIN], id);
}

static void insert(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use)
{
    (void)use;
    struct twoq *twoq = (struct twoq *)policy;
    uint8_t list = IN;
    if (pkvi_is_ghost(policy, id)) {
        pkvi_ghost_revive(policy, &twoq->ghosts, id);
        list = MAIN;
    }
    pkvi_policy_member(policy, id)->list = list;
    pkvi_queue_push_newest(policy, &twoq->queue[list], id);
}

static uint32_t victim(struct pkvi_policy *policy)
{
    struct twoq *twoq = (struct twoq *)policy;
    int first = twoq->queue[IN].size > policy->capacity / 4 ? IN : MAIN;
    uint32_t id = pkvi_queue_oldest(policy, &twoq->queue[first]);
    return id != PKVI_NIL ? id : pkvi_queue_oldest(policy, &twoq->queue[!first]);
}

static void remove_member(struct pkvi_policy *policy, uint32_t id, bool evicted)
{
    struct twoq *twoq = (struct twoq *)policy;
    uint8_t list = pkvi_policy_member(policy, id)->list;
    pkvi_queue_remove(policy, &twoq->queue[list], id);
    if (!evicted || list != IN || policy->capacity < 2) return;
    pkvi_ghost_push(policy, &twoq->ghosts, id);
    while (twoq->ghosts.size > policy->capacity / 2)
        pkvi_ghost_drop_oldest(policy, &twoq->ghosts);
}

static void unpark(struct pkvi_policy *policy, uint32_t id)
{
    struct twoq *twoq = (struct twoq *)policy;
    pkvi_queue_unpark(policy, &twoq->queue[pkvi_policy_member(policy, id)->list], id);
}

static void forget(struct pkvi_policy *policy, uint32_t id)
{
    pkvi_ghost_revive(policy, &((struct twoq *)policy)->ghosts, id);
}

const struct pkvi_policy_ops pkvi_policy_2q = {
    .name = "2q",
    .bytes = sizeof(struct twoq),
    .setup = setup,
    .touch = touch,
    .insert = insert,
    .victim = victim,
    .remove = remove_member,
    .unpark = unpark,
    .forget = forget,
};
