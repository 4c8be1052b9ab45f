/* pagedkv: page tables in the formats that kernels elsewhere expect, into caller buffers. Indices
 * are pkv_page_index() of the pages, int32. All work on a reserved batch and cover each entry's
 * tokens including the new ones. Dropped pages: CSR lists only resident pages; the padded table
 * holds -1 at a dropped logical page. */
#ifndef PAGEDKV_EXPORT_H
#define PAGEDKV_EXPORT_H

#include "types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* FlashInfer page table: indptr[n_entries + 1], indices[indptr[n_entries]],
 * last_page_len[n_entries] in 1..page_tokens. *n_indices (in: capacity of indices, out: needed).
 * PKV_ERANGE if too small (only *n_indices written). indices may be NULL with capacity 0. */
PKV_API pkv_status pkv_export_csr(pkv_batch batch, uint32_t group, int32_t *indptr,
                                  int32_t *indices, uint32_t *n_indices, int32_t *last_page_len);

/* vLLM padded block table: table[entry * row_stride + i] for i < row_stride, -1 padded. PKV_ERANGE
 * if a sequence has more logical pages than row_stride (nothing written). */
PKV_API pkv_status pkv_export_block_table(pkv_batch batch, uint32_t group, int32_t *table,
                                          uint32_t row_stride);

/* Incremental form for a table whose rows hold the same sequences as at the previous export: writes
 * only entries at or after first_changed[entry] (0-based logical page, in/out: updated to what the
 * next call may pass). 0 writes the whole row. The table remembers what changed since the last update,
 * so use one destination per sequence and group. O(entries + changes). */
PKV_API pkv_status pkv_export_block_table_update(pkv_batch batch, uint32_t group, int32_t *table,
                                                 uint32_t row_stride, uint32_t *first_changed);

/* vLLM slot mapping: for each new token of the batch, index * page_tokens + offset, int64. `n` must
 * equal the batch's number of new tokens. */
PKV_API pkv_status pkv_export_slot_mapping(pkv_batch batch, uint32_t group, int64_t *slots,
                                           uint64_t n);

#ifdef __cplusplus
}
#endif
#endif
