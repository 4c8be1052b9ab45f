/* One forward pass as a ggml graph: a mixed batch of rows (prefill chunks, decodes, drafts), whose
 * K, V and attention go through kv_ops. A graph is kept while the batch has the same shape. */
#ifndef TOOLS_RUN_FORWARD_H
#define TOOLS_RUN_FORWARD_H

#include "kv_ops.h"
#include "model.h"

typedef struct forward forward;

/* Neither the model nor ops is owned. NULL with a text. */
forward *forward_new(const model *m, kv_ops *ops, ggml_backend_t backend, tool_error *err);
void forward_free(forward *f);

/* Runs `n` rows; tokens and positions are in batch order; `outputs` lists, ascending, the n_outputs
 * rows whose logits are wanted (may be none). On success *logits holds [n_outputs][n_vocab] until
 * the next run (NULL if n_outputs is 0). -1 with a text. */
int forward_run(forward *f, const int32_t *tokens, const int32_t *positions, uint32_t n,
                const int32_t *outputs, uint32_t n_outputs, const float **logits, tool_error *err);

#endif
