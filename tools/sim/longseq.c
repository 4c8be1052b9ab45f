/* pkv-sim longseq: command line. */
#include "longseq.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "parse.h"
#include "sim.h"

#define COMMAND "pkv-sim longseq"
enum { MAX_LIST = 32, MAX_NAME = 24 };

typedef struct command {
    longseq_options o;
    model geometry;
    const char *model_text, *policies, *patterns, *budgets, *memory, *csv_path, *plot_path;
    bool json, help, prompt_given;
    char policy[MAX_LIST][MAX_NAME];
    size_t n_policies;
    longseq_pattern pattern[MAX_LIST];
    size_t n_patterns;
    uint64_t budget[MAX_LIST];
    size_t n_budgets;
} command;

static void help(void)
{
    puts("Usage: pkv-sim longseq [OPTION...]\n"
         "Grows long sequences side by side under a memory limit, with eviction policies, through\n"
         "the real cache and kernel, on synthetic queries and keys whose attention is known.\n\n"
         "Sequences:\n"
         "  --sequences N      side by side (default 8)\n"
         "  --tokens N         length of each (default 20000)\n"
         "  --prompt N         of these, the first N come in chunks (default: an eighth)\n"
         "  --chunk N          tokens of a prompt step (default 256)\n"
         "  --pattern LIST     of sinks,local,needle,uniform,mixed (default mixed)\n"
         "  --seed S           of the vectors and of 'random' (default 1)\n\n"
         "Cache:\n"
         "  --model MODEL      geometry (see pkv-sim --models); windows are ignored (default\n"
         "                     'layers=2,kv_heads=2,q_heads=8,head_dim=128')\n"
         "  --page-tokens N    8, 16, 32, 64 or 128 (default 16)\n"
         "  --memory SIZE      limit of pages and metadata (default 256MiB)\n"
         "  --policy LIST      of none,window,sink,mass,h2o,tova,obs,keydiff,lru-mass,random,topk\n"
         "                     (default window,sink,mass,obs,keydiff,lru-mass,random,topk)\n"
         "  --budget LIST      tokens per sequence (default 512,1024)\n"
         "  --samples N        steps compared with attention over everything (default 40; 0 = "
         "off)\n\n"
         "Output (a table unless --json):\n"
         "  --json             results as JSON on stdout\n"
         "  --csv FILE         figures over time as CSV ('-' = stdout)\n"
         "  --plot FILE        figures over time as an SVG plot\n\n"
         "The run fails (status 1) if any sequence ever holds more than its budget, one page and\n"
         "the step's own tokens. With --policy none a run ends when memory does. See pkv-sim(1).");
}

enum {
    OPT_SEQUENCES = 256,
    OPT_TOKENS,
    OPT_PROMPT,
    OPT_CHUNK,
    OPT_PATTERN,
    OPT_SEED,
    OPT_MODEL,
    OPT_PAGE_TOKENS,
    OPT_MEMORY,
    OPT_POLICY,
    OPT_BUDGET,
    OPT_SAMPLES,
    OPT_JSON,
    OPT_CSV,
    OPT_PLOT
};

static const struct option options[] = {
    {"sequences", required_argument, NULL, OPT_SEQUENCES},
    {"tokens", required_argument, NULL, OPT_TOKENS},
    {"prompt", required_argument, NULL, OPT_PROMPT},
    {"chunk", required_argument, NULL, OPT_CHUNK},
    {"pattern", required_argument, NULL, OPT_PATTERN},
    {"seed", required_argument, NULL, OPT_SEED},
    {"model", required_argument, NULL, OPT_MODEL},
    {"page-tokens", required_argument, NULL, OPT_PAGE_TOKENS},
    {"memory", required_argument, NULL, OPT_MEMORY},
    {"policy", required_argument, NULL, OPT_POLICY},
    {"budget", required_argument, NULL, OPT_BUDGET},
    {"samples", required_argument, NULL, OPT_SAMPLES},
    {"json", no_argument, NULL, OPT_JSON},
    {"csv", required_argument, NULL, OPT_CSV},
    {"plot", required_argument, NULL, OPT_PLOT},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

static int set_u32(const char *what, uint64_t min, uint64_t max, uint32_t *out, tool_error *err)
{
    uint64_t value;
    if (parse_u64(optarg, what, min, max, &value, err) != 0) return -1;
    *out = (uint32_t)value;
    return 0;
}

static int set_option(command *c, int option, char **argv, tool_error *err)
{
    switch (option) {
    case OPT_SEQUENCES:
        return set_u32("--sequences", 1, 4096, &c->o.sequences, err);
    case OPT_TOKENS:
        return parse_u64(optarg, "--tokens", 1, 100000000, &c->o.tokens, err);
    case OPT_PROMPT:
        c->prompt_given = true;
        return parse_u64(optarg, "--prompt", 0, 100000000, &c->o.prompt, err);
    case OPT_CHUNK:
        return set_u32("--chunk", 1, 65536, &c->o.chunk, err);
    case OPT_PATTERN:
        c->patterns = optarg;
        return 0;
    case OPT_SEED:
        return parse_u64(optarg, "--seed", 0, INT64_MAX, &c->o.seed, err);
    case OPT_MODEL:
        c->model_text = optarg;
        return 0;
    case OPT_PAGE_TOKENS:
        return set_u32("--page-tokens", 8, 128, &c->o.page_tokens, err);
    case OPT_MEMORY:
        c->memory = optarg;
        return 0;
    case OPT_POLICY:
        c->policies = optarg;
        return 0;
    case OPT_BUDGET:
        c->budgets = optarg;
        return 0;
    case OPT_SAMPLES:
        return set_u32("--samples", 0, 100000, &c->o.samples, err);
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

static int prepare(command *c, tool_error *err)
{
    longseq_options *o = &c->o;
    if (read_lists(c, err) != 0) return -1;
    if (c->memory != NULL && parse_size(c->memory, "--memory", &o->memory, err) != 0) return -1;
    if (model_parse(c->model_text, 1, &c->geometry, err) != 0) return -1;
    if ((o->page_tokens & (o->page_tokens - 1)) != 0)
        return tool_fail(err, "--page-tokens: %u is not 8, 16, 32, 64 or 128", o->page_tokens);
    if (c->geometry.head_dim < LONGSEQ_MIN_DIM)
        return tool_fail(err, "--model: head_dim %u is less than %d, too small for the patterns",
                         c->geometry.head_dim, LONGSEQ_MIN_DIM);
    if (!c->prompt_given) o->prompt = o->tokens / 8;
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

static int run(command *c, tool_error *err)
{
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
    if (code == 0 && c->csv_path != NULL)
        code = longseq_write_csv(c->csv_path, &c->o, results, n, err);
    if (code == 0 && c->plot_path != NULL)
        code = longseq_write_plot(c->plot_path, &c->o, results, n, err);
    if (code == 0 && c->json)
        code = longseq_print_json(&c->o, results, n, err);
    else if (code == 0)
        longseq_print_table(&c->o, results, n);
    free(results);
    return code;
}

int sim_longseq(int argc, char **argv)
{
    tool_error err;
    command *c = calloc(1, sizeof *c);
    if (c == NULL) {
        tool_fail(&err, "out of memory");
        return cli_failed(COMMAND, &err);
    }
    c->o = (longseq_options){.sequences = 8,
                             .page_tokens = 16,
                             .chunk = 256,
                             .tokens = 20000,
                             .memory = (uint64_t)256 << 20,
                             .seed = 1,
                             .samples = 40};
    c->model_text = "layers=2,kv_heads=2,q_heads=8,head_dim=128";
    c->policies = "window,sink,mass,obs,keydiff,lru-mass,random,topk";
    c->patterns = "mixed";
    c->budgets = "512,1024";
    int option, code = 0, status;
    opterr = 0;
    while (code == 0 && (option = getopt_long(argc, argv, ":h", options, NULL)) != -1)
        code = set_option(c, option, argv, &err);
    if (code == 0 && !c->help && optind < argc)
        code = tool_fail(&err, "unexpected argument '%.60s'", argv[optind]);
    if (code == 0 && !c->help) code = prepare(c, &err);
    if (code != 0) {
        status = cli_usage_error(COMMAND, &err);
    } else if (c->help) {
        help();
        status = cli_finish(COMMAND);
    } else {
        status = run(c, &err) == 0 ? cli_finish(COMMAND) : cli_failed(COMMAND, &err);
    }
    free(c);
    return status;
}
