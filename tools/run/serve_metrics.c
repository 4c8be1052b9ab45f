#include "serve_metrics.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct metric {
    const char *name, *type, *help;
    double value;
} metric;

static void print_histogram(FILE *to, const char *name, const char *help, const histogram *h)
{
    fprintf(to, "# HELP pkv_run_%s %s\n# TYPE pkv_run_%s histogram\n", name, help, name);
    for (int i = 0; i < SERVE_BUCKETS; i++)
        fprintf(to, "pkv_run_%s_bucket{le=\"%g\"} %llu\n", name, serve_bounds[i],
                (unsigned long long)h->counts[i]);
    fprintf(to, "pkv_run_%s_bucket{le=\"+Inf\"} %llu\n", name, (unsigned long long)h->n);
    fprintf(to, "pkv_run_%s_sum %.9g\npkv_run_%s_count %llu\n", name, h->sum, name,
            (unsigned long long)h->n);
}

char *metrics_prometheus(const service_state *s)
{
    const metric list[] = {
        {"requests_running", "gauge", "requests with pages", s->sched.running},
        {"requests_waiting", "gauge", "requests that wait for their turn", s->sched.waiting},
        {"requests_total", "counter", "requests taken", (double)s->sched.submitted},
        {"requests_finished_total", "counter", "requests completed", (double)s->sched.finished},
        {"requests_cancelled_total", "counter", "requests whose client left or whose text stopped",
         (double)s->sched.cancelled},
        {"requests_failed_total", "counter", "requests that failed", (double)s->sched.failed},
        {"requests_refused_total", "counter", "requests answered with 429", (double)s->refused},
        {"preemptions_total", "counter", "requests that gave up their pages for a while",
         (double)s->sched.preemptions},
        {"steps_total", "counter", "model steps", (double)s->sched.steps},
        {"rows_total", "counter", "tokens that went through the model", (double)s->sched.rows},
        {"prompt_tokens_total", "counter", "tokens of prompts", (double)s->sched.prompt_tokens},
        {"prompt_tokens_cached_total", "counter", "of these, from the prefix index",
         (double)s->sched.cached_tokens},
        {"generated_tokens_total", "counter", "tokens generated",
         (double)s->sched.generated_tokens},
        {"drafted_tokens_total", "counter", "tokens drafted", (double)s->sched.drafted_tokens},
        {"accepted_tokens_total", "counter", "drafted tokens that were right",
         (double)s->sched.accepted_tokens},
        {"memory_limit_bytes", "gauge", "limit of pages and metadata",
         (double)s->cache.memory_limit},
        {"memory_mapped_bytes", "gauge", "mapped regions", (double)s->cache.region_bytes},
        {"memory_metadata_bytes", "gauge", "metadata", (double)s->cache.metadata_bytes},
        {"memory_used_bytes", "gauge", "pages that sequences hold", (double)s->cache.bytes_used},
        {"pages_used", "gauge", "pages that sequences hold", (double)s->cache.pages_used},
        {"pages_cached", "gauge", "pages only the prefix index knows",
         (double)s->cache.pages_cached},
        {"pages_free", "gauge", "pages in regions that nobody uses", (double)s->cache.pages_free},
        {"uptime_seconds", "gauge", "since the start", s->uptime},
    };
    char *text = NULL;
    size_t size = 0;
    FILE *to = open_memstream(&text, &size);
    if (!to) return NULL;
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        fprintf(to, "# HELP pkv_run_%s %s\n# TYPE pkv_run_%s %s\npkv_run_%s %.17g\n", list[i].name,
                list[i].help, list[i].name, list[i].type, list[i].name, list[i].value);
    print_histogram(to, "first_token_seconds", "from arrival to the first token", &s->first_token);
    print_histogram(to, "between_tokens_seconds", "between two tokens of a request",
                    &s->between_tokens);
    return fclose(to) == 0 ? text : NULL;
}

char *metrics_json(const service_state *s, const char *name)
{
    json_t *j = json_pack(
        "{s:s,s:f,s:i,s:i,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "model", name, "uptime",
        s->uptime, "running", (int)s->sched.running, "waiting", (int)s->sched.waiting, "generated",
        (json_int_t)s->sched.generated_tokens, "prompt", (json_int_t)s->sched.prompt_tokens,
        "cached", (json_int_t)s->sched.cached_tokens, "rows", (json_int_t)s->sched.rows, "limit",
        (json_int_t)s->cache.memory_limit, "mapped", (json_int_t)s->cache.region_bytes, "metadata",
        (json_int_t)s->cache.metadata_bytes, "used", (json_int_t)s->cache.bytes_used,
        "pages_cached", (json_int_t)s->cache.pages_cached, "sequences",
        (json_int_t)s->cache.sequences, "preemptions", (json_int_t)s->sched.preemptions);
    char *text = j ? json_dumps(j, JSON_COMPACT) : NULL;
    json_decref(j);
    return text;
}
