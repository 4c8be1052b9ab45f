/* Binding of lib/attn to the cache, and the public functions that need no plan. */
#include "cache/attention.h"

#include <math.h>
#include <string.h>

#include "cache/open_pages.h"

/* ---- bind ----------------------------------------------------------------------------------- */

static size_t frequency_count(const pkv_config *config)
{
    size_t n = 0;
    for (uint32_t g = 0; config->rope && g < pkvi_config_paged(config); g++)
        n += pkvi_config_rope(config, g).rotary_dims / 2;
    return n;
}

static void set_rope(const pkv_rope_config *from, struct pkvi_attn_rope *rope, double *frequencies)
{
    uint32_t pairs = from->rotary_dims / 2;
    double scale = from->position_scale > 0 ? from->position_scale : 1;
    *rope = (struct pkvi_attn_rope){.rotary_dims = from->rotary_dims,
                                    .interleaved = from->interleaved != 0,
                                    .frequencies = frequencies};
    for (uint32_t i = 0; i < pairs; i++)
        frequencies[i] =
            scale * (from->frequencies ? from->frequencies[i]
                                       : pow(from->theta, -2.0 * i / from->rotary_dims));
}

pkv_status pkvi_attention_bind(struct pkv_cache *cache, const pkv_config *config)
{
    const pkvi_kernels *kernels = pkvi_kernel_find(config->isa);
    if (!kernels) return PKV_ENOTSUP;
    size_t n = frequency_count(config);
    size_t groups_bytes = cache->n_groups * sizeof(struct pkvi_attn_group);
    size_t bytes = sizeof(struct pkvi_attention) + n * sizeof(double) + groups_bytes;
    struct pkvi_attention *attention = pkvi_mem_zalloc(&cache->mem, bytes);
    if (!attention) return PKV_ENOMEM;
    double *frequencies = (double *)(void *)(attention + 1);
    struct pkvi_attn_group *groups = (struct pkvi_attn_group *)(void *)(frequencies + n);
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        const struct pkvi_group *from = &cache->groups[g];
        groups[g] = (struct pkvi_attn_group){
            .pool = &from->pool,
            .layout = from->layout,
            .n_layers = from->n_layers,
            .kv_heads = from->kv_heads,
            .group_size = from->q_heads / from->kv_heads,
            .window = from->window,
            .layer_bytes = from->layer_bytes,
            .open_pool = from->quantised ? &from->open_pool : NULL,
            .open_layout = from->open_layout,
            .open_layer_bytes = from->open_layer_bytes,
            .scale = (float)(1 / sqrt((double)from->head_dim_k)),
        };
        if (!config->rope) continue;
        const pkv_rope_config rope = pkvi_config_rope(config, g);
        if (rope.rotary_dims == 0) continue;
        set_rope(&rope, &groups[g].rope, frequencies);
        frequencies += rope.rotary_dims / 2;
    }
    attention->bytes = bytes;
    attention->model = (struct pkvi_attn_model){.mem = &cache->mem,
                                                .stats = &cache->stats,
                                                .kernels = kernels,
                                                .page_tokens = cache->page_tokens,
                                                .page_shift = cache->page_shift,
                                                .n_groups = cache->n_groups,
                                                .groups = groups};
    cache->attention = attention;
    return PKV_OK;
}

void pkvi_attention_unbind(struct pkv_cache *cache)
{
    if (cache->attention) pkvi_mem_free(&cache->mem, cache->attention, cache->attention->bytes);
    cache->attention = NULL;
}

/* ---- rows ----------------------------------------------------------------------------------- */

static uint64_t magnitude(ptrdiff_t x)
{
    return x < 0 ? (uint64_t)0 - (uint64_t)x : (uint64_t)x;
}

/* Do rows of `dim_bytes` at n_a x n_b places with these distances stay apart? */
static bool apart(uint64_t a, uint64_t n_a, uint64_t b, uint64_t n_b, uint64_t dim_bytes)
{
    if (n_a > 1 && n_b > 1 && a < b) return apart(b, n_b, a, n_a, dim_bytes);
    uint64_t inner = n_b > 1 ? (n_b - 1) * b + dim_bytes : dim_bytes;
    return (n_b <= 1 || b >= dim_bytes) && (n_a <= 1 || a >= inner);
}

pkv_status pkvi_rows_check(struct pkv_cache *cache, const char *caller, const char *name,
                           const struct pkvi_rows_shape *rows, uint64_t n_rows, uint32_t heads,
                           uint32_t dim, bool output)
{
    size_t size = pkv_dtype_size(rows->dtype);
    if (!rows->data) return pkvi_fail(cache, PKV_EINVAL, "%s: %s has no data", caller, name);
    if (!rows->plain)
        return pkvi_fail(cache, PKV_EINVAL, "%s: %s.reserved is not zero", caller, name);
    if (size == 0)
        return pkvi_fail(cache, PKV_EINVAL, "%s: %s.dtype %d is unknown", caller, name,
                         rows->dtype);
    if (rows->heads != heads)
        return pkvi_fail(cache, PKV_EINVAL, "%s: %s.heads is %u, the layer has %u", caller, name,
                         rows->heads, heads);
    if (rows->dim != dim)
        return pkvi_fail(cache, PKV_EINVAL, "%s: %s.dim is %u, the layer has %u", caller, name,
                         rows->dim, dim);
    uint64_t token = magnitude(rows->token_stride), head = magnitude(rows->head_stride);
    if (token % size || head % size || (uintptr_t)rows->data % size)
        return pkvi_fail(cache, PKV_EINVAL, "%s: %s is not aligned to its elements", caller, name);
    uint64_t limit = (uint64_t)PTRDIFF_MAX / 4;
    if (token > limit / (n_rows ? n_rows : 1) || head > limit / heads)
        return pkvi_fail(cache, PKV_EINVAL, "%s: strides of %s are too large", caller, name);
    if (output && !apart(token, n_rows, head, heads, (uint64_t)dim * size))
        return pkvi_fail(cache, PKV_EINVAL, "%s: rows of %s overlap", caller, name);
    return PKV_OK;
}

/* ---- reading -------------------------------------------------------------------------------- */

static pkv_status readable(struct pkv_cache *cache, const char *caller)
{
    if (cache->storage != PKV_STORAGE_NONE) return PKV_OK;
    return pkvi_fail(cache, PKV_ENOTSUP, "%s: pages have no bytes (PKV_STORAGE_NONE)", caller);
}

pkv_status pkv_read(pkv_seq handle, uint32_t layer, uint64_t first, uint32_t n,
                    const pkv_rows_out *k, const pkv_rows_out *v)
{
    struct pkvi_seq *seq;
    pkv_status status = pkvi_seq_get(handle, "read", &seq);
    if (status != PKV_OK) return status;
    struct pkv_cache *cache = handle.cache;
    status = readable(cache, "read");
    if (status != PKV_OK) return status;
    if (layer >= cache->n_layers)
        return pkvi_fail(cache, PKV_EINVAL, "read: layer %u of %u", layer, cache->n_layers);
    if (!k && !v) return pkvi_fail(cache, PKV_EINVAL, "read: neither k nor v is wanted");
    if (first > seq->length || n > seq->length - first)
        return pkvi_fail(cache, PKV_EINVAL, "read: the sequence ends before token %llu + %u",
                         (unsigned long long)first, n);
    uint32_t g = cache->layers[layer].group;
    const struct pkvi_group *group = &cache->groups[g];
    if (k) {
        struct pkvi_rows_shape shape = pkvi_shape_out(k);
        status = pkvi_rows_check(cache, "read", "k", &shape, n, group->kv_heads, group->head_dim_k,
                                 true);
    }
    if (status == PKV_OK && v) {
        struct pkvi_rows_shape shape = pkvi_shape_out(v);
        status = pkvi_rows_check(cache, "read", "v", &shape, n, group->kv_heads, group->head_dim_v,
                                 true);
    }
    if (status != PKV_OK || n == 0) return status;
    const struct pkvi_table *table = &seq->tables[g];
    uint64_t last = (first + n - 1) >> cache->page_shift;
    for (uint64_t page = first >> cache->page_shift; page <= last; page++)
        if (pkvi_table_page(table, (uint32_t)page) == PKVI_NO_PAGE)
            return pkvi_fail(cache, PKV_EDROPPED, "read: page %llu is not held",
                             (unsigned long long)page);
    pkvi_tensor none = {.data = NULL, .dtype = group->dtype};
    const struct pkvi_attn_open open = {(uint32_t)(seq->length >> cache->page_shift),
                                        pkvi_open_tail(seq, g)};
    pkvi_transfer_read(&cache->attention->model, g, cache->layers[layer].index, table, open, first,
                       n, k ? pkvi_tensor_out(k) : none, v ? pkvi_tensor_out(v) : none);
    return PKV_OK;
}

/* ---- pages ---------------------------------------------------------------------------------- */

static pkv_status check_page(pkv_cache *cache, const char *caller, uint32_t group, const void *part,
                             pkv_layout layout, const void *plain, size_t plain_bytes)
{
    if (!cache) return PKV_EINVAL;
    pkv_status status = readable(cache, caller);
    if (status != PKV_OK) return status;
    if (group >= cache->n_groups)
        return pkvi_fail(cache, PKV_EINVAL, "%s: group %u of %u", caller, group, cache->n_groups);
    if (!part || !plain) return pkvi_fail(cache, PKV_EINVAL, "%s: a pointer is NULL", caller);
    if (layout != PKV_LAYOUT_NHD && layout != PKV_LAYOUT_HND)
        return pkvi_fail(cache, PKV_EINVAL, "%s: layout %d is unknown", caller, layout);
    const size_t need = pkvi_transfer_plain_bytes(&cache->attention->model, group);
    if (plain_bytes != need)
        return pkvi_fail(cache, PKV_EINVAL, "%s: %zu plain bytes, the page has %zu", caller,
                         plain_bytes, need);
    return PKV_OK;
}

pkv_status pkv_page_unpack(pkv_cache *cache, uint32_t group, const void *page_part,
                           pkv_layout layout, void *plain, size_t plain_bytes)
{
    pkv_status status =
        check_page(cache, "page_unpack", group, page_part, layout, plain, plain_bytes);
    if (status != PKV_OK) return status;
    pkvi_transfer_unpack(&cache->attention->model, group, page_part, layout, plain);
    return PKV_OK;
}

pkv_status pkv_page_pack(pkv_cache *cache, uint32_t group, void *page_part, pkv_layout layout,
                         const void *plain, size_t plain_bytes)
{
    pkv_status status =
        check_page(cache, "page_pack", group, page_part, layout, plain, plain_bytes);
    if (status != PKV_OK) return status;
    status = pkvi_transfer_pack(&cache->attention->model, group, page_part, layout, plain);
    if (status != PKV_OK) return pkvi_fail(cache, status, "page_pack: no memory to seal a page");
    return PKV_OK;
}

pkv_status pkv_layout_tag(pkv_cache *cache, uint32_t group, uint64_t *tag)
{
    if (!cache) return PKV_EINVAL;
    if (!tag) return pkvi_fail(cache, PKV_EINVAL, "layout_tag: tag is NULL");
    if (group >= cache->n_groups)
        return pkvi_fail(cache, PKV_EINVAL, "layout_tag: group %u of %u", group, cache->n_groups);
    *tag = cache->groups[group].layout.tag;
    return PKV_OK;
}

/* ---- kernels -------------------------------------------------------------------------------- */

pkv_status pkv_kernel_name(pkv_cache *cache, const char **name)
{
    if (!cache) return PKV_EINVAL;
    if (!name) return pkvi_fail(cache, PKV_EINVAL, "kernel_name: name is NULL");
    *name = cache->attention->model.kernels->name;
    return PKV_OK;
}

pkv_status pkv_kernel_list(uint32_t index, const char **name)
{
    if (!name) return PKV_EINVAL;
    const pkvi_kernels *kernels = pkvi_kernel_at(index, 1);
    if (!kernels) return PKV_ERANGE;
    *name = kernels->name;
    return PKV_OK;
}

pkv_status pkv_merge_states(float *out_a, float *lse_a, const float *out_b, const float *lse_b,
                            size_t n_rows, size_t dim)
{
    if (n_rows == 0) return PKV_OK;
    if (!out_a || !lse_a || !out_b || !lse_b || dim == 0) return PKV_EINVAL;
    if (dim > SIZE_MAX / sizeof(float) / n_rows) return PKV_ERANGE;
    const pkvi_kernels *kernels = pkvi_kernel_find(NULL);
    kernels->merge_states(out_a, lse_a, out_b, lse_b, n_rows, dim);
    return PKV_OK;
}
