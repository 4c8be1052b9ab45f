/* Who starts, and who waits for another's pages: docs/prefix.md, "Matching while waiting". */
#include <stdlib.h>
#include <string.h>

#include "serve_engine.h"

/* ---- queue ---------------------------------------------------------------------------------- */

int queue_init(engine *e)
{
    e->queue = malloc(e->n * sizeof *e->queue);
    e->parked = malloc(e->n * sizeof *e->parked);
    if (e->queue == NULL || e->parked == NULL) return tool_fail(e->err, "out of memory");
    for (size_t i = 0; i < e->n; i++)
        e->queue[i] = (uint32_t)i;
    return 0;
}

static bool arrived(const engine *e, size_t at)
{
    return e->stories[e->queue[at]].request->arrival <= e->now;
}

/* Those before it, which wait on, close the gap. */
static void take_out(engine *e, size_t at)
{
    memmove(&e->queue[e->head + 1], &e->queue[e->head], (at - e->head) * sizeof *e->queue);
    e->head++;
}

/* There is room: whoever comes back was taken out before. */
static void put_first(engine *e, uint32_t index)
{
    e->queue[--e->head] = index;
}

size_t queue_waiting(const engine *e)
{
    size_t low = e->head,
           high = e->n; /* those that never ran are in order of arrival, at the end */
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (arrived(e, mid))
            low = mid + 1;
        else
            high = mid;
    }
    return low - e->head + e->n_parked;
}

/* ---- too large ------------------------------------------------------------------------------ */

static void never_fits(engine *e, uint32_t index)
{
    serve_result *r = e->result;
    const size_t room = sizeof r->first_never_fit / sizeof r->first_never_fit[0];
    if (r->never_fit < room) r->first_never_fit[r->never_fit] = e->stories[index].request->line;
    r->never_fit++;
    progress_add(e->bar, 1);
}

/* Takes out of the queue who cannot run under this limit; another limit may come. */
static void park(engine *e, size_t at)
{
    const uint32_t index = e->queue[at];
    take_out(e, at);
    if (e->next_pressure < e->options->n_pressure)
        e->parked[e->n_parked++] = index;
    else
        never_fits(e, index);
}

static int by_number(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

void queue_unpark(engine *e)
{
    qsort(e->parked, e->n_parked, sizeof *e->parked, by_number);
    while (e->n_parked > 0)
        put_first(e, e->parked[--e->n_parked]);
    e->blocked = 0;
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
    if (!e->options->no_prefix && e->input->has_blocks && e->memory->match != NULL) {
        s->tokens = malloc(s->target * sizeof *s->tokens);
        if (s->tokens == NULL) {
            free(s);
            return NULL;
        }
        serve_tokens(e->input, t->request, s->target, s->tokens);
    }
    return s;
}

void queue_leave(engine *e, size_t i)
{
    serve_sequence *s = e->running[i];
    story *t = &e->stories[s->index];
    t->running = NULL;
    t->generated = s->generated;
    free_sequence(s);
    e->n_running--;
    memmove(&e->running[i], &e->running[i + 1], (e->n_running - i) * sizeof *e->running);
    e->blocked = 0;
}

int queue_stop(engine *e, size_t i)
{
    if (e->memory->stop(e->memory, e->running[i], e->err) < 0) return -1;
    queue_leave(e, i);
    return 0;
}

int queue_preempt_youngest(engine *e)
{
    const size_t last = e->n_running - 1;
    const serve_sequence *s = e->running[last];
    put_first(e, s->index);
    e->result->preemptions += s->counted;
    e->stretch.preemptions += s->counted;
    if (queue_stop(e, last) != 0) return -1;
    if (last == 0) park(e, e->head);
    return 0;
}

/* `tokens` were found, and the sequence has all up to its length now. */
static void count_hits(engine *e, const serve_sequence *s, uint64_t tokens)
{
    story *t = &e->stories[s->index];
    e->result->hit_tokens += tokens;
    e->stretch.hit_tokens += tokens;
    if (s->length <= t->reached) return;
    e->result->skipped_tokens += s->length - t->reached;
    t->reached = s->length;
}

void queue_count_start(engine *e, serve_sequence *s)
{
    s->counted = true;
    if (s->tokens == NULL) return;
    e->result->asked_tokens += s->target;
    count_hits(e, s, s->length);
}

/* ---- followers ------------------------------------------------------------------------------ */

/* Does the story still wait for its leader's pages? */
static bool follows(engine *e, uint32_t index)
{
    story *t = &e->stories[index];
    if (t->leader == 0) return false;
    const serve_sequence *leader = e->stories[t->leader - 1].running;
    if (leader != NULL && leader->length < t->until) return true;
    t->leader = 0;
    return false;
}

/* Finds a running request that computes a good part of what this one needs; see docs/prefix.md. */
static bool find_leader(engine *e, const serve_sequence *s)
{
    const uint64_t page = e->options->page_tokens, n = s->target, m = s->match.n_tokens;
    story *t = &e->stories[s->index];
    if (s->tokens == NULL) return false;
    t->until = 0;
    for (size_t i = 0; i < e->n_running; i++) {
        const serve_sequence *l = e->running[i];
        if (l->length >= l->target || l->length < m) continue;
        uint64_t c = serve_common_tokens(e->input, s->request, l->request);
        if (c > n - 1) c = n - 1;
        c -= c % page;
        if (c <= l->length || c < m + page || 4 * (c - m) < n - m || c <= t->until) continue;
        t->until = c;
        t->leader = l->index + 1;
    }
    e->result->followers += t->until != 0;
    return t->until != 0;
}

enum { FOLLOWS = 3 };

/* As serve_memory.start, or FOLLOWS = waits for a leader. */
static int start(engine *e, uint32_t index)
{
    serve_sequence *s = make_sequence(e, index);
    if (s == NULL) return tool_fail(e->err, "out of memory");
    int got = s->tokens != NULL ? e->memory->match(e->memory, s, e->err) : 1;
    if (got >= 0 && find_leader(e, s)) {
        free_sequence(s);
        return FOLLOWS;
    }
    if (got >= 0) got = e->memory->start(e->memory, s, e->running, e->n_running, e->err);
    if (got != 1) {
        free_sequence(s);
        return got;
    }
    e->stories[index].running = s;
    s->seen = e->published;
    e->running[e->n_running++] = s;
    return 1;
}

int queue_admit(engine *e)
{
    for (size_t at = e->head; e->n_running < e->options->max_seqs && at < e->n && arrived(e, at);
         at++) {
        uint32_t index = e->queue[at];
        if (follows(e, index)) continue;
        if (e->blocked == index + 1) break;
        int got = start(e, index);
        if (got < 0) return -1;
        if (got == 0) {
            e->blocked = index + 1;
            break;
        }
        if (got == 1) take_out(e, at);
        if (got == SERVE_TOO_LARGE) park(e, at);
    }
    return 0;
}

/* Others have published since the last look. What is found replaces what was computed, if it is at
 * least a page more and the memory allows. */
static int match_again(engine *e, serve_sequence *s)
{
    const uint64_t before = s->length;
    s->seen = e->published - s->published;
    if (e->memory->match(e->memory, s, e->err) < 0) return -1;
    if (s->match.n_tokens < before + e->options->page_tokens) return 0;
    int got = e->memory->replace(e->memory, s, e->err);
    if (got == 1 && s->counted) count_hits(e, s, s->length - before);
    return got < 0 ? -1 : 0;
}

int queue_match_again(engine *e)
{
    uint64_t budget = e->options->chunk;
    for (size_t i = 0; i < e->n_running && budget > 0; i++) {
        serve_sequence *s = e->running[i];
        if (s->length >= s->target) continue;
        if (s->tokens != NULL && s->seen != e->published - s->published &&
            match_again(e, s) != 0)
            return -1;
        uint64_t left = s->target - s->length;
        budget -= left < budget ? left : budget;
    }
    return 0;
}
