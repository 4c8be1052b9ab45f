/* Page tables against a plain array of optional pages. */
#include <check.h>
#include <string.h>

#include "pools.h"
#include "random.h"
#include "table/table.h"
#include "suite.h"

enum { MAX = 600 };

static struct pkvt_pools pools;

static void setup(void)
{
    const struct pkvt_pools_config config = {
        .limit = (uint64_t)64 << 20, .page_bytes = {4096}, .storage = PKV_STORAGE_NONE};
    ck_assert_int_eq(pkvt_pools_create(&pools, &config, false), PKV_OK);
}

static void teardown(void)
{
    pkvt_pools_destroy(&pools);
}

/* The model: page[i] for each logical page, or PKVI_NO_PAGE. */
struct naive {
    uint32_t page[MAX];
    float score[MAX];
    uint32_t n;
};

static void agree(const struct pkvi_table *table, const struct naive *naive)
{
    ck_assert_ptr_null(pkvi_table_check(table));
    ck_assert_uint_eq(table->next, naive->n);
    uint32_t resident = 0, cursor = 0;
    struct pkvi_resident r;
    struct pkvi_run run = {0};
    bool in_run = false;
    for (uint32_t l = 0; l < naive->n; l++) {
        ck_assert_uint_eq(pkvi_table_page(table, l), naive->page[l]);
        if (naive->page[l] == PKVI_NO_PAGE) {
            in_run = false;
            continue;
        }
        if (!in_run) {
            ck_assert(pkvi_table_next_run(table, &run));
            ck_assert_uint_eq(run.first_logical, l);
            ck_assert_uint_eq(run.first_resident, resident);
            in_run = true;
        }
        ck_assert_uint_lt(l, run.first_logical + run.n_pages);
        ck_assert(pkvi_table_next(table, &cursor, &r));
        ck_assert_uint_eq(r.logical, l);
        ck_assert_uint_eq(r.page, naive->page[l]);
        ck_assert_uint_eq(pkvi_table_find(table, l), r.slot);
        ck_assert_uint_eq(pkvi_table_seek(table, l), r.slot);
        if (table->score != NULL) ck_assert_float_eq(table->score[r.slot].score, naive->score[l]);
        resident++;
    }
    ck_assert(!pkvi_table_next(table, &cursor, &r));
    ck_assert(!pkvi_table_next_run(table, &run));
    ck_assert_uint_eq(table->resident, resident);
    ck_assert_uint_eq(pkvi_table_find(table, naive->n), PKVI_NO_SLOT);
    /* O(resident), not O(length) */
    ck_assert_uint_le(table->end - table->head, 2 * resident);
}

static void grow(struct pkvi_table *table, struct naive *naive, uint32_t n)
{
    uint32_t pages[40];
    ck_assert_int_eq(pkvi_pool_alloc(&pools.pool[0], n, pages), PKV_OK);
    ck_assert_int_eq(pkvi_table_reserve(table, &pools.mem, n), PKV_OK);
    pkvi_table_append(table, pages, n);
    for (uint32_t i = 0; i < n; i++) {
        naive->score[naive->n] = 0;
        naive->page[naive->n++] = pages[i];
    }
}

static void drop(struct pkvi_table *table, struct naive *naive, uint32_t l)
{
    const uint32_t page = pkvi_table_drop(table, l);
    ck_assert_uint_eq(page, naive->page[l]);
    if (page == PKVI_NO_PAGE) return;
    naive->page[l] = PKVI_NO_PAGE;
    pkvi_pool_unref(&pools.pool[0], 1, &page);
}

static void put_back(struct pkvi_table *table, struct naive *naive, uint32_t l)
{
    if (naive->page[l] != PKVI_NO_PAGE) return;
    uint32_t page;
    ck_assert_int_eq(pkvi_pool_alloc(&pools.pool[0], 1, &page), PKV_OK);
    ck_assert_int_eq(pkvi_table_insert(table, &pools.mem, l, page), PKV_OK);
    naive->page[l] = page;
    naive->score[l] = 0;
}

static void set_score(struct pkvi_table *table, struct naive *naive, uint32_t l, float value)
{
    const uint32_t slot = pkvi_table_find(table, l);
    if (slot == PKVI_NO_SLOT || table->score == NULL) return;
    table->score[slot].score = naive->score[l] = value;
}

START_TEST(random_operations)
{
    uint64_t random = pkvt_seed("test_table");
    for (int round = 0; round < 8; round++) {
        struct pkvi_table table, child;
        struct naive naive = {.n = 0};
        pkvi_table_init(&table);
        for (int step = 0; step < 300; step++) {
            const uint32_t kind = pkvt_below(&random, 10);
            const uint32_t l = naive.n != 0 ? pkvt_below(&random, naive.n) : 0;
            if (kind < 3 && naive.n + 40 <= MAX)
                grow(&table, &naive, 1 + pkvt_below(&random, 40) / (kind == 0 ? 1 : 20));
            else if (kind < 6 && naive.n != 0)
                drop(&table, &naive, kind == 5 ? table.logical[table.head] % naive.n : l);
            else if (kind == 6 && naive.n != 0)
                put_back(&table, &naive, l);
            else if (kind == 7 && pkvt_below(&random, 4) == 0) {
                uint32_t held = 0;
                for (uint32_t i = l; i < naive.n; i++)
                    held += naive.page[i] != PKVI_NO_PAGE;
                ck_assert_uint_eq(pkvi_table_truncate(&table, &pools.pool[0], l), held);
                naive.n = l;
            } else if (kind == 8 && round % 2 == 0) {
                ck_assert_int_eq(pkvi_table_enable_scores(&table, &pools.mem), PKV_OK);
                set_score(&table, &naive, l, (float)step);
            } else if (kind == 9) {
                pkvi_table_init(&child);
                ck_assert_int_eq(pkvi_table_fork(&child, &table, &pools.mem, &pools.pool[0]),
                                 PKV_OK);
                agree(&child, &naive);
                pkvi_table_clear(&child, &pools.mem, &pools.pool[0]);
            }
            agree(&table, &naive);
        }
        pkvi_table_clear(&table, &pools.mem, &pools.pool[0]);
        ck_assert_int_eq(pkvt_pools_verify(&pools, NULL, 0), PKV_OK);
    }
    struct pkvi_pool_counts counts;
    pkvi_pool_counts(&pools.pool[0], &counts);
    ck_assert_uint_eq(counts.used, 0);
}
END_TEST

START_TEST(attach_and_replace)
{
    struct pkvi_table table;
    uint32_t pages[3], other;
    pkvi_table_init(&table);
    ck_assert_int_eq(pkvi_pool_alloc(&pools.pool[0], 3, pages), PKV_OK);
    ck_assert_int_eq(pkvi_pool_alloc(&pools.pool[0], 1, &other), PKV_OK);
    ck_assert_int_eq(pkvi_table_reserve(&table, &pools.mem, 3), PKV_OK);
    pkvi_table_attach(&table, 5, pages, 3);
    ck_assert_uint_eq(table.next, 8);
    ck_assert_uint_eq(table.released, 5);
    ck_assert_uint_eq(pkvi_table_page(&table, 4), PKVI_NO_PAGE);
    ck_assert_uint_eq(pkvi_table_page(&table, 6), pages[1]);
    ck_assert_uint_eq(pkvi_table_replace(&table, 6, other), pages[1]);
    ck_assert_uint_eq(pkvi_table_replace(&table, 3, other), PKVI_NO_PAGE);
    ck_assert_uint_eq(table.dirty_lo, 6);
    ck_assert_uint_eq(table.dirty_hi, 7);
    pkvi_pool_unref(&pools.pool[0], 1, &pages[1]);
    pkvi_table_clear(&table, &pools.mem, &pools.pool[0]);
}
END_TEST

/* A table that only ever slides keeps its size. */
START_TEST(sliding_is_bounded)
{
    struct pkvi_table table;
    struct naive naive = {.n = 0};
    pkvi_table_init(&table);
    for (uint32_t l = 0; l < MAX - 40; l++) {
        grow(&table, &naive, 1);
        if (l >= 10) drop(&table, &naive, l - 10);
        ck_assert_uint_le(table.capacity, 32);
    }
    agree(&table, &naive);
    pkvi_table_clear(&table, &pools.mem, &pools.pool[0]);
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("table");
    TCase *tests = tcase_create("table");
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_set_timeout(tests, 60);
    tcase_add_test(tests, random_operations);
    tcase_add_test(tests, attach_and_replace);
    tcase_add_test(tests, sliding_is_bounded);
    suite_add_tcase(suite, tests);
    return suite;
}
