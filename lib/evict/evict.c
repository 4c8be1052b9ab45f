/* evict: the module's object in a cache: group descriptions and default policies. */
#include <string.h>

#include "evict/evict_internal.h"

pkv_status pkvi_evict_create(struct pkvi_evict **evict, struct pkvi_mem *mem, uint32_t page_tokens,
                             const struct pkvi_evict_group *groups, uint32_t n_groups)
{
    struct pkvi_evict *e = pkvi_mem_zalloc(mem, sizeof *e);
    if (!e) return PKV_ENOMEM;
    e->mem = mem;
    e->page_tokens = page_tokens;
    e->page_shift = pkvi_log2_u32(page_tokens);
    e->n_groups = n_groups;
    atomic_init(&e->n_defaults, 0);
    atomic_init(&e->n_meters, 0);
    e->groups = pkvi_mem_array(mem, n_groups, sizeof *e->groups);
    e->defaults = pkvi_mem_array(mem, n_groups, sizeof *e->defaults);
    if (!e->groups || !e->defaults || !pkvi_mutex_init(&e->lock, PKVI_RANK_EVICT, NULL)) {
        pkvi_mem_free_array(mem, e->groups, n_groups, sizeof *e->groups);
        pkvi_mem_free_array(mem, e->defaults, n_groups, sizeof *e->defaults);
        pkvi_mem_free(mem, e, sizeof *e);
        return PKV_ENOMEM;
    }
    memcpy(e->groups, groups, n_groups * sizeof *groups);
    *evict = e;
    return PKV_OK;
}

void pkvi_evict_destroy(struct pkvi_evict *evict)
{
    if (!evict) return;
    struct pkvi_mem *mem = evict->mem;
    for (uint32_t g = 0; g < evict->n_groups; g++)
        pkvi_evict_policy_unref(evict->defaults[g]);
    pkvi_mutex_destroy(&evict->lock);
    pkvi_mem_free_array(mem, evict->groups, evict->n_groups, sizeof *evict->groups);
    pkvi_mem_free_array(mem, evict->defaults, evict->n_groups, sizeof *evict->defaults);
    pkvi_mem_free(mem, evict, sizeof *evict);
}

void pkvi_evict_set_default(struct pkvi_evict *evict, uint32_t group,
                            struct pkvi_evict_policy *policy)
{
    pkvi_mutex_lock(&evict->lock);
    struct pkvi_evict_policy *old = evict->defaults[group];
    evict->defaults[group] = policy;
    if (policy && !old) atomic_fetch_add(&evict->n_defaults, 1);
    if (!policy && old) atomic_fetch_sub(&evict->n_defaults, 1);
    pkvi_mutex_unlock(&evict->lock);
    pkvi_evict_policy_unref(old);
}

bool pkvi_evict_has_default(struct pkvi_evict *evict)
{
    return atomic_load_explicit(&evict->n_defaults, memory_order_relaxed) != 0;
}

bool pkvi_evict_has_meters(struct pkvi_evict *evict)
{
    return atomic_load_explicit(&evict->n_meters, memory_order_relaxed) != 0;
}
