/* pkv-bench evict: what eviction costs. Commits with every policy, attention that also computes
 * page mass, and attention over the best pages only, each beside the same without. */
#include <math.h>
#include <pagedkv/pagedkv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench.h"
#include "cli.h"
#include "output.h"
#include "parse.h"
#include "progress.h"
#include "random.h"
#include "stats_summary.h"
#include "table.h"

#define SEQUENCES 32u
#define PAGE_TOKENS 16u
#define MOST_ROUNDS 999u

typedef struct options {
    bool json;
    const char *only; /* NULL = everything */
    uint32_t rounds, budget;
    uint64_t context;
} options;

/* Processor time of this thread: everything here runs on one, and the machine may be shared. */
static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static int failed(pkv_cache *cache, const char *what, tool_error *err)
{
    char text[256] = "";
    if (cache != NULL) pkv_cache_last_error(cache, text, sizeof text);
    return tool_fail(err, "%s failed: %s", what, text);
}

/* ---- a cache to measure on ------------------------------------------------------------------ */

typedef struct work {
    pkv_cache *cache;
    uint32_t layers, kv_heads, group, dim;
    float *q, *k, *v, *out;
    uint32_t rows; /* rows of k and v come from a window that slides over twice as many */
    uint32_t slide;
} work;

static int work_open(work *w, uint32_t page_tokens, uint32_t layers, uint32_t kv_heads,
                     uint32_t group, uint32_t dim, uint64_t memory, uint32_t signals, uint32_t rows,
                     tool_error *err)
{
    *w = (work){.layers = layers, .kv_heads = kv_heads, .group = group, .dim = dim};
    pkv_config config;
    pkv_config_init(&config, sizeof config);
    pkv_group_config g = {.n_layers = layers,
                          .kv_heads = kv_heads,
                          .q_heads = kv_heads * group,
                          .head_dim_k = dim,
                          .dtype = PKV_DTYPE_BF16};
    config.groups = &g;
    config.n_groups = 1;
    config.page_tokens = page_tokens;
    config.memory_limit = memory;
    config.signals = signals;
    config.prefix = 0;
    if (pkv_cache_create(&config, &w->cache) != PKV_OK) return failed(NULL, "cache", err);
    const size_t kv = (size_t)rows * kv_heads * dim;
    w->q = malloc(kv * group * sizeof *w->q);
    w->out = malloc(kv * group * sizeof *w->out);
    w->rows = rows;
    w->k = malloc(2 * kv * sizeof *w->k);
    w->v = malloc(2 * kv * sizeof *w->v);
    if (!w->q || !w->out || !w->k || !w->v) return tool_fail(err, "out of memory");
    tool_random random;
    random_seed(&random, 1);
    for (size_t i = 0; i < kv * group; i++)
        w->q[i] = (float)(random_unit(&random) * 2 - 1);
    for (size_t i = 0; i < 2 * kv; i++) {
        w->k[i] = (float)(random_unit(&random) * 2); /* keys have a mean, as real ones do */
        w->v[i] = (float)(random_unit(&random) * 2 - 1);
    }
    return 0;
}

static void work_close(work *w)
{
    free(w->q), free(w->out), free(w->k), free(w->v);
    pkv_cache_destroy(w->cache);
}

static pkv_status write_layer(work *w, pkv_plan *plan, uint32_t layer)
{
    const ptrdiff_t head = (ptrdiff_t)(w->dim * sizeof(float));
    w->slide = (w->slide + 1) % w->rows;
    const size_t skip = (size_t)w->slide * w->kv_heads * w->dim;
    const pkv_rows k = {.data = w->k + skip,
                        .dtype = PKV_DTYPE_F32,
                        .heads = w->kv_heads,
                        .dim = w->dim,
                        .token_stride = head * w->kv_heads,
                        .head_stride = head};
    const pkv_rows v = {.data = w->v + skip,
                        .dtype = PKV_DTYPE_F32,
                        .heads = w->kv_heads,
                        .dim = w->dim,
                        .token_stride = head * w->kv_heads,
                        .head_stride = head};
    return pkv_write(plan, layer, &k, &v, 0, 1);
}

static pkv_status attend_layer(const work *w, pkv_plan *plan, uint32_t layer)
{
    const ptrdiff_t head = (ptrdiff_t)(w->dim * sizeof(float));
    const uint32_t heads = w->kv_heads * w->group;
    const pkv_rows q = {.data = w->q,
                        .dtype = PKV_DTYPE_F32,
                        .heads = heads,
                        .dim = w->dim,
                        .token_stride = head * heads,
                        .head_stride = head};
    const pkv_rows_out out = {.data = w->out,
                              .dtype = PKV_DTYPE_F32,
                              .heads = heads,
                              .dim = w->dim,
                              .token_stride = head * heads,
                              .head_stride = head};
    return pkv_attend(plan, layer, &q, &out, NULL, 0, 1);
}

/* ---- commits -------------------------------------------------------------------------------- */

typedef struct commit_result {
    const char *policy;
    double quiet_us, evicting_us; /* per sequence */
    uint32_t layers;
} commit_result;

/* One step of all sequences; returns the commit's time per sequence, or < 0. */
static double commit_step(work *w, const pkv_seq *seqs, pkv_plan *plan, uint32_t n,
                          const float *mass)
{
    pkv_batch batch;
    pkv_status status = pkv_batch_begin(w->cache, &batch);
    for (uint32_t i = 0; i < SEQUENCES && status == PKV_OK; i++)
        status = pkv_batch_add(batch, seqs[i], NULL, n);
    if (status == PKV_OK) status = pkv_batch_reserve(batch);
    if (plan != NULL) {
        if (status == PKV_OK) status = pkv_plan_build(plan, batch);
        for (uint32_t l = 0; l < w->layers && status == PKV_OK; l++)
            status = write_layer(w, plan, l);
    }
    for (uint32_t i = 0; i < SEQUENCES && status == PKV_OK; i++) {
        pkv_evict_info info = {.struct_size = sizeof info};
        status = pkv_seq_evict_info(seqs[i], 0, &info);
        if (status == PKV_OK) status = pkv_seq_feed_mass(seqs[i], 0, mass, info.resident_pages);
    }
    if (status != PKV_OK) return -1;
    const double start = now_us();
    status = pkv_batch_commit(batch);
    const double us = (now_us() - start) / SEQUENCES;
    return status == PKV_OK ? us : -1;
}

static void by_page(void *user, pkv_seq seq, uint32_t group, uint64_t n_tokens,
                    const uint32_t *logical, float *scores, uint32_t n)
{
    (void)user, (void)seq, (void)group, (void)n_tokens;
    for (uint32_t i = 0; i < n; i++)
        scores[i] = (float)(logical[i] * 2654435761u >> 16);
}

static int measure_commits(const options *o, const char *policy, commit_result *result,
                           tool_error *err)
{
    const bool keys = strcmp(policy, "keydiff") == 0;
    /* Only KEYDIFF looks into pages: SmolLM2's 30 layers of 3 heads. */
    work w;
    const uint32_t layers = keys ? 30 : 1;
    if (work_open(&w, PAGE_TOKENS, layers, 3, 3, 64, (uint64_t)2 << 30,
                  keys ? PKV_SIGNAL_KEYSUM : 0, SEQUENCES * PAGE_TOKENS, err) != 0)
        return -1;
    pkv_plan *plan = NULL;
    pkv_evict_config config;
    pkv_evict_config_named(&config, sizeof config, policy, o->budget);
    config.score = by_page;
    pkv_seq seqs[SEQUENCES];
    int code = 0;
    if (keys && pkv_plan_create(w.cache, NULL, &plan) != PKV_OK)
        code = failed(w.cache, "plan", err);
    if (code == 0 && pkv_cache_set_evict(w.cache, 0, &config) != PKV_OK)
        code = failed(w.cache, policy, err);
    for (uint32_t i = 0; i < SEQUENCES && code == 0; i++)
        if (pkv_seq_create(w.cache, &seqs[i]) != PKV_OK) code = failed(w.cache, "sequence", err);
    const uint32_t pages = o->budget / PAGE_TOKENS + 8;
    float *mass = malloc(pages * sizeof *mass);
    double *quiet = malloc(o->rounds * PAGE_TOKENS * sizeof *quiet);
    double *evicting = malloc(o->rounds * sizeof *evicting);
    if (!mass || !quiet || !evicting) code = tool_fail(err, "out of memory");
    for (uint32_t i = 0; i < pages && code == 0; i++)
        mass[i] = (float)(1 + i * 7919 % 101);
    for (uint32_t t = 0; t < o->budget && code == 0; t += PAGE_TOKENS)
        if (commit_step(&w, seqs, plan, PAGE_TOKENS, mass) < 0) code = failed(w.cache, "step", err);
    size_t n_quiet = 0, n_evicting = 0;
    for (uint32_t r = 0; r < o->rounds * PAGE_TOKENS && code == 0; r++) {
        const double us = commit_step(&w, seqs, plan, 1, mass);
        if (us < 0) code = failed(w.cache, "step", err);
        if ((r + 1) % PAGE_TOKENS == 0)
            evicting[n_evicting++] = us;
        else
            quiet[n_quiet++] = us;
    }
    if (code == 0)
        *result = (commit_result){.policy = policy,
                                  .layers = layers,
                                  .quiet_us = stats_summarise(quiet, n_quiet).p50,
                                  .evicting_us = stats_summarise(evicting, n_evicting).p50};
    free(mass), free(quiet), free(evicting);
    pkv_plan_destroy(plan);
    work_close(&w);
    return code;
}

/* ---- attention ------------------------------------------------------------------------------ */

typedef struct attention_result {
    const char *name;
    uint64_t context;
    double without_us, with_us, ratio; /* medians; ratio = with / without, paired */
} attention_result;

/* Decode attention of one sequence with a policy and of a twin without, taking turns. */
static int measure_attention(const options *o, const char *policy, uint64_t context,
                             uint64_t budget, uint32_t page_tokens, uint32_t kv_heads,
                             uint32_t group, attention_result *result, tool_error *err)
{
    enum { DIM = 128, CHUNK = 512 };
    work w;
    const uint64_t bytes = 2 * (context + 4096) * kv_heads * DIM * 2 * 2;
    if (work_open(&w, page_tokens, 1, kv_heads, group, DIM,
                  bytes + bytes / 8 + ((uint64_t)64 << 20), PKV_SIGNAL_BOUNDS, CHUNK, err) != 0)
        return -1;
    int code = 0;
    pkv_seq seqs[2];
    pkv_plan *plans[2] = {NULL, NULL};
    pkv_batch batches[2];
    pkv_evict_config config;
    pkv_evict_config_named(&config, sizeof config, policy, budget);
    config.mass_every = 1; /* what one step with mass costs */
    for (int i = 0; i < 2 && code == 0; i++) {
        pkv_status status = pkv_seq_create(w.cache, &seqs[i]);
        if (status == PKV_OK && i == 1) status = pkv_seq_set_evict(seqs[i], 0, &config);
        if (status == PKV_OK) status = pkv_plan_create(w.cache, NULL, &plans[i]);
        for (uint64_t have = 0; have < context && status == PKV_OK; have += CHUNK) {
            status = pkv_batch_begin(w.cache, &batches[i]);
            if (status == PKV_OK) status = pkv_batch_add(batches[i], seqs[i], NULL, CHUNK);
            if (status == PKV_OK) status = pkv_batch_reserve(batches[i]);
            if (status == PKV_OK) status = pkv_plan_build(plans[i], batches[i]);
            if (status == PKV_OK) status = write_layer(&w, plans[i], 0);
            if (status == PKV_OK) status = pkv_batch_commit(batches[i]);
        }
        if (status == PKV_OK) status = pkv_batch_begin(w.cache, &batches[i]);
        if (status == PKV_OK) status = pkv_batch_add(batches[i], seqs[i], NULL, 1);
        if (status == PKV_OK) status = pkv_batch_reserve(batches[i]);
        if (status == PKV_OK) status = pkv_plan_build(plans[i], batches[i]);
        if (status == PKV_OK) status = write_layer(&w, plans[i], 0);
        if (status != PKV_OK) code = failed(w.cache, "filling", err);
    }
    double us[2][MOST_ROUNDS], ratio[MOST_ROUNDS];
    const uint32_t repeat = context >= 32768 ? 1 : 8;
    for (uint32_t r = 0; r <= o->rounds && code == 0; r++) {
        for (int i = 0; i < 2 && code == 0; i++) {
            const double start = now_us();
            for (uint32_t j = 0; j < repeat; j++)
                if (attend_layer(&w, plans[i], 0) != PKV_OK) code = failed(w.cache, "attend", err);
            if (r > 0) us[i][r - 1] = (now_us() - start) / repeat;
        }
        if (r > 0) ratio[r - 1] = us[1][r - 1] / us[0][r - 1];
    }
    if (code == 0)
        *result = (attention_result){.name = policy,
                                     .context = context,
                                     .without_us = stats_summarise(us[0], o->rounds).p50,
                                     .with_us = stats_summarise(us[1], o->rounds).p50,
                                     .ratio = stats_summarise(ratio, o->rounds).p50};
    for (int i = 0; i < 2; i++)
        pkv_plan_destroy(plans[i]);
    work_close(&w);
    return code;
}

/* ---- report --------------------------------------------------------------------------------- */

enum { N_POLICIES = 11, N_ATTENTION = 9 };

static const char *const policies[N_POLICIES] = {"none",   "window",   "sink",   "mass",
                                                 "h2o",    "tova",     "obs",    "lru-mass",
                                                 "random", "callback", "keydiff"};

static const struct {
    const char *policy, *name;
    uint64_t context; /* 0 = the option's */
    uint32_t divide;  /* budget = context / this; 0 = more than the context */
    uint32_t page_tokens, kv_heads, group;
} cases[N_ATTENTION] = {{"mass", "mass, G 4", 4096, 0, 16, 8, 4},
                        {"mass", "mass, G 1", 4096, 0, 16, 8, 1},
                        {"mass", "mass, G 8", 4096, 0, 16, 4, 8},
                        {"topk", "topk 1/8, G 4, page 16", 0, 8, 16, 8, 4},
                        {"topk", "topk 1/8, G 4, page 64", 0, 8, 64, 8, 4},
                        {"topk", "topk 1/8, G 4, page 128", 0, 8, 128, 8, 4},
                        {"topk", "topk 1/8, G 1, page 64", 0, 8, 64, 8, 1},
                        {"topk", "topk 1/8, G 8, page 16", 0, 8, 16, 4, 8},
                        {"topk", "topk 1/8, G 8, page 64", 0, 8, 64, 4, 8}};

static void print_table(const options *o, const commit_result *commits, int n_commits,
                        const attention_result *attention, int n_attention)
{
    printf("Commit of %u sequences, budget %u tokens, per sequence (us)\n\n", SEQUENCES, o->budget);
    table *t = table_new("<policy|nothing evicted|one page evicted");
    for (int i = 0; t != NULL && i < n_commits; i++) {
        table_cell(t, "%s%s", commits[i].policy, commits[i].layers > 1 ? " (30 layers)" : "");
        table_cell(t, "%.3f", commits[i].quiet_us);
        table_cell(t, "%.3f", commits[i].evicting_us);
    }
    table_print(t, stdout);
    table_free(t);
    puts(
        "\nDecode attention of one layer, one thread, bf16, head dim 128 (us of processor time)\n");
    t = table_new("<case|context|without|with|with / without");
    for (int i = 0; t != NULL && i < n_attention; i++) {
        table_cell(t, "%s", attention[i].name);
        table_cell(t, "%llu", (unsigned long long)attention[i].context);
        table_cell(t, "%.1f", attention[i].without_us);
        table_cell(t, "%.1f", attention[i].with_us);
        table_cell(t, "%.3f", attention[i].ratio);
    }
    table_print(t, stdout);
    table_free(t);
}

static int print_json(const options *o, const commit_result *commits, int n_commits,
                      const attention_result *attention, int n_attention, tool_error *err)
{
    json_t *list = json_array(), *cases_json = json_array();
    for (int i = 0; i < n_commits; i++)
        json_array_append_new(list,
                              json_pack("{s:s,s:i,s:o,s:o}", "policy", commits[i].policy, "layers",
                                        (int)commits[i].layers, "commit_us_quiet",
                                        output_real(commits[i].quiet_us), "commit_us_evicting",
                                        output_real(commits[i].evicting_us)));
    for (int i = 0; i < n_attention; i++)
        json_array_append_new(cases_json,
                              json_pack("{s:s,s:I,s:o,s:o,s:o}", "case", attention[i].name,
                                        "context", (json_int_t)attention[i].context, "without_us",
                                        output_real(attention[i].without_us), "with_us",
                                        output_real(attention[i].with_us), "ratio",
                                        output_real(attention[i].ratio)));
    return output_json(json_pack("{s:i,s:i,s:i,s:o,s:o}", "sequences", (int)SEQUENCES,
                                 "budget_tokens", (int)o->budget, "rounds", (int)o->rounds,
                                 "commits", list, "attention", cases_json),
                       err);
}

static const cli_option options_list[] = {
    {"rounds", "N", CLI_U32, offsetof(options, rounds), 1, MOST_ROUNDS,
     .help = "rounds per figure (default 51)"},
    {"budget", "N", CLI_U32, offsetof(options, budget), 64, 1u << 20,
     .help = "tokens per sequence for commits (default 1024)"},
    {"context", "N", CLI_U64, offsetof(options, context), 1024, 1u << 22,
     .help = "tokens for topk (default 65536)"},
    {"only", "NAME", CLI_TEXT, offsetof(options, only),
     .help = "only the policies or cases whose name begins so"},
    {"json", NULL, CLI_JSON, offsetof(options, json), .help = "results as JSON on stdout"},
    {0},
};

static void defaults(void *target)
{
    *(options *)target = (options){.rounds = 51, .budget = 1024, .context = 65536};
}

/* Whole pages, and contexts that every case divides. */
static int prepare(void *target, tool_error *err)
{
    (void)err;
    options *o = target;
    o->budget = o->budget / PAGE_TOKENS * PAGE_TOKENS;
    o->context = o->context / 512 * 512;
    return 0;
}

static bool wanted(const options *o, const char *name)
{
    return o->only == NULL || strncmp(name, o->only, strlen(o->only)) == 0;
}

static int run(void *target, tool_error *err)
{
    const options *o = target;
    commit_result commits[N_POLICIES];
    attention_result attention[N_ATTENTION];
    int n_commits = 0, n_attention = 0;
    progress bar;
    progress_start(&bar, "evict", N_POLICIES + N_ATTENTION);
    int code = 0;
    for (int i = 0; i < N_POLICIES && code == 0; i++, progress_add(&bar, 1))
        if (wanted(o, policies[i]))
            code = measure_commits(o, policies[i], &commits[n_commits++], err);
    for (int i = 0; i < N_ATTENTION && code == 0; i++, progress_add(&bar, 1)) {
        if (!wanted(o, cases[i].name)) continue;
        const uint64_t context = cases[i].context ? cases[i].context : o->context;
        const uint64_t budget = cases[i].divide ? context / cases[i].divide : 2 * context;
        code = measure_attention(o, cases[i].policy, context, budget, cases[i].page_tokens,
                                 cases[i].kv_heads, cases[i].group, &attention[n_attention], err);
        attention[n_attention++].name = cases[i].name;
    }
    progress_end(&bar);
    if (code != 0) return -1;
    if (o->json) return print_json(o, commits, n_commits, attention, n_attention, err);
    print_table(o, commits, n_commits, attention, n_attention);
    return 0;
}

int bench_evict(int argc, char **argv)
{
    static const cli_command evict = {
        .name = "pkv-bench evict",
        .summary = "Times commits with every policy, and attention with the signals they need "
                   "beside attention without.\n",
        .options = options_list,
        .size = sizeof(options),
        .defaults = defaults,
        .prepare = prepare,
        .run = run};
    return cli_run(&evict, argc, argv);
}
