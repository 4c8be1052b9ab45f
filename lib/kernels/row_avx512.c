/* The "avx512" row of the kernel table. */
#define VI static inline __attribute__((always_inline))
#include "vec_avx512.h"
#include "vec.h"
#include "body.h"
#include "rows.h"

const pkvi_kernels pkvi_row_avx512 = {
    .name = "avx512",
    .features = PKVI_CPU_AVX2 | PKVI_CPU_AVX512,
    .attend = attend,
#include "row_functions.h"
};
