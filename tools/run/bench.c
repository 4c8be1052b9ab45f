/* pkv-run bench: what llama-batched-bench measures, beside libllama in the same process. */
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "bench_work.h"
#include "output.h"
#include "run.h"
#include "stats_summary.h"
#include "table.h"

typedef int (*bench_fn)(const bench_options *o, bench_result *r, tool_error *err);
static const struct {
    const char *name;
    bench_fn run;
} works[] = {{"decode", bench_decode}, {"prompt", bench_prompt}, {"requests", bench_requests}};

static double median(const bench_series *s)
{
    static double copy[BENCH_MAX_SAMPLES];
    memcpy(copy, s->samples, s->n * sizeof *copy);
    return stats_summarise(copy, s->n).p50;
}

static double best_peer(const bench_result *r)
{
    double best = 0;
    for (uint32_t i = 0; i < r->n_peers; i++) {
        double m = median(&r->peers[i]);
        if (!i || m < best) best = m;
    }
    return best;
}

static json_t *series_json(const bench_series *s)
{
    json_t *j = json_object();
    double m = median(s);
    json_object_set_new(j, "name", json_string(s->name));
    json_object_set_new(j, "samples", json_integer(s->n));
    json_object_set_new(j, "median_ms", output_real(m * 1e3));
    json_object_set_new(j, "tokens_per_second", output_real(s->tokens / m));
    return j;
}

static int print_json(const bench_options *o, const bench_result *r, tool_error *err)
{
    json_t *j = json_object(), *list = json_array();
    json_object_set_new(j, "work", json_string(r->work));
    json_object_set_new(j, "sequences", json_integer(o->sequences));
    json_object_set_new(j, "context", json_integer(o->context));
    json_object_set_new(j, "ragged", json_boolean(o->ragged));
    json_array_append_new(list, series_json(&r->ours));
    for (uint32_t i = 0; i < r->n_peers; i++)
        json_array_append_new(list, series_json(&r->peers[i]));
    json_object_set_new(j, "series", list);
    if (r->n_peers) {
        json_object_set_new(j, "ratio_to_best_peer", output_real(best_peer(r) / median(&r->ours)));
        json_object_set_new(j, "same_tokens", json_integer(r->same_tokens));
        json_object_set_new(j, "compared_tokens", json_integer(r->all_tokens));
    }
    if (r->cache_bytes) {
        json_object_set_new(j, "cache_bytes", json_integer((json_int_t)r->cache_bytes));
        json_object_set_new(j, "token_bytes", json_integer((json_int_t)r->token_bytes_held));
    }
    return output_json(j, err);
}

static int print_table(const bench_options *o, const bench_result *r)
{
    double ours = median(&r->ours);
    table *t = table_new("<runtime|median ms|tokens/s|times pkv-run");
    for (uint32_t i = 0; i <= r->n_peers; i++) {
        const bench_series *s = i ? &r->peers[i - 1] : &r->ours;
        double m = median(s);
        table_cell(t, "%s", s->name);
        table_cell(t, "%.2f", m * 1e3);
        table_cell(t, "%.1f", s->tokens / m);
        table_cell(t, "%.2f", m / ours);
    }
    printf("%s: %u sequences, context %u%s, %u samples\n", r->work, o->sequences, o->context,
           o->ragged ? ", ragged" : "", r->ours.n);
    table_print(t, stdout);
    table_free(t);
    if (r->n_peers)
        printf("greedy tokens equal to the first peer's: %u of %u\n", r->same_tokens,
               r->all_tokens);
    if (r->cache_bytes)
        printf("cache: %llu bytes for %llu bytes of tokens, %.4f times\n",
               (unsigned long long)r->cache_bytes, (unsigned long long)r->token_bytes_held,
               (double)r->cache_bytes / (double)r->token_bytes_held);
    return 0;
}

typedef struct settings {
    bench_options o;
    size_t work;
    const char *peer;
    bool json;
} settings;

static int take_work(void *target, const char *text, tool_error *err)
{
    size_t *work = target;
    for (*work = 0; *work < sizeof works / sizeof works[0]; ++*work)
        if (strcmp(works[*work].name, text) == 0) return 0;
    return tool_fail(err, "--work: '%.40s' is not one of decode, prompt, requests", text);
}

static void defaults(void *command)
{
    settings *st = command;
    run_options_defaults(&st->o.run);
    st->o.sequences = 16;
    st->o.context = 1024;
    st->o.new_tokens = 32;
    st->o.rounds = 5;
}

static int prepare(void *command, tool_error *err)
{
    settings *st = command;
    if (run_options_check(&st->o.run, err)) return -1;
    if (st->peer && strcmp(st->peer, "llama"))
        return tool_fail(err, "--peer: '%.40s' is not llama", st->peer);
    st->o.peers = st->peer != NULL;
    if (!st->o.shared) st->o.shared = st->o.context / 2;
    if (works[st->work].run == bench_requests && st->o.shared >= st->o.context)
        return tool_fail(err, "--shared %u leaves nothing of a context of %u", st->o.shared,
                         st->o.context);
    return 0;
}

static int run(void *command, tool_error *err)
{
    static bench_result r; /* its samples are large */
    settings *st = command;
    r = (bench_result){.work = works[st->work].name,
                       .ours = {.name = "pkv-run"},
                       .peers = {{.name = "llama unified"}, {.name = "llama split"}}};
    if (works[st->work].run(&st->o, &r, err)) return -1;
    return st->json ? print_json(&st->o, &r, err) : print_table(&st->o, &r);
}

#define AT(field) offsetof(settings, field)

static const cli_option options[] = {
    {"work", "NAME", CLI_CALL, AT(work), .call = take_work,
     .help = "decode: steps of sequences that hold a context (default); prompt: a prompt of the "
             "context's length; requests: prompts with --shared tokens in common, start to "
             "finish"},
    {"sequences", "N", CLI_U32, AT(o.sequences), 1, 256, .help = "(default 16)"},
    {"context", "N", CLI_U32, AT(o.context), 2, 1 << 20,
     .help = "tokens of a sequence or prompt (default 1024)"},
    {"ragged", NULL, CLI_FLAG, AT(o.ragged),
     .help = "decode: lengths from a 16th of the context to all of it"},
    {"shared", "N", CLI_U32, AT(o.shared), 1, 1 << 20,
     .help = "requests: tokens in common (default half of the context)"},
    {"new", "N", CLI_U32, AT(o.new_tokens), 1, 1 << 16,
     .help = "requests: new tokens of each (default 32)"},
    {"rounds", "N", CLI_U32, AT(o.rounds), 1, 500,
     .help = "blocks of 8 steps, prompts, or runs (default 5)"},
    {"peer", "llama", CLI_TEXT, AT(peer), .help = "beside libllama with flash attention"},
    {"json", NULL, CLI_JSON, AT(json), .help = "results as JSON on stdout"},
    {.kind = CLI_GROUP, .at = AT(o.run), .group = run_common_options},
    {0},
};

int run_bench(int argc, char **argv)
{
    static const cli_command command = {
        .name = "pkv-run bench",
        .summary = "Measures what llama-batched-bench measures, medians; with --peer llama the "
                   "same through libllama in the same process, alternating.",
        .options = options,
        .size = sizeof(settings),
        .defaults = defaults,
        .prepare = prepare,
        .run = run};
    return cli_run(&command, argc, argv);
}
