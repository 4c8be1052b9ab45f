/* The list of policies, and making instances. */
#include "policy.h"

#include <string.h>

#include "policies.h"

static const struct pkvi_policy_ops *const policies[] = {
    &pkvi_policy_lru_leaf,   &pkvi_policy_lru,      &pkvi_policy_fifo,     &pkvi_policy_lfu,
    &pkvi_policy_sieve,      &pkvi_policy_s3fifo,   &pkvi_policy_arc,      &pkvi_policy_2q,
    &pkvi_policy_slru,       &pkvi_policy_priority, &pkvi_policy_adaptive, &pkvi_policy_opt,
    &pkvi_policy_opt_bypass,
};

const struct pkvi_policy_ops *pkvi_policy_at(uint32_t i)
{
    return i < sizeof policies / sizeof *policies ? policies[i] : NULL;
}

const struct pkvi_policy_ops *pkvi_policy_find(const char *name)
{
    const struct pkvi_policy_ops *ops;
    for (uint32_t i = 0; (ops = pkvi_policy_at(i)); i++)
        if (strcmp(ops->name, name) == 0) return ops;
    return NULL;
}

struct pkvi_policy *pkvi_policy_create(const struct pkvi_policy_ops *ops, struct pkvi_index *ix,
                                       uint32_t group, uint64_t capacity)
{
    struct pkvi_policy *policy = pkvi_mem_zalloc(ix->mem, ops->bytes);
    if (!policy) return NULL;
    bool needs_leaves = ix->options.full_groups >> group & 1 && !ix->options.holes;
    policy->ops = ops;
    policy->ix = ix;
    policy->group = group;
    policy->leaf_first = ix->options.replay ? ops->leaf_first : needs_leaves;
    policy->capacity = capacity;
    if (ops->setup(policy)) return policy;
    pkvi_mem_free(ix->mem, policy, ops->bytes);
    return NULL;
}

void pkvi_policy_destroy(struct pkvi_policy *policy)
{
    if (!policy) return;
    if (policy->ops->teardown) policy->ops->teardown(policy);
    pkvi_mem_free(policy->ix->mem, policy, policy->ops->bytes);
}
