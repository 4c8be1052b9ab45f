/* What the CPU and the OS support. */
#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* clang 14 has no name for it, so that it costs a CPUID there. */
static bool has_f16c(void)
{
#ifdef __clang__
    uint32_t a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
#else
    return __builtin_cpu_supports("f16c");
#endif
}

/* The compiler's runtime asks the CPU once, at load: CPUID leaves a virtual machine, which takes
 * many microseconds. It knows which registers the OS saves. */
uint32_t pkvi_cpu_features(void)
{
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !has_f16c()) return 0;
    uint32_t features = PKVI_CPU_AVX2;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return features;
    features |= PKVI_CPU_AVX512;
    if (__builtin_cpu_supports("avx512bf16")) features |= PKVI_CPU_AVX512BF16;
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
