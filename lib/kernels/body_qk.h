/* Q*K of a block of rows and a few token vectors: lanes are tokens, so the sums stay in lanes.
 * Every score is one chain of fused multiply-adds over the dims in order, whatever the block: that
 * makes a score independent of how rows and tokens are grouped. */

struct qk_block {
    const char *k[GROUP_VECS]; /* dim 0 of each token vector */
    size_t k_stride;           /* bytes from one dim (bf16: pair of dims) to the next */
    uint32_t dims;
    const float *q;     /* [dim][rows], or u32 bf16 pairs [dim/2][rows] */
    const float *q_low; /* BFDOT: what rounding q to bf16 lost, as q; NULL if nothing */
    float *s;           /* scores, row r at s + r * S_STRIDE, token vector v at + v * VL */
    const char *pf[8];  /* next tiles: line j of the group's lines of a dim pair */
    size_t pf_stride;   /* bytes from one dim pair's lines to the next pair's */
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
    uint32_t lines; /* … in so many lines, `step` bytes apart */
    uint32_t left;
    size_t step;
    const char *next;
};

/* The last line of a page's share was sent for: on to the next page; after the last one that line
 * again and again. */
static __attribute__((noinline)) void key_ahead_turn(struct key_ahead *a, const char *last)
{
    if (a->page < a->n_pages) a->page++;
    const bool more = a->page < a->n_pages;
    if (!more) a->step = 0;
    a->next = more ? a->at[a->page] : last;
    a->left = more ? a->lines : UINT32_MAX;
}

/* Floats between rows and between pages of weights. */
enum { W_STRIDE = PKV_MAX_HEAD_DIM + 16, W_PAGE = BLOCK_ROWS * W_STRIDE };

/* A group's keys in codes for a block of rows. */
struct code_block {
    const char *k[GROUP / LEAST_CODE_PAGE]; /* each page's first slot of the group, dim 0 */
    uint32_t vecs;                          /* token vectors of a page in the group */
    size_t k_stride;                        /* bytes from one pair of dims to the next */
    uint32_t dims;
    const float *w;     /* weights q * scale: [page][BLOCK_ROWS][W_STRIDE] */
    const float *start; /* q . min, what scores start from: [page][BLOCK_ROWS] */
    float *s;           /* as in qk_block */
    struct key_ahead *ahead;
};

/* One vector of codes of the even or odd dim of a pair. */
VI vf code_dim(bool four, const char *k, size_t at, size_t stride, int odd)
{
    if (four) return v_nibble(v_load_bytes(k + at), odd);
    return v_load_u8(k + at + (odd ? stride / 2 : 0));
}

/* Scores of nv token vectors with keys in codes: q . k = q . min + sum (q * scale) code. `per`
 * vectors of the pass lie in one page. */
VI void qk_code_core(bool four, int rows, int nv, int per, const struct code_block *b, uint32_t v0)
{
    vf acc[BLOCK_ROWS][8];
    const char *k[8];
    const uint32_t page = v0 / b->vecs;
    UNROLL for (int p = 0; p * per < nv; p++) k[p] =
        b->k[page + (uint32_t)p] + (v0 & (b->vecs - 1)) * VL;
    UNROLL for (int v = 0; v < nv; v++)
    {
        UNROLL for (int r = 0; r < rows; r++) acc[r][v] =
            v_set1(b->start[(page + (uint32_t)(v / per)) * BLOCK_ROWS + (uint32_t)r]);
    }
    const float *w = b->w + (size_t)page * W_PAGE, *const end = w + b->dims;
    const size_t stride = b->k_stride;
    const int lines = (nv * VL * (four ? 1 : 2) + 63) / 64;
    struct key_ahead *ahead = b->ahead;
    const char *next = ahead->next;
    size_t step = ahead->step;
    uint32_t left = ahead->left;
    for (size_t at = 0; w < end; w += 2, at += stride) {
        UNROLL for (int j = 0; j < lines; j++)
        {
            v_prefetch(next);
            if (--left == 0) {
                key_ahead_turn(ahead, next);
                next = ahead->next;
                step = ahead->step;
                left = ahead->left;
            } else {
                next += step;
            }
        }
        UNROLL for (int odd = 0; odd < 2; odd++)
        {
            vf x[8];
            if (rows >= nv) {
                UNROLL for (int v = 0; v < nv; v++) x[v] =
                    code_dim(four, k[v / per] + v % per * VL, at, stride, odd);
            }
            UNROLL for (int r = 0; r < rows; r++)
            {
                UNROLL for (int v = 0; v < nv; v++)
                {
                    if (rows < nv && r == 0)
                        x[v] = code_dim(four, k[v / per] + v % per * VL, at, stride, odd);
                    acc[r][v] =
                        v_acc(acc[r][v], v_set1(w[v / per * W_PAGE + r * W_STRIDE + odd]), x[v]);
                }
            }
            FORGET(at);
        }
    }
    ahead->next = next;
    ahead->left = left;
    UNROLL for (int r = 0; r < rows; r++)
    {
        UNROLL for (int v = 0; v < nv; v++)
            v_store(b->s + r * S_STRIDE + (v0 + (uint32_t)v) * VL, acc[r][v]);
    }
}

/* Vectors [first, last), a multiple of nv. */
VI void qk_code_rows(bool four, int rows, int nv, const struct code_block *b, uint32_t first,
                     uint32_t last)
{
    const bool one = LEAST_CODE_PAGE == VL; /* pages of one vector */
    for (uint32_t v = first; v < last; v += (uint32_t)nv)
        if (b->vecs >= (uint32_t)nv)
            qk_code_core(four, rows, nv, nv, b, v);
        else if (!one || (nv > 2 && b->vecs == 2))
            qk_code_core(four, rows, nv, 2, b, v);
        else
            qk_code_core(four, rows, nv, 1, b, v);
}

/* Token vectors per pass for each block height, divisors of a group's: as many as leave registers
 * for K and q. */
#if VREGS == 32 && VL == 16
#define QK_NV(rows) ((rows) <= 6 ? 4 : 2)
#define QK_CODE_NV(rows) ((rows) <= 3 ? 4 : 2)
#elif VREGS == 32
#define QK_NV(rows) ((rows) <= 2 ? 8 : (rows) <= 6 ? 4 : 2)
#define QK_CODE_NV(rows) ((rows) <= 6 ? 4 : 2)
#else
#define QK_NV(rows) ((rows) <= 3 ? 4 : 2)
#define QK_CODE_NV(rows) ((rows) <= 3 ? 4 : 2)
#endif

/* The instantiations for one block height, and tables of them. */
typedef void qk_fn(const struct qk_block *b, uint32_t first, uint32_t last);
typedef void qk_code_fn(const struct code_block *b, uint32_t first, uint32_t last);

#define QK_HEIGHT(name, kind, rows)                                                                \
    static void qk_##name##_##rows(const struct qk_block *b, uint32_t first, uint32_t last)        \
    {                                                                                              \
        for (uint32_t v = first; v < last; v += QK_NV(rows))                                       \
            qk_core(kind, rows, QK_NV(rows), b, v);                                                \
    }
#define QK_DOT_HEIGHT(name, low, rows)                                                             \
    static void qk_##name##_##rows(const struct qk_block *b, uint32_t first, uint32_t last)        \
    {                                                                                              \
        for (uint32_t v = first; v < last; v += QK_NV(rows))                                       \
            qk_dot_core(rows, QK_NV(rows), low, b, v);                                             \
    }
#define QK_CODE_HEIGHT(name, four, rows)                                                           \
    static void qk_##name##_##rows(const struct code_block *b, uint32_t first, uint32_t last)      \
    {                                                                                              \
        qk_code_rows(four, rows, QK_CODE_NV(rows), b, first, last);                                \
    }
#define QK_ENTRY(name, unused, rows) qk_##name##_##rows,

#ifdef PKVI_BFDOT
EACH_HEIGHT(QK_DOT_HEIGHT, dot, false)
EACH_HEIGHT(QK_DOT_HEIGHT, dot2, true)
static qk_fn *const qk_dot_table[2][BLOCK_ROWS] = {{EACH_HEIGHT(QK_ENTRY, dot, )},
                                                   {EACH_HEIGHT(QK_ENTRY, dot2, )}};
#else
EACH_HEIGHT(QK_HEIGHT, f32, KIND_F32)
EACH_HEIGHT(QK_HEIGHT, f16, KIND_F16)
EACH_HEIGHT(QK_HEIGHT, bf16, KIND_BF16)
EACH_HEIGHT(QK_CODE_HEIGHT, k8, false)
EACH_HEIGHT(QK_CODE_HEIGHT, k4, true)
static qk_fn *const qk_table[3][BLOCK_ROWS] = {{EACH_HEIGHT(QK_ENTRY, f32, )},
                                               {EACH_HEIGHT(QK_ENTRY, f16, )},
                                               {EACH_HEIGHT(QK_ENTRY, bf16, )}};
static qk_code_fn *const qk_code_table[2][BLOCK_ROWS] = {{EACH_HEIGHT(QK_ENTRY, k8, )},
                                                         {EACH_HEIGHT(QK_ENTRY, k4, )}};
#endif

/* Scores of token vectors [first, last) for one block of rows, and of what else of the group is in
 * the same passes: there they are anything, and nobody's. */
static void qk_run(int kind, uint32_t rows, const struct qk_block *b, uint32_t first, uint32_t last)
{
    const uint32_t wide = QK_NV(rows);
#ifdef PKVI_BFDOT
    (void)kind;
    qk_fn *const fn = qk_dot_table[b->q_low != NULL][rows - 1];
#else
    qk_fn *const fn = qk_table[kind][rows - 1];
#endif
    fn(b, first / wide * wide, (last + wide - 1) / wide * wide);
}
