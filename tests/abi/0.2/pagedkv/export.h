#ifndef PAGEDKV_EXPORT_H
#define PAGEDKV_EXPORT_H
#include "types.h"
#ifdef __cplusplus
extern "C" {
#endif
PKV_API pkv_status pkv_export_csr(pkv_batch batch, uint32_t group, int32_t *indptr,
                                  int32_t *indices, uint32_t *n_indices, int32_t *last_page_len);
PKV_API pkv_status pkv_export_block_table(pkv_batch batch, uint32_t group, int32_t *table,
                                          uint32_t row_stride);
PKV_API pkv_status pkv_export_block_table_update(pkv_batch batch, uint32_t group, int32_t *table,
                                                 uint32_t row_stride, uint32_t *first_changed);
PKV_API pkv_status pkv_export_slot_mapping(pkv_batch batch, uint32_t group, int64_t *slots,
                                           uint64_t n);
#ifdef __cplusplus
}
#endif
#endif
