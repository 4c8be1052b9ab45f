/* The service: one thread that owns engine and scheduler, and jobs that any thread may hand to it.
 * A job is what one HTTP request waits for; its text grows while it runs. */
#ifndef TOOLS_RUN_SERVE_JOB_H
#define TOOLS_RUN_SERVE_JOB_H

#include <pthread.h>

#include "options.h"
#include "text_stream.h"

enum { SERVE_BUCKETS = 14 };

/* Cumulative counts as Prometheus has them; the last bucket is +Inf. */
typedef struct histogram {
    uint64_t counts[SERVE_BUCKETS + 1];
    uint64_t n;
    double sum;
} histogram;
extern const double serve_bounds[SERVE_BUCKETS]; /* seconds */

/* What the service looks like after a step. */
typedef struct service_state {
    sched_stats sched;
    pkv_stats cache;
    histogram first_token, between_tokens;
    uint64_t refused; /* 429 */
    double uptime;
} service_state;

typedef struct job {
    /* set by the owner before service_submit */
    int32_t *prompt; /* owned */
    uint32_t n_prompt, max_new;
    bool ignore_end;
    sampler_options sampling;
    pkv_namespace space; /* of a tenant: lives as long as the service */
    /* guarded by `lock` from then on */
    text_stream text;
    uint32_t n_new;
    sched_reason reason; /* SCHED_RUNNING until the end */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* the service's own */
    struct service *service;
    struct job *next;
    uint64_t id;
    double submitted, last_token;
    bool cancelled;
    int holders;
} job;

typedef struct service service;

/* Loads the model and starts the thread. NULL with a text. */
service *service_start(const run_options *o, uint32_t max_jobs, tool_error *err);
/* Cancels everything, stops the thread and verifies the cache: -1 with a text if that fails. */
int service_stop(service *s, tool_error *err);

const vocab *service_vocab(const service *s);
uint32_t service_context(const service *s); /* the model's, tokens */
const char *service_model(const service *s);

/* An empty job; NULL if memory runs out. Two holders: the caller and, once submitted, the service.
 */
job *job_new(void);
void job_drop(job *j);

/* Hands a job over: -1 if too many are there already (then it is still only the caller's). */
int service_submit(service *s, job *j);
/* The caller lost interest: pages are freed at the next step. */
void service_cancel(service *s, job *j);

/* Ends all jobs at the next step and takes no more. */
void service_cancel_all(service *s);

/* Waits until the job has text beyond `sent`, or ends, or the time is over; the lock is held
 * by the caller. */
void job_wait(job *j, size_t sent, uint32_t milliseconds);

void service_get_state(service *s, service_state *state);

/* Changes the memory limit between steps, or verifies the cache: 0, or -1 with a text. */
int service_set_memory(service *s, uint64_t bytes, tool_error *err);
int service_verify(service *s, tool_error *err);
/* Gives a namespace a quota in pages of each layer group. */
int service_set_quota(service *s, const pkv_namespace *space, uint64_t share, uint64_t max,
                      tool_error *err);

#endif
