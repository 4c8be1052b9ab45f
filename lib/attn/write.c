/* attn: new tokens' keys and values into their pages. Work is cut by (page, KV head), so one thread
 * owns a page's head when its last slot is filled and can seal it and finish its digest. */
#include "plan.h"

/* The entry whose touched pages contain number `cell`. */
static uint32_t find_entry(const struct plan_group *pg, uint32_t n_entries, uint32_t cell)
{
    uint32_t lo = 0, hi = n_entries;
    while (lo + 1 < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (pg->write_first[mid] <= cell)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

static pkvi_tensor at_token(const pkvi_tensor *t, uint64_t row)
{
    pkvi_tensor moved = *t;
    moved.data = (unsigned char *)t->data + (ptrdiff_t)row * t->token_stride;
    return moved;
}

/* The layer's part of the open page in place `at` of a quantised lane; NULL in other groups. */
static unsigned char *open_part(const struct pkvi_attn_group *ag, const struct plan_lane *lane,
                                uint32_t layer, uint64_t at)
{
    if (!lane->open) return NULL;
    return (unsigned char *)pkvi_pool_address(ag->open_pool, lane->open[at]) +
           (size_t)layer * ag->open_layer_bytes;
}

/* Heads [head0, head1) of the new tokens in the entry's logical page. */
static void write_page(struct pkvi_plan *plan, uint32_t group, uint32_t layer, uint32_t e,
                       uint64_t logical, uint32_t head0, uint32_t head1, const pkvi_tensor *k,
                       const pkvi_tensor *v)
{
    const struct plan_body *body = plan_front(plan);
    const struct pkvi_attn_group *ag = &plan->model->groups[group];
    const struct plan_entry *entry = &body->entries[e];
    const struct plan_pages *pages = &body->groups[group].lanes[e].pages;
    uint32_t shift = plan->model->page_shift;
    uint64_t begin = logical << shift, end = (logical + 1) << shift;
    uint64_t last = entry->length + entry->n_tokens;
    uint64_t first = begin > entry->length ? begin : entry->length;
    if (last > end) last = end;
    uint32_t at = plan_place_of_new(pages, (uint32_t)logical);
    unsigned char *part = (unsigned char *)pkvi_pool_address(ag->pool, pages->page[at]) +
                          (size_t)layer * ag->layer_bytes;
    unsigned char *open =
        open_part(ag, &body->groups[group].lanes[e], layer, logical - (entry->length >> shift));
    uint64_t row = entry->first_row + (first - entry->length);
    pkvi_move_job job = {
        .layout = open ? &ag->open_layout : &ag->layout,
        .part = open ? open : part,
        .head0 = head0,
        .head1 = head1,
        .slot = (uint32_t)(first - begin),
        .n_tokens = (uint32_t)(last - first),
        .k = at_token(k, row),
        .v = at_token(v, row),
    };
    plan->model->kernels->write(&job);
    if (last != end) return;
    if (open) {
        const uint32_t flagged =
            plan->model->kernels->seal(&ag->open_layout, open, &ag->layout, part, head0, head1);
        if (flagged != 0) pkvi_count(plan->model->stats, PKVI_COUNT_VECTORS_FLAGGED, flagged);
    }
    if (ag->layout.digest)
        plan->model->kernels->digest(&ag->layout, part, head0, head1, 1u << shift);
}

void pkvi_plan_write(struct pkvi_plan *plan, uint32_t group, uint32_t layer, const pkvi_tensor *k,
                     const pkvi_tensor *v, uint32_t ith, uint32_t nth)
{
    const struct plan_body *body = plan_front(plan);
    const struct plan_group *pg = &body->groups[group];
    uint32_t heads = plan->model->groups[group].kv_heads;
    uint64_t cells = (uint64_t)pg->write_first[body->n_entries] * heads;
    uint64_t from = cells / nth * ith + cells % nth * ith / nth;
    uint64_t to = cells / nth * (ith + 1u) + cells % nth * (ith + 1u) / nth;
    if (from >= to) return;
    uint32_t e = find_entry(pg, body->n_entries, (uint32_t)(from / heads));
    while (from < to) {
        uint32_t cell = (uint32_t)(from / heads), head0 = (uint32_t)(from % heads);
        while (cell >= pg->write_first[e + 1])
            e++;
        uint64_t rest = to - from;
        uint32_t n = heads - head0 < rest ? heads - head0 : (uint32_t)rest;
        uint64_t logical =
            (body->entries[e].length >> plan->model->page_shift) + (cell - pg->write_first[e]);
        write_page(plan, group, layer, e, logical, head0, head0 + n, k, v);
        from += n;
    }
}
