/* pkv-bench prefix: matching, publishing and evicting in the prefix index, ids only. */
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
#include "stats_summary.h"
#include "table.h"

enum { PAGE = 16, LONG = 100000, MIDDLE = 32768, SEQUENCE = 16000, MAX_ROUNDS = 10000 };

typedef struct options {
    bool json;
    uint64_t rounds, cached;
    const char *policy;
} options;

typedef struct work {
    const options *options;
    pkv_cache *cache;  /* holds the prompt of the match rows */
    pkv_cache *filled; /* `cached` cached pages */
    int32_t *prompt;
    int32_t *scratch;
    uint64_t random;
    tool_error *err;
} work;

/* One measured row: `run` returns nanoseconds for `units` of what is counted, or < 0. */
typedef struct row {
    const char *name, *summary, *unit;
    double bar; /* least units per second; or, with `per_unit`, most nanoseconds per unit */
    bool per_unit;
    double (*run)(work *w, double *units);
    double *value; /* in order of rounds */
    double p50, p10;
} row;

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}

static int failed(work *w, const char *call, pkv_status status)
{
    if (status == PKV_OK) return 0;
    return tool_fail(w->err, "%s: %s", call, pkv_status_text(status));
}

static void fill_random(work *w, int32_t *tokens, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        w->random = w->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        tokens[i] = (int32_t)(w->random >> 40);
    }
}

static int open_cache(work *w, pkv_cache **cache)
{
    pkv_config config;
    pkv_group_config group = {
        .n_layers = 1, .kv_heads = 1, .head_dim_k = 8, .dtype = PKV_DTYPE_F16};
    if (failed(w, "pkv_config_init", pkv_config_init(&config, sizeof config))) return -1;
    config.page_tokens = PAGE;
    config.groups = &group;
    config.n_groups = 1;
    config.storage = PKV_STORAGE_NONE;
    config.memory_limit = UINT64_C(1) << 40;
    config.prefix_policy = w->options->policy;
    return failed(w, "pkv_cache_create", pkv_cache_create(&config, cache));
}

/* Runs tokens through a new sequence, which publishes them. *commit_ns: time of the commit. */
static int publish(work *w, pkv_cache *cache, const int32_t *tokens, uint32_t n, double *commit_ns)
{
    pkv_seq seq;
    pkv_batch batch;
    if (failed(w, "pkv_seq_create", pkv_seq_create(cache, &seq)) ||
        failed(w, "pkv_batch_begin", pkv_batch_begin(cache, &batch)) ||
        failed(w, "pkv_batch_add", pkv_batch_add(batch, seq, tokens, n)) ||
        failed(w, "pkv_batch_reserve", pkv_batch_reserve(batch)))
        return -1;
    double start = now_ns();
    if (failed(w, "pkv_batch_commit", pkv_batch_commit(batch))) return -1;
    *commit_ns = now_ns() - start;
    return failed(w, "pkv_seq_destroy", pkv_seq_destroy(seq));
}

static double run_match(work *w, double *units, uint64_t n)
{
    pkv_match match = {.struct_size = sizeof match};
    double start = now_ns();
    pkv_status status = pkv_prefix_match(w->cache, NULL, w->prompt, n, &match);
    double ns = now_ns() - start;
    if (failed(w, "pkv_prefix_match", status)) return -1;
    if (match.n_tokens != n)
        return tool_fail(w->err, "the prompt does not match: %llu of %llu tokens",
                         (unsigned long long)match.n_tokens, (unsigned long long)n);
    *units = (double)n;
    return ns;
}

static double run_match_long(work *w, double *units)
{
    return run_match(w, units, LONG);
}
static double run_match_middle(work *w, double *units)
{
    return run_match(w, units, MIDDLE);
}

static double run_attach(work *w, double *units)
{
    pkv_match match = {.struct_size = sizeof match};
    pkv_seq seq;
    if (failed(w, "pkv_prefix_match", pkv_prefix_match(w->cache, NULL, w->prompt, LONG, &match)) ||
        failed(w, "pkv_seq_create", pkv_seq_create(w->cache, &seq)))
        return -1;
    double start = now_ns();
    pkv_status status = pkv_seq_attach(seq, &match);
    double ns = now_ns() - start;
    *units = (double)match.n_tokens;
    if (failed(w, "pkv_seq_attach", status)) return -1;
    return failed(w, "pkv_seq_destroy", pkv_seq_destroy(seq)) ? -1 : ns;
}

static double run_publish(work *w, double *units)
{
    double ns;
    fill_random(w, w->scratch, LONG);
    if (publish(w, w->cache, w->scratch, LONG, &ns)) return -1;
    *units = LONG;
    /* Using the prompt makes the new pages the oldest, and those make room for the next round. */
    double unused;
    if (run_attach(w, &unused) < 0) return -1;
    pkv_status status = pkv_prefix_reclaim(w->cache, 0, LONG / PAGE, NULL);
    return failed(w, "pkv_prefix_reclaim", status) ? -1 : ns;
}

/* Publishes fresh sequences until `cached` pages are cached. */
static int top_up(work *w)
{
    pkv_group_stats stats = {.struct_size = sizeof stats};
    for (;;) {
        if (failed(w, "pkv_cache_group_stats", pkv_cache_group_stats(w->filled, 0, &stats)))
            return -1;
        if (stats.pages_cached >= w->options->cached) return 0;
        double ns;
        fill_random(w, w->scratch, SEQUENCE);
        if (publish(w, w->filled, w->scratch, SEQUENCE, &ns)) return -1;
    }
}

static double run_evict(work *w, double *units)
{
    if (top_up(w)) return -1;
    uint64_t freed = 0, n = w->options->cached / 100;
    double start = now_ns();
    pkv_status status = pkv_prefix_reclaim(w->filled, 0, n, &freed);
    double ns = now_ns() - start;
    if (failed(w, "pkv_prefix_reclaim", status)) return -1;
    if (freed != n) return tool_fail(w->err, "fewer pages were evicted than asked for");
    *units = (double)n;
    return ns;
}

static row rows[] = {
    {"match", "match of 100,000 tokens", "token", 250e6, false, run_match_long, NULL, 0, 0},
    {"match-32k", "match of 32,768 tokens", "token", 250e6, false, run_match_middle, NULL, 0, 0},
    {"attach", "attach of 100,000 tokens", "token", 0, false, run_attach, NULL, 0, 0},
    {"publish", "commit of 100,000 new tokens", "token", 50e6, false, run_publish, NULL, 0, 0},
    {"evict", "one page among the cached ones", "page", 200, true, run_evict, NULL, 0, 0},
};
enum { ROWS = sizeof rows / sizeof rows[0] };

static const cli_option options_list[] = {
    {"rounds", "N", CLI_U64, offsetof(options, rounds), 1, MAX_ROUNDS, .help = "(default 41)"},
    {"cached", "N", CLI_U64, offsetof(options, cached), 1000, 1e8,
     .help = "cached pages while evicting (default 1000000)"},
    {"policy", "NAME", CLI_TEXT, offsetof(options, policy),
     .help = "replacement policy (default lru-leaf)"},
    {"json", NULL, CLI_JSON, offsetof(options, json), .help = "results as JSON on stdout"},
    {0},
};

static void defaults(void *target)
{
    *(options *)target = (options){.rounds = 41, .cached = 1000000};
}

static int check(void *target, tool_error *err)
{
    const options *o = target;
    uint32_t offline = 1;
    for (uint32_t i = 0; o->policy; i++) {
        const char *name = pkv_policy_name(i, &offline);
        if (!name) return tool_fail(err, "--policy: unknown policy '%.40s'", o->policy);
        if (strcmp(name, o->policy) == 0) break;
    }
    return o->policy && offline ? tool_fail(err, "--policy: '%s' is for replays only", o->policy)
                                : 0;
}

/* Round 0 warms up and is overwritten by round 1. Values are nanoseconds per unit. */
static int measure(work *w, uint64_t rounds)
{
    progress bar;
    progress_start(&bar, "prefix", ROWS * rounds);
    int status = 0;
    for (uint64_t round = 0; round <= rounds && !status; round++)
        for (uint32_t i = 0; i < ROWS && !status; i++) {
            double units = 1, ns = rows[i].run(w, &units);
            rows[i].value[round ? round - 1 : 0] = ns / units;
            status = ns < 0 ? -1 : 0;
            if (round) progress_add(&bar, 1);
        }
    progress_end(&bar);
    return status;
}

static bool met(const row *r)
{
    return r->per_unit ? r->p50 <= r->bar : 1e9 / r->p50 >= r->bar;
}

static void print_rows(void)
{
    table *t = table_new("<row|<what|ns each|M each/s|10th pct ns|bar|met");
    for (uint32_t i = 0; i < ROWS; i++) {
        const row *r = &rows[i];
        table_cell(t, "%s", r->name);
        table_cell(t, "%s", r->summary);
        table_cell(t, "%.2f", r->p50);
        table_cell(t, "%.1f", 1e3 / r->p50);
        table_cell(t, "%.2f", r->p10);
        if (r->bar <= 0)
            table_cell(t, "%s", "");
        else if (r->per_unit)
            table_cell(t, "%.0f ns", r->bar);
        else
            table_cell(t, "%.0f M/s", 1e-6 * r->bar);
        table_cell(t, "%s", r->bar <= 0 ? "" : met(r) ? "yes" : "no");
    }
    table_print(t, stdout);
    table_free(t);
}

static json_t *to_json(const options *o)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < ROWS; i++) {
        const row *r = &rows[i];
        json_t *item = json_pack("{s:s, s:s, s:o, s:o, s:o}", "name", r->name, "unit", r->unit,
                                 "ns_median", output_real(r->p50), "ns_p10", output_real(r->p10),
                                 "per_second", output_real(1e9 / r->p50));
        if (item && r->bar > 0) {
            json_object_set_new(item, r->per_unit ? "bar_ns" : "bar_per_second",
                                output_real(r->bar));
            json_object_set_new(item, "met", json_boolean(met(r)));
        }
        json_array_append_new(list, item);
    }
    return json_pack("{s:s, s:I, s:I, s:s, s:o}", "bench", "prefix", "rounds",
                     (json_int_t)o->rounds, "cached_pages", (json_int_t)o->cached, "policy",
                     o->policy ? o->policy : "lru-leaf", "rows", list);
}

static int prepare(work *w)
{
    double ns;
    w->prompt = malloc(LONG * sizeof *w->prompt);
    w->scratch = malloc(LONG * sizeof *w->scratch);
    if (!w->prompt || !w->scratch) return tool_fail(w->err, "out of memory");
    for (uint32_t i = 0; i < ROWS; i++) {
        rows[i].value = calloc(w->options->rounds, sizeof *rows[i].value);
        if (!rows[i].value) return tool_fail(w->err, "out of memory");
    }
    if (open_cache(w, &w->cache) || open_cache(w, &w->filled)) return -1;
    fill_random(w, w->prompt, LONG);
    if (publish(w, w->cache, w->prompt, LONG, &ns)) return -1;
    return top_up(w);
}

static int run(void *target, tool_error *err)
{
    const options *o = target;
    work w = {.options = o, .random = 1, .err = err};
    int status = prepare(&w);
    if (!status) status = measure(&w, o->rounds);
    for (uint32_t i = 0; i < ROWS && !status; i++) {
        rows[i].p50 = stats_summarise(rows[i].value, o->rounds).p50;
        rows[i].p10 = rows[i].value[o->rounds / 10]; /* sorted by now */
    }
    if (!status) {
        if (o->json)
            status = output_json(to_json(o), err);
        else
            print_rows();
    }
    for (uint32_t i = 0; i < ROWS; i++)
        free(rows[i].value);
    pkv_cache_destroy(w.cache);
    pkv_cache_destroy(w.filled);
    free(w.prompt);
    free(w.scratch);
    return status;
}

int bench_prefix(int argc, char **argv)
{
    static const cli_command prefix = {
        .name = "pkv-bench prefix",
        .summary = "Times the prefix index: 16 tokens per page, page ids without storage, one "
                   "thread. Every round runs every row once; the figures are medians over "
                   "rounds.\n",
        .options = options_list,
        .size = sizeof(options),
        .defaults = defaults,
        .prepare = check,
        .run = run};
    return cli_run(&prefix, argc, argv);
}
