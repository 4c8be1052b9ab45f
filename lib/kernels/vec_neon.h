/* Vector operations for AArch64 Advanced SIMD, 4 lanes. See vec.h for what each one means. */
#ifndef PKVI_VEC_NEON_H
#define PKVI_VEC_NEON_H

#include <arm_neon.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define VL 4
#define VREGS 32
typedef float32x4_t vf;
typedef uint32x4_t vpair;

VI vf v_zero(void)
{
    return vdupq_n_f32(0.0f);
}
VI vf v_set1(float x)
{
    return vdupq_n_f32(x);
}
VI vf v_load(const float *p)
{
    return vld1q_f32(p);
}
VI void v_store(float *p, vf x)
{
    vst1q_f32(p, x);
}

VI vf v_load_f16(const void *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t *)p)));
}
VI void v_store_f16(void *p, vf x)
{
    vst1_u16((uint16_t *)p, vreinterpret_u16_f16(vcvt_f16_f32(x)));
}
VI vf v_load_bf16(const void *p)
{
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16((const uint16_t *)p), 16));
}
VI void v_store_bf16(void *p, vf x)
{
    uint32x4_t bits = vreinterpretq_u32_f32(x);
    uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    uint32x4_t sum = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    uint32x4_t nan = vorrq_u32(bits, vdupq_n_u32(0x400000));
    vst1_u16((uint16_t *)p, vshrn_n_u32(vbslq_u32(vceqq_f32(x, x), sum, nan), 16));
}

VI vpair v_load_pair(const void *p)
{
    return vld1q_u32((const uint32_t *)p);
}
VI vf v_pair_lo(vpair w)
{
    return vreinterpretq_f32_u32(vshlq_n_u32(w, 16));
}
VI vf v_pair_hi(vpair w)
{
    return vreinterpretq_f32_u32(vandq_u32(w, vdupq_n_u32(0xffff0000u)));
}

/* Codes: bytes and halves of bytes. */
VI vpair v_load_bytes(const void *p)
{
    uint32_t four;
    memcpy(&four, p, sizeof four);
    const uint8x8_t bytes = vreinterpret_u8_u32(vdup_n_u32(four));
    return vmovl_u16(vget_low_u16(vmovl_u8(bytes)));
}
VI vf v_load_u8(const void *p)
{
    return vcvtq_f32_u32(v_load_bytes(p));
}
VI vf v_load_i8(const void *p)
{
    uint32_t four;
    memcpy(&four, p, sizeof four);
    const int8x8_t bytes = vreinterpret_s8_u32(vdup_n_u32(four));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
}
VI vf v_nibble(vpair w, bool high)
{
    return vcvtq_f32_u32(high ? vshrq_n_u32(w, 4) : vandq_u32(w, vdupq_n_u32(15)));
}
VI void v_store_bytes(void *p, vf x)
{
    const uint16x4_t halves = vmovn_u32(vreinterpretq_u32_s32(vcvtnq_s32_f32(x)));
    const uint8x8_t bytes = vmovn_u16(vcombine_u16(halves, halves));
    const uint32_t four = vget_lane_u32(vreinterpret_u32_u8(bytes), 0);
    memcpy(p, &four, sizeof four);
}

VI vf v_add(vf a, vf b)
{
    return vaddq_f32(a, b);
}
VI vf v_sub(vf a, vf b)
{
    return vsubq_f32(a, b);
}
VI vf v_mul(vf a, vf b)
{
    return vmulq_f32(a, b);
}
VI vf v_div(vf a, vf b)
{
    return vdivq_f32(a, b);
}
VI vf v_fma(vf a, vf b, vf c)
{
    return vfmaq_f32(c, a, b);
}
VI vf v_acc(vf acc, vf a, vf b)
{
    return v_fma(a, b, acc);
}
/* a > b ? a : b, like the x86 instruction, so that NaN is treated alike everywhere. */
VI vf v_max(vf a, vf b)
{
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}
VI vf v_min(vf a, vf b)
{
    return vbslq_f32(vcltq_f32(a, b), a, b);
}
VI vf v_abs(vf a)
{
    return vabsq_f32(a);
}
VI vf v_copysign(vf a, vf sign)
{
    return vbslq_f32(vdupq_n_u32(0x80000000u), sign, a);
}
VI vf v_round(vf a)
{
    return vrndnq_f32(a);
}
VI vf v_scale2(vf a, vf n)
{
    int32x4_t e = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
    return vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32(e, 23)));
}
VI vf v_zero_below(vf a, vf x, vf limit)
{
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(a), vcltq_f32(x, limit)));
}
VI vf v_select_lt(vf x, vf limit, vf a, vf b)
{
    return vbslq_f32(vcltq_f32(x, limit), a, b);
}
VI vf v_keep_bits(vf a, uint32_t bits, vf other)
{
    const uint32x4_t lane = {1, 2, 4, 8};
    return vbslq_f32(vtstq_u32(vdupq_n_u32(bits), lane), a, other);
}
VI float v_hsum(vf a)
{
    float32x2_t s = vadd_f32(vget_low_f32(a), vget_high_f32(a));
    return vget_lane_f32(vpadd_f32(s, s), 0);
}
VI float v_hmax(vf a)
{
    vf b = v_max(a, vextq_f32(a, a, 2));
    b = v_max(b, vextq_f32(b, b, 1));
    return vgetq_lane_f32(b, 0);
}
VI void v_prefetch_l2(const void *p)
{
    __builtin_prefetch(p, 0, 2);
}
VI void v_prefetch(const void *p)
{
    __builtin_prefetch(p, 0, 3);
}

#ifdef PKVI_BFDOT
VI vf v_dot_pair(vf acc, vpair a, vpair b)
{
    return vbfdotq_f32(acc, vreinterpretq_bf16_u32(a), vreinterpretq_bf16_u32(b));
}
VI void v_store_prob(void *p, vf x)
{
    vst1_bf16((bfloat16_t *)p, vcvt_bf16_f32(x));
}
VI vpair v_set1_pair(uint32_t x)
{
    return vdupq_n_u32(x);
}
VI vpair v_and_pair(vpair a, uint32_t mask)
{
    return vandq_u32(a, vdupq_n_u32(mask));
}
#endif

#endif
