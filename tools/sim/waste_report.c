/* Results of pkv-sim waste: table, JSON, CSV, plot. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "output.h"
#include "parse.h"
#include "plot.h"
#include "table.h"
#include "waste.h"

static bool is_paged(const waste_scheme *s)
{
    return s->kind == WASTE_PAGED || s->kind == WASTE_PAGED_FLAT;
}

static double served_share(const waste_scheme *s, const trace *input)
{
    return (double)s->totals.served / (double)input->n_requests;
}

static double reserved_per_request(const waste_scheme *s)
{
    return s->totals.served == 0 ? 0 : (double)s->totals.reserved_end / (double)s->totals.served;
}

static void add_row(table *t, const waste_scheme *s, const trace *input, const model *m)
{
    char text[32];
    table_cell(t, "%s", s->name);
    table_cell(t, "%llu", (unsigned long long)s->totals.served);
    table_share(t, served_share(s, input), 1);
    table_share(t, waste_at_completion(&s->totals), 2);
    table_share(t, waste_decode_averaged(&s->totals), 2);
    if (s->totals.served == 0)
        table_cell(t, "-");
    else
        table_cell(t, "%s", format_size((uint64_t)reserved_per_request(s), text, sizeof text));
    if (is_paged(s))
        table_cell(t, "%.2f (%.4f %%)", waste_metadata_per_token(s),
                   100 * waste_metadata_per_token(s) / (double)model_token_bytes(m));
    else
        table_cell(t, "-");
}

void waste_print_table(const waste_scheme *schemes, size_t n, const trace *input, const model *m,
                       bool touch)
{
    char text[32], total[32];
    printf("%s: %zu requests, %llu prompt + %llu generated tokens\n", input->name,
           input->n_requests, (unsigned long long)input->input_tokens,
           (unsigned long long)input->output_tokens);
    printf("%s: %s of keys and values per token", m->name,
           format_size(model_token_bytes(m), text, sizeof text));
    if (m->n_groups > 1)
        printf("; %u layers with full attention, %u with a window of %u", m->groups[0].n_layers,
               m->groups[1].n_layers, m->window);
    else if (m->window != 0)
        printf("; window of %u tokens", m->window);
    puts("\n");
    table *t = table_new("<reservation|served|share|waste at the end|waste over decode|"
                         "held per request|metadata bytes per token");
    for (size_t i = 0; t != NULL && i < n; i++) {
        if (i > 0 && is_paged(&schemes[i]) != is_paged(&schemes[i - 1])) table_rule(t);
        add_row(t, &schemes[i], input, m);
    }
    table_print(t, stdout);
    table_free(t);
    if (model_is_windowed(m))
        puts("\nWhat left a layer's window counts as waste where it is still held; 'no-groups' is "
             "one\n"
             "page table for all layers, which keeps every token in every layer.");
    for (size_t i = 0; touch && i < n; i++)
        if (is_paged(&schemes[i]))
            printf("%s%s: touched %s of host memory\n", i == 0 ? "\n" : "", schemes[i].name,
                   format_size(schemes[i].touched_bytes, total, sizeof total));
}

static json_t *json_scheme(const waste_scheme *s, const trace *input, const model *m, bool touch)
{
    const waste_totals *t = &s->totals;
    json_t *row = json_pack("{s:s, s:I, s:f, s:o, s:o, s:f}", "scheme", s->name, "served",
                            (json_int_t)t->served, "served_share", served_share(s, input),
                            "waste_at_completion", output_real(waste_at_completion(t)),
                            "waste_decode_averaged", output_real(waste_decode_averaged(t)),
                            "metadata_bytes_per_token", waste_metadata_per_token(s));
    if (row == NULL) return NULL;
    int code =
        json_object_set_new(row, "needed_bytes_at_completion", json_real((double)t->needed_end));
    code |= json_object_set_new(row, "reserved_bytes_at_completion",
                                json_real((double)t->reserved_end));
    if (is_paged(s)) {
        code |= json_object_set_new(row, "page_tokens", json_integer(s->parameter));
        code |= json_object_set_new(
            row, "metadata_share_of_kv",
            json_real(waste_metadata_per_token(s) / (double)model_token_bytes(m)));
        if (touch)
            code |= json_object_set_new(row, "touched_bytes",
                                        json_integer((json_int_t)s->touched_bytes));
    }
    if (code == 0) return row;
    json_decref(row);
    return NULL;
}

int waste_print_json(const waste_scheme *schemes, size_t n, const trace *input, const model *m,
                     bool touch, tool_error *err)
{
    json_t *list = json_array();
    for (size_t i = 0; list != NULL && i < n; i++) {
        if (json_array_append_new(list, json_scheme(&schemes[i], input, m, touch)) == 0) continue;
        json_decref(list);
        list = NULL;
    }
    /* json_pack takes `list` over, also on failure; a NULL list makes it fail. */
    return output_json(
        json_pack("{s:o, s:s, s:I, s:I, s:I, s:s, s:I, s:o}", "trace", output_text(input->name),
                  "format", trace_format_name(input->format), "requests",
                  (json_int_t)input->n_requests, "input_tokens", (json_int_t)input->input_tokens,
                  "output_tokens", (json_int_t)input->output_tokens, "model", m->name,
                  "token_bytes", (json_int_t)model_token_bytes(m), "schemes", list),
        err);
}

int waste_write_csv(const char *path, const waste_scheme *schemes, size_t n, const trace *input,
                    tool_error *err)
{
    csv *out = csv_open(path,
                        "trace,scheme,requests,served,waste_at_completion,waste_decode_averaged,"
                        "needed_bytes_at_completion,reserved_bytes_at_completion,"
                        "metadata_bytes_per_token",
                        err);
    if (out == NULL) return -1;
    for (size_t i = 0; i < n; i++) {
        const waste_totals *t = &schemes[i].totals;
        csv_text(out, input->name);
        csv_text(out, schemes[i].name);
        csv_u64(out, input->n_requests);
        csv_u64(out, t->served);
        csv_real(out, waste_at_completion(t));
        csv_real(out, waste_decode_averaged(t));
        csv_real(out, (double)t->needed_end);
        csv_real(out, (double)t->reserved_end);
        csv_real(out, waste_metadata_per_token(&schemes[i]));
        csv_end_row(out);
    }
    return csv_close(out, err);
}

int waste_write_plot(const char *path, const waste_scheme *schemes, size_t n, const trace *input,
                     const model *m, tool_error *err)
{
    double *values = calloc(n, 3 * sizeof *values);
    const char **names = calloc(n, sizeof *names);
    int code = -1;
    if (values != NULL && names != NULL) {
        double *at_end = values, *decode = values + n, *served = values + 2 * n;
        for (size_t i = 0; i < n; i++) {
            names[i] = schemes[i].name;
            at_end[i] = 100 * waste_at_completion(&schemes[i].totals);
            decode[i] = 100 * waste_decode_averaged(&schemes[i].totals);
            served[i] = table_percent(served_share(&schemes[i], input), 1);
        }
        const plot_series waste[] = {{"when complete", NULL, at_end, n, PLOT_BAR},
                                     {"over decode steps", NULL, decode, n, PLOT_BAR}};
        const plot_series share[] = {{"requests served", NULL, served, n, PLOT_BAR}};
        const plot_panel panels[] = {
            {.title = "Memory held but not used",
             .x_label = "reservation",
             .y_label = "waste (% of what is held)",
             .series = waste,
             .n_series = 2,
             .y_min = 0,
             .y_max = 100,
             .categories = names,
             .n_categories = n},
            {.title = "Requests that fit the reservation",
             .x_label = "reservation",
             .y_label = "requests served (%)",
             .series = share,
             .n_series = 1,
             .y_min = 0,
             .y_max = 110,
             .categories = names,
             .n_categories = n},
        };
        char subtitle[256];
        snprintf(subtitle, sizeof subtitle, "%.120s: %zu requests; %.60s", input->name,
                 input->n_requests, m->name);
        code = plot_write_svg(path, "KV-cache memory waste", subtitle, panels, 2, err);
    } else {
        tool_fail(err, "--plot: out of memory");
    }
    free(values);
    free(names);
    return code;
}
