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
    uint32_t left, right; /* place in the parent's search tree */
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
    size_t key_bytes; /* bytes of tokens per node, 0 in ids mode */
    size_t member_offset, key_offset, generation_offset, chunk_bytes; /* layout of a chunk */
    bool collide;

    char **chunk; /* directory of node chunks */
    uint32_t n_chunks, chunk_capacity;
    uint32_t free_node;  /* list through pkvi_node.next */
    uint32_t fresh_node; /* nodes of the last chunk never used yet start here */
    uint32_t n_nodes;

    uint32_t **bucket; /* directory of bucket segments (linear hashing, hash.c) */
    uint32_t bucket_capacity, n_buckets, bucket_mask;
    uint32_t *by_id; /* dense ids, instead of buckets: the node of each id or PKVI_NIL */

    uint64_t *n_resident; /* per group */
    uint32_t *roots;      /* per namespace slot: search tree of its first pages (token mode) */
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

/* Counts how often the node's slot was given up: tells a stale reference to it. Token mode only. */
static inline uint32_t *pkvi_node_generation(const struct pkvi_index *ix, uint32_t id)
{
    char *chunk = ix->chunk[id >> PKVI_NODE_CHUNK_SHIFT] + ix->generation_offset;
    return (uint32_t *)(void *)chunk + (id & (PKVI_NODE_CHUNK - 1));
}

/* Must the node keep its pages? */
static inline bool pkvi_node_pinned(const struct pkvi_index *ix, const struct pkvi_node *node)
{
    return ix->options.replay ? node->pins == ix->epoch + 1 : node->pins != 0;
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
 * when memory is refused. Expected O(1); O(log fan-out) with the sibling tree. */
uint32_t pkvi_index_add(struct pkvi_index *ix, uint32_t space, uint32_t parent, uint64_t hash,
                        const uint32_t *tokens, uint64_t id);

/* Frees a node that nothing needs any more (no page, child, pin or ghost), then its parent, and so
 * on. A no-op otherwise and for PKVI_NIL. */
void pkvi_index_collect(struct pkvi_index *ix, uint32_t id);

/* Gives a node a page in a group: bookkeeping only, the policy is told by the caller. */
static inline void pkvi_index_set_page(struct pkvi_index *ix, uint32_t id, uint32_t group,
                                       uint32_t page)
{
    struct pkvi_node *node = pkvi_node(ix, id);
    node->resident |= UINT64_C(1) << group;
    pkvi_member(ix, group, id)->page = page;
    if (node->parent != PKVI_NIL) pkvi_member(ix, group, node->parent)->kids++;
    ix->n_resident[group]++;
}

/* Takes it away; the caller tells the policy and collects. Returns the page. */
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

/* Makes a namespace slot usable (its tree of first pages). False when memory is refused. */
bool pkvi_index_ensure_root(struct pkvi_index *ix, uint32_t space);

/* Where the tree holding this node hangs: its parent's, or its namespace's. */
uint32_t *pkvi_siblings_root(struct pkvi_index *ix, uint32_t id);

/* siblings.c: search tree of a node's children by their tokens. `root` is pkvi_node.first of the
 * parent or the namespace's root. */
void pkvi_siblings_insert(struct pkvi_index *ix, uint32_t *root, uint32_t id);
void pkvi_siblings_remove(struct pkvi_index *ix, uint32_t *root, uint32_t id);
/* The child that shares the most leading tokens with tokens[0..n), n <= page_tokens; *common = how
 * many. PKVI_NIL if none shares one. O(log fan-out). */
uint32_t pkvi_siblings_longest(const struct pkvi_index *ix, uint32_t root, const uint32_t *tokens,
                               uint32_t n, uint32_t *common);

/* replay.c: one request of a trace, start to end (the exact semantics are in pkv_index_replay's
 * description). *hits = leading blocks that were resident. */
pkv_status pkvi_index_replay(struct pkvi_index *ix, struct pkvi_policy *policy, const uint64_t *ids,
                             uint32_t n, const uint32_t *next_use, bool partial_last,
                             uint32_t *hits);

/* Walks everything; NULL or the first broken invariant as a fixed text. O(nodes). */
const char *pkvi_index_check(const struct pkvi_index *ix);

#endif
