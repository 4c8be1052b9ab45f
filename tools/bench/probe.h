/* Limits of the machine, for fractions of a roofline: how fast memory can be read, how many
 * multiply-adds a core can do. The functions are single passes without threads or timing: the
 * caller runs and times them as it does what it compares with them. Run-time dispatch per ISA.
 * MT-safe. */
#ifndef TOOLS_PROBE_H
#define TOOLS_PROBE_H

#include <stddef.h>
#include <stdint.h>

/* Number of ways probe_read knows (how many interleaved streams, with or without prefetch); the
 * read limit is the best over 0..n-1. */
unsigned probe_read_shapes(void);
const char *probe_read_shape_name(unsigned shape);

/* Reads `bytes` bytes (a multiple of 64 KiB) at a 64-byte aligned address once. The result depends
 * on every byte, so that nothing is left out; its value means nothing. */
uint64_t probe_read(unsigned shape, const void *data, size_t bytes);

/* Runs independent f32 fused multiply-adds from registers, `rounds` times some number, as wide as
 * the named kernel row does ("avx512", "avx2", "neon", …; NULL = the widest of this CPU). Returns
 * the floating-point operations done (two per lane and FMA). *sink is touched so that the work
 * stays. */
double probe_fma(const char *row, uint64_t rounds, float *sink);

/* The same with bf16 dot products (four operations per 32-bit lane); 0 if the CPU has none. */
double probe_bf16_dot(uint64_t rounds, float *sink);

#endif
