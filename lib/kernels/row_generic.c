/* The "generic" row of the kernel table. */
#define VI static inline __attribute__((always_inline))
#include "vec_generic.h"
#include "vec.h"
#include "body.h"
#include "rows.h"

const pkvi_kernels pkvi_row_generic = {
    .name = "generic",
    .features = 0,
    .attend = attend,
#include "row_functions.h"
};
