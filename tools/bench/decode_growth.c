/* pkv-bench decode-growth: what a cache is for. One attention layer generates tokens; for growing
 * lengths it compares three ways to have the keys and values of earlier tokens:
 *
 *   recompute     none are kept: every step projects all tokens and attends for all of them
 *   concatenate   contiguous arrays, allocated anew and copied at every step
 *   paged         pagedkv: the new token is projected, written and attended for
 *
 * All three must give the same output for the newest token. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <pagedkv/pagedkv.h>

#include "bench.h"
#include "cli.h"
#include "output.h"
#include "parse.h"
#include "progress.h"
#include "random.h"
#include "stats_summary.h"
#include "table.h"

enum { HEADS_Q = 8, HEADS_KV = 2, DIM = 64, HIDDEN = HEADS_Q * DIM, PAGE = 16 };
enum { KV = HEADS_KV * DIM, TOKEN_FLOATS = 2 * KV };

typedef struct options {
    bool quick, json;
    const char *csv;
    uint64_t seed;
} options;

enum { RECOMPUTE, CONCATENATE, PAGED, METHODS };
static const char *const method_names[METHODS] = {"recompute", "concatenate", "paged"};

typedef struct growth_result {
    uint32_t length;
    double us[METHODS];
    double moved[METHODS], held[METHODS]; /* bytes */
    double difference[METHODS];           /* from recompute, largest */
} growth_result;

typedef struct layer {
    float *wq, *wk, *wv;    /* [HIDDEN][out] */
    float *hidden;          /* [capacity][HIDDEN]: the tokens */
    float *q, *k, *v, *out; /* projections of all tokens (recompute) */
    uint32_t capacity;
    pkv_cache *cache;
    pkv_plan *plan;
    pkv_seq seq;          /* the paged way */
    float *old_k, *old_v; /* the concatenating way: [HEADS_KV][n][DIM] */
    uint32_t n_old;
    float *logits;
} layer;

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- the layer ------------------------------------------------------------------------------ */

/* out[n][columns] = x[n][HIDDEN] * w[HIDDEN][columns] */
static void project(const float *x, const float *w, uint32_t n, uint32_t columns, float *out)
{
    for (uint32_t i = 0; i < n; i++) {
        float *row = out + (size_t)i * columns;
        memset(row, 0, columns * sizeof *row);
        for (uint32_t h = 0; h < HIDDEN; h++) {
            float a = x[(size_t)i * HIDDEN + h];
            const float *from = w + (size_t)h * columns;
            for (uint32_t c = 0; c < columns; c++)
                row[c] += a * from[c];
        }
    }
}

static float *floats(size_t n)
{
    return calloc(n, sizeof(float));
}

static int layer_make(layer *l, uint32_t capacity, uint64_t seed, tool_error *err)
{
    tool_random random;
    random_seed(&random, seed);
    *l = (layer){.capacity = capacity};
    l->wq = floats((size_t)HIDDEN * HIDDEN);
    l->wk = floats((size_t)HIDDEN * KV);
    l->wv = floats((size_t)HIDDEN * KV);
    l->hidden = floats((size_t)capacity * HIDDEN);
    l->q = floats((size_t)capacity * HIDDEN);
    l->k = floats((size_t)capacity * KV);
    l->v = floats((size_t)capacity * KV);
    l->out = floats((size_t)capacity * HIDDEN);
    l->logits = floats(capacity);
    if (!l->wq || !l->wk || !l->wv || !l->hidden || !l->q || !l->k || !l->v || !l->out ||
        !l->logits)
        return tool_fail(err, "no memory");
    float *const weights[] = {l->wq, l->wk, l->wv};
    const size_t sizes[] = {(size_t)HIDDEN * HIDDEN, (size_t)HIDDEN * KV, (size_t)HIDDEN * KV};
    for (int w = 0; w < 3; w++)
        for (size_t i = 0; i < sizes[w]; i++)
            weights[w][i] = (float)(random_normal(&random) / sqrt(HIDDEN));
    for (size_t i = 0; i < (size_t)capacity * HIDDEN; i++)
        l->hidden[i] = (float)random_normal(&random);

    pkv_group_config group = {.n_layers = 1,
                              .kv_heads = HEADS_KV,
                              .q_heads = HEADS_Q,
                              .head_dim_k = DIM,
                              .dtype = PKV_DTYPE_F32};
    pkv_config config;
    pkv_config_init(&config, sizeof config);
    config.page_tokens = PAGE;
    config.groups = &group;
    config.n_groups = 1;
    config.prefix = 0;
    config.memory_limit =
        UINT64_C(8) * capacity * TOKEN_FLOATS * sizeof(float) + (UINT64_C(64) << 20);
    if (pkv_cache_create(&config, &l->cache) != PKV_OK ||
        pkv_plan_create(l->cache, NULL, &l->plan) != PKV_OK ||
        pkv_seq_create(l->cache, &l->seq) != PKV_OK)
        return tool_fail(err, "cannot make the cache");
    return 0;
}

static void layer_free(layer *l)
{
    pkv_plan_destroy(l->plan);
    pkv_cache_destroy(l->cache);
    free(l->wq);
    free(l->wk);
    free(l->wv);
    free(l->hidden);
    free(l->q);
    free(l->k);
    free(l->v);
    free(l->out);
    free(l->logits);
    free(l->old_k);
    free(l->old_v);
}

/* Writes and attends for n tokens that follow what `seq` holds; out gets their rows. */
static int paged_step(layer *l, pkv_seq seq, const float *q, const float *k, const float *v,
                      uint32_t n, float *out)
{
    pkv_rows qr = {.data = q,
                   .dtype = PKV_DTYPE_F32,
                   .heads = HEADS_Q,
                   .dim = DIM,
                   .token_stride = HIDDEN * 4,
                   .head_stride = DIM * 4};
    pkv_rows kr = {.data = k,
                   .dtype = PKV_DTYPE_F32,
                   .heads = HEADS_KV,
                   .dim = DIM,
                   .token_stride = KV * 4,
                   .head_stride = DIM * 4},
             vr = kr;
    pkv_rows_out outr = {.data = out,
                         .dtype = PKV_DTYPE_F32,
                         .heads = HEADS_Q,
                         .dim = DIM,
                         .token_stride = HIDDEN * 4,
                         .head_stride = DIM * 4};
    vr.data = v;
    pkv_batch batch;
    if (pkv_batch_begin(l->cache, &batch) != PKV_OK) return -1;
    if (pkv_batch_add(batch, seq, NULL, n) != PKV_OK || pkv_batch_reserve(batch) != PKV_OK ||
        pkv_plan_build(l->plan, batch) != PKV_OK ||
        pkv_write(l->plan, 0, &kr, &vr, 0, 1) != PKV_OK ||
        pkv_attend(l->plan, 0, &qr, &outr, NULL, 0, 1) != PKV_OK) {
        pkv_batch_abort(batch);
        return -1;
    }
    return pkv_batch_commit(batch) == PKV_OK ? 0 : -1;
}

/* ---- the three ways ------------------------------------------------------------------------- */

/* Everything again, tokens 0..n-1; the same attention code, on a sequence made for the purpose. */
static int recompute(layer *l, uint32_t n, float *out)
{
    pkv_seq seq;
    project(l->hidden, l->wq, n, HIDDEN, l->q);
    project(l->hidden, l->wk, n, KV, l->k);
    project(l->hidden, l->wv, n, KV, l->v);
    if (pkv_seq_create(l->cache, &seq) != PKV_OK) return -1;
    int status = paged_step(l, seq, l->q, l->k, l->v, n, l->out);
    pkv_seq_destroy(seq);
    memcpy(out, l->out + (size_t)(n - 1) * HIDDEN, HIDDEN * sizeof *out);
    return status;
}

/* New arrays with room for one token more; the old ones are copied over and freed. */
static int append(float **array, uint32_t n, const float *token)
{
    float *grown = malloc((size_t)(n + 1) * KV * sizeof *grown);
    if (!grown) return -1;
    for (uint32_t h = 0; h < HEADS_KV; h++) {
        float *to = grown + (size_t)h * (n + 1) * DIM;
        if (n) memcpy(to, *array + (size_t)h * n * DIM, (size_t)n * DIM * sizeof *to);
        memcpy(to + (size_t)n * DIM, token + (size_t)h * DIM, DIM * sizeof *to);
    }
    free(*array);
    *array = grown;
    return 0;
}

static void contiguous_head(layer *l, const float *q, const float *keys, const float *values,
                            uint32_t n, float *out)
{
    float max = -INFINITY, sum = 0;
    for (uint32_t t = 0; t < n; t++) {
        float dot = 0;
        for (uint32_t d = 0; d < DIM; d++)
            dot += q[d] * keys[(size_t)t * DIM + d];
        l->logits[t] = dot / 8.0f; /* sqrt(DIM) */
        if (l->logits[t] > max) max = l->logits[t];
    }
    memset(out, 0, DIM * sizeof *out);
    for (uint32_t t = 0; t < n; t++) {
        float p = expf(l->logits[t] - max);
        sum += p;
        for (uint32_t d = 0; d < DIM; d++)
            out[d] += p * values[(size_t)t * DIM + d];
    }
    for (uint32_t d = 0; d < DIM; d++)
        out[d] /= sum;
}

static int concatenate(layer *l, uint32_t token, float *out)
{
    float q[HIDDEN], k[KV], v[KV];
    const float *x = l->hidden + (size_t)token * HIDDEN;
    project(x, l->wq, 1, HIDDEN, q);
    project(x, l->wk, 1, KV, k);
    project(x, l->wv, 1, KV, v);
    if (append(&l->old_k, l->n_old, k) || append(&l->old_v, l->n_old, v)) return -1;
    uint32_t n = ++l->n_old;
    for (uint32_t h = 0; h < HEADS_Q; h++) {
        size_t head = (size_t)(h / (HEADS_Q / HEADS_KV)) * n * DIM;
        contiguous_head(l, q + h * DIM, l->old_k + head, l->old_v + head, n, out + h * DIM);
    }
    return 0;
}

static int paged(layer *l, uint32_t token, float *out)
{
    float q[HIDDEN], k[KV], v[KV];
    const float *x = l->hidden + (size_t)token * HIDDEN;
    project(x, l->wq, 1, HIDDEN, q);
    project(x, l->wk, 1, KV, k);
    project(x, l->wv, 1, KV, v);
    return paged_step(l, l->seq, q, k, v, 1, out);
}

/* ---- measuring ------------------------------------------------------------------------------ */

static double difference(const float *a, const float *b)
{
    double worst = 0;
    for (int i = 0; i < HIDDEN; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= worst)) worst = d;
    }
    return worst;
}

/* Grows to `length` tokens; the last steps are timed, medians. */
static int measure(layer *l, uint32_t *token, growth_result *r)
{
    enum { TIMED = 31, RECOMPUTED = 3 };
    float out[METHODS][HIDDEN];
    double spent[METHODS][TIMED];
    uint32_t n_timed = 0, n_again = 0;
    for (; *token < r->length; ++*token) {
        bool timed = *token + TIMED >= r->length, again = *token + RECOMPUTED >= r->length;
        double start = seconds();
        if (concatenate(l, *token, out[CONCATENATE])) return -1;
        double middle = seconds();
        if (paged(l, *token, out[PAGED])) return -1;
        double end = seconds();
        if (timed) spent[CONCATENATE][n_timed] = middle - start;
        if (timed) spent[PAGED][n_timed++] = end - middle;
        if (!again) continue;
        start = seconds();
        if (recompute(l, *token + 1, out[RECOMPUTE])) return -1;
        spent[RECOMPUTE][n_again++] = seconds() - start;
        for (int m = 0; m < METHODS; m++) {
            double d = difference(out[RECOMPUTE], out[m]);
            if (!(d <= r->difference[m])) r->difference[m] = d;
        }
    }
    double token_bytes = TOKEN_FLOATS * sizeof(float), n = r->length;
    r->us[RECOMPUTE] = stats_summarise(spent[RECOMPUTE], n_again).p50 * 1e6;
    r->us[CONCATENATE] = stats_summarise(spent[CONCATENATE], n_timed).p50 * 1e6;
    r->us[PAGED] = stats_summarise(spent[PAGED], n_timed).p50 * 1e6;
    r->moved[RECOMPUTE] = r->moved[CONCATENATE] = n * token_bytes;
    r->moved[PAGED] = token_bytes;
    /* Old and new arrays exist together while one is copied: of K, then of V. */
    r->held[RECOMPUTE] = n * token_bytes;
    r->held[CONCATENATE] = 1.5 * n * token_bytes;
    pkv_seq_info info = {.struct_size = sizeof info};
    if (pkv_seq_get_info(l->seq, 0, &info) != PKV_OK) return -1;
    r->held[PAGED] = (double)info.resident_pages * PAGE * token_bytes;
    return 0;
}

/* ---- output --------------------------------------------------------------------------------- */

static json_t *to_json(const growth_result *results, uint32_t n)
{
    json_t *all = json_object(), *rows = json_array();
    for (uint32_t i = 0; i < n; i++)
        for (int m = 0; m < METHODS; m++) {
            const growth_result *r = &results[i];
            json_t *j = json_object();
            json_object_set_new(j, "length", json_integer(r->length));
            json_object_set_new(j, "method", json_string(method_names[m]));
            json_object_set_new(j, "us_per_token", output_real(r->us[m]));
            json_object_set_new(j, "bytes_moved_per_token", output_real(r->moved[m]));
            json_object_set_new(j, "bytes_held", output_real(r->held[m]));
            json_object_set_new(j, "difference", output_real(r->difference[m]));
            json_array_append_new(rows, j);
        }
    json_object_set_new(all, "results", rows);
    return all;
}

static int to_csv(const char *path, const growth_result *results, uint32_t n, tool_error *err)
{
    csv *out = csv_open(
        path, "length,method,us_per_token,bytes_moved_per_token,bytes_held,difference", err);
    if (!out) return -1;
    for (uint32_t i = 0; i < n; i++)
        for (int m = 0; m < METHODS; m++) {
            csv_u64(out, results[i].length);
            csv_text(out, method_names[m]);
            csv_real(out, results[i].us[m]);
            csv_real(out, results[i].moved[m]);
            csv_real(out, results[i].held[m]);
            csv_real(out, results[i].difference[m]);
            csv_end_row(out);
        }
    return csv_close(out, err);
}

static void to_table(const growth_result *results, uint32_t n)
{
    table *t =
        table_new("length|recompute us|concatenate us|paged us|moved KiB|moved KiB|moved KiB|"
                  "held KiB|held KiB|held KiB|difference");
    for (uint32_t i = 0; i < n; i++) {
        const growth_result *r = &results[i];
        table_cell(t, "%u", r->length);
        for (int m = 0; m < METHODS; m++)
            table_cell(t, "%.1f", r->us[m]);
        for (int m = 0; m < METHODS; m++)
            table_cell(t, "%.1f", r->moved[m] / 1024);
        for (int m = 0; m < METHODS; m++)
            table_cell(t, "%.1f", r->held[m] / 1024);
        table_cell(t, "%.1e", fmax(r->difference[CONCATENATE], r->difference[PAGED]));
    }
    puts("per new token, in the order recompute, concatenate, paged; difference = of the outputs "
         "from "
         "recompute's");
    table_print(t, stdout);
    table_free(t);
}

/* ---- command line --------------------------------------------------------------------------- */

static const cli_option options_list[] = {
    {"quick", NULL, CLI_FLAG, offsetof(options, quick),
     .help = "lengths up to 1,024 (default: 4,096)"},
    {"seed", "N", CLI_U64, offsetof(options, seed), .help = "of weights and tokens (default 1)"},
    {"json", NULL, CLI_JSON, offsetof(options, json), .help = "results as JSON on stdout"},
    {"csv", "FILE", CLI_CSV, offsetof(options, csv), .help = "results as CSV ('-' = stdout)"},
    {0},
};

static void defaults(void *target)
{
    ((options *)target)->seed = 1;
}

static int report(const options *o, const growth_result *results, uint32_t n, tool_error *err)
{
    if (o->csv && to_csv(o->csv, results, n, err)) return -1;
    if (o->json) return output_json(to_json(results, n), err);
    if (!cli_is_stdout(o->csv)) to_table(results, n);
    return 0;
}

static int run(void *target, tool_error *err)
{
    static const uint32_t lengths[] = {64, 128, 256, 512, 1024, 2048, 4096};
    const options *o = target;
    growth_result results[7] = {{0}};
    uint32_t n = o->quick ? 5 : 7, token = 0;
    layer l;
    progress bar;
    int status = layer_make(&l, lengths[n - 1], o->seed, err);
    progress_start(&bar, "decode-growth", lengths[n - 1]);
    for (uint32_t i = 0; status == 0 && i < n; i++) {
        results[i].length = lengths[i];
        if (measure(&l, &token, &results[i])) status = tool_fail(err, "a step failed");
        progress_add(&bar, lengths[i] - (i ? lengths[i - 1] : 0));
        double d = fmax(results[i].difference[CONCATENATE], results[i].difference[PAGED]);
        if (status == 0 && !(d <= 1e-4))
            status = tool_fail(err, "outputs differ by %g at length %u", d, lengths[i]);
    }
    progress_end(&bar);
    layer_free(&l);
    return status == 0 ? report(o, results, n, err) : status;
}

int bench_decode_growth(int argc, char **argv)
{
    static const cli_command growth = {
        .name = "pkv-bench decode-growth",
        .summary = "Time per token and bytes moved and held while a sequence grows: full "
                   "recomputation, a concatenating cache, pagedkv. One layer, 8 query and 2 KV "
                   "heads of 64, f32.\n",
        .options = options_list,
        .size = sizeof(options),
        .defaults = defaults,
        .run = run};
    return cli_run(&growth, argc, argv);
}
