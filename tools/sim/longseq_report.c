/* Results of pkv-sim longseq: table, JSON, CSV, plot. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "longseq.h"
#include "output.h"
#include "parse.h"
#include "plot.h"
#include "table.h"

static void cell_error(table *t, double error)
{
    if (isnan(error))
        table_cell(t, "-");
    else
        table_cell(t, "%.4f", error);
}

static void cell_us(table *t, double us)
{
    if (isnan(us))
        table_cell(t, "-");
    else
        table_cell(t, "%.1f", us);
}

static void add_row(table *t, const longseq_result *r)
{
    char text[32];
    table_cell(t, "%s", longseq_pattern_name(r->pattern));
    table_cell(t, "%s", r->policy);
    if (r->budget_tokens > 0)
        table_cell(t, "%llu", (unsigned long long)r->budget_tokens);
    else
        table_cell(t, "-");
    table_cell(t, "%llu%s", (unsigned long long)r->tokens_reached, r->exhausted ? " (full)" : "");
    table_cell(t, "%llu", (unsigned long long)r->resident_tokens_max);
    table_cell(t, "%s", format_size(r->memory_bytes_max, text, sizeof text));
    table_share(t, r->mass_retained, 1);
    table_share(t, r->mass_retained_oracle, 1);
    cell_error(t, r->output_error);
    table_share(t, r->regret_rate, 1);
    cell_us(t, r->us_first_tenth);
    cell_us(t, r->us_last_tenth);
}

void longseq_print_table(const longseq_options *o, const longseq_result *results, size_t n)
{
    char text[32], limit[32];
    printf("%u sequences of %llu tokens (%llu prompt), %s: %s per token; memory limit %s\n\n",
           o->sequences, (unsigned long long)o->tokens, (unsigned long long)o->prompt,
           o->geometry->name, format_size(model_token_bytes(o->geometry), text, sizeof text),
           format_size(o->memory, limit, sizeof limit));
    table *t = table_new("<pattern|<policy|budget|tokens reached|most held|memory|mass kept|"
                         "oracle|output error|regret|us/token first tenth|last tenth");
    for (size_t i = 0; t != NULL && i < n; i++) {
        if (i > 0 && results[i].pattern != results[i - 1].pattern) table_rule(t);
        add_row(t, &results[i]);
    }
    table_print(t, stdout);
    table_free(t);
    puts(
        "\nMass kept: share of full attention's mass on pages that are still read; oracle: on the\n"
        "pages with the most of it. Output error: relative to attention over everything.");
}

static json_t *point_json(const longseq_point *p)
{
    return json_pack("{s:o,s:o,s:o,s:o,s:o,s:o}", "tokens", output_real(p->token),
                     "resident_tokens", output_real(p->resident_tokens), "memory_bytes",
                     output_real(p->memory_bytes), "us_per_token", output_real(p->us_per_token),
                     "mass_retained", output_real(p->mass_retained), "output_error",
                     output_real(p->output_error));
}

static json_t *result_json(const longseq_options *o, const longseq_result *r)
{
    json_t *points = json_array();
    for (uint32_t i = 0; i < r->n_points; i++)
        json_array_append_new(points, point_json(&r->points[i]));
    return json_pack(
        "{s:s,s:s,s:I,s:i,s:I,s:I,s:b,s:I,s:I,s:I,s:I,s:i,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "policy",
        r->policy, "pattern", longseq_pattern_name(r->pattern), "budget_tokens",
        (json_int_t)r->budget_tokens, "page_tokens", (int)o->page_tokens, "steps",
        (json_int_t)r->steps, "tokens_reached", (json_int_t)r->tokens_reached, "exhausted",
        r->exhausted, "resident_tokens_max", (json_int_t)r->resident_tokens_max,
        "resident_tokens_max_in_step", (json_int_t)r->resident_tokens_max_in_step,
        "memory_bytes_max", (json_int_t)r->memory_bytes_max, "pages_evicted",
        (json_int_t)r->pages_evicted, "samples", (int)r->samples, "mass_retained",
        output_real(r->mass_retained), "mass_retained_oracle", output_real(r->mass_retained_oracle),
        "output_error", output_real(r->output_error), "regret_rate", output_real(r->regret_rate),
        "us_per_token_first_tenth", output_real(r->us_first_tenth), "us_per_token_last_tenth",
        output_real(r->us_last_tenth), "timeline", points);
}

int longseq_print_json(const longseq_options *o, const longseq_result *results, size_t n,
                       tool_error *err)
{
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, result_json(o, &results[i]));
    return output_json(json_pack("{s:o,s:i,s:I,s:I,s:I,s:I,s:o}", "model",
                                 output_text(o->geometry->name), "sequences", (int)o->sequences,
                                 "tokens", (json_int_t)o->tokens, "prompt_tokens",
                                 (json_int_t)o->prompt, "memory_limit", (json_int_t)o->memory,
                                 "seed", (json_int_t)o->seed, "results", list),
                       err);
}

int longseq_write_csv(const char *path, const longseq_options *o, const longseq_result *results,
                      size_t n, tool_error *err)
{
    csv *out = csv_open(path,
                        "policy,pattern,budget_tokens,page_tokens,tokens,resident_tokens,"
                        "memory_bytes,us_per_token,mass_retained,output_error",
                        err);
    if (out == NULL) return -1;
    for (size_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < results[i].n_points; j++) {
            const longseq_point *p = &results[i].points[j];
            csv_text(out, results[i].policy);
            csv_text(out, longseq_pattern_name(results[i].pattern));
            csv_u64(out, results[i].budget_tokens);
            csv_u64(out, o->page_tokens);
            csv_real(out, p->token);
            csv_real(out, p->resident_tokens);
            csv_real(out, p->memory_bytes);
            csv_real(out, p->us_per_token);
            csv_real(out, p->mass_retained);
            csv_real(out, p->output_error);
            csv_end_row(out);
        }
    return csv_close(out, err);
}

/* ---- plot ----------------------------------------------------------------------------------- */

enum { PANELS = 3, MAX_LABEL = 64 };

typedef struct lines {
    plot_series *series; /* [PANELS][n] */
    double *values;      /* [n][PANELS + 1][LONGSEQ_POINTS] */
    char (*labels)[MAX_LABEL];
} lines;

static void add_lines(lines *l, const longseq_result *r, size_t i, size_t n, bool patterns)
{
    double *x = l->values + i * (PANELS + 1) * LONGSEQ_POINTS;
    double *memory = x + LONGSEQ_POINTS, *us = memory + LONGSEQ_POINTS, *mass = us + LONGSEQ_POINTS;
    for (uint32_t j = 0; j < r->n_points; j++) {
        x[j] = r->points[j].token;
        memory[j] = r->points[j].memory_bytes;
        us[j] = r->points[j].us_per_token;
        mass[j] = 100 * r->points[j].mass_retained;
    }
    int used = snprintf(l->labels[i], MAX_LABEL, "%s", r->policy);
    if (r->budget_tokens > 0)
        used += snprintf(l->labels[i] + used, (size_t)(MAX_LABEL - used), " %llu",
                         (unsigned long long)r->budget_tokens);
    if (patterns && used < MAX_LABEL)
        snprintf(l->labels[i] + used, (size_t)(MAX_LABEL - used), ", %s",
                 longseq_pattern_name(r->pattern));
    const double *y[PANELS] = {memory, us, mass};
    for (size_t p = 0; p < PANELS; p++)
        l->series[p * n + i] = (plot_series){.label = l->labels[i],
                                             .x = x,
                                             .y = y[p],
                                             .n = r->n_points,
                                             .style = p == 0 ? PLOT_LINE : PLOT_POINTS};
}

int longseq_write_plot(const char *path, const longseq_options *o, const longseq_result *results,
                       size_t n, tool_error *err)
{
    lines l = {.series = calloc(PANELS * n, sizeof *l.series),
               .values = calloc(n * (PANELS + 1) * LONGSEQ_POINTS, sizeof *l.values),
               .labels = calloc(n, sizeof *l.labels)};
    int code = -1;
    if (l.series == NULL || l.values == NULL || l.labels == NULL) {
        tool_fail(err, "out of memory");
    } else {
        bool patterns = false, samples = false;
        for (size_t i = 0; i < n; i++) {
            patterns = patterns || results[i].pattern != results[0].pattern;
            samples = samples || results[i].samples > 0;
        }
        for (size_t i = 0; i < n; i++)
            add_lines(&l, &results[i], i, n, patterns);
        const plot_panel panels[PANELS] = {{.title = "Memory",
                                            .x_label = "tokens per sequence",
                                            .y_label = "pages and metadata",
                                            .series = l.series,
                                            .n_series = n,
                                            .y_from_zero = true,
                                            .y_log2_bytes = true},
                                           {.title = "Time",
                                            .x_label = "tokens per sequence",
                                            .y_label = "time per token (us)",
                                            .series = l.series + n,
                                            .n_series = n,
                                            .y_from_zero = true},
                                           {.title = "Attention mass kept",
                                            .x_label = "tokens per sequence",
                                            .y_label = "share of full attention (%)",
                                            .series = l.series + 2 * n,
                                            .n_series = n,
                                            .y_from_zero = true}};
        char subtitle[160];
        snprintf(subtitle, sizeof subtitle, "%u sequences, %s, pattern %s, pages of %u tokens",
                 o->sequences, o->geometry->name,
                 patterns ? "as named" : longseq_pattern_name(results[0].pattern), o->page_tokens);
        code = plot_write_svg(path, "Long sequences under eviction", subtitle, panels,
                              samples ? PANELS : PANELS - 1, err);
    }
    free(l.series), free(l.values), free(l.labels);
    return code;
}
