/* pkv-run bench: what llama-batched-bench measures, beside libllama in the same process. */
#include <stdio.h>
#include <string.h>

#include "bench_work.h"
#include "cli.h"
#include "output.h"
#include "parse.h"
#include "run.h"
#include "stats_summary.h"
#include "table.h"

#define COMMAND "pkv-run bench"

static const char usage[] =
    "usage: pkv-run bench --model FILE [--work decode|prompt|requests] [options]\n"
    "Measures, medians; with --peer llama the same through libllama, alternating.\n"
    "  --work decode      steps of N sequences that hold a context (default)\n"
    "  --work prompt      a prompt of the context's length\n"
    "  --work requests    N requests with --shared tokens in common, start to finish\n"
    "  --sequences N      (default 16)\n"
    "  --context N        tokens of a sequence or prompt (default 1024)\n"
    "  --ragged           decode: lengths from a 16th of the context to all of it\n"
    "  --shared N         requests: tokens in common (default half of the context)\n"
    "  --new N            requests: new tokens of each (default 32)\n"
    "  --rounds N         blocks of 8 steps, prompts or runs (default 5)\n"
    "  --peer llama       beside libllama with flash attention\n"
    "  --json             results as JSON on stdout\n";

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

enum { OPT_WORK = 256, OPT_SEQUENCES, OPT_CONTEXT, OPT_RAGGED, OPT_SHARED, OPT_NEW, OPT_ROUNDS,
       OPT_PEER, OPT_JSON };

static const struct option long_options[] = {{"work", required_argument, NULL, OPT_WORK},
                                             {"sequences", required_argument, NULL, OPT_SEQUENCES},
                                             {"context", required_argument, NULL, OPT_CONTEXT},
                                             {"ragged", no_argument, NULL, OPT_RAGGED},
                                             {"shared", required_argument, NULL, OPT_SHARED},
                                             {"new", required_argument, NULL, OPT_NEW},
                                             {"rounds", required_argument, NULL, OPT_ROUNDS},
                                             {"peer", required_argument, NULL, OPT_PEER},
                                             {"json", no_argument, NULL, OPT_JSON},
                                             {"help", no_argument, NULL, 'h'},
                                             RUN_COMMON_OPTIONS,
                                             {NULL, 0, NULL, 0}};

typedef struct settings {
    bench_options o;
    size_t work;
    bool json;
} settings;

static int take_u32(const char *what, uint64_t max, uint32_t *value, tool_error *err)
{
    uint64_t v = 0;
    if (parse_u64(optarg, what, 1, max, &v, err)) return -1;
    *value = (uint32_t)v;
    return 0;
}

static int take_option(settings *st, int c, tool_error *err)
{
    int taken;
    switch (c) {
    case OPT_WORK:
        for (st->work = 0; st->work < 3; st->work++)
            if (strcmp(works[st->work].name, optarg) == 0) return 0;
        return tool_fail(err, "--work: '%.40s' is not one of decode, prompt, requests", optarg);
    case OPT_SEQUENCES:
        return take_u32("--sequences", 256, &st->o.sequences, err);
    case OPT_CONTEXT:
        return take_u32("--context", 1 << 20, &st->o.context, err);
    case OPT_RAGGED:
        st->o.ragged = true;
        return 0;
    case OPT_SHARED:
        return take_u32("--shared", 1 << 20, &st->o.shared, err);
    case OPT_NEW:
        return take_u32("--new", 1 << 16, &st->o.new_tokens, err);
    case OPT_ROUNDS:
        return take_u32("--rounds", 500, &st->o.rounds, err);
    case OPT_PEER:
        st->o.peers = true;
        return strcmp(optarg, "llama") == 0 ? 0
                                            : tool_fail(err, "--peer: '%.40s' is not llama", optarg);
    case OPT_JSON:
        st->json = true;
        return 0;
    default:
        taken = run_options_take(&st->o.run, c, optarg, err);
    }
    return taken < 0 ? -1 : 0;
}

static int check(settings *st, int argc, char **argv, tool_error *err)
{
    if (optind < argc) return tool_fail(err, "unexpected argument '%s'", argv[optind]);
    if (run_options_check(&st->o.run, err)) return -1;
    if (!st->o.shared) st->o.shared = st->o.context > 1 ? st->o.context / 2 : 1;
    if (works[st->work].run == bench_requests && st->o.shared >= st->o.context)
        return tool_fail(err, "--shared %u leaves nothing of a context of %u", st->o.shared,
                         st->o.context);
    return 0;
}

int run_bench(int argc, char **argv)
{
    static bench_result r; /* its samples are large */
    tool_error err = {""};
    settings st = {.o = {.sequences = 16, .context = 1024, .new_tokens = 32, .rounds = 5}};
    run_options_init(&st.o.run);
    opterr = 0;
    optind = 1;
    int bad = 0;
    for (int c; !bad && (c = getopt_long(argc, argv, ":h", long_options, NULL)) != -1;) {
        if (c == 'h') {
            fputs(usage, stdout);
            fputs(run_common_usage, stdout);
            return cli_finish(COMMAND);
        }
        bad = c == '?' || c == ':' ? cli_bad_option(c, optopt, argv[optind - 1], &err)
                                   : take_option(&st, c, &err);
    }
    if (bad || check(&st, argc, argv, &err)) return cli_usage_error(COMMAND, &err);
    r = (bench_result){.work = works[st.work].name,
                       .ours = {.name = "pkv-run"},
                       .peers = {{.name = "llama unified"}, {.name = "llama split"}}};
    if (works[st.work].run(&st.o, &r, &err)) return cli_failed(COMMAND, &err);
    if (st.json ? print_json(&st.o, &r, &err) : print_table(&st.o, &r))
        return cli_failed(COMMAND, &err);
    return cli_finish(COMMAND);
}
