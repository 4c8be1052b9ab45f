/* attn: cuts a group's work into items and gives each its cost. */
#include "plan.h"

/* Query rows x heads per item that one pass of the kernel holds. */
#define ITEM_HEAD_ROWS PKVI_TILE_ROWS

/* Rows of the kernels' tallest register block. */
#define BLOCK_ROWS 12u

/* More leaves per worker than this are shared out evenly enough without splitting heads. */
#define PLENTY_OF_LEAVES 16

/* An item that costs less than 1 / this of a worker's share is not cut. */
#define WHOLE_ITEMS_PER_WORKER 24u

/* What a row costs per KV head, position and dimension, in bytes of KV: a core multiplies about
 * five times while it reads a byte. */
static uint64_t row_cost(uint32_t rows, const pkvi_layout *layout)
{
    return (uint64_t)rows * (layout->dim_k + layout->dim_v) / 5;
}

/* Key positions [begin, end) that some row of an entry's tokens [token0, token0 + n) sees; in a
 * quantised group without the rows' own pages, which are no part of the walk (own.c). end > 0. */
static void key_range(const struct pkvi_attn_model *model, const struct pkvi_attn_group *ag,
                      const struct plan_entry *entry, uint32_t token0, uint32_t n, uint64_t *begin,
                      uint64_t *end)
{
    *end = entry->length + token0 + n;
    if (ag->open_pool) {
        uint64_t own = (*end - 1) >> model->page_shift << model->page_shift;
        *end = own ? own : 1;
    }
    *begin = 0;
    if (ag->window == 0) return;
    uint64_t first = UINT64_MAX;
    for (uint32_t t = token0; t < token0 + n; t++) {
        uint64_t at =
            entry->length + (entry->tree && entry->tree->depth ? entry->tree->depth[t] : t);
        if (at < first) first = at;
    }
    *begin = first + 1 > ag->window ? first + 1 - ag->window : 0;
}

static uint64_t item_cost(const struct pkvi_attn_model *model, const struct pkvi_attn_group *ag,
                          const struct plan_lane *lane, const struct plan_item *item)
{
    const pkvi_layout *l = &ag->layout;
    uint32_t rows = item->n_tokens * ag->group_size;
    uint64_t pages = item->page1 - item->page0;
    if (lane->wish.select_pages && pages > lane->wish.select_pages) {
        /* Chosen pages are read whole, the digests of all pages before. */
        uint64_t digests = pages / (model->page_tokens / 2u);
        pages = lane->wish.select_pages + digests;
    }
    uint64_t per_token = (l->k_head_bytes + l->v_head_bytes) / l->page_tokens + row_cost(rows, l);
    return (pages * model->page_tokens * per_token + 1024 + (uint64_t)rows * l->dim_v * 8) *
           item->n_heads;
}

static void note_sizes(struct plan_sizes *s, const struct pkvi_attn_group *ag,
                       const struct plan_lane *lane, const struct plan_entry *entry,
                       const struct plan_item *item)
{
    const pkvi_layout *l = &ag->layout;
    size_t rows = (size_t)item->n_tokens * ag->group_size, head_rows = rows * item->n_heads;
    size_t state = plan_state_floats(head_rows, l->dim_v);
    /* Nodes on a stack: few leaves make few; a join also has those of the shared tiles. */
    uint32_t nodes = pkvi_nodes_bound(item->leaf1 - 1);
    if (!lane->n_links) nodes = pkvi_min_u32(nodes, item->leaf1 - item->leaf0);
    size_t kernel = pkvi_kernel_scratch(l, item->n_heads, (uint32_t)rows);
#define RAISE(field, value) s->field = s->field < (value) ? (value) : s->field
    RAISE(q, head_rows * l->dim_k);
    RAISE(state, state);
    RAISE(nodes, nodes);
    RAISE(rows, rows);
    RAISE(head_rows, head_rows);
    RAISE(kernel, kernel);
    if (item->splittable) {
        RAISE(slot_state, state);
        RAISE(slot_nodes, nodes);
    }
    if (lane->wish.select_pages) RAISE(pages, (size_t)lane->pages.n);
    if (lane->open) {
        RAISE(own_state, state);
        if (item->mass) RAISE(own_sums, head_rows);
        RAISE(kernel, pkvi_kernel_scratch(&ag->open_layout, item->n_heads, (uint32_t)rows));
    }
    if (item->mass) RAISE(mass, (size_t)lane->pages.n * item->n_heads);
    if (lane->wish.select_pages) {
        size_t heads = plan_scored_heads(ag, (uint32_t)rows);
        RAISE(select, heads * lane->pages.n);
        RAISE(select_q, heads * rows * l->dim_k);
    }
#undef RAISE
    s->turned |= lane->wish.compact;
    s->tree |= entry->tree != NULL;
}

/* ---- lanes ---------------------------------------------------------------------------------- */

static uint32_t ceil_div(uint32_t a, uint32_t b)
{
    return a / b + (a % b != 0);
}

/* Tokens per tile of an entry with n new tokens: fewest register blocks over all tiles, then fewest
 * tiles (each reads the keys again). Only entries of several tiles have a choice. */
static uint32_t choose_tile(uint32_t n, uint32_t group_size)
{
    uint32_t most = PKVI_ITEM_ROWS / group_size, best = 0, fewest = UINT32_MAX;
    if (most == 0) most = 1;
    if (n <= most) return n;
    for (uint32_t t = most; t > most / 2; t--) {
        uint32_t blocks =
            n / t * ceil_div(t * group_size, BLOCK_ROWS) + ceil_div(n % t * group_size, BLOCK_ROWS);
        if (blocks >= fewest) continue;
        fewest = blocks;
        best = t;
    }
    return best;
}

/* Tiles and heads per item of every lane, and how many leaves (parts count as parts) the items that
 * makes have together. */
static double choose_tiles(const struct pkvi_plan *plan, const struct plan_body *body, uint32_t g)
{
    const struct pkvi_attn_group *ag = &plan->model->groups[g];
    struct plan_group *pg = &body->groups[g];
    double leaves = 0;
    for (uint32_t i = 0; i < body->n_entries; i++) {
        const struct plan_entry *entry = &body->entries[i];
        struct plan_lane *lane = &pg->lanes[i];
        lane->tile_tokens = choose_tile(entry->n_tokens, ag->group_size);
        lane->n_tiles = ceil_div(entry->n_tokens, lane->tile_tokens);
        uint32_t heads = ITEM_HEAD_ROWS / (lane->tile_tokens * ag->group_size);
        if (heads == 0 || lane->wish.select_pages) heads = 1;
        lane->heads_per_item = heads < ag->kv_heads ? heads : ag->kv_heads;
        uint64_t begin, end;
        key_range(plan->model, ag, entry, 0, entry->n_tokens, &begin, &end);
        if (begin >= end) continue; /* a window that ends in the rows' own pages */
        leaves += (double)(end - begin) / PKVI_LEAF * lane->n_tiles *
                  ceil_div(ag->kv_heads, lane->heads_per_item);
    }
    return leaves;
}

/* How much longer than the average the longest share is, if `leaves` per range of heads, for
 * `ranges` of them, are shared out to n workers and cut at leaves. */
static double unevenness(double leaves, uint32_t ranges, uint32_t n)
{
    double share = leaves * ranges / n, worst = 0;
    for (uint32_t w = 1; w < n; w++) {
        double at = share * w, in = at - leaves * (double)(uint64_t)(at / leaves);
        double off = in - (double)(uint64_t)(in + 0.5);
        if (off < 0) off = -off;
        if (leaves - in < off) off = leaves - in;
        if (off > worst) worst = off;
    }
    return worst / share;
}

/* Splits heads further where leaves alone would be shared out unevenly. That has a price: a thread
 * then reads shorter runs of each page (measured: 8 % for a quarter of the heads). */
static void split_heads(const struct pkvi_plan *plan, const struct plan_body *body, uint32_t g,
                        double leaves)
{
    static const double prices[] = {0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.24};
    uint32_t workers = plan->max_workers, best = 0;
    if (workers == 1 || leaves <= 0 || leaves > (double)PLENTY_OF_LEAVES * workers) return;
    double least = 1e9;
    for (uint32_t i = 0; i < sizeof prices / sizeof *prices; i++) {
        double loss = unevenness(leaves, 1u << i, workers) + prices[i];
        if (loss >= least) continue;
        least = loss;
        best = i;
    }
    struct plan_group *pg = &body->groups[g];
    for (uint32_t i = 0; i < body->n_entries; i++) {
        uint32_t heads = pg->lanes[i].heads_per_item;
        pg->lanes[i].heads_per_item = heads >> best ? heads >> best : 1;
    }
}

/* ---- entering items ------------------------------------------------------------------------- */

static struct plan_item *new_item(struct pkvi_plan *plan, struct plan_group *pg)
{
    void *items = pg->items;
    bool ok = pkvi_plan_room(plan->mem, &items, &pg->item_capacity, (uint64_t)pg->n_items + 1,
                             sizeof *pg->items);
    pg->items = items;
    if (!ok) return NULL;
    struct plan_item *item = &pg->items[pg->n_items++];
    *item = (struct plan_item){.shared = PKVI_NONE};
    return item;
}

static void merge_nothing(void *context, float *left, const float *right)
{
    (void)context;
    (void)left;
    (void)right;
}

/* The leaves of the nodes that a walk over pages [page0, page1) leaves behind. */
static pkv_status note_nodes(struct pkvi_plan *plan, struct plan_group *pg,
                             const struct plan_pages *pages, uint32_t page0, uint32_t page1,
                             bool left_open, uint32_t left, uint32_t *node0, uint32_t *n_nodes)
{
    uint32_t leaf[2 * 34];
    struct pkvi_nodes nodes = {.leaf = leaf, .merge = merge_nothing};
    pkvi_nodes_start(&nodes, left_open, left);
    for (uint32_t at = page0; at < page1;) {
        uint32_t l = pages->logical[at] / plan_leaf_pages(plan->model);
        pkvi_nodes_push(&nodes, l);
        at = pkvi_plan_page_of_leaf(plan->model, pages, at, page1, l + 1);
    }
    void *array = pg->node_leaf;
    bool ok = pkvi_plan_room(plan->mem, &array, &pg->node_leaf_capacity,
                             (uint64_t)pg->n_node_leaf + nodes.n, sizeof *pg->node_leaf);
    pg->node_leaf = array;
    if (!ok) return PKV_ENOMEM;
    *node0 = pg->n_node_leaf;
    *n_nodes = nodes.n;
    for (uint32_t i = 0; i < nodes.n; i++)
        pg->node_leaf[pg->n_node_leaf++] = leaf[i];
    return PKV_OK;
}

static size_t take_area(size_t *area, size_t floats)
{
    size_t at = *area;
    *area += (floats + 15) & ~(size_t)15;
    return at;
}

static pkv_status shared_items(struct pkvi_plan *plan, struct plan_body *body, uint32_t g,
                               size_t *area)
{
    const struct pkvi_attn_group *ag = &plan->model->groups[g];
    struct plan_group *pg = &body->groups[g];
    for (uint32_t s = 0; s < pg->n_shared; s++) {
        struct plan_shared *shared = &pg->shared[s];
        uint32_t rows = shared->n_tokens * ag->group_size, entry = pg->members[shared->member0];
        const struct plan_lane *lane = &pg->lanes[entry];
        uint32_t heads = ITEM_HEAD_ROWS / rows ? ITEM_HEAD_ROWS / rows : 1;
        shared->heads_per_item = heads < lane->heads_per_item ? heads : lane->heads_per_item;
        pkv_status status =
            note_nodes(plan, pg, &lane->pages, shared->page0, shared->page1, shared->leaf0 > 0,
                       shared->leaf0 - 1, &shared->node0, &shared->n_nodes);
        if (status != PKV_OK) return status;
        size_t state = plan_state_floats((size_t)rows * ag->kv_heads, ag->layout.dim_v);
        shared->area = take_area(area, shared->n_nodes * state);
        shared->item0 = pg->n_items;
        for (uint32_t h = 0; h < ag->kv_heads; h += shared->heads_per_item) {
            struct plan_item *item = new_item(plan, pg);
            if (!item) return PKV_ENOMEM;
            item->entry = entry;
            item->shared = s;
            item->n_tokens = shared->n_tokens;
            item->head0 = h;
            item->n_heads = pkvi_min_u32(shared->heads_per_item, ag->kv_heads - h);
            item->leaf0 = shared->leaf0;
            item->leaf1 = shared->leaf1;
            item->page0 = shared->page0;
            item->page1 = shared->page1;
            item->left_open = shared->leaf0 > 0;
        }
    }
    return PKV_OK;
}

/* Rows of an entry's tokens whose mass somebody wants. */
static bool wants_mass(const struct pkvi_plan *plan, const struct plan_entry *entry,
                       const struct plan_lane *lane, const struct plan_item *item)
{
    if (plan->options.mass) return true;
    uint32_t rows = lane->wish.mass_rows;
    return rows != 0 &&
           (rows >= entry->n_tokens || item->token0 + item->n_tokens > entry->n_tokens - rows);
}

/* Takes the pages that rows of the item are in out of its walk, as far as every row is in them or
 * before them. */
static void drop_own(const struct pkvi_attn_model *model, const struct plan_pages *pages,
                     const struct plan_entry *entry, struct plan_item *item)
{
    const uint64_t last = (entry->length + item->token0 + item->n_tokens - 1) >> model->page_shift;
    while (item->page1 > item->page0 && pages->logical[item->page1 - 1] >= last)
        item->page1--;
}

static pkv_status own_item(struct pkvi_plan *plan, struct plan_body *body, uint32_t g, uint32_t e,
                           uint32_t tile, uint32_t head, size_t *area)
{
    const struct pkvi_attn_group *ag = &plan->model->groups[g];
    struct plan_group *pg = &body->groups[g];
    struct plan_lane *lane = &pg->lanes[e];
    const struct plan_entry *entry = &body->entries[e];
    struct plan_item *item = new_item(plan, pg);
    if (!item) return PKV_ENOMEM;
    item->entry = e;
    item->token0 = tile * lane->tile_tokens;
    item->n_tokens = pkvi_min_u32(lane->tile_tokens, entry->n_tokens - item->token0);
    item->head0 = head;
    item->n_heads = pkvi_min_u32(lane->heads_per_item, ag->kv_heads - head);
    uint64_t begin, end;
    key_range(plan->model, ag, entry, item->token0, item->n_tokens, &begin, &end);
    begin = pkvi_min_u64(begin, end - 1);
    item->leaf0 = (uint32_t)(begin / PKVI_LEAF);
    item->leaf1 = (uint32_t)((end - 1) / PKVI_LEAF) + 1;
    if (lane->n_links) {
        item->leaf0 = pg->shared[pg->links[lane->link].shared].leaf1;
        item->left_open = true;
    }
    if (item->leaf1 <= item->leaf0) item->leaf1 = item->leaf0 + 1; /* only own pages are left */
    item->mass = wants_mass(plan, entry, lane, item);
    const struct plan_pages *pages = &lane->pages;
    item->page0 = pkvi_plan_page_of_leaf(plan->model, pages, 0, pages->n, item->leaf0);
    item->page1 = pkvi_plan_page_of_leaf(plan->model, pages, item->page0, pages->n, item->leaf1);
    if (item->page0 < item->page1) {
        /* Leave out pages wholly before the window or after the last key. */
        while (item->page0 + 1 < item->page1 &&
               ((uint64_t)pages->logical[item->page0] + 1) << plan->model->page_shift <= begin)
            item->page0++;
        while (item->page1 - 1 > item->page0 &&
               (uint64_t)pages->logical[item->page1 - 1] << plan->model->page_shift >= end)
            item->page1--;
    }
    if (lane->open) drop_own(plan->model, pages, entry, item);
    if (lane->n_links == 0) return PKV_OK;
    pkv_status status = note_nodes(plan, pg, pages, item->page0, item->page1, true, item->leaf0 - 1,
                                   &item->node0, &item->n_nodes);
    size_t rows = (size_t)item->n_tokens * ag->group_size * item->n_heads;
    item->area = take_area(area, item->n_nodes * plan_state_floats(rows, ag->layout.dim_v));
    return status;
}

static pkv_status own_items(struct pkvi_plan *plan, struct plan_body *body, uint32_t g,
                            size_t *area)
{
    struct plan_group *pg = &body->groups[g];
    for (uint32_t e = 0; e < body->n_entries; e++) {
        struct plan_lane *lane = &pg->lanes[e];
        lane->item0 = pg->n_items;
        for (uint32_t h = 0; h < plan->model->groups[g].kv_heads; h += lane->heads_per_item)
            for (uint32_t t = 0; t < lane->n_tiles; t++) {
                pkv_status status = own_item(plan, body, g, e, t, h, area);
                if (status != PKV_OK) return status;
            }
        lane->n_items = pg->n_items - lane->item0;
    }
    return PKV_OK;
}

/* ---- sums ----------------------------------------------------------------------------------- */

static pkv_status sum_costs(struct pkvi_plan *plan, struct plan_body *body, uint32_t g)
{
    struct plan_group *pg = &body->groups[g];
    void *cost = pg->cost;
    bool ok = pkvi_plan_room(plan->mem, &cost, &pg->cost_capacity, (uint64_t)pg->n_items + 1,
                             sizeof *pg->cost);
    pg->cost = cost;
    if (!ok) return PKV_ENOMEM;
    uint64_t sum = 0;
    for (uint32_t i = 0; i < pg->n_items; i++) {
        pg->cost[i] = sum;
        const struct plan_item *item = &pg->items[i];
        sum += item_cost(plan->model, &plan->model->groups[g], &pg->lanes[item->entry], item);
    }
    pg->cost[pg->n_items] = sum;
    return PKV_OK;
}

/* Which items may be cut, and the scratch that follows. */
static void settle_items(const struct pkvi_plan *plan, struct plan_body *body, uint32_t g)
{
    const struct pkvi_attn_group *ag = &plan->model->groups[g];
    struct plan_group *pg = &body->groups[g];
    struct plan_sizes *sizes = &body->sizes;
    uint64_t share = pg->n_items ? pg->cost[pg->n_items] / plan->max_workers : 0;
    size_t sums = 0, mass = 0;
    for (uint32_t i = 0; i < pg->n_items; i++) {
        struct plan_item *item = &pg->items[i];
        const struct plan_lane *lane = &pg->lanes[item->entry];
        uint64_t cost = pg->cost[i + 1] - pg->cost[i];
        item->splittable = plan->max_workers > 1 && item->leaf1 - item->leaf0 > 1 &&
                           cost > share / WHOLE_ITEMS_PER_WORKER && !lane->wish.select_pages;
        if (item->mass) {
            size_t head_rows = (size_t)item->n_tokens * ag->group_size * item->n_heads;
            size_t n =
                head_rows * ((size_t)(item->page1 - item->page0) + (item->leaf1 - item->leaf0));
            if (item->splittable)
                item->sums = take_area(&sums, n);
            else if (sizes->sums < n)
                sizes->sums = n;
            if (plan->options.mass)
                item->mass_at = take_area(&mass, (size_t)item->n_heads * lane->pages.n);
        }
        note_sizes(sizes, ag, lane, &body->entries[item->entry], item);
    }
    if (sizes->sums_area < sums) sizes->sums_area = sums;
    if (sizes->mass_area < mass) sizes->mass_area = mass;
    if (sizes->items < pg->n_items) sizes->items = pg->n_items;
}

static pkv_status write_cells(struct pkvi_plan *plan, struct plan_body *body, uint32_t g)
{
    struct plan_group *pg = &body->groups[g];
    void *first = pg->write_first;
    bool ok = pkvi_plan_room(plan->mem, &first, &pg->write_capacity, (uint64_t)body->n_entries + 1,
                             sizeof *pg->write_first);
    pg->write_first = first;
    if (!ok) return PKV_ENOMEM;
    uint64_t sum = 0;
    for (uint32_t e = 0; e < body->n_entries; e++) {
        const struct plan_entry *entry = &body->entries[e];
        pg->write_first[e] = (uint32_t)sum;
        uint64_t last = entry->length + entry->n_tokens - 1;
        sum += (last >> plan->model->page_shift) - (entry->length >> plan->model->page_shift) + 1;
        if (sum > UINT32_MAX / 2) return PKV_ERANGE;
    }
    pg->write_first[body->n_entries] = (uint32_t)sum;
    return PKV_OK;
}

pkv_status pkvi_plan_build_items(struct pkvi_plan *plan, struct plan_body *body, uint32_t g)
{
    size_t area = 0;
    split_heads(plan, body, g, choose_tiles(plan, body, g));
    pkv_status status = shared_items(plan, body, g, &area);
    if (status == PKV_OK) status = own_items(plan, body, g, &area);
    if (status == PKV_OK) status = sum_costs(plan, body, g);
    if (status == PKV_OK) status = write_cells(plan, body, g);
    if (status != PKV_OK) return status;
    if (body->sizes.shared_area < area) body->sizes.shared_area = area;
    settle_items(plan, body, g);
    return PKV_OK;
}
