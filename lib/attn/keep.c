/* attn: the accepted path of a tree of new tokens moves to the slots that follow the sequence's
 * last. */
#include "attn.h"

/* A page of the new tokens: its part of one layer, open where the group has open pages. */
static unsigned char *part_of(const struct pkvi_attn_group *ag, const struct pkvi_attn_entry *entry,
                              uint32_t group, uint32_t layer, uint32_t logical,
                              uint32_t first_logical)
{
    if (ag->open_pool)
        return (unsigned char *)pkvi_pool_address(ag->open_pool,
                                                  entry->open[group][logical - first_logical]) +
               (size_t)layer * ag->open_layer_bytes;
    return (unsigned char *)pkvi_pool_address(ag->pool,
                                              pkvi_table_page(&entry->tables[group], logical)) +
           (size_t)layer * ag->layer_bytes;
}

/* One token's keys and values, in the type they are stored in: nothing is rounded. */
static void move_slot(const pkvi_kernels *kernels, const pkvi_layout *layout, uint32_t kv_heads,
                      unsigned char *from, uint32_t from_slot, unsigned char *to, uint32_t to_slot)
{
    float k[PKV_MAX_HEAD_DIM], v[PKV_MAX_HEAD_DIM]; /* room for any element type */
    for (uint32_t head = 0; head < kv_heads; head++) {
        pkvi_move_job job = {
            .layout = layout,
            .part = from,
            .head0 = head,
            .head1 = head + 1,
            .slot = from_slot,
            .n_tokens = 1,
            .k = {.data = k, .dtype = layout->dtype_k},
            .v = {.data = v, .dtype = layout->dtype_v},
        };
        kernels->read(&job);
        job.part = to;
        job.slot = to_slot;
        kernels->write(&job);
    }
}

void pkvi_transfer_keep(const struct pkvi_attn_model *model, uint32_t group, uint32_t layer,
                        const struct pkvi_attn_entry *entry, const uint32_t *kept, uint32_t n)
{
    const struct pkvi_attn_group *ag = &model->groups[group];
    const pkvi_layout *layout = ag->open_pool ? &ag->open_layout : &ag->layout;
    const uint32_t shift = model->page_shift, mask = model->page_tokens - 1;
    const uint32_t first = (uint32_t)(entry->length >> shift);
    uint32_t in_place = 0;
    while (in_place < n && kept[in_place] == in_place)
        in_place++;
    if (in_place == n) return;
    /* Ascending, and never to the right: what is overwritten was moved before or is not wanted. */
    for (uint32_t i = in_place; i < n; i++) {
        const uint64_t from = entry->length + kept[i], to = entry->length + i;
        move_slot(model->kernels, layout, ag->kv_heads,
                  part_of(ag, entry, group, layer, (uint32_t)(from >> shift), first),
                  (uint32_t)from & mask,
                  part_of(ag, entry, group, layer, (uint32_t)(to >> shift), first),
                  (uint32_t)to & mask);
    }
    /* Pages that the path fills were finished with the tokens that stood there. */
    const uint32_t end = (uint32_t)((entry->length + n) >> shift);
    for (uint32_t page = (uint32_t)((entry->length + in_place) >> shift); page < end; page++) {
        unsigned char *sealed = (unsigned char *)pkvi_pool_address(
                                    ag->pool, pkvi_table_page(&entry->tables[group], page)) +
                                (size_t)layer * ag->layer_bytes;
        if (ag->open_pool)
            model->kernels->seal(layout, part_of(ag, entry, group, layer, page, first), &ag->layout,
                                 sealed, 0, ag->kv_heads);
        if (ag->layout.digest)
            model->kernels->digest(&ag->layout, sealed, 0, ag->kv_heads, model->page_tokens);
    }
}
