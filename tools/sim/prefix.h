/* pkv-sim prefix: what its files share. */
#ifndef TOOLS_SIM_PREFIX_H
#define TOOLS_SIM_PREFIX_H

#include <pagedkv/index.h>
#include <stdbool.h>
#include <stdint.h>

#include "tool_error.h"
#include "trace.h"

/* One policy at one capacity on one trace. */
typedef struct prefix_run {
    const trace *trace;
    size_t dense_ids;         /* for the index: bound of the block ids, 0 if they are not dense */
    const uint32_t *next_use; /* per block reference; NULL unless the policy is offline */
    const char *policy;
    uint64_t pages; /* PKV_INDEX_UNLIMITED for no bound */
    size_t warmup;  /* requests before this one are run, but not counted */

    uint64_t hit_blocks, total_blocks;
    uint64_t hit_tokens, total_tokens;
    uint64_t peak_pages;
    double seconds; /* of the replay alone */
    bool verify;    /* check the index's invariants at the end */
} prefix_run;

/* Executes every run on up to `jobs` threads; -1 with err if one fails. */
int prefix_execute(prefix_run *runs, size_t n, unsigned jobs, tool_error *err);

/* 1 + the largest block id where a table with an entry per id is no waste, else 0. */
size_t prefix_dense_ids(const trace *t);

/* For every block reference the number of the next request that uses the block, or
 * PKV_INDEX_NEVER. dense_ids as above. The caller frees it; NULL with err when memory runs out. */
uint32_t *prefix_next_uses(const trace *t, size_t dense_ids, tool_error *err);

/* Share of blocks found; NAN when nothing was counted. */
double prefix_hit_rate(const prefix_run *run);

/* Output: runs are ordered by trace, then policy, then pages. Each returns -1 with err. */
void prefix_report_table(const prefix_run *runs, size_t n);
int prefix_report_json(const prefix_run *runs, size_t n, double warmup, tool_error *err);
int prefix_report_csv(const char *path, const prefix_run *runs, size_t n, tool_error *err);
int prefix_report_plot(const char *path, const prefix_run *runs, size_t n, tool_error *err);

#endif
