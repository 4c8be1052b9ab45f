/* The steps of pkv-sim serve.
 *
 * Order: requests are served first come, first served, except that one passes those which wait for
 * another's pages (serve_queue.c). `running` is in order of admission, a preempted request goes
 * back to the front of the queue, and when memory is short the prompts take smaller chunks; if that
 * is not enough the youngest running request gives way. So the one that was admitted first always
 * goes on: a request starts only if its final length fits the memory alone. One that does not, or
 * does not any more because the limit has shrunk, stands aside until the limit changes, or is
 * reported as one that can never fit. That is why there is neither deadlock nor livelock. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "serve_engine.h"

/* ---- memory pressure ------------------------------------------------------------------------ */

static int set_limit(engine *e, const pressure *change)
{
    double wanted =
        change->relative ? (double)e->limit + change->amount * e->limit_base : change->amount;
    uint64_t bytes = wanted < 1 ? 1 : (uint64_t)(wanted + 0.5);
    int got;
    while ((got = e->memory->set_limit(e->memory, bytes, e->err)) == 0) {
        if (e->n_running == 0)
            return tool_fail(e->err, "--pressure at %gs: the limit cannot become %llu bytes",
                             change->at, (unsigned long long)bytes);
        if (queue_preempt_youngest(e) != 0) return -1;
    }
    if (got < 0) return -1;
    e->limit = bytes;
    queue_unpark(e);
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

/* Every decoding sequence gets one token, prompts share `budget`, oldest first, except those before
 * number `first`. Returns how much of it is left, and how many sequences decode. */
static uint64_t plan_step(engine *e, uint64_t budget, size_t first, size_t *n_decoding)
{
    *n_decoding = 0;
    for (size_t i = 0; i < e->n_running; i++) {
        serve_sequence *s = e->running[i];
        if (s->length >= s->target) {
            s->step = 1;
            ++*n_decoding;
        } else {
            const uint64_t end = s->stop > s->length ? s->stop : s->target;
            uint64_t left = i < first ? 0 : end - s->length;
            s->step = (uint32_t)(left < budget ? left : budget);
            budget -= s->step;
        }
    }
    return budget;
}

/* Plans and reserves. Until it fits the prompts' share is halved, to nothing beside sequences that
 * decode; then the youngest gives way. Under safe admission the oldest prompt may have to wait for
 * a younger one's end: the others are asked first. 0 = nothing can run. */
static int reserve_step(engine *e)
{
    uint64_t chunk = e->options->chunk;
    size_t first = 0;
    while (e->n_running > 0) {
        size_t n_decoding;
        const uint64_t prompts = chunk - plan_step(e, chunk, first, &n_decoding);
        int got = e->memory->reserve(e->memory, e->running, e->n_running, e->err);
        if (got != 0) return got;
        chunk = prompts / 2;
        if (chunk > 0 || (prompts > 0 && n_decoding > 0)) continue;
        chunk = e->options->chunk;
        if (e->options->admission == SERVE_SAFE && ++first < e->n_running) continue;
        if (queue_preempt_youngest(e) != 0) return -1;
        first = 0;
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
    return queue_stop(e, i);
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

static void count_work(engine *e, const serve_sequence *s)
{
    story *t = &e->stories[s->index];
    const uint64_t end = s->length + s->step, again = end < t->reached ? end : t->reached;
    e->result->computed_tokens += s->step;
    if (again > s->length) e->result->recomputed_tokens += again - s->length;
    if (end > t->reached) t->reached = end;
}

static double step_time(engine *e)
{
    roofline_step work = {0};
    for (size_t i = 0; i < e->n_running; i++) {
        serve_sequence *s = e->running[i];
        if (s->step == 0) continue;
        if (!s->counted) queue_count_start(e, s);
        roofline_add(&work, e->options->model, s->length, s->step);
        count_work(e, s);
        if (s->length < s->target) {
            const uint64_t page = e->options->page_tokens;
            const uint64_t pages = (s->length + s->step) / page - s->length / page;
            e->stretch.prompt_tokens += s->step;
            e->result->computed_prompt_tokens += s->step;
            s->published += pages;
            e->published += pages;
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
    size_t running = e->n_running, queued = queue_waiting(e);
    double seconds = step_time(e);
    if (e->memory->commit(e->memory, e->running, e->n_running, e->err) < 0 ||
        e->memory->usage(e->memory, e->running, e->n_running, &usage, e->err) < 0)
        return -1;
    e->now += seconds;
    e->result->steps++;
    if (model_is_windowed(e->options->model)) e->blocked = 0; /* pages left windows */
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
    size_t queued = queue_waiting(e);
    if (e->memory->usage(e->memory, NULL, 0, &usage, e->err) < 0) return -1;
    e->now = then;
    account(e, from, &usage, 0, queued);
    return 0;
}

/* Nothing could run; who is next after one that was too large may have arrived, and is asked. */
static int idle(engine *e)
{
    bool change = e->next_pressure < e->options->n_pressure;
    double change_at = change ? e->options->pressure[e->next_pressure].at : INFINITY;
    double arrival = e->head < e->n ? e->stories[e->queue[e->head]].request->arrival : INFINITY;
    double then = arrival < change_at ? arrival : change_at;
    if (isinf(then)) return 0; /* the last one was too large */
    return then > e->now ? idle_until(e, then) : 0;
}

/* ---- all ------------------------------------------------------------------------------------ */

static int loop(engine *e)
{
    while (e->n_running > 0 || e->head < e->n || e->n_parked > 0) {
        if (apply_pressure(e) != 0 || queue_admit(e) != 0 || queue_match_again(e) != 0) return -1;
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
    e->running = calloc(e->options->max_seqs, sizeof *e->running);
    e->ttft = calloc(3 * e->n, sizeof *e->ttft);
    if (e->stories == NULL || e->running == NULL || e->ttft == NULL)
        return tool_fail(e->err, "out of memory");
    e->tpot = e->ttft + e->n;
    e->latency = e->tpot + e->n;
    for (size_t i = 0; i < e->n; i++)
        e->stories[i].request = &e->input->requests[i];
    qsort(e->stories, e->n, sizeof *e->stories, by_arrival);
    if (queue_init(e) != 0) return -1;
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
    while (e.n_running > 0)
        queue_leave(&e, e.n_running - 1);
    free(e.stories);
    free(e.queue);
    free(e.parked);
    free(e.running);
    free(e.ttft);
    return code;
}

void serve_result_free(serve_result *r)
{
    serve_timeline_free(&r->timeline);
}
