/* The operating system's hooks keep their contract. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

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

START_TEST(positional_io_is_whole)
{
    const struct pkvi_os *os = pkvi_os_default();
    FILE *file = tmpfile();
    ck_assert_ptr_nonnull(file);
    int fd = fileno(file);
    static char out[100000], in[100000];
    for (size_t i = 0; i < sizeof out; i++)
        out[i] = (char)(i * 31);
    ck_assert(os->write_at(os->user, fd, out, sizeof out, 12345));
    ck_assert(os->read_at(os->user, fd, in, sizeof in, 12345));
    ck_assert_mem_eq(in, out, sizeof in);
    ck_assert(!os->read_at(os->user, fd, in, sizeof in, 12346)); /* ends one byte early */
    ck_assert(!os->read_at(os->user, -1, in, 1, 0));
    ck_assert(!os->write_at(os->user, -1, out, 1, 0));
    fclose(file);
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
    tcase_add_test(tests, positional_io_is_whole);
    suite_add_tcase(suite, tests);
    return suite;
}
