/* P*V of a block of rows over the tokens of a group: lanes are dims, a tile of the output stays in
 * registers for the whole group. Every output element is one chain over the tokens in order. */

/* Tokens of one group, page by page. */
struct pv_span {
    uint32_t n_pages;
    const char
        *v[GROUP_PAGES]; /* V tile (bf16: of pairs) from the group's first slot of the page */
    const char *next[GROUP_PAGES]; /* tile to prefetch, walked at the same offsets */
    uint32_t t0[GROUP_PAGES];      /* tokens [t0, t1) of the page's part of the group */
    uint32_t t1[GROUP_PAGES];
    uint32_t column[GROUP_PAGES]; /* column of the page's first slot in the group's scores */
    size_t row_bytes;             /* bytes from one token (bf16, V4: pair) to the next */
};

struct pv_block {
    const struct pv_span *span;
    const float *p;    /* probabilities (BFDOT: u32 bf16 pairs), rows pv_p_stride() apart; V4: times
                        * the scales of dims' groups, [group of dims][BLOCK_ROWS][GROUP] */
    const float *base; /* V4: sums of probabilities times minima, [group of dims][BLOCK_ROWS] */
    float *o;          /* rows o_stride apart */
    size_t o_stride;
};

/* Floats from one row's probabilities to the next's. */
VI uint32_t pv_p_stride(int kind)
{
    return kind == KIND_V4 ? (uint32_t)GROUP : (uint32_t)S_STRIDE;
}

VI vf load_out(const float *o, bool half)
{
    return half ? v_load_half(o) : v_load(o);
}
VI void store_out(float *o, vf x, bool half)
{
    if (half)
        v_store_half(o, x);
    else
        v_store(o, x);
}

/* One token's values of one vector of dims. For bf16 `odd` picks the token of the pair. */
VI vf load_value(int kind, const char *v, bool half, bool odd)
{
    if (kind == KIND_F16) return half ? v_load_f16_half(v) : v_load_f16(v);
    if (kind == KIND_F32) return load_out((const float *)(const void *)v, half);
    if (kind == KIND_V8) return v_load_i8(v);
    vpair w = half ? v_load_pair_half(v) : v_load_pair(v);
    return odd ? v_pair_hi(w) : v_pair_lo(w);
}

/* Bytes of a vector of dims in a token's (bf16, V4: pair's) row. */
VI uint32_t value_bytes(int kind)
{
    if (kind == KIND_V8 || kind == KIND_V4) return VL;
    return kind == KIND_F16 ? VL * 2 : VL * 4;
}

/* What there is less of, rows or vectors, is held in registers. */
VI void pv_token(int kind, int rows, int nv, bool half, bool odd, vf acc[BLOCK_ROWS][8],
                 const char *row, const float *p)
{
    if (rows < nv) {
        vf w[BLOCK_ROWS];
        UNROLL for (int r = 0; r < rows; r++) w[r] = v_set1(p[r * S_STRIDE]);
        UNROLL for (int v = 0; v < nv; v++)
        {
            vf x = load_value(kind, row + (uint32_t)v * value_bytes(kind), half, odd);
            UNROLL for (int r = 0; r < rows; r++) acc[r][v] = v_acc(acc[r][v], w[r], x);
        }
        return;
    }
    vf x[8];
    UNROLL for (int v = 0; v < nv; v++) x[v] =
        load_value(kind, row + (uint32_t)v * value_bytes(kind), half, odd);
    UNROLL for (int r = 0; r < rows; r++)
    {
        vf w = v_set1(p[r * S_STRIDE]);
        UNROLL for (int v = 0; v < nv; v++) acc[r][v] = v_acc(acc[r][v], w, x[v]);
    }
}

/* The same for the tokens of a pair in V4; p are those of the even one. The first vector starts a
 * group of dims, or all of them are in one. */
VI void pv_pair4(int rows, int nv, bool even, bool odd, vf acc[BLOCK_ROWS][8], const char *row,
                 const float *p)
{
    UNROLL for (int second = 0; second < 2; second++)
    {
        if (!(second ? odd : even)) continue;
        vf x[8];
        if (rows >= nv) {
            UNROLL for (int v = 0; v < nv; v++) x[v] = v_nibble(v_load_bytes(row + v * VL), second);
        }
        UNROLL for (int r = 0; r < rows; r++)
        {
            UNROLL for (int v = 0; v < nv; v++)
            {
                if (rows < nv && r == 0) x[v] = v_nibble(v_load_bytes(row + v * VL), second);
                const int at = v * VL / V4_GROUP * BLOCK_ROWS * GROUP + r * GROUP + second;
                acc[r][v] = v_acc(acc[r][v], v_set1(p[at]), x[v]);
            }
        }
        FORGET(row);
    }
}

/* The tokens of one page in V4. */
VI void pv_page4(int rows, int nv, vf acc[BLOCK_ROWS][8], const struct pv_block *b, uint32_t page,
                 uint32_t vec)
{
    const struct pv_span *s = b->span;
    const size_t bytes = s->row_bytes;
    const uint32_t end = s->t1[page];
    uint32_t t = s->t0[page] & ~1u;
    const size_t at = t / 2 * bytes + vec * VL;
    const char *row = s->v[page] + at, *next = s->next[page] + at;
    const float *p = b->p + s->column[page] + t;
    if (t < s->t0[page]) {
        pv_pair4(rows, nv, false, true, acc, row, p);
        t += 2;
        p += 2;
        row += bytes;
        next += bytes;
    }
    for (; t + 2 <= end; t += 2) {
        UNROLL for (int line = 0; line < nv * VL; line += 64) v_prefetch(next + line);
        pv_pair4(rows, nv, true, true, acc, row, p);
        p += 2;
        row += bytes;
        next += bytes;
    }
    if (t < end) pv_pair4(rows, nv, true, false, acc, row, p);
}

VI void pv_prefetch(int kind, int nv, const char *next)
{
    UNROLL for (uint32_t at = 0; at < (uint32_t)nv * value_bytes(kind); at += 64)
        v_prefetch(next + at);
}

#ifdef PKVI_BFDOT
/* One pair of tokens; `mask` clears a token that must not be read. */
VI void pv_dot_pair(int rows, int nv, bool half, vf acc[BLOCK_ROWS][8], const char *row,
                    const float *p, uint32_t mask)
{
    const uint32_t *pp = (const uint32_t *)(const void *)p;
    vpair x[8];
    UNROLL for (int v = 0; v < nv; v++)
    {
        x[v] = half ? v_load_pair_half(row + v * VL * 4) : v_load_pair(row + v * VL * 4);
        if (mask != 0xffffffffu) x[v] = v_and_pair(x[v], mask);
    }
    UNROLL for (int r = 0; r < rows; r++)
    {
        vpair w = v_set1_pair(pp[r * S_STRIDE]);
        UNROLL for (int v = 0; v < nv; v++) acc[r][v] = v_dot_pair(acc[r][v], x[v], w);
    }
}
#endif

/* The tokens of one page. Pairs of tokens share a row for bf16; a pair at an edge of the span is
 * processed by half. */
VI void pv_page(int kind, int rows, int nv, bool half, vf acc[BLOCK_ROWS][8],
                const struct pv_block *b, uint32_t page, size_t at)
{
    const struct pv_span *s = b->span;
    const char *v = s->v[page] + at;
    const char *next = s->next[page] + at;
    const size_t bytes = s->row_bytes;
    uint32_t t = s->t0[page];
    const uint32_t end = s->t1[page];
    const float *p = b->p + s->column[page];
    if (kind == KIND_F16 || kind == KIND_F32 || kind == KIND_V8) {
        for (; t < end; t++) {
            pv_prefetch(kind, nv, next + t * bytes);
            pv_token(kind, rows, nv, half, false, acc, v + t * bytes, p + t);
        }
        return;
    }
#ifdef PKVI_BFDOT
    p = b->p + s->column[page] / 2;
    if (t & 1) {
        pv_dot_pair(rows, nv, half, acc, v + t / 2 * bytes, p + t / 2, 0xffff0000u);
        t++;
    }
    for (; t + 2 <= end; t += 2) {
        pv_prefetch(kind, nv, next + t / 2 * bytes);
        pv_dot_pair(rows, nv, half, acc, v + t / 2 * bytes, p + t / 2, 0xffffffffu);
    }
    if (t < end) pv_dot_pair(rows, nv, half, acc, v + t / 2 * bytes, p + t / 2, 0x0000ffffu);
#else
    if (t & 1) {
        pv_token(kind, rows, nv, half, true, acc, v + t / 2 * bytes, p + t);
        t++;
    }
    for (; t + 2 <= end; t += 2) {
        pv_prefetch(kind, nv, next + t / 2 * bytes);
        pv_token(kind, rows, nv, half, false, acc, v + t / 2 * bytes, p + t);
        FORGET(v);
        pv_token(kind, rows, nv, half, true, acc, v + t / 2 * bytes, p + t + 1);
    }
    if (t < end) pv_token(kind, rows, nv, half, false, acc, v + t / 2 * bytes, p + t);
#endif
}

VI void pv_core(int kind, int rows, int nv, bool half, const struct pv_block *b, uint32_t vec)
{
    vf acc[BLOCK_ROWS][8];
    float *o = b->o + vec * VL;
    struct pv_block in_group = *b;
    if (kind == KIND_V4) { /* from the first vector's group of dims on */
        in_group.p += (size_t)(vec * VL / V4_GROUP) * BLOCK_ROWS * GROUP;
        in_group.base += vec * VL / V4_GROUP * BLOCK_ROWS;
    }
    UNROLL for (int r = 0; r < rows; r++)
    {
        UNROLL for (int v = 0; v < nv; v++)
        {
            acc[r][v] = load_out(o + (size_t)r * b->o_stride + v * VL, half);
            if (kind == KIND_V4)
                acc[r][v] =
                    v_add(acc[r][v], v_set1(in_group.base[v * VL / V4_GROUP * BLOCK_ROWS + r]));
        }
    }
    for (uint32_t page = 0; page < b->span->n_pages; page++)
        if (kind == KIND_V4)
            pv_page4(rows, nv, acc, &in_group, page, vec);
        else
            pv_page(kind, rows, nv, half, acc, b, page, (size_t)vec * value_bytes(kind));
    UNROLL for (int r = 0; r < rows; r++)
    {
        UNROLL for (int v = 0; v < nv; v++)
            store_out(o + (size_t)r * b->o_stride + v * VL, acc[r][v], half);
    }
}

/* Vectors of dims per pass for each block height. */
#if VREGS == 32
#define PV_NV(rows) ((rows) <= 2 ? 8 : (rows) <= 6 ? 4 : 2)
#else
#define PV_NV(rows) ((rows) <= 1 ? 8 : (rows) <= 3 ? 4 : 2)
#endif

/* Passes as wide as they can be, then pairs of vectors; the vectors that are done. */
VI uint32_t pv_rows(int kind, int rows, int wide, const struct pv_block *b, uint32_t dims)
{
    const uint32_t n = dims / VL;
    uint32_t vec = 0;
    for (; vec + (uint32_t)wide <= n; vec += (uint32_t)wide)
        pv_core(kind, rows, wide, false, b, vec);
    if (wide > 2)
        for (; vec + 2 <= n; vec += 2)
            pv_core(kind, rows, 2, false, b, vec);
    return vec;
}

/* What dims leave that are no multiple of a pair of vectors: a vector, a half, or both. */
VI void pv_rest(int kind, int rows, struct pv_block *b, uint32_t dims, uint32_t vec)
{
    if (vec < dims / VL) pv_core(kind, rows, 1, false, b, vec++);
    if (VL == 16 && dims % VL != 0) pv_core(kind, rows, 1, true, b, vec);
    b->p += (uint32_t)rows * pv_p_stride(kind);
    if (b->base) b->base += rows; /* codes only */
    b->o += (size_t)rows * b->o_stride;
}

/* The instantiations for one block height, and those for the rest of the dims, of any height. */
typedef uint32_t pv_fn(const struct pv_block *b, uint32_t dims);
typedef void pv_rest_fn(uint32_t rows, struct pv_block b, uint32_t dims, uint32_t vec);

#define PV_HEIGHT(name, kind, rows)                                                                \
    static uint32_t pv_##name##_##rows(const struct pv_block *b, uint32_t dims)                    \
    {                                                                                              \
        return pv_rows(kind, rows, PV_NV(rows), b, dims);                                          \
    }
#define PV_REST(name, kind)                                                                        \
    static void pv_##name##_rest(uint32_t rows, struct pv_block b, uint32_t dims, uint32_t vec)    \
    {                                                                                              \
        uint32_t r = 0;                                                                            \
        for (; r + 4 <= rows; r += 4)                                                              \
            pv_rest(kind, 4, &b, dims, vec);                                                       \
        for (; r < rows; r++)                                                                      \
            pv_rest(kind, 1, &b, dims, vec);                                                       \
    }
#define PV_ENTRY(name, unused, rows) pv_##name##_##rows,

#ifdef PKVI_BFDOT
EACH_HEIGHT(PV_HEIGHT, dot, KIND_BFDOT)
PV_REST(dot, KIND_BFDOT)
#else
EACH_HEIGHT(PV_HEIGHT, f32, KIND_F32)
EACH_HEIGHT(PV_HEIGHT, f16, KIND_F16)
EACH_HEIGHT(PV_HEIGHT, bf16, KIND_BF16)
EACH_HEIGHT(PV_HEIGHT, v8, KIND_V8)
EACH_HEIGHT(PV_HEIGHT, v4, KIND_V4)
PV_REST(f32, KIND_F32)
PV_REST(f16, KIND_F16)
PV_REST(bf16, KIND_BF16)
PV_REST(v8, KIND_V8)
PV_REST(v4, KIND_V4)
#endif

/* By kind. */
static const struct {
    pv_fn *rows[BLOCK_ROWS];
    pv_rest_fn *rest;
} pv_table[] = {
#ifdef PKVI_BFDOT
    [KIND_BFDOT] = {{EACH_HEIGHT(PV_ENTRY, dot, )}, pv_dot_rest},
#else
    [KIND_F32] = {{EACH_HEIGHT(PV_ENTRY, f32, )}, pv_f32_rest},
    [KIND_F16] = {{EACH_HEIGHT(PV_ENTRY, f16, )}, pv_f16_rest},
    [KIND_BF16] = {{EACH_HEIGHT(PV_ENTRY, bf16, )}, pv_bf16_rest},
    [KIND_V8] = {{EACH_HEIGHT(PV_ENTRY, v8, )}, pv_v8_rest},
    [KIND_V4] = {{EACH_HEIGHT(PV_ENTRY, v4, )}, pv_v4_rest},
#endif
};

/* o += p * v for one block of rows, all dims. */
static void pv_run(int kind, uint32_t rows, const struct pv_block *b, uint32_t dims)
{
    const uint32_t vec = pv_table[kind].rows[rows - 1](b, dims);
    if (vec * VL < dims) pv_table[kind].rest(rows, *b, dims, vec);
}
