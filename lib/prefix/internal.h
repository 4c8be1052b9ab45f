/* What the files behind prefix.h share. */
#ifndef PKVI_PREFIX_INTERNAL_H
#define PKVI_PREFIX_INTERNAL_H

#include "index/index.h"
#include "prefix.h"

#define PKVI_NO_SALTED UINT32_MAX

/* One policy instance: a domain's pages in one group. It stands in one of the group's rings. */
enum pkvi_ring {
    PKVI_RING_BEYOND, /* beyond its share (always, without a quota): gives pages first, in turn */
    PKVI_RING_WITHIN, /* within its share */
    PKVI_RING_STUCK,  /* everything it has is blocked; nothing to ask it */
    PKVI_RINGS
};

struct pkvi_lane {
    struct pkvi_policy *policy;
    struct pkvi_list link;
    enum pkvi_ring ring;
};

/* Who is reclaimed from together: all namespaces without a quota, or one with. */
struct pkvi_domain {
    uint64_t share, max;
    bool has_quota;
    struct pkvi_lane lanes[]; /* [n_groups] */
};

struct pkvi_space {
    void *name;
    size_t size;
    uint64_t hash; /* where its chains start */
    struct pkvi_domain *domain;
    uint32_t slot, next; /* hash chain, or the list of free slots */
    uint32_t generation; /* counts drops and reuses of the slot */
    uint32_t sequences;  /* in it now */
    bool live;
    struct pkvi_list empty; /* in the list of namespaces with nothing in them, or alone */
    uint64_t lookups, tokens_asked, tokens_hit;
    uint64_t pages, published, reclaimed, duplicate, pins;
};

/* A live pin, or a free slot. */
struct pkvi_pin {
    uint32_t generation;
    uint32_t priority;
    uint64_t expires; /* UINT64_MAX = never */
    uint32_t node, node_generation;
    uint32_t n_nodes;  /* nodes pinned, from `node` upwards */
    uint32_t place[2]; /* in the heaps; PKVI_NIL = not live */
    uint32_t next;     /* free list */
};

struct pkvi_pins {
    struct pkvi_pin *pin;
    uint32_t capacity, free;
    uint32_t *heap[2]; /* by end of life, and by who gives way first */
    uint32_t n;
    uint32_t n_dead; /* of these, pins whose namespace was dropped */
};

/* Idle pages of a full-attention group above resident ones, not pinned, oldest first (inner.c). */
struct pkvi_inner {
    uint32_t newest, oldest;
};

/* Namespaces with nothing in them are remembered, with their counters, up to this many. */
#define PKVI_EMPTY_SPACES 1024u

struct pkvi_prefix {
    struct pkvi_mem *mem;
    struct pkvi_stats *stats;
    struct pkvi_prefix_config config;
    struct pkvi_prefix_group *groups; /* [n_groups], own copy */
    const struct pkvi_policy_ops *ops;
    uint32_t page_shift;
    uint64_t full_groups; /* bit g */
    uint64_t all_groups;
    uint64_t state_groups;

    struct pkvi_mutex lock; /* guards everything below */
    struct pkvi_index core;
    struct pkvi_list (*rings)[PKVI_RINGS]; /* [n_groups] */
    struct pkvi_inner *inner;              /* [n_groups] */
    uint64_t n_holes;                      /* pages taken from inside a chain so far */
    struct pkvi_domain *common;            /* namespaces without a quota */
    struct pkvi_space **space;             /* by slot */
    uint32_t n_spaces, space_capacity, free_space;
    uint32_t *space_bucket; /* power of two */
    uint32_t n_space_buckets, n_live_spaces;
    struct pkvi_list empty_spaces; /* oldest first */
    uint32_t n_empty_spaces;
    struct pkvi_pins pins;
    void **digest_chunk; /* per node chunk, made when first needed (digest.c) */
    uint32_t n_digest_chunks;
    uint64_t now;           /* refreshed at the start of calls that need it */
    uint32_t counted_nodes; /* what the statistics know of core.n_nodes */
};

static inline void pkvi_prefix_lock(struct pkvi_prefix *px)
{
    pkvi_mutex_lock(&px->lock);
}

static inline void pkvi_prefix_unlock(struct pkvi_prefix *px)
{
    uint32_t nodes = px->core.n_nodes;
    if (nodes > px->counted_nodes)
        pkvi_count(px->stats, PKVI_COUNT_PREFIX_NODES, nodes - px->counted_nodes);
    else if (nodes < px->counted_nodes)
        pkvi_uncount(px->stats, PKVI_COUNT_PREFIX_NODES, px->counted_nodes - nodes);
    px->counted_nodes = nodes;
    pkvi_mutex_unlock(&px->lock);
}

/* Where a sequence stands in the index. */
struct pkvi_prefix_seq {
    struct pkvi_space *space;
    uint32_t space_generation;
    uint32_t cursor;     /* node of its last published page; PKVI_NIL = none. Held, unless the
                          * namespace's generation is another one */
    uint32_t published;  /* pages up to the cursor */
    uint32_t junction;   /* pages that it could have attached, had there been a state; 0 = no more */
    uint64_t holes_seen; /* pkvi_prefix.n_holes when its path was last seen to be whole */
    uint32_t n_tail;     /* tokens known beyond these pages */
    bool broken;         /* a node is missing: no further publication */
    uint32_t priority;
    uint64_t ttl_ns;
    int32_t tail[]; /* [page_tokens] */
};

/* ---- space.c, domain.c: with the lock held -------------------------------------------------- */

pkv_status pkvi_spaces_init(struct pkvi_prefix *px);
void pkvi_spaces_destroy(struct pkvi_prefix *px);
/* Can this be a namespace's name? */
static inline bool pkvi_space_named(const pkv_namespace *name)
{
    return !name || !name->size || (name->bytes && name->size <= PKV_MAX_NAMESPACE_BYTES);
}
/* NULL if there is none. */
struct pkvi_space *pkvi_space_find(struct pkvi_prefix *px, const pkv_namespace *name);
/* Makes it if need be. PKV_EINVAL (too long), PKV_ENOMEM. */
pkv_status pkvi_space_get(struct pkvi_prefix *px, const pkv_namespace *name,
                          struct pkvi_space **space);
/* Call when pages, sequences or pins of a namespace may have come or gone to zero. */
void pkvi_space_settle(struct pkvi_prefix *px, struct pkvi_space *space);

struct pkvi_domain *pkvi_domain_create(struct pkvi_prefix *px);
void pkvi_domain_destroy(struct pkvi_prefix *px, struct pkvi_domain *domain);
/* Puts a lane where its size and share say (also out of STUCK). */
void pkvi_lane_settle(struct pkvi_prefix *px, struct pkvi_domain *domain, uint32_t group);
/* The next victim of a group over all domains, or PKVI_NIL. */
uint32_t pkvi_domains_victim(struct pkvi_prefix *px, uint32_t group);

/* ---- members.c: with the lock held ---------------------------------------------------------- */

static inline struct pkvi_space *pkvi_space_of(const struct pkvi_prefix *px, uint32_t id)
{
    return px->space[pkvi_node(&px->core, id)->space];
}

static inline struct pkvi_policy *pkvi_policy_of(const struct pkvi_prefix *px, uint32_t id,
                                                 uint32_t group)
{
    return pkvi_space_of(px, id)->domain->lanes[group].policy;
}

/* Node of a page that is published: a page's owner is its number + 1. */
static inline uint32_t pkvi_owner_node(const struct pkvi_pool *pool, uint32_t page)
{
    return (uint32_t)((uintptr_t)pkvi_pool_owner(pool, page) - 1);
}

/* Publishes a page that a table holds as the node's page of the group. */
void pkvi_member_publish(struct pkvi_prefix *px, uint32_t id, uint32_t group, uint32_t page,
                         const struct pkvi_prefix_seq *seq);
/* The node's page is cached; a held page with the same content takes its place. */
void pkvi_member_replace(struct pkvi_prefix *px, uint32_t id, uint32_t group, uint32_t page);
/* Pages whose last reference went, in path order. *begun (NULL at first): the policy that was told
 * last that something begins. */
void pkvi_members_idle(struct pkvi_prefix *px, uint32_t group, const uint32_t *ids, uint32_t n,
                       const struct pkvi_policy **begun);
/* A page has a reference again. */
void pkvi_member_busy(struct pkvi_prefix *px, uint32_t id, uint32_t group);
/* Something that blocked the node's members (pins, children) went: unparks what may go now. */
void pkvi_member_unblocked(struct pkvi_prefix *px, uint32_t id, uint32_t group);
/* Pins and unpins a node in all groups. */
void pkvi_node_pin(struct pkvi_prefix *px, uint32_t id);
void pkvi_node_unpin(struct pkvi_prefix *px, uint32_t id);
/* Pages that evictions took and that still have to be freed. Zero it, then flush it at the end. */
#define PKVI_FREED_MAX 64u
struct pkvi_freed {
    uint64_t bytes; /* of all pages so far, flushed ones included */
    uint32_t n, group;
    uint32_t pages[PKVI_FREED_MAX];
};
void pkvi_freed_flush(struct pkvi_prefix *px, struct pkvi_freed *freed);

/* Evicts the member, with the node's other pages that are of no use without it. */
void pkvi_member_evict(struct pkvi_prefix *px, uint32_t id, uint32_t group,
                       struct pkvi_freed *freed);
/* Takes every page and memory of a node out of the index; pages that tables hold stay theirs. */
uint32_t pkvi_node_strip(struct pkvi_prefix *px, uint32_t id);

/* First logical page of a group that a query at position `length` sees. */
static inline uint32_t pkvi_prefix_first(const struct pkvi_prefix *px, uint32_t group,
                                         uint64_t length)
{
    uint32_t window = px->groups[group].window;
    if (window == 0 || length < window) return 0;
    return (uint32_t)((length - window + 1) >> px->page_shift);
}

/* ---- quota.c: with the lock held ------------------------------------------------------------ */

/* Makes room for one more page of a namespace in a group, if it is at its limit. False: everything
 * it has there is held, pinned, or above such a page. */
bool pkvi_quota_room(struct pkvi_prefix *px, const struct pkvi_space *space, uint32_t group);

/* ---- inner.c: with the lock held ------------------------------------------------------------ */

/* Call whenever a member's page, holders, pins or resident children may have changed. O(1). */
void pkvi_inner_settle(struct pkvi_prefix *px, uint32_t id, uint32_t group);
/* The last resort of reclaim: an idle page above pages that are held, or PKVI_NIL. */
uint32_t pkvi_inner_victim(const struct pkvi_prefix *px, uint32_t group);

/* ---- grant.c: with the lock held ------------------------------------------------------------ */

/* What a match keeps in pkv_match.opaque: nodes by generation << 32 | number (UINT64_MAX = none),
 * the namespace by generation << 32 | slot, the first page with a salt, a mark, and how many pages
 * there are, be there a state at their end or not. */
enum {
    PKVI_MATCH_LAST,
    PKVI_MATCH_PARTIAL,
    PKVI_MATCH_SPACE,
    PKVI_MATCH_SALTED,
    PKVI_MATCH_MARK,
    PKVI_MATCH_JUNCTION
};
#define PKVI_MATCH_MAGIC UINT64_C(0x706b766d61746368)

/* What a match refers to, if it is still what it was. */
struct pkvi_found {
    struct pkvi_space *space;
    uint32_t last;    /* node of the last full page, PKVI_NIL if there is none */
    uint32_t partial; /* node of the partly used page, or PKVI_NIL */
};
/* resolve.c: PKV_EINVAL (not filled by a match), PKV_EFOREIGN, PKV_ESTALE. */
pkv_status pkvi_match_resolve(struct pkvi_prefix *px, const pkv_match *match,
                              struct pkvi_found *found);

/* ---- pin.c ---------------------------------------------------------------------------------- */

void pkvi_pins_init(struct pkvi_prefix *px);
void pkvi_pins_destroy(struct pkvi_prefix *px);
/* Ends what ran out. O(log pins) each. */
void pkvi_pins_expire(struct pkvi_prefix *px);
/* Ends the softest pin. False if all are firm. */
bool pkvi_pins_give_way(struct pkvi_prefix *px);

/* ---- place.c -------------------------------------------------------------------------------- */
/* Is the state after a step of n tokens from position `first` on worth publishing? */
bool pkvi_place_wanted(const struct pkvi_prefix *px, uint64_t first, uint32_t n);

/* ---- digest.c ------------------------------------------------------------------------------- */
void pkvi_digests_destroy(struct pkvi_prefix *px);

/* ---- seq.c ---------------------------------------------------------------------------------- */
/* If the sequence's namespace was dropped under it, it stands nowhere any more and nothing of what
 * it holds is known; an empty one goes on like a new one. With the lock held, before anything that
 * looks at the cursor. */
void pkvi_seq_leave_dropped(struct pkvi_prefix_seq *seq);
/* Moves the sequence's hold to another node (or PKVI_NIL). */
void pkvi_cursor_move(struct pkvi_prefix *px, struct pkvi_prefix_seq *seq, uint32_t id);

#endif
