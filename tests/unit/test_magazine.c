/* Magazines: the same promises as the pool, without its lock. */
#include <check.h>
#include <stdlib.h>

#include "pools.h"
#include "suite.h"

#define MIB (UINT64_C(1) << 20)
#define PAGE (128 * UINT64_C(1024)) /* 16 pages in a region of 2 MiB */

static struct pkvt_pools world;
static pkv_magazine *magazine;

static void start(uint64_t limit, uint32_t capacity, uint32_t debug)
{
    struct pkvt_pools_config config = {
        .limit = limit, .page_bytes = {PAGE}, .storage = PKV_STORAGE_HOST, .debug = debug};
    ck_assert_int_eq(pkvt_pools_create(&world, &config, false), PKV_OK);
    ck_assert_int_eq(pkvi_magazine_create(&world.pool[0], capacity, &magazine), PKV_OK);
}

static void stop(void)
{
    ck_assert_int_eq(pkvt_pools_verify(&world, NULL, 0), PKV_OK);
    pkvt_pools_destroy(&world); /* frees forgotten magazines */
    ck_assert_uint_eq(world.allocator.live_blocks, 0);
    ck_assert_uint_eq(world.os.live_maps, 0);
}

static struct pkvi_pool_counts counts(void)
{
    struct pkvi_pool_counts counted;
    ck_assert_int_eq(pkvt_pools_verify(&world, NULL, 0), PKV_OK);
    pkvi_pool_counts(&world.pool[0], &counted);
    return counted;
}

START_TEST(arguments_are_checked)
{
    start(64 * MIB, 8, 0);
    pkv_magazine *none = (pkv_magazine *)&world;
    pkv_page page;
    ck_assert_int_eq(pkvi_magazine_create(&world.pool[0], 0, &none), PKV_EINVAL);
    ck_assert_int_eq(pkvi_magazine_create(&world.pool[0], 4097, &none), PKV_EINVAL);
    ck_assert_ptr_eq(none, (pkv_magazine *)&world);
    ck_assert_int_eq(pkv_magazine_alloc(NULL, &page), PKV_EINVAL);
    ck_assert_int_eq(pkv_magazine_alloc(magazine, NULL), PKV_EINVAL);
    ck_assert_int_eq(pkv_magazine_free(NULL, 0), PKV_EINVAL);
    ck_assert_int_eq(pkv_magazine_free(magazine, 0), PKV_ESTALE);
    ck_assert_int_eq(pkv_magazine_free(magazine, UINT64_MAX), PKV_ESTALE);
    pkv_magazine_destroy(NULL);
    stop();
}
END_TEST

START_TEST(parked_pages_count_as_free)
{
    start(64 * MIB, 8, 0);
    pkv_page pages[100];
    for (uint64_t i = 0; i < 100; i++) {
        ck_assert_int_eq(pkv_magazine_alloc(magazine, &pages[i]), PKV_OK);
        ck_assert_uint_eq(counts().used, i + 1);
        ck_assert_uint_eq(counts().allocs, i + 1);
    }
    for (uint64_t i = 0; i < 100; i++) {
        ck_assert_int_eq(pkv_magazine_free(magazine, pages[i]), PKV_OK);
        ck_assert_int_eq(pkv_magazine_free(magazine, pages[i]), PKV_ESTALE);
        ck_assert_uint_eq(counts().used, 99 - i);
        ck_assert_uint_eq(counts().frees, i + 1);
    }
    ck_assert_uint_eq(counts().free, counts().total);
    pkv_magazine_destroy(magazine);
    ck_assert_uint_eq(counts().allocs, 100);
    ck_assert_uint_eq(counts().frees, 100);
    ck_assert_uint_eq(pkvi_regions_trim(&world.regions, UINT64_MAX), 14 * MIB); /* nothing parked */
    stop();
}
END_TEST

START_TEST(the_last_pages_can_be_had)
{
    start(2 * MIB + (100 << 10), 64, 0); /* 16 pages, fewer than half the magazine */
    pkv_page page, last = 0;
    for (int i = 0; i < 16; i++) {
        ck_assert_int_eq(pkv_magazine_alloc(magazine, &page), PKV_OK);
        last = page;
    }
    page = 42;
    ck_assert_int_eq(pkv_magazine_alloc(magazine, &page), PKV_ENOPAGES);
    ck_assert_uint_eq(page, 42);
    ck_assert_int_eq(pkv_magazine_free(magazine, last), PKV_OK);
    ck_assert_int_eq(pkv_magazine_alloc(magazine, &page), PKV_OK);
    ck_assert_uint_eq(pkv_page_index(page), pkv_page_index(last));
    ck_assert_uint_ne(page, last);
    stop();
}
END_TEST

START_TEST(pages_cross_between_ways)
{
    start(64 * MIB, 8, PKV_DEBUG_POISON);
    struct pkvi_pool *pool = &world.pool[0];
    pkv_magazine *other;
    ck_assert_int_eq(pkvi_magazine_create(pool, 1, &other), PKV_OK);
    pkv_page a, b, c, d;
    uint32_t refs;
    /* Out of a magazine, back through the pool. */
    ck_assert_int_eq(pkv_magazine_alloc(magazine, &a), PKV_OK);
    ck_assert_int_eq(pkvi_pool_refs_id(pool, a, &refs), PKV_OK);
    ck_assert_uint_eq(refs, 1);
    ck_assert_int_eq(pkvi_pool_unref_ids(pool, 1, &a), PKV_OK);
    ck_assert_int_eq(pkv_magazine_free(magazine, a), PKV_ESTALE);
    /* Out of the pool, back through a magazine. */
    ck_assert_int_eq(pkvi_pool_alloc_ids(pool, 1, &b), PKV_OK);
    ck_assert_int_eq(pkv_magazine_free(magazine, b), PKV_OK);
    ck_assert_int_eq(pkvi_pool_unref_ids(pool, 1, &b), PKV_ESTALE);
    /* Out of one, into another. */
    ck_assert_int_eq(pkv_magazine_alloc(magazine, &c), PKV_OK);
    ck_assert_int_eq(pkv_magazine_free(other, c), PKV_OK);
    ck_assert_int_eq(pkv_magazine_free(magazine, c), PKV_ESTALE);
    /* A second reference keeps it. */
    ck_assert_int_eq(pkv_magazine_alloc(magazine, &d), PKV_OK);
    ck_assert_int_eq(pkvi_pool_ref_ids(pool, 1, &d), PKV_OK);
    ck_assert_uint_eq(counts().shared, 1);
    ck_assert_int_eq(pkv_magazine_free(magazine, d), PKV_OK);
    ck_assert_uint_eq(counts().used, 1);
    ck_assert_int_eq(pkv_magazine_free(magazine, d), PKV_OK);
    ck_assert_int_eq(pkv_magazine_free(magazine, d), PKV_ESTALE);
    ck_assert_uint_eq(counts().used, 0);
    ck_assert_uint_eq(counts().allocs, counts().frees);
    /* A parked page is nobody's: its coming id is of no use yet. */
    pkv_page parked = c + (UINT64_C(1) << 32);
    ck_assert_int_eq(pkvi_pool_ref_ids(pool, 1, &parked), PKV_ESTALE);
    ck_assert_int_eq(pkvi_pool_unref_ids(pool, 1, &parked), PKV_ESTALE);
    stop();
}
END_TEST

START_TEST(refused_refill_changes_nothing)
{
    start(64 * MIB, 8, 0);
    pkv_page page = 42;
    world.os.fail_maps_from = 1;
    ck_assert_int_eq(pkv_magazine_alloc(magazine, &page), PKV_ENOMEM);
    ck_assert_uint_eq(page, 42);
    ck_assert_uint_eq(counts().total, 0);
    world.os.fail_maps_from = 0;
    ck_assert_int_eq(pkv_magazine_alloc(magazine, &page), PKV_OK);
    stop();
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("magazine");
    TCase *tests = tcase_create("magazine");
    tcase_set_timeout(tests, 60);
    tcase_add_test(tests, arguments_are_checked);
    tcase_add_test(tests, parked_pages_count_as_free);
    tcase_add_test(tests, the_last_pages_can_be_had);
    tcase_add_test(tests, pages_cross_between_ways);
    tcase_add_test(tests, refused_refill_changes_nothing);
    suite_add_tcase(suite, tests);
    return suite;
}
