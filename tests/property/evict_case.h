/* A small model on a real cache for eviction tests: deterministic queries, keys and values per
 * (token, layer, head), rotary embedding applied as a host would, and slow references in double. */
#ifndef EVICT_CASE_H
#define EVICT_CASE_H

#include <pagedkv/pagedkv.h>

struct ec_shape {
    uint32_t page_tokens, n_layers, kv_heads, group_size, dim;
    uint32_t window; /* of the group; 0 = full */
    pkv_dtype dtype;
    uint32_t signals;
    uint32_t rotary_dims, interleaved; /* 0 = no RoPE */
    double position_scale;
    uint32_t prefix;
    float peak; /* scales the queries: larger = more pointed attention */
};

struct ec_case {
    struct ec_shape shape;
    pkv_cache *cache;
    pkv_plan *plan;
    float *q, *k, *v, *out,
        *lse;          /* of the last step: [layer][row][head][dim], [layer][row][head] */
    uint32_t capacity; /* rows */
    uint64_t seed;
    uint32_t nth; /* calls per layer, run one after the other */
};

struct ec_case *ec_open(const struct ec_shape *shape, uint32_t mass);
void ec_close(struct ec_case *c);
void ec_verify(struct ec_case *c);

/* Unrotated element of a token; what = 0 q, 1 k, 2 v. `content` is the token's identity. */
float ec_value(const struct ec_case *c, int what, uint64_t content, uint32_t layer, uint32_t head,
               uint32_t i);
/* A whole vector, rotated to `position` if it is a query or key of a model with RoPE. */
void ec_vector(const struct ec_case *c, int what, uint64_t content, uint32_t layer, uint32_t head,
               double position, double *to);

/* One step of one sequence: content of token t is t + base. Positions from pkv_seq_position.
 * Leaves out and lse in the case; commits unless `keep` is given (then the reserved batch is
 * returned there). */
void ec_step(struct ec_case *c, pkv_seq seq, uint64_t base, uint32_t n, pkv_batch *keep);

/* Which positions row `row` (of n new tokens after `length`) sees, by the table as it is while the
 * batch is reserved: visible[position]. */
void ec_visible(struct ec_case *c, pkv_seq seq, uint64_t length, uint32_t n, uint32_t row,
                bool *visible);

/* Attention of one row and query head in double over visible positions; `compact` = by positions
 * inside the cache. out[dim]. */
void ec_reference(const struct ec_case *c, uint64_t base, uint64_t position, uint32_t layer,
                  uint32_t q_head, const bool *visible, bool compact, double *out);

#endif
