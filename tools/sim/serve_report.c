/* Results of pkv-sim serve: table, JSON, timeline CSV, plot. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "output.h"
#include "parse.h"
#include "plot.h"
#include "serve.h"
#include "table.h"

static double per_second(const serve_result *r, uint64_t n)
{
    return r->end > 0 ? (double)n / r->end : NAN;
}

static double share(uint64_t part, uint64_t whole)
{
    return whole == 0 ? NAN : (double)part / (double)whole;
}

static void cell(table *t, const char *format, double value)
{
    char text[32];
    snprintf(text, sizeof text, format, value);
    table_cell(t, "%s", isnan(value) ? "-" : text);
}

static void cell_size(table *t, double bytes)
{
    char text[32];
    table_cell(t, "%s", format_size(bytes > 0 ? (uint64_t)bytes : 0, text, sizeof text));
}

/* Only schemes that complete the same requests can be compared. */
static double gain(const serve_result *paged, const serve_result *r)
{
    if (r->completed != paged->completed) return NAN;
    return per_second(paged, paged->output_tokens) / per_second(r, r->output_tokens);
}

static void print_speed(const serve_result *results, size_t n)
{
    table *t = table_new("<memory|completed|requests/s|output tok/s|paged gains|running|"
                         "preempted|recomputed|hit rate|peak used|mean used|waste");
    for (size_t i = 0; t != NULL && i < n; i++) {
        const serve_result *r = &results[i];
        table_cell(t, "%s", r->name);
        table_cell(t, "%llu", (unsigned long long)r->completed);
        cell(t, "%.3g", per_second(r, r->completed));
        cell(t, "%.4g", per_second(r, r->output_tokens));
        cell(t, "%.2fx", gain(&results[0], r));
        cell(t, "%.1f", r->running_mean);
        table_cell(t, "%llu", (unsigned long long)r->preemptions);
        table_cell(t, "%llu", (unsigned long long)r->recomputed_tokens);
        table_share(t, share(r->hit_tokens, r->asked_tokens), 1);
        cell_size(t, (double)r->used_peak);
        cell_size(t, r->used_mean);
        table_share(t, r->waste_mean, 2);
    }
    table_print(t, stdout);
    table_free(t);
}

static void latency_row(table *t, const char *name, const char *what, const stats_summary *s,
                        double unit, const char *format)
{
    table_cell(t, "%s", name);
    table_cell(t, "%s", what);
    const double values[] = {s->mean, s->p50, s->p90, s->p99, s->max};
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++)
        cell(t, format, values[i] * unit);
}

static void print_latency(const serve_result *results, size_t n)
{
    table *t = table_new("<memory|<latency|mean|p50|p90|p99|max");
    for (size_t i = 0; t != NULL && i < n; i++) {
        latency_row(t, results[i].name, "first token (s)", &results[i].ttft, 1, "%.3f");
        latency_row(t, "", "per output token (ms)", &results[i].tpot, 1e3, "%.2f");
        latency_row(t, "", "whole request (s)", &results[i].latency, 1, "%.2f");
    }
    table_print(t, stdout);
    table_free(t);
}

void serve_print_table(const serve_options *options, const trace *input,
                       const serve_result *results, size_t n)
{
    char text[32];
    printf("%s: %zu requests, %llu prompt + %llu generated tokens\n", input->name,
           input->n_requests, (unsigned long long)input->input_tokens,
           (unsigned long long)input->output_tokens);
    printf("%s on %s, %s for the cache, pages of %u tokens\n", options->model->name,
           options->hardware->name, format_size(options->memory, text, sizeof text),
           options->page_tokens);
    printf("simulated %.1f s in %llu steps; invariants verified %llu times\n\n", results[0].end,
           (unsigned long long)results[0].steps, (unsigned long long)results[0].verified);
    print_speed(results, n);
    putchar('\n');
    print_latency(results, n);
    for (size_t i = 0; i < n; i++) {
        const serve_result *r = &results[i];
        if (r->never_fit == 0) continue;
        printf(
            "\n%s: %llu requests can never fit the memory; the first on line %llu of the trace\n",
            r->name, (unsigned long long)r->never_fit, (unsigned long long)r->first_never_fit[0]);
    }
}

static json_t *json_summary(const stats_summary *s)
{
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o}", "mean", output_real(s->mean), "p50",
                     output_real(s->p50), "p90", output_real(s->p90), "p95", output_real(s->p95),
                     "p99", output_real(s->p99), "max", output_real(s->max));
}

static json_t *json_counts(const serve_result *r)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, "
                     "s:I, s:I}",
                     "memory", r->name, "completed", (json_int_t)r->completed, "never_fit",
                     (json_int_t)r->never_fit, "steps", (json_int_t)r->steps, "verified",
                     (json_int_t)r->verified, "preemptions", (json_int_t)r->preemptions,
                     "limit_changes", (json_int_t)r->limit_changes, "prompt_tokens",
                     (json_int_t)r->prompt_tokens, "output_tokens", (json_int_t)r->output_tokens,
                     "computed_tokens", (json_int_t)r->computed_tokens, "computed_prompt_tokens",
                     (json_int_t)r->computed_prompt_tokens, "recomputed_tokens",
                     (json_int_t)r->recomputed_tokens, "asked_tokens", (json_int_t)r->asked_tokens,
                     "hit_tokens", (json_int_t)r->hit_tokens, "skipped_tokens",
                     (json_int_t)r->skipped_tokens, "followers", (json_int_t)r->followers,
                     "running_peak", (json_int_t)r->running_peak);
}

static json_t *json_figures(const serve_result *r)
{
    return json_pack(
        "{s:f, s:o, s:o, s:o, s:I, s:I, s:f, s:f, s:f, s:f, s:o, s:o, s:o}", "simulated_seconds",
        r->end, "requests_per_second", output_real(per_second(r, r->completed)),
        "output_tokens_per_second", output_real(per_second(r, r->output_tokens)), "hit_rate",
        output_real(share(r->hit_tokens, r->asked_tokens)), "used_bytes_peak",
        (json_int_t)r->used_peak, "metadata_bytes_peak", (json_int_t)r->metadata_peak,
        "used_bytes_mean", r->used_mean, "cached_bytes_mean", r->cached_mean, "waste_mean",
        r->waste_mean, "running_mean", r->running_mean, "ttft_seconds", json_summary(&r->ttft),
        "tpot_seconds", json_summary(&r->tpot), "latency_seconds", json_summary(&r->latency));
}

static json_t *json_run(const serve_result *r)
{
    json_t *run = json_counts(r), *figures = json_figures(r), *lines = json_array();
    bool ok =
        run != NULL && figures != NULL && lines != NULL && json_object_update(run, figures) == 0;
    size_t room = sizeof r->first_never_fit / sizeof r->first_never_fit[0];
    for (size_t i = 0; ok && i < room && i < r->never_fit; i++)
        ok = json_array_append_new(lines, json_integer((json_int_t)r->first_never_fit[i])) == 0;
    ok = ok && json_object_set(run, "never_fit_lines", lines) == 0;
    json_decref(figures);
    json_decref(lines);
    if (ok) return run;
    json_decref(run);
    return NULL;
}

int serve_print_json(const serve_options *options, const trace *input, const serve_result *results,
                     size_t n, tool_error *err)
{
    json_t *list = json_array();
    for (size_t i = 0; list != NULL && i < n; i++) {
        if (json_array_append_new(list, json_run(&results[i])) == 0) continue;
        json_decref(list);
        list = NULL;
    }
    return output_json(
        json_pack("{s:o, s:I, s:s, s:s, s:I, s:I, s:I, s:I, s:s, s:o}", "trace",
                  output_text(input->name), "requests", (json_int_t)input->n_requests, "model",
                  options->model->name, "hardware", options->hardware->name, "memory_bytes",
                  (json_int_t)options->memory, "page_tokens", (json_int_t)options->page_tokens,
                  "max_seqs", (json_int_t)options->max_seqs, "chunk", (json_int_t)options->chunk,
                  "admission", options->admission == SERVE_SAFE ? "safe" : "watermark", "runs",
                  list),
        err);
}

int serve_write_csv(const char *path, const serve_result *paged, tool_error *err)
{
    csv *out = csv_open(path,
                        "start_s,end_s,limit_bytes,used_bytes,cached_bytes,running,waiting,"
                        "computed_prompt_tokens,output_tokens,hit_tokens,preemptions,completed",
                        err);
    if (out == NULL) return -1;
    for (size_t i = 0; i < paged->timeline.n; i++) {
        const serve_sample *s = &paged->timeline.samples[i];
        const double values[] = {s->start,  s->end,     s->limit,  s->used,
                                 s->cached, s->running, s->waiting};
        for (size_t k = 0; k < sizeof values / sizeof values[0]; k++)
            csv_real(out, values[k]);
        csv_u64(out, s->prompt_tokens);
        csv_u64(out, s->output_tokens);
        csv_u64(out, s->hit_tokens);
        csv_u64(out, s->preemptions);
        csv_u64(out, s->completed);
        csv_end_row(out);
    }
    return csv_close(out, err);
}

/* ---- plot ----------------------------------------------------------------------------------- */

enum {
    X,
    LIMIT,
    HELD,
    USED,
    RUNNING,
    WAITING,
    PREEMPTED,
    COMPUTED,
    HITS,
    OUTPUT,
    N_COLUMNS,
    MAX_POINTS = 400
};

/* Columns of the timeline, merged to at most MAX_POINTS intervals: more would only be noise. The
 * last point repeats the last value, so that steps reach the end. Returns the number of points. */
static size_t fill_columns(const serve_timeline *t, double *columns[N_COLUMNS])
{
    size_t group = (t->n + MAX_POINTS - 1) / MAX_POINTS, k = 0;
    serve_sample s = t->samples[0];
    for (size_t i = 0; i < t->n; i += group, k++) {
        s = t->samples[i];
        for (size_t j = i + 1; j < i + group && j < t->n; j++)
            serve_sample_merge(&s, &t->samples[j]);
        double seconds = s.end - s.start;
        columns[X][k] = s.start;
        columns[LIMIT][k] = s.limit;
        columns[HELD][k] = s.used + s.cached;
        columns[USED][k] = s.used;
        columns[RUNNING][k] = s.running;
        columns[WAITING][k] = s.waiting;
        columns[PREEMPTED][k] = s.preemptions / seconds;
        columns[COMPUTED][k] = (double)s.prompt_tokens / seconds;
        columns[HITS][k] = (double)s.hit_tokens / seconds;
        columns[OUTPUT][k] = (double)s.output_tokens / seconds;
    }
    for (size_t c = 0; c < N_COLUMNS; c++)
        columns[c][k] = columns[c][k - 1];
    columns[X][k] = s.end;
    return k + 1;
}

static size_t make_marks(const serve_options *o, double end, plot_mark *marks, char texts[][40])
{
    size_t n = 0;
    for (size_t i = 0; i < o->n_pressure; i++) {
        const pressure *p = &o->pressure[i];
        char size[32];
        if (p->at > end) break;
        if (p->relative)
            snprintf(texts[n], 40, "limit %+.0f %%", 100 * p->amount);
        else
            snprintf(texts[n], 40, "limit %s", format_size((uint64_t)p->amount, size, sizeof size));
        marks[n] = (plot_mark){p->at, texts[n]};
        n++;
    }
    return n;
}

static int draw(const char *path, const serve_options *o, const trace *input, const serve_result *r,
                double *c[N_COLUMNS], size_t n, tool_error *err)
{
    plot_mark marks[SERVE_MAX_PRESSURE];
    char texts[SERVE_MAX_PRESSURE][40], subtitle[256], size[32];
    size_t n_marks = make_marks(o, r->timeline.samples[r->timeline.n - 1].end, marks, texts);
    const plot_series memory[] = {{"limit", c[X], c[LIMIT], n, PLOT_STEP},
                                  {"used + cached", c[X], c[HELD], n, PLOT_AREA},
                                  {"used by sequences", c[X], c[USED], n, PLOT_AREA}};
    const plot_series queue[] = {{"running", c[X], c[RUNNING], n, PLOT_STEP},
                                 {"waiting", c[X], c[WAITING], n, PLOT_STEP},
                                 {"preempted per second", c[X], c[PREEMPTED], n, PLOT_STEP}};
    const plot_series tokens[] = {{"prompt, computed", c[X], c[COMPUTED], n, PLOT_STEP},
                                  {"prompt, from cache", c[X], c[HITS], n, PLOT_STEP},
                                  {"generated", c[X], c[OUTPUT], n, PLOT_STEP}};
    const plot_panel panels[] = {
        {.title = "KV-cache memory",
         .y_label = "memory",
         .x_label = "simulated time (s)",
         .series = memory,
         .n_series = 3,
         .marks = marks,
         .n_marks = n_marks,
         .y_from_zero = true,
         .y_log2_bytes = true},
        {.title = "Requests",
         .y_label = "requests",
         .x_label = "simulated time (s)",
         .series = queue,
         .n_series = 3,
         .marks = marks,
         .n_marks = n_marks,
         .y_from_zero = true},
        {.title = "Tokens",
         .y_label = "tokens per second",
         .x_label = "simulated time (s)",
         .series = tokens,
         .n_series = 3,
         .marks = marks,
         .n_marks = n_marks,
         .y_from_zero = true},
    };
    snprintf(subtitle, sizeof subtitle, "%.100s: %zu requests; %.40s on %.40s with %s", input->name,
             input->n_requests, o->model->name, o->hardware->name,
             format_size(o->memory, size, sizeof size));
    return plot_write_svg(path, "Continuous batching under memory pressure", subtitle, panels, 3,
                          err);
}

int serve_write_plot(const char *path, const serve_options *options, const trace *input,
                     const serve_result *results, size_t n, tool_error *err)
{
    const serve_result *r = &results[0];
    (void)n;
    if (r->timeline.n == 0) return tool_fail(err, "--plot: nothing happened in this run");
    size_t points = MAX_POINTS + 1;
    double *values = calloc(points * N_COLUMNS, sizeof *values);
    if (values == NULL) return tool_fail(err, "--plot: out of memory");
    double *columns[N_COLUMNS];
    for (size_t i = 0; i < N_COLUMNS; i++)
        columns[i] = values + i * points;
    size_t n_points = fill_columns(&r->timeline, columns);
    int code = draw(path, options, input, r, columns, n_points, err);
    free(values);
    return code;
}
