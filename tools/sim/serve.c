/* pkv-sim serve: command line, and the runs that are compared. */
#include "serve.h"

#include <getopt.h>
#include <pagedkv/index.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "sim.h"

#define COMMAND "pkv-sim serve"
#define DEFAULT_WORKLOAD "chat,requests=2000"

typedef struct command {
    sim_source source;
    const char *model_text, *hardware_text, *csv_path, *plot_path, *compare;
    bool json, help;
    double rate_factor; /* arrivals are this much faster than in the trace */
    model model;
    hardware hardware;
    serve_options options;
    bool runs[3]; /* by serve_reservation */
    uint64_t max_tokens;
    serve_result results[SERVE_MAX_RUNS];
    size_t n_results;
} command;

static void help(void)
{
    puts(
        "Usage: pkv-sim serve [OPTION...]\n"
        "Simulates continuous batching through the library: arrivals, admission, chunked prompts,\n"
        "decoding, prefix reuse, preemption by recomputation; and the same with contiguous\n"
        "reservation.\n");
    sim_source_help();
    puts("  --speed X               arrivals X times as fast as in the trace (default 1)\n\n"
         "Machine:\n"
         "  --model MODEL           a preset (pkv-sim --models; default llama-3-8b) or\n"
         "                          'layers=32,kv_heads=8,head_dim=128[,q_heads=32][,params=8e9]\n"
         "                          [,window=N][,full_every=N][,dtype=f16]'\n"
         "  --hardware HW           a100 (default), h100, l4, rtx4090, cpu, changed by, or made "
         "of,\n"
         "                          'flops=3e14,bandwidth=2e12[,flops_share=0.55]\n"
         "                          [,bandwidth_share=0.8][,overhead=1ms]'\n"
         "  --memory SIZE           memory of the cache (default 16GiB)\n"
         "  --pressure LIST         changes of the limit, as in '60s:-50%,120s:+50%,5m:8GiB';\n"
         "                          percentages are of the limit at the start\n\n"
         "Scheduler:\n"
         "  --page-tokens N         8, 16 (default), 32, 64 or 128\n"
         "  --max-seqs N            most requests running at once (default 256)\n"
         "  --chunk N               prompt tokens per step (default 2048)\n"
         "  --admission RULE        watermark (default: start when the prompt fits, preempt when\n"
         "                          memory is short) or safe (the library's safe-state rule over\n"
         "                          final lengths: no preemption)\n"
         "  --watermark SHARE       of the memory that admission keeps free (default 0.01)\n"
         "  --policy NAME           replacement policy of cached prefixes (default lru-leaf)\n"
         "  --no-prefix             do not reuse cached prefixes\n"
         "  --compare LIST          contiguous reservations to run as well, of max,pow2,oracle\n"
         "                          (default: all), or none\n"
         "  --max-tokens N          what 'max' reserves (default: the longest request, rounded up\n"
         "                          to a power of two)\n"
         "  --verify N              check every invariant each N steps (default 1000; 0 = only at\n"
         "                          the end)\n\n"
         "Output (tables unless --json):\n"
         "  --json                  results as JSON on stdout\n"
         "  --csv FILE              timeline of the paged run as CSV ('-' = stdout)\n"
         "  --plot FILE             timeline of the paged run as an SVG plot\n\n"
         "Requests that do not fit the memory even alone are reported and left out. See "
         "pkv-sim(1).");
}

enum {
    OPT_TRACE = 256,
    OPT_FORMAT,
    OPT_SYNTHETIC,
    OPT_SPEED,
    OPT_MODEL,
    OPT_HARDWARE,
    OPT_MEMORY,
    OPT_PRESSURE,
    OPT_PAGE_TOKENS,
    OPT_MAX_SEQS,
    OPT_CHUNK,
    OPT_ADMISSION,
    OPT_WATERMARK,
    OPT_POLICY,
    OPT_NO_PREFIX,
    OPT_COMPARE,
    OPT_MAX_TOKENS,
    OPT_VERIFY,
    OPT_JSON,
    OPT_CSV,
    OPT_PLOT
};

static const struct option long_options[] = {
    {"trace", required_argument, NULL, OPT_TRACE},
    {"trace-format", required_argument, NULL, OPT_FORMAT},
    {"synthetic", required_argument, NULL, OPT_SYNTHETIC},
    {"speed", required_argument, NULL, OPT_SPEED},
    {"model", required_argument, NULL, OPT_MODEL},
    {"hardware", required_argument, NULL, OPT_HARDWARE},
    {"memory", required_argument, NULL, OPT_MEMORY},
    {"pressure", required_argument, NULL, OPT_PRESSURE},
    {"page-tokens", required_argument, NULL, OPT_PAGE_TOKENS},
    {"max-seqs", required_argument, NULL, OPT_MAX_SEQS},
    {"chunk", required_argument, NULL, OPT_CHUNK},
    {"admission", required_argument, NULL, OPT_ADMISSION},
    {"watermark", required_argument, NULL, OPT_WATERMARK},
    {"policy", required_argument, NULL, OPT_POLICY},
    {"no-prefix", no_argument, NULL, OPT_NO_PREFIX},
    {"compare", required_argument, NULL, OPT_COMPARE},
    {"max-tokens", required_argument, NULL, OPT_MAX_TOKENS},
    {"verify", required_argument, NULL, OPT_VERIFY},
    {"json", no_argument, NULL, OPT_JSON},
    {"csv", required_argument, NULL, OPT_CSV},
    {"plot", required_argument, NULL, OPT_PLOT},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

static int number(const char *what, uint64_t min, uint64_t max, uint32_t *value, tool_error *err)
{
    uint64_t v;
    if (parse_u64(optarg, what, min, max, &v, err) != 0) return -1;
    *value = (uint32_t)v;
    return 0;
}

static int set_scheduler(command *c, int option, tool_error *err)
{
    serve_options *o = &c->options;
    switch (option) {
    case OPT_PAGE_TOKENS:
        if (number("--page-tokens", 8, 128, &o->page_tokens, err) != 0) return -1;
        if ((o->page_tokens & (o->page_tokens - 1)) == 0) return 0;
        return tool_fail(err, "--page-tokens: %u is not 8, 16, 32, 64 or 128", o->page_tokens);
    case OPT_MAX_SEQS:
        return number("--max-seqs", 1, 65536, &o->max_seqs, err);
    case OPT_CHUNK:
        return number("--chunk", 1, 1u << 24, &o->chunk, err);
    case OPT_ADMISSION:
        o->admission = strcmp(optarg, "safe") == 0 ? SERVE_SAFE : SERVE_WATERMARK;
        if (o->admission == SERVE_SAFE || strcmp(optarg, "watermark") == 0) return 0;
        return tool_fail(err, "--admission: '%.60s' is not watermark or safe", optarg);
    case OPT_WATERMARK:
        return parse_double(optarg, "--watermark", 0, 0.9, &o->watermark, err);
    case OPT_POLICY:
        o->policy = optarg;
        return 0;
    case OPT_NO_PREFIX:
        o->prefix = false;
        return 0;
    case OPT_COMPARE:
        c->compare = optarg;
        return 0;
    case OPT_MAX_TOKENS:
        return parse_u64(optarg, "--max-tokens", 1, 1u << 30, &c->max_tokens, err);
    default:
        return parse_u64(optarg, "--verify", 0, UINT64_MAX, &o->verify_every, err);
    }
}

static int set_option(command *c, int option, char **argv, tool_error *err)
{
    switch (option) {
    case OPT_TRACE:
        c->source.path = optarg;
        return 0;
    case OPT_FORMAT:
        return trace_format_parse(optarg, &c->source.format, err);
    case OPT_SYNTHETIC:
        c->source.synthetic = optarg;
        return 0;
    case OPT_SPEED:
        return parse_double(optarg, "--speed", 1e-6, 1e6, &c->rate_factor, err);
    case OPT_MODEL:
        c->model_text = optarg;
        return 0;
    case OPT_HARDWARE:
        c->hardware_text = optarg;
        return 0;
    case OPT_MEMORY:
        return parse_size(optarg, "--memory", &c->options.memory, err);
    case OPT_PRESSURE:
        return parse_pressure_list(optarg, c->options.pressure, SERVE_MAX_PRESSURE,
                                   &c->options.n_pressure, err);
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
    case '?':
    case ':':
        return cli_bad_option(option, optopt, argv[optind - 1], err);
    default:
        return set_scheduler(c, option, err);
    }
}

static int set_compare(command *c, tool_error *err)
{
    static const char *const names[] = {"max", "pow2", "oracle"};
    const char *cursor = c->compare;
    char item[16];
    int got;
    if (strcmp(cursor, "none") == 0) return 0;
    while ((got = parse_list_next(&cursor, item, sizeof item, "--compare", err)) == 1) {
        size_t i = 0;
        while (i < 3 && strcmp(item, names[i]) != 0)
            i++;
        if (i == 3) return tool_fail(err, "--compare: '%s' is not max, pow2, oracle or none", item);
        c->runs[i] = true;
    }
    return got;
}

static int check_policy(const command *c, tool_error *err)
{
    const char *name;
    uint32_t offline;
    if (c->options.policy == NULL) return 0;
    for (uint32_t i = 0; (name = pkv_policy_name(i, &offline)) != NULL; i++) {
        if (strcmp(name, c->options.policy) != 0) continue;
        if (!offline) return 0;
        return tool_fail(err, "--policy: %s needs to know the future: only pkv-sim prefix has it",
                         name);
    }
    return tool_fail(err, "--policy: unknown policy '%.60s'", c->options.policy);
}

static int prepare(command *c, tool_error *err)
{
    c->options.model = &c->model;
    c->options.hardware = &c->hardware;
    if (sim_source_check(&c->source, err) != 0 ||
        model_parse(c->model_text, 0, &c->model, err) != 0 ||
        hardware_parse(c->hardware_text, &c->hardware, err) != 0 || check_policy(c, err) != 0)
        return -1;
    return set_compare(c, err);
}

/* Runs on one kind of memory, which it destroys. */
static int run_one(command *c, const trace *input, serve_memory *memory, const char *name,
                   tool_error *err)
{
    if (memory == NULL) return tool_fail_in(err, "%s", name);
    serve_result *r = &c->results[c->n_results++];
    progress bar;
    snprintf(r->name, sizeof r->name, "%s", name);
    progress_start(&bar, r->name, input->n_requests);
    int code = serve_run(&c->options, input, memory, &bar, r, err);
    progress_end(&bar);
    memory->destroy(memory);
    return code == 0 ? 0 : tool_fail_in(err, "%s", name);
}

static uint64_t longest(const trace *input)
{
    uint64_t most = 1, rounded = 1;
    for (size_t i = 0; i < input->n_requests; i++) {
        uint64_t n = serve_final_length(&input->requests[i]);
        if (n > most) most = n;
    }
    while (rounded < most)
        rounded *= 2;
    return rounded;
}

static int run_all(command *c, const trace *input, tool_error *err)
{
    char name[32];
    if (run_one(c, input, serve_paged_create(&c->options, input, err), "paged", err) != 0)
        return -1;
    if (c->max_tokens == 0) c->max_tokens = longest(input);
    for (int kind = SERVE_MAX; kind <= SERVE_ORACLE; kind++) {
        if (!c->runs[kind]) continue;
        if (kind == SERVE_MAX)
            snprintf(name, sizeof name, "max-%llu", (unsigned long long)c->max_tokens);
        else
            snprintf(name, sizeof name, "%s", kind == SERVE_POW2 ? "pow2" : "oracle");
        serve_memory *memory =
            serve_contiguous_create(&c->options, (serve_reservation)kind, c->max_tokens, err);
        if (run_one(c, input, memory, name, err) != 0) return -1;
    }
    return 0;
}

static int run(command *c, tool_error *err)
{
    trace input;
    if (sim_source_load(&c->source, DEFAULT_WORKLOAD, &input, err) != 0) return -1;
    for (size_t i = 0; i < input.n_requests; i++)
        input.requests[i].arrival /= c->rate_factor;
    int code = run_all(c, &input, err);
    if (code == 0 && c->csv_path != NULL) code = serve_write_csv(c->csv_path, &c->results[0], err);
    if (code == 0 && c->plot_path != NULL)
        code = serve_write_plot(c->plot_path, &c->options, &input, c->results, c->n_results, err);
    if (code == 0 && c->json)
        code = serve_print_json(&c->options, &input, c->results, c->n_results, err);
    else if (code == 0)
        serve_print_table(&c->options, &input, c->results, c->n_results);
    for (size_t i = 0; i < c->n_results; i++)
        serve_result_free(&c->results[i]);
    trace_free(&input);
    return code;
}

int sim_serve(int argc, char **argv)
{
    tool_error err;
    command *c = calloc(1, sizeof *c);
    if (c == NULL) {
        tool_fail(&err, "out of memory");
        return cli_failed(COMMAND, &err);
    }
    c->model_text = "llama-3-8b";
    c->hardware_text = "a100";
    c->compare = "max,pow2,oracle";
    c->rate_factor = 1;
    c->options = (serve_options){.page_tokens = 16,
                                 .memory = (uint64_t)16 << 30,
                                 .max_seqs = 256,
                                 .chunk = 2048,
                                 .watermark = 0.01,
                                 .prefix = true,
                                 .verify_every = 1000};
    int option, code = 0, status;
    opterr = 0;
    while (code == 0 && (option = getopt_long(argc, argv, ":h", long_options, NULL)) != -1)
        code = set_option(c, option, argv, &err);
    if (code == 0 && optind < argc)
        code = tool_fail(&err, "unexpected argument '%.80s'", argv[optind]);
    if (code == 0 && c->help) {
        help();
        status = cli_finish(COMMAND);
    } else if (code != 0 || prepare(c, &err) != 0) {
        status = cli_usage_error(COMMAND, &err);
    } else {
        status = run(c, &err) == 0 ? cli_finish(COMMAND) : cli_failed(COMMAND, &err);
    }
    free(c);
    return status;
}
