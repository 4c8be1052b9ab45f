/* Budget, allocator vtables and segmented vectors. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "faults.h"
#include "mem/internal.h"
#include "mem/mem.h"

#if __has_include(<jemalloc/jemalloc.h>)
#include <jemalloc/jemalloc.h>
#include "suite.h"
/* What lib/mem/jemalloc.c assumes of jemalloc's interface. */
_Static_assert(MALLOCX_ARENA(5) == (int)((5 + 1u) << 20), "MALLOCX_ARENA changed");
_Static_assert(MALLOCX_TCACHE_NONE == 1 << 8, "MALLOCX_TCACHE_NONE changed");
_Static_assert(MALLOCX_LG_ALIGN(6) == 6, "MALLOCX_LG_ALIGN changed");
#endif

#define MIB (UINT64_C(1) << 20)

static struct pkvi_budget budget;
static struct pkvi_mem mem;
static struct pkvt_allocator allocator;

static void start(uint64_t limit, bool built_in)
{
    pkvt_allocator_init(&allocator);
    ck_assert(pkvi_budget_init(&budget, limit, NULL));
    ck_assert_int_eq(pkvi_mem_init(&mem, built_in ? NULL : &allocator.vtable), PKV_OK);
    ck_assert(pkvi_mem_attach(&mem, &budget, 0));
}

static void stop(void)
{
    ck_assert_uint_eq(atomic_load(&budget.metadata), 0);
    pkvi_mem_detach(&mem, 0);
    pkvi_mem_destroy(&mem);
    pkvi_budget_destroy(&budget);
    ck_assert_uint_eq(allocator.live_blocks, 0);
    ck_assert_uint_eq(allocator.wrong_frees, 0);
}

START_TEST(budget_bounds_both_kinds)
{
    start(8 * MIB, false);
    uint64_t head = 8 * MIB - pkvi_budget_capacity(8 * MIB);
    ck_assert_uint_eq(head, 8 * MIB / 512 + 65536);
    ck_assert_uint_eq(pkvi_budget_region_room(&budget), 8 * MIB - head);
    ck_assert(!pkvi_budget_charge_region(&budget, 8 * MIB));
    ck_assert(pkvi_budget_charge_region(&budget, 6 * MIB));
    ck_assert(!pkvi_budget_charge_region(&budget, 2 * MIB)); /* metadata keeps its room */
    ck_assert(pkvi_budget_charge_metadata(&budget, 2 * MIB));
    ck_assert(!pkvi_budget_charge_metadata(&budget, 1));
    ck_assert(!pkvi_budget_charge_region(&budget, 1));
    ck_assert_uint_eq(pkvi_budget_used(&budget), 8 * MIB);
    ck_assert(!pkvi_budget_try_limit(&budget, 8 * MIB - 1));
    ck_assert_uint_eq(atomic_load(&budget.limit), 8 * MIB);
    pkvi_budget_release_metadata(&budget, 2 * MIB);
    ck_assert(pkvi_budget_try_limit(&budget, 6 * MIB));
    ck_assert_uint_eq(pkvi_budget_region_room(&budget), 0);
    pkvi_budget_release_region(&budget, 6 * MIB);
    ck_assert_uint_eq(atomic_load(&budget.metadata_peak), 2 * MIB);
    ck_assert_uint_eq(atomic_load(&budget.regions_peak), 6 * MIB);
    stop();
}
END_TEST

START_TEST(huge_limits_do_not_overflow)
{
    start(UINT64_MAX, false);
    ck_assert(pkvi_budget_charge_region(&budget, UINT64_C(1) << 62));
    ck_assert(!pkvi_budget_charge_region(&budget, UINT64_MAX));
    ck_assert(!pkvi_budget_charge_metadata(&budget, UINT64_MAX));
    pkvi_budget_release_region(&budget, UINT64_C(1) << 62);
    ck_assert_uint_eq(pkvi_budget_capacity(0), 0);
    ck_assert(pkvi_mem_array(&mem, SIZE_MAX / 2, 3) == NULL);
    stop();
}
END_TEST

static bool give_back(void *context, uint64_t bytes)
{
    uint64_t *left = context;
    if (!*left) return false;
    ck_assert_uint_gt(bytes, 0);
    ck_assert_uint_le(bytes, 2 * MIB);
    *left -= MIB;
    pkvi_budget_release_region(&budget, MIB);
    return true;
}

START_TEST(pressure_makes_room_for_metadata)
{
    start(4 * MIB, false);
    uint64_t empty = 3 * MIB;
    ck_assert(pkvi_budget_charge_region(&budget, empty));
    budget.pressure = give_back;
    budget.pressure_context = &empty;
    void *block = pkvi_mem_alloc(&mem, 2 * MIB + MIB / 2);
    ck_assert_ptr_nonnull(block);
    ck_assert_uint_eq(empty, MIB); /* no more than needed */
    ck_assert_ptr_null(pkvi_mem_alloc(&mem, 2 * MIB));
    ck_assert_uint_eq(empty, 0);
    pkvi_mem_free(&mem, block, 2 * MIB + MIB / 2);
    stop();
}
END_TEST

START_TEST(refused_allocation_is_uncharged)
{
    start(4 * MIB, false);
    allocator.fail_from = 1;
    ck_assert_ptr_null(pkvi_mem_alloc(&mem, 100));
    ck_assert_ptr_null(pkvi_mem_array(&mem, 10, 10));
    ck_assert_ptr_null(pkvi_mem_grow_array(&mem, NULL, 0, 10, 10));
    ck_assert_uint_eq(atomic_load(&budget.metadata), 0);
    stop();
}
END_TEST

/* Both built-in allocators, and a caller's. */
START_TEST(blocks_are_aligned_and_counted)
{
    start(64 * MIB, _i == 0);
    if (_i == 1) pkvi_libc_allocator(&mem.allocator);
    ck_assert(mem.owns_arena == (_i == 0 && pkvi_jemalloc_present()));
    uint64_t bytes = 0;
    for (size_t alignment = 1; alignment <= 65536; alignment *= 2) {
        char *block = pkvi_mem_alloc_aligned(&mem, 1000 + alignment, alignment);
        ck_assert_ptr_nonnull(block);
        ck_assert_uint_eq((uintptr_t)block % (alignment < 16 ? 16 : alignment), 0);
        memset(block, 1, 1000 + alignment);
        bytes = 1000 + alignment;
        ck_assert_uint_eq(atomic_load(&budget.metadata), bytes);
        if (_i == 0 && pkvi_jemalloc_present()) {
            uint64_t counted = pkvi_mem_allocator_bytes(&mem);
            ck_assert_uint_ge(counted, bytes);
            ck_assert_uint_le(counted, 2 * bytes + 65536);
        } else {
            ck_assert_uint_eq(pkvi_mem_allocator_bytes(&mem), 0);
        }
        pkvi_mem_free(&mem, block, bytes);
    }
    char *zeros = pkvi_mem_array(&mem, 100, 7);
    for (int i = 0; i < 700; i++)
        ck_assert_int_eq(zeros[i], 0);
    memset(zeros, 9, 700);
    zeros = pkvi_mem_grow_array(&mem, zeros, 100, 300, 7);
    for (int i = 0; i < 700; i++)
        ck_assert_int_eq(zeros[i], 9);
    pkvi_mem_free_array(&mem, zeros, 300, 7);
    pkvi_mem_free(&mem, NULL, 5);
    stop();
}
END_TEST

START_TEST(arena_is_private)
{
    if (!pkvi_jemalloc_present()) return;
    start(64 * MIB, true);
    struct pkvi_mem other;
    ck_assert_int_eq(pkvi_mem_init(&other, NULL), PKV_OK);
    ck_assert_uint_ne(other.arena, mem.arena);
    uint64_t before = pkvi_mem_allocator_bytes(&mem);
    void *mine = pkvi_mem_alloc(&mem, 100000), *theirs = pkvi_mem_alloc(&other, 500000);
    ck_assert_uint_ge(pkvi_mem_allocator_bytes(&mem) - before, 100000);
    ck_assert_uint_lt(pkvi_mem_allocator_bytes(&mem) - before, 200000);
    ck_assert_uint_ge(pkvi_mem_allocator_bytes(&other), 500000);
    pkvi_mem_free(&other, theirs, 500000);
    pkvi_mem_destroy(&other);
    memset(mine, 1, 100000); /* still there */
    pkvi_mem_free(&mem, mine, 100000);
    stop();
}
END_TEST

START_TEST(segvec_elements_stay)
{
    start(64 * MIB, false);
    struct pkvi_segvec vec;
    pkvi_segvec_init(&vec, sizeof(uint32_t), NULL);
    ck_assert(!pkvi_segvec_ensure(&vec, &mem, UINT32_MAX));
    ck_assert(pkvi_segvec_ensure(&vec, &mem, 0));
    ck_assert_uint_eq(atomic_load(&vec.capacity), 0);
    uint32_t *first = NULL;
    for (uint32_t n = 1; n < 100000; n = n * 3 + 1) {
        uint32_t before = atomic_load(&vec.capacity);
        ck_assert(pkvi_segvec_ensure(&vec, &mem, n));
        uint32_t capacity = atomic_load(&vec.capacity);
        ck_assert_uint_ge(capacity, n);
        ck_assert(capacity < 2 * n + 128);
        for (uint32_t i = before; i < capacity; i++) {
            uint32_t *element = pkvi_segvec_at(&vec, i, sizeof *element);
            if (*element) ck_abort_msg("element %u is not zero", i);
            *element = i + 1;
        }
        if (!first) first = pkvi_segvec_at(&vec, 0, sizeof *first);
        bool kept = true;
        for (uint32_t i = 0; i < capacity; i++)
            kept = kept && *(uint32_t *)pkvi_segvec_at(&vec, i, sizeof(uint32_t)) == i + 1;
        ck_assert(kept);
    }
    ck_assert_ptr_eq(first, pkvi_segvec_at(&vec, 0, sizeof *first));
    pkvi_segvec_destroy(&vec, &mem);
    stop();
}
END_TEST

START_TEST(segvec_survives_refusal)
{
    start(64 * MIB, false);
    struct pkvi_segvec vec;
    pkvi_segvec_init(&vec, 8, NULL);
    allocator.fail_at = 3;
    ck_assert(!pkvi_segvec_ensure(&vec, &mem, 1000));
    ck_assert_uint_eq(atomic_load(&vec.capacity), 64 + 128);
    ck_assert(pkvi_segvec_ensure(&vec, &mem, 1000));
    pkvi_segvec_destroy(&vec, &mem);
    stop();
}
END_TEST

/* Large segments of a vector with OS hooks are charged by the OS page and shrink, in place. */
START_TEST(mapped_segments_shrink)
{
    enum { N = 100000, FEW = 1000 };
    start(64 * MIB, false);
    static struct pkvt_os os;
    pkvt_os_init(&os);
    struct pkvi_segvec vec;
    pkvi_segvec_init(&vec, sizeof(uint64_t), &os.hooks);
    ck_assert(pkvi_segvec_ensure(&vec, &mem, FEW));
    ck_assert_uint_eq(os.maps, 0);
    const uint64_t few = atomic_load(&budget.metadata);
    os.fail_maps_from = 1;
    ck_assert(!pkvi_segvec_ensure(&vec, &mem, N));
    os.fail_maps_from = 0;
    ck_assert(pkvi_segvec_ensure(&vec, &mem, N));
    ck_assert_uint_gt(os.maps, 0);
    /* By the OS page, not by twice what is used. */
    ck_assert_uint_ge(atomic_load(&budget.metadata), N * sizeof(uint64_t));
    ck_assert_uint_le(atomic_load(&budget.metadata), N * sizeof(uint64_t) + 4 * 65536);
    for (uint32_t i = 0; i < N; i++)
        *(uint64_t *)pkvi_segvec_at(&vec, i, sizeof(uint64_t)) = i;
    uint64_t *last = pkvi_segvec_at(&vec, N - 1, sizeof(uint64_t));
    /* Refused by the OS, nothing is uncharged. */
    const uint64_t charged = atomic_load(&budget.metadata);
    os.fail_other = os.others + 1;
    pkvi_segvec_trim(&vec, &mem, FEW);
    ck_assert_uint_eq(atomic_load(&budget.metadata), charged);
    ck_assert_uint_ge(atomic_load(&vec.capacity), N);
    pkvi_segvec_trim(&vec, &mem, N / 2);
    ck_assert_uint_lt(atomic_load(&budget.metadata), charged * 2 / 3);
    ck_assert_uint_ge(atomic_load(&vec.capacity), N / 2);
    ck_assert_uint_eq(*(uint64_t *)pkvi_segvec_at(&vec, N / 2 - 1, 8), N / 2 - 1);
    ck_assert_uint_eq(*last, 0); /* still there to be read */
    pkvi_segvec_trim(&vec, &mem, FEW);
    ck_assert_uint_le(atomic_load(&budget.metadata), few + 65536);
    ck_assert_uint_eq(*(uint64_t *)pkvi_segvec_at(&vec, FEW - 1, 8), FEW - 1);
    ck_assert(pkvi_segvec_ensure(&vec, &mem, N));
    ck_assert_ptr_eq(pkvi_segvec_at(&vec, N - 1, sizeof(uint64_t)), last);
    pkvi_segvec_destroy(&vec, &mem);
    ck_assert_uint_eq(os.live_maps, 0);
    stop();
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("mem");
    TCase *tests = tcase_create("mem");
    tcase_set_timeout(tests, 60);
    tcase_add_test(tests, budget_bounds_both_kinds);
    tcase_add_test(tests, huge_limits_do_not_overflow);
    tcase_add_test(tests, pressure_makes_room_for_metadata);
    tcase_add_test(tests, refused_allocation_is_uncharged);
    tcase_add_loop_test(tests, blocks_are_aligned_and_counted, 0, 3);
    tcase_add_test(tests, arena_is_private);
    tcase_add_test(tests, segvec_elements_stay);
    tcase_add_test(tests, segvec_survives_refusal);
    tcase_add_test(tests, mapped_segments_shrink);
    suite_add_tcase(suite, tests);
    return suite;
}
