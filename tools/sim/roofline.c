#include "roofline.h"

#include <string.h>

#include "parse.h"

/* Data sheets: dense bf16/f16 tensor throughput and memory bandwidth. */
static const struct {
    const char *name;
    double flops, bandwidth;
    const char *note;
} presets[] = {
    {"a100", 312e12, 2.04e12, "NVIDIA A100 80 GB SXM"},
    {"h100", 989e12, 3.35e12, "NVIDIA H100 SXM"},
    {"l4", 121e12, 0.30e12, "NVIDIA L4"},
    {"rtx4090", 165e12, 1.01e12, "NVIDIA RTX 4090"},
    {"cpu", 4e12, 0.20e12, "a server processor with AMX or AVX-512 bf16"},
};

void hardware_list(FILE *to)
{
    for (size_t i = 0; i < sizeof presets / sizeof presets[0]; i++)
        fprintf(to, "  %-8s %4.0f Tflop/s, %4.0f GB/s; %s\n", presets[i].name,
                presets[i].flops / 1e12, presets[i].bandwidth / 1e9, presets[i].note);
}

static int find_preset(const char *name, hardware *out, tool_error *err)
{
    for (size_t i = 0; i < sizeof presets / sizeof presets[0]; i++) {
        if (strcmp(name, presets[i].name) != 0) continue;
        out->flops = presets[i].flops;
        out->bandwidth = presets[i].bandwidth;
        return 0;
    }
    return tool_fail(err,
                     "--hardware: '%.60s' is not a100, h100, l4, rtx4090, cpu or "
                     "flops=…,bandwidth=…",
                     name);
}

static int set(hardware *out, const char *item, tool_error *err)
{
    const struct {
        const char *key;
        double *target;
        double min, max;
    } keys[] = {
        {"flops", &out->flops, 1e6, 1e20},
        {"bandwidth", &out->bandwidth, 1e6, 1e18},
        {"flops_share", &out->flops_share, 0.001, 1},
        {"bandwidth_share", &out->bandwidth_share, 0.001, 1},
    };
    const char *equals = strchr(item, '=');
    if (equals == NULL) return tool_fail(err, "--hardware: '%.60s' is not key=value", item);
    size_t n = (size_t)(equals - item);
    if (n == 8 && memcmp(item, "overhead", n) == 0)
        return parse_duration(equals + 1, "--hardware: overhead", &out->overhead, err);
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        if (strlen(keys[i].key) != n || memcmp(keys[i].key, item, n) != 0) continue;
        if (parse_double(equals + 1, keys[i].key, keys[i].min, keys[i].max, keys[i].target, err) !=
            0)
            return tool_fail_in(err, "--hardware");
        return 0;
    }
    return tool_fail(err,
                     "--hardware: unknown key '%.*s' (flops, bandwidth, flops_share, "
                     "bandwidth_share, overhead)",
                     n < 60 ? (int)n : 60, item);
}

int hardware_parse(const char *text, hardware *out, tool_error *err)
{
    char item[96];
    const char *cursor = text;
    *out = (hardware){.flops_share = 0.55, .bandwidth_share = 0.8, .overhead = 0.001};
    int got = parse_list_next(&cursor, item, sizeof item, "--hardware", err);
    if (got < 0) return -1;
    if (strchr(item, '=') == NULL) {
        if (find_preset(item, out, err) != 0) return -1;
        got = parse_list_next(&cursor, item, sizeof item, "--hardware", err);
    }
    while (got == 1) {
        if (set(out, item, err) != 0) return -1;
        got = parse_list_next(&cursor, item, sizeof item, "--hardware", err);
    }
    if (got < 0) return -1;
    if (out->flops == 0) return tool_fail(err, "--hardware: flops=… is missing");
    if (out->bandwidth == 0) return tool_fail(err, "--hardware: bandwidth=… is missing");
    snprintf(out->name, sizeof out->name, "%s", text);
    return 0;
}

double roofline_parameters(const model *m)
{
    if (m->parameters > 0) return m->parameters;
    double hidden = (double)m->q_heads * m->head_dim;
    return 12.5 * hidden * hidden * m->n_layers;
}

/* Sum over the new tokens of the keys each sees, with window 0 = all. */
static double keys_seen(double before, double n, double window)
{
    double all = n * before + n * (n + 1) / 2;
    if (window == 0 || before + n <= window) return all;
    double growing = window > before ? window - before : 0; /* tokens below the window */
    return growing * before + growing * (growing + 1) / 2 + (n - growing) * window;
}

void roofline_add(roofline_step *step, const model *m, uint64_t before, uint64_t new_tokens)
{
    double b = (double)before, n = (double)new_tokens;
    step->tokens += n;
    for (uint32_t g = 0; g < m->n_groups; g++) {
        double window = m->groups[g].window, kept = b;
        if (window != 0 && kept > window) kept = window;
        step->attention_flops +=
            4.0 * m->groups[g].n_layers * m->q_heads * m->head_dim * keys_seen(b, n, window);
        /* A prompt chunk reads the cached part once; all its rows share it. */
        step->kv_bytes += (double)model_group_token_bytes(m, g) * (kept + 2 * n);
    }
}

double roofline_time(const roofline_step *step, const model *m, const hardware *h)
{
    double parameters = roofline_parameters(m);
    double arithmetic =
        (2 * parameters * step->tokens + step->attention_flops) / (h->flops * h->flops_share);
    double traffic = (2 * parameters + step->kv_bytes) / (h->bandwidth * h->bandwidth_share);
    return (arithmetic > traffic ? arithmetic : traffic) + h->overhead;
}
