/* Writing rows into tiles and reading them back. Rows pass through a small buffer in the page's
 * type, a few tokens at a time, so that conversion and transposition are separate loops. */

enum { MOVE_TOKENS = 8 };

struct move_buffer {
    union {
        uint32_t words[MOVE_TOKENS * PKV_MAX_HEAD_DIM];
        uint16_t halves[MOVE_TOKENS * PKV_MAX_HEAD_DIM];
    } rows;
};

/* Places of a tile's elements: element (slot, dim) at slot * slot_step + dim * dim_step, where for
 * bf16 the coordinate along which pairs are formed counts pair_step per two. */
struct tile_steps {
    size_t token_pair, token_odd; /* from slot s: (s / 2) * token_pair + (s % 2) * token_odd */
    size_t dim_pair, dim_odd;
};

static struct tile_steps k_steps(const pkvi_layout *l)
{
    size_t P = l->page_tokens;
    if (l->dtype_k == PKV_DTYPE_BF16) return (struct tile_steps){4, 2, 2 * P, 1};
    return (struct tile_steps){2, 1, 2 * P, P};
}

static struct tile_steps v_steps(const pkvi_layout *l) /* bf16 only */
{
    return (struct tile_steps){2 * (size_t)l->dim_v, 1, 4, 2};
}

/* tile[place(slot + t, d)] = rows[t][d], or the reverse, for 16-bit elements. */
VI void scatter_halves(uint16_t *tile, struct tile_steps s, uint32_t slot, uint32_t n,
                       uint32_t dims, uint16_t *rows, bool to_tile)
{
    for (uint32_t d = 0; d < dims; d++) {
        uint16_t *column = tile + d / 2 * s.dim_pair + d % 2 * s.dim_odd;
        for (uint32_t t = 0; t < n; t++) {
            uint16_t *at = column + (slot + t) / 2 * s.token_pair + (slot + t) % 2 * s.token_odd;
            uint16_t *row = rows + (size_t)t * dims + d;
            if (to_tile)
                *at = *row;
            else
                *row = *at;
        }
    }
}

VI void scatter_words(uint32_t *tile, struct tile_steps s, uint32_t slot, uint32_t n, uint32_t dims,
                      uint32_t *rows, bool to_tile)
{
    for (uint32_t d = 0; d < dims; d++) {
        uint32_t *column = tile + d / 2 * s.dim_pair + d % 2 * s.dim_odd;
        for (uint32_t t = 0; t < n; t++) {
            uint32_t *at = column + (slot + t) / 2 * s.token_pair + (slot + t) % 2 * s.token_odd;
            uint32_t *row = rows + (size_t)t * dims + d;
            if (to_tile)
                *at = *row;
            else
                *row = *at;
        }
    }
}

/* One tile's share of a move. `plain` is the first token's row of this head. */
static void move_tile(const pkvi_move_job *job, char *tile, pkv_dtype dtype,
                      struct tile_steps steps, uint32_t dims, const pkvi_tensor *tensor,
                      char *plain, bool to_tile)
{
    struct move_buffer buffer;
    for (uint32_t t = 0; t < job->n_tokens; t += MOVE_TOKENS) {
        const uint32_t left = job->n_tokens - t, n = left < MOVE_TOKENS ? left : MOVE_TOKENS;
        const uint32_t slot = job->slot + t;
        for (uint32_t i = 0; to_tile && i < n; i++)
            convert((char *)&buffer + i * dims * bytes_of(dtype), dtype,
                    plain + (ptrdiff_t)(t + i) * tensor->token_stride, tensor->dtype, dims);
        if (dtype == PKV_DTYPE_F32)
            scatter_words((uint32_t *)(void *)tile, steps, slot, n, dims, buffer.rows.words,
                          to_tile);
        else
            scatter_halves((uint16_t *)(void *)tile, steps, slot, n, dims, buffer.rows.halves,
                           to_tile);
        for (uint32_t i = 0; !to_tile && i < n; i++)
            convert(plain + (ptrdiff_t)(t + i) * tensor->token_stride, tensor->dtype,
                    (char *)&buffer + i * dims * bytes_of(dtype), dtype, dims);
    }
}

/* V tiles of f32 and f16 hold a token's row as it is: no buffer, no transposition. */
static void move_plain_tile(const pkvi_move_job *job, char *tile, uint32_t dims,
                            const pkvi_tensor *tensor, char *plain, bool to_tile)
{
    const pkv_dtype dtype = job->layout->dtype_v;
    for (uint32_t t = 0; t < job->n_tokens; t++) {
        char *stored = tile + (size_t)(job->slot + t) * dims * bytes_of(dtype);
        char *row = plain + (ptrdiff_t)t * tensor->token_stride;
        if (to_tile)
            convert(stored, dtype, row, tensor->dtype, dims);
        else
            convert(row, tensor->dtype, stored, dtype, dims);
    }
}

/* Keys of a head read out of codes, a few tokens at a time. */
static void decode_keys(const pkvi_move_job *job, uint32_t head, char *plain)
{
    const pkvi_layout *l = job->layout;
    const char *tile = (const char *)job->part + (size_t)head * l->k_head_bytes;
    const uint8_t *flags = key_flags(l, job->part, head);
    struct key_scales scales;
    float rows[MOVE_TOKENS][PKV_MAX_HEAD_DIM];
    load_key_scales(l, tile, &scales);
    for (uint32_t t = 0; t < job->n_tokens; t += MOVE_TOKENS) {
        const uint32_t left = job->n_tokens - t, n = left < MOVE_TOKENS ? left : MOVE_TOKENS;
        for (uint32_t d = 0; d < l->dim_k; d++)
            for (uint32_t i = 0; i < n; i++) {
                const uint32_t slot = job->slot + t + i;
                const bool flagged = flags[slot / 8] >> (slot % 8) & 1;
                const float code = (float)pkvi_layout_k_code(l, job->part, head, slot, d);
                /* code * scale is exact: the sum rounds once, as a fused one does. */
                rows[i][d] = flagged ? __builtin_nanf("") : code * scales.scale[d] + scales.min[d];
            }
        for (uint32_t i = 0; i < n; i++)
            convert(plain + (ptrdiff_t)(t + i) * job->k.token_stride, job->k.dtype, rows[i],
                    PKV_DTYPE_F32, l->dim_k);
    }
}

static void decode_values(const pkvi_move_job *job, const char *tile, char *plain)
{
    float row[PKV_MAX_HEAD_DIM + V4_GROUP];
    for (uint32_t t = 0; t < job->n_tokens; t++) {
        token_floats(job->layout, tile, job->slot + t, row);
        convert(plain + (ptrdiff_t)t * job->v.token_stride, job->v.dtype, row, PKV_DTYPE_F32,
                job->layout->dim_v);
    }
}

static void move(const pkvi_move_job *job, bool to_tile)
{
    const pkvi_layout *l = job->layout;
    char *part = job->part;
    for (uint32_t h = job->head0; h < job->head1; h++) {
        if (job->k.data) {
            char *keys = (char *)job->k.data + (ptrdiff_t)h * job->k.head_stride;
            if (pkvi_layout_k_coded(l))
                decode_keys(job, h, keys);
            else
                move_tile(job, part + (size_t)h * l->k_head_bytes, l->dtype_k, k_steps(l),
                          l->dim_k, &job->k, keys, to_tile);
        }
        if (!job->v.data) continue;
        char *tile = part + l->v_offset + (size_t)h * l->v_head_bytes;
        char *plain = (char *)job->v.data + (ptrdiff_t)h * job->v.head_stride;
        if (pkvi_layout_v_coded(l))
            decode_values(job, tile, plain);
        else if (l->dtype_v == PKV_DTYPE_BF16)
            move_tile(job, tile, l->dtype_v, v_steps(l), l->dim_v, &job->v, plain, to_tile);
        else
            move_plain_tile(job, tile, l->dim_v, &job->v, plain, to_tile);
    }
}

static void write_rows(const pkvi_move_job *job)
{
    move(job, true);
}
static void read_rows(const pkvi_move_job *job)
{
    move(job, false);
}
