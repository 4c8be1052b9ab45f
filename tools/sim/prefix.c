/* pkv-sim prefix: command line. */
#include "prefix.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "model.h"
#include "parse.h"
#include "sim.h"

#define COMMAND "pkv-sim prefix"
#define DEFAULT_PAGES "1000,3000,10000,unlimited"
#define DEFAULT_POLICIES "lru,lru-leaf,adaptive,opt"
#define DEFAULT_WORKLOAD "chat"
enum { MAX_TRACES = 32, MAX_POLICIES = 64, MAX_CAPACITIES = 64, MAX_JOBS = 256 };

typedef struct command {
    sim_source sources[MAX_TRACES];
    size_t n_sources;
    trace_format format;
    const char *synthetic;
    const char *pages, *memory, *model_text, *policies, *csv_path, *plot_path;
    double warmup;
    bool json, verify, help;
    uint64_t jobs;

    trace traces[MAX_TRACES];
    size_t dense_ids[MAX_TRACES];
    uint32_t *next_use[MAX_TRACES];
    size_t n_traces;
    const char *policy[MAX_POLICIES]; /* the library's names */
    bool offline[MAX_POLICIES];
    size_t n_policies;
    uint64_t capacity[MAX_CAPACITIES]; /* pages, or bytes with --memory */
    size_t n_capacities;
    model model;
} command;

static void help(void)
{
    puts(
        "Usage: pkv-sim prefix [OPTION...]\n"
        "Replays the prefix blocks of a trace through the library's index, request by request and\n"
        "without a clock, under one or more replacement policies and capacities. A block of the\n"
        "trace is a page.\n");
    sim_source_help();
    puts("  (--trace may be given several times)\n\n"
         "Cache:\n"
         "  --pages LIST      capacities in pages, or 'unlimited' (default " DEFAULT_PAGES ")\n"
         "  --memory LIST     capacities in bytes ('64GiB,…') instead; needs --model\n"
         "  --model MODEL     geometry for --memory: a preset (pkv-sim --models), or as in\n"
         "                    'pkv-sim waste --help'\n"
         "  --policy LIST     replacement policies, or 'all' (default " DEFAULT_POLICIES "):");
    uint32_t offline;
    const char *name;
    fputs("                   ", stdout);
    for (uint32_t i = 0; (name = pkv_policy_name(i, &offline)); i++)
        printf(" %s%s", name, offline ? "*" : "");
    puts("\n                    (* = knows the future: a bound, not a policy to use)\n"
         "  --warmup SHARE    run this share of the requests (0..1) before counting (default 0)\n"
         "  --jobs N          threads; runs go side by side (default: processors)\n"
         "  --verify          check the index's invariants after every run\n\n"
         "Output (a table unless --json):\n"
         "  --json            results as JSON on stdout\n"
         "  --csv FILE        results as CSV ('-' = stdout)\n"
         "  --plot FILE       hit rates over capacity as an SVG plot\n\n"
         "A hit is a block that is resident together with every block before it in the request.");
}

enum {
    OPT_TRACE = 256,
    OPT_FORMAT,
    OPT_SYNTHETIC,
    OPT_PAGES,
    OPT_MEMORY,
    OPT_MODEL,
    OPT_POLICY,
    OPT_WARMUP,
    OPT_JOBS,
    OPT_VERIFY,
    OPT_JSON,
    OPT_CSV,
    OPT_PLOT
};

static const struct option options[] = {
    {"trace", required_argument, NULL, OPT_TRACE},
    {"trace-format", required_argument, NULL, OPT_FORMAT},
    {"synthetic", required_argument, NULL, OPT_SYNTHETIC},
    {"pages", required_argument, NULL, OPT_PAGES},
    {"memory", required_argument, NULL, OPT_MEMORY},
    {"model", required_argument, NULL, OPT_MODEL},
    {"policy", required_argument, NULL, OPT_POLICY},
    {"warmup", required_argument, NULL, OPT_WARMUP},
    {"jobs", required_argument, NULL, OPT_JOBS},
    {"verify", no_argument, NULL, OPT_VERIFY},
    {"json", no_argument, NULL, OPT_JSON},
    {"csv", required_argument, NULL, OPT_CSV},
    {"plot", required_argument, NULL, OPT_PLOT},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

static int add_trace(command *c, const char *path, tool_error *err)
{
    if (c->n_sources == MAX_TRACES) return tool_fail(err, "more than %d traces", MAX_TRACES);
    c->sources[c->n_sources++].path = path;
    return 0;
}

static int set_option(command *c, int option, char **argv, tool_error *err)
{
    switch (option) {
    case OPT_TRACE:
        return add_trace(c, optarg, err);
    case OPT_FORMAT:
        return trace_format_parse(optarg, &c->format, err);
    case OPT_SYNTHETIC:
        c->synthetic = optarg;
        return 0;
    case OPT_PAGES:
        c->pages = optarg;
        return 0;
    case OPT_MEMORY:
        c->memory = optarg;
        return 0;
    case OPT_MODEL:
        c->model_text = optarg;
        return 0;
    case OPT_POLICY:
        c->policies = optarg;
        return 0;
    case OPT_WARMUP:
        return parse_double(optarg, "--warmup", 0, 1, &c->warmup, err);
    case OPT_JOBS:
        return parse_u64(optarg, "--jobs", 1, MAX_JOBS, &c->jobs, err);
    case OPT_VERIFY:
        c->verify = true;
        return 0;
    case OPT_JSON:
        c->json = true;
        return 0;
    case OPT_CSV:
        c->csv_path = optarg;
        return 0;
    case OPT_PLOT:
        c->plot_path = optarg;
        return 0;
    case 'h':
        c->help = true;
        return 0;
    default:
        return cli_bad_option(option, optopt, argv[optind - 1], err);
    }
}

static int add_policy(command *c, const char *name, tool_error *err)
{
    uint32_t offline;
    const char *known;
    for (uint32_t i = 0; (known = pkv_policy_name(i, &offline)); i++) {
        if (strcmp(known, name) != 0 && strcmp(name, "all") != 0) continue;
        for (size_t k = 0; k < c->n_policies; k++)
            if (c->policy[k] == known)
                return tool_fail(err, "--policy: '%.40s' is listed twice", name);
        if (c->n_policies == MAX_POLICIES) return tool_fail(err, "--policy: too many policies");
        c->policy[c->n_policies] = known;
        c->offline[c->n_policies++] = offline != 0;
        if (strcmp(known, name) == 0) return 0;
    }
    if (strcmp(name, "all") == 0) return 0;
    return tool_fail(err, "--policy: unknown policy '%.40s'", name);
}

static int parse_policies(command *c, tool_error *err)
{
    const char *cursor = c->policies ? c->policies : DEFAULT_POLICIES;
    char item[64];
    int more;
    while ((more = parse_list_next(&cursor, item, sizeof item, "--policy", err)) > 0)
        if (add_policy(c, item, err) != 0) return -1;
    return more;
}

static int parse_capacities(command *c, tool_error *err)
{
    const char *what = c->memory ? "--memory" : "--pages";
    const char *cursor = c->memory ? c->memory : c->pages ? c->pages : DEFAULT_PAGES;
    char item[64];
    int more;
    while ((more = parse_list_next(&cursor, item, sizeof item, what, err)) > 0) {
        if (c->n_capacities == MAX_CAPACITIES) return tool_fail(err, "%s: too many values", what);
        uint64_t *value = &c->capacity[c->n_capacities++];
        int failed = 0;
        if (strcmp(item, "unlimited") == 0)
            *value = PKV_INDEX_UNLIMITED;
        else if (c->memory)
            failed = parse_size(item, what, value, err);
        else
            failed = parse_u64(item, what, 1, UINT32_MAX - 1, value, err);
        if (failed) return -1;
    }
    return more;
}

static int check(command *c, tool_error *err)
{
    if (c->pages && c->memory) return tool_fail(err, "--pages and --memory exclude each other");
    if (c->memory && !c->model_text) return tool_fail(err, "--memory needs --model");
    if (c->model_text && !c->memory) return tool_fail(err, "--model needs --memory");
    if (c->synthetic && c->n_sources) {
        return tool_fail(err, "--trace and --synthetic exclude each other");
    }
    if (c->format != TRACE_AUTO && !c->n_sources)
        return tool_fail(err, "--trace-format needs --trace");
    if (c->n_sources == 0) c->sources[c->n_sources++].synthetic = c->synthetic;
    for (size_t i = 0; i < c->n_sources; i++)
        c->sources[i].format = c->format;
    if (c->model_text && model_parse(c->model_text, 0, &c->model, err) != 0) return -1;
    if (parse_policies(c, err) != 0) return -1;
    return parse_capacities(c, err);
}

static int parse_command(int argc, char **argv, command *c, tool_error *err)
{
    int option;
    opterr = 0;
    optind = 1;
    while ((option = getopt_long(argc, argv, ":h", options, NULL)) != -1)
        if (set_option(c, option, argv, err) != 0) return -1;
    if (c->help) return 0;
    if (optind < argc) return tool_fail(err, "unexpected argument '%.60s'", argv[optind]);
    return check(c, err);
}

static int load(command *c, tool_error *err)
{
    bool offline = false;
    for (size_t p = 0; p < c->n_policies; p++)
        offline = offline || c->offline[p];
    for (size_t i = 0; i < c->n_sources; i++) {
        trace *t = &c->traces[i];
        if (sim_source_load(&c->sources[i], DEFAULT_WORKLOAD, t, err) != 0) return -1;
        c->n_traces++;
        if (!t->has_blocks)
            return tool_fail(err, "%.200s: the trace has no prefix blocks (hash_ids)", t->name);
        if (t->n_requests >= PKV_INDEX_NEVER)
            return tool_fail(err, "%.200s: more than 2^32 - 2 requests", t->name);
        c->dense_ids[i] = prefix_dense_ids(t);
        if (offline && !(c->next_use[i] = prefix_next_uses(t, c->dense_ids[i], err))) return -1;
    }
    return 0;
}

/* Pages that fit into so many bytes: a page holds the trace's largest block. */
static uint64_t pages_in(const command *c, const trace *t, uint64_t bytes)
{
    uint64_t tokens = 1;
    for (size_t i = 0; i < t->n_requests; i++)
        if (t->requests[i].block_tokens > tokens) tokens = t->requests[i].block_tokens;
    uint64_t pages = bytes / (tokens * model_token_bytes(&c->model));
    return pages < UINT32_MAX - 1 ? pages : UINT32_MAX - 1;
}

static int fill_runs(const command *c, prefix_run *runs, tool_error *err)
{
    size_t n = 0;
    for (size_t t = 0; t < c->n_traces; t++)
        for (size_t p = 0; p < c->n_policies; p++)
            for (size_t k = 0; k < c->n_capacities; k++) {
                prefix_run *run = &runs[n++];
                run->trace = &c->traces[t];
                run->dense_ids = c->dense_ids[t];
                run->next_use = c->offline[p] ? c->next_use[t] : NULL;
                run->policy = c->policy[p];
                run->pages = c->capacity[k];
                if (c->memory && run->pages != PKV_INDEX_UNLIMITED)
                    run->pages = pages_in(c, run->trace, run->pages);
                if (run->pages == 0)
                    return tool_fail(err, "--memory: a capacity is less than one page");
                run->warmup = (size_t)((double)run->trace->n_requests * c->warmup);
                run->verify = c->verify;
            }
    return 0;
}

static int report(const command *c, const prefix_run *runs, size_t n, tool_error *err)
{
    bool csv_on_stdout = c->csv_path && strcmp(c->csv_path, "-") == 0;
    if (c->csv_path && prefix_report_csv(c->csv_path, runs, n, err) != 0) return -1;
    if (c->plot_path && prefix_report_plot(c->plot_path, runs, n, err) != 0) return -1;
    if (c->json) return prefix_report_json(runs, n, c->warmup, err);
    return csv_on_stdout ? 0 : prefix_report_table(runs, n);
}

static int run_command(command *c, tool_error *err)
{
    if (load(c, err) != 0) return -1;
    size_t n = c->n_traces * c->n_policies * c->n_capacities;
    prefix_run *runs = calloc(n, sizeof *runs);
    if (runs == NULL) return tool_fail(err, "out of memory");
    unsigned jobs = c->jobs ? (unsigned)c->jobs : sim_processors();
    int failed = fill_runs(c, runs, err);
    if (!failed) failed = prefix_execute(runs, n, jobs, err);
    if (!failed) failed = report(c, runs, n, err);
    free(runs);
    return failed;
}

int sim_prefix(int argc, char **argv)
{
    tool_error err;
    command *c = calloc(1, sizeof *c);
    if (c == NULL) {
        tool_fail(&err, "out of memory");
        return cli_failed(COMMAND, &err);
    }
    int status;
    if (parse_command(argc, argv, c, &err) != 0) {
        status = cli_usage_error(COMMAND, &err);
    } else if (c->help) {
        help();
        status = cli_finish(COMMAND);
    } else if (run_command(c, &err) != 0) {
        status = cli_failed(COMMAND, &err);
    } else {
        status = cli_finish(COMMAND);
    }
    for (size_t i = 0; i < c->n_traces; i++) {
        trace_free(&c->traces[i]);
        free(c->next_use[i]);
    }
    free(c);
    return status;
}
