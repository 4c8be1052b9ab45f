/* pkv-bench attention: pkv_attend against the roofline of the machine, measured in the same process
 * in alternating rounds. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention_rows.h"
#include "attn_work.h"
#include "bench.h"
#include "cli.h"
#include "limits.h"
#include "output.h"
#include "parse.h"
#include "progress.h"
#include "stats_summary.h"
#include "table.h"

#define HEAD_DIM 128u
/* KV that a pass reads: well above any last-level cache one is likely to have a share of. */
#define LEAST_BYTES 200e6
#define PROBE_BYTES ((size_t)256 << 20)
#define MOST_ROUNDS 101u

typedef struct options {
    bool quick, check, json;
    const char *only, *isa, *csv;
    pkv_dtype k_type, v_type; /* of the quantised twins; 0 = f16 */
    uint32_t threads, page_tokens, rounds;
    uint64_t seed;
} options;

/* What is known of one row. */
typedef struct result {
    const attention_row *row;
    pkv_dtype k_type, v_type; /* a quantised twin of the row; both 0 = as the row says */
    char isa[32];
    uint32_t layers;
    double bytes, flops; /* of a layer */
    double time[MOST_ROUNDS], fraction[MOST_ROUNDS], read[MOST_ROUNDS], fma[MOST_ROUNDS];
    uint32_t n;
    double time_s, roofline, read_limit, fma_peak; /* medians */
    double error;                                  /* of the check; < 0 = not checked */
    double error_bound;
} result;

static double median(const double *values, uint32_t n)
{
    double sorted[MOST_ROUNDS];
    memcpy(sorted, values, n * sizeof *values);
    return stats_summarise(sorted, n).p50;
}

static attn_shape shape_of(const result *r, const attention_row *row, const options *o,
                           uint32_t layers)
{
    return (attn_shape){.heads_q = row->heads_q,
                        .heads_kv = row->heads_kv,
                        .head_dim = HEAD_DIM,
                        .page_tokens = o->page_tokens,
                        .dtype = row->dtype,
                        .dtype_k = r->k_type,
                        .dtype_v = r->v_type,
                        .n_seqs = row->batch,
                        .context = row->context,
                        .context_min = strcmp(row->name, "decode-ragged") == 0 ? 100 : row->context,
                        .query_tokens = row->query_tokens,
                        .prefix = row->prefix,
                        .n_layers = layers,
                        .shuffled = !row->sequential,
                        .cascade = row->cascade_off ? 0 : 1,
                        .isa = o->isa,
                        .seed = o->seed};
}

/* Layers that make a pass read enough. */
static uint32_t layers_of(const attention_row *row)
{
    double token = 2.0 * row->heads_kv * HEAD_DIM * (double)pkv_dtype_size(row->dtype);
    double tokens = (double)row->context * (strcmp(row->name, "decode-ragged") == 0 ? 32 : 1);
    if (strcmp(row->name, "prefill") == 0) return row->context > 2048 ? 2 : 8;
    double layers = ceil(LEAST_BYTES / (token * tokens));
    return layers < 1 ? 1 : layers > 64 ? 64 : (uint32_t)layers;
}

/* ---- checking ------------------------------------------------------------------------------- */

static int check_row(const options *o, team *t, result *r, tool_error *err)
{
    attention_row small = *r->row;
    /* The reference is slow: two or three leaves, few sequences, one tile and a bit. */
    if (small.context > 1100) small.context = 1100;
    if (small.prefix > 1024) small.prefix = 1024;
    if (small.prefix) small.context = small.prefix + 40;
    if (small.query_tokens > 34) small.query_tokens = 34;
    if (small.batch > 4) small.batch = 4;
    attn_shape shape = shape_of(r, &small, o, 1);
    attn_work *w = attn_work_make(&shape, o->threads, err);
    if (!w) return -1;
    r->error = attn_work_check(w, t, err);
    attn_work_free(w);
    /* Values are below 1: so is the weight of errors. bf16 rows round probabilities and outputs. */
    r->error_bound = r->row->dtype == PKV_DTYPE_BF16 ? 0x1p-7 : 1e-5;
    return r->error < 0 ? -1 : 0;
}

/* ---- measuring ------------------------------------------------------------------------------ */

static void round_of(result *r, attn_work *w, team *t, limits *l, const options *o)
{
    double read = limits_read(l), fma = limits_fma(l, o->isa);
    double times[3];
    for (int i = 0; i < 3; i++)
        times[i] = attn_work_pass(w, t) / r->layers;
    double time = median(times, 3);
    double read_after = limits_read(l);
    if (read_after > read) read = read_after;
    double roof = fmax(r->bytes / (read * 1e9), r->flops / (fma * 1e9));
    r->time[r->n] = time;
    r->read[r->n] = read;
    r->fma[r->n] = fma;
    r->fraction[r->n] = roof / time;
    r->n++;
}

static int run_block(const options *o, team *t, limits *l, result *results, uint32_t n,
                     progress *bar, tool_error *err)
{
    attn_work *works[32] = {NULL};
    int status = 0;
    for (uint32_t i = 0; i < n && status == 0; i++) {
        result *r = &results[i];
        r->error = -1;
        if (o->check) status = check_row(o, t, r, err);
        attn_shape shape = shape_of(r, r->row, o, r->layers);
        if (status == 0 && !(works[i] = attn_work_make(&shape, o->threads, err))) status = -1;
        if (status) break;
        r->bytes = attn_work_bytes(works[i]);
        r->flops = attn_work_flops(works[i]);
        snprintf(r->isa, sizeof r->isa, "%s", attn_work_isa(works[i]));
        attn_work_pass(works[i], t); /* warm */
    }
    for (uint32_t round = 0; status == 0 && round < o->rounds; round++)
        for (uint32_t i = 0; i < n; i++) {
            round_of(&results[i], works[i], t, l, o);
            progress_add(bar, 1);
        }
    for (uint32_t i = 0; i < n; i++) {
        attn_work_free(works[i]);
        results[i].time_s = median(results[i].time, results[i].n);
        results[i].roofline = median(results[i].fraction, results[i].n);
        results[i].read_limit = median(results[i].read, results[i].n);
        results[i].fma_peak = median(results[i].fma, results[i].n);
    }
    return status;
}

/* ---- output --------------------------------------------------------------------------------- */

/* "f16", or "k8+v8" written to `text`. */
static const char *type_of(const result *r, char *text, size_t size)
{
    const pkv_dtype k = r->k_type ? r->k_type : r->row->dtype;
    const pkv_dtype v = r->v_type ? r->v_type : r->row->dtype;
    if (k == v) return pkv_dtype_name(k);
    snprintf(text, size, "%s+%s", pkv_dtype_name(k), pkv_dtype_name(v));
    return text;
}

static const char *order_of(const attention_row *row)
{
    return row->sequential ? "sequential" : "random";
}

static json_t *json_row(const result *r, const options *o)
{
    const attention_row *row = r->row;
    json_t *j = json_object();
    json_object_set_new(j, "case", json_string(row->name));
    json_object_set_new(j, "heads_q", json_integer(row->heads_q));
    json_object_set_new(j, "heads_kv", json_integer(row->heads_kv));
    json_object_set_new(j, "head_dim", json_integer(HEAD_DIM));
    char type[16];
    json_object_set_new(j, "dtype", json_string(type_of(r, type, sizeof type)));
    json_object_set_new(j, "page_tokens", json_integer(o->page_tokens));
    json_object_set_new(j, "page_order", json_string(order_of(row)));
    json_object_set_new(j, "context", json_integer((json_int_t)row->context));
    json_object_set_new(j, "batch", json_integer(row->batch));
    json_object_set_new(j, "query_tokens", json_integer(row->query_tokens));
    json_object_set_new(j, "shared_prefix", json_integer((json_int_t)row->prefix));
    json_object_set_new(j, "cascade", json_boolean(row->prefix != 0 && !row->cascade_off));
    json_object_set_new(j, "threads", json_integer(o->threads));
    json_object_set_new(j, "isa", json_string(r->isa));
    json_object_set_new(j, "time_us", output_real(r->time_s * 1e6));
    json_object_set_new(j, "kv_gb_s", output_real(r->bytes / r->time_s * 1e-9));
    json_object_set_new(j, "gflop_s", output_real(r->flops / r->time_s * 1e-9));
    json_object_set_new(j, "read_limit_gb_s", output_real(r->read_limit));
    json_object_set_new(j, "fma_peak_gflop_s", output_real(r->fma_peak));
    json_object_set_new(j, "roofline_fraction", output_real(r->roofline));
    if (r->error >= 0) {
        json_object_set_new(j, "check_error", output_real(r->error));
        json_object_set_new(j, "check_ok", json_boolean(r->error <= r->error_bound));
    }
    return j;
}

static json_t *json_machine(team *t, limits *l, const options *o)
{
    json_t *j = json_object(), *rows = json_array();
    const char *name;
    for (uint32_t i = 0; pkv_kernel_list(i, &name) == PKV_OK; i++)
        json_array_append_new(rows, json_string(name));
    json_object_set_new(j, "threads", json_integer(o->threads));
    json_object_set_new(j, "cpus_used", json_integer(team_cpus(t)));
    json_object_set_new(j, "kernels", rows);
    json_object_set_new(j, "read_shape", json_string(limits_shape(l)));
    json_object_set_new(j, "read_limit_gb_s", output_real(limits_read(l)));
    json_object_set_new(j, "fma_peak_gflop_s", output_real(limits_fma(l, o->isa)));
    json_object_set_new(j, "bf16_dot_peak_gflop_s", output_real(limits_bf16(l)));
    return j;
}

static void print_table(const result *results, uint32_t n, const options *o)
{
    table *t = table_new("<case|heads|type|context|batch|new|pages|cascade|time us|KV GB/s|GFLOP/s|"
                         "read limit|FMA peak|of roofline|error");
    uint32_t block = n ? results[0].row->block : 0;
    for (uint32_t i = 0; i < n; i++) {
        const result *r = &results[i];
        const attention_row *row = r->row;
        if (row->block != block) table_rule(t);
        block = row->block;
        table_cell(t, "%s", row->name);
        table_cell(t, "%u/%u", row->heads_q, row->heads_kv);
        char type[16];
        table_cell(t, "%s", type_of(r, type, sizeof type));
        table_cell(t, "%" PRIu64, row->context);
        table_cell(t, "%u", row->batch);
        table_cell(t, "%u", row->query_tokens);
        table_cell(t, "%s", order_of(row));
        table_cell(t, "%s", row->prefix ? row->cascade_off ? "off" : "on" : "-");
        table_cell(t, "%.1f", r->time_s * 1e6);
        table_cell(t, "%.1f", r->bytes / r->time_s * 1e-9);
        table_cell(t, "%.1f", r->flops / r->time_s * 1e-9);
        table_cell(t, "%.1f", r->read_limit);
        table_cell(t, "%.0f", r->fma_peak);
        table_cell(t, "%.2f", r->roofline);
        if (r->error >= 0)
            table_cell(t, "%.1e%s", r->error, r->error <= r->error_bound ? "" : " !");
        else
            table_cell(t, "-");
    }
    printf("kernel %s, %u threads, %u tokens per page, head dimension %u\n",
           n ? results[0].isa : "-", o->threads, o->page_tokens, HEAD_DIM);
    table_print(t, stdout);
    table_free(t);
}

static int write_csv(const result *results, uint32_t n, const options *o, tool_error *err)
{
    csv *out = csv_open(o->csv,
                        "case,heads_q,heads_kv,head_dim,dtype,page_tokens,page_order,context,batch,"
                        "query_tokens,cascade,threads,isa,time_us,kv_gb_s,gflop_s,read_limit_gb_s,"
                        "fma_peak_gflop_s,roofline_fraction",
                        err);
    if (!out) return -1;
    for (uint32_t i = 0; i < n; i++) {
        const result *r = &results[i];
        csv_text(out, r->row->name);
        csv_u64(out, r->row->heads_q);
        csv_u64(out, r->row->heads_kv);
        csv_u64(out, HEAD_DIM);
        char type[16];
        csv_text(out, type_of(r, type, sizeof type));
        csv_u64(out, o->page_tokens);
        csv_text(out, order_of(r->row));
        csv_u64(out, r->row->context);
        csv_u64(out, r->row->batch);
        csv_u64(out, r->row->query_tokens);
        csv_u64(out, r->row->prefix != 0 && !r->row->cascade_off);
        csv_u64(out, o->threads);
        csv_text(out, r->isa);
        csv_real(out, r->time_s * 1e6);
        csv_real(out, r->bytes / r->time_s * 1e-9);
        csv_real(out, r->flops / r->time_s * 1e-9);
        csv_real(out, r->read_limit);
        csv_real(out, r->fma_peak);
        csv_real(out, r->roofline);
        csv_end_row(out);
    }
    return csv_close(out, err);
}

/* ---- command line --------------------------------------------------------------------------- */

static bool known_case(const char *name)
{
    for (uint32_t i = 0; i < attention_row_count; i++)
        if (strcmp(attention_rows[i].name, name) == 0) return true;
    return false;
}

static bool known_isa(const char *name)
{
    const char *row;
    for (uint32_t i = 0; pkv_kernel_list(i, &row) == PKV_OK; i++)
        if (strcmp(row, name) == 0) return true;
    return false;
}

/* f16 or one of two formats with codes. */
static int parse_format(pkv_dtype *to, const char *text, pkv_dtype a, pkv_dtype b, tool_error *err)
{
    *to = strcmp(text, pkv_dtype_name(a)) == 0 ? a : strcmp(text, pkv_dtype_name(b)) == 0 ? b : 0;
    if (*to != 0 || strcmp(text, pkv_dtype_name(PKV_DTYPE_F16)) == 0) return 0;
    return tool_fail(err, "'%s' is not f16, %s or %s", text, pkv_dtype_name(a), pkv_dtype_name(b));
}

static int parse_k_type(void *target, const char *text, tool_error *err)
{
    return parse_format(target, text, PKV_DTYPE_K8, PKV_DTYPE_K4, err);
}

static int parse_v_type(void *target, const char *text, tool_error *err)
{
    return parse_format(target, text, PKV_DTYPE_V8, PKV_DTYPE_V4, err);
}

static const cli_option options_list[] = {
    {"quick", NULL, CLI_FLAG, offsetof(options, quick),
     .help = "the rows of the README's table only (under 45 s)"},
    {"case", "NAME", CLI_TEXT, offsetof(options, only),
     .help = "only decode, decode-ragged, verify, prefill or cascade"},
    {"threads", "N", CLI_U32, offsetof(options, threads), 1, 256,
     .help = "threads, each on a CPU of its own (default: CPUs online, at most 64)"},
    {"isa", "NAME", CLI_TEXT, offsetof(options, isa),
     .help = "kernel row (default: the best of this CPU)"},
    {"page-tokens", "N", CLI_CALL, offsetof(options, page_tokens), .call = parse_page_tokens,
     .help = "8, 16, 32, 64 or 128 (default 16)"},
    {"k-type", "FORMAT", CLI_CALL, offsetof(options, k_type), .call = parse_k_type,
     .help = "measure each f16 row again with keys in k8 or k4, right beside it"},
    {"v-type", "FORMAT", CLI_CALL, offsetof(options, v_type), .call = parse_v_type,
     .help = "the same for values: v8 or v4"},
    {"rounds", "N", CLI_U32, offsetof(options, rounds), 1, MOST_ROUNDS,
     .help = "rounds per row (default 5 with --quick, else 9)"},
    {"seed", "N", CLI_U64, offsetof(options, seed),
     .help = "of page order and numbers (default 1)"},
    {"check", NULL, CLI_FLAG, offsetof(options, check),
     .help = "also compare each row's shape, at a shorter context, with the reference"},
    {"json", NULL, CLI_JSON, offsetof(options, json), .help = "results as JSON on stdout"},
    {"csv", "FILE", CLI_CSV, offsetof(options, csv), .help = "results as CSV ('-' = stdout)"},
    {0},
};

static void defaults(void *target)
{
    *(options *)target = (options){.threads = team_online(), .page_tokens = 16, .seed = 1};
}

static int prepare(void *target, tool_error *err)
{
    options *o = target;
    if (o->only != NULL && !known_case(o->only))
        return tool_fail(err, "--case: '%s' is unknown", o->only);
    if (o->isa != NULL && !known_isa(o->isa))
        return tool_fail(err, "--isa: '%s' is not in this build or not for this CPU", o->isa);
    if (o->rounds == 0) o->rounds = o->quick ? 5 : 9;
    return 0;
}

static int run_rows(const options *o, result *results, uint32_t n, tool_error *err)
{
    int status = -1;
    team *t = team_start(o->threads);
    if (!t) return tool_fail(err, "cannot start %u threads", o->threads);
    limits *l = limits_make(t, PROBE_BYTES, err);
    progress bar;
    progress_start(&bar, "attention", (uint64_t)n * o->rounds);
    for (uint32_t from = 0, to; l && from < n; from = to) {
        to = from + 1;
        while (to < n && results[to].row->block == results[from].row->block)
            to++;
        status = run_block(o, t, l, results + from, to - from, &bar, err);
        if (status) break;
    }
    progress_end(&bar);
    if (l && status == 0) {
        if (o->json) {
            json_t *all = json_object(), *rows = json_array();
            for (uint32_t i = 0; i < n; i++)
                json_array_append_new(rows, json_row(&results[i], o));
            json_object_set_new(all, "machine", json_machine(t, l, o));
            json_object_set_new(all, "results", rows);
            status = output_json(all, err);
        } else if (!cli_is_stdout(o->csv)) {
            print_table(results, n, o);
            if (team_cpus(t) < o->threads)
                printf("note: %u threads ran on %u CPUs\n", o->threads, team_cpus(t));
        }
        if (status == 0 && o->csv) status = write_csv(results, n, o, err);
    }
    limits_free(l);
    team_stop(t);
    return status;
}

static int run(void *target, tool_error *err)
{
    const options *o = target;
    result *results = calloc(2 * (size_t)attention_row_count, sizeof *results);
    if (!results) return tool_fail(err, "out of memory");
    uint32_t n = 0;
    for (uint32_t i = 0; i < attention_row_count; i++) {
        const attention_row *row = &attention_rows[i];
        if ((o->quick && !row->quick) || (o->only && strcmp(o->only, row->name) != 0)) continue;
        results[n++] = (result){.row = row, .layers = layers_of(row)};
        if ((o->k_type || o->v_type) && row->dtype == PKV_DTYPE_F16) {
            results[n] = results[n - 1]; /* as many tokens, so that times compare */
            results[n].k_type = o->k_type;
            results[n++].v_type = o->v_type;
        }
    }
    int status = run_rows(o, results, n, err);
    bool ok = true;
    for (uint32_t i = 0; i < n; i++)
        if (results[i].error > results[i].error_bound) ok = false;
    free(results);
    if (status == 0 && o->check && !ok)
        return tool_fail(err, "a result differs from the reference");
    return status;
}

int bench_attention(int argc, char **argv)
{
    static const cli_command attention = {
        .name = "pkv-bench attention",
        .summary = "Times pkv_attend on random pages and compares it with what the machine's "
                   "memory and multipliers allow: min(read limit, FMA peak / intensity), measured "
                   "beside it.\n",
        .options = options_list,
        .size = sizeof(options),
        .defaults = defaults,
        .prepare = prepare,
        .run = run};
    return cli_run(&attention, argc, argv);
}
