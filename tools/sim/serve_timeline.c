#include <stdlib.h>
#include <string.h>

#include "serve.h"

enum { MAX_SAMPLES = 2048 };

int serve_timeline_init(serve_timeline *t, tool_error *err)
{
    memset(t, 0, sizeof *t);
    t->samples = calloc(MAX_SAMPLES, sizeof *t->samples);
    if (t->samples == NULL) return tool_fail(err, "out of memory");
    t->capacity = MAX_SAMPLES;
    t->interval = 0.1;
    return 0;
}

void serve_timeline_free(serve_timeline *t)
{
    free(t->samples);
    memset(t, 0, sizeof *t);
}

void serve_sample_merge(serve_sample *a, const serve_sample *b)
{
    double wa = a->end - a->start, wb = b->end - b->start, w = wa + wb;
    if (w <= 0) {
        wa = 0, wb = 1, w = 1;
    }
    a->end = b->end;
    a->limit = b->limit;
    a->used = (a->used * wa + b->used * wb) / w;
    a->cached = (a->cached * wa + b->cached * wb) / w;
    a->running = (a->running * wa + b->running * wb) / w;
    a->waiting = (a->waiting * wa + b->waiting * wb) / w;
    a->prompt_tokens += b->prompt_tokens;
    a->output_tokens += b->output_tokens;
    a->hit_tokens += b->hit_tokens;
    a->preemptions += b->preemptions;
    a->completed += b->completed;
}

static void push(serve_timeline *t)
{
    if (t->n == t->capacity) {
        for (size_t i = 0; i < t->n / 2; i++) {
            t->samples[i] = t->samples[2 * i];
            serve_sample_merge(&t->samples[i], &t->samples[2 * i + 1]);
        }
        t->n /= 2;
        t->interval *= 2;
    }
    t->samples[t->n++] = t->current;
    double end = t->current.end;
    memset(&t->current, 0, sizeof t->current);
    t->current.start = t->current.end = end;
}

void serve_timeline_add(serve_timeline *t, const serve_sample *stretch)
{
    serve_sample_merge(&t->current, stretch);
    if (t->current.end - t->current.start >= t->interval) push(t);
}

void serve_timeline_finish(serve_timeline *t)
{
    if (t->current.end > t->current.start) push(t);
}
