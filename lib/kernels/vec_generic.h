/* Vector operations in portable C over the compilers' vector extension, 4 lanes. See vec.h for what
 * each one means. */
#ifndef PKVI_VEC_GENERIC_H
#define PKVI_VEC_GENERIC_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define VL 4
#define VREGS 16
typedef float vf __attribute__((vector_size(16)));
typedef uint32_t vpair __attribute__((vector_size(16)));
typedef int32_t vint __attribute__((vector_size(16)));

VI vf v_zero(void)
{
    return (vf){0};
}
VI vf v_set1(float x)
{
    return (vf){x, x, x, x};
}
VI vpair u_set1(uint32_t x)
{
    return (vpair){x, x, x, x};
}
VI vf v_load(const float *p)
{
    vf x;
    memcpy(&x, p, sizeof x);
    return x;
}
VI void v_store(float *p, vf x)
{
    memcpy(p, &x, sizeof x);
}

/* mask ? a : b, mask lanes all ones or zero. */
VI vpair u_select(vpair mask, vpair a, vpair b)
{
    return (a & mask) | (b & ~mask);
}
VI vf v_select(vint mask, vf a, vf b)
{
    return (vf)u_select((vpair)mask, (vpair)a, (vpair)b);
}

VI vpair load_u16(const void *p)
{
    uint16_t h[4];
    memcpy(h, p, sizeof h);
    return (vpair){h[0], h[1], h[2], h[3]};
}
VI void store_u16(void *p, vpair x)
{
    uint16_t h[4] = {(uint16_t)x[0], (uint16_t)x[1], (uint16_t)x[2], (uint16_t)x[3]};
    memcpy(p, h, sizeof h);
}

/* A half's exponent and mantissa moved into place are 2^-112 of its value, denormals included. */
VI vf v_load_f16(const void *p)
{
    vpair h = load_u16(p);
    vpair rest = (h & u_set1(0x7fff)) << 13;
    vpair bits = (vpair)((vf)rest * v_set1(0x1p112f));
    vpair special = (vpair)(rest >= u_set1(0x7c00u << 13)); /* Inf and NaN keep their mantissa */
    bits = u_select(special, rest | u_set1(0x7f800000), bits);
    bits |= special & (vpair)(rest > u_set1(0x7c00u << 13)) & u_set1(0x400000);
    return (vf)(bits | (h & u_set1(0x8000)) << 16);
}

/* Round to nearest even by adding, for normal results, half of the last kept bit in integers; for
 * denormal ones a float whose last bit has the weight of the smallest half. */
VI void v_store_f16(void *p, vf x)
{
    vpair bits = (vpair)x;
    vpair sign = (bits >> 16) & u_set1(0x8000);
    vpair mag = bits & u_set1(0x7fffffff);
    vpair normal = (mag + u_set1(0xfff) + ((mag >> 13) & u_set1(1)) - u_set1(112u << 23)) >> 13;
    vpair tiny = (vpair)((vf)mag + v_set1(0.5f)) - u_set1(0x3f000000);
    vpair r = u_select((vpair)(mag < u_set1(113u << 23)), tiny, normal);
    r = u_select((vpair)(mag >= u_set1(0x477ff000)), u_set1(0x7c00), r);
    vpair nan = u_set1(0x7e00) | ((mag >> 13) & u_set1(0x3ff));
    r = u_select((vpair)(mag > u_set1(0x7f800000)), nan, r);
    store_u16(p, r | sign);
}

VI vf v_load_bf16(const void *p)
{
    return (vf)(load_u16(p) << 16);
}
VI void v_store_bf16(void *p, vf x)
{
    vpair bits = (vpair)x;
    vpair sum = bits + u_set1(0x7fff) + ((bits >> 16) & u_set1(1));
    sum = u_select((vpair)(x == x), sum, bits | u_set1(0x400000));
    store_u16(p, sum >> 16);
}

VI vpair v_load_pair(const void *p)
{
    vpair x;
    memcpy(&x, p, sizeof x);
    return x;
}
VI vf v_pair_lo(vpair w)
{
    return (vf)(w << 16);
}
VI vf v_pair_hi(vpair w)
{
    return (vf)(w & u_set1(0xffff0000u));
}

/* Codes: bytes and halves of bytes. */
VI vpair v_load_bytes(const void *p)
{
    uint8_t b[4];
    memcpy(b, p, sizeof b);
    return (vpair){b[0], b[1], b[2], b[3]};
}
VI vf v_from_words(vpair w)
{
    return __builtin_convertvector((vint)w, vf);
}
VI vf v_load_u8(const void *p)
{
    return v_from_words(v_load_bytes(p));
}
VI vf v_load_i8(const void *p)
{
    int8_t b[4];
    memcpy(b, p, sizeof b);
    return (vf){b[0], b[1], b[2], b[3]};
}
VI vf v_nibble(vpair w, bool high)
{
    return v_from_words(high ? w >> 4 : w & u_set1(15));
}
VI void v_store_bytes(void *p, vf x)
{
    const vint w = (vint)(vpair)(x + v_set1(0x1.8p23f));
    const uint8_t b[4] = {(uint8_t)w[0], (uint8_t)w[1], (uint8_t)w[2], (uint8_t)w[3]};
    memcpy(p, b, sizeof b);
}

VI vf v_add(vf a, vf b)
{
    return a + b;
}
VI vf v_sub(vf a, vf b)
{
    return a - b;
}
VI vf v_mul(vf a, vf b)
{
    return a * b;
}
VI vf v_div(vf a, vf b)
{
    return a / b;
}
VI vf v_fma(vf a, vf b, vf c)
{
    return a * b + c;
}
VI vf v_acc(vf acc, vf a, vf b)
{
    return v_fma(a, b, acc);
}
VI vf v_max(vf a, vf b)
{
    return v_select(a > b, a, b);
}
VI vf v_min(vf a, vf b)
{
    return v_select(a < b, a, b);
}
VI vf v_abs(vf a)
{
    return (vf)((vpair)a & u_set1(0x7fffffff));
}
VI vf v_copysign(vf a, vf sign)
{
    return (vf)((vpair)a | ((vpair)sign & u_set1(0x80000000u)));
}
/* Adding 1.5 * 2^23 leaves the integer nearest to a (|a| < 2^22) in the low bits. */
VI vf v_round(vf a)
{
    return (a + v_set1(0x1.8p23f)) - v_set1(0x1.8p23f);
}
VI vf v_scale2(vf a, vf n)
{
    vpair e = (vpair)(n + v_set1(0x1.8p23f)) + u_set1(127);
    return a * (vf)(e << 23);
}
VI vf v_zero_below(vf a, vf x, vf limit)
{
    return (vf)((vpair)a & ~(vpair)(x < limit));
}
VI vf v_select_lt(vf x, vf limit, vf a, vf b)
{
    return v_select(x < limit, a, b);
}
VI vf v_keep_bits(vf a, uint32_t bits, vf other)
{
    const vpair lane = {1, 2, 4, 8};
    return v_select((u_set1(bits) & lane) == lane, a, other);
}
VI float v_hsum(vf a)
{
    return (a[0] + a[2]) + (a[1] + a[3]);
}
VI float v_hmax(vf a)
{
    float x = a[0] > a[2] ? a[0] : a[2];
    float y = a[1] > a[3] ? a[1] : a[3];
    return x > y ? x : y;
}
VI void v_prefetch_l2(const void *p)
{
    __builtin_prefetch(p, 0, 2);
}
VI void v_prefetch(const void *p)
{
    __builtin_prefetch(p, 0, 3);
}

#endif
