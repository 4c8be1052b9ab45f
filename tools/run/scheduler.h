/* The scheduler: continuous batching over one engine. Every step takes one token (or a verified
 * draft) of each decoding request and fills up with chunks of prompts.
 *
 * - A prompt starts with the longest prefix that the cache knows. A request whose prompt another
 * one is computing right now waits for those pages instead of computing them again.
 * - A request is admitted with a claim of prompt + max_new tokens (pkv_admit): what is admitted can
 *   always end. Where the limit shrinks below what runs, the youngest requests are preempted: they
 *   give up their pages and are computed again later, most of it from the prefix index.
 * One thread at a time. */
#ifndef TOOLS_RUN_SCHEDULER_H
#define TOOLS_RUN_SCHEDULER_H

#include "engine.h"
#include "sampler.h"
#include "vocab.h"

typedef enum sched_reason {
    SCHED_RUNNING = 0,
    SCHED_STOP,      /* the model ended the text */
    SCHED_LENGTH,    /* max_new reached */
    SCHED_CANCELLED, /* sched_cancel */
    SCHED_TOO_LARGE, /* does not fit the memory limit even alone */
    SCHED_ERROR
} sched_reason;

/* Called inside sched_step for each new token, and once with token -1 and the reason at the end.
 * May call sched_cancel, nothing else. */
typedef void (*sched_event_fn)(void *user, uint64_t id, int32_t token, sched_reason reason);

typedef struct sched_request {
    const int32_t *prompt; /* copied */
    uint32_t n_prompt, max_new;
    bool ignore_end; /* go on past end-of-generation tokens (benchmarks) */
    sampler_options sampling;
    const pkv_namespace *space; /* copied; NULL = default */
    sched_event_fn event;
    void *user;
} sched_request;

typedef struct sched_options {
    uint32_t max_running; /* most requests with pages; 0 = 64 */
    uint32_t max_waiting; /* 0 = 1,024 */
    uint32_t chunk;       /* most prompt tokens of a step while others decode; 0 = 256 */
    uint32_t n_draft;     /* most drafted tokens of a request and step; 0 = no speculation */
} sched_options;

typedef struct sched_stats {
    uint64_t steps, rows; /* rows = tokens that went through the model */
    uint64_t submitted, finished, cancelled, failed;
    uint64_t prompt_tokens, cached_tokens; /* of started prompts; of these, attached */
    uint64_t generated_tokens, drafted_tokens, accepted_tokens;
    uint64_t preemptions, waits; /* waits = steps that a follower sat out */
    uint32_t running, waiting;
    double busy_seconds, compute_seconds;
} sched_stats;

typedef struct sched sched;

/* Neither engine nor vocabulary is owned; a NULL vocabulary never ends a text. NULL with a text. */
sched *sched_new(engine *e, const vocab *v, const sched_options *options, tool_error *err);
/* Cancels what is left. */
void sched_free(sched *s);

/* Queues a request; its id, or 0 with a text: the queue is full, or the request is empty or longer
 * than the model's context. */
uint64_t sched_submit(sched *s, const sched_request *request, tool_error *err);
/* Ends a request at the next step. An unknown id is ignored. */
void sched_cancel(sched *s, uint64_t id);

/* One step; 0 = nothing to do, 1 = did something, -1 = the engine failed (text). */
int sched_step(sched *s, tool_error *err);

/* Changes the memory limit, preempting what must go. -1 with a text if it does not fit at all. */
int sched_set_memory(sched *s, uint64_t bytes, tool_error *err);

void sched_get_stats(const sched *s, sched_stats *stats);

#endif
