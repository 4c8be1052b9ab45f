#ifndef PAGEDKV_EXPORT_H
#define PAGEDKV_EXPORT_H
#include "types.h"
#ifdef __cplusplus
extern "C" {
#endif
PKV_API pkv_status pkv_export_csr(pkv_batch batch, uint32_t group, int32_t *indptr,
                                  int32_t *indices, uint32_t *n_indices, int32_t *last_page_len);
typedef struct pkv_block_row {
    uint64_t opaque[4];
} pkv_block_row;
typedef struct pkv_block_table {
    size_t struct_size;
    int32_t *data;
    uint32_t n_rows;
    uint32_t row_stride;
    const uint32_t *rows;
    pkv_block_row *state;
    int32_t hole;
    uint32_t reserved32;
    uint64_t reserved[4];
} pkv_block_table;
PKV_API pkv_status pkv_export_block_table(pkv_batch batch, uint32_t group,
                                          const pkv_block_table *table);
PKV_API pkv_status pkv_export_slot_mapping(pkv_batch batch, uint32_t group, int64_t *slots,
                                           uint64_t n);
#ifdef __cplusplus
}
#endif
#endif
