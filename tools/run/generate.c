/* pkv-run generate: text from prompts, each streamed to stdout as it comes; several prompts run in
 * one batch and are printed one after the other. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "options.h"
#include "run.h"

enum { MAX_PROMPTS = 64, MAX_TEXT = 1 << 24 };

typedef struct stream {
    const vocab *v;
    int32_t *tokens;
    uint32_t n;
    sched_reason reason;
    bool live; /* print as it comes */
    bool ids;
} stream;

typedef struct settings {
    run_options run;
    char *prompts[MAX_PROMPTS];
    uint32_t n_prompts, max_new;
    sampler_options sampling;
    double temperature, top_p, min_p;
    uint32_t top_k, seed;
    bool chat, ids, stats, ignore_end;
} settings;

static void show(const stream *st, int32_t token)
{
    char piece[256];
    if (st->ids)
        printf("%d ", token);
    else
        fwrite(piece, 1, vocab_piece(st->v, token, piece, sizeof piece), stdout);
}

static void on_event(void *user, uint64_t id, int32_t token, sched_reason reason)
{
    stream *st = user;
    (void)id;
    if (reason != SCHED_RUNNING) {
        st->reason = reason;
        return;
    }
    st->tokens[st->n++] = token;
    if (!st->live) return;
    show(st, token);
    fflush(stdout);
}

static int submit(const settings *o, const vocab *v, sched *s, const char *prompt, stream *st,
                  tool_error *err)
{
    char *text = NULL;
    int32_t *tokens = NULL;
    const char *role = "user";
    if (o->chat && vocab_chat(v, &role, &prompt, 1, &text, err)) return -1;
    const char *whole = text ? text : prompt;
    int64_t n = vocab_encode(v, whole, strlen(whole), true, &tokens, err);
    free(text);
    if (n < 0) return -1;
    st->v = v;
    st->ids = o->ids;
    st->tokens = calloc(o->max_new, sizeof *st->tokens);
    sched_request q = {.prompt = tokens,
                       .n_prompt = (uint32_t)n,
                       .max_new = o->max_new,
                       .ignore_end = o->ignore_end,
                       .sampling = o->sampling,
                       .event = on_event,
                       .user = st};
    uint64_t id = st->tokens ? sched_submit(s, &q, err) : 0;
    if (!st->tokens) tool_fail(err, "not enough memory");
    free(tokens);
    return id ? 0 : -1;
}

static void print_stats(const engine *e, const sched *s)
{
    sched_stats t;
    pkv_stats c = {.struct_size = sizeof c};
    sched_get_stats(s, &t);
    if (pkv_cache_stats(e->cache, &c)) return;
    fprintf(stderr,
            "%llu steps, %llu rows, %llu of %llu prompt tokens from the index, %llu generated, "
            "%llu of %llu drafted accepted, %llu preemptions, %.3f s (%.3f s in the model), "
            "peak %llu bytes\n",
            (unsigned long long)t.steps, (unsigned long long)t.rows,
            (unsigned long long)t.cached_tokens, (unsigned long long)t.prompt_tokens,
            (unsigned long long)t.generated_tokens, (unsigned long long)t.accepted_tokens,
            (unsigned long long)t.drafted_tokens, (unsigned long long)t.preemptions, t.busy_seconds,
            t.compute_seconds, (unsigned long long)c.region_bytes_peak);
}

static int print_rest(stream *streams, uint32_t n, tool_error *err)
{
    int status = 0;
    for (uint32_t i = 0; i < n; i++) {
        stream *st = &streams[i];
        for (uint32_t t = 0; !st->live && t < st->n; t++)
            show(st, st->tokens[t]);
        putchar('\n');
        if (st->reason == SCHED_TOO_LARGE)
            status = tool_fail(err, "prompt %u does not fit the memory limit", i + 1);
        else if (st->reason != SCHED_STOP && st->reason != SCHED_LENGTH)
            status = tool_fail(err, "prompt %u was not completed", i + 1);
    }
    return status;
}

static int generate(void *command, tool_error *err)
{
    const settings *o = command;
    stream streams[MAX_PROMPTS] = {{0}};
    int status = -1;
    vocab *v = vocab_open(o->run.engine.model, err);
    engine *e = v ? engine_open(&o->run.engine, err) : NULL;
    sched *s = e ? sched_new(e, v, &o->run.sched, err) : NULL;
    if (s) {
        status = 0;
        for (uint32_t i = 0; i < o->n_prompts && !status; i++)
            status = submit(o, v, s, o->prompts[i], &streams[i], err);
        streams[0].live = o->n_prompts == 1;
        for (int more = 1; !status && more;) {
            more = sched_step(s, err);
            if (more < 0) status = -1;
        }
        if (!status) status = print_rest(streams, o->n_prompts, err);
        if (o->stats) print_stats(e, s);
    }
    sched_free(s);
    engine_close(e);
    vocab_close(v);
    for (uint32_t i = 0; i < o->n_prompts; i++)
        free(streams[i].tokens);
    return status;
}

static int add_prompt(settings *o, char *text, tool_error *err)
{
    if (!text) return tool_fail(err, "not enough memory");
    if (o->n_prompts == MAX_PROMPTS) {
        free(text);
        return tool_fail(err, "more than %d prompts", MAX_PROMPTS);
    }
    o->prompts[o->n_prompts++] = text;
    return 0;
}

static int take_prompt(void *target, const char *text, tool_error *err)
{
    return add_prompt(target, strdup(text), err);
}

static int take_file(void *target, const char *path, tool_error *err)
{
    FILE *file = strcmp(path, "-") ? fopen(path, "rb") : stdin;
    if (!file) return tool_fail(err, "cannot open %s", path);
    char *text = malloc(MAX_TEXT);
    size_t size = text ? fread(text, 1, MAX_TEXT - 1, file) : 0;
    if (text) text[size] = '\0';
    if (file != stdin) fclose(file);
    return add_prompt(target, text, err);
}

static void defaults(void *command)
{
    settings *o = command;
    run_options_defaults(&o->run);
    o->max_new = 128;
    o->top_p = 1;
}

static int prepare(void *command, tool_error *err)
{
    settings *o = command;
    o->sampling = (sampler_options){.temperature = (float)o->temperature,
                                    .top_p = (float)o->top_p,
                                    .min_p = (float)o->min_p,
                                    .top_k = (int32_t)o->top_k,
                                    .seed = o->seed};
    if (!o->n_prompts) return tool_fail(err, "--prompt or --file is missing");
    return run_options_check(&o->run, err);
}

static void finish(void *command)
{
    settings *o = command;
    for (uint32_t i = 0; i < o->n_prompts; i++)
        free(o->prompts[i]);
}

#define AT(field) offsetof(settings, field)

static const cli_option options[] = {
    {"prompt", "TEXT", CLI_CALL, 0, .call = take_prompt,
     .help = "may be repeated: all run in one batch"},
    {"file", "FILE", CLI_CALL, 0, .call = take_file, .help = "a prompt from a file; '-' is stdin"},
    {"chat", NULL, CLI_FLAG, AT(chat),
     .help = "the prompt is a user's message: apply the model's chat template"},
    {"new", "N", CLI_U32, AT(max_new), 1, 1 << 20, .help = "most new tokens (default 128)"},
    {"temperature", "T", CLI_REAL, AT(temperature), 0, 10, .help = "0 = greedy (default 0)"},
    {"top-p", "P", CLI_REAL, AT(top_p), 0, 1, .help = "(default 1: off)"},
    {"top-k", "K", CLI_U32, AT(top_k), 0, 1 << 20, .help = "(default 0: off)"},
    {"min-p", "P", CLI_REAL, AT(min_p), 0, 1, .help = "(default 0: off)"},
    {"seed", "N", CLI_U32, AT(seed), 0, UINT32_MAX, .help = "of the choice of tokens (default 0)"},
    {"ignore-end", NULL, CLI_FLAG, AT(ignore_end), .help = "go on past the end of the text"},
    {"ids", NULL, CLI_FLAG, AT(ids), .help = "print token numbers, one line per prompt"},
    {"stats", NULL, CLI_FLAG, AT(stats), .help = "counters on stderr at the end"},
    {.kind = CLI_GROUP, .at = AT(run), .group = run_common_options},
    {0},
};

int run_generate(int argc, char **argv)
{
    static const cli_command command = {.name = "pkv-run generate",
                                        .summary = "Continues texts.",
                                        .options = options,
                                        .size = sizeof(settings),
                                        .defaults = defaults,
                                        .prepare = prepare,
                                        .run = generate,
                                        .end = finish};
    return cli_run(&command, argc, argv);
}
