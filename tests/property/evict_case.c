#include "evict_case.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define THETA 10000.0

static uint64_t hash(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

struct ec_case *ec_open(const struct ec_shape *shape, uint32_t mass)
{
    struct ec_case *c = calloc(1, sizeof *c);
    c->shape = *shape;
    c->seed = 1;
    c->nth = 1;
    pkv_config config;
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    pkv_group_config group = {.n_layers = shape->n_layers,
                              .kv_heads = shape->kv_heads,
                              .q_heads = shape->kv_heads * shape->group_size,
                              .head_dim_k = shape->dim,
                              .window = shape->window,
                              .dtype = shape->dtype};
    pkv_rope_config rope = {.rotary_dims = shape->rotary_dims,
                            .interleaved = shape->interleaved,
                            .theta = THETA,
                            .position_scale = shape->position_scale};
    config.groups = &group;
    config.n_groups = 1;
    config.page_tokens = shape->page_tokens;
    config.memory_limit = 64u << 20;
    config.signals = shape->signals;
    config.prefix = shape->prefix;
    config.event_capacity = 4096;
    config.debug = PKV_DEBUG_POISON;
    if (shape->rotary_dims) config.rope = &rope;
    char text[200];
    ck_assert_msg(pkv_config_check(&config, text, sizeof text) == PKV_OK, "%s", text);
    ck_assert_int_eq(pkv_cache_create(&config, &c->cache), PKV_OK);
    pkv_plan_options options;
    ck_assert_int_eq(pkv_plan_options_init(&options, sizeof options), PKV_OK);
    options.mass = mass;
    if (mass) options.concurrent_layers = shape->n_layers; /* keep the mass of every layer */
    ck_assert_int_eq(pkv_plan_create(c->cache, &options, &c->plan), PKV_OK);
    return c;
}

void ec_close(struct ec_case *c)
{
    pkv_plan_destroy(c->plan);
    ec_verify(c);
    pkv_cache_destroy(c->cache);
    free(c->q), free(c->k), free(c->v), free(c->out), free(c->lse);
    free(c);
}

void ec_verify(struct ec_case *c)
{
    char text[256];
    const pkv_status status = pkv_cache_verify(c->cache, text, sizeof text);
    ck_assert_msg(status == PKV_OK, "verify: %s", text);
}

float ec_value(const struct ec_case *c, int what, uint64_t content, uint32_t layer, uint32_t head,
               uint32_t i)
{
    uint64_t h = hash(c->seed ^ hash(content * 4 + (uint64_t)what));
    h = hash(h ^ ((uint64_t)layer << 40) ^ ((uint64_t)head << 20) ^ i);
    const float x = (float)(h >> 40) / 8388608.0f - 1;
    return what == 0 && c->shape.peak > 0 ? x * c->shape.peak : x;
}

void ec_vector(const struct ec_case *c, int what, uint64_t content, uint32_t layer, uint32_t head,
               double position, double *to)
{
    for (uint32_t i = 0; i < c->shape.dim; i++)
        to[i] = (double)ec_value(c, what, content, layer, head, i);
    if (what == 2) return;
    const uint32_t half = c->shape.rotary_dims / 2;
    const double scale = c->shape.position_scale > 0 ? c->shape.position_scale : 1;
    for (uint32_t i = 0; i < half; i++) {
        const uint32_t a = c->shape.interleaved ? 2 * i : i;
        const uint32_t b = c->shape.interleaved ? 2 * i + 1 : i + half;
        const double angle = position * scale * pow(THETA, -2.0 * i / c->shape.rotary_dims);
        const double x = to[a], y = to[b];
        to[a] = x * cos(angle) - y * sin(angle);
        to[b] = x * sin(angle) + y * cos(angle);
    }
}

static void make_room(struct ec_case *c, uint32_t rows)
{
    if (rows <= c->capacity) return;
    const size_t kv = (size_t)c->shape.n_layers * rows * c->shape.kv_heads * c->shape.dim;
    c->capacity = rows;
    c->q = realloc(c->q, kv * c->shape.group_size * sizeof *c->q);
    c->out = realloc(c->out, kv * c->shape.group_size * sizeof *c->out);
    c->k = realloc(c->k, kv * sizeof *c->k);
    c->v = realloc(c->v, kv * sizeof *c->v);
    c->lse = realloc(c->lse, kv * c->shape.group_size * sizeof *c->lse);
}

/* [row][head][dim] of one layer. */
static void fill(const struct ec_case *c, int what, uint64_t content, uint64_t position,
                 uint32_t layer, uint32_t n, uint32_t heads, float *to)
{
    double x[1024];
    for (uint32_t r = 0; r < n; r++)
        for (uint32_t h = 0; h < heads; h++) {
            ec_vector(c, what, content + r, layer, h, (double)(position + r), x);
            for (uint32_t i = 0; i < c->shape.dim; i++)
                *to++ = (float)x[i];
        }
}

void ec_step(struct ec_case *c, pkv_seq seq, uint64_t base, uint32_t n, pkv_batch *keep)
{
    const struct ec_shape *s = &c->shape;
    const uint32_t q_heads = s->kv_heads * s->group_size;
    pkv_batch batch;
    uint64_t position;
    make_room(c, n);
    ck_assert_int_eq(pkv_seq_position(seq, 0, &position), PKV_OK);
    int32_t *tokens = malloc(n * sizeof *tokens);
    for (uint32_t r = 0; r < n; r++)
        tokens[r] = (int32_t)(base + position + r);
    ck_assert_int_eq(pkv_batch_begin(c->cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, seq, tokens, n), PKV_OK);
    free(tokens);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    ck_assert_int_eq(pkv_plan_build(c->plan, batch), PKV_OK);
    const ptrdiff_t row = (ptrdiff_t)(s->dim * sizeof(float));
    for (uint32_t l = 0; l < s->n_layers; l++) {
        const size_t kv = (size_t)l * n * s->kv_heads * s->dim, qo = kv * s->group_size;
        fill(c, 0, base + position, position, l, n, q_heads, c->q + qo);
        fill(c, 1, base + position, position, l, n, s->kv_heads, c->k + kv);
        fill(c, 2, base + position, position, l, n, s->kv_heads, c->v + kv);
        pkv_rows k = {.data = c->k + kv,
                      .dtype = PKV_DTYPE_F32,
                      .heads = s->kv_heads,
                      .dim = s->dim,
                      .token_stride = row * s->kv_heads,
                      .head_stride = row};
        pkv_rows v = k, q = {.data = c->q + qo,
                             .dtype = PKV_DTYPE_F32,
                             .heads = q_heads,
                             .dim = s->dim,
                             .token_stride = row * q_heads,
                             .head_stride = row};
        v.data = c->v + kv;
        pkv_rows_out out = {.data = c->out + qo,
                            .dtype = PKV_DTYPE_F32,
                            .heads = q_heads,
                            .dim = s->dim,
                            .token_stride = row * q_heads,
                            .head_stride = row};
        for (uint32_t i = 0; i < c->nth; i++)
            ck_assert_int_eq(pkv_write(c->plan, l, &k, &v, i, c->nth), PKV_OK);
        for (uint32_t i = 0; i < c->nth; i++)
            ck_assert_int_eq(
                pkv_attend(c->plan, l, &q, &out, c->lse + (size_t)l * n * q_heads, i, c->nth),
                PKV_OK);
    }
    if (keep != NULL)
        *keep = batch;
    else
        ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
}

void ec_visible(struct ec_case *c, pkv_seq seq, uint64_t length, uint32_t n, uint32_t row,
                bool *visible)
{
    const uint32_t page_tokens = c->shape.page_tokens;
    const uint32_t pages = (uint32_t)((length + n + page_tokens - 1) / page_tokens);
    pkv_page *held = calloc(pages, sizeof *held);
    ck_assert_int_eq(pkv_seq_pages(seq, 0, 0, pages, held), PKV_OK);
    const uint64_t last = length + row;
    for (uint64_t t = 0; t < length + n; t++)
        visible[t] = held[t / page_tokens] != PKV_PAGE_NONE && t <= last &&
                     (c->shape.window == 0 || t + c->shape.window > last);
    free(held);
}

void ec_reference(const struct ec_case *c, uint64_t base, uint64_t position, uint32_t layer,
                  uint32_t q_head, const bool *visible, bool compact, double *out)
{
    const struct ec_shape *s = &c->shape;
    double q[1024], k[1024], v[1024], *logit = malloc((position + 1) * sizeof *logit);
    const uint32_t head = q_head / s->group_size;
    uint64_t inside = 0;
    for (uint64_t t = 0; t < position; t++)
        inside += visible[t];
    ec_vector(c, 0, base + position, layer, q_head, compact ? (double)inside : (double)position, q);
    double top = -INFINITY, sum = 0;
    uint64_t rank = 0;
    for (uint64_t t = 0; t <= position; t++) {
        if (!visible[t]) continue;
        ec_vector(c, 1, base + t, layer, head, compact ? (double)rank : (double)t, k);
        rank++;
        logit[t] = 0;
        for (uint32_t i = 0; i < s->dim; i++)
            logit[t] += q[i] * k[i];
        logit[t] /= sqrt((double)s->dim);
        if (logit[t] > top) top = logit[t];
    }
    memset(out, 0, s->dim * sizeof *out);
    for (uint64_t t = 0; t <= position; t++) {
        if (!visible[t]) continue;
        const double p = exp(logit[t] - top);
        sum += p;
        ec_vector(c, 2, base + t, layer, head, 0, v);
        for (uint32_t i = 0; i < s->dim; i++)
            out[i] += p * v[i];
    }
    for (uint32_t i = 0; i < s->dim; i++)
        out[i] /= sum;
    free(logit);
}
