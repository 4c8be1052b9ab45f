/* Segmented LRU: new pages are on probation (a fifth of the capacity), a used one is protected; a
 * full protected segment sends its oldest page back to probation. */
#include "index/policies.h"
#include "index/policy.h"

enum { PROBATION, PROTECTED };

struct slru {
    struct pkvi_policy base;
    struct pkvi_queue queue[2];
};

static bool setup(struct pkvi_policy *policy)
{
    struct slru *slru = (struct slru *)policy;
    pkvi_queue_init(&slru->queue[PROBATION]);
    pkvi_queue_init(&slru->queue[PROTECTED]);
    return true;
}

static void place(struct slru *slru, uint32_t id, uint8_t list)
{
    pkvi_policy_member(&slru->base, id)->list = list;
    pkvi_queue_push_newest(&slru->base, &slru->queue[list], id);
}

/* Four fifths, without overflow for unlimited capacities. */
static uint64_t protected_capacity(uint64_t capacity)
{
    return capacity / 5 * 4 + capacity % 5 * 4 / 5;
}

static void touch(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use)
{
    (void)use;
    struct slru *slru = (struct slru *)policy;
    pkvi_queue_remove(policy, &slru->queue[pkvi_policy_member(policy, id)->list], id);
    place(slru, id, PROTECTED);
    struct pkvi_queue *kept = &slru->queue[PROTECTED];
    while (kept->size > protected_capacity(policy->capacity) && kept->oldest != PKVI_NIL) {
        uint32_t demoted = kept->oldest;
        pkvi_queue_remove(policy, kept, demoted);
        place(slru, demoted, PROBATION);
    }
}

static void insert(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use)
{
    (void)use;
    place((struct slru *)policy, id, PROBATION);
}

static uint32_t victim(struct pkvi_policy *policy)
{
    struct slru *slru = (struct slru *)policy;
    uint32_t id = pkvi_queue_oldest(policy, &slru->queue[PROBATION]);
    return id != PKVI_NIL ? id : pkvi_queue_oldest(policy, &slru->queue[PROTECTED]);
}

static void remove_member(struct pkvi_policy *policy, uint32_t id, bool evicted)
{
    (void)evicted;
    struct slru *slru = (struct slru *)policy;
    pkvi_queue_remove(policy, &slru->queue[pkvi_policy_member(policy, id)->list], id);
}

static void unpark(struct pkvi_policy *policy, uint32_t id)
{
    struct slru *slru = (struct slru *)policy;
    pkvi_queue_unpark(policy, &slru->queue[pkvi_policy_member(policy, id)->list], id);
}

const struct pkvi_policy_ops pkvi_policy_slru = {
    .name = "slru",
    .bytes = sizeof(struct slru),
    .setup = setup,
    .touch = touch,
    .insert = insert,
    .victim = victim,
    .remove = remove_member,
    .unpark = unpark,
};
