#include "probe.h"

#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define TARGET(isa) __attribute__((target(isa)))
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

/* Interleaved streams: the data is cut into that many runs, which are read side by side, a line of
 * each in turn. Memory controllers and hardware prefetchers differ in what they like best. */
static const struct {
    const char *name;
    unsigned streams, ahead; /* lines to prefetch ahead of each stream, 0 = none */
} shapes[] = {
    {"1 stream", 1, 0},
    {"2 streams", 2, 0},
    {"4 streams", 4, 0},
    {"8 streams", 8, 0},
    {"1 stream, prefetch", 1, 32},
    {"4 streams, prefetch", 4, 16},
    {"8 streams, prefetch", 8, 8},
};

unsigned probe_read_shapes(void)
{
    return (unsigned)(sizeof shapes / sizeof *shapes);
}
const char *probe_read_shape_name(unsigned shape)
{
    return shapes[shape].name;
}

typedef struct {
    uint64_t word[8];
} line;

/* Portable body; with wider vectors enabled the compiler turns a line into one or two loads. */
#define READ_BODY                                                                                  \
    uint64_t sum[8] = {0};                                                                         \
    const size_t run = bytes / streams;                                                            \
    for (size_t at = 0; at < run; at += 64)                                                        \
        for (unsigned s = 0; s < streams; s++) {                                                   \
            const char *p = data + s * run + at;                                                   \
            if (ahead) __builtin_prefetch(p + 64 * ahead);                                         \
            for (int i = 0; i < 8; i++)                                                            \
                sum[i] += ((const line *)(const void *)p)->word[i];                                \
        }                                                                                          \
    uint64_t total = 0;                                                                            \
    for (int i = 0; i < 8; i++)                                                                    \
        total += sum[i];                                                                           \
    return total

static uint64_t read_plain(const char *data, size_t bytes, unsigned streams, size_t ahead)
{
    READ_BODY;
}

#if defined(__x86_64__)
TARGET("avx2")
static uint64_t read_avx2(const char *data, size_t bytes, unsigned streams, size_t ahead)
{
    const size_t run = bytes / streams;
    __m256i a = _mm256_setzero_si256(), b = a;
    for (size_t at = 0; at < run; at += 64)
        for (unsigned s = 0; s < streams; s++) {
            const char *p = data + s * run + at;
            if (ahead) _mm_prefetch(p + 64 * ahead, _MM_HINT_T0);
            a = _mm256_add_epi64(a, _mm256_load_si256((const __m256i *)(const void *)p));
            b = _mm256_add_epi64(b, _mm256_load_si256((const __m256i *)(const void *)(p + 32)));
        }
    uint64_t lanes[4];
    _mm256_storeu_si256((__m256i *)(void *)lanes, _mm256_add_epi64(a, b));
    return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}
TARGET("avx512f")
static uint64_t read_avx512(const char *data, size_t bytes, unsigned streams, size_t ahead)
{
    const size_t run = bytes / streams;
    __m512i a = _mm512_setzero_si512();
    for (size_t at = 0; at < run; at += 64)
        for (unsigned s = 0; s < streams; s++) {
            const char *p = data + s * run + at;
            if (ahead) _mm_prefetch(p + 64 * ahead, _MM_HINT_T0);
            a = _mm512_add_epi64(a, _mm512_load_si512((const void *)p));
        }
    return (uint64_t)_mm512_reduce_add_epi64(a);
}
#endif

uint64_t probe_read(unsigned shape, const void *data, size_t bytes)
{
    const unsigned streams = shapes[shape].streams;
    const size_t ahead = shapes[shape].ahead;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) return read_avx512(data, bytes, streams, ahead);
    if (__builtin_cpu_supports("avx2")) return read_avx2(data, bytes, streams, ahead);
#endif
    return read_plain(data, bytes, streams, ahead);
}

enum { CHAINS = 12 }; /* more than latency times width of any core; fits 16 registers */

static double fma_plain(uint64_t rounds, float *sink)
{
    typedef float vec __attribute__((vector_size(16)));
    vec acc[CHAINS] = {{0}};
    const vec x = {*sink, 1, 2, 3}, y = {0.5f, 0.25f, 0.125f, 0.5f};
    for (uint64_t i = 0; i < rounds; i++)
        for (int c = 0; c < CHAINS; c++) {
            acc[c] = acc[c] * y + x;
            __asm__ volatile("" : "+m"(acc[c])); /* keep the chain honest */
        }
    for (int c = 0; c < CHAINS; c++)
        *sink += acc[c][0];
    return (double)rounds * CHAINS * 4 * 2;
}

/* The chains are spelled out through asm so that no compiler folds, spills or vectorises them. */
#if defined(__x86_64__)
#define CHAIN12(op, p)                                                                             \
    op(p, 0) op(p, 1) op(p, 2) op(p, 3) op(p, 4) op(p, 5) op(p, 6) op(p, 7) op(p, 8) op(p, 9)      \
        op(p, 10) op(p, 11)
#define FMA_OP(p, n) "vfmadd231ps %%" p "14, %%" p "15, %%" p #n "\n\t"
#define ZERO_OP(p, n) "vxorps %%xmm" #n ", %%xmm" #n ", %%xmm" #n "\n\t"
#define DOT_OP(p, n) "vdpbf16ps %%" p "14, %%" p "15, %%" p #n "\n\t"
#define CLOBBERS                                                                                   \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",       \
        "xmm11", "xmm14", "xmm15", "cc", "memory"
#define CHAIN_LOOP(op, p)                                                                          \
    __asm__ volatile(CHAIN12(ZERO_OP, p) "vbroadcastss %[x], %%" p "14\n\t"                        \
                                         "vbroadcastss %[x], %%" p "15\n\t"                        \
                                         "1:\n\t" CHAIN12(op, p)                                   \
                                             CHAIN12(op, p) "dec %[n]\n\t"                         \
                                                            "jnz 1b\n\t"                           \
                                                            "vmovss %%xmm0, %[x]\n\t"              \
                                                            "vzeroupper\n\t"                       \
                     : [n] "+r"(n), [x] "+m"(*sink)                                                \
                     :                                                                             \
                     : CLOBBERS)

TARGET("avx2,fma") static void chains_avx2(uint64_t n, float *sink)
{
    CHAIN_LOOP(FMA_OP, "ymm");
}
TARGET("avx512f") static void chains_avx512(uint64_t n, float *sink)
{
    CHAIN_LOOP(FMA_OP, "zmm");
}
TARGET("avx512f") static void chains_dot(uint64_t n, float *sink)
{
    CHAIN_LOOP(DOT_OP, "zmm");
}
#elif defined(__aarch64__)
static void chains_neon(uint64_t n, float *sink)
{
    float32x4_t x = vdupq_n_f32(*sink), acc[CHAINS];
    for (int c = 0; c < CHAINS; c++)
        acc[c] = vdupq_n_f32(0);
    for (uint64_t i = 0; i < 2 * n; i++)
        for (int c = 0; c < CHAINS; c++) {
            acc[c] = vfmaq_f32(acc[c], x, x);
            __asm__ volatile("" : "+w"(acc[c]));
        }
    for (int c = 0; c < CHAINS; c++)
        *sink += vgetq_lane_f32(acc[c], 0);
}
#endif

double probe_fma(const char *row, uint64_t rounds, float *sink)
{
    if (rounds == 0) return 0;
    *sink = 0.0f;
    const double per_lane = (double)rounds * 2 * CHAINS * 2;
#if defined(__x86_64__)
    const int wide = __builtin_cpu_supports("avx512f");
    const int half = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (wide && (!row || strncmp(row, "avx512", 6) == 0)) {
        chains_avx512(rounds, sink);
        return per_lane * 16;
    }
    if (half && (!row || strcmp(row, "avx2") == 0)) {
        chains_avx2(rounds, sink);
        return per_lane * 8;
    }
#elif defined(__aarch64__)
    if (!row || strncmp(row, "neon", 4) == 0) {
        chains_neon(rounds, sink);
        return per_lane * 4;
    }
#endif
    (void)row;
    (void)per_lane;
    return fma_plain(rounds, sink);
}

double probe_bf16_dot(uint64_t rounds, float *sink)
{
    if (rounds == 0) return 0;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512bf16")) {
        *sink = 0.0f;
        chains_dot(rounds, sink);
        return (double)rounds * 2 * CHAINS * 4 * 16;
    }
#endif
    (void)sink;
    return 0;
}
