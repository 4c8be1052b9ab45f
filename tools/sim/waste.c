/* pkv-sim waste: command line, and the page sizes side by side on threads. */
#include "waste.h"

#include <getopt.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "parse.h"
#include "sim.h"

#define COMMAND "pkv-sim waste"
enum { MAX_SCHEMES = 32, MAX_JOBS = 64 };
#define DEFAULT_WORKLOAD "lengths"
#define TOUCH_MEMORY ((uint64_t)1 << 30)

typedef struct command {
    sim_source source;
    const char *page_tokens, *model_text, *csv_path, *plot_path, *memory;
    bool json, touch, help;
    uint64_t jobs;
    waste_scheme schemes[MAX_SCHEMES];
    size_t n_schemes, n_paged;
    model model, flat;
    uint64_t memory_limit;
} command;

static void help(void)
{
    puts("Usage: pkv-sim waste [OPTION...]\n"
         "Runs every request of a trace through the library and compares the memory that paging\n"
         "holds without using it with contiguous reservation.\n");
    sim_source_help();
    puts(
        "\nCache:\n"
        "  --page-tokens LIST      page sizes in tokens, of 8,16,32,64,128 (default: all)\n"
        "  --model MODEL           geometry: a preset (see pkv-sim --models; default llama-3-8b,\n"
        "                          with --touch smollm2-135m),\n"
        "                          a preset with changes ('llama-3-8b,dtype=f32'), or\n"
        "                          'layers=32,kv_heads=8,head_dim=128[,dtype=f16][,window=N]\n"
        "                          [,q_heads=N][,full_every=N]'\n"
        "  --touch                 keep the pages in host memory and write to every one\n"
        "  --memory SIZE           with --touch: memory limit per page size (default 1GiB)\n"
        "  --jobs N                threads; page sizes run side by side (default: processors)\n\n"
        "Output (a table unless --json):\n"
        "  --json                  results as JSON on stdout\n"
        "  --csv FILE              results as CSV ('-' = stdout)\n"
        "  --plot FILE             results as an SVG plot\n\n"
        "Waste at the end is 1 - (tokens used / tokens held) when each request is complete; waste\n"
        "over decode sums both over every decode step. max-N reserves N tokens per request and\n"
        "serves only requests that fit; pow2 reserves the next power of two of the request's\n"
        "final length; oracle knows the final length. See pkv-sim(1).");
}

enum {
    OPT_TRACE = 256,
    OPT_FORMAT,
    OPT_SYNTHETIC,
    OPT_PAGE_TOKENS,
    OPT_MODEL,
    OPT_TOUCH,
    OPT_MEMORY,
    OPT_JOBS,
    OPT_JSON,
    OPT_CSV,
    OPT_PLOT
};

static const struct option options[] = {
    {"trace", required_argument, NULL, OPT_TRACE},
    {"trace-format", required_argument, NULL, OPT_FORMAT},
    {"synthetic", required_argument, NULL, OPT_SYNTHETIC},
    {"page-tokens", required_argument, NULL, OPT_PAGE_TOKENS},
    {"model", required_argument, NULL, OPT_MODEL},
    {"touch", no_argument, NULL, OPT_TOUCH},
    {"memory", required_argument, NULL, OPT_MEMORY},
    {"jobs", required_argument, NULL, OPT_JOBS},
    {"json", no_argument, NULL, OPT_JSON},
    {"csv", required_argument, NULL, OPT_CSV},
    {"plot", required_argument, NULL, OPT_PLOT},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

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
    case OPT_PAGE_TOKENS:
        c->page_tokens = optarg;
        return 0;
    case OPT_MODEL:
        c->model_text = optarg;
        return 0;
    case OPT_TOUCH:
        c->touch = true;
        return 0;
    case OPT_MEMORY:
        c->memory = optarg;
        return 0;
    case OPT_JOBS:
        return parse_u64(optarg, "--jobs", 1, MAX_JOBS, &c->jobs, err);
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

static waste_scheme *add_scheme(command *c, waste_kind kind, uint32_t parameter, const char *format,
                                unsigned value)
{
    waste_scheme *s = &c->schemes[c->n_schemes++];
    s->kind = kind;
    s->parameter = parameter;
    snprintf(s->name, sizeof s->name, "%s", format);
    if (value != 0)
        snprintf(s->name + strlen(s->name), sizeof s->name - strlen(s->name), "-%u", value);
    return s;
}

static int add_paged(command *c, const char *list, tool_error *err)
{
    char item[16];
    int got;
    while ((got = parse_list_next(&list, item, sizeof item, "--page-tokens", err)) == 1) {
        uint64_t p;
        if (parse_u64(item, "--page-tokens", 8, 128, &p, err) != 0) return -1;
        if ((p & (p - 1)) != 0)
            return tool_fail(err, "--page-tokens: %u is not 8, 16, 32, 64 or 128", (unsigned)p);
        for (size_t i = 0; i < c->n_schemes; i++)
            if (c->schemes[i].parameter == p)
                return tool_fail(err, "--page-tokens: %u is given twice", (unsigned)p);
        add_scheme(c, WASTE_PAGED, (uint32_t)p, "paged", (unsigned)p);
    }
    return got;
}

static int prepare(command *c, tool_error *err)
{
    if (sim_source_check(&c->source, err) != 0) return -1;
    if (c->memory != NULL && !c->touch) return tool_fail(err, "--memory needs --touch");
    c->memory_limit = TOUCH_MEMORY;
    if (c->model_text == NULL) c->model_text = c->touch ? "smollm2-135m" : "llama-3-8b";
    if (c->memory != NULL && parse_size(c->memory, "--memory", &c->memory_limit, err) != 0)
        return -1;
    if (model_parse(c->model_text, 0, &c->model, err) != 0 ||
        model_parse(c->model_text, 1, &c->flat, err) != 0 || add_paged(c, c->page_tokens, err) != 0)
        return -1;
    for (size_t i = 0, n = c->n_schemes; model_is_windowed(&c->model) && i < n; i++) {
        waste_scheme *s = add_scheme(c, WASTE_PAGED_FLAT, c->schemes[i].parameter, "paged",
                                     c->schemes[i].parameter);
        strncat(s->name, "-no-groups", sizeof s->name - strlen(s->name) - 1);
    }
    c->n_paged = c->n_schemes;
    for (uint32_t n = 2048; n <= 131072; n *= 4)
        add_scheme(c, WASTE_MAX, n, "max", n);
    add_scheme(c, WASTE_POW2, 0, "pow2", 0);
    add_scheme(c, WASTE_ORACLE, 0, "oracle", 0);
    return 0;
}

/* Page sizes are handed to threads one by one. */
typedef struct pool {
    command *c;
    const trace *input;
    const waste_options *options;
    progress bar;
    pthread_mutex_t lock;
    size_t next;
    int failed;
    tool_error *err; /* of the first that failed */
} pool;

static void *work(void *argument)
{
    pool *p = argument;
    for (;;) {
        pthread_mutex_lock(&p->lock);
        size_t i = p->failed ? p->c->n_paged : p->next++;
        pthread_mutex_unlock(&p->lock);
        if (i >= p->c->n_paged) return NULL;
        tool_error err;
        if (waste_paged(&p->c->schemes[i], p->options, p->input, &p->bar, &err) == 0) continue;
        pthread_mutex_lock(&p->lock);
        if (!p->failed) *p->err = err;
        p->failed = 1;
        pthread_mutex_unlock(&p->lock);
    }
}

static int run_paged(command *c, const trace *input, tool_error *err)
{
    waste_options settings = {&c->model, &c->flat, c->touch, c->memory_limit};
    pool p = {.c = c, .input = input, .options = &settings, .err = err};
    pthread_t threads[MAX_JOBS];
    size_t n = 0, wanted = c->jobs < c->n_paged ? c->jobs : c->n_paged;
    pthread_mutex_init(&p.lock, NULL);
    progress_start(&p.bar, "waste", (uint64_t)input->n_requests * c->n_paged);
    while (n + 1 < wanted && pthread_create(&threads[n], NULL, work, &p) == 0)
        n++;
    work(&p); /* this thread too, and alone if no other could be started */
    for (size_t i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
    progress_end(&p.bar);
    pthread_mutex_destroy(&p.lock);
    return p.failed ? -1 : 0;
}

static int run(command *c, tool_error *err)
{
    trace input;
    if (sim_source_load(&c->source, DEFAULT_WORKLOAD, &input, err) != 0) return -1;
    for (size_t i = c->n_paged; i < c->n_schemes; i++)
        waste_contiguous(&c->schemes[i], &c->model, &input);
    int code = run_paged(c, &input, err);
    if (code == 0 && c->csv_path != NULL)
        code = waste_write_csv(c->csv_path, c->schemes, c->n_schemes, &input, err);
    if (code == 0 && c->plot_path != NULL)
        code = waste_write_plot(c->plot_path, c->schemes, c->n_schemes, &input, &c->model, err);
    if (code == 0 && c->json)
        code = waste_print_json(c->schemes, c->n_schemes, &input, &c->model, c->touch, err);
    else if (code == 0)
        waste_print_table(c->schemes, c->n_schemes, &input, &c->model, c->touch);
    trace_free(&input);
    return code;
}

int sim_waste(int argc, char **argv)
{
    tool_error err;
    command *c = calloc(1, sizeof *c);
    if (c == NULL) {
        tool_fail(&err, "out of memory");
        return cli_failed(COMMAND, &err);
    }
    c->page_tokens = "8,16,32,64,128";
    c->jobs = sim_processors();
    if (c->jobs > MAX_JOBS) c->jobs = MAX_JOBS;
    int option, code = 0, status;
    opterr = 0;
    while (code == 0 && (option = getopt_long(argc, argv, ":h", options, NULL)) != -1)
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
