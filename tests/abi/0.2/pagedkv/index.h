#ifndef PAGEDKV_INDEX_H
#define PAGEDKV_INDEX_H
#include "config.h"
#ifdef __cplusplus
extern "C" {
#endif
typedef struct pkv_index pkv_index;
#define PKV_INDEX_NEVER UINT32_MAX
#define PKV_INDEX_UNLIMITED UINT64_MAX
typedef struct pkv_index_config {
    size_t struct_size;
    uint64_t pages;
    const char *policy;
    uint64_t memory_limit;
    const pkv_allocator *allocator;
    uint64_t key[2];
    size_t dense_ids;
    uint64_t reserved[7];
} pkv_index_config;
PKV_API pkv_status pkv_index_config_init(pkv_index_config *config, size_t size);
PKV_API pkv_status pkv_index_create(const pkv_index_config *config, pkv_index **index);
PKV_API void pkv_index_destroy(pkv_index *index);
PKV_API pkv_status pkv_index_replay(pkv_index *index, const uint64_t *ids, uint32_t n,
                                    const uint32_t *next_use, int partial_last, uint32_t *hits);
PKV_API pkv_status pkv_index_match(const pkv_index *index, const uint64_t *ids, uint32_t n,
                                   uint32_t *hits);
typedef struct pkv_index_stats {
    size_t struct_size;
    uint64_t pages;
    uint64_t nodes;
    uint64_t metadata_bytes;
    uint64_t requests;
    uint64_t reserved[4];
} pkv_index_stats;
PKV_API pkv_status pkv_index_get_stats(const pkv_index *index, pkv_index_stats *stats);
PKV_API pkv_status pkv_index_verify(const pkv_index *index, char *text, size_t capacity);
PKV_API const char *pkv_policy_name(uint32_t i, uint32_t *offline);
#ifdef __cplusplus
}
#endif
#endif
