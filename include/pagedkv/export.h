/* pagedkv: page tables in the formats that kernels elsewhere expect, into caller buffers. Indices
 * are pkv_page_index() of the pages, int32. All work on a reserved batch and cover each entry's
 * tokens including the new ones. Dropped pages: CSR lists only resident pages; the padded table
 * has a value of the caller's choice at a dropped logical page. */
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

/* What a row of a block table holds, so that the next export into it writes only what changed. The
 * library's own; zeroes = nothing is known of the row. */
typedef struct pkv_block_row {
    uint64_t opaque[4];
} pkv_block_row;

/* A padded block table in the caller's memory (vLLM's format). */
typedef struct pkv_block_table {
    size_t struct_size;    /* set by the caller to sizeof(pkv_block_table) */
    int32_t *data;         /* [n_rows][row_stride] */
    uint32_t n_rows;
    uint32_t row_stride;   /* logical pages that a row has room for */
    const uint32_t *rows;  /* [entries of the batch]: the row of each entry, below n_rows; NULL = entry
                            * i has row i. Give every live sequence a row of its own and it keeps it
                            * however batches change. Of two entries with one row the last stays */
    pkv_block_row *state;  /* [n_rows], zeroed with a new table or cache and wherever the caller itself
                            * changed a row; NULL = write whole rows */
    int32_t hole;          /* written where no page is held, up to the end of the row: -1, or the index
                            * of a page that the kernel may touch in vain (vLLM: 0) */
    uint32_t reserved32;   /* zero */
    uint64_t reserved[4];  /* zero */
} pkv_block_table;

/* Writes the row of every entry: data[row * row_stride + i] = the page of logical page i, or `hole`.
 * Other rows stay as they are. With `state`, a row that held this sequence at its last export (into
 * any table) is brought up to date: only pages that came, went or were replaced since are written;
 * every other row is written whole. All or nothing: PKV_ERANGE if a sequence has more logical pages
 * than row_stride, PKV_EINVAL (NULL, a row beyond n_rows, too few rows, reserved), PKV_EVERSION.
 * O(entries + changes), without state O(entries × row_stride). */
PKV_API pkv_status pkv_export_block_table(pkv_batch batch, uint32_t group,
                                          const pkv_block_table *table);

/* vLLM slot mapping: for each new token of the batch, index * page_tokens + offset, int64. `n` must
 * equal the batch's number of new tokens. */
PKV_API pkv_status pkv_export_slot_mapping(pkv_batch batch, uint32_t group, int64_t *slots,
                                           uint64_t n);

#ifdef __cplusplus
}
#endif
#endif
