/* attn: pages back to plain rows, and single pages from and to interchange layouts. */
#include "attn.h"

void pkvi_transfer_read(const struct pkvi_attn_model *model, uint32_t group, uint32_t layer,
                        const struct pkvi_table *table, uint64_t first, uint32_t n, pkvi_tensor k,
                        pkvi_tensor v)
{
    const struct pkvi_attn_group *ag = &model->groups[group];
    while (n > 0) {
        uint32_t slot = (uint32_t)first & (model->page_tokens - 1);
        uint32_t now = pkvi_min_u32(n, model->page_tokens - slot);
        uint32_t page = pkvi_table_page(table, (uint32_t)(first >> model->page_shift));
        pkvi_move_job job = {
            .layout = &ag->layout,
            .part = (unsigned char *)pkvi_pool_address(ag->pool, page) +
                    (size_t)layer * ag->layer_bytes,
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

static pkvi_move_job whole_page(const pkvi_layout *l, unsigned char *part, pkv_layout layout,
                                unsigned char *plain)
{
    size_t k_bytes = (size_t)l->page_tokens * l->kv_heads * l->dim_k * l->k_elem_bytes;
    return (pkvi_move_job){.layout = l,
                           .part = part,
                           .head0 = 0,
                           .head1 = l->kv_heads,
                           .slot = 0,
                           .n_tokens = l->page_tokens,
                           .k = plain_rows(plain, l, l->dtype_k, l->dim_k, layout),
                           .v = plain_rows(plain + k_bytes, l, l->dtype_v, l->dim_v, layout)};
}

void pkvi_transfer_unpack(const struct pkvi_attn_model *model, uint32_t group, const void *part,
                          pkv_layout layout, void *plain)
{
    /* read does not write to the part. */
    pkvi_move_job job =
        whole_page(&model->groups[group].layout, (unsigned char *)(uintptr_t)part, layout, plain);
    model->kernels->read(&job);
}

void pkvi_transfer_pack(const struct pkvi_attn_model *model, uint32_t group, void *part,
                        pkv_layout layout, const void *plain)
{
    const pkvi_layout *l = &model->groups[group].layout;
    pkvi_move_job job = whole_page(l, part, layout, (unsigned char *)(uintptr_t)plain);
    model->kernels->write(&job);
    if (l->digest) model->kernels->digest(l, part, 0, l->kv_heads, l->page_tokens);
}
