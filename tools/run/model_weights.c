#include "model_weights.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_PARTS = 3, MAX_OWN = 8 * MODEL_MAX_LAYERS, MAX_TYPES = MODEL_MAX_BUFFERS - 2 };

/* A matrix that gets memory of its own. */
struct own {
    struct ggml_tensor *tensor;
    struct ggml_tensor *parts[MAX_PARTS]; /* in the file */
    uint32_t n_parts;
    uint32_t type; /* index in weights.types */
};

struct weights {
    model *m;
    ggml_backend_dev_t device;
    ggml_backend_buffer_type_t types[MAX_TYPES]; /* the device's formats, its plain one last */
    struct ggml_context *contexts[MAX_TYPES];
    uint32_t n_types;
    ggml_backend_buffer_t file; /* the mapping as a buffer */
    struct own *own;
    uint32_t n_own;
    tool_error err;
    bool failed;
};

static void fail(weights *w, const char *what, const char *name)
{
    if (!w->failed) tool_fail(&w->err, "%s %s", what, name);
    w->failed = true;
}

weights *weights_begin(model *m, ggml_backend_dev_t device, tool_error *err)
{
    weights *w = calloc(1, sizeof *w);
    if (w) w->own = calloc(MAX_OWN, sizeof *w->own);
    if (!w || !w->own) {
        free(w);
        tool_fail(err, "not enough memory");
        return NULL;
    }
    w->m = m;
    w->device = device;
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(device);
    union {
        void *object;
        ggml_backend_dev_get_extra_bufts_t function;
    } extra = {.object =
                   ggml_backend_reg_get_proc_address(reg, "ggml_backend_dev_get_extra_bufts")};
    ggml_backend_buffer_type_t *more = extra.object ? extra.function(device) : NULL;
    for (; more && *more && w->n_types < MAX_TYPES - 1; more++)
        w->types[w->n_types++] = *more;
    w->types[w->n_types++] = ggml_backend_dev_buffer_type(device);
    size_t offset = gguf_get_data_offset(m->gguf);
    w->file = ggml_backend_dev_buffer_from_host_ptr(device, (char *)m->mapping + offset,
                                                    m->mapping_bytes - offset, 0);
    if (!w->file) {
        tool_fail(err, "ggml cannot use the mapped file as a buffer");
        free(w->own);
        free(w);
        return NULL;
    }
    ggml_backend_buffer_set_usage(w->file, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    m->buffers[m->n_buffers++] = w->file;
    return w;
}

/* A tensor of the file, bound to the mapping. */
static struct ggml_tensor *in_file(weights *w, const char *name)
{
    struct ggml_tensor *t = ggml_get_tensor(w->m->file_tensors, name);
    if (!t || t->buffer) return t;
    int64_t id = gguf_find_tensor(w->m->gguf, name);
    size_t offset = gguf_get_tensor_offset(w->m->gguf, id);
    size_t room = ggml_backend_buffer_get_size(w->file);
    if (offset > room || ggml_nbytes(t) > room - offset) {
        fail(w, "the file ends inside tensor", name);
        return NULL;
    }
    char *base = ggml_backend_buffer_get_base(w->file);
    if (ggml_backend_tensor_alloc(w->file, t, base + offset) != GGML_STATUS_SUCCESS) {
        fail(w, "ggml refuses tensor", name);
        return NULL;
    }
    return t;
}

struct ggml_tensor *weights_plain(weights *w, const char *name, bool required)
{
    struct ggml_tensor *t = in_file(w, name);
    if (!t && required) fail(w, "the file lacks tensor", name);
    return t;
}

/* Can the device multiply a matrix of this shape if it lives in `type`? Asked with a product of the
 * size of a prefill chunk, as libllama does. */
static bool multiplies(weights *w, ggml_backend_buffer_type_t type, enum ggml_type format,
                       int64_t columns, int64_t rows)
{
    struct ggml_init_params params = {.mem_size = 8 * ggml_tensor_overhead(), .no_alloc = true};
    struct ggml_context *ctx = ggml_init(params);
    if (!ctx) return false;
    struct ggml_tensor *a = ggml_new_tensor_2d(ctx, format, columns, rows);
    struct ggml_tensor *b = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, columns, 512);
    struct ggml_tensor *product = ggml_mul_mat(ctx, a, b);
    ggml_backend_buffer_t probe = ggml_backend_buft_alloc_buffer(type, 0);
    a->buffer = probe;
    bool yes = probe && ggml_backend_dev_supports_op(w->device, product);
    ggml_backend_buffer_free(probe);
    ggml_free(ctx);
    return yes;
}

static struct ggml_context *context_of(weights *w, uint32_t type)
{
    if (!w->contexts[type]) {
        struct ggml_init_params params = {.mem_size = MAX_OWN * ggml_tensor_overhead(),
                                          .no_alloc = true};
        w->contexts[type] = ggml_init(params);
    }
    return w->contexts[type];
}

struct ggml_tensor *weights_matrix(weights *w, const char *const *names, uint32_t n, bool required)
{
    struct own own = {.n_parts = n};
    int64_t rows = 0;
    for (uint32_t i = 0; i < n; i++) {
        own.parts[i] = weights_plain(w, names[i], required);
        if (!own.parts[i]) return NULL;
        const struct ggml_tensor *first = own.parts[0], *part = own.parts[i];
        if (part->type != first->type || part->ne[0] != first->ne[0]) return NULL;
        rows += part->ne[1];
    }
    enum ggml_type format = own.parts[0]->type;
    int64_t columns = own.parts[0]->ne[0];
    while (own.type + 1 < w->n_types && !multiplies(w, w->types[own.type], format, columns, rows))
        own.type++;
    bool plain = own.type + 1 == w->n_types;
    if (plain && n == 1) return own.parts[0];
    struct ggml_context *ctx = context_of(w, own.type);
    if (!ctx || w->n_own == MAX_OWN) {
        fail(w, "not enough memory for tensor", names[0]);
        return NULL;
    }
    own.tensor = ggml_new_tensor_2d(ctx, format, columns, rows);
    ggml_set_name(own.tensor, names[0]);
    w->own[w->n_own++] = own;
    return own.tensor;
}

/* Copies the parts of a matrix, one after the other, into its memory. Repacked formats convert, and
 * take a whole matrix at a time. */
static bool fill(const struct own *own)
{
    if (own->n_parts == 1) {
        ggml_backend_tensor_set(own->tensor, own->parts[0]->data, 0, ggml_nbytes(own->parts[0]));
        return true;
    }
    char *joined = malloc(ggml_nbytes(own->tensor));
    size_t offset = 0;
    for (uint32_t i = 0; joined && i < own->n_parts; i++) {
        size_t bytes = ggml_nbytes(own->parts[i]);
        memcpy(joined + offset, own->parts[i]->data, bytes);
        offset += bytes;
    }
    if (joined) ggml_backend_tensor_set(own->tensor, joined, 0, offset);
    free(joined);
    return joined != NULL;
}

int weights_end(weights *w, tool_error *err)
{
    model *m = w->m;
    for (uint32_t i = 0; i < w->n_types && !w->failed; i++) {
        if (!w->contexts[i]) continue;
        ggml_backend_buffer_t buffer =
            ggml_backend_alloc_ctx_tensors_from_buft(w->contexts[i], w->types[i]);
        if (!buffer) {
            fail(w, "not enough memory for weights in", ggml_backend_buft_name(w->types[i]));
            break;
        }
        ggml_backend_buffer_set_usage(buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        m->buffers[m->n_buffers++] = buffer;
    }
    for (uint32_t i = 0; i < w->n_own && !w->failed; i++)
        if (!fill(&w->own[i])) fail(w, "not enough memory to fill", w->own[i].tensor->name);
    for (uint32_t i = 0; i < w->n_types; i++)
        if (w->contexts[i]) m->own_tensors[i] = w->contexts[i];
    int status = w->failed ? tool_fail(err, "%s", w->err.text) : 0;
    free(w->own);
    free(w);
    return status;
}
