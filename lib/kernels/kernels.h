/* kernels: the tile layout of pages and the inner loops over it, one row of functions per ISA.
 *
 * Everything here works on plain pointers and a pkvi_layout; nothing allocates, locks, waits or
 * keeps state, so every function may run in any number of threads on disjoint outputs. Arguments
 * are trusted: the callers have checked them.
 *
 * Numbers. Scores are kept in base 2: s2 = log2(e) * logit. A partial attention state of a row is
 * (O, m, l): m = max s2, l = sum 2^(s2 - m), O = sum 2^(s2 - m) * v, not normalised. An empty state
 * is m = -inf, l = 0, O = 0. The natural-log LSE is (m + log2 l) * ln 2.
 *
 * Determinism. On one row of the table and one dtype, a row's state depends on its q, mask, keys
 * and values and on the leaf boundaries only: not on the number of rows or heads in the call, on
 * their order, or on where pages lie. Attending over [a, c) in one call gives bitwise the state of
 * [a, b) followed by [b, c) with PKVI_JOB_ACCUMULATE if b is a leaf boundary. */
#ifndef PKVI_KERNELS_H
#define PKVI_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include <pagedkv/types.h>
#include "layout.h"

/* Slots of a leaf: scores of a leaf are computed first, then one maximum, then P*V. Leaf boundaries
 * are the multiples of this, counted from parts[0]'s first slot minus leaf_phase. */
#define PKVI_LEAF 512u

/* Rows (query rows x heads) that one pass holds in scratch; more are done in several passes. */
#define PKVI_TILE_ROWS 128u

/* Recommended number of query rows per job for prefill: a multiple of the register tile's 12 rows
 * that fits a pass. More rows are legal and are done tile by tile. */
#define PKVI_PREFILL_ROWS 120u

/* Flags of a job. */
enum {
    /* o, m, l hold the state over earlier keys and are continued; otherwise they are overwritten.
     */
    PKVI_JOB_ACCUMULATE = 1u,
    /* Every q element is exactly a bf16 value (the host's q was bf16). The bf16-dot rows then use
     * one product per pair instead of a high and a low part; other rows ignore it. */
    PKVI_JOB_Q_BF16 = 2u,
    /* Only `mass` is computed, from keys and mass_lse2; o, m, l and V are not touched. */
    PKVI_JOB_MASS_ONLY = 4u,
    /* The scratch still holds this job's queries in the kernel's own order: the last call with it
     * had the same layout, q, heads, rows and Q_BF16, and they fit one pass (rows x heads <=
     * PKVI_TILE_ROWS). Saves the reordering. */
    PKVI_JOB_SAME_Q = 8u
};

/* Attention of n_rows query rows per KV head over the slots of consecutive resident pages.
 * Slots are counted from the first slot of parts[0]: slot s is slot s % P of parts[s / P].
 * A row's arithmetic never reads the influence of a slot it does not see: such slots may hold NaN
 * or Inf. All arrays are the caller's and are only read unless said otherwise. */
typedef struct pkvi_attend_job {
    const pkvi_layout *layout;
    const void *const *parts; /* [n_pages] this layer's part of each page */
    uint32_t n_pages;
    uint32_t leaf_phase;   /* slots between the last leaf boundary and parts[0]'s first slot: a
                            * multiple of page_tokens below PKVI_LEAF */
    uint32_t head0, head1; /* KV heads [head0, head1) */
    uint32_t n_rows;       /* rows per KV head (query tokens x group size), any number >= 1 */
    uint32_t flags;        /* PKVI_JOB_* */

    /* q[h - head0][row][dim_k], f32; unscaled. */
    const float *q;
    size_t q_head_stride; /* floats between heads; rows are dim_k apart */

    /* Row r sees slots [lo[r], hi[r]), hi <= n_pages * P; lo >= hi sees none. */
    const uint32_t *lo; /* [n_rows] */
    const uint32_t *hi; /* [n_rows] */
    /* Tree: of the slots tree_slot + j, j < tree_n, row r sees only those with bit j of
     * tree_rows[r] set (LSB first) besides being in [lo, hi). tree_n = 0: no tree. */
    uint32_t tree_slot;
    uint32_t tree_n;
    const uint8_t *const *tree_rows; /* [n_rows]; a NULL entry means all bits set */

    float scale;   /* logit = dot * scale */
    float softcap; /* > 0: logit = softcap * tanh(logit / softcap) */
    /* ALiBi: logit += slopes[h - head0][row] * (key position - q_pos[row]). NULL = off. The key
     * position is page_pos[page] + slot in page (page_pos NULL: slot), and tree_pos[j] for tree
     * slots if tree_pos is given. */
    const float *slopes;     /* [heads][n_rows] */
    const int32_t *q_pos;    /* [n_rows] */
    const int32_t *page_pos; /* [n_pages] or NULL */
    const int32_t *tree_pos; /* [tree_n] or NULL */

    /* State, written (with ACCUMULATE also read). */
    float *o;             /* [heads][n_rows][o_stride], dims past dim_v untouched */
    size_t o_head_stride; /* floats between heads */
    size_t o_stride;      /* floats between rows, >= dim_v */
    float *m;             /* [heads][n_rows] */
    float *l;             /* [heads][n_rows] */

    /* Optional: sum over each page of 2^(s2 - m) with the m this call leaves in job->m, per
     * (head, row, page); 0 where nothing is seen. Written, never accumulated. NULL = off. */
    float *page_sum; /* [heads][n_rows][n_pages] */

    /* PKVI_JOB_MASS_ONLY: mass[h - head0][page] += sum over rows of 2^(s2 - mass_lse2[h][row]),
     * rows with mass_lse2 = -inf add nothing. */
    const float *mass_lse2; /* [heads][n_rows]: lse * log2(e) */
    float *mass;            /* [heads][n_pages] */

    void *scratch; /* pkvi_kernel_scratch() bytes, 64-byte aligned */
} pkvi_attend_job;

/* Rows of [token][head][dim] in the caller's memory, strides in bytes, dim contiguous. Only the
 * element alignment is assumed. */
typedef struct pkvi_tensor {
    void *data;
    pkv_dtype dtype;
    ptrdiff_t token_stride;
    ptrdiff_t head_stride;
} pkvi_tensor;

/* Moves tokens between plain rows and the tiles of one part. data of k and v points at the element
 * [first token][head 0][0]; heads [head0, head1) are moved. k or v may have data NULL = skip. */
typedef struct pkvi_move_job {
    const pkvi_layout *layout;
    void *part;
    uint32_t head0, head1;
    uint32_t slot;     /* first slot in the page */
    uint32_t n_tokens; /* slot + n_tokens <= page_tokens */
    pkvi_tensor k;
    pkvi_tensor v;
} pkvi_move_job;

/* One output row: out[dim_v] = o / (l + 2^(sink * log2 e - m)), lse = natural log of the
 * denominator times 2^m. sink = -inf means none. An empty row gives zeros (with a sink too) and
 * lse = sink (-inf without). */
typedef struct pkvi_finish_job {
    const float *o;
    size_t o_stride;    /* floats between rows */
    const float *m;     /* [n_rows] */
    const float *l;     /* [n_rows] */
    const float *sinks; /* [n_rows] natural-log logits, or NULL */
    uint32_t n_rows;
    uint32_t dim;
    pkv_dtype dtype;   /* of the outputs */
    void *const *out;  /* [n_rows] address of each output row; a NULL entry is skipped */
    float *const *lse; /* [n_rows] address of each LSE, entries or the array may be NULL */
} pkvi_finish_job;

/* A row of the table: one ISA level. */
typedef struct pkvi_kernels {
    const char *name;  /* "generic", "avx2", "avx512", "avx512bf16", "neon", … */
    uint32_t features; /* PKVI_CPU_* all needed */

    /* Attention of a job. */
    void (*attend)(const pkvi_attend_job *job);

    /* Writes rows into tiles (converting, round to nearest even; NaN stays NaN; not of a layout
     * with codes) and reads back (of any layout). */
    void (*write)(const pkvi_move_job *job);
    void (*read)(const pkvi_move_job *job);

    /* Quantises heads [head0, head1) of a full page's part into a part of a layout with codes (K, V
     * or both; a tensor that is not coded is converted). The layouts agree in everything but
     * formats and digest; the open one is f32, f16 or bf16. Codes are to the nearest, computed
     * against the stored half scale and minimum, so that a value is off by half a stored step at
     * most; a channel (V8: token, V4: group) of equal values that a half can hold is exact. Returns
     * how many (head, token) keys and values could not be represented, and are flagged in the page
     * (layout.h): not finite, or above what a half (V8: 127 times that) holds. Others are not
     * affected. The bytes, padding included, depend on the open part alone. Digests are not
     * filled. */
    uint32_t (*seal)(const pkvi_layout *open, const void *open_part, const pkvi_layout *sealed,
                     void *sealed_part, uint32_t head0, uint32_t head1);

    /* The reverse: the sealed values, as attend computes them, rounded to the open layout's types;
     * what is flagged becomes NaN. Digests are not filled. */
    void (*unseal)(const pkvi_layout *sealed, const void *sealed_part, const pkvi_layout *open,
                   void *open_part, uint32_t head0, uint32_t head1);

    /* Fills the digest of heads [head0, head1) from slots [0, n_tokens) of the part. Nothing if the
     * layout has none. NaN keys are ignored by min and max. */
    void (*digest)(const pkvi_layout *layout, void *part, uint32_t head0, uint32_t head1,
                   uint32_t n_tokens);

    /* Upper bound of q*k over each page (Quest), the largest of the rows': best[h - head0][page] =
     * max over rows of sum_i max(q_i * min_i, q_i * max_i); of keys in codes the bounds are minimum
     * and minimum + highest code * scale, with or without a digest; a bound that is not a number
     * counts as -inf. q as in a job, contiguous [heads][n_rows][dim_k]. */
    void (*score)(const pkvi_layout *layout, const void *const *parts, uint32_t n_pages,
                  uint32_t head0, uint32_t head1, const float *q, uint32_t n_rows, float *best);

    /* State a becomes the state over both: rows of dim floats, stride apart. Merging partials in
     * ascending key order from an empty state is the canonical order. */
    void (*merge)(float *o_a, float *m_a, float *l_a, const float *o_b, const float *m_b,
                  const float *l_b, uint32_t n_rows, uint32_t dim, size_t stride);

    /* Normalises, converts and stores rows of a state. */
    void (*finish)(const pkvi_finish_job *job);

    /* Merges normalised outputs with natural-log LSEs (pkv_merge_states). Contiguous rows. */
    void (*merge_states)(float *out_a, float *lse_a, const float *out_b, const float *lse_b,
                         size_t n_rows, size_t dim);

    /* n elements from one type to another (also same type), no alignment beyond the element's. */
    void (*convert)(void *dst, pkv_dtype dst_dtype, const void *src, pkv_dtype src_dtype, size_t n);

    /* Sum of a[i] * b[i]; n a multiple of 8, as all head dims are. */
    float (*dot)(const float *a, const float *b, size_t n);

    /* to[i] = from[i] * scale; returns the squared distance that `to` moved. n as in dot. */
    float (*turn)(float *to, const float *from, float scale, size_t n);

    /* y[i] = 2^x[i], the exponential the kernels use: at most 2 ulp off for x in [-126, 127], 0
     * below -126, NaN for NaN. For tests. */
    void (*exp2)(float *y, const float *x, size_t n);
} pkvi_kernels;

/* Bytes of scratch that attend needs for a job of this layout, heads and rows, on any row of the
 * table. O(1); at most about 1 MiB. */
size_t pkvi_kernel_scratch(const pkvi_layout *layout, uint32_t n_heads, uint32_t n_rows);

/* The table in order of preference: index 0.., NULL past the end. Only rows of this build and, if
 * `usable`, only those this CPU can run. */
const pkvi_kernels *pkvi_kernel_at(uint32_t index, int usable);

/* The preferred usable row, or the one with this name; NULL if unknown or unusable. */
const pkvi_kernels *pkvi_kernel_find(const char *name);

/* Features of a CPU that rows need; what this machine (CPU and OS) supports. */
enum {
    PKVI_CPU_AVX2 = 1u,       /* AVX2, FMA, F16C */
    PKVI_CPU_AVX512 = 2u,     /* F, BW, DQ, VL on top of the above */
    PKVI_CPU_AVX512BF16 = 4u, /* AVX512_BF16 */
    PKVI_CPU_NEON = 8u,       /* Advanced SIMD of AArch64 */
    PKVI_CPU_NEON_BF16 = 16u  /* BF16 (BFDOT) */
};
uint32_t pkvi_cpu_features(void);

/* Reference: attention in double precision over stored tiles, for tests and checks. Slow. */

/* Value of one stored element as a double. */
double pkvi_reference_k(const pkvi_layout *layout, const void *part, uint32_t head, uint32_t slot,
                        uint32_t dim);
double pkvi_reference_v(const pkvi_layout *layout, const void *part, uint32_t head, uint32_t slot,
                        uint32_t dim);

/* One row (head h of the layout, row r) of a job: out[dim_v] normalised and its natural-log LSE.
 * Uses the job's layout, parts, q, masks, scale, softcap and ALiBi; its state, flags and scratch
 * are ignored. `sink` is a natural-log logit joining the denominator, -INFINITY for none. lse,
 * weights and mass may be NULL: weights[dim_v] = sum p|v| (the scale of errors), mass[n_pages] =
 * the probability given to each page. */
void pkvi_reference_row(const pkvi_attend_job *job, uint32_t head, uint32_t row, double sink,
                        double *out, double *lse, double *weights, double *mass);

#endif
