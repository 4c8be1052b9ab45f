/* One attention workload of the benches: a cache whose pages hold random numbers, sequences whose
 * pages lie in random or ascending order, a reserved batch and its plan. */
#ifndef BENCH_ATTN_WORK_H
#define BENCH_ATTN_WORK_H

#include <stdbool.h>
#include <stdint.h>

#include <pagedkv/pagedkv.h>

#include "team.h"
#include "tool_error.h"

typedef struct attn_shape {
    uint32_t heads_q, heads_kv, head_dim, page_tokens;
    pkv_dtype dtype; /* of the pages; queries and outputs are f32, for bf16 pages bf16 */
    pkv_dtype dtype_k, dtype_v; /* of full pages: quantised formats, or 0 = dtype */
    uint32_t n_seqs;
    uint64_t context; /* tokens seen by the last new token of each sequence, itself included;
                       * n_seqs > 1 and !prefix: uniform in context_min..context */
    uint64_t context_min;
    uint32_t query_tokens; /* new tokens of each sequence */
    uint64_t prefix;       /* tokens that all sequences share (forks of one), or 0 */
    uint32_t n_layers;
    bool shuffled;    /* pages in random order */
    uint32_t cascade; /* as in pkv_plan_options */
    const char *isa;
    uint64_t seed;
} attn_shape;

typedef struct attn_work attn_work;

/* Makes the workload; the plan works for teams of up to `threads`. NULL with err. */
attn_work *attn_work_make(const attn_shape *shape, uint32_t threads, tool_error *err);
void attn_work_free(attn_work *w);

/* One pass of pkv_attend over all layers by the whole team, a barrier after each. Seconds. */
double attn_work_pass(attn_work *w, team *t);

/* Bytes of K and V that one layer's attention must read (shared pages once), and its floating-point
 * operations (two per multiply-add of QK and PV, causal pairs only). */
double attn_work_bytes(const attn_work *w);
double attn_work_flops(const attn_work *w);

/* Largest |output - reference| of the last layer (values are below 1, so relative to them); < 0
 * with err if not be computed. Slow: minutes for large contexts. */
double attn_work_check(attn_work *w, team *t, tool_error *err);

/* One whole step of a host: the batch of the last step is committed, the next one reserved, the
 * plan built, every layer written and attended for. Seconds of each part in `spent`; false with
 * err. */
enum { STEP_COMMIT, STEP_RESERVE, STEP_PLAN, STEP_WRITE, STEP_ATTEND, STEP_PARTS };
bool attn_work_step(attn_work *w, team *t, double spent[STEP_PARTS], tool_error *err);

const char *attn_work_isa(const attn_work *w);

#endif
