#include "kv_ops.h"

#include <stdlib.h>

int kv_ops_init(kv_ops *ops, pkv_plan *plan, uint32_t n_layers)
{
    ops->plan = plan;
    atomic_init(&ops->status, PKV_OK);
    ops->layers = calloc(n_layers, sizeof *ops->layers);
    for (uint32_t i = 0; ops->layers && i < n_layers; i++)
        ops->layers[i] = (struct kv_op_layer){ops, i};
    return ops->layers ? 0 : -1;
}

void kv_ops_release(kv_ops *ops)
{
    free(ops->layers);
    ops->layers = NULL;
}

static void note(kv_ops *ops, pkv_status status)
{
    pkv_status none = PKV_OK;
    if (status) atomic_compare_exchange_strong(&ops->status, &none, status);
}

/* A ggml tensor [dim, heads, tokens] as pagedkv's rows: the same thing, with strides. */
static pkv_rows rows_of(const struct ggml_tensor *t)
{
    return (pkv_rows){.data = t->data,
                      .dtype = PKV_DTYPE_F32,
                      .heads = (uint32_t)t->ne[1],
                      .dim = (uint32_t)t->ne[0],
                      .token_stride = (ptrdiff_t)t->nb[2],
                      .head_stride = (ptrdiff_t)t->nb[1]};
}

static void run_write(struct ggml_tensor *dst, int ith, int nth, void *user)
{
    const struct kv_op_layer *l = user;
    pkv_rows k = rows_of(dst->src[0]), v = rows_of(dst->src[1]);
    note(l->ops, pkv_write(l->ops->plan, l->layer, &k, &v, (uint32_t)ith, (uint32_t)nth));
}

static void run_attend(struct ggml_tensor *dst, int ith, int nth, void *user)
{
    const struct kv_op_layer *l = user;
    pkv_rows q = rows_of(dst->src[0]);
    pkv_rows_out out = {.data = dst->data,
                        .dtype = PKV_DTYPE_F32,
                        .heads = q.heads,
                        .dim = (uint32_t)(dst->ne[0] / dst->src[0]->ne[1]),
                        .token_stride = (ptrdiff_t)dst->nb[1],
                        .head_stride = (ptrdiff_t)(dst->nb[1] / q.heads)};
    note(l->ops, pkv_attend(l->ops->plan, l->layer, &q, &out, NULL, (uint32_t)ith, (uint32_t)nth));
}

struct ggml_tensor *kv_op_write(struct ggml_context *ctx, kv_ops *ops, uint32_t layer,
                                struct ggml_tensor *k, struct ggml_tensor *v)
{
    struct ggml_tensor *args[] = {k, v};
    return ggml_custom_4d(ctx, GGML_TYPE_I32, 1, 1, 1, 1, args, 2, run_write, GGML_N_TASKS_MAX,
                          &ops->layers[layer]);
}

struct ggml_tensor *kv_op_attend(struct ggml_context *ctx, kv_ops *ops, uint32_t layer,
                                 struct ggml_tensor *q, struct ggml_tensor *written)
{
    struct ggml_tensor *args[] = {q, written};
    return ggml_custom_4d(ctx, GGML_TYPE_F32, q->ne[0] * q->ne[1], q->ne[2], 1, 1, args, 2,
                          run_attend, GGML_N_TASKS_MAX, &ops->layers[layer]);
}
