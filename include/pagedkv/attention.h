/* pagedkv: writing K and V into pages and attending over them.
 *
 * A plan is built once per model step from a reserved batch and used by every layer. The host calls
 * pkv_write and pkv_attend from its own threads, all with the same arguments but ith = 0..nth-1.
 * The host must let all nth calls of pkv_write(layer) return before any pkv_attend(layer) starts
 * (its own barrier), and all of pkv_attend(layer) before it reads `out`. Nothing here waits, locks
 * or allocates. Results are bitwise identical for any nth, batch order and page placement on one
 * kernel row.
 *
 * Quantised groups (config.h: dtype_k, dtype_v). A row attends to its *own* page, the one that its
 * token lies in, as it was written (in dtype), and to every earlier page as quantised, however the
 * prompt was cut into steps: so results do not depend on chunks either. The one exception: where a
 * sequence goes on in the middle of a page that was sealed before (pkv_seq_truncate into it, or a
 * prefix match that ends in it), the tokens before that point are read dequantised, by the rows of
 * that page too, and the page is quantised a second time when it is full; pkv_stats.pages_unsealed
 * counts them. Attach whole pages (a match cut to a multiple of page_tokens) to rule it out. Keys or
 * values that the format cannot hold (NaN, infinity, beyond f16) read as NaN in the sealed page,
 * theirs alone, and are counted: pkv_stats.vectors_flagged. */
#ifndef PAGEDKV_ATTENTION_H
#define PAGEDKV_ATTENTION_H

#include "types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Rows of [token][head][dim], dim contiguous. Strides in bytes, multiples of the element size,
 * any sign. Rows are in batch order: all new tokens of entry 0, then of entry 1, …
 * Initialise the whole struct ({.data = …}): fields that you do not name must be zero. */
typedef struct pkv_rows {
    const void *data;
    pkv_dtype dtype;
    uint32_t heads; /* must equal the group's kv_heads (k, v) or q_heads (q) */
    uint32_t dim;   /* must equal head_dim_k (q, k) or head_dim_v (v, out) */
    ptrdiff_t token_stride;
    ptrdiff_t head_stride;
    uint64_t reserved[2]; /* zero */
} pkv_rows;

typedef struct pkv_rows_out {
    void *data;
    pkv_dtype dtype;
    uint32_t heads;
    uint32_t dim;
    ptrdiff_t token_stride;
    ptrdiff_t head_stride;
    uint64_t reserved[2]; /* zero */
} pkv_rows_out;

/* Options of a plan. Pointers are read during pkv_plan_create only (copied). */
typedef struct pkv_plan_options {
    size_t struct_size; /* set by pkv_plan_options_init */
    float scale;        /* softmax scale; 0 = 1/sqrt(head_dim_k) of each group */
    float softcap;      /* logit = softcap * tanh(logit / softcap); 0 = off (Gemma-2) */
    const float
        *alibi_slopes;     /* [max q_heads]: logit += slope * (key_pos - query_pos); NULL = off */
    const float *sinks;    /* [layers of the model][q_heads]: learned logits that join the
                            * softmax's denominator (gpt-oss); NULL = off */
    uint32_t sinks_stride; /* floats between layers in sinks */
    uint32_t concurrent_layers; /* layers whose attend calls may overlap in time: their numbers must
                                 * differ by less than this; 1..8, default 1 */
    uint32_t cascade;     /* 0 = never, 1 = automatic (default), 2 = whenever pages are shared */
    uint32_t mass;        /* 1 = compute per-page attention mass (see pkv_plan_mass) */
    uint32_t max_threads; /* most threads that share the work of one call; more may take part
                           * and find nothing to do. Sizes the scratch. 0 = CPUs online */
    uint64_t reserved[8];
} pkv_plan_options;

PKV_API pkv_status pkv_plan_options_init(pkv_plan_options *options, size_t size);

/* Creates an empty plan. options NULL = defaults. The caller owns it. Not MT-safe per plan.
 * PKV_EINVAL for options out of bounds (a scale that is not finite, …), PKV_ENOTSUP for
 * PKV_STORAGE_NONE, PKV_ENOMEM. With PKV_STORAGE_EXTERNAL the functions here read and write the
 * caller's buffers: use them only if those are host memory. */
PKV_API pkv_status pkv_plan_create(pkv_cache *cache, const pkv_plan_options *options,
                                   pkv_plan **plan);
PKV_API void pkv_plan_destroy(pkv_plan *plan);

/* Attention mask inside the new tokens of one batch entry: a speculative tree. mask is n*n bits,
 * row-major, row i in bytes [i*ceil(n/8), …), bit j (LSB first) = new token i sees new token j; the
 * diagonal must be set and bits above it clear. Tokens before the batch are always seen.
 * `positions` (may be NULL) are the tokens' depths, 0-based, used by windows and ALiBi instead of
 * their index; positions[i] <= i, as a parent comes before its children. Call before the
 * pkv_plan_build it is meant for, which uses it up (a build that fails does not); a second call for
 * the same entry replaces the first. PKV_EINVAL for a mask of another form, PKV_ERANGE for more
 * than 4,096 tokens; whether entry and n_tokens fit the batch is checked by the build. */
PKV_API pkv_status pkv_plan_set_tree(pkv_plan *plan, uint32_t entry, uint32_t n_tokens,
                                     const uint8_t *mask, const uint32_t *positions);

/* Builds the plan of a reserved batch; replaces what it held; reuses its memory. The plan is stale
 * after the batch's commit or abort. PKV_EFOREIGN if they belong to different caches, PKV_ESTATE if
 * the batch is not reserved, PKV_ERANGE for sequences of 2^31 tokens, PKV_ENOMEM; on failure the
 * plan holds what it held. Memory that an abandoned attend left half done is reset. O(entries ×
 * groups + work items). */
PKV_API pkv_status pkv_plan_build(pkv_plan *plan, pkv_batch batch);

/* Writes the new tokens' keys and values of one layer into their pages, converting as needed; k and v
 * are both required.
 * `layer` is the model's layer number. Errors, also of pkv_attend, with nothing written: PKV_ESTATE
 * (not built), PKV_ESTALE (the batch ended), PKV_EINVAL (NULL, layer, ith >= nth, heads, dim,
 * dtype, strides that are no multiples of the element or that make output rows overlap). MT-safe
 * between different ith and different layers. */
PKV_API pkv_status pkv_write(pkv_plan *plan, uint32_t layer, const pkv_rows *k, const pkv_rows *v,
                             uint32_t ith, uint32_t nth);

/* Attention of the new tokens over everything their sequences hold in this layer, themselves
 * included (causal). lse (may be NULL): natural-log sum of exponentials per [token][q_head], sinks
 * included (−inf if a row sees nothing; its output is then 0). Its error is a few float roundings of the
 * logits, but on bf16 pages with a kernel row that has bf16 dot products ("avx512bf16", "neonbf16") up to
 * 2^-8 (absolute), as the probabilities that are summed are rounded to bf16, so that numerator and
 * denominator agree: mind it when states of different rows are merged. MT-safe between different ith;
 * layers in flight at once must be fewer than concurrent_layers apart. O(KV bytes + rows × keys) /
 * nth. */
PKV_API pkv_status pkv_attend(pkv_plan *plan, uint32_t layer, const pkv_rows *q,
                              const pkv_rows_out *out, float *lse, uint32_t ith, uint32_t nth);

/* Attention mass of one layer after all threads' pkv_attend returned (options.mass = 1, otherwise
 * PKV_ESTATE), until the next attend that uses the same scratch (layer mod concurrent_layers): for
 * entry and KV head, mass[i] = sum over the entry's new tokens and the head's query group of the
 * probability given to the i-th resident page. Writes n_pages values (must equal the number of the
 * entry's resident pages in the layer's group, in logical order). */
PKV_API pkv_status pkv_plan_mass(pkv_plan *plan, uint32_t layer, uint32_t entry, uint32_t kv_head,
                                 float *mass, uint32_t n_pages);

/* Reads tokens [first, first + n) of a sequence's layer back to plain [token][head][dim] rows. k or v
 * may be NULL: not wanted (PKV_EINVAL if both are).
 * PKV_EDROPPED if a page of the range is not held. Committed tokens only. */
PKV_API pkv_status pkv_read(pkv_seq seq, uint32_t layer, uint64_t first, uint32_t n,
                            const pkv_rows_out *k, const pkv_rows_out *v);

/* Merges two attention states of the same rows over disjoint keys (cascade): out_a/lse_a become the
 * state over the union. n_rows rows of dim floats, contiguous. −inf LSEs are empty states. */
PKV_API pkv_status pkv_merge_states(float *out_a, float *lse_a, const float *out_b,
                                    const float *lse_b, size_t n_rows, size_t dim);

/* Conversion of one layer's part of a page between the kernel's tile layout and plain layouts. */
typedef int32_t pkv_layout;
enum {
    PKV_LAYOUT_NHD = 1, /* [2 (K, V)][token][head][dim] */
    PKV_LAYOUT_HND = 2  /* [2 (K, V)][head][token][dim] */
};
/* `page_part` as pkv_page_address returns it; `plain` holds page_tokens tokens, K first, then V, in the
 * page's types; of a quantised group in the type of its open pages: unpacking dequantises, packing
 * quantises (PKV_ENOMEM then possible, nothing changed). Tag of the tile layout: pkv_layout_tag(). */
PKV_API pkv_status pkv_page_unpack(pkv_cache *cache, uint32_t group, const void *page_part,
                                   pkv_layout layout, void *plain, size_t plain_bytes);
PKV_API pkv_status pkv_page_pack(pkv_cache *cache, uint32_t group, void *page_part,
                                 pkv_layout layout, const void *plain, size_t plain_bytes);
/* Identifies the tile layout of a format, so that saved pages are never misread. Changes whenever
 * the layout does. */
PKV_API pkv_status pkv_layout_tag(pkv_cache *cache, uint32_t group, uint64_t *tag);

/* Name of the kernel row in use by a cache ("avx512bf16"), and the names this build and CPU can
 * run: index 0..; PKV_ERANGE past the end. Static storage. */
PKV_API pkv_status pkv_kernel_name(pkv_cache *cache, const char **name);
PKV_API pkv_status pkv_kernel_list(uint32_t index, const char **name);

/* The same result in double precision over the stored cache, single-threaded and slow: the
 * reference that tests and `pkv-bench --check` compare with. Same arguments as pkv_attend; out is
 * double [token][q_head][head_dim_v], lse double [token][q_head] or NULL. */
PKV_API pkv_status pkv_attend_reference(pkv_plan *plan, uint32_t layer, const pkv_rows *q,
                                        double *out, double *lse);

#ifdef __cplusplus
}
#endif
#endif
