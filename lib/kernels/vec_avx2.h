/* Vector operations for AVX2 + FMA + F16C, 8 lanes. See vec.h for what each one means. */
#ifndef PKVI_VEC_AVX2_H
#define PKVI_VEC_AVX2_H

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>

#define VL 8
#define VREGS 16
typedef __m256 vf;
typedef __m256i vpair;

VI vf v_zero(void)
{
    return _mm256_setzero_ps();
}
VI vf v_set1(float x)
{
    return _mm256_set1_ps(x);
}
VI vf v_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
VI void v_store(float *p, vf x)
{
    _mm256_storeu_ps(p, x);
}

VI vf v_load_f16(const void *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
VI void v_store_f16(void *p, vf x)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
VI vf v_load_bf16(const void *p)
{
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
VI void v_store_bf16(void *p, vf x)
{
    __m256i bits = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256i unordered = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    sum = _mm256_srli_epi32(_mm256_blendv_epi8(sum, nan, unordered), 16);
    _mm_storeu_si128((__m128i *)p, _mm_packus_epi32(_mm256_castsi256_si128(sum),
                                                    _mm256_extracti128_si256(sum, 1)));
}

VI vpair v_load_pair(const void *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}
VI vf v_pair_lo(vpair w)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
}
VI vf v_pair_hi(vpair w)
{
    return _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32((int)0xffff0000u)));
}

/* Codes: bytes and halves of bytes. */
VI vpair v_load_bytes(const void *p)
{
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
}
VI vf v_load_u8(const void *p)
{
    return _mm256_cvtepi32_ps(v_load_bytes(p));
}
VI vf v_load_i8(const void *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
VI vf v_nibble(vpair w, bool high)
{
    w = high ? _mm256_srli_epi32(w, 4) : _mm256_and_si256(w, _mm256_set1_epi32(15));
    return _mm256_cvtepi32_ps(w);
}
VI void v_store_bytes(void *p, vf x)
{
    const __m256i pick =
        _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                         -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1);
    __m256i w = _mm256_shuffle_epi8(_mm256_cvtps_epi32(x), pick);
    __m128i both = _mm_or_si128(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
    _mm_storel_epi64((__m128i *)p, both);
}

VI vf v_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}
VI vf v_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}
VI vf v_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}
VI vf v_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}
VI vf v_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}
/* In place, and spelled out: GCC 12 otherwise rotates accumulators through other registers and
 * spills them. */
VI vf v_acc(vf acc, vf a, vf b)
{
    __asm__("vfmadd231ps %2, %1, %0" : "+x"(acc) : "x"(a), "x"(b));
    return acc;
}
VI vf v_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}
VI vf v_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}
VI vf v_abs(vf a)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}
VI vf v_copysign(vf a, vf sign)
{
    return _mm256_or_ps(a, _mm256_and_ps(_mm256_set1_ps(-0.0f), sign));
}
VI vf v_round(vf a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
VI vf v_scale2(vf a, vf n)
{
    __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(e, 23)));
}
VI vf v_zero_below(vf a, vf x, vf limit)
{
    return _mm256_and_ps(_mm256_cmp_ps(x, limit, _CMP_NLT_UQ), a);
}
VI vf v_select_lt(vf x, vf limit, vf a, vf b)
{
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, limit, _CMP_LT_OQ));
}
VI vf v_keep_bits(vf a, uint32_t bits, vf other)
{
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i set = _mm256_and_si256(_mm256_set1_epi32((int)bits), lane);
    return _mm256_blendv_ps(other, a, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane)));
}

VI float v_hsum(vf x)
{
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
VI float v_hmax(vf x)
{
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

#endif
