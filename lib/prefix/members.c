/* What happens to one node's page in one group: published, held, idle, evicted. */
#include "internal.h"

static void *owner_of(uint32_t id)
{
    return (void *)((uintptr_t)id + 1);
}

void pkvi_member_publish(struct pkvi_prefix *px, uint32_t id, uint32_t group, uint32_t page,
                         const struct pkvi_prefix_seq *seq)
{
    struct pkvi_space *space = pkvi_space_of(px, id);
    struct pkvi_policy *policy = space->domain->lanes[group].policy;
    struct pkvi_use use = {.next_use = UINT32_MAX,
                           .position = pkvi_node(&px->core, id)->depth,
                           .priority = seq->priority,
                           .ttl_ns = seq->ttl_ns};
    policy->now = px->now;
    if (policy->ops->miss) policy->ops->miss(policy, id, &use);
    pkvi_index_set_page(&px->core, id, group, page);
    pkvi_member(&px->core, group, id)->busy = 1;
    pkvi_pool_set_owner(px->groups[group].pool, page, owner_of(id));
    policy->capacity = ++policy->size;
    policy->ops->insert(policy, id, &use);
    pkvi_lane_settle(px, space->domain, group);
    pkvi_inner_settle(px, pkvi_node(&px->core, id)->parent, group);
    space->pages++;
    space->published++;
    if (pkvi_events_on(px->stats))
        pkvi_event(px->stats, PKV_EVENT_PAGE_PUBLISH, group,
                   pkvi_pool_id(px->groups[group].pool, page), 0, 0);
}

void pkvi_member_replace(struct pkvi_prefix *px, uint32_t id, uint32_t group, uint32_t page)
{
    struct pkvi_pool *pool = px->groups[group].pool;
    struct pkvi_member *m = pkvi_member(&px->core, group, id);
    const uint32_t cached = m->page;
    pkvi_pool_free_cached(pool, 1, &cached);
    pkvi_pool_set_owner(pool, page, owner_of(id));
    m->page = page;
    m->busy = 1;
    pkvi_inner_settle(px, id, group);
}

void pkvi_prefix_moved(struct pkvi_prefix *px, uint32_t group, void *owner, uint32_t page)
{
    pkvi_prefix_lock(px);
    pkvi_member(&px->core, group, (uint32_t)((uintptr_t)owner - 1))->page = page;
    pkvi_prefix_unlock(px);
}

void pkvi_member_unblocked(struct pkvi_prefix *px, uint32_t id, uint32_t group)
{
    struct pkvi_member *m = pkvi_member(&px->core, group, id);
    if (!pkvi_node_has(pkvi_node(&px->core, id), group)) return;
    struct pkvi_policy *policy = pkvi_policy_of(px, id, group);
    if (pkvi_policy_blocked(policy, id)) return;
    if (m->flags & PKVI_MEMBER_PARKED) policy->ops->unpark(policy, id);
    pkvi_lane_settle(px, pkvi_space_of(px, id)->domain, group);
}

/* One run of pages of the same policy, in path order. */
static void run_idle(struct pkvi_prefix *px, struct pkvi_policy *policy, const uint32_t *ids,
                     uint32_t n, const struct pkvi_policy **begun)
{
    policy->now = px->now;
    for (uint32_t i = 0; i < n; i++)
        pkvi_policy_member(policy, ids[i])->busy = 0;
    if (policy != *begun && policy->ops->begin) policy->ops->begin(policy, 0);
    *begun = policy;
    if (policy->ops->finish) policy->ops->finish(policy, ids, n, NULL, false);
    while (n-- > 0) {
        pkvi_inner_settle(px, ids[n], policy->group);
        pkvi_member_unblocked(px, ids[n], policy->group);
    }
}

void pkvi_members_idle(struct pkvi_prefix *px, uint32_t group, const uint32_t *ids, uint32_t n,
                       const struct pkvi_policy **begun)
{
    while (n > 0) {
        struct pkvi_policy *policy = pkvi_policy_of(px, ids[n - 1], group);
        uint32_t from = n - 1;
        while (from > 0 && pkvi_policy_of(px, ids[from - 1], group) == policy)
            from--;
        run_idle(px, policy, ids + from, n - from, begun);
        n = from;
    }
}

void pkvi_member_busy(struct pkvi_prefix *px, uint32_t id, uint32_t group)
{
    pkvi_member(&px->core, group, id)->busy = 1;
    pkvi_inner_settle(px, id, group);
}

void pkvi_node_pin(struct pkvi_prefix *px, uint32_t id)
{
    if (pkvi_node(&px->core, id)->pins++ > 0) return;
    for (uint32_t g = 0; g < px->config.n_groups; g++)
        pkvi_inner_settle(px, id, g);
}

void pkvi_node_unpin(struct pkvi_prefix *px, uint32_t id)
{
    if (--pkvi_node(&px->core, id)->pins > 0) return;
    for (uint32_t g = 0; g < px->config.n_groups; g++) {
        pkvi_inner_settle(px, id, g);
        pkvi_member_unblocked(px, id, g);
    }
    pkvi_index_collect(&px->core, id);
}

/* Takes a member's page out of the index. `evicted`: by the policy's choice. */
static uint32_t take_page(struct pkvi_prefix *px, uint32_t id, uint32_t group, bool evicted)
{
    struct pkvi_space *space = pkvi_space_of(px, id);
    struct pkvi_policy *policy = space->domain->lanes[group].policy;
    uint32_t page = pkvi_index_clear_page(&px->core, id, group);
    pkvi_inner_settle(px, id, group);
    pkvi_member(&px->core, group, id)->busy = 0;
    policy->size--;
    policy->ops->remove(policy, id, evicted);
    pkvi_lane_settle(px, space->domain, group);
    space->pages--;
    uint32_t parent = pkvi_node(&px->core, id)->parent;
    if (parent != PKVI_NIL && pkvi_member(&px->core, group, parent)->kids == 0) {
        pkvi_inner_settle(px, parent, group);
        pkvi_member_unblocked(px, parent, group);
    }
    return page;
}

static void note_reclaim(struct pkvi_prefix *px, uint32_t group, uint32_t page)
{
    if (pkvi_events_on(px->stats))
        pkvi_event(px->stats, PKV_EVENT_PAGE_RECLAIM, group,
                   pkvi_pool_id(px->groups[group].pool, page), 0, 0);
}

/* Frees what an eviction took, at once. */
void pkvi_freed_flush(struct pkvi_prefix *px, struct pkvi_freed *freed)
{
    if (freed->n == 0) return;
    pkvi_pool_free_cached(px->groups[freed->group].pool, freed->n, freed->pages);
    pkvi_count(px->stats, PKVI_COUNT_PAGES_RECLAIMED, freed->n);
    freed->n = 0;
}

static void free_page(struct pkvi_prefix *px, struct pkvi_freed *freed, uint32_t group,
                      uint32_t page)
{
    note_reclaim(px, group, page);
    if (freed->n == PKVI_FREED_MAX || freed->group != group) pkvi_freed_flush(px, freed);
    freed->group = group;
    freed->pages[freed->n++] = page;
    freed->bytes += pkvi_pool_page_bytes(px->groups[group].pool);
}

void pkvi_member_evict(struct pkvi_prefix *px, uint32_t id, uint32_t group,
                       struct pkvi_freed *freed)
{
    struct pkvi_space *space = pkvi_space_of(px, id);
    uint64_t also = px->full_groups >> group & 1 ? px->all_groups : 0;
    pkvi_index_prefetch_removal(&px->core, id);
    const struct pkvi_node *node = pkvi_node(&px->core, id);
    const bool inner = (pkvi_member(&px->core, group, id)->flags & PKVI_MEMBER_INNER) != 0;
    if (inner || (px->full_groups == 0 && (node->children || node->holds))) px->n_holes++;
    for (uint32_t g = 0; g < px->config.n_groups; g++) {
        const struct pkvi_member *m = pkvi_member(&px->core, g, id);
        if (g != group && (!(also >> g & 1) || !pkvi_node_has(pkvi_node(&px->core, id), g) ||
                           m->busy || (m->kids && px->full_groups >> g & 1)))
            continue;
        free_page(px, freed, g, take_page(px, id, g, true));
        space->reclaimed++;
    }
    if (pkvi_node_needed(&px->core, pkvi_node(&px->core, id)))
        pkvi_siblings_settle(&px->core, id);
    else
        pkvi_index_collect(&px->core, id);
}

uint32_t pkvi_node_strip(struct pkvi_prefix *px, uint32_t id)
{
    uint32_t freed = 0;
    for (uint32_t g = 0; g < px->config.n_groups; g++) {
        struct pkvi_member *m = pkvi_member(&px->core, g, id);
        struct pkvi_policy *policy = pkvi_policy_of(px, id, g);
        if (pkvi_node_has(pkvi_node(&px->core, id), g)) {
            bool busy = m->busy;
            uint32_t page = take_page(px, id, g, false);
            if (busy) {
                pkvi_pool_clear_owner(px->groups[g].pool, page);
            } else {
                note_reclaim(px, g, page);
                pkvi_pool_free_cached(px->groups[g].pool, 1, &page);
            }
            freed += !busy;
        } else if (m->flags & PKVI_MEMBER_GHOST) {
            policy->ops->forget(policy, id);
        }
    }
    return freed;
}
