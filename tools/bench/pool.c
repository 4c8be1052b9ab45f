/* pkv-bench pool: pages, appends and forks, beside malloc and a locked free list. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "cli.h"
#include "output.h"
#include "parse.h"
#include "pool_work.h"
#include "progress.h"
#include "stats_summary.h"
#include "table.h"

typedef struct options {
    bool json;
    uint64_t rounds, block_bytes;
    const char *only;
} options;

/* Samples of one row: value[round]. */
typedef struct result {
    const pool_row *row;
    double *value; /* in order of rounds */
    double median, p10;
    double ratio; /* median over rounds of this row / the reference row in the same round */
} result;

static const cli_option options_list[] = {
    {"rounds", "N", CLI_U64, offsetof(options, rounds), 1, 10000, .help = "rounds (default 41)"},
    {"block", "SIZE", CLI_SIZE, offsetof(options, block_bytes),
     .help = "what malloc and mallocx are asked for (default: a page of 2 MiB)"},
    {"only", "NAME", CLI_TEXT, offsetof(options, only), .help = "one row"},
    {"json", NULL, CLI_JSON, offsetof(options, json), .help = "results as JSON on stdout"},
    {0},
};

static void defaults(void *target)
{
    ((options *)target)->rounds = 41;
}

static bool wanted(const options *o, uint32_t i)
{
    return o->only == NULL || strcmp(o->only, pool_rows[i].name) == 0;
}

static int prepare(void *target, tool_error *err)
{
    const options *o = target;
    for (uint32_t i = 0; i < pool_row_count; i++)
        if (wanted(o, i)) return 0;
    return tool_fail(err, "unknown row '%.60s'", o->only);
}

/* One sample of one row. The team lives only that long: idle members of another would take turns on
 * the CPUs with what is measured. */
static int sample(pool_work *work, const pool_row *row, double *ns, tool_error *err)
{
    team *t = team_start(row->threads);
    if (!t) return tool_fail(err, "cannot start %u threads", row->threads);
    *ns = row->run(work, t, row->n);
    team_stop(t);
    return *ns < 0 ? tool_fail(err, "%s: an operation failed", row->name) : 0;
}

static int measure(pool_work *work, const options *o, result *results, uint32_t n, tool_error *err)
{
    int status = 0;
    progress bar;
    progress_start(&bar, "pool", (uint64_t)n * o->rounds);
    /* Round 0 warms up and is overwritten by round 1. */
    for (uint64_t round = 0; round <= o->rounds && !status; round++) {
        for (uint32_t i = 0; i < n && !status; i++) {
            status = sample(work, results[i].row, &results[i].value[round ? round - 1 : 0], err);
            if (round) progress_add(&bar, 1);
        }
    }
    progress_end(&bar);
    return status;
}

static double median_of_ratios(const result *a, const result *b, uint64_t rounds, double *scratch)
{
    for (uint64_t i = 0; i < rounds; i++)
        scratch[i] = a->value[i] / b->value[i];
    return isnan(scratch[0]) ? NAN : stats_summarise(scratch, rounds).p50;
}

static const result *find(const result *results, uint32_t n, const char *name)
{
    for (uint32_t i = 0; i < n; i++)
        if (strcmp(results[i].row->name, name) == 0) return &results[i];
    return NULL;
}

static void summarise(result *results, uint32_t n, uint64_t rounds, double *scratch)
{
    const result *reference = find(results, n, "pkv-magazine");
    for (uint32_t i = 0; i < n; i++) {
        result *r = &results[i];
        memcpy(scratch, r->value, rounds * sizeof *scratch);
        r->median = isnan(scratch[0]) ? NAN : stats_summarise(scratch, rounds).p50;
        r->p10 = isnan(scratch[0]) ? NAN : scratch[rounds / 10]; /* sorted by now */
        bool comparable = reference && strcmp(r->row->unit, "alloc+free") == 0;
        r->ratio = comparable ? median_of_ratios(r, reference, rounds, scratch) : NAN;
    }
}

/* How much slower a thread is when a second one does the same; NaN if not measured. */
static double scaling(const result *results, uint32_t n, uint64_t rounds, const char *one_name,
                      const char *two_name, double *scratch)
{
    const result *one = find(results, n, one_name), *two = find(results, n, two_name);
    return one && two ? median_of_ratios(two, one, rounds, scratch) : NAN;
}

/* The same in the quietest tenth of the rounds: where other programs take a CPU away in most
 * rounds, two threads cannot run at once and the median says more about them. */
static double scaling_quiet(const result *results, uint32_t n, const char *one_name,
                            const char *two_name)
{
    const result *one = find(results, n, one_name), *two = find(results, n, two_name);
    return one && two ? two->p10 / one->p10 : NAN;
}

static json_t *to_json(pool_work *work, const options *o, const result *results, uint32_t n,
                       double *scratch)
{
    json_t *all = json_object(), *rows = json_array();
    for (uint32_t i = 0; i < n; i++) {
        const result *r = &results[i];
        json_t *row = json_object();
        json_object_set_new(row, "name", json_string(r->row->name));
        json_object_set_new(row, "threads", json_integer(r->row->threads));
        json_object_set_new(row, "unit", json_string(r->row->unit));
        json_object_set_new(row, "ns_median", output_real(r->median));
        json_object_set_new(row, "ns_p10", output_real(r->p10));
        json_object_set_new(row, "ratio_to_magazine", output_real(r->ratio));
        if (r->row->bar_ns > 0) {
            json_object_set_new(row, "bar_ns", output_real(r->row->bar_ns));
            json_object_set_new(row, "met", json_boolean(r->median <= r->row->bar_ns));
        }
        json_array_append_new(rows, row);
    }
    uint64_t metadata, pages;
    pool_work_metadata(work, &metadata, &pages);
    json_object_set_new(all, "bench", json_string("pool"));
    json_object_set_new(all, "rounds", json_integer((json_int_t)o->rounds));
    json_object_set_new(all, "page_bytes", json_integer((json_int_t)pool_work_page_bytes(work)));
    json_object_set_new(all, "block_bytes", json_integer((json_int_t)pool_work_block_bytes(work)));
    json_object_set_new(
        all, "magazine_two_threads_ratio",
        output_real(scaling(results, n, o->rounds, "pkv-magazine", "pkv-magazine-2t", scratch)));
    json_object_set_new(all, "magazine_two_threads_ratio_p10",
                        output_real(scaling_quiet(results, n, "pkv-magazine", "pkv-magazine-2t")));
    json_object_set_new(
        all, "page_two_threads_ratio",
        output_real(scaling(results, n, o->rounds, "pkv-page", "pkv-page-2t", scratch)));
    json_object_set_new(all, "append_metadata_share",
                        output_real(pages ? (double)metadata / (double)pages : NAN));
    json_object_set_new(all, "rows", rows);
    return all;
}

/* Empty where there is no figure. */
static void number_cell(table *t, double value, int decimals)
{
    if (isnan(value))
        table_cell(t, "%s", "");
    else
        table_cell(t, "%.*f", decimals, value);
}

static void print_table(pool_work *work, const options *o, const result *results, uint32_t n,
                        double *scratch)
{
    char page[32], block[32];
    table *t = table_new("<row|threads|ns|<per|p10|bar|x magazine|<what");
    for (uint32_t i = 0; t && i < n; i++) {
        const result *r = &results[i];
        table_cell(t, "%s", r->row->name);
        table_cell(t, "%u", r->row->threads);
        number_cell(t, r->median, 2);
        table_cell(t, "%s", r->row->unit);
        number_cell(t, r->p10, 2);
        number_cell(t, r->row->bar_ns > 0 ? r->row->bar_ns : NAN, 0);
        number_cell(t, r->ratio, 2);
        table_cell(t, "%s", r->row->summary);
    }
    if (t) table_print(t, stdout);
    table_free(t);
    uint64_t metadata, pages;
    pool_work_metadata(work, &metadata, &pages);
    printf("\npages of %s; malloc and mallocx of %s; medians of %llu rounds\n",
           format_size(pool_work_page_bytes(work), page, sizeof page),
           format_size(pool_work_block_bytes(work), block, sizeof block),
           (unsigned long long)o->rounds);
    double magazine = scaling(results, n, o->rounds, "pkv-magazine", "pkv-magazine-2t", scratch);
    if (!isnan(magazine))
        printf("two threads: a magazine's alloc+free takes %.2f times what it takes alone (%.2f in "
               "the "
               "quietest tenth of the rounds)\n",
               magazine, scaling_quiet(results, n, "pkv-magazine", "pkv-magazine-2t"));
    if (pages)
        printf("metadata of the 256 sequences: %.4f %% of the bytes of their pages\n",
               100 * (double)metadata / (double)pages);
}

static int run_rows(const options *o, result *results, uint32_t n, double *scratch, tool_error *err)
{
    pool_work *work = pool_work_make(o->block_bytes, err);
    if (!work) return -1;
    int status = measure(work, o, results, n, err);
    if (!status) {
        summarise(results, n, o->rounds, scratch);
        if (o->json)
            status = output_json(to_json(work, o, results, n, scratch), err);
        else
            print_table(work, o, results, n, scratch);
    }
    pool_work_free(work);
    return status;
}

static int run(void *target, tool_error *err)
{
    const options *o = target;
    result *results = calloc(pool_row_count, sizeof *results);
    double *values = calloc((pool_row_count + 1) * o->rounds, sizeof *values);
    uint32_t n = 0;
    for (uint32_t i = 0; results && values && i < pool_row_count; i++) {
        if (!wanted(o, i)) continue;
        results[n] = (result){.row = &pool_rows[i], .value = values + n * o->rounds};
        n++;
    }
    int status = n == 0 ? tool_fail(err, "out of memory")
                        : run_rows(o, results, n, values + pool_row_count * o->rounds, err);
    free(results);
    free(values);
    return status;
}

int bench_pool(int argc, char **argv)
{
    static const cli_command pool = {
        .name = "pkv-bench pool",
        .summary = "Times page allocation, appending and forking in steady state, beside jemalloc, "
                   "libc and a free list behind a mutex. Every round runs every row once, so what "
                   "else the machine does hits all alike; the figures are medians over rounds, and "
                   "ratios are taken within rounds.\n",
        .options = options_list,
        .notes = "Allocation rows: a thread holds 64 pages and replaces the oldest; nanoseconds "
                 "per alloc+free of one thread. Geometry: Llama-3-8B, f16, 16 tokens per page. ids "
                 "only for append and fork.",
        .size = sizeof(options),
        .defaults = defaults,
        .prepare = prepare,
        .run = run};
    return cli_run(&pool, argc, argv);
}
