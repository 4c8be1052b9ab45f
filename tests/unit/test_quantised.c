/* Quantised groups through the public interface: what rows see, whose open pages there are, and
 * what is promised about cutting prompts. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attn_case.h"
#include "random.h"
#include "suite.h"

#define COUNT(x) (sizeof(x) / sizeof *(x))

static const struct {
    pkv_dtype k, v;
} formats[] = {{PKV_DTYPE_K8, PKV_DTYPE_V8},
               {PKV_DTYPE_K8, PKV_DTYPE_V4},
               {PKV_DTYPE_K4, PKV_DTYPE_V4},
               {PKV_DTYPE_K4, PKV_DTYPE_V8},
               {PKV_DTYPE_K8, 0},
               {PKV_DTYPE_K4, 0},
               {0, PKV_DTYPE_V8},
               {0, PKV_DTYPE_V4}};

static ac_shape base_shape(size_t format)
{
    return (ac_shape){.page_tokens = 16,
                      .n_layers = 2,
                      .kv_heads = 2,
                      .q_heads = 8,
                      .dim_k = 64,
                      .dim_v = 64,
                      .dtype = PKV_DTYPE_F16,
                      .dtype_k = formats[format].k,
                      .dtype_v = formats[format].v};
}

static uint64_t *contents(uint32_t n, uint64_t *random)
{
    uint64_t *c = malloc(n * sizeof *c);
    for (uint32_t i = 0; i < n; i++)
        c[i] = pkvt_random(random);
    return c;
}

static pkv_plan *make_plan(ac_case *c)
{
    pkv_plan_options options = ac_options(c);
    pkv_plan *plan = NULL;
    ck_assert_int_eq(pkv_plan_create(c->cache, &options, &plan), PKV_OK);
    return plan;
}

static pkv_stats stats_of(const ac_case *c)
{
    pkv_stats stats = {.struct_size = sizeof stats};
    ck_assert_int_eq(pkv_cache_stats(c->cache, &stats), PKV_OK);
    return stats;
}

static void check_step(const ac_shape *shape, uint32_t length, uint32_t n, uint32_t chunk,
                       uint32_t rows)
{
    uint64_t random = 42 + length * 1000u + n;
    ac_case *c = ac_open(shape);
    pkv_plan *plan = make_plan(c);
    ac_create(c, 0);
    ac_fill(c, 0, length, chunk, &random);
    uint64_t *content = contents(n, &random);
    const ac_entry entry = {.seq = 0, .n = n, .content = content};
    const ac_run run = {.nth = 1 + length % 3, .order_seed = length};
    ac_result result = ac_step(c, plan, &entry, 1, &run);
    ac_check(c, &entry, 1, &run, &result, rows, &random);
    ac_result_free(&result);
    free(content);
    pkv_plan_destroy(plan);
    ac_close(c);
}

START_TEST(decode)
{
    static const uint32_t lengths[] = {0, 1, 15, 16, 17, 31, 32, 511, 512, 513, 1040};
    const ac_shape shape = base_shape((size_t)_i);
    for (size_t i = 0; i < COUNT(lengths); i++)
        check_step(&shape, lengths[i], 1, i % 2 ? 700 : 3, 6);
}
END_TEST

START_TEST(prefill)
{
    const ac_shape shape = base_shape((size_t)_i);
    check_step(&shape, 0, 37, 700, 40);
    check_step(&shape, 0, 600, 700, 40);
    check_step(&shape, 501, 40, 64, 40);
    check_step(&shape, 1111, 130, 700, 30);
}
END_TEST

START_TEST(geometries)
{
    static const uint32_t pages[] = {8, 16, 32, 64, 128};
    static const uint32_t dims[][2] = {{8, 8},     {40, 72},   {80, 96},
                                       {128, 128}, {192, 128}, {256, 256}};
    static const uint32_t groups[] = {1, 3, 4, 7, 8, 16};
    for (size_t i = 0; i < 6; i++) {
        ac_shape shape = base_shape((size_t)_i);
        shape.n_layers = 1;
        shape.page_tokens = pages[i % 5];
        shape.dim_k = dims[i][0];
        shape.dim_v = dims[i][1];
        shape.kv_heads = 1 + (uint32_t)i % 3;
        shape.q_heads = shape.kv_heads * groups[i];
        shape.dtype = i % 3 == 2 ? PKV_DTYPE_BF16 : PKV_DTYPE_F16;
        check_step(&shape, 333, 1, 700, 8);
        check_step(&shape, 300, 70, 700, 20);
    }
}
END_TEST

START_TEST(options)
{
    for (int i = 0; i < 6; i++) {
        ac_shape shape = base_shape((size_t)_i);
        shape.softcap = i & 1 ? 4.0f : 0;
        shape.alibi = i & 2;
        shape.sinks = i & 4;
        shape.window = i == 5 ? 0 : (uint32_t[]){0, 1, 7, 16, 100}[i];
        check_step(&shape, 600, 1, 700, 8);
        check_step(&shape, 555, 40, 700, 20);
    }
}
END_TEST

/* A tree of five nodes, 0 -> {1 -> {3}, 2 -> {4}}, whose nodes lie in two pages for some lengths.
 */
START_TEST(trees)
{
    static const uint8_t mask[] = {0x01, 0x03, 0x05, 0x0b, 0x15};
    static const uint32_t depth[] = {0, 1, 1, 2, 2};
    static const uint32_t lengths[] = {0, 3, 13, 15, 30, 509, 511, 512};
    for (size_t i = 0; i < COUNT(lengths); i++) {
        ac_shape shape = base_shape((size_t)_i);
        shape.alibi = i % 2;
        shape.window = i % 3 == 2 ? 4 : 0;
        uint64_t random = i;
        ac_case *c = ac_open(&shape);
        pkv_plan *plan = make_plan(c);
        ac_create(c, 0);
        ac_fill(c, 0, lengths[i], 512, &random);
        uint64_t *content = contents(5, &random);
        const ac_entry entry = {.seq = 0, .n = 5, .content = content, .mask = mask, .depth = depth};
        const ac_run run = {.nth = 2, .order_seed = 3};
        ac_result result = ac_step(c, plan, &entry, 1, &run);
        ac_check(c, &entry, 1, &run, &result, 0, &random);
        ac_result_free(&result);
        free(content);
        pkv_plan_destroy(plan);
        ac_close(c);
    }
}
END_TEST

/* However a prompt is cut, on however many threads: the same bits. */
START_TEST(cuts_do_not_show)
{
    enum { N = 700 };
    ac_shape shape = base_shape((size_t)_i);
    shape.kv_heads = 1;
    shape.q_heads = 4;
    shape.page_tokens = _i % 2 ? 8 : 32;
    uint64_t random = 9;
    uint64_t *content = contents(N, &random);
    ac_case *c = ac_open(&shape);
    pkv_plan *plan = make_plan(c);
    ac_create(c, 0);
    ac_create(c, 1);
    ac_run run = {.nth = 2};
    const ac_entry all = {.seq = 0, .n = N, .content = content};
    ac_result full = ac_step(c, plan, &all, 1, &run);
    const size_t row = (size_t)shape.q_heads * shape.dim_v;
    run.commit = true;
    for (uint32_t at = 0, n; at < N; at += n) {
        n = at < 100 ? 1 : at < 300 ? 7 : at < 310 ? 1 : 64;
        if (n > N - at) n = N - at;
        run.nth = 1 + at % 3;
        const ac_entry entry = {.seq = 1, .n = n, .content = content + at};
        ac_result step = ac_step(c, plan, &entry, 1, &run);
        for (uint32_t layer = 0; layer < shape.n_layers; layer++)
            ck_assert_msg(memcmp(full.out + ((size_t)layer * N + at) * row,
                                 step.out + (size_t)layer * n * row, n * row * sizeof(float)) == 0,
                          "rows from %u on differ", at);
        ac_result_free(&step);
    }
    ac_result_free(&full);
    free(content);
    pkv_plan_destroy(plan);
    ac_close(c);
}
END_TEST

/* ---- who holds open pages ------------------------------------------------------------------- */

START_TEST(open_pages_are_counted)
{
    const ac_shape shape = base_shape(0);
    uint64_t random = 1;
    ac_case *c = ac_open(&shape);
    ck_assert_uint_eq(stats_of(c).pages_open, 0);
    ac_create(c, 0);
    ac_fill(c, 0, 100, 33, &random); /* 6 pages and 4 tokens */
    ck_assert_uint_eq(stats_of(c).pages_open, 1);
    ck_assert_uint_gt(stats_of(c).bytes_open, 0);
    ac_fork(c, 0, 1);
    ck_assert_uint_eq(stats_of(c).pages_open, 1); /* shared until somebody writes */
    ac_fill(c, 1, 1, 1, &random);
    ck_assert_uint_eq(stats_of(c).pages_open, 2);
    ac_fill(c, 1, 11, 11, &random); /* full */
    ck_assert_uint_eq(stats_of(c).pages_open, 1);
    ac_fill(c, 0, 12, 5, &random);
    ck_assert_uint_eq(stats_of(c).pages_open, 0);
    ac_fill(c, 0, 3, 3, &random);
    ck_assert_int_eq(pkv_seq_truncate(c->seqs[0].handle, 113), PKV_OK); /* stays in the open page */
    ck_assert_uint_eq(stats_of(c).pages_open, 1);
    ck_assert_int_eq(pkv_seq_truncate(c->seqs[0].handle, 112), PKV_OK);
    ck_assert_uint_eq(stats_of(c).pages_open, 0);
    ck_assert_uint_eq(stats_of(c).pages_unsealed, 0);
    c->seqs[0].length = 112;
    ac_destroy(c, 1);
    ac_close(c); /* verifies */
}
END_TEST

/* Forks that share an open page and go on with other tokens do not see each other's. */
START_TEST(forks_diverge)
{
    const ac_shape shape = base_shape((size_t)_i);
    uint64_t random = 5;
    ac_case *c = ac_open(&shape);
    pkv_plan *plan = make_plan(c);
    ac_create(c, 0);
    ac_fill(c, 0, 37, 37, &random);
    for (uint32_t i = 1; i < 5; i++)
        ac_fork(c, 0, i);
    ac_run run = {.nth = 2, .commit = false};
    uint64_t *content = contents(5 * 20, &random);
    for (int round = 0; round < 4; round++) {
        ac_entry entries[5];
        for (uint32_t i = 0; i < 5; i++)
            entries[i] = (ac_entry){.seq = i,
                                    .n = 1 + (i + (uint32_t)round) % 4,
                                    .content = content + 20 * i + 4 * (size_t)round};
        run.commit = false; /* aborted first: nothing may stay behind of it */
        ac_result result = ac_step(c, plan, entries, 5, &run);
        ac_check(c, entries, 5, &run, &result, 10, &random);
        ac_result_free(&result);
        run.commit = true;
        result = ac_step(c, plan, entries, 5, &run);
        ac_result_free(&result);
        char text[256];
        ck_assert_msg(pkv_cache_verify(c->cache, text, sizeof text) == PKV_OK, "%s", text);
    }
    run.commit = false;
    for (uint32_t i = 0; i < 5; i++) {
        const ac_entry entry = {.seq = i, .n = 1, .content = content};
        ac_result result = ac_step(c, plan, &entry, 1, &run);
        ac_check(c, &entry, 1, &run, &result, 10, &random);
        ac_result_free(&result);
    }
    free(content);
    pkv_plan_destroy(plan);
    ac_close(c);
}
END_TEST

/* Speculation: whatever part of a step is kept, the next step sees just that. */
START_TEST(partial_commits)
{
    const ac_shape shape = base_shape((size_t)_i);
    for (uint32_t accepted = 0; accepted <= 20; accepted += 1 + accepted % 3) {
        uint64_t random = accepted;
        ac_case *c = ac_open(&shape);
        pkv_plan *plan = make_plan(c);
        ac_create(c, 0);
        ac_fill(c, 0, 27, 27, &random);
        uint64_t *content = contents(40, &random);
        const ac_entry first = {.seq = 0, .n = 20, .content = content};
        const ac_run keep = {.commit = true, .accepted = &accepted};
        ac_result result = ac_step(c, plan, &first, 1, &keep);
        ac_result_free(&result);
        ck_assert_uint_eq(c->seqs[0].length, 27 + accepted);
        ck_assert_uint_eq(stats_of(c).pages_open, (27 + accepted) % 16 != 0);
        const ac_entry next = {.seq = 0, .n = 9, .content = content + 20};
        const ac_run run = {0};
        result = ac_step(c, plan, &next, 1, &run);
        ac_check(c, &next, 1, &run, &result, 20, &random);
        ac_result_free(&result);
        ck_assert_uint_eq(stats_of(c).pages_unsealed, 0);
        free(content);
        pkv_plan_destroy(plan);
        ac_close(c);
    }
}
END_TEST

static float *read_rows(ac_case *c, uint32_t seq, char what, uint32_t layer, uint64_t first,
                        uint32_t n)
{
    const ac_shape *s = &c->shape;
    const uint32_t dim = what == 'k' ? s->dim_k : s->dim_v;
    float *rows = malloc((size_t)n * s->kv_heads * dim * sizeof *rows);
    const pkv_rows_out out = {.data = rows,
                              .dtype = PKV_DTYPE_F32,
                              .heads = s->kv_heads,
                              .dim = dim,
                              .token_stride = (ptrdiff_t)(s->kv_heads * dim * sizeof *rows),
                              .head_stride = (ptrdiff_t)(dim * sizeof *rows)};
    ck_assert_int_eq(pkv_read(c->seqs[seq].handle, layer, first, n, what == 'k' ? &out : NULL,
                              what == 'k' ? NULL : &out),
                     PKV_OK);
    return rows;
}

/* Tokens of the open page read back exactly as they were rounded; sealed ones within half a step.
 */
START_TEST(read_back)
{
    const ac_shape shape = base_shape((size_t)_i);
    uint64_t random = 3;
    ac_case *c = ac_open(&shape);
    ac_create(c, 0);
    ac_fill(c, 0, 45, 10, &random);
    for (int kind = 0; kind < 2; kind++) {
        const char what = kind ? 'v' : 'k';
        const pkv_dtype format = kind ? shape.dtype_v : shape.dtype_k;
        /* values are in ±1: a step is at most 2 / levels and a little for the f16 scale */
        const double step = format == 0                                        ? 0
                            : format == PKV_DTYPE_K8 || format == PKV_DTYPE_V8 ? 2.01 / 254
                                                                               : 2.01 / 15;
        float *rows = read_rows(c, 0, what, 1, 0, 45);
        for (uint32_t t = 0; t < 45; t++)
            for (uint32_t h = 0; h < shape.kv_heads; h++)
                for (uint32_t d = 0; d < 64; d++) {
                    const double exact = (double)ac_round(
                        ac_value(c->seqs[0].content[t], what, 1, h, d), PKV_DTYPE_F16);
                    const double got = (double)rows[(t * shape.kv_heads + h) * 64 + d];
                    ck_assert_double_eq_tol(got, exact,
                                            t >= 32 || step == 0 ? 1e-12 : step / 2 + 1e-3);
                }
        free(rows);
    }
    ac_close(c);
}
END_TEST

/* A truncate into a sealed page: the page is dequantised for the next token, which is counted, and
 * what was read before is read after. */
START_TEST(truncate_into_sealed)
{
    const ac_shape shape = base_shape((size_t)_i);
    uint64_t random = 8;
    ac_case *c = ac_open(&shape);
    ac_create(c, 0);
    ac_fill(c, 0, 70, 70, &random);
    float *before = read_rows(c, 0, 'k', 0, 0, 55);
    ck_assert_int_eq(pkv_seq_truncate(c->seqs[0].handle, 55), PKV_OK);
    c->seqs[0].length = 55;
    ck_assert_uint_eq(stats_of(c).pages_open, 0);
    float *after = read_rows(c, 0, 'k', 0, 0, 55);
    ck_assert_mem_eq(before, after, 55 * shape.kv_heads * 64 * sizeof *before);
    free(after);
    ac_fill(c, 0, 1, 1, &random);
    ck_assert_uint_eq(stats_of(c).pages_open, 1);
    ck_assert_uint_eq(stats_of(c).pages_unsealed, 1);
    after = read_rows(c, 0, 'k', 0, 0, 55);
    for (size_t i = 0; i < 55 * (size_t)shape.kv_heads * 64; i++) /* through f16 once more */
        ck_assert_double_eq_tol((double)after[i], (double)before[i], 5e-4);
    free(before);
    free(after);
    ac_close(c);
}
END_TEST

/* A step that fills a page whose tail was sealed before (a truncate into it), and is then taken back
 * as a whole, by an abort or with nothing accepted: what was read before is read after, bit by bit.
 */
START_TEST(undone_steps_leave_a_sealed_tail)
{
    const ac_shape shape = base_shape((size_t)_i);
    for (int partial = 0; partial < 2; partial++) {
        uint64_t random = 18;
        ac_case *c = ac_open(&shape);
        pkv_plan *plan = make_plan(c);
        ac_create(c, 0);
        ac_fill(c, 0, 70, 70, &random);
        ck_assert_int_eq(pkv_seq_truncate(c->seqs[0].handle, 55), PKV_OK);
        c->seqs[0].length = 55;
        uint64_t *content = contents(30, &random);
        float *before[2], *after[2];
        for (int kind = 0; kind < 2; kind++)
            before[kind] = read_rows(c, 0, kind ? 'v' : 'k', 1, 0, 55);
        uint32_t none = 0;
        const ac_entry entry = {.seq = 0, .n = 30, .content = content};
        const ac_run run = {.commit = partial, .accepted = partial ? &none : NULL};
        ac_result result = ac_step(c, plan, &entry, 1, &run);
        ac_result_free(&result);
        for (int kind = 0; kind < 2; kind++) {
            after[kind] = read_rows(c, 0, kind ? 'v' : 'k', 1, 0, 55);
            ck_assert_mem_eq(before[kind], after[kind], 55 * shape.kv_heads * 64 * sizeof **after);
            free(before[kind]);
            free(after[kind]);
        }
        free(content);
        pkv_plan_destroy(plan);
        ac_close(c);
    }
}
END_TEST

/* ---- prefix index --------------------------------------------------------------------------- */

static void append_tokens(ac_case *c, pkv_plan *plan, pkv_seq seq, const int32_t *tokens,
                          uint32_t n)
{
    pkv_batch batch;
    ck_assert_int_eq(pkv_batch_begin(c->cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, seq, tokens, n), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    ck_assert_int_eq(pkv_plan_build(plan, batch), PKV_OK);
    const ac_shape *s = &c->shape;
    float *rows = malloc((size_t)n * s->kv_heads * 64 * sizeof *rows);
    for (uint32_t layer = 0; layer < s->n_layers; layer++) {
        for (uint32_t t = 0; t < n; t++)
            for (uint32_t h = 0; h < s->kv_heads; h++)
                for (uint32_t d = 0; d < 64; d++)
                    rows[(t * s->kv_heads + h) * 64 + d] =
                        ac_value((uint64_t)tokens[t], 'k', layer, h, d);
        const pkv_rows in = {.data = rows,
                             .dtype = PKV_DTYPE_F32,
                             .heads = s->kv_heads,
                             .dim = 64,
                             .token_stride = (ptrdiff_t)(s->kv_heads * 64 * sizeof *rows),
                             .head_stride = (ptrdiff_t)(64 * sizeof *rows)};
        ck_assert_int_eq(pkv_write(plan, layer, &in, &in, 0, 1), PKV_OK);
    }
    free(rows);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
}

START_TEST(prefix_hits)
{
    ac_shape shape = base_shape((size_t)_i);
    shape.prefix = 1;
    ac_case *c = ac_open(&shape);
    pkv_plan *plan = make_plan(c);
    int32_t tokens[80];
    for (int32_t i = 0; i < 80; i++)
        tokens[i] = 100 + i;
    ac_create(c, 0);
    append_tokens(c, plan, c->seqs[0].handle, tokens, 70);
    pkv_match match = {.struct_size = sizeof match};
    ck_assert_int_eq(pkv_prefix_match(c->cache, NULL, tokens, 60, &match), PKV_OK);
    ck_assert_uint_eq(match.n_tokens, 60); /* 3 pages and 12 tokens of the fourth */
    ac_create(c, 1);
    ck_assert_int_eq(pkv_seq_attach(c->seqs[1].handle, &match), PKV_OK);
    ck_assert_uint_eq(stats_of(c).pages_open, 1); /* that of sequence 0 */
    c->seqs[1].length = c->seqs[0].length = 60;
    float *mine = read_rows(c, 1, 'k', 1, 0, 60), *theirs = read_rows(c, 0, 'k', 1, 0, 60);
    ck_assert_mem_eq(mine, theirs, 60 * shape.kv_heads * 64 * sizeof *mine);
    free(mine);
    tokens[60] = 7; /* another way on: the page is dequantised, the published one is untouched */
    append_tokens(c, plan, c->seqs[1].handle, tokens + 60, 20);
    ck_assert_uint_eq(stats_of(c).pages_unsealed, 1);
    mine = read_rows(c, 0, 'k', 1, 0, 60);
    ck_assert_mem_eq(mine, theirs, 60 * shape.kv_heads * 64 * sizeof *mine);
    free(mine);
    free(theirs);
    pkv_plan_destroy(plan);
    ac_close(c);
}
END_TEST

/* ---- room ----------------------------------------------------------------------------------- */

/* Open pages count against the limit; a step that finds none leaves everything as it was. */
START_TEST(refused_open_pages)
{
    ac_shape shape = base_shape(0);
    shape.n_layers = 8;
    shape.memory = UINT64_C(6) << 20;
    uint64_t random = 2;
    ac_case *c = ac_open(&shape);
    uint32_t n = 0;
    pkv_status status = PKV_OK;
    char text[256];
    while (status == PKV_OK && n < AC_MAX_SEQS) {
        ac_create(c, n);
        pkv_batch batch;
        const int32_t *no_tokens = NULL;
        ck_assert_int_eq(pkv_batch_begin(c->cache, &batch), PKV_OK);
        ck_assert_int_eq(pkv_batch_add(batch, c->seqs[n].handle, no_tokens, 24), PKV_OK);
        const pkv_stats before = stats_of(c);
        status = pkv_batch_reserve(batch);
        if (status == PKV_OK) {
            ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
            c->seqs[n].length = 0;
            n++;
            ck_assert_uint_eq(stats_of(c).pages_open, n);
            continue;
        }
        ck_assert_int_eq(status, PKV_ENOPAGES);
        const pkv_stats after = stats_of(c);
        ck_assert_uint_eq(after.pages_open, before.pages_open);
        ck_assert_uint_eq(after.pages_used, before.pages_used);
        uint32_t missing = 0;
        ck_assert_int_eq(pkv_batch_shortfall(batch, &missing, 1), PKV_OK);
        ck_assert_uint_gt(missing, 0);
        ck_assert_int_eq(pkv_batch_abort(batch), PKV_OK);
    }
    ck_assert_int_eq(status, PKV_ENOPAGES);
    ck_assert_uint_gt(n, 4);
    ck_assert_msg(pkv_cache_verify(c->cache, text, sizeof text) == PKV_OK, "%s", text);
    (void)random;
    ac_close(c);
}
END_TEST

START_TEST(configs)
{
    static float buffer[1 << 16] __attribute__((aligned(64)));
    pkv_group_config group = {.n_layers = 1, .kv_heads = 1, .head_dim_k = 64};
    pkv_config config;
    char text[256];
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    config.groups = &group;
    config.n_groups = 1;
    group.dtype_k = PKV_DTYPE_K8;
    ck_assert_int_eq(pkv_config_check(&config, text, sizeof text), PKV_OK);
    group.dtype_v = PKV_DTYPE_BF16; /* open pages are f16 */
    ck_assert_int_eq(pkv_config_check(&config, text, sizeof text), PKV_EINVAL);
    ck_assert_ptr_nonnull(strstr(text, "dtype_v"));
    group.dtype_v = PKV_DTYPE_K8;
    ck_assert_int_eq(pkv_config_check(&config, text, sizeof text), PKV_EINVAL);
    group.dtype_v = PKV_DTYPE_V4;
    ck_assert_int_eq(pkv_config_check(&config, text, sizeof text), PKV_OK);
    config.storage = PKV_STORAGE_EXTERNAL;
    group.external_base = buffer;
    group.external_bytes = sizeof buffer;
    ck_assert_int_eq(pkv_config_check(&config, text, sizeof text), PKV_ENOTSUP);
}
END_TEST

/* TOPK takes its bounds from minimum and scale: with a budget of all pages it changes nothing, with
 * a small one it reads less. */
START_TEST(topk)
{
    const ac_shape shape = base_shape(0);
    uint64_t random = 12;
    ac_case *c = ac_open(&shape);
    pkv_plan *plan = make_plan(c);
    ac_create(c, 0);
    ac_fill(c, 0, 603, 603, &random);
    uint64_t *content = contents(2, &random);
    const ac_entry entry = {.seq = 0, .n = 2, .content = content};
    const ac_run run = {.nth = 2};
    ac_result all = ac_step(c, plan, &entry, 1, &run);
    pkv_evict_config config;
    ck_assert_int_eq(pkv_evict_config_init(&config, sizeof config, PKV_EVICT_TOPK, 100), PKV_OK);
    config.kind = PKV_EVICT_TOPK;
    config.budget_unit = PKV_BUDGET_PAGES;
    const size_t n = (size_t)shape.n_layers * 2 * shape.q_heads * shape.dim_v;
    for (int small = 0; small < 2; small++) {
        config.budget = small ? 8 : 100;
        ck_assert_int_eq(pkv_seq_set_evict(c->seqs[0].handle, 0, &config), PKV_OK);
        ac_result some = ac_step(c, plan, &entry, 1, &run);
        size_t differ = 0;
        for (size_t i = 0; i < n; i++) {
            ck_assert(isfinite(some.out[i]));
            differ += fabsf(some.out[i] - all.out[i]) > 1e-4f;
        }
        ck_assert(small ? differ != 0 : differ == 0);
        ac_result_free(&some);
    }
    config.kind = PKV_EVICT_WINDOW;
    config.budget = 8;
    config.regret = 1;
    ck_assert_int_eq(pkv_seq_set_evict(c->seqs[0].handle, 0, &config), PKV_ENOTSUP);
    ac_result_free(&all);
    free(content);
    pkv_plan_destroy(plan);
    ac_close(c);
}
END_TEST

/* A host whose pages are elsewhere is told what to copy, dequantise, write and quantise. */
START_TEST(lists_for_devices)
{
    const pkv_group_config group = {.n_layers = 1,
                                    .kv_heads = 1,
                                    .head_dim_k = 64,
                                    .dtype_k = PKV_DTYPE_K8,
                                    .dtype_v = PKV_DTYPE_V8};
    pkv_config config;
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    config.groups = &group;
    config.n_groups = 1;
    config.storage = PKV_STORAGE_NONE;
    pkv_cache *cache;
    ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_OK);
    pkv_seq seq, child;
    pkv_batch batch;
    pkv_open_page pages[4];
    uint32_t n;
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, seq, NULL, 40), PKV_OK);
    ck_assert_int_eq(pkv_batch_open_pages(batch, 0, 0, pages, 4, &n), PKV_ESTATE);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_open_pages(batch, 0, 0, pages, 2, &n), PKV_ERANGE);
    ck_assert_uint_eq(n, 3);
    ck_assert_int_eq(pkv_batch_open_pages(batch, 1, 0, pages, 4, &n), PKV_EINVAL);
    ck_assert_int_eq(pkv_batch_open_pages(batch, 0, 1, pages, 4, &n), PKV_EINVAL);
    ck_assert_int_eq(pkv_batch_open_pages(batch, 0, 0, pages, 4, &n), PKV_OK);
    for (uint32_t i = 0; i < 3; i++) {
        ck_assert_uint_eq(pages[i].logical, i);
        ck_assert_uint_eq(pages[i].n_tokens, 0);
        ck_assert_uint_eq(pages[i].fill, 0);
        pkv_page sealed;
        ck_assert_int_eq(pkv_seq_pages(seq, 0, i, 1, &sealed), PKV_OK);
        ck_assert(pages[i].sealed == sealed);
    }
    const pkv_page tail = pages[2].open;
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
    ck_assert_int_eq(pkv_seq_fork(seq, &child), PKV_OK);
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, child, NULL, 1), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_open_pages(batch, 0, 0, pages, 4, &n), PKV_OK);
    ck_assert_uint_eq(n, 1); /* shared with the parent: copied */
    ck_assert_uint_eq(pages[0].n_tokens, 8);
    ck_assert_uint_eq(pages[0].fill, 1);
    ck_assert(pages[0].from == tail && pages[0].open != tail);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
    ck_assert_int_eq(pkv_seq_truncate(seq, 20), PKV_OK);
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, seq, NULL, 1), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_open_pages(batch, 0, 0, pages, 4, &n), PKV_OK);
    ck_assert_uint_eq(n, 1); /* sealed before: dequantised */
    ck_assert_uint_eq(pages[0].n_tokens, 4);
    ck_assert_uint_eq(pages[0].fill, 1);
    ck_assert(pages[0].from == PKV_PAGE_NONE);
    ck_assert_int_eq(pkv_batch_abort(batch), PKV_OK);
    char text[256];
    ck_assert_msg(pkv_cache_verify(cache, text, sizeof text) == PKV_OK, "%s", text);
    pkv_cache_destroy(cache);
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("quantised");
    TCase *tc = tcase_create("attention");
    const int n = (int)COUNT(formats);
    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, decode, 0, n);
    tcase_add_loop_test(tc, prefill, 0, n);
    tcase_add_loop_test(tc, geometries, 0, n);
    tcase_add_loop_test(tc, options, 0, n);
    tcase_add_loop_test(tc, trees, 0, n);
    tcase_add_loop_test(tc, cuts_do_not_show, 0, n);
    suite_add_tcase(suite, tc);
    tc = tcase_create("open pages");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, open_pages_are_counted);
    tcase_add_loop_test(tc, forks_diverge, 0, n);
    tcase_add_loop_test(tc, partial_commits, 0, n);
    tcase_add_loop_test(tc, read_back, 0, n);
    tcase_add_loop_test(tc, truncate_into_sealed, 0, 3);
    tcase_add_loop_test(tc, undone_steps_leave_a_sealed_tail, 0, 3);
    tcase_add_loop_test(tc, prefix_hits, 0, n);
    tcase_add_test(tc, refused_open_pages);
    tcase_add_test(tc, configs);
    tcase_add_test(tc, lists_for_devices);
    tcase_add_test(tc, topk);
    suite_add_tcase(suite, tc);
    return suite;
}
