/* kernels: geometry of a layer's part of a page. */
#include "layout.h"

#include <string.h>

/* Bump when the arrangement of bytes changes for any format. */
#define LAYOUT_VERSION 2u

enum { V4_GROUP = 32 };

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
    h = mix(h, (uint64_t)(uint32_t)l->dtype_k << 32 | (uint32_t)l->dtype_v);
    h = mix(h, l->page_tokens);
    h = mix(h, l->kv_heads);
    h = mix(h, l->dim_k);
    h = mix(h, l->dim_v);
    return mix(h, l->digest);
}

/* Tiles that are plain elements. */
static uint32_t element_bytes(pkv_dtype dtype)
{
    return dtype == PKV_DTYPE_F32 ? 4 : dtype == PKV_DTYPE_F16 || dtype == PKV_DTYPE_BF16 ? 2 : 0;
}

static int place_keys(pkvi_layout *l)
{
    const uint32_t P = l->page_tokens;
    size_t tile;
    l->k_elem_bytes = element_bytes(l->dtype_k);
    if (l->k_elem_bytes > 0) {
        l->k_row_bytes = P * l->k_elem_bytes;
        tile = (size_t)l->dim_k * l->k_row_bytes;
    } else if (l->dtype_k == PKV_DTYPE_K8 || l->dtype_k == PKV_DTYPE_K4) {
        l->k_row_bytes = l->dtype_k == PKV_DTYPE_K8 ? P : P / 2;
        l->k_scale = l->dim_k * l->k_row_bytes;
        l->k_min = l->k_scale + 2 * l->dim_k;
        tile = (size_t)l->k_min + 2 * l->dim_k;
    } else {
        return 0;
    }
    l->k_head_bytes = (uint32_t)round_up(tile, 64);
    return 1;
}

static int place_values(pkvi_layout *l)
{
    const uint32_t P = l->page_tokens;
    size_t tile;
    l->v_elem_bytes = element_bytes(l->dtype_v);
    if (l->v_elem_bytes > 0) {
        l->v_row_bytes = l->dim_v * l->v_elem_bytes;
        tile = (size_t)P * l->v_row_bytes;
    } else if (l->dtype_v == PKV_DTYPE_V8) {
        l->v_row_bytes = l->dim_v;
        l->v_scale = P * l->v_row_bytes;
        tile = (size_t)l->v_scale + 2 * P;
    } else if (l->dtype_v == PKV_DTYPE_V4) {
        l->v_groups = (l->dim_v + V4_GROUP - 1) / V4_GROUP;
        l->v_row_bytes = l->dim_v / 2;
        l->v_scale = P * l->v_row_bytes;
        l->v_min = l->v_scale + 2 * P * l->v_groups;
        tile = (size_t)l->v_min + 2 * P * l->v_groups;
    } else {
        return 0;
    }
    l->v_head_bytes = (uint32_t)round_up(tile, 64);
    return 1;
}

static void place_digest(pkvi_layout *l)
{
    const size_t keys = (size_t)l->kv_heads * l->dim_k;
    size_t end = l->part_bytes;
    if (l->digest & PKVI_DIGEST_MINMAX && l->k_elem_bytes > 0) {
        l->min_offset = end;
        end = round_up(end + keys * l->k_elem_bytes, 64);
        l->max_offset = end;
        end = round_up(end + keys * l->k_elem_bytes, 64);
    }
    if (l->digest & PKVI_DIGEST_SUM) {
        l->sum_offset = end;
        end = round_up(end + keys * sizeof(float), 64);
    }
    l->part_bytes = end;
}

pkv_status pkvi_layout_init(pkvi_layout *layout, pkv_dtype dtype_k, pkv_dtype dtype_v,
                            uint32_t page_tokens, uint32_t kv_heads, uint32_t dim_k, uint32_t dim_v,
                            uint32_t digest)
{
    pkvi_layout l;
    memset(&l, 0, sizeof l); /* layouts may be compared as bytes */
    l.dtype_k = dtype_k;
    l.dtype_v = dtype_v;
    l.page_tokens = page_tokens;
    l.kv_heads = kv_heads;
    l.dim_k = dim_k;
    l.dim_v = dim_v;
    l.digest = digest;
    if (page_tokens < 8 || page_tokens > 256 || (page_tokens & (page_tokens - 1)) != 0)
        return PKV_EINVAL;
    if (kv_heads < 1 || kv_heads > PKV_MAX_HEADS || !dim_ok(dim_k) || !dim_ok(dim_v))
        return PKV_EINVAL;
    if ((digest & ~(uint32_t)(PKVI_DIGEST_MINMAX | PKVI_DIGEST_SUM)) != 0) return PKV_EINVAL;
    if (!place_keys(&l) || !place_values(&l)) return PKV_EINVAL;

    l.v_offset = (size_t)kv_heads * l.k_head_bytes;
    l.part_bytes = l.v_offset + (size_t)kv_heads * l.v_head_bytes;
    if (pkvi_layout_k_coded(&l)) {
        l.flag_offset = l.part_bytes;
        l.part_bytes = round_up(l.part_bytes + (size_t)kv_heads * (page_tokens / 8), 64);
    }
    place_digest(&l);
    l.tag = make_tag(&l);
    *layout = l;
    return PKV_OK;
}

size_t pkvi_layout_k_at(const pkvi_layout *l, uint32_t head, uint32_t slot, uint32_t dim)
{
    const size_t tile = (size_t)head * l->k_head_bytes;
    if (l->dtype_k == PKV_DTYPE_K8) return tile + (size_t)dim * l->page_tokens + slot;
    if (l->dtype_k == PKV_DTYPE_K4) return tile + (size_t)(dim / 2) * l->page_tokens + slot;
    const size_t index = l->dtype_k == PKV_DTYPE_BF16
                             ? ((size_t)(dim / 2) * l->page_tokens + slot) * 2 + dim % 2
                             : (size_t)dim * l->page_tokens + slot;
    return tile + index * l->k_elem_bytes;
}

size_t pkvi_layout_v_at(const pkvi_layout *l, uint32_t head, uint32_t slot, uint32_t dim)
{
    const size_t tile = l->v_offset + (size_t)head * l->v_head_bytes;
    if (l->dtype_v == PKV_DTYPE_V8) return tile + (size_t)slot * l->dim_v + dim;
    if (l->dtype_v == PKV_DTYPE_V4) return tile + (size_t)(slot / 2) * l->dim_v + dim;
    const size_t index = l->dtype_v == PKV_DTYPE_BF16
                             ? ((size_t)(slot / 2) * l->dim_v + dim) * 2 + slot % 2
                             : (size_t)slot * l->dim_v + dim;
    return tile + index * l->v_elem_bytes;
}

int32_t pkvi_layout_k_code(const pkvi_layout *l, const void *part, uint32_t head, uint32_t slot,
                           uint32_t dim)
{
    const uint8_t byte = ((const uint8_t *)part)[pkvi_layout_k_at(l, head, slot, dim)];
    if (l->dtype_k == PKV_DTYPE_K8) return byte;
    return dim % 2 ? byte >> 4 : byte & 15;
}

int32_t pkvi_layout_v_code(const pkvi_layout *l, const void *part, uint32_t head, uint32_t slot,
                           uint32_t dim)
{
    const uint8_t byte = ((const uint8_t *)part)[pkvi_layout_v_at(l, head, slot, dim)];
    if (l->dtype_v == PKV_DTYPE_V8) return (int8_t)byte;
    return slot % 2 ? byte >> 4 : byte & 15;
}

uint32_t pkvi_layout_flagged(const pkvi_layout *l, const void *part, uint32_t head)
{
    uint32_t n = 0;
    if (!pkvi_layout_k_coded(l)) return 0;
    const uint8_t *flags =
        (const uint8_t *)part + l->flag_offset + (size_t)head * (l->page_tokens / 8);
    for (uint32_t i = 0; i < l->page_tokens / 8; i++)
        n += (uint32_t)__builtin_popcount(flags[i]);
    return n;
}
