/* attn: the reference: every row by itself, in double precision, straight from the tables. It
 * shares with the fast path only the tables, masks and hooks, not items, leaves, merging or
 * kernels. */
#include "plan.h"

#include <math.h>
#include <string.h>

/* Memory for one entry. */
struct work {
    struct pkvi_plan *plan;
    const struct pkvi_attn_call *call;
    const struct pkvi_attn_group *ag;
    const struct plan_entry *entry;
    const struct plan_lane *lane;
    size_t n_pages, n_rows; /* rows of one KV head */
    const void **all, **parts;
    int32_t *page_pos;
    uint32_t *chosen;
    float *q, *turned, *scores;
    double *part_out;
    unsigned char *block;
    size_t bytes;
};

static void *carve(unsigned char *block, size_t *at, size_t n, size_t size)
{
    size_t here = (*at + 15) & ~(size_t)15;
    *at = here + n * size;
    return block ? block + here : NULL;
}

static size_t place(struct work *w, unsigned char *block)
{
    size_t at = 0, pages = w->n_pages, dim = w->ag->layout.dim_k;
    bool select = w->lane->wish.select_pages != 0;
    w->all = carve(block, &at, pages, sizeof *w->all);
    w->parts = carve(block, &at, pages, sizeof *w->parts);
    w->page_pos = carve(block, &at, pages, sizeof *w->page_pos);
    w->chosen = carve(block, &at, pages, sizeof *w->chosen);
    w->q = carve(block, &at, w->n_rows * dim, sizeof *w->q);
    w->turned = carve(block, &at, dim, sizeof *w->turned);
    w->scores = carve(block, &at, select ? pages : 0, sizeof *w->scores);
    w->part_out = carve(block, &at, w->ag->layout.dim_v, sizeof *w->part_out);
    return at + 16;
}

static void load_head(struct work *w, uint32_t head)
{
    const pkvi_tensor *q = &w->call->q;
    uint32_t size = w->ag->group_size, dim = w->ag->layout.dim_k;
    for (size_t r = 0; r < w->n_rows; r++) {
        const unsigned char *from = (const unsigned char *)q->data +
                                    (ptrdiff_t)(w->entry->first_row + r / size) * q->token_stride +
                                    (ptrdiff_t)(head * size + r % size) * q->head_stride;
        w->plan->model->kernels->convert(w->q + r * dim, PKV_DTYPE_F32, from, q->dtype, dim);
    }
}

/* Which pages are read: all, or what the hook chooses. Returns how many. */
static uint32_t choose(struct work *w, uint32_t head)
{
    const struct plan_pages *pages = &w->lane->pages;
    const struct pkvi_attn_model *model = w->plan->model;
    uint32_t n = pages->n;
    for (uint32_t i = 0; i < n; i++)
        w->chosen[i] = i;
    if (w->lane->wish.select_pages) {
        uint32_t n_old = n;
        while (n_old > 0 && pages->logical[n_old - 1] >= w->entry->length >> model->page_shift)
            n_old--;
        struct pkvi_attn_selection selection = {.model = model,
                                                .seq = w->entry->seq,
                                                .group = w->call->group,
                                                .layer = w->call->layer,
                                                .head = head,
                                                .logical = pages->logical,
                                                .parts = w->all,
                                                .n_pages = n,
                                                .n_old = n_old,
                                                .length = w->entry->length,
                                                .n_tokens = w->entry->n_tokens,
                                                .q = w->q,
                                                .n_rows = (uint32_t)w->n_rows,
                                                .scores = w->scores,
                                                .chosen = w->chosen};
        n = w->plan->hooks.select(w->plan->hooks.context, &selection);
    }
    for (uint32_t i = 0; i < n; i++) {
        w->parts[i] = w->all[w->chosen[i]];
        w->page_pos[i] = (int32_t)(pages->logical[w->chosen[i]] << model->page_shift);
    }
    return n;
}

/* What one call of the kernels' reference walks. */
struct span {
    const pkvi_layout *layout;
    const void *const *parts;
    const int32_t *pos; /* of each page's first slot */
    uint32_t n;
    uint64_t first, end; /* positions that count: the row's page, or all before it */
};

/* Slots of a span's pages whose positions are below `position`: by counting. */
static uint32_t below(const struct work *w, const struct span *span, uint64_t position)
{
    uint32_t slots = 0, tokens = w->plan->model->page_tokens;
    for (uint32_t i = 0; i < span->n; i++) {
        uint64_t start = (uint64_t)span->pos[i];
        if (position >= start + tokens)
            slots += tokens;
        else if (position > start)
            slots += (uint32_t)(position - start);
    }
    return slots;
}

/* One row over the pages of a span. */
static void row_job(struct work *w, uint32_t head, size_t r, const float *q,
                    const struct span *span, double *out, double *lse)
{
    const struct plan_entry *entry = w->entry;
    const struct plan_tree *tree = entry->tree;
    uint32_t size = w->ag->group_size, token = (uint32_t)(r / size), window = w->ag->window;
    uint64_t at = entry->length + (tree && tree->depth ? tree->depth[token] : token);
    uint64_t first = window && at + 1 > window ? at + 1 - window : 0;
    uint64_t end = pkvi_min_u64(entry->length + token + 1, span->end);
    if (first < span->first) first = span->first;
    uint32_t lo = below(w, span, first), hi = below(w, span, end);
    float slope = w->plan->alibi ? w->plan->alibi[head * size + r % size] : 0;
    int32_t q_pos = (int32_t)at;
    float scale = w->plan->options.scale;
    pkvi_attend_job job = {.layout = span->layout,
                           .parts = span->parts,
                           .n_pages = span->n,
                           .head0 = head,
                           .head1 = head + 1,
                           .n_rows = 1,
                           .q = q,
                           .q_head_stride = w->ag->layout.dim_k,
                           .lo = &lo,
                           .hi = &hi,
                           .scale = scale != 0 ? scale : w->ag->scale,
                           .softcap = w->plan->options.softcap,
                           .slopes = w->plan->alibi ? &slope : NULL,
                           .q_pos = &q_pos,
                           .page_pos = span->pos};
    uint8_t bits[PKVI_TREE_TOKENS / 8];
    int32_t tree_pos[PKVI_TREE_TOKENS];
    const uint8_t *rows = bits;
    if (tree) {
        uint32_t from = 0;
        /* New tokens in pages before a belong to other calls. */
        while (from < tree->n && (!span->n || entry->length + from < (uint64_t)span->pos[0]))
            from++;
        job.tree_slot = below(w, span, entry->length + from);
        uint32_t room = span->n * w->plan->model->page_tokens - job.tree_slot;
        job.tree_n = tree->n - from < room ? tree->n - from : room;
        memset(bits, 0, sizeof bits);
        for (uint32_t j = 0; j < job.tree_n; j++) {
            const uint8_t *row = tree->mask + (size_t)token * tree->row_bytes;
            uint32_t other = from + j;
            bool seen = row[other / 8] >> (other % 8) & 1;
            if (window && tree->depth &&
                tree->depth[other] + (uint64_t)window <= tree->depth[token])
                seen = false;
            if (seen) bits[j / 8] |= (uint8_t)(1u << (j % 8));
            tree_pos[j] = (int32_t)(entry->length + (tree->depth ? tree->depth[other] : other));
        }
        job.tree_rows = &rows;
        job.tree_pos = tree_pos;
    }
    pkvi_reference_row(&job, head, 0, -INFINITY, out, lse, NULL, NULL);
}

/* End of the chosen pages that see the query turned in the same way as page `a`; *turn = how. */
static uint32_t same_turn(const struct work *w, const struct plan_group *pg, uint32_t a, uint32_t n,
                          uint32_t *turn)
{
    *turn = PKVI_NONE;
    if (w->lane->n_runs <= 1) return n;
    const struct plan_run *runs = pg->runs + w->lane->run0;
    uint32_t i = 0, b = a;
    while (runs[i].page_end <= w->chosen[a])
        i++;
    *turn = runs[i].turn;
    while (b < n && w->chosen[b] < runs[i].page_end)
        b++;
    return b;
}

/* Adds one row over the pages of a span, with the query turned as that run wants it. */
static void add_span(struct work *w, const struct plan_group *pg, uint32_t head, size_t r,
                     uint32_t turn, const struct span *span, double *out, double *lse)
{
    uint32_t dim = w->ag->layout.dim_k, dim_v = w->ag->layout.dim_v;
    const float *use = w->q + r * dim;
    if (turn != PKVI_NONE) {
        pkvi_plan_turn(&w->ag->rope, pg->turns + (size_t)turn * w->ag->rope.rotary_dims, use,
                       w->turned, 1, dim);
        use = w->turned;
    }
    double part_lse;
    row_job(w, head, r, use, span, w->part_out, &part_lse);
    if (part_lse == -INFINITY) return;
    double top = part_lse > *lse ? part_lse : *lse;
    double merged = top + log(exp(part_lse - top) + exp(*lse - top));
    double x = exp(*lse - merged), y = exp(part_lse - merged);
    for (uint32_t i = 0; i < dim_v; i++)
        out[i] = (x != 0 ? out[i] * x : 0) + w->part_out[i] * y;
    *lse = merged;
}

/* A quantised group: the row's own page, open. */
static void add_own_page(struct work *w, const struct plan_group *pg, uint32_t head, size_t r,
                         double *out, double *lse)
{
    const uint32_t shift = w->plan->model->page_shift;
    const uint64_t length = w->entry->length, logical = (length + r / w->ag->group_size) >> shift;
    const void *part = (const unsigned char *)pkvi_pool_address(
                           w->ag->open_pool, w->lane->open[logical - (length >> shift)]) +
                       (size_t)w->call->layer * w->ag->open_layer_bytes;
    const int32_t pos = (int32_t)(logical << shift);
    const struct span span = {&w->ag->open_layout,    &part, &pos, 1, (uint64_t)pos,
                              (uint64_t)INT32_MAX + 1};
    uint32_t turn = PKVI_NONE;
    if (w->lane->n_runs > 1) turn = pg->runs[w->lane->run0 + w->lane->n_runs - 1].turn;
    add_span(w, pg, head, r, turn, &span, out, lse);
}

static void one_row(struct work *w, const struct plan_group *pg, uint32_t head, size_t r,
                    uint32_t n, double *out, double *lse)
{
    uint32_t dim_v = w->ag->layout.dim_v, size = w->ag->group_size;
    double sink = -INFINITY, all = -INFINITY;
    if (w->plan->sinks)
        sink = w->plan->sinks[(size_t)w->call->model_layer * w->plan->options.sinks_stride +
                              head * size + r % size];
    memset(out, 0, dim_v * sizeof *out);
    const uint32_t shift = w->plan->model->page_shift;
    uint64_t end = (uint64_t)INT32_MAX + 1;
    if (w->lane->open) end = (w->entry->length + r / size) >> shift << shift;
    for (uint32_t a = 0, b; a < n; a = b) {
        uint32_t turn;
        b = same_turn(w, pg, a, n, &turn);
        const struct span span = {&w->ag->layout, w->parts + a, w->page_pos + a, b - a, 0, end};
        add_span(w, pg, head, r, turn, &span, out, &all);
    }
    if (w->lane->open) add_own_page(w, pg, head, r, out, &all);
    if (sink != -INFINITY) {
        double top = sink > all ? sink : all, merged = top + log(exp(sink - top) + exp(all - top));
        double x = exp(all - merged);
        for (uint32_t i = 0; i < dim_v; i++)
            out[i] = all == -INFINITY ? 0 : out[i] * x;
        all = merged;
    }
    *lse = all;
}

static pkv_status one_entry(struct work *w, const struct plan_group *pg, double *out, double *lse)
{
    struct pkvi_mem *mem = w->plan->mem;
    w->n_pages = w->lane->pages.n ? w->lane->pages.n : 1;
    w->n_rows = (size_t)w->entry->n_tokens * w->ag->group_size;
    w->bytes = place(w, NULL);
    w->block = pkvi_mem_alloc(mem, w->bytes);
    if (!w->block) return PKV_ENOMEM;
    place(w, w->block);
    for (uint32_t i = 0; i < w->lane->pages.n; i++)
        w->all[i] = (const unsigned char *)pkvi_pool_address(w->ag->pool, w->lane->pages.page[i]) +
                    (size_t)w->call->layer * w->ag->layer_bytes;
    uint32_t size = w->ag->group_size, heads = w->ag->kv_heads;
    for (uint32_t h = 0; h < heads; h++) {
        load_head(w, h);
        uint32_t n = choose(w, h);
        for (size_t r = 0; r < w->n_rows; r++) {
            size_t at =
                ((size_t)w->entry->first_row + r / size) * heads * size + h * size + r % size;
            double row_lse;
            one_row(w, pg, h, r, n, out + at * w->ag->layout.dim_v, &row_lse);
            if (lse) lse[at] = row_lse;
        }
    }
    pkvi_mem_free(mem, w->block, w->bytes);
    return PKV_OK;
}

pkv_status pkvi_plan_reference(struct pkvi_plan *plan, const struct pkvi_attn_call *call,
                               double *out, double *lse)
{
    const struct plan_body *body = plan_front(plan);
    const struct plan_group *pg = &body->groups[call->group];
    for (uint32_t e = 0; e < body->n_entries; e++) {
        struct work w = {.plan = plan,
                         .call = call,
                         .ag = &plan->model->groups[call->group],
                         .entry = &body->entries[e],
                         .lane = &pg->lanes[e]};
        pkv_status status = one_entry(&w, pg, out, lse);
        if (status != PKV_OK) return status;
    }
    return PKV_OK;
}
