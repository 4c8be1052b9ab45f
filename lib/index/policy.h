/* Replacement policies: which page goes next.
 *
 * One instance serves the members of one layer group in one quota domain. The index tells it what
 * happens; it keeps its queues through the links inside the members, so it allocates nothing after
 * setup and every call is O(1) or amortised O(1) unless its file says otherwise.
 *
 * A member that cannot go now (held, pinned, or with resident children where leaves go first) is
 * "blocked". In a live index a policy that meets a blocked member while it looks for a victim sets
 * it aside ("parks" it); the index reports when it is free again. In a replay blocked means pinned
 * by the running request, and members are skipped in place, so that the order is exactly the
 * textbook one. */
#ifndef PKVI_INDEX_POLICY_H
#define PKVI_INDEX_POLICY_H

#include "nodes.h"

/* Members from newest to oldest. */
struct pkvi_queue {
    uint32_t newest, oldest;
    uint32_t size;   /* parked members included */
    uint32_t cursor; /* replay: every member older than this one is blocked … */
    uint32_t epoch;  /* … during this request */
};

struct pkvi_policy {
    const struct pkvi_policy_ops *ops;
    struct pkvi_index *ix;
    uint32_t group;
    bool leaf_first;   /* a member with resident children is blocked */
    uint64_t capacity; /* pages it may expect to hold; may change at any time */
    uint64_t size;     /* members with a page */
    uint64_t now;      /* nanoseconds, refreshed before calls in a live index; 0 in a replay */
};

struct pkvi_policy_ops {
    const char *name;
    size_t bytes;    /* of the instance; starts with struct pkvi_policy */
    bool leaf_first; /* in replays too */
    bool offline;    /* needs pkvi_use.next_use */
    bool bypass;     /* may refuse to insert: see `refuses` */
    /* Instance is zeroed apart from the base. False when memory is refused. */
    bool (*setup)(struct pkvi_policy *policy);
    /* What follows may be NULL, unless the policy could not do without: nothing to do. */
    void (*teardown)(struct pkvi_policy *policy);
    /* A request is about to run (its number), and has used path[0..n), in path order, PKVI_NIL
     * where a block is not resident. In a live index: pages lose their last holder; finish comes
     * once or several times per begin, from the last pages to the first. */
    void (*begin)(struct pkvi_policy *policy, uint32_t request);
    void (*finish)(struct pkvi_policy *policy, const uint32_t *path, uint32_t n,
                   const uint32_t *next_use, bool partial_last);
    /* A member with a page is used again. */
    void (*touch)(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use);
    /* A block without a page is about to come (before room is made). id may be PKVI_NIL. */
    void (*miss)(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use);
    /* The member has its page now. If it was a ghost it still is: the policy takes it out. */
    void (*insert)(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use);
    /* The member to evict, or PKVI_NIL if all are blocked. */
    uint32_t (*victim)(struct pkvi_policy *policy);
    /* bypass only: is `use` not worth the victim? */
    bool (*refuses)(struct pkvi_policy *policy, uint32_t victim, const struct pkvi_use *use);
    /* The member lost its page: evicted (it may become a ghost) or dropped for another reason. */
    void (*remove)(struct pkvi_policy *policy, uint32_t id, bool evicted);
    /* A parked member may go again. */
    void (*unpark)(struct pkvi_policy *policy, uint32_t id);
    /* The policy must let go of a ghost: without touching the node otherwise. */
    void (*forget)(struct pkvi_policy *policy, uint32_t id);
};

/* By name, or NULL. Online policies first; pkvi_policy_at enumerates until NULL. */
const struct pkvi_policy_ops *pkvi_policy_find(const char *name);
const struct pkvi_policy_ops *pkvi_policy_at(uint32_t i);

/* Creates an instance. NULL when memory is refused. */
struct pkvi_policy *pkvi_policy_create(const struct pkvi_policy_ops *ops, struct pkvi_index *ix,
                                       uint32_t group, uint64_t capacity);
void pkvi_policy_destroy(struct pkvi_policy *policy);

static inline struct pkvi_member *pkvi_policy_member(const struct pkvi_policy *policy, uint32_t id)
{
    return pkvi_member(policy->ix, policy->group, id);
}

/* May the member not go now? */
static inline bool pkvi_policy_blocked(const struct pkvi_policy *policy, uint32_t id)
{
    const struct pkvi_member *m = pkvi_policy_member(policy, id);
    if (m->busy || (policy->leaf_first && m->kids)) return true;
    return pkvi_node_pinned(policy->ix, pkvi_node(policy->ix, id));
}

/* ---- queues (queue.c); all O(1) unless noted ------------------------------------------------ */

void pkvi_queue_init(struct pkvi_queue *queue);
void pkvi_queue_push_newest(struct pkvi_policy *policy, struct pkvi_queue *queue, uint32_t id);
void pkvi_queue_push_oldest(struct pkvi_policy *policy, struct pkvi_queue *queue, uint32_t id);
/* Takes a member out, parked or not. */
void pkvi_queue_remove(struct pkvi_policy *policy, struct pkvi_queue *queue, uint32_t id);
/* Removes and pushes as the newest. */
void pkvi_queue_renew(struct pkvi_policy *policy, struct pkvi_queue *queue, uint32_t id);
/* A new member that cannot go yet: it counts, and has no place until it is moved or unparked. */
void pkvi_queue_push_parked(struct pkvi_policy *policy, struct pkvi_queue *queue, uint32_t id);
/* At the end of a request: moves members at the end of path[0..n) from one queue to the newest end
 * of another or of its own, in this order, the last the oldest. Takes all that stand in this order
 * already with nothing between them, or else all that are parked; stops where next_use (of the same
 * length; may be NULL) changes. The last must be a member. Returns how many it moved, at least 1.
 */
uint32_t pkvi_queue_move_run(struct pkvi_policy *policy, struct pkvi_queue *from,
                             struct pkvi_queue *to, const uint32_t *path, const uint32_t *next_use,
                             uint32_t n);
/* The oldest member that may go, or PKVI_NIL. Amortised O(1): parks (live) or skips once per
 * request (replay) what is blocked. */
uint32_t pkvi_queue_oldest(struct pkvi_policy *policy, struct pkvi_queue *queue);
/* Sets a blocked member aside; it still counts. */
void pkvi_queue_park(struct pkvi_policy *policy, struct pkvi_queue *queue, uint32_t id);
/* A parked member is free again: back to the oldest end. */
void pkvi_queue_unpark(struct pkvi_policy *policy, struct pkvi_queue *queue, uint32_t id);

/* ---- ghosts --------------------------------------------------------------------------------- */

/* Remembers a member that is losing its page. */
void pkvi_ghost_push(struct pkvi_policy *policy, struct pkvi_queue *queue, uint32_t id);
/* Takes a ghost out because its block returns (the node stays). */
void pkvi_ghost_revive(struct pkvi_policy *policy, struct pkvi_queue *queue, uint32_t id);
/* Forgets the oldest ghost of a non-empty queue; its node may be freed. */
void pkvi_ghost_drop_oldest(struct pkvi_policy *policy, struct pkvi_queue *queue);

static inline bool pkvi_is_ghost(const struct pkvi_policy *policy, uint32_t id)
{
    return id != PKVI_NIL && pkvi_policy_member(policy, id)->flags & PKVI_MEMBER_GHOST;
}

#endif
