/* pkv-sim waste: command line, and the page sizes side by side on threads. */
#include "waste.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parse.h"
#include "sim.h"

enum { MAX_SCHEMES = 32, MAX_JOBS = 64 };
#define TOUCH_MEMORY ((uint64_t)1 << 30)

typedef struct command {
    sim_source source;
    sim_output output;
    const char *page_tokens, *model_text;
    bool touch;
    uint64_t jobs;
    waste_scheme schemes[MAX_SCHEMES];
    size_t n_schemes, n_paged;
    model model, flat;
    uint64_t memory; /* with --touch; 0 = not given */
} command;

static const cli_option options[] = {
    {.kind = CLI_GROUP, .at = offsetof(command, source), .group = sim_source_options},
    {.kind = CLI_TITLE, .help = "Cache"},
    {"page-tokens", "LIST", CLI_TEXT, offsetof(command, page_tokens),
     .help = "page sizes in tokens, of 8,16,32,64,128 (default: all)"},
    {"model", "MODEL", CLI_TEXT, offsetof(command, model_text),
     .help =
         "geometry: a preset (see pkv-sim --models; default llama-3-8b, with --touch "
         "smollm2-135m), a preset with changes ('llama-3-8b,dtype=f32'), the path of a "
         "config.json, or "
         "'layers=32,kv_heads=8,head_dim=128[,dtype=f16][,window=N][,q_heads=N][,full_every=N]'"},
    {"touch", NULL, CLI_FLAG, offsetof(command, touch),
     .help = "keep the pages in host memory and write to every one, instead of counting page "
             "numbers only"},
    {"memory", "SIZE", CLI_SIZE, offsetof(command, memory),
     .help = "with --touch: memory limit per page size (default 1GiB); fewer requests run side by "
             "side when it is short, and one that does not fit alone is an error"},
    {"jobs", "N", CLI_U64, offsetof(command, jobs), 1, MAX_JOBS,
     .help = "threads; page sizes run side by side (default: processors)"},
    {.kind = CLI_GROUP, .at = offsetof(command, output), .group = sim_output_options},
    {0},
};

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
        uint32_t p;
        if (parse_page_tokens(&p, item, err) != 0) return -1;
        for (size_t i = 0; i < c->n_schemes; i++)
            if (c->schemes[i].parameter == p)
                return tool_fail(err, "--page-tokens: %u is given twice", p);
        add_scheme(c, WASTE_PAGED, p, "paged", p);
    }
    return got;
}

static int prepare(void *target, tool_error *err)
{
    command *c = target;
    if (sim_source_check(&c->source, err) != 0) return -1;
    if (c->memory != 0 && !c->touch) return tool_fail(err, "--memory needs --touch");
    if (c->memory == 0) c->memory = TOUCH_MEMORY;
    if (c->model_text == NULL) c->model_text = c->touch ? "smollm2-135m" : "llama-3-8b";
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
    waste_options settings = {&c->model, &c->flat, c->touch, c->memory};
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

static int report(const command *c, const trace *input, tool_error *err)
{
    const sim_output *o = &c->output;
    if (o->csv != NULL && waste_write_csv(o->csv, c->schemes, c->n_schemes, input, err) != 0)
        return -1;
    if (o->plot != NULL &&
        waste_write_plot(o->plot, c->schemes, c->n_schemes, input, &c->model, err) != 0)
        return -1;
    if (sim_wants_table(o)) waste_print_table(c->schemes, c->n_schemes, input, &c->model, c->touch);
    return o->json ? waste_print_json(c->schemes, c->n_schemes, input, &c->model, c->touch, err)
                   : 0;
}

static int run(void *target, tool_error *err)
{
    command *c = target;
    trace input;
    size_t last = c->source.n_paths > 0 ? c->source.n_paths - 1 : 0;
    if (sim_source_load(&c->source, last, "lengths", &input, err) != 0) return -1;
    for (size_t i = c->n_paged; i < c->n_schemes; i++)
        waste_contiguous(&c->schemes[i], &c->model, &input);
    int code = run_paged(c, &input, err);
    if (code == 0) code = report(c, &input, err);
    trace_free(&input);
    return code;
}

static void defaults(void *target)
{
    command *c = target;
    c->page_tokens = "8,16,32,64,128";
    c->jobs = sim_processors();
    if (c->jobs > MAX_JOBS) c->jobs = MAX_JOBS;
}

int sim_waste(int argc, char **argv)
{
    static const cli_command waste = {
        .name = "pkv-sim waste",
        .summary = "Runs every request of a trace through the library and compares the memory that "
                   "paging holds without using it with contiguous reservation.",
        .options = options,
        .notes = "Waste at the end is 1 - (tokens used / tokens held) when each request is "
                 "complete; waste over decode sums both over every decode step. max-N reserves N "
                 "tokens per request and serves only requests that fit; pow2 reserves the next "
                 "power of two of the request's final length; oracle knows the final length. See "
                 "pkv-sim(1).",
        .size = sizeof(command),
        .defaults = defaults,
        .prepare = prepare,
        .run = run};
    return cli_run(&waste, argc, argv);
}
