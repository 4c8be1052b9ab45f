/* The "neon" row of the kernel table. */
#define VI static inline __attribute__((always_inline))
#include "vec_neon.h"
#include "vec.h"
#include "body.h"
#include "rows.h"

const pkvi_kernels pkvi_row_neon = {
    .name = "neon",
    .features = PKVI_CPU_NEON,
    .attend = attend,
#include "row_functions.h"
};
