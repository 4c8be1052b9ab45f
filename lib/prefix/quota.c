/* Quotas: how many pages a namespace may have published in each group. */
#include "internal.h"

/* Evicts from a domain until it has at most `most` pages in the group; false if what is left cannot
 * go. */
static bool shrink(struct pkvi_prefix *px, const struct pkvi_domain *domain, uint32_t group,
                   uint64_t most)
{
    struct pkvi_policy *policy = domain->lanes[group].policy;
    struct pkvi_freed freed = {.n = 0};
    bool fits = true;
    while (policy->size > most && fits) {
        policy->now = px->now;
        policy->capacity = policy->size;
        const uint32_t id = policy->ops->victim(policy);
        fits = id != PKVI_NIL;
        if (fits) pkvi_member_evict(px, id, group, &freed);
    }
    pkvi_freed_flush(px, &freed);
    return fits;
}

bool pkvi_quota_room(struct pkvi_prefix *px, const struct pkvi_space *space, uint32_t group)
{
    const struct pkvi_domain *domain = space->domain;
    return !domain->max || shrink(px, domain, group, domain->max - 1);
}

/* Gives a namespace a domain of its own, unless it has one. */
static pkv_status own_domain(struct pkvi_prefix *px, struct pkvi_space *space)
{
    if (space->domain != px->common) return PKV_OK;
    if (!pkvi_index_is_empty(&px->core, space->slot)) return PKV_ESTATE;
    struct pkvi_domain *domain = pkvi_domain_create(px);
    if (!domain) return PKV_ENOMEM;
    space->domain = domain;
    return PKV_OK;
}

pkv_status pkvi_prefix_set_quota(struct pkvi_prefix *px, const pkv_namespace *name,
                                 const pkv_prefix_quota *quota)
{
    pkvi_prefix_lock(px);
    px->now = px->config.clock(px->config.clock_user);
    pkvi_pins_expire(px);
    struct pkvi_space *space;
    pkv_status status = pkvi_space_get(px, name, &space);
    if (status == PKV_OK) status = own_domain(px, space);
    if (status == PKV_OK) {
        space->domain->has_quota = true;
        space->domain->share = quota->share;
        space->domain->max = quota->max;
        for (uint32_t g = 0; g < px->config.n_groups; g++) {
            if (quota->max) shrink(px, space->domain, g, quota->max);
            pkvi_lane_settle(px, space->domain, g);
        }
        pkvi_space_settle(px, space);
    }
    pkvi_prefix_unlock(px);
    return status;
}
