/* pkv_write, pkv_attend and plans through the public interface, against the naive model. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attn_case.h"
#include "random.h"
#include "suite.h"

#define COUNT(x) (sizeof(x) / sizeof *(x))

static ac_shape base_shape(void)
{
    return (ac_shape){.page_tokens = 16,
                      .n_layers = 2,
                      .kv_heads = 2,
                      .q_heads = 8,
                      .dim_k = 64,
                      .dim_v = 64,
                      .dtype = PKV_DTYPE_F16};
}

static uint64_t *contents(uint32_t n, uint64_t *random)
{
    uint64_t *c = malloc(n * sizeof *c);
    for (uint32_t i = 0; i < n; i++)
        c[i] = pkvt_random(random);
    return c;
}

static pkv_plan *make_plan(ac_case *c, const pkv_plan_options *options)
{
    pkv_plan *plan = NULL;
    ck_assert_int_eq(pkv_plan_create(c->cache, options, &plan), PKV_OK);
    return plan;
}

/* One sequence of `length` tokens and a step of `n` more, all rows checked (or `rows` of them). */
static void check_step(const ac_shape *shape, uint32_t length, uint32_t n, const ac_run *run,
                       uint32_t rows)
{
    uint64_t random = 42 + length * 1000u + n;
    ac_case *c = ac_open(shape);
    pkv_plan_options options = ac_options(c);
    pkv_plan *plan = make_plan(c, &options);
    ac_create(c, 0);
    ac_fill(c, 0, length, 700, &random);
    uint64_t *content = contents(n, &random);
    ac_entry entry = {.seq = 0, .n = n, .content = content};
    ac_result result = ac_step(c, plan, &entry, 1, run);
    ac_check(c, &entry, 1, run, &result, rows, &random);
    ac_result_free(&result);
    free(content);
    pkv_plan_destroy(plan);
    ac_close(c);
}

START_TEST(decode_lengths)
{
    static const uint32_t lengths[] = {0, 1, 15, 16, 17, 255, 511, 512, 513, 1023, 1024, 1300};
    ac_shape shape = base_shape();
    ac_run run = {.nth = 1};
    for (size_t i = 0; i < COUNT(lengths); i++)
        check_step(&shape, lengths[i], 1, &run, 6);
}
END_TEST

START_TEST(prefill)
{
    ac_shape shape = base_shape();
    ac_run run = {.nth = 3, .order_seed = 5};
    check_step(&shape, 0, 1, &run, 0);
    check_step(&shape, 0, 37, &run, 40);
    check_step(&shape, 0, 700, &run, 40);
    check_step(&shape, 500, 40, &run, 60);
    check_step(&shape, 1111, 130, &run, 40);
}
END_TEST

START_TEST(page_sizes)
{
    static const uint32_t pages[] = {8, 16, 32, 64, 128};
    ac_shape shape = base_shape();
    ac_run run = {.nth = 2};
    for (size_t i = 0; i < COUNT(pages); i++) {
        shape.page_tokens = pages[i];
        check_step(&shape, 530, 3, &run, 20);
    }
}
END_TEST

START_TEST(types)
{
    static const pkv_dtype all[] = {PKV_DTYPE_F32, PKV_DTYPE_F16, PKV_DTYPE_BF16};
    ac_shape shape = base_shape();
    for (size_t cache = 0; cache < 3; cache++)
        for (size_t in = 0; in < 3; in++)
            for (size_t out = 0; out < 3; out++) {
                shape.dtype = all[cache];
                ac_run run = {.nth = 2, .in = all[in], .out = all[out], .padded = (in + out) % 2};
                check_step(&shape, 77, 5, &run, 20);
            }
}
END_TEST

START_TEST(groups_and_dims)
{
    static const uint32_t groups[] = {1, 2, 3, 5, 6, 7, 8, 12, 16};
    static const uint32_t dims[][2] = {{64, 64},   {80, 80},   {96, 96},   {112, 112}, {128, 128},
                                       {192, 128}, {256, 256}, {576, 512}, {8, 8},     {40, 72}};
    ac_run run = {.nth = 3};
    for (size_t g = 0; g < COUNT(groups); g++) {
        ac_shape shape = base_shape();
        shape.n_layers = 1;
        shape.kv_heads = 1 + (uint32_t)g % 3;
        shape.q_heads = shape.kv_heads * groups[g];
        shape.dim_k = dims[g % COUNT(dims)][0];
        shape.dim_v = dims[g % COUNT(dims)][1];
        check_step(&shape, 600, 2, &run, 12);
    }
    for (size_t d = 0; d < COUNT(dims); d++) {
        ac_shape shape = base_shape();
        shape.n_layers = 1;
        shape.dim_k = dims[d][0];
        shape.dim_v = dims[d][1];
        check_step(&shape, 520, 1, &run, 4);
    }
}
END_TEST

START_TEST(windows)
{
    static const uint32_t sizes[] = {1, 7, 16, 17, 100, 512, 600};
    ac_run run = {.nth = 2};
    for (size_t i = 0; i < COUNT(sizes); i++) {
        ac_shape shape = base_shape();
        shape.window = sizes[i];
        check_step(&shape, 1100, 1, &run, 8);
        check_step(&shape, 555, 30, &run, 30);
    }
}
END_TEST

START_TEST(logit_options)
{
    for (int i = 0; i < 8; i++) {
        ac_shape shape = base_shape();
        shape.softcap = i & 1 ? 4.0f : 0;
        shape.alibi = i & 2;
        shape.sinks = i & 4;
        shape.scale = i == 7 ? 0.3f : 0.0f;
        ac_run run = {.nth = 2};
        check_step(&shape, 600, 9, &run, 20);
    }
}
END_TEST

/* A tree of five nodes, 0 -> {1 -> {3}, 2 -> {4}}, across a leaf boundary and with a window. */
START_TEST(trees)
{
    static const uint8_t mask[] = {0x01, 0x03, 0x05, 0x0b, 0x15};
    static const uint32_t depth[] = {0, 1, 1, 2, 2};
    static const uint32_t lengths[] = {0, 3, 100, 509, 511, 512, 1022};
    for (size_t i = 0; i < COUNT(lengths); i++)
        for (int window = 0; window < 3; window++) {
            ac_shape shape = base_shape();
            shape.window = window ? 2 * (uint32_t)window : 0;
            shape.alibi = i % 2;
            uint64_t random = i;
            ac_case *c = ac_open(&shape);
            pkv_plan_options options = ac_options(c);
            pkv_plan *plan = make_plan(c, &options);
            ac_create(c, 0);
            ac_fill(c, 0, lengths[i], 512, &random);
            uint64_t *content = contents(5, &random);
            ac_entry entry = {.seq = 0, .n = 5, .content = content, .mask = mask, .depth = depth};
            ac_run run = {.nth = 2, .order_seed = 3};
            ac_result result = ac_step(c, plan, &entry, 1, &run);
            ac_check(c, &entry, 1, &run, &result, 0, &random);
            ac_result_free(&result);
            /* The next build has no tree any more. */
            entry.mask = NULL;
            entry.depth = NULL;
            result = ac_step(c, plan, &entry, 1, &run);
            ac_check(c, &entry, 1, &run, &result, 20, &random);
            ac_result_free(&result);
            free(content);
            pkv_plan_destroy(plan);
            ac_close(c);
        }
}
END_TEST

/* Decoding token by token and in chunks gives the rows of one big prefill, bit for bit: earlier
 * rows never change. */
START_TEST(steps_equal_recomputation)
{
    ac_shape shape = base_shape();
    shape.kv_heads = 1;
    shape.q_heads = 4;
    enum { N = 1100 };
    uint64_t random = 9;
    uint64_t *content = contents(N, &random);
    ac_case *c = ac_open(&shape);
    pkv_plan_options options = ac_options(c);
    pkv_plan *plan = make_plan(c, &options);
    ac_create(c, 0);
    ac_create(c, 1);
    ac_run run = {.nth = 2};
    ac_entry all = {.seq = 0, .n = N, .content = content};
    ac_result full = ac_step(c, plan, &all, 1, &run);
    ac_check(c, &all, 1, &run, &full, 20, &random);
    size_t row = (size_t)shape.q_heads * shape.dim_v;
    run.commit = true;
    for (uint32_t at = 0, n; at < N; at += n) {
        n = at < 300 ? 1 : at < 600 ? 7 : at < 610 ? 1 : 64;
        if (n > N - at) n = N - at;
        run.nth = 1 + at % 3;
        ac_entry entry = {.seq = 1, .n = n, .content = content + at};
        ac_result step = ac_step(c, plan, &entry, 1, &run);
        for (uint32_t layer = 0; layer < shape.n_layers; layer++) {
            const float *a = full.out + ((size_t)layer * N + at) * row;
            const float *b = step.out + (size_t)layer * n * row;
            ck_assert_msg(memcmp(a, b, n * row * sizeof *a) == 0, "rows from %u on differ", at);
            ck_assert_mem_eq(full.lse + ((size_t)layer * N + at) * shape.q_heads,
                             step.lse + (size_t)layer * n * shape.q_heads,
                             n * shape.q_heads * sizeof(float));
        }
        ac_result_free(&step);
    }
    ac_result_free(&full);
    free(content);
    pkv_plan_destroy(plan);
    ac_close(c);
}
END_TEST

/* The reference over the stored cache agrees with the naive model far beyond float. */
START_TEST(reference)
{
    for (int i = 0; i < 4; i++) {
        ac_shape shape = base_shape();
        shape.dtype = i == 3 ? PKV_DTYPE_BF16 : PKV_DTYPE_F16;
        shape.window = i == 1 ? 50 : 0;
        shape.alibi = shape.sinks = i == 2;
        shape.softcap = i == 2 ? 2.0f : 0;
        uint64_t random = 4;
        ac_case *c = ac_open(&shape);
        pkv_plan_options options = ac_options(c);
        pkv_plan *plan = make_plan(c, &options);
        ac_create(c, 0);
        ac_fill(c, 0, 100, 64, &random);
        uint64_t *content = contents(3, &random);
        ac_entry entry = {.seq = 0, .n = 3, .content = content};
        pkv_batch batch = ac_reserve(c, plan, &entry, 1);
        float *rows = malloc(3 * 8 * 64 * sizeof *rows);
        double *out = malloc(3 * 8 * 64 * sizeof *out), lse[24];
        for (uint32_t layer = 0; layer < 2; layer++) {
            const char kinds[] = {'k', 'v', 'q'};
            for (int kind = 0; kind < 3; kind++) {
                uint32_t heads = kind == 2 ? 8 : 2;
                float *at = rows;
                for (uint32_t t = 0; t < 3; t++)
                    for (uint32_t h = 0; h < heads; h++)
                        for (uint32_t d = 0; d < 64; d++)
                            *at++ = ac_value(content[t], kinds[kind], layer, h, d);
                pkv_rows r = {.data = rows,
                              .dtype = PKV_DTYPE_F32,
                              .heads = heads,
                              .dim = 64,
                              .token_stride = (ptrdiff_t)(heads * 64 * 4),
                              .head_stride = 64 * 4};
                static float keys[3 * 2 * 64];
                if (kind == 0) memcpy(keys, rows, sizeof keys);
                if (kind == 1) {
                    pkv_rows k = r;
                    k.data = keys;
                    ck_assert_int_eq(pkv_write(plan, layer, &k, &r, 0, 1), PKV_OK);
                }
                if (kind == 2)
                    ck_assert_int_eq(pkv_attend_reference(plan, layer, &r, out, lse), PKV_OK);
            }
            ac_run run = {0};
            double expect[64], weights[64], expect_lse;
            for (uint32_t t = 0; t < 3; t++)
                for (uint32_t h = 0; h < 8; h++) {
                    ac_naive(c, &entry, t, layer, h, &run, expect, &expect_lse, weights);
                    for (uint32_t d = 0; d < 64; d++)
                        ck_assert_double_eq_tol(out[(t * 8 + h) * 64 + d], expect[d],
                                                2e-9 * weights[d]);
                    ck_assert_double_eq_tol(lse[t * 8 + h], expect_lse, 1e-8);
                }
        }
        ck_assert_int_eq(pkv_batch_abort(batch), PKV_OK);
        free(rows);
        free(out);
        free(content);
        pkv_plan_destroy(plan);
        ac_close(c);
    }
}
END_TEST

/* ---- cascade -------------------------------------------------------------------------------- */

START_TEST(cascade_is_bitwise_the_same)
{
    for (int variant = 0; variant < 3; variant++) {
        ac_shape shape = base_shape();
        shape.q_heads = variant == 1 ? 14 : 8;
        shape.dtype = variant == 2 ? PKV_DTYPE_BF16 : PKV_DTYPE_F16;
        uint64_t random = 17 + (uint64_t)variant;
        ac_case *c = ac_open(&shape);
        pkv_plan_options options = ac_options(c);
        options.cascade = 2;
        pkv_plan *on = make_plan(c, &options);
        options.cascade = 0;
        pkv_plan *off = make_plan(c, &options);
        /* 0: the root; 1..40: forks; 41..50: forks of fork 5 after it grew; 51: a stranger. */
        ac_create(c, 0);
        ac_fill(c, 0, variant == 0 ? 3400 : 1100, 512, &random);
        for (uint32_t i = 1; i <= 40; i++) {
            ac_fork(c, 0, i);
            ac_fill(c, i, i == 5 ? 1000 : pkvt_below(&random, 60), 500, &random);
        }
        for (uint32_t i = 41; i <= 50; i++) {
            ac_fork(c, 5, i);
            ac_fill(c, i, pkvt_below(&random, 700), 500, &random);
        }
        ac_create(c, 51);
        ac_fill(c, 51, 1300, 512, &random);
        ac_entry entries[52];
        for (uint32_t i = 0; i < 52; i++)
            entries[i] = (ac_entry){.seq = i, .n = 1 + i % 3, .content = contents(3, &random)};
        ac_run run = {.nth = 1};
        ac_result plain = ac_step(c, off, entries, 52, &run);
        ac_check(c, entries, 52, &run, &plain, 2, &random);
        size_t n = (size_t)shape.n_layers * plain.n_rows * shape.q_heads;
        for (uint32_t nth = 1; nth <= 13; nth += 3) {
            run.nth = nth;
            run.order_seed = nth * 7;
            ac_result shared = ac_step(c, on, entries, 52, &run);
            ck_assert_msg(memcmp(plain.lse, shared.lse, n * sizeof(float)) == 0, "nth %u", nth);
            ck_assert_msg(memcmp(plain.out, shared.out, n * shape.dim_v * sizeof(float)) == 0,
                          "nth %u", nth);
            ac_result_free(&shared);
        }
        ac_result_free(&plain);
        for (uint32_t i = 0; i < 52; i++)
            free((void *)(uintptr_t)entries[i].content);
        pkv_plan_destroy(on);
        pkv_plan_destroy(off);
        ac_close(c);
    }
}
END_TEST

/* Pages in the host's own buffer, copies made by the host: the same bits as in the library's pages.
 */
START_TEST(external_buffers)
{
    ac_run run = {.nth = 2};
    ac_result results[2];
    ac_shape shape = base_shape();
    for (int external = 0; external < 2; external++) {
        shape.external = external ? (size_t)8 << 20 : 0;
        uint64_t random = 23;
        ac_case *c = ac_open(&shape);
        pkv_plan_options options = ac_options(c);
        pkv_plan *plan = make_plan(c, &options);
        ac_create(c, 0);
        ac_fill(c, 0, 600, 500, &random);
        for (uint32_t i = 1; i <= 3; i++) {
            ac_fork(c, 0, i); /* in the middle of a page */
            ac_fill(c, i, 10 * i, 7, &random);
        }
        ac_destroy(c, 0);
        ac_entry entries[3];
        for (uint32_t i = 0; i < 3; i++)
            entries[i] = (ac_entry){.seq = i + 1, .n = 2, .content = contents(2, &random)};
        results[external] = ac_step(c, plan, entries, 3, &run);
        ac_check(c, entries, 3, &run, &results[external], 0, &random);
        for (uint32_t i = 0; i < 3; i++)
            free((void *)(uintptr_t)entries[i].content);
        pkv_plan_destroy(plan);
        ac_close(c);
    }
    size_t n = (size_t)shape.n_layers * results[0].n_rows * shape.q_heads;
    ck_assert_int_eq(memcmp(results[0].lse, results[1].lse, n * sizeof(float)), 0);
    ck_assert_int_eq(memcmp(results[0].out, results[1].out, n * shape.dim_v * sizeof(float)), 0);
    ac_result_free(&results[0]);
    ac_result_free(&results[1]);
}
END_TEST

/* ---- mass ----------------------------------------------------------------------------------- */

START_TEST(mass)
{
    for (int variant = 0; variant < 4; variant++) {
        ac_shape shape = base_shape();
        shape.window = variant == 1 ? 300 : 0;
        shape.sinks = variant == 2;
        uint32_t new_tokens = variant == 3 ? 90 : 2;
        uint64_t random = 3;
        ac_case *c = ac_open(&shape);
        pkv_plan_options options = ac_options(c);
        options.mass = 1;
        pkv_plan *plan = make_plan(c, &options);
        ac_create(c, 0);
        ac_fill(c, 0, 1200, 512, &random);
        uint64_t *content = contents(new_tokens, &random);
        ac_entry entry = {.seq = 0, .n = new_tokens, .content = content};
        pkv_batch batch = ac_reserve(c, plan, &entry, 1);
        size_t kv = (size_t)new_tokens * 2 * 64, qn = (size_t)new_tokens * 8 * 64;
        float *k = malloc(kv * sizeof *k), *q = malloc(qn * sizeof *q),
              *out = malloc(qn * sizeof *q);
        float *lse = malloc(new_tokens * 8 * sizeof *lse);
        for (size_t i = 0; i < kv; i++)
            k[i] = ac_value(i, 'k', 0, 0, 0);
        for (size_t i = 0; i < qn; i++)
            q[i] = 3 * ac_value(i, 'q', 0, 0, 0);
        pkv_rows kr = {.data = k,
                       .dtype = PKV_DTYPE_F32,
                       .heads = 2,
                       .dim = 64,
                       .token_stride = 2 * 64 * 4,
                       .head_stride = 64 * 4};
        pkv_rows qr = {.data = q,
                       .dtype = PKV_DTYPE_F32,
                       .heads = 8,
                       .dim = 64,
                       .token_stride = 8 * 64 * 4,
                       .head_stride = 64 * 4};
        pkv_rows_out outr = {.data = out,
                             .dtype = PKV_DTYPE_F32,
                             .heads = 8,
                             .dim = 64,
                             .token_stride = 8 * 64 * 4,
                             .head_stride = 64 * 4};
        for (uint32_t nth = 1; nth < 6; nth += 2) {
            for (uint32_t i = 0; i < nth; i++)
                ck_assert_int_eq(pkv_write(plan, 1, &kr, &kr, i, nth), PKV_OK);
            for (uint32_t i = 0; i < nth; i++)
                ck_assert_int_eq(pkv_attend(plan, 1, &qr, &outr, lse, nth - 1 - i, nth), PKV_OK);
            pkv_seq_info info = {.struct_size = sizeof info};
            ck_assert_int_eq(pkv_seq_get_info(c->seqs[0].handle, 0, &info), PKV_OK);
            static float got[400];
            uint32_t n = info.resident_pages;
            ck_assert_uint_le(n, 400);
            for (uint32_t h = 0; h < 2; h++) {
                ck_assert_int_eq(pkv_plan_mass(plan, 1, 0, h, got, n), PKV_OK);
                double sum = 0, expect = 0;
                for (uint32_t p = 0; p < n; p++)
                    sum += (double)got[p];
                for (uint32_t r = 0; r < new_tokens; r++)
                    for (uint32_t g = 0; g < 4; g++) {
                        double part = 1;
                        if (c->sinks)
                            part -= exp((double)c->sinks[8 + h * 4 + g] -
                                        (double)lse[r * 8 + h * 4 + g]);
                        expect += part;
                    }
                ck_assert_double_eq_tol(sum, expect, 1e-4 * expect);
            }
            ck_assert_int_eq(pkv_plan_mass(plan, 1, 0, 0, got, n + 1), PKV_EINVAL);
            ck_assert_int_eq(pkv_plan_mass(plan, 1, 1, 0, got, n), PKV_EINVAL);
            ck_assert_int_eq(pkv_plan_mass(plan, 1, 0, 2, got, n), PKV_EINVAL);
        }
        ck_assert_int_eq(pkv_batch_abort(batch), PKV_OK);
        free(k);
        free(q);
        free(out);
        free(lse);
        free(content);
        pkv_plan_destroy(plan);
        ac_close(c);
    }
}
END_TEST

/* ---- reading back --------------------------------------------------------------------------- */

START_TEST(read_back)
{
    static const pkv_dtype all[] = {PKV_DTYPE_F32, PKV_DTYPE_F16, PKV_DTYPE_BF16};
    for (size_t i = 0; i < 3; i++) {
        ac_shape shape = base_shape();
        shape.dtype = all[i];
        shape.dim_v = 40;
        uint64_t random = 2;
        ac_case *c = ac_open(&shape);
        ac_create(c, 0);
        ac_fill(c, 0, 333, 50, &random);
        static float k[333 * 2 * 64], v[333 * 2 * 40];
        pkv_rows_out kr = {.data = k,
                           .dtype = PKV_DTYPE_F32,
                           .heads = 2,
                           .dim = 64,
                           .token_stride = 2 * 64 * 4,
                           .head_stride = 64 * 4};
        pkv_rows_out vr = {.data = v,
                           .dtype = PKV_DTYPE_F32,
                           .heads = 2,
                           .dim = 40,
                           .token_stride = 2 * 40 * 4,
                           .head_stride = 40 * 4};
        for (uint32_t first = 0; first < 333; first += 83) {
            uint32_t n = 333 - first;
            ck_assert_int_eq(pkv_read(c->seqs[0].handle, 1, first, n, &kr, &vr), PKV_OK);
            for (uint32_t t = 0; t < n; t++)
                for (uint32_t h = 0; h < 2; h++) {
                    uint64_t content = c->seqs[0].content[first + t];
                    for (uint32_t d = 0; d < 64; d++)
                        ck_assert_float_eq(k[(t * 2 + h) * 64 + d],
                                           ac_round(ac_value(content, 'k', 1, h, d), all[i]));
                    for (uint32_t d = 0; d < 40; d++)
                        ck_assert_float_eq(v[(t * 2 + h) * 40 + d],
                                           ac_round(ac_value(content, 'v', 1, h, d), all[i]));
                }
        }
        ck_assert_int_eq(pkv_read(c->seqs[0].handle, 1, 0, 334, &kr, &vr), PKV_EINVAL);
        ck_assert_int_eq(pkv_read(c->seqs[0].handle, 2, 0, 1, &kr, &vr), PKV_EINVAL);
        ck_assert_int_eq(pkv_read(c->seqs[0].handle, 1, 0, 1, NULL, NULL), PKV_EINVAL);
        ck_assert_int_eq(pkv_read(c->seqs[0].handle, 1, 333, 0, &kr, NULL), PKV_OK);
        kr.heads = 3;
        ck_assert_int_eq(pkv_read(c->seqs[0].handle, 1, 0, 1, &kr, &vr), PKV_EINVAL);
        ac_close(c);
    }
}
END_TEST

START_TEST(pack_and_unpack)
{
    ac_shape shape = base_shape();
    uint64_t random = 2;
    ac_case *c = ac_open(&shape);
    ac_create(c, 0);
    ac_fill(c, 0, 16, 16, &random);
    pkv_page page;
    ck_assert_int_eq(pkv_seq_pages(c->seqs[0].handle, 0, 0, 1, &page), PKV_OK);
    void *part;
    ck_assert_int_eq(pkv_page_address(c->cache, 0, page, 1, &part), PKV_OK);
    enum { TOKENS = 16, HEADS = 2, DIM = 64, ELEMENTS = 2 * TOKENS * HEADS * DIM };
    static uint16_t nhd[ELEMENTS], hnd[ELEMENTS], again[ELEMENTS];
    ck_assert_int_eq(pkv_page_unpack(c->cache, 0, part, PKV_LAYOUT_NHD, nhd, sizeof nhd), PKV_OK);
    ck_assert_int_eq(pkv_page_unpack(c->cache, 0, part, PKV_LAYOUT_HND, hnd, sizeof hnd), PKV_OK);
    static float k[TOKENS * HEADS * DIM];
    pkv_rows_out kr = {.data = k,
                       .dtype = PKV_DTYPE_F32,
                       .heads = HEADS,
                       .dim = DIM,
                       .token_stride = HEADS * DIM * 4,
                       .head_stride = DIM * 4};
    ck_assert_int_eq(pkv_read(c->seqs[0].handle, 1, 0, TOKENS, &kr, NULL), PKV_OK);
    for (int kv = 0; kv < 2; kv++)
        for (int t = 0; t < TOKENS; t++)
            for (int h = 0; h < HEADS; h++)
                for (int d = 0; d < DIM; d++)
                    ck_assert_uint_eq(nhd[((kv * TOKENS + t) * HEADS + h) * DIM + d],
                                      hnd[((kv * HEADS + h) * TOKENS + t) * DIM + d]);
    for (int i = 0; i < TOKENS * HEADS * DIM; i++) {
        double m = ldexp(1024 + (nhd[i] & 1023), (nhd[i] >> 10 & 31) - 25);
        if ((nhd[i] >> 10 & 31) == 0) m = ldexp(nhd[i] & 1023, -24);
        ck_assert_double_eq(nhd[i] & 0x8000 ? -m : m, (double)k[i]);
    }
    for (int i = 0; i < ELEMENTS; i++)
        hnd[i] = (uint16_t)(i * 7 & 0x3fff);
    ck_assert_int_eq(pkv_page_pack(c->cache, 0, part, PKV_LAYOUT_HND, hnd, sizeof hnd), PKV_OK);
    ck_assert_int_eq(pkv_page_unpack(c->cache, 0, part, PKV_LAYOUT_HND, again, sizeof again),
                     PKV_OK);
    ck_assert_mem_eq(hnd, again, sizeof hnd);

    uint64_t tag, other;
    ck_assert_int_eq(pkv_layout_tag(c->cache, 0, &tag), PKV_OK);
    shape.page_tokens = 32;
    ac_case *d = ac_open(&shape);
    ck_assert_int_eq(pkv_layout_tag(d->cache, 0, &other), PKV_OK);
    ck_assert_uint_ne(tag, other);
    ac_close(d);
    ck_assert_int_eq(pkv_layout_tag(c->cache, 1, &tag), PKV_EINVAL);
    ck_assert_int_eq(pkv_layout_tag(c->cache, 0, NULL), PKV_EINVAL);
    ck_assert_int_eq(pkv_page_unpack(c->cache, 0, part, 3, nhd, sizeof nhd), PKV_EINVAL);
    ck_assert_int_eq(pkv_page_unpack(c->cache, 0, part, 1, nhd, sizeof nhd - 2), PKV_EINVAL);
    ck_assert_int_eq(pkv_page_unpack(c->cache, 1, part, 1, nhd, sizeof nhd), PKV_EINVAL);
    ck_assert_int_eq(pkv_page_pack(c->cache, 0, NULL, 1, nhd, sizeof nhd), PKV_EINVAL);
    ac_close(c);
}
END_TEST

START_TEST(merging_states)
{
    float a[] = {1, 2, 3, 4}, b[] = {5, 6, 7, 8}, la[] = {0, -INFINITY}, lb[] = {0, 1};
    ck_assert_int_eq(pkv_merge_states(a, la, b, lb, 2, 2), PKV_OK);
    ck_assert_float_eq_tol(a[0], 3, 1e-6f);
    ck_assert_float_eq_tol(a[1], 4, 1e-6f);
    ck_assert_float_eq_tol(la[0], (float)log(2), 1e-6f);
    ck_assert_float_eq_tol(a[2], 7, 1e-6f);
    ck_assert_float_eq_tol(la[1], 1, 1e-6f);
    ck_assert_int_eq(pkv_merge_states(NULL, la, b, lb, 2, 2), PKV_EINVAL);
    ck_assert_int_eq(pkv_merge_states(a, la, b, lb, 2, 0), PKV_EINVAL);
    ck_assert_int_eq(pkv_merge_states(a, la, b, lb, SIZE_MAX / 8, 4), PKV_ERANGE);
    ck_assert_int_eq(pkv_merge_states(NULL, NULL, NULL, NULL, 0, 4), PKV_OK);
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("attention");
    TCase *tc = tcase_create("attention");
    tcase_set_timeout(tc, 240);
    tcase_add_test(tc, decode_lengths);
    tcase_add_test(tc, prefill);
    tcase_add_test(tc, page_sizes);
    tcase_add_test(tc, types);
    tcase_add_test(tc, groups_and_dims);
    tcase_add_test(tc, windows);
    tcase_add_test(tc, logit_options);
    tcase_add_test(tc, trees);
    tcase_add_test(tc, steps_equal_recomputation);
    tcase_add_test(tc, reference);
    tcase_add_test(tc, cascade_is_bitwise_the_same);
    tcase_add_test(tc, external_buffers);
    tcase_add_test(tc, mass);
    tcase_add_test(tc, read_back);
    tcase_add_test(tc, pack_and_unpack);
    tcase_add_test(tc, merging_states);
    suite_add_tcase(suite, tc);
    return suite;
}
