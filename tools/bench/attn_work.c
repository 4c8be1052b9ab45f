#include "attn_work.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "random.h"

#define NOISE_BYTES ((size_t)8 << 20)

struct attn_work {
    attn_shape shape;
    pkv_cache *cache;
    pkv_seq *seqs;
    uint64_t *context; /* [n_seqs], new tokens included */
    uint32_t n_seqs;
    pkv_plan *plan;
    pkv_batch batch;
    bool reserved;
    uint64_t rows;
    unsigned char *q, *out, *kv;
    pkv_rows q_rows, kv_rows;
    pkv_rows_out out_rows;
    uint64_t page_bytes, layer_bytes;
    pkv_status failed;
    team *t;
};

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static bool fail(attn_work *w, tool_error *err, const char *what, pkv_status status)
{
    char text[256] = "";
    if (w && w->cache) pkv_cache_last_error(w->cache, text, sizeof text);
    tool_fail(err, "%s: %s%s%s", what, pkv_status_text(status), text[0] ? ": " : "", text);
    return false;
}

/* ---- numbers -------------------------------------------------------------------------------- */

/* Fills with random numbers of a type, uniform in ±1. */
static void noise(void *to, pkv_dtype dtype, size_t n, tool_random *random)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t r = random_u64(random);
        if (dtype == PKV_DTYPE_F32) {
            float x = (float)((double)(r >> 11) * 0x1p-52 - 1.0);
            memcpy((char *)to + 4 * i, &x, 4);
        } else {
            /* a random mantissa, exponents -4..-1, either sign */
            uint16_t x = (uint16_t)(r & 0x8000);
            uint16_t e = (uint16_t)((r >> 20) & 3);
            if (dtype == PKV_DTYPE_F16)
                x = (uint16_t)(x | (11u + e) << 10 | (r & 0x3ff));
            else
                x = (uint16_t)(x | (123u + e) << 7 | (r & 0x7f));
            memcpy((char *)to + 2 * i, &x, 2);
        }
    }
}

/* ---- making --------------------------------------------------------------------------------- */

static bool make_cache(attn_work *w, tool_error *err)
{
    const attn_shape *s = &w->shape;
    pkv_group_config group = {.n_layers = s->n_layers,
                              .kv_heads = s->heads_kv,
                              .q_heads = s->heads_q,
                              .head_dim_k = s->head_dim,
                              .head_dim_v = s->head_dim,
                              .dtype = s->dtype,
                              .dtype_k = s->dtype_k,
                              .dtype_v = s->dtype_v};
    pkv_config config;
    pkv_config_init(&config, sizeof config);
    config.page_tokens = s->page_tokens;
    config.groups = &group;
    config.n_groups = 1;
    config.prefix = 0;
    config.isa = s->isa;
    uint64_t tokens = s->prefix;
    for (uint32_t i = 0; i < w->n_seqs; i++)
        tokens += w->context[i] - s->prefix + 5 * s->page_tokens;
    uint64_t token_bytes =
        2ull * s->heads_kv * s->head_dim * pkv_dtype_size(s->dtype) * s->n_layers;
    config.memory_limit = tokens * token_bytes / 32 * 33 + (UINT64_C(256) << 20);
    pkv_status status = pkv_cache_create(&config, &w->cache);
    if (status != PKV_OK) {
        char text[256] = "";
        pkv_config_check(&config, text, sizeof text);
        tool_fail(err, "cache: %s %s", pkv_status_text(status), text);
        return false;
    }
    pkv_group_info info = {.struct_size = sizeof info};
    pkv_cache_group_info(w->cache, 0, &info);
    w->page_bytes = info.page_bytes;
    w->layer_bytes = info.layer_bytes;
    return true;
}

static pkv_status grow(attn_work *w, uint32_t seq, uint32_t n)
{
    pkv_batch batch;
    pkv_status status = pkv_batch_begin(w->cache, &batch);
    if (status != PKV_OK) return status;
    status = pkv_batch_add(batch, w->seqs[seq], NULL, n);
    if (status == PKV_OK) status = pkv_batch_reserve(batch);
    if (status == PKV_OK) return pkv_batch_commit(batch);
    pkv_batch_abort(batch);
    return status;
}

/* Every page that will be needed is taken; whenever a sequence grows by a page, one of them, the
 * last or any, is given back just before: so the order of pages is ours. */
static pkv_status grow_all(attn_work *w, uint32_t seq, uint64_t to, pkv_page *pages, uint64_t *n,
                           tool_random *random)
{
    uint64_t length = 0;
    pkv_status status = pkv_seq_length(w->seqs[seq], &length);
    while (status == PKV_OK && length < to) {
        uint32_t step = w->shape.page_tokens - (uint32_t)(length % w->shape.page_tokens);
        if (length + step > to) step = (uint32_t)(to - length);
        if (length % w->shape.page_tokens == 0) {
            uint64_t pick = w->shape.shuffled ? random_u64(random) % *n : *n - 1;
            pkv_page page = pages[pick];
            pages[pick] = pages[--*n];
            status = pkv_page_unref(w->cache, 0, 1, &page);
            if (status != PKV_OK) return status;
        }
        status = grow(w, seq, step);
        length += step;
    }
    return status;
}

static pkv_status place(attn_work *w, tool_random *random)
{
    const attn_shape *s = &w->shape;
    uint64_t n = (s->prefix + s->page_tokens - 1) / s->page_tokens;
    for (uint32_t i = 0; i < w->n_seqs; i++)
        n += (w->context[i] - s->prefix) / s->page_tokens + 2;
    pkv_page *pages = malloc(n * sizeof *pages);
    if (!pages) return PKV_ENOMEM;
    uint64_t held = n;
    pkv_status status = pkv_page_alloc(w->cache, 0, (uint32_t)n, pages);
    /* Descending, so that the last page is the first one. */
    for (uint64_t i = 0; i < n / 2; i++) {
        pkv_page swap = pages[i];
        pages[i] = pages[n - 1 - i];
        pages[n - 1 - i] = swap;
    }
    for (uint32_t i = 0; status == PKV_OK && i < w->n_seqs; i++) {
        if (i == 0 || s->prefix == 0) {
            status = pkv_seq_create(w->cache, &w->seqs[i]);
            if (status == PKV_OK && s->prefix)
                status = grow_all(w, i, s->prefix, pages, &held, random);
        } else {
            status = pkv_seq_fork(w->seqs[0], &w->seqs[i]);
        }
    }
    for (uint32_t i = 0; status == PKV_OK && i < w->n_seqs; i++)
        status = grow_all(w, i, w->context[i] - s->query_tokens, pages, &held, random);
    if (held) pkv_page_unref(w->cache, 0, (uint32_t)held, pages);
    free(pages);
    return status;
}

/* Noise for pages: elements, any 64 bytes of which are as good as others. */
static void noise_block(attn_work *w, tool_random *random, unsigned char *block)
{
    noise(block, w->shape.dtype, NOISE_BYTES / pkv_dtype_size(w->shape.dtype), random);
    memcpy(block + NOISE_BYTES, block, NOISE_BYTES);
}

/* Quantised pages are copies of a few layers' parts that were quantised in earnest. */
static pkv_status sealed_block(attn_work *w, tool_random *random, unsigned char *block)
{
    const attn_shape *s = &w->shape;
    const size_t plain = (size_t)2 * s->heads_kv * s->head_dim * s->page_tokens;
    unsigned char *rows = malloc(plain * pkv_dtype_size(s->dtype));
    pkv_status status = rows ? PKV_OK : PKV_ENOMEM;
    for (size_t at = 0; status == PKV_OK && at + w->layer_bytes <= 2 * NOISE_BYTES;
         at += w->layer_bytes) {
        if (at >= 16 * w->layer_bytes) {
            memcpy(block + at, block + at - 16 * w->layer_bytes, w->layer_bytes);
            continue;
        }
        noise(rows, s->dtype, plain, random);
        status = pkv_page_pack(w->cache, 0, block + at, PKV_LAYOUT_NHD, rows,
                               plain * pkv_dtype_size(s->dtype));
    }
    free(rows);
    return status;
}

/* Writes noise into every page that a sequence holds. */
static pkv_status fill(attn_work *w, tool_random *random)
{
    const bool sealed = w->shape.dtype_k || w->shape.dtype_v;
    const uint64_t unit = sealed ? w->layer_bytes : 64;
    unsigned char *block = aligned_alloc(64, 2 * NOISE_BYTES);
    if (!block) return PKV_ENOMEM;
    pkv_status status = PKV_OK;
    if (sealed)
        status = sealed_block(w, random, block);
    else
        noise_block(w, random, block);
    for (uint32_t i = 0; status == PKV_OK && i < w->n_seqs; i++) {
        uint64_t pages = (w->context[i] - w->shape.query_tokens) / w->shape.page_tokens + 1;
        uint64_t first = i && w->shape.prefix ? w->shape.prefix / w->shape.page_tokens : 0;
        for (uint64_t p = first; status == PKV_OK && p < pages; p++) {
            pkv_page page;
            void *at;
            if (pkv_seq_pages(w->seqs[i], 0, (uint32_t)p, 1, &page) != PKV_OK) break;
            status = pkv_page_address(w->cache, 0, page, 0, &at);
            for (uint64_t done = 0; status == PKV_OK && done < w->page_bytes;) {
                size_t offset = (size_t)(random_u64(random) % (NOISE_BYTES / unit) * unit);
                uint64_t now = w->page_bytes - done;
                const uint64_t most = NOISE_BYTES / unit * unit;
                if (now > most) now = most;
                memcpy((char *)at + done, block + offset, now);
                done += now;
            }
        }
    }
    free(block);
    return status;
}

static pkv_status reserve(attn_work *w)
{
    pkv_status status = pkv_batch_begin(w->cache, &w->batch);
    if (status != PKV_OK) return status;
    w->reserved = true;
    for (uint32_t i = 0; status == PKV_OK && i < w->n_seqs; i++)
        status = pkv_batch_add(w->batch, w->seqs[i], NULL, w->shape.query_tokens);
    if (status == PKV_OK) status = pkv_batch_reserve(w->batch);
    if (status == PKV_OK) status = pkv_plan_build(w->plan, w->batch);
    return status;
}

static pkv_status make_rows(attn_work *w, tool_random *random)
{
    const attn_shape *s = &w->shape;
    w->rows = (uint64_t)w->n_seqs * s->query_tokens;
    pkv_dtype dtype = s->dtype == PKV_DTYPE_BF16 ? PKV_DTYPE_BF16 : PKV_DTYPE_F32;
    size_t size = pkv_dtype_size(dtype);
    size_t n = w->rows * s->heads_q * s->head_dim, kv = w->rows * s->heads_kv * s->head_dim;
    w->q = malloc(n * size);
    w->out = malloc(n * size);
    w->kv = malloc(kv * size);
    if (!w->q || !w->out || !w->kv) return PKV_ENOMEM;
    noise(w->q, dtype, n, random);
    noise(w->kv, dtype, kv, random);
    memset(w->out, 0, n * size);
    ptrdiff_t head = (ptrdiff_t)(s->head_dim * size);
    w->q_rows = (pkv_rows){.data = w->q,
                           .dtype = dtype,
                           .heads = s->heads_q,
                           .dim = s->head_dim,
                           .token_stride = head * (ptrdiff_t)s->heads_q,
                           .head_stride = head};
    w->out_rows = (pkv_rows_out){.data = w->out,
                                 .dtype = dtype,
                                 .heads = s->heads_q,
                                 .dim = s->head_dim,
                                 .token_stride = head * (ptrdiff_t)s->heads_q,
                                 .head_stride = head};
    w->kv_rows = (pkv_rows){.data = w->kv,
                            .dtype = dtype,
                            .heads = s->heads_kv,
                            .dim = s->head_dim,
                            .token_stride = head * (ptrdiff_t)s->heads_kv,
                            .head_stride = head};
    for (uint32_t layer = 0; layer < s->n_layers; layer++) {
        pkv_status status = pkv_write(w->plan, layer, &w->kv_rows, &w->kv_rows, 0, 1);
        if (status != PKV_OK) return status;
    }
    return PKV_OK;
}

attn_work *attn_work_make(const attn_shape *shape, uint32_t threads, tool_error *err)
{
    attn_work *w = calloc(1, sizeof *w);
    if (!w) return NULL;
    tool_random random;
    random_seed(&random, shape->seed);
    w->shape = *shape;
    w->n_seqs = shape->n_seqs;
    w->seqs = calloc(w->n_seqs, sizeof *w->seqs);
    w->context = calloc(w->n_seqs, sizeof *w->context);
    if (!w->seqs || !w->context) {
        tool_fail(err, "no memory");
        attn_work_free(w);
        return NULL;
    }
    uint64_t least = shape->prefix ? shape->context : shape->context_min;
    if (w->n_seqs == 1 || least == 0) least = shape->context;
    for (uint32_t i = 0; i < w->n_seqs; i++)
        w->context[i] = least + random_u64(&random) % (shape->context - least + 1);
    bool ok = make_cache(w, err);
    pkv_status status = PKV_OK;
    if (ok && (status = place(w, &random)) != PKV_OK) ok = fail(w, err, "pages", status);
    if (ok && (status = fill(w, &random)) != PKV_OK) ok = fail(w, err, "fill", status);
    pkv_plan_options options;
    pkv_plan_options_init(&options, sizeof options);
    options.max_threads = threads;
    options.cascade = shape->cascade;
    if (ok && (status = pkv_plan_create(w->cache, &options, &w->plan)) != PKV_OK)
        ok = fail(w, err, "plan", status);
    if (ok && (status = reserve(w)) != PKV_OK) ok = fail(w, err, "reserve", status);
    if (ok && (status = make_rows(w, &random)) != PKV_OK) ok = fail(w, err, "write", status);
    if (ok) return w;
    attn_work_free(w);
    return NULL;
}

void attn_work_free(attn_work *w)
{
    if (!w) return;
    if (w->reserved) pkv_batch_abort(w->batch);
    pkv_plan_destroy(w->plan);
    pkv_cache_destroy(w->cache);
    free(w->seqs);
    free(w->context);
    free(w->q);
    free(w->out);
    free(w->kv);
    free(w);
}

/* ---- running -------------------------------------------------------------------------------- */

static void pass(void *context, uint32_t ith, uint32_t nth)
{
    attn_work *w = context;
    for (uint32_t layer = 0; layer < w->shape.n_layers; layer++) {
        pkv_status status = pkv_attend(w->plan, layer, &w->q_rows, &w->out_rows, NULL, ith, nth);
        if (status != PKV_OK) w->failed = status;
        team_barrier(w->t);
    }
}

double attn_work_pass(attn_work *w, team *t)
{
    w->t = t;
    double start = seconds();
    team_run(t, pass, w);
    return seconds() - start;
}

static void write_pass(void *context, uint32_t ith, uint32_t nth)
{
    attn_work *w = context;
    for (uint32_t layer = 0; layer < w->shape.n_layers; layer++) {
        pkv_status status = pkv_write(w->plan, layer, &w->kv_rows, &w->kv_rows, ith, nth);
        if (status != PKV_OK) w->failed = status;
    }
}

bool attn_work_step(attn_work *w, team *t, double spent[STEP_PARTS], tool_error *err)
{
    double at[STEP_PARTS + 1];
    at[STEP_COMMIT] = seconds();
    pkv_status status = pkv_batch_commit(w->batch);
    w->reserved = false;
    at[STEP_RESERVE] = seconds();
    if (status == PKV_OK) status = pkv_batch_begin(w->cache, &w->batch);
    w->reserved = status == PKV_OK;
    for (uint32_t i = 0; status == PKV_OK && i < w->n_seqs; i++)
        status = pkv_batch_add(w->batch, w->seqs[i], NULL, w->shape.query_tokens);
    if (status == PKV_OK) status = pkv_batch_reserve(w->batch);
    at[STEP_PLAN] = seconds();
    if (status == PKV_OK) status = pkv_plan_build(w->plan, w->batch);
    if (status != PKV_OK) return fail(w, err, "step", status);
    w->t = t;
    at[STEP_WRITE] = seconds();
    team_run(t, write_pass, w);
    at[STEP_ATTEND] = seconds();
    team_run(t, pass, w);
    at[STEP_PARTS] = seconds();
    for (int i = 0; i < STEP_PARTS; i++)
        spent[i] = at[i + 1] - at[i];
    return w->failed == PKV_OK || fail(w, err, "step", w->failed);
}

static double kv_token_bytes(const attn_work *w)
{
    return (double)w->layer_bytes / w->shape.page_tokens;
}

double attn_work_bytes(const attn_work *w)
{
    double tokens = (double)w->shape.prefix;
    for (uint32_t i = 0; i < w->n_seqs; i++)
        tokens += (double)(w->context[i] - w->shape.prefix);
    return tokens * kv_token_bytes(w);
}

double attn_work_flops(const attn_work *w)
{
    double pairs = 0, n = w->shape.query_tokens;
    for (uint32_t i = 0; i < w->n_seqs; i++)
        pairs += n * (double)w->context[i] - n * (n - 1) / 2;
    return pairs * 4.0 * w->shape.heads_q * w->shape.head_dim;
}

/* ---- checking ------------------------------------------------------------------------------- */

static double element(const unsigned char *at, pkv_dtype dtype, size_t i)
{
    float x;
    if (dtype == PKV_DTYPE_F32) {
        memcpy(&x, at + 4 * i, 4);
    } else {
        uint16_t half;
        memcpy(&half, at + 2 * i, 2);
        uint32_t word = (uint32_t)half << 16;
        memcpy(&x, &word, 4);
    }
    return (double)x;
}

double attn_work_check(attn_work *w, team *t, tool_error *err)
{
    attn_work_pass(w, t);
    size_t n = w->rows * w->shape.heads_q * w->shape.head_dim;
    double *expect = malloc(n * sizeof *expect), worst = 0;
    if (!expect) {
        tool_fail(err, "no memory");
        return -1;
    }
    /* The pass left the last layer's outputs. */
    pkv_status status =
        pkv_attend_reference(w->plan, w->shape.n_layers - 1, &w->q_rows, expect, NULL);
    if (status != PKV_OK || w->failed != PKV_OK) {
        fail(w, err, "reference", status != PKV_OK ? status : w->failed);
        free(expect);
        return -1;
    }
    for (size_t i = 0; i < n; i++) {
        double d = fabs(element(w->out, w->out_rows.dtype, i) - expect[i]);
        if (!(d <= worst)) worst = d;
    }
    free(expect);
    return worst;
}

const char *attn_work_isa(const attn_work *w)
{
    const char *name = "?";
    pkv_kernel_name(w->cache, &name);
    return name;
}
