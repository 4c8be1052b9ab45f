#ifndef PAGEDKV_SEQUENCE_H
#define PAGEDKV_SEQUENCE_H
#include "types.h"
#ifdef __cplusplus
extern "C" {
#endif
PKV_API pkv_status pkv_seq_create(pkv_cache *cache, pkv_seq *seq);
PKV_API pkv_status pkv_seq_destroy(pkv_seq seq);
PKV_API pkv_status pkv_seq_fork(pkv_seq seq, pkv_seq *child);
PKV_API pkv_status pkv_seq_truncate(pkv_seq seq, uint64_t n_tokens);
PKV_API pkv_status pkv_seq_length(pkv_seq seq, uint64_t *n_tokens);
PKV_API pkv_status pkv_seq_pin(pkv_seq seq, uint64_t begin, uint64_t end);
PKV_API pkv_status pkv_seq_unpin(pkv_seq seq, uint64_t begin, uint64_t end);
typedef struct pkv_seq_info {
    size_t struct_size;
    uint64_t length;
    uint64_t resident_tokens;
    uint32_t resident_pages;
    uint32_t shared_pages;
    uint32_t dropped_pages;
    uint32_t in_batch;
} pkv_seq_info;
PKV_API pkv_status pkv_seq_get_info(pkv_seq seq, uint32_t group, pkv_seq_info *info);
PKV_API pkv_status pkv_seq_pages(pkv_seq seq, uint32_t group, uint32_t first, uint32_t n,
                                 pkv_page *pages);
#ifdef __cplusplus
}
#endif
#endif
