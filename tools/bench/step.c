/* pkv-bench step: where the time of a decode step goes: bookkeeping (commit, reserve, plan) beside
 * writing and attending, for a batch over all layers of a model. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attn_work.h"
#include "bench.h"
#include "cli.h"
#include "output.h"
#include "parse.h"
#include "stats_summary.h"
#include "table.h"

enum { LAYERS = 32, HEADS_Q = 32, HEADS_KV = 8, DIM = 128, STEPS = 40 };

typedef struct options {
    uint32_t batch, context, threads;
    bool json;
} options;

static const char *const part_names[STEP_PARTS] = {"commit", "reserve", "plan", "write", "attend"};

static int run(void *target, tool_error *err)
{
    const options *o = target;
    const uint32_t batch = o->batch, context = o->context, threads = o->threads;
    attn_shape shape = {.heads_q = HEADS_Q,
                        .heads_kv = HEADS_KV,
                        .head_dim = DIM,
                        .page_tokens = 16,
                        .dtype = PKV_DTYPE_F16,
                        .n_seqs = batch,
                        .context = context,
                        .context_min = context,
                        .query_tokens = 1,
                        .n_layers = LAYERS,
                        .shuffled = true,
                        .cascade = 1,
                        .seed = 1};
    static double spent[STEP_PARTS][STEPS];
    double medians[STEP_PARTS], all = 0;
    team *t = team_start(threads);
    attn_work *w = attn_work_make(&shape, threads, err);
    int status = t && w ? 0 : -1;
    for (int i = 0; status == 0 && i < STEPS; i++) {
        double parts[STEP_PARTS];
        if (!attn_work_step(w, t, parts, err)) status = -1;
        for (int p = 0; p < STEP_PARTS; p++)
            spent[p][i] = parts[p];
    }
    attn_work_free(w);
    team_stop(t);
    if (status) return status;
    for (int p = 0; p < STEP_PARTS; p++)
        all += medians[p] = stats_summarise(spent[p], STEPS).p50;
    double keeping = (medians[STEP_COMMIT] + medians[STEP_RESERVE] + medians[STEP_PLAN]) / all;
    if (o->json) {
        json_t *j = json_object();
        json_object_set_new(j, "batch", json_integer(batch));
        json_object_set_new(j, "context", json_integer(context));
        json_object_set_new(j, "threads", json_integer(threads));
        for (int p = 0; p < STEP_PARTS; p++) {
            char name[32];
            snprintf(name, sizeof name, "%s_us", part_names[p]);
            json_object_set_new(j, name, output_real(medians[p] * 1e6));
        }
        json_object_set_new(j, "bookkeeping_fraction", output_real(keeping));
        return output_json(j, err);
    }
    table *out = table_new("<part|us|us per sequence|share");
    for (int p = 0; p < STEP_PARTS; p++) {
        table_cell(out, "%s", part_names[p]);
        table_cell(out, "%.2f", medians[p] * 1e6);
        table_cell(out, "%.3f", medians[p] * 1e6 / batch);
        table_cell(out, "%.3f %%", 100 * medians[p] / all);
    }
    printf("%u sequences of %u tokens, %d layers, %u threads\n", batch, context, LAYERS, threads);
    table_print(out, stdout);
    table_free(out);
    printf("bookkeeping: %.3f %% of a step\n", 100 * keeping);
    return 0;
}

static const cli_option options_list[] = {
    {"batch", "N", CLI_U32, offsetof(options, batch), 1, 4096, .help = "sequences (default 16)"},
    {"context", "N", CLI_U32, offsetof(options, context), 2, 1 << 20,
     .help = "tokens per sequence (default 512)"},
    {"threads", "N", CLI_U32, offsetof(options, threads), 1, 256,
     .help = "(default: CPUs online, at most 64)"},
    {"json", NULL, CLI_JSON, offsetof(options, json), .help = "results as JSON on stdout"},
    {0},
};

static void defaults(void *target)
{
    *(options *)target = (options){.batch = 16, .context = 512, .threads = team_online()};
}

int bench_step(int argc, char **argv)
{
    static const cli_command step = {
        .name = "pkv-bench step",
        .summary = "Time of the parts of a decode step, medians: 32 layers of 32 query and 8 KV "
                   "heads of 128, f16.\n",
        .options = options_list,
        .size = sizeof(options),
        .defaults = defaults,
        .run = run};
    return cli_run(&step, argc, argv);
}
