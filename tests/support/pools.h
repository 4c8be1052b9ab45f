/* A set of pools under one budget, without a cache on top, for tests of the pool module. */
#ifndef PKVT_POOLS_H
#define PKVT_POOLS_H

#include "faults.h"
#include "pool/pool.h"

#define PKVT_MAX_POOLS 4

struct pkvt_pools {
    struct pkvt_allocator allocator;
    struct pkvt_os os;
    struct pkvi_lock_ranks ranks;
    struct pkvi_budget budget;
    struct pkvi_mem mem;
    struct pkvi_stats stats;
    struct pkvi_regions regions;
    struct pkvi_pool pool[PKVT_MAX_POOLS];
    uint32_t n_pools;
};

struct pkvt_pools_config {
    uint64_t limit;
    uint64_t page_bytes[PKVT_MAX_POOLS]; /* 0 = no further pool */
    uint32_t max_pages;
    uint32_t event_capacity;
    uint32_t debug;
    pkv_storage storage; /* 0 = NONE */
    size_t region_bytes; /* 0 = 2 MiB */
    void *external_base;
    size_t external_bytes;
};

/* Whatever fails, everything is released again. `pools` must not move afterwards; its allocator and
 * os are initialised here unless `keep_faults` (then they carry their counters and the call to
 * refuse). */
pkv_status pkvt_pools_create(struct pkvt_pools *pools, const struct pkvt_pools_config *config,
                             bool keep_faults);
void pkvt_pools_destroy(struct pkvt_pools *pools);
/* Verifies every pool and the budget; prints the text of a failure. */
pkv_status pkvt_pools_verify(struct pkvt_pools *pools, const uint32_t *holders, uint32_t n_holders);

#endif
