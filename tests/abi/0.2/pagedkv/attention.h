#ifndef PAGEDKV_ATTENTION_H
#define PAGEDKV_ATTENTION_H
#include "types.h"
#ifdef __cplusplus
extern "C" {
#endif
typedef struct pkv_rows {
    const void *data;
    pkv_dtype dtype;
    uint32_t heads;
    uint32_t dim;
    ptrdiff_t token_stride;
    ptrdiff_t head_stride;
    uint64_t reserved[2];
} pkv_rows;
typedef struct pkv_rows_out {
    void *data;
    pkv_dtype dtype;
    uint32_t heads;
    uint32_t dim;
    ptrdiff_t token_stride;
    ptrdiff_t head_stride;
    uint64_t reserved[2];
} pkv_rows_out;
typedef struct pkv_plan_options {
    size_t struct_size;
    float scale;
    float softcap;
    const float
        *alibi_slopes;
    const float *sinks;
    uint32_t sinks_stride;
    uint32_t concurrent_layers;
    uint32_t cascade;
    uint32_t mass;
    uint32_t max_threads;
    uint64_t reserved[8];
} pkv_plan_options;
PKV_API pkv_status pkv_plan_options_init(pkv_plan_options *options, size_t size);
PKV_API pkv_status pkv_plan_create(pkv_cache *cache, const pkv_plan_options *options,
                                   pkv_plan **plan);
PKV_API void pkv_plan_destroy(pkv_plan *plan);
PKV_API pkv_status pkv_plan_set_tree(pkv_plan *plan, uint32_t entry, uint32_t n_tokens,
                                     const uint8_t *mask, const uint32_t *positions);
PKV_API pkv_status pkv_plan_build(pkv_plan *plan, pkv_batch batch);
PKV_API pkv_status pkv_write(pkv_plan *plan, uint32_t layer, const pkv_rows *k, const pkv_rows *v,
                             uint32_t ith, uint32_t nth);
PKV_API pkv_status pkv_attend(pkv_plan *plan, uint32_t layer, const pkv_rows *q,
                              const pkv_rows_out *out, float *lse, uint32_t ith, uint32_t nth);
PKV_API pkv_status pkv_plan_mass(pkv_plan *plan, uint32_t layer, uint32_t entry, uint32_t kv_head,
                                 float *mass, uint32_t n_pages);
PKV_API pkv_status pkv_read(pkv_seq seq, uint32_t layer, uint64_t first, uint32_t n,
                            const pkv_rows_out *k, const pkv_rows_out *v);
PKV_API pkv_status pkv_merge_states(float *out_a, float *lse_a, const float *out_b,
                                    const float *lse_b, size_t n_rows, size_t dim);
typedef int32_t pkv_layout;
enum {
    PKV_LAYOUT_NHD = 1,
    PKV_LAYOUT_HND = 2
};
PKV_API pkv_status pkv_page_unpack(pkv_cache *cache, uint32_t group, const void *page_part,
                                   pkv_layout layout, void *plain, size_t plain_bytes);
PKV_API pkv_status pkv_page_pack(pkv_cache *cache, uint32_t group, void *page_part,
                                 pkv_layout layout, const void *plain, size_t plain_bytes);
PKV_API pkv_status pkv_layout_tag(pkv_cache *cache, uint32_t group, uint64_t *tag);
PKV_API pkv_status pkv_kernel_name(pkv_cache *cache, const char **name);
PKV_API pkv_status pkv_kernel_list(uint32_t index, const char **name);
PKV_API pkv_status pkv_attend_reference(pkv_plan *plan, uint32_t layer, const pkv_rows *q,
                                        double *out, double *lse);
#ifdef __cplusplus
}
#endif
#endif
