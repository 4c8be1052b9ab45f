/* kernels/layout: what the bytes of a page mean.
 *
 * A page holds one "part" per layer of its group, one after the other. A part is
 *
 *     K tiles of all KV heads | V tiles of all KV heads | flags (K8, K4) | digest (optional)
 *
 * so that a kernel that walks page by page and, inside a page, head by head reads long contiguous
 * runs. A tile is one head's keys or values of the page's P = page_tokens slots:
 *
 *     f32, f16   K [dim_k][P]         lanes = tokens: a dot product needs no horizontal sum
 *                V [P][dim_v]         lanes = dims
 *     bf16       K [dim_k/2][P][2]    two neighbouring dims of a token are one 32-bit word, and
 *                V [P/2][dim_v][2]    two neighbouring tokens of a dim: native for bf16 dot
 *                                     products
 *     K8         codes u8 [dim_k][P], scale f16 [dim_k], minimum f16 [dim_k]
 *     K4         codes u4 [dim_k/2][P][2], scale f16 [dim_k], minimum f16 [dim_k]
 *     V8         codes i8 [P][dim_v], scale f16 [P]
 *     V4         codes u4 [P/2][dim_v][2], scale f16 [P][groups of 32 dims], minimum likewise
 *
 * K and V formats are chosen apart. A stored value is minimum + scale * code (V8: scale * code).
 * Two u4 codes share a byte, the even dim's (V4: token's) in its low half. Formats with codes hold
 * full pages only ("sealed": written at once by pkvi_kernels.seal, never changed). Scales are
 * finite and not negative but for tokens that a seal could not represent: a value that is not
 * finite, or beyond what f16 holds. Such a token of K has bit slot % 8 of byte slot / 8 set in the
 * head's flags [kv_heads][P/8], and reads as NaN; of V8 its scale is NaN, of V4 its group's scale
 * and minimum.
 *
 * Every tile is a multiple of 64 bytes (padded where need be), so with 64-byte aligned parts every
 * tile is aligned. docs/kernels.md has the same for a reader on another device. */
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
 * start of the part unless said otherwise. */
typedef struct pkvi_layout {
    pkv_dtype dtype_k;
    pkv_dtype dtype_v;
    uint32_t page_tokens;
    uint32_t kv_heads;
    uint32_t dim_k;
    uint32_t dim_v;
    uint32_t k_elem_bytes; /* 4 or 2; 0 for a format with codes */
    uint32_t v_elem_bytes;
    uint32_t digest;         /* PKVI_DIGEST_* */
    uint32_t k_head_bytes;   /* one K tile */
    uint32_t v_head_bytes;   /* one V tile */
    uint32_t k_row_bytes;    /* one channel of a K tile (bf16, K4: half a pair of channels) */
    uint32_t v_row_bytes;    /* one token of a V tile (bf16, V4: half a pair of tokens) */
    uint32_t k_scale, k_min; /* K8, K4: where in its tile the f16 [dim_k] are; else 0 */
    uint32_t v_scale, v_min; /* V8 (no minimum), V4: likewise; else 0 */
    uint32_t v_groups;       /* V4: groups of 32 dims; else 0 */
    size_t v_offset;         /* first V tile; K tiles start at 0 */
    size_t flag_offset;      /* K8, K4: [head][page_tokens / 8] bits; else 0 */
    size_t min_offset;       /* [head][dim_k] of dtype_k; 0 = absent */
    size_t max_offset;       /* [head][dim_k] of dtype_k; 0 = absent */
    size_t sum_offset;       /* [head][dim_k] of float; 0 = absent */
    size_t part_bytes;       /* size of the part, a multiple of 64 */
    uint64_t tag;            /* identifies format and geometry; differs whenever the bytes would */
} pkvi_layout;

/* Fills a layout. page_tokens in {8, 16, 32, 64, 128, 256}; dims multiples of 8 in
 * 8..PKV_MAX_HEAD_DIM; heads 1..PKV_MAX_HEADS; dtype_k f32, f16, bf16, K8 or K4; dtype_v f32, f16,
 * bf16, V8 or V4, in any combination. PKV_EINVAL otherwise, with *layout untouched. With K8 and K4
 * PKVI_DIGEST_MINMAX needs no room: minimum and scale are the bounds. O(1). */
pkv_status pkvi_layout_init(pkvi_layout *layout, pkv_dtype dtype_k, pkv_dtype dtype_v,
                            uint32_t page_tokens, uint32_t kv_heads, uint32_t dim_k, uint32_t dim_v,
                            uint32_t digest);

/* Are the keys, the values codes? */
static inline int pkvi_layout_k_coded(const pkvi_layout *l)
{
    return l->dtype_k == PKV_DTYPE_K8 || l->dtype_k == PKV_DTYPE_K4;
}
static inline int pkvi_layout_v_coded(const pkvi_layout *l)
{
    return l->dtype_v == PKV_DTYPE_V8 || l->dtype_v == PKV_DTYPE_V4;
}

/* Number of tokens of a head whose keys a seal could not represent; they read as NaN. O(P). */
uint32_t pkvi_layout_flagged(const pkvi_layout *layout, const void *part, uint32_t head);

/* Code of one element of a K8, K4, V8 or V4 tile (V8: sign-extended). O(1), for tests, the
 * reference and rows read back. */
int32_t pkvi_layout_k_code(const pkvi_layout *l, const void *part, uint32_t head, uint32_t slot,
                           uint32_t dim);
int32_t pkvi_layout_v_code(const pkvi_layout *l, const void *part, uint32_t head, uint32_t slot,
                           uint32_t dim);

/* Byte offset, inside a part, of one element, or of the byte that holds its code. For tests, the
 * reference and debug aids; O(1). */
size_t pkvi_layout_k_at(const pkvi_layout *layout, uint32_t head, uint32_t slot, uint32_t dim);
size_t pkvi_layout_v_at(const pkvi_layout *layout, uint32_t head, uint32_t slot, uint32_t dim);

#endif
