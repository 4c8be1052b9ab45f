/* attn/kernels: attention in double precision over stored tiles, for tests and checks. Slow. */
#ifndef PKVI_REFERENCE_H
#define PKVI_REFERENCE_H

#include "kernel.h"

/* Value of one stored element as a double. */
double pkvi_reference_k(const pkvi_layout *layout, const void *part, uint32_t head, uint32_t slot,
                        uint32_t dim);
double pkvi_reference_v(const pkvi_layout *layout, const void *part, uint32_t head, uint32_t slot,
                        uint32_t dim);

/* One row (head h of the layout, row r) of a job: out[dim_v] normalised and its natural-log LSE.
 * Uses the job's layout, parts, q, masks, scale, softcap and ALiBi; its state, flags and scratch
 * are ignored. `sink` is a natural-log logit joining the denominator, -INFINITY for none. lse,
 * weights and mass may be NULL: weights[dim_v] = sum p|v| (the scale of errors), mass[n_pages] =
 * the probability given to each page. */
void pkvi_reference_row(const pkvi_attend_job *job, uint32_t head, uint32_t row, double sink,
                        double *out, double *lse, double *weights, double *mass);

#endif
