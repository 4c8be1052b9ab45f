/* attn: what happens to the states of an item that is not finished by one thread alone: they are
 * left in the plan's scratch, and whoever completes the item's parts joins them. */
#include "plan.h"

#include <string.h>

/* ---- leaving -------------------------------------------------------------------------------- */

/* Place of the states that worker w leaves behind for an item: 1 = it began there within the item,
 * i.e. the item began with an earlier worker; 0 = the item goes on with a later worker only. */
static uint32_t flush_side(const struct plan_run_item *run, uint32_t w)
{
    struct plan_place at = pkvi_plan_share(run->plan->model, run->pg, w, run->n_workers);
    return at.item == run->item_index && at.leaf > run->item->leaf0;
}

static size_t flush_index(const struct plan_run_item *run, uint32_t w)
{
    return (size_t)w * 2 + flush_side(run, w);
}

static uint32_t *flush_leaf(const struct plan_run_item *run, size_t index)
{
    return run->slot->flush_leaf + index * (1 + (size_t)run->plan->laid.slot_nodes);
}

static float *flush_state(const struct plan_run_item *run, size_t index, uint32_t node)
{
    const struct plan_sizes *s = &run->plan->laid;
    return run->slot->flush + (index * s->slot_nodes + node) * s->slot_state;
}

static void flush_nodes(struct plan_run_item *run)
{
    size_t index = flush_index(run, run->worker);
    uint32_t *leaf = flush_leaf(run, index);
    leaf[0] = run->nodes.n;
    for (uint32_t i = 0; i < run->nodes.n; i++) {
        leaf[1 + i] = run->nodes.leaf[i];
        memcpy(flush_state(run, index, i), pkvi_nodes_state(&run->nodes, i),
               run->nodes.stride * sizeof(float));
    }
}

/* The nodes of all workers that had a part of run->item, in order, on an empty stack. */
static void gather_parts(struct plan_run_item *run)
{
    uint32_t first, last;
    pkvi_plan_parts(run->plan->model, run->pg, run->item_index, run->n_workers, &first, &last);
    for (uint32_t w = first; w <= last; w++) {
        if (plan_idle(run->plan->model, run->pg, w, run->n_workers)) continue;
        size_t index = flush_index(run, w);
        const uint32_t *leaf = flush_leaf(run, index);
        for (uint32_t i = 0; i < leaf[0]; i++)
            memcpy(pkvi_nodes_push(&run->nodes, leaf[1 + i]), flush_state(run, index, i),
                   run->nodes.stride * sizeof(float));
    }
}

/* ---- areas of nodes left behind ------------------------------------------------------------- */

/* Node of a shared tile: o [kv_heads][rows][dim_v], m and l [kv_heads][rows]. */
struct tile_node {
    float *o, *m, *l;
};

static struct tile_node tile_node(const struct plan_run_item *run, const struct plan_shared *shared,
                                  uint32_t node)
{
    size_t n = (size_t)shared->n_tokens * run->ag->group_size * run->ag->kv_heads;
    uint32_t dim = run->ag->layout.dim_v;
    float *o = run->slot->shared + shared->area + node * plan_state_floats(n, dim);
    return (struct tile_node){o, o + n * dim, o + n * dim + n};
}

/* Puts the nodes of a whole shared item into its tile's area. */
static void store_shared(struct plan_run_item *run)
{
    const struct plan_shared *shared = &run->pg->shared[run->item->shared];
    uint32_t dim = run->ag->layout.dim_v;
    size_t at = (size_t)run->item->head0 * run->rows, n = run->head_rows;
    PKVI_ASSERT(run->nodes.n == shared->n_nodes);
    for (uint32_t i = 0; i < run->nodes.n; i++) {
        const float *state = pkvi_nodes_state(&run->nodes, i);
        struct tile_node to = tile_node(run, shared, i);
        memcpy(to.o + at * dim, state, n * dim * sizeof *state);
        memcpy(to.m + at, state + n * dim, n * sizeof *state);
        memcpy(to.l + at, state + n * dim + n, n * sizeof *state);
    }
}

/* The rows of run->item out of one node of a shared tile that begins at `token0` with them. */
static void load_shared(const struct plan_run_item *run, const struct plan_shared *shared,
                        uint32_t token0, uint32_t node, float *state)
{
    uint32_t dim = run->ag->layout.dim_v, rows = run->rows;
    size_t tile_rows = (size_t)shared->n_tokens * run->ag->group_size, n = run->head_rows;
    struct tile_node from = tile_node(run, shared, node);
    for (uint32_t h = 0; h < run->item->n_heads; h++) {
        size_t at = (run->item->head0 + h) * tile_rows + (size_t)token0 * run->ag->group_size;
        size_t to = (size_t)h * rows;
        memcpy(state + to * dim, from.o + at * dim, (size_t)rows * dim * sizeof *state);
        memcpy(state + n * dim + to, from.m + at, rows * sizeof *state);
        memcpy(state + n * dim + n + to, from.l + at, rows * sizeof *state);
    }
}

/* An item that waits for shared tiles, done by one worker: kept in an area of its own, since a
 * worker may have any number of such items. */
static void store_own(struct plan_run_item *run)
{
    PKVI_ASSERT(run->nodes.n == run->item->n_nodes);
    for (uint32_t i = 0; i < run->nodes.n; i++)
        memcpy(run->slot->shared + run->item->area + i * run->nodes.stride,
               pkvi_nodes_state(&run->nodes, i), run->nodes.stride * sizeof(float));
}

/* ---- joining -------------------------------------------------------------------------------- */

static uint32_t count_links(const struct plan_run_item *run, uint32_t *links)
{
    uint32_t n = run->lane->n_links, at = run->lane->link;
    for (uint32_t i = n; i-- > 0; at = run->pg->links[at].before)
        links[i] = at;
    return n;
}

/* Parts that must be there before run->item can be joined: those of its own workers, and every
 * shared item that computes some of its heads. */
static uint32_t parts_expected(const struct plan_run_item *run)
{
    uint32_t first, last, links[PKVI_CASCADE_DEPTH], n = count_links(run, links);
    uint32_t parts =
        pkvi_plan_parts(run->plan->model, run->pg, run->item_index, run->n_workers, &first, &last);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t per = run->pg->shared[run->pg->links[links[i]].shared].heads_per_item;
        uint32_t end = run->item->head0 + run->item->n_heads;
        parts += (end - 1) / per - run->item->head0 / per + 1;
    }
    return parts;
}

static void join(struct plan_run_item *run)
{
    uint32_t links[PKVI_CASCADE_DEPTH], n = count_links(run, links), first, last;
    pkvi_nodes_start(&run->nodes, false, 0);
    for (uint32_t i = 0; i < n; i++) {
        const struct plan_link *link = &run->pg->links[links[i]];
        const struct plan_shared *shared = &run->pg->shared[link->shared];
        for (uint32_t k = 0; k < shared->n_nodes; k++)
            load_shared(run, shared, link->token0, k,
                        pkvi_nodes_push(&run->nodes, run->pg->node_leaf[shared->node0 + k]));
    }
    uint32_t parts =
        pkvi_plan_parts(run->plan->model, run->pg, run->item_index, run->n_workers, &first, &last);
    if (parts > 1) {
        gather_parts(run);
    } else {
        for (uint32_t k = 0; k < run->item->n_nodes; k++)
            memcpy(pkvi_nodes_push(&run->nodes, run->pg->node_leaf[run->item->node0 + k]),
                   run->slot->shared + run->item->area + k * run->nodes.stride,
                   run->nodes.stride * sizeof(float));
    }
    if (run->item->mass) {
        run->sums = run->slot->sums + run->item->sums;
        run->leaf_max = run->sums + run->head_rows * (run->item->page1 - run->item->page0);
    }
    pkvi_plan_finish(run);
}

/* Counts one part of run->item in; joins if that was the last. The counter is 0 again afterwards,
 * so the next layer can use it. */
static bool arrive(struct plan_run_item *run, uint32_t expected)
{
    atomic_uint *arrived = &run->slot->arrived[run->item_index];
    if (atomic_fetch_add_explicit(arrived, 1, memory_order_acq_rel) + 1 < expected) return false;
    atomic_store_explicit(arrived, 0, memory_order_relaxed);
    return true;
}

/* A shared item is complete: counts in at the own items of all its members. */
static void tell_members(struct plan_run_item *run)
{
    const struct plan_shared *shared = &run->pg->shared[run->item->shared];
    uint32_t head0 = run->item->head0, end = head0 + run->item->n_heads;
    for (uint32_t m = 0; m < shared->n_members; m++) {
        const struct plan_lane *lane = &run->pg->lanes[run->pg->members[shared->member0 + m]];
        for (uint32_t i = head0 / lane->heads_per_item; i * lane->heads_per_item < end; i++) {
            pkvi_plan_set_item(run, lane->item0 + i);
            if (arrive(run, parts_expected(run))) join(run);
        }
    }
}

void pkvi_plan_leave(struct plan_run_item *run, bool whole)
{
    if (run->item->shared == PKVI_NONE) {
        if (whole)
            store_own(run);
        else
            flush_nodes(run);
        if (arrive(run, parts_expected(run))) join(run);
        return;
    }
    if (!whole) {
        uint32_t first, last;
        flush_nodes(run);
        if (!arrive(run, pkvi_plan_parts(run->plan->model, run->pg, run->item_index, run->n_workers,
                                         &first, &last)))
            return;
        pkvi_nodes_start(&run->nodes, run->item->left_open, run->item->leaf0 - 1);
        gather_parts(run);
    }
    store_shared(run);
    tell_members(run);
}

/* ---- finishing ------------------------------------------------------------------------------ */

/* Addresses of the item's output rows and LSEs, and its sinks. */
static const float *set_outputs(struct plan_run_item *run, void **out, float **lse)
{
    const struct plan_item *item = run->item;
    const struct pkvi_attn_call *call = run->call;
    uint32_t size = run->ag->group_size;
    const float *layer_sinks =
        run->plan->sinks
            ? run->plan->sinks + (size_t)call->model_layer * run->plan->options.sinks_stride
            : NULL;
    float *sinks = layer_sinks ? PLAN_AT(run, float, sinks) : NULL;
    uint64_t first = run->body->entries[item->entry].first_row + item->token0;
    for (uint32_t h = 0; h < item->n_heads; h++)
        for (uint32_t r = 0; r < run->rows; r++) {
            size_t at = (size_t)h * run->rows + r;
            uint64_t row = first + r / size;
            uint32_t head = (item->head0 + h) * size + r % size;
            out[at] = (unsigned char *)call->out.data + (ptrdiff_t)row * call->out.token_stride +
                      (ptrdiff_t)head * call->out.head_stride;
            lse[at] = call->lse ? call->lse + row * run->ag->kv_heads * size + head : NULL;
            if (sinks) sinks[at] = layer_sinks[head];
        }
    return sinks;
}

void pkvi_plan_finish(struct plan_run_item *run)
{
    uint32_t dim = run->ag->layout.dim_v;
    size_t n = run->head_rows;
    void **out = PLAN_AT(run, void *, out);
    float **lse = PLAN_AT(run, float *, lse);
    const float *sinks = set_outputs(run, out, lse);
    if (run->nodes.n == 0) { /* nothing is held that any row sees */
        float *state = pkvi_nodes_push(&run->nodes, 0);
        memset(state, 0, run->nodes.stride * sizeof *state);
        for (size_t r = 0; r < n; r++)
            state[n * dim + r] = -__builtin_inff();
    }
    pkvi_nodes_finish(&run->nodes);
    float *state = pkvi_nodes_state(&run->nodes, 0);
    if (run->lane->open) pkvi_plan_add_own(run, state);
    pkvi_finish_job job = {
        .o = state,
        .o_stride = dim,
        .m = state + n * dim,
        .l = state + n * dim + n,
        .sinks = sinks,
        .n_rows = (uint32_t)n,
        .dim = dim,
        .dtype = run->call->out.dtype,
        .out = out,
        .lse = lse,
    };
    run->plan->model->kernels->finish(&job);
    if (run->sums) pkvi_plan_finish_mass(run, job.m, job.l, sinks);
}
