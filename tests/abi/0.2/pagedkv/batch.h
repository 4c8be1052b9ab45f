#ifndef PAGEDKV_BATCH_H
#define PAGEDKV_BATCH_H
#include "types.h"
#ifdef __cplusplus
extern "C" {
#endif
PKV_API pkv_status pkv_batch_begin(pkv_cache *cache, pkv_batch *batch);
PKV_API pkv_status pkv_batch_add(pkv_batch batch, pkv_seq seq, const int32_t *tokens,
                                 uint32_t n_tokens);
PKV_API pkv_status pkv_batch_remove(pkv_batch batch, uint32_t entry);
PKV_API pkv_status pkv_batch_reserve(pkv_batch batch);
PKV_API pkv_status pkv_batch_shortfall(pkv_batch batch, uint32_t *missing, uint32_t n_groups);
PKV_API pkv_status pkv_batch_commit(pkv_batch batch);
PKV_API pkv_status pkv_batch_commit_partial(pkv_batch batch, const uint32_t *accepted, uint32_t n);
PKV_API pkv_status pkv_batch_abort(pkv_batch batch);
PKV_API pkv_status pkv_batch_size(pkv_batch batch, uint32_t *n_entries, uint64_t *n_tokens);
typedef struct pkv_copy {
    uint32_t group;
    uint32_t n_tokens;
    pkv_page src, dst;
    uint64_t reserved;
} pkv_copy;
PKV_API pkv_status pkv_batch_copies(pkv_batch batch, pkv_copy *copies, uint32_t capacity,
                                    uint32_t *n);
#ifdef __cplusplus
}
#endif
#endif
