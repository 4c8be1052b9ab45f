#include "pools.h"

#include <stdio.h>
#include <string.h>

static uint64_t tick(void *user)
{
    (void)user;
    return pkvi_os_default()->clock_ns(NULL);
}

static pkv_status create_pools(struct pkvt_pools *pools, const struct pkvt_pools_config *config)
{
    for (uint32_t i = 0; i < PKVT_MAX_POOLS && config->page_bytes[i]; i++) {
        struct pkvi_pool_config pool = {.group = i,
                                        .page_bytes = config->page_bytes[i],
                                        .layer_bytes = config->page_bytes[i] / 2,
                                        .max_pages = config->max_pages,
                                        .storage = config->storage ? config->storage
                                                                   : PKV_STORAGE_NONE,
                                        .external_base = config->external_base,
                                        .external_bytes = config->external_bytes,
                                        .debug = config->debug};
        pkv_status status = pkvi_pool_init(&pools->pool[i], &pool, &pools->regions, &pools->mem,
                                           &pools->stats, &pools->ranks);
        if (status != PKV_OK) return status;
        pools->n_pools++;
    }
    return PKV_OK;
}

pkv_status pkvt_pools_create(struct pkvt_pools *pools, const struct pkvt_pools_config *config,
                             bool keep_faults)
{
    if (!keep_faults) {
        pkvt_allocator_init(&pools->allocator);
        pkvt_os_init(&pools->os);
    }
    memset(&pools->ranks, 0, sizeof pools->ranks);
    pools->n_pools = 0;
    struct pkvi_regions_config regions = {
        .region_bytes = config->region_bytes ? config->region_bytes : PKVI_OS_GRANULE,
        .mapped = config->storage == PKV_STORAGE_HOST,
        .huge = true,
        .dont_fork = true,
        .numa_node = 0};
    if (!pkvi_budget_init(&pools->budget, config->limit, &pools->ranks)) return PKV_ENOMEM;
    pkv_status status = pkvi_mem_init(&pools->mem, &pools->allocator.vtable);
    if (status == PKV_OK && !pkvi_mem_attach(&pools->mem, &pools->budget, 0)) status = PKV_ENOMEM;
    if (status == PKV_OK)
        status = pkvi_stats_init(&pools->stats, &pools->mem, config->event_capacity, tick, NULL,
                                 &pools->ranks);
    if (status != PKV_OK) {
        pkvi_mem_destroy(&pools->mem);
        pkvi_budget_destroy(&pools->budget);
        return status;
    }
    if (!pkvi_regions_init(&pools->regions, &regions, &pools->budget, &pools->os.hooks,
                           &pools->ranks))
        status = PKV_ENOMEM;
    else
        status = create_pools(pools, config);
    if (status != PKV_OK) pkvt_pools_destroy(pools);
    return status;
}

void pkvt_pools_destroy(struct pkvt_pools *pools)
{
    for (uint32_t i = 0; i < pools->n_pools; i++)
        pkvi_pool_destroy(&pools->pool[i]);
    pkvi_regions_destroy(&pools->regions);
    pkvi_stats_destroy(&pools->stats, &pools->mem);
    pkvi_mem_detach(&pools->mem, 0);
    pkvi_mem_destroy(&pools->mem);
    pkvi_budget_destroy(&pools->budget);
}

pkv_status pkvt_pools_verify(struct pkvt_pools *pools, const uint32_t *holders, uint32_t n_holders)
{
    char text[256] = "";
    pkv_status status = pkvi_regions_verify(&pools->regions, text, sizeof text);
    for (uint32_t i = 0; i < pools->n_pools && status == PKV_OK; i++)
        status = pkvi_pool_verify(&pools->pool[i], holders, n_holders, text, sizeof text);
    if (status != PKV_OK) fprintf(stderr, "verify: %s\n", text);
    return status;
}
