/* Decode steps over long contexts. Filling 16 contexts through the model would take minutes, so one
 * is computed and its K and V are copied into the others, on both sides: every sequence holds bytes
 * of its own, as after as many prompts. */
#include <stdlib.h>
#include <string.h>

#include "bench_work.h"

enum { BLOCK = 8 };

typedef struct side {
    engine *e;
    pkv_seq *seqs;
    uint32_t *lengths;
    int32_t *tokens; /* newest of each sequence */
    int32_t *prompt;
    uint32_t n;
} side;

/* Runs the model over the prompt of sequence 0. */
static int compute_first(side *s, uint32_t length, tool_error *err)
{
    if (pkv_seq_create(s->e->cache, &s->seqs[0])) return tool_fail(err, "no room for a sequence");
    for (uint32_t done = 0; done < length;) {
        uint32_t rows = s->e->options.max_rows, blocked;
        uint32_t n = length - done < rows ? length - done : rows;
        engine_entry entry = {
            .seq = s->seqs[0], .tokens = s->prompt + done, .n = n, .position = done};
        pkv_status status = engine_begin(s->e, &entry, 1, false, &blocked);
        if (status) return tool_fail(err, "step: %s", pkv_status_text(status));
        if (engine_compute(s->e, &entry, 1, err)) return -1;
        engine_commit(s->e, NULL, 1);
        done += n;
    }
    return 0;
}

/* K and V of tokens [first, first + n) of sequence 0 in `layer`; zeros where they left a window. */
static void read_rows(const side *s, uint32_t layer, uint32_t first, uint32_t n, float *k, float *v)
{
    const model *m = s->e->model;
    uint32_t page = s->e->options.page_tokens;
    size_t row = (size_t)m->n_kv_heads * m->head_dim;
    for (uint32_t t = 0; t < n; t += page) {
        uint32_t part = n - t < page ? n - t : page;
        pkv_rows_out out = {.dtype = PKV_DTYPE_F32,
                            .heads = m->n_kv_heads,
                            .dim = m->head_dim,
                            .token_stride = (ptrdiff_t)(row * sizeof(float)),
                            .head_stride = (ptrdiff_t)(m->head_dim * sizeof(float))};
        pkv_rows_out ko = out, vo = out;
        ko.data = k + t * row;
        vo.data = v + t * row;
        if (pkv_read(s->seqs[0], layer, first + t, part, &ko, &vo)) {
            memset(ko.data, 0, part * row * sizeof(float));
            memset(vo.data, 0, part * row * sizeof(float));
        }
    }
}

static pkv_status copy_chunk(side *s, uint32_t to, uint32_t first, uint32_t n, float *k, float *v)
{
    engine *e = s->e;
    const model *m = e->model;
    engine_entry entry = {
        .seq = s->seqs[to], .tokens = s->prompt + first, .n = n, .position = first};
    uint32_t blocked;
    pkv_status status = engine_begin(e, &entry, 1, false, &blocked);
    if (status) return status;
    status = pkv_plan_build(e->plan, e->batch);
    for (uint32_t layer = 0; layer < m->n_layers && !status; layer++) {
        read_rows(s, layer, first, n, k, v);
        ptrdiff_t head = (ptrdiff_t)(m->head_dim * sizeof(float));
        pkv_rows kr = {.data = k,
                       .dtype = PKV_DTYPE_F32,
                       .heads = m->n_kv_heads,
                       .dim = m->head_dim,
                       .token_stride = head * m->n_kv_heads,
                       .head_stride = head};
        pkv_rows vr = kr;
        vr.data = v;
        status = pkv_write(e->plan, layer, &kr, &vr, 0, 1);
    }
    if (status)
        engine_abort(e);
    else
        status = engine_commit(e, NULL, 1);
    return status;
}

static int copy_others(side *s, tool_error *err)
{
    const model *m = s->e->model;
    uint32_t rows = s->e->options.max_rows;
    size_t bytes = (size_t)rows * m->n_kv_heads * m->head_dim * sizeof(float);
    float *k = malloc(bytes), *v = malloc(bytes);
    pkv_status status = k && v ? PKV_OK : PKV_ENOMEM;
    for (uint32_t i = 1; i < s->n && !status; i++) {
        status = pkv_seq_create(s->e->cache, &s->seqs[i]);
        for (uint32_t done = 0; done < s->lengths[i] && !status;) {
            uint32_t left = s->lengths[i] - done, n = left < rows ? left : rows;
            status = copy_chunk(s, i, done, n, k, v);
            done += n;
        }
    }
    free(k);
    free(v);
    return status ? tool_fail(err, "filling the cache: %s", pkv_status_text(status)) : 0;
}

/* One decode step of every sequence; the tokens that the model chooses go into s->tokens. */
static int our_step(side *s, engine_entry *entries, tool_error *err)
{
    uint32_t blocked, n_vocab = s->e->model->n_vocab;
    for (uint32_t i = 0; i < s->n; i++)
        entries[i] = (engine_entry){.seq = s->seqs[i],
                                    .tokens = &s->tokens[i],
                                    .n = 1,
                                    .position = s->lengths[i],
                                    .n_logits = 1};
    pkv_status status = engine_begin(s->e, entries, s->n, false, &blocked);
    if (status) return tool_fail(err, "step: %s", pkv_status_text(status));
    if (engine_compute(s->e, entries, s->n, err)) return -1;
    for (uint32_t i = 0; i < s->n; i++) {
        const float *logits = s->e->logits + (size_t)i * n_vocab;
        s->tokens[i] = (int32_t)sampler_argmax(logits, n_vocab);
        s->lengths[i]++;
    }
    engine_commit(s->e, NULL, s->n);
    return 0;
}

static uint32_t length_of(const bench_options *o, uint32_t i)
{
    if (!o->ragged || o->sequences < 2) return o->context;
    uint32_t least = o->context / 16 ? o->context / 16 : 1;
    return o->context - (uint32_t)((uint64_t)(o->context - least) * i / (o->sequences - 1));
}

/* A peer's view of the same sequences. */
typedef struct peer_side {
    peer *p;
    uint32_t *positions;
    int32_t *tokens;
} peer_side;

static int fill_peer(const bench_options *o, peer_side *ps, const side *s, tool_error *err)
{
    const float *logits;
    if (peer_append(ps->p, 0, s->prompt, o->context, 0, &logits, err)) return -1;
    for (uint32_t i = 1; i < o->sequences; i++)
        if (peer_copy(ps->p, i, length_of(o, i), err)) return -1;
    return 0;
}

static int run_blocks(const bench_options *o, side *s, peer_side *ps, bench_result *r,
                      tool_error *err)
{
    engine_entry *entries = calloc(s->n, sizeof *entries);
    int status = entries ? 0 : tool_fail(err, "not enough memory");
    for (uint32_t round = 0; round <= o->rounds && !status; round++) {
        for (uint32_t b = 0; b < BLOCK && !status; b++) {
            double before = bench_now();
            status = our_step(s, entries, err);
            if (round) bench_add(&r->ours, bench_now() - before); /* round 0 warms up */
        }
        for (uint32_t p = 0; p < r->n_peers; p++)
            for (uint32_t b = 0; b < BLOCK && !status; b++) {
                double before = bench_now();
                status = peer_step(ps[p].p, ps[p].tokens, ps[p].positions, s->n, ps[p].tokens, err);
                if (round) bench_add(&r->peers[p], bench_now() - before);
                for (uint32_t i = 0; i < s->n; i++)
                    ps[p].positions[i]++;
            }
        for (uint32_t i = 0; i < s->n && r->n_peers && !status; i++) {
            r->all_tokens++;
            r->same_tokens += s->tokens[i] == ps[0].tokens[i];
        }
    }
    free(entries);
    return status;
}

static void look_at_memory(side *s, bench_result *r)
{
    pkv_stats stats = {.struct_size = sizeof stats};
    if (pkv_cache_stats(s->e->cache, &stats)) return;
    r->cache_bytes = stats.region_bytes + stats.metadata_bytes;
    r->token_bytes_held = stats.bytes_live;
}

static int decode_all(const bench_options *o, side *s, peer **peers, bench_result *r,
                      tool_error *err)
{
    peer_side ps[BENCH_PEERS] = {{0}};
    int status = compute_first(s, o->context, err) || copy_others(s, err) ? -1 : 0;
    for (uint32_t p = 0; p < r->n_peers && !status; p++) {
        ps[p] =
            (peer_side){peers[p], calloc(s->n, sizeof(uint32_t)), calloc(s->n, sizeof(int32_t))};
        if (!ps[p].positions || !ps[p].tokens)
            status = tool_fail(err, "not enough memory");
        else
            status = fill_peer(o, &ps[p], s, err);
        for (uint32_t i = 0; i < s->n && !status; i++) {
            ps[p].positions[i] = s->lengths[i];
            ps[p].tokens[i] = s->tokens[i];
        }
    }
    if (!status) status = run_blocks(o, s, ps, r, err);
    if (!status) look_at_memory(s, r);
    for (uint32_t p = 0; p < r->n_peers; p++) {
        free(ps[p].positions);
        free(ps[p].tokens);
    }
    return status;
}

int bench_decode(const bench_options *o, bench_result *r, tool_error *err)
{
    run_options run = o->run;
    run.engine.prefix = false; /* equal sequences would share their pages */
    peer *peers[BENCH_PEERS] = {NULL};
    side s = {.e = engine_open(&run.engine, err), .n = o->sequences};
    if (!s.e) return -1;
    uint32_t context = o->context + (o->rounds + 1) * BLOCK;
    s.seqs = calloc(s.n, sizeof *s.seqs);
    s.lengths = calloc(s.n, sizeof *s.lengths);
    s.tokens = calloc(s.n, sizeof *s.tokens);
    s.prompt = calloc(o->context, sizeof *s.prompt);
    int status = s.seqs && s.lengths && s.tokens && s.prompt ? 0 : -1;
    if (status) tool_fail(err, "not enough memory");
    if (!status && context > s.e->model->n_ctx_train)
        status = tool_fail(err, "%u tokens are more than the model's %u", context,
                           s.e->model->n_ctx_train);
    r->n_peers = o->peers ? (s.n > 1 ? 2 : 1) : 0;
    r->ours.tokens = r->peers[0].tokens = r->peers[1].tokens = s.n;
    if (!status) status = bench_open_peers(o, s.e, context, peers, r->n_peers, err);
    if (!status) {
        bench_tokens(s.prompt, o->context, s.e->model->n_vocab, 1);
        for (uint32_t i = 0; i < s.n; i++) {
            s.lengths[i] = length_of(o, i);
            s.tokens[i] = s.prompt[i % o->context];
        }
        status = decode_all(o, &s, peers, r, err);
    }
    bench_close_peers(peers);
    engine_close(s.e);
    free(s.seqs);
    free(s.lengths);
    free(s.tokens);
    free(s.prompt);
    return status;
}
