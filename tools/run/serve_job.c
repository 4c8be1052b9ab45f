#include "serve_job.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

const double serve_bounds[SERVE_BUCKETS] = {0.005, 0.01, 0.02, 0.05, 0.1, 0.2,  0.5,
                                            1.0,   2.0,  5.0,  10.0, 30., 60.0, 120.0};

/* Something for the service's thread to do between two steps. */
typedef struct errand {
    int (*run)(service *s, struct errand *e);
    uint64_t bytes, share, max;
    const pkv_namespace *space;
    tool_error *err;
    int status;
    bool done;
} errand;

struct service {
    run_options options;
    vocab *v;
    engine *e;
    sched *sched;
    pthread_t thread;
    pthread_mutex_t lock; /* of everything below */
    pthread_cond_t wake, errand_done;
    job *inbox, *active; /* lists by job.next */
    errand *errand;
    uint32_t n_jobs, max_jobs;
    bool quit, failed;
    service_state state;
    double started;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void observe(histogram *h, double seconds)
{
    int i = 0;
    while (i < SERVE_BUCKETS && seconds > serve_bounds[i])
        i++;
    for (; i <= SERVE_BUCKETS; i++)
        h->counts[i]++;
    h->n++;
    h->sum += seconds;
}

job *job_new(void)
{
    job *j = calloc(1, sizeof *j);
    if (!j) return NULL;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&j->lock, NULL);
    pthread_cond_init(&j->changed, &attr);
    pthread_condattr_destroy(&attr);
    j->holders = 1;
    return j;
}

void job_drop(job *j)
{
    if (!j) return;
    pthread_mutex_lock(&j->lock);
    bool last = --j->holders == 0;
    pthread_mutex_unlock(&j->lock);
    if (!last) return;
    pthread_mutex_destroy(&j->lock);
    pthread_cond_destroy(&j->changed);
    text_stream_free(&j->text);
    free(j->prompt);
    free(j);
}

void job_wait(job *j, size_t sent, uint32_t milliseconds)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += milliseconds / 1000;
    until.tv_nsec += (long)(milliseconds % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    while (j->reason == SCHED_RUNNING && j->text.ready <= sent)
        if (pthread_cond_timedwait(&j->changed, &j->lock, &until)) return;
}

static void set_reason(job *j, sched_reason reason)
{
    pthread_mutex_lock(&j->lock);
    text_stream_end(&j->text);
    j->reason = j->text.stopped ? SCHED_STOP : reason;
    pthread_cond_broadcast(&j->changed);
    pthread_mutex_unlock(&j->lock);
}

/* Takes a job off the active list and lets go of it. Service thread. */
static void retire(service *s, job *j)
{
    pthread_mutex_lock(&s->lock);
    for (job **at = &s->active; *at; at = &(*at)->next)
        if (*at == j) {
            *at = j->next;
            break;
        }
    s->n_jobs--;
    pthread_mutex_unlock(&s->lock);
    job_drop(j);
}

static void on_event(void *user, uint64_t id, int32_t token, sched_reason reason)
{
    job *j = user;
    service *s = j->service;
    if (reason != SCHED_RUNNING) {
        set_reason(j, reason);
        retire(s, j);
        return;
    }
    char piece[256];
    size_t size = vocab_piece(s->v, token, piece, sizeof piece);
    double t = now();
    pthread_mutex_lock(&s->lock);
    observe(j->last_token > 0 ? &s->state.between_tokens : &s->state.first_token,
            t - (j->last_token > 0 ? j->last_token : j->submitted));
    pthread_mutex_unlock(&s->lock);
    pthread_mutex_lock(&j->lock);
    j->last_token = t;
    j->n_new++;
    text_stream_add(&j->text, piece, size);
    bool over = j->text.stopped || j->text.failed;
    pthread_cond_broadcast(&j->changed);
    pthread_mutex_unlock(&j->lock);
    if (over) sched_cancel(s->sched, id);
}

static void start_job(service *s, job *j)
{
    tool_error err;
    sched_request q = {.prompt = j->prompt,
                       .n_prompt = j->n_prompt,
                       .max_new = j->max_new,
                       .ignore_end = j->ignore_end,
                       .sampling = j->sampling,
                       .space = j->space.size ? &j->space : NULL,
                       .event = on_event,
                       .user = j};
    j->id = j->cancelled ? 0 : sched_submit(s->sched, &q, &err);
    if (j->id) return;
    set_reason(j, j->cancelled ? SCHED_CANCELLED : SCHED_ERROR);
    retire(s, j);
}

/* Takes what others left: new jobs, cancellations, an errand. The lock is held, and released while
 * something is done. */
static void take_messages(service *s)
{
    while (s->inbox) {
        job *j = s->inbox;
        s->inbox = j->next;
        j->next = s->active;
        s->active = j;
        pthread_mutex_unlock(&s->lock);
        start_job(s, j);
        pthread_mutex_lock(&s->lock);
    }
    for (job *j = s->active; j; j = j->next)
        if (j->cancelled) sched_cancel(s->sched, j->id);
    if (s->errand) {
        errand *e = s->errand;
        s->errand = NULL;
        pthread_mutex_unlock(&s->lock);
        e->status = e->run(s, e);
        pthread_mutex_lock(&s->lock);
        e->done = true;
        pthread_cond_broadcast(&s->errand_done);
    }
}

static void take_snapshot(service *s)
{
    pkv_stats cache = {.struct_size = sizeof cache};
    pkv_cache_stats(s->e->cache, &cache);
    pthread_mutex_lock(&s->lock);
    sched_get_stats(s->sched, &s->state.sched);
    s->state.cache = cache;
    pthread_mutex_unlock(&s->lock);
}

static void *serve(void *context)
{
    service *s = context;
    tool_error err;
    for (bool quit = false; !quit;) {
        pthread_mutex_lock(&s->lock);
        take_messages(s);
        quit = s->quit;
        pthread_mutex_unlock(&s->lock);
        int did = quit ? 0 : sched_step(s->sched, &err);
        take_snapshot(s);
        pthread_mutex_lock(&s->lock);
        if (did < 0) {
            fprintf(stderr, "pkv-run serve: %s\n", err.text);
            s->failed = true;
        }
        while (!did && !s->quit && !s->inbox && !s->errand)
            pthread_cond_wait(&s->wake, &s->lock);
        if (did < 0) quit = true;
        pthread_mutex_unlock(&s->lock);
    }
    sched_free(s->sched); /* ends what is left */
    pthread_mutex_lock(&s->lock);
    s->quit = true;
    while (s->inbox) { /* came after the last look */
        job *j = s->inbox;
        s->inbox = j->next;
        j->next = s->active;
        s->active = j;
        pthread_mutex_unlock(&s->lock);
        set_reason(j, SCHED_CANCELLED);
        retire(s, j);
        pthread_mutex_lock(&s->lock);
    }
    if (s->errand) {
        s->errand->status = tool_fail(s->errand->err, "the service is stopping");
        s->errand->done = true;
        s->errand = NULL;
    }
    pthread_cond_broadcast(&s->errand_done);
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

service *service_start(const run_options *o, uint32_t max_jobs, tool_error *err)
{
    service *s = calloc(1, sizeof *s);
    if (!s) {
        tool_fail(err, "not enough memory");
        return NULL;
    }
    s->options = *o;
    s->max_jobs = max_jobs;
    s->options.sched.max_waiting = max_jobs;
    s->v = vocab_open(o->engine.model, err);
    s->e = s->v ? engine_open(&o->engine, err) : NULL;
    s->sched = s->e ? sched_new(s->e, s->v, &s->options.sched, err) : NULL;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->wake, NULL);
    pthread_cond_init(&s->errand_done, NULL);
    s->started = now();
    if (s->sched) take_snapshot(s);
    if (s->sched && pthread_create(&s->thread, NULL, serve, s) == 0) return s;
    if (s->sched) tool_fail(err, "cannot start a thread");
    sched_free(s->sched);
    engine_close(s->e);
    vocab_close(s->v);
    free(s);
    return NULL;
}

int service_stop(service *s, tool_error *err)
{
    char text[256] = "";
    pthread_mutex_lock(&s->lock);
    s->quit = true;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    int status = 0;
    pkv_status verified = pkv_cache_verify(s->e->cache, text, sizeof text);
    pkv_stats cache = {.struct_size = sizeof cache};
    if (!verified) verified = pkv_cache_stats(s->e->cache, &cache);
    if (verified)
        status = tool_fail(err, "the cache is broken: %s", text);
    else if (cache.sequences || cache.batches || cache.pages_used)
        status =
            tool_fail(err, "%llu sequences and %llu pages are left over",
                      (unsigned long long)cache.sequences, (unsigned long long)cache.pages_used);
    else if (s->failed)
        status = tool_fail(err, "the engine failed");
    engine_close(s->e);
    vocab_close(s->v);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->wake);
    pthread_cond_destroy(&s->errand_done);
    free(s);
    return status;
}

const vocab *service_vocab(const service *s)
{
    return s->v;
}

uint32_t service_context(const service *s)
{
    return s->e->model->n_ctx_train;
}

const char *service_model(const service *s)
{
    return s->e->model->name;
}

int service_submit(service *s, job *j)
{
    pthread_mutex_lock(&s->lock);
    bool full = s->n_jobs >= s->max_jobs || s->quit || s->failed;
    if (full) {
        s->state.refused++;
    } else {
        job **at = &s->inbox;
        while (*at)
            at = &(*at)->next;
        *at = j;
        j->service = s;
        j->submitted = now();
        j->holders++;
        s->n_jobs++;
        pthread_cond_signal(&s->wake);
    }
    pthread_mutex_unlock(&s->lock);
    return full ? -1 : 0;
}

void service_cancel(service *s, job *j)
{
    pthread_mutex_lock(&s->lock);
    j->cancelled = true;
    pthread_mutex_unlock(&s->lock);
}

void service_cancel_all(service *s)
{
    pthread_mutex_lock(&s->lock);
    s->max_jobs = 0;
    for (job *j = s->inbox; j; j = j->next)
        j->cancelled = true;
    for (job *j = s->active; j; j = j->next)
        j->cancelled = true;
    pthread_mutex_unlock(&s->lock);
}

void service_get_state(service *s, service_state *state)
{
    pthread_mutex_lock(&s->lock);
    *state = s->state;
    pthread_mutex_unlock(&s->lock);
    state->uptime = now() - s->started;
}

static int send_errand(service *s, errand *e)
{
    pthread_mutex_lock(&s->lock);
    while (s->errand && !s->quit && !s->failed)
        pthread_cond_wait(&s->errand_done, &s->lock);
    if (s->quit || s->failed) {
        pthread_mutex_unlock(&s->lock);
        return tool_fail(e->err, "the service is stopping");
    }
    s->errand = e;
    pthread_cond_signal(&s->wake);
    while (!e->done)
        pthread_cond_wait(&s->errand_done, &s->lock);
    pthread_mutex_unlock(&s->lock);
    return e->status;
}

static int run_set_memory(service *s, errand *e)
{
    return sched_set_memory(s->sched, e->bytes, e->err);
}

static int run_verify(service *s, errand *e)
{
    char text[256] = "";
    return pkv_cache_verify(s->e->cache, text, sizeof text) ? tool_fail(e->err, "%s", text) : 0;
}

static int run_set_quota(service *s, errand *e)
{
    pkv_prefix_quota quota = {.struct_size = sizeof quota, .share = e->share, .max = e->max};
    pkv_status status = pkv_prefix_set_quota(s->e->cache, e->space, &quota);
    return status ? tool_fail(e->err, "quota: %s", pkv_status_text(status)) : 0;
}

int service_set_memory(service *s, uint64_t bytes, tool_error *err)
{
    errand e = {.run = run_set_memory, .bytes = bytes, .err = err};
    return send_errand(s, &e);
}

int service_verify(service *s, tool_error *err)
{
    errand e = {.run = run_verify, .err = err};
    return send_errand(s, &e);
}

int service_set_quota(service *s, const pkv_namespace *space, uint64_t share, uint64_t max,
                      tool_error *err)
{
    errand e = {.run = run_set_quota, .space = space, .share = share, .max = max, .err = err};
    return send_errand(s, &e);
}
