/* Private to the engine of pkv-sim serve: serve_engine.c runs the steps, serve_queue.c decides who
 * starts and who waits. */
#ifndef TOOLS_SIM_SERVE_ENGINE_H
#define TOOLS_SIM_SERVE_ENGINE_H

#include "serve.h"

/* A request's story over all attempts, by order of arrival. */
typedef struct story {
    const trace_request *request;
    serve_sequence *running; /* NULL while it does not */
    uint32_t generated;
    uint64_t reached; /* most tokens it ever had: what recomputation is counted against */
    double first_token;
    uint32_t leader; /* waits for this story (+ 1; 0 = for none) … */
    uint64_t until;  /* … to have so many tokens */
} story;

typedef struct engine {
    const serve_options *options;
    const trace *input;
    serve_memory *memory;
    serve_result *result;
    progress *bar;
    tool_error *err;
    story *stories;           /* in order of arrival */
    size_t n, head;           /* queue[head..n): who does not run, the next one first */
    uint32_t *queue;          /* who never ran stands at the place of its number */
    uint32_t *parked;         /* too large for the limit as it is, in the order of the queue */
    size_t n_parked;
    serve_sequence **running; /* in order of admission */
    size_t n_running;
    double now;
    double limit_base; /* bytes, for relative changes */
    uint64_t limit;
    size_t next_pressure;
    uint32_t blocked;   /* story (+ 1) that found no room, and nothing was released since */
    uint64_t published; /* pages of prompts that were finished */
    double *ttft, *tpot, *latency;
    size_t n_ttft, n_tpot, n_latency;
    double used_area, cached_area, waste_area, running_area;
    serve_sample stretch; /* counts since the last step's end */
} engine;

/* Prepares the queue; -1 when memory runs out. The caller frees e->queue and e->parked. */
int queue_init(engine *e);
/* The limit has changed: those that were too large are asked again, in their old places. */
void queue_unpark(engine *e);
/* Those that arrived and do not run. */
size_t queue_waiting(const engine *e);

/* Starts waiting requests, oldest first, while there is room; one that follows a leader is passed.
 */
int queue_admit(engine *e);
/* Matches the prompts that get tokens in the next step again. */
int queue_match_again(engine *e);

/* Takes number i out of `running`, whose memory is released already, or by the second. */
void queue_leave(engine *e, size_t i);
int queue_stop(engine *e, size_t i);
/* The youngest running request gives way, and the last one is too large for the limit. */
int queue_preempt_youngest(engine *e);
/* The figures of a start are counted with its first step: one without never happened. */
void queue_count_start(engine *e, serve_sequence *s);

#endif
