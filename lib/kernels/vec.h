/* The vector operations that the kernels are written in, and functions of them that are the same on
 * every ISA. A row file includes one ISA header (which defines VL lanes, VREGS registers, the types
 * vf = VL floats and vpair = VL 32-bit words of two 16-bit values, and the operations), then this
 * file, then body.h. Everything is static, so that no code compiled with wide flags can be linked
 * into another row.
 *
 *   v_load, v_store           VL floats, any alignment
 *   v_load_f16/bf16, v_store_ VL 16-bit values, converted; stores round to nearest even
 *   v_*_half                  the first VL/2 lanes only (16 lanes only: dims are multiples of 8)
 *   v_load_pair, v_pair_lo/hi VL bf16 pairs; the first or second value of each as floats
 *   v_fma(a, b, c)            a * b + c
 *   v_acc(acc, a, b)          acc + a * b, the same value; for accumulators of inner loops
 *   v_max(a, b), v_min        b if either is NaN
 *   v_round, v_scale2(a, n)   to nearest even; a * 2^n for integral n in [-126, 127]
 *   v_zero_below(a, x, l)     x < l ? 0 : a, with NaN x keeping a
 *   v_select_lt(x, l, a, b)   x < l ? a : b
 *   v_keep_bits(a, bits, o)   lane i: bit i set ? a : o
 *   v_hsum, v_hmax            over all lanes, fixed order
 *   v_add_hsum4               adds the sums of four vectors, one after another in memory, to four
 *                             floats
 *   v_prefetch, v_prefetch_l2 sends for the line at an address: to the first or second cache
 *   v_load_u8/i8              VL bytes as floats
 *   v_load_bytes, v_nibble    VL bytes as words; the low or high half of each as floats
 *   v_store_bytes(p, x)       x in [-128, 255] as VL bytes, rounded to nearest even
 *   v_dot_pair(acc, a, b)     acc + a.lo * b.lo + a.hi * b.hi in bf16 (PKVI_BFDOT rows only)
 *   v_store_prob(p, x)        v_store_bf16 for x in [0, 1], by the instruction (PKVI_BFDOT rows) */
#ifndef PKVI_VEC_H
#define PKVI_VEC_H

/* `#pragma GCC unroll` is what makes GCC keep arrays of vectors in registers. */
#define PKVI_PRAGMA(x) _Pragma(#x)
#ifdef __clang__
#define UNROLL PKVI_PRAGMA(clang loop unroll(full))
#else
#define UNROLL PKVI_PRAGMA(GCC unroll 16)
#endif

/* Makes the compiler forget what it knows about an address or stride, so that it loads a vector
 * twice rather than keep it in a register that 16-register ISAs do not have. No instruction. */
#if VREGS == 16
#define FORGET(x) __asm__("" : "+r"(x))
#else
#define FORGET(x) (void)(x)
#endif

#if VL < 16
/* Never reached: without 16 lanes a multiple of 8 dims has no half vector. */
VI vf v_load_half(const float *p)
{
    return v_load(p);
}
VI void v_store_half(float *p, vf x)
{
    v_store(p, x);
}
VI vf v_load_f16_half(const void *p)
{
    return v_load_f16(p);
}
VI void v_store_f16_half(void *p, vf x)
{
    v_store_f16(p, x);
}
VI void v_store_bf16_half(void *p, vf x)
{
    v_store_bf16(p, x);
}
VI vpair v_load_pair_half(const void *p)
{
    return v_load_pair(p);
}
#endif

#ifndef PKVI_ADD_HSUM4
VI void v_add_hsum4(float *to, const float *from)
{
    for (int i = 0; i < 4; i++)
        to[i] += v_hsum(v_load(from + i * VL));
}
#endif

#define NEG_INF (-__builtin_inff())
#define LOG2E 1.44269504088896340736f
#define LN2 0.69314718055994530942f

/* 2^x: 2^round(x) times a polynomial of the rest with relative error 2e-9 (minimax on [-1/2, 1/2],
 * exact at 0). At most 2 ulp. 0 below -126 (results are never denormal), NaN for NaN; x is capped
 * at 127, larger values do not occur where a maximum was subtracted. */
VI vf v_exp2(vf x)
{
    const vf lowest = v_set1(-126.0f);
    vf y = v_min(v_set1(127.0f), v_max(lowest, x)); /* both keep a NaN x */
    vf n = v_round(y);
    vf f = v_sub(y, n);
    vf p = v_set1(0x1.41fbbcp-13f);
    p = v_fma(p, f, v_set1(0x1.5f3e52p-10f));
    p = v_fma(p, f, v_set1(0x1.3b2d4cp-7f));
    p = v_fma(p, f, v_set1(0x1.c6aee8p-5f));
    p = v_fma(p, f, v_set1(0x1.ebfbdcp-3f));
    p = v_fma(p, f, v_set1(0x1.62e430p-1f));
    p = v_fma(p, f, v_set1(1.0f));
    return v_zero_below(v_scale2(p, n), x, lowest);
}

/* tanh: an odd polynomial below 0.625, 1 - 2 / (e^2x + 1) above. */
VI vf v_tanh(vf x)
{
    vf a = v_abs(x);
    vf z = v_mul(x, x);
    vf p = v_set1(-0x1.6e69b0p-8f);
    p = v_fma(p, z, v_set1(0x1.50820ep-6f));
    p = v_fma(p, z, v_set1(-0x1.b7fd50p-5f));
    p = v_fma(p, z, v_set1(0x1.110552p-3f));
    p = v_fma(p, z, v_set1(-0x1.55552ap-2f));
    vf small = v_fma(v_mul(p, z), x, x);
    vf e = v_exp2(v_mul(v_min(v_set1(20.0f), a), v_set1(2.0f * LOG2E)));
    vf large = v_sub(v_set1(1.0f), v_div(v_set1(2.0f), v_add(e, v_set1(1.0f))));
    return v_select_lt(a, v_set1(0.625f), small, v_copysign(large, x));
}

/* One value through the vector path, so that scalars agree with vectors bit for bit. */
VI float exp2_one(float x)
{
    float y[VL];
    v_store(y, v_exp2(v_set1(x)));
    return y[0];
}

#endif
