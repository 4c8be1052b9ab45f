/* The scheduler of pkv-sim serve.
 *
 * Order: requests are served first come, first served; an older one never waits for a younger one.
 * `running` is sorted by arrival, a preempted request goes back to the front of the queue, and when
 * memory is short the youngest running request gives way. So the oldest request always goes on, and
 * once it is alone and still does not fit it never will under this limit: it then waits for the
 * limit to grow, or is reported as one that can never fit. That is why there is neither deadlock
 * nor livelock. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "serve.h"

/* A request's story over all attempts, by order of arrival. */
typedef struct story {
    const trace_request *request;
    uint32_t generated;
    uint64_t computed; /* most tokens it ever had computed: what recomputation is counted against */
    double first_token;
} story;

typedef struct engine {
    const serve_options *options;
    const trace *input;
    serve_memory *memory;
    serve_result *result;
    progress *bar;
    tool_error *err;
    story *stories;      /* in order of arrival */
    size_t n, next;      /* next one never started */
    uint32_t *preempted; /* sorted, youngest first: the last one starts again next */
    size_t n_preempted;
    serve_sequence **running; /* sorted by arrival */
    size_t n_running;
    double now;
    double limit_base; /* bytes, for relative changes */
    uint64_t limit;
    size_t next_pressure;
    bool blocked; /* the head of the queue found no room, and nothing was released since */
    double *ttft, *tpot, *latency;
    size_t n_ttft, n_tpot, n_latency;
    double used_area, cached_area, waste_area, running_area;
    serve_sample stretch; /* counts since the last step's end */
} engine;

/* ---- queue ---------------------------------------------------------------------------------- */

static bool head(const engine *e, uint32_t *index)
{
    if (e->n_preempted > 0) {
        *index = e->preempted[e->n_preempted - 1];
        return true;
    }
    if (e->next < e->n && e->stories[e->next].request->arrival <= e->now) {
        *index = (uint32_t)e->next;
        return true;
    }
    return false;
}

static void pop(engine *e)
{
    if (e->n_preempted > 0)
        e->n_preempted--;
    else
        e->next++;
}

static size_t waiting(const engine *e)
{
    /* Arrived and never started: arrivals are sorted, so a binary search. */
    size_t low = e->next, high = e->n;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (e->stories[mid].request->arrival <= e->now)
            low = mid + 1;
        else
            high = mid;
    }
    return e->n_preempted + (low - e->next);
}

/* ---- start, stop, preempt ------------------------------------------------------------------- */

static void free_sequence(serve_sequence *s)
{
    if (s == NULL) return;
    free(s->tokens);
    free(s);
}

/* Makes the sequence of a request that is about to start. */
static serve_sequence *make_sequence(engine *e, uint32_t index)
{
    const story *t = &e->stories[index];
    serve_sequence *s = calloc(1, sizeof *s);
    if (s == NULL) return NULL;
    s->request = t->request;
    s->index = index;
    s->generated = t->generated;
    s->target = serve_prompt(t->request) + t->generated;
    if (!e->options->no_prefix && e->input->has_blocks) {
        s->tokens = malloc(s->target * sizeof *s->tokens);
        if (s->tokens == NULL) {
            free(s);
            return NULL;
        }
        serve_tokens(e->input, t->request, s->target, s->tokens);
    }
    return s;
}

static uint64_t outstanding(const engine *e)
{
    uint64_t tokens = 0;
    for (size_t i = 0; i < e->n_running; i++)
        if (e->running[i]->length < e->running[i]->target)
            tokens += e->running[i]->target - e->running[i]->length;
    return tokens;
}

static int stop(engine *e, size_t i)
{
    serve_sequence *s = e->running[i];
    if (e->memory->stop(e->memory, s, e->err) < 0) return -1;
    free_sequence(s);
    e->n_running--;
    memmove(&e->running[i], &e->running[i + 1], (e->n_running - i) * sizeof *e->running);
    e->blocked = false;
    return 0;
}

/* The youngest running request gives way; it will compute its tokens again. */
static int preempt_youngest(engine *e)
{
    serve_sequence *s = e->running[e->n_running - 1];
    story *t = &e->stories[s->index];
    t->generated = s->generated;
    if (s->length > t->computed) t->computed = s->length;
    e->preempted[e->n_preempted++] = s->index;
    e->result->preemptions++;
    e->stretch.preemptions++;
    return stop(e, e->n_running - 1);
}

static void count_start(engine *e, const serve_sequence *s)
{
    story *t = &e->stories[s->index];
    serve_result *r = e->result;
    if (s->tokens != NULL) {
        r->asked_tokens += s->target;
        r->hit_tokens += s->length;
        e->stretch.hit_tokens += s->length;
    }
    if (t->computed > s->length) r->recomputed_tokens += t->computed - s->length;
}

/* Starts waiting requests, oldest first, while there is room for them. */
static int admit(engine *e)
{
    uint32_t index;
    while (!e->blocked && e->n_running < e->options->max_seqs && head(e, &index)) {
        serve_sequence *s = make_sequence(e, index);
        if (s == NULL) return tool_fail(e->err, "out of memory");
        int got = e->memory->start(e->memory, s, outstanding(e), e->n_running == 0, e->err);
        if (got <= 0) {
            free_sequence(s);
            if (got < 0) return -1;
            e->blocked = true;
            break;
        }
        pop(e);
        count_start(e, s);
        e->running[e->n_running++] = s;
    }
    return 0;
}

/* ---- memory pressure ------------------------------------------------------------------------ */

static int set_limit(engine *e, const parse_pressure *change)
{
    double wanted =
        change->relative ? (double)e->limit + change->amount * e->limit_base : change->amount;
    uint64_t bytes = wanted < 1 ? 1 : (uint64_t)(wanted + 0.5);
    int got;
    while ((got = e->memory->set_limit(e->memory, bytes, e->err)) == 0) {
        if (e->n_running == 0)
            return tool_fail(e->err, "--pressure at %gs: the limit cannot become %llu bytes",
                             change->at, (unsigned long long)bytes);
        if (preempt_youngest(e) != 0) return -1;
    }
    if (got < 0) return -1;
    e->limit = bytes;
    e->blocked = false;
    e->result->limit_changes++;
    return 0;
}

static int apply_pressure(engine *e)
{
    const serve_options *o = e->options;
    while (e->next_pressure < o->n_pressure && o->pressure[e->next_pressure].at <= e->now)
        if (set_limit(e, &o->pressure[e->next_pressure++]) != 0) return -1;
    return 0;
}

/* ---- steps ---------------------------------------------------------------------------------- */

/* Every decoding sequence gets one token, prompts share the chunk, oldest first. */
static size_t plan_step(engine *e)
{
    uint64_t budget = e->options->chunk;
    size_t active = 0;
    for (size_t i = 0; i < e->n_running; i++) {
        serve_sequence *s = e->running[i];
        if (s->length >= s->target) {
            s->step = 1;
        } else {
            uint64_t left = s->target - s->length;
            s->step = (uint32_t)(left < budget ? left : budget);
            budget -= s->step;
        }
        active += s->step > 0;
    }
    return active;
}

/* Plans and reserves; the youngest give way until it fits. 0 = nothing can run. */
static int reserve_step(engine *e)
{
    while (e->n_running > 0) {
        plan_step(e);
        int got = e->memory->reserve(e->memory, e->running, e->n_running, e->err);
        if (got != 0) return got;
        if (preempt_youngest(e) != 0) return -1;
    }
    return 0;
}

static int complete(engine *e, size_t i)
{
    const serve_sequence *s = e->running[i];
    const trace_request *q = s->request;
    serve_result *r = e->result;
    double since_first = e->now - e->stories[s->index].first_token;
    if (q->output > 1) e->tpot[e->n_tpot++] = since_first / (q->output - 1);
    e->latency[e->n_latency++] = e->now - q->arrival;
    r->completed++;
    r->prompt_tokens += q->input;
    r->output_tokens += q->output;
    r->end = e->now;
    e->stretch.completed++;
    progress_add(e->bar, 1);
    return stop(e, i);
}

/* After a step's tokens are there: sample, and take out what is complete. */
static int advance(engine *e)
{
    for (size_t i = 0; i < e->n_running;) {
        serve_sequence *s = e->running[i];
        const trace_request *q = s->request;
        bool prompt_done = s->step > 0 && s->length >= s->target;
        if (prompt_done && s->generated < q->output) {
            if (s->generated++ == 0) {
                e->stories[s->index].first_token = e->now;
                e->ttft[e->n_ttft++] = e->now - q->arrival;
            }
            e->stretch.output_tokens++;
        }
        if (prompt_done && s->generated >= q->output) {
            if (complete(e, i) != 0) return -1;
        } else {
            i++;
        }
    }
    return 0;
}

static double step_time(engine *e)
{
    roofline_step work = {0};
    for (size_t i = 0; i < e->n_running; i++) {
        serve_sequence *s = e->running[i];
        if (s->step == 0) continue;
        roofline_add(&work, e->options->model, s->length, s->step);
        if (s->length < s->target) {
            e->stretch.prompt_tokens += s->step;
            e->result->computed_tokens += s->step;
        }
    }
    return roofline_time(&work, e->options->model, e->options->hardware);
}

/* Accounts for the time from `from` to now, in which `u` was held, that many ran, and as many
 * waited as when it began. */
static void account(engine *e, double from, const serve_usage *u, size_t running, size_t queued)
{
    serve_result *r = e->result;
    double seconds = e->now - from;
    e->used_area += seconds * (double)u->used;
    e->cached_area += seconds * (double)u->cached;
    e->running_area += seconds * (double)running;
    if (u->slots_held > 0)
        e->waste_area += seconds * (double)u->slots_empty / (double)u->slots_held;
    if (u->used > r->used_peak) r->used_peak = u->used;
    if (u->metadata > r->metadata_peak) r->metadata_peak = u->metadata;
    if (running > r->running_peak) r->running_peak = (uint32_t)running;
    serve_sample s = e->stretch;
    s.start = from;
    s.end = e->now;
    s.limit = (double)u->limit;
    s.used = (double)u->used;
    s.cached = (double)u->cached;
    s.running = (double)running;
    s.waiting = (double)queued;
    serve_timeline_add(&r->timeline, &s);
    memset(&e->stretch, 0, sizeof e->stretch);
}

static int step(engine *e)
{
    serve_usage usage;
    double from = e->now;
    size_t running = e->n_running, queued = waiting(e);
    double seconds = step_time(e);
    if (e->memory->commit(e->memory, e->running, e->n_running, e->err) < 0 ||
        e->memory->usage(e->memory, e->running, e->n_running, &usage, e->err) < 0)
        return -1;
    e->now += seconds;
    e->result->steps++;
    if (advance(e) != 0) return -1;
    account(e, from, &usage, running, queued);
    if (e->options->verify_every != 0 && e->result->steps % e->options->verify_every == 0) {
        if (e->memory->verify(e->memory, e->err) < 0) return -1;
        e->result->verified++;
    }
    return 0;
}

/* ---- idle ----------------------------------------------------------------------------------- */

/* Nothing runs: time passes until a request arrives or the limit changes. */
static int idle_until(engine *e, double then)
{
    serve_usage usage;
    double from = e->now;
    size_t queued = waiting(e);
    if (e->memory->usage(e->memory, NULL, 0, &usage, e->err) < 0) return -1;
    e->now = then;
    account(e, from, &usage, 0, queued);
    return 0;
}

/* The oldest request does not fit into the whole memory, and the limit will not change again. */
static void never_fits(engine *e, uint32_t index)
{
    serve_result *r = e->result;
    size_t room = sizeof r->first_never_fit / sizeof r->first_never_fit[0];
    if (r->never_fit < room) r->first_never_fit[r->never_fit] = e->stories[index].request->line;
    r->never_fit++;
    pop(e);
    e->blocked = false;
    progress_add(e->bar, 1);
}

static int idle(engine *e)
{
    uint32_t index;
    bool change = e->next_pressure < e->options->n_pressure;
    double change_at = change ? e->options->pressure[e->next_pressure].at : INFINITY;
    if (head(e, &index)) {
        if (change) return idle_until(e, change_at);
        never_fits(e, index);
        return 0;
    }
    double arrival = e->next < e->n ? e->stories[e->next].request->arrival : INFINITY;
    return idle_until(e, arrival < change_at ? arrival : change_at);
}

/* ---- all ------------------------------------------------------------------------------------ */

static int loop(engine *e)
{
    while (e->n_running > 0 || e->n_preempted > 0 || e->next < e->n) {
        if (apply_pressure(e) != 0 || admit(e) != 0) return -1;
        int got = reserve_step(e);
        if (got < 0) return -1;
        if (got > 0 ? step(e) != 0 : idle(e) != 0) return -1;
    }
    return e->memory->verify(e->memory, e->err) < 0 ? -1 : 0;
}

static int by_arrival(const void *a, const void *b)
{
    const story *x = a, *y = b;
    if (x->request->arrival != y->request->arrival)
        return x->request->arrival < y->request->arrival ? -1 : 1;
    return x->request < y->request ? -1 : x->request > y->request;
}

static int prepare(engine *e)
{
    e->n = e->input->n_requests;
    e->stories = calloc(e->n, sizeof *e->stories);
    e->preempted = calloc(e->options->max_seqs, sizeof *e->preempted);
    e->running = calloc(e->options->max_seqs, sizeof *e->running);
    e->ttft = calloc(3 * e->n, sizeof *e->ttft);
    if (e->stories == NULL || e->preempted == NULL || e->running == NULL || e->ttft == NULL)
        return tool_fail(e->err, "out of memory");
    e->tpot = e->ttft + e->n;
    e->latency = e->tpot + e->n;
    for (size_t i = 0; i < e->n; i++)
        e->stories[i].request = &e->input->requests[i];
    qsort(e->stories, e->n, sizeof *e->stories, by_arrival);
    e->limit = e->options->memory;
    e->limit_base = (double)e->options->memory;
    return serve_timeline_init(&e->result->timeline, e->err);
}

static void summarise(engine *e)
{
    serve_result *r = e->result;
    double seconds = e->now > 0 ? e->now : 1;
    r->ttft = stats_summarise(e->ttft, e->n_ttft);
    r->tpot = stats_summarise(e->tpot, e->n_tpot);
    r->latency = stats_summarise(e->latency, e->n_latency);
    r->used_mean = e->used_area / seconds;
    r->cached_mean = e->cached_area / seconds;
    r->running_mean = e->running_area / seconds;
    r->waste_mean = e->waste_area / seconds;
    serve_timeline_finish(&r->timeline);
}

int serve_run(const serve_options *options, const trace *input, serve_memory *memory, progress *bar,
              serve_result *result, tool_error *err)
{
    engine e = {.options = options,
                .input = input,
                .memory = memory,
                .result = result,
                .bar = bar,
                .err = err};
    int code = prepare(&e);
    if (code == 0) code = loop(&e);
    if (code == 0) summarise(&e);
    for (size_t i = 0; i < e.n_running; i++)
        free_sequence(e.running[i]);
    free(e.stories);
    free(e.preempted);
    free(e.running);
    free(e.ttft);
    return code;
}

void serve_result_free(serve_result *r)
{
    serve_timeline_free(&r->timeline);
}
