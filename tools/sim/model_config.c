#include "model_config.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yajl/yajl_tree.h>

enum { MAX_FILE = 4 << 20 };

/* What the classes of some model types assume where the file says nothing; 0 = it must say it. */
typedef struct defaults {
    const char *type;
    uint32_t layers, q_heads, kv_heads, head_dim, window;
    uint32_t full_every; /* without layer_types: every n-th layer is full … */
    bool windowed;       /* … and the window counts although use_sliding_window is not given */
    bool tied;           /* one matrix is input and output embedding */
} defaults;

static const defaults types[] = {
    {"gemma2", 26, 8, 4, 256, 4096, 2, true, true},
    {"gemma3", 26, 8, 4, 256, 4096, 6, true, true},
    {"gemma3_text", 26, 8, 4, 256, 4096, 6, true, true},
    {"gpt_oss", 36, 64, 8, 64, 128, 2, true, false},
    {"mistral", 32, 32, 8, 0, 0, 0, true, false},
    {"mixtral", 32, 32, 8, 0, 0, 0, true, false},
    {"phi3", 32, 32, 0, 0, 0, 0, true, false},
    {"qwen3", 32, 32, 32, 128, 0, 0, false, false},
};

typedef struct reader {
    const char *path;
    yajl_val root; /* the text model's part of the file */
    tool_error *err;
} reader;

static yajl_val get(const reader *r, const char *name)
{
    const char *path[] = {name, NULL};
    yajl_val v = yajl_tree_get(r->root, path, yajl_t_any);
    return v == NULL || YAJL_IS_NULL(v) ? NULL : v;
}

/* A whole number, or `fallback` (0: it must be there) where the file has none. */
static int number(const reader *r, const char *name, uint32_t fallback, uint32_t most,
                  uint32_t *out)
{
    yajl_val v = get(r, name);
    if (v == NULL && fallback == 0)
        return tool_fail(r->err, "--model: %.200s: field \"%s\" is missing", r->path, name);
    if (v != NULL && !YAJL_IS_INTEGER(v))
        return tool_fail(r->err, "--model: %.200s: field \"%s\" is not a whole number", r->path,
                         name);
    long long whole = v != NULL ? YAJL_GET_INTEGER(v) : (long long)fallback;
    if (whole < 1 || whole > (long long)most)
        return tool_fail(r->err, "--model: %.200s: field \"%s\": %lld is not in 1..%u", r->path,
                         name, whole, most);
    *out = (uint32_t)whole;
    return 0;
}

/* 0 if it is not there or no number. */
static double real(const reader *r, const char *name)
{
    yajl_val v = get(r, name);
    return v != NULL && YAJL_IS_NUMBER(v) ? strtod(YAJL_GET_NUMBER(v), NULL) : 0;
}

static const char *string(const reader *r, const char *name)
{
    yajl_val v = get(r, name);
    return v != NULL && YAJL_IS_STRING(v) ? YAJL_GET_STRING(v) : "";
}

static bool truth(const reader *r, const char *name)
{
    yajl_val v = get(r, name);
    return v != NULL && YAJL_IS_TRUE(v);
}

/* ---- what cannot be held -------------------------------------------------------------------- */

static int check_kind(const reader *r)
{
    static const struct {
        const char *field, *what;
    } foreign[] = {
        {"kv_lora_rank", "latent attention (MLA): one latent row per token, not keys and values"},
        {"attention_chunk_size", "attention in chunks, not in sliding windows"},
        {"global_head_dim", "layers that differ in their heads' size"},
        {"block_configs", "layers that differ in geometry"},
        {"ssm_state_size", "recurrent state beside attention"},
        {"mamba_d_state", "recurrent state beside attention"},
        {"state_size", "recurrent state, no keys and values"},
        {"linear_num_key_heads", "recurrent state beside attention"},
        {"num_kv_shared_layers", "layers that share other layers' keys and values"},
    };
    for (size_t i = 0; i < sizeof foreign / sizeof foreign[0]; i++)
        if (get(r, foreign[i].field) != NULL && real(r, foreign[i].field) != 0)
            return tool_fail(r->err,
                             "--model: %.200s: field \"%s\": the library cannot hold this yet (%s)",
                             r->path, foreign[i].field, foreign[i].what);
    if (get(r, "block_configs") != NULL)
        return tool_fail(r->err, "--model: %.200s: layers that differ in geometry", r->path);
    if (truth(r, "is_encoder_decoder"))
        return tool_fail(r->err,
                         "--model: %.200s: field \"is_encoder_decoder\": the library cannot hold "
                         "cross-attention yet",
                         r->path);
    return 0;
}

/* ---- layers --------------------------------------------------------------------------------- */

static int read_layer_types(const reader *r, yajl_val list, model *out)
{
    if (!YAJL_IS_ARRAY(list) || list->u.array.len != out->n_layers)
        return tool_fail(r->err, "--model: %.200s: field \"layer_types\" is not a list of %u names",
                         r->path, out->n_layers);
    for (uint32_t i = 0; i < out->n_layers; i++) {
        yajl_val v = list->u.array.values[i];
        const char *name = YAJL_IS_STRING(v) ? YAJL_GET_STRING(v) : "?";
        out->full[i] = strcmp(name, "full_attention") == 0;
        if (out->full[i] || (strcmp(name, "sliding_attention") == 0 && out->window != 0)) continue;
        return tool_fail(r->err,
                         "--model: %.200s: field \"layer_types\": the library cannot hold "
                         "'%.40s' layers yet%s",
                         r->path, name, out->window == 0 ? " (no sliding_window)" : "");
    }
    return 0;
}

/* Sets the window, and full[] of every layer. */
static int read_windows(const reader *r, const defaults *d, model *out)
{
    uint32_t first = 0;
    yajl_val use = get(r, "use_sliding_window"), list = get(r, "layer_types");
    bool windowed = use != NULL ? YAJL_IS_TRUE(use) : d->windowed || list != NULL;
    bool given = get(r, "sliding_window") != NULL;
    out->window = 0;
    if (windowed && (given || d->window != 0) &&
        number(r, "sliding_window", d->window, 1u << 30, &out->window) != 0)
        return -1;
    if (list != NULL) return read_layer_types(r, list, out);
    uint32_t pattern = d->full_every;
    if (pattern != 0 && get(r, "sliding_window_pattern") != NULL &&
        number(r, "sliding_window_pattern", 0, PKV_MAX_LAYERS, &pattern) != 0)
        return -1;
    if (use != NULL && windowed && get(r, "max_window_layers") != NULL)
        first = (uint32_t)fmin(real(r, "max_window_layers"), out->n_layers);
    for (uint32_t i = 0; i < out->n_layers; i++)
        out->full[i] = out->window == 0 || i < first || (pattern != 0 && (i + 1) % pattern == 0);
    return 0;
}

static pkv_dtype read_dtype(const reader *r)
{
    const char *name = *string(r, "dtype") != '\0' ? string(r, "dtype") : string(r, "torch_dtype");
    if (strcmp(name, "bfloat16") == 0) return PKV_DTYPE_BF16;
    return strcmp(name, "float32") == 0 ? PKV_DTYPE_F32 : PKV_DTYPE_F16;
}

/* Weights of a dense model; 0 (not known) where experts or a size that is not given count. */
static double count_weights(const reader *r, const defaults *d, const model *m)
{
    double hidden = real(r, "hidden_size"), inner = real(r, "intermediate_size");
    double words = real(r, "vocab_size");
    bool experts = real(r, "num_local_experts") + real(r, "num_experts") != 0;
    if (experts || hidden <= 0 || inner <= 0 || words <= 0) return 0;
    double attention = hidden * m->head_dim * 2 * (m->q_heads + m->kv_heads);
    bool tied = get(r, "tie_word_embeddings") != NULL ? truth(r, "tie_word_embeddings") : d->tied;
    double embeddings = words * hidden * (tied ? 1 : 2);
    return embeddings + m->n_layers * (attention + 3 * hidden * inner);
}

static int read_geometry(const reader *r, const defaults *d, model *out)
{
    uint32_t hidden;
    if (check_kind(r) != 0 ||
        number(r, "num_hidden_layers", d->layers, PKV_MAX_LAYERS, &out->n_layers) != 0 ||
        number(r, "num_attention_heads", d->q_heads, 65536, &out->q_heads) != 0)
        return -1;
    uint32_t shared = d->kv_heads != 0 ? d->kv_heads : out->q_heads; /* one to one if not given */
    if (number(r, "num_key_value_heads", shared, PKV_MAX_HEADS, &out->kv_heads) != 0) return -1;
    if (get(r, "head_dim") != NULL || d->head_dim != 0) {
        if (number(r, "head_dim", d->head_dim, PKV_MAX_HEAD_DIM, &out->head_dim) != 0) return -1;
    } else {
        if (number(r, "hidden_size", 0, 1u << 24, &hidden) != 0) return -1;
        out->head_dim = hidden / out->q_heads;
    }
    out->dtype = read_dtype(r);
    if (read_windows(r, d, out) != 0) return -1;
    out->parameters = count_weights(r, d, out);
    return 0;
}

/* ---- file ----------------------------------------------------------------------------------- */

static char *read_file(const char *path, tool_error *err)
{
    FILE *file = fopen(path, "r");
    char *text = file != NULL ? malloc(MAX_FILE + 1) : NULL;
    size_t n = text != NULL ? fread(text, 1, MAX_FILE + 1, file) : 0;
    if (text == NULL || ferror(file) || n > MAX_FILE) {
        tool_fail(err, "--model: %.200s: %s", path,
                  n > MAX_FILE ? "more than 4 MiB" : strerror(errno));
        free(text);
        text = NULL;
    } else {
        text[n] = '\0';
    }
    if (file != NULL) fclose(file);
    return text;
}

int model_read_config(const char *path, model *out, tool_error *err)
{
    char why[256] = "not JSON";
    char *text = read_file(path, err);
    if (text == NULL) return -1;
    yajl_val tree = yajl_tree_parse(text, why, sizeof why);
    free(text);
    if (tree == NULL || !YAJL_IS_OBJECT(tree)) {
        why[strcspn(why, "\n")] = '\0';
        yajl_tree_free(tree);
        return tool_fail(err, "--model: %.200s: not a JSON object: %s", path, why);
    }
    reader r = {.path = path, .root = tree, .err = err};
    yajl_val inner = get(&r, "text_config"); /* of models that see or hear as well */
    const char *type = string(&r, "model_type");
    if (inner != NULL && YAJL_IS_OBJECT(inner)) r.root = inner;
    static const defaults none = {0};
    const defaults *d = &none;
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (strcmp(types[i].type, type) == 0) d = &types[i];
    int code = read_geometry(&r, d, out);
    yajl_tree_free(tree);
    return code;
}
