/* Page formats with codes, spelled out in double precision for tests: what a page of exact values
 * reads back as. Knows nothing of layouts and kernels. */
#ifndef PKVT_QUANTISE_H
#define PKVT_QUANTISE_H

#include <stdint.h>

#include <pagedkv/types.h>

/* x[token * dim + d], `tokens` of them, becomes what a sealed page of this format gives back.
 * Formats without codes are left alone. K8, K4: scale and minimum per channel; V8: scale per token;
 * V4: scale and minimum per token and 32 dims. */
void pkvt_quantise(double *x, uint32_t tokens, uint32_t dim, pkv_dtype format);

#endif
