/* pkv-run compare: are the greedy tokens libllama's? Every prompt of a file runs in one batch here,
 * and alone there. libllama is given this runtime's tokens one at a time, so that every token is
 * judged, also those behind a difference. Where libllama would have chosen another token, the gap
 * between the two logits is set beside libllama's own noise: the largest difference between its
 * logits for this position from single steps and from one batch. */
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_work.h"
#include "run.h"
#include "table.h"

enum { MAX_PROMPTS = 256 };

typedef struct text {
    int32_t *tokens; /* prompt, then generated */
    uint32_t n_prompt, n, capacity;
    uint64_t id;
} text;

typedef struct verdict {
    uint32_t differences, beyond;
    double worst_gap;
    double batch_noise, attention_noise; /* there */
} verdict;

typedef struct job {
    run_options run;
    const char *path;
    uint32_t n_new, n;
    text texts[MAX_PROMPTS];
} job;

static int read_prompts(job *j, const vocab *v, tool_error *err)
{
    FILE *file = fopen(j->path, "r");
    if (!file) return tool_fail(err, "cannot open %s", j->path);
    char *line = NULL;
    size_t room = 0;
    int status = 0;
    for (ssize_t size; !status && j->n < MAX_PROMPTS && (size = getline(&line, &room, file)) > 0;) {
        if (line[size - 1] == '\n') size--;
        if (!size) continue;
        text *t = &j->texts[j->n];
        int64_t n = vocab_encode(v, line, (size_t)size, true, &t->tokens, err);
        if (n < 0) {
            status = -1;
            break;
        }
        j->n++;
        t->n = t->n_prompt = (uint32_t)n;
        t->capacity = t->n + j->n_new;
        int32_t *more = realloc(t->tokens, t->capacity * sizeof *more);
        if (more)
            t->tokens = more;
        else
            status = tool_fail(err, "not enough memory");
    }
    free(line);
    fclose(file);
    if (!status && !j->n) status = tool_fail(err, "%s has no prompts", j->path);
    return status;
}

static void take(void *user, uint64_t id, int32_t token, sched_reason reason)
{
    text *t = user;
    (void)id;
    if (reason == SCHED_RUNNING) t->tokens[t->n++] = token;
}

static int generate_all(job *j, tool_error *err)
{
    engine *e = engine_open(&j->run.engine, err);
    sched *s = e ? sched_new(e, NULL, &j->run.sched, err) : NULL;
    int status = s ? 0 : -1;
    for (uint32_t i = 0; i < j->n && !status; i++) {
        text *t = &j->texts[i];
        sched_request q = {.prompt = t->tokens,
                           .n_prompt = t->n_prompt,
                           .max_new = j->n_new,
                           .ignore_end = true,
                           .event = take,
                           .user = t};
        if (!sched_submit(s, &q, err)) status = -1;
    }
    for (int more = 1; more > 0 && !status;)
        if ((more = sched_step(s, err)) < 0) status = -1;
    for (uint32_t i = 0; i < j->n && !status; i++)
        if (j->texts[i].n != j->texts[i].capacity)
            status = tool_fail(err, "prompt %u was not completed", i + 1);
    sched_free(s);
    engine_close(e);
    return status;
}

/* libllama's logits of position n - 1 from one batch of all n tokens, against `single`. */
static int measure_noise(peer *p, const text *t, uint32_t n, const float *single, double *noise,
                         tool_error *err)
{
    const float *whole;
    peer_clear(p);
    if (peer_append(p, 0, t->tokens, n, 0, &whole, err)) return -1;
    *noise = 0;
    for (uint32_t i = 0; i < peer_vocab(p); i++)
        *noise = fmax(*noise, fabs((double)whole[i] - (double)single[i]));
    return 0;
}

/* Flash attention step by step, flash attention in one batch, plain attention. */
enum { STEPWISE, WHOLE, PLAIN, PEERS };

static int note_difference(peer **peers, const text *t, uint32_t at, const float *logits,
                           int32_t theirs, verdict *v, tool_error *err)
{
    double gap = (double)logits[theirs] - (double)logits[t->tokens[at]], batch, attention;
    if (measure_noise(peers[WHOLE], t, at, logits, &batch, err) ||
        measure_noise(peers[PLAIN], t, at, logits, &attention, err))
        return -1;
    v->differences++;
    v->beyond += gap > fmax(batch, attention);
    if (gap < v->worst_gap) return 0;
    v->worst_gap = gap;
    v->batch_noise = batch;
    v->attention_noise = attention;
    return 0;
}

static int judge(peer **peers, const text *t, verdict *v, tool_error *err)
{
    const float *logits;
    peer *p = peers[STEPWISE];
    peer_clear(p);
    *v = (verdict){0};
    if (peer_append(p, 0, t->tokens, t->n_prompt, 0, &logits, err)) return -1;
    for (uint32_t i = t->n_prompt; i < t->n; i++) {
        int32_t theirs = (int32_t)sampler_argmax(logits, peer_vocab(p));
        if (theirs != t->tokens[i] && note_difference(peers, t, i, logits, theirs, v, err))
            return -1;
        if (i + 1 < t->n && peer_append(p, 0, t->tokens + i, 1, i, &logits, err)) return -1;
    }
    return 0;
}

static int judge_all(job *j, peer **peers, tool_error *err)
{
    uint32_t tokens = 0, differences = 0, beyond = 0;
    table *out = table_new("prompt|tokens|differences|largest gap|noise of batches|of attention|"
                           "beyond noise");
    for (uint32_t i = 0; i < j->n; i++) {
        verdict v;
        if (judge(peers, &j->texts[i], &v, err)) {
            table_free(out);
            return -1;
        }
        table_cell(out, "%u", i + 1);
        table_cell(out, "%u", j->n_new);
        table_cell(out, "%u", v.differences);
        table_cell(out, "%.5f", v.worst_gap);
        table_cell(out, "%.5f", v.batch_noise);
        table_cell(out, "%.5f", v.attention_noise);
        table_cell(out, "%u", v.beyond);
        tokens += j->n_new;
        differences += v.differences;
        beyond += v.beyond;
    }
    table_print(out, stdout);
    table_free(out);
    printf("%u of %u tokens are libllama's, %u differ beyond its own noise\n", tokens - differences,
           tokens, beyond);
    return beyond ? tool_fail(err, "%u tokens differ", beyond) : 0;
}

static int compare(void *command, tool_error *err)
{
    job *j = command;
    vocab *v = vocab_open(j->run.engine.model, err);
    int status = v && read_prompts(j, v, err) == 0 && generate_all(j, err) == 0 ? 0 : -1;
    uint32_t longest = 1;
    for (uint32_t i = 0; i < j->n; i++)
        longest = j->texts[i].n > longest ? j->texts[i].n : longest;
    peer_options po = {.model = j->run.engine.model,
                       .threads = j->run.engine.threads ? j->run.engine.threads : 2,
                       .n_sequences = 1,
                       .context = longest,
                       .rows = 512,
                       .kv_type = GGML_TYPE_F16};
    peer *peers[PEERS] = {NULL};
    for (int i = 0; i < PEERS && !status; i++) {
        po.plain = i == PLAIN;
        peers[i] = peer_open(&po, err);
        if (!peers[i]) status = -1;
    }
    if (!status) status = judge_all(j, peers, err);
    for (int i = 0; i < PEERS; i++)
        peer_close(peers[i]);
    vocab_close(v);
    for (uint32_t i = 0; i < j->n; i++)
        free(j->texts[i].tokens);
    return status;
}

static void defaults(void *command)
{
    job *j = command;
    run_options_defaults(&j->run);
    j->n_new = 200;
}

static int prepare(void *command, tool_error *err)
{
    job *j = command;
    if (!j->path) return tool_fail(err, "--prompts is missing");
    return run_options_check(&j->run, err);
}

static const cli_option options[] = {
    {"prompts", "FILE", CLI_TEXT, offsetof(job, path), .help = "one prompt a line (required)"},
    {"new", "N", CLI_U32, offsetof(job, n_new), 1, 1 << 16,
     .help = "new tokens of each (default 200)"},
    {.kind = CLI_GROUP, .at = offsetof(job, run), .group = run_common_options},
    {0},
};

int run_compare(int argc, char **argv)
{
    static const cli_command command = {
        .name = "pkv-run compare",
        .summary = "Compares greedy tokens with libllama's; exit status 1 if one differs by more "
                   "than libllama's own noise between batch sizes.",
        .options = options,
        .size = sizeof(job),
        .defaults = defaults,
        .prepare = prepare,
        .run = compare};
    return cli_run(&command, argc, argv);
}
