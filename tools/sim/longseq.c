/* pkv-sim longseq: command line. */
#include "longseq.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parse.h"
#include "sim.h"

enum { MAX_LIST = 32, MAX_NAME = 24 };

#define POLICIES "none,window,sink,mass,h2o,tova,obs,keydiff,lru-mass,random,topk"

typedef struct command {
    longseq_options o;
    sim_output output;
    model geometry;
    const char *model_text, *policies, *patterns, *budgets;
    char policy[MAX_LIST][MAX_NAME];
    size_t n_policies;
    longseq_pattern pattern[MAX_LIST];
    size_t n_patterns;
    uint64_t budget[MAX_LIST];
    size_t n_budgets;
} command;

static const cli_option options[] = {
    {.kind = CLI_TITLE, .help = "Sequences"},
    {"sequences", "N", CLI_U32, offsetof(command, o.sequences), 1, 4096,
     .help = "side by side (default 8)"},
    {"tokens", "N", CLI_U64, offsetof(command, o.tokens), 1, 1e8,
     .help = "length of each (default 20000)"},
    {"prompt", "N", CLI_U64, offsetof(command, o.prompt), 0, 1e8,
     .help = "of these, the first N come in chunks (default: an eighth)"},
    {"chunk", "N", CLI_U32, offsetof(command, o.chunk), 1, 65536,
     .help = "tokens of a prompt step (default 256)"},
    {"pattern", "LIST", CLI_TEXT, offsetof(command, patterns),
     .help = "of sinks,local,needle,uniform,mixed (default mixed)"},
    {"seed", "S", CLI_U64, offsetof(command, o.seed), 0, 9e18,
     .help = "of the vectors and of 'random' (default 1)"},
    {.kind = CLI_TITLE, .help = "Cache"},
    {"model", "MODEL", CLI_TEXT, offsetof(command, model_text),
     .help = "geometry (see pkv-sim --models); windows are ignored (default "
             "'layers=2,kv_heads=2,q_heads=8,head_dim=128')"},
    {"page-tokens", "N", CLI_CALL, offsetof(command, o.page_tokens), .call = parse_page_tokens,
     .help = "8, 16, 32, 64 or 128 (default 16)"},
    {"memory", "SIZE", CLI_SIZE, offsetof(command, o.memory),
     .help = "limit of pages and metadata (default 256MiB)"},
    {"policy", "LIST", CLI_TEXT, offsetof(command, policies),
     .help = "eviction policies, of " POLICIES
             " (default window,sink,mass,obs,keydiff,lru-mass,random,topk)"},
    {"budget", "LIST", CLI_TEXT, offsetof(command, budgets),
     .help = "tokens per sequence (default 512,1024)"},
    {"samples", "N", CLI_U32, offsetof(command, o.samples), 0, 100000,
     .help = "steps compared with attention over everything (default 40; 0 = off)"},
    {.kind = CLI_GROUP, .at = offsetof(command, output), .group = sim_output_options},
    {0},
};

static int add_policy(command *c, const char *name, tool_error *err)
{
    pkv_evict_config config;
    if (pkv_evict_config_named(&config, sizeof config, name, 1) != PKV_OK ||
        config.kind == PKV_EVICT_CALLBACK)
        return tool_fail(err,
                         "--policy: unknown policy '%.40s' (known: none, window, sink, mass, h2o, "
                         "tova, obs, keydiff, lru-mass, random, topk)",
                         name);
    if (c->n_policies == MAX_LIST) return tool_fail(err, "--policy: more than %d names", MAX_LIST);
    snprintf(c->policy[c->n_policies++], MAX_NAME, "%s", name);
    return 0;
}

static int read_lists(command *c, tool_error *err)
{
    char item[MAX_NAME];
    int got;
    const char *list = c->policies;
    while ((got = parse_list_next(&list, item, sizeof item, "--policy", err)) == 1)
        if (add_policy(c, item, err) != 0) return -1;
    if (got != 0) return -1;
    list = c->patterns;
    while ((got = parse_list_next(&list, item, sizeof item, "--pattern", err)) == 1) {
        if (c->n_patterns == MAX_LIST) return tool_fail(err, "--pattern: too many");
        if (longseq_pattern_parse(item, &c->pattern[c->n_patterns++], err) != 0) return -1;
    }
    if (got != 0) return -1;
    list = c->budgets;
    while ((got = parse_list_next(&list, item, sizeof item, "--budget", err)) == 1) {
        if (c->n_budgets == MAX_LIST) return tool_fail(err, "--budget: too many");
        if (parse_u64(item, "--budget", 1, 100000000, &c->budget[c->n_budgets++], err) != 0)
            return -1;
    }
    return got;
}

static int prepare(void *target, tool_error *err)
{
    command *c = target;
    longseq_options *o = &c->o;
    if (read_lists(c, err) != 0) return -1;
    if (model_parse(c->model_text, 1, &c->geometry, err) != 0) return -1;
    if (c->geometry.head_dim < LONGSEQ_MIN_DIM)
        return tool_fail(err, "--model: head_dim %u is less than %d, too small for the patterns",
                         c->geometry.head_dim, LONGSEQ_MIN_DIM);
    if (o->prompt == UINT64_MAX) o->prompt = o->tokens / 8;
    if (o->prompt > o->tokens) return tool_fail(err, "--prompt is more than --tokens");
    o->geometry = &c->geometry;
    return 0;
}

static size_t count_runs(const command *c)
{
    size_t n = 0;
    for (size_t p = 0; p < c->n_policies; p++)
        n += strcmp(c->policy[p], "none") == 0 ? 1 : c->n_budgets;
    return n * c->n_patterns;
}

static int run_pattern(command *c, longseq_pattern pattern, progress *bar, longseq_result *results,
                       size_t *n, tool_error *err)
{
    const longseq_source source = {.pattern = pattern,
                                   .seed = c->o.seed,
                                   .kv_heads = c->geometry.kv_heads,
                                   .group_size = c->geometry.q_heads / c->geometry.kv_heads,
                                   .dim = c->geometry.head_dim};
    longseq_truth truth;
    if (longseq_truth_make(&c->o, &source, bar, &truth, err) != 0) return -1;
    int code = 0;
    for (size_t p = 0; p < c->n_policies && code == 0; p++) {
        const size_t budgets = strcmp(c->policy[p], "none") == 0 ? 1 : c->n_budgets;
        for (size_t b = 0; b < budgets && code == 0; b++) {
            code = longseq_run(&c->o, &source, &truth, c->policy[p], c->budget[b], bar,
                               &results[*n], err);
            if (code != 0) tool_fail_in(err, "%s", c->policy[p]);
            ++*n;
        }
    }
    longseq_truth_free(&truth);
    return code;
}

static int report(const command *c, const longseq_result *results, size_t n, tool_error *err)
{
    const sim_output *out = &c->output;
    if (out->csv != NULL && longseq_write_csv(out->csv, &c->o, results, n, err) != 0) return -1;
    if (out->plot != NULL && longseq_write_plot(out->plot, &c->o, results, n, err) != 0) return -1;
    if (sim_wants_table(out)) longseq_print_table(&c->o, results, n);
    return out->json ? longseq_print_json(&c->o, results, n, err) : 0;
}

static int run(void *target, tool_error *err)
{
    command *c = target;
    const size_t total = count_runs(c);
    longseq_result *results = calloc(total, sizeof *results);
    if (results == NULL) return tool_fail(err, "out of memory");
    progress bar;
    progress_start(&bar, "longseq",
                   total * c->o.tokens * c->o.sequences + c->n_patterns * c->o.samples);
    size_t n = 0;
    int code = 0;
    for (size_t i = 0; i < c->n_patterns && code == 0; i++)
        code = run_pattern(c, c->pattern[i], &bar, results, &n, err);
    progress_end(&bar);
    if (code == 0) code = report(c, results, n, err);
    free(results);
    return code;
}

static void defaults(void *target)
{
    command *c = target;
    c->o = (longseq_options){.sequences = 8,
                             .page_tokens = 16,
                             .chunk = 256,
                             .tokens = 20000,
                             .prompt = UINT64_MAX, /* not given */
                             .memory = (uint64_t)256 << 20,
                             .seed = 1,
                             .samples = 40};
    c->model_text = "layers=2,kv_heads=2,q_heads=8,head_dim=128";
    c->policies = "window,sink,mass,obs,keydiff,lru-mass,random,topk";
    c->patterns = "mixed";
    c->budgets = "512,1024";
}

int sim_longseq(int argc, char **argv)
{
    static const cli_command longseq = {
        .name = "pkv-sim longseq",
        .summary = "Grows long sequences side by side under a memory limit, with eviction "
                   "policies, through the real cache and kernel, on synthetic queries and keys "
                   "whose attention is known.",
        .options = options,
        .notes = "CSV and plot show figures over time. The run fails (status 1) if any sequence "
                 "ever holds more than its budget, one page and the step's own tokens. With "
                 "--policy none a run ends when memory does. See pkv-sim(1).",
        .size = sizeof(command),
        .defaults = defaults,
        .prepare = prepare,
        .run = run};
    return cli_run(&longseq, argc, argv);
}
