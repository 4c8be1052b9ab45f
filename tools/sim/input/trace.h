/* Request traces: who asks when, for how many tokens in and out, and (where the trace says so)
 * which prefix blocks the prompt consists of. Files may be plain, .gz, .xz, .zst, .bz2 or .lz4. */
#ifndef TOOLS_SIM_TRACE_H
#define TOOLS_SIM_TRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tool_error.h"

typedef enum trace_format {
    TRACE_AUTO = 0,
    TRACE_MOONCAKE, /* JSON lines: timestamp (ms), input_length, output_length, hash_ids and,
                     * optionally, block_size (tokens per block, default 512); other fields are
                     * ignored */
    TRACE_AZURE,    /* CSV with TIMESTAMP, ContextTokens, GeneratedTokens (by header name) */
    TRACE_LENGTHS,  /* CSV with num_prefill_tokens, num_decode_tokens (by header name) */
    TRACE_SYNTHETIC /* built in, see synthetic.h; not a file format */
} trace_format;

/* Bounds that a record must keep. */
#define TRACE_MAX_TOKENS ((uint64_t)1 << 28) /* per request, in and out each */
#define TRACE_MAX_BLOCK_TOKENS ((uint64_t)1 << 24)
#define TRACE_DEFAULT_BLOCK_TOKENS 512u

typedef struct trace_request {
    double arrival;       /* seconds from the earliest arrival in the trace; 0 if it has no times */
    uint64_t line;        /* line in the file, from 1 (synthetic: index + 1) */
    uint64_t first_block; /* index into trace.blocks */
    uint32_t n_blocks;    /* block ids of the prompt, in order */
    uint32_t block_tokens; /* tokens per block; the last may be partial */
    uint32_t input;        /* prompt tokens */
    uint32_t output;       /* generated tokens */
} trace_request;

typedef struct trace {
    char *name;              /* as given to trace_load, or "synthetic:…" */
    trace_format format;     /* never TRACE_AUTO */
    bool has_arrivals;       /* false: every arrival is 0 */
    bool has_blocks;         /* the trace carries prefix block ids */
    trace_request *requests; /* in file order */
    size_t n_requests;
    uint64_t *blocks; /* ids of all requests; the same id means the same block after the same
                       * prefix */
    size_t n_blocks;
    uint64_t input_tokens, output_tokens;    /* sums */
    size_t request_capacity, block_capacity; /* what the arrays have room for */
} trace;

/* Reads a whole file ("-" = standard input). On failure returns -1, *out is zeroed, and err names
 * the file, the line and the field. A trace without requests is an error. The caller frees *out. */
int trace_load(const char *path, trace_format format, trace *out, tool_error *err);

/* The same from memory (tests, fuzzing); the data may be compressed too. */
int trace_load_memory(const void *data, size_t size, const char *name, trace_format format,
                      trace *out, tool_error *err);

/* Frees what a trace holds and zeroes it; a zeroed trace is fine. */
void trace_free(trace *t);

/* "mooncake" → TRACE_MOONCAKE …; -1 with the list of names in err for an unknown one. */
int trace_format_parse(const char *text, trace_format *format, tool_error *err);
const char *trace_format_name(trace_format format);

/* Token count of block i of a request: block_tokens, or what is left in the last one, at least 1.
 */
static inline uint32_t trace_block_tokens(const trace_request *r, uint32_t i)
{
    uint64_t before = (uint64_t)i * r->block_tokens;
    if (before >= r->input) return 1;
    uint64_t left = r->input - before;
    return left < r->block_tokens ? (uint32_t)left : r->block_tokens;
}

/* Building blocks for readers and generators. Appends a request with `n` block ids (blocks may be
 * NULL when n is 0) and keeps the sums; -1 when memory runs out. */
int trace_append(trace *t, const trace_request *request, const uint64_t *blocks, uint32_t n,
                 tool_error *err);

#endif
