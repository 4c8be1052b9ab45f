/* Metadata under memory pressure: cached pages give way to whatever live sequences need. */
#include <check.h>
#include <stdlib.h>

#include <pagedkv/pagedkv.h>
#include "suite.h"

enum { PAGE = 16, LENGTH = 640 };

static pkv_cache *cache;

/* A cache full of pages that only the prefix index knows. */
static void setup(void)
{
    pkv_group_config group = {.n_layers = 1, .kv_heads = 1, .head_dim_k = 64};
    pkv_config config;
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    config.groups = &group;
    config.n_groups = 1;
    config.page_tokens = PAGE;
    config.storage = PKV_STORAGE_NONE;
    config.memory_limit = (uint64_t)8 << 20;
    ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_OK);
}

static void teardown(void)
{
    char text[256];
    ck_assert_msg(pkv_cache_verify(cache, text, sizeof text) == PKV_OK, "%s", text);
    pkv_cache_destroy(cache);
}

static pkv_stats stats(void)
{
    pkv_stats s = {.struct_size = sizeof s};
    ck_assert_int_eq(pkv_cache_stats(cache, &s), PKV_OK);
    return s;
}

static pkv_status append(pkv_seq seq, const int32_t *tokens, uint32_t n)
{
    pkv_batch batch;
    pkv_status status = pkv_batch_begin(cache, &batch);
    if (status != PKV_OK) return status;
    status = pkv_batch_add(batch, seq, tokens, n);
    if (status == PKV_OK) status = pkv_batch_reserve(batch);
    if (status == PKV_OK) return pkv_batch_commit(batch);
    ck_assert_int_eq(pkv_batch_abort(batch), PKV_OK);
    return status;
}

static void fill_cache(void)
{
    static int32_t next;
    int32_t tokens[LENGTH];
    do {
        for (int i = 0; i < LENGTH; i++)
            tokens[i] = next++;
        pkv_seq seq;
        ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
        ck_assert_int_eq(append(seq, tokens, LENGTH), PKV_OK);
        ck_assert_int_eq(pkv_seq_destroy(seq), PKV_OK);
    } while (stats().pages_reclaimed == 0);
}

START_TEST(sequences_push_out_cached_pages)
{
    fill_cache();
    const uint64_t regions = stats().region_bytes;
    for (int i = 0; i < 10000; i++) {
        pkv_seq seq, fork;
        ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
        if (i % 100 == 0) ck_assert_int_eq(append(seq, NULL, 40), PKV_OK);
        if (i % 100 == 0) ck_assert_int_eq(pkv_seq_fork(seq, &fork), PKV_OK);
    }
    ck_assert_uint_lt(stats().region_bytes, regions);
    ck_assert_uint_gt(stats().pages_reclaimed, 0);
}
END_TEST

/* A limit that leaves not a byte beside what is cached. */
START_TEST(tight_limit_is_no_dead_end)
{
    fill_cache();
    const pkv_stats before = stats();
    ck_assert_int_eq(pkv_cache_set_limit(cache, before.region_bytes + before.metadata_bytes),
                     PKV_OK);
    pkv_seq seq;
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    ck_assert_int_eq(append(seq, NULL, LENGTH), PKV_OK);
    ck_assert_uint_le(stats().region_bytes + stats().metadata_bytes, stats().memory_limit);
}
END_TEST

/* What could never fit does not cost a single cached page. */
START_TEST(hopeless_requests_reclaim_nothing)
{
    fill_cache();
    const pkv_stats before = stats();
    static int32_t tokens[3 << 20];
    pkv_seq seq;
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    ck_assert_int_eq(append(seq, tokens, 3 << 20), PKV_ENOMEM);
    ck_assert_uint_eq(stats().pages_cached, before.pages_cached);
}
END_TEST

/* A batch that one group can never serve takes no cached page of another. */
START_TEST(one_hopeless_group_spares_the_others)
{
    enum { CACHED = 24, FREE = 10, ASKED = 20 };
    pkv_group_config groups[2] = {
        {.n_layers = 1, .kv_heads = 1, .head_dim_k = 64, .max_pages = CACHED + FREE},
        {.n_layers = 1, .kv_heads = 1, .head_dim_k = 64, .max_pages = CACHED + FREE}};
    pkv_config config;
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    config.groups = groups;
    config.n_groups = 2;
    config.page_tokens = PAGE;
    config.storage = PKV_STORAGE_NONE;
    pkv_cache_destroy(cache);
    ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_OK);
    /* Group 0 keeps its pages as cached ones; those of group 1 the host holds. */
    int32_t tokens[CACHED * PAGE];
    for (int i = 0; i < CACHED * PAGE; i++)
        tokens[i] = i;
    pkv_page pages[CACHED];
    pkv_seq seq;
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    ck_assert_int_eq(append(seq, tokens, CACHED * PAGE), PKV_OK);
    ck_assert_int_eq(pkv_seq_pages(seq, 1, 0, CACHED, pages), PKV_OK);
    ck_assert_int_eq(pkv_page_ref(cache, 1, CACHED, pages), PKV_OK);
    ck_assert_int_eq(pkv_seq_destroy(seq), PKV_OK);
    ck_assert_uint_eq(stats().pages_cached, CACHED);

    pkv_batch batch;
    uint32_t missing[2];
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, seq, NULL, ASKED * PAGE), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_ENOPAGES);
    ck_assert_int_eq(pkv_batch_shortfall(batch, missing, 2), PKV_OK);
    ck_assert_uint_eq(missing[0], 0);
    ck_assert_uint_eq(missing[1], ASKED - FREE);
    ck_assert_uint_eq(stats().pages_cached, CACHED);
    ck_assert_uint_eq(stats().pages_reclaimed, 0);
    /* As soon as the host lets go of so many, it fits. */
    ck_assert_int_eq(pkv_page_unref(cache, 1, ASKED - FREE, pages), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
    ck_assert_int_eq(pkv_page_unref(cache, 1, CACHED - (ASKED - FREE), pages + (ASKED - FREE)),
                     PKV_OK);
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("pressure");
    TCase *tests = tcase_create("pressure");
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, sequences_push_out_cached_pages);
    tcase_add_test(tests, tight_limit_is_no_dead_end);
    tcase_add_test(tests, hopeless_requests_reclaim_nothing);
    tcase_add_test(tests, one_hopeless_group_spares_the_others);
    suite_add_tcase(suite, tests);
    return suite;
}
