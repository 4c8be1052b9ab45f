/* attn: the rows' own pages of a quantised group.
 *
 * New tokens are kept in 16 bits until their page is full, and a row attends to its own page in 16
 * bits even if that page was filled, and sealed, by later tokens of the same batch. So what a row
 * sees does not depend on how its prompt was cut into steps. The state over a row's own page is
 * made apart from the leaves, one page a call, and merged last: always the same arithmetic, for a
 * decode step and for a row in the middle of a prompt. */
#include "plan.h"

#include <string.h>

/* The queries as the last run of a COMPACT lane sees them: new tokens' pages are in it. */
static const float *own_queries(struct plan_run_item *run, uint32_t *flags)
{
    const float *q = PLAN_AT(run, float, q);
    *flags = run->flags;
    if (run->lane->n_runs <= 1) return q;
    const struct plan_run *last = &run->pg->runs[run->lane->run0 + run->lane->n_runs - 1];
    if (last->turn == PKVI_NONE) return q;
    const struct pkvi_attn_rope *rope = &run->ag->rope;
    float *turned = PLAN_AT(run, float, q_turned);
    pkvi_plan_turn(rope, run->pg->turns + (size_t)last->turn * rope->rotary_dims, q, turned,
                   run->head_rows, run->ag->layout.dim_k);
    *flags = 0;
    return turned;
}

/* Merges the state over one page, of the rows from `row0` on, into the item's, which has `rows`
 * rows a head. */
static void merge_page(struct plan_run_item *run, const float *own, uint32_t row0, uint32_t rows,
                       float *state)
{
    const uint32_t dim = run->ag->layout.dim_v, heads = run->item->n_heads;
    const size_t n = run->head_rows, all = (size_t)rows * heads;
    const float *own_m = own + n * dim, *own_l = own_m + n;
    for (uint32_t h = 0; h < heads; h++) {
        const size_t to = (size_t)h * rows + row0, from = (size_t)h * run->rows;
        if (run->sums) {
            memcpy(PLAN_AT(run, float, own_max) + to, own_m + from, run->rows * sizeof *own);
            memcpy(PLAN_AT(run, float, own_sums) + to, run->sums + from, run->rows * sizeof *own);
        }
        run->plan->model->kernels->merge(state + to * dim, state + all * dim + to,
                                         state + all * dim + all + to, own + from * dim,
                                         own_m + from, own_l + from, run->rows, dim, dim);
    }
}

void pkvi_plan_add_own(struct plan_run_item *run, float *state)
{
    const struct plan_run_item before = *run;
    const struct pkvi_attn_group *ag = run->ag;
    const struct plan_pages *all = &run->lane->pages;
    const uint32_t shift = run->plan->model->page_shift, size = ag->group_size;
    const uint64_t length = run->body->entries[run->item->entry].length;
    float *own = PLAN_AT(run, float, own_state);
    struct plan_item part = *run->item;
    run->item = &part;
    run->walk = (struct plan_walk){.pool = ag->open_pool,
                                   .layout = &ag->open_layout,
                                   .layer_bytes = ag->open_layer_bytes,
                                   .own = true};
    run->page0 = 0;
    if (run->sums) run->sums = own + run->nodes.stride;
    const uint32_t end = part.token0 + part.n_tokens;
    for (uint32_t t = part.token0; t < end; t += part.n_tokens) {
        const uint32_t logical = (uint32_t)((length + t) >> shift);
        const uint64_t page_end = (uint64_t)(logical + 1) << shift;
        part.token0 = t;
        part.n_tokens = (uint32_t)pkvi_min_u64(end - t, page_end - (length + t));
        run->rows = part.n_tokens * size;
        run->head_rows = (size_t)run->rows * part.n_heads;
        run->pages = (struct plan_pages){
            .logical = &all->logical[plan_place_of_new(all, logical)],
            .page = &run->lane->open[logical - (uint32_t)(length >> shift)],
            .n = 1,
            .dense = true,
        };
        pkvi_plan_load_rows(run);
        uint32_t flags;
        const float *q = own_queries(run, &flags);
        run->q_in_scratch = NULL;
        pkvi_plan_run_job(run, 0, 1, q, flags, own);
        merge_page(run, own, (t - before.item->token0) * size, before.rows, state);
    }
    *run = before;
    run->q_in_scratch = NULL; /* the scratch holds other rows now */
}
