/* pkv-run generate: text from prompts, each streamed to stdout as it comes; several prompts run in
 * one batch and are printed one after the other. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli.h"
#include "options.h"
#include "parse.h"
#include "run.h"

#define COMMAND "pkv-run generate"

enum { MAX_PROMPTS = 64, MAX_TEXT = 1 << 24 };

static const char usage[] =
    "usage: pkv-run generate --model FILE --prompt TEXT [options]\n"
    "Continues a text.\n"
    "  --prompt TEXT      may be repeated: all run in one batch\n"
    "  --file FILE        a prompt from a file; '-' is stdin\n"
    "  --chat             the prompt is a user's message: apply the model's chat template\n"
    "  -n N               most new tokens (default 128)\n"
    "  --temperature T    0 = greedy (default 0)\n"
    "  --top-p P, --top-k K, --min-p P, --seed N\n"
    "  --ignore-end       go on past the end of the text\n"
    "  --ids              print token numbers instead of text, one line per prompt\n"
    "  --stats            counters on stderr at the end\n";

typedef struct stream {
    const vocab *v;
    int32_t *tokens;
    uint32_t n;
    sched_reason reason;
    bool live; /* print as it comes */
    bool ids;
} stream;

typedef struct settings {
    run_options common;
    char *prompts[MAX_PROMPTS];
    uint32_t n_prompts, max_new;
    sampler_options sampling;
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
            (unsigned long long)t.drafted_tokens, (unsigned long long)t.preemptions,
            t.busy_seconds, t.compute_seconds, (unsigned long long)c.region_bytes_peak);
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

static int generate(const settings *o, tool_error *err)
{
    stream streams[MAX_PROMPTS] = {{0}};
    int status = -1;
    vocab *v = vocab_open(o->common.engine.model, err);
    engine *e = v ? engine_open(&o->common.engine, err) : NULL;
    sched *s = e ? sched_new(e, v, &o->common.sched, err) : NULL;
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

static int add_file(settings *o, const char *path, tool_error *err)
{
    FILE *file = strcmp(path, "-") ? fopen(path, "rb") : stdin;
    if (!file) return tool_fail(err, "cannot open %s", path);
    char *text = malloc(MAX_TEXT);
    size_t size = text ? fread(text, 1, MAX_TEXT - 1, file) : 0;
    if (text) text[size] = '\0';
    if (file != stdin) fclose(file);
    return add_prompt(o, text, err);
}

enum { OPT_PROMPT = 256, OPT_FILE, OPT_CHAT, OPT_TEMP, OPT_TOP_P, OPT_TOP_K, OPT_MIN_P, OPT_SEED,
       OPT_IGNORE_END, OPT_IDS, OPT_STATS };

static const struct option long_options[] = {{"prompt", required_argument, NULL, OPT_PROMPT},
                                             {"file", required_argument, NULL, OPT_FILE},
                                             {"chat", no_argument, NULL, OPT_CHAT},
                                             {"temperature", required_argument, NULL, OPT_TEMP},
                                             {"top-p", required_argument, NULL, OPT_TOP_P},
                                             {"top-k", required_argument, NULL, OPT_TOP_K},
                                             {"min-p", required_argument, NULL, OPT_MIN_P},
                                             {"seed", required_argument, NULL, OPT_SEED},
                                             {"ignore-end", no_argument, NULL, OPT_IGNORE_END},
                                             {"ids", no_argument, NULL, OPT_IDS},
                                             {"stats", no_argument, NULL, OPT_STATS},
                                             {"help", no_argument, NULL, 'h'},
                                             RUN_COMMON_OPTIONS,
                                             {NULL, 0, NULL, 0}};

static int take_option(settings *o, int c, tool_error *err)
{
    double d = 0;
    uint64_t u = 0;
    int bad = 0;
    switch (c) {
    case 'n':
        bad = parse_u64(optarg, "-n", 1, 1 << 20, &u, err);
        o->max_new = (uint32_t)u;
        return bad;
    case OPT_PROMPT:
        return add_prompt(o, strdup(optarg), err);
    case OPT_FILE:
        return add_file(o, optarg, err);
    case OPT_CHAT:
        o->chat = true;
        return 0;
    case OPT_TEMP:
        bad = parse_double(optarg, "--temperature", 0, 10, &d, err);
        o->sampling.temperature = (float)d;
        return bad;
    case OPT_TOP_P:
        bad = parse_double(optarg, "--top-p", 0, 1, &d, err);
        o->sampling.top_p = (float)d;
        return bad;
    case OPT_MIN_P:
        bad = parse_double(optarg, "--min-p", 0, 1, &d, err);
        o->sampling.min_p = (float)d;
        return bad;
    case OPT_TOP_K:
        bad = parse_u64(optarg, "--top-k", 0, 1 << 20, &u, err);
        o->sampling.top_k = (int32_t)u;
        return bad;
    case OPT_SEED:
        bad = parse_u64(optarg, "--seed", 0, UINT32_MAX, &u, err);
        o->sampling.seed = (uint32_t)u;
        return bad;
    case OPT_IGNORE_END:
        o->ignore_end = true;
        return 0;
    case OPT_IDS:
        o->ids = true;
        return 0;
    case OPT_STATS:
        o->stats = true;
        return 0;
    default:
        bad = run_options_take(&o->common, c, optarg, err);
    }
    if (bad == 0) bad = cli_bad_option(c, optopt, NULL, err);
    return bad < 0 ? -1 : 0;
}

int run_generate(int argc, char **argv)
{
    tool_error err = {""};
    settings o = {.max_new = 128, .sampling = {.top_p = 1}};
    run_options_init(&o.common);
    opterr = 0;
    optind = 1;
    int bad = 0, status = TOOL_EXIT_OK;
    for (int c; !bad && (c = getopt_long(argc, argv, ":hn:", long_options, NULL)) != -1;) {
        if (c == 'h') {
            fputs(usage, stdout);
            fputs(run_common_usage, stdout);
            return cli_finish(COMMAND);
        }
        bad = c == '?' || c == ':' ? cli_bad_option(c, optopt, argv[optind - 1], &err)
                                   : take_option(&o, c, &err);
    }
    if (!bad && optind < argc) bad = tool_fail(&err, "unexpected argument '%s'", argv[optind]);
    if (!bad && !o.n_prompts) bad = tool_fail(&err, "--prompt or --file is missing");
    if (!bad) bad = run_options_check(&o.common, &err);
    if (bad)
        status = cli_usage_error(COMMAND, &err);
    else if (generate(&o, &err))
        status = cli_failed(COMMAND, &err);
    for (uint32_t i = 0; i < o.n_prompts; i++)
        free(o.prompts[i]);
    return status ? status : cli_finish(COMMAND);
}
