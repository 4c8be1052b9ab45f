/* A model as a GGUF file states it: geometry, and weights as ggml tensors. Architectures: llama,
 * qwen2, qwen3, gemma3; every type that ggml multiplies. */
#ifndef TOOLS_RUN_MODEL_H
#define TOOLS_RUN_MODEL_H

#include <ggml-backend.h>
#include <ggml.h>
#include <gguf.h>
#include <stdbool.h>
#include <stdint.h>

#include "tool_error.h"

enum { MODEL_MAX_LAYERS = 512, MODEL_MAX_BUFFERS = 8 };

/* What differs between the architectures, beyond which weights there are. */
typedef struct model_traits {
    const char *name;
    int rope_type;          /* GGML_ROPE_TYPE_* */
    bool embedding_scaled;  /* embeddings times sqrt(n_embd) */
    bool gelu;              /* feed-forward gate: GELU instead of SiLU */
    uint32_t full_every;    /* every n-th layer attends to everything, the others in a window */
    float window_rope_base; /* RoPE base of the layers with a window */
} model_traits;

/* One block. A pointer is NULL where the architecture or the file has no such weight. wqkv and
 * gate_up replace their parts where these have one type: fewer, larger products. */
typedef struct model_layer {
    struct ggml_tensor *attn_norm, *wqkv, *wq, *wk, *wv, *bq, *bk, *bv, *q_norm, *k_norm, *wo;
    struct ggml_tensor *attn_post_norm, *ffn_norm, *gate_up, *gate, *up, *down, *ffn_post_norm;
    uint32_t window; /* tokens; 0 = full attention */
    float rope_base, rope_scale;
} model_layer;

typedef struct model {
    const model_traits *traits;
    char name[128];
    uint32_t n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_rot, n_vocab, n_ctx_train;
    float rms_eps, attention_scale, logit_softcap;
    struct ggml_tensor *embedding, *output_norm, *output, *output_bias, *rope_factors;
    model_layer layers[MODEL_MAX_LAYERS];
    uint64_t weight_bytes;
    /* what the tensors live in */
    struct gguf_context *gguf;
    struct ggml_context *file_tensors, *own_tensors[MODEL_MAX_BUFFERS];
    ggml_backend_buffer_t buffers[MODEL_MAX_BUFFERS];
    uint32_t n_buffers;
    void *mapping;
    size_t mapping_bytes;
} model;

/* Maps a GGUF file and makes its weights ready for `device` (the CPU). Weights that one of the
 * device's repacked formats multiplies faster are converted. NULL with a text. */
model *model_load(const char *path, ggml_backend_dev_t device, tool_error *err);
void model_free(model *m);

#endif
