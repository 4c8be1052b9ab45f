/* attn: one leaf of one item: from tables, masks and rows to a job for the kernels. */
#include "plan.h"

#include <string.h>

void pkvi_plan_set_item(struct plan_run_item *run, uint32_t index)
{
    run->item = &run->pg->items[index];
    run->item_index = index;
    run->lane = &run->pg->lanes[run->item->entry];
    run->rows = run->item->n_tokens * run->ag->group_size;
    run->head_rows = (size_t)run->rows * run->item->n_heads;
    run->walk = (struct plan_walk){
        .pool = run->ag->pool, .layout = &run->ag->layout, .layer_bytes = run->ag->layer_bytes};
    run->pages = run->lane->pages;
    run->page0 = run->item->page0;
    run->page1 = run->item->page1;
    run->sums = NULL;
    run->leaf_max = NULL;
    run->nodes.stride = plan_state_floats(run->head_rows, run->ag->layout.dim_v);
}

void pkvi_plan_token(const struct plan_run_item *run, uint32_t i, uint32_t *entry, uint32_t *token)
{
    const struct plan_item *item = run->item;
    if (item->shared == PKVI_NONE) {
        *entry = item->entry;
        *token = item->token0 + i;
        return;
    }
    const struct plan_shared *shared = &run->pg->shared[item->shared];
    for (uint32_t m = 0;; m++) {
        uint32_t e = run->pg->members[shared->member0 + m], n = run->body->entries[e].n_tokens;
        if (i < n) {
            *entry = e;
            *token = i;
            return;
        }
        i -= n;
    }
}

/* Position of a new token as windows and ALiBi see it. */
static uint64_t query_position(const struct plan_entry *entry, uint32_t token)
{
    return entry->length + (entry->tree && entry->tree->depth ? entry->tree->depth[token] : token);
}

/* ---- rows ----------------------------------------------------------------------------------- */

static void load_queries(struct plan_run_item *run, uint32_t i, uint64_t row)
{
    const struct plan_item *item = run->item;
    const pkvi_tensor *q = &run->call->q;
    uint32_t size = run->ag->group_size, dim = run->ag->layout.dim_k;
    const unsigned char *from = (const unsigned char *)q->data + (ptrdiff_t)row * q->token_stride;
    float *to = PLAN_AT(run, float, q);
    for (uint32_t h = 0; h < item->n_heads; h++)
        for (uint32_t g = 0; g < size; g++) {
            ptrdiff_t head = (ptrdiff_t)(item->head0 + h) * size + g;
            run->plan->model->kernels->convert(
                to + ((size_t)h * run->rows + (size_t)i * size + g) * dim, PKV_DTYPE_F32,
                from + head * q->head_stride, q->dtype, dim);
        }
}

void pkvi_plan_load_rows(struct plan_run_item *run)
{
    const struct plan_item *item = run->item;
    uint32_t size = run->ag->group_size;
    int32_t *q_pos = PLAN_AT(run, int32_t, q_pos);
    run->q_in_scratch = NULL;
    run->flags = run->call->q.dtype == PKV_DTYPE_BF16 ? PKVI_JOB_Q_BF16 : 0;
    for (uint32_t i = 0; i < item->n_tokens; i++) {
        uint32_t e, token;
        pkvi_plan_token(run, i, &e, &token);
        const struct plan_entry *entry = &run->body->entries[e];
        load_queries(run, i, entry->first_row + token);
        for (uint32_t g = 0; g < size; g++)
            q_pos[i * size + g] = (int32_t)query_position(entry, token);
    }
    if (!run->plan->alibi) return;
    float *slopes = PLAN_AT(run, float, slopes);
    for (uint32_t h = 0; h < item->n_heads; h++)
        for (uint32_t r = 0; r < run->rows; r++)
            slopes[h * run->rows + r] = run->plan->alibi[(item->head0 + h) * size + r % size];
}

/* ---- masks ---------------------------------------------------------------------------------- */

/* Slots of pages [a, b) whose positions are below `position`. */
static uint32_t slots_below(const struct plan_run_item *run, uint32_t a, uint32_t b,
                            uint64_t position)
{
    const uint32_t *logical = run->pages.logical;
    uint32_t shift = run->plan->model->page_shift;
    uint64_t page = position >> shift;
    if (page < logical[a]) return 0;
    if (page > logical[b - 1]) return (b - a) << shift;
    uint32_t lo = a, hi = b;
    if (run->pages.dense) {
        lo = a + (uint32_t)(page - logical[a]);
    } else {
        while (lo < hi) {
            uint32_t mid = lo + (hi - lo) / 2;
            if (logical[mid] < page)
                lo = mid + 1;
            else
                hi = mid;
        }
    }
    uint32_t slots = (lo - a) << shift;
    if (logical[lo] == page) slots += (uint32_t)position & ((1u << shift) - 1);
    return slots;
}

/* Positions [*first, *seen) that a new token sees of what is walked. */
static void visible(const struct plan_run_item *run, const struct plan_entry *entry, uint32_t token,
                    uint64_t *first, uint64_t *seen)
{
    const uint32_t window = run->ag->window;
    *seen = entry->length + token + 1;
    *first = 0;
    if (window) {
        uint64_t at = query_position(entry, token) + 1;
        *first = at > window ? at - window : 0;
    }
    if (!run->lane->open) return;
    uint64_t own = (*seen - 1) >> run->plan->model->page_shift << run->plan->model->page_shift;
    if (!run->walk.own)
        *seen = own;
    else if (*first < own)
        *first = own;
}

static void set_bounds(struct plan_run_item *run, uint32_t a, uint32_t b)
{
    const struct plan_item *item = run->item;
    uint32_t size = run->ag->group_size;
    uint32_t *lo = PLAN_AT(run, uint32_t, lo), *hi = PLAN_AT(run, uint32_t, hi);
    uint32_t all = (b - a) << run->plan->model->page_shift;
    uint64_t end = ((uint64_t)run->pages.logical[b - 1] + 1) << run->plan->model->page_shift;
    if (item->shared != PKVI_NONE) { /* whole leaves before every row, no window */
        for (uint32_t r = 0; r < run->rows; r++) {
            lo[r] = 0;
            hi[r] = all;
        }
        return;
    }
    const struct plan_entry *entry = &run->body->entries[item->entry];
    for (uint32_t i = 0; i < item->n_tokens; i++) {
        uint64_t first, seen;
        visible(run, entry, item->token0 + i, &first, &seen);
        uint32_t below = first ? slots_below(run, a, b, first) : 0;
        uint32_t upto = seen >= end ? all : slots_below(run, a, b, seen);
        for (uint32_t g = 0; g < size; g++) {
            lo[i * size + g] = below;
            hi[i * size + g] = upto;
        }
    }
}

/* Bits [from, from + n) of a mask row, shifted down to bit 0. */
static void copy_bits(uint8_t *to, const uint8_t *row, uint32_t row_bits, uint32_t from, uint32_t n)
{
    memset(to, 0, PKVI_LEAF / 8);
    for (uint32_t j = 0; j < n && from + j < row_bits; j++)
        if (row[(from + j) / 8] >> ((from + j) % 8) & 1) to[j / 8] |= (uint8_t)(1u << (j % 8));
}

/* Enters the part of the entry's tree that lies in pages [a, b). */
static void set_tree(struct plan_run_item *run, uint32_t a, uint32_t b, pkvi_attend_job *job)
{
    const struct plan_entry *entry = &run->body->entries[run->item->entry];
    const struct plan_tree *tree = entry->tree;
    uint32_t shift = run->plan->model->page_shift, window = run->ag->window;
    uint64_t start = (uint64_t)run->pages.logical[a] << shift;
    uint64_t end = ((uint64_t)run->pages.logical[b - 1] + 1) << shift;
    if (end <= entry->length) return;
    uint32_t from = start > entry->length ? (uint32_t)(start - entry->length) : 0;
    if (from >= tree->n) return;
    job->tree_slot = slots_below(run, a, b, entry->length + from);
    job->tree_n = pkvi_min_u32(tree->n - from, ((b - a) << shift) - job->tree_slot);
    const uint8_t **rows = PLAN_AT(run, const uint8_t *, tree_rows);
    uint8_t *bits = PLAN_AT(run, uint8_t, tree_bits);
    uint32_t size = run->ag->group_size;
    for (uint32_t i = 0; i < run->item->n_tokens; i++, bits += PKVI_LEAF / 8) {
        uint32_t token = run->item->token0 + i;
        copy_bits(bits, tree->mask + (size_t)token * tree->row_bytes, tree->n, from, job->tree_n);
        for (uint32_t j = 0; window && tree->depth && j < job->tree_n; j++)
            if ((uint64_t)tree->depth[from + j] + window <= tree->depth[token])
                bits[j / 8] &= (uint8_t) ~(1u << (j % 8));
        for (uint32_t g = 0; g < size; g++)
            rows[i * size + g] = bits;
    }
    job->tree_rows = rows;
    if (!run->plan->alibi || !tree->depth) return;
    int32_t *pos = PLAN_AT(run, int32_t, tree_pos);
    for (uint32_t j = 0; j < job->tree_n; j++)
        pos[j] = (int32_t)(entry->length + tree->depth[from + j]);
    job->tree_pos = pos;
}

/* ---- jobs ----------------------------------------------------------------------------------- */

/* A job over pages [a, b) without masks and state. The kernel prefetches along the list of pages,
 * so the list goes on with what this thread reads next, unless page sums need exactly [a, b). */
static void set_pages(struct plan_run_item *run, uint32_t a, uint32_t b, pkvi_attend_job *job)
{
    const void **parts = PLAN_AT(run, const void *, parts);
    size_t offset = (size_t)run->call->layer * run->walk.layer_bytes;
    uint32_t end = b;
    if (!run->sums) end = pkvi_min_u32(run->pages.n, b + plan_ahead_pages(run->plan->model));
    for (uint32_t i = a; i < end; i++)
        parts[i - a] =
            (const unsigned char *)pkvi_pool_address(run->walk.pool, run->pages.page[i]) + offset;
    job->parts = parts;
    job->n_pages = end - a;
    if (!run->plan->alibi) return;
    int32_t *pos = PLAN_AT(run, int32_t, page_pos);
    for (uint32_t i = a; i < end; i++)
        pos[i - a] = (int32_t)(run->pages.logical[i] << run->plan->model->page_shift);
    job->page_pos = pos;
    job->slopes = PLAN_AT(run, float, slopes);
    job->q_pos = PLAN_AT(run, int32_t, q_pos);
}

void pkvi_plan_run_job(struct plan_run_item *run, uint32_t a, uint32_t b, const float *q,
                       uint32_t flags, float *state)
{
    const struct pkvi_attn_group *ag = run->ag;
    uint32_t dim_v = ag->layout.dim_v;
    float scale = run->plan->options.scale;
    pkvi_attend_job job = {
        .layout = run->walk.layout,
        .head0 = run->item->head0,
        .head1 = run->item->head0 + run->item->n_heads,
        .n_rows = run->rows,
        .flags = flags,
        .q = q,
        .q_head_stride = (size_t)run->rows * ag->layout.dim_k,
        .lo = PLAN_AT(run, uint32_t, lo),
        .hi = PLAN_AT(run, uint32_t, hi),
        .scale = scale != 0 ? scale : ag->scale,
        .softcap = run->plan->options.softcap,
        .o = state,
        .o_head_stride = (size_t)run->rows * dim_v,
        .o_stride = dim_v,
        .m = state + run->head_rows * dim_v,
        .l = state + run->head_rows * dim_v + run->head_rows,
        .page_sum = run->sums ? run->sums + (size_t)(a - run->page0) * run->head_rows : NULL,
        .scratch = PLAN_AT(run, void, kernel),
    };
    set_pages(run, a, b, &job);
    set_bounds(run, a, b);
    if (run->item->shared == PKVI_NONE && run->body->entries[run->item->entry].tree)
        set_tree(run, a, b, &job);
    if (run->q_in_scratch == q && run->head_rows <= PKVI_TILE_ROWS) job.flags |= PKVI_JOB_SAME_Q;
    run->q_in_scratch = q;
    run->plan->model->kernels->attend(&job);
}

/* Index into the lane's pages of page i of what is walked. */
static uint32_t lane_page(const struct plan_run_item *run, uint32_t i)
{
    return run->lane->wish.select_pages ? PLAN_AT(run, uint32_t, chosen)[i] : i;
}

/* The run of a COMPACT lane that contains page i of what is walked. */
static const struct plan_run *find_run(const struct plan_run_item *run, uint32_t i)
{
    const struct plan_run *runs = run->pg->runs + run->lane->run0;
    uint32_t lo = 0, hi = run->lane->n_runs, page = lane_page(run, i);
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (runs[mid].page_end <= page)
            lo = mid + 1;
        else
            hi = mid;
    }
    return &runs[lo];
}

uint32_t pkvi_plan_job_end(const struct plan_run_item *run, uint32_t from, uint32_t end)
{
    if (run->lane->n_runs <= 1) return end;
    uint32_t page_end = find_run(run, from)->page_end, to = from + 1;
    if (!run->lane->wish.select_pages) return pkvi_min_u32(page_end, end);
    while (to < end && lane_page(run, to) < page_end)
        to++;
    return to;
}

/* Page sums of a run are relative to the maxima at that time: bring them to the leaf's. */
static void rescale_sums(struct plan_run_item *run, uint32_t a, uint32_t b, const float *then,
                         const float *now, float *scale)
{
    size_t n = run->head_rows, pages = b - a;
    float *sums = run->sums + (size_t)(a - run->page0) * n;
    for (size_t r = 0; r < n; r++)
        scale[r] = then[r] == now[r] ? 0 : then[r] - now[r];
    run->plan->model->kernels->exp2(scale, scale, n);
    for (size_t r = 0; r < n; r++)
        for (size_t p = 0; p < pages; p++)
            sums[r * pages + p] *= scale[r];
}

static void turned_leaf(struct plan_run_item *run, uint32_t a, uint32_t b, float *state)
{
    const struct pkvi_attn_group *ag = run->ag;
    const float *q = PLAN_AT(run, float, q);
    float *turned = PLAN_AT(run, float, q_turned), *maxima = PLAN_AT(run, float, leaf_max);
    const float *m = state + run->head_rows * ag->layout.dim_v;
    uint32_t flags = 0, n_runs = 0;
    for (uint32_t from = a, to; from < b; from = to, flags = PKVI_JOB_ACCUMULATE, n_runs++) {
        const struct plan_run *r = find_run(run, from);
        to = pkvi_plan_job_end(run, from, b);
        const float *use = q;
        if (r->turn != PKVI_NONE) {
            pkvi_plan_turn(&ag->rope, run->pg->turns + (size_t)r->turn * ag->rope.rotary_dims, q,
                           turned, run->head_rows, ag->layout.dim_k);
            use = turned;
            run->q_in_scratch = NULL; /* the same place, other numbers */
        }
        pkvi_plan_run_job(run, from, to, use, flags | (use == q ? run->flags : 0), state);
        if (run->sums) memcpy(maxima + n_runs * run->head_rows, m, run->head_rows * sizeof *m);
    }
    if (!run->sums || n_runs < 2) return;
    n_runs = 0;
    for (uint32_t from = a, to; from < b; from = to, n_runs++) {
        to = pkvi_plan_job_end(run, from, b);
        rescale_sums(run, from, to, maxima + n_runs * run->head_rows, m,
                     PLAN_AT(run, float, mass_scale));
    }
}

void pkvi_plan_leaf(struct plan_run_item *run, uint32_t a, uint32_t b, float *state)
{
    if (run->lane->n_runs > 1)
        turned_leaf(run, a, b, state);
    else
        pkvi_plan_run_job(run, a, b, PLAN_AT(run, float, q), run->flags, state);
}
