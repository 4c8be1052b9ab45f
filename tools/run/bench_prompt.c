/* A long prompt, and many requests that begin alike. */
#include <stdlib.h>
#include <string.h>

#include "bench_work.h"

static int our_prompt(engine *e, const int32_t *tokens, uint32_t n, int32_t *next, tool_error *err)
{
    pkv_seq seq;
    uint32_t blocked;
    if (pkv_seq_create(e->cache, &seq)) return tool_fail(err, "no room for a sequence");
    int status = 0;
    for (uint32_t done = 0; done < n && !status;) {
        uint32_t rows = e->options.max_rows, part = n - done < rows ? n - done : rows;
        engine_entry entry = {.seq = seq,
                              .tokens = tokens + done,
                              .n = part,
                              .position = done,
                              .n_logits = done + part == n};
        pkv_status s = engine_begin(e, &entry, 1, false, &blocked);
        status =
            s ? tool_fail(err, "step: %s", pkv_status_text(s)) : engine_compute(e, &entry, 1, err);
        if (!status) engine_commit(e, NULL, 1);
        done += part;
    }
    if (!status) *next = (int32_t)sampler_argmax(e->logits, e->model->n_vocab);
    pkv_seq_destroy(seq);
    return status;
}

static int prompt_rounds(const bench_options *o, engine *e, peer *p, const int32_t *tokens,
                         bench_result *r, tool_error *err)
{
    for (uint32_t round = 0; round < o->rounds; round++) {
        int32_t next = -1;
        double before = bench_now();
        if (our_prompt(e, tokens, o->context, &next, err)) return -1;
        bench_add(&r->ours, bench_now() - before);
        if (!p) continue;
        const float *logits;
        peer_clear(p);
        before = bench_now();
        if (peer_append(p, 0, tokens, o->context, 0, &logits, err)) return -1;
        bench_add(&r->peers[0], bench_now() - before);
        r->all_tokens++;
        r->same_tokens += (int32_t)sampler_argmax(logits, peer_vocab(p)) == next;
    }
    return 0;
}

int bench_prompt(const bench_options *o, bench_result *r, tool_error *err)
{
    run_options run = o->run;
    bench_options alone = *o;
    peer *peers[BENCH_PEERS] = {NULL};
    run.engine.prefix = false;
    alone.sequences = 1;
    engine *e = engine_open(&run.engine, err);
    int32_t *tokens = e ? calloc(o->context, sizeof *tokens) : NULL;
    int status = e ? 0 : -1;
    if (e && !tokens) status = tool_fail(err, "not enough memory");
    r->n_peers = o->peers;
    r->ours.tokens = r->peers[0].tokens = o->context;
    if (!status) status = bench_open_peers(&alone, e, o->context, peers, r->n_peers, err);
    if (!status) {
        bench_tokens(tokens, o->context, e->model->n_vocab, 1);
        status = prompt_rounds(o, e, peers[0], tokens, r, err);
    }
    bench_close_peers(peers);
    engine_close(e);
    free(tokens);
    return status;
}

/* ---- requests with a common start ----------------------------------------------------------- */

typedef struct load {
    uint32_t n, prompt, shared, new_tokens;
    int32_t *prompts;       /* n * prompt */
    int32_t *ours, *theirs; /* n * new_tokens */
} load;

typedef struct taker {
    int32_t *to;
    uint32_t n;
} taker;

static void take(void *user, uint64_t id, int32_t token, sched_reason reason)
{
    taker *t = user;
    (void)id;
    if (reason == SCHED_RUNNING) t->to[t->n++] = token;
}

static int our_requests(const bench_options *o, engine *e, load *l, tool_error *err)
{
    sched_options so = o->run.sched;
    so.max_running = so.max_running ? so.max_running : l->n;
    so.max_waiting = l->n;
    sched *s = sched_new(e, NULL, &so, err);
    taker *takers = calloc(l->n, sizeof *takers);
    int status = s && takers ? 0 : -1;
    for (uint32_t i = 0; i < l->n && !status; i++) {
        takers[i].to = l->ours + (size_t)i * l->new_tokens;
        sched_request q = {.prompt = l->prompts + (size_t)i * l->prompt,
                           .n_prompt = l->prompt,
                           .max_new = l->new_tokens,
                           .ignore_end = true,
                           .event = take,
                           .user = &takers[i]};
        if (!sched_submit(s, &q, err)) status = -1;
    }
    for (int more = 1; more > 0 && !status;)
        if ((more = sched_step(s, err)) < 0) status = -1;
    for (uint32_t i = 0; i < l->n && !status; i++)
        if (takers[i].n != l->new_tokens)
            status = tool_fail(err, "request %u ended after %u tokens", i, takers[i].n);
    sched_free(s);
    free(takers);
    return status;
}

/* What a host of libllama can do: shared = the common start once, then llama_memory_seq_cp;
 * otherwise every prompt for itself. Then all decode together. */
static int peer_requests(peer *p, load *l, bool share, tool_error *err)
{
    uint32_t own = l->prompt - l->shared;
    int32_t *suffixes = calloc((size_t)l->n * (own ? own : 1), sizeof *suffixes);
    int32_t *next = calloc(l->n, sizeof *next);
    uint32_t *positions = calloc(l->n, sizeof *positions);
    int status = suffixes && next && positions ? 0 : tool_fail(err, "not enough memory");
    peer_clear(p);
    if (!status && share) {
        status = peer_append(p, 0, l->prompts, l->shared, 0, NULL, err);
        for (uint32_t i = 1; i < l->n; i++)
            peer_share(p, i);
        for (uint32_t i = 0; i < l->n && !status; i++)
            memcpy(suffixes + (size_t)i * own, l->prompts + (size_t)i * l->prompt + l->shared,
                   own * sizeof *suffixes);
        if (!status) status = peer_extend(p, suffixes, own, l->shared, l->n, next, err);
    } else if (!status) {
        for (uint32_t i = 0; i < l->n && !status; i++) {
            const float *logits;
            status =
                peer_append(p, i, l->prompts + (size_t)i * l->prompt, l->prompt, 0, &logits, err);
            if (!status) next[i] = (int32_t)sampler_argmax(logits, peer_vocab(p));
        }
    }
    for (uint32_t t = 0; t < l->new_tokens && !status; t++) {
        for (uint32_t i = 0; i < l->n; i++) {
            l->theirs[(size_t)i * l->new_tokens + t] = next[i];
            positions[i] = l->prompt + t;
        }
        if (t + 1 < l->new_tokens) status = peer_step(p, next, positions, l->n, next, err);
    }
    free(suffixes);
    free(next);
    free(positions);
    return status;
}

static void compare(const load *l, bench_result *r)
{
    for (size_t i = 0; i < (size_t)l->n * l->new_tokens; i++) {
        r->all_tokens++;
        r->same_tokens += l->ours[i] == l->theirs[i];
    }
}

static int request_rounds(const bench_options *o, load *l, peer **peers, bench_result *r,
                          tool_error *err)
{
    for (uint32_t round = 0; round < o->rounds; round++) {
        engine *e = engine_open(&o->run.engine, err); /* a new, empty cache each time */
        if (!e) return -1;
        double before = bench_now();
        int status = our_requests(o, e, l, err);
        bench_add(&r->ours, bench_now() - before);
        engine_close(e);
        if (status) return -1;
        for (uint32_t p = 0; p < r->n_peers; p++) {
            if (p == 1 && round) break; /* every prompt for itself takes minutes: once */
            before = bench_now();
            if (peer_requests(peers[p], l, p == 0, err)) return -1;
            bench_add(&r->peers[p], bench_now() - before);
            if (p == 0) compare(l, r);
        }
    }
    return 0;
}

int bench_requests(const bench_options *o, bench_result *r, tool_error *err)
{
    engine *e = engine_open(&o->run.engine, err);
    if (!e) return -1;
    load l = {
        .n = o->sequences, .prompt = o->context, .shared = o->shared, .new_tokens = o->new_tokens};
    peer *peers[BENCH_PEERS] = {NULL};
    l.prompts = calloc((size_t)l.n * l.prompt, sizeof *l.prompts);
    l.ours = calloc((size_t)l.n * l.new_tokens, sizeof *l.ours);
    l.theirs = calloc((size_t)l.n * l.new_tokens, sizeof *l.theirs);
    int status = l.prompts && l.ours && l.theirs ? 0 : tool_fail(err, "not enough memory");
    r->n_peers = o->peers ? BENCH_PEERS : 0;
    r->peers[0].name = "llama shared";
    r->peers[1].name = "llama own";
    r->ours.tokens = r->peers[0].tokens = r->peers[1].tokens = (double)l.n * l.new_tokens;
    for (uint32_t i = 0; i < l.n && !status; i++) {
        int32_t *prompt = l.prompts + (size_t)i * l.prompt;
        bench_tokens(prompt, l.shared, e->model->n_vocab, 1);
        bench_tokens(prompt + l.shared, l.prompt - l.shared, e->model->n_vocab, 2 + i);
    }
    if (!status) status = bench_open_peers(o, e, l.prompt + l.new_tokens, peers, r->n_peers, err);
    engine_close(e);
    if (!status) status = request_rounds(o, &l, peers, r, err);
    bench_close_peers(peers);
    free(l.prompts);
    free(l.ours);
    free(l.theirs);
    return status;
}
