/* Two queues and ghosts. */
#include "index/policy/filtered.h"

static struct pkvi_filtered *self(struct pkvi_policy *policy)
{
    return (struct pkvi_filtered *)policy;
}

bool pkvi_filtered_setup(struct pkvi_policy *policy)
{
    pkvi_queue_init(&self(policy)->queue[PKVI_FILTERED_NEW]);
    pkvi_queue_init(&self(policy)->queue[PKVI_FILTERED_MAIN]);
    pkvi_queue_init(&self(policy)->ghosts);
    return true;
}

void pkvi_filtered_insert(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use)
{
    (void)use;
    struct pkvi_member *member = pkvi_policy_member(policy, id);
    member->list = PKVI_FILTERED_NEW;
    if (pkvi_is_ghost(policy, id)) {
        pkvi_ghost_revive(policy, &self(policy)->ghosts, id);
        member->list = PKVI_FILTERED_MAIN;
    }
    member->count = 0;
    pkvi_queue_push_newest(policy, &self(policy)->queue[member->list], id);
}

void pkvi_filtered_unpark(struct pkvi_policy *policy, uint32_t id)
{
    pkvi_queue_unpark(policy, &self(policy)->queue[pkvi_policy_member(policy, id)->list], id);
}

void pkvi_filtered_forget(struct pkvi_policy *policy, uint32_t id)
{
    pkvi_ghost_revive(policy, &self(policy)->ghosts, id);
}

void pkvi_filtered_remove(struct pkvi_policy *policy, uint32_t id, bool evicted, uint64_t most)
{
    struct pkvi_queue *ghosts = &self(policy)->ghosts;
    const uint8_t list = pkvi_policy_member(policy, id)->list;
    pkvi_queue_remove(policy, &self(policy)->queue[list], id);
    if (!evicted || list != PKVI_FILTERED_NEW || most == 0) return;
    pkvi_ghost_push(policy, ghosts, id);
    while (ghosts->size > most)
        pkvi_ghost_drop_oldest(policy, ghosts);
}
