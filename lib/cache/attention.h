/* What bind_attention.c and api_attention.c share. */
#ifndef PKVI_CACHE_ATTENTION_H
#define PKVI_CACHE_ATTENTION_H

#include <pagedkv/attention.h>

#include "attn/attn.h"
#include "cache/cache_internal.h"

/* Per-cache constants of attention. */
struct pkvi_attention {
    struct pkvi_attn_model model;
    size_t bytes; /* of this allocation, groups and frequencies included */
};

/* pkv_rows or pkv_rows_out. */
struct pkvi_rows_shape {
    const void *data;
    pkv_dtype dtype;
    uint32_t heads, dim;
    ptrdiff_t token_stride, head_stride;
    bool plain; /* reserved fields are zero */
};

static inline struct pkvi_rows_shape pkvi_shape(const pkv_rows *r)
{
    return (struct pkvi_rows_shape){.data = r->data,
                                    .dtype = r->dtype,
                                    .heads = r->heads,
                                    .dim = r->dim,
                                    .token_stride = r->token_stride,
                                    .head_stride = r->head_stride,
                                    .plain = (r->reserved[0] | r->reserved[1]) == 0};
}

static inline struct pkvi_rows_shape pkvi_shape_out(const pkv_rows_out *r)
{
    return (struct pkvi_rows_shape){.data = r->data,
                                    .dtype = r->dtype,
                                    .heads = r->heads,
                                    .dim = r->dim,
                                    .token_stride = r->token_stride,
                                    .head_stride = r->head_stride,
                                    .plain = (r->reserved[0] | r->reserved[1]) == 0};
}

static inline pkvi_tensor pkvi_tensor_in(const pkv_rows *r)
{
    return (pkvi_tensor){(void *)(uintptr_t)r->data, r->dtype, r->token_stride, r->head_stride};
}

static inline pkvi_tensor pkvi_tensor_out(const pkv_rows_out *r)
{
    return (pkvi_tensor){r->data, r->dtype, r->token_stride, r->head_stride};
}

/* PKV_EINVAL with a text naming `caller` and `name` unless the rows have this shape, known dtype,
 * aligned strides of sane size, and, for outputs, do not overlap. O(1). */
pkv_status pkvi_rows_check(struct pkv_cache *cache, const char *caller, const char *name,
                           const struct pkvi_rows_shape *rows, uint64_t n_rows, uint32_t heads,
                           uint32_t dim, bool output);

#endif
