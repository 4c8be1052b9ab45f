#ifndef PAGEDKV_TYPES_H
#define PAGEDKV_TYPES_H
#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>
#include "status.h"
#ifdef __cplusplus
extern "C" {
#endif
typedef struct pkv_cache pkv_cache;
typedef struct pkv_plan pkv_plan;
typedef struct pkv_seq {
    pkv_cache *cache;
    uint64_t id;
} pkv_seq;
typedef struct pkv_batch {
    pkv_cache *cache;
    uint64_t id;
} pkv_batch;
typedef uint64_t pkv_page;
#define PKV_PAGE_NONE ((pkv_page)0)
static inline uint32_t pkv_page_index(pkv_page page) { return (uint32_t)(page & 0xffffffffu); }
static inline uint32_t pkv_page_generation(pkv_page page) { return (uint32_t)(page >> 32); }
typedef int32_t pkv_dtype;
enum {
    PKV_DTYPE_F32 = 1,
    PKV_DTYPE_F16 = 2,
    PKV_DTYPE_BF16 = 3,
    PKV_DTYPE_K8 = 4,
    PKV_DTYPE_K4 = 5,
    PKV_DTYPE_V8 = 6,
    PKV_DTYPE_V4 = 7
};
PKV_API size_t pkv_dtype_size(pkv_dtype dtype);
PKV_API const char *pkv_dtype_name(pkv_dtype dtype);
typedef int32_t pkv_storage;
enum {
    PKV_STORAGE_DEFAULT = 0,
    PKV_STORAGE_HOST = 1,
    PKV_STORAGE_EXTERNAL = 2,
    PKV_STORAGE_NONE = 3
};
#define PKV_MAX_GROUPS 64
#define PKV_MAX_LAYERS 1024
#define PKV_MAX_HEAD_DIM 576
#define PKV_MAX_HEADS 512
#ifdef __cplusplus
}
#endif
#endif
