/* What pkv-run bench measures, each beside libllama where a peer is asked for. Times are seconds.
 */
#ifndef TOOLS_RUN_BENCH_WORK_H
#define TOOLS_RUN_BENCH_WORK_H

#include <jansson.h>

#include "options.h"
#include "peer.h"

enum { BENCH_PEERS = 2, BENCH_MAX_SAMPLES = 4096 };

typedef struct bench_options {
    run_options run;
    uint32_t sequences, context, shared, new_tokens, rounds;
    bool ragged, peers;
} bench_options;

/* Samples of one runtime. */
typedef struct bench_series {
    const char *name;
    double samples[BENCH_MAX_SAMPLES];
    uint32_t n;
    double tokens; /* a sample's work */
} bench_series;

typedef struct bench_result {
    const char *work; /* "decode", … */
    bench_series ours, peers[BENCH_PEERS];
    uint32_t n_peers;
    uint64_t cache_bytes, token_bytes_held; /* ours, at the end; 0 = not looked at */
    uint32_t same_tokens, all_tokens;       /* greedy tokens equal to the first peer's */
} bench_result;

double bench_now(void);
void bench_add(bench_series *s, double seconds);

/* Deterministic tokens that look like text to a cache: no two positions related. */
void bench_tokens(int32_t *tokens, uint32_t n, uint32_t n_vocab, uint32_t seed);

/* libllama in its two cache modes. -1 with a text; close with bench_close_peers. */
int bench_open_peers(const bench_options *o, const engine *e, uint32_t context, peer **peers,
                     uint32_t n, tool_error *err);
void bench_close_peers(peer **peers);

/* One token for each of `sequences` that hold `context` tokens (ragged: spread evenly from a 16th
 * of it), steps of both in alternating blocks. */
int bench_decode(const bench_options *o, bench_result *r, tool_error *err);
/* A prompt of `context` tokens, from nothing to its last logits. */
int bench_prompt(const bench_options *o, bench_result *r, tool_error *err);
/* `sequences` requests of `shared` common and `context` - `shared` own prompt tokens and
 * `new_tokens` new ones, all there at the start, from start to finish. */
int bench_requests(const bench_options *o, bench_result *r, tool_error *err);

#endif
