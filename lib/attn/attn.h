/* attn: writing keys and values into pages, and attention over page tables.
 *
 *   pkvi_attn_model   what a cache's layers look like to attention; built once per cache
 *   pkvi_attn_batch   a narrow view of a reserved batch: tables, lengths, new tokens
 *   pkvi_plan         the partition of a batch's work, built once per step (plan.c), used by
 * write.c and attend.c for every layer and thread
 *
 * How attention is computed. The rows of an entry (new tokens x query heads of one KV head) are
 * cut into tiles, heads into ranges: a (tile, head range) is an *item*. The keys of an item are
 * walked in leaves of PKVI_LEAF positions; each leaf gives one partial state, and states are merged
 * in a tree whose shape depends on leaf numbers alone (nodes.h). So the work may be cut between
 * threads, and shared prefixes may be processed for several entries at once, without changing a bit
 * of the result. Items carry costs; thread ith of nth takes the ith share of the running sum, cut
 * at leaves (share.c). A thread that ends up with a part of an item leaves its states in the plan's
 * scratch and counts itself in; the last one to arrive joins the parts and writes the rows. Nobody
 * waits. */
#ifndef PKVI_ATTN_H
#define PKVI_ATTN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <pagedkv/attention.h>

#include "kernels/kernels.h"
#include "mem/mem.h"
#include "pool/pool.h"
#include "stats/stats.h"
#include "table/table.h"

/* ---- the model ------------------------------------------------------------------------------ */

/* Rotary embedding of a group, for turning queries (COMPACT positions). */
struct pkvi_attn_rope {
    uint32_t rotary_dims; /* 0 = not known */
    bool interleaved;
    const double *frequencies; /* [rotary_dims / 2] rad per token, scaling included */
};

/* One layer group. Immutable. */
struct pkvi_attn_group {
    const struct pkvi_pool *pool;
    pkvi_layout layout;
    uint32_t n_layers;
    uint32_t kv_heads;
    uint32_t group_size; /* query heads per KV head */
    uint32_t window;     /* 0 = full */
    uint64_t layer_bytes;
    /* Quantised groups: the new tokens' pages also exist in 16 bits, in a pool of their own. They
     * are written there, and a page that they fill is sealed into its page of `pool` at once. A row
     * sees its own page open and every earlier page sealed, however its prompt was cut. NULL = not
     * quantised. */
    const struct pkvi_pool *open_pool;
    pkvi_layout open_layout;
    uint64_t open_layer_bytes;
    float scale; /* 1 / sqrt(head_dim_k) */
    struct pkvi_attn_rope rope;
};

/* Immutable while plans exist. */
struct pkvi_attn_model {
    struct pkvi_mem *mem;
    struct pkvi_stats *stats;
    const pkvi_kernels *kernels;
    uint32_t page_tokens, page_shift;
    uint32_t n_groups;
    const struct pkvi_attn_group *groups;
};

/* ---- a batch -------------------------------------------------------------------------------- */

struct pkvi_attn_entry {
    const struct pkvi_table *tables; /* [n_groups], new tokens' pages included */
    uint64_t length;                 /* tokens before the new ones */
    uint64_t first_row;              /* new tokens of the entries before it */
    uint32_t n_tokens;               /* new tokens */
    /* [n_groups] open pages of the new tokens' pages, from the one of position `length` on; NULL
     * for groups that are not quantised. NULL if no group is. */
    const uint32_t *const *open;
    void *seq; /* for hooks */
};

/* Asked by index, so that no copy of the batch has to be made first. */
struct pkvi_attn_batch {
    void *context;
    uint32_t n_entries;
    uint64_t n_rows;
    void (*entry)(const void *context, uint32_t index, struct pkvi_attn_entry *out);
};

/* ---- what eviction asks of attention -------------------------------------------------------- */

/* Per (sequence, group) of a batch. */
struct pkvi_attn_wish {
    uint32_t n_tokens;     /* in: new tokens of the entry; the rest is zeroed */
    uint32_t mass_rows;    /* feed the attention mass of the last so many new tokens; 0 = none */
    uint32_t select_pages; /* > 0: attention reads about so many pages, chosen by `select` */
    bool compact;          /* turn the query per run */
};

/* A choice to make: which pages of one KV head are read. */
struct pkvi_attn_selection {
    const struct pkvi_attn_model *model;
    void *seq;
    uint32_t group, layer, head; /* layer: index in the group */
    const uint32_t *logical;     /* [n_pages] resident pages, ascending, new ones included */
    const void *const *parts;    /* [n_pages] this layer's part of each */
    uint32_t n_pages;
    uint32_t n_old;    /* leading pages that were full before the step */
    uint64_t length;   /* tokens before the new ones */
    uint32_t n_tokens; /* new tokens */
    const float *q;    /* [n_rows][dim_k], unscaled */
    uint32_t n_rows;   /* n_tokens * group_size, rows in (token, query head) order */
    float *scores;     /* scratch, [n_pages] floats; may be overwritten */
    bool scored;       /* scores holds the bounds (kernels' score) of the n_old pages already */
    uint32_t *chosen;  /* out: indices into the pages, ascending; [n_pages] */
};

/* All may be called from several threads at once. */
struct pkvi_attn_hooks {
    void *context;
    /* At build. */
    void (*wish)(void *context, void *seq, uint32_t group, struct pkvi_attn_wish *wish);
    /* During attend, once or (if threads share the work) several times per (entry, layer, head):
     * must give the same answer each time. Returns the number of chosen pages, >= 1; pages of new
     * tokens must be among them. */
    uint32_t (*select)(void *context, struct pkvi_attn_selection *selection);
    /* During attend: mass[i] = probability that the last mass_rows new tokens of the sequence (or,
     * for a long entry, some of them: all calls together cover each once) gave to its i-th resident
     * page in heads [head0, head0 + n_heads): mass[head][page]. */
    void (*mass)(void *context, void *seq, uint32_t group, uint32_t layer, uint32_t head0,
                 uint32_t n_heads, const float *mass, uint32_t n_pages);
};

/* ---- plans ---------------------------------------------------------------------------------- */

struct pkvi_plan;

/* Makes an empty plan. options are checked by the caller and copied; hooks (may be NULL) must
 * outlive the plan. max_workers = threads that can work at once; more are accepted and do nothing.
 * n_layers and max_q_heads give the sizes of the options' arrays. PKV_ENOMEM. */
pkv_status pkvi_plan_make(const struct pkvi_attn_model *model, const pkv_plan_options *options,
                          uint32_t n_layers, uint32_t max_q_heads, uint32_t max_workers,
                          const struct pkvi_attn_hooks *hooks, struct pkvi_plan **plan);
void pkvi_plan_free(struct pkvi_plan *plan);

/* See pkv_plan_set_tree; arguments checked by the caller except for the mask's form (PKV_EINVAL)
 * and memory (PKV_ENOMEM: the earlier trees stay). */
pkv_status pkvi_plan_tree(struct pkvi_plan *plan, uint32_t entry, uint32_t n_tokens,
                          const uint8_t *mask, const uint32_t *positions);

/* Partitions a batch; the trees set since the last build apply and are used up, on failure too they
 * stay. PKV_EINVAL if a tree does not fit its entry, PKV_ERANGE, PKV_ENOMEM: the plan holds what it
 * held. O(entries x groups + items + shared pages compared). */
pkv_status pkvi_plan_make_items(struct pkvi_plan *plan, const struct pkvi_attn_batch *batch);

/* Shapes and element types were checked by the caller. layer = index inside the group. */
void pkvi_plan_write(struct pkvi_plan *plan, uint32_t group, uint32_t layer, const pkvi_tensor *k,
                     const pkvi_tensor *v, uint32_t ith, uint32_t nth);

/* One attention call. model_layer picks scratch and sinks. lse: [row][q head] or NULL. */
struct pkvi_attn_call {
    uint32_t group, layer, model_layer;
    pkvi_tensor q;
    pkvi_tensor out;
    float *lse;
};
void pkvi_plan_attend(struct pkvi_plan *plan, const struct pkvi_attn_call *call, uint32_t ith,
                      uint32_t nth);

/* The same in double precision, from the tables and the stored cache, without the plan's items. out
 * is [row][q head][dim_v], lse [row][q head] or NULL. Top-k selections are honoured. PKV_ENOMEM. */
pkv_status pkvi_plan_reference(struct pkvi_plan *plan, const struct pkvi_attn_call *call,
                               double *out, double *lse);

/* Was the plan made with options.mass? */
bool pkvi_plan_keeps_mass(const struct pkvi_plan *plan);

/* See pkv_plan_mass: entry and kv_head are in range. PKV_EINVAL for another n_pages. */
pkv_status pkvi_plan_read_mass(const struct pkvi_plan *plan, uint32_t group, uint32_t model_layer,
                               uint32_t entry, uint32_t kv_head, float *mass, uint32_t n_pages);

/* Figures of the last build, for benches and tests. */
struct pkvi_plan_figures {
    uint64_t items, shared_items, scratch_bytes, metadata_bytes;
    uint64_t cost; /* in bytes of KV, all groups, one layer each */
};
void pkvi_plan_figures(const struct pkvi_plan *plan, struct pkvi_plan_figures *figures);

/* ---- reading pages back (transfer.c) -------------------------------------------------------- */

/* The page of a quantised group that holds a logical page in 16 bits; page = PKVI_NO_PAGE: none. */
struct pkvi_attn_open {
    uint32_t logical, page;
};

/* Copies tokens [first, first + n) of a table's layer to plain rows; k or v may have NULL data.
 * Every page must be resident (the caller has checked). */
void pkvi_transfer_read(const struct pkvi_attn_model *model, uint32_t group, uint32_t layer,
                        const struct pkvi_table *table, struct pkvi_attn_open open, uint64_t first,
                        uint32_t n, pkvi_tensor k, pkvi_tensor v);

/* One layer's part of a page from / to plain [2][token][head][dim] or [2][head][token][dim] of the
 * page's type; of a quantised group of the open pages' type: reading dequantises, packing seals.
 * PKV_ENOMEM (pack, quantised only): nothing changed. */
size_t pkvi_transfer_plain_bytes(const struct pkvi_attn_model *model, uint32_t group);
void pkvi_transfer_unpack(const struct pkvi_attn_model *model, uint32_t group, const void *part,
                          pkv_layout layout, void *plain);
pkv_status pkvi_transfer_pack(const struct pkvi_attn_model *model, uint32_t group, void *part,
                              pkv_layout layout, const void *plain);

/* ---- keeping a path of a tree (keep.c) ------------------------------------------------------ */

/* Moves new tokens kept[i] of a reserved batch's entry to place i, i < n ascending, in one layer, and
 * finishes (seal, digest) the pages that are full then. O(moved tokens + pages behind the first). */
void pkvi_transfer_keep(const struct pkvi_attn_model *model, uint32_t group, uint32_t layer,
                        const struct pkvi_attn_entry *entry, const uint32_t *kept, uint32_t n);

#endif
