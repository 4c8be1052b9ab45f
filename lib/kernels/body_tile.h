/* A tile: up to PKVI_TILE_ROWS rows (query rows x KV heads) whose scores of one leaf are in
 * scratch, and the steps of a leaf. */

struct tile {
    const pkvi_attend_job *job;
    uint32_t row0, rows;   /* query rows [row0, row0 + rows) of the job … */
    uint32_t head0, heads; /* … for these KV heads */
    int k_kind, v_kind;    /* how the page's tiles are read */
    bool panel;            /* pages are narrower than vectors: keys pass through k_panel */
    bool codes;            /* keys are codes and do not: queries are not packed but weighted */
    uint32_t page_shift;
    float *q;         /* packed queries, per head in blocks of rows: [dim][block] */
    float *q_low;     /* BFDOT: their low parts, or NULL */
    float *s;         /* [heads * rows][S_STRIDE] scores, then probabilities */
    float *vmax;      /* [heads * rows][VL] running maximum of the leaf */
    float *vsum;      /* [heads * rows][VL] running sum of the leaf */
    float *k_panel;   /* [dim_k][GROUP] */
    float *weights;   /* keys in codes: [page of the group][BLOCK_ROWS][W_STRIDE] */
    float *v_weights; /* V4: [group of dims][BLOCK_ROWS][GROUP] */
    float *v_base;    /* V4: [group of dims][BLOCK_ROWS] */
    struct group groups[LEAF_GROUPS];
    uint32_t n_groups;
};

/* Height of the first register block when `rows` are left: equal blocks, but with 16 registers a
 * tall block and one of 2 rows beat two of 3 or 4. */
VI uint32_t block_rows(uint32_t rows)
{
    if (VREGS == 16 && (rows == 7 || rows == 8)) return rows - 2;
    const uint32_t blocks = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    return (rows + blocks - 1) / blocks;
}

/* Bytes of a slot in a K row (one dim; bf16: one pair of dims). */
VI uint32_t k_slot_bytes(int kind)
{
    return kind == KIND_F16 ? 2 : kind == KIND_K8 || kind == KIND_K4 ? 1 : 4;
}

VI const char *part_of(const pkvi_attend_job *job, int64_t page)
{
    int64_t last = (int64_t)job->n_pages - 1;
    return (const char *)job->parts[page < 0 ? 0 : page > last ? last : page];
}

/* K or V tile of a head, from the slot's place in its page on. */
VI const char *k_tile(const struct tile *t, uint32_t head, int64_t slot)
{
    const pkvi_layout *l = t->job->layout;
    const char *part = part_of(t->job, slot >> t->page_shift);
    return part + (size_t)head * l->k_head_bytes +
           (size_t)(slot & (l->page_tokens - 1)) * k_slot_bytes(t->k_kind);
}
VI const char *v_tile(const struct tile *t, uint32_t head, int64_t slot)
{
    const pkvi_layout *l = t->job->layout;
    const char *part = part_of(t->job, slot >> t->page_shift);
    return part + l->v_offset + (size_t)head * l->v_head_bytes +
           (size_t)(slot & (l->page_tokens - 1)) * l->v_row_bytes;
}

/* The tile that is read `steps` after that of (phase K or V, group g, head h): where prefetches go.
 */
VI const char *tile_ahead(const struct tile *t, uint32_t steps, bool values, uint32_t g, uint32_t h,
                          uint32_t at)
{
    int64_t slot = t->groups[g].slot0;
    for (; steps > 0; steps--) {
        if (++h < t->heads) continue;
        h = 0;
        if (++g == t->n_groups) {
            g = 0;
            values = !values;
        }
        /* After the last values come the next leaf's first keys. */
        const bool next_leaf = g == 0 && !values;
        slot = next_leaf ? t->groups[t->n_groups - 1].slot0 + GROUP : t->groups[g].slot0;
    }
    slot += at;
    return values ? v_tile(t, t->head0 + h, slot) : k_tile(t, t->head0 + h, slot);
}

/* Sends for the first lines of a tile. While scores are finished and turned into probabilities
 * nothing else is read, and memory would idle. */
VI void bridge(const struct tile *t, uint32_t steps, bool values, uint32_t g, uint32_t h)
{
    const uint32_t P = t->job->layout->page_tokens, run = P < GROUP ? P : GROUP;
    const uint32_t bytes = BRIDGE_BYTES / (GROUP / run);
    for (uint32_t at = 0; at < GROUP; at += run) {
        const char *tile = tile_ahead(t, steps, values, g, h, at);
        for (uint32_t byte = 0; byte < bytes; byte += 64)
            v_prefetch_l2(tile + byte);
    }
}

/* Converts a group's K tiles in codes of one head to a panel [dim][GROUP] of f32. */
VI void decode_panel(const struct tile *t, bool four, const struct group *g, uint32_t gi,
                     uint32_t h)
{
    const pkvi_layout *l = t->job->layout;
    const uint32_t run = l->page_tokens < GROUP ? l->page_tokens : GROUP;
    struct key_scales scales;
    for (uint32_t at = g->first / run * run; at < g->last; at += run) {
        const int64_t slot = g->slot0 + at;
        const char *tile =
            part_of(t->job, slot >> t->page_shift) + (size_t)(t->head0 + h) * l->k_head_bytes;
        const char *k = k_tile(t, t->head0 + h, slot), *next = tile_ahead(t, 1, false, gi, h, at);
        float *out = t->k_panel + at;
        load_key_scales(l, tile, &scales);
        for (uint32_t d = 0; d < l->dim_k; d++, out += GROUP) {
            const size_t row = (size_t)(four ? d / 2 : d) * l->page_tokens;
            if (row % 64 == 0 && !(four && d % 2)) v_prefetch(next + row);
            const vf scale = v_set1(scales.scale[d]), min = v_set1(scales.min[d]);
            for (uint32_t s = 0; s < run; s += VL)
                store_out(out + s, v_fma(key_codes(four, k + row + s, d % 2), scale, min),
                          VL > run);
        }
    }
}

/* Converts a group's K tiles of one head to a panel [dim][GROUP] of f32 (BFDOT: pairs). */
static __attribute__((noinline)) void fill_panel(const struct tile *t, const struct group *g,
                                                 uint32_t gi, uint32_t h)
{
    const pkvi_layout *l = t->job->layout;
    const uint32_t run = l->page_tokens < GROUP ? l->page_tokens : GROUP;
    if (t->k_kind == KIND_K8) {
        decode_panel(t, false, g, gi, h);
        return;
    }
    if (t->k_kind == KIND_K4) {
        decode_panel(t, true, g, gi, h);
        return;
    }
    const size_t stride = (size_t)l->page_tokens * k_slot_bytes(t->k_kind);
    for (uint32_t at = g->first / run * run; at < g->last; at += run) {
        const char *k = k_tile(t, t->head0 + h, g->slot0 + at);
        const char *next = tile_ahead(t, 1, false, gi, h, at);
        float *out = t->k_panel + at;
        const uint32_t rows =
            t->k_kind == KIND_F16 || t->k_kind == KIND_F32 ? l->dim_k : l->dim_k / 2;
        for (uint32_t i = 0; i < rows; i++, k += stride, next += stride) {
            if ((i * stride) % 64 == 0 || stride >= 64)
                for (uint32_t line = 0; line < run * k_slot_bytes(t->k_kind); line += 64)
                    v_prefetch(next + line);
            for (uint32_t s = 0; s < run; s += VL) {
                const bool half = VL > run;
                const char *from = k + s * k_slot_bytes(t->k_kind);
                float *to = out + s;
#ifdef PKVI_BFDOT
                store_out(to + (size_t)i * GROUP, load_out((const float *)(const void *)from, half),
                          half);
#else
                if (t->k_kind == KIND_BF16) {
                    vpair w = half ? v_load_pair_half(from) : v_load_pair(from);
                    store_out(to + (size_t)(2 * i) * GROUP, v_pair_lo(w), half);
                    store_out(to + (size_t)(2 * i + 1) * GROUP, v_pair_hi(w), half);
                } else
                    store_out(to + (size_t)i * GROUP, load_value(t->k_kind, from, half, false),
                              half);
#endif
            }
        }
    }
}

/* Scores of tokens whose keys a seal could not represent are not numbers. */
static void flag_scores(const struct tile *t, const struct group *g, uint32_t gi, uint32_t h)
{
    const pkvi_layout *l = t->job->layout;
    const uint32_t run = l->page_tokens < GROUP ? l->page_tokens : GROUP;
    for (uint32_t at = g->first / run * run; at < g->last; at += run) {
        const int64_t slot = g->slot0 + at;
        const uint8_t *flags = key_flags(l, part_of(t->job, slot >> t->page_shift), t->head0 + h) +
                               (slot & (l->page_tokens - 1)) / 8;
        uint64_t bits = 0;
        for (uint32_t i = 0; i < run / 8; i++)
            bits |= (uint64_t)flags[i] << (8 * i);
        for (; bits != 0; bits &= bits - 1) {
            float *s = t->s + (size_t)h * t->rows * S_STRIDE + gi * GROUP + at +
                       (uint32_t)__builtin_ctzll(bits);
            for (uint32_t r = 0; r < t->rows; r++)
                s[(size_t)r * S_STRIDE] = __builtin_nanf("");
        }
    }
}

/* Raw dot products of one group for one head, all rows. */
static __attribute__((noinline)) void group_scores(const struct tile *t, uint32_t gi, uint32_t h)
{
    const struct group *g = &t->groups[gi];
    const pkvi_layout *l = t->job->layout;
    const uint32_t P = l->page_tokens;
    const uint32_t run = P < GROUP ? P : GROUP;
    struct qk_block b = {.dims = l->dim_k};
    int kind = t->k_kind;
    if (t->panel) {
        fill_panel(t, g, gi, h);
        if (kind != KIND_BFDOT) kind = KIND_F32;
        b.k_stride = GROUP * sizeof(float);
        for (uint32_t v = 0; v < GROUP_VECS; v++)
            b.k[v] = (const char *)(t->k_panel + v * VL);
        for (int j = 0; j < 8; j++)
            b.pf[j] = b.k[0];
    } else {
        b.k_stride = (size_t)P * k_slot_bytes(kind);
        b.pf_stride = 2 * (size_t)P * l->k_elem_bytes;
        for (uint32_t v = 0; v < GROUP_VECS; v++)
            b.k[v] = k_tile(t, t->head0 + h, g->slot0 + v * VL);
        const uint32_t row = run * k_slot_bytes(kind);
        const uint32_t pair = 2 * run * l->k_elem_bytes;
        for (uint32_t j = 0; j < 2 * l->k_elem_bytes; j++) {
            uint32_t page = j * 64 / pair, rest = j * 64 % pair;
            b.pf[j] = tile_ahead(t, 1, false, gi, h, page * run) +
                      (size_t)(rest / row) * P * k_slot_bytes(kind) + rest % row;
        }
    }
    bool fetched = t->panel;
    for (uint32_t r = 0, n, from, to; r < t->rows; r += n) {
        n = block_rows(t->rows - r);
        if (!group_block(g, r, n, &from, &to)) continue; /* above the diagonal */
        size_t at = (size_t)(h * t->rows + r) * l->dim_k;
        b.q = kind == KIND_BFDOT ? t->q + at / 2 : t->q + at;
        b.q_low = t->q_low ? t->q_low + at / 2 : NULL;
        b.s = t->s + (size_t)(h * t->rows + r) * S_STRIDE + gi * GROUP;
        qk_run(kind, n, &b, from / VL, (to + VL - 1) / VL);
        if (!fetched) { /* the other blocks find the lines already on their way */
            for (int j = 0; j < 8; j++)
                b.pf[j] = b.k[g->first / VL];
            fetched = true;
        }
    }
    if (pkvi_layout_k_coded(l)) flag_scores(t, g, gi, h);
}

#ifndef PKVI_BFDOT
/* Rows' queries under a page's scales and minima: w = q * scale, *start = q . min. */
VI void weigh(int rows, const char *scale, const char *min, const float *q, uint32_t dims, float *w,
              float *start)
{
    vf sum[4];
    UNROLL for (int r = 0; r < rows; r++) sum[r] = v_zero();
    for (uint32_t d = 0; d < dims; d += VL) {
        const bool half = d + VL > dims;
        const vf s = half ? v_load_f16_half(scale + 2 * d) : v_load_f16(scale + 2 * d);
        const vf m = half ? v_load_f16_half(min + 2 * d) : v_load_f16(min + 2 * d);
        UNROLL for (int r = 0; r < rows; r++)
        {
            const vf x = load_out(q + (size_t)r * dims + d, half);
            store_out(w + (size_t)r * W_STRIDE + d, v_mul(x, s), half);
            sum[r] = v_fma(x, m, sum[r]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) start[r] = v_hsum(sum[r]);
}

static void weigh_block(uint32_t rows, const char *scale, const char *min, const float *q,
                        uint32_t dims, float *w, float *start)
{
    uint32_t r = 0;
    for (; r + 4 <= rows; r += 4)
        weigh(4, scale, min, q + (size_t)r * dims, dims, w + (size_t)r * W_STRIDE, start + r);
    for (; r < rows; r++)
        weigh(1, scale, min, q + (size_t)r * dims, dims, w + (size_t)r * W_STRIDE, start + r);
}

static void key_ahead_init(struct key_ahead *a, const struct tile *t, uint32_t gi, uint32_t h)
{
    const pkvi_layout *l = t->job->layout;
    const uint32_t P = l->page_tokens, run = P < GROUP ? P : GROUP;
    *a = (struct key_ahead){.n_pages = GROUP / run, .step = 64, .lines = l->k_head_bytes / 64};
    if (P > GROUP) { /* rows of 64 of P slots */
        a->lines = t->k_kind == KIND_K4 ? l->dim_k / 2 : l->dim_k;
        a->step = P;
    }
    a->left = a->lines;
    for (uint32_t p = 0; p < a->n_pages; p++)
        a->at[p] = tile_ahead(t, 1, false, gi, h, p * run);
    a->next = a->at[0];
}

/* group_scores for keys in codes. */
static __attribute__((noinline)) void code_scores(const struct tile *t, uint32_t gi, uint32_t h)
{
    const pkvi_attend_job *job = t->job;
    const struct group *g = &t->groups[gi];
    const pkvi_layout *l = job->layout;
    const uint32_t P = l->page_tokens, run = P < GROUP ? P : GROUP, vecs = run / VL;
    const bool four = t->k_kind == KIND_K4;
    const float *q = job->q + (size_t)(t->head0 - job->head0 + h) * job->q_head_stride +
                     (size_t)t->row0 * l->dim_k;
    const char *tiles[GROUP / LEAST_CODE_PAGE];
    float start[GROUP / LEAST_CODE_PAGE][BLOCK_ROWS];
    struct key_ahead ahead;
    struct code_block b = {.vecs = vecs,
                           .k_stride = four ? P : 2 * (size_t)P,
                           .dims = l->dim_k,
                           .w = t->weights,
                           .start = start[0],
                           .ahead = &ahead};
    for (uint32_t p = 0; p < GROUP / run; p++) {
        const int64_t slot = g->slot0 + p * run;
        tiles[p] = part_of(job, slot >> t->page_shift) + (size_t)(t->head0 + h) * l->k_head_bytes;
        b.k[p] = k_tile(t, t->head0 + h, slot);
    }
    key_ahead_init(&ahead, t, gi, h);
    for (uint32_t r = 0, n, from, to; r < t->rows; r += n) {
        n = block_rows(t->rows - r);
        if (!group_block(g, r, n, &from, &to)) continue; /* above the diagonal */
        const uint32_t wide = QK_CODE_NV(n);
        from = from / VL / wide * wide;
        to = ((to + VL - 1) / VL + wide - 1) / wide * wide;
        for (uint32_t p = from / vecs; p * vecs < to; p++)
            weigh_block(n, tiles[p] + l->k_scale, tiles[p] + l->k_min, q + (size_t)r * l->dim_k,
                        l->dim_k, t->weights + (size_t)p * W_PAGE, start[p]);
        b.s = t->s + (size_t)(h * t->rows + r) * S_STRIDE + gi * GROUP;
        qk_code_table[four][n - 1](&b, from, to);
        ahead = (struct key_ahead){.next = b.k[0], .left = UINT32_MAX}; /* sent for once */
    }
    flag_scores(t, g, gi, h);
}
#endif
