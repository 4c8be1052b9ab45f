#include "shape.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

const struct format formats[N_FORMATS] = {
    {PKV_DTYPE_F32, PKV_DTYPE_F32},   {PKV_DTYPE_F16, PKV_DTYPE_F16},
    {PKV_DTYPE_BF16, PKV_DTYPE_BF16}, {PKV_DTYPE_K8, PKV_DTYPE_V8},
    {PKV_DTYPE_K8, PKV_DTYPE_V4},     {PKV_DTYPE_K4, PKV_DTYPE_V4},
    {PKV_DTYPE_K8, PKV_DTYPE_F16},    {PKV_DTYPE_F16, PKV_DTYPE_V8},
    {PKV_DTYPE_K4, PKV_DTYPE_BF16},   {PKV_DTYPE_BF16, PKV_DTYPE_V4},
    {PKV_DTYPE_F32, PKV_DTYPE_F16},
};
const uint32_t page_sizes[N_PAGE_SIZES] = {8, 16, 32, 64, 128, 256};

uint64_t rng_next(struct rng *rng)
{
    uint64_t x = rng->state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    rng->state = x;
    return x * UINT64_C(0x2545f4914f6cdd1d);
}

uint32_t rng_below(struct rng *rng, uint32_t n)
{
    return (uint32_t)((rng_next(rng) >> 33) % n);
}

float rng_normal(struct rng *rng)
{
    float sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (float)(rng_next(rng) >> 40) * 0x1p-24f - 0.5f;
    return sum * 1.7320508f;
}

static void *must(void *p)
{
    ck_assert_ptr_nonnull(p);
    return p;
}

uint32_t rows_usable(void)
{
    uint32_t n = 0;
    while (pkvi_kernel_at(n, 1))
        n++;
    return n;
}

/* Memory that ends right at an inaccessible page. */
static char *guarded(size_t bytes, size_t *mapped)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t whole = (bytes + page - 1) / page * page;
    char *base =
        mmap(NULL, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert(base != MAP_FAILED);
    ck_assert_int_eq(mprotect(base + whole, page, PROT_NONE), 0);
    *mapped = whole + page;
    return base + whole - bytes;
}

static void fill_tokens(struct problem *p, const pkvi_kernels *kernels, struct rng *rng)
{
    const struct shape *s = &p->shape;
    const size_t k_row = (size_t)s->heads * s->dim_k, v_row = (size_t)s->heads * s->dim_v;
    float *k = must(malloc(k_row * sizeof *k)), *v = must(malloc(v_row * sizeof *v));
    for (uint32_t t = 0; t < s->tokens; t++) {
        for (size_t i = 0; i < k_row; i++)
            k[i] = rng_normal(rng);
        for (size_t i = 0; i < v_row; i++)
            v[i] = rng_normal(rng) * s->v_scale;
        pkvi_move_job move = {
            .layout = p->open_parts ? &p->open : &p->layout,
            .part = p->open_parts ? p->open_parts[t / s->page_tokens]
                                  : (void *)(uintptr_t)p->parts[t / s->page_tokens],
            .head1 = s->heads,
            .slot = t % s->page_tokens,
            .n_tokens = 1,
            .k = {k, PKV_DTYPE_F32, 0, (ptrdiff_t)(s->dim_k * sizeof(float))},
            .v = {v, PKV_DTYPE_F32, 0, (ptrdiff_t)(s->dim_v * sizeof(float))},
        };
        kernels->write(&move);
    }
    free(k);
    free(v);
    p->stale = p->open_parts != NULL;
    problem_seal(p);
}

void problem_seal(struct problem *p)
{
    const uint32_t n = (p->shape.tokens + p->shape.page_tokens - 1) / p->shape.page_tokens;
    for (uint32_t i = 0; p->stale && i < n; i++)
        p->kernels->seal(&p->open, p->open_parts[i], &p->layout, (void *)(uintptr_t)p->parts[i], 0,
                         p->shape.heads);
    p->stale = false;
}

static void place_pages(struct problem *p, uint32_t n_pages, struct rng *rng)
{
    const size_t part = p->layout.part_bytes;
    size_t bytes = part * n_pages;
    p->arena = guarded(bytes, &p->arena_bytes);
    memset(p->arena, 0xff, bytes); /* NaN in every format */
    p->parts = must(calloc(n_pages, sizeof *p->parts));
    for (uint32_t i = 0; i < n_pages; i++) {
        uint32_t j = rng_below(rng, i + 1);
        p->parts[i] = p->parts[j];
        p->parts[j] = p->arena + part * i;
    }
}

/* Plain pages of their own, filled with NaN, for a layout that cannot be written by rows. */
static void place_open_pages(struct problem *p, uint32_t n_pages)
{
    const struct shape *s = &p->shape;
    ck_assert_int_eq(pkvi_layout_init(&p->open, PKV_DTYPE_F32, PKV_DTYPE_F32, s->page_tokens,
                                      s->heads, s->dim_k, s->dim_v, 0),
                     PKV_OK);
    p->open_parts = must(calloc(n_pages, sizeof *p->open_parts));
    for (uint32_t i = 0; i < n_pages; i++) {
        p->open_parts[i] = must(aligned_alloc(64, p->open.part_bytes));
        memset(p->open_parts[i], 0xff, p->open.part_bytes);
    }
}

struct problem *problem_new(const pkvi_kernels *kernels, const struct shape *shape, struct rng *rng)
{
    struct problem *p = must(calloc(1, sizeof *p));
    p->shape = *shape;
    p->logit_factor = 1;
    p->kernels = kernels;
    struct shape *s = &p->shape;
    if (!s->format.k) s->format = formats[0];
    if (!s->page_tokens) s->page_tokens = 16;
    if (!s->heads) s->heads = 1;
    if (!s->rows) s->rows = 1;
    if (!s->dim_v) s->dim_v = s->dim_k;
    if (s->q_scale == 0) s->q_scale = 1;
    if (s->v_scale == 0) s->v_scale = 1;
    ck_assert_int_eq(pkvi_layout_init(&p->layout, s->format.k, s->format.v, s->page_tokens,
                                      s->heads, s->dim_k, s->dim_v, s->digest),
                     PKV_OK);
    uint32_t n_pages = (s->tokens + s->page_tokens - 1) / s->page_tokens;
    if (n_pages == 0) n_pages = 1;
    place_pages(p, n_pages, rng);
    if (pkvi_layout_k_coded(&p->layout) || pkvi_layout_v_coded(&p->layout))
        place_open_pages(p, n_pages);
    fill_tokens(p, kernels, rng);

    const size_t states = (size_t)s->heads * s->rows;
    p->o_stride = (s->dim_v + 15) / 16 * 16;
    p->q = must(malloc(states * s->dim_k * sizeof *p->q));
    for (size_t i = 0; i < states * s->dim_k; i++)
        p->q[i] = rng_normal(rng) * s->q_scale;
    p->lo = must(calloc(s->rows, sizeof *p->lo));
    p->hi = must(calloc(s->rows, sizeof *p->hi));
    p->q_pos = must(calloc(s->rows, sizeof *p->q_pos));
    p->tree_rows = must(calloc(s->rows, sizeof *p->tree_rows));
    for (uint32_t r = 0; r < s->rows; r++) {
        p->hi[r] = s->tokens;
        p->q_pos[r] = (int32_t)s->tokens;
    }
    p->o = must(malloc(states * p->o_stride * sizeof *p->o));
    p->m = must(malloc(states * sizeof *p->m));
    p->l = must(malloc(states * sizeof *p->l));
    memset(p->o, 0xff, states * p->o_stride * sizeof *p->o);
    p->scratch_bytes = pkvi_kernel_scratch(&p->layout, s->heads, s->rows);
    p->scratch = must(aligned_alloc(64, p->scratch_bytes + 64));
    memset(p->scratch, 0xff, p->scratch_bytes + 64);
    p->job = (pkvi_attend_job){.layout = &p->layout,
                               .parts = p->parts,
                               .n_pages = n_pages,
                               .leaf_phase = s->leaf_phase,
                               .head1 = s->heads,
                               .n_rows = s->rows,
                               .q = p->q,
                               .q_head_stride = (size_t)s->rows * s->dim_k,
                               .lo = p->lo,
                               .hi = p->hi,
                               .tree_rows = p->tree_rows,
                               .scale = 1.0f / sqrtf((float)s->dim_k),
                               .q_pos = p->q_pos,
                               .o = p->o,
                               .o_head_stride = (size_t)s->rows * p->o_stride,
                               .o_stride = p->o_stride,
                               .m = p->m,
                               .l = p->l,
                               .scratch = p->scratch};
    return p;
}

void problem_free(struct problem *p)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uintptr_t base = (uintptr_t)p->arena / page * page;
    munmap((void *)base, p->arena_bytes);
    for (uint32_t i = 0; p->open_parts && i < p->job.n_pages; i++)
        free(p->open_parts[i]);
    free(p->open_parts);
    free((void *)(uintptr_t)p->parts);
    free(p->q);
    free(p->lo);
    free(p->hi);
    free(p->q_pos);
    free((void *)(uintptr_t)p->tree_rows);
    free(p->o);
    free(p->m);
    free(p->l);
    free(p->scratch);
    free(p);
}

static void set_element(struct problem *p, bool keys, uint32_t head, uint32_t slot, uint32_t dim,
                        float x)
{
    const uint32_t P = p->layout.page_tokens;
    const pkvi_layout *l = p->open_parts ? &p->open : &p->layout;
    char *part = p->open_parts ? p->open_parts[slot / P] : (char *)(uintptr_t)p->parts[slot / P];
    const size_t at =
        keys ? pkvi_layout_k_at(l, head, slot % P, dim) : pkvi_layout_v_at(l, head, slot % P, dim);
    p->kernels->convert(part + at, keys ? l->dtype_k : l->dtype_v, &x, PKV_DTYPE_F32, 1);
    p->stale = p->open_parts != NULL;
}

void problem_set_k(struct problem *p, uint32_t head, uint32_t slot, uint32_t dim, float x)
{
    set_element(p, true, head, slot, dim, x);
}

void problem_set_v(struct problem *p, uint32_t head, uint32_t slot, uint32_t dim, float x)
{
    set_element(p, false, head, slot, dim, x);
}

static bool rounds_probabilities(const struct problem *p, const pkvi_kernels *kernels)
{
    return p->layout.dtype_k == PKV_DTYPE_BF16 && p->layout.dtype_v == PKV_DTYPE_BF16 &&
           strstr(kernels->name, "bf16") != NULL;
}

double problem_gate(const struct problem *p, const pkvi_kernels *kernels)
{
    return rounds_probabilities(p, kernels) ? 0x1p-8 : 1e-5;
}

/* Error of a logit: that of a float sum of dim_k products (of a split q for bf16 dot products),
 * relative to sum |q||k|, which is bounded here through norms. */
static double logit_error(const struct problem *p, const pkvi_kernels *kernels, uint32_t head,
                          uint32_t row)
{
    const pkvi_layout *l = &p->layout;
    const float *q = p->q + ((size_t)head * p->shape.rows + row) * l->dim_k;
    double worst = 0;
    for (uint32_t s = p->lo[row]; s < p->hi[row]; s++) {
        double sum = 0;
        for (uint32_t d = 0; d < l->dim_k; d++)
            sum += fabs((double)q[d] * pkvi_reference_k(l, p->parts[s / l->page_tokens], head,
                                                        s % l->page_tokens, d));
        worst = fmax(worst, isfinite(sum) ? sum : 0);
    }
    const double eps = rounds_probabilities(p, kernels) ? 0x1p-16 : 0x1p-22;
    double e = eps * worst * fabs((double)p->job.scale) * p->logit_factor;
    if (p->job.slopes) { /* positions in the tests stay below 20000 */
        const float slope = p->job.slopes[(size_t)head * p->shape.rows + row];
        e += 0x1p-23 * fabs((double)slope) * 20000;
    }
    return e;
}

static void check_row(struct problem *p, const pkvi_kernels *kernels, uint32_t head, uint32_t row,
                      double sink)
{
    double ref[PKV_MAX_HEAD_DIM], weights[PKV_MAX_HEAD_DIM], ref_lse;
    float out[PKV_MAX_HEAD_DIM], lse;
    void *out_at = out;
    float *lse_at = &lse, natural = (float)sink;
    const size_t at = (size_t)head * p->shape.rows + row;
    pkvi_reference_row(&p->job, head, row, sink, ref, &ref_lse, weights, NULL);
    pkvi_finish_job finish = {.o = p->o + at * p->o_stride,
                              .o_stride = p->o_stride,
                              .m = p->m + at,
                              .l = p->l + at,
                              .sinks = &natural,
                              .n_rows = 1,
                              .dim = p->layout.dim_v,
                              .dtype = PKV_DTYPE_F32,
                              .out = &out_at,
                              .lse = &lse_at};
    kernels->finish(&finish);
    /* An error e of every logit changes p by up to e^2e - 1 of itself. */
    const double e = logit_error(p, kernels, head, row);
    const double gate = problem_gate(p, kernels) + expm1(2 * e);
    for (uint32_t d = 0; d < p->layout.dim_v; d++)
        ck_assert_msg(isnan(ref[d]) ? isnan(out[d])
                                    : fabs((double)out[d] - ref[d]) <= gate * weights[d] + 1e-30,
                      "%s %s/%s P=%u d=%u/%u rows=%u tokens=%u: head %u row %u dim %u: %g, not %g "
                      "(gate %g of %g)",
                      kernels->name, pkv_dtype_name(p->layout.dtype_k),
                      pkv_dtype_name(p->layout.dtype_v), p->layout.page_tokens, p->layout.dim_k,
                      p->layout.dim_v, p->shape.rows, p->shape.tokens, head, row, d, (double)out[d],
                      ref[d], gate, weights[d]);
    const bool same = isnan(ref_lse)   ? isnan(lse)
                      : isinf(ref_lse) ? (double)lse == ref_lse
                                       : fabs((double)lse - ref_lse) <=
                                             problem_gate(p, kernels) + e + 0x1p-22 * fabs(ref_lse);
    ck_assert_msg(same, "%s: lse %g, not %g", kernels->name, (double)lse, ref_lse);
}

void problem_check(struct problem *p, const pkvi_kernels *kernels, const float *sinks)
{
    char *end = (char *)p->scratch + p->scratch_bytes;
    memset(end, 0x5a, 64);
    problem_seal(p);
    kernels->attend(&p->job);
    for (int i = 0; i < 64; i++)
        ck_assert_msg(end[i] == 0x5a, "scratch overrun");
    for (uint32_t h = 0; h < p->shape.heads; h++)
        for (uint32_t r = 0; r < p->shape.rows; r++)
            check_row(p, kernels, h, r, sinks ? (double)sinks[h] : -(double)INFINITY);
}
