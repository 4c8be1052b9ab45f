/* Numeric limits that are not part of the public headers but reported by pkv_config_bounds. */
#ifndef PKVI_CACHE_CONFIG_LIMITS_H
#define PKVI_CACHE_CONFIG_LIMITS_H

#include <stdint.h>

#define PKVI_MAX_LENGTH INT32_MAX /* tokens of one sequence: kernels take int32 positions */
#define PKVI_MAX_MEMORY ((uint64_t)1 << 50)
#define PKVI_MAX_PAGES INT32_MAX /* pages of one group: exports hold int32 indices */
#define PKVI_MAX_REGION ((uint64_t)1 << 34)
#define PKVI_REGION_UNIT ((uint64_t)2 << 20)
#define PKVI_DEFAULT_MEMORY_LIMIT ((uint64_t)1 << 30)
#define PKVI_MIN_METADATA ((uint64_t)160 << 10) /* of a cache with one sequence in one batch */
#define PKVI_MAX_SEQUENCES (1u << 24)
#define PKVI_MAX_BATCHES (1u << 16)
#define PKVI_MAX_EVENTS (1u << 24)
#define PKVI_MAX_NUMA_NODE 1023
#define PKVI_EXTERNAL_ALIGNMENT 64u

#endif
