/* Quota domains: who gives pages when memory is short. Each has one policy instance per group (a
 * lane); the lanes of a group stand in rings and give in turn. Every step is O(1) apart from the
 * policy's own work: a lane that has nothing to give stands aside until something in it changes. */
#include "internal.h"

struct pkvi_domain *pkvi_domain_create(struct pkvi_prefix *px)
{
    uint32_t n = px->config.n_groups;
    size_t size = sizeof(struct pkvi_domain) + n * sizeof(struct pkvi_lane);
    struct pkvi_domain *domain = pkvi_mem_zalloc(px->mem, size);
    if (!domain) return NULL;
    for (uint32_t g = 0; g < n; g++) {
        struct pkvi_lane *lane = &domain->lanes[g];
        pkvi_list_init(&lane->link);
        lane->policy = pkvi_policy_create(px->ops, &px->core, g, 0);
        lane->ring = PKVI_RING_STUCK;
        if (!lane->policy) {
            pkvi_domain_destroy(px, domain);
            return NULL;
        }
        pkvi_list_push_back(&px->rings[g][PKVI_RING_STUCK], &lane->link);
    }
    return domain;
}

void pkvi_domain_destroy(struct pkvi_prefix *px, struct pkvi_domain *domain)
{
    uint32_t n = px->config.n_groups;
    for (uint32_t g = 0; g < n; g++) {
        if (!domain->lanes[g].policy) continue;
        pkvi_list_remove(&domain->lanes[g].link);
        pkvi_policy_destroy(domain->lanes[g].policy);
    }
    pkvi_mem_free(px->mem, domain, sizeof *domain + n * sizeof(struct pkvi_lane));
}

static void move(struct pkvi_prefix *px, struct pkvi_lane *lane, uint32_t group,
                 enum pkvi_ring ring)
{
    pkvi_list_remove(&lane->link);
    pkvi_list_push_back(&px->rings[group][ring], &lane->link);
    lane->ring = ring;
}

void pkvi_lane_settle(struct pkvi_prefix *px, struct pkvi_domain *domain, uint32_t group)
{
    struct pkvi_lane *lane = &domain->lanes[group];
    bool within = domain->has_quota && lane->policy->size <= domain->share;
    enum pkvi_ring ring = within ? PKVI_RING_WITHIN : PKVI_RING_BEYOND;
    if (lane->ring != ring) move(px, lane, group, ring);
}

uint32_t pkvi_domains_victim(struct pkvi_prefix *px, uint32_t group)
{
    for (enum pkvi_ring ring = PKVI_RING_BEYOND; ring <= PKVI_RING_WITHIN; ring++) {
        struct pkvi_list *list = &px->rings[group][ring];
        while (!pkvi_list_empty(list)) {
            struct pkvi_lane *lane = PKVI_CONTAINER_OF(list->next, struct pkvi_lane, link);
            struct pkvi_policy *policy = lane->policy;
            policy->now = px->now;
            policy->capacity = policy->size;
            uint32_t id = policy->ops->victim(policy);
            move(px, lane, group, id == PKVI_NIL ? PKVI_RING_STUCK : ring);
            if (id != PKVI_NIL) return id;
        }
    }
    return PKVI_NIL;
}
