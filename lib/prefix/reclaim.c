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
        uint64_t bytes =
            atomic_load_explicit(&pool->cached, memory_order_relaxed) * pool->config.page_bytes;
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

/* Some leaf of the tree below a root. */
static uint32_t some_leaf(const struct pkvi_index *ix, uint32_t id)
{
    while (pkvi_node(ix, id)->first != PKVI_NIL)
        id = pkvi_node(ix, id)->first;
    return id;
}

/* Removes every node of a namespace, leaves first, whoever holds or pins it: holders tell from the
 * namespace's generation, pins from the node's. */
static uint64_t drop_nodes(struct pkvi_prefix *px, struct pkvi_space *space)
{
    uint64_t freed = 0;
    uint32_t *root = &px->core.roots[space->slot];
    while (*root != PKVI_NIL) {
        uint32_t id = some_leaf(&px->core, *root);
        while (id != PKVI_NIL && pkvi_node(&px->core, id)->first == PKVI_NIL) {
            struct pkvi_node *node = pkvi_node(&px->core, id);
            uint32_t parent = node->parent;
            freed += pkvi_node_strip(px, id);
            if (parent != PKVI_NIL) pkvi_node(&px->core, parent)->holds++;
            node->pins = node->holds = 0;
            pkvi_index_collect(&px->core, id);
            if (parent != PKVI_NIL) pkvi_node(&px->core, parent)->holds--;
            id = parent;
        }
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

pkv_status pkvi_prefix_set_quota(struct pkvi_prefix *px, const pkv_namespace *name,
                                 const pkv_prefix_quota *quota)
{
    begin(px);
    struct pkvi_space *space;
    pkv_status status = pkvi_space_get(px, name, &space);
    if (status == PKV_OK && space->domain == px->common) {
        struct pkvi_domain *domain = NULL;
        if (px->core.roots[space->slot] != PKVI_NIL)
            status = PKV_ESTATE;
        else if (!(domain = pkvi_domain_create(px)))
            status = PKV_ENOMEM;
        if (domain) space->domain = domain;
    }
    if (status == PKV_OK) {
        space->domain->has_quota = true;
        space->domain->share = quota->share;
        space->domain->max = quota->max;
        for (uint32_t g = 0; g < px->config.n_groups; g++)
            pkvi_lane_settle(px, space->domain, g);
        pkvi_space_settle(px, space);
    }
    pkvi_prefix_unlock(px);
    return status;
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
