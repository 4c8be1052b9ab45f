/* Support for the kernel tests: a random problem in pages, attended by a row of the table and by
 * the reference. */
#ifndef TEST_KERNEL_SHAPE_H
#define TEST_KERNEL_SHAPE_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"

/* Small deterministic generator (xorshift64*). */
struct rng {
    uint64_t state;
};
uint64_t rng_next(struct rng *rng);
uint32_t rng_below(struct rng *rng, uint32_t n);
float rng_normal(struct rng *rng); /* roughly standard normal */

/* Formats of pages that the tests go through: the plain ones first, then mixed ones and codes. */
enum { N_PLAIN = 3, N_FORMATS = 11, N_PAGE_SIZES = 6 };
struct format {
    pkv_dtype k, v;
};
extern const struct format formats[N_FORMATS];
extern const uint32_t page_sizes[N_PAGE_SIZES];

/* What a problem looks like. Zeroed fields mean: f32, P 16, 1 head, 1 row. */
struct shape {
    struct format format;
    uint32_t page_tokens, heads, dim_k, dim_v, rows, tokens, leaf_phase, digest;
    float q_scale; /* standard deviation of q; 0 = 1 */
    float v_scale; /* of v; 0 = 1 */
    bool guard;    /* put the pages right before an inaccessible page */
};

struct problem {
    struct shape shape;
    const pkvi_kernels *kernels;
    pkvi_layout layout;
    pkvi_layout open;    /* what is sealed, where the layout has codes: f32 */
    char **open_parts;   /* [n_pages], or NULL */
    bool stale;          /* open parts changed since they were sealed */
    pkvi_attend_job job; /* ready to attend: everything visible, scale 1/sqrt(d) */
    char *arena;
    size_t arena_bytes;
    const void **parts; /* shuffled places */
    float *q;
    uint32_t *lo, *hi;
    const uint8_t **tree_rows;
    int32_t *q_pos;
    float *o, *m, *l;
    void *scratch;
    size_t scratch_bytes;
    uint32_t o_stride;
    double logit_factor; /* allowed error of logits, in units of 2^-22 of sum |q||k| */
};

/* Allocates and fills; unwritten slots of the last page hold NaN poison. Fails the test on error.
 */
struct problem *problem_new(const pkvi_kernels *kernels, const struct shape *shape,
                            struct rng *rng);
void problem_free(struct problem *p);

/* Stores one element (converted by the double value's nearest float). With codes the page is sealed
 * anew by problem_check or problem_seal. */
void problem_set_k(struct problem *p, uint32_t head, uint32_t slot, uint32_t dim, float x);
void problem_set_v(struct problem *p, uint32_t head, uint32_t slot, uint32_t dim, float x);

/* Seals the pages of a problem with codes again if elements were set. */
void problem_seal(struct problem *p);

/* Runs the job and compares every row with the reference: |o - ref| <= gate * A + what the error of
 * a logit of this size explains. `row_name` labels failures. */
void problem_check(struct problem *p, const pkvi_kernels *kernels, const float *sinks);

/* The gate for sum p|v| of a dtype on a row (see problem_check). */
double problem_gate(const struct problem *p, const pkvi_kernels *kernels);

/* Every usable row, for loop tests: number of them. */
uint32_t rows_usable(void);

#endif
