#ifndef PAGEDKV_ADMISSION_H
#define PAGEDKV_ADMISSION_H
#include "types.h"
#ifdef __cplusplus
extern "C" {
#endif
PKV_API pkv_status pkv_admit_probe(pkv_cache *cache, uint64_t max_tokens, uint64_t shared_tokens,
                                   uint32_t *safe, uint32_t *missing, uint32_t n_groups);
PKV_API pkv_status pkv_admit(pkv_seq seq, uint64_t max_tokens);
PKV_API pkv_status pkv_admit_release(pkv_seq seq);
PKV_API pkv_status pkv_admit_check_batch(pkv_batch batch, uint32_t *blocked);
#ifdef __cplusplus
}
#endif
#endif
