/* Packing queries: the rows of a register block side by side, dim after dim, so that the inner loop
 * reads them in sequence. */

typedef uint32_t quad __attribute__((vector_size(16), aligned(4)));

/* out[j * rows + r] = in[r][j] for a block of 4 rows and 4 columns. */
VI void transpose_4x4(uint32_t *out, size_t out_stride, const uint32_t *in, size_t in_stride)
{
    quad r[4], t[4];
    UNROLL for (int i = 0; i < 4; i++) memcpy(&r[i], in + (size_t)i * in_stride, sizeof r[i]);
    t[0] = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5);
    t[1] = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
    t[2] = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
    t[3] = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
    r[0] = __builtin_shufflevector(t[0], t[1], 0, 1, 4, 5);
    r[1] = __builtin_shufflevector(t[0], t[1], 2, 3, 6, 7);
    r[2] = __builtin_shufflevector(t[2], t[3], 0, 1, 4, 5);
    r[3] = __builtin_shufflevector(t[2], t[3], 2, 3, 6, 7);
    UNROLL for (int i = 0; i < 4; i++) memcpy(out + (size_t)i * out_stride, &r[i], sizeof r[i]);
}

/* out[j][r] = in[r][j]; columns a multiple of 4. */
static void transpose_words(uint32_t *out, const uint32_t *in, size_t in_stride, uint32_t rows,
                            uint32_t columns)
{
    uint32_t r = 0;
    for (; r + 4 <= rows; r += 4)
        for (uint32_t j = 0; j < columns; j += 4)
            transpose_4x4(out + (size_t)j * rows + r, rows, in + r * in_stride + j, in_stride);
    for (; r < rows; r++)
        for (uint32_t j = 0; j < columns; j++)
            out[(size_t)j * rows + r] = in[r * in_stride + j];
}

#ifdef PKVI_BFDOT
/* A row's bf16 values and, if low is not NULL, what the rounding lost, also as bf16. */
static void split_row(uint16_t *high, uint16_t *low, const float *q, uint32_t dims)
{
    for (uint32_t d = 0; d < dims; d += VL) {
        const bool half = d + VL > dims;
        vf x = load_out(q + d, half);
        uint16_t bits[VL];
        v_store_bf16(bits, x);
        memcpy(high + d, bits, half ? VL : 2 * VL);
        if (!low) continue;
        v_store_bf16(bits, v_sub(x, v_load_bf16(bits)));
        memcpy(low + d, bits, half ? VL : 2 * VL);
    }
}

static void pack_block(const float *q, uint32_t dims, uint32_t rows, float *high, float *low)
{
    uint16_t h[BLOCK_ROWS * PKV_MAX_HEAD_DIM], l[BLOCK_ROWS * PKV_MAX_HEAD_DIM];
    for (uint32_t r = 0; r < rows; r++)
        split_row(h + (size_t)r * dims, low ? l + (size_t)r * dims : NULL, q + (size_t)r * dims,
                  dims);
    transpose_words((uint32_t *)(void *)high, (const uint32_t *)(const void *)h, dims / 2, rows,
                    dims / 2);
    if (low)
        transpose_words((uint32_t *)(void *)low, (const uint32_t *)(const void *)l, dims / 2, rows,
                        dims / 2);
}
#endif

/* All rows of a tile, head after head, block after block. */
static __attribute__((noinline)) void pack_queries(const struct tile *t)
{
    const pkvi_attend_job *job = t->job;
    const uint32_t dims = job->layout->dim_k;
    for (uint32_t h = 0; h < t->heads; h++) {
        const float *q = job->q + (size_t)(t->head0 - job->head0 + h) * job->q_head_stride +
                         (size_t)t->row0 * dims;
        for (uint32_t r = 0, n; r < t->rows; r += n) {
            n = block_rows(t->rows - r);
            const size_t at = (size_t)(h * t->rows + r) * dims;
            const float *from = q + (size_t)r * dims;
#ifdef PKVI_BFDOT
            pack_block(from, dims, n, t->q + at / 2, t->q_low ? t->q_low + at / 2 : NULL);
#else
            transpose_words((uint32_t *)(void *)(t->q + at), (const uint32_t *)(const void *)from,
                            dims, n, dims);
#endif
        }
    }
}
