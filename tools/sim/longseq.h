/* pkv-sim longseq: long sequences under a memory limit, with eviction policies, through the real
 * cache and kernel, on synthetic attention patterns. */
#ifndef TOOLS_SIM_LONGSEQ_H
#define TOOLS_SIM_LONGSEQ_H

#include <pagedkv/pagedkv.h>
#include <stdbool.h>
#include <stdint.h>

#include "model.h"
#include "progress.h"
#include "tool_error.h"

/* ---- patterns (longseq_pattern.c) ---------------------------------------------------------------
 * Queries and keys whose attention is known by construction:
 *   sinks    most mass on the first four tokens, the rest nearby
 *   local    mass falls off with distance
 *   needle   half of the queries look for one of the marked tokens seen so far
 *   uniform  no structure
 *   mixed    query heads take turns with the four above */

typedef enum longseq_pattern {
    PATTERN_SINKS,
    PATTERN_LOCAL,
    PATTERN_NEEDLE,
    PATTERN_UNIFORM,
    PATTERN_MIXED
} longseq_pattern;

int longseq_pattern_parse(const char *name, longseq_pattern *out, tool_error *err);
const char *longseq_pattern_name(longseq_pattern pattern);

typedef struct longseq_source {
    longseq_pattern pattern;
    uint64_t seed;
    uint32_t kv_heads, group_size, dim;
} longseq_source;

enum { LONGSEQ_MIN_DIM = 64, LONGSEQ_PLACE = 32 };

/* What the vectors of a position say about where it is; the same for all heads and layers. */
void longseq_place(uint64_t position, float place[LONGSEQ_PLACE]);

/* One vector of `dim` floats: key and value of a KV head, query of a query head. */
void longseq_key(const longseq_source *s, uint32_t seq, uint64_t position, const float *place,
                 uint32_t layer, uint32_t head, float *out);
void longseq_value(const longseq_source *s, uint32_t seq, uint64_t position, uint32_t layer,
                   uint32_t head, float *out);
void longseq_query(const longseq_source *s, uint32_t seq, uint64_t position, const float *place,
                   uint32_t layer, uint32_t head, float *out);

/* ---- options and truth (longseq_truth.c) ---------------------------------------------------- */

typedef struct longseq_options {
    const model *geometry; /* one group, full attention */
    uint32_t sequences, page_tokens, chunk;
    uint64_t tokens, prompt, memory, seed;
    uint32_t samples;
    int32_t position_mode;
} longseq_options;

/* What attention over everything gives sequence 0 at some decode steps, in the first layers. */
typedef struct longseq_truth {
    uint32_t n_samples, n_layers, kv_heads, q_heads, dim, page_tokens;
    uint64_t *position; /* [n_samples], ascending */
    float **mass;       /* [n_samples] → [layer][kv_head][page], sums to group_size */
    float **out;        /* [n_samples] → [layer][q_head][dim] */
} longseq_truth;

int longseq_truth_make(const longseq_options *o, const longseq_source *s, progress *bar,
                       longseq_truth *truth, tool_error *err);
void longseq_truth_free(longseq_truth *truth);
/* How many steps of progress making it takes. */
uint64_t longseq_truth_work(const longseq_options *o);

/* ---- one run (longseq_run.c) ---------------------------------------------------------------- */

enum { LONGSEQ_POINTS = 40 };

/* The run up to some step. Figures about quality are NaN where no sample fell. */
typedef struct longseq_point {
    double token; /* tokens of each sequence so far */
    double resident_tokens, memory_bytes, us_per_token, mass_retained, output_error;
} longseq_point;

typedef struct longseq_result {
    char policy[32];
    longseq_pattern pattern;
    uint64_t budget_tokens, steps, tokens_reached;
    bool exhausted; /* memory ran out before the end */
    uint64_t resident_tokens_max, resident_tokens_max_in_step, pages_evicted, memory_bytes_max;
    double mass_retained, mass_retained_oracle, output_error, regret_rate;
    double us_first_tenth, us_last_tenth;
    uint32_t samples;
    longseq_point points[LONGSEQ_POINTS];
    uint32_t n_points;
} longseq_result;

int longseq_run(const longseq_options *o, const longseq_source *s, const longseq_truth *truth,
                const char *policy, uint64_t budget, progress *bar, longseq_result *result,
                tool_error *err);

/* ---- reports (longseq_report.c) ------------------------------------------------------------- */

void longseq_print_table(const longseq_options *o, const longseq_result *results, size_t n);
int longseq_print_json(const longseq_options *o, const longseq_result *results, size_t n,
                       tool_error *err);
int longseq_write_csv(const char *path, const longseq_options *o, const longseq_result *results,
                      size_t n, tool_error *err);
int longseq_write_plot(const char *path, const longseq_options *o, const longseq_result *results,
                       size_t n, tool_error *err);

#endif
