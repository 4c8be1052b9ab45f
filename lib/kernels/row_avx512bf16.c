/* The "avx512bf16" row of the kernel table: bf16 pages by bf16 dot products, everything else as in
 * "avx512". Queries are split into a high and a low bf16 part unless they are bf16 already, so
 * scores are as exact as with f32 products; probabilities are rounded to bf16 (their sum is taken
 * after the rounding), which costs at most 2^-8 of sum p|v|. */
#define PKVI_BFDOT 1
#define VI static inline __attribute__((always_inline))
#include "vec_avx512.h"
#include "vec.h"
#include "body.h"
#include "rows.h"

static void attend_bf16(const pkvi_attend_job *job)
{
    if (job->layout->dtype_k == PKV_DTYPE_BF16 && job->layout->dtype_v == PKV_DTYPE_BF16)
        attend(job);
    else
        pkvi_row_avx512.attend(job);
}

const pkvi_kernels pkvi_row_avx512bf16 = {
    .name = "avx512bf16",
    .features = PKVI_CPU_AVX2 | PKVI_CPU_AVX512 | PKVI_CPU_AVX512BF16,
    .attend = attend_bf16,
#include "row_functions.h"
};
