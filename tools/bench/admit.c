/* pkv-bench admit: decisions of admission beside running sequences that share a prompt, ids only. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <pagedkv/pagedkv.h>

#include "bench.h"
#include "cli.h"
#include "output.h"
#include "stats_summary.h"
#include "table.h"

enum { PAGE = 16, PAGE_BYTES = 131072 };

typedef struct options {
    bool json;
    uint32_t running, pages, shared, rounds;
} options;

/* Each row is a decision about one more request in one of two caches: with room for all claims at
 * once, and with room for what is held and a tenth of the claims beyond it. */
enum { PROBE, ATTACH, REFUSE, CHECK, TIGHT, ROWS };

static const struct {
    const char *name, *summary;
} rows[ROWS] = {
    {"probe", "pkv_admit_probe_match, no match"},
    {"attach", "pkv_admit_attach of one page and destroy"},
    {"refuse", "pkv_admit_probe_match of more than there is"},
    {"check", "pkv_admit_check_batch, a token of everybody"},
    {"tight", "pkv_admit_probe_match where not all claims fit at once"},
};

typedef struct work {
    const options *options;
    pkv_cache *cache;
    pkv_seq *seqs;
    int32_t *ids;
    pkv_match one;
    tool_error *err;
} work;

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}

static int failed(const work *w, const char *call, pkv_status status)
{
    char text[200] = "";
    if (w->cache) pkv_cache_last_error(w->cache, text, sizeof text);
    return tool_fail(w->err, "%s: %s (%s)", call, pkv_status_text(status), text);
}

/* A sequence of the given length with a claim of twice as many pages of its own. */
static pkv_status start(work *w, uint32_t i)
{
    const options *o = w->options;
    const uint32_t shared = o->shared * PAGE, n = o->pages * PAGE;
    pkv_match match = {.struct_size = sizeof match};
    pkv_batch batch;
    for (uint32_t t = shared; t < n; t++)
        w->ids[t] = (int32_t)(1000 + i);
    pkv_status status = pkv_prefix_match(w->cache, NULL, w->ids, shared, &match);
    if (!status) status = pkv_seq_create(w->cache, &w->seqs[i]);
    if (!status) status = pkv_seq_attach(w->seqs[i], &match);
    if (!status) status = pkv_batch_begin(w->cache, &batch);
    if (status) return status;
    const uint32_t have = (uint32_t)match.n_tokens;
    status = pkv_batch_add(batch, w->seqs[i], w->ids + have, n - have);
    if (!status) status = pkv_batch_reserve(batch);
    if (!status) return pkv_batch_commit(batch);
    pkv_batch_abort(batch);
    return status;
}

static int open_work(work *w, bool tight)
{
    const options *o = w->options;
    pkv_config config;
    const pkv_group_config group = {.n_layers = 1, .kv_heads = 16, .head_dim_k = 128};
    const uint64_t held = (uint64_t)o->shared + (uint64_t)o->running * (o->pages - o->shared);
    const uint64_t more = (uint64_t)o->running * o->pages;
    pkv_status status = pkv_config_init(&config, sizeof config);
    config.groups = &group;
    config.n_groups = 1;
    config.storage = PKV_STORAGE_NONE;
    config.page_tokens = PAGE;
    config.prefix = 1;
    config.memory_limit = (held + (tight ? more / 10 + o->pages : 2 * more) + 64) * PAGE_BYTES;
    config.memory_limit += config.memory_limit / 64;
    if (!status) status = pkv_cache_create(&config, &w->cache);
    if (status) return failed(w, "pkv_cache_create", status);
    for (uint32_t i = 0; i < o->running && !status; i++)
        status = start(w, i);
    for (uint32_t i = 0; i < o->running && !status; i++)
        status = pkv_admit(w->seqs[i], 2 * (uint64_t)o->pages * PAGE);
    w->one = (pkv_match){.struct_size = sizeof w->one};
    if (!status) status = pkv_prefix_match(w->cache, NULL, w->ids, PAGE, &w->one);
    return status ? failed(w, "preparing", status) : 0;
}

static double probe(work *w, uint64_t tokens, uint32_t safe)
{
    pkv_admit_outlook outlook = {.struct_size = sizeof outlook};
    const double start_ns = now_ns();
    pkv_status status = pkv_admit_probe_match(w->cache, NULL, tokens, &outlook, NULL, 0);
    const double took = now_ns() - start_ns;
    if (status) return failed(w, "pkv_admit_probe_match", status);
    return outlook.safe == safe ? took : tool_fail(w->err, "the answer is %u", outlook.safe);
}

static double attach(work *w)
{
    pkv_seq seq;
    pkv_status status = pkv_seq_create(w->cache, &seq);
    if (status) return failed(w, "pkv_seq_create", status);
    const double start_ns = now_ns();
    status = pkv_admit_attach(seq, &w->one, 10 * PAGE);
    const double took = now_ns() - start_ns;
    pkv_seq_destroy(seq);
    return status ? failed(w, "pkv_admit_attach", status) : took;
}

static double check(work *w)
{
    pkv_batch batch;
    uint32_t blocked;
    pkv_status status = pkv_batch_begin(w->cache, &batch);
    for (uint32_t i = 0; i < w->options->running && !status; i++)
        status = pkv_batch_add(batch, w->seqs[i], NULL, 1);
    const double start_ns = now_ns();
    if (!status) status = pkv_admit_check_batch(batch, &blocked);
    const double took = now_ns() - start_ns;
    pkv_batch_abort(batch);
    return status ? failed(w, "pkv_admit_check_batch", status) : took;
}

static double measure(work *roomy, work *tight, int row)
{
    const uint64_t tokens = (uint64_t)roomy->options->pages * PAGE;
    switch (row) {
    case PROBE:
        return probe(roomy, tokens, 1);
    case ATTACH:
        return attach(roomy);
    case REFUSE:
        return probe(roomy, 4 * tokens * roomy->options->running, 0);
    case CHECK:
        return check(roomy);
    default:
        return probe(tight, tokens, 1);
    }
}

static int report(const options *o, double *const *values, tool_error *err)
{
    json_t *list = json_array();
    table *t = table_new("<decision|ns, median|p10|<what");
    for (int r = 0; r < ROWS; r++) {
        const double p50 = stats_summarise(values[r], o->rounds).p50;
        const double p10 = values[r][o->rounds / 10]; /* sorted by now */
        json_array_append_new(list, json_pack("{s:s, s:o, s:o}", "name", rows[r].name, "ns_median",
                                              output_real(p50), "ns_p10", output_real(p10)));
        table_cell(t, "%s", rows[r].name);
        table_cell(t, "%.0f", p50);
        table_cell(t, "%.0f", p10);
        table_cell(t, "%s", rows[r].summary);
    }
    if (!o->json) table_print(t, stdout);
    table_free(t);
    json_t *all = json_pack("{s:s, s:i, s:i, s:i, s:i, s:o}", "bench", "admit", "running", o->running,
                            "pages", o->pages, "shared", o->shared, "rounds", o->rounds, "rows", list);
    if (o->json) return output_json(all, err);
    json_decref(all);
    return 0;
}

static int run(void *target, tool_error *err)
{
    const options *o = target;
    work works[2] = {{.options = o, .err = err}, {.options = o, .err = err}};
    double *values[ROWS] = {NULL};
    int status = 0;
    for (int i = 0; i < 2 && !status; i++) {
        works[i].seqs = calloc(o->running, sizeof *works[i].seqs);
        works[i].ids = calloc((size_t)o->pages * PAGE, sizeof *works[i].ids);
        status = works[i].seqs && works[i].ids ? open_work(&works[i], i == 1)
                                               : tool_fail(err, "out of memory");
    }
    for (int r = 0; r < ROWS && !status; r++) {
        values[r] = calloc(o->rounds, sizeof *values[r]);
        if (!values[r]) status = tool_fail(err, "out of memory");
    }
    for (int r = 0; r < ROWS && !status; r++)
        for (uint32_t i = 0; i < o->rounds && !status; i++) {
            values[r][i] = measure(&works[0], &works[1], r);
            if (values[r][i] < 0) status = -1;
        }
    if (!status) status = report(o, values, err);
    for (int r = 0; r < ROWS; r++)
        free(values[r]);
    for (int i = 0; i < 2; i++) {
        if (works[i].cache) pkv_cache_destroy(works[i].cache);
        free(works[i].seqs);
        free(works[i].ids);
    }
    return status;
}

static void defaults(void *target)
{
    *(options *)target = (options){.running = 256, .pages = 1000, .shared = 500, .rounds = 1000};
}

static int fits(void *target, tool_error *err)
{
    const options *o = target;
    if (o->shared < o->pages) return 0;
    return tool_fail(err, "--shared %u leaves nothing of --pages %u", o->shared, o->pages);
}

int bench_admit(int argc, char **argv)
{
    static const cli_option list[] = {
        {"running", "N", CLI_U32, offsetof(options, running), 1, 4096, "sequences (default 256)",
         NULL, NULL},
        {"pages", "N", CLI_U32, offsetof(options, pages), 2, 100000,
         "pages of 16 tokens that each holds (default 1000); it claims twice as many", NULL, NULL},
        {"shared", "N", CLI_U32, offsetof(options, shared), 1, 99999,
         "of these, pages that all share (default 500)", NULL, NULL},
        {"rounds", "N", CLI_U32, offsetof(options, rounds), 10, 1000000, "rounds (default 1000)",
         NULL, NULL},
        {"json", NULL, CLI_JSON, offsetof(options, json), 0, 0, "results as JSON on stdout", NULL,
         NULL},
        {0}};
    static const cli_command admit = {
        .name = "pkv-bench admit",
        .summary = "Times decisions of admission: page ids without storage, one thread. One "
                   "decision after the other; the figures are medians over rounds.\n",
        .options = list,
        .size = sizeof(options),
        .defaults = defaults,
        .prepare = fits,
        .run = run};
    return cli_run(&admit, argc, argv);
}
