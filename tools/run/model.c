#include "model.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model_weights.h"

static const model_traits known[] = {
    {.name = "llama", .rope_type = GGML_ROPE_TYPE_NORMAL},
    {.name = "qwen2", .rope_type = GGML_ROPE_TYPE_NEOX},
    {.name = "qwen3", .rope_type = GGML_ROPE_TYPE_NEOX},
    {.name = "gemma3",
     .rope_type = GGML_ROPE_TYPE_NEOX,
     .embedding_scaled = true,
     .gelu = true,
     .full_every = 6,
     .window_rope_base = 10000.0f},
};

/* Reads scalars of the file's metadata by architecture-relative key. */
typedef struct reader {
    const struct gguf_context *gguf;
    const char *arch;
    tool_error *err;
    bool failed;
} reader;

static int64_t find(const reader *r, const char *key)
{
    char full[160];
    snprintf(full, sizeof full, "%s.%s", r->arch, key);
    return gguf_find_key(r->gguf, full);
}

static void complain(reader *r, const char *key, const char *why)
{
    if (!r->failed) tool_fail(r->err, "%s.%s: %s", r->arch, key, why);
    r->failed = true;
}

static uint32_t get_u32(reader *r, const char *key, bool required, uint32_t otherwise)
{
    int64_t id = find(r, key);
    if (id < 0) {
        if (required) complain(r, key, "missing");
        return otherwise;
    }
    switch (gguf_get_kv_type(r->gguf, id)) {
    case GGUF_TYPE_UINT32:
        return gguf_get_val_u32(r->gguf, id);
    case GGUF_TYPE_INT32:
        if (gguf_get_val_i32(r->gguf, id) >= 0) return (uint32_t)gguf_get_val_i32(r->gguf, id);
        break;
    case GGUF_TYPE_UINT64:
        if (gguf_get_val_u64(r->gguf, id) <= UINT32_MAX)
            return (uint32_t)gguf_get_val_u64(r->gguf, id);
        break;
    default:
        break;
    }
    complain(r, key, "not a whole number of one value for all layers");
    return otherwise;
}

static float get_f32(reader *r, const char *key, bool required, float otherwise)
{
    int64_t id = find(r, key);
    if (id < 0) {
        if (required) complain(r, key, "missing");
        return otherwise;
    }
    if (gguf_get_kv_type(r->gguf, id) == GGUF_TYPE_FLOAT32) return gguf_get_val_f32(r->gguf, id);
    complain(r, key, "not a 32-bit float");
    return otherwise;
}

static void read_text(const struct gguf_context *gguf, const char *key, char *text, size_t capacity)
{
    int64_t id = gguf_find_key(gguf, key);
    bool is_text = id >= 0 && gguf_get_kv_type(gguf, id) == GGUF_TYPE_STRING;
    snprintf(text, capacity, "%s", is_text ? gguf_get_val_str(gguf, id) : "");
}

/* Linear scaling stretches positions; others need more than one frequency scale. */
static float read_rope_scale(reader *r)
{
    char key[160], type[32];
    snprintf(key, sizeof key, "%s.rope.scaling.type", r->arch);
    read_text(r->gguf, key, type, sizeof type);
    if (type[0] && strcmp(type, "none") && strcmp(type, "linear"))
        complain(r, "rope.scaling.type", "only none and linear are supported");
    float factor = get_f32(r, "rope.scaling.factor", false, 0);
    return factor > 0 ? 1.0f / factor : 1.0f;
}

/* Which layers have a window: the pattern is the architecture's, the file may state another. */
static void read_layer_kinds(model *m, reader *r)
{
    uint32_t window = get_u32(r, "attention.sliding_window", false, 0);
    uint32_t every = get_u32(r, "attention.sliding_window_pattern", false, m->traits->full_every);
    float base = get_f32(r, "rope.freq_base", false, 10000.0f);
    float window_base = get_f32(r, "rope.freq_base_swa", false, m->traits->window_rope_base);
    float scale = read_rope_scale(r);
    for (uint32_t i = 0; i < m->n_layers; i++) {
        bool full = !m->traits->full_every || !window || !every || (i + 1) % every == 0;
        m->layers[i].window = full ? 0 : window;
        m->layers[i].rope_base = full ? base : window_base;
        m->layers[i].rope_scale = full ? scale : 1.0f;
    }
}

static int read_geometry(model *m, tool_error *err)
{
    char arch[64];
    read_text(m->gguf, "general.architecture", arch, sizeof arch);
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strcmp(known[i].name, arch) == 0) m->traits = &known[i];
    if (!m->traits)
        return tool_fail(err, "architecture '%s' is not one of llama, qwen2, qwen3, gemma3", arch);
    read_text(m->gguf, "general.name", m->name, sizeof m->name);
    reader r = {m->gguf, m->traits->name, err, false};
    m->n_layers = get_u32(&r, "block_count", true, 1);
    m->n_embd = get_u32(&r, "embedding_length", true, 1);
    m->n_heads = get_u32(&r, "attention.head_count", true, 1);
    m->n_kv_heads = get_u32(&r, "attention.head_count_kv", false, m->n_heads);
    m->n_ctx_train = get_u32(&r, "context_length", true, 1);
    m->rms_eps = get_f32(&r, "attention.layer_norm_rms_epsilon", true, 0);
    m->logit_softcap = get_f32(&r, "final_logit_softcapping", false, 0);
    if (r.failed) return -1;
    if (!m->n_layers || m->n_layers > MODEL_MAX_LAYERS || !m->n_heads || !m->n_kv_heads ||
        m->n_heads % m->n_kv_heads)
        return tool_fail(err, "%u layers with %u query and %u KV heads are not supported",
                         m->n_layers, m->n_heads, m->n_kv_heads);
    m->head_dim = get_u32(&r, "attention.key_length", false, m->n_embd / m->n_heads);
    m->n_rot = get_u32(&r, "rope.dimension_count", false, m->head_dim);
    if (get_u32(&r, "attention.value_length", false, m->head_dim) != m->head_dim)
        complain(&r, "attention.value_length", "differs from key_length");
    if (get_u32(&r, "expert_count", false, 0)) complain(&r, "expert_count", "not supported");
    /* Gemma 3 of 27 billion parameters scales by the embedding's share of a head */
    bool by_share = m->traits->full_every && m->n_layers == 62;
    m->attention_scale = 1.0f / sqrtf((float)(by_share ? m->n_embd / m->n_heads : m->head_dim));
    read_layer_kinds(m, &r);
    return r.failed ? -1 : 0;
}

static struct ggml_tensor *plain(weights *w, uint32_t layer, const char *part, bool required)
{
    char name[GGML_MAX_NAME];
    snprintf(name, sizeof name, "blk.%u.%s", layer, part);
    return weights_plain(w, name, required);
}

/* One matrix out of up to three parts of a layer. */
static struct ggml_tensor *matrix(weights *w, uint32_t layer, const char *const *parts, uint32_t n,
                                  bool required)
{
    char names[3][GGML_MAX_NAME];
    const char *list[3];
    for (uint32_t i = 0; i < n; i++) {
        snprintf(names[i], sizeof names[i], "blk.%u.%s.weight", layer, parts[i]);
        list[i] = names[i];
    }
    return weights_matrix(w, list, n, required);
}

static void load_layer(model *m, weights *w, uint32_t i)
{
    static const char *const qkv[] = {"attn_q", "attn_k", "attn_v"}, *const wo[] = {"attn_output"};
    static const char *const gate_up[] = {"ffn_gate", "ffn_up"}, *const down[] = {"ffn_down"};
    model_layer *l = &m->layers[i];
    l->attn_norm = plain(w, i, "attn_norm.weight", true);
    l->wqkv = matrix(w, i, qkv, 3, false);
    if (!l->wqkv) {
        l->wq = matrix(w, i, &qkv[0], 1, true);
        l->wk = matrix(w, i, &qkv[1], 1, true);
        l->wv = matrix(w, i, &qkv[2], 1, true);
    }
    l->bq = plain(w, i, "attn_q.bias", false);
    l->bk = plain(w, i, "attn_k.bias", false);
    l->bv = plain(w, i, "attn_v.bias", false);
    l->q_norm = plain(w, i, "attn_q_norm.weight", false);
    l->k_norm = plain(w, i, "attn_k_norm.weight", false);
    l->wo = matrix(w, i, wo, 1, true);
    l->attn_post_norm = plain(w, i, "post_attention_norm.weight", m->traits->full_every > 0);
    l->ffn_norm = plain(w, i, "ffn_norm.weight", true);
    l->gate_up = matrix(w, i, gate_up, 2, false);
    if (!l->gate_up) {
        l->gate = matrix(w, i, &gate_up[0], 1, true);
        l->up = matrix(w, i, &gate_up[1], 1, true);
    }
    l->down = matrix(w, i, down, 1, true);
    l->ffn_post_norm = plain(w, i, "post_ffw_norm.weight", m->traits->full_every > 0);
}

static int load_weights(model *m, ggml_backend_dev_t device, tool_error *err)
{
    static const char *const output[] = {"output.weight"}, *const tied[] = {"token_embd.weight"};
    weights *w = weights_begin(m, device, err);
    if (!w) return -1;
    m->embedding = weights_plain(w, tied[0], true);
    m->output_norm = weights_plain(w, "output_norm.weight", true);
    m->output = weights_matrix(w, output, 1, false);
    if (!m->output) m->output = weights_matrix(w, tied, 1, true);
    m->output_bias = weights_plain(w, "output.bias", false);
    m->rope_factors = weights_plain(w, "rope_freqs.weight", false);
    for (uint32_t i = 0; i < m->n_layers; i++)
        load_layer(m, w, i);
    if (weights_end(w, err)) return -1;
    if (m->embedding->ne[0] != m->n_embd)
        return tool_fail(err, "token_embd.weight has rows of %lld, not of %u",
                         (long long)m->embedding->ne[0], m->n_embd);
    m->n_vocab = (uint32_t)m->embedding->ne[1];
    return 0;
}

static int map_file(model *m, const char *path, tool_error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat info;
    if (fd < 0 || fstat(fd, &info) != 0) {
        if (fd >= 0) close(fd);
        return tool_fail(err, "cannot open %s", path);
    }
    m->mapping_bytes = (size_t)info.st_size;
    void *at = mmap(NULL, m->mapping_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (at == MAP_FAILED) return tool_fail(err, "cannot map %s", path);
    m->mapping = at;
    struct gguf_init_params params = {.no_alloc = true, .ctx = &m->file_tensors};
    m->gguf = gguf_init_from_file(path, params);
    if (!m->gguf) return tool_fail(err, "%s is not a GGUF file", path);
    if (gguf_get_data_offset(m->gguf) >= m->mapping_bytes)
        return tool_fail(err, "%s holds no tensors", path);
    return 0;
}

model *model_load(const char *path, ggml_backend_dev_t device, tool_error *err)
{
    model *m = calloc(1, sizeof *m);
    if (!m) {
        tool_fail(err, "not enough memory");
        return NULL;
    }
    if (map_file(m, path, err) || read_geometry(m, err) || load_weights(m, device, err)) {
        model_free(m);
        return NULL;
    }
    for (int64_t i = 0; i < gguf_get_n_tensors(m->gguf); i++)
        m->weight_bytes += gguf_get_tensor_size(m->gguf, i);
    return m;
}

void model_free(model *m)
{
    if (!m) return;
    for (uint32_t i = 0; i < m->n_buffers; i++)
        ggml_backend_buffer_free(m->buffers[i]);
    for (uint32_t i = 0; i < MODEL_MAX_BUFFERS; i++)
        ggml_free(m->own_tensors[i]);
    ggml_free(m->file_tensors);
    gguf_free(m->gguf);
    if (m->mapping) munmap(m->mapping, m->mapping_bytes);
    free(m);
}
