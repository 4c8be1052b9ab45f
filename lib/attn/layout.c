/* attn: lays out the scratch of a plan: one block, a slot per concurrent layer, in it the counters,
 * areas and one scratch per worker. */
#include "plan.h"

#include <string.h>

#define LINE ((size_t)64)

/* Takes `n` x `size` bytes at the next line; false once the sum overflows. */
static size_t take(size_t *at, size_t n, size_t size, bool *ok)
{
    size_t here = *at, bytes;
    if (!pkvi_mul_size(n, size, &bytes) || bytes > SIZE_MAX / 4 - here) {
        *ok = false;
        return here;
    }
    *at = (here + bytes + LINE - 1) & ~(LINE - 1);
    return here;
}

static struct plan_offsets worker_offsets(const struct pkvi_plan *plan, const struct plan_sizes *s,
                                          bool *ok)
{
    struct plan_offsets o;
    size_t at = 0, leaf_pages = plan_leaf_pages(plan->model);
    size_t job_pages = leaf_pages + plan_ahead_pages(plan->model);
    size_t tokens = s->tree ? s->rows : 0;
    o.q = take(&at, s->q, sizeof(float), ok);
    o.q_turned = take(&at, s->turned ? s->q : 0, sizeof(float), ok);
    o.states = take(&at, (size_t)s->nodes * s->state, sizeof(float), ok);
    o.node_leaf = take(&at, s->nodes, sizeof(uint32_t), ok);
    o.kernel = take(&at, s->kernel, 1, ok);
    o.lo = take(&at, s->rows, sizeof(uint32_t), ok);
    o.hi = take(&at, s->rows, sizeof(uint32_t), ok);
    o.q_pos = take(&at, s->rows, sizeof(int32_t), ok);
    o.tree_rows = take(&at, s->rows, sizeof(uint8_t *), ok);
    o.tree_bits = take(&at, tokens * (PKVI_LEAF / 8), 1, ok);
    o.tree_pos = take(&at, s->tree ? PKVI_LEAF : 0, sizeof(int32_t), ok);
    o.slopes = take(&at, plan->alibi ? s->head_rows : 0, sizeof(float), ok);
    o.sinks = take(&at, plan->sinks ? s->head_rows : 0, sizeof(float), ok);
    o.out = take(&at, s->head_rows, sizeof(void *), ok);
    o.lse = take(&at, s->head_rows, sizeof(float *), ok);
    o.parts = take(&at, job_pages, sizeof(void *), ok);
    o.page_pos = take(&at, job_pages, sizeof(int32_t), ok);
    o.sums = take(&at, s->sums, sizeof(float), ok);
    /* COMPACT with mass keeps a maximum per run of a leaf; plus one set for the finished rows. */
    o.leaf_max = take(&at, s->turned ? leaf_pages * s->head_rows : 0, sizeof(float), ok);
    o.mass = take(&at, s->mass, sizeof(float), ok);
    o.mass_scale = take(&at, 2 * s->head_rows, sizeof(float), ok);
    o.all_parts = take(&at, s->pages, sizeof(void *), ok);
    o.scores = take(&at, s->select, sizeof(float), ok);
    o.select_q = take(&at, s->select_q, sizeof(float), ok);
    o.chosen = take(&at, s->select ? s->pages : 0, sizeof(uint32_t), ok);
    o.sel_logical = take(&at, s->select ? s->pages : 0, sizeof(uint32_t), ok);
    o.sel_page = take(&at, s->select ? s->pages : 0, sizeof(uint32_t), ok);
    /* A call's page sums lie behind its state. */
    o.own_state = take(&at, s->own_state ? s->own_state + s->own_sums : 0, sizeof(float), ok);
    o.own_max = take(&at, s->own_sums, sizeof(float), ok);
    o.own_sums = take(&at, s->own_sums, sizeof(float), ok);
    o.total = at;
    return o;
}

/* Sets (base) or only measures one slot starting at offset `at`; returns the end. */
static size_t lay_slot(const struct pkvi_plan *plan, const struct plan_sizes *s,
                       const struct plan_offsets *o, size_t at, unsigned char *base,
                       struct plan_slot *slot, bool *ok)
{
    size_t w = plan->max_workers;
    size_t arrived = take(&at, s->items, sizeof(atomic_uint), ok);
    size_t shared = take(&at, s->shared_area, sizeof(float), ok);
    size_t sums = take(&at, s->sums_area, sizeof(float), ok);
    size_t mass = take(&at, s->mass_area, sizeof(float), ok);
    size_t leaf = take(&at, w * 2 * (1 + (size_t)s->slot_nodes), sizeof(uint32_t), ok);
    size_t flush = take(&at, w * 2 * s->slot_nodes, s->slot_state * sizeof(float), ok);
    size_t workers = take(&at, w, o->total, ok);
    if (base) {
        slot->arrived = (atomic_uint *)(void *)(base + arrived);
        slot->shared = (float *)(void *)(base + shared);
        slot->sums = (float *)(void *)(base + sums);
        slot->mass = (float *)(void *)(base + mass);
        slot->flush_leaf = (uint32_t *)(void *)(base + leaf);
        slot->flush = (float *)(void *)(base + flush);
        slot->workers = base + workers;
    }
    return at;
}

pkv_status pkvi_plan_lay_out(struct pkvi_plan *plan, const struct plan_sizes *sizes)
{
    bool ok = true;
    uint32_t layers = plan->options.concurrent_layers;
    struct plan_offsets offsets = worker_offsets(plan, sizes, &ok);
    size_t bytes = 0;
    for (uint32_t i = 0; i < layers; i++)
        bytes = lay_slot(plan, sizes, &offsets, bytes, NULL, NULL, &ok);
    if (!ok) return PKV_ERANGE;
    if (bytes == 0) bytes = LINE;
    if (bytes > plan->block_bytes) {
        size_t room = bytes + bytes / 8; /* contexts grow step by step */
        unsigned char *block = pkvi_mem_alloc_aligned(plan->mem, room, LINE);
        if (!block) {
            room = bytes;
            block = pkvi_mem_alloc_aligned(plan->mem, room, LINE);
        }
        if (!block) return PKV_ENOMEM;
        pkvi_mem_free(plan->mem, plan->block, plan->block_bytes);
        plan->block = block;
        plan->block_bytes = room;
    }
    plan->offsets = offsets;
    plan->laid = *sizes;
    size_t at = 0;
    for (uint32_t i = 0; i < layers; i++) {
        at = lay_slot(plan, sizes, &offsets, at, plan->block, &plan->slots[i], &ok);
        for (uint32_t k = 0; k < sizes->items; k++)
            atomic_init(&plan->slots[i].arrived[k], 0);
    }
    return PKV_OK;
}
