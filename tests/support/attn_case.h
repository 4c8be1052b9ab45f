/* Attention through the public interface, beside a naive model of it.
 *
 * A case is a cache with sequences whose every token has a `content` number; keys, values and
 * queries are functions of it, so the same content gives the same numbers in any cache, batch and
 * order. The naive model computes attention in double from the contents, rounding keys and values
 * as the page format does: it knows nothing of tiles, leaves or kernels, and of pages only that in
 * quantised groups a row sees its own page in `dtype` and all earlier ones sealed. */
#ifndef PKVT_ATTN_CASE_H
#define PKVT_ATTN_CASE_H

#include <stdbool.h>

#include <pagedkv/pagedkv.h>

#define AC_MAX_SEQS 96

typedef struct ac_shape {
    uint32_t page_tokens, n_layers, kv_heads, q_heads, dim_k, dim_v, window;
    pkv_dtype dtype;
    pkv_dtype dtype_k, dtype_v; /* 0 = dtype */
    const char *isa; /* NULL = best */
    uint64_t memory; /* 0 = 256 MiB */
    uint32_t debug;
    uint32_t prefix;
    float softcap, scale;
    bool alibi, sinks;
    float spread; /* keys and queries are uniform in ±spread; 0 = 1 */
    const pkv_rope_config *rope;
    uint32_t signals;
    const pkv_allocator *allocator;
    size_t external; /* bytes of a buffer of the host's for the pages; 0 = HOST storage */
} ac_shape;

typedef struct ac_seq {
    pkv_seq handle;
    uint64_t length;
    uint64_t *content; /* [length] and room */
    uint8_t *written;  /* the type each token's keys and values were given in */
    uint64_t capacity;
} ac_seq;

typedef struct ac_case {
    ac_shape shape;
    pkv_cache *cache;
    ac_seq seqs[AC_MAX_SEQS];
    void *buffer;          /* with shape.external */
    float *slopes, *sinks; /* as given to plans, or NULL */
} ac_case;

/* One entry of a step: `n` new tokens with these contents. */
typedef struct ac_entry {
    uint32_t seq;
    uint32_t n;
    const uint64_t *content; /* [n] */
    const uint8_t *mask;     /* tree, or NULL */
    const uint32_t *depth;   /* or NULL */
} ac_entry;

/* How a step is run. */
typedef struct ac_run {
    uint32_t nth;        /* 0 = 1 */
    uint64_t order_seed; /* order in which the nth calls are made; 0 = ascending */
    bool threads;        /* really use nth threads */
    pkv_dtype in, out;   /* 0 = f32 */
    bool padded;         /* strides with gaps, and token and head axes exchanged for q and out */
    bool commit;         /* else abort */
    uint32_t *accepted;  /* commit_partial, or NULL */
    uint32_t *kept;      /* commit_paths: indices of the accepted, entry after entry; or NULL */
} ac_run;

/* What a step gives, [layer][row][q head]: out [..][dim_v] as floats, lse. Freed by the caller. */
typedef struct ac_result {
    uint64_t n_rows;
    float *out, *lse;
} ac_result;

ac_case *ac_open(const ac_shape *shape);
void ac_close(ac_case *c);
void ac_create(ac_case *c, uint32_t seq);
void ac_destroy(ac_case *c, uint32_t seq);
void ac_fork(ac_case *c, uint32_t parent, uint32_t child);
/* Options for plans of this case: scale, softcap, slopes, sinks filled in. */
pkv_plan_options ac_options(const ac_case *c);

/* Appends n tokens with random contents, in steps of at most `chunk`, without attending. */
void ac_fill(ac_case *c, uint32_t seq, uint32_t n, uint32_t chunk, uint64_t *random);

/* Runs a step on all layers; every call must succeed. The plan is built for it. */
ac_result ac_step(ac_case *c, pkv_plan *plan, const ac_entry *entries, uint32_t n_entries,
                  const ac_run *run);
/* The first part of a step only: batch reserved and plan built, entries' contents not entered. */
pkv_batch ac_reserve(ac_case *c, pkv_plan *plan, const ac_entry *entries, uint32_t n_entries);
void ac_result_free(ac_result *result);

/* Naive attention of new token `t` of an entry (contents before the step as in c->seqs):
 * out[dim_v], *lse, and weights[dim_v] = sum p|v|, the scale of rounding errors. run gives the
 * input type. */
void ac_naive(const ac_case *c, const ac_entry *entry, uint32_t t, uint32_t layer, uint32_t q_head,
              const ac_run *run, double *out, double *lse, double *weights);

/* Compares a step's result with the naive model, all rows or `rows` random ones per entry; must be
 * called before the contents change, i.e. for a step that did not commit, or with the lengths that
 * the step began with. Fails the test on a difference beyond the dtype's bound. */
void ac_check(const ac_case *c, const ac_entry *entries, uint32_t n_entries, const ac_run *run,
              const ac_result *result, uint32_t rows, uint64_t *random);

/* The bound per unit of weight for a case on its kernel row. */
double ac_gate(const ac_case *c, const ac_run *run);

/* Uniform in ±1 from a content, what it is for ('k', 'v', 'q'), layer, head and dimension. */
float ac_value(uint64_t content, char what, uint32_t layer, uint32_t head, uint32_t dim);
/* x rounded to a dtype. */
float ac_round(float x, pkv_dtype dtype);

#endif
