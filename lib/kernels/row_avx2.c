/* The "avx2" row of the kernel table. */
#define VI static inline __attribute__((always_inline))
#include "vec_avx2.h"
#include "vec.h"
#include "body.h"
#include "rows.h"

const pkvi_kernels pkvi_row_avx2 = {
    .name = "avx2",
    .features = PKVI_CPU_AVX2,
    .attend = attend,
#include "row_functions.h"
};
