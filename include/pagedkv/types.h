/* pagedkv: handles and small types shared by every public header.
 *
 * Handles of short-lived objects (sequence, batch, page) are small values that carry a generation,
 * so that a stale or doubly released handle is an error (PKV_ESTALE), never corruption. */
#ifndef PAGEDKV_TYPES_H
#define PAGEDKV_TYPES_H

#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>

#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Opaque objects, used through pointers. */
typedef struct pkv_cache pkv_cache; /* pools, tables, index: one per model instance */
typedef struct pkv_plan pkv_plan;   /* reusable partition of a batch's attention work */

/* A sequence: the tokens of one request. `id` is generation << 32 | slot; a zeroed handle is never
 * valid. Copy freely; the cache must outlive the handle's use. */
typedef struct pkv_seq {
    pkv_cache *cache;
    uint64_t id;
} pkv_seq;

/* A batch: what one model step works on. Same encoding as pkv_seq. */
typedef struct pkv_batch {
    pkv_cache *cache;
    uint64_t id;
} pkv_batch;

/* A physical page of one layer group: generation << 32 | index. The index is dense per group,
 * counted from 0, and is what the exports hand to kernels. Generations start at 1, so 0 is never
 * a valid page. */
typedef uint64_t pkv_page;
#define PKV_PAGE_NONE ((pkv_page)0)

static inline uint32_t pkv_page_index(pkv_page page) { return (uint32_t)(page & 0xffffffffu); }
static inline uint32_t pkv_page_generation(pkv_page page) { return (uint32_t)(page >> 32); }

/* Element types of the cache and of tensors given to it, and quantised formats of pages. Fixed
 * values: part of the ABI; 8..31 are kept for further formats. */
typedef int32_t pkv_dtype;
enum {
    PKV_DTYPE_F32 = 1,
    PKV_DTYPE_F16 = 2,
    PKV_DTYPE_BF16 = 3,
    /* Formats of pages only, never of tensors: no element has an address of its own. The ones of
     * keys are for pkv_group_config.dtype_k, those of values for dtype_v. pkv_config_check says
     * PKV_ENOTSUP where this version cannot hold pages in one of them. */
    PKV_DTYPE_K8 = 4, /* keys: u8 per channel inside the page, f16 scale and minimum */
    PKV_DTYPE_K4 = 5, /* keys: u4 likewise */
    PKV_DTYPE_V8 = 6, /* values: i8 per token and head, f16 scale */
    PKV_DTYPE_V4 = 7  /* values: u4 per token in groups of 32, f16 scale and minimum */
};

/* Size of one element in bytes (4, 2, 2); 0 for an unknown type and for quantised formats. */
PKV_API size_t pkv_dtype_size(pkv_dtype dtype);

/* Name of a type ("f32", "f16", "bf16", "k8", "k4", "v8", "v4"; "?" if unknown), static storage. */
PKV_API const char *pkv_dtype_name(pkv_dtype dtype);

/* Who owns the bytes of pages. */
typedef int32_t pkv_storage;
enum {
    PKV_STORAGE_DEFAULT = 0,  /* a cache: HOST; a group: as the cache */
    PKV_STORAGE_HOST = 1,     /* the library maps and owns the bytes */
    PKV_STORAGE_EXTERNAL = 2, /* bytes live in buffers the caller gives in the config */
    PKV_STORAGE_NONE = 3      /* page ids only (device memory, simulation): the limit counts the
                               * bytes the pages would need */
};

/* Upper limits, also reported by pkv_config_bounds(). */
#define PKV_MAX_GROUPS 64
#define PKV_MAX_LAYERS 1024
#define PKV_MAX_HEAD_DIM 576
#define PKV_MAX_HEADS 512

#ifdef __cplusplus
}
#endif
#endif
