/* Address space of regions, from the OS and back to it. */
#include "pool/internal.h"

pkv_status pkvi_regions_map(struct pkvi_regions *regions, bool split, void **mapped)
{
    const struct pkvi_regions_config *config = &regions->config;
    const struct pkvi_os *os = regions->os;
    *mapped = NULL;
    if (!config->mapped) return PKV_OK;
    void *base = os->map(os->user, config->region_bytes, PKVI_OS_GRANULE);
    if (!base) return PKV_ENOMEM;
    /* Advice: what is refused costs speed, not correctness. */
    if (split)
        os->advise_small(os->user, base, config->region_bytes);
    else if (config->huge)
        os->advise_huge(os->user, base, config->region_bytes);
    if (config->dont_fork) os->advise_dont_fork(os->user, base, config->region_bytes);
    if (config->numa_node >= 0)
        os->advise_numa(os->user, base, config->region_bytes, config->numa_node);
    *mapped = base;
    return PKV_OK;
}

uint64_t pkvi_regions_put(struct pkvi_regions *regions, void *base, uint64_t charge)
{
    const struct pkvi_os *os = regions->os;
    const size_t bytes = regions->config.region_bytes;
    if (base && !os->unmap(os->user, base, bytes) && !os->decommit(os->user, base, bytes)) {
        /* The memory is still there, and nobody will give it back: it stays charged. */
        atomic_fetch_add_explicit(&regions->lost, charge, memory_order_relaxed);
        return 0;
    }
    if (charge) pkvi_budget_release_region(regions->budget, charge);
    return charge;
}
