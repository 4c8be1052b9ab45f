/* Counters and the event ring. */
#include <check.h>
#include <stdlib.h>

#include "faults.h"
#include "stats/stats.h"
#include "suite.h"

static struct pkvt_allocator allocator;
static struct pkvi_mem mem;
static struct pkvi_stats stats;
static uint64_t now;

static uint64_t clock_fn(void *user)
{
    return ++*(uint64_t *)user;
}

static void start(uint32_t capacity)
{
    now = 100;
    pkvt_allocator_init(&allocator);
    ck_assert_int_eq(pkvi_mem_init(&mem, &allocator.vtable), PKV_OK);
    ck_assert_int_eq(pkvi_stats_init(&stats, &mem, capacity, clock_fn, &now, NULL), PKV_OK);
}

static void stop(void)
{
    pkvi_stats_destroy(&stats, &mem);
    pkvi_mem_destroy(&mem);
    ck_assert_uint_eq(allocator.live_blocks, 0);
}

START_TEST(counters_reach_their_fields)
{
    start(0);
    for (int i = 0; i < PKVI_COUNTERS; i++)
        pkvi_count(&stats, (enum pkvi_counter)i, (uint64_t)i + 1);
    pkvi_uncount(&stats, PKVI_COUNT_TOKENS, 1);
    pkv_stats out = {.struct_size = sizeof out, .pages_total = 77};
    pkvi_stats_fill(&stats, &out);
    ck_assert_uint_eq(out.pages_total, 77); /* not this module's */
    ck_assert_uint_eq(out.sequences, PKVI_COUNT_SEQUENCES + 1);
    ck_assert_uint_eq(out.batches, PKVI_COUNT_BATCHES + 1);
    ck_assert_uint_eq(out.tokens, PKVI_COUNT_TOKENS);
    ck_assert_uint_eq(out.bytes_live, PKVI_COUNT_BYTES_LIVE + 1);
    ck_assert_uint_eq(out.page_copies, PKVI_COUNT_PAGE_COPIES + 1);
    ck_assert_uint_eq(out.pages_sealed, PKVI_COUNT_PAGES_SEALED + 1);
    ck_assert_uint_eq(out.pages_evicted, PKVI_COUNT_PAGES_EVICTED + 1);
    ck_assert_uint_eq(out.pages_reclaimed, PKVI_COUNT_PAGES_RECLAIMED + 1);
    ck_assert_uint_eq(out.pages_window_released, PKVI_COUNT_PAGES_WINDOW_RELEASED + 1);
    ck_assert_uint_eq(out.reserve_failures, PKVI_COUNT_RESERVE_FAILURES + 1);
    ck_assert_uint_eq(out.prefix_lookups, PKVI_COUNT_PREFIX_LOOKUPS + 1);
    ck_assert_uint_eq(out.prefix_tokens_asked, PKVI_COUNT_PREFIX_TOKENS_ASKED + 1);
    ck_assert_uint_eq(out.prefix_tokens_hit, PKVI_COUNT_PREFIX_TOKENS_HIT + 1);
    ck_assert_uint_eq(out.prefix_nodes, PKVI_COUNT_PREFIX_NODES + 1);
    ck_assert_uint_eq(out.evict_regret_steps, PKVI_COUNT_EVICT_REGRET_STEPS + 1);
    ck_assert_uint_eq(out.evict_regret_checks, PKVI_COUNT_EVICT_REGRET_CHECKS + 1);
    stop();
}
END_TEST

START_TEST(ring_keeps_the_oldest)
{
    start(4);
    ck_assert(pkvi_events_on(&stats));
    pkv_event events[8];
    ck_assert_uint_eq(pkvi_events_take(&stats, events, 8), 0);
    for (uint64_t i = 0; i < 6; i++)
        pkvi_event(&stats, PKV_EVENT_PAGE_ALLOC, (uint32_t)i, i + 10, i + 20, i + 30);
    pkv_stats out = {0};
    pkvi_stats_fill(&stats, &out);
    ck_assert_uint_eq(out.events_dropped, 2);
    ck_assert_uint_eq(pkvi_events_take(&stats, events, 3), 3);
    for (uint64_t i = 0; i < 3; i++) {
        ck_assert_uint_eq(events[i].number, i);
        ck_assert_uint_eq(events[i].time_ns, 101 + i);
        ck_assert_uint_eq(events[i].group, i);
        ck_assert_uint_eq(events[i].page, i + 10);
        ck_assert_uint_eq(events[i].seq, i + 20);
        ck_assert_uint_eq(events[i].aux, i + 30);
        ck_assert_int_eq(events[i].kind, PKV_EVENT_PAGE_ALLOC);
    }
    pkvi_event(&stats, PKV_EVENT_LIMIT, 0, 0, 0, 5);
    ck_assert_uint_eq(pkvi_events_take(&stats, events, 8), 2);
    ck_assert_uint_eq(events[0].number, 3);
    ck_assert_uint_eq(events[1].number, 6); /* 4 and 5 were dropped, and the numbers tell */
    ck_assert_int_eq(events[1].kind, PKV_EVENT_LIMIT);
    stop();
}
END_TEST

START_TEST(no_ring_no_events)
{
    start(0);
    pkv_event event;
    ck_assert(!pkvi_events_on(&stats));
    pkvi_event(&stats, PKV_EVENT_PAGE_ALLOC, 0, 0, 0, 0);
    ck_assert_uint_eq(pkvi_events_take(&stats, &event, 1), 0);
    ck_assert_uint_eq(now, 100); /* not even the clock was read */
    stop();
}
END_TEST

START_TEST(ring_refused)
{
    pkvt_allocator_init(&allocator);
    allocator.fail_at = 1;
    ck_assert_int_eq(pkvi_mem_init(&mem, &allocator.vtable), PKV_OK);
    ck_assert_int_eq(pkvi_stats_init(&stats, &mem, 16, clock_fn, &now, NULL), PKV_ENOMEM);
    ck_assert_uint_eq(allocator.live_blocks, 0);
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("stats");
    TCase *tests = tcase_create("stats");
    tcase_set_timeout(tests, 60);
    tcase_add_test(tests, counters_reach_their_fields);
    tcase_add_test(tests, ring_keeps_the_oldest);
    tcase_add_test(tests, no_ring_no_events);
    tcase_add_test(tests, ring_refused);
    suite_add_tcase(suite, tests);
    return suite;
}
