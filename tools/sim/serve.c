/* pkv-sim serve: command line, and the runs that are compared. */
#include "serve.h"

#include <pagedkv/index.h>
#include <stdio.h>
#include <string.h>

#include "parse.h"
#include "sim.h"

typedef struct command {
    sim_source source;
    sim_output output;
    const char *model_text, *hardware_text, *compare;
    double rate_factor; /* arrivals are this much faster than in the trace */
    model model;
    hardware hardware;
    serve_options options;
    bool runs[3]; /* by serve_reservation */
    uint64_t max_tokens;
    serve_result results[SERVE_MAX_RUNS];
    size_t n_results;
} command;

static int set_admission(void *target, const char *text, tool_error *err)
{
    serve_admission *admission = target;
    *admission = strcmp(text, "safe") == 0 ? SERVE_SAFE : SERVE_WATERMARK;
    if (*admission == SERVE_SAFE || strcmp(text, "watermark") == 0) return 0;
    return tool_fail(err, "--admission: '%.60s' is not watermark or safe", text);
}

static int set_pressure(void *target, const char *text, tool_error *err)
{
    serve_options *o = target;
    return pressure_parse(text, o->pressure, SERVE_MAX_PRESSURE, &o->n_pressure, err);
}

static const cli_option options[] = {
    {.kind = CLI_GROUP, .at = offsetof(command, source), .group = sim_source_options},
    {"speed", "X", CLI_REAL, offsetof(command, rate_factor), 1e-6, 1e6,
     .help = "arrivals X times as fast as in the trace (default 1)"},
    {.kind = CLI_TITLE, .help = "Machine"},
    {"model", "MODEL", CLI_TEXT, offsetof(command, model_text),
     .help = "a preset (pkv-sim --models; default llama-3-8b), the path of a config.json, or "
             "'layers=32,kv_heads=8,head_dim=128[,q_heads=32][,params=8e9][,window=N]"
             "[,full_every=N][,dtype=f16]'"},
    {"hardware", "HW", CLI_TEXT, offsetof(command, hardware_text),
     .help = "a100 (default), h100, l4, rtx4090, cpu, changed by, or made of, "
             "'flops=3e14,bandwidth=2e12[,flops_share=0.55][,bandwidth_share=0.8][,overhead=1ms]'"},
    {"memory", "SIZE", CLI_SIZE, offsetof(command, options.memory),
     .help = "memory of the cache, metadata included (default 16GiB)"},
    {"pressure", "LIST", CLI_CALL, offsetof(command, options), .call = set_pressure,
     .help = "changes of the limit, as in '60s:-50%,120s:+50%,5m:8GiB'; a percentage is of the "
             "limit at the start and is added to the current one"},
    {"state-bytes", "SIZE", CLI_SIZE, offsetof(command, options.state_bytes),
     .help = "a sequence's recurrent state over all layers of a hybrid model, as in 48MiB (default "
             "0: it has none); contiguous reservations have no states, so nothing is compared"},
    {.kind = CLI_TITLE, .help = "Scheduler"},
    {"page-tokens", "N", CLI_CALL, offsetof(command, options.page_tokens),
     .call = parse_page_tokens, .help = "8, 16 (default), 32, 64 or 128"},
    {"max-seqs", "N", CLI_U32, offsetof(command, options.max_seqs), 1, 65536,
     .help = "most requests running at once (default 256)"},
    {"chunk", "N", CLI_U32, offsetof(command, options.chunk), 1, 1u << 24,
     .help = "prompt tokens per step (default 2048)"},
    {"admission", "RULE", CLI_CALL, offsetof(command, options.admission), .call = set_admission,
     .help = "watermark (default: start when the prompt fits, preempt the youngest when memory is "
             "short) or safe (the library's safe-state rule over final lengths: nothing is "
             "preempted unless the limit shrinks)"},
    {"watermark", "SHARE", CLI_REAL, offsetof(command, options.watermark), 0, 0.9,
     .help = "of the memory that admission keeps free (default 0.01)"},
    {"policy", "NAME", CLI_TEXT, offsetof(command, options.policy),
     .help = "replacement policy of cached prefixes (default lru-leaf)"},
    {"no-prefix", NULL, CLI_FLAG, offsetof(command, options.no_prefix),
     .help = "do not reuse cached prefixes"},
    {"compare", "LIST", CLI_TEXT, offsetof(command, compare),
     .help = "contiguous reservations to run as well, of max,pow2,oracle (default: all), or none"},
    {"max-tokens", "N", CLI_U64, offsetof(command, max_tokens), 1, 1u << 30,
     .help = "what 'max' reserves (default: the longest request, rounded up to a power of two)"},
    {"verify", "N", CLI_U64, offsetof(command, options.verify_every), 0, 0,
     .help = "check every invariant each N steps (default 1000; 0 = only at the end)"},
    {.kind = CLI_GROUP, .at = offsetof(command, output), .group = sim_output_options},
    {0},
};

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

static int prepare(void *target, tool_error *err)
{
    command *c = target;
    c->options.model = &c->model;
    c->options.hardware = &c->hardware;
    if (sim_source_check(&c->source, err) != 0 ||
        model_parse(c->model_text, 0, &c->model, err) != 0 ||
        hardware_parse(c->hardware_text, &c->hardware, err) != 0 || check_policy(c, err) != 0)
        return -1;
    if (c->options.state_bytes != 0) c->compare = "none";
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

static int report(const command *c, const trace *input, tool_error *err)
{
    const sim_output *o = &c->output;
    if (o->csv != NULL && serve_write_csv(o->csv, &c->results[0], err) != 0) return -1;
    if (o->plot != NULL &&
        serve_write_plot(o->plot, &c->options, input, c->results, c->n_results, err) != 0)
        return -1;
    if (sim_wants_table(o)) serve_print_table(&c->options, input, c->results, c->n_results);
    return o->json ? serve_print_json(&c->options, input, c->results, c->n_results, err) : 0;
}

static int run(void *target, tool_error *err)
{
    command *c = target;
    trace input;
    size_t last = c->source.n_paths > 0 ? c->source.n_paths - 1 : 0;
    if (sim_source_load(&c->source, last, "chat,requests=2000", &input, err) != 0) return -1;
    for (size_t i = 0; i < input.n_requests; i++)
        input.requests[i].arrival /= c->rate_factor;
    int code = run_all(c, &input, err);
    if (code == 0) code = report(c, &input, err);
    trace_free(&input);
    return code;
}

static void defaults(void *target)
{
    command *c = target;
    c->model_text = "llama-3-8b";
    c->hardware_text = "a100";
    c->compare = "max,pow2,oracle";
    c->rate_factor = 1;
    c->options = (serve_options){.page_tokens = 16,
                                 .memory = (uint64_t)16 << 30,
                                 .max_seqs = 256,
                                 .chunk = 2048,
                                 .watermark = 0.01,
                                 .verify_every = 1000};
}

static void end(void *target)
{
    command *c = target;
    for (size_t i = 0; i < c->n_results; i++)
        serve_result_free(&c->results[i]);
}

int sim_serve(int argc, char **argv)
{
    static const cli_command serve = {
        .name = "pkv-sim serve",
        .summary =
            "Simulates continuous batching through the library: arrivals, admission, chunked "
            "prompts, decoding, prefix reuse, preemption by recomputation; and the same "
            "with contiguous reservation.",
        .options = options,
        .notes = "CSV and plot show the paged run over time. Requests that do not fit the memory "
                 "even alone are reported and left out. See pkv-sim(1).",
        .size = sizeof(command),
        .defaults = defaults,
        .prepare = prepare,
        .run = run,
        .end = end};
    return cli_run(&serve, argc, argv);
}
