/* libllama as pkv-run's peer: the same file, the same products, its own cache and attention. */
#ifndef TOOLS_RUN_PEER_H
#define TOOLS_RUN_PEER_H

#include <ggml.h>
#include <stdbool.h>
#include <stdint.h>

#include "tool_error.h"

typedef struct peer_options {
    const char *model;
    uint32_t threads;
    uint32_t n_sequences;
    uint32_t context; /* tokens of a sequence */
    uint32_t rows;    /* n_ubatch; n_batch is at least 2,048 */
    bool unified;     /* one cache for all sequences, else a stream for each */
    bool plain;       /* without flash attention */
    enum ggml_type kv_type;
} peer_options;

typedef struct peer peer;

/* NULL with a text. */
peer *peer_open(const peer_options *options, tool_error *err);
void peer_close(peer *p);

/* Forgets everything. */
void peer_clear(peer *p);

/* Appends n tokens at `position` to a sequence. With `logits` those of the last token are computed
 * and *logits points to them until the next call. -1 with a text. */
int peer_append(peer *p, uint32_t sequence, const int32_t *tokens, uint32_t n, uint32_t position,
                const float **logits, tool_error *err);

/* One token for each of sequences 0..n-1 at its position; next[i] = the most likely token after it.
 */
int peer_step(peer *p, const int32_t *tokens, const uint32_t *positions, uint32_t n, int32_t *next,
              tool_error *err);

/* Appends per_sequence tokens to each of sequences 0..n-1, all at one position, in as few batches
 * as n_batch allows; next[i] as above. */
int peer_extend(peer *p, const int32_t *tokens, uint32_t per_sequence, uint32_t position,
                uint32_t n, int32_t *next, tool_error *err);

/* Copies sequence 0 to sequence `to`, bytes and all, and keeps its first n tokens. */
int peer_copy(peer *p, uint32_t to, uint32_t n, tool_error *err);

/* Lets sequence `to` share sequence 0's cells (llama_memory_seq_cp). */
void peer_share(peer *p, uint32_t to);

uint32_t peer_vocab(const peer *p);

#endif
