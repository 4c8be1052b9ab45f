/* kernels: geometry of a layer's part of a page. */
#include "layout.h"

/* Bump when the arrangement of bytes changes for any format. */
#define LAYOUT_VERSION 1u

static int dim_ok(uint32_t dim)
{
    return dim >= 8 && dim <= PKV_MAX_HEAD_DIM && dim % 8 == 0;
}

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

/* One step of a 64-bit mix (multiply, fold): spreads every field over the whole tag. */
static uint64_t mix(uint64_t h, uint64_t value)
{
    h = (h ^ value) * UINT64_C(0x9e3779b97f4a7c15);
    return h ^ (h >> 29);
}

static uint64_t make_tag(const pkvi_layout *l)
{
    uint64_t h = mix(UINT64_C(0x706b7674696c6573), LAYOUT_VERSION);
    h = mix(h, (uint64_t)(uint32_t)l->dtype);
    h = mix(h, l->page_tokens);
    h = mix(h, l->kv_heads);
    h = mix(h, l->dim_k);
    h = mix(h, l->dim_v);
    return mix(h, l->digest);
}

pkv_status pkvi_layout_init(pkvi_layout *layout, pkv_dtype dtype, uint32_t page_tokens,
                            uint32_t kv_heads, uint32_t dim_k, uint32_t dim_v, uint32_t digest)
{
    pkvi_layout l = {.dtype = dtype,
                     .page_tokens = page_tokens,
                     .kv_heads = kv_heads,
                     .dim_k = dim_k,
                     .dim_v = dim_v,
                     .digest = digest};
    switch (dtype) {
    case PKV_DTYPE_F32:
        l.elem_bytes = 4;
        break;
    case PKV_DTYPE_F16:
    case PKV_DTYPE_BF16:
        l.elem_bytes = 2;
        break;
    default:
        return PKV_EINVAL;
    }
    if (page_tokens < 8 || page_tokens > 128 || (page_tokens & (page_tokens - 1)) != 0)
        return PKV_EINVAL;
    if (kv_heads < 1 || kv_heads > PKV_MAX_HEADS || !dim_ok(dim_k) || !dim_ok(dim_v))
        return PKV_EINVAL;
    if ((digest & ~(uint32_t)(PKVI_DIGEST_MINMAX | PKVI_DIGEST_SUM)) != 0) return PKV_EINVAL;

    l.k_head_bytes = page_tokens * dim_k * l.elem_bytes;
    l.v_head_bytes = page_tokens * dim_v * l.elem_bytes;
    l.v_offset = (size_t)kv_heads * l.k_head_bytes;
    size_t end = l.v_offset + (size_t)kv_heads * l.v_head_bytes;
    size_t keys = (size_t)kv_heads * dim_k;
    if (digest & PKVI_DIGEST_MINMAX) {
        l.min_offset = end;
        end = round_up(end + keys * l.elem_bytes, 64);
        l.max_offset = end;
        end = round_up(end + keys * l.elem_bytes, 64);
    }
    if (digest & PKVI_DIGEST_SUM) {
        l.sum_offset = end;
        end = round_up(end + keys * sizeof(float), 64);
    }
    l.part_bytes = end;
    l.tag = make_tag(&l);
    *layout = l;
    return PKV_OK;
}

size_t pkvi_layout_k_at(const pkvi_layout *l, uint32_t head, uint32_t slot, uint32_t dim)
{
    size_t index = l->dtype == PKV_DTYPE_BF16
                       ? ((size_t)(dim / 2) * l->page_tokens + slot) * 2 + dim % 2
                       : (size_t)dim * l->page_tokens + slot;
    return (size_t)head * l->k_head_bytes + index * l->elem_bytes;
}

size_t pkvi_layout_v_at(const pkvi_layout *l, uint32_t head, uint32_t slot, uint32_t dim)
{
    size_t index = l->dtype == PKV_DTYPE_BF16 ? ((size_t)(slot / 2) * l->dim_v + dim) * 2 + slot % 2
                                              : (size_t)slot * l->dim_v + dim;
    return l->v_offset + (size_t)head * l->v_head_bytes + index * l->elem_bytes;
}
