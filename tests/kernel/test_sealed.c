/* Pages in codes: what a seal stores, reads back, bounds and flags, for every row, and attention
 * over pages with unusual contents; over ordinary ones it is in test_attend.c. */
#include "shape.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "suite.h"

enum { HEADS = 2, DK = 40, DV = 72 };

static const pkv_dtype plain[] = {PKV_DTYPE_F32, PKV_DTYPE_F16, PKV_DTYPE_BF16};

/* An open page, the sealed one made of it, and what the open one holds. */
struct pages {
    pkvi_layout open, sealed;
    char *from, *to;
};

static void *must(void *p)
{
    ck_assert_ptr_nonnull(p);
    return p;
}

static struct pages pages_new(pkv_dtype open, struct format format, uint32_t P, uint32_t digest)
{
    struct pages p;
    ck_assert_int_eq(pkvi_layout_init(&p.open, open, open, P, HEADS, DK, DV, 0), PKV_OK);
    ck_assert_int_eq(pkvi_layout_init(&p.sealed, format.k, format.v, P, HEADS, DK, DV, digest),
                     PKV_OK);
    p.from = must(aligned_alloc(64, p.open.part_bytes));
    p.to = must(aligned_alloc(64, p.sealed.part_bytes));
    memset(p.to, 0xa5, p.sealed.part_bytes);
    return p;
}

static void pages_free(struct pages *p)
{
    free(p->from);
    free(p->to);
}

typedef float source(struct rng *rng, bool keys, uint32_t head, uint32_t slot, uint32_t dim);

static void fill(const pkvi_kernels *kernels, struct pages *p, struct rng *rng, source *value)
{
    for (uint32_t h = 0; h < HEADS; h++)
        for (uint32_t s = 0; s < p->open.page_tokens; s++)
            for (uint32_t d = 0; d < DK || d < DV; d++) {
                const float k = value(rng, true, h, s, d), v = value(rng, false, h, s, d);
                if (d < DK)
                    kernels->convert(p->from + pkvi_layout_k_at(&p->open, h, s, d), p->open.dtype_k,
                                     &k, PKV_DTYPE_F32, 1);
                if (d < DV)
                    kernels->convert(p->from + pkvi_layout_v_at(&p->open, h, s, d), p->open.dtype_v,
                                     &v, PKV_DTYPE_F32, 1);
            }
}

static float ordinary(struct rng *rng, bool keys, uint32_t head, uint32_t slot, uint32_t dim)
{
    (void)slot;
    return rng_normal(rng) + (keys ? 3.0f * (float)((dim + head) % 5) : 0);
}
static float constant(struct rng *rng, bool keys, uint32_t head, uint32_t slot, uint32_t dim)
{
    (void)rng;
    (void)slot;
    return keys ? 0.125f * (float)dim - 2 * (float)head : -7.5f;
}
static float outlier(struct rng *rng, bool keys, uint32_t head, uint32_t slot, uint32_t dim)
{
    (void)keys;
    (void)head;
    return slot == 5 && dim % 8 == 3 ? 30000.0f : rng_normal(rng) * 0.01f;
}
static float tiny(struct rng *rng, bool keys, uint32_t head, uint32_t slot, uint32_t dim)
{
    (void)keys;
    (void)head;
    (void)slot;
    return rng_normal(rng) * (dim % 3 ? 0x1p-22f : 0x1p-130f);
}
static float extreme(struct rng *rng, bool keys, uint32_t head, uint32_t slot, uint32_t dim)
{
    (void)rng;
    (void)keys;
    (void)head;
    return (slot + dim) % 3 == 0 ? 65504.0f : (slot + dim) % 3 == 1 ? -65504.0f : 1.0f;
}
/* Far from zero with a small spread: the minimum's rounding is larger than a step. */
static float offset(struct rng *rng, bool keys, uint32_t head, uint32_t slot, uint32_t dim)
{
    (void)keys;
    (void)head;
    (void)slot;
    return (dim & 1 ? 1000.0f : -1000.0f) + rng_normal(rng) * 0.05f;
}
static source *const sources[] = {ordinary, constant, outlier, tiny, extreme, offset};

/* The stored step of one element. */
static double step_of(const pkvi_layout *l, const char *part, bool keys, uint32_t h, uint32_t s,
                      uint32_t d)
{
    const char *tile = keys ? part + (size_t)h * l->k_head_bytes
                            : part + l->v_offset + (size_t)h * l->v_head_bytes;
    const size_t at = keys ? l->k_scale + 2 * d
                      : l->dtype_v == PKV_DTYPE_V8
                          ? l->v_scale + 2 * s
                          : l->v_scale + 2 * ((size_t)(d / 32) * l->page_tokens + s);
    static const pkvi_kernels *generic; /* asking the processor takes long */
    float x;
    if (!generic) generic = pkvi_kernel_find("generic");
    generic->convert(&x, PKV_DTYPE_F32, tile + at, PKV_DTYPE_F16, 1);
    return (double)x;
}

/* The widest step that the range of the element's neighbours may need. */
static double fair_step(const struct pages *p, bool keys, uint32_t h, uint32_t s, uint32_t d)
{
    const pkvi_layout *l = &p->sealed;
    const uint32_t d0 = l->dtype_v == PKV_DTYPE_V4 ? d / 32 * 32 : 0;
    const uint32_t d1 = l->dtype_v == PKV_DTYPE_V4 && d0 + 32 < DV ? d0 + 32 : DV;
    double lo = INFINITY, hi = -INFINITY;
    for (uint32_t i = keys ? 0 : d0; i < (keys ? l->page_tokens : d1); i++) {
        const double x = keys ? pkvi_reference_k(&p->open, p->from, h, i, d)
                              : pkvi_reference_v(&p->open, p->from, h, s, i);
        lo = fmin(lo, x);
        hi = fmax(hi, x);
    }
    double range = hi - lo, levels = 15;
    if (keys && l->dtype_k == PKV_DTYPE_K8) levels = 255;
    if (!keys && l->dtype_v == PKV_DTYPE_V8) {
        range = fmax(fabs(lo), fabs(hi));
        levels = 127;
    } else { /* the minimum is rounded down to a half */
        range += fmax(fabs(lo) * 0x1p-10, 0x1p-24);
    }
    return fmax(range / levels * (1 + 0x1p-9), 0x1p-24) + 0x1p-24;
}

static void check_element(const struct pages *p, bool keys, uint32_t h, uint32_t s, uint32_t d)
{
    const double was = keys ? pkvi_reference_k(&p->open, p->from, h, s, d)
                            : pkvi_reference_v(&p->open, p->from, h, s, d);
    const double is = keys ? pkvi_reference_k(&p->sealed, p->to, h, s, d)
                           : pkvi_reference_v(&p->sealed, p->to, h, s, d);
    const double step = step_of(&p->sealed, p->to, keys, h, s, d);
    ck_assert_msg(fabs(is - was) <= 0.5 * step * (1 + 0x1p-12),
                  "%s of %s, P %u, slot %u dim %u: %g became %g, step %g",
                  pkv_dtype_name(keys ? p->sealed.dtype_k : p->sealed.dtype_v),
                  pkv_dtype_name(p->open.dtype_k), p->open.page_tokens, s, d, was, is, step);
    if (keys ? s > 0 : d % 32 != 0) return; /* the step is another element's as well */
    ck_assert_msg(step <= fair_step(p, keys, h, s, d), "%s: step %g, %g would do",
                  pkv_dtype_name(keys ? p->sealed.dtype_k : p->sealed.dtype_v), step,
                  fair_step(p, keys, h, s, d));
}

START_TEST(within_half_a_step)
{
    const pkvi_kernels *kernels = pkvi_kernel_at((uint32_t)_i, 1);
    struct rng rng = {7};
    for (int f = N_PLAIN; f < N_FORMATS; f++)
        for (int t = 0; t < 3; t++)
            for (size_t w = 0; w < sizeof sources / sizeof *sources; w++) {
                /* The largest half is 65536 in bf16, which no half holds. */
                if (sources[w] == extreme && plain[t] == PKV_DTYPE_BF16) continue;
                struct pages p =
                    pages_new(plain[t], formats[f], page_sizes[(w + (size_t)(f + t)) % 6], 0);
                fill(kernels, &p, &rng, sources[w]);
                ck_assert_uint_eq(kernels->seal(&p.open, p.from, &p.sealed, p.to, 0, HEADS), 0);
                for (uint32_t h = 0; h < HEADS; h++)
                    for (uint32_t s = 0; s < p.open.page_tokens; s++)
                        for (uint32_t d = 0; d < DV; d++) {
                            if (d < DK && pkvi_layout_k_coded(&p.sealed))
                                check_element(&p, true, h, s, d);
                            if (pkvi_layout_v_coded(&p.sealed)) check_element(&p, false, h, s, d);
                        }
                pages_free(&p);
            }
}
END_TEST

START_TEST(constants_are_exact)
{
    const pkvi_kernels *kernels = pkvi_kernel_at((uint32_t)_i, 1);
    struct rng rng = {7};
    for (int f = N_PLAIN; f < N_FORMATS; f++) {
        struct pages p = pages_new(plain[f % 3], formats[f], page_sizes[f % 6], 0);
        fill(kernels, &p, &rng, constant);
        kernels->seal(&p.open, p.from, &p.sealed, p.to, 0, HEADS);
        for (uint32_t s = 0; s < p.open.page_tokens; s++) {
            for (uint32_t d = 0; d < DK; d++)
                ck_assert(pkvi_reference_k(&p.sealed, p.to, 1, s, d) ==
                          pkvi_reference_k(&p.open, p.from, 1, s, d));
            for (uint32_t d = 0; d < DV && p.sealed.dtype_v == PKV_DTYPE_V4; d++)
                ck_assert(pkvi_reference_v(&p.sealed, p.to, 1, s, d) == -7.5);
        }
        pages_free(&p);
    }
}
END_TEST

/* Every row makes the same bytes, padding included, also head by head. */
START_TEST(bytes_depend_on_the_page_alone)
{
    const pkvi_kernels *kernels = pkvi_kernel_at((uint32_t)_i, 1);
    const pkvi_kernels *generic = pkvi_kernel_find("generic");
    struct rng rng = {99};
    for (int i = 0; i < 6 * N_FORMATS; i++) {
        const struct format format = formats[i % N_FORMATS];
        struct pages p = pages_new(plain[i % 3], format, page_sizes[i % 6], 0);
        fill(kernels, &p, &rng, sources[i / 6 % 6]);
        char *other = must(malloc(p.sealed.part_bytes));
        memset(other, 0x5a, p.sealed.part_bytes);
        kernels->seal(&p.open, p.from, &p.sealed, p.to, 0, HEADS);
        for (uint32_t h = 0; h < HEADS; h++)
            generic->seal(&p.open, p.from, &p.sealed, other, h, h + 1);
        ck_assert_int_eq(memcmp(other, p.to, p.sealed.part_bytes), 0);
        free(other);
        pages_free(&p);
    }
}
END_TEST

/* read and unseal give the reference's values; a second seal of what was unsealed is within a step
 * of the first. */
START_TEST(reads_back)
{
    const pkvi_kernels *kernels = pkvi_kernel_at((uint32_t)_i, 1);
    struct rng rng = {11};
    for (int i = 0; i < 6 * N_FORMATS; i++) {
        const uint32_t P = page_sizes[i % 6], slot = rng_below(&rng, P);
        const uint32_t n = 1 + rng_below(&rng, P - slot);
        struct pages p = pages_new(plain[i % 3], formats[i % N_FORMATS], P, 0);
        fill(kernels, &p, &rng, ordinary);
        kernels->seal(&p.open, p.from, &p.sealed, p.to, 0, HEADS);
        float *k = must(malloc(n * HEADS * DK * sizeof *k));
        float *v = must(malloc(n * HEADS * DV * sizeof *v));
        const pkvi_move_job job = {
            .layout = &p.sealed,
            .part = p.to,
            .head1 = HEADS,
            .slot = slot,
            .n_tokens = n,
            .k = {k, PKV_DTYPE_F32, HEADS * DK * 4, DK * 4},
            .v = {v, PKV_DTYPE_F32, HEADS * DV * 4, DV * 4},
        };
        kernels->read(&job);
        pkvi_layout wide;
        ck_assert_int_eq(pkvi_layout_init(&wide, PKV_DTYPE_F32, PKV_DTYPE_F32, P, HEADS, DK, DV, 0),
                         PKV_OK);
        char *back = must(aligned_alloc(64, wide.part_bytes));
        kernels->unseal(&p.sealed, p.to, &wide, back, 0, HEADS);
        for (uint32_t t = 0; t < n; t++)
            for (uint32_t h = 0; h < HEADS; h++)
                for (uint32_t d = 0; d < DV; d++) {
                    const float got = v[(t * HEADS + h) * DV + d];
                    ck_assert(got == (float)pkvi_reference_v(&p.sealed, p.to, h, slot + t, d));
                    ck_assert((double)got == pkvi_reference_v(&wide, back, h, slot + t, d));
                    if (d >= DK) continue;
                    const float key = k[(t * HEADS + h) * DK + d];
                    ck_assert(key == (float)pkvi_reference_k(&p.sealed, p.to, h, slot + t, d));
                    ck_assert((double)key == pkvi_reference_k(&wide, back, h, slot + t, d));
                }
        free(back);
        free(k);
        free(v);
        /* And to the open page's own type. */
        char *again = must(aligned_alloc(64, p.open.part_bytes));
        kernels->unseal(&p.sealed, p.to, &p.open, again, 0, HEADS);
        for (uint32_t d = 0; d < DK; d++) {
            char want[4];
            const float x = (float)pkvi_reference_k(&p.sealed, p.to, 1, slot, d);
            kernels->convert(want, p.open.dtype_k, &x, PKV_DTYPE_F32, 1);
            ck_assert_int_eq(
                memcmp(want, again + pkvi_layout_k_at(&p.open, 1, slot, d), p.open.k_elem_bytes),
                0);
        }
        free(again);
        pages_free(&p);
    }
}
END_TEST

/* NaN, infinities and what no half can hold: the token is flagged, everything else is as it would
 * be without it. */
START_TEST(flags_what_it_cannot_hold)
{
    const pkvi_kernels *kernels = pkvi_kernel_at((uint32_t)_i, 1);
    const float bad[] = {NAN, INFINITY, -INFINITY, 1e30f};
    for (int i = 0; i < 12 * N_FORMATS; i++) {
        struct rng rng = {300 + (uint64_t)i}, same = rng;
        const uint32_t P = page_sizes[i % 6], at = 3 + (uint32_t)i % 5;
        const struct format format = formats[i % N_FORMATS];
        struct pages p = pages_new(i & 1 ? PKV_DTYPE_F32 : PKV_DTYPE_BF16, format, P, 0);
        struct pages q = pages_new(p.open.dtype_k, format, P, 0);
        fill(kernels, &p, &rng, ordinary);
        fill(kernels, &q, &same, ordinary);
        const float x = bad[i % 4];
        kernels->convert(p.from + pkvi_layout_k_at(&p.open, 1, at, 7), p.open.dtype_k, &x,
                         PKV_DTYPE_F32, 1);
        kernels->convert(p.from + pkvi_layout_v_at(&p.open, 1, at, 33), p.open.dtype_v, &x,
                         PKV_DTYPE_F32, 1);
        const uint32_t flagged = kernels->seal(&p.open, p.from, &p.sealed, p.to, 0, HEADS);
        kernels->seal(&q.open, q.from, &q.sealed, q.to, 0, HEADS);
        const bool k = pkvi_layout_k_coded(&p.sealed), v = pkvi_layout_v_coded(&p.sealed);
        ck_assert_uint_eq(flagged, (uint32_t)k + v);
        ck_assert_uint_eq(pkvi_layout_flagged(&p.sealed, p.to, 0), 0);
        ck_assert_uint_eq(pkvi_layout_flagged(&p.sealed, p.to, 1), k);
        for (uint32_t h = 0; h < HEADS; h++)
            for (uint32_t s = 0; s < P; s++)
                for (uint32_t d = 0; d < DV; d++) {
                    const double a = pkvi_reference_v(&p.sealed, p.to, h, s, d);
                    const double b = pkvi_reference_v(&q.sealed, q.to, h, s, d);
                    const bool hit = h == 1 && s == at;
                    const bool lost = hit && (format.v == PKV_DTYPE_V8 || d / 32 == 1);
                    if (v) ck_assert(lost ? isnan(a) : a == b);
                    if (!k || d >= DK) continue;
                    const double c = pkvi_reference_k(&p.sealed, p.to, h, s, d);
                    /* The channel's range may have shrunk with the token's own value. */
                    const double was = pkvi_reference_k(&q.open, q.from, h, s, d);
                    const double step = step_of(&p.sealed, p.to, true, h, s, d);
                    ck_assert(hit ? isnan(c) : fabs(c - was) <= 0.5 * step * (1 + 0x1p-12));
                }
        pkvi_layout wide;
        pkvi_layout_init(&wide, PKV_DTYPE_F16, PKV_DTYPE_F16, P, HEADS, DK, DV, 0);
        char *back = must(aligned_alloc(64, wide.part_bytes));
        kernels->unseal(&p.sealed, p.to, &wide, back, 0, HEADS);
        if (k) ck_assert(isnan(pkvi_reference_k(&wide, back, 1, at, 0)));
        if (v) ck_assert(isnan(pkvi_reference_v(&wide, back, 1, at, 33)));
        ck_assert(isfinite(pkvi_reference_k(&wide, back, 1, at + 1, 7)));
        free(back);
        pages_free(&p);
        pages_free(&q);
    }
}
END_TEST

/* Bounds without a digest, sums of keys with one. */
START_TEST(bounds_and_sums)
{
    const pkvi_kernels *kernels = pkvi_kernel_at((uint32_t)_i, 1);
    struct rng rng = {5};
    for (int i = 0; i < 36; i++) {
        const struct format format = {i & 1 ? PKV_DTYPE_K4 : PKV_DTYPE_K8, PKV_DTYPE_V8};
        const uint32_t P = page_sizes[i / 2 % 6];
        struct pages p = pages_new(PKV_DTYPE_F16, format, P, i % 3 ? 3 : 2);
        fill(kernels, &p, &rng, ordinary);
        kernels->seal(&p.open, p.from, &p.sealed, p.to, 0, HEADS);
        kernels->digest(&p.sealed, p.to, 0, HEADS, P);
        float q[HEADS * 5 * DK], best[HEADS];
        for (size_t j = 0; j < sizeof q / sizeof *q; j++)
            q[j] = rng_normal(&rng);
        const void *part = p.to;
        kernels->score(&p.sealed, &part, 1, 0, HEADS, q, 5, best);
        for (uint32_t h = 0; h < HEADS; h++) {
            double want = -INFINITY, seen = -INFINITY;
            for (uint32_t r = 0; r < 5; r++) {
                double bound = 0;
                for (uint32_t d = 0; d < DK; d++) {
                    const double x = (double)q[(h * 5 + r) * DK + d];
                    double lo = INFINITY, hi;
                    for (uint32_t s = 0; s < P; s++)
                        lo = fmin(lo, pkvi_reference_k(&p.sealed, p.to, h, s, d));
                    /* The lowest code is taken by the channel's minimum. */
                    hi = lo + (i & 1 ? 15 : 255) * step_of(&p.sealed, p.to, true, h, 0, d);
                    bound += fmax(x * lo, x * hi);
                }
                want = fmax(want, bound);
                for (uint32_t s = 0; s < P; s++) {
                    double dot = 0;
                    for (uint32_t d = 0; d < DK; d++)
                        dot += (double)q[(h * 5 + r) * DK + d] *
                               pkvi_reference_k(&p.sealed, p.to, h, s, d);
                    seen = fmax(seen, dot);
                }
            }
            ck_assert_double_ge((double)best[h], seen - 1e-3);
            ck_assert_double_eq_tol((double)best[h], want, 1e-3 * fabs(want) + 1e-2);
            for (uint32_t d = 0; d < DK; d++) {
                double sum = 0;
                float stored;
                for (uint32_t s = 0; s < P; s++) {
                    double norm = 0;
                    for (uint32_t j = 0; j < DK; j++)
                        norm += pow(pkvi_reference_k(&p.sealed, p.to, h, s, j), 2);
                    sum += pkvi_reference_k(&p.sealed, p.to, h, s, d) / sqrt(norm);
                }
                memcpy(&stored, p.to + p.sealed.sum_offset + ((size_t)h * DK + d) * 4, 4);
                ck_assert_double_eq_tol((double)stored, sum, 1e-5 * P);
            }
        }
        pages_free(&p);
    }
}
END_TEST

/* What a page costs: Llama-3-8B, pages of 32, against f16. */
START_TEST(bytes_per_token)
{
    const struct {
        struct format format;
        double most;
    } bars[] = {{{PKV_DTYPE_K8, PKV_DTYPE_V8}, 0.54},
                {{PKV_DTYPE_K8, PKV_DTYPE_V4}, 0.45},
                {{PKV_DTYPE_K4, PKV_DTYPE_V4}, 0.32}};
    pkvi_layout f16, l;
    ck_assert_int_eq(pkvi_layout_init(&f16, PKV_DTYPE_F16, PKV_DTYPE_F16, 32, 8, 128, 128, 0),
                     PKV_OK);
    for (size_t i = 0; i < sizeof bars / sizeof *bars; i++) {
        ck_assert_int_eq(
            pkvi_layout_init(&l, bars[i].format.k, bars[i].format.v, 32, 8, 128, 128, 1), PKV_OK);
        ck_assert_double_le((double)l.part_bytes / (double)f16.part_bytes, bars[i].most);
    }
}
END_TEST

/* Every code has bits of its own, apart from scales and flags. */
START_TEST(codes_do_not_overlap)
{
    for (int f = N_PLAIN; f < N_FORMATS; f++)
        for (int s = 0; s < N_PAGE_SIZES; s++) {
            pkvi_layout l;
            const uint32_t P = page_sizes[s];
            ck_assert_int_eq(pkvi_layout_init(&l, formats[f].k, formats[f].v, P, HEADS, DK, DV, 0),
                             PKV_OK);
            ck_assert_uint_eq(l.part_bytes % 64, 0);
            ck_assert_uint_eq(l.k_head_bytes % 64 + l.v_head_bytes % 64, 0);
            uint8_t *part = must(calloc(l.part_bytes, 1));
            for (uint32_t slot = 0; slot < P && pkvi_layout_k_coded(&l); slot++)
                for (uint32_t d = 0; d < DK; d++) {
                    const size_t at = pkvi_layout_k_at(&l, 1, slot, d);
                    ck_assert_uint_lt(at, l.k_head_bytes + l.k_scale);
                    part[at] = (uint8_t)(part[at] + (l.dtype_k == PKV_DTYPE_K8 ? 2 : 1));
                    ck_assert_uint_le(part[at], 2);
                }
            for (uint32_t slot = 0; slot < P && pkvi_layout_v_coded(&l); slot++)
                for (uint32_t d = 0; d < DV; d++) {
                    const size_t at = pkvi_layout_v_at(&l, 1, slot, d);
                    ck_assert_uint_lt(at, l.v_offset + l.v_head_bytes + l.v_scale);
                    part[at] = (uint8_t)(part[at] + (l.dtype_v == PKV_DTYPE_V8 ? 2 : 1));
                    ck_assert_uint_le(part[at], 2);
                }
            free(part);
        }
}
END_TEST

/* ---- attention over unusual pages --------------------------------------------------------------
 */

enum { PAGES = 5, ROWS = 7, BAD_PAGE = 2, BAD_DIM = 33 };

/* Pages, queries, and what rows see: row r the slots [lo[r], hi[r]). */
struct attended {
    struct pages pages[PAGES];
    uint32_t P, lo[ROWS], hi[ROWS];
    float q[HEADS * ROWS * DK], o[HEADS * ROWS * DV], m[HEADS * ROWS], l[HEADS * ROWS];
    float scale;
    uint32_t bad; /* a slot with a key and a value that no half holds, of head 1; PAGES * P: none */
};

static double key_at(const struct attended *a, uint32_t h, uint32_t slot, uint32_t d)
{
    const struct pages *p = &a->pages[slot / a->P];
    return pkvi_reference_k(&p->sealed, p->to, h, slot % a->P, d);
}
static double value_at(const struct attended *a, uint32_t h, uint32_t slot, uint32_t d)
{
    const struct pages *p = &a->pages[slot / a->P];
    return pkvi_reference_v(&p->sealed, p->to, h, slot % a->P, d);
}

/* What rounding is relative to: V4 sums codes and minima apart. */
static double value_size(const struct attended *a, uint32_t h, uint32_t slot, uint32_t d)
{
    const struct pages *p = &a->pages[slot / a->P];
    const double v = fabs(value_at(a, h, slot, d));
    if (p->sealed.dtype_v != PKV_DTYPE_V4) return v;
    return v + 15 * step_of(&p->sealed, p->to, false, h, slot % a->P, d) * 2;
}

static void attended_new(struct attended *a, const pkvi_kernels *kernels, struct rng *rng,
                         struct format format, source *value, bool poisoned)
{
    double most = 1e-30;
    a->bad = poisoned ? BAD_PAGE * a->P + 3 : PAGES * a->P;
    for (uint32_t i = 0; i < PAGES; i++) {
        struct pages *p = &a->pages[i];
        *p = pages_new(PKV_DTYPE_F16, format, a->P, 0);
        fill(kernels, p, rng, value);
        if (poisoned && i == BAD_PAGE) {
            const float x[2] = {NAN, INFINITY};
            if (pkvi_layout_k_coded(&p->sealed))
                kernels->convert(p->from + pkvi_layout_k_at(&p->open, 1, 3, 7), PKV_DTYPE_F16,
                                 &x[0], PKV_DTYPE_F32, 1);
            kernels->convert(p->from + pkvi_layout_v_at(&p->open, 1, 3, BAD_DIM), PKV_DTYPE_F16,
                             &x[1], PKV_DTYPE_F32, 1);
        }
        kernels->seal(&p->open, p->from, &p->sealed, p->to, 0, HEADS);
    }
    for (uint32_t i = 0; i < HEADS * ROWS * DK; i++)
        a->q[i] = rng_normal(rng);
    for (uint32_t r = 0; r < ROWS; r++) {
        a->lo[r] = r % 3 == 2 ? BAD_PAGE * a->P + 4 + r : r;
        a->hi[r] = r % 3 == 1 ? BAD_PAGE * a->P + 3 : PAGES * a->P - r;
    }
    for (uint32_t slot = 0; slot < PAGES * a->P; slot++)
        for (uint32_t d = 0; d < HEADS * DK; d++)
            if (slot != a->bad) most = fmax(most, fabs(key_at(a, d / DK, slot, d % DK)));
    a->scale = (float)(3 / (most * sqrt(DK)));
}

static void attended_run(struct attended *a, const pkvi_kernels *kernels)
{
    const pkvi_layout *l = &a->pages[0].sealed;
    const void *parts[PAGES];
    for (uint32_t i = 0; i < PAGES; i++)
        parts[i] = a->pages[i].to;
    void *scratch = must(aligned_alloc(64, pkvi_kernel_scratch(l, HEADS, ROWS)));
    const pkvi_attend_job job = {.layout = l,
                                 .parts = parts,
                                 .n_pages = PAGES,
                                 .head1 = HEADS,
                                 .n_rows = ROWS,
                                 .q = a->q,
                                 .q_head_stride = ROWS * DK,
                                 .lo = a->lo,
                                 .hi = a->hi,
                                 .scale = a->scale,
                                 .o = a->o,
                                 .o_head_stride = ROWS * DV,
                                 .o_stride = DV,
                                 .m = a->m,
                                 .l = a->l,
                                 .scratch = scratch};
    kernels->attend(&job);
    free(scratch);
}

/* One row of one head against double precision over the stored values. */
static void attended_check(const struct attended *a, uint32_t h, uint32_t r)
{
    const struct format format = {a->pages[0].sealed.dtype_k, a->pages[0].sealed.dtype_v};
    const float *q = a->q + (h * ROWS + r) * DK, *o = a->o + (h * ROWS + r) * DV;
    const float l = a->l[h * ROWS + r];
    const bool sees_bad = h == 1 && a->lo[r] <= a->bad && a->bad < a->hi[r];
    const bool bad_key = pkvi_layout_k_coded(&a->pages[0].sealed);
    double p[PAGES * 256], max = -INFINITY, sum = 0, size = 0;
    if (sees_bad && bad_key) {
        ck_assert(isnan(l));
        return;
    }
    for (uint32_t t = a->lo[r]; t < a->hi[r]; t++) {
        double dot = 0, terms = 0;
        for (uint32_t d = 0; d < DK; d++) {
            const struct pages *page = &a->pages[t / a->P];
            const double k = key_at(a, h, t, d), x = (double)q[d];
            const double wide =
                bad_key ? 255 * step_of(&page->sealed, page->to, true, h, t % a->P, d) : 0;
            dot += x * k;
            terms += fabs(x) * (fabs(k) + 2 * wide);
        }
        p[t] = dot * (double)a->scale;
        max = fmax(max, p[t]);
        size = fmax(size, terms * (double)a->scale);
    }
    for (uint32_t t = a->lo[r]; t < a->hi[r]; t++)
        sum += p[t] = exp(p[t] - max);
    for (uint32_t d = 0; d < DV; d++) {
        double want = 0, sizes = 0;
        for (uint32_t t = a->lo[r]; t < a->hi[r]; t++) {
            want += p[t] * value_at(a, h, t, d) / sum;
            sizes += p[t] * value_size(a, h, t, d) / sum;
        }
        if (isnan(want)) { /* the value that no half holds, and what shares its scale */
            ck_assert(sees_bad && (format.v != PKV_DTYPE_V4 || d / 32 == BAD_DIM / 32));
            ck_assert(isnan(o[d]));
            continue;
        }
        const double got = (double)o[d] / (double)l, error = fabs(got - want);
        ck_assert_msg(error <= (1e-5 + 4e-7 * size) * sizes + 1e-35,
                      "%s %s, P %u, row %u dim %u: %g, reference %g, sizes %g and %g",
                      pkv_dtype_name(format.k), pkv_dtype_name(format.v), a->P, r, d, got, want,
                      size, sizes);
    }
}

START_TEST(unusual_pages_are_attended_exactly)
{
    const pkvi_kernels *kernels = pkvi_kernel_at((uint32_t)_i, 1);
    struct rng rng = {77};
    for (int f = N_PLAIN; f < N_FORMATS; f++)
        for (size_t w = 0; w < 2 * sizeof sources / sizeof *sources; w++) {
            struct attended a = {.P = page_sizes[(w + (size_t)f) % 6]};
            attended_new(&a, kernels, &rng, formats[f], sources[w / 2], w % 2);
            const bool flags = pkvi_layout_v_coded(&a.pages[0].sealed);
            if (w % 2 == 0 || flags) attended_run(&a, kernels);
            for (uint32_t h = 0; (w % 2 == 0 || flags) && h < HEADS; h++)
                for (uint32_t r = 0; r < ROWS; r++)
                    attended_check(&a, h, r);
            for (uint32_t i = 0; i < PAGES; i++)
                pages_free(&a.pages[i]);
        }
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("kernel sealed");
    TCase *tests = tcase_create("rows");
    const int n = (int)rows_usable();
    tcase_set_timeout(tests, 240);
    tcase_add_test(tests, bytes_per_token);
    tcase_add_test(tests, codes_do_not_overlap);
    tcase_add_loop_test(tests, within_half_a_step, 0, n);
    tcase_add_loop_test(tests, constants_are_exact, 0, n);
    tcase_add_loop_test(tests, bytes_depend_on_the_page_alone, 0, n);
    tcase_add_loop_test(tests, reads_back, 0, n);
    tcase_add_loop_test(tests, flags_what_it_cannot_hold, 0, n);
    tcase_add_loop_test(tests, bounds_and_sums, 0, n);
    tcase_add_loop_test(tests, unusual_pages_are_attended_exactly, 0, n);
    suite_add_tcase(suite, tests);
    return suite;
}
