#include <stdlib.h>
#include <time.h>

#include "bench_work.h"

double bench_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void bench_add(bench_series *s, double seconds)
{
    if (s->n < BENCH_MAX_SAMPLES) s->samples[s->n++] = seconds;
}

void bench_tokens(int32_t *tokens, uint32_t n, uint32_t n_vocab, uint32_t seed)
{
    uint64_t state = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
    uint32_t lowest = n_vocab > 1024 ? 512 : 0; /* past the control tokens */
    for (uint32_t i = 0; i < n; i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        tokens[i] = (int32_t)(lowest + (uint32_t)(state >> 33) % (n_vocab - lowest));
    }
}

int bench_open_peers(const bench_options *o, const engine *e, uint32_t context, peer **peers,
                     uint32_t n, tool_error *err)
{
    peers[0] = peers[1] = NULL;
    for (uint32_t i = 0; i < n; i++) {
        peer_options po = {.model = o->run.engine.model,
                           .threads = e->options.threads,
                           .n_sequences = o->sequences,
                           .context = context,
                           .rows = e->options.max_rows,
                           .unified = i == 0,
                           .kv_type = e->options.type_k == PKV_DTYPE_F32    ? GGML_TYPE_F32
                                      : e->options.type_k == PKV_DTYPE_BF16 ? GGML_TYPE_BF16
                                      : e->options.type_k == PKV_DTYPE_F16  ? GGML_TYPE_F16
                                                                            : GGML_TYPE_Q8_0};
        peers[i] = peer_open(&po, err);
        if (!peers[i]) {
            bench_close_peers(peers);
            return -1;
        }
    }
    return 0;
}

void bench_close_peers(peer **peers)
{
    for (uint32_t i = 0; i < BENCH_PEERS; i++) {
        peer_close(peers[i]);
        peers[i] = NULL;
    }
}
