/* Contiguous reservation, for comparison: a request takes its whole reservation when it starts. */
#include <stdlib.h>

#include "serve.h"

typedef struct contiguous {
    serve_memory base; /* first: the engine only sees this */
    serve_reservation kind;
    uint64_t token_bytes, max_tokens;
    uint64_t limit, used; /* bytes */
} contiguous;

static contiguous *self(serve_memory *m)
{
    return (contiguous *)m;
}

static uint64_t reservation(const contiguous *c, const trace_request *r)
{
    uint64_t final = serve_final_length(r), slots = final;
    if (c->kind == SERVE_MAX) slots = final > c->max_tokens ? final : c->max_tokens;
    if (c->kind == SERVE_POW2)
        for (slots = 1; slots < final;)
            slots *= 2;
    return slots;
}

static int start(serve_memory *m, serve_sequence *s, serve_sequence *const *list, size_t n,
                 tool_error *err)
{
    (void)list, (void)n, (void)err;
    contiguous *c = self(m);
    s->slots = reservation(c, s->request);
    uint64_t bytes = s->slots * c->token_bytes;
    if (bytes > c->limit) return SERVE_TOO_LARGE;
    if (c->used > c->limit - bytes) return 0;
    c->used += bytes;
    s->length = 0;
    return 1;
}

static int reserve(serve_memory *m, serve_sequence *const *list, size_t n, tool_error *err)
{
    (void)m, (void)list, (void)n, (void)err;
    return 1; /* everything is there since the start */
}

static int commit(serve_memory *m, serve_sequence *const *list, size_t n, tool_error *err)
{
    (void)m, (void)err;
    for (size_t i = 0; i < n; i++)
        list[i]->length += list[i]->step;
    return 1;
}

static int stop(serve_memory *m, serve_sequence *s, tool_error *err)
{
    (void)err;
    self(m)->used -= s->slots * self(m)->token_bytes;
    return 1;
}

static int set_limit(serve_memory *m, uint64_t bytes, tool_error *err)
{
    (void)err;
    if (self(m)->used > bytes) return 0;
    self(m)->limit = bytes;
    return 1;
}

static int usage(serve_memory *m, serve_sequence *const *list, size_t n, serve_usage *u,
                 tool_error *err)
{
    (void)err;
    *u = (serve_usage){.limit = self(m)->limit, .used = self(m)->used};
    for (size_t i = 0; i < n; i++) {
        u->slots_held += list[i]->slots;
        u->slots_empty += list[i]->slots - list[i]->length;
    }
    return 1;
}

static int verify(serve_memory *m, tool_error *err)
{
    if (self(m)->used > self(m)->limit) return tool_fail(err, "contiguous: more used than allowed");
    return 1;
}

static void destroy(serve_memory *m)
{
    free(self(m));
}

serve_memory *serve_contiguous_create(const serve_options *options, serve_reservation kind,
                                      uint64_t max_tokens, tool_error *err)
{
    contiguous *c = calloc(1, sizeof *c);
    if (c == NULL) {
        tool_fail(err, "out of memory");
        return NULL;
    }
    c->base =
        (serve_memory){NULL, start, NULL, reserve, commit, stop, set_limit, usage, verify, destroy};
    c->kind = kind;
    c->token_bytes = model_token_bytes(options->model);
    c->max_tokens = max_tokens;
    c->limit = options->memory;
    return &c->base;
}
