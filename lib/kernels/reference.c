/* Attention in double precision, straight from the definition. */
#include "kernels.h"

#include <math.h>
#include <string.h>

static double half_value(uint16_t h)
{
    /* Moved into a float's place, exponent and mantissa are 2^-112 of the value, also for denormal
     * halves; exponent 31 means Inf or NaN. */
    const uint32_t rest = (uint32_t)(h & 0x7fff) << 13;
    float x;
    memcpy(&x, &rest, sizeof x);
    double value = (double)x * 0x1p112;
    if ((h & 0x7c00) == 0x7c00) value = h & 0x3ff ? (double)NAN : (double)INFINITY;
    return h & 0x8000 ? -value : value;
}

static double element(pkv_dtype dtype, const char *at)
{
    uint32_t word = 0;
    uint16_t half = 0;
    float x;
    if (dtype == PKV_DTYPE_F32) {
        memcpy(&x, at, sizeof x);
        return (double)x;
    }
    memcpy(&half, at, sizeof half);
    if (dtype == PKV_DTYPE_F16) return half_value(half);
    word = (uint32_t)half << 16;
    memcpy(&x, &word, sizeof x);
    return (double)x;
}

/* Element i of an array of halves, which a part need not align. */
static double half_at(const char *halves, size_t i)
{
    uint16_t h;
    memcpy(&h, halves + 2 * i, sizeof h);
    return half_value(h);
}

static int key_flagged(const pkvi_layout *l, const char *part, uint32_t head, uint32_t slot)
{
    const char *flags = part + l->flag_offset + (size_t)head * (l->page_tokens / 8);
    return flags[slot / 8] >> (slot % 8) & 1;
}

double pkvi_reference_k(const pkvi_layout *l, const void *part, uint32_t head, uint32_t slot,
                        uint32_t dim)
{
    if (pkvi_layout_k_coded(l)) {
        const char *tile = (const char *)part + (size_t)head * l->k_head_bytes;
        if (key_flagged(l, part, head, slot)) return (double)NAN;
        return half_at(tile + l->k_min, dim) +
               half_at(tile + l->k_scale, dim) * pkvi_layout_k_code(l, part, head, slot, dim);
    }
    return element(l->dtype_k, (const char *)part + pkvi_layout_k_at(l, head, slot, dim));
}

double pkvi_reference_v(const pkvi_layout *l, const void *part, uint32_t head, uint32_t slot,
                        uint32_t dim)
{
    if (pkvi_layout_v_coded(l)) {
        const char *tile = (const char *)part + l->v_offset + (size_t)head * l->v_head_bytes;
        const int32_t code = pkvi_layout_v_code(l, part, head, slot, dim);
        if (l->dtype_v == PKV_DTYPE_V8) return half_at(tile + l->v_scale, slot) * code;
        const size_t at = (size_t)(dim / 32) * l->page_tokens + slot;
        return half_at(tile + l->v_min, at) + half_at(tile + l->v_scale, at) * code;
    }
    return element(l->dtype_v, (const char *)part + pkvi_layout_v_at(l, head, slot, dim));
}

static int sees(const pkvi_attend_job *job, uint32_t row, uint32_t slot)
{
    if (slot < job->lo[row] || slot >= job->hi[row]) return 0;
    if (job->tree_n == 0 || slot < job->tree_slot || slot - job->tree_slot >= job->tree_n) return 1;
    const uint8_t *bits = job->tree_rows[row];
    const uint32_t j = slot - job->tree_slot;
    return !bits || (bits[j / 8] >> (j % 8) & 1);
}

static double key_position(const pkvi_attend_job *job, uint32_t slot)
{
    const uint32_t P = job->layout->page_tokens;
    if (job->tree_pos && job->tree_n && slot >= job->tree_slot &&
        slot - job->tree_slot < job->tree_n)
        return job->tree_pos[slot - job->tree_slot];
    return job->page_pos ? job->page_pos[slot / P] + (double)(slot % P) : slot;
}

static double logit(const pkvi_attend_job *job, uint32_t head, uint32_t row, uint32_t slot)
{
    const pkvi_layout *l = job->layout;
    const size_t h = head - job->head0;
    const float *q = job->q + h * job->q_head_stride + (size_t)row * l->dim_k;
    const void *part = job->parts[slot / l->page_tokens];
    double x = 0;
    for (uint32_t d = 0; d < l->dim_k; d++)
        x += (double)q[d] * pkvi_reference_k(l, part, head, slot % l->page_tokens, d);
    x *= (double)job->scale;
    if (job->softcap > 0) x = (double)job->softcap * tanh(x / (double)job->softcap);
    if (job->slopes)
        x += (double)job->slopes[h * job->n_rows + row] *
             (key_position(job, slot) - job->q_pos[row]);
    return x;
}

/* Running sums of one row; everything is relative to exp(max). */
struct sums {
    double max, sum;
    double *out, *weights, *mass;
    uint32_t dims, pages;
};

static void rescale(struct sums *s, double max)
{
    const double by = s->max == max ? 1.0 : exp(s->max - max);
    s->sum *= by;
    for (uint32_t d = 0; d < s->dims; d++)
        s->out[d] *= by;
    for (uint32_t d = 0; s->weights && d < s->dims; d++)
        s->weights[d] *= by;
    for (uint32_t i = 0; s->mass && i < s->pages; i++)
        s->mass[i] *= by;
    s->max = max;
}

static void add_token(const pkvi_attend_job *job, uint32_t head, uint32_t row, uint32_t slot,
                      struct sums *s)
{
    const pkvi_layout *l = job->layout;
    const uint32_t P = l->page_tokens;
    const double x = logit(job, head, row, slot);
    if (x > s->max) rescale(s, x);
    const double p = exp(x - s->max);
    s->sum += p;
    if (s->mass) s->mass[slot / P] += p;
    for (uint32_t d = 0; d < l->dim_v; d++) {
        const double v = pkvi_reference_v(l, job->parts[slot / P], head, slot % P, d);
        s->out[d] += p * v;
        if (s->weights) s->weights[d] += p * fabs(v);
    }
}

void pkvi_reference_row(const pkvi_attend_job *job, uint32_t head, uint32_t row, double sink,
                        double *out, double *lse, double *weights, double *mass)
{
    const pkvi_layout *l = job->layout;
    const double none = -(double)INFINITY;
    struct sums s = {none, 0, out, weights, mass, l->dim_v, job->n_pages};
    int any = 0;
    memset(out, 0, l->dim_v * sizeof *out);
    if (weights) memset(weights, 0, l->dim_v * sizeof *weights);
    if (mass) memset(mass, 0, job->n_pages * sizeof *mass);
    for (uint32_t slot = 0; slot < job->n_pages * l->page_tokens; slot++) {
        if (!sees(job, row, slot)) continue;
        any = 1;
        add_token(job, head, row, slot, &s);
    }
    if (sink > s.max) rescale(&s, sink);
    if (sink > none) s.sum += exp(sink - s.max);
    if (lse) *lse = any || sink > none ? s.max + log(s.sum) : none;
    if (!any) return;
    rescale(&s, s.max + log(s.sum));
}
