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
    /* V4: scale and minimum of the group's columns, `groups` for each. */
    const float *scale, *min;
    uint32_t groups;
};

struct pv_block {
    const struct pv_span *span;
    const float *p; /* probabilities (BFDOT: u32 bf16 pairs), rows S_STRIDE apart */
    float *o;       /* rows o_stride apart */
    size_t o_stride;
};

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

/* V4: one vector of dims of one token; scale and min are those of the vector's group. */
VI vf value4(const char *row, bool odd, const float *scale, const float *min)
{
    return v_fma(v_nibble(v_load_bytes(row), odd), v_set1(*scale), v_set1(*min));
}

VI void pv_token(int kind, int rows, int nv, bool half, bool odd, vf acc[BLOCK_ROWS][8],
                 const char *row, const float *p)
{
    vf x[8];
    UNROLL for (int v = 0; v < nv; v++) x[v] =
        load_value(kind, row + (uint32_t)v * value_bytes(kind), half, odd);
    UNROLL for (int r = 0; r < rows; r++)
    {
        vf w = v_set1(p[r * S_STRIDE]);
        UNROLL for (int v = 0; v < nv; v++) acc[r][v] = v_acc(acc[r][v], w, x[v]);
    }
}

/* The same for V4. `scale` and `min`: of the token's group that holds the first vector, which
 * starts a group or fits in what is left of one. */
VI void pv_token4(int rows, int nv, bool odd, vf acc[BLOCK_ROWS][8], const char *row,
                  const float *p, const float *scale, const float *min)
{
    vf x[8];
#ifdef PKVI_NIBBLE_TABLE /* the values of a group's 16 codes */
    vf table = v_zero();
    UNROLL for (int v = 0; v < nv; v++)
    {
        if (v * VL % 32 == 0) table = v_nibble_table(scale[v * VL / 32], min[v * VL / 32]);
        x[v] = v_table_nibble(table, v_load_bytes(row + v * VL), odd);
    }
#else
    UNROLL for (int v = 0; v < nv; v++) x[v] =
        value4(row + v * VL, odd, scale + v * VL / 32, min + v * VL / 32);
#endif
    UNROLL for (int r = 0; r < rows; r++)
    {
        vf w = v_set1(p[r * S_STRIDE]);
        UNROLL for (int v = 0; v < nv; v++) acc[r][v] = v_acc(acc[r][v], w, x[v]);
    }
}

/* The tokens of one page in V4. */
VI void pv_page4(int rows, int nv, vf acc[BLOCK_ROWS][8], const struct pv_block *b, uint32_t page,
                 uint32_t vec)
{
    const struct pv_span *s = b->span;
    const size_t bytes = s->row_bytes, groups = s->groups;
    uint32_t t = s->t0[page];
    const uint32_t end = s->t1[page];
    const size_t at = t / 2 * bytes + vec * VL;
    const size_t first = (s->column[page] + t) * groups + vec * VL / 32;
    const char *row = s->v[page] + at, *next = s->next[page] + at;
    const float *p = b->p + s->column[page] + t, *scale = s->scale + first, *min = s->min + first;
    if (t % 2) {
        pv_token4(rows, nv, true, acc, row, p, scale, min);
        t++;
        p++;
        row += bytes;
        next += bytes;
        scale += groups;
        min += groups;
    }
    for (; t + 2 <= end; t += 2) {
        UNROLL for (int line = 0; line < nv * VL; line += 64) v_prefetch(next + line);
        pv_token4(rows, nv, false, acc, row, p, scale, min);
        pv_token4(rows, nv, true, acc, row, p + 1, scale + groups, min + groups);
        p += 2;
        row += bytes;
        next += bytes;
        scale += 2 * groups;
        min += 2 * groups;
    }
    if (t < end) pv_token4(rows, nv, false, acc, row, p, scale, min);
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
    UNROLL for (int r = 0; r < rows; r++)
    {
        UNROLL for (int v = 0; v < nv; v++) acc[r][v] =
            load_out(o + (size_t)r * b->o_stride + v * VL, half);
    }
    for (uint32_t page = 0; page < b->span->n_pages; page++)
        if (kind == KIND_V4)
            pv_page4(rows, nv, acc, b, page, vec);
        else
            pv_page(kind, rows, nv, half, acc, b, page, (size_t)vec * value_bytes(kind));
    UNROLL for (int r = 0; r < rows; r++)
    {
        UNROLL for (int v = 0; v < nv; v++)
            store_out(o + (size_t)r * b->o_stride + v * VL, acc[r][v], half);
    }
}

typedef void pv_fn(const struct pv_block *b, uint32_t vec);

/* Vectors of dims per pass for each block height. */
#if VREGS == 32
#define PV_NV(rows) ((rows) <= 2 ? 8 : (rows) <= 6 ? 4 : 2)
#else
#define PV_NV(rows) ((rows) <= 1 ? 8 : (rows) <= 2 ? 4 : (rows) <= 3 ? 3 : 2)
#endif

/* V4: not 3, so that a pass does not straddle groups of dims. */
#define PV_WIDE(kind, rows) ((kind) == KIND_V4 && PV_NV(rows) == 3 ? 2 : PV_NV(rows))

/* The instantiations for one block height: the widest pass, single vectors, the half vector. */
#define PV_HEIGHT(name, kind, rows)                                                                \
    static void pv_##name##_##rows##_w(const struct pv_block *b, uint32_t vec)                     \
    {                                                                                              \
        pv_core(kind, rows, PV_WIDE(kind, rows), false, b, vec);                                   \
    }                                                                                              \
    static void pv_##name##_##rows##_2(const struct pv_block *b, uint32_t vec)                     \
    {                                                                                              \
        pv_core(kind, rows, 2, false, b, vec);                                                     \
    }                                                                                              \
    static void pv_##name##_##rows##_1(const struct pv_block *b, uint32_t vec)                     \
    {                                                                                              \
        pv_core(kind, rows, 1, false, b, vec);                                                     \
    }                                                                                              \
    static void pv_##name##_##rows##_h(const struct pv_block *b, uint32_t vec)                     \
    {                                                                                              \
        pv_core(kind, rows, 1, VL == 16, b, vec);                                                  \
    }
#define PV_ENTRY(name, unused, rows)                                                               \
    {pv_##name##_##rows##_w, pv_##name##_##rows##_2, pv_##name##_##rows##_1,                       \
     pv_##name##_##rows##_h},

#ifdef PKVI_BFDOT
EACH_HEIGHT(PV_HEIGHT, dot, KIND_BFDOT)
static pv_fn *const pv_dot_table[BLOCK_ROWS][4] = {EACH_HEIGHT(PV_ENTRY, dot, )};
#else
EACH_HEIGHT(PV_HEIGHT, f32, KIND_F32)
EACH_HEIGHT(PV_HEIGHT, f16, KIND_F16)
EACH_HEIGHT(PV_HEIGHT, bf16, KIND_BF16)
EACH_HEIGHT(PV_HEIGHT, v8, KIND_V8)
EACH_HEIGHT(PV_HEIGHT, v4, KIND_V4)
static pv_fn *const pv_code_table[2][BLOCK_ROWS][4] = {{EACH_HEIGHT(PV_ENTRY, v8, )},
                                                       {EACH_HEIGHT(PV_ENTRY, v4, )}};
static pv_fn *const pv_table[3][BLOCK_ROWS][4] = {{EACH_HEIGHT(PV_ENTRY, f32, )},
                                                  {EACH_HEIGHT(PV_ENTRY, f16, )},
                                                  {EACH_HEIGHT(PV_ENTRY, bf16, )}};
#endif

/* o += p * v for one block of rows, all dims. */
static void pv_run(int kind, uint32_t rows, const struct pv_block *b, uint32_t dims)
{
#ifdef PKVI_BFDOT
    pv_fn *const *fn = pv_dot_table[rows - 1];
#else
    pv_fn *const *fn = kind == KIND_V8 ? pv_code_table[0][rows - 1]
                       : kind == KIND_V4 ? pv_code_table[1][rows - 1]
                                         : pv_table[kind][rows - 1];
#endif
    const uint32_t wide = PV_WIDE(kind, rows), n = dims / VL;
    uint32_t vec = 0;
    for (; vec + wide <= n; vec += wide)
        fn[0](b, vec);
    for (; vec + 2 <= n; vec += 2)
        fn[1](b, vec);
    for (; vec < n; vec++)
        fn[2](b, vec);
    if (dims % VL != 0) fn[3](b, vec);
}
