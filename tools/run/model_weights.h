/* Where weights live: in the mapped file, or copied where a device has a faster format or where
 * several matrices become one. Used by model.c only. */
#ifndef TOOLS_RUN_MODEL_WEIGHTS_H
#define TOOLS_RUN_MODEL_WEIGHTS_H

#include "model.h"

typedef struct weights weights;

/* Starts loading into `m`, whose file is mapped. */
weights *weights_begin(model *m, ggml_backend_dev_t device, tool_error *err);

/* A weight as it is in the file: norms, biases, embedding rows. NULL if there is none; with
 * `required` also a text in err of weights_end. */
struct ggml_tensor *weights_plain(weights *w, const char *name, bool required);

/* One matrix out of n with the same type and input size, rows one after the other, for products.
 * NULL if one is missing or (n > 1) they do not go together. */
struct ggml_tensor *weights_matrix(weights *w, const char *const *names, uint32_t n, bool required);

/* Allocates and fills what was asked for; releases `w`. -1 with a text. */
int weights_end(weights *w, tool_error *err);

#endif
