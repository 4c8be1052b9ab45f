/* The rows that a build may contain. */
#ifndef PKVI_ROWS_H
#define PKVI_ROWS_H

#include "kernels.h"

extern const pkvi_kernels pkvi_row_generic;
#if defined(__x86_64__)
extern const pkvi_kernels pkvi_row_avx2;
extern const pkvi_kernels pkvi_row_avx512;
extern const pkvi_kernels pkvi_row_avx512bf16;
#elif defined(__aarch64__)
extern const pkvi_kernels pkvi_row_neon;
extern const pkvi_kernels pkvi_row_neonbf16;
#endif

#endif
