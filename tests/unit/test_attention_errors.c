/* Attention: bad arguments are errors and touch no output; what must not leak does not. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attn_case.h"
#include "random.h"
#include "suite.h"

enum { HEADS = 2, Q_HEADS = 4, DIM = 64, NEW = 3 };

struct fixture {
    ac_case *c;
    pkv_plan *plan;
    pkv_batch batch;
    float k[NEW * HEADS * DIM], q[NEW * Q_HEADS * DIM], out[NEW * Q_HEADS * DIM],
        lse[NEW * Q_HEADS];
    pkv_rows kr, qr;
    pkv_rows_out outr;
};

static ac_shape base_shape(void)
{
    return (ac_shape){.page_tokens = 16,
                      .n_layers = 2,
                      .kv_heads = HEADS,
                      .q_heads = Q_HEADS,
                      .dim_k = DIM,
                      .dim_v = DIM,
                      .dtype = PKV_DTYPE_F16};
}

static struct fixture *setup(const ac_shape *shape, uint32_t length)
{
    static const uint64_t contents[NEW] = {1, 2, 3};
    uint64_t random = 7;
    struct fixture *f = calloc(1, sizeof *f);
    f->c = ac_open(shape);
    pkv_plan_options options = ac_options(f->c);
    ck_assert_int_eq(pkv_plan_create(f->c->cache, &options, &f->plan), PKV_OK);
    ac_create(f->c, 0);
    ac_fill(f->c, 0, length, 512, &random);
    ac_entry entry = {.seq = 0, .n = NEW, .content = contents};
    f->batch = ac_reserve(f->c, f->plan, &entry, 1);
    for (int i = 0; i < NEW * HEADS * DIM; i++)
        f->k[i] = ac_value((uint64_t)i, 'k', 0, 0, 0);
    for (int i = 0; i < NEW * Q_HEADS * DIM; i++)
        f->q[i] = ac_value((uint64_t)i, 'q', 0, 0, 0);
    f->kr = (pkv_rows){.data = f->k,
                       .dtype = PKV_DTYPE_F32,
                       .heads = HEADS,
                       .dim = DIM,
                       .token_stride = HEADS * DIM * 4,
                       .head_stride = DIM * 4};
    f->qr = (pkv_rows){.data = f->q,
                       .dtype = PKV_DTYPE_F32,
                       .heads = Q_HEADS,
                       .dim = DIM,
                       .token_stride = Q_HEADS * DIM * 4,
                       .head_stride = DIM * 4};
    f->outr = (pkv_rows_out){.data = f->out,
                             .dtype = PKV_DTYPE_F32,
                             .heads = Q_HEADS,
                             .dim = DIM,
                             .token_stride = Q_HEADS * DIM * 4,
                             .head_stride = DIM * 4};
    for (uint32_t layer = 0; layer < 2; layer++)
        ck_assert_int_eq(pkv_write(f->plan, layer, &f->kr, &f->kr, 0, 1), PKV_OK);
    memset(f->out, 0x5a, sizeof f->out);
    memset(f->lse, 0x5a, sizeof f->lse);
    return f;
}

static void teardown(struct fixture *f, bool open)
{
    if (open) ck_assert_int_eq(pkv_batch_abort(f->batch), PKV_OK);
    pkv_plan_destroy(f->plan);
    ac_close(f->c);
    free(f);
}

static void untouched(const struct fixture *f)
{
    const unsigned char *out = (const unsigned char *)f->out, *lse = (const unsigned char *)f->lse;
    for (size_t i = 0; i < sizeof f->out; i++)
        ck_assert_uint_eq(out[i], 0x5a);
    for (size_t i = 0; i < sizeof f->lse; i++)
        ck_assert_uint_eq(lse[i], 0x5a);
}

static pkv_status attend(struct fixture *f, uint32_t layer, uint32_t ith, uint32_t nth)
{
    return pkv_attend(f->plan, layer, &f->qr, &f->outr, f->lse, ith, nth);
}

START_TEST(arguments_of_attend)
{
    ac_shape shape = base_shape();
    struct fixture *f = setup(&shape, 40), good = *f;
    ck_assert_int_eq(pkv_attend(NULL, 0, &f->qr, &f->outr, f->lse, 0, 1), PKV_EINVAL);
    ck_assert_int_eq(pkv_attend(f->plan, 0, NULL, &f->outr, f->lse, 0, 1), PKV_EINVAL);
    ck_assert_int_eq(pkv_attend(f->plan, 0, &f->qr, NULL, f->lse, 0, 1), PKV_EINVAL);
    ck_assert_int_eq(attend(f, 2, 0, 1), PKV_EINVAL);
    ck_assert_int_eq(attend(f, UINT32_MAX, 0, 1), PKV_EINVAL);
    ck_assert_int_eq(attend(f, 0, 1, 1), PKV_EINVAL);
    ck_assert_int_eq(attend(f, 0, 0, 0), PKV_EINVAL);
#define BAD(field, value)                                                                          \
    do {                                                                                           \
        f->field = (value);                                                                        \
        ck_assert_int_eq(attend(f, 0, 0, 1), PKV_EINVAL);                                          \
        f->qr = good.qr;                                                                           \
        f->outr = good.outr;                                                                       \
    } while (0)
    BAD(qr.data, NULL);
    BAD(qr.dtype, 0);
    BAD(qr.dtype, 9);
    BAD(qr.heads, Q_HEADS - 1);
    BAD(qr.heads, 0);
    BAD(qr.dim, DIM + 8);
    BAD(qr.token_stride, 2);
    BAD(qr.head_stride, 254);
    BAD(qr.token_stride, PTRDIFF_MAX - 3);
    BAD(qr.head_stride, PTRDIFF_MIN);
    BAD(qr.reserved[1], 1);
    BAD(outr.data, NULL);
    BAD(outr.dtype, -1);
    BAD(outr.heads, HEADS);
    BAD(outr.dim, 8);
    BAD(outr.token_stride, 0); /* rows on top of each other */
    BAD(outr.head_stride, 0);
    BAD(outr.reserved[0], 1);
    BAD(outr.head_stride, DIM * 4 - 4);
    BAD(outr.token_stride, DIM * 4); /* as far apart as heads are */
    BAD(outr.token_stride, -(ptrdiff_t)(Q_HEADS * DIM * 4 - 4));
#undef BAD
    char text[256];
    ck_assert_int_eq(pkv_cache_last_error(f->c->cache, text, sizeof text), PKV_EINVAL);
    ck_assert_msg(strstr(text, "overlap") != NULL, "%s", text);
    untouched(f);
    ck_assert_int_eq(attend(f, 0, 0, 1), PKV_OK);
    teardown(f, true);
}
END_TEST

START_TEST(arguments_of_write)
{
    ac_shape shape = base_shape();
    struct fixture *f = setup(&shape, 40);
    pkv_rows bad = f->kr;
    ck_assert_int_eq(pkv_write(NULL, 0, &f->kr, &f->kr, 0, 1), PKV_EINVAL);
    ck_assert_int_eq(pkv_write(f->plan, 0, NULL, &f->kr, 0, 1), PKV_EINVAL);
    ck_assert_int_eq(pkv_write(f->plan, 0, &f->kr, NULL, 0, 1), PKV_EINVAL);
    ck_assert_int_eq(pkv_write(f->plan, 2, &f->kr, &f->kr, 0, 1), PKV_EINVAL);
    ck_assert_int_eq(pkv_write(f->plan, 0, &f->kr, &f->kr, 5, 5), PKV_EINVAL);
    bad.heads = Q_HEADS;
    ck_assert_int_eq(pkv_write(f->plan, 0, &bad, &f->kr, 0, 1), PKV_EINVAL);
    bad = f->kr;
    bad.token_stride = 3;
    ck_assert_int_eq(pkv_write(f->plan, 0, &f->kr, &bad, 0, 1), PKV_EINVAL);
    bad = f->kr;
    bad.data = (const char *)bad.data + 1;
    ck_assert_int_eq(pkv_write(f->plan, 0, &f->kr, &bad, 0, 1), PKV_EINVAL);
    teardown(f, true);
}
END_TEST

START_TEST(order_of_calls)
{
    ac_shape shape = base_shape();
    struct fixture *f = setup(&shape, 40);
    /* Not built yet. */
    pkv_plan *empty, *foreign;
    ck_assert_int_eq(pkv_plan_create(f->c->cache, NULL, &empty), PKV_OK);
    ck_assert_int_eq(pkv_attend(empty, 0, &f->qr, &f->outr, NULL, 0, 1), PKV_ESTATE);
    ck_assert_int_eq(pkv_write(empty, 0, &f->kr, &f->kr, 0, 1), PKV_ESTATE);
    /* A batch of another cache, one that is not reserved, none. */
    ac_case *other = ac_open(&shape);
    ck_assert_int_eq(pkv_plan_create(other->cache, NULL, &foreign), PKV_OK);
    ck_assert_int_eq(pkv_plan_build(foreign, f->batch), PKV_EFOREIGN);
    pkv_batch open;
    ck_assert_int_eq(pkv_batch_begin(f->c->cache, &open), PKV_OK);
    ck_assert_int_eq(pkv_plan_build(empty, open), PKV_ESTATE);
    ck_assert_int_eq(pkv_batch_abort(open), PKV_OK);
    ck_assert_int_eq(pkv_plan_build(empty, open), PKV_ESTALE);
    ck_assert_int_eq(pkv_plan_build(empty, (pkv_batch){0}), PKV_EINVAL);
    ck_assert_int_eq(pkv_plan_build(NULL, f->batch), PKV_EINVAL);
    pkv_plan_destroy(empty);
    pkv_plan_destroy(foreign);
    pkv_plan_destroy(NULL);
    ac_close(other);
    /* A failed build leaves the plan as it was. */
    static const uint8_t mask[] = {1, 3};
    ck_assert_int_eq(pkv_plan_set_tree(f->plan, 0, 2, mask, NULL), PKV_OK);
    ck_assert_int_eq(pkv_plan_build(f->plan, f->batch), PKV_EINVAL); /* the entry has 3 tokens */
    ck_assert_int_eq(attend(f, 0, 0, 1), PKV_OK);
    memset(f->out, 0x5a, sizeof f->out);
    memset(f->lse, 0x5a, sizeof f->lse);
    /* Mass was not asked for. */
    float mass[4];
    ck_assert_int_eq(pkv_plan_mass(f->plan, 0, 0, 0, mass, 3), PKV_ESTATE);
    /* After the commit the plan is stale. */
    ck_assert_int_eq(pkv_batch_commit(f->batch), PKV_OK);
    ck_assert_int_eq(attend(f, 0, 0, 1), PKV_ESTALE);
    ck_assert_int_eq(pkv_write(f->plan, 0, &f->kr, &f->kr, 0, 1), PKV_ESTALE);
    double reference[NEW * Q_HEADS * DIM];
    ck_assert_int_eq(pkv_attend_reference(f->plan, 0, &f->qr, reference, NULL), PKV_ESTALE);
    untouched(f);
    teardown(f, false);
}
END_TEST

START_TEST(option_bounds)
{
    ac_shape shape = base_shape();
    ac_case *c = ac_open(&shape);
    pkv_plan *plan = NULL;
    pkv_plan_options o;
    static const float slopes[Q_HEADS] = {0, NAN}, sinks[2 * Q_HEADS] = {0, -INFINITY};
    static const float bad_sinks[2 * Q_HEADS] = {0, INFINITY};
    ck_assert_int_eq(pkv_plan_options_init(NULL, sizeof o), PKV_EINVAL);
    ck_assert_int_eq(pkv_plan_options_init(&o, sizeof o - 1), PKV_EVERSION);
    ck_assert_int_eq(pkv_plan_create(NULL, NULL, &plan), PKV_EINVAL);
    ck_assert_int_eq(pkv_plan_create(c->cache, NULL, NULL), PKV_EINVAL);
#define BAD(field, value, code)                                                                    \
    do {                                                                                           \
        ck_assert_int_eq(pkv_plan_options_init(&o, sizeof o), PKV_OK);                             \
        o.field = value;                                                                           \
        ck_assert_int_eq(pkv_plan_create(c->cache, &o, &plan), code);                              \
        ck_assert_ptr_null(plan);                                                                  \
    } while (0)
    BAD(struct_size, 8, PKV_EVERSION);
    BAD(scale, NAN, PKV_EINVAL);
    BAD(scale, INFINITY, PKV_EINVAL);
    BAD(softcap, NAN, PKV_EINVAL);
    BAD(softcap, -1, PKV_EINVAL);
    BAD(concurrent_layers, 0, PKV_EINVAL);
    BAD(concurrent_layers, 9, PKV_EINVAL);
    BAD(cascade, 3, PKV_EINVAL);
    BAD(mass, 2, PKV_EINVAL);
    BAD(alibi_slopes, slopes, PKV_EINVAL);
    BAD(sinks, sinks, PKV_EINVAL); /* stride 0 */
    BAD(reserved[3], 1, PKV_EINVAL);
#undef BAD
    ck_assert_int_eq(pkv_plan_options_init(&o, sizeof o), PKV_OK);
    o.sinks = bad_sinks;
    o.sinks_stride = Q_HEADS;
    ck_assert_int_eq(pkv_plan_create(c->cache, &o, &plan), PKV_EINVAL);
    o.sinks = sinks;
    ck_assert_int_eq(pkv_plan_create(c->cache, &o, &plan), PKV_OK);
    /* Trees. */
    static const uint8_t diagonal_missing[] = {0, 3}, above[] = {3, 3}, fine[] = {1, 3};
    static const uint32_t deep[] = {0, 2};
    ck_assert_int_eq(pkv_plan_set_tree(NULL, 0, 2, fine, NULL), PKV_EINVAL);
    ck_assert_int_eq(pkv_plan_set_tree(plan, 0, 2, NULL, NULL), PKV_EINVAL);
    ck_assert_int_eq(pkv_plan_set_tree(plan, 0, 0, fine, NULL), PKV_ERANGE);
    ck_assert_int_eq(pkv_plan_set_tree(plan, 0, 5000, fine, NULL), PKV_ERANGE);
    ck_assert_int_eq(pkv_plan_set_tree(plan, 0, 2, diagonal_missing, NULL), PKV_EINVAL);
    ck_assert_int_eq(pkv_plan_set_tree(plan, 0, 2, above, NULL), PKV_EINVAL);
    ck_assert_int_eq(pkv_plan_set_tree(plan, 0, 2, fine, deep), PKV_EINVAL);
    pkv_plan_destroy(plan);
    ac_close(c);
}
END_TEST

START_TEST(storage_without_bytes)
{
    pkv_group_config group = {.n_layers = 1, .kv_heads = 1, .head_dim_k = 64};
    pkv_config config;
    pkv_config_init(&config, sizeof config);
    config.groups = &group;
    config.n_groups = 1;
    config.storage = PKV_STORAGE_NONE;
    pkv_cache *cache;
    ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_OK);
    pkv_plan *plan;
    pkv_seq seq;
    float x[64];
    pkv_rows_out rows = {.data = x,
                         .dtype = PKV_DTYPE_F32,
                         .heads = 1,
                         .dim = 64,
                         .token_stride = 256,
                         .head_stride = 256};
    ck_assert_int_eq(pkv_plan_create(cache, NULL, &plan), PKV_ENOTSUP);
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    ck_assert_int_eq(pkv_read(seq, 0, 0, 0, &rows, &rows), PKV_ENOTSUP);
    ck_assert_int_eq(pkv_page_unpack(cache, 0, x, PKV_LAYOUT_NHD, x, 4), PKV_ENOTSUP);
    pkv_cache_destroy(cache);
    config.storage = PKV_STORAGE_HOST;
    config.isa = "z80";
    ck_assert_int_ne(pkv_cache_create(&config, &cache), PKV_OK);
}
END_TEST

START_TEST(kernel_names)
{
    const char *name;
    ck_assert_int_eq(pkv_kernel_list(0, &name), PKV_OK);
    ck_assert_int_eq(pkv_kernel_list(1000, &name), PKV_ERANGE);
    ck_assert_int_eq(pkv_kernel_list(0, NULL), PKV_EINVAL);
    for (uint32_t i = 0; pkv_kernel_list(i, &name) == PKV_OK; i++) {
        ac_shape shape = base_shape();
        shape.isa = name;
        ac_case *c = ac_open(&shape);
        const char *used;
        ck_assert_int_eq(pkv_kernel_name(c->cache, &used), PKV_OK);
        ck_assert_str_eq(used, name);
        ck_assert_int_eq(pkv_kernel_name(c->cache, NULL), PKV_EINVAL);
        ac_close(c);
    }
    ck_assert_int_eq(pkv_kernel_name(NULL, &name), PKV_EINVAL);
}
END_TEST

/* ---- what must not leak --------------------------------------------------------------------- */

/* Freed pages and page tails hold NaN: no output may. */
START_TEST(poison)
{
    for (int dtype = PKV_DTYPE_F32; dtype <= PKV_DTYPE_BF16; dtype++) {
        ac_shape shape = base_shape();
        shape.dtype = dtype;
        shape.debug = PKV_DEBUG_POISON;
        ac_case *c = ac_open(&shape);
        uint64_t random = 3;
        /* Use pages, give them back: they are poisoned and used again. */
        for (uint32_t i = 1; i < 6; i++) {
            ac_create(c, i);
            ac_fill(c, i, 300, 100, &random);
        }
        for (uint32_t i = 1; i < 6; i++)
            ac_destroy(c, i);
        pkv_plan_options options = ac_options(c);
        pkv_plan *plan;
        ck_assert_int_eq(pkv_plan_create(c->cache, &options, &plan), PKV_OK);
        ac_create(c, 0);
        for (uint32_t step = 0; step < 40; step++) {
            uint64_t content[4];
            uint32_t n = 1 + pkvt_below(&random, 4);
            for (uint32_t i = 0; i < n; i++)
                content[i] = pkvt_random(&random);
            ac_entry entry = {.seq = 0, .n = n, .content = content};
            ac_run run = {.nth = 2};
            ac_result result = ac_step(c, plan, &entry, 1, &run);
            ac_check(c, &entry, 1, &run, &result, 8, &random);
            ac_result_free(&result);
            run.commit = true;
            result = ac_step(c, plan, &entry, 1, &run);
            ac_result_free(&result);
        }
        pkv_plan_destroy(plan);
        ac_close(c);
    }
}
END_TEST

/* A NaN in a valid key or value reaches the rows that attend to it and no others. */
START_TEST(nan_stays_where_it_belongs)
{
    for (int where = 0; where < 2; where++) {
        ac_shape shape = base_shape();
        struct fixture *f = setup(&shape, 600);
        /* New token 1's key or value of head 1 is NaN: rows of tokens 1 and 2, query heads 2 and 3.
         */
        float spoiled[NEW * HEADS * DIM];
        memcpy(spoiled, f->k, sizeof spoiled);
        spoiled[(1 * HEADS + 1) * DIM + 5] = NAN;
        pkv_rows bad = f->kr;
        bad.data = spoiled;
        ck_assert_int_eq(pkv_write(f->plan, 0, where ? &f->kr : &bad, where ? &bad : &f->kr, 0, 1),
                         PKV_OK);
        for (uint32_t i = 3; i-- > 0;)
            ck_assert_int_eq(attend(f, 0, i, 3), PKV_OK);
        for (uint32_t t = 0; t < NEW; t++)
            for (uint32_t h = 0; h < Q_HEADS; h++)
                for (uint32_t d = 0; d < DIM; d++) {
                    bool hit = t >= 1 && h >= 2 && (where == 0 || d == 5);
                    float x = f->out[(t * Q_HEADS + h) * DIM + d];
                    ck_assert_msg(!!isnan(x) == hit, "token %u head %u dim %u: %g", t, h, d,
                                  (double)x);
                }
        teardown(f, true);
    }
}
END_TEST

/* Logits of ±1e4 and leaf maxima that fall by hundreds. */
START_TEST(extreme_logits)
{
    ac_shape shape = base_shape();
    shape.dtype = PKV_DTYPE_F32;
    shape.scale = 1;
    ac_case *c = ac_open(&shape);
    pkv_plan_options options = ac_options(c);
    pkv_plan *plan;
    ck_assert_int_eq(pkv_plan_create(c->cache, &options, &plan), PKV_OK);
    ac_create(c, 0);
    enum { N = 1700 };
    pkv_batch batch;
    ck_assert_int_eq(pkv_batch_begin(c->cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, c->seqs[0].handle, NULL, N), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    ck_assert_int_eq(pkv_plan_build(plan, batch), PKV_OK);
    float *k = calloc((size_t)N * HEADS * DIM, sizeof *k), *v = calloc((size_t)N * HEADS * DIM, 4);
    float *q = calloc((size_t)N * Q_HEADS * DIM, 4), *out = calloc((size_t)N * Q_HEADS * DIM, 4);
    for (int t = 0; t < N; t++)
        for (int h = 0; h < HEADS; h++) {
            k[(t * HEADS + h) * DIM] = h ? (t % 7 == 0 ? 1e4f : -1e4f) : -200.0f * (float)(t / 512);
            v[(t * HEADS + h) * DIM] = (float)t;
        }
    for (int t = 0; t < N; t++)
        for (int h = 0; h < Q_HEADS; h++)
            q[(t * Q_HEADS + h) * DIM] = 1;
    pkv_rows kr = {.data = k,
                   .dtype = PKV_DTYPE_F32,
                   .heads = HEADS,
                   .dim = DIM,
                   .token_stride = HEADS * DIM * 4,
                   .head_stride = DIM * 4},
             vr = kr;
    vr.data = v;
    pkv_rows qr = {.data = q,
                   .dtype = PKV_DTYPE_F32,
                   .heads = Q_HEADS,
                   .dim = DIM,
                   .token_stride = Q_HEADS * DIM * 4,
                   .head_stride = DIM * 4};
    pkv_rows_out outr = {.data = out,
                         .dtype = PKV_DTYPE_F32,
                         .heads = Q_HEADS,
                         .dim = DIM,
                         .token_stride = Q_HEADS * DIM * 4,
                         .head_stride = DIM * 4};
    ck_assert_int_eq(pkv_write(plan, 1, &kr, &vr, 0, 1), PKV_OK);
    for (uint32_t i = 0; i < 4; i++)
        ck_assert_int_eq(pkv_attend(plan, 1, &qr, &outr, NULL, i, 4), PKV_OK);
    for (int t = 0; t < N; t++) {
        /* Head 0: everything beyond the first leaf is e^-200 of it. Head 1: multiples of 7. */
        double first = t < 512 ? t / 2.0 : 511 / 2.0, sevens = 7.0 * (t / 7) / 2;
        ck_assert_double_eq_tol((double)out[(size_t)t * Q_HEADS * DIM], first, 1e-3);
        ck_assert_double_eq_tol((double)out[((size_t)t * Q_HEADS + 2) * DIM], sevens, 1e-2);
    }
    ck_assert_int_eq(pkv_batch_abort(batch), PKV_OK);
    free(k);
    free(v);
    free(q);
    free(out);
    pkv_plan_destroy(plan);
    ac_close(c);
}
END_TEST

/* ---- memory --------------------------------------------------------------------------------- */

struct refuser {
    long left; /* allocations until one fails; < 0 = none */
};

static void *refusing_alloc(void *user, size_t size, size_t alignment)
{
    struct refuser *r = user;
    if (r->left == 0) return NULL;
    if (r->left > 0) r->left--;
    void *p;
    return posix_memalign(&p, alignment < sizeof p ? sizeof p : alignment, size) ? NULL : p;
}

static void refusing_free(void *user, void *ptr, size_t size)
{
    (void)user;
    (void)size;
    free(ptr);
}

/* Every allocation of a build refused in turn: PKV_ENOMEM, and the plan still works as it was. */
START_TEST(no_memory_for_a_build)
{
    struct refuser refuser = {-1};
    pkv_allocator allocator = {&refuser, refusing_alloc, refusing_free};
    ac_shape shape = base_shape();
    shape.allocator = &allocator;
    struct fixture *f = setup(&shape, 600);
    ck_assert_int_eq(attend(f, 0, 0, 1), PKV_OK);
    float before[NEW * Q_HEADS * DIM];
    memcpy(before, f->out, sizeof before);
    uint64_t random = 1;
    for (uint32_t i = 1; i < 40; i++) {
        ac_create(f->c, i);
        ac_fill(f->c, i, 20 * i, 512, &random);
    }
    pkv_batch big;
    ck_assert_int_eq(pkv_batch_begin(f->c->cache, &big), PKV_OK);
    for (uint32_t i = 1; i < 40; i++)
        ck_assert_int_eq(pkv_batch_add(big, f->c->seqs[i].handle, NULL, 1), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(big), PKV_OK);
    pkv_status status = PKV_ENOMEM;
    uint32_t refused = 0;
    for (long at = 0; status != PKV_OK; at++) {
        refuser.left = at;
        status = pkv_plan_build(f->plan, big);
        refuser.left = -1;
        if (status == PKV_OK) break;
        ck_assert_int_eq(status, PKV_ENOMEM);
        refused++;
        memset(f->out, 0, sizeof f->out);
        ck_assert_int_eq(attend(f, 0, 1, 2), PKV_OK);
        ck_assert_int_eq(attend(f, 0, 0, 2), PKV_OK);
        ck_assert_mem_eq(before, f->out, sizeof before);
    }
    ck_assert_uint_gt(refused, 2);
    for (long at = 0;; at++) {
        pkv_plan *plan;
        refuser.left = at;
        status = pkv_plan_create(f->c->cache, NULL, &plan);
        refuser.left = -1;
        if (status == PKV_OK) {
            pkv_plan_destroy(plan);
            break;
        }
        ck_assert_int_eq(status, PKV_ENOMEM);
    }
    ck_assert_int_eq(pkv_batch_abort(big), PKV_OK);
    teardown(f, true);
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("attention_errors");
    TCase *tc = tcase_create("attention_errors");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, arguments_of_attend);
    tcase_add_test(tc, arguments_of_write);
    tcase_add_test(tc, order_of_calls);
    tcase_add_test(tc, option_bounds);
    tcase_add_test(tc, storage_without_bytes);
    tcase_add_test(tc, kernel_names);
    tcase_add_test(tc, poison);
    tcase_add_test(tc, nan_stays_where_it_belongs);
    tcase_add_test(tc, extreme_logits);
    tcase_add_test(tc, no_memory_for_a_build);
    suite_add_tcase(suite, tc);
    return suite;
}
