/* One request of a trace through the index: look up, then use and insert block by block. */
#include "policy.h"

/* How far ahead a lookup's node is fetched; its bucket is twice as far. A power of two. */
#define AHEAD_NODE 8u

static bool widen_path(struct pkvi_index *ix, uint32_t n)
{
    if (n <= ix->path_capacity) return true;
    uint32_t wider = ix->path_capacity ? ix->path_capacity : 1024;
    while (wider < n && wider < UINT32_C(1) << 31)
        wider *= 2;
    if (wider < n) return false;
    uint32_t *path = pkvi_mem_grow_array(ix->mem, ix->path, ix->path_capacity, wider, sizeof *path);
    if (!path) return false;
    ix->path = path;
    ix->path_capacity = wider;
    return true;
}

/* Notes and pins the node of block i, if there is one. *hits = leading blocks with a page so far.
 */
static inline void meet(struct pkvi_index *ix, uint32_t i, uint32_t id, uint32_t *hits)
{
    ix->path[i] = id;
    if (id == PKVI_NIL) return;
    struct pkvi_node *node = pkvi_node(ix, id);
    node->pins = ix->epoch + 1;
    if (*hits == i && node->resident) *hits = i + 1;
}

/* Finds and pins what is known of the request. Returns how many leading blocks have a page. */
static uint32_t look_up(struct pkvi_index *ix, const uint64_t *ids, uint32_t n)
{
    uint64_t ring[2 * AHEAD_NODE]; /* hashes of the blocks ahead */
    const uint32_t size = 2 * AHEAD_NODE;
    uint32_t hits = 0, hashed = 0;
    for (uint32_t i = 0; i < n; i++) {
        for (; hashed < n && hashed < i + size; hashed++) {
            ring[hashed % size] = pkvi_hash_id(ix, ids[hashed]);
            pkvi_index_prefetch_bucket(ix, ring[hashed % size]);
        }
        if (i + AHEAD_NODE < hashed) pkvi_index_prefetch_node(ix, ring[(i + AHEAD_NODE) % size]);
        meet(ix, i, pkvi_index_find_id(ix, ring[i % size], ids[i]), &hits);
    }
    return hits;
}

/* The same with dense ids: nothing is hashed, nothing far ahead is worth sending for. */
static uint32_t look_up_dense(struct pkvi_index *ix, const uint64_t *ids, uint32_t n)
{
    uint32_t hits = 0;
    for (uint32_t i = 0; i < n; i++)
        meet(ix, i, pkvi_index_find_id(ix, 0, ids[i]), &hits);
    return hits;
}

static inline struct pkvi_use use_of(uint32_t i, uint32_t n, const uint32_t *next_use,
                                     bool partial_last)
{
    return (struct pkvi_use){.next_use = next_use ? next_use[i] : UINT32_MAX,
                             .position = i,
                             .length = n,
                             .partial = partial_last && i + 1 == n};
}

/* Evicts the policy's victim. False if there is none, or it is worth more than the new block. */
static bool make_room(struct pkvi_index *ix, struct pkvi_policy *policy, const struct pkvi_use *use)
{
    uint32_t id = policy->ops->victim(policy);
    if (id == PKVI_NIL) return false;
    if (policy->ops->bypass && policy->ops->refuses(policy, id, use)) return false;
    pkvi_index_clear_page(ix, id, 0);
    policy->size--;
    policy->ops->remove(policy, id, true);
    pkvi_index_collect(ix, id);
    return true;
}

/* The node of block i, made if need be; PKVI_NIL when memory is refused. It is pinned. */
static uint32_t node_for(struct pkvi_index *ix, uint64_t id, uint32_t i)
{
    if (ix->path[i] != PKVI_NIL) return ix->path[i];
    uint64_t hash = pkvi_hash_id(ix, id);
    uint32_t at = pkvi_index_find_id(ix, hash, id); /* a block that occurs twice in the request */
    if (at == PKVI_NIL) at = pkvi_index_add(ix, 0, i ? ix->path[i - 1] : PKVI_NIL, hash, NULL, id);
    if (at == PKVI_NIL) return PKVI_NIL;
    pkvi_node(ix, at)->pins = ix->epoch + 1;
    ix->path[i] = at;
    return at;
}

/* Uses the blocks from `from` on, inserting what has no page as long as there is room. *all = there
 * was room for all. */
static pkv_status run_blocks(struct pkvi_index *ix, struct pkvi_policy *policy, const uint64_t *ids,
                             uint32_t from, uint32_t n, const uint32_t *next_use, bool partial_last,
                             bool *all)
{
    bool room = true;
    *all = false;
    for (uint32_t i = from; i < n; i++) {
        struct pkvi_use use = use_of(i, n, next_use, partial_last);
        uint32_t id = ix->path[i];
        if (id != PKVI_NIL && pkvi_node(ix, id)->resident) {
            if (policy->ops->touch) policy->ops->touch(policy, id, &use);
            continue;
        }
        if (!room) continue;
        if (policy->ops->miss) policy->ops->miss(policy, id, &use);
        if (policy->size >= policy->capacity) room = make_room(ix, policy, &use);
        if (!room) continue;
        id = node_for(ix, ids[i], i);
        if (id == PKVI_NIL) return PKV_ENOMEM;
        if (pkvi_node(ix, id)->resident) {
            if (policy->ops->touch) policy->ops->touch(policy, id, &use);
            continue;
        }
        pkvi_index_set_page(ix, id, 0, 0);
        policy->size++;
        policy->ops->insert(policy, id, &use);
    }
    *all = room;
    return PKV_OK;
}

/* Leaves only what has a page in path[from..n); the others are unpinned, and freed if nothing needs
 * them. From the end, so that a node goes before its ancestors. */
static void keep_resident(struct pkvi_index *ix, uint32_t from, uint32_t n)
{
    for (uint32_t i = n; i-- > from;) {
        uint32_t id = ix->path[i];
        if (id == PKVI_NIL) continue;
        struct pkvi_node *node = pkvi_node(ix, id);
        if (node->resident) continue;
        ix->path[i] = PKVI_NIL;
        if (node->space == PKVI_NIL)
            continue; /* freed already: with a descendant, or it occurs twice */
        node->pins = 0;
        pkvi_index_collect(ix, id);
    }
}

pkv_status pkvi_index_replay(struct pkvi_index *ix, struct pkvi_policy *policy, const uint64_t *ids,
                             uint32_t n, const uint32_t *next_use, bool partial_last,
                             uint32_t *hits)
{
    if (!widen_path(ix, n)) return PKV_ENOMEM;
    if (policy->ops->begin) policy->ops->begin(policy, ix->epoch);
    const uint32_t found = ix->by_id ? look_up_dense(ix, ids, n) : look_up(ix, ids, n);
    if (policy->ops->touch)
        for (uint32_t i = 0; i < found; i++) {
            struct pkvi_use use = use_of(i, n, next_use, partial_last);
            policy->ops->touch(policy, ix->path[i], &use);
        }
    bool all;
    pkv_status status = run_blocks(ix, policy, ids, found, n, next_use, partial_last, &all);
    if (!all) keep_resident(ix, found, n);
    if (policy->ops->finish) policy->ops->finish(policy, ix->path, n, next_use, partial_last);
    ix->epoch++; /* nothing is pinned any more */
    if (status == PKV_OK) *hits = found;
    return status;
}
