/* Vector operations for AVX-512 F/BW/DQ/VL, 16 lanes. See vec.h for what each one means. */
#ifndef PKVI_VEC_AVX512_H
#define PKVI_VEC_AVX512_H

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>

#define VL 16
#define VREGS 32
typedef __m512 vf;
typedef __m512i vpair;

VI vf v_zero(void)
{
    return _mm512_setzero_ps();
}
VI vf v_set1(float x)
{
    return _mm512_set1_ps(x);
}
VI vf v_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
VI void v_store(float *p, vf x)
{
    _mm512_storeu_ps(p, x);
}
VI vf v_load_half(const float *p)
{
    return _mm512_zextps256_ps512(_mm256_loadu_ps(p));
}
VI void v_store_half(float *p, vf x)
{
    _mm256_storeu_ps(p, _mm512_castps512_ps256(x));
}

VI vf v_load_f16(const void *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
VI vf v_load_f16_half(const void *p)
{
    return _mm512_zextps256_ps512(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)));
}
VI void v_store_f16(void *p, vf x)
{
    _mm256_storeu_si256((__m256i *)p,
                        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
VI void v_store_f16_half(void *p, vf x)
{
    _mm_storeu_si128((__m128i *)p,
                     _mm256_cvtps_ph(_mm512_castps512_ps256(x), _MM_FROUND_TO_NEAREST_INT));
}

VI vf v_load_bf16(const void *p)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
VI __m256i bf16_round(vf x)
{
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __m512i nan = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    __mmask16 unordered = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    sum = _mm512_mask_mov_epi32(sum, unordered, nan);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16));
}
VI void v_store_bf16(void *p, vf x)
{
    _mm256_storeu_si256((__m256i *)p, bf16_round(x));
}
VI void v_store_bf16_half(void *p, vf x)
{
    _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(bf16_round(x)));
}

VI vpair v_load_pair(const void *p)
{
    return _mm512_loadu_si512(p);
}
VI vpair v_load_pair_half(const void *p)
{
    return _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *)p));
}
VI vf v_pair_lo(vpair w)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
}
VI vf v_pair_hi(vpair w)
{
    return _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32((int)0xffff0000u)));
}

/* Codes: bytes and halves of bytes. A permutation by a table of 16 floats looks at an index's low
 * four bits only. */
VI vpair v_load_bytes(const void *p)
{
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
}
VI vf v_load_u8(const void *p)
{
    return _mm512_cvtepi32_ps(v_load_bytes(p));
}
VI vf v_load_i8(const void *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
VI vf v_nibble(vpair w, bool high)
{
    const vf values = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_permutexvar_ps(high ? _mm512_srli_epi32(w, 4) : w, values);
}
VI void v_store_bytes(void *p, vf x)
{
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
}

VI vf v_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
VI vf v_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}
VI vf v_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
VI vf v_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}
VI vf v_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
/* In place, and spelled out: GCC 12 otherwise rotates accumulators through other registers and
 * spills them. */
VI vf v_acc(vf acc, vf a, vf b)
{
    __asm__("vfmadd231ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
}
VI vf v_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
VI vf v_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}
VI vf v_abs(vf a)
{
    return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), a);
}
VI vf v_copysign(vf a, vf sign)
{
    return _mm512_or_ps(a, _mm512_and_ps(_mm512_set1_ps(-0.0f), sign));
}
VI vf v_round(vf a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
VI vf v_scale2(vf a, vf n)
{
    return _mm512_scalef_ps(a, n);
}
VI vf v_zero_below(vf a, vf x, vf limit)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), a);
}
VI vf v_select_lt(vf x, vf limit, vf a, vf b)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, limit, _CMP_LT_OQ), b, a);
}
VI vf v_keep_bits(vf a, uint32_t bits, vf other)
{
    return _mm512_mask_blend_ps((__mmask16)bits, other, a);
}

VI float v_hsum(vf a)
{
    __m256 x = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
/* Sums of four vectors are added to four floats: three shuffles and adds for all, not for each. */
#define PKVI_ADD_HSUM4
VI void v_add_hsum4(float *to, const float *from)
{
    vf a = v_load(from), b = v_load(from + 16), c = v_load(from + 32), d = v_load(from + 48);
    vf ab = v_add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    vf cd = v_add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512d lo = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    __m512d hi = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    vf all = v_add(_mm512_castpd_ps(lo), _mm512_castpd_ps(hi)); /* in each quarter */
    __m256 x = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), y));
}
VI float v_hmax(vf a)
{
    __m256 x = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}
VI void v_prefetch_l2(const void *p)
{
    _mm_prefetch((const char *)p, _MM_HINT_T1);
}
VI void v_prefetch(const void *p)
{
    _mm_prefetch((const char *)p, _MM_HINT_T0);
}

#ifdef PKVI_BFDOT
VI vf v_dot_pair(vf acc, vpair a, vpair b)
{
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
}
VI void v_store_prob(void *p, vf x)
{
    _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh(x));
}
VI vpair v_set1_pair(uint32_t x)
{
    return _mm512_set1_epi32((int)x);
}
VI vpair v_and_pair(vpair a, uint32_t mask)
{
    return _mm512_and_si512(a, _mm512_set1_epi32((int)mask));
}
#endif

#endif
