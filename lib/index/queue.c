/* Queues of members, linked through the members themselves. */
#include "policy.h"

void pkvi_queue_init(struct pkvi_queue *queue)
{
    *queue = (struct pkvi_queue){
        .newest = PKVI_NIL, .oldest = PKVI_NIL, .cursor = PKVI_NIL, .epoch = UINT32_MAX};
}

void pkvi_queue_push_newest(struct pkvi_policy *policy, struct pkvi_queue *queue, uint32_t id)
{
    struct pkvi_member *m = pkvi_policy_member(policy, id);
    m->newer = PKVI_NIL;
    m->older = queue->newest;
    if (queue->newest != PKVI_NIL)
        pkvi_policy_member(policy, queue->newest)->newer = id;
    else
        queue->oldest = id;
    queue->newest = id;
    queue->size++;
    if (queue->cursor == PKVI_NIL) queue->cursor = id;
}

void pkvi_queue_push_oldest(struct pkvi_policy *policy, struct pkvi_queue *queue, uint32_t id)
{
    struct pkvi_member *m = pkvi_policy_member(policy, id);
    m->older = PKVI_NIL;
    m->newer = queue->oldest;
    if (queue->oldest != PKVI_NIL)
        pkvi_policy_member(policy, queue->oldest)->older = id;
    else
        queue->newest = id;
    queue->oldest = id;
    queue->size++;
    queue->cursor = id;
}

/* Takes a member out of the chain; its size is the caller's business. */
static void unlink_member(struct pkvi_policy *policy, struct pkvi_queue *queue, uint32_t id)
{
    struct pkvi_member *m = pkvi_policy_member(policy, id);
    if (m->newer != PKVI_NIL)
        pkvi_policy_member(policy, m->newer)->older = m->older;
    else
        queue->newest = m->older;
    if (m->older != PKVI_NIL)
        pkvi_policy_member(policy, m->older)->newer = m->newer;
    else
        queue->oldest = m->newer;
    if (queue->cursor == id) queue->cursor = m->newer;
}

void pkvi_queue_remove(struct pkvi_policy *policy, struct pkvi_queue *queue, uint32_t id)
{
    struct pkvi_member *m = pkvi_policy_member(policy, id);
    if (m->flags & PKVI_MEMBER_PARKED)
        m->flags &= (uint8_t)~PKVI_MEMBER_PARKED;
    else
        unlink_member(policy, queue, id);
    queue->size--;
}

void pkvi_queue_renew(struct pkvi_policy *policy, struct pkvi_queue *queue, uint32_t id)
{
    if (queue->newest == id) return;
    pkvi_queue_remove(policy, queue, id);
    pkvi_queue_push_newest(policy, queue, id);
}

void pkvi_queue_park(struct pkvi_policy *policy, struct pkvi_queue *queue, uint32_t id)
{
    unlink_member(policy, queue, id);
    pkvi_policy_member(policy, id)->flags |= PKVI_MEMBER_PARKED;
}

void pkvi_queue_push_parked(struct pkvi_policy *policy, struct pkvi_queue *queue, uint32_t id)
{
    pkvi_policy_member(policy, id)->flags |= PKVI_MEMBER_PARKED;
    queue->size++;
}

/* Takes the members between oldest and newest out of a queue's chain. The cursor may point to one
 * of them: the next request finds its own. */
static void unlink_run(struct pkvi_policy *policy, struct pkvi_queue *queue, uint32_t newest,
                       uint32_t oldest)
{
    uint32_t newer = pkvi_policy_member(policy, newest)->newer;
    uint32_t older = pkvi_policy_member(policy, oldest)->older;
    if (newer != PKVI_NIL)
        pkvi_policy_member(policy, newer)->older = older;
    else
        queue->newest = older;
    if (older != PKVI_NIL)
        pkvi_policy_member(policy, older)->newer = newer;
    else
        queue->oldest = newer;
}

static void push_run(struct pkvi_policy *policy, struct pkvi_queue *queue, uint32_t newest,
                     uint32_t oldest)
{
    pkvi_policy_member(policy, newest)->newer = PKVI_NIL;
    pkvi_policy_member(policy, oldest)->older = queue->newest;
    if (queue->newest != PKVI_NIL)
        pkvi_policy_member(policy, queue->newest)->newer = oldest;
    else
        queue->oldest = oldest;
    queue->newest = newest;
}

uint32_t pkvi_queue_move_run(struct pkvi_policy *policy, struct pkvi_queue *from,
                             struct pkvi_queue *to, const uint32_t *path, const uint32_t *next_use,
                             uint32_t n)
{
    uint32_t last = n - 1, i = last;
    struct pkvi_member *m = pkvi_policy_member(policy, path[i]);
    const bool parked = m->flags & PKVI_MEMBER_PARKED;
    m->flags &= (uint8_t)~PKVI_MEMBER_PARKED;
    while (i > 0 && path[i - 1] != PKVI_NIL && (!next_use || next_use[i - 1] == next_use[last])) {
        if (!parked && path[i - 1] != m->newer) break;
        struct pkvi_member *above = pkvi_policy_member(policy, path[i - 1]);
        if (parked) {
            if (!(above->flags & PKVI_MEMBER_PARKED)) break; /* also one that occurs twice */
            above->flags &= (uint8_t)~PKVI_MEMBER_PARKED;
            above->older = path[i];
            m->newer = path[i - 1];
        }
        m = above;
        i--;
    }
    if (!parked) unlink_run(policy, from, path[i], path[last]);
    from->size -= n - i;
    push_run(policy, to, path[i], path[last]);
    to->size += n - i;
    return n - i;
}

/* Live: what is blocked leaves the chain, and returns through unpark. */
static uint32_t oldest_live(struct pkvi_policy *policy, struct pkvi_queue *queue)
{
    uint32_t id;
    while ((id = queue->oldest) != PKVI_NIL && pkvi_policy_blocked(policy, id))
        pkvi_queue_park(policy, queue, id);
    return id;
}

uint32_t pkvi_queue_oldest(struct pkvi_policy *policy, struct pkvi_queue *queue)
{
    if (!policy->ix->options.replay) return oldest_live(policy, queue);
    if (queue->epoch != policy->ix->epoch) {
        queue->epoch = policy->ix->epoch;
        queue->cursor = queue->oldest;
    }
    while (queue->cursor != PKVI_NIL && pkvi_policy_blocked(policy, queue->cursor))
        queue->cursor = pkvi_policy_member(policy, queue->cursor)->newer;
    return queue->cursor;
}

void pkvi_queue_unpark(struct pkvi_policy *policy, struct pkvi_queue *queue, uint32_t id)
{
    pkvi_policy_member(policy, id)->flags &= (uint8_t)~PKVI_MEMBER_PARKED;
    queue->size--;
    pkvi_queue_push_oldest(policy, queue, id);
}

void pkvi_ghost_push(struct pkvi_policy *policy, struct pkvi_queue *queue, uint32_t id)
{
    pkvi_queue_push_newest(policy, queue, id);
    pkvi_policy_member(policy, id)->flags |= PKVI_MEMBER_GHOST;
    pkvi_node(policy->ix, id)->holds++;
}

void pkvi_ghost_revive(struct pkvi_policy *policy, struct pkvi_queue *queue, uint32_t id)
{
    pkvi_queue_remove(policy, queue, id);
    pkvi_policy_member(policy, id)->flags &= (uint8_t)~PKVI_MEMBER_GHOST;
    pkvi_node(policy->ix, id)->holds--;
}

void pkvi_ghost_drop_oldest(struct pkvi_policy *policy, struct pkvi_queue *queue)
{
    uint32_t id = queue->oldest;
    pkvi_ghost_revive(policy, queue, id);
    pkvi_index_collect(policy->ix, id);
}
