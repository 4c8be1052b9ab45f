/* pagedkv's write and attention as operators of a ggml graph: they run on ggml's threads, which
 * call with their own ith and nth, and ggml's barrier between two nodes is the one that pagedkv
 * wants between pkv_write and pkv_attend. */
#ifndef TOOLS_RUN_KV_OPS_H
#define TOOLS_RUN_KV_OPS_H

#include <ggml.h>
#include <pagedkv/pagedkv.h>
#include <stdatomic.h>

/* What the operators of all layers share. Must stay where it is while a graph refers to it. */
typedef struct kv_ops {
    pkv_plan *plan;
    _Atomic pkv_status status; /* first failure of a step, or PKV_OK */
    struct kv_op_layer {
        struct kv_ops *ops;
        uint32_t layer;
    } * layers;
} kv_ops;

/* Prepares for n_layers; -1 if memory runs out. */
int kv_ops_init(kv_ops *ops, pkv_plan *plan, uint32_t n_layers);
void kv_ops_release(kv_ops *ops);

/* Node that stores k and v, both f32 [dim, kv_heads, tokens], into the pages of the plan's batch.
 */
struct ggml_tensor *kv_op_write(struct ggml_context *ctx, kv_ops *ops, uint32_t layer,
                                struct ggml_tensor *k, struct ggml_tensor *v);

/* Node of the attention of q, f32 [dim, heads, tokens]: f32 [dim * heads, tokens]. `written` is
 * this layer's kv_op_write: the edge makes ggml run it before. */
struct ggml_tensor *kv_op_attend(struct ggml_context *ctx, kv_ops *ops, uint32_t layer,
                                 struct ggml_tensor *q, struct ggml_tensor *written);

#endif
