/* Q*K of a block of rows and a few token vectors: lanes are tokens, so the sums stay in lanes.
 * Every score is one chain of fused multiply-adds over the dims in order, whatever the block: that
 * makes a score independent of how rows and tokens are grouped. */

struct key_ahead;

struct qk_block {
    const char *k[GROUP_VECS]; /* dim 0 of each token vector */
    size_t k_stride;           /* bytes from one dim (bf16: pair of dims) to the next */
    uint32_t dims;
    const float *q;             /* [dim][rows], or u32 bf16 pairs [dim/2][rows] */
    const float *q_low;         /* BFDOT: what rounding q to bf16 lost, as q; NULL if nothing */
    float *s;                   /* scores, row r at s + r * S_STRIDE, token vector v at + v * VL */
    const float *w[GROUP_VECS]; /* codes: weights of each vector's page … */
    const float *start[GROUP_VECS]; /* … and what a score starts from, per row */
    struct key_ahead *ahead;        /* codes: what to prefetch, or NULL */
    const char *pf[8];              /* next tiles: line j of the group's lines of a dim pair */
    size_t pf_stride;               /* bytes from one dim pair's lines to the next pair's */
};

/* Bytes that one token vector takes per pair of dims. */
VI int vec_pair_bytes(int kind)
{
    return kind == KIND_F32 ? VL * 8 : VL * 4;
}

/* The even or odd dim of a pair as floats; `at` is the byte offset of the pair (f16, f32: of its
 * even dim). */
VI vf load_dim(int kind, const char *k, size_t at, size_t stride, bool odd)
{
    if (kind == KIND_BF16) {
        vpair w = v_load_pair(k + at);
        return odd ? v_pair_hi(w) : v_pair_lo(w);
    }
    const char *p = k + at + (odd ? stride : 0);
    return kind == KIND_F16 ? v_load_f16(p) : v_load((const float *)(const void *)p);
}

/* One dim: every row's q times every token vector. What there is less of is held in registers. */
VI void qk_step(int kind, int rows, int nv, vf acc[BLOCK_ROWS][8], const char *const *k, size_t at,
                size_t stride, bool odd, const float *q)
{
    if (rows < nv) {
        vf w[BLOCK_ROWS];
        UNROLL for (int r = 0; r < rows; r++) w[r] = v_set1(q[r]);
        UNROLL for (int v = 0; v < nv; v++)
        {
            vf x = load_dim(kind, k[v], at, stride, odd);
            UNROLL for (int r = 0; r < rows; r++) acc[r][v] = v_acc(acc[r][v], w[r], x);
        }
        return;
    }
    vf x[8];
    UNROLL for (int v = 0; v < nv; v++) x[v] = load_dim(kind, k[v], at, stride, odd);
    UNROLL for (int r = 0; r < rows; r++)
    {
        vf w = v_set1(q[r]);
        UNROLL for (int v = 0; v < nv; v++) acc[r][v] = v_acc(acc[r][v], w, x[v]);
    }
}

VI void qk_core(int kind, int rows, int nv, const struct qk_block *b, uint32_t v0)
{
    vf acc[BLOCK_ROWS][8];
    UNROLL for (int r = 0; r < rows; r++)
    {
        UNROLL for (int v = 0; v < nv; v++) acc[r][v] = v_zero();
    }
    const int lines = nv * vec_pair_bytes(kind) / 64;
    const char *const *pf = b->pf + v0 * (uint32_t)vec_pair_bytes(kind) / 64;
    const char *const *k = b->k + v0;
    const float *q = b->q, *const end = q + (size_t)b->dims * (uint32_t)rows;
    const size_t stride = b->k_stride, pf_stride = b->pf_stride;
    size_t ahead = 0;
    for (size_t at = 0; q < end; q += 2 * rows) {
        UNROLL for (int j = 0; j < lines; j++) v_prefetch(pf[j] + ahead);
        ahead += pf_stride;
        qk_step(kind, rows, nv, acc, k, at, stride, false, q);
        FORGET(at);
        qk_step(kind, rows, nv, acc, k, at, stride, true, q + rows);
        at += kind == KIND_BF16 ? stride : 2 * stride;
    }
    UNROLL for (int r = 0; r < rows; r++)
    {
        UNROLL for (int v = 0; v < nv; v++)
            v_store(b->s + r * S_STRIDE + (v0 + (uint32_t)v) * VL, acc[r][v]);
    }
}

#ifdef PKVI_BFDOT
/* The same with bf16 dot products, in one or two (high and low part of q) terms. */
VI void qk_dot_core(int rows, int nv, bool low, const struct qk_block *b, uint32_t v0)
{
    vf acc[BLOCK_ROWS][8];
    UNROLL for (int r = 0; r < rows; r++)
    {
        UNROLL for (int v = 0; v < nv; v++) acc[r][v] = v_zero();
    }
    const int lines = nv * VL * 4 / 64;
    const char *const *pf = b->pf + v0 * VL * 4 / 64;
    const char *const *k = b->k + v0;
    const uint32_t *q = (const uint32_t *)(const void *)b->q;
    const uint32_t *ql = (const uint32_t *)(const void *)b->q_low;
    const size_t stride = b->k_stride, pf_stride = b->pf_stride;
    const uint32_t pairs = b->dims / 2;
    for (uint32_t i = 0; i < pairs; i++) {
        UNROLL for (int j = 0; j < lines; j++) v_prefetch(pf[j] + i * pf_stride);
        vpair w[8];
        UNROLL for (int v = 0; v < nv; v++) w[v] = v_load_pair(k[v] + i * stride);
        UNROLL for (int r = 0; r < rows; r++)
        {
            vpair x = v_set1_pair(q[i * (uint32_t)rows + (uint32_t)r]);
            UNROLL for (int v = 0; v < nv; v++) acc[r][v] = v_dot_pair(acc[r][v], w[v], x);
        }
        if (low) {
            UNROLL for (int r = 0; r < rows; r++)
            {
                vpair x = v_set1_pair(ql[i * (uint32_t)rows + (uint32_t)r]);
                UNROLL for (int v = 0; v < nv; v++) acc[r][v] = v_dot_pair(acc[r][v], w[v], x);
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
    {
        UNROLL for (int v = 0; v < nv; v++)
            v_store(b->s + r * S_STRIDE + (v0 + (uint32_t)v) * VL, acc[r][v]);
    }
}
#endif

/* Prefetches of the K tiles in codes that come next, line by line. */
struct key_ahead {
    const char *at[GROUP_PAGES]; /* the group's share of each page's tile … */
    uint32_t n_pages, page;
    uint32_t lines, left; /* … in so many lines, `step` bytes apart */
    size_t step;
    const char *next;
};

VI void key_ahead_step(struct key_ahead *a)
{
    v_prefetch(a->next);
    a->next += a->step;
    if (--a->left != 0) return;
    if (++a->page < a->n_pages) {
        a->next = a->at[a->page];
        a->left = a->lines;
    } else { /* nothing left: the last line again */
        a->next -= a->step;
        a->step = 0;
        a->left = UINT32_MAX;
    }
}

/* Floats between rows of weights. */
enum { W_STRIDE = PKV_MAX_HEAD_DIM + 16 };

/* Scores of keys in codes: q . k = q . min + sum (q * scale) code, with the weights q * scale and
 * the start q . min of each (page, row). `same`: the pass lies in one page. */
VI void qk_code_core(bool four, int rows, int nv, bool same, const struct qk_block *b, uint32_t v0)
{
    vf acc[BLOCK_ROWS][8];
    const float *w[8];
    const char *k[8];
    UNROLL for (int v = 0; v < nv; v++)
    {
        w[v] = b->w[v0 + (uint32_t)v];
        k[v] = b->k[v0 + (uint32_t)v];
        UNROLL for (int r = 0; r < rows; r++) acc[r][v] = v_set1(b->start[v0 + (uint32_t)v][r]);
    }
    const size_t stride = b->k_stride, dims = b->dims;
    const int lines = (nv * VL * (four ? 1 : 2) + 63) / 64;
    struct key_ahead *ahead = b->ahead;
    size_t at = 0;
    for (size_t d = 0; d < dims; d += 2, at += stride) {
        vf x[2][8];
        if (ahead) {
            UNROLL for (int j = 0; j < lines; j++) key_ahead_step(ahead);
        }
        UNROLL for (int v = 0; v < nv; v++)
        {
            if (four) {
                const vpair bytes = v_load_bytes(k[v] + at);
                x[0][v] = v_nibble(bytes, false);
                x[1][v] = v_nibble(bytes, true);
            } else {
                x[0][v] = v_load_u8(k[v] + at);
                x[1][v] = v_load_u8(k[v] + at + stride / 2);
            }
        }
        UNROLL for (int odd = 0; odd < 2; odd++)
        {
            UNROLL for (int r = 0; r < rows; r++)
            {
                const size_t place = (size_t)(r * W_STRIDE + odd);
                vf y = v_set1((w[0] + d)[place]);
                UNROLL for (int v = 0; v < nv; v++)
                {
                    if (!same && v > 0) y = v_set1((w[v] + d)[place]);
                    acc[r][v] = v_acc(acc[r][v], y, x[odd][v]);
                }
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
    {
        UNROLL for (int v = 0; v < nv; v++)
            v_store(b->s + r * S_STRIDE + (v0 + (uint32_t)v) * VL, acc[r][v]);
    }
}

typedef void qk_fn(const struct qk_block *b, uint32_t v0);

/* Token vectors per pass for each block height: as many as leave registers for K and q. */
#if VREGS == 32 && VL == 16
#define QK_NV(rows) ((rows) <= 6 ? 4 : 2)
#elif VREGS == 32
#define QK_NV(rows) ((rows) <= 2 ? 8 : (rows) <= 6 ? 4 : 2)
#else
#define QK_NV(rows) ((rows) <= 2 ? 4 : (rows) <= 3 ? 3 : 2)
#endif

/* The instantiations for one block height: the widest pass and single vectors. */
#define QK_HEIGHT(name, kind, rows)                                                                \
    static void qk_##name##_##rows##_w(const struct qk_block *b, uint32_t v0)                      \
    {                                                                                              \
        qk_core(kind, rows, QK_NV(rows), b, v0);                                                   \
    }                                                                                              \
    static void qk_##name##_##rows##_1(const struct qk_block *b, uint32_t v0)                      \
    {                                                                                              \
        qk_core(kind, rows, 1, b, v0);                                                             \
    }
#define QK_DOT_HEIGHT(name, low, rows)                                                             \
    static void qk_##name##_##rows##_w(const struct qk_block *b, uint32_t v0)                      \
    {                                                                                              \
        qk_dot_core(rows, QK_NV(rows), low, b, v0);                                                \
    }                                                                                              \
    static void qk_##name##_##rows##_1(const struct qk_block *b, uint32_t v0)                      \
    {                                                                                              \
        qk_dot_core(rows, 1, low, b, v0);                                                          \
    }
#define QK_ENTRY(name, unused, rows) {qk_##name##_##rows##_w, qk_##name##_##rows##_1},

#ifdef PKVI_BFDOT
EACH_HEIGHT(QK_DOT_HEIGHT, dot, false)
EACH_HEIGHT(QK_DOT_HEIGHT, dot2, true)
static qk_fn *const qk_dot_table[2][BLOCK_ROWS][2] = {{EACH_HEIGHT(QK_ENTRY, dot, )},
                                                      {EACH_HEIGHT(QK_ENTRY, dot2, )}};
#else
EACH_HEIGHT(QK_HEIGHT, f32, KIND_F32)
EACH_HEIGHT(QK_HEIGHT, f16, KIND_F16)
EACH_HEIGHT(QK_HEIGHT, bf16, KIND_BF16)

/* Codes: the widest pass in one page, the widest over pages, single vectors. */
#if VREGS == 32 && VL == 16
#define QK_CODE_NV(rows) ((rows) <= 3 ? 4 : 2)
#elif VREGS == 32
#define QK_CODE_NV(rows) ((rows) <= 6 ? 4 : 2)
#else
#define QK_CODE_NV(rows) ((rows) <= 2 ? 4 : 2)
#endif
#define QK_CODE_HEIGHT(name, four, rows)                                                           \
    static void qk_##name##_##rows##_s(const struct qk_block *b, uint32_t v0)                      \
    {                                                                                              \
        qk_code_core(four, rows, QK_CODE_NV(rows), true, b, v0);                                   \
    }                                                                                              \
    static void qk_##name##_##rows##_w(const struct qk_block *b, uint32_t v0)                      \
    {                                                                                              \
        qk_code_core(four, rows, QK_CODE_NV(rows), false, b, v0);                                  \
    }                                                                                              \
    static void qk_##name##_##rows##_1(const struct qk_block *b, uint32_t v0)                      \
    {                                                                                              \
        qk_code_core(four, rows, 1, true, b, v0);                                                  \
    }
#define QK_CODE_ENTRY(name, unused, rows)                                                          \
    {qk_##name##_##rows##_s, qk_##name##_##rows##_w, qk_##name##_##rows##_1},
EACH_HEIGHT(QK_CODE_HEIGHT, k8, false)
EACH_HEIGHT(QK_CODE_HEIGHT, k4, true)
static qk_fn *const qk_code_table[2][BLOCK_ROWS][3] = {{EACH_HEIGHT(QK_CODE_ENTRY, k8, )},
                                                       {EACH_HEIGHT(QK_CODE_ENTRY, k4, )}};

static void qk_code_run(bool four, uint32_t page_vecs, uint32_t rows, const struct qk_block *b,
                        uint32_t first, uint32_t last)
{
    qk_fn *const *fn = qk_code_table[four][rows - 1];
    const uint32_t wide = QK_CODE_NV(rows);
    const bool same = page_vecs >= wide;
    while (first < last && first % wide != 0)
        fn[2](b, first++);
    for (; first + wide <= last; first += wide)
        fn[same ? 0 : 1](b, first);
    while (first < last)
        fn[2](b, first++);
}

static qk_fn *const qk_table[3][BLOCK_ROWS][2] = {{EACH_HEIGHT(QK_ENTRY, f32, )},
                                                  {EACH_HEIGHT(QK_ENTRY, f16, )},
                                                  {EACH_HEIGHT(QK_ENTRY, bf16, )}};
#endif

/* Scores of token vectors [first, last) for one block of rows. */
static void qk_run(int kind, uint32_t rows, const struct qk_block *b, uint32_t first, uint32_t last)
{
#ifdef PKVI_BFDOT
    (void)kind;
    qk_fn *const *fn = qk_dot_table[b->q_low != NULL][rows - 1];
#else
    qk_fn *const *fn = qk_table[kind][rows - 1];
#endif
    const uint32_t wide = QK_NV(rows);
    while (first < last && first % wide != 0)
        fn[1](b, first++);
    for (; first + wide <= last; first += wide)
        fn[0](b, first);
    while (first < last)
        fn[1](b, first++);
}
