/* Conversions and the exponential of every kernel row, exhaustively where that is possible. */
#include "shape.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "suite.h"

static const pkvi_kernels *row_at(int i)
{
    return pkvi_kernel_at((uint32_t)i, 1);
}

static uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The value of a half or bf16, from the definition of the format. */
static double value_of(pkv_dtype dtype, uint16_t h)
{
    const int mantissa_bits = dtype == PKV_DTYPE_F16 ? 10 : 7, exponent_bits = 15 - mantissa_bits;
    const int bias = (1 << (exponent_bits - 1)) - 1, top = (1 << exponent_bits) - 1;
    const int mantissa = h & ((1 << mantissa_bits) - 1), exponent = h >> mantissa_bits & top;
    double x;
    if (exponent == top)
        x = mantissa ? (double)NAN : (double)INFINITY;
    else if (exponent == 0)
        x = ldexp(mantissa, 1 - bias - mantissa_bits);
    else
        x = ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
    return h & 0x8000 ? -x : x;
}

START_TEST(widening_is_exact)
{
    const pkvi_kernels *kernels = row_at(_i);
    const pkv_dtype types[] = {PKV_DTYPE_F16, PKV_DTYPE_BF16};
    uint16_t *all = malloc(65536 * sizeof *all);
    float *wide = malloc(65536 * sizeof *wide);
    ck_assert(all && wide);
    for (uint32_t i = 0; i < 65536; i++)
        all[i] = (uint16_t)i;
    for (int t = 0; t < 2; t++) {
        kernels->convert(wide, PKV_DTYPE_F32, all, types[t], 65536);
        for (uint32_t i = 0; i < 65536; i++) {
            const double want = value_of(types[t], (uint16_t)i);
            if (isnan(want))
                ck_assert(isnan(wide[i]));
            else
                ck_assert_msg((double)wide[i] == want && !signbit(wide[i]) == !signbit(want),
                              "%s: %x gives %g", kernels->name, i, (double)wide[i]);
        }
        /* And back, bit for bit (NaN only stays NaN). */
        uint16_t *back = malloc(65536 * sizeof *back);
        ck_assert_ptr_nonnull(back);
        kernels->convert(back, types[t], wide, PKV_DTYPE_F32, 65536);
        for (uint32_t i = 0; i < 65536; i++)
            ck_assert(isnan(wide[i]) ? isnan(value_of(types[t], back[i])) : back[i] == all[i]);
        free(back);
    }
    free(all);
    free(wide);
}
END_TEST

/* Nearest value of the format, ties to even, by looking at the neighbours. */
static uint16_t nearest(pkv_dtype dtype, float x)
{
    const uint16_t inf = dtype == PKV_DTYPE_F16 ? 0x7c00 : 0x7f80;
    const double a = fabs((double)x);
    uint16_t lo = 0, hi = inf; /* finite formats are ordered like their bits */
    while (hi - lo > 1) {
        const uint16_t mid = (uint16_t)((lo + hi) / 2);
        if (value_of(dtype, mid) <= a)
            lo = mid;
        else
            hi = mid;
    }
    /* Beyond the largest finite value, infinity counts as the next step. */
    const double low = value_of(dtype, lo);
    const double high =
        hi == inf ? 2 * low - value_of(dtype, (uint16_t)(lo - 1)) : value_of(dtype, hi);
    const double middle = (low + high) / 2;
    uint16_t h = a < middle ? lo : a > middle ? hi : lo % 2 == 0 ? lo : hi;
    return (uint16_t)(h | (signbit(x) ? 0x8000 : 0));
}

START_TEST(narrowing_rounds_to_nearest_even)
{
    const pkvi_kernels *kernels = row_at(_i);
    const pkv_dtype types[] = {PKV_DTYPE_F16, PKV_DTYPE_BF16};
    struct rng rng = {4242};
    enum { N = 40000 };
    float *x = malloc(N * sizeof *x);
    uint16_t *h = malloc(N * sizeof *h);
    ck_assert(x && h);
    for (int t = 0; t < 2; t++) {
        const uint32_t keep = t ? 16 : 13; /* dropped bits of a normal result */
        for (int i = 0; i < N; i++) {
            uint32_t bits = (uint32_t)(rng_next(&rng) >> 32);
            if (t == 0 && i % 4) /* a range where halves are finite, denormal ones included */
                bits = (bits & 0x80ffffffu) | (0x33000000u + (uint32_t)(i % 21) * 0x800000u);
            if (i % 3 == 0) bits = bits >> keep << keep | 1u << (keep - 1); /* a tie */
            if (i % 15 == 0) bits += (uint32_t)(i % 2) * 2 - 1;             /* just beside one */
            x[i] = float_of(bits);
        }
        x[0] = 65504.0f;
        x[1] = 65519.996f;
        x[2] = 65520.0f;
        x[3] = -0.0f;
        x[4] = INFINITY;
        x[5] = 0x1.fffffep127f;
        kernels->convert(h, types[t], x, PKV_DTYPE_F32, N);
        for (int i = 0; i < N; i++) {
            if (isnan(x[i]))
                ck_assert(isnan(value_of(types[t], h[i])));
            else
                ck_assert_msg(h[i] == nearest(types[t], x[i]), "%s %s: %a gives %x, not %x",
                              kernels->name, pkv_dtype_name(types[t]), (double)x[i], h[i],
                              nearest(types[t], x[i]));
        }
    }
    free(x);
    free(h);
}
END_TEST

/* Lengths that are no multiple of a vector touch nothing beyond them, at any alignment. */
START_TEST(tails_are_exact)
{
    const pkvi_kernels *kernels = row_at(_i);
    const pkv_dtype types[] = {PKV_DTYPE_F32, PKV_DTYPE_F16, PKV_DTYPE_BF16};
    for (size_t n = 0; n < 70; n++)
        for (int from = 0; from < 3; from++)
            for (int to = 0; to < 3; to++) {
                char in[320], out[320], one[4];
                const size_t a = pkv_dtype_size(types[from]), b = pkv_dtype_size(types[to]);
                for (size_t i = 0; i < n; i++) {
                    const float x = (float)i - 20.25f;
                    kernels->convert(in + 4 + i * a, types[from], &x, PKV_DTYPE_F32, 1);
                }
                memset(out, 0x77, sizeof out);
                kernels->convert(out + 4, types[to], in + 4, types[from], n);
                for (size_t i = 0; i < n; i++) {
                    kernels->convert(one, types[to], in + 4 + i * a, types[from], 1);
                    ck_assert_int_eq(memcmp(one, out + 4 + i * b, b), 0);
                }
                for (size_t i = 0; i < 4; i++)
                    ck_assert_int_eq(out[i], 0x77);
                for (size_t i = 4 + n * b; i < sizeof out; i++)
                    ck_assert_int_eq(out[i], 0x77);
            }
}
END_TEST

START_TEST(exp2_within_two_ulp)
{
    const pkvi_kernels *kernels = row_at(_i);
    enum { N = 4096 };
    float x[N], y[N];
    double worst = 0;
    /* Every exponent, and a dense sweep of the mantissas of each. */
    for (uint32_t exponent = 90; exponent < 134; exponent++)
        for (uint32_t part = 0; part < 8; part++) {
            for (uint32_t i = 0; i < N; i++) {
                const uint32_t mantissa = (part * N + i) * 256 + (i * 37 & 255);
                x[i] = float_of(0x80000000u | exponent << 23 | mantissa);
            }
            kernels->exp2(y, x, N);
            for (uint32_t i = 0; i < N; i++) {
                const double want = exp2((double)x[i]);
                if (x[i] < -126.0f) {
                    ck_assert(y[i] == 0.0f);
                    continue;
                }
                const double ulp = (double)nextafterf((float)want, INFINITY) - (double)(float)want;
                worst = fmax(worst, fabs((double)y[i] - want) / ulp);
            }
        }
    ck_assert_msg(worst <= 2.0, "%s: %g ulp", kernels->name, worst);
    const float special[] = {0.0f, -0.0f, -INFINITY, NAN, -126.0f, -1e30f, 1.0f};
    kernels->exp2(y, special, 7);
    ck_assert(y[0] == 1.0f && y[1] == 1.0f && y[2] == 0.0f && isnan(y[3]));
    ck_assert(y[4] == 0x1p-126f && y[5] == 0.0f && y[6] == 2.0f);
    ck_assert_uint_eq(bits_of(y[2]), 0);
}
END_TEST

/* Rows agree bit for bit on conversions, NaNs included. */
START_TEST(rows_agree)
{
    const pkvi_kernels *kernels = row_at(_i), *plain = pkvi_kernel_find("generic");
    struct rng rng = {9};
    float x[1024];
    uint16_t a[1024], b[1024];
    ck_assert_ptr_nonnull(plain);
    for (int round = 0; round < 50; round++) {
        for (int i = 0; i < 1024; i++)
            x[i] = float_of((uint32_t)(rng_next(&rng) >> 32));
        for (int i = 0; i < 1024; i += 16)
            x[i] = float_of(0x7f800000u | (bits_of(x[i]) & 0x807fffffu));
        for (pkv_dtype t = PKV_DTYPE_F16; t <= PKV_DTYPE_BF16; t++) {
            kernels->convert(a, t, x, PKV_DTYPE_F32, 1024);
            plain->convert(b, t, x, PKV_DTYPE_F32, 1024);
            ck_assert_int_eq(memcmp(a, b, sizeof a), 0);
        }
    }
}
END_TEST

START_TEST(vectors_are_compared)
{
    const pkvi_kernels *kernels = row_at(_i);
    float a[PKV_MAX_HEAD_DIM], b[PKV_MAX_HEAD_DIM + 1];
    for (uint32_t n = 8; n <= PKV_MAX_HEAD_DIM; n += 8) {
        double want = 0, moved = 0;
        for (uint32_t i = 0; i < n; i++) {
            a[i] = (float)((i * 7 + n) % 23) / 11 - 1;
            b[i] = (float)((i * 5 + n) % 19) / 9 - 1;
            want += (double)a[i] * (double)b[i];
            moved += ((double)a[i] * 0.5 - (double)b[i]) * ((double)a[i] * 0.5 - (double)b[i]);
        }
        b[n] = 7;
        ck_assert_double_eq_tol((double)kernels->dot(a, b, n), want, 1e-5 * n);
        ck_assert_double_eq_tol((double)kernels->turn(b, a, 0.5f, n), moved, 1e-5 * n);
        for (uint32_t i = 0; i < n; i++)
            ck_assert_float_eq(b[i], a[i] * 0.5f);
        ck_assert_float_eq(b[n], 7);
        ck_assert_float_eq(kernels->turn(b, a, 0.5f, n), 0);
    }
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("kernel convert");
    TCase *tests = tcase_create("rows");
    const int n = (int)rows_usable();
    tcase_set_timeout(tests, 120);
    tcase_add_loop_test(tests, widening_is_exact, 0, n);
    tcase_add_loop_test(tests, narrowing_rounds_to_nearest_even, 0, n);
    tcase_add_loop_test(tests, tails_are_exact, 0, n);
    tcase_add_loop_test(tests, exp2_within_two_ulp, 0, n);
    tcase_add_loop_test(tests, rows_agree, 0, n);
    tcase_add_loop_test(tests, vectors_are_compared, 0, n);
    suite_add_tcase(suite, tests);
    return suite;
}
