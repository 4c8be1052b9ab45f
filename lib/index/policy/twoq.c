/* 2Q, full version (Johnson and Shasha, VLDB 1994): a FIFO for new pages (Kin = a quarter), a ghost
 * FIFO of those that left it (Kout = a half), and an LRU for pages asked for while they were
 * ghosts. A use while in the first FIFO changes nothing. */
#include "index/policies.h"
#include "index/policy/filtered.h"

static void touch(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use)
{
    (void)use;
    struct pkvi_filtered *twoq = (struct pkvi_filtered *)policy;
    if (pkvi_policy_member(policy, id)->list == PKVI_FILTERED_MAIN)
        pkvi_queue_renew(policy, &twoq->queue[PKVI_FILTERED_MAIN], id);
}

static uint32_t victim(struct pkvi_policy *policy)
{
    struct pkvi_filtered *twoq = (struct pkvi_filtered *)policy;
    int first = twoq->queue[PKVI_FILTERED_NEW].size > policy->capacity / 4 ? PKVI_FILTERED_NEW
                                                                           : PKVI_FILTERED_MAIN;
    uint32_t id = pkvi_queue_oldest(policy, &twoq->queue[first]);
    return id != PKVI_NIL ? id : pkvi_queue_oldest(policy, &twoq->queue[!first]);
}

static void remove_member(struct pkvi_policy *policy, uint32_t id, bool evicted)
{
    pkvi_filtered_remove(policy, id, evicted, policy->capacity / 2);
}

const struct pkvi_policy_ops pkvi_policy_2q = {
    .name = "2q",
    .bytes = sizeof(struct pkvi_filtered),
    .setup = pkvi_filtered_setup,
    .touch = touch,
    .insert = pkvi_filtered_insert,
    .victim = victim,
    .remove = remove_member,
    .unpark = pkvi_filtered_unpark,
    .forget = pkvi_filtered_forget,
};
