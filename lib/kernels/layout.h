/* kernels/layout: what the bytes of a page mean.
 *
 * A page holds one "part" per layer of its group, one after the other. A part is
 *
 *     K tiles of all KV heads | V tiles of all KV heads | digest (optional)
 *
 * so that a kernel that walks page by page and, inside a page, head by head reads long contiguous
 * runs. A tile is one head's keys or values of the page's P = page_tokens slots:
 *
 *     f32, f16   K [dim_k][P]         lanes = tokens: a dot product needs no horizontal sum
 *                V [P][dim_v]         lanes = dims
 *     bf16       K [dim_k/2][P][2]    two neighbouring dims of a token are one 32-bit word, and
 *                V [P/2][dim_v][2]    two neighbouring tokens of a dim: native for bf16 dot
 * products
 *
 * Every tile is a multiple of 128 bytes, so with 64-byte aligned parts every tile is aligned. */
#ifndef PKVI_LAYOUT_H
#define PKVI_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#include <pagedkv/types.h>

/* Digest kinds, or-ed into pkvi_layout.digest. Both describe the keys of a full page, per KV head.
 */
enum {
    PKVI_DIGEST_MINMAX = 1u, /* element-wise minimum and maximum, in the page's own type (exact) */
    PKVI_DIGEST_SUM = 2u     /* element-wise sum of the normalised keys k / |k| (a key of norm 0
                              * adds nothing), f32 */
};

/* Geometry of one layer's part of a page. Plain data, copy freely. All offsets in bytes from the
 * start of the part. */
typedef struct pkvi_layout {
    pkv_dtype dtype;
    uint32_t page_tokens;
    uint32_t kv_heads;
    uint32_t dim_k;
    uint32_t dim_v;
    uint32_t elem_bytes;   /* 4 or 2 */
    uint32_t digest;       /* PKVI_DIGEST_* */
    uint32_t k_head_bytes; /* one K tile */
    uint32_t v_head_bytes; /* one V tile */
    size_t v_offset;       /* first V tile; K tiles start at 0 */
    size_t min_offset;     /* [head][dim_k] of dtype; 0 = absent */
    size_t max_offset;     /* [head][dim_k] of dtype; 0 = absent */
    size_t sum_offset;     /* [head][dim_k] of float; 0 = absent */
    size_t part_bytes;     /* size of the part, a multiple of 64 */
    uint64_t tag;          /* identifies format and geometry; differs whenever the bytes would */
} pkvi_layout;

/* Fills a layout. page_tokens in {8, 16, 32, 64, 128}; dims multiples of 8 in
 * 8..PKV_MAX_HEAD_DIM; heads 1..PKV_MAX_HEADS. PKV_EINVAL otherwise, with *layout untouched. O(1).
 */
pkv_status pkvi_layout_init(pkvi_layout *layout, pkv_dtype dtype, uint32_t page_tokens,
                            uint32_t kv_heads, uint32_t dim_k, uint32_t dim_v, uint32_t digest);

/* Byte offset, inside a part, of one element. For tests, the reference and debug aids; O(1). */
size_t pkvi_layout_k_at(const pkvi_layout *layout, uint32_t head, uint32_t slot, uint32_t dim);
size_t pkvi_layout_v_at(const pkvi_layout *layout, uint32_t head, uint32_t slot, uint32_t dim);

#endif
