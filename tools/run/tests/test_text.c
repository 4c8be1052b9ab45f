/* pkv-run's text: whole UTF-8 characters, stop strings in any cut, drafts by prompt lookup. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "lookup.h"
#include "suite.h"
#include "text_stream.h"

static void give_stop(text_stream *t, const char *stop)
{
    t->stops[t->n_stops++] = strdup(stop);
}

/* Adds the text in pieces of every size; what is ready must be valid and a prefix of the end. */
static void check_cuts(const char *text, size_t size, const char *stop, const char *want)
{
    for (size_t piece = 1; piece <= size; piece++) {
        text_stream t = {0};
        if (stop) give_stop(&t, stop);
        for (size_t at = 0; at < size; at += piece) {
            text_stream_add(&t, text + at, size - at < piece ? size - at : piece);
            ck_assert_uint_le(t.ready, strlen(want));
            if (!t.ready) continue;
            ck_assert_mem_eq(t.text, want, t.ready);
            ck_assert(text_is_utf8(t.text, t.ready));
        }
        text_stream_end(&t);
        ck_assert_uint_eq(t.ready, strlen(want));
        if (t.ready) ck_assert_mem_eq(t.text, want, t.ready);
        ck_assert_int_eq(t.stopped, stop && strlen(want) < size);
        text_stream_free(&t);
    }
}

START_TEST(characters_stay_whole)
{
    const char *text = "a\u00e9\u4e2d\U0001f600z";
    check_cuts(text, strlen(text), NULL, text);
}
END_TEST

START_TEST(stops_are_found_in_any_cut)
{
    check_cuts("one two three", 13, "tw", "one ");
    check_cuts("aaab", 4, "aab", "a");
    check_cuts("stop", 4, "stop", "");
    check_cuts("no sto", 6, "stop", "no sto"); /* held back, then given at the end */
}
END_TEST

START_TEST(the_first_stop_counts)
{
    text_stream t = {0};
    give_stop(&t, "c");
    give_stop(&t, "bc");
    text_stream_add(&t, "abcd", 4);
    ck_assert(t.stopped);
    ck_assert_str_eq(t.text, "a");
    text_stream_add(&t, "more", 4);
    text_stream_end(&t);
    ck_assert_uint_eq(t.ready, 1);
    text_stream_free(&t);
}
END_TEST

START_TEST(bytes_that_are_no_text)
{
    static const struct {
        const char *bytes, *want;
    } cases[] = {{"\xff", "\uFFFD"},         {"a\x80z", "a\uFFFDz"},
                 {"\xc0\xaf", "\uFFFD\uFFFD"}, {"\xe4\xb8", "\uFFFD\uFFFD"},
                 {"\xed\xa0\x80", "\uFFFD\uFFFD\uFFFD"}, {"\xf5\x80", "\uFFFD\uFFFD"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        text_stream t = {0};
        text_stream_add(&t, cases[i].bytes, strlen(cases[i].bytes));
        text_stream_end(&t);
        ck_assert_str_eq(t.text, cases[i].want);
        ck_assert(!text_is_utf8(cases[i].bytes, strlen(cases[i].bytes)));
        text_stream_free(&t);
    }
}
END_TEST

START_TEST(drafts_follow_the_last_occurrence)
{
    const int32_t text[] = {1, 2, 3, 4, 5, 1, 2, 3, 6, 7, 1, 2, 3};
    int32_t draft[8];
    ck_assert_uint_eq(lookup_draft(text, 13, draft, 2), 2);
    ck_assert_int_eq(draft[0], 6);
    ck_assert_int_eq(draft[1], 7);
    ck_assert_uint_eq(lookup_draft(text, 13, draft, 8), 5); /* up to the end of what is known */
    ck_assert_uint_eq(lookup_draft(text, 5, draft, 8), 0);
    ck_assert_uint_eq(lookup_draft(text, 1, draft, 8), 0);
    const int32_t pair[] = {8, 9, 4, 8, 9};
    ck_assert_uint_eq(lookup_draft(pair, 5, draft, 1), 1);
    ck_assert_int_eq(draft[0], 4);
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("run_text");
    TCase *c = tcase_create("text");
    tcase_add_test(c, characters_stay_whole);
    tcase_add_test(c, stops_are_found_in_any_cut);
    tcase_add_test(c, the_first_stop_counts);
    tcase_add_test(c, bytes_that_are_no_text);
    tcase_add_test(c, drafts_follow_the_last_occurrence);
    suite_add_tcase(suite, c);
    return suite;
}
