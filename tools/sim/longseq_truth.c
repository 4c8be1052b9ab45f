/* Full attention of sequence 0 at sampled decode steps, from the unrounded keys and values. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "longseq.h"

/* Keys and values of the sampled layers are kept once; beyond this there are fewer samples. */
#define HISTORY_BYTES ((uint64_t)1 << 30)
enum { SAMPLED_LAYERS = 2 };

static uint32_t sampled_layers(const longseq_options *o)
{
    return o->geometry->n_layers < SAMPLED_LAYERS ? o->geometry->n_layers : SAMPLED_LAYERS;
}

static uint64_t history_tokens(const longseq_options *o)
{
    const uint64_t bytes = (uint64_t)sampled_layers(o) * o->geometry->kv_heads *
                           o->geometry->head_dim * 2 * sizeof(float);
    const uint64_t room = HISTORY_BYTES / bytes;
    return room < o->tokens ? room : o->tokens;
}

uint64_t longseq_truth_work(const longseq_options *o)
{
    return o->samples;
}

/* One row's attention over [0, n) tokens of one KV head. */
static void attend(const float *q, const float *keys, const float *values, uint64_t n, uint32_t dim,
                   uint32_t page_tokens, float *logits, float *mass, float *out)
{
    const float scale = 1 / sqrtf((float)dim);
    float top = -INFINITY;
    for (uint64_t t = 0; t < n; t++) {
        float lane[16] = {0};
        for (uint32_t i = 0; i < dim; i += 16)
            for (uint32_t j = 0; j < 16 && i + j < dim; j++)
                lane[j] += q[i + j] * keys[t * dim + i + j];
        float sum = 0;
        for (uint32_t j = 0; j < 16; j++)
            sum += lane[j];
        logits[t] = sum * scale;
        if (logits[t] > top) top = logits[t];
    }
    double total = 0;
    for (uint64_t t = 0; t < n; t++) {
        logits[t] = expf(logits[t] - top);
        total += (double)logits[t];
    }
    memset(out, 0, dim * sizeof *out);
    for (uint64_t t = 0; t < n; t++) {
        const float p = (float)((double)logits[t] / total);
        mass[t / page_tokens] += p;
        for (uint32_t i = 0; i < dim; i++)
            out[i] += p * values[t * dim + i];
    }
}

static int take_sample(const longseq_options *o, const longseq_source *s, longseq_truth *truth,
                       uint32_t sample, const float *keys, const float *values, uint64_t capacity,
                       float *logits)
{
    const uint64_t n = truth->position[sample] + 1;
    const uint64_t pages = (n + o->page_tokens - 1) / o->page_tokens;
    float q[PKV_MAX_HEAD_DIM], place[LONGSEQ_PLACE];
    float *mass = calloc(truth->n_layers * truth->kv_heads * pages, sizeof *mass);
    float *out = calloc(truth->n_layers * truth->q_heads, s->dim * sizeof *out);
    truth->mass[sample] = mass;
    truth->out[sample] = out;
    if (mass == NULL || out == NULL) return -1;
    longseq_place(n - 1, place);
    for (uint32_t l = 0; l < truth->n_layers; l++)
        for (uint32_t h = 0; h < truth->q_heads; h++) {
            const uint32_t kv = l * truth->kv_heads + h / s->group_size;
            longseq_query(s, 0, n - 1, place, l, h, q);
            attend(q, keys + kv * capacity * s->dim, values + kv * capacity * s->dim, n, s->dim,
                   o->page_tokens, logits, mass + kv * pages,
                   out + (size_t)(l * truth->q_heads + h) * s->dim);
        }
    return 0;
}

/* Evenly spaced decode steps that the history covers. */
static void choose_positions(const longseq_options *o, uint64_t history, longseq_truth *truth)
{
    const uint64_t first = o->prompt;
    truth->n_samples = 0;
    for (uint32_t i = 0; i < o->samples && o->tokens > first; i++) {
        const uint64_t at =
            first + (uint64_t)((double)(o->tokens - first) * (i + 0.5) / o->samples);
        if (at >= history || at >= o->tokens) break;
        if (truth->n_samples > 0 && truth->position[truth->n_samples - 1] == at) continue;
        truth->position[truth->n_samples++] = at;
    }
}

int longseq_truth_make(const longseq_options *o, const longseq_source *s, progress *bar,
                       longseq_truth *truth, tool_error *err)
{
    memset(truth, 0, sizeof *truth);
    if (o->samples == 0) return 0;
    const uint64_t capacity = history_tokens(o);
    truth->n_layers = sampled_layers(o);
    truth->kv_heads = s->kv_heads;
    truth->q_heads = s->kv_heads * s->group_size;
    truth->dim = s->dim;
    truth->page_tokens = o->page_tokens;
    truth->position = calloc(o->samples, sizeof *truth->position);
    truth->mass = calloc(o->samples, sizeof *truth->mass);
    truth->out = calloc(o->samples, sizeof *truth->out);
    const size_t floats = (size_t)truth->n_layers * s->kv_heads * capacity * s->dim;
    float *keys = malloc(floats * sizeof *keys), *values = malloc(floats * sizeof *values);
    float *logits = malloc(capacity * sizeof *logits);
    int code = -1;
    if (truth->position && truth->mass && truth->out && keys && values && logits) {
        choose_positions(o, capacity, truth);
        uint64_t have = 0;
        code = 0;
        for (uint32_t i = 0; i < truth->n_samples && code == 0; i++) {
            for (; have <= truth->position[i]; have++) {
                float place[LONGSEQ_PLACE];
                longseq_place(have, place);
                for (uint32_t kv = 0; kv < truth->n_layers * s->kv_heads; kv++) {
                    const size_t at = (kv * capacity + have) * s->dim;
                    longseq_key(s, 0, have, place, kv / s->kv_heads, kv % s->kv_heads, keys + at);
                    longseq_value(s, 0, have, kv / s->kv_heads, kv % s->kv_heads, values + at);
                }
            }
            code = take_sample(o, s, truth, i, keys, values, capacity, logits);
            progress_add(bar, 1);
        }
    }
    free(keys), free(values), free(logits);
    if (code == 0) return 0;
    longseq_truth_free(truth);
    return tool_fail(err, "out of memory for the full-attention reference");
}

void longseq_truth_free(longseq_truth *truth)
{
    for (uint32_t i = 0; i < truth->n_samples; i++) {
        free(truth->mass[i]);
        free(truth->out[i]);
    }
    free(truth->position), free(truth->mass), free(truth->out);
    memset(truth, 0, sizeof *truth);
}
