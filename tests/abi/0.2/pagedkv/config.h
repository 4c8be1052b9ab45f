#ifndef PAGEDKV_CONFIG_H
#define PAGEDKV_CONFIG_H
#include "types.h"
#ifdef __cplusplus
extern "C" {
#endif
typedef struct pkv_group_config {
    uint32_t n_layers;
    uint32_t kv_heads;
    uint32_t q_heads;
    uint32_t head_dim_k;
    uint32_t head_dim_v;
    uint32_t window;
    pkv_dtype dtype;
    uint32_t max_pages;
    const uint32_t *layers;
    void *external_base;
    size_t external_bytes;
    pkv_dtype dtype_k;
    pkv_dtype dtype_v;
    pkv_storage storage;
    uint32_t page_tokens;
    uint32_t v_in_k;
    uint32_t chunk;
    uint64_t state_bytes;
    uint64_t reserved[8];
} pkv_group_config;
typedef struct pkv_allocator {
    void *user;
    void *(*alloc)(void *user, size_t size, size_t alignment);
    void (*free)(void *user, void *ptr, size_t size);
} pkv_allocator;
enum { PKV_LOG_DEBUG = 0, PKV_LOG_INFO = 1, PKV_LOG_WARN = 2, PKV_LOG_ERROR = 3 };
typedef void (*pkv_log_fn)(void *user, int level, const char *message);
typedef uint64_t (*pkv_clock_fn)(void *user);
typedef struct pkv_rope_config {
    uint32_t rotary_dims;
    uint32_t interleaved;
    double theta;
    double position_scale;
    const double *frequencies;
    uint64_t reserved[4];
} pkv_rope_config;
enum {
    PKV_SIGNAL_BOUNDS = 1u,
    PKV_SIGNAL_KEYSUM = 2u
};
enum {
    PKV_DEBUG_POISON = 1u,
    PKV_DEBUG_CHECKSUM = 2u
};
typedef struct pkv_config {
    size_t struct_size;
    size_t group_size;
    size_t rope_size;
    const pkv_group_config *groups;
    uint32_t n_groups;
    uint32_t page_tokens;
    pkv_storage storage;
    uint32_t debug;
    uint64_t memory_limit;
    uint64_t region_bytes;
    uint32_t max_sequences;
    uint32_t max_batches;
    uint32_t event_capacity;
    uint32_t prefix;
    uint32_t huge_pages;
    int32_t numa_node;
    uint32_t watermark_pages;
    uint32_t fork_policy;
    const pkv_allocator *allocator;
    pkv_log_fn log;
    void *log_user;
    pkv_clock_fn clock;
    void *clock_user;
    const char *isa;
    const pkv_rope_config *rope;
    uint32_t signals;
    const char *prefix_policy;
    uint64_t prefix_key[2];
    uint64_t reserved[8];
} pkv_config;
PKV_API pkv_status pkv_config_init(pkv_config *config, size_t size);
PKV_API pkv_status pkv_config_bounds(const char *field, uint64_t *min, uint64_t *max);
PKV_API pkv_status pkv_config_check(const pkv_config *config, char *text, size_t capacity);
#ifdef __cplusplus
}
#endif
#endif
