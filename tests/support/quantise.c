#include "quantise.h"

#include <math.h>

#include "attn_case.h"

/* The half next to x that is no larger, or no smaller. Steps of halves above 2^-14 only: what tests
 * quantise is not smaller. */
static float half_towards(float x, int up)
{
    const float h = ac_round(x, PKV_DTYPE_F16);
    if (up ? h >= x : h <= x) return h;
    int e;
    frexpf(h, &e);
    const float step = ldexpf(1, (e - 1 > -14 ? e - 1 : -14) - 10);
    return up ? h + step : h - step;
}

static double coded(double x, float minimum, float step, float lowest, float highest)
{
    const float inverse = step > 0 ? 1.0f / step : 0.0f;
    const float code = fminf(fmaxf(((float)x - minimum) * inverse, lowest), highest);
    return (double)minimum + (double)step * (double)rintf(code);
}

/* n values, `stride` apart, as codes 0..levels: the minimum rounded down, the scale up to f16. */
static void with_minimum(double *x, uint32_t n, uint32_t stride, float levels)
{
    double low = x[0], high = x[0];
    for (uint32_t i = 1; i < n; i++) {
        low = fmin(low, x[i * stride]);
        high = fmax(high, x[i * stride]);
    }
    const float minimum = half_towards((float)low, 0);
    const float step = half_towards(((float)high - minimum) / levels, 1);
    for (uint32_t i = 0; i < n; i++)
        x[i * stride] = coded(x[i * stride], minimum, step, 0, levels);
}

static void symmetric(double *x, uint32_t n)
{
    double most = 0;
    for (uint32_t i = 0; i < n; i++)
        most = fmax(most, fabs(x[i]));
    const float step = half_towards((float)most / 127.0f, 1);
    for (uint32_t i = 0; i < n; i++)
        x[i] = coded(x[i], 0, step, -127, 127);
}

void pkvt_quantise(double *x, uint32_t tokens, uint32_t dim, pkv_dtype format)
{
    if (format == PKV_DTYPE_K8 || format == PKV_DTYPE_K4)
        for (uint32_t d = 0; d < dim; d++)
            with_minimum(x + d, tokens, dim, format == PKV_DTYPE_K8 ? 255 : 15);
    if (format == PKV_DTYPE_V8)
        for (uint32_t t = 0; t < tokens; t++)
            symmetric(x + t * dim, dim);
    if (format == PKV_DTYPE_V4)
        for (uint32_t t = 0; t < tokens; t++)
            for (uint32_t d = 0; d < dim; d += 32)
                with_minimum(x + t * dim + d, dim - d < 32 ? dim - d : 32, 1, 15);
}
