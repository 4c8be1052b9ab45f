/* What the tools write and compute for people and programs: tables, CSV, JSON values, plots,
 * percentiles, step times. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "output.h"
#include "plot.h"
#include "roofline.h"
#include "stats_summary.h"
#include "table.h"
#include "suite.h"

static tool_error err;
static char directory[] = "/tmp/pkv-test-XXXXXX";
static char path[64];

static void setup(void)
{
    strcpy(directory, "/tmp/pkv-test-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(directory));
    snprintf(path, sizeof path, "%s/out", directory);
}

static void teardown(void)
{
    unlink(path);
    rmdir(directory);
}

/* The whole file; the caller frees it. */
static char *contents(void)
{
    FILE *file = fopen(path, "r");
    ck_assert_ptr_nonnull(file);
    char *text = calloc(1, 1 << 20);
    ck_assert_ptr_nonnull(text);
    size_t n = fread(text, 1, (1 << 20) - 1, file);
    fclose(file);
    ck_assert_uint_gt(n, 0);
    return text;
}

START_TEST(rounding_claims_neither_all_nor_none)
{
    static const struct {
        double share;
        int decimals;
        const char *text;
    } cases[] = {{0, 1, "0.0 %"},         {1, 1, "100.0 %"},     {0.99996, 1, "99.9 %"},
                 {0.99996, 2, "99.99 %"}, {0.9994, 1, "99.9 %"}, {1e-6, 1, "<0.1 %"},
                 {0.0006, 1, "0.1 %"},    {0.5, 2, "50.00 %"},   {1e-9, 2, "<0.01 %"},
                 {NAN, 1, "-"},           {1.25, 1, "125.0 %"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        table *t = table_new("<x");
        table_share(t, cases[i].share, cases[i].decimals);
        FILE *file = fopen(path, "w");
        ck_assert_ptr_nonnull(file);
        table_print(t, file);
        fclose(file);
        table_free(t);
        char *text = contents();
        char *last = strrchr(text, '\n');
        *last = '\0';
        ck_assert_str_eq(strrchr(text, '\n') + 1, cases[i].text);
        free(text);
    }
    ck_assert_double_eq_tol(table_percent(0.99999, 1), 99.9, 1e-9);
    ck_assert_double_eq(table_percent(1, 1), 100);
}
END_TEST

START_TEST(tables_are_aligned)
{
    table *t = table_new("<name|n");
    table_cell(t, "%s", "größe");
    table_cell(t, "%d", 5);
    table_rule(t);
    table_cell(t, "x");
    table_cell(t, "%d", 12345);
    FILE *file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    table_print(t, file);
    fclose(file);
    table_free(t);
    char *text = contents();
    ck_assert_str_eq(text, "name       n\n"
                           "-----  -----\n"
                           "größe      5\n"
                           "-----  -----\n"
                           "x      12345\n");
    free(text);
}
END_TEST

START_TEST(csv_quotes_and_round_trips)
{
    csv *out = csv_open(path, "a,b,c,d", &err);
    ck_assert_ptr_nonnull(out);
    csv_text(out, "plain");
    csv_text(out, "with \"quotes\", commas");
    csv_real(out, 0.1);
    csv_u64(out, UINT64_MAX);
    csv_end_row(out);
    csv_real(out, NAN);
    csv_real(out, INFINITY);
    csv_end_row(out);
    ck_assert_int_eq(csv_close(out, &err), 0);
    char *text = contents();
    ck_assert_str_eq(text, "a,b,c,d\n"
                           "plain,\"with \"\"quotes\"\", commas\",0.10000000000000001,"
                           "18446744073709551615\n"
                           ",\n");
    free(text);
    ck_assert_ptr_null(csv_open("/nonexistent/x", "a", &err));
    ck_assert_str_eq(err.text, "/nonexistent/x: No such file or directory");
    out = csv_open("/dev/full", "a", &err);
    if (out != NULL) ck_assert_int_eq(csv_close(out, &err), -1);
}
END_TEST

START_TEST(json_values)
{
    json_t *value = output_real(NAN);
    ck_assert(json_is_null(value));
    json_decref(value);
    value = output_real(0.5);
    ck_assert_double_eq(json_real_value(value), 0.5);
    json_decref(value);
    value = output_text("tra\xff"
                        "ce");
    ck_assert_str_eq(json_string_value(value), "tra?ce");
    json_decref(value);
    ck_assert_int_eq(output_json(NULL, &err), -1);
}
END_TEST

START_TEST(percentiles)
{
    double values[] = {5, 1, 4, 2, 3, 10, 9, 8, 7, 6};
    stats_summary s = stats_summarise(values, 10);
    ck_assert_double_eq(s.mean, 5.5);
    ck_assert_double_eq(s.p50, 5);
    ck_assert_double_eq(s.p90, 9);
    ck_assert_double_eq(s.p99, 10);
    ck_assert(s.min == 1 && s.max == 10);
    ck_assert(isnan(stats_summarise(values, 0).p50));
    s = stats_summarise(values, 1);
    ck_assert(s.p50 == 1 && s.p99 == 1);
}
END_TEST

START_TEST(step_times)
{
    static model m;
    hardware h;
    ck_assert_int_eq(
        model_parse("layers=2,kv_heads=1,q_heads=2,head_dim=8,params=1000,window=4", 0, &m, &err),
        0);
    ck_assert_int_eq(
        hardware_parse("flops=1e9,bandwidth=1e9,flops_share=0.5,overhead=1ms", &h, &err), 0);
    ck_assert_double_eq(h.bandwidth_share, 0.8);
    roofline_step step = {0};
    roofline_add(&step, &m, 2, 5); /* keys seen: 3, 4, 4, 4, 4 */
    ck_assert_double_eq(step.tokens, 5);
    ck_assert_double_eq(step.attention_flops, 4.0 * 2 * 2 * 8 * 19);
    ck_assert_double_eq(step.kv_bytes, 64.0 * (2 + 2 * 5));
    double arithmetic = (2 * 1000 * 5 + step.attention_flops) / 0.5e9;
    ck_assert_double_eq_tol(roofline_time(&step, &m, &h), arithmetic + 0.001, 1e-15);
    /* One token is bound by reading the weights. */
    roofline_step one = {0};
    roofline_add(&one, &m, 100, 1);
    ck_assert_double_eq(one.kv_bytes, 64.0 * (4 + 2));
    h.flops_share = 1;
    ck_assert_double_eq_tol(roofline_time(&one, &m, &h), (2000 + 384) / 0.8e9 + 0.001, 1e-15);
    const char *const bad[] = {
        "", "tpu", "flops=1e12", "a100,flops_share=2", "a100,overhead=x", "a100,x=1"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        ck_assert_msg(hardware_parse(bad[i], &h, &err) == -1, "'%s'", bad[i]);
}
END_TEST

START_TEST(plots)
{
    const double x[] = {1, 10, 100}, y[] = {1, NAN, 3};
    const char *const names[] = {"a", "b", "a very long name that needs to be slanted"};
    const plot_series lines[] = {{"line", x, y, 3, PLOT_LINE},
                                 {"points", x, x, 3, PLOT_POINTS},
                                 {"area", NULL, x, 3, PLOT_AREA}};
    const plot_series bars[] = {{"bars", NULL, y, 3, PLOT_BAR}};
    const plot_mark mark = {50, "here"};
    const plot_panel panels[] = {
        {.title = "first",
         .x_label = "x (s)",
         .y_label = "y",
         .series = lines,
         .n_series = 2,
         .log_x = true,
         .marks = &mark,
         .n_marks = 1},
        {.series = lines + 2, .n_series = 1, .y_log2_bytes = true, .y_from_zero = true},
        {.series = bars, .n_series = 1, .categories = names, .n_categories = 3},
    };
    ck_assert_int_eq(plot_write_svg(path, "title", "subtitle", panels, 3, &err), 0);
    char *text = contents();
    ck_assert_ptr_nonnull(strstr(text, "<svg"));
    ck_assert_ptr_nonnull(strstr(text, "</svg>"));
    free(text);
    ck_assert_int_eq(plot_write_svg("/nonexistent/x.svg", "t", NULL, panels, 1, &err), -1);
    const plot_series nothing = {"nothing", NULL, y, 0, PLOT_LINE};
    const plot_panel empty = {.title = "empty", .series = &nothing, .n_series = 1};
    ck_assert_int_eq(plot_write_svg(path, "t", NULL, &empty, 1, &err), -1);
    ck_assert_str_eq(err.text, "--plot: nothing to show in 'empty'");
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("tools output");
    TCase *c = tcase_create("output");
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, rounding_claims_neither_all_nor_none);
    tcase_add_test(c, tables_are_aligned);
    tcase_add_test(c, csv_quotes_and_round_trips);
    tcase_add_test(c, json_values);
    tcase_add_test(c, percentiles);
    tcase_add_test(c, step_times);
    tcase_add_test(c, plots);
    suite_add_tcase(suite, c);
    return suite;
}
