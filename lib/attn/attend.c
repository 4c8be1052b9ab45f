/* attn: one thread's share of one layer. */
#include "plan.h"

/* Merging of state blocks, for the node stack. */
static void merge_states(void *context, float *left, const float *right)
{
    const struct plan_run_item *run = context;
    size_t n = run->head_rows;
    uint32_t dim = run->ag->layout.dim_v;
    run->plan->model->kernels->merge(left, left + n * dim, left + n * dim + n, right,
                                     right + n * dim, right + n * dim + n, (uint32_t)n, dim, dim);
}

static bool is_scored(const struct plan_run_item *run)
{
    const struct plan_item *item = run->item;
    return run->scored_entry == item->entry && run->scored_token0 == item->token0 &&
           item->head0 >= run->scored_head0 && item->head0 < run->scored_head1;
}

/* Queries of heads [head0, head1) of the item's tokens: [head][row][dim]. */
static void load_heads(struct plan_run_item *run, uint32_t head0, uint32_t head1, float *to)
{
    const struct plan_item *item = run->item;
    const pkvi_tensor *q = &run->call->q;
    uint32_t size = run->ag->group_size, dim = run->ag->layout.dim_k;
    uint64_t row = run->body->entries[item->entry].first_row + item->token0;
    for (uint32_t h = head0; h < head1; h++)
        for (uint32_t t = 0; t < item->n_tokens; t++)
            for (uint32_t g = 0; g < size; g++, to += dim)
                run->plan->model->kernels->convert(to, PKV_DTYPE_F32,
                                                   (const unsigned char *)q->data +
                                                       (ptrdiff_t)(row + t) * q->token_stride +
                                                       (ptrdiff_t)(h * size + g) * q->head_stride,
                                                   q->dtype, dim);
}

/* Scores the pages for this item's head and for the next ones that this thread will work on: the
 * digests of a page's heads are neighbours, and a page is a place of its own in memory. */
static void score_heads(struct plan_run_item *run, const void *const *parts, uint32_t n_old)
{
    const struct plan_item *item = run->item;
    uint32_t most = item->head0 + plan_scored_heads(run->ag, run->rows), head1 = item->head0 + 1;
    for (uint32_t i = run->item_index + 1; i <= run->last_item && head1 < most; i++, head1++) {
        const struct plan_item *next = &run->pg->items[i];
        if (next->entry != item->entry || next->token0 != item->token0 || next->head0 != head1)
            break;
    }
    float *q = PLAN_AT(run, float, select_q);
    load_heads(run, item->head0, head1, q);
    run->plan->model->kernels->score(&run->ag->layout, parts, n_old, item->head0, head1, q,
                                     run->rows, PLAN_AT(run, float, scores));
    run->scored_entry = item->entry;
    run->scored_token0 = item->token0;
    run->scored_head0 = item->head0;
    run->scored_head1 = head1;
}

/* What the hook gets to see of the item's head: every resident page. */
static struct pkvi_attn_selection show(struct plan_run_item *run)
{
    const struct plan_pages *all = &run->lane->pages;
    const struct plan_entry *entry = &run->body->entries[run->item->entry];
    const struct pkvi_attn_model *model = run->plan->model;
    const void **parts = PLAN_AT(run, const void *, all_parts);
    uint64_t old = entry->length >> model->page_shift;
    uint32_t n_old = all->n;
    while (n_old > 0 && all->logical[n_old - 1] >= old)
        n_old--;
    if (!is_scored(run)) {
        for (uint32_t i = 0; i < all->n; i++)
            parts[i] = (const unsigned char *)pkvi_pool_address(run->ag->pool, all->page[i]) +
                       (size_t)run->call->layer * run->ag->layer_bytes;
        score_heads(run, parts, n_old);
    }
    return (struct pkvi_attn_selection){
        .model = model,
        .seq = entry->seq,
        .group = run->call->group,
        .layer = run->call->layer,
        .head = run->item->head0,
        .logical = all->logical,
        .parts = parts,
        .n_pages = all->n,
        .n_old = n_old,
        .length = entry->length,
        .n_tokens = entry->n_tokens,
        .q = PLAN_AT(run, float, q),
        .n_rows = run->rows,
        .scores =
            PLAN_AT(run, float, scores) + (size_t)(run->item->head0 - run->scored_head0) * n_old,
        .scored = true,
    };
}

/* Lets the hook choose pages and walks those instead. */
static void select_pages(struct plan_run_item *run)
{
    const struct plan_pages *all = &run->lane->pages;
    const struct pkvi_attn_model *model = run->plan->model;
    struct pkvi_attn_selection selection = show(run);
    selection.chosen = PLAN_AT(run, uint32_t, chosen);
    uint32_t n = run->plan->hooks.select(run->plan->hooks.context, &selection);
    uint32_t *logical = PLAN_AT(run, uint32_t, sel_logical),
             *page = PLAN_AT(run, uint32_t, sel_page);
    for (uint32_t i = 0; i < n; i++) {
        logical[i] = all->logical[selection.chosen[i]];
        page[i] = all->page[selection.chosen[i]];
    }
    run->pages = (struct plan_pages){.logical = logical, .page = page, .n = n};
    run->pages.dense = n == 0 || logical[n - 1] - logical[0] == n - 1;
    run->page0 = pkvi_plan_page_of_leaf(model, &run->pages, 0, n, run->item->leaf0);
    run->page1 = pkvi_plan_page_of_leaf(model, &run->pages, run->page0, n, run->item->leaf1);
    /* A few pages of every leaf would make many short calls of the kernel. */
    run->pages.packed = n < all->n;
    run->pages.page0 = run->page0;
    run->pages.leaf0 = run->item->leaf0;
}

static void set_sums(struct plan_run_item *run)
{
    const struct plan_item *item = run->item;
    if (!item->mass) return;
    run->sums = item->splittable ? run->slot->sums + item->sums : PLAN_AT(run, float, sums);
    run->leaf_max = run->sums + run->head_rows * (item->page1 - item->page0);
}

static void keep_maxima(struct plan_run_item *run, uint32_t leaf, const float *state)
{
    float *to = run->leaf_max + (size_t)(leaf - run->item->leaf0) * run->head_rows;
    const float *m = state + run->head_rows * run->ag->layout.dim_v;
    for (size_t r = 0; r < run->head_rows; r++)
        to[r] = m[r];
}

/* Leaves [leaf0, leaf1) of an item. */
static void run_item(struct plan_run_item *run, uint32_t index, uint32_t leaf0, uint32_t leaf1)
{
    pkvi_plan_set_item(run, index);
    const struct plan_item *item = run->item;
    const struct pkvi_attn_model *model = run->plan->model;
    pkvi_plan_load_rows(run);
    if (run->lane->wish.select_pages) select_pages(run);
    set_sums(run);
    pkvi_nodes_start(&run->nodes, item->left_open || leaf0 > item->leaf0, leaf0 - 1);
    uint32_t at = pkvi_plan_page_of_leaf(model, &run->pages, run->page0, run->page1, leaf0);
    uint32_t end = pkvi_plan_page_of_leaf(model, &run->pages, at, run->page1, leaf1);
    while (at < end) {
        uint32_t leaf = plan_leaf_of_page(model, &run->pages, at);
        uint32_t next = pkvi_plan_page_of_leaf(model, &run->pages, at, end, leaf + 1);
        float *state = pkvi_nodes_push(&run->nodes, leaf);
        pkvi_plan_leaf(run, at, next, state);
        if (run->sums) keep_maxima(run, leaf, state);
        at = next;
    }
    bool whole = leaf0 == item->leaf0 && leaf1 == item->leaf1;
    if (whole && item->shared == PKVI_NONE && run->lane->n_links == 0)
        pkvi_plan_finish(run);
    else
        pkvi_plan_leave(run, whole);
}

void pkvi_plan_attend(struct pkvi_plan *plan, const struct pkvi_attn_call *call, uint32_t ith,
                      uint32_t nth)
{
    const struct plan_body *body = plan_front(plan);
    const struct plan_group *pg = &body->groups[call->group];
    struct plan_slot *slot = &plan->slots[call->model_layer % plan->options.concurrent_layers];
    uint32_t workers = pkvi_min_u32(nth, plan->max_workers);
    if (ith >= workers) return;
    struct plan_run_item run = {
        .plan = plan,
        .body = body,
        .ag = &plan->model->groups[call->group],
        .pg = pg,
        .call = call,
        .slot = slot,
        .worker = ith,
        .n_workers = workers,
        .scored_entry = PKVI_NONE,
        .scratch = slot->workers + (size_t)ith * plan->offsets.total,
    };
    run.nodes = (struct pkvi_nodes){.leaf = PLAN_AT(&run, uint32_t, node_leaf),
                                    .states = PLAN_AT(&run, float, states),
                                    .merge = merge_states,
                                    .context = &run};
    struct plan_place from = pkvi_plan_share(plan->model, pg, ith, workers);
    struct plan_place to = pkvi_plan_share(plan->model, pg, ith + 1, workers);
    run.last_item = to.item;
    if (to.leaf == (to.item < pg->n_items ? pg->items[to.item].leaf0 : 0)) run.last_item--;
    for (uint32_t i = from.item; i < pg->n_items && i <= to.item; i++) {
        uint32_t leaf0 = i == from.item ? from.leaf : pg->items[i].leaf0;
        uint32_t leaf1 = i == to.item ? to.leaf : pg->items[i].leaf1;
        if (leaf0 < leaf1) run_item(&run, i, leaf0, leaf1);
    }
}
