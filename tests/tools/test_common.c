/* The tools' shared parts: value parsing, models, workloads, axes. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "parse.h"
#include "plot_axis.h"
#include "pressure.h"
#include "random.h"
#include "synthetic.h"
#include "suite.h"

static tool_error err;

START_TEST(sizes)
{
    const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"4096", 4096},       {"16GiB", 17179869184u}, {"1.5K", 1536},
                {"2GB", 2000000000u}, {"512MiB", 536870912u},  {"1B", 1}};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        uint64_t bytes = 0;
        ck_assert_int_eq(parse_size(good[i].text, "--memory", &bytes, &err), 0);
        ck_assert_uint_eq(bytes, good[i].bytes);
    }
    const char *const bad[] = {"",    "x",     "-1",   "0",    "1e30", "nan",
                               "inf", "5 GiB", "5Gib", "0x10", "1GiBx"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        uint64_t bytes = 77;
        ck_assert_msg(parse_size(bad[i], "--memory", &bytes, &err) == -1, "'%s'", bad[i]);
        ck_assert_uint_eq(bytes, 77);
        ck_assert_msg(strncmp(err.text, "--memory: ", 10) == 0, "%s", err.text);
    }
    char text[32];
    ck_assert_str_eq(format_size(16777216, text, sizeof text), "16.0 MiB");
    ck_assert_str_eq(format_size(5, text, sizeof text), "5 B");
}
END_TEST

START_TEST(numbers)
{
    uint64_t v = 0;
    ck_assert_int_eq(parse_u64("12", "n", 1, 100, &v, &err), 0);
    ck_assert_uint_eq(v, 12);
    ck_assert_int_eq(parse_u64("3k", "n", 1, 10000, &v, &err), 0);
    ck_assert_uint_eq(v, 3000);
    const char *const bad[] = {"", "-1", "0", "101", "1.5", "99999999999999999999", "7x", " 7"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        ck_assert_msg(parse_u64(bad[i], "n", 1, 100, &v, &err) == -1, "'%s'", bad[i]);
    double d = 0;
    ck_assert_int_eq(parse_double("-0.25", "n", -1, 1, &d, &err), 0);
    ck_assert_double_eq(d, -0.25);
    ck_assert_int_eq(parse_double("nan", "n", -1, 1, &d, &err), -1);
    ck_assert_int_eq(parse_double("2", "n", -1, 1, &d, &err), -1);
    ck_assert_int_eq(parse_duration("250ms", "t", &d, &err), 0);
    ck_assert_double_eq_tol(d, 0.25, 1e-12);
    ck_assert_int_eq(parse_duration("2m", "t", &d, &err), 0);
    ck_assert_double_eq(d, 120);
    ck_assert_int_eq(parse_duration("2 m", "t", &d, &err), -1);
}
END_TEST

START_TEST(lists)
{
    const char *cursor = "a, bb ,c";
    char item[4];
    ck_assert_int_eq(parse_list_next(&cursor, item, sizeof item, "l", &err), 1);
    ck_assert_str_eq(item, "a");
    ck_assert_int_eq(parse_list_next(&cursor, item, sizeof item, "l", &err), 1);
    ck_assert_str_eq(item, "bb");
    ck_assert_int_eq(parse_list_next(&cursor, item, sizeof item, "l", &err), 1);
    ck_assert_int_eq(parse_list_next(&cursor, item, sizeof item, "l", &err), 0);
    cursor = "a,";
    ck_assert_int_eq(parse_list_next(&cursor, item, sizeof item, "l", &err), 1);
    ck_assert_int_eq(parse_list_next(&cursor, item, sizeof item, "l", &err), -1);
    cursor = "abcd";
    ck_assert_int_eq(parse_list_next(&cursor, item, sizeof item, "l", &err), -1);
}
END_TEST

START_TEST(pressure_lists)
{
    pressure p[3];
    size_t n = 0;
    ck_assert_int_eq(pressure_parse("60s:-50%,2m:+50%,300:8GiB", p, 3, &n, &err), 0);
    ck_assert_uint_eq(n, 3);
    ck_assert_double_eq(p[0].at, 60);
    ck_assert(p[0].relative && p[0].amount == -0.5);
    ck_assert(p[1].at == 120 && p[1].amount == 0.5);
    ck_assert(!p[2].relative && p[2].amount == 8589934592.0);
    const char *const bad[] = {"",         "60s",           "60s:",
                               "60s:50%",  "60s:-100%",     "60s:-x%",
                               "x:-50%",   "2s:-5%,1s:-5%", "1:-1%,2:-1%,3:-1%,4:-1%",
                               "60s:-50%,"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        ck_assert_msg(pressure_parse(bad[i], p, 3, &n, &err) == -1, "'%s'", bad[i]);
}
END_TEST

START_TEST(models)
{
    static model m;
    ck_assert_int_eq(model_parse("llama-3-8b", 0, &m, &err), 0);
    ck_assert_uint_eq(m.n_groups, 1);
    ck_assert_uint_eq(model_token_bytes(&m), 131072);
    ck_assert_int_eq(model_parse("gemma-3-4b", 0, &m, &err), 0);
    ck_assert_uint_eq(m.n_groups, 2);
    ck_assert_uint_eq(m.groups[0].n_layers, 5);
    ck_assert_uint_eq(m.groups[0].window, 0);
    ck_assert_uint_eq(m.groups[1].n_layers, 29);
    ck_assert_uint_eq(m.groups[1].window, 1024);
    const uint32_t full[] = {5, 11, 17, 23, 29};
    for (int i = 0; i < 5; i++)
        ck_assert_uint_eq(m.groups[0].layers[i], full[i]);
    ck_assert_uint_eq(m.groups[1].layers[5], 6);
    ck_assert_int_eq(model_parse("gemma-3-4b", 1, &m, &err), 0);
    ck_assert_uint_eq(m.n_groups, 1);
    ck_assert_uint_eq(m.groups[0].n_layers, 34);
    ck_assert_uint_eq(m.groups[0].window, 0);
    ck_assert_int_eq(model_parse("mistral-7b", 0, &m, &err), 0);
    ck_assert_uint_eq(m.n_groups, 1);
    ck_assert_uint_eq(m.groups[0].window, 4096);
    ck_assert_int_eq(
        model_parse("layers=2,kv_heads=4,head_dim=64,dtype=f32,q_heads=8", 0, &m, &err), 0);
    ck_assert_uint_eq(model_token_bytes(&m), 2 * 4 * 64 * 2 * 4);
    ck_assert_int_eq(model_parse("llama-3-8b,dtype=f32", 0, &m, &err), 0);
    ck_assert_uint_eq(model_token_bytes(&m), 262144);
    const char *const bad[] = {"gpt-5",
                               "layers=2",
                               "layers=2,kv_heads=4",
                               "layers=0,kv_heads=1,head_dim=64",
                               "layers=2,kv_heads=4,head_dim=63",
                               "layers=2,kv_heads=4,head_dim=64,dtype=f8",
                               "layers=2,kv_heads=4,head_dim=64,q_heads=6",
                               "layers=2,colour=3",
                               "layers=99999,kv_heads=4,head_dim=64",
                               "",
                               "llama-3-8b,x"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        ck_assert_msg(model_parse(bad[i], 0, &m, &err) == -1, "'%s'", bad[i]);
        ck_assert_msg(strncmp(err.text, "--model: ", 9) == 0, "%s", err.text);
    }
}
END_TEST

START_TEST(workload_lengths)
{
    trace a, b;
    ck_assert_int_eq(synthetic_trace("lengths,requests=5000,in_sigma=1,seed=3", &a, &err), 0);
    ck_assert_int_eq(synthetic_trace("lengths,requests=5000,in_sigma=1,seed=3", &b, &err), 0);
    ck_assert_uint_eq(a.n_requests, 5000);
    ck_assert_mem_eq(a.requests, b.requests, a.n_requests * sizeof *a.requests);
    double log_sum = 0;
    for (size_t i = 0; i < a.n_requests; i++) {
        const trace_request *r = &a.requests[i];
        ck_assert_uint_ge(r->input, 1);
        ck_assert_uint_ge(r->output, 1);
        ck_assert_uint_le(r->input + r->output, 32768);
        if (i > 0) ck_assert_double_ge(r->arrival, r[-1].arrival);
        log_sum += log(r->input);
    }
    /* The mean logarithm is that of the median: 5 standard errors. */
    ck_assert_double_eq_tol(log_sum / 5000, log(600), 5 / sqrt(5000));
    ck_assert_double_eq_tol(a.requests[4999].arrival, 1250, 5 * sqrt(5000) / 4);
    trace_free(&a);
    trace_free(&b);
}
END_TEST

/* Ids keep the promise of the trace format: one id has one depth and one parent, none repeats
 * inside a request, and prompts do share. */
START_TEST(workload_chat)
{
    trace t;
    ck_assert_int_eq(synthetic_trace("chat,requests=3000,block=64,seed=9", &t, &err), 0);
    ck_assert_uint_eq(t.n_requests, 3000);
    uint64_t most = 0, distinct = 0;
    for (size_t i = 0; i < t.n_blocks; i++)
        if (t.blocks[i] > most) most = t.blocks[i];
    uint64_t *parent = malloc((most + 1) * sizeof *parent);
    uint32_t *depth = calloc(most + 1, sizeof *depth);
    ck_assert(parent != NULL && depth != NULL);
    for (size_t i = 0; i < t.n_requests; i++) {
        const trace_request *r = &t.requests[i];
        ck_assert_uint_eq(r->n_blocks, (r->input + 63) / 64);
        if (i > 0) ck_assert_double_ge(r->arrival, r[-1].arrival);
        for (uint32_t k = 0; k < r->n_blocks; k++) {
            uint64_t id = t.blocks[r->first_block + k];
            uint64_t above = k == 0 ? UINT64_MAX : t.blocks[r->first_block + k - 1];
            if (depth[id] == 0) {
                distinct++;
                depth[id] = k + 1;
                parent[id] = above;
            }
            ck_assert_uint_eq(depth[id], k + 1);
            ck_assert_uint_eq(parent[id], above);
        }
    }
    ck_assert_uint_lt(distinct * 2, t.n_blocks);
    free(parent);
    free(depth);
    trace_free(&t);
}
END_TEST

START_TEST(workload_errors)
{
    const char *const bad[] = {"",
                               "poisson",
                               "lengths,seed",
                               "lengths,x=1",
                               "lengths,requests=0",
                               "lengths,turns=3",
                               "chat,turns=0.5",
                               "lengths,in=nan",
                               "chat,max_tokens=100",
                               "lengths,,"};
    trace t;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        ck_assert_msg(synthetic_trace(bad[i], &t, &err) == -1, "'%s'", bad[i]);
        ck_assert_msg(strncmp(err.text, "--synthetic", 11) == 0, "%s", err.text);
        ck_assert_ptr_null(t.requests);
    }
}
END_TEST

START_TEST(axes)
{
    plot_axis a;
    char text[32];
    plot_axis_make(&a, 3, 97, false, true, false);
    ck_assert_double_eq(a.low, 0);
    ck_assert_double_eq(a.high, 100);
    ck_assert_double_eq(a.ticks[1] - a.ticks[0], 20);
    ck_assert_double_eq_tol(plot_axis_place(&a, 25), 0.25, 1e-12);
    plot_axis_make(&a, 5, 5, false, true, false); /* no extent */
    ck_assert_double_lt(a.low, a.high);
    plot_axis_make(&a, 0, 0, false, true, false);
    ck_assert_double_lt(a.low, a.high);
    plot_axis_make(&a, 1, 1000, true, false, false);
    ck_assert_double_eq_tol(plot_axis_place(&a, 10), 1.0 / 3, 1e-12);
    ck_assert_uint_ge(a.n_ticks, 4);
    plot_axis_make(&a, 0, 6e9, false, true, true);
    ck_assert_double_eq(a.ticks[1], 1073741824.0);
    plot_axis_format(&a, a.ticks[1], text, sizeof text);
    ck_assert_str_eq(text, "1 GiB");
    plot_axis_make(&a, 0, 1e-4, false, true, false);
    plot_axis_format(&a, 2e-5, text, sizeof text);
    ck_assert_str_eq(text, "2e-05");
}
END_TEST

START_TEST(generator)
{
    tool_random r;
    random_seed(&r, 1);
    double sum = 0, squares = 0;
    for (int i = 0; i < 100000; i++) {
        double x = random_normal(&r);
        sum += x, squares += x * x;
    }
    ck_assert_double_eq_tol(sum / 1e5, 0, 0.02);
    ck_assert_double_eq_tol(squares / 1e5, 1, 0.02);
    unsigned seen = 0;
    for (int i = 0; i < 1000; i++) {
        uint64_t x = random_below(&r, 5);
        ck_assert_uint_lt(x, 5);
        seen |= 1u << x;
    }
    ck_assert_uint_eq(seen, 31);
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("tools common");
    TCase *c = tcase_create("common");
    tcase_add_test(c, sizes);
    tcase_add_test(c, numbers);
    tcase_add_test(c, lists);
    tcase_add_test(c, pressure_lists);
    tcase_add_test(c, models);
    tcase_add_test(c, workload_lengths);
    tcase_add_test(c, workload_chat);
    tcase_add_test(c, workload_errors);
    tcase_add_test(c, axes);
    tcase_add_test(c, generator);
    suite_add_tcase(suite, c);
    return suite;
}
