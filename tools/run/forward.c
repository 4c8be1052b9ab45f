#include "forward.h"

#include <ggml-alloc.h>
#include <math.h>
#include <stdlib.h>

struct forward {
    const model *m;
    kv_ops *ops;
    ggml_backend_t backend;
    ggml_gallocr_t allocator;
    size_t max_nodes;
    /* the graph at hand */
    struct ggml_context *ctx;
    struct ggml_cgraph *graph;
    struct ggml_tensor *tokens, *positions, *outputs, *logits;
    uint32_t n, n_outputs;
};

forward *forward_new(const model *m, kv_ops *ops, ggml_backend_t backend, tool_error *err)
{
    forward *f = calloc(1, sizeof *f);
    if (f) f->allocator = ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend));
    if (!f || !f->allocator) {
        free(f);
        tool_fail(err, "not enough memory");
        return NULL;
    }
    f->m = m;
    f->ops = ops;
    f->backend = backend;
    f->max_nodes = 64 + 48 * (size_t)m->n_layers;
    return f;
}

void forward_free(forward *f)
{
    if (!f) return;
    ggml_free(f->ctx);
    ggml_gallocr_free(f->allocator);
    free(f);
}

static struct ggml_tensor *norm(forward *f, struct ggml_tensor *x, struct ggml_tensor *weight)
{
    return ggml_mul(f->ctx, ggml_rms_norm(f->ctx, x, f->m->rms_eps), weight);
}

/* Heads [first, first + heads) of the rows of `x`, as [dim, heads, rows]. */
static struct ggml_tensor *heads_of(forward *f, struct ggml_tensor *x, uint32_t first,
                                    uint32_t heads, struct ggml_tensor *bias)
{
    int64_t dim = f->m->head_dim;
    size_t head_bytes = (size_t)dim * sizeof(float);
    if (bias) { /* only this part of the rows: the sum is contiguous */
        x = ggml_view_2d(f->ctx, x, dim * heads, x->ne[1], x->nb[1], first * head_bytes);
        x = ggml_add(f->ctx, x, bias);
        first = 0;
    }
    return ggml_view_3d(f->ctx, x, dim, heads, x->ne[1], head_bytes, x->nb[1], first * head_bytes);
}

static struct ggml_tensor *rope(forward *f, const model_layer *l, struct ggml_tensor *x)
{
    return ggml_rope_ext(f->ctx, x, f->positions, f->m->rope_factors, (int)f->m->n_rot,
                         f->m->traits->rope_type, (int)f->m->n_ctx_train, l->rope_base,
                         l->rope_scale, 0.0f, 1.0f, 32.0f, 1.0f);
}

/* The attention's contribution to the residual stream. With `write_only` nothing reads the result:
 * K and V are stored, and that is all. */
static struct ggml_tensor *attention(forward *f, uint32_t layer, struct ggml_tensor *x,
                                     bool write_only)
{
    const model *m = f->m;
    const model_layer *l = &m->layers[layer];
    uint32_t nq = m->n_heads, nkv = m->n_kv_heads;
    struct ggml_tensor *q, *k, *v;
    x = norm(f, x, l->attn_norm);
    if (l->wqkv) {
        struct ggml_tensor *qkv = ggml_mul_mat(f->ctx, l->wqkv, x);
        q = heads_of(f, qkv, 0, nq, l->bq);
        k = heads_of(f, qkv, nq, nkv, l->bk);
        v = heads_of(f, qkv, nq + nkv, nkv, l->bv);
    } else {
        q = heads_of(f, ggml_mul_mat(f->ctx, l->wq, x), 0, nq, l->bq);
        k = heads_of(f, ggml_mul_mat(f->ctx, l->wk, x), 0, nkv, l->bk);
        v = heads_of(f, ggml_mul_mat(f->ctx, l->wv, x), 0, nkv, l->bv);
    }
    if (l->q_norm) q = norm(f, q, l->q_norm);
    if (l->k_norm) k = norm(f, k, l->k_norm);
    struct ggml_tensor *written = kv_op_write(f->ctx, f->ops, layer, rope(f, l, k), v);
    if (write_only) return written;
    q = kv_op_attend(f->ctx, f->ops, layer, rope(f, l, q), written);
    return ggml_mul_mat(f->ctx, l->wo, q);
}

static struct ggml_tensor *feed_forward(forward *f, const model_layer *l, struct ggml_tensor *x)
{
    bool gelu = f->m->traits->gelu;
    x = norm(f, x, l->ffn_norm);
    if (l->gate_up) {
        x = ggml_mul_mat(f->ctx, l->gate_up, x);
        x = gelu ? ggml_geglu(f->ctx, x) : ggml_swiglu(f->ctx, x);
    } else {
        struct ggml_tensor *gate = ggml_mul_mat(f->ctx, l->gate, x);
        struct ggml_tensor *up = ggml_mul_mat(f->ctx, l->up, x);
        x = gelu ? ggml_geglu_split(f->ctx, gate, up) : ggml_swiglu_split(f->ctx, gate, up);
    }
    return ggml_mul_mat(f->ctx, l->down, x);
}

static struct ggml_tensor *head(forward *f, struct ggml_tensor *x)
{
    const model *m = f->m;
    x = ggml_mul_mat(f->ctx, m->output, norm(f, x, m->output_norm));
    if (m->output_bias) x = ggml_add(f->ctx, x, m->output_bias);
    if (m->logit_softcap > 0) {
        x = ggml_tanh(f->ctx, ggml_scale(f->ctx, x, 1.0f / m->logit_softcap));
        x = ggml_scale(f->ctx, x, m->logit_softcap);
    }
    return x;
}

static struct ggml_tensor *input(forward *f, uint32_t n)
{
    struct ggml_tensor *t = ggml_new_tensor_1d(f->ctx, GGML_TYPE_I32, n);
    ggml_set_input(t);
    return t;
}

/* All layers; past the last attention only the rows whose logits are wanted go on. */
static struct ggml_tensor *layers(forward *f)
{
    const model *m = f->m;
    struct ggml_tensor *x = ggml_get_rows(f->ctx, m->embedding, f->tokens);
    if (m->traits->embedding_scaled) x = ggml_scale(f->ctx, x, sqrtf((float)m->n_embd));
    for (uint32_t i = 0; i < m->n_layers; i++) {
        const model_layer *l = &m->layers[i];
        bool last = i + 1 == m->n_layers;
        struct ggml_tensor *a = attention(f, i, x, last && !f->n_outputs);
        if (last && !f->n_outputs) return a;
        if (last && f->n_outputs < f->n) {
            a = ggml_get_rows(f->ctx, a, f->outputs);
            x = ggml_get_rows(f->ctx, x, f->outputs);
        }
        if (l->attn_post_norm) a = norm(f, a, l->attn_post_norm);
        x = ggml_add(f->ctx, a, x);
        struct ggml_tensor *y = feed_forward(f, l, x);
        if (l->ffn_post_norm) y = norm(f, y, l->ffn_post_norm);
        x = ggml_add(f->ctx, y, x);
    }
    return head(f, x);
}

static int build(forward *f, uint32_t n, uint32_t n_outputs, tool_error *err)
{
    ggml_free(f->ctx);
    f->n = 0;
    size_t bytes =
        f->max_nodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(f->max_nodes, false);
    f->ctx = ggml_init((struct ggml_init_params){.mem_size = bytes, .no_alloc = true});
    if (!f->ctx) return tool_fail(err, "not enough memory for a graph");
    f->n = n;
    f->n_outputs = n_outputs;
    f->graph = ggml_new_graph_custom(f->ctx, f->max_nodes, false);
    f->tokens = input(f, n);
    f->positions = input(f, n);
    f->outputs = n_outputs && n_outputs < n ? input(f, n_outputs) : NULL;
    f->logits = layers(f);
    ggml_set_output(f->logits);
    ggml_build_forward_expand(f->graph, f->logits);
    if (ggml_gallocr_alloc_graph(f->allocator, f->graph)) return 0;
    f->n = 0;
    return tool_fail(err, "not enough memory for a step of %u tokens", n);
}

int forward_run(forward *f, const int32_t *tokens, const int32_t *positions, uint32_t n,
                const int32_t *outputs, uint32_t n_outputs, const float **logits, tool_error *err)
{
    if ((f->n != n || f->n_outputs != n_outputs) && build(f, n, n_outputs, err)) return -1;
    ggml_backend_tensor_set(f->tokens, tokens, 0, n * sizeof *tokens);
    ggml_backend_tensor_set(f->positions, positions, 0, n * sizeof *positions);
    if (f->outputs) ggml_backend_tensor_set(f->outputs, outputs, 0, n_outputs * sizeof *outputs);
    atomic_store(&f->ops->status, PKV_OK);
    enum ggml_status status = ggml_backend_graph_compute(f->backend, f->graph);
    if (status != GGML_STATUS_SUCCESS)
        return tool_fail(err, "ggml could not compute a step of %u tokens: %s", n,
                         ggml_status_to_string(status));
    pkv_status kv = atomic_load(&f->ops->status);
    if (kv) return tool_fail(err, "attention: %s", pkv_status_text(kv));
    *logits = n_outputs ? f->logits->data : NULL;
    return 0;
}
