/* What pkv-sim prefix prints, as a table, JSON, CSV and a plot. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "output.h"
#include "plot.h"
#include "prefix.h"
#include "table.h"

static double token_rate(const prefix_run *run)
{
    return run->total_tokens ? (double)run->hit_tokens / (double)run->total_tokens : (double)NAN;
}

/* Millions of block references per second. */
static double speed(const prefix_run *run)
{
    return run->seconds > 0 ? 1e-6 * (double)run->trace->n_blocks / run->seconds : (double)NAN;
}

/* Runs of the same trace from `from` on. */
static size_t same_trace(const prefix_run *runs, size_t from, size_t n)
{
    size_t end = from;
    while (end < n && runs[end].trace == runs[from].trace)
        end++;
    return end - from;
}

static size_t same_policy(const prefix_run *runs, size_t from, size_t n)
{
    size_t end = from;
    while (end < n && runs[end].trace == runs[from].trace &&
           strcmp(runs[end].policy, runs[from].policy) == 0)
        end++;
    return end - from;
}

void prefix_report_table(const prefix_run *runs, size_t n)
{
    for (size_t from = 0; from < n;) {
        size_t count = same_trace(runs, from, n);
        printf("%s%s\n", from ? "\n" : "", runs[from].trace->name);
        table *t = table_new("<policy|pages|hit blocks|of blocks|hit rate|hit tokens|of tokens|"
                             "Mrefs/s");
        for (size_t i = from; i < from + count; i++) {
            const prefix_run *r = &runs[i];
            if (i > from && strcmp(r->policy, runs[i - 1].policy) != 0) table_rule(t);
            table_cell(t, "%s", r->policy);
            if (r->pages == PKV_INDEX_UNLIMITED)
                table_cell(t, "unlimited");
            else
                table_cell(t, "%llu", (unsigned long long)r->pages);
            table_cell(t, "%llu", (unsigned long long)r->hit_blocks);
            table_cell(t, "%llu", (unsigned long long)r->total_blocks);
            table_share(t, prefix_hit_rate(r), 2);
            table_cell(t, "%llu", (unsigned long long)r->hit_tokens);
            table_cell(t, "%llu", (unsigned long long)r->total_tokens);
            table_cell(t, "%.1f", speed(r));
        }
        table_print(t, stdout);
        table_free(t);
        from += count;
    }
}

static json_t *json_run(const prefix_run *r)
{
    json_t *pages = r->pages == PKV_INDEX_UNLIMITED ? json_string("unlimited")
                                                    : json_integer((json_int_t)r->pages);
    return json_pack("{s:s, s:o, s:I, s:I, s:o, s:I, s:I, s:o, s:I, s:o, s:o}", "policy", r->policy,
                     "pages", pages, "hit_blocks", (json_int_t)r->hit_blocks, "total_blocks",
                     (json_int_t)r->total_blocks, "hit_rate", output_real(prefix_hit_rate(r)),
                     "hit_tokens", (json_int_t)r->hit_tokens, "total_tokens",
                     (json_int_t)r->total_tokens, "token_hit_rate", output_real(token_rate(r)),
                     "resident_pages", (json_int_t)r->peak_pages, "seconds",
                     output_real(r->seconds), "mrefs_per_second", output_real(speed(r)));
}

static json_t *json_trace(const prefix_run *runs, size_t n, double warmup)
{
    json_t *results = json_array();
    for (size_t i = 0; i < n; i++)
        if (json_array_append_new(results, json_run(&runs[i])) != 0) {
            json_decref(results);
            return NULL;
        }
    return json_pack("{s:s, s:I, s:I, s:o, s:o}", "trace", runs->trace->name, "requests",
                     (json_int_t)runs->trace->n_requests, "block_references",
                     (json_int_t)runs->trace->n_blocks, "warmup", output_real(warmup), "results",
                     results);
}

int prefix_report_json(const prefix_run *runs, size_t n, double warmup, tool_error *err)
{
    if (same_trace(runs, 0, n) == n) return output_json(json_trace(runs, n, warmup), err);
    json_t *traces = json_array();
    for (size_t from = 0; from < n;) {
        size_t count = same_trace(runs, from, n);
        if (json_array_append_new(traces, json_trace(runs + from, count, warmup)) != 0) {
            json_decref(traces);
            return output_json(NULL, err);
        }
        from += count;
    }
    return output_json(json_pack("{s:o}", "traces", traces), err);
}

int prefix_report_csv(const char *path, const prefix_run *runs, size_t n, tool_error *err)
{
    csv *out = csv_open(path,
                        "trace,policy,pages,hit_blocks,total_blocks,hit_rate,hit_tokens,"
                        "total_tokens,token_hit_rate,seconds",
                        err);
    if (out == NULL) return -1;
    for (size_t i = 0; i < n; i++) {
        const prefix_run *r = &runs[i];
        csv_text(out, r->trace->name);
        csv_text(out, r->policy);
        if (r->pages == PKV_INDEX_UNLIMITED)
            csv_text(out, "unlimited");
        else
            csv_u64(out, r->pages);
        csv_u64(out, r->hit_blocks);
        csv_u64(out, r->total_blocks);
        csv_real(out, prefix_hit_rate(r));
        csv_u64(out, r->hit_tokens);
        csv_u64(out, r->total_tokens);
        csv_real(out, token_rate(r));
        csv_real(out, r->seconds);
        csv_end_row(out);
    }
    return csv_close(out, err);
}

/* An unlimited run is drawn at the pages it ended with. */
static double pages_on_axis(const prefix_run *r)
{
    uint64_t pages = r->pages == PKV_INDEX_UNLIMITED ? r->peak_pages : r->pages;
    return pages ? (double)pages : 1;
}

int prefix_report_plot(const char *path, const prefix_run *runs, size_t n, tool_error *err)
{
    plot_series *series = calloc(n, sizeof *series);
    plot_panel *panels = calloc(n, sizeof *panels);
    double *x = calloc(n, sizeof *x), *y = calloc(n, sizeof *y);
    size_t n_panels = 0, n_series = 0;
    int failed = -1;
    if (series == NULL || panels == NULL || x == NULL || y == NULL) {
        tool_fail(err, "out of memory");
        goto done;
    }
    for (size_t i = 0; i < n; i++) {
        x[i] = pages_on_axis(&runs[i]);
        y[i] = 100 * prefix_hit_rate(&runs[i]);
    }
    for (size_t from = 0; from < n;) {
        size_t end = from + same_trace(runs, from, n);
        plot_panel *panel = &panels[n_panels++];
        *panel = (plot_panel){.title = runs[from].trace->name,
                              .x_label = "cache (pages)",
                              .y_label = "blocks found (%)",
                              .series = series + n_series,
                              .log_x = true,
                              .y_from_zero = true};
        while (from < end) {
            size_t count = same_policy(runs, from, end);
            series[n_series++] = (plot_series){.label = runs[from].policy,
                                               .x = x + from,
                                               .y = y + from,
                                               .n = count,
                                               .style = PLOT_POINTS};
            panel->n_series++;
            from += count;
        }
    }
    failed = plot_write_svg(path, "Prefix cache: blocks found, by policy and capacity", NULL,
                            panels, n_panels, err);
done:
    free(series);
    free(panels);
    free(x);
    free(y);
    return failed;
}
