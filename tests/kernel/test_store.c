/* The tile layout, moving rows in and out of it, digests, merging and finishing, for every row. */
#include "shape.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "suite.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

static const pkv_dtype dtypes[] = {PKV_DTYPE_F32, PKV_DTYPE_F16, PKV_DTYPE_BF16};

static const pkvi_kernels *row_at(int i)
{
    return pkvi_kernel_at((uint32_t)i, 1);
}

START_TEST(layout_places_every_element_once)
{
    for (int i = 0; i < 54; i++) {
        pkvi_layout l;
        const uint32_t P = page_sizes[i % N_PAGE_SIZES], dk = 8 * (1 + (uint32_t)i % 7),
                       dv = 8 + 8 * (uint32_t)(i % 3);
        ck_assert_int_eq(pkvi_layout_init(&l, dtypes[i % 3], dtypes[i % 3], P, 3, dk, dv, 0),
                         PKV_OK);
        ck_assert_uint_eq(l.part_bytes, (size_t)3 * P * (dk + dv) * l.k_elem_bytes);
        char *seen = calloc(l.part_bytes, 1);
        ck_assert_ptr_nonnull(seen);
        for (uint32_t h = 0; h < 3; h++)
            for (uint32_t s = 0; s < P; s++) {
                for (uint32_t d = 0; d < dk; d++)
                    seen[pkvi_layout_k_at(&l, h, s, d)]++;
                for (uint32_t d = 0; d < dv; d++)
                    seen[pkvi_layout_v_at(&l, h, s, d)]++;
            }
        for (size_t at = 0; at < l.part_bytes; at++)
            ck_assert_int_eq(seen[at], at % l.k_elem_bytes == 0 ? 1 : 0);
        free(seen);
    }
}
END_TEST

START_TEST(layout_rejects_and_tags)
{
    pkvi_layout l, m;
    memset(&l, 0x11, sizeof l);
    m = l;
    ck_assert_int_eq(pkvi_layout_init(&l, 9, 9, 16, 1, 64, 64, 0), PKV_EINVAL);
    ck_assert_int_eq(pkvi_layout_init(&l, PKV_DTYPE_F16, PKV_DTYPE_F16, 24, 1, 64, 64, 0),
                     PKV_EINVAL);
    ck_assert_int_eq(pkvi_layout_init(&l, PKV_DTYPE_F16, PKV_DTYPE_F16, 512, 1, 64, 64, 0),
                     PKV_EINVAL);
    ck_assert_int_eq(pkvi_layout_init(&l, PKV_DTYPE_F16, PKV_DTYPE_F16, 16, 0, 64, 64, 0),
                     PKV_EINVAL);
    ck_assert_int_eq(pkvi_layout_init(&l, PKV_DTYPE_F16, PKV_DTYPE_F16, 16, 1, 63, 64, 0),
                     PKV_EINVAL);
    ck_assert_int_eq(pkvi_layout_init(&l, PKV_DTYPE_F16, PKV_DTYPE_F16, 16, 1, 64, 584, 0),
                     PKV_EINVAL);
    ck_assert_int_eq(pkvi_layout_init(&l, PKV_DTYPE_F16, PKV_DTYPE_F16, 16, 1, 64, 64, 4),
                     PKV_EINVAL);
    /* Formats of keys are none of values. */
    ck_assert_int_eq(pkvi_layout_init(&l, PKV_DTYPE_V8, PKV_DTYPE_V8, 16, 1, 64, 64, 0),
                     PKV_EINVAL);
    ck_assert_int_eq(pkvi_layout_init(&l, PKV_DTYPE_K8, PKV_DTYPE_K8, 16, 1, 64, 64, 0),
                     PKV_EINVAL);
    ck_assert_int_eq(memcmp(&l, &m, sizeof l), 0);
    /* Any change of format or geometry changes the tag. */
    static uint64_t tags[N_FORMATS * N_PAGE_SIZES * 32];
    size_t n = 0;
    for (int t = 0; t < N_FORMATS; t++)
        for (int p = 0; p < N_PAGE_SIZES; p++)
            for (uint32_t k = 64; k <= 80; k += 16)
                for (uint32_t v = 64; v <= 80; v += 16)
                    for (uint32_t heads = 1; heads <= 2; heads++)
                        for (uint32_t digest = 0; digest < 4; digest++) {
                            ck_assert_int_eq(pkvi_layout_init(&l, formats[t].k, formats[t].v,
                                                              page_sizes[p], heads, k, v, digest),
                                             PKV_OK);
                            ck_assert_uint_eq(l.part_bytes % 64, 0);
                            for (size_t i = 0; i < n; i++)
                                ck_assert(tags[i] != l.tag);
                            tags[n++] = l.tag;
                        }
}
END_TEST

/* Plain rows with gaps, written at any slot and read back, in every pair of types. */
START_TEST(rows_go_in_and_out)
{
    const pkvi_kernels *kernels = row_at(_i);
    struct rng rng = {12};
    for (int i = 0; i < 162; i++) {
        const pkv_dtype plain = dtypes[i / 3 % 3];
        const uint32_t P = page_sizes[i / 9 % N_PAGE_SIZES], heads = 3, dk = 24, dv = 40;
        const size_t e = pkv_dtype_size(plain);
        pkvi_layout l;
        ck_assert_int_eq(pkvi_layout_init(&l, dtypes[i % 3], dtypes[i % 3], P, heads, dk, dv, 0),
                         PKV_OK);
        const uint32_t slot = rng_below(&rng, P), n = 1 + rng_below(&rng, P - slot);
        const ptrdiff_t head_stride = (ptrdiff_t)(48 * e), token_stride = heads * head_stride + 64;
        const size_t bytes = (size_t)token_stride * n;
        char *in = malloc(bytes), *out = malloc(bytes), *part = aligned_alloc(64, l.part_bytes);
        char *before = malloc(l.part_bytes);
        ck_assert(in && out && part && before);
        for (size_t at = 0; at < bytes / e; at++) {
            const float x = rng_normal(&rng);
            kernels->convert(in + at * e, plain, &x, PKV_DTYPE_F32, 1);
        }
        memset(out, 0x55, bytes);
        memset(part, 0x33, l.part_bytes);
        memcpy(before, part, l.part_bytes);
        pkvi_move_job job = {.layout = &l,
                             .part = part,
                             .head0 = 1,
                             .head1 = 3,
                             .slot = slot,
                             .n_tokens = n,
                             .k = {in, plain, token_stride, head_stride},
                             .v = {in + 8, plain, token_stride, head_stride}};
        kernels->write(&job);
        for (uint32_t h = 0; h < heads; h++)
            for (uint32_t s = 0; s < P; s++)
                for (uint32_t d = 0; d < dk; d++) {
                    const size_t at = pkvi_layout_k_at(&l, h, s, d);
                    char want[4];
                    memcpy(want, before + at, l.k_elem_bytes);
                    if (h >= 1 && s >= slot && s < slot + n)
                        kernels->convert(want, l.dtype_k,
                                         in + (s - slot) * token_stride + h * head_stride + d * e,
                                         plain, 1);
                    ck_assert_int_eq(memcmp(want, part + at, l.k_elem_bytes), 0);
                }
        job.k.data = out;
        job.v.data = NULL;
        kernels->read(&job);
        for (uint32_t t = 0; t < n; t++)
            for (uint32_t h = 0; h < heads; h++)
                for (uint32_t d = 0; d < 48; d++) {
                    const size_t at = (size_t)(t * token_stride + h * head_stride) + d * e;
                    char stored[4], want[4];
                    memset(want, 0x55, 4);
                    kernels->convert(stored, l.dtype_k, in + at, plain, 1);
                    if (h >= 1 && d < dk) kernels->convert(want, plain, stored, l.dtype_k, 1);
                    ck_assert_int_eq(memcmp(want, out + at, e), 0);
                }
        for (uint32_t s = slot; s < slot + n; s++) { /* V as well */
            char want[4];
            kernels->convert(want, l.dtype_k,
                             in + 8 + (s - slot) * token_stride + 2 * head_stride + (dv - 1) * e,
                             plain, 1);
            ck_assert_int_eq(
                memcmp(want, part + pkvi_layout_v_at(&l, 2, s, dv - 1), l.k_elem_bytes), 0);
        }
        free(in);
        free(out);
        free(part);
        free(before);
    }
}
END_TEST

static double digest_value(const pkvi_layout *l, const void *part, size_t offset)
{
    float x;
    pkvi_kernel_find("generic")->convert(&x, PKV_DTYPE_F32, (const char *)part + offset, l->dtype_k,
                                         1);
    return (double)x;
}

/* Quest's bound of one row on one head, from the stored digest. */
static double page_bound(const pkvi_layout *l, const void *part, uint32_t head, const float *q)
{
    double bound = 0;
    for (uint32_t d = 0; d < l->dim_k; d++) {
        const size_t at = ((size_t)head * l->dim_k + d) * l->k_elem_bytes;
        bound += fmax((double)q[d] * digest_value(l, part, l->min_offset + at),
                      (double)q[d] * digest_value(l, part, l->max_offset + at));
    }
    return bound;
}

START_TEST(digests_and_scores)
{
    const pkvi_kernels *kernels = row_at(_i);
    for (int i = 0; i < 15; i++) {
        struct rng rng = {40 + (uint64_t)i};
        const uint32_t P = page_sizes[i % N_PAGE_SIZES], n = i % 4 ? P : P - 3;
        struct shape shape = {.format = formats[i % 3],
                              .page_tokens = P,
                              .heads = 2,
                              .dim_k = 56,
                              .dim_v = 8,
                              .rows = 3,
                              .tokens = n,
                              .digest = 3};
        struct problem *p = problem_new(kernels, &shape, &rng);
        void *part = (void *)(uintptr_t)p->parts[0];
        const pkvi_layout *l = &p->layout;
        if (i % 2) /* a key of norm zero adds nothing to the sums */
            for (uint32_t d = 0; d < 56; d++)
                problem_set_k(p, 1, 2, d, 0.0f);
        kernels->digest(l, part, 0, 2, n);
        for (uint32_t h = 0; h < 2; h++)
            for (uint32_t d = 0; d < 56; d++) {
                double min = INFINITY, max = -INFINITY, sum = 0;
                for (uint32_t s = 0; s < n; s++) {
                    double x = pkvi_reference_k(l, part, h, s, d), norm = 0;
                    for (uint32_t j = 0; j < 56; j++)
                        norm += pow(pkvi_reference_k(l, part, h, s, j), 2);
                    min = fmin(min, x);
                    max = fmax(max, x);
                    sum += norm > 0 ? x / sqrt(norm) : 0;
                }
                float stored;
                const size_t at = (size_t)h * 56 + d;
                memcpy(&stored, (char *)part + l->sum_offset + at * 4, 4);
                ck_assert(digest_value(l, part, l->min_offset + at * l->k_elem_bytes) == min);
                ck_assert(digest_value(l, part, l->max_offset + at * l->k_elem_bytes) == max);
                ck_assert_msg(fabs((double)stored - sum) < 1e-5 * P, "%g, not %g", (double)stored,
                              sum);
            }
        for (uint32_t rows = 1; rows <= 6; rows++) { /* six rows are at hand, as one head's here */
            float best;
            double want = -INFINITY;
            kernels->score(l, p->parts, 1, 1, 2, p->q, rows, &best);
            for (uint32_t r = 0; r < rows; r++)
                want = fmax(want, page_bound(l, part, 1, p->q + (size_t)r * 56));
            ck_assert_msg(fabs((double)best - want) < 1e-3, "%g, not %g", (double)best, want);
        }
        float best[2];
        kernels->score(l, p->parts, 1, 0, 2, p->q, 3, best);
        for (uint32_t h = 0; h < 2; h++) {
            double want = -INFINITY;
            for (uint32_t r = 0; r < 3; r++)
                want = fmax(want, page_bound(l, part, h, p->q + (size_t)(h * 3 + r) * 56));
            ck_assert_msg(fabs((double)best[h] - want) < 1e-3, "%g, not %g", (double)best[h], want);
        }
        problem_free(p);
    }
}
END_TEST

/* Two parts attended apart and merged, against the reference over both. */
START_TEST(merged_states)
{
    const pkvi_kernels *kernels = row_at(_i);
    for (int i = 0; i < 12; i++) {
        struct rng rng = {90 + (uint64_t)i};
        struct shape shape = {.format = formats[i % N_FORMATS],
                              .heads = 1,
                              .dim_k = 64,
                              .dim_v = 72,
                              .rows = 4,
                              .tokens = 300,
                              .q_scale = 5};
        struct problem *p = problem_new(kernels, &shape, &rng);
        float o[4 * 80], m[4], l[4];
        const uint32_t cut = 37 * (uint32_t)i % 300;
        pkvi_attend_job job = p->job;
        job.o = o;
        job.m = m;
        job.l = l;
        for (uint32_t r = 0; r < 4; r++)
            p->hi[r] = cut; /* empty when cut is 0 */
        kernels->attend(&p->job);
        for (uint32_t r = 0; r < 4; r++) {
            p->lo[r] = cut;
            p->hi[r] = r == 3 ? cut : 300; /* the last row's second part is empty */
        }
        kernels->attend(&job);
        kernels->merge(p->o, p->m, p->l, o, m, l, 4, 72, 80);
        for (uint32_t r = 0; r < 4; r++) {
            double out[72], weights[72];
            p->lo[r] = 0;
            pkvi_reference_row(&p->job, 0, r, -(double)INFINITY, out, NULL, weights, NULL);
            for (uint32_t d = 0; d < 72; d++) {
                const double got = p->l[r] == 0 ? 0 : (double)(p->o[r * 80 + d] / p->l[r]);
                ck_assert(fabs(got - out[d]) <= (problem_gate(p, kernels) + 2e-5) * weights[d]);
            }
        }
        problem_free(p);
    }
}
END_TEST

START_TEST(finishing)
{
    const pkvi_kernels *kernels = row_at(_i);
    float o[3 * 40], sinks[3] = {1.5f, -INFINITY, 0.25f};
    const float m[3] = {2.0f, 3.0f, -INFINITY}, l[3] = {1.5f, 4.0f, 0.0f};
    for (int i = 0; i < 120; i++)
        o[i] = i < 80 ? (float)i * 0.37f - 9 : 0.0f;
    for (int t = 0; t < 3; t++)
        for (int with = 0; with < 2; with++) {
            float out[3][40], lse[3] = {7, 7, 7};
            void *rows[3] = {out[0], NULL, out[2]};
            float *lses[3] = {&lse[0], &lse[1], NULL};
            memset(out, 0x44, sizeof out);
            pkvi_finish_job job = {.o = o,
                                   .o_stride = 40,
                                   .m = m,
                                   .l = l,
                                   .sinks = with ? sinks : NULL,
                                   .n_rows = 3,
                                   .dim = 24,
                                   .dtype = dtypes[t],
                                   .out = rows,
                                   .lse = lses};
            kernels->finish(&job);
            double denominator = 1.5 + (with ? exp(1.5) / exp2(2.0) : 0);
            float wide[24];
            kernels->convert(wide, PKV_DTYPE_F32, out[0], dtypes[t], 24);
            for (int d = 0; d < 24; d++)
                ck_assert_double_eq_tol((double)wide[d], (double)o[d] / denominator,
                                        t == 0   ? 2e-6
                                        : t == 1 ? 5e-3
                                                 : 4e-2);
            ck_assert_double_eq_tol((double)lse[0], log(denominator) + 2 * log(2.0), 1e-6);
            ck_assert_double_eq_tol((double)lse[1], log(4.0) + 3 * log(2.0), 1e-6);
            kernels->convert(wide, PKV_DTYPE_F32, out[2], dtypes[t], 24);
            for (int d = 0; d < 24; d++)
                ck_assert(wide[d] == 0.0f);
            ck_assert(lse[2] == 7);
            unsigned char *untouched = (unsigned char *)out[1];
            for (size_t j = 0; j < sizeof out[1]; j++)
                ck_assert_uint_eq(untouched[j], 0x44);
            untouched = (unsigned char *)out[0] + 24 * pkv_dtype_size(dtypes[t]);
            ck_assert_uint_eq(*untouched, 0x44);
        }
}
END_TEST

START_TEST(normalised_states_merge)
{
    const pkvi_kernels *kernels = row_at(_i);
    float a[3 * 24], b[3 * 24], lse_a[3] = {1, -INFINITY, 40}, lse_b[3] = {2, 5, -INFINITY};
    for (int i = 0; i < 72; i++) {
        a[i] = i >= 24 && i < 48 ? 0.0f : (float)i;
        b[i] = i >= 48 ? 0.0f : 100 - (float)i;
    }
    kernels->merge_states(a, lse_a, b, lse_b, 3, 24);
    const double wa = exp(1.0), wb = exp(2.0);
    for (int i = 0; i < 24; i++) {
        ck_assert_double_eq_tol((double)a[i], (i * wa + (100 - i) * wb) / (wa + wb), 1e-4);
        ck_assert(a[24 + i] == b[24 + i] && a[48 + i] == (float)(48 + i));
    }
    ck_assert_double_eq_tol((double)lse_a[0], log(wa + wb), 1e-6);
    ck_assert(lse_a[1] == 5 && lse_a[2] == 40);
}
END_TEST

START_TEST(table_lists_and_finds)
{
    ck_assert_ptr_null(pkvi_kernel_find("sse9"));
    ck_assert_ptr_nonnull(pkvi_kernel_find("generic"));
    ck_assert_ptr_eq(pkvi_kernel_find(NULL), pkvi_kernel_at(0, 1));
    uint32_t n = 0;
    for (const pkvi_kernels *k; (k = pkvi_kernel_at(n, 1)) != NULL; n++) {
        ck_assert_ptr_eq(pkvi_kernel_find(k->name), k);
        ck_assert_uint_eq(k->features & ~pkvi_cpu_features(), 0);
    }
    ck_assert_ptr_null(pkvi_kernel_at(n, 1));
    ck_assert_str_eq(pkvi_kernel_at(n - 1, 1)->name, "generic");
}
END_TEST

#if defined(__x86_64__)
/* A row must not be chosen that the CPU, or the OS, cannot run: asked of the CPU itself. */
START_TEST(features_are_what_cpuid_says)
{
    const uint32_t in_c = bit_FMA | bit_F16C | bit_AVX | bit_OSXSAVE;
    const uint32_t in_b = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    uint32_t a, b, c, d, low, high, want = 0;
    if (__get_cpuid(1, &a, &b, &c, &d) && (c & in_c) == in_c) {
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        if ((low & 0x6) == 0x6 && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX2)) {
            want |= PKVI_CPU_AVX2;
            if ((low & 0xe6) == 0xe6 && (b & in_b) == in_b) want |= PKVI_CPU_AVX512;
            if ((want & PKVI_CPU_AVX512) && a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) &&
                (a & 1u << 5))
                want |= PKVI_CPU_AVX512BF16;
        }
    }
    ck_assert_uint_eq(pkvi_cpu_features(), want);
}
END_TEST
#endif

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("kernel store");
    TCase *tests = tcase_create("rows");
    const int n = (int)rows_usable();
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, layout_places_every_element_once);
    tcase_add_test(tests, layout_rejects_and_tags);
    tcase_add_test(tests, table_lists_and_finds);
#if defined(__x86_64__)
    tcase_add_test(tests, features_are_what_cpuid_says);
#endif
    tcase_add_loop_test(tests, rows_go_in_and_out, 0, n);
    tcase_add_loop_test(tests, digests_and_scores, 0, n);
    tcase_add_loop_test(tests, merged_states, 0, n);
    tcase_add_loop_test(tests, finishing, 0, n);
    tcase_add_loop_test(tests, normalised_states_merge, 0, n);
    suite_add_tcase(suite, tests);
    return suite;
}
