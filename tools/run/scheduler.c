#include "scheduler.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "lookup.h"
#include "request.h"

struct sched {
    engine *e;
    const vocab *v;
    sched_options options;
    request **running; /* in order of arrival */
    request **waiting; /* first in, first out; the preempted in front */
    uint32_t n_running, n_waiting;
    uint64_t next_id;
    /* the step at hand */
    engine_entry *entries;
    request **members;          /* the entries' requests */
    uint32_t *accepted, *fresh; /* rows kept; new tokens of each entry */
    uint32_t n_entries, rows;
    sched_stats stats;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

sched *sched_new(engine *e, const vocab *v, const sched_options *options, tool_error *err)
{
    sched *s = calloc(1, sizeof *s);
    if (!s) {
        tool_fail(err, "not enough memory");
        return NULL;
    }
    s->e = e;
    s->v = v;
    s->options = *options;
    if (!s->options.max_running) s->options.max_running = 64;
    if (!s->options.max_waiting) s->options.max_waiting = 1024;
    if (!s->options.chunk) s->options.chunk = 256;
    if (s->options.max_running > e->options.max_rows) s->options.max_running = e->options.max_rows;
    s->next_id = 1;
    uint32_t most = s->options.max_running;
    s->running = calloc(most, sizeof *s->running);
    s->waiting = calloc((size_t)most + s->options.max_waiting, sizeof *s->waiting);
    s->entries = calloc(most, sizeof *s->entries);
    s->members = calloc(most, sizeof *s->members);
    s->accepted = calloc(most, sizeof *s->accepted);
    s->fresh = calloc(most, sizeof *s->fresh);
    if (s->running && s->waiting && s->entries && s->members && s->accepted && s->fresh) return s;
    sched_free(s);
    tool_fail(err, "not enough memory");
    return NULL;
}

static void remove_from(request **list, uint32_t *n, uint32_t i)
{
    memmove(list + i, list + i + 1, (*n - i - 1) * sizeof *list);
    --*n;
}

/* Ends a request that is in no list any more. */
static void end(sched *s, request *r, sched_reason reason)
{
    if (reason == SCHED_CANCELLED)
        s->stats.cancelled++;
    else if (reason == SCHED_STOP || reason == SCHED_LENGTH)
        s->stats.finished++;
    else
        s->stats.failed++;
    request_release(r);
    if (r->event) r->event(r->user, r->id, -1, reason);
    request_free(r);
}

void sched_free(sched *s)
{
    if (!s) return;
    while (s->n_running)
        end(s, s->running[--s->n_running], SCHED_CANCELLED);
    while (s->n_waiting)
        end(s, s->waiting[--s->n_waiting], SCHED_CANCELLED);
    free(s->running);
    free(s->waiting);
    free(s->entries);
    free(s->members);
    free(s->accepted);
    free(s->fresh);
    free(s);
}

uint64_t sched_submit(sched *s, const sched_request *q, tool_error *err)
{
    uint64_t length = (uint64_t)q->n_prompt + q->max_new;
    if (!q->n_prompt || !q->max_new || length > s->e->model->n_ctx_train) {
        tool_fail(err, "%u prompt and %u new tokens: both must be at least 1, together at most %u",
                  q->n_prompt, q->max_new, s->e->model->n_ctx_train);
        return 0;
    }
    for (uint32_t i = 0; i < q->n_prompt; i++)
        if (q->prompt[i] < 0 || (uint32_t)q->prompt[i] >= s->e->model->n_vocab) {
            tool_fail(err, "token %d is not in the vocabulary", q->prompt[i]);
            return 0;
        }
    if (s->n_waiting >= s->options.max_waiting) {
        tool_fail(err, "%u requests are waiting already", s->n_waiting);
        return 0;
    }
    request *r = request_new(q, s->next_id, s->e->model->n_vocab, s->options.n_draft);
    if (!r) {
        tool_fail(err, "not enough memory");
        return 0;
    }
    s->waiting[s->n_waiting++] = r;
    s->stats.submitted++;
    return s->next_id++;
}

void sched_cancel(sched *s, uint64_t id)
{
    for (uint32_t i = 0; i < s->n_running; i++)
        if (s->running[i]->id == id) s->running[i]->cancelled = true;
    for (uint32_t i = 0; i < s->n_waiting; i++)
        if (s->waiting[i]->id == id) s->waiting[i]->cancelled = true;
}

static void drop_cancelled(sched *s)
{
    for (uint32_t i = s->n_running; i-- > 0;) {
        request *r = s->running[i];
        if (!r->cancelled) continue;
        remove_from(s->running, &s->n_running, i);
        end(s, r, SCHED_CANCELLED);
    }
    for (uint32_t i = s->n_waiting; i-- > 0;) {
        request *r = s->waiting[i];
        if (!r->cancelled) continue;
        remove_from(s->waiting, &s->n_waiting, i);
        end(s, r, SCHED_CANCELLED);
    }
}

/* Takes a running request's pages; it will be computed again, first of those that wait. */
static void preempt(sched *s, uint32_t i)
{
    request *r = s->running[i];
    remove_from(s->running, &s->n_running, i);
    request_release(r);
    memmove(s->waiting + 1, s->waiting, s->n_waiting * sizeof *s->waiting);
    s->waiting[0] = r;
    s->n_waiting++;
    s->stats.preemptions++;
}

int sched_set_memory(sched *s, uint64_t bytes, tool_error *err)
{
    for (;;) {
        pkv_status status = pkv_cache_set_limit(s->e->cache, bytes);
        if (!status) return 0;
        if (status != PKV_EBUSY || !s->n_running)
            return tool_fail(err, "memory limit: %s", pkv_status_text(status));
        preempt(s, s->n_running - 1);
    }
}

/* ---- what the next step works on ------------------------------------------------------------ */

static void add_entry(sched *s, request *r, uint32_t n)
{
    bool reaches_end = r->n_cached + n == r->n_tokens;
    if (!reaches_end) r->n_drafted = 0;
    s->members[s->n_entries] = r;
    s->entries[s->n_entries++] = (engine_entry){.seq = r->seq,
                                                .tokens = r->tokens + r->n_cached,
                                                .n = n + r->n_drafted,
                                                .position = r->n_cached,
                                                .n_logits = reaches_end ? 1 + r->n_drafted : 0};
    s->rows += n + r->n_drafted;
}

static void add_decodes(sched *s)
{
    uint32_t decoding = 0;
    for (uint32_t i = 0; i < s->n_running; i++)
        decoding += request_missing(s->running[i]) == 1;
    uint32_t spare = s->e->options.max_rows - decoding;
    for (uint32_t i = 0; i < s->n_running; i++) {
        request *r = s->running[i];
        r->n_drafted = 0;
        if (request_missing(r) != 1) continue;
        uint32_t want = r->max_tokens - r->n_tokens - 1; /* the step itself yields one more */
        if (want > r->draft_length) want = r->draft_length;
        if (want > spare) want = spare;
        if (r->draft_pause)
            r->draft_pause--;
        else if (want)
            r->n_drafted = lookup_draft(r->tokens, r->n_tokens, r->tokens + r->n_tokens, want);
        spare -= r->n_drafted;
        add_entry(s, r, 1);
    }
}

/* Rows that prompts may still take in this step. */
static uint32_t prompt_room(const sched *s, uint32_t prompt_rows, bool decoding)
{
    uint32_t room = s->e->options.max_rows - s->rows;
    if (!decoding) return room;
    uint32_t chunk = s->options.chunk > prompt_rows ? s->options.chunk - prompt_rows : 0;
    return room < chunk ? room : chunk;
}

/* Should a waiting request follow one that computes what they have in common? The rule of
 * docs/prefix.md, "Matching while waiting"; decoding requests lead nobody. */
static bool should_wait(const sched *s, const request *w)
{
    uint32_t page = s->e->options.page_tokens, n = w->n_tokens, best = 0;
    const request *leader = NULL;
    for (uint32_t i = 0; s->e->options.prefix && i < s->n_running; i++) {
        const request *r = s->running[i];
        if (request_missing(r) == 1) continue;
        uint32_t common = request_common(r, w);
        common = (common < n ? common : n - 1) / page * page;
        if (common <= best || common <= r->n_cached) continue;
        best = common;
        leader = r;
    }
    pkv_match match = {.struct_size = sizeof match};
    if (!leader || pkv_prefix_match(s->e->cache, &w->space, w->tokens, n - 1, &match)) return false;
    uint64_t m = match.n_tokens;
    return m <= leader->n_cached && best - m >= page && 4 * (best - m) >= n - m;
}

/* Moves waiting request i to the running ones if it can be admitted now. */
static pkv_status start(sched *s, uint32_t i)
{
    request *w = s->waiting[i];
    pkv_status status = request_attach(w, s->e->cache, s->options.n_draft);
    if (status) return status;
    remove_from(s->waiting, &s->n_waiting, i);
    s->running[s->n_running++] = w;
    if (!w->started) {
        s->stats.prompt_tokens += w->n_prompt;
        s->stats.cached_tokens += w->n_cached;
    }
    w->started = true;
    return PKV_OK;
}

static void add_prompts(sched *s)
{
    uint32_t used = s->rows, page = s->e->options.page_tokens;
    bool decoding = s->n_entries > 0;
    for (uint32_t i = 0; i < s->n_running; i++) {
        request *r = s->running[i];
        uint32_t room = prompt_room(s, s->rows - used, decoding), missing = request_missing(r);
        if (missing == 1 || !room) continue;
        if (s->e->options.prefix && missing > page &&
            request_rematch(r, s->e->cache, page, s->options.n_draft)) {
            preempt(s, i--);
            continue;
        }
        missing = request_missing(r);
        add_entry(s, r, missing < room ? missing : room);
    }
    for (uint32_t i = 0; i < s->n_waiting && s->n_running < s->options.max_running;) {
        uint32_t room = prompt_room(s, s->rows - used, decoding);
        if (!room) break;
        if (should_wait(s, s->waiting[i])) {
            s->stats.waits++;
            i++;
            continue;
        }
        request *w = s->waiting[i];
        pkv_status status = start(s, i);
        if (!status) {
            uint32_t missing = request_missing(w);
            add_entry(s, w, missing < room ? missing : room);
        } else if (s->n_running) {
            break; /* what runs will give pages back */
        } else {
            remove_from(s->waiting, &s->n_waiting, i);
            end(s, w, status == PKV_EUNSAFE ? SCHED_TOO_LARGE : SCHED_ERROR);
        }
    }
}

/* Opens the step in the cache. Entries that could strand others are left out; if none is left, the
 * youngest request makes room. 1 = open, 0 = nothing to run this time. */
static int begin(sched *s, tool_error *err)
{
    while (s->n_entries) {
        uint32_t blocked = 0;
        pkv_status status = engine_begin(s->e, s->entries, s->n_entries, true, &blocked);
        if (!status) return 1;
        if (status == PKV_EUNSAFE && blocked < s->n_entries && s->n_entries > 1) {
            size_t after = s->n_entries - blocked - 1;
            memmove(s->entries + blocked, s->entries + blocked + 1, after * sizeof *s->entries);
            memmove(s->members + blocked, s->members + blocked + 1, after * sizeof *s->members);
            s->n_entries--;
            continue;
        }
        if (status != PKV_EUNSAFE && status != PKV_ENOPAGES) {
            tool_fail(err, "the cache refuses a step: %s", pkv_status_text(status));
            return -1;
        }
        if (s->n_running > 1) {
            preempt(s, s->n_running - 1);
        } else {
            request *r = s->running[0];
            s->n_running = 0;
            end(s, r, SCHED_TOO_LARGE);
        }
        return 0;
    }
    return 0;
}

/* ---- what came out of it -------------------------------------------------------------------- */

/* Takes the tokens that an entry's logits choose, as long as they confirm its draft. */
static void take_tokens(sched *s, uint32_t i, const float *logits)
{
    request *r = s->members[i];
    const engine_entry *entry = &s->entries[i];
    uint32_t base = entry->n - r->n_drafted, n_vocab = s->e->model->n_vocab;
    s->accepted[i] = base;
    s->fresh[i] = 0;
    if (!entry->n_logits) return;
    for (uint32_t row = 0;; row++) {
        int32_t token = sampler_choose(r->sampler, logits + (size_t)row * n_vocab);
        bool confirmed = row < r->n_drafted && r->tokens[r->n_tokens] == token;
        r->tokens[r->n_tokens++] = token;
        s->fresh[i]++;
        bool over =
            r->n_tokens == r->max_tokens || (s->v && !r->ignore_end && vocab_ends(s->v, token));
        if (!confirmed || over) break;
        s->accepted[i]++;
    }
    uint32_t hits = s->accepted[i] - base;
    s->stats.generated_tokens += s->fresh[i];
    s->stats.drafted_tokens += r->n_drafted;
    s->stats.accepted_tokens += hits;
    if (!r->n_drafted) return;
    if (hits == r->n_drafted)
        r->draft_length =
            r->draft_length * 2 < s->options.n_draft ? r->draft_length * 2 : s->options.n_draft;
    else if (!hits && r->draft_length > 1)
        r->draft_length /= 2;
    else if (!hits)
        r->draft_pause = 4;
}

/* Tells the hosts of the requests, and ends those that are complete. */
static void report(sched *s)
{
    for (uint32_t i = 0; i < s->n_entries; i++) {
        request *r = s->members[i];
        for (uint32_t t = r->n_tokens - s->fresh[i]; t < r->n_tokens; t++) {
            bool ends = s->v && !r->ignore_end && vocab_ends(s->v, r->tokens[t]);
            if (r->event && !ends) r->event(r->user, r->id, r->tokens[t], SCHED_RUNNING);
        }
        if (!s->fresh[i] || r->cancelled) continue;
        bool ended = s->v && !r->ignore_end && vocab_ends(s->v, r->tokens[r->n_tokens - 1]);
        if (!ended && r->n_tokens < r->max_tokens) continue;
        for (uint32_t at = 0; at < s->n_running; at++)
            if (s->running[at] == r) {
                remove_from(s->running, &s->n_running, at);
                break;
            }
        end(s, r, ended ? SCHED_STOP : SCHED_LENGTH);
    }
}

static int run_step(sched *s, tool_error *err)
{
    double before = now();
    if (engine_compute(s->e, s->entries, s->n_entries, err)) return -1;
    s->stats.compute_seconds += now() - before;
    const float *logits = s->e->logits;
    for (uint32_t i = 0; i < s->n_entries; i++) {
        take_tokens(s, i, logits);
        if (s->entries[i].n_logits) logits += (size_t)s->entries[i].n_logits * s->e->model->n_vocab;
    }
    pkv_status status = engine_commit(s->e, s->accepted, s->n_entries);
    if (status) {
        engine_abort(s->e);
        return tool_fail(err, "commit: %s", pkv_status_text(status));
    }
    for (uint32_t i = 0; i < s->n_entries; i++) {
        s->members[i]->n_cached += s->accepted[i];
        s->stats.rows += s->entries[i].n;
    }
    s->stats.steps++;
    report(s);
    return 0;
}

int sched_step(sched *s, tool_error *err)
{
    double before = now();
    drop_cancelled(s);
    if (!s->n_running && !s->n_waiting) return 0;
    s->n_entries = s->rows = 0;
    add_decodes(s);
    add_prompts(s);
    int opened = begin(s, err);
    if (opened < 0 || (opened && run_step(s, err))) return -1;
    s->stats.busy_seconds += now() - before;
    return 1;
}

void sched_get_stats(const sched *s, sched_stats *stats)
{
    *stats = s->stats;
    stats->running = s->n_running;
    stats->waiting = s->n_waiting;
}
