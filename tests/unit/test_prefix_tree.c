/* The tree of prefixes when parts of it go: dropped namespaces under live sequences, children
 * without pages, children that differ in their salt alone, pages that come back under a quota. */
#include <string.h>

#include "prefix_case.h"
#include "suite.h"

enum { PAGE = PKVT_PAGE };

static const pkv_namespace space_a = {"a", 1}, space_b = {"b", 1};

/* Nodes are reused after a drop. A sequence that stood on one of them must not let go of a hold
 * that now is another's: the node would go under that one's feet, and what it computes next would
 * be found behind tokens that it never saw. `way`: what makes the first sequence let go. */
START_TEST(a_drop_leaves_no_stale_hold)
{
    pkv_cache *cache = pkvt_open(NULL, 0, _i & 1);
    const int way = _i / 2;
    int32_t t[4 * PAGE], u[4 * PAGE];
    pkvt_count_from(1000, t, 4 * PAGE);
    pkvt_count_from(5000, u, 4 * PAGE);
    pkv_seq a = pkvt_run(cache, &space_a, t, 3 * PAGE), child = a;
    if (way == 4) ck_assert_int_eq(pkv_seq_fork(a, &child), PKV_OK);
    pkvt_drop(cache, &space_a);
    pkv_seq c = pkvt_run(cache, &space_b, t, 3 * PAGE); /* on the same nodes */
    pkv_seq b = pkvt_run(cache, &space_b, t, 3 * PAGE); /* duplicates */
    const pkv_match none = pkvt_match(cache, &space_a, u, PAGE);
    ck_assert_uint_eq(none.n_tokens, 0);
    switch (way) {
    case 0:
        ck_assert_int_eq(pkv_seq_truncate(a, 0), PKV_OK);
        ck_assert_int_eq(pkv_seq_attach(a, &none), PKV_OK);
        break;
    case 1:
        ck_assert_int_eq(pkv_seq_truncate(a, 0), PKV_OK);
        ck_assert_int_eq(pkv_seq_set_namespace(a, &space_b), PKV_OK);
        break;
    case 2:
        ck_assert_int_eq(pkv_seq_truncate(a, PAGE), PKV_OK);
        ck_assert_int_eq(pkv_seq_truncate(a, 0), PKV_OK);
        pkvt_append(cache, a, u, 2 * PAGE);
        break;
    case 3:
        pkvt_append(cache, a, u, 2 * PAGE);
        ck_assert_int_eq(pkv_seq_truncate(a, 2 * PAGE + 3), PKV_OK);
        break;
    default:
        pkvt_end(child);
        ck_assert_int_eq(pkv_seq_fork(a, &child), PKV_OK);
        ck_assert_int_eq(pkv_seq_truncate(child, 0), PKV_OK);
        ck_assert_int_eq(pkv_seq_attach(child, &none), PKV_OK);
        pkvt_end(child);
    }
    pkvt_end(c);
    pkvt_reclaim(cache, UINT64_MAX); /* the nodes b stands on lose their pages */
    pkv_seq d = pkvt_run(cache, &space_b, u, 3 * PAGE);
    pkvt_append(cache, b, t + 3 * PAGE, PAGE);
    pkvt_verify(cache);
    memcpy(u + 3 * PAGE, t + 3 * PAGE, PAGE * sizeof *u);
    ck_assert_uint_eq(pkvt_match(cache, &space_b, u, 4 * PAGE).n_tokens, 3 * PAGE);
    ck_assert_uint_eq(pkvt_match(cache, &space_b, t, 4 * PAGE).n_tokens, 4 * PAGE);
    pkvt_end(a);
    pkvt_end(b);
    pkvt_end(d);
    pkvt_close(cache);
}
END_TEST

/* What a sequence held when its namespace was dropped stays out of the index; empty again, it is
 * like a new one. */
START_TEST(a_sequence_publishes_again_when_it_was_empty)
{
    pkv_cache *cache = pkvt_open(NULL, 0, false);
    int32_t t[4 * PAGE];
    pkvt_count_from(1, t, 4 * PAGE);
    for (uint32_t held = 0; held <= 2 * PAGE; held += PAGE / 2) {
        pkv_seq seq;
        ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
        ck_assert_int_eq(pkv_seq_set_namespace(seq, &space_a), PKV_OK);
        if (held) pkvt_append(cache, seq, t, held);
        pkvt_drop(cache, &space_a);
        for (uint32_t at = held; at < 4 * PAGE; at += PAGE / 2) /* never a page at once */
            pkvt_append(cache, seq, t + at, PAGE / 2);
        ck_assert_uint_eq(pkvt_match(cache, &space_a, t, 4 * PAGE).n_pages, held ? 0 : 4);
        ck_assert_int_eq(pkv_seq_truncate(seq, 2 * PAGE + 3), PKV_OK);
        pkvt_append(cache, seq, t + 2 * PAGE + 3, 2 * PAGE - 3);
        ck_assert_uint_eq(pkvt_match(cache, &space_a, t, 4 * PAGE).n_pages, held ? 0 : 4);
        ck_assert_int_eq(pkv_seq_truncate(seq, 0), PKV_OK);
        pkvt_append(cache, seq, t, 3 * PAGE);
        pkvt_verify(cache);
        ck_assert_uint_eq(pkvt_match(cache, &space_a, t, 4 * PAGE).n_pages, held ? 3 : 4);
        pkvt_end(seq);
        pkvt_drop(cache, &space_a);
    }
    pkvt_close(cache);
}
END_TEST

/* Children of one page with equal tokens and different salts. */
START_TEST(salts_tell_equal_siblings_apart)
{
    enum { SEQS = 16 };
    pkv_cache *cache = pkvt_open(NULL, 0, _i & 1);
    pkv_evict_config sink;
    ck_assert_int_eq(pkv_evict_config_init(&sink, sizeof sink, PKV_EVICT_SINK, 2 * PAGE), PKV_OK);
    int32_t t[5 * PAGE];
    pkv_seq plain[SEQS], salted[SEQS];
    pkvt_count_from(1, t, 5 * PAGE);
    for (int i = 0; i < SEQS; i++) {
        t[3 * PAGE] = 10000 + i * 7 % SEQS;
        plain[i] = pkvt_run(cache, NULL, t, 5 * PAGE);
        ck_assert_int_eq(pkv_seq_create(cache, &salted[i]), PKV_OK);
        ck_assert_int_eq(pkv_seq_set_evict(salted[i], 0, &sink), PKV_OK);
        for (uint32_t at = 0; at < 5 * PAGE; at += PAGE)
            pkvt_append(cache, salted[i], t + at, PAGE);
    }
    pkvt_verify(cache);
    pkv_seq *gone = _i & 2 ? salted : plain, *there = _i & 2 ? plain : salted;
    for (int i = 0; i < SEQS; i++)
        pkvt_end(gone[i]);
    pkvt_reclaim(cache, UINT64_MAX);
    pkvt_verify(cache);
    for (int i = 0; i < SEQS; i++) {
        t[3 * PAGE] = 10000 + i * 7 % SEQS;
        pkv_match m = {.struct_size = sizeof m};
        ck_assert_int_eq(pkv_seq_match(there[i], t, 5 * PAGE, &m), PKV_OK);
        /* The first pages were the plain ones' (the others hold duplicates) and went with them. */
        ck_assert_uint_eq(m.n_pages, _i & 2 ? 5 : 0);
        pkvt_end(there[i]);
    }
    pkvt_reclaim(cache, UINT64_MAX);
    pkvt_close(cache);
}
END_TEST

/* The longest match may leave the plain pages before they end: for a part of a page, too. */
START_TEST(salted_branches_are_found)
{
    pkv_cache *cache = pkvt_open(NULL, 0, false);
    pkv_evict_config sink;
    ck_assert_int_eq(pkv_evict_config_init(&sink, sizeof sink, PKV_EVICT_SINK, 2 * PAGE), PKV_OK);
    int32_t t[6 * PAGE];
    pkvt_count_from(1, t, 6 * PAGE);
    pkv_seq plain = pkvt_run(cache, NULL, t, 4 * PAGE), salted, asking;
    ck_assert_int_eq(pkv_seq_create(cache, &salted), PKV_OK);
    ck_assert_int_eq(pkv_seq_set_evict(salted, 0, &sink), PKV_OK);
    for (uint32_t at = 0; at < 5 * PAGE; at += PAGE) /* plain up to page 2 */
        pkvt_append(cache, salted, t + at, PAGE);
    ck_assert_int_eq(pkv_seq_create(cache, &asking), PKV_OK);
    ck_assert_int_eq(pkv_seq_set_evict(asking, 0, &sink), PKV_OK);
    for (uint32_t n = 0; n <= 6 * PAGE; n++) {
        pkv_match m = {.struct_size = sizeof m};
        ck_assert_int_eq(pkv_seq_match(asking, t, n, &m), PKV_OK);
        ck_assert_uint_eq(m.n_tokens, n < 5 * PAGE ? n : 5 * PAGE);
        const uint64_t without = n < 4 * PAGE ? n : 4 * PAGE;
        ck_assert_uint_eq(pkvt_match(cache, NULL, t, n).n_tokens, without);
    }
    pkvt_end(plain);
    pkvt_end(salted);
    pkvt_end(asking);
    pkvt_close(cache);
}
END_TEST

/* Of several children that share as many tokens with a query, one that has a page is found. */
START_TEST(children_without_pages_do_not_hide_others)
{
    enum { SHARED = 9, KIDS = 16 };
    pkv_cache *cache = pkvt_open(NULL, 0, _i & 1);
    int32_t t[2 * PAGE], ended[KIDS][2 * PAGE];
    pkv_seq bare[KIDS];
    pkvt_count_from(1, t, 2 * PAGE);
    for (int i = 0; i < KIDS; i++) { /* children that stay, by a duplicate, without a page */
        t[PAGE + SHARED] = 1000 + 37 * i % KIDS;
        pkv_seq first = pkvt_run(cache, NULL, t, 2 * PAGE);
        bare[i] = pkvt_run(cache, NULL, t, 2 * PAGE);
        pkvt_end(first);
        pkvt_reclaim(cache, UINT64_MAX);
    }
    for (int i = 0; i < KIDS; i++) { /* one child with a page, in between */
        memcpy(ended[i], t, sizeof t);
        ended[i][PAGE + SHARED] = 999 + i;
        ended[i][PAGE + SHARED + 1] = -1;
        pkvt_end(pkvt_run(cache, NULL, ended[i], 2 * PAGE));
        for (int k = 0; k < 2 * KIDS; k++) {
            t[PAGE + SHARED] = 990 + k;
            t[PAGE + SHARED + 1] = -2;
            const bool same = t[PAGE + SHARED] == ended[i][PAGE + SHARED];
            const pkv_match m = pkvt_match(cache, NULL, t, 2 * PAGE);
            ck_assert_uint_eq(m.n_tokens, PAGE + SHARED + same);
        }
        ck_assert_uint_gt(pkvt_reclaim(cache, UINT64_MAX), 0);
    }
    for (int i = 0; i < KIDS; i++)
        pkvt_end(bare[i]);
    pkvt_close(cache);
}
END_TEST

/* Pages put back into known nodes count. */
START_TEST(a_quota_counts_what_comes_back)
{
    pkv_cache *cache = pkvt_open(NULL, 0, false);
    pkv_prefix_quota quota = {.struct_size = sizeof quota, .max = 3};
    ck_assert_int_eq(pkv_prefix_set_quota(cache, &space_a, &quota), PKV_OK);
    int32_t t[5 * PAGE], u[3 * PAGE];
    pkvt_count_from(1, t, 5 * PAGE);
    pkvt_count_from(1000, u, 3 * PAGE);
    pkv_seq first = pkvt_run(cache, &space_a, t, 3 * PAGE);
    pkv_seq again = pkvt_run(cache, &space_a, t, 3 * PAGE); /* duplicates */
    pkvt_end(first);
    pkv_seq other = pkvt_run(cache, &space_a, u, 3 * PAGE); /* takes the place of what is idle */
    ck_assert_uint_eq(pkvt_match(cache, &space_a, u, 3 * PAGE).n_pages, 3);
    if (_i) pkvt_end(other);
    pkvt_append(cache, again, t + 3 * PAGE, 2 * PAGE);
    ck_assert_uint_le(pkvt_published(cache, &space_a), 3);
    pkvt_verify(cache);
    if (!_i) pkvt_end(other);
    pkvt_end(again);
    /* A smaller quota holds at once for what nobody holds. */
    quota.max = 1;
    ck_assert_int_eq(pkv_prefix_set_quota(cache, &space_a, &quota), PKV_OK);
    ck_assert_uint_le(pkvt_published(cache, &space_a), 1);
    pkvt_close(cache);
}
END_TEST

/* A long trunk with a branch at every page, and nodes of every kind: all go, and nothing else. */
START_TEST(drop_takes_every_node)
{
    enum { DEEP = 200 };
    static int32_t t[(DEEP + 1) * PAGE];
    pkv_cache *cache = pkvt_open(_i ? "arc" : NULL, 0, false);
    pkvt_count_from(1, t, DEEP * PAGE);
    pkv_seq trunk = pkvt_run(cache, &space_a, t, DEEP * PAGE);
    pkv_seq twice = pkvt_run(cache, &space_a, t, DEEP * PAGE);
    pkv_seq elsewhere = pkvt_run(cache, &space_b, t, 3 * PAGE);
    for (uint32_t at = 1; at < DEEP; at++) {
        int32_t branch[PAGE];
        pkvt_count_from(100000 + (int32_t)at, branch, PAGE);
        pkv_match m = pkvt_match(cache, &space_a, t, at * PAGE);
        pkv_seq seq;
        ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
        ck_assert_int_eq(pkv_seq_attach(seq, &m), PKV_OK);
        pkvt_append(cache, seq, branch, PAGE);
        pkvt_end(seq);
    }
    pkvt_reclaim(cache, DEEP / 2);
    pkvt_end(trunk);
    pkvt_reclaim(cache, DEEP / 2); /* the second one stands on nodes without pages */
    pkvt_verify(cache);
    pkvt_drop(cache, &space_a);
    pkvt_verify(cache);
    ck_assert_uint_eq(pkvt_published(cache, &space_a), 0);
    ck_assert_uint_eq(pkvt_match(cache, &space_a, t, DEEP * PAGE).n_tokens, 0);
    ck_assert_uint_eq(pkvt_match(cache, &space_b, t, DEEP * PAGE).n_pages, 3);
    pkvt_end(twice);
    pkv_stats stats = {.struct_size = sizeof stats};
    ck_assert_int_eq(pkv_cache_stats(cache, &stats), PKV_OK);
    ck_assert_uint_eq(stats.prefix_nodes, 3);
    pkvt_end(elsewhere);
    pkvt_close(cache);
}
END_TEST

/* Truncation to before everything that was evicted leaves a sequence as if nothing had been. */
START_TEST(a_sequence_before_its_evictions_publishes)
{
    const uint32_t left = _i & 1 ? 5 : 0;
    pkv_cache *cache = pkvt_open(NULL, 0, false);
    pkv_evict_config policy;
    ck_assert_int_eq(pkv_evict_config_init(&policy, sizeof policy,
                                           _i & 2 ? PKV_EVICT_RANDOM : PKV_EVICT_SINK, 2 * PAGE),
                     PKV_OK);
    int32_t t[8 * PAGE];
    pkvt_count_from(1, t, 8 * PAGE);
    pkv_seq seq;
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    ck_assert_int_eq(pkv_seq_set_evict(seq, 0, &policy), PKV_OK);
    for (uint32_t at = 0; at < 8 * PAGE; at += PAGE)
        pkvt_append(cache, seq, t + at, PAGE);
    pkv_evict_info info = {.struct_size = sizeof info};
    ck_assert_int_eq(pkv_seq_evict_info(seq, 0, &info), PKV_OK);
    ck_assert_uint_eq(info.tainted, (_i & 2) != 0);
    ck_assert_uint_eq(info.dropped_tokens, 6 * PAGE);
    if (_i & 4) ck_assert_int_eq(pkv_seq_set_evict(seq, 0, NULL), PKV_OK);
    ck_assert_int_eq(pkv_seq_truncate(seq, left), PKV_OK); /* the sink is still there */
    pkvt_verify(cache);
    uint32_t tainted;
    ck_assert_int_eq(pkv_seq_tainted(seq, &tainted), PKV_OK);
    ck_assert_uint_eq(tainted, 0);
    ck_assert_int_eq(pkv_seq_evict_info(seq, 0, &info), PKV_OK);
    ck_assert_uint_eq(info.dropped_tokens, 0);
    ck_assert_uint_eq(info.salt, 0);
    for (uint32_t i = 0; i < 8 * PAGE; i++)
        t[i] += i < left ? 0 : 1000;
    pkvt_append(cache, seq, t + left, 3 * PAGE - left); /* nothing is dropped before that */
    ck_assert_uint_eq(pkvt_match(cache, NULL, t, 3 * PAGE).n_tokens, 3 * PAGE);
    pkvt_end(seq);
    pkvt_close(cache);
}
END_TEST

/* What a policy remembers of pages that are gone does not outgrow what it has: with everything
 * reclaimed only a handful of nodes is left. */
START_TEST(ghosts_go_with_the_pages)
{
    enum { PROMPTS = 400 };
    static const char *const policies[] = {"arc", "2q", "s3fifo"};
    pkv_cache *cache = pkvt_open(policies[_i], 0, false);
    int32_t t[3 * PAGE];
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < PROMPTS; i++) {
            pkvt_count_from(1000 * i, t, 3 * PAGE);
            pkvt_end(pkvt_run(cache, NULL, t, 3 * PAGE));
        }
        pkvt_reclaim(cache, 2 * PROMPTS);
        pkvt_verify(cache);
    }
    pkvt_reclaim(cache, UINT64_MAX);
    pkv_stats stats = {.struct_size = sizeof stats};
    ck_assert_int_eq(pkv_cache_stats(cache, &stats), PKV_OK);
    ck_assert_uint_eq(stats.pages_cached, 0);
    ck_assert_uint_le(stats.prefix_nodes, 30);
    pkvt_close(cache);
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("prefix_tree");
    TCase *all = tcase_create("all");
    tcase_set_timeout(all, 60);
    tcase_add_loop_test(all, a_drop_leaves_no_stale_hold, 0, 10);
    tcase_add_test(all, a_sequence_publishes_again_when_it_was_empty);
    tcase_add_loop_test(all, salts_tell_equal_siblings_apart, 0, 4);
    tcase_add_test(all, salted_branches_are_found);
    tcase_add_loop_test(all, children_without_pages_do_not_hide_others, 0, 2);
    tcase_add_loop_test(all, a_quota_counts_what_comes_back, 0, 2);
    tcase_add_loop_test(all, drop_takes_every_node, 0, 2);
    tcase_add_loop_test(all, a_sequence_before_its_evictions_publishes, 0, 8);
    tcase_add_loop_test(all, ghosts_go_with_the_pages, 0, 3);
    suite_add_tcase(suite, all);
    return suite;
}
