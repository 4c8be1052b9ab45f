/* pkv-sim prefix: command line. */
#include "prefix.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "parse.h"
#include "sim.h"

#define DEFAULT_PAGES "1000,3000,10000,unlimited"
#define DEFAULT_POLICIES "lru,lru-leaf,adaptive,opt"
enum { MAX_POLICIES = 64, MAX_CAPACITIES = 64, MAX_JOBS = 256 };

typedef struct command {
    sim_source source;
    sim_output output;
    const char *pages, *memory, *model_text, *policies;
    double warmup;
    bool verify;
    uint64_t jobs;

    trace traces[SIM_MAX_TRACES];
    size_t dense_ids[SIM_MAX_TRACES];
    uint32_t *next_use[SIM_MAX_TRACES];
    size_t n_traces;
    const char *policy[MAX_POLICIES]; /* the library's names */
    bool offline[MAX_POLICIES];
    size_t n_policies;
    uint64_t capacity[MAX_CAPACITIES]; /* pages, or bytes with --memory */
    size_t n_capacities;
    model model;
} command;

static const cli_option options[] = {
    {.kind = CLI_GROUP, .at = offsetof(command, source), .group = sim_source_options},
    {.kind = CLI_TITLE, .help = "Cache"},
    {"pages", "LIST", CLI_TEXT, offsetof(command, pages),
     .help = "capacities in pages, or 'unlimited' (default " DEFAULT_PAGES ")"},
    {"memory", "LIST", CLI_TEXT, offsetof(command, memory),
     .help = "capacities in bytes ('64GiB,…') instead; needs --model"},
    {"model", "MODEL", CLI_TEXT, offsetof(command, model_text),
     .help = "geometry for --memory: a preset (pkv-sim --models), or as in 'pkv-sim waste --help'"},
    {"policy", "LIST", CLI_TEXT, offsetof(command, policies),
     .help = "replacement policies, or 'all' (default " DEFAULT_POLICIES "); --help lists them"},
    {"warmup", "SHARE", CLI_REAL, offsetof(command, warmup), 0, 1,
     .help = "run this share of the requests (0..1) before counting (default 0)"},
    {"jobs", "N", CLI_U64, offsetof(command, jobs), 1, MAX_JOBS,
     .help = "threads; runs go side by side (default: processors)"},
    {"verify", NULL, CLI_FLAG, offsetof(command, verify),
     .help = "check the index's invariants after every run"},
    {.kind = CLI_GROUP, .at = offsetof(command, output), .group = sim_output_options},
    {0},
};

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

static int prepare(void *target, tool_error *err)
{
    command *c = target;
    if (c->pages && c->memory) return tool_fail(err, "--pages and --memory exclude each other");
    if (c->memory && !c->model_text) return tool_fail(err, "--memory needs --model");
    if (c->model_text && !c->memory) return tool_fail(err, "--model needs --memory");
    if (sim_source_check(&c->source, err) != 0) return -1;
    if (c->model_text && model_parse(c->model_text, 0, &c->model, err) != 0) return -1;
    if (parse_policies(c, err) != 0) return -1;
    return parse_capacities(c, err);
}

static int load(command *c, tool_error *err)
{
    bool offline = false;
    for (size_t p = 0; p < c->n_policies; p++)
        offline = offline || c->offline[p];
    for (size_t i = 0; i == 0 || i < c->source.n_paths; i++) {
        trace *t = &c->traces[i];
        if (sim_source_load(&c->source, i, "chat", t, err) != 0) return -1;
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
    const sim_output *o = &c->output;
    if (o->csv != NULL && prefix_report_csv(o->csv, runs, n, err) != 0) return -1;
    if (o->plot != NULL && prefix_report_plot(o->plot, runs, n, err) != 0) return -1;
    if (sim_wants_table(o)) prefix_report_table(runs, n);
    return o->json ? prefix_report_json(runs, n, c->warmup, err) : 0;
}

static int run(void *target, tool_error *err)
{
    command *c = target;
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

static void end(void *target)
{
    command *c = target;
    for (size_t i = 0; i < c->n_traces; i++) {
        trace_free(&c->traces[i]);
        free(c->next_use[i]);
    }
}

int sim_prefix(int argc, char **argv)
{
    char notes[800] = "The policies (* = knows the future: a bound, not a policy to use):";
    uint32_t offline;
    const char *name;
    for (uint32_t i = 0; (name = pkv_policy_name(i, &offline)) != NULL; i++)
        snprintf(notes + strlen(notes), sizeof notes - strlen(notes), " %s%s", name,
                 offline ? "*" : "");
    snprintf(notes + strlen(notes), sizeof notes - strlen(notes),
             ".\n\n--trace may be given several times. A hit is a block that is resident together "
             "with every block before it in the request.");
    const cli_command prefix = {
        .name = "pkv-sim prefix",
        .summary = "Replays the prefix blocks of a trace through the library's index, request by "
                   "request and without a clock, under one or more replacement policies and "
                   "capacities. A block of the trace is a page.",
        .options = options,
        .notes = notes,
        .size = sizeof(command),
        .prepare = prepare,
        .run = run,
        .end = end};
    return cli_run(&prefix, argc, argv);
}
