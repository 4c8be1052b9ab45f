/* attn: what the files of this module share about plans. Private to attn. */
#ifndef PKVI_ATTN_PLAN_H
#define PKVI_ATTN_PLAN_H

#include <stdatomic.h>

#include "attn.h"
#include "nodes.h"

/* Most rows (new tokens x group size) of an item per KV head: what the kernels do best. */
#define PKVI_ITEM_ROWS PKVI_PREFILL_ROWS

/* Most segments that an entry's leading leaves may be in. */
#define PKVI_CASCADE_DEPTH 8u

/* Largest tree: a leaf's share of a mask row then fits PKVI_LEAF / 8 bytes. */
#define PKVI_TREE_TOKENS 4096u

#define PKVI_NONE UINT32_MAX

/* Resident pages of one (entry, group), without holes. */
struct plan_pages {
    const uint32_t *logical; /* ascending */
    const uint32_t *page;
    uint32_t n;
    bool dense; /* logical numbers are consecutive */
    /* Selected pages: leaves are filled up with them, page0 the first of leaf0. Otherwise a leaf's
     * pages follow from their logical numbers. */
    bool packed;
    uint32_t page0, leaf0;
};

/* Mask inside the new tokens of an entry. */
struct plan_tree {
    struct plan_tree *next;
    uint32_t entry, n, row_bytes;
    uint32_t *depth; /* [n] or NULL: depth = index */
    uint8_t *mask;   /* [n][row_bytes] */
    size_t bytes;    /* of this allocation */
};

struct plan_entry {
    uint64_t length, first_row;
    uint32_t n_tokens;
    const struct plan_tree *tree; /* or NULL */
    void *seq;
};

/* A run of pages with the same shift: the query is turned by cos/sin before attending to it. */
struct plan_run {
    uint32_t page_end; /* index into the lane's pages where the run ends */
    uint32_t turn;     /* index of the run's rotation / rotary pairs, PKVI_NONE = not turned */
};

/* One (entry, group). */
struct plan_lane {
    struct plan_pages pages;
    struct pkvi_attn_wish wish;
    uint32_t item0, n_items; /* its own items, head range major, tiles inside */
    uint32_t n_tiles, tile_tokens;
    uint32_t heads_per_item;
    uint32_t link, n_links; /* last of the chain of shared tiles that process its leading
                             * leaves, and its length */
    uint32_t run0, n_runs;  /* COMPACT: runs of its pages */
    const uint32_t *open;   /* quantised: open pages of the new tokens' pages; else NULL */
};

/* Rows of several entries over leading leaves that all of them share: a tile of a segment. */
struct plan_shared {
    uint32_t member0, n_members; /* entries, in the group's members array */
    uint32_t n_tokens;           /* over all members */
    uint32_t leaf0, leaf1;
    uint32_t page0, page1;
    uint32_t item0, heads_per_item;
    uint32_t node0, n_nodes; /* leaves of the nodes that it leaves behind */
    size_t area;             /* floats into the slot's shared area */
};

/* A lane's part in a shared tile. */
struct plan_link {
    uint32_t shared;
    uint32_t token0; /* its first token among the tile's */
    uint32_t before; /* the lane's link to the preceding leaves, or PKVI_NONE */
};

struct plan_item {
    uint32_t entry;            /* whose pages are walked; the first member of a shared tile */
    uint32_t shared;           /* shared tile, or PKVI_NONE for an entry's own item */
    uint32_t token0, n_tokens; /* own: new tokens of the entry; shared: 0, all tokens of the tile */
    uint32_t head0, n_heads;
    uint32_t leaf0, leaf1;
    uint32_t page0, page1;   /* the leaves' pages, indices into the lane's */
    bool left_open;          /* the row's earlier leaves are processed elsewhere */
    bool splittable;         /* threads may share it, cut at leaves */
    bool mass;               /* page sums are kept */
    uint32_t node0, n_nodes; /* own item with links: nodes that it leaves behind when whole */
    size_t area;             /* the same: floats into the shared area */
    size_t sums;             /* splittable item with mass: floats into the sums area */
    size_t mass_at;          /* options.mass: floats into the mass area, [head][page of lane] */
};

/* One group of a built plan. */
struct plan_group {
    struct plan_lane *lanes; /* [n_entries] */
    struct plan_item *items;
    uint64_t *cost; /* [n_items + 1] running sum */
    uint32_t n_items, item_capacity, cost_capacity, lane_capacity;
    struct plan_shared *shared;
    uint32_t n_shared, shared_capacity;
    struct plan_link *links;
    uint32_t n_links, link_capacity;
    uint32_t *members;
    uint32_t n_members, member_capacity;
    uint32_t *node_leaf; /* leaves of nodes left behind */
    uint32_t n_node_leaf, node_leaf_capacity;
    struct plan_run *runs;
    uint32_t n_runs, run_capacity;
    float *turns; /* [n_turns][rotary pairs][cos, sin] */
    uint32_t n_turns, turn_capacity;
    uint32_t *write_first; /* [n_entries + 1] running number of pages that new tokens touch */
    uint32_t write_capacity;
    uint32_t *dense_copy; /* logical and page arrays of lanes with holes */
    size_t n_dense_copy;
    uint32_t dense_capacity;
};

/* Largest demands of any item: sizes of scratch. */
struct plan_sizes {
    size_t q;            /* floats of packed queries */
    size_t state;        /* floats of one state */
    uint32_t nodes;      /* nodes of a stack */
    size_t slot_state;   /* floats of one state of an item that may be left in a slot */
    uint32_t slot_nodes; /* 0 = nothing is ever left */
    size_t rows;         /* rows per head */
    size_t head_rows;    /* heads x rows */
    size_t kernel;       /* bytes */
    size_t sums;         /* floats: page sums and maxima of an unsplittable item */
    size_t pages;        /* pages of a lane, where mass or selections need them */
    size_t mass;         /* floats: heads x pages of a lane */
    size_t select;       /* floats: scores of a selection */
    size_t select_q;     /* floats: queries of the heads that are scored together */
    size_t own_state;    /* quantised: floats of a state over the rows' own pages */
    size_t own_sums;     /* the same with mass: rows x heads */
    bool turned;
    bool tree;
    size_t shared_area; /* floats per slot */
    size_t sums_area;
    size_t mass_area;
    uint32_t items; /* most items of a group */
};

struct plan_body {
    bool built;
    uint32_t n_entries;
    uint64_t n_rows;
    struct plan_entry *entries;
    uint32_t entry_capacity;
    struct plan_group *groups; /* [model n_groups] */
    struct plan_tree *trees;   /* in use */
    struct plan_sizes sizes;
};

/* Offsets into a worker's scratch, in bytes, from its 64-byte aligned start. */
struct plan_offsets {
    size_t q, q_turned, states, node_leaf, kernel, lo, hi, q_pos, tree_rows, tree_bits, tree_pos,
        slopes, sinks, out, lse, parts, page_pos, sums, leaf_max, mass, mass_scale, all_parts,
        scores, select_q, chosen, sel_logical, sel_page, own_state, own_max, own_sums;
    size_t total;
};

/* Scratch of one concurrently running layer. One allocation. */
struct plan_slot {
    atomic_uint *arrived; /* [items]: parts of an item that are done; 0 between layers */
    float *shared;        /* nodes left behind by shared tiles and by items that wait for them */
    float *sums, *mass;
    uint32_t *flush_leaf;   /* [workers][2][1 + slot_nodes]: count, then a leaf of each node */
    float *flush;           /* [workers][2][slot_nodes][slot_state] */
    unsigned char *workers; /* [workers][offsets.total] */
};

struct pkvi_plan {
    const struct pkvi_attn_model *model;
    struct pkvi_mem *mem;
    pkv_plan_options options; /* pointers replaced by the copies below, or NULL */
    float *alibi, *sinks;
    size_t alibi_n, sinks_n;
    struct pkvi_attn_hooks hooks;
    uint32_t max_workers;
    struct plan_body body[2];
    uint32_t front; /* the body in use */
    struct plan_tree *pending;
    struct plan_offsets offsets;
    struct plan_sizes laid;  /* the sizes that offsets and slots were laid out for */
    struct plan_slot *slots; /* [concurrent_layers] */
    unsigned char *block;    /* memory of the slots */
    size_t block_bytes;
    uint32_t *sort; /* scratch of the search for shared prefixes */
    uint32_t sort_capacity;
};

static inline struct plan_body *plan_front(const struct pkvi_plan *plan)
{
    return (struct plan_body *)(uintptr_t)&plan->body[plan->front];
}

/* Floats of a state block for `head_rows` rows: o, then m, then l; a multiple of 16. */
static inline size_t plan_state_floats(size_t head_rows, uint32_t dim_v)
{
    return (head_rows * dim_v + 2 * head_rows + 15) & ~(size_t)15;
}

static inline uint32_t plan_leaf_pages(const struct pkvi_attn_model *model)
{
    return PKVI_LEAF >> model->page_shift;
}

/* Pages after a leaf that a kernel job lists for prefetching: 64 slots of them. */
static inline uint32_t plan_ahead_pages(const struct pkvi_attn_model *model)
{
    return model->page_tokens < 64 ? 64 >> model->page_shift : 1;
}

/* Place of a new token's page in an entry's list: these are its last ones, without holes. */
static inline uint32_t plan_place_of_new(const struct plan_pages *pages, uint32_t logical)
{
    return pages->n - 1 - (pages->logical[pages->n - 1] - logical);
}

/* The leaf that page i belongs to. */
static inline uint32_t plan_leaf_of_page(const struct pkvi_attn_model *model,
                                         const struct plan_pages *pages, uint32_t i)
{
    uint32_t n = plan_leaf_pages(model);
    return pages->packed ? pages->leaf0 + (i - pages->page0) / n : pages->logical[i] / n;
}

/* pages.c: index of the first page in [from, to) whose leaf is >= leaf. O(1) if dense, else O(log).
 */
uint32_t pkvi_plan_page_of_leaf(const struct pkvi_attn_model *model, const struct plan_pages *pages,
                                uint32_t from, uint32_t to, uint32_t leaf);

/* room.c: makes room for `need` elements; contents stay. False: out of memory, nothing changed. */
bool pkvi_plan_room(struct pkvi_mem *mem, void **array, uint32_t *capacity, uint64_t need,
                    size_t size);

/* items.c: items and write cells of one group; lanes' pages and wishes are in place. */
pkv_status pkvi_plan_build_items(struct pkvi_plan *plan, struct plan_body *body, uint32_t group);

/* cascade.c: finds shared leading leaves and enters members, shared tiles and links. */
pkv_status pkvi_plan_find_shared(struct pkvi_plan *plan, struct plan_body *body, uint32_t group);

/* turn.c: runs and rotations of a COMPACT lane. */
pkv_status pkvi_plan_build_runs(struct pkvi_plan *plan, struct plan_body *body, uint32_t group,
                                uint32_t entry);
/* q becomes q turned: rows of dim floats. */
void pkvi_plan_turn(const struct pkvi_attn_rope *rope, const float *turn, const float *q,
                    float *turned, size_t n_rows, uint32_t dim);

/* layout.c: lays the scratch out for the body's sizes; PKV_ENOMEM leaves it as it was. */
pkv_status pkvi_plan_lay_out(struct pkvi_plan *plan, const struct plan_sizes *sizes);

/* ---- shares (share.c) ----------------------------------------------------------------------- */

/* A place in the sequence of all leaves of all items. */
struct plan_place {
    uint32_t item, leaf;
};

/* Where worker w of n begins (and w - 1 ends); w = n gives {n_items, 0}. Pure, monotonous in w. */
struct plan_place pkvi_plan_share(const struct pkvi_attn_model *model,
                                  const struct plan_group *group, uint32_t w, uint32_t n);

/* The workers of n that hold parts of an item lie in [*first, *last]; returns how many they are
 * (others in between have nothing to do). */
uint32_t pkvi_plan_parts(const struct pkvi_attn_model *model, const struct plan_group *group,
                         uint32_t item, uint32_t n, uint32_t *first, uint32_t *last);

/* Has worker w of n nothing to do? */
static inline bool plan_idle(const struct pkvi_attn_model *model, const struct plan_group *group,
                             uint32_t w, uint32_t n)
{
    struct plan_place a = pkvi_plan_share(model, group, w, n),
                      b = pkvi_plan_share(model, group, w + 1, n);
    return a.item == b.item && a.leaf == b.leaf;
}

/* ---- running (attend.c, leaf.c, own.c, join.c, mass.c) -------------------------------------- */

/* Where the pages that are walked lie. */
struct plan_walk {
    const struct pkvi_pool *pool;
    const pkvi_layout *layout;
    uint64_t layer_bytes;
    bool own; /* rows see their own page only; otherwise, if quantised, all before it */
};

/* One thread's work on one item. */
struct plan_run_item {
    struct pkvi_plan *plan;
    const struct plan_body *body;
    const struct pkvi_attn_group *ag;
    const struct plan_group *pg;
    const struct pkvi_attn_call *call;
    struct plan_slot *slot;
    uint32_t worker, n_workers;
    unsigned char *scratch;

    const struct plan_item *item;
    const struct plan_lane *lane;
    uint32_t item_index;
    uint32_t rows; /* per head */
    size_t head_rows;
    uint32_t flags;            /* PKVI_JOB_* of the queries */
    const float *q_in_scratch; /* the queries that the kernel's scratch holds, or NULL */
    uint32_t last_item;        /* of this thread's share */
    /* Heads [scored_head0, scored_head1) of tile scored_token0 of entry scored_entry have scores in
     * the scratch. */
    uint32_t scored_entry, scored_token0, scored_head0, scored_head1;
    struct plan_walk walk;
    struct plan_pages pages; /* what is walked: the lane's pages, the selected or the open ones */
    uint32_t page0, page1;
    float *sums;     /* page sums [page - page0][..], or NULL */
    float *leaf_max; /* [leaf call][head_rows] */
    struct pkvi_nodes nodes;
};

#define PLAN_AT(run, type, member) ((type *)(void *)((run)->scratch + (run)->plan->offsets.member))

/* Heads whose pages are scored together for a selection: as many as make this many rows. */
#define PLAN_SCORED_ROWS 64u
static inline uint32_t plan_scored_heads(const struct pkvi_attn_group *ag, uint32_t rows)
{
    uint32_t heads = PLAN_SCORED_ROWS / rows;
    return heads == 0 ? 1 : heads < ag->kv_heads ? heads : ag->kv_heads;
}

/* leaf.c: makes an item the one that `run` works on. */
void pkvi_plan_set_item(struct plan_run_item *run, uint32_t index);
/* leaf.c: packs queries and per-row arrays of run->item. */
void pkvi_plan_load_rows(struct plan_run_item *run);
/* leaf.c: attends to pages [a, b) of run->pages, one leaf, into a state block. */
void pkvi_plan_leaf(struct plan_run_item *run, uint32_t a, uint32_t b, float *state);
/* leaf.c: one kernel call over pages [a, b) of run->pages, which lie in one leaf or are open ones.
 */
void pkvi_plan_run_job(struct plan_run_item *run, uint32_t a, uint32_t b, const float *q,
                       uint32_t flags, float *state);
/* End of the kernel call that begins at page `from`: `end`, or where the query is turned anew. */
uint32_t pkvi_plan_job_end(const struct plan_run_item *run, uint32_t from, uint32_t end);
/* New token `i` of the item's rows: its entry and index in the entry. */
void pkvi_plan_token(const struct plan_run_item *run, uint32_t i, uint32_t *entry, uint32_t *token);

/* own.c: quantised groups: adds what the item's rows see of their own pages to `state`, which is
 * over all earlier ones. With mass, own_sums and own_max of the scratch hold each row's page sum
 * and its maximum. Loads rows anew: queries in the scratch are lost. */
void pkvi_plan_add_own(struct plan_run_item *run, float *state);

/* join.c: leaves the stack's nodes for others, joining if everything is there by now. whole = they
 * are all nodes of the item. */
void pkvi_plan_leave(struct plan_run_item *run, bool whole);
/* join.c: merges the stack, which holds all nodes of the item's rows, and writes the outputs. */
void pkvi_plan_finish(struct plan_run_item *run);

/* mass.c: from the page sums and the finished state to mass per page, then to hooks and area. */
void pkvi_plan_finish_mass(struct plan_run_item *run, const float *m, const float *l,
                           const float *sinks);

#endif
