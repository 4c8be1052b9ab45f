/* What `pkv-bench pool` measures: one function per contender, all with the same shape. */
#ifndef BENCH_POOL_WORK_H
#define BENCH_POOL_WORK_H

#include <stdbool.h>
#include <stdint.h>

#include <pagedkv/pagedkv.h>

#include "team.h"
#include "tool_error.h"

enum {
    POOL_LIVE = 64, /* pages each thread holds; it replaces the oldest */
    POOL_MAX_THREADS = 2,
    POOL_SEQUENCES = 256,    /* of the append rows */
    POOL_FORK_TOKENS = 32768 /* of the fork rows */
};

typedef struct pool_work pool_work;

/* Everything the rows need: caches of the geometry of Llama-3-8B (f16, 16 tokens per page: 2 MiB
 * pages), sequences, other allocators. block_bytes: what malloc and mallocx are asked for; 0 = a
 * page. NULL with err. */
pool_work *pool_work_make(uint64_t block_bytes, tool_error *err);
void pool_work_free(pool_work *work);

uint64_t pool_work_page_bytes(const pool_work *work);
uint64_t pool_work_block_bytes(const pool_work *work);

/* One measured row. `run` does `n` operations in each of the team's threads and returns the
 * nanoseconds per operation of one thread, or a negative number if it failed (NaN if this process
 * does not have the contender). */
typedef struct pool_row {
    const char *name;
    const char *summary;
    uint32_t threads;
    uint64_t n;       /* operations in one sample */
    const char *unit; /* what one operation is */
    double bar_ns;    /* the most it should take; 0 = only for comparison */
    double (*run)(pool_work *work, team *t, uint64_t n);
} pool_row;

extern const pool_row pool_rows[];
extern const uint32_t pool_row_count;

/* Metadata bytes of the append row's cache, and the bytes of its pages in use. */
void pool_work_metadata(pool_work *work, uint64_t *metadata, uint64_t *pages);

#endif
