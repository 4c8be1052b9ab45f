/* What the CPU and the OS support. */
#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* State components that the OS saves (XCR0). */
static uint64_t saved_state(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

uint32_t pkvi_cpu_features(void)
{
    enum { YMM = 0x6, ZMM = 0xe6 }; /* bits of XCR0: SSE and AVX; opmask and the ZMM halves too */
    uint32_t a, b, c, d, features = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    const uint32_t wanted = bit_FMA | bit_F16C | bit_AVX | bit_OSXSAVE;
    if ((c & wanted) != wanted) return 0;
    const uint64_t state = saved_state();
    if ((state & YMM) != YMM || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    if (!(b & bit_AVX2)) return 0;
    features |= PKVI_CPU_AVX2;
    const uint32_t wide = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    if ((state & ZMM) != ZMM || (b & wide) != wide) return features;
    features |= PKVI_CPU_AVX512;
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 5))
        features |= PKVI_CPU_AVX512BF16;
    return features;
}

#elif defined(__aarch64__)
#include <sys/auxv.h>

uint32_t pkvi_cpu_features(void)
{
    enum { ASIMD = 1 << 1, BF16 = 1 << 14 }; /* HWCAP_ASIMD, HWCAP2_BF16 */
    uint32_t features = 0;
    if (getauxval(AT_HWCAP) & ASIMD) features |= PKVI_CPU_NEON;
    if (getauxval(AT_HWCAP2) & BF16) features |= PKVI_CPU_NEON_BF16;
    return features;
}

#else
uint32_t pkvi_cpu_features(void)
{
    return 0;
}
#endif
