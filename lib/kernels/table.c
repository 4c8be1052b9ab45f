/* The table of kernel rows, best first, and what jobs need. */
#include "kernels.h"
#include "rows.h"

#include <string.h>

static const pkvi_kernels *const table[] = {
#if defined(__x86_64__)
#ifdef PKVI_HAVE_AVX512BF16
    &pkvi_row_avx512bf16,
#endif
#ifdef PKVI_HAVE_AVX512
    &pkvi_row_avx512,
#endif
    &pkvi_row_avx2,
#elif defined(__aarch64__)
#ifdef PKVI_HAVE_NEON_BF16
    &pkvi_row_neonbf16,
#endif
    &pkvi_row_neon,
#endif
    &pkvi_row_generic,
};

/* The index-th row that `have` suffices for. */
static const pkvi_kernels *row_at(uint32_t index, uint32_t have)
{
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if ((table[i]->features & ~have) == 0 && index-- == 0) return table[i];
    return NULL;
}

const pkvi_kernels *pkvi_kernel_at(uint32_t index, int usable)
{
    return row_at(index, usable ? pkvi_cpu_features() : UINT32_MAX);
}

const pkvi_kernels *pkvi_kernel_find(const char *name)
{
    const uint32_t have = pkvi_cpu_features();
    const pkvi_kernels *row;
    for (uint32_t i = 0; (row = row_at(i, have)) != NULL; i++)
        if (!name || strcmp(name, row->name) == 0) return row;
    return NULL;
}

size_t pkvi_kernel_scratch(const pkvi_layout *l, uint32_t n_heads, uint32_t n_rows)
{
    /* As body_attend.h lays it out: the tile with the most rows, in floats. */
    enum { GROUP = 64 };
    const size_t rows = n_rows <= PKVI_TILE_ROWS ? n_rows : PKVI_PREFILL_ROWS;
    size_t heads = PKVI_TILE_ROWS / rows;
    if (heads > n_heads) heads = n_heads;
    const size_t states = heads * rows;
    size_t floats = states * (PKVI_LEAF + 16 + 16 + 16);          /* scores, maxima, sums */
    floats += (PKVI_LEAF / GROUP) * rows * 2 + 16;                /* visibility */
    floats += l->page_tokens < 16 ? (size_t)GROUP * l->dim_k : 0; /* panel */
    if (pkvi_layout_k_coded(l) && l->page_tokens >= 16)           /* weighted queries of a block */
        floats += (size_t)(l->page_tokens < GROUP ? GROUP / l->page_tokens : 1) * 12 *
                  (PKV_MAX_HEAD_DIM + 16);
    floats += (size_t)l->v_groups * (12 * GROUP + 16); /* V4: weighted probabilities of a block */
    floats += states * l->dim_k; /* queries */
    return (floats * sizeof(float) + 63) / 64 * 64;
}
