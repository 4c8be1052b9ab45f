/* Getting cached pages back, and forgetting namespaces. */
#include "internal.h"

/* The next victim of a group: a leaf; else a page above held ones; else soft pins give way. */
static uint32_t next_victim(struct pkvi_prefix *px, uint32_t group)
{
    for (;;) {
        uint32_t id = pkvi_domains_victim(px, group);
        if (id == PKVI_NIL) id = pkvi_inner_victim(px, group);
        if (id != PKVI_NIL || !pkvi_pins_give_way(px)) return id;
    }
}

static void begin(struct pkvi_prefix *px)
{
    pkvi_prefix_lock(px);
    px->now = px->config.clock(px->config.clock_user);
    pkvi_pins_expire(px);
}

uint64_t pkvi_prefix_reclaim_pages(struct pkvi_prefix *px, uint32_t group, uint64_t n)
{
    uint64_t evicted = 0;
    struct pkvi_freed freed = {.n = 0};
    begin(px);
    for (; evicted < n; evicted++) {
        uint32_t id = next_victim(px, group);
        if (id == PKVI_NIL) break;
        struct pkvi_space *space = pkvi_space_of(px, id);
        pkvi_member_evict(px, id, group, &freed);
        pkvi_space_settle(px, space);
    }
    pkvi_freed_flush(px, &freed);
    pkvi_prefix_unlock(px);
    return evicted;
}

/* The group with the most cached bytes among those in `left`, or PKVI_NIL. */
static uint32_t largest_group(const struct pkvi_prefix *px, uint64_t left)
{
    uint32_t best = PKVI_NIL;
    uint64_t most = 0;
    for (; left; left &= left - 1) {
        uint32_t g = (uint32_t)__builtin_ctzll(left);
        const struct pkvi_pool *pool = px->groups[g].pool;
        uint64_t bytes = pkvi_pool_cached(pool) * pkvi_pool_page_bytes(pool);
        if (bytes > most) {
            most = bytes;
            best = g;
        }
    }
    return best;
}

uint64_t pkvi_prefix_reclaim_bytes(struct pkvi_prefix *px, uint64_t wanted)
{
    uint64_t left = px->all_groups;
    struct pkvi_freed freed = {.n = 0};
    begin(px);
    while (freed.bytes < wanted) {
        uint32_t group = largest_group(px, left);
        if (group == PKVI_NIL) break;
        uint32_t id = next_victim(px, group);
        if (id == PKVI_NIL) {
            left &= ~(UINT64_C(1) << group);
            continue;
        }
        struct pkvi_space *space = pkvi_space_of(px, id);
        pkvi_member_evict(px, id, group, &freed);
        pkvi_freed_flush(px, &freed); /* the pools' counters decide which group is next */
        pkvi_space_settle(px, space);
    }
    pkvi_prefix_unlock(px);
    return freed.bytes;
}

/* Removes a node without children, whoever holds or pins it. Its parent stays. */
static uint64_t drop_node(struct pkvi_prefix *px, uint32_t id)
{
    struct pkvi_node *node = pkvi_node(&px->core, id);
    struct pkvi_node *above = node->parent == PKVI_NIL ? NULL : pkvi_node(&px->core, node->parent);
    const uint32_t freed = pkvi_node_strip(px, id);
    if (above) above->holds++;
    node->pins = node->holds = 0;
    pkvi_index_collect(&px->core, id);
    if (above) above->holds--;
    return freed;
}

/* Removes every node of a namespace, leaves first, each visited once on the way down and once on
 * the way up. Sequences tell from the namespace's generation that they stand on nothing any more,
 * pins and matches from the node's. */
static uint64_t drop_nodes(struct pkvi_prefix *px, const struct pkvi_space *space)
{
    const struct pkvi_index *ix = &px->core;
    uint64_t freed = 0;
    uint32_t id = pkvi_index_child(ix, space->slot, PKVI_NIL);
    while (id != PKVI_NIL) {
        const uint32_t below = pkvi_index_child(ix, space->slot, id);
        if (below != PKVI_NIL) {
            id = below;
            continue;
        }
        const uint32_t above = pkvi_node(ix, id)->parent;
        freed += drop_node(px, id);
        id = above != PKVI_NIL ? above : pkvi_index_child(ix, space->slot, PKVI_NIL);
    }
    return freed;
}

pkv_status pkvi_prefix_drop(struct pkvi_prefix *px, const pkv_namespace *name, uint64_t *pages)
{
    uint64_t freed = 0;
    if (!pkvi_space_named(name)) return PKV_EINVAL;
    begin(px);
    struct pkvi_space *space = pkvi_space_find(px, name);
    if (space) {
        freed = drop_nodes(px, space);
        space->generation++;
        px->pins.n_dead += (uint32_t)space->pins;
        space->pins = 0;
        space->reclaimed += freed;
        pkvi_space_settle(px, space);
    }
    pkvi_prefix_unlock(px);
    if (pages) *pages = freed;
    return PKV_OK;
}

pkv_status pkvi_prefix_get_stats(struct pkvi_prefix *px, const pkv_namespace *name,
                                 pkv_prefix_stats *stats)
{
    begin(px);
    const struct pkvi_space *space = pkvi_space_find(px, name);
    if (space)
        *stats = (pkv_prefix_stats){.struct_size = sizeof *stats,
                                    .lookups = space->lookups,
                                    .tokens_asked = space->tokens_asked,
                                    .tokens_hit = space->tokens_hit,
                                    .pages = space->pages,
                                    .pages_published = space->published,
                                    .pages_reclaimed = space->reclaimed,
                                    .pages_duplicate = space->duplicate,
                                    .pins = space->pins};
    pkvi_prefix_unlock(px);
    return space ? PKV_OK : PKV_EINVAL;
}
