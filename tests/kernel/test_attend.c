/* Attention of every kernel row against the double reference. */
#include "shape.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "suite.h"

static const uint32_t row_counts[] = {1, 2, 3, 5, 6, 7, 8, 12, 16, 17, 40};

static const pkvi_kernels *row_at(int i)
{
    return pkvi_kernel_at((uint32_t)i, 1);
}

static void check_shape(const pkvi_kernels *kernels, struct shape shape, uint64_t seed)
{
    struct rng rng = {seed * 2654435761u + 1};
    /* A plain format and two of the others, in turn. */
    const uint64_t mixed = N_FORMATS - N_PLAIN;
    const uint64_t turn[3] = {seed % N_PLAIN, N_PLAIN + seed % mixed, N_PLAIN + (seed + 3) % mixed};
    for (int d = 0; d < 3; d++) {
        shape.format = formats[turn[d]];
        struct problem *p = problem_new(kernels, &shape, &rng);
        problem_check(p, kernels, NULL);
        problem_free(p);
    }
}

START_TEST(every_group_size_and_page_size)
{
    const pkvi_kernels *kernels = row_at(_i);
    for (size_t i = 0; i < sizeof row_counts / sizeof *row_counts; i++)
        for (size_t j = 0; j < N_PAGE_SIZES; j++)
            check_shape(kernels,
                        (struct shape){.page_tokens = page_sizes[j],
                                       .heads = 2,
                                       .dim_k = 64,
                                       .rows = row_counts[i],
                                       .tokens = 131},
                        i * 10 + j);
}
END_TEST

START_TEST(every_head_dim)
{
    const uint32_t dims[] = {8, 40, 64, 80, 96, 112, 128, 192, 256, 576};
    const pkvi_kernels *kernels = row_at(_i);
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
        for (uint32_t rows = 1; rows <= 16; rows += rows == 1 ? 6 : 9)
            for (uint32_t P = 8; P <= 16; P *= 2)
                check_shape(kernels,
                            (struct shape){.page_tokens = P,
                                           .heads = 2,
                                           .dim_k = dims[i],
                                           .dim_v = dims[(i + rows) % 10],
                                           .rows = rows,
                                           .tokens = 75},
                            i);
}
END_TEST

/* Around a page, a group of 64 and a leaf of 512. */
START_TEST(every_length)
{
    const pkvi_kernels *kernels = row_at(_i);
    for (size_t j = 0; j < N_PAGE_SIZES; j++) {
        const uint32_t P = page_sizes[j];
        const uint32_t lengths[] = {1, 2, P - 1, P, P + 1, 63, 65, 127, 511, 512, 513};
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
            check_shape(kernels,
                        (struct shape){.page_tokens = P,
                                       .heads = 2,
                                       .dim_k = 16,
                                       .rows = 3,
                                       .tokens = lengths[i],
                                       .leaf_phase = (uint32_t)(i * 7 % 2) * 256},
                        i);
    }
}
END_TEST

/* Windows that start and end anywhere, differing per row, some empty. */
static void ragged_windows(struct problem *p, struct rng *rng)
{
    const uint32_t n = p->shape.tokens;
    for (uint32_t r = 0; r < p->shape.rows; r++) {
        p->lo[r] = rng_below(rng, n);
        p->hi[r] = p->lo[r] + rng_below(rng, n - p->lo[r] + 1);
    }
}

START_TEST(windows_and_empty_rows)
{
    const pkvi_kernels *kernels = row_at(_i);
    struct rng rng = {77};
    for (int i = 0; i < 33; i++) {
        struct shape shape = {.format = formats[i % N_FORMATS],
                              .page_tokens = page_sizes[i % N_PAGE_SIZES],
                              .heads = 2,
                              .dim_k = 48,
                              .rows = row_counts[i % 11],
                              .tokens = 90 + 13 * (uint32_t)i};
        struct problem *p = problem_new(kernels, &shape, &rng);
        ragged_windows(p, &rng);
        if (i % 4 == 0) p->hi[0] = p->lo[0];
        if (i % 7 == 0)
            for (uint32_t r = 0; r < shape.rows; r++)
                p->hi[r] = p->lo[r];
        problem_check(p, kernels, NULL);
        for (uint32_t r = 0; r < shape.rows; r++)
            if (p->lo[r] == p->hi[r]) {
                ck_assert(p->m[r] == -INFINITY && p->l[r] == 0);
                for (uint32_t d = 0; d < shape.dim_k; d++)
                    ck_assert(p->o[r * p->o_stride + d] == 0);
            }
        problem_free(p);
    }
}
END_TEST

START_TEST(causal_prefill)
{
    const pkvi_kernels *kernels = row_at(_i);
    struct rng rng = {5};
    for (int i = 0; i < 12; i++) {
        const uint32_t group = 1 + (uint32_t)i % 4, queries = 40 + 5 * (uint32_t)i;
        struct shape shape = {.format = formats[i % N_FORMATS],
                              .page_tokens = page_sizes[i % N_PAGE_SIZES],
                              .heads = 1,
                              .dim_k = 32,
                              .dim_v = 40,
                              .rows = group * queries,
                              .tokens = queries + 37 * (uint32_t)i};
        struct problem *p = problem_new(kernels, &shape, &rng);
        for (uint32_t r = 0; r < shape.rows; r++)
            p->hi[r] = shape.tokens - queries + r / group + 1;
        problem_check(p, kernels, NULL);
        problem_free(p);
    }
}
END_TEST

START_TEST(tree_masks)
{
    const pkvi_kernels *kernels = row_at(_i);
    struct rng rng = {91};
    for (int i = 0; i < 24; i++) {
        const uint32_t n = 1 + rng_below(&rng, 70), group = 1 + rng_below(&rng, 4);
        const uint32_t bytes = (n + 7) / 8;
        struct shape shape = {.format = formats[i % N_FORMATS],
                              .page_tokens = page_sizes[i % N_PAGE_SIZES],
                              .heads = 2,
                              .dim_k = 64,
                              .rows = n * group,
                              .tokens = n + rng_below(&rng, 600)};
        struct problem *p = problem_new(kernels, &shape, &rng);
        uint8_t *mask = calloc(n, bytes);
        ck_assert_ptr_nonnull(mask);
        for (uint32_t j = 0; j < n; j++) {
            uint8_t *row = mask + (size_t)j * bytes;
            if (j) { /* a random ancestor's view and itself */
                uint32_t parent = rng_below(&rng, j);
                memcpy(row, mask + (size_t)parent * bytes, bytes);
            }
            row[j / 8] |= (uint8_t)(1u << j % 8);
        }
        for (uint32_t r = 0; r < shape.rows; r++)
            p->tree_rows[r] = mask + (size_t)(r / group) * bytes;
        p->job.tree_slot = shape.tokens - n;
        p->job.tree_n = n;
        problem_check(p, kernels, NULL);
        problem_free(p);
        free(mask);
    }
}
END_TEST

START_TEST(softcap_alibi_sinks)
{
    const pkvi_kernels *kernels = row_at(_i);
    struct rng rng = {17};
    for (int i = 0; i < 24; i++) {
        struct shape shape = {.format = formats[i % N_FORMATS],
                              .page_tokens = page_sizes[i % N_PAGE_SIZES],
                              .heads = 2,
                              .dim_k = 64,
                              .rows = row_counts[i % 11],
                              .tokens = 200 + 40 * (uint32_t)i,
                              .q_scale = 4};
        struct problem *p = problem_new(kernels, &shape, &rng);
        float sinks[2] = {rng_normal(&rng) * 3, i % 5 ? rng_normal(&rng) : -INFINITY};
        float *slopes = malloc(2 * shape.rows * sizeof *slopes);
        int32_t *page_pos = malloc(p->job.n_pages * sizeof *page_pos);
        int32_t tree_pos[3] = {9000, 9001, 9001};
        ck_assert(slopes && page_pos);
        for (uint32_t r = 0; r < 2 * shape.rows; r++)
            slopes[r] = 0.5f / (float)(1 + r);
        for (uint32_t j = 0; j < p->job.n_pages; j++)
            page_pos[j] = (int32_t)(j * shape.page_tokens * 3);
        if (i & 1) p->job.softcap = i & 2 ? 50.0f : 3.0f;
        if (i & 2) p->job.slopes = slopes;
        if (i & 4) p->job.page_pos = page_pos;
        if (i & 8) {
            p->job.tree_pos = tree_pos;
            p->job.tree_n = 3;
            p->job.tree_slot = shape.tokens - 3;
        }
        problem_check(p, kernels, i & 1 ? sinks : NULL);
        problem_free(p);
        free(slopes);
        free(page_pos);
    }
}
END_TEST

/* Every leaf's scores lie 200 above or below the one's before; logits up to +-1e4. */
START_TEST(extreme_logits)
{
    const pkvi_kernels *kernels = row_at(_i);
    for (int i = 0; i < 11; i++) {
        struct rng rng = {3 + (uint64_t)i};
        struct shape shape = {.format = formats[i % N_FORMATS],
                              .heads = 1,
                              .dim_k = 64,
                              .rows = i & 1 ? 3 : 20,
                              .tokens = 2300};
        struct problem *p = problem_new(kernels, &shape, &rng);
        const float step = i < 6 ? -200.0f : 200.0f;
        for (uint32_t r = 0; r < shape.rows; r++)
            p->q[r * 64] = i % 4 < 2 ? 1.0f : 50.0f;
        for (uint32_t s = 0; s < shape.tokens; s++)
            problem_set_k(p, 0, s, 0, step * (float)(s / 512) + rng_normal(&rng));
        p->job.scale = 1.0f;
        p->logit_factor = 8; /* 63 small terms are added to one huge one */
        problem_check(p, kernels, NULL);
        problem_free(p);
    }
}
END_TEST

/* NaN and Inf in keys or values that a row does not see must not reach it; those it sees must. */
START_TEST(nan_confinement)
{
    const pkvi_kernels *kernels = row_at(_i);
    for (int i = 0; i < 44; i++) {
        struct rng rng = {1000 + (uint64_t)i};
        struct shape shape = {.format = formats[i % N_FORMATS],
                              .page_tokens = page_sizes[i / 4 % N_PAGE_SIZES],
                              .heads = 2,
                              .dim_k = 64,
                              .rows = i & 1 ? 4 : 24,
                              .tokens = 150};
        struct problem *p = problem_new(kernels, &shape, &rng);
        const float bad = i % 4 < 2 ? NAN : INFINITY;
        const uint32_t at = 100 + (uint32_t)i % 40;
        for (uint32_t r = 0; r < shape.rows; r++)
            p->hi[r] = 90 + 60 * (r + 1) / shape.rows;
        if (i & 1) p->lo[0] = 130;
        if (i & 1) p->hi[0] = 131;
        if (i & 4)
            problem_set_k(p, 1, at, 3, bad);
        else
            problem_set_v(p, 1, at, 5, bad);
        problem_seal(p);
        kernels->attend(&p->job);
        uint32_t clean = 0, dirty = 0;
        for (uint32_t h = 0; h < 2; h++)
            for (uint32_t r = 0; r < shape.rows; r++) {
                const bool sees = h == 1 && p->lo[r] <= at && at < p->hi[r];
                const float *o = p->o + (h * shape.rows + r) * p->o_stride;
                bool finite =
                    isfinite(p->l[h * shape.rows + r]) && isfinite(p->m[h * shape.rows + r]);
                for (uint32_t d = 0; d < 64; d++)
                    finite = finite && isfinite(o[d]);
                /* A key of Inf may give a score of -Inf, which is a weight of zero. */
                if (!sees) ck_assert_msg(finite, "row %u head %u got it", r, h);
                if (sees && !(isinf(bad) && (i & 4))) ck_assert_msg(!finite, "row %u lost it", r);
                clean += finite;
                dirty += !finite;
            }
        ck_assert_uint_gt(clean, 0);
        if (!(i & 4)) ck_assert_uint_gt(dirty, 0);
        problem_free(p);
    }
}
END_TEST

/* Everything outside what some row sees holds NaN, not only unwritten slots. */
START_TEST(poison_outside_view)
{
    const pkvi_kernels *kernels = row_at(_i);
    for (int i = 0; i < 33; i++) {
        struct rng rng = {2000 + (uint64_t)i};
        struct shape shape = {.format = formats[i % N_FORMATS],
                              .page_tokens = page_sizes[i % N_PAGE_SIZES],
                              .heads = 1,
                              .dim_k = 40,
                              .rows = row_counts[i % 11],
                              .tokens = 400};
        struct problem *p = problem_new(kernels, &shape, &rng);
        const uint32_t lo = rng_below(&rng, 300), hi = lo + 1 + rng_below(&rng, 100);
        for (uint32_t r = 0; r < shape.rows; r++) {
            p->lo[r] = lo;
            p->hi[r] = hi;
        }
        for (uint32_t s = 0; s < shape.tokens; s++) {
            if (s >= lo && s < hi) continue;
            for (uint32_t d = 0; d < 40; d++) {
                problem_set_k(p, 0, s, d, NAN);
                problem_set_v(p, 0, s, d, d & 1 ? NAN : INFINITY);
            }
        }
        problem_check(p, kernels, NULL);
        problem_free(p);
    }
}
END_TEST

static void accumulate_check(const pkvi_kernels *kernels, struct problem *p, uint32_t cut)
{
    const struct shape *s = &p->shape;
    const size_t states = (size_t)s->heads * s->rows, floats = states * p->o_stride;
    float *o = malloc(floats * sizeof *o), *m = malloc(states * sizeof *m);
    float *l = malloc(states * sizeof *l);
    ck_assert(o && m && l);
    memset(p->o, 0, floats * sizeof *o);
    kernels->attend(&p->job);
    memcpy(o, p->o, floats * sizeof *o);
    memcpy(m, p->m, states * sizeof *m);
    memcpy(l, p->l, states * sizeof *l);

    memset(p->o, 0, floats * sizeof *o);
    pkvi_attend_job job = p->job;
    job.n_pages = cut / s->page_tokens;
    for (uint32_t r = 0; r < s->rows; r++)
        p->hi[r] = cut;
    kernels->attend(&job);
    job = p->job;
    job.flags |= PKVI_JOB_ACCUMULATE;
    job.parts += cut / s->page_tokens;
    job.n_pages -= cut / s->page_tokens;
    for (uint32_t r = 0; r < s->rows; r++)
        p->hi[r] = s->tokens - cut;
    kernels->attend(&job);
    ck_assert_int_eq(memcmp(o, p->o, floats * sizeof *o), 0);
    ck_assert_int_eq(memcmp(m, p->m, states * sizeof *m), 0);
    ck_assert_int_eq(memcmp(l, p->l, states * sizeof *l), 0);
    free(o);
    free(m);
    free(l);
}

START_TEST(accumulate_is_bitwise)
{
    const pkvi_kernels *kernels = row_at(_i);
    for (int i = 0; i < 22; i++) {
        struct rng rng = {31 + (uint64_t)i};
        struct shape shape = {.format = formats[i % N_FORMATS],
                              .page_tokens = page_sizes[i % N_PAGE_SIZES],
                              .heads = 2,
                              .dim_k = 64,
                              .rows = row_counts[i % 11],
                              .tokens = 1200};
        struct problem *p = problem_new(kernels, &shape, &rng);
        accumulate_check(kernels, p, 512);
        problem_free(p);
    }
}
END_TEST

/* The same row alone, among others, and with pages elsewhere gives the same bits. */
START_TEST(row_grouping_is_bitwise)
{
    const pkvi_kernels *kernels = row_at(_i);
    for (int i = 0; i < 33; i++) {
        struct rng rng = {61 + (uint64_t)i};
        struct shape shape = {.format = formats[i % N_FORMATS],
                              .page_tokens = page_sizes[i % N_PAGE_SIZES],
                              .heads = 2,
                              .dim_k = 72,
                              .rows = row_counts[i % 11] + 1,
                              .tokens = 700};
        struct problem *p = problem_new(kernels, &shape, &rng);
        for (uint32_t r = 0; r < shape.rows; r++)
            p->hi[r] = 640 + r % 60;
        kernels->attend(&p->job);
        for (uint32_t r = 0; r < shape.rows; r += 3) {
            float o[80], m, l;
            pkvi_attend_job job = p->job;
            job.head0 = 1;
            job.n_rows = 1;
            job.q = p->q + (size_t)(shape.rows + r) * shape.dim_k;
            job.lo = p->lo + r;
            job.hi = p->hi + r;
            job.o = o;
            job.m = &m;
            job.l = &l;
            kernels->attend(&job);
            const size_t at = shape.rows + r;
            ck_assert_msg(memcmp(o, p->o + at * p->o_stride, 72 * sizeof *o) == 0 &&
                              memcmp(&m, p->m + at, sizeof m) == 0 &&
                              memcmp(&l, p->l + at, sizeof l) == 0,
                          "%s %s/%s rows %u row %u", kernels->name, pkv_dtype_name(shape.format.k),
                          pkv_dtype_name(shape.format.v), shape.rows, r);
        }
        problem_free(p);
    }
}
END_TEST

/* Per-page sums and the mass-only pass against the reference's masses. */
START_TEST(page_masses)
{
    const pkvi_kernels *kernels = row_at(_i);
    for (int i = 0; i < 16; i++) {
        struct rng rng = {500 + (uint64_t)i};
        struct shape shape = {.format = formats[i % N_FORMATS],
                              .page_tokens = page_sizes[i % N_PAGE_SIZES],
                              .heads = 2,
                              .dim_k = 64,
                              .rows = row_counts[i % 11] % 9 + 1,
                              .tokens = 1100 + (uint32_t)i,
                              .q_scale = 3};
        struct problem *p = problem_new(kernels, &shape, &rng);
        const size_t states = 2 * shape.rows, n = p->job.n_pages;
        float *sums = malloc(states * n * sizeof *sums), *lse2 = malloc(states * sizeof *lse2);
        float *mass = calloc(2 * n, sizeof *mass);
        double *ref = malloc(n * sizeof *ref), *total = calloc(2 * n, sizeof *total);
        ck_assert(sums && lse2 && mass && ref && total);
        memset(sums, 0xff, states * n * sizeof *sums);
        for (uint32_t r = 0; r < shape.rows; r++)
            p->lo[r] = 20 * r;
        p->job.page_sum = sums;
        problem_check(p, kernels, NULL);
        const double gate = 2 * problem_gate(p, kernels);
        for (size_t at = 0; at < states; at++) {
            double out[64];
            pkvi_reference_row(&p->job, (uint32_t)(at / shape.rows), (uint32_t)(at % shape.rows),
                               -(double)INFINITY, out, NULL, NULL, ref);
            for (size_t j = 0; j < n; j++) {
                const double got = (double)(sums[at * n + j] / p->l[at]);
                ck_assert_msg(fabs(got - ref[j]) <= gate, "%s page %zu: %g, not %g", kernels->name,
                              j, got, ref[j]);
                total[at / shape.rows * n + j] += ref[j];
            }
            lse2[at] = p->m[at] + log2f(p->l[at]);
        }
        p->job.page_sum = NULL;
        p->job.flags = PKVI_JOB_MASS_ONLY;
        p->job.mass_lse2 = lse2;
        p->job.mass = mass;
        kernels->attend(&p->job);
        for (size_t j = 0; j < 2 * n; j++)
            ck_assert_msg(fabs((double)mass[j] - total[j]) <= gate * shape.rows,
                          "%s %zu: %g, not %g", kernels->name, j, (double)mass[j], total[j]);
        problem_free(p);
        free(sums);
        free(lse2);
        free(mass);
        free(ref);
        free(total);
    }
}
END_TEST

/* Queries that are bf16 already may skip the low part: same result. */
START_TEST(bf16_queries)
{
    const pkvi_kernels *kernels = row_at(_i);
    for (int i = 0; i < 12; i++) {
        struct rng rng = {700 + (uint64_t)i};
        struct shape shape = {.format = formats[i % N_FORMATS],
                              .page_tokens = page_sizes[i % N_PAGE_SIZES],
                              .heads = 2,
                              .dim_k = 128,
                              .rows = row_counts[i % 11],
                              .tokens = 300};
        struct problem *p = problem_new(kernels, &shape, &rng);
        uint16_t half[128];
        for (size_t at = 0; at < 2 * shape.rows; at++) {
            kernels->convert(half, PKV_DTYPE_BF16, p->q + at * 128, PKV_DTYPE_F32, 128);
            kernels->convert(p->q + at * 128, PKV_DTYPE_F32, half, PKV_DTYPE_BF16, 128);
        }
        p->job.flags = PKVI_JOB_Q_BF16;
        problem_check(p, kernels, NULL);
        problem_free(p);
    }
}
END_TEST

/* Random everything; PKV_SEED repeats a run. */
START_TEST(random_problems)
{
    const pkvi_kernels *kernels = row_at(_i);
    const char *env = getenv("PKV_SEED");
    const uint64_t seed = env ? strtoull(env, NULL, 0) : 20240611;
    struct rng rng = {seed | 1};
    if (_i == 0) printf("PKV_SEED=%llu\n", (unsigned long long)seed);
    for (int i = 0; i < 80; i++) {
        struct shape shape = {.format = formats[rng_below(&rng, N_FORMATS)],
                              .page_tokens = page_sizes[rng_below(&rng, N_PAGE_SIZES)],
                              .heads = 1 + rng_below(&rng, 4),
                              .dim_k = 8 * (1 + rng_below(&rng, 20)),
                              .dim_v = 8 * (1 + rng_below(&rng, 20)),
                              .rows = 1 + rng_below(&rng, rng_below(&rng, 2) ? 12 : 140),
                              .tokens = 1 + rng_below(&rng, 700),
                              .leaf_phase = 256 * rng_below(&rng, 2)};
        struct problem *p = problem_new(kernels, &shape, &rng);
        const uint32_t kind = rng_below(&rng, 3);
        if (kind == 1) ragged_windows(p, &rng);
        if (kind == 2)
            for (uint32_t r = 0; r < shape.rows; r++)
                p->hi[r] = shape.tokens > shape.rows ? shape.tokens - shape.rows + r + 1
                                                     : r % shape.tokens;
        if (rng_below(&rng, 4) == 0) p->job.softcap = 20;
        problem_check(p, kernels, NULL);
        problem_free(p);
    }
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("kernel attend");
    /* The build runs the two cases as tests of their own, by name. */
    TCase *shapes = tcase_create("shapes"), *rules = tcase_create("rules");
    const int n = (int)rows_usable();
    tcase_set_timeout(shapes, 240);
    tcase_set_timeout(rules, 240);
    tcase_add_loop_test(shapes, every_group_size_and_page_size, 0, n);
    tcase_add_loop_test(shapes, every_head_dim, 0, n);
    tcase_add_loop_test(shapes, every_length, 0, n);
    tcase_add_loop_test(rules, windows_and_empty_rows, 0, n);
    tcase_add_loop_test(shapes, causal_prefill, 0, n);
    tcase_add_loop_test(rules, tree_masks, 0, n);
    tcase_add_loop_test(rules, softcap_alibi_sinks, 0, n);
    tcase_add_loop_test(rules, extreme_logits, 0, n);
    tcase_add_loop_test(rules, nan_confinement, 0, n);
    tcase_add_loop_test(rules, poison_outside_view, 0, n);
    tcase_add_loop_test(rules, accumulate_is_bitwise, 0, n);
    tcase_add_loop_test(rules, row_grouping_is_bitwise, 0, n);
    tcase_add_loop_test(rules, page_masses, 0, n);
    tcase_add_loop_test(rules, bf16_queries, 0, n);
    tcase_add_loop_test(rules, random_problems, 0, n);
    suite_add_tcase(suite, shapes);
    suite_add_tcase(suite, rules);
    return suite;
}
