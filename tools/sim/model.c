#include "model.h"

#include <string.h>

#include "model_config.h"
#include "parse.h"

typedef struct preset {
    const char *name;
    uint32_t layers, kv_heads, q_heads, head_dim, window, full_every;
    double parameters;
    const char *note;
} preset;

/* Geometry from the models' published config.json files. */
static const preset presets[] = {
    {"llama-3-8b", 32, 8, 32, 128, 0, 0, 8.03e9, "full attention"},
    {"llama-3-70b", 80, 8, 64, 128, 0, 0, 70.6e9, "full attention"},
    {"qwen2.5-7b", 28, 4, 28, 128, 0, 0, 7.62e9, "full attention"},
    {"mistral-7b", 32, 8, 32, 128, 4096, 0, 7.24e9, "v0.1: sliding window 4096 in every layer"},
    {"gemma-3-270m", 18, 1, 4, 256, 512, 6, 0.268e9, "hybrid: window 512, every 6th layer full"},
    {"gemma-3-4b", 34, 4, 8, 256, 1024, 6, 3.88e9, "hybrid: window 1024, every 6th layer full"},
    {"smollm2-135m", 30, 3, 9, 64, 0, 0, 0.135e9, "full attention"},
};

void model_list(FILE *to)
{
    for (size_t i = 0; i < sizeof presets / sizeof presets[0]; i++) {
        const preset *p = &presets[i];
        fprintf(to, "  %-14s %2u layers, %u KV heads, %2u query heads, head dim %3u; %s\n", p->name,
                p->layers, p->kv_heads, p->q_heads, p->head_dim, p->note);
    }
}

/* Every n-th layer has full attention; 0 = none, unless there is no window. */
static void set_full(model *m, uint32_t every)
{
    for (uint32_t i = 0; i < PKV_MAX_LAYERS; i++)
        m->full[i] = every != 0 && (i + 1) % every == 0;
}

static int find_preset(const char *name, model *out, tool_error *err)
{
    for (size_t i = 0; i < sizeof presets / sizeof presets[0]; i++) {
        const preset *p = &presets[i];
        if (strcmp(name, p->name) != 0) continue;
        out->n_layers = p->layers;
        out->kv_heads = p->kv_heads;
        out->q_heads = p->q_heads;
        out->head_dim = p->head_dim;
        out->window = p->window;
        set_full(out, p->full_every);
        out->parameters = p->parameters;
        return 0;
    }
    char names[256] = "";
    for (size_t i = 0; i < sizeof presets / sizeof presets[0]; i++) {
        strncat(names, i == 0 ? "" : ", ", sizeof names - strlen(names) - 1);
        strncat(names, presets[i].name, sizeof names - strlen(names) - 1);
    }
    return tool_fail(err,
                     "--model: unknown model '%.60s' (known: %s; or the path of a config.json; or "
                     "layers=…,kv_heads=…,head_dim=…)",
                     name, names);
}

static int set_dtype(const char *value, model *out, tool_error *err)
{
    static const pkv_dtype types[] = {PKV_DTYPE_F32, PKV_DTYPE_F16, PKV_DTYPE_BF16};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (strcmp(value, pkv_dtype_name(types[i])) == 0) {
            out->dtype = types[i];
            return 0;
        }
    }
    return tool_fail(err, "--model: dtype '%.60s' is not f16, bf16 or f32", value);
}

static int set(model *out, const char *item, tool_error *err)
{
    const struct {
        const char *key;
        uint32_t *target;
        uint64_t min, max;
    } keys[] = {
        {"layers", &out->n_layers, 1, PKV_MAX_LAYERS},
        {"kv_heads", &out->kv_heads, 1, PKV_MAX_HEADS},
        {"q_heads", &out->q_heads, 1, UINT32_MAX},
        {"head_dim", &out->head_dim, 8, PKV_MAX_HEAD_DIM},
        {"window", &out->window, 0, 1u << 30},
        {"full_every", NULL, 0, PKV_MAX_LAYERS},
    };
    const char *equals = strchr(item, '=');
    if (equals == NULL) return tool_fail(err, "--model: '%.60s' is not key=value", item);
    size_t n = (size_t)(equals - item);
    if (n == 5 && memcmp(item, "dtype", n) == 0) return set_dtype(equals + 1, out, err);
    if (n == 6 && memcmp(item, "params", n) == 0)
        return parse_double(equals + 1, "--model: params", 1, 1e14, &out->parameters, err);
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        if (strlen(keys[i].key) != n || memcmp(keys[i].key, item, n) != 0) continue;
        uint64_t value;
        if (parse_u64(equals + 1, keys[i].key, keys[i].min, keys[i].max, &value, err) != 0)
            return tool_fail_in(err, "--model");
        if (keys[i].target != NULL)
            *keys[i].target = (uint32_t)value;
        else
            set_full(out, (uint32_t)value);
        return 0;
    }
    return tool_fail(err,
                     "--model: unknown key '%.*s' (layers, kv_heads, head_dim, dtype, window, "
                     "q_heads, full_every, params)",
                     n < 60 ? (int)n : 60, item);
}

static int check(const model *m, tool_error *err)
{
    if (m->n_layers == 0) return tool_fail(err, "--model: layers=… is missing");
    if (m->kv_heads == 0) return tool_fail(err, "--model: kv_heads=… is missing");
    if (m->head_dim == 0) return tool_fail(err, "--model: head_dim=… is missing");
    if (m->head_dim % 8 != 0)
        return tool_fail(err, "--model: head_dim %u is not a multiple of 8", m->head_dim);
    if (m->q_heads % m->kv_heads != 0)
        return tool_fail(err, "--model: q_heads %u is not a multiple of kv_heads %u", m->q_heads,
                         m->kv_heads);
    return 0;
}

/* With a window the layers are two groups, those with full attention first. */
static void make_groups(model *m)
{
    uint32_t n_full = 0, full = 0;
    for (uint32_t i = 0; i < m->n_layers; i++)
        n_full += m->window != 0 && m->full[i];
    if (n_full == m->n_layers) m->window = 0;
    bool hybrid = m->window != 0 && n_full != 0;
    if (!hybrid) n_full = 0;
    uint32_t windowed = n_full;
    for (uint32_t i = 0; i < m->n_layers; i++)
        m->layers[hybrid && m->full[i] ? full++ : windowed++] = i;
    pkv_group_config group = {.kv_heads = m->kv_heads,
                              .q_heads = m->q_heads,
                              .head_dim_k = m->head_dim,
                              .head_dim_v = m->head_dim,
                              .dtype = m->dtype};
    m->n_groups = hybrid ? 2 : 1;
    uint32_t g = 0;
    if (hybrid) {
        m->groups[g] = group;
        m->groups[g].n_layers = n_full;
        m->groups[g++].layers = m->layers;
    }
    m->groups[g] = group;
    m->groups[g].n_layers = m->n_layers - n_full;
    m->groups[g].window = m->window;
    m->groups[g].layers = m->layers + n_full;
}

static bool is_path(const char *item)
{
    size_t n = strlen(item);
    return strchr(item, '/') != NULL || (n > 5 && strcmp(item + n - 5, ".json") == 0);
}

int model_parse(const char *text, int flat, model *out, tool_error *err)
{
    char item[512];
    const char *cursor = text;
    memset(out, 0, sizeof *out);
    out->dtype = PKV_DTYPE_F16;
    int got = parse_list_next(&cursor, item, sizeof item, "--model", err);
    if (got < 0) return -1;
    if (strchr(item, '=') == NULL) {
        if (is_path(item) ? model_read_config(item, out, err) : find_preset(item, out, err))
            return -1;
        got = parse_list_next(&cursor, item, sizeof item, "--model", err);
    }
    while (got == 1) {
        if (set(out, item, err) != 0) return -1;
        got = parse_list_next(&cursor, item, sizeof item, "--model", err);
    }
    if (got < 0) return -1;
    if (out->q_heads == 0) out->q_heads = out->kv_heads;
    if (check(out, err) != 0) return -1;
    if (flat) out->window = 0;
    snprintf(out->name, sizeof out->name, "%s", text);
    make_groups(out);
    return 0;
}

uint64_t model_group_token_bytes(const model *m, uint32_t group)
{
    return (uint64_t)m->groups[group].n_layers * m->kv_heads * m->head_dim * 2 *
           pkv_dtype_size(m->dtype);
}

uint64_t model_token_bytes(const model *m)
{
    uint64_t bytes = 0;
    for (uint32_t g = 0; g < m->n_groups; g++)
        bytes += model_group_token_bytes(m, g);
    return bytes;
}
