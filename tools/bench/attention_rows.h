/* The rows of pkv-bench attention. Rows of one block are measured in turn, round after round, so
 * that they can be compared with each other. */
#ifndef BENCH_ATTENTION_ROWS_H
#define BENCH_ATTENTION_ROWS_H

#include <stdbool.h>
#include <stdint.h>

#include <pagedkv/types.h>

typedef struct attention_row {
    uint32_t block;
    bool quick;       /* part of --quick */
    const char *name; /* case: decode, decode-ragged, verify, prefill, cascade */
    uint32_t heads_q, heads_kv;
    pkv_dtype dtype;
    uint64_t context;
    uint32_t batch, query_tokens;
    uint64_t prefix; /* shared by the batch */
    bool sequential; /* pages in ascending order instead of random */
    bool cascade_off;
} attention_row;

extern const attention_row attention_rows[];
extern const uint32_t attention_row_count;

#endif
