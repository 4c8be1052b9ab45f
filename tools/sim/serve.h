/* pkv-sim serve: continuous batching with a simulated clock. The engine (serve_engine.c) schedules;
 * where the tokens live is behind `serve_memory`, so that the same engine runs on the library and
 * on contiguous reservation. docs/tools.md describes the rules. */
#ifndef TOOLS_SIM_SERVE_H
#define TOOLS_SIM_SERVE_H

#include <pagedkv/prefix.h>
#include <stdbool.h>
#include <stdint.h>

#include "model.h"
#include "pressure.h"
#include "progress.h"
#include "roofline.h"
#include "stats_summary.h"
#include "trace.h"

enum { SERVE_MAX_PRESSURE = 64, SERVE_MAX_RUNS = 8 };

typedef enum serve_admission {
    SERVE_WATERMARK, /* start when the prompt fits and some pages stay free; preempt when short */
    SERVE_SAFE       /* the library's safe-state rule over final lengths; preempts only when the
                      * limit shrinks */
} serve_admission;

typedef struct serve_options {
    const model *model;
    const hardware *hardware;
    uint32_t page_tokens;
    uint64_t memory;      /* bytes */
    uint64_t state_bytes; /* of one sequence, over all recurrent layers; 0 = the model has none */
    uint32_t max_seqs;
    uint32_t chunk;     /* prompt tokens per step, over all sequences */
    double watermark;   /* share of the limit that admission keeps free */
    bool no_prefix;     /* do not reuse cached prefixes */
    const char *policy; /* which of them to replace first; NULL = the library's default */
    serve_admission admission;
    uint64_t verify_every; /* steps; 0 = never */
    pressure pressure[SERVE_MAX_PRESSURE];
    size_t n_pressure;
} serve_options;

/* A running request. */
typedef struct serve_sequence {
    const trace_request *request;
    uint32_t index;     /* place in order of arrival */
    uint32_t generated; /* answer tokens sampled so far, over all attempts */
    uint64_t target;    /* prompt + generated when it was (re)started: to be computed first */
    uint64_t length;    /* tokens whose keys and values are there */
    bool counted;       /* it had a step: its start is in the figures */
    uint32_t step;      /* new tokens in this step; 0 = sits out */
    uint64_t stop;      /* a step of its prompt goes no further, if that is beyond length */
    int32_t *tokens;    /* target token ids, or NULL */
    pkv_seq seq;        /* the library's handle */
    pkv_match match;    /* what the last match found */
    uint64_t published; /* pages of its prompt that it finished */
    uint64_t seen;      /* pages of others that were published when it was matched last */
    uint64_t slots;     /* contiguous: reserved token slots */
} serve_sequence;

/* A model needs at least one token to start from, whatever the trace says. */
static inline uint64_t serve_prompt(const trace_request *r)
{
    return r->input > 0 ? r->input : 1;
}

/* Tokens a request must keep at its longest: the last sampled token is never fed back. */
static inline uint64_t serve_final_length(const trace_request *r)
{
    return serve_prompt(r) + (r->output > 0 ? r->output - 1 : 0);
}

typedef struct serve_usage {
    uint64_t limit;       /* bytes */
    uint64_t used;        /* bytes of pages (or reservations) that running sequences hold */
    uint64_t cached;      /* bytes of reclaimable prefix pages */
    uint64_t metadata;    /* bytes */
    uint64_t slots_held;  /* token slots held by running sequences, shared ones once */
    uint64_t slots_empty; /* of these, not filled yet */
} serve_usage;

typedef struct serve_memory serve_memory;

enum { SERVE_TOO_LARGE = 2 };

/* Functions return 1 = done, 0 = not now (nothing changed), -1 = failed with err. */
struct serve_memory {
    /* Looks for what is cached of a sequence with ->tokens (< target): sets ->match. NULL where
     * nothing is. */
    int (*match)(serve_memory *m, serve_sequence *s, tool_error *err);
    /* Starts a sequence, with what ->match says if it has tokens, if there is room for it now,
     * beside the running ones in `list`, and, alone, for its final length: sets ->length. While
     * nothing runs, reserves kept for others do not matter. SERVE_TOO_LARGE: not under this limit,
     * whatever ends; the answer to who does not start while nothing runs. */
    int (*start)(serve_memory *m, serve_sequence *s, serve_sequence *const *list, size_t n,
                 tool_error *err);
    /* Begins a running sequence anew with ->match, which is longer than what it has. 0: that cannot
     * be, it goes on with what it has. */
    int (*replace)(serve_memory *m, serve_sequence *s, tool_error *err);
    /* Memory for every sequence's ->step tokens, or 0. May set ->step of some to 0 instead (safe
     * admission), but not of all. */
    int (*reserve)(serve_memory *m, serve_sequence *const *list, size_t n, tool_error *err);
    /* After a reserve that returned 1: the tokens are there. */
    int (*commit)(serve_memory *m, serve_sequence *const *list, size_t n, tool_error *err);
    /* Ends or preempts a sequence. */
    int (*stop)(serve_memory *m, serve_sequence *s, tool_error *err);
    /* Changes the limit; 0 if more than that is in use. */
    int (*set_limit)(serve_memory *m, uint64_t bytes, tool_error *err);
    int (*usage)(serve_memory *m, serve_sequence *const *list, size_t n, serve_usage *usage,
                 tool_error *err);
    /* Checks every invariant. */
    int (*verify)(serve_memory *m, tool_error *err);
    void (*destroy)(serve_memory *m);
};

/* The library. NULL with err. */
serve_memory *serve_paged_create(const serve_options *options, const trace *input, tool_error *err);

typedef enum serve_reservation { SERVE_MAX, SERVE_POW2, SERVE_ORACLE } serve_reservation;

/* Contiguous reservation from admission to the end; fragmentation between reservations is ignored,
 * which favours it. `max_tokens` is what SERVE_MAX reserves. */
serve_memory *serve_contiguous_create(const serve_options *options, serve_reservation kind,
                                      uint64_t max_tokens, tool_error *err);

/* One point of the timeline: sums and time-weighted means over an interval. */
typedef struct serve_sample {
    double start, end;          /* simulated seconds */
    double limit, used, cached; /* bytes: means; the limit is the one at the end */
    double running, waiting;    /* means */
    uint64_t prompt_tokens, output_tokens, hit_tokens; /* computed, sampled, found cached */
    uint32_t preemptions, completed;
} serve_sample;

/* `a` becomes the sample over both; `b` follows it in time. */
void serve_sample_merge(serve_sample *a, const serve_sample *b);

typedef struct serve_timeline {
    serve_sample *samples;
    size_t n, capacity;
    double interval; /* doubles whenever the samples would exceed the capacity */
    serve_sample current;
} serve_timeline;

int serve_timeline_init(serve_timeline *t, tool_error *err);
void serve_timeline_free(serve_timeline *t);
/* Adds a stretch of time in which the given means held, with its counts. */
void serve_timeline_add(serve_timeline *t, const serve_sample *stretch);
/* Ends the last interval. */
void serve_timeline_finish(serve_timeline *t);

/* The outcome of one run. */
typedef struct serve_result {
    char name[32]; /* "paged", "max-32768", … */
    uint64_t completed, never_fit, preemptions, limit_changes;
    uint64_t first_never_fit[4]; /* lines of the trace */
    uint64_t followers;          /* waits for the pages of a leader */
    uint64_t steps, verified;
    double end; /* simulated seconds from the first arrival to the last completion */
    uint64_t prompt_tokens, output_tokens;            /* of completed requests */
    uint64_t computed_tokens, computed_prompt_tokens; /* the first counts answers, too */
    uint64_t recomputed_tokens; /* of the first: at places that the request had reached before */
    uint64_t asked_tokens, hit_tokens; /* prompt tokens looked up, and found cached */
    uint64_t skipped_tokens; /* of the latter: at places it had not reached before, so that
                              * computed = final lengths + recomputed - skipped */
    stats_summary ttft, tpot, latency;
    uint64_t used_peak, metadata_peak;
    double used_mean, cached_mean, waste_mean, running_mean; /* time-weighted */
    uint32_t running_peak;
    serve_timeline timeline;
} serve_result;

void serve_result_free(serve_result *r);

/* Runs a whole trace. The memory is the caller's. -1 with err. */
int serve_run(const serve_options *options, const trace *input, serve_memory *memory, progress *bar,
              serve_result *result, tool_error *err);

/* The token ids of a request's first n tokens: made from its block ids, so that equal blocks have
 * equal tokens; tokens after the prompt are the request's own. */
void serve_tokens(const trace *input, const trace_request *r, uint64_t n, int32_t *tokens);
/* The leading prompt tokens that two requests have in common. */
uint64_t serve_common_tokens(const trace *input, const trace_request *a, const trace_request *b);
/* The same for position `at` behind the prompt's blocks (answers). */
int32_t serve_answer_token(const trace *input, const trace_request *r, uint64_t at);

/* Output. */
void serve_print_table(const serve_options *options, const trace *input,
                       const serve_result *results, size_t n);
int serve_print_json(const serve_options *options, const trace *input, const serve_result *results,
                     size_t n, tool_error *err);
int serve_write_csv(const char *path, const serve_result *paged, tool_error *err);
int serve_write_plot(const char *path, const serve_options *options, const trace *input,
                     const serve_result *results, size_t n, tool_error *err);

#endif
