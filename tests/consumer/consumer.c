/* A host program that knows only the installed library: one sequence, one layer, one step. */
#include <pagedkv/pagedkv.h>

#include <math.h>
#include <stdio.h>

enum { HEADS = 2, DIM = 64, TOKENS = 5 };

int main(void)
{
    pkv_group_config group = {.n_layers = 1, .kv_heads = HEADS, .head_dim_k = DIM,
                              .dtype = PKV_DTYPE_F32};
    pkv_config config;
    pkv_cache *cache;
    pkv_seq seq;
    pkv_batch batch;
    pkv_plan *plan;
    static float k[TOKENS][HEADS][DIM], v[TOKENS][HEADS][DIM], out[TOKENS][HEADS][DIM];
    for (int t = 0; t < TOKENS; t++)
        for (int h = 0; h < HEADS; h++)
            for (int d = 0; d < DIM; d++) v[t][h][d] = (float)t; /* keys 0: uniform attention */
    const pkv_rows rows_k = {.data = k,
                             .dtype = PKV_DTYPE_F32,
                             .heads = HEADS,
                             .dim = DIM,
                             .token_stride = sizeof k[0],
                             .head_stride = sizeof k[0][0]};
    const pkv_rows rows_v = {.data = v,
                             .dtype = PKV_DTYPE_F32,
                             .heads = HEADS,
                             .dim = DIM,
                             .token_stride = sizeof v[0],
                             .head_stride = sizeof v[0][0]};
    const pkv_rows_out rows_out = {.data = out,
                                   .dtype = PKV_DTYPE_F32,
                                   .heads = HEADS,
                                   .dim = DIM,
                                   .token_stride = sizeof out[0],
                                   .head_stride = sizeof out[0][0]};

    pkv_config_init(&config, sizeof config);
    config.groups = &group;
    config.n_groups = 1;
    config.memory_limit = 16u << 20;
    if (pkv_cache_create(&config, &cache) || pkv_seq_create(cache, &seq) ||
        pkv_batch_begin(cache, &batch) || pkv_batch_add(batch, seq, NULL, TOKENS) ||
        pkv_batch_reserve(batch) || pkv_plan_create(cache, NULL, &plan) ||
        pkv_plan_build(plan, batch) || pkv_write(plan, 0, &rows_k, &rows_v, 0, 1) ||
        pkv_attend(plan, 0, &rows_k, &rows_out, NULL, 0, 1) || pkv_batch_commit(batch)) {
        puts("a call failed");
        return 1;
    }
    pkv_plan_destroy(plan);
    pkv_cache_destroy(cache);
    for (int t = 0; t < TOKENS; t++) /* row t averages 0..t */
        if (fabsf(out[t][1][DIM - 1] - (float)t / 2) > 1e-5f) {
            printf("row %d: %g\n", t, (double)out[t][1][DIM - 1]);
            return 1;
        }
    printf("pagedkv %s works\n", pkv_version_string());
    return 0;
}
