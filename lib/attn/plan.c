/* attn: plans: making, trees, building. */
#include "plan.h"

#include <string.h>

/* ---- memory --------------------------------------------------------------------------------- */

static void free_trees(struct pkvi_mem *mem, struct plan_tree *tree)
{
    while (tree) {
        struct plan_tree *next = tree->next;
        pkvi_mem_free(mem, tree, tree->bytes);
        tree = next;
    }
}

static void free_group(struct pkvi_mem *mem, const struct pkvi_attn_group *ag, struct plan_group *g)
{
    pkvi_mem_free_array(mem, g->lanes, g->lane_capacity, sizeof *g->lanes);
    pkvi_mem_free_array(mem, g->items, g->item_capacity, sizeof *g->items);
    pkvi_mem_free_array(mem, g->cost, g->cost_capacity, sizeof *g->cost);
    pkvi_mem_free_array(mem, g->shared, g->shared_capacity, sizeof *g->shared);
    pkvi_mem_free_array(mem, g->links, g->link_capacity, sizeof *g->links);
    pkvi_mem_free_array(mem, g->members, g->member_capacity, sizeof *g->members);
    pkvi_mem_free_array(mem, g->node_leaf, g->node_leaf_capacity, sizeof *g->node_leaf);
    pkvi_mem_free_array(mem, g->runs, g->run_capacity, sizeof *g->runs);
    pkvi_mem_free_array(mem, g->turns, g->turn_capacity,
                        sizeof(float) * (size_t)(ag->rope.rotary_dims ? ag->rope.rotary_dims : 1));
    pkvi_mem_free_array(mem, g->write_first, g->write_capacity, sizeof *g->write_first);
    pkvi_mem_free_array(mem, g->dense_copy, g->dense_capacity, sizeof *g->dense_copy);
}

static void free_body(struct pkvi_plan *plan, struct plan_body *body)
{
    if (body->groups)
        for (uint32_t g = 0; g < plan->model->n_groups; g++)
            free_group(plan->mem, &plan->model->groups[g], &body->groups[g]);
    pkvi_mem_free_array(plan->mem, body->groups, plan->model->n_groups, sizeof *body->groups);
    pkvi_mem_free_array(plan->mem, body->entries, body->entry_capacity, sizeof *body->entries);
    free_trees(plan->mem, body->trees);
}

/* ---- making --------------------------------------------------------------------------------- */

static float *copy_floats(struct pkvi_mem *mem, const float *from, size_t n)
{
    float *to = pkvi_mem_array(mem, n, sizeof *to);
    if (to) memcpy(to, from, n * sizeof *to);
    return to;
}

static bool copy_options(struct pkvi_plan *plan, const pkv_plan_options *options, uint32_t n_layers,
                         uint32_t max_q_heads)
{
    plan->options = *options;
    plan->options.alibi_slopes = NULL;
    plan->options.sinks = NULL;
    if (options->alibi_slopes) {
        plan->alibi_n = max_q_heads;
        plan->alibi = copy_floats(plan->mem, options->alibi_slopes, plan->alibi_n);
        if (!plan->alibi) return false;
    }
    if (options->sinks) {
        /* The last layer's row may be shorter than the stride: copy row by row, packed. */
        plan->sinks_n = (size_t)n_layers * max_q_heads;
        plan->sinks = pkvi_mem_array(plan->mem, plan->sinks_n, sizeof(float));
        if (!plan->sinks) return false;
        for (uint32_t i = 0; i < n_layers; i++)
            memcpy(plan->sinks + (size_t)i * max_q_heads,
                   options->sinks + (size_t)i * options->sinks_stride, max_q_heads * sizeof(float));
        plan->options.sinks_stride = max_q_heads;
    }
    return true;
}

pkv_status pkvi_plan_make(const struct pkvi_attn_model *model, const pkv_plan_options *options,
                          uint32_t n_layers, uint32_t max_q_heads, uint32_t max_workers,
                          const struct pkvi_attn_hooks *hooks, struct pkvi_plan **out)
{
    struct pkvi_plan *plan = pkvi_mem_zalloc(model->mem, sizeof *plan);
    if (!plan) return PKV_ENOMEM;
    plan->model = model;
    plan->mem = model->mem;
    plan->max_workers = max_workers;
    if (hooks) plan->hooks = *hooks;
    bool ok = copy_options(plan, options, n_layers, max_q_heads);
    for (int i = 0; ok && i < 2; i++) {
        plan->body[i].groups =
            pkvi_mem_array(plan->mem, model->n_groups, sizeof *plan->body[i].groups);
        ok = plan->body[i].groups;
    }
    if (ok) {
        plan->slots =
            pkvi_mem_array(plan->mem, plan->options.concurrent_layers, sizeof *plan->slots);
        ok = plan->slots;
    }
    if (!ok) {
        pkvi_plan_free(plan);
        return PKV_ENOMEM;
    }
    *out = plan;
    return PKV_OK;
}

void pkvi_plan_free(struct pkvi_plan *plan)
{
    if (!plan) return;
    struct pkvi_mem *mem = plan->mem;
    free_body(plan, &plan->body[0]);
    free_body(plan, &plan->body[1]);
    free_trees(mem, plan->pending);
    pkvi_mem_free_array(mem, plan->alibi, plan->alibi_n, sizeof(float));
    pkvi_mem_free_array(mem, plan->sinks, plan->sinks_n, sizeof(float));
    pkvi_mem_free_array(mem, plan->slots, plan->options.concurrent_layers, sizeof *plan->slots);
    pkvi_mem_free(mem, plan->block, plan->block_bytes);
    pkvi_mem_free_array(mem, plan->sort, plan->sort_capacity, sizeof *plan->sort);
    pkvi_mem_free(mem, plan, sizeof *plan);
}

/* ---- trees ---------------------------------------------------------------------------------- */

static bool mask_ok(uint32_t n, const uint8_t *mask)
{
    size_t row_bytes = (n + 7) / 8;
    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *row = mask + i * row_bytes;
        if (!(row[i / 8] >> (i % 8) & 1)) return false;
        for (uint32_t j = i + 1; j < n; j++)
            if (row[j / 8] >> (j % 8) & 1) return false;
    }
    return true;
}

pkv_status pkvi_plan_tree(struct pkvi_plan *plan, uint32_t entry, uint32_t n, const uint8_t *mask,
                          const uint32_t *positions)
{
    if (n == 0 || n > PKVI_TREE_TOKENS) return PKV_ERANGE;
    if (!mask_ok(n, mask)) return PKV_EINVAL;
    for (uint32_t i = 0; positions && i < n; i++)
        if (positions[i] > i) return PKV_EINVAL; /* a parent comes before its children */
    size_t row_bytes = (n + 7) / 8;
    size_t depth_bytes = positions ? n * sizeof(uint32_t) : 0;
    size_t bytes = sizeof(struct plan_tree) + depth_bytes + n * row_bytes;
    struct plan_tree *tree = pkvi_mem_zalloc(plan->mem, bytes);
    if (!tree) return PKV_ENOMEM;
    tree->entry = entry;
    tree->n = n;
    tree->row_bytes = (uint32_t)row_bytes;
    tree->bytes = bytes;
    unsigned char *tail = (unsigned char *)(tree + 1);
    if (positions) {
        tree->depth = (uint32_t *)(void *)tail;
        memcpy(tree->depth, positions, depth_bytes);
    }
    tree->mask = tail + depth_bytes;
    memcpy(tree->mask, mask, n * row_bytes);
    for (struct plan_tree **at = &plan->pending; *at; at = &(*at)->next) {
        if ((*at)->entry != entry) continue;
        struct plan_tree *old = *at; /* the later call replaces the earlier */
        *at = old->next;
        pkvi_mem_free(plan->mem, old, old->bytes);
        break;
    }
    tree->next = plan->pending;
    plan->pending = tree;
    return PKV_OK;
}

/* ---- building ------------------------------------------------------------------------------- */

static pkv_status load_entries(struct pkvi_plan *plan, struct plan_body *body,
                               const struct pkvi_attn_batch *batch)
{
    void *entries = body->entries;
    bool ok = pkvi_plan_room(plan->mem, &entries, &body->entry_capacity, batch->n_entries,
                             sizeof *body->entries);
    body->entries = entries;
    if (!ok) return PKV_ENOMEM;
    body->n_entries = batch->n_entries;
    body->n_rows = batch->n_rows;
    for (uint32_t i = 0; i < batch->n_entries; i++) {
        struct pkvi_attn_entry from;
        batch->entry(batch->context, i, &from);
        /* Positions are 32-bit in the kernels. */
        if (from.length + from.n_tokens > INT32_MAX - PKVI_LEAF) return PKV_ERANGE;
        body->entries[i] = (struct plan_entry){.length = from.length,
                                               .first_row = from.first_row,
                                               .n_tokens = from.n_tokens,
                                               .seq = from.seq};
    }
    for (const struct plan_tree *tree = plan->pending; tree; tree = tree->next) {
        if (tree->entry >= body->n_entries) return PKV_EINVAL;
        struct plan_entry *entry = &body->entries[tree->entry];
        if (entry->n_tokens != tree->n) return PKV_EINVAL;
        entry->tree = tree;
    }
    return PKV_OK;
}

/* Points a lane at its table's arrays, or at a copy without the holes. */
static void load_pages(struct plan_group *pg, const struct pkvi_table *table,
                       struct plan_pages *pages)
{
    uint32_t n = table->end - table->head;
    pages->n = table->resident;
    if (n == table->resident) {
        pages->logical = table->logical + table->head;
        pages->page = table->page + table->head;
    } else {
        uint32_t *logical = pg->dense_copy + pg->n_dense_copy, *page = logical + table->resident;
        pg->n_dense_copy += 2 * (size_t)table->resident;
        struct pkvi_resident at;
        uint32_t cursor = 0;
        for (uint32_t i = 0; pkvi_table_next(table, &cursor, &at); i++) {
            logical[i] = at.logical;
            page[i] = at.page;
        }
        pages->logical = logical;
        pages->page = page;
    }
    pages->dense =
        pages->n == 0 || pages->logical[pages->n - 1] - pages->logical[0] == pages->n - 1;
}

static pkv_status load_lanes(struct pkvi_plan *plan, struct plan_body *body, uint32_t g,
                             const struct pkvi_attn_batch *batch)
{
    struct plan_group *pg = &body->groups[g];
    const struct pkvi_attn_group *ag = &plan->model->groups[g];
    void *lanes = pg->lanes;
    bool ok =
        pkvi_plan_room(plan->mem, &lanes, &pg->lane_capacity, batch->n_entries, sizeof *pg->lanes);
    pg->lanes = lanes;
    if (!ok) return PKV_ENOMEM;

    uint64_t copied = 0;
    struct pkvi_attn_entry entry;
    for (uint32_t i = 0; i < batch->n_entries; i++) {
        batch->entry(batch->context, i, &entry);
        const struct pkvi_table *table = &entry.tables[g];
        if (table->end - table->head != table->resident) copied += 2 * (uint64_t)table->resident;
    }
    void *copy = pg->dense_copy;
    ok = pkvi_plan_room(plan->mem, &copy, &pg->dense_capacity, copied, sizeof *pg->dense_copy);
    pg->dense_copy = copy;
    if (!ok) return PKV_ENOMEM;

    pg->n_dense_copy = 0;
    for (uint32_t i = 0; i < batch->n_entries; i++) {
        struct plan_lane *lane = &pg->lanes[i];
        batch->entry(batch->context, i, &entry);
        *lane = (struct plan_lane){0};
        load_pages(pg, &entry.tables[g], &lane->pages);
        if (ag->open_pool) lane->open = entry.open[g];
        lane->wish.n_tokens = entry.n_tokens;
        if (plan->hooks.wish) plan->hooks.wish(plan->hooks.context, entry.seq, g, &lane->wish);
        if (lane->wish.compact && ag->rope.rotary_dims == 0) lane->wish.compact = false;
    }
    return PKV_OK;
}

static pkv_status build_group(struct pkvi_plan *plan, struct plan_body *body, uint32_t g,
                              const struct pkvi_attn_batch *batch)
{
    struct plan_group *pg = &body->groups[g];
    pg->n_items = pg->n_shared = pg->n_links = pg->n_members = 0;
    pg->n_node_leaf = pg->n_runs = pg->n_turns = 0;
    pkv_status status = load_lanes(plan, body, g, batch);
    for (uint32_t i = 0; status == PKV_OK && i < body->n_entries; i++)
        if (pg->lanes[i].wish.compact) status = pkvi_plan_build_runs(plan, body, g, i);
    if (status == PKV_OK && plan->options.cascade) status = pkvi_plan_find_shared(plan, body, g);
    if (status == PKV_OK) status = pkvi_plan_build_items(plan, body, g);
    return status;
}

pkv_status pkvi_plan_make_items(struct pkvi_plan *plan, const struct pkvi_attn_batch *batch)
{
    struct plan_body *body = &plan->body[plan->front ^ 1];
    body->built = false;
    memset(&body->sizes, 0, sizeof body->sizes);
    pkv_status status = load_entries(plan, body, batch);
    for (uint32_t g = 0; status == PKV_OK && g < plan->model->n_groups; g++)
        status = build_group(plan, body, g, batch);
    if (status == PKV_OK) status = pkvi_plan_lay_out(plan, &body->sizes);
    if (status != PKV_OK) return status;

    free_trees(plan->mem, body->trees);
    body->trees = plan->pending;
    plan->pending = NULL;
    body->built = true;
    plan->front ^= 1;
    return PKV_OK;
}

static uint64_t group_bytes(const struct pkvi_attn_group *ag, const struct plan_group *g)
{
    return g->lane_capacity * sizeof *g->lanes + g->item_capacity * sizeof *g->items +
           g->cost_capacity * sizeof *g->cost + g->shared_capacity * sizeof *g->shared +
           g->link_capacity * sizeof *g->links + g->member_capacity * sizeof *g->members +
           g->node_leaf_capacity * sizeof *g->node_leaf + g->run_capacity * sizeof *g->runs +
           g->turn_capacity * sizeof(float) * (uint64_t)ag->rope.rotary_dims +
           g->write_capacity * sizeof *g->write_first + g->dense_capacity * sizeof *g->dense_copy;
}

void pkvi_plan_figures(const struct pkvi_plan *plan, struct pkvi_plan_figures *figures)
{
    struct pkvi_plan_figures f = {.scratch_bytes = plan->block_bytes,
                                  .metadata_bytes = sizeof *plan};
    for (int b = 0; b < 2; b++)
        for (uint32_t g = 0; g < plan->model->n_groups; g++)
            f.metadata_bytes += group_bytes(&plan->model->groups[g], &plan->body[b].groups[g]);
    const struct plan_body *body = plan_front(plan);
    for (uint32_t g = 0; body->built && g < plan->model->n_groups; g++) {
        const struct plan_group *pg = &body->groups[g];
        f.items += pg->n_items;
        for (uint32_t i = 0; i < pg->n_items; i++)
            f.shared_items += pg->items[i].shared != PKVI_NONE;
        if (pg->n_items) f.cost += pg->cost[pg->n_items];
    }
    *figures = f;
}
