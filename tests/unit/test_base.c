/* Arithmetic, division, lists, bitmaps, locks and texts. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "random.h"
#include "suite.h"

START_TEST(checked_arithmetic)
{
    uint64_t wide = 7;
    ck_assert(!pkvi_add_u64(UINT64_MAX, 1, &wide));
    ck_assert_uint_eq(wide, 7); /* untouched */
    ck_assert(pkvi_add_u64(UINT64_MAX - 1, 1, &wide));
    ck_assert(wide == UINT64_MAX);
    size_t size = 7;
    ck_assert(!pkvi_mul_size(SIZE_MAX / 2, 3, &size));
    ck_assert_uint_eq(size, 7);
    ck_assert(pkvi_mul_size(0, SIZE_MAX, &size));
    ck_assert_uint_eq(size, 0);
    ck_assert_uint_eq(pkvi_ceil_div_u64(UINT64_MAX, 2), UINT64_MAX / 2 + 1);
    ck_assert_uint_eq(pkvi_ceil_div_u64(0, 3), 0);
}
END_TEST

START_TEST(division_is_exact)
{
    uint64_t seed = pkvt_seed("division_is_exact");
    static const uint32_t edges[] = {1, 2, 3, 5, 7, 64, 641, 65535, 65536, 0x7fffffff, UINT32_MAX};
    for (int i = 0; i < 200000; i++) {
        uint32_t d = i < 11 ? edges[i] : (uint32_t)(pkvt_random(&seed) >> (32 + i % 32));
        if (!d) d = 1;
        struct pkvi_divisor by = pkvi_divisor(d);
        uint32_t n = (uint32_t)pkvt_random(&seed), q = n / d;
        bool exact = pkvi_div(by, n) == q && pkvi_div(by, q * d) == q && pkvi_div(by, 0) == 0 &&
                     (!q || pkvi_div(by, q * d - 1) == q - 1) &&
                     pkvi_div(by, UINT32_MAX) == UINT32_MAX / d;
        if (!exact) ck_abort_msg("%u / %u", n, d); /* an assertion each would take minutes */
    }
}
END_TEST

START_TEST(list_keeps_order)
{
    struct item {
        int value;
        struct pkvi_list link;
    } items[4] = {{.value = 0}, {.value = 1}, {.value = 2}, {.value = 3}};
    struct pkvi_list head;
    pkvi_list_init(&head);
    ck_assert(pkvi_list_empty(&head));
    pkvi_list_push_back(&head, &items[0].link);
    pkvi_list_push_back(&head, &items[2].link);
    pkvi_list_insert_before(&items[2].link, &items[1].link);
    pkvi_list_push_back(&head, &items[3].link);
    pkvi_list_remove(&items[2].link);
    pkvi_list_remove(&items[2].link); /* twice is harmless */
    static const int expected[] = {0, 1, 3};
    int n = 0;
    for (struct pkvi_list *at = head.next; at != &head; at = at->next)
        ck_assert_int_eq(PKVI_CONTAINER_OF(at, struct item, link)->value, expected[n++]);
    ck_assert_int_eq(n, 3);
}
END_TEST

START_TEST(bitmap_agrees_with_bytes)
{
    uint64_t seed = pkvt_seed("bitmap_agrees_with_bytes");
    enum { BITS = 201 };
    uint64_t words[PKVI_BITMAP_WORDS(BITS)] = {0};
    bool model[BITS] = {false};
    words[3] = UINT64_MAX << (BITS % 64); /* junk behind the end must not be seen */
    for (int step = 0; step < 5000; step++) {
        uint32_t bit = pkvt_below(&seed, BITS);
        bool on = pkvt_below(&seed, 2);
        (on ? pkvi_bitmap_set : pkvi_bitmap_clear)(words, bit);
        model[bit] = on;
        uint32_t from = pkvt_below(&seed, BITS + 2), next = from;
        while (next < BITS && !model[next])
            next++;
        ck_assert_uint_eq(pkvi_bitmap_next(words, BITS, from), next < BITS ? next : UINT32_MAX);
    }
}
END_TEST

START_TEST(texts_are_cut)
{
    char text[8] = "#######";
    pkvi_text(text, sizeof text, "%s", "longer than eight");
    ck_assert_str_eq(text, "longer ");
    pkvi_text(text, 1, "x");
    ck_assert_str_eq(text, "");
    pkvi_text(NULL, 10, "x");
    text[0] = '#';
    pkvi_text(text, 0, "x");
    ck_assert_int_eq(text[0], '#');
}
END_TEST

static void keep_line(void *user, int level, const char *message)
{
    ck_assert_int_eq(level, PKV_LOG_DEBUG);
    strcpy(user, message);
}

START_TEST(log_lines_are_cut)
{
    char line[300] = "", expected[256], parts[400];
    struct pkvi_log log = {keep_line, line}, silent = {NULL, NULL};
    memset(parts, 'a', sizeof parts);
    parts[sizeof parts - 1] = 0;
    memset(expected, 'a', sizeof expected);
    expected[255] = 0;
    pkvi_log_debug(&silent, "%d", 1);
    pkvi_log_debug(&log, "%s", parts);
    ck_assert_str_eq(line, expected);
}
END_TEST

#ifdef PKV_DEBUG
START_TEST(wrong_lock_order_is_caught)
{
    struct pkvi_lock_ranks ranks = {0};
    struct pkvi_mutex low, high;
    pkvi_mutex_init(&low, PKVI_RANK_CACHE, &ranks);
    pkvi_mutex_init(&high, PKVI_RANK_POOL, &ranks);
    pkvi_mutex_lock(&low);
    pkvi_mutex_lock(&high);
    pkvi_mutex_unlock(&high);
    pkvi_mutex_unlock(&low);
    pkvi_mutex_lock(&high);
    pkvi_mutex_lock(&low); /* aborts */
}
END_TEST
#endif

START_TEST(right_lock_order_is_fine)
{
    struct pkvi_lock_ranks ranks = {0};
    struct pkvi_mutex low, high, free_of_rank;
    ck_assert(pkvi_mutex_init(&low, PKVI_RANK_CACHE, &ranks));
    ck_assert(pkvi_mutex_init(&high, PKVI_RANK_POOL, &ranks));
    ck_assert(pkvi_mutex_init(&free_of_rank, PKVI_RANK_CACHE, NULL));
    for (int i = 0; i < 200; i++) {
        pkvi_mutex_lock(&low);
        pkvi_mutex_lock(&high);
        pkvi_mutex_lock(&free_of_rank);
        pkvi_mutex_unlock(&low);
        pkvi_mutex_unlock(&free_of_rank);
        pkvi_mutex_unlock(&high);
    }
    /* Nothing is remembered once nothing is held. */
    for (int i = 0; i < PKVI_LOCK_RANK_THREADS; i++)
        ck_assert(atomic_load(&ranks.entry[i].thread) == 0);
    pkvi_mutex_destroy(&low);
    pkvi_mutex_destroy(&high);
    pkvi_mutex_destroy(&free_of_rank);
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("base");
    TCase *tests = tcase_create("base");
    tcase_set_timeout(tests, 60);
    tcase_add_test(tests, checked_arithmetic);
    tcase_add_test(tests, division_is_exact);
    tcase_add_test(tests, list_keeps_order);
    tcase_add_test(tests, bitmap_agrees_with_bytes);
    tcase_add_test(tests, texts_are_cut);
    tcase_add_test(tests, log_lines_are_cut);
    tcase_add_test(tests, right_lock_order_is_fine);
#ifdef PKV_DEBUG
    tcase_add_test_raise_signal(tests, wrong_lock_order_is_caught, 6 /* SIGABRT */);
#endif
    suite_add_tcase(suite, tests);
    return suite;
}
