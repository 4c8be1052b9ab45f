/* Nodes, their pages, and who may be evicted: the data of an index.
 *
 * A node is one page of tokens below a parent node, so a node stands for a whole prefix. It lives
 * in a hash table keyed by a chained, keyed hash, and is only taken for a match when its own tokens
 * and its parent are the ones asked for: by induction the whole prefix is compared. A node holds
 * one page per layer group (a "member" per group). A node without pages stays while nodes below it
 * exist, so that a comparison never depends on a hash alone.
 *
 * What a page is, is the caller's business: here it is a number. Which one goes first is the
 * replacement policy's (policy.h): one instance per layer group and quota domain. Nothing here
 * takes a lock; the callers hold the index's. */
#ifndef PKVI_INDEX_NODES_H
#define PKVI_INDEX_NODES_H

#include "mem/mem.h"

#define PKVI_NIL UINT32_MAX

/* One node: 64 bytes, one cache line. */
struct pkvi_node {
    uint64_t hash;
    uint64_t id;          /* ids mode: the block id. Token mode: the salt, 0 = none */
    uint64_t resident;    /* bit g: the node has a page in group g */
    uint32_t parent;      /* PKVI_NIL: first page of its namespace */
    uint32_t next;        /* hash chain, or the free list */
    uint32_t space;       /* namespace slot; PKVI_NIL in a free node */
    uint32_t depth;       /* pages before this one */
    uint32_t children;    /* nodes with this parent, whatever their state */
    uint32_t pins;        /* reasons to keep node and pages: pins with TTL. Replay: 1 + number of
                             the last request that used it, and that keeps it while it runs */
    uint32_t holds;       /* reasons to keep the node, not its pages: ghosts, sequences */
    uint32_t first;       /* root of the search tree of children (siblings.c) */
    uint32_t left, right; /* place among the parent's children */
};

/* What of a node is needed only when it comes, goes or changes. Token mode. */
struct pkvi_side {
    uint32_t generation; /* how often the slot was given up: tells a stale reference to it */
    uint32_t others;     /* list of children that are not in the search tree */
    uint8_t place;       /* siblings.c: where it stands among its siblings */
    bool salted;         /* it has no salt, and had children with one */
};

/* The first pages of a namespace: heads of their tree and list; and how many nodes it has in all.
 */
struct pkvi_heads {
    uint32_t first, others, n_nodes;
};

enum {
    PKVI_MEMBER_PARKED = 1u, /* a policy met it while it could not go and set it aside */
    PKVI_MEMBER_INNER = 4u,  /* idle above resident pages: listed for the last resort (inner.c) */
    PKVI_MEMBER_GHOST = 2u   /* in a ghost queue: remembered, no page */
};

/* One node's page in one group, and what the group's policy knows about it. */
struct pkvi_member {
    uint32_t page;                     /* valid while resident */
    uint32_t newer, older;             /* place in the policy's queue */
    uint32_t busy;                     /* 1 while tables hold the page (cache) */
    uint32_t kids;                     /* children that are resident in this group */
    uint32_t a, b;                     /* the policy's own */
    uint8_t list;                      /* the policy's own: which queue */
    uint8_t flags;                     /* PKVI_MEMBER_* */
    uint16_t count;                    /* the policy's own */
    uint32_t inner_newer, inner_older; /* place in the list of inner members */
};

#define PKVI_NODE_CHUNK_SHIFT 9
#define PKVI_NODE_CHUNK (1u << PKVI_NODE_CHUNK_SHIFT)
#define PKVI_BUCKET_SEGMENT 1024u

struct pkvi_policy;
struct pkvi_policy_ops;

/* What a policy may know about one use of a block. */
struct pkvi_use {
    uint32_t next_use; /* offline policies: request number of the block's next use */
    uint32_t position; /* block number in the request */
    uint32_t length;   /* blocks of the request */
    bool partial;      /* the block is the request's last and not full */
    uint32_t priority; /* retention asked for by the publisher (policy priority) */
    uint64_t ttl_ns;   /* 0 = for ever */
};

struct pkvi_index_options {
    uint32_t page_tokens; /* token mode; 0 = ids mode: a 64-bit id is the block's whole identity */
    uint32_t n_groups;    /* 1..64 */
    uint64_t full_groups; /* bit g: group g needs every page of a prefix, hence leaves go first */
    bool holes;           /* pages inside a chain may go before their children (replay) */
    bool replay;          /* requests run one after another (pkvi_index_replay) */
    uint64_t key[2];      /* hash key; both all ones = every hash is equal (tests) */
    size_t dense_ids;     /* ids mode: every id is below this and a table finds it; 0 = hash */
};

struct pkvi_index {
    struct pkvi_mem *mem;
    struct pkvi_index_options options;
    size_t key_bytes;    /* bytes of tokens per node, 0 in ids mode */
    uint64_t all_groups; /* bit g */
    size_t member_offset, key_offset, side_offset, chunk_bytes; /* layout of a chunk */
    bool collide;

    char **chunk; /* directory of node chunks */
    uint32_t n_chunks, chunk_capacity;
    uint32_t free_node;  /* list through pkvi_node.next */
    uint32_t fresh_node; /* nodes of the last chunk never used yet start here */
    uint32_t n_nodes;

    uint32_t **bucket; /* directory of bucket segments (linear hashing, hash.c) */
    uint32_t bucket_capacity, n_buckets, bucket_mask;
    uint32_t *by_id; /* dense ids, instead of buckets: the node of each id or PKVI_NIL */

    uint64_t *n_resident;     /* per group */
    struct pkvi_heads *roots; /* per namespace slot (token mode) */
    uint32_t n_roots;
    uint32_t epoch; /* replay: number of the running request; queues' cursors depend on it */

    uint32_t *path; /* scratch of pkvi_index_replay */
    uint32_t path_capacity;
};

static inline struct pkvi_node *pkvi_node(const struct pkvi_index *ix, uint32_t id)
{
    char *chunk = ix->chunk[id >> PKVI_NODE_CHUNK_SHIFT];
    return (struct pkvi_node *)(void *)chunk + (id & (PKVI_NODE_CHUNK - 1));
}

static inline struct pkvi_member *pkvi_member(const struct pkvi_index *ix, uint32_t group,
                                              uint32_t id)
{
    char *chunk = ix->chunk[id >> PKVI_NODE_CHUNK_SHIFT] + ix->member_offset;
    return (struct pkvi_member *)(void *)chunk + ((size_t)group << PKVI_NODE_CHUNK_SHIFT) +
           (id & (PKVI_NODE_CHUNK - 1));
}

/* The node's tokens; token mode only. */
static inline uint32_t *pkvi_node_tokens(const struct pkvi_index *ix, uint32_t id)
{
    char *chunk = ix->chunk[id >> PKVI_NODE_CHUNK_SHIFT] + ix->key_offset;
    return (uint32_t *)(void *)(chunk + (id & (PKVI_NODE_CHUNK - 1)) * ix->key_bytes);
}

static inline struct pkvi_side *pkvi_side(const struct pkvi_index *ix, uint32_t id)
{
    char *chunk = ix->chunk[id >> PKVI_NODE_CHUNK_SHIFT] + ix->side_offset;
    return (struct pkvi_side *)(void *)chunk + (id & (PKVI_NODE_CHUNK - 1));
}

/* Must the node keep its pages? */
static inline bool pkvi_node_pinned(const struct pkvi_index *ix, const struct pkvi_node *node)
{
    return ix->options.replay ? node->pins == ix->epoch + 1 : node->pins != 0;
}

/* Must the node itself stay? */
static inline bool pkvi_node_needed(const struct pkvi_index *ix, const struct pkvi_node *node)
{
    return node->resident || node->children || node->holds || pkvi_node_pinned(ix, node);
}

static inline bool pkvi_node_has(const struct pkvi_node *node, uint32_t group)
{
    return node->resident >> group & 1;
}

/* options are copied. PKV_ENOMEM leaves nothing behind. */
pkv_status pkvi_index_init(struct pkvi_index *ix, struct pkvi_mem *mem,
                           const struct pkvi_index_options *options);
/* Frees nodes and tables; pages are the caller's business, policies must be destroyed before. */
void pkvi_index_destroy(struct pkvi_index *ix);

/* Hash of a block below a parent's hash (token mode) or of an id (ids mode). O(page_tokens). */
uint64_t pkvi_hash_tokens(const struct pkvi_index *ix, uint64_t parent_hash, const uint32_t *tokens,
                          uint64_t salt);
static inline uint64_t pkvi_hash_id(const struct pkvi_index *ix, uint64_t id);
/* Where a namespace's chains start. */
uint64_t pkvi_hash_space(const struct pkvi_index *ix, const void *name, size_t n);

/* The node with this identity or PKVI_NIL. Expected O(1). */
uint32_t pkvi_index_find(const struct pkvi_index *ix, uint32_t space, uint32_t parent,
                         uint64_t hash, const uint32_t *tokens, uint64_t salt);
static inline uint32_t pkvi_index_find_id(const struct pkvi_index *ix, uint64_t hash, uint64_t id);
/* Two stages of prefetching a later find. */
void pkvi_index_prefetch_bucket(const struct pkvi_index *ix, uint64_t hash);
void pkvi_index_prefetch_node(const struct pkvi_index *ix, uint64_t hash);
/* Eviction takes a chain of nodes from its end: fetches what removing the node's ancestors needs.
 */
void pkvi_index_prefetch_removal(const struct pkvi_index *ix, uint32_t id);

/* Adds a node without pages (the caller checked that it is not there) and returns it, or PKVI_NIL
 * when memory is refused. Token mode: pkvi_siblings_settle it when its pages are set. Expected
 * O(1).
 */
uint32_t pkvi_index_add(struct pkvi_index *ix, uint32_t space, uint32_t parent, uint64_t hash,
                        const uint32_t *tokens, uint64_t id);

/* Frees a node that nothing needs any more (no page, child, pin or ghost), then its parent, and so
 * on. A no-op otherwise and for PKVI_NIL. O(log fan-out) each. */
void pkvi_index_collect(struct pkvi_index *ix, uint32_t id);

/* Gives a node a page in a group: bookkeeping only, the caller tells the policy, and settles the
 * node among its siblings when all its pages are set. */
static inline void pkvi_index_set_page(struct pkvi_index *ix, uint32_t id, uint32_t group,
                                       uint32_t page)
{
    struct pkvi_node *node = pkvi_node(ix, id);
    node->resident |= UINT64_C(1) << group;
    pkvi_member(ix, group, id)->page = page;
    if (node->parent != PKVI_NIL) pkvi_member(ix, group, node->parent)->kids++;
    ix->n_resident[group]++;
}

/* Takes it away; the caller tells the policy, and settles the node or collects it. Returns the
 * page.
 */
static inline uint32_t pkvi_index_clear_page(struct pkvi_index *ix, uint32_t id, uint32_t group)
{
    struct pkvi_node *node = pkvi_node(ix, id);
    struct pkvi_member *member = pkvi_member(ix, group, id);
    uint32_t page = member->page;
    node->resident &= ~(UINT64_C(1) << group);
    member->page = PKVI_NIL;
    if (node->parent != PKVI_NIL) pkvi_member(ix, group, node->parent)->kids--;
    ix->n_resident[group]--;
    return page;
}

/* hash.c: where nodes are found, buckets of hashes. With dense ids init and destroy make a table of
 * ids instead, and the four functions below are all that looks at it. */
pkv_status pkvi_buckets_init(struct pkvi_index *ix);
void pkvi_buckets_destroy(struct pkvi_index *ix);
void pkvi_buckets_insert(struct pkvi_index *ix, uint32_t id);
void pkvi_buckets_remove(struct pkvi_index *ix, uint32_t id);
uint64_t pkvi_buckets_hash_id(const struct pkvi_index *ix, uint64_t id);
uint32_t pkvi_buckets_find_id(const struct pkvi_index *ix, uint64_t hash, uint64_t id);

static inline uint64_t pkvi_hash_id(const struct pkvi_index *ix, uint64_t id)
{
    return ix->by_id ? 0 : pkvi_buckets_hash_id(ix, id);
}

static inline uint32_t pkvi_index_find_id(const struct pkvi_index *ix, uint64_t hash, uint64_t id)
{
    return ix->by_id ? ix->by_id[id] : pkvi_buckets_find_id(ix, hash, id);
}

/* A node can be found from now on, and no more. */
static inline void pkvi_index_enter(struct pkvi_index *ix, uint32_t at)
{
    if (ix->by_id)
        ix->by_id[pkvi_node(ix, at)->id] = at;
    else
        pkvi_buckets_insert(ix, at);
}
static inline void pkvi_index_leave(struct pkvi_index *ix, uint32_t at)
{
    if (ix->by_id)
        ix->by_id[pkvi_node(ix, at)->id] = PKVI_NIL;
    else
        pkvi_buckets_remove(ix, at);
}

/* Makes a namespace slot usable (the heads of its first pages). False when memory is refused. */
bool pkvi_index_ensure_root(struct pkvi_index *ix, uint32_t space);

/* Some child of a node, or (parent PKVI_NIL) some first page of a namespace; PKVI_NIL if there is
 * none. O(1). */
static inline uint32_t pkvi_index_child(const struct pkvi_index *ix, uint32_t space,
                                        uint32_t parent)
{
    const bool top = parent == PKVI_NIL;
    uint32_t id = top ? ix->roots[space].first : pkvi_node(ix, parent)->first;
    return id != PKVI_NIL ? id : top ? ix->roots[space].others : pkvi_side(ix, parent)->others;
}

/* Has a namespace no node at all? */
static inline bool pkvi_index_is_empty(const struct pkvi_index *ix, uint32_t space)
{
    return pkvi_index_child(ix, space, PKVI_NIL) == PKVI_NIL;
}

/* ---- siblings.c: token mode ----------------------------------------------------------------- */

/* Puts a node where its pages say: in the search tree of its parent's children if it has a page in
 * every group, else in the list beside it. O(1) if it is there already, else O(log fan-out). */
void pkvi_siblings_settle(struct pkvi_index *ix, uint32_t id);
/* Takes it out of either. */
void pkvi_siblings_leave(struct pkvi_index *ix, uint32_t id);
/* Of the parent's children (PKVI_NIL: the namespace's first pages) with this salt and a page in
 * every group, the one that shares the most leading tokens with tokens[0..n), n <= page_tokens;
 * *common = how many. PKVI_NIL if none shares one. O(log fan-out). */
uint32_t pkvi_siblings_longest(const struct pkvi_index *ix, uint32_t space, uint32_t parent,
                               uint64_t salt, const uint32_t *tokens, uint32_t n, uint32_t *common);
/* Calls fn for every child, in no particular order; false as soon as it does. */
bool pkvi_siblings_each(const struct pkvi_index *ix, uint32_t space, uint32_t parent,
                        bool (*fn)(void *context, uint32_t id), void *context);
/* How many children stand where they must; UINT32_MAX if one does not. */
uint32_t pkvi_siblings_check(const struct pkvi_index *ix, uint32_t space, uint32_t parent);

/* replay.c: one request of a trace, start to end (the exact semantics are in pkv_index_replay's
 * description). *hits = leading blocks that were resident. */
pkv_status pkvi_index_replay(struct pkvi_index *ix, struct pkvi_policy *policy, const uint64_t *ids,
                             uint32_t n, const uint32_t *next_use, bool partial_last,
                             uint32_t *hits);

/* Walks everything; NULL or the first broken invariant as a fixed text. O(nodes). */
const char *pkvi_index_check(const struct pkvi_index *ix);

#endif
