/* attn: pages back to plain rows, and single pages from and to interchange layouts. */
#include "attn.h"

void pkvi_transfer_read(const struct pkvi_attn_model *model, uint32_t group, uint32_t layer,
                        const struct pkvi_table *table, struct pkvi_attn_open open, uint64_t first,
                        uint32_t n, pkvi_tensor k, pkvi_tensor v)
{
    const struct pkvi_attn_group *ag = &model->groups[group];
    while (n > 0) {
        uint32_t slot = (uint32_t)first & (model->page_tokens - 1);
        uint32_t now = pkvi_min_u32(n, model->page_tokens - slot);
        uint32_t logical = (uint32_t)(first >> model->page_shift);
        uint32_t page = pkvi_table_page(table, logical);
        bool is_open = open.page != PKVI_NO_PAGE && logical == open.logical;
        unsigned char *part = is_open
                                  ? (unsigned char *)pkvi_pool_address(ag->open_pool, open.page) +
                                        (size_t)layer * ag->open_layer_bytes
                                  : (unsigned char *)pkvi_pool_address(ag->pool, page) +
                                        (size_t)layer * ag->layer_bytes;
        pkvi_move_job job = {
            .layout = is_open ? &ag->open_layout : &ag->layout,
            .part = part,
            .head0 = 0,
            .head1 = ag->kv_heads,
            .slot = slot,
            .n_tokens = now,
            .k = k,
            .v = v,
        };
        model->kernels->read(&job);
        if (k.data) k.data = (unsigned char *)k.data + (ptrdiff_t)now * k.token_stride;
        if (v.data) v.data = (unsigned char *)v.data + (ptrdiff_t)now * v.token_stride;
        first += now;
        n -= now;
    }
}

static pkvi_tensor plain_rows(unsigned char *at, const pkvi_layout *l, pkv_dtype dtype,
                              uint32_t dim, pkv_layout layout)
{
    ptrdiff_t row = (ptrdiff_t)(dim * pkv_dtype_size(dtype));
    bool by_token = layout == PKV_LAYOUT_NHD;
    return (pkvi_tensor){.data = at,
                         .dtype = dtype,
                         .token_stride = by_token ? row * (ptrdiff_t)l->kv_heads : row,
                         .head_stride = by_token ? row : row * (ptrdiff_t)l->page_tokens};
}

/* Rows of the type that the group is written in: of `types`, which has elements. */
static pkvi_move_job whole_page(const pkvi_layout *l, const pkvi_layout *types, unsigned char *part,
                                pkv_layout layout, unsigned char *plain)
{
    size_t k_bytes = (size_t)l->page_tokens * l->kv_heads * l->dim_k * types->k_elem_bytes;
    return (pkvi_move_job){.layout = l,
                           .part = part,
                           .head0 = 0,
                           .head1 = l->kv_heads,
                           .slot = 0,
                           .n_tokens = l->page_tokens,
                           .k = plain_rows(plain, l, types->dtype_k, l->dim_k, layout),
                           .v = plain_rows(plain + k_bytes, l, types->dtype_v, l->dim_v, layout)};
}

static const pkvi_layout *types_of(const struct pkvi_attn_group *ag)
{
    return ag->open_pool ? &ag->open_layout : &ag->layout;
}

size_t pkvi_transfer_plain_bytes(const struct pkvi_attn_model *model, uint32_t group)
{
    const pkvi_layout *l = types_of(&model->groups[group]);
    return (size_t)l->page_tokens * l->kv_heads *
           (l->dim_k * l->k_elem_bytes + l->dim_v * l->v_elem_bytes);
}

void pkvi_transfer_unpack(const struct pkvi_attn_model *model, uint32_t group, const void *part,
                          pkv_layout layout, void *plain)
{
    const struct pkvi_attn_group *ag = &model->groups[group];
    /* read does not write to the part. */
    pkvi_move_job job =
        whole_page(&ag->layout, types_of(ag), (unsigned char *)(uintptr_t)part, layout, plain);
    model->kernels->read(&job);
}

pkv_status pkvi_transfer_pack(const struct pkvi_attn_model *model, uint32_t group, void *part,
                              pkv_layout layout, const void *plain)
{
    const struct pkvi_attn_group *ag = &model->groups[group];
    const pkvi_layout *l = &ag->layout, *open = &ag->open_layout;
    unsigned char *from = (unsigned char *)(uintptr_t)plain, *to = part;
    if (ag->open_pool) {
        to = pkvi_mem_alloc_aligned(model->mem, open->part_bytes, 64);
        if (!to) return PKV_ENOMEM;
    }
    pkvi_move_job job = whole_page(types_of(ag), types_of(ag), to, layout, from);
    model->kernels->write(&job);
    if (ag->open_pool) {
        const uint32_t flagged = model->kernels->seal(open, to, l, part, 0, ag->kv_heads);
        if (flagged != 0) pkvi_count(model->stats, PKVI_COUNT_VECTORS_FLAGGED, flagged);
        pkvi_mem_free(model->mem, to, open->part_bytes);
    }
    if (l->digest) model->kernels->digest(l, part, 0, ag->kv_heads, l->page_tokens);
    return PKV_OK;
}
