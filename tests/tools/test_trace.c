/* The trace reader: formats, detection, and what it says about bad input. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trace.h"
#include "suite.h"

static trace t;
static tool_error err;

static int load(const char *text, trace_format format)
{
    memset(&err, 0, sizeof err);
    return trace_load_memory(text, strlen(text), "f", format, &t, &err);
}

/* Loading fails with exactly this text, and leaves a zeroed trace. */
static void fails(const char *text, trace_format format, const char *message)
{
    ck_assert_int_eq(load(text, format), -1);
    ck_assert_str_eq(err.text, message);
    trace zero;
    memset(&zero, 0, sizeof zero);
    ck_assert_ptr_null(t.name);
    ck_assert_ptr_null(t.requests);
    ck_assert_uint_eq(t.n_requests, 0);
}

/* Plain lines have a faster reader than all others. However a line is written, the result is the
 * same, and so is what is said about a line that is wrong. */
START_TEST(mooncake_lines_in_any_dress)
{
#define REST(ids) "\"timestamp\":0,\"input_length\":9,\"output_length\":1,\"hash_ids\"" ids "}\n"
#define LINE(ids) "{" REST(ids)
    static const char *const same[] = {
        LINE(":[0,10,234567890123456789]"),
        LINE("\t : [ 0 ,10\t, 234567890123456789 ] "),
        LINE(":[0,10,234567890123456789],\"x\":{\"y\":[{}]}"),
        LINE(":[0,10,234567890123456789],\"x\":\"\\\"hash_ids\\\":[5]\""),
        LINE(":[0,10,234567890123456789],\"x\":{\"hash_ids\":[5]}"),
        LINE(":[7],\"hash_ids\":[0,10,234567890123456789]"), /* the last one counts */
        LINE(":[0,10,234567890123456789],\"input_length\":9,\"\":0,\"input\":8"),
        LINE(":[0,10,234567890123456789],\"input_length\":9.0,\"x\":-1"),
        LINE(":[7],\"hash\\u005fids\":[0,10,234567890123456789]"),
        "{\"x\":\"hash_ids\"," REST(":[0,10,234567890123456789]"),
        "{\"x\":{\"hash_ids\":[5]}," REST(":[0,10,234567890123456789]"),
    };
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        char text[400];
        snprintf(text, sizeof text, "%s%s", same[i], same[i]);
        ck_assert_int_eq(load(text, TRACE_AUTO), 0);
        ck_assert_uint_eq(t.n_requests, 2);
        ck_assert_uint_eq(t.n_blocks, 6);
        ck_assert_uint_eq(t.input_tokens, 18);
        for (size_t k = 0; k < 6; k += 3) {
            ck_assert_uint_eq(t.blocks[k], 0);
            ck_assert_uint_eq(t.blocks[k + 1], 10);
            ck_assert_uint_eq(t.blocks[k + 2], UINT64_C(234567890123456789));
        }
        trace_free(&t);
    }
    ck_assert_int_eq(load(LINE(":[9223372036854775807]"), TRACE_AUTO), 0);
    ck_assert_uint_eq(t.blocks[0], (uint64_t)INT64_MAX);
    trace_free(&t);
    fails(LINE(":[1,-2]"), TRACE_AUTO, "f:1: field \"hash_ids\": item 1 is negative");
    fails(LINE(":[1.5]"), TRACE_AUTO, "f:1: field \"hash_ids\": item 0 is not an integer");
    fails(LINE(":[[1,2]]"), TRACE_AUTO, "f:1: field \"hash_ids\": item 0 is not an integer");
    fails("[1]", TRACE_MOONCAKE, "f:1: the line is not a JSON object");
    fails(LINE(":[1],\"hash_ids\":3"), TRACE_AUTO, "f:1: field \"hash_ids\" is not an array");
    fails("{\"timestamp\":0,\"input_length\":9,\"output_length\":1,\"x\":{\"hash_ids\":[1]}}",
          TRACE_AUTO, "f:1: field \"hash_ids\" is missing");
    static const char *const broken[] = {":[1,]", ":[,1]", ":[1 2]", ":[01]", ":[1",
                                         ":[1]]", ":[1],", "[1]",    ":[+1]", ":[1]x"};
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        char text[200];
        snprintf(text, sizeof text,
                 "{\"timestamp\":0,\"input_length\":9,\"output_length\":1,"
                 "\"hash_ids\"%s}",
                 broken[i]);
        ck_assert_int_eq(load(text, TRACE_MOONCAKE), -1);
        ck_assert_ptr_nonnull(strstr(err.text, "not JSON"));
    }
#undef LINE
#undef REST
}
END_TEST

#define AZURE "TIMESTAMP,ContextTokens,GeneratedTokens\n"
#define LENGTHS "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n"

START_TEST(mooncake_fields)
{
    ck_assert_int_eq(load("{\"timestamp\": 1000, \"input_length\": 1200, \"output_length\": 5, "
                          "\"hash_ids\": [7, 9, 8], \"session\": \"x\"}\r\n"
                          "\n"
                          "{\"timestamp\":2500.5,\"input_length\":0,\"output_length\":0,"
                          "\"hash_ids\":[],\"block_size\":16}",
                          TRACE_AUTO),
                     0);
    ck_assert_int_eq(t.format, TRACE_MOONCAKE);
    ck_assert(t.has_blocks && t.has_arrivals);
    ck_assert_uint_eq(t.n_requests, 2);
    ck_assert_uint_eq(t.n_blocks, 3);
    const trace_request *r = t.requests;
    ck_assert_double_eq(r[0].arrival, 0);
    ck_assert_double_eq_tol(r[1].arrival, 1.5005, 1e-12);
    ck_assert_uint_eq(r[0].input, 1200);
    ck_assert_uint_eq(r[0].output, 5);
    ck_assert_uint_eq(r[0].block_tokens, 512);
    ck_assert_uint_eq(r[1].block_tokens, 16);
    ck_assert_uint_eq(t.blocks[r[0].first_block + 1], 9);
    ck_assert_uint_eq(trace_block_tokens(&r[0], 0), 512);
    ck_assert_uint_eq(trace_block_tokens(&r[0], 2), 1200 - 1024);
    ck_assert_uint_eq(trace_block_tokens(&r[0], 3), 1);
    ck_assert_uint_eq(r[1].line, 3);
    ck_assert_uint_eq(t.input_tokens, 1200);
    ck_assert_uint_eq(t.output_tokens, 5);
    trace_free(&t);
}
END_TEST

START_TEST(azure_fields)
{
    ck_assert_int_eq(load("\xef\xbb\xbf" AZURE "2023-11-16 18:15:46.6805900,374,44\r\n"
                          "2023-11-16 18:15:45.1805900, \"3\" ,1\n"
                          "2023-11-16T19:15:47.5+01:00,5,0\n",
                          TRACE_AUTO),
                     0);
    ck_assert_int_eq(t.format, TRACE_AZURE);
    ck_assert(!t.has_blocks && t.has_arrivals);
    ck_assert_uint_eq(t.n_requests, 3);
    ck_assert_double_eq_tol(t.requests[0].arrival, 1.5, 1e-6); /* not in order of time */
    ck_assert_double_eq_tol(t.requests[1].arrival, 0, 1e-6);
    ck_assert_double_eq_tol(t.requests[2].arrival, 2.31941, 1e-6);
    ck_assert_uint_eq(t.requests[1].input, 3);
    ck_assert_uint_eq(t.requests[2].output, 0);
    trace_free(&t);
    ck_assert_int_eq(load("ContextTokens,x,GeneratedTokens,TIMESTAMP\n1,zzz,2,12.5\n", TRACE_AZURE),
                     0);
    ck_assert_uint_eq(t.requests[0].input, 1);
    ck_assert_uint_eq(t.requests[0].output, 2);
    trace_free(&t);
    ck_assert_int_eq(load(AZURE "1,1200.0,30.00\n2,100,0.0\n3,0,0\n4,000,10\n", TRACE_AZURE), 0);
    const uint32_t in[] = {1200, 100, 0, 0}, out[] = {30, 0, 0, 10};
    for (size_t i = 0; i < 4; i++) {
        ck_assert_uint_eq(t.requests[i].input, in[i]);
        ck_assert_uint_eq(t.requests[i].output, out[i]);
    }
    trace_free(&t);
}
END_TEST

START_TEST(lengths_fields)
{
    ck_assert_int_eq(load(LENGTHS "74,918,992,0.08\n\n290,905,1195,nan\n", TRACE_AUTO), 0);
    ck_assert_int_eq(t.format, TRACE_LENGTHS);
    ck_assert(!t.has_blocks && !t.has_arrivals);
    ck_assert_uint_eq(t.n_requests, 2);
    ck_assert_uint_eq(t.requests[1].input, 290);
    ck_assert_uint_eq(t.requests[1].output, 905);
    ck_assert_uint_eq(t.requests[1].line, 4);
    trace_free(&t);
}
END_TEST

START_TEST(bad_json)
{
#define GOOD "{\"timestamp\":0,\"input_length\":1,\"output_length\":1,\"hash_ids\":[0]}\n"
    fails(GOOD "{\"timestamp\":0,\"output_length\":1,\"hash_ids\":[0]}", TRACE_AUTO,
          "f:2: field \"input_length\" is missing");
    fails("{\"timestamp\":0,\"input_length\":1,\"hash_ids\":[0]}", TRACE_AUTO,
          "f:1: field \"output_length\" is missing");
    fails("{\"input_length\":1,\"output_length\":1,\"hash_ids\":[0]}", TRACE_AUTO,
          "f:1: field \"timestamp\" is missing");
    fails("{\"timestamp\":0,\"input_length\":1,\"output_length\":1}", TRACE_AUTO,
          "f:1: field \"hash_ids\" is missing");
    fails("{\"timestamp\":0,\"input_length\":-1,\"output_length\":1,\"hash_ids\":[]}", TRACE_AUTO,
          "f:1: field \"input_length\": -1 is not a whole number in 0..268435456");
    fails("{\"timestamp\":0,\"input_length\":1,\"output_length\":4294967297,\"hash_ids\":[]}",
          TRACE_AUTO,
          "f:1: field \"output_length\": 4294967297 is not a whole number in 0..268435456");
    fails("{\"timestamp\":0,\"input_length\":1.5,\"output_length\":1,\"hash_ids\":[]}", TRACE_AUTO,
          "f:1: field \"input_length\": 1.5 is not a whole number in 0..268435456");
    fails("{\"timestamp\":0,\"input_length\":\"1\",\"output_length\":1,\"hash_ids\":[]}",
          TRACE_AUTO, "f:1: field \"input_length\" is not a number");
    fails("{\"timestamp\":-3,\"input_length\":1,\"output_length\":1,\"hash_ids\":[]}", TRACE_AUTO,
          "f:1: field \"timestamp\": -3 is not in 0..1e15 ms");
    fails("{\"timestamp\":0,\"input_length\":1,\"output_length\":1,\"hash_ids\":[1,-2]}",
          TRACE_AUTO, "f:1: field \"hash_ids\": item 1 is negative");
    fails("{\"timestamp\":0,\"input_length\":1,\"output_length\":1,\"hash_ids\":[1.5]}", TRACE_AUTO,
          "f:1: field \"hash_ids\": item 0 is not an integer");
    fails("{\"timestamp\":0,\"input_length\":1,\"output_length\":1,\"hash_ids\":3}", TRACE_AUTO,
          "f:1: field \"hash_ids\" is not an array");
    fails("{\"timestamp\":0,\"input_length\":1,\"output_length\":1,\"hash_ids\":[],"
          "\"block_size\":0}",
          TRACE_AUTO, "f:1: field \"block_size\": 0 is not a whole number in 1..16777216");
    fails("[1]\n", TRACE_MOONCAKE, "f:1: the line is not a JSON object");
    /* The parser's own words may differ between versions of jansson; place and kind may not. */
    const char *const broken[] = {
        "{\"timestamp\":NaN,\"input_length\":1,\"output_length\":1,\"hash_ids\":[]}",
        "{\"timestamp\":0,\"input_length\":99999999999999999999,\"output_length\":1}",
        "{\"timestamp\":0,\"input_length\":1", "{\"a\" 1}", "{} trailing"};
    for (size_t i = 0; i < sizeof broken / sizeof broken[0]; i++) {
        char text[512];
        snprintf(text, sizeof text, GOOD "\n%s\n", broken[i]);
        ck_assert_int_eq(load(text, TRACE_AUTO), -1);
        ck_assert_msg(strncmp(err.text, "f:3: column ", 12) == 0, "%s", err.text);
        ck_assert_ptr_nonnull(strstr(err.text, "not JSON"));
    }
}
END_TEST

START_TEST(bad_csv)
{
    fails(AZURE "2023-11-16 18:15:46,1\n", TRACE_AUTO, "f:2: field \"GeneratedTokens\" is missing");
    fails(AZURE "2023-11-16 18:15:46,,1\n", TRACE_AUTO, "f:2: field \"ContextTokens\" is missing");
    fails(AZURE ",1,1\n", TRACE_AUTO, "f:2: field \"TIMESTAMP\" is missing");
    fails(AZURE "1,1,1\n2,1,1,1\n", TRACE_AUTO, "f:3: 4 fields, but the header has 3");
    fails(AZURE "yesterday,1,1\n", TRACE_AUTO,
          "f:2: field \"TIMESTAMP\": 'yesterday' is not a time (YYYY-MM-DD HH:MM:SS)");
    fails(AZURE "nan,1,1\n", TRACE_AUTO,
          "f:2: field \"TIMESTAMP\": 'nan' is not a time in 0..1e12 s");
    fails(AZURE "-1,1,1\n", TRACE_AUTO,
          "f:2: field \"TIMESTAMP\": '-1' is not a time in 0..1e12 s");
    fails(AZURE "2023-11-16 18:15:46 junk,1,1\n", TRACE_AUTO,
          "f:2: field \"TIMESTAMP\": '2023-11-16 18:15:46 junk' is not a time (YYYY-MM-DD "
          "HH:MM:SS)");
    fails(AZURE "1,-5,1\n", TRACE_AUTO,
          "f:2: field \"ContextTokens\": '-5' is not a whole number (0 or more)");
    fails(
        AZURE "1,1,99999999999999999999999\n", TRACE_AUTO,
        "f:2: field \"GeneratedTokens\": '99999999999999999999999' is more than 268435456 tokens");
    fails(LENGTHS "nan,1,1,1\n", TRACE_AUTO,
          "f:2: field \"num_prefill_tokens\": 'nan' is not a whole number (0 or more)");
    fails(LENGTHS "1,.0,1,1\n", TRACE_AUTO,
          "f:2: field \"num_decode_tokens\": '.0' is not a whole number (0 or more)");
    fails(LENGTHS "1,1.,1,1\n", TRACE_AUTO,
          "f:2: field \"num_decode_tokens\": '1.' is not a whole number (0 or more)");
    fails(LENGTHS "1,1.5,1,1\n", TRACE_AUTO,
          "f:2: field \"num_decode_tokens\": '1.5' is not a whole number (0 or more)");
    fails("a,b\n1,2\n", TRACE_AZURE, "f:1: the header has no column \"TIMESTAMP\"");
    fails("num_prefill_tokens\n1\n", TRACE_LENGTHS,
          "f:1: the header has no column \"num_decode_tokens\"");
}
END_TEST

START_TEST(not_a_trace)
{
    fails("", TRACE_AUTO, "f: the trace is empty");
    fails("\n  \n\r\n", TRACE_AUTO, "f: the trace is empty");
    fails(AZURE, TRACE_AUTO, "f: the trace has a header but no requests");
    ck_assert_int_eq(load("hello\n", TRACE_AUTO), -1);
    ck_assert_msg(strncmp(err.text, "f:1: unknown trace format", 25) == 0, "%s", err.text);
    ck_assert_int_eq(trace_load_memory("a\0b\n", 4, "f", TRACE_AUTO, &t, &err), -1);
    ck_assert_str_eq(err.text, "f:1: binary data (a NUL byte)");
    ck_assert_int_eq(trace_load("/nonexistent/trace", TRACE_AUTO, &t, &err), -1);
    ck_assert_str_eq(err.text, "/nonexistent/trace: No such file or directory");
}
END_TEST

/* A line that does not fit libarchive's block is put together again. */
START_TEST(long_lines)
{
    enum { IDS = 200000 };
    size_t capacity = IDS * 8 + 200;
    char *text = malloc(capacity);
    ck_assert_ptr_nonnull(text);
    size_t n = (size_t)sprintf(text, "{\"timestamp\":0,\"input_length\":1,\"output_length\":2,"
                                     "\"hash_ids\":[0");
    for (int i = 1; i < IDS; i++)
        n += (size_t)sprintf(text + n, ",%d", i);
    sprintf(text + n, "]}\n");
    ck_assert_int_eq(load(text, TRACE_AUTO), 0);
    ck_assert_uint_eq(t.n_blocks, IDS);
    for (uint64_t i = 0; i < IDS; i++)
        ck_assert_uint_eq(t.blocks[i], i);
    trace_free(&t);
    free(text);
}
END_TEST

START_TEST(format_names)
{
    trace_format format = TRACE_AUTO;
    ck_assert_int_eq(trace_format_parse("azure", &format, &err), 0);
    ck_assert_int_eq(format, TRACE_AZURE);
    ck_assert_str_eq(trace_format_name(TRACE_LENGTHS), "lengths");
    ck_assert_int_eq(trace_format_parse("csv", &format, &err), -1);
    ck_assert_ptr_nonnull(strstr(err.text, "mooncake"));
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("trace");
    TCase *c = tcase_create("trace");
    tcase_add_test(c, mooncake_fields);
    tcase_add_test(c, mooncake_lines_in_any_dress);
    tcase_add_test(c, azure_fields);
    tcase_add_test(c, lengths_fields);
    tcase_add_test(c, bad_json);
    tcase_add_test(c, bad_csv);
    tcase_add_test(c, not_a_trace);
    tcase_add_test(c, long_lines);
    tcase_add_test(c, format_names);
    suite_add_tcase(suite, c);
    return suite;
}
