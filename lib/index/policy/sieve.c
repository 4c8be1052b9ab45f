/* SIEVE (Zhang et al., NSDI 2024): one queue in order of arrival, one bit per page, and a hand that
 * walks from the oldest to the newest: a page that was used since the hand last passed loses its
 * bit and stays where it is, the first other one goes. */
#include "index/policies.h"
#include "index/policy.h"

struct sieve {
    struct pkvi_policy base;
    struct pkvi_queue queue;
    uint32_t hand; /* next member to look at; PKVI_NIL = the oldest */
};

static bool setup(struct pkvi_policy *policy)
{
    struct sieve *sieve = (struct sieve *)policy;
    pkvi_queue_init(&sieve->queue);
    sieve->hand = PKVI_NIL;
    return true;
}

static void touch(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use)
{
    (void)use;
    pkvi_policy_member(policy, id)->count = 1;
}

static void insert(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use)
{
    (void)use;
    pkvi_policy_member(policy, id)->count = 0;
    pkvi_queue_push_newest(policy, &((struct sieve *)policy)->queue, id);
}

/* Moves the hand off a member that is about to leave the chain. */
static void step_over(struct sieve *sieve, uint32_t id)
{
    if (sieve->hand == id) sieve->hand = pkvi_policy_member(&sieve->base, id)->newer;
}

/* After one lap every bit is clear, so two laps find a victim if there is one. A live index takes
 * blocked members out of the queue, so that no later lap meets them. */
static uint32_t victim(struct pkvi_policy *policy)
{
    struct sieve *sieve = (struct sieve *)policy;
    for (uint64_t steps = 2 * (uint64_t)sieve->queue.size; steps > 0; steps--) {
        uint32_t id = sieve->hand != PKVI_NIL ? sieve->hand : sieve->queue.oldest;
        if (id == PKVI_NIL) return PKVI_NIL;
        struct pkvi_member *m = pkvi_policy_member(policy, id);
        sieve->hand = m->newer;
        if (pkvi_policy_blocked(policy, id)) {
            if (!policy->ix->options.replay) pkvi_queue_park(policy, &sieve->queue, id);
        } else if (m->count) {
            m->count = 0;
        } else {
            sieve->hand = id;
            return id;
        }
    }
    return PKVI_NIL;
}

static void remove_member(struct pkvi_policy *policy, uint32_t id, bool evicted)
{
    (void)evicted;
    struct sieve *sieve = (struct sieve *)policy;
    step_over(sieve, id);
    pkvi_queue_remove(policy, &sieve->queue, id);
}

static void unpark(struct pkvi_policy *policy, uint32_t id)
{
    pkvi_queue_unpark(policy, &((struct sieve *)policy)->queue, id);
}

const struct pkvi_policy_ops pkvi_policy_sieve = {
    .name = "sieve",
    .bytes = sizeof(struct sieve),
    .setup = setup,
    .touch = touch,
    .insert = insert,
    .victim = victim,
    .remove = remove_member,
    .unpark = unpark,
};
