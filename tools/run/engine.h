/* The engine: a model, the pagedkv cache that holds its K and V, and one step over a batch of
 * sequences. A step is begin (pages for everything, or nothing), compute, then commit or abort.
 * One thread at a time. */
#ifndef TOOLS_RUN_ENGINE_H
#define TOOLS_RUN_ENGINE_H

#include <pagedkv/pagedkv.h>

#include "forward.h"
#include "model.h"

typedef struct engine_options {
    const char *model;
    uint64_t memory;          /* limit of pages and metadata, bytes */
    uint32_t threads;         /* 0 = CPUs online */
    uint32_t page_tokens;     /* 0 = 16 */
    pkv_dtype type_k, type_v; /* page formats; 0 = f16 */
    uint32_t max_rows;        /* most new tokens of a step; 0 = 512 */
    bool prefix;              /* keep a prefix index */
    uint32_t event_capacity;
} engine_options;

/* One sequence's part of a step. */
typedef struct engine_entry {
    pkv_seq seq;
    const int32_t *tokens; /* the new ones */
    uint32_t n;
    uint32_t position;   /* of the first: tokens committed so far */
    uint32_t n_logits;   /* logits of the last so many rows are wanted */
    const uint8_t *tree; /* mask of a speculative tree (pkv_plan_set_tree) or NULL */
    const uint32_t *depths;
} engine_entry;

typedef struct engine {
    engine_options options;
    model *model;
    pkv_cache *cache;
    uint32_t n_groups;
    uint64_t token_bytes; /* K and V of one token over all layers */
    ggml_backend_t backend;
    pkv_plan *plan;
    kv_ops ops;
    forward *forward;
    /* the open step */
    pkv_batch batch;
    int32_t *tokens, *positions, *outputs; /* max_rows each */
    uint32_t n_rows, n_outputs;
    const float *logits;
} engine;

/* NULL with a text. */
engine *engine_open(const engine_options *options, tool_error *err);
void engine_close(engine *e);

/* Opens a step: PKV_OK; PKV_EUNSAFE with *blocked = an entry to leave out; PKV_ENOPAGES; or another
 * error. Unless PKV_OK nothing is open and nothing changed. With `admission` false pages are taken
 * first come, first served. */
pkv_status engine_begin(engine *e, const engine_entry *entries, uint32_t n, bool admission,
                        uint32_t *blocked);

/* Runs the open step. On failure (-1 with a text) it is aborted. Logits are then found row by row
 * in entry order: e->logits + i * n_vocab, e->n_outputs rows. */
int engine_compute(engine *e, const engine_entry *entries, uint32_t n, tool_error *err);

/* Ends the step. Entry i keeps its first accepted[i] tokens; NULL = everything. */
pkv_status engine_commit(engine *e, const uint32_t *accepted, uint32_t n);
void engine_abort(engine *e);

#endif
