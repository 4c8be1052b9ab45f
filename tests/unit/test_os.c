/* The operating system's hooks keep their contract. */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cache/cache_internal.h"
#include "os/os.h"
#include "suite.h"

START_TEST(mapping_is_aligned_zeroed_and_reusable)
{
    const struct pkvi_os *os = pkvi_os_default();
    const size_t page = os->page_bytes(os->user);
    ck_assert(page >= 512 && PKVI_OS_GRANULE % page == 0);
    for (size_t alignment = 4096; alignment <= 16 * PKVI_OS_GRANULE; alignment *= 8) {
        unsigned char *base = os->map(os->user, PKVI_OS_GRANULE, alignment);
        ck_assert_ptr_nonnull(base);
        ck_assert_uint_eq((uintptr_t)base % alignment, 0);
        for (size_t i = 0; i < PKVI_OS_GRANULE; i += 511)
            ck_assert_int_eq(base[i], 0);
        memset(base, 7, PKVI_OS_GRANULE);
        os->advise_small(os->user, base, PKVI_OS_GRANULE); /* keeps contents */
        ck_assert_int_eq(base[PKVI_OS_GRANULE - 1], 7);
        ck_assert(os->decommit(os->user, base + page, page));
        ck_assert_int_eq(base[page - 1], 7);
        ck_assert_int_eq(base[page], 0);
        ck_assert_int_eq(base[2 * page], 7);
        ck_assert(os->decommit(os->user, base, PKVI_OS_GRANULE));
        ck_assert_int_eq(base[PKVI_OS_GRANULE - 1], 0);
        ck_assert(os->unmap(os->user, base, PKVI_OS_GRANULE));
    }
}
END_TEST

START_TEST(impossible_mappings_are_refused)
{
    const struct pkvi_os *os = pkvi_os_default();
    ck_assert_ptr_null(os->map(os->user, SIZE_MAX - PKVI_OS_GRANULE + 1, PKVI_OS_GRANULE));
    ck_assert_ptr_null(os->map(os->user, (size_t)1 << 60, PKVI_OS_GRANULE));
}
END_TEST

START_TEST(dont_fork_hides_the_range)
{
    const struct pkvi_os *os = pkvi_os_default();
    volatile char *base = os->map(os->user, PKVI_OS_GRANULE, PKVI_OS_GRANULE);
    ck_assert_ptr_nonnull((void *)(uintptr_t)base);
    base[0] = 1;
    ck_assert(os->advise_dont_fork(os->user, (void *)(uintptr_t)base, PKVI_OS_GRANULE));
    pid_t child = fork();
    if (child == 0) {
        /* write() reports an address that is not mapped instead of dying of it. */
        int ends[2];
        if (pipe(ends) != 0) _exit(2);
        _exit(write(ends[1], (void *)(uintptr_t)base, 1) < 0 ? 0 : 1);
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq(WEXITSTATUS(status), 0);
    os->unmap(os->user, (void *)(uintptr_t)base, PKVI_OS_GRANULE);
}
END_TEST

START_TEST(advice_never_hurts)
{
    const struct pkvi_os *os = pkvi_os_default();
    char *base = os->map(os->user, PKVI_OS_GRANULE, PKVI_OS_GRANULE);
    ck_assert_ptr_nonnull(base);
    os->advise_huge(os->user, base, PKVI_OS_GRANULE); /* may be refused */
    os->advise_numa(os->user, base, PKVI_OS_GRANULE, 0);
    ck_assert(!os->advise_numa(os->user, base, PKVI_OS_GRANULE, -1));
    ck_assert(!os->advise_numa(os->user, base, PKVI_OS_GRANULE, 1 << 20));
    base[PKVI_OS_GRANULE - 1] = 1;
    ck_assert(os->unmap(os->user, base, PKVI_OS_GRANULE));
}
END_TEST

START_TEST(clock_and_random_move)
{
    const struct pkvi_os *os = pkvi_os_default();
    uint64_t before = os->clock_ns(os->user), keys[2][4] = {{0}};
    ck_assert(os->random(os->user, keys[0], sizeof keys[0]));
    ck_assert(os->random(os->user, keys[1], sizeof keys[1]));
    ck_assert_mem_ne(keys[0], keys[1], sizeof keys[0]);
    usleep(1000);
    ck_assert_uint_ge(os->clock_ns(os->user) - before, 1000000);
}
END_TEST

/* How often each advice was given. */
struct advice {
    uint32_t huge, dont_fork, numa;
    int node;
};

static bool count_huge(void *user, void *address, size_t size)
{
    ((struct advice *)user)->huge++;
    return pkvi_os_default()->advise_huge(NULL, address, size);
}

static bool count_dont_fork(void *user, void *address, size_t size)
{
    ((struct advice *)user)->dont_fork++;
    return pkvi_os_default()->advise_dont_fork(NULL, address, size);
}

static bool count_numa(void *user, void *address, size_t size, int node)
{
    (void)address, (void)size;
    ((struct advice *)user)->numa++;
    ((struct advice *)user)->node = node;
    return false; /* refused advice is no error */
}

/* huge_pages, fork_policy and numa_node: the advice is given for what a cache maps exactly if the
 * field says so. */
START_TEST(config_fields_reach_the_system)
{
    const bool on = _i != 0;
    struct advice advice = {.node = -1};
    struct pkvi_os os = *pkvi_os_default();
    os.user = &advice;
    os.advise_huge = count_huge;
    os.advise_dont_fork = count_dont_fork;
    os.advise_numa = count_numa;
    pkv_config config;
    pkv_config_init(&config, sizeof config);
    ck_assert_uint_eq(config.huge_pages, 1);
    ck_assert_uint_eq(config.fork_policy, 0);
    ck_assert_int_eq(config.numa_node, -1);
    const pkv_group_config group = {
        .n_layers = 2, .kv_heads = 2, .head_dim_k = 64, .head_dim_v = 64, .dtype = PKV_DTYPE_F16};
    config.groups = &group;
    config.n_groups = 1;
    config.memory_limit = 32 << 20;
    config.huge_pages = on;
    config.fork_policy = on;
    config.numa_node = on ? 3 : -1;
    pkv_cache *cache;
    ck_assert_int_eq(pkvi_cache_create(&config, &os, &cache), PKV_OK);
    pkv_seq seq;
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    pkv_batch batch;
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, seq, NULL, 10000), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK); /* several whole regions */
    ck_assert(on == (advice.huge != 0));
    ck_assert(on == (advice.dont_fork != 0));
    ck_assert(on == (advice.numa != 0));
    ck_assert_int_eq(advice.node, on ? 3 : -1);
    pkv_cache_destroy(cache);
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("os");
    TCase *tests = tcase_create("os");
    tcase_set_timeout(tests, 60);
    tcase_add_test(tests, mapping_is_aligned_zeroed_and_reusable);
    tcase_add_test(tests, impossible_mappings_are_refused);
    /* qemu-user does not carry the advice out. */
    if (!getenv("PKV_TEST_EMULATED")) tcase_add_test(tests, dont_fork_hides_the_range);
    tcase_add_test(tests, advice_never_hurts);
    tcase_add_test(tests, clock_and_random_move);
    tcase_add_loop_test(tests, config_fields_reach_the_system, 0, 2);
    suite_add_tcase(suite, tests);
    return suite;
}
