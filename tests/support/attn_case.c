#include "attn_case.h"

#include <check.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quantise.h"
#include "random.h"

#define OK(call)                                                                                   \
    do {                                                                                           \
        pkv_status ok_status = (call);                                                             \
        char ok_text[256] = "";                                                                    \
        if (ok_status != PKV_OK) pkv_cache_last_error(c->cache, ok_text, sizeof ok_text);          \
        ck_assert_msg(ok_status == PKV_OK, "%s: %s (%s)", #call, pkv_status_name(ok_status),       \
                      ok_text);                                                                    \
    } while (0)

/* ---- numbers -------------------------------------------------------------------------------- */

float ac_value(uint64_t content, char what, uint32_t layer, uint32_t head, uint32_t dim)
{
    uint64_t state = content * UINT64_C(0xd6e8feb86659fd93) + (uint64_t)(unsigned char)what;
    state ^= ((uint64_t)layer << 40) + ((uint64_t)head << 20) + dim;
    return (float)((double)(pkvt_random(&state) >> 11) * 0x1p-52 - 1.0);
}

static float round_to(float x, int bits, int min_exponent)
{
    if (x == 0 || !isfinite(x)) return x;
    int e = ilogbf(x);
    if (e < min_exponent) e = min_exponent;
    double quantum = ldexp(1, e - bits);
    return (float)(nearbyint((double)x / quantum) * quantum);
}

float ac_round(float x, pkv_dtype dtype)
{
    if (dtype == PKV_DTYPE_F16) return round_to(x, 10, -14);
    if (dtype == PKV_DTYPE_BF16) return round_to(x, 7, -126);
    return x;
}

static float spread(const ac_case *c)
{
    return c->shape.spread > 0 ? c->shape.spread : 1;
}

/* What the host hands over: a value in the input type. */
static float input(const ac_case *c, pkv_dtype in, uint64_t content, char what, uint32_t layer,
                   uint32_t head, uint32_t dim)
{
    float x = ac_value(content, what, layer, head, dim);
    return ac_round(what == 'v' ? x : x * spread(c), in);
}

static void store(void *at, pkv_dtype dtype, float x)
{
    uint32_t bits;
    if (dtype == PKV_DTYPE_F32) {
        memcpy(at, &x, sizeof x);
        return;
    }
    uint16_t half;
    if (dtype == PKV_DTYPE_BF16) {
        memcpy(&bits, &x, sizeof bits);
        half = (uint16_t)(bits >> 16);
    } else {
        int e;
        double m = frexp(fabs((double)x), &e); /* x = m 2^e, m in [0.5, 1) */
        uint32_t sign = signbit(x) ? 0x8000u : 0;
        if (x == 0)
            half = (uint16_t)sign;
        else if (e - 1 < -14)
            half = (uint16_t)(sign | (uint32_t)ldexp(m, e + 24));
        else
            half = (uint16_t)(sign |
                              (((uint32_t)(e - 1 + 15) << 10) + ((uint32_t)ldexp(m, 11) - 1024)));
    }
    memcpy(at, &half, sizeof half);
}

static float load(const void *at, pkv_dtype dtype)
{
    float x;
    if (dtype == PKV_DTYPE_F32) {
        memcpy(&x, at, sizeof x);
        return x;
    }
    uint16_t half;
    memcpy(&half, at, sizeof half);
    if (dtype == PKV_DTYPE_BF16) {
        uint32_t bits = (uint32_t)half << 16;
        memcpy(&x, &bits, sizeof x);
        return x;
    }
    int e = half >> 10 & 31, m = half & 1023;
    double v = e == 0    ? ldexp(m, -24)
               : e == 31 ? (m ? (double)NAN : (double)INFINITY)
                         : ldexp(1024 + m, e - 25);
    return (float)(half & 0x8000 ? -v : v);
}

/* ---- cases ---------------------------------------------------------------------------------- */

static float *random_floats(size_t n, uint64_t seed, float scale)
{
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = scale * ac_value(seed, 'x', 0, 0, (uint32_t)i);
    return x;
}

ac_case *ac_open(const ac_shape *shape)
{
    ac_case *c = calloc(1, sizeof *c);
    c->shape = *shape;
    pkv_group_config group = {.n_layers = shape->n_layers,
                              .kv_heads = shape->kv_heads,
                              .q_heads = shape->q_heads,
                              .head_dim_k = shape->dim_k,
                              .head_dim_v = shape->dim_v,
                              .window = shape->window,
                              .dtype = shape->dtype,
                              .dtype_k = shape->dtype_k,
                              .dtype_v = shape->dtype_v};
    pkv_config config;
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    if (shape->external) {
        c->buffer = aligned_alloc(64, shape->external);
        memset(c->buffer, 0xff, shape->external); /* NaN in every format */
        config.storage = PKV_STORAGE_EXTERNAL;
        group.external_base = c->buffer;
        group.external_bytes = shape->external;
    }
    config.page_tokens = shape->page_tokens;
    config.groups = &group;
    config.n_groups = 1;
    config.memory_limit = shape->memory ? shape->memory : UINT64_C(256) << 20;
    config.debug = shape->debug;
    config.isa = shape->isa;
    config.prefix = shape->prefix;
    config.rope = shape->rope;
    config.signals = shape->signals;
    config.allocator = shape->allocator;
    char text[256] = "";
    pkv_config_check(&config, text, sizeof text);
    pkv_status status = pkv_cache_create(&config, &c->cache);
    ck_assert_msg(status == PKV_OK, "cache_create: %s %s", pkv_status_name(status), text);
    if (shape->alibi) c->slopes = random_floats(shape->q_heads, 11, 0.05f);
    if (shape->sinks) c->sinks = random_floats((size_t)shape->n_layers * shape->q_heads, 12, 3);
    return c;
}

void ac_close(ac_case *c)
{
    for (uint32_t i = 0; i < AC_MAX_SEQS; i++) {
        if (c->seqs[i].handle.cache) ac_destroy(c, i);
        free(c->seqs[i].content);
        free(c->seqs[i].written);
    }
    char text[256] = "";
    pkv_status status = pkv_cache_verify(c->cache, text, sizeof text);
    ck_assert_msg(status == PKV_OK, "verify: %s", text);
    pkv_cache_destroy(c->cache);
    free(c->buffer);
    free(c->slopes);
    free(c->sinks);
    free(c);
}

void ac_create(ac_case *c, uint32_t seq)
{
    OK(pkv_seq_create(c->cache, &c->seqs[seq].handle));
    c->seqs[seq].length = 0;
}

void ac_destroy(ac_case *c, uint32_t seq)
{
    OK(pkv_seq_destroy(c->seqs[seq].handle));
    c->seqs[seq].handle = (pkv_seq){0};
    c->seqs[seq].length = 0;
}

static void make_room(ac_seq *s, uint64_t n)
{
    if (n <= s->capacity) return;
    s->capacity = n * 2 + 64;
    s->content = realloc(s->content, s->capacity * sizeof *s->content);
    s->written = realloc(s->written, s->capacity);
}

void ac_fork(ac_case *c, uint32_t parent, uint32_t child)
{
    ac_seq *from = &c->seqs[parent], *to = &c->seqs[child];
    OK(pkv_seq_fork(from->handle, &to->handle));
    make_room(to, from->length);
    to->length = from->length;
    if (from->length == 0) return;
    memcpy(to->content, from->content, from->length * sizeof *to->content);
    memcpy(to->written, from->written, from->length);
}

pkv_plan_options ac_options(const ac_case *c)
{
    pkv_plan_options options;
    ck_assert_int_eq(pkv_plan_options_init(&options, sizeof options), PKV_OK);
    options.scale = c->shape.scale;
    options.softcap = c->shape.softcap;
    options.alibi_slopes = c->slopes;
    options.sinks = c->sinks;
    options.sinks_stride = c->shape.q_heads;
    options.max_threads = 16;
    return options;
}

/* ---- tensors -------------------------------------------------------------------------------- */

typedef struct tensor {
    unsigned char *block;
    void *data;
    ptrdiff_t token_stride, head_stride;
} tensor;

static tensor make_tensor(uint64_t rows, uint32_t heads, uint32_t dim, pkv_dtype dtype, bool padded)
{
    size_t size = pkv_dtype_size(dtype);
    tensor t;
    size_t bytes;
    if (padded) { /* [head][token][dim + 3], heads in descending order */
        size_t row = (dim + 3) * size;
        t.token_stride = (ptrdiff_t)row;
        t.head_stride = -(ptrdiff_t)(row * rows);
        bytes = row * rows * heads;
        t.block = malloc(bytes ? bytes : 1);
        t.data = t.block + row * rows * (heads - 1);
    } else {
        t.head_stride = (ptrdiff_t)(dim * size);
        t.token_stride = t.head_stride * (ptrdiff_t)heads;
        bytes = (size_t)t.token_stride * rows;
        t.block = malloc(bytes ? bytes : 1);
        t.data = t.block;
    }
    memset(t.block, 0xff, bytes);
    return t;
}

static unsigned char *row_of(const tensor *t, uint64_t row, uint32_t head)
{
    return (unsigned char *)t->data + (ptrdiff_t)row * t->token_stride +
           (ptrdiff_t)head * t->head_stride;
}

static tensor fill_tensor(const ac_case *c, const ac_entry *entries, uint32_t n, uint64_t rows,
                          uint32_t heads, uint32_t dim, pkv_dtype dtype, char what, uint32_t layer,
                          bool padded)
{
    tensor t = make_tensor(rows, heads, dim, dtype, padded);
    uint64_t row = 0;
    for (uint32_t e = 0; e < n; e++)
        for (uint32_t i = 0; i < entries[e].n; i++, row++)
            for (uint32_t h = 0; h < heads; h++)
                for (uint32_t d = 0; d < dim; d++)
                    store(row_of(&t, row, h) + d * pkv_dtype_size(dtype), dtype,
                          input(c, dtype, entries[e].content[i], what, layer, h, d));
    return t;
}

static pkv_rows rows_of(const tensor *t, pkv_dtype dtype, uint32_t heads, uint32_t dim)
{
    return (pkv_rows){.data = t->data,
                      .dtype = dtype,
                      .heads = heads,
                      .dim = dim,
                      .token_stride = t->token_stride,
                      .head_stride = t->head_stride};
}

/* ---- steps ---------------------------------------------------------------------------------- */

/* With EXTERNAL storage copy-on-write is the host's work. */
static void execute_copies(ac_case *c, pkv_batch batch)
{
    pkv_copy copies[AC_MAX_SEQS];
    uint32_t n;
    pkv_group_info info = {.struct_size = sizeof info};
    OK(pkv_cache_group_info(c->cache, 0, &info));
    OK(pkv_batch_copies(batch, copies, AC_MAX_SEQS, &n));
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t layer = 0; layer < info.n_layers; layer++) {
            void *src, *dst;
            OK(pkv_page_address(c->cache, 0, copies[i].src, layer, &src));
            OK(pkv_page_address(c->cache, 0, copies[i].dst, layer, &dst));
            memcpy(dst, src, info.layer_bytes);
        }
    }
}

pkv_batch ac_reserve(ac_case *c, pkv_plan *plan, const ac_entry *entries, uint32_t n)
{
    pkv_batch batch;
    OK(pkv_batch_begin(c->cache, &batch));
    for (uint32_t i = 0; i < n; i++)
        OK(pkv_batch_add(batch, c->seqs[entries[i].seq].handle, NULL, entries[i].n));
    OK(pkv_batch_reserve(batch));
    if (c->shape.external) execute_copies(c, batch);
    for (uint32_t i = 0; i < n; i++)
        if (entries[i].mask)
            OK(pkv_plan_set_tree(plan, i, entries[i].n, entries[i].mask, entries[i].depth));
    OK(pkv_plan_build(plan, batch));
    return batch;
}

struct call {
    ac_case *c;
    pkv_plan *plan;
    uint32_t layer, ith, nth;
    const pkv_rows *k, *v, *q;
    const pkv_rows_out *out;
    float *lse;
};

static void *one_call(void *context)
{
    struct call *call = context;
    ac_case *c = call->c;
    if (call->k)
        OK(pkv_write(call->plan, call->layer, call->k, call->v, call->ith, call->nth));
    else
        OK(pkv_attend(call->plan, call->layer, call->q, call->out, call->lse, call->ith,
                      call->nth));
    return NULL;
}

static void all_calls(const struct call *proto, const ac_run *run)
{
    uint32_t nth = run->nth ? run->nth : 1;
    struct call *calls = malloc(nth * sizeof *calls);
    for (uint32_t i = 0; i < nth; i++) {
        calls[i] = *proto;
        calls[i].ith = i;
        calls[i].nth = nth;
    }
    if (run->threads) {
        pthread_t *threads = malloc(nth * sizeof *threads);
        for (uint32_t i = 0; i < nth; i++)
            ck_assert_int_eq(pthread_create(&threads[i], NULL, one_call, &calls[i]), 0);
        for (uint32_t i = 0; i < nth; i++)
            pthread_join(threads[i], NULL);
        free(threads);
    } else {
        uint64_t random = run->order_seed;
        for (uint32_t i = nth; run->order_seed && i > 1; i--) {
            uint32_t j = pkvt_below(&random, i);
            struct call swap = calls[i - 1];
            calls[i - 1] = calls[j];
            calls[j] = swap;
        }
        for (uint32_t i = 0; i < nth; i++)
            one_call(&calls[i]);
    }
    free(calls);
}

static void one_layer(ac_case *c, pkv_plan *plan, const ac_entry *entries, uint32_t n,
                      const ac_run *run, uint32_t layer, ac_result *result)
{
    const ac_shape *s = &c->shape;
    pkv_dtype in = run->in ? run->in : PKV_DTYPE_F32, out = run->out ? run->out : PKV_DTYPE_F32;
    uint64_t rows = result->n_rows;
    tensor k = fill_tensor(c, entries, n, rows, s->kv_heads, s->dim_k, in, 'k', layer, run->padded);
    tensor v = fill_tensor(c, entries, n, rows, s->kv_heads, s->dim_v, in, 'v', layer, false);
    tensor q = fill_tensor(c, entries, n, rows, s->q_heads, s->dim_k, in, 'q', layer, run->padded);
    tensor o = make_tensor(rows, s->q_heads, s->dim_v, out, run->padded);
    pkv_rows kr = rows_of(&k, in, s->kv_heads, s->dim_k),
             vr = rows_of(&v, in, s->kv_heads, s->dim_v),
             qr = rows_of(&q, in, s->q_heads, s->dim_k);
    pkv_rows_out outr = {.data = o.data,
                         .dtype = out,
                         .heads = s->q_heads,
                         .dim = s->dim_v,
                         .token_stride = o.token_stride,
                         .head_stride = o.head_stride};
    struct call call = {.c = c, .plan = plan, .layer = layer, .k = &kr, .v = &vr};
    all_calls(&call, run);
    if (result->out) {
        float *lse = result->lse + (size_t)layer * rows * s->q_heads;
        call =
            (struct call){.c = c, .plan = plan, .layer = layer, .q = &qr, .out = &outr, .lse = lse};
        all_calls(&call, run);
        float *to = result->out + (size_t)layer * rows * s->q_heads * s->dim_v;
        for (uint64_t r = 0; r < rows; r++)
            for (uint32_t h = 0; h < s->q_heads; h++)
                for (uint32_t d = 0; d < s->dim_v; d++)
                    *to++ = load(row_of(&o, r, h) + d * pkv_dtype_size(out), out);
    }
    free(k.block);
    free(v.block);
    free(q.block);
    free(o.block);
}

static void enter_contents(ac_case *c, const ac_entry *entries, uint32_t n, const ac_run *run)
{
    const uint32_t *accepted = run->accepted, *kept = run->kept;
    for (uint32_t e = 0; e < n; e++) {
        ac_seq *s = &c->seqs[entries[e].seq];
        uint32_t take = accepted ? accepted[e] : entries[e].n;
        if (take == 0) continue;
        make_room(s, s->length + take);
        for (uint32_t i = 0; i < take; i++)
            s->content[s->length + i] = entries[e].content[kept ? *kept++ : i];
        memset(s->written + s->length, run->in ? run->in : PKV_DTYPE_F32, take);
        s->length += take;
    }
}

static ac_result run_step(ac_case *c, pkv_plan *plan, const ac_entry *entries, uint32_t n,
                          const ac_run *run, bool attend)
{
    ac_result result = {0};
    for (uint32_t e = 0; e < n; e++)
        result.n_rows += entries[e].n;
    size_t rows = (size_t)c->shape.n_layers * result.n_rows * c->shape.q_heads;
    if (attend) {
        result.out = malloc(rows * c->shape.dim_v * sizeof *result.out);
        result.lse = malloc(rows * sizeof *result.lse);
    }
    pkv_batch batch = ac_reserve(c, plan, entries, n);
    for (uint32_t layer = 0; layer < c->shape.n_layers; layer++)
        one_layer(c, plan, entries, n, run, layer, &result);
    if (!run->commit) {
        OK(pkv_batch_abort(batch));
        return result;
    }
    if (run->kept)
        OK(pkv_batch_commit_paths(batch, run->kept, run->accepted, n));
    else if (run->accepted)
        OK(pkv_batch_commit_partial(batch, run->accepted, n));
    else
        OK(pkv_batch_commit(batch));
    enter_contents(c, entries, n, run);
    return result;
}

ac_result ac_step(ac_case *c, pkv_plan *plan, const ac_entry *entries, uint32_t n,
                  const ac_run *run)
{
    return run_step(c, plan, entries, n, run, true);
}

void ac_result_free(ac_result *result)
{
    free(result->out);
    free(result->lse);
    *result = (ac_result){0};
}

void ac_fill(ac_case *c, uint32_t seq, uint32_t n, uint32_t chunk, uint64_t *random)
{
    pkv_plan_options options = ac_options(c);
    pkv_plan *plan;
    OK(pkv_plan_create(c->cache, &options, &plan));
    uint64_t *content = malloc((n ? n : 1) * sizeof *content);
    for (uint32_t i = 0; i < n; i++)
        content[i] = pkvt_random(random);
    ac_run run = {.commit = true};
    for (uint32_t at = 0; at < n;) {
        uint32_t now = n - at < chunk ? n - at : chunk;
        ac_entry entry = {.seq = seq, .n = now, .content = content + at};
        ac_result result = run_step(c, plan, &entry, 1, &run, false);
        ac_result_free(&result);
        at += now;
    }
    free(content);
    pkv_plan_destroy(plan);
}

/* ---- the naive model ------------------------------------------------------------------------ */

static bool naive_sees(const ac_case *c, const ac_entry *entry, uint32_t t, uint64_t position,
                       uint64_t *key_position)
{
    uint64_t length = c->seqs[entry->seq].length;
    uint64_t at = length + (entry->depth ? entry->depth[t] : t);
    *key_position = position;
    if (position >= length) {
        uint32_t j = (uint32_t)(position - length);
        if (j > t) return false;
        if (entry->mask && !(entry->mask[(size_t)t * ((entry->n + 7) / 8) + j / 8] >> (j % 8) & 1))
            return false;
        if (entry->depth) *key_position = length + entry->depth[j];
    }
    return c->shape.window == 0 || *key_position + c->shape.window > at;
}

/* Keys or values of one head as the row at position `at` sees them: [n][dim], freed by the caller. */
static double *naive_rows(const ac_case *c, const ac_entry *entry, const ac_run *run, char what,
                          uint32_t layer, uint32_t head, uint64_t n)
{
    const ac_shape *s = &c->shape;
    const ac_seq *seq = &c->seqs[entry->seq];
    const pkv_dtype in = run->in ? run->in : PKV_DTYPE_F32;
    const pkv_dtype format = what == 'k' ? s->dtype_k : s->dtype_v;
    const uint32_t dim = what == 'k' ? s->dim_k : s->dim_v;
    double *rows = malloc(n * dim * sizeof *rows);
    for (uint64_t p = 0; p < n; p++) {
        const uint64_t content = p < seq->length ? seq->content[p] : entry->content[p - seq->length];
        const pkv_dtype was = p < seq->length ? seq->written[p] : in;
        for (uint32_t d = 0; d < dim; d++)
            rows[p * dim + d] =
                (double)ac_round(input(c, was, content, what, layer, head, d), s->dtype);
    }
    const uint64_t own = (n - 1) / s->page_tokens * s->page_tokens;
    for (uint64_t p = 0; p < own; p += s->page_tokens)
        pkvt_quantise(rows + p * dim, s->page_tokens, dim, format);
    return rows;
}

void ac_naive(const ac_case *c, const ac_entry *entry, uint32_t t, uint32_t layer, uint32_t q_head,
              const ac_run *run, double *out, double *lse, double *weights)
{
    const ac_shape *s = &c->shape;
    const ac_seq *seq = &c->seqs[entry->seq];
    pkv_dtype in = run->in ? run->in : PKV_DTYPE_F32;
    uint32_t head = q_head / (s->q_heads / s->kv_heads);
    uint64_t n = seq->length + t + 1;
    uint64_t at = seq->length + (entry->depth ? entry->depth[t] : t);
    double scale = s->scale != 0 ? (double)s->scale : (double)(float)(1 / sqrt(s->dim_k));
    double *logits = malloc(n * sizeof *logits), max = -INFINITY, sum = 0;
    double *keys = naive_rows(c, entry, run, 'k', layer, head, n);
    double *values = naive_rows(c, entry, run, 'v', layer, head, n);
    for (uint64_t p = 0; p < n; p++) {
        uint64_t where;
        logits[p] = -INFINITY;
        if (!naive_sees(c, entry, t, p, &where)) continue;
        double x = 0;
        for (uint32_t d = 0; d < s->dim_k; d++)
            x += (double)input(c, in, entry->content[t], 'q', layer, q_head, d) *
                 keys[p * s->dim_k + d];
        x *= scale;
        if (s->softcap > 0) x = (double)s->softcap * tanh(x / (double)s->softcap);
        if (c->slopes) x += (double)c->slopes[q_head] * ((double)where - (double)at);
        logits[p] = x;
        if (x > max) max = x;
    }
    double sink = c->sinks ? (double)c->sinks[(size_t)layer * s->q_heads + q_head] : -INFINITY;
    if (sink > max) max = sink;
    memset(out, 0, s->dim_v * sizeof *out);
    memset(weights, 0, s->dim_v * sizeof *weights);
    for (uint64_t p = 0; p < n; p++) {
        if (logits[p] == -INFINITY) continue;
        double w = exp(logits[p] - max);
        sum += w;
        for (uint32_t d = 0; d < s->dim_v; d++) {
            double v = values[p * s->dim_v + d];
            out[d] += w * v;
            weights[d] += w * fabs(v);
        }
    }
    if (sink != -INFINITY) sum += exp(sink - max);
    for (uint32_t d = 0; d < s->dim_v; d++) {
        out[d] /= sum;
        weights[d] /= sum;
    }
    *lse = max + log(sum);
    free(logits);
    free(keys);
    free(values);
}

double ac_gate(const ac_case *c, const ac_run *run)
{
    const char *name = "";
    pkv_kernel_name(c->cache, &name);
    bool rounds = c->shape.dtype == PKV_DTYPE_BF16 && strstr(name, "bf16");
    /* Logits are bounded by spread^2 scale dim; their float error moves p by as much. */
    double scale = c->shape.scale != 0 ? (double)c->shape.scale : 1 / sqrt(c->shape.dim_k);
    double logit = (double)(spread(c) * spread(c)) * fabs(scale) * c->shape.dim_k;
    double gate = rounds ? 0x1p-8 : 1e-5;
    gate += expm1(2 * logit * (rounds ? 0x1p-16 : 0x1p-22));
    if (run->out == PKV_DTYPE_F16) gate += 0x1p-11;
    if (run->out == PKV_DTYPE_BF16) gate += 0x1p-8;
    return gate;
}

void ac_check(const ac_case *c, const ac_entry *entries, uint32_t n, const ac_run *run,
              const ac_result *result, uint32_t rows, uint64_t *random)
{
    const ac_shape *s = &c->shape;
    double gate = ac_gate(c, run), out[PKV_MAX_HEAD_DIM], weights[PKV_MAX_HEAD_DIM], lse;
    uint64_t first = 0;
    for (uint32_t e = 0; e < n; first += entries[e].n, e++) {
        uint64_t all = (uint64_t)entries[e].n * s->q_heads * s->n_layers;
        uint64_t todo = rows && rows < all ? rows : all;
        for (uint64_t i = 0; i < todo; i++) {
            uint64_t pick = todo < all ? pkvt_random(random) % all : i;
            uint32_t layer = (uint32_t)(pick % s->n_layers);
            uint32_t head = (uint32_t)(pick / s->n_layers % s->q_heads);
            uint32_t t = (uint32_t)(pick / s->n_layers / s->q_heads);
            ac_naive(c, &entries[e], t, layer, head, run, out, &lse, weights);
            size_t at = ((size_t)layer * result->n_rows + first + t) * s->q_heads + head;
            for (uint32_t d = 0; d < s->dim_v; d++)
                ck_assert_msg(
                    fabs((double)result->out[at * s->dim_v + d] - out[d]) <=
                        gate * weights[d] + 1e-7,
                    "%s in %s out %s: entry %u (length %llu, %u new) token %u layer %u head %u dim "
                    "%u: "
                    "%.9g, not %.9g (gate %g of %g)",
                    pkv_dtype_name(s->dtype), pkv_dtype_name(run->in), pkv_dtype_name(run->out), e,
                    (unsigned long long)c->seqs[entries[e].seq].length, entries[e].n, t, layer,
                    head, d, (double)result->out[at * s->dim_v + d], out[d], gate, weights[d]);
            ck_assert_msg(fabs((double)result->lse[at] - lse) <= gate + 1e-6 * fabs(lse),
                          "entry %u token %u layer %u head %u: lse %.9g, not %.9g", e, t, layer,
                          head, (double)result->lse[at], lse);
        }
    }
}
