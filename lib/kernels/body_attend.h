/* A leaf, a tile, a job. */

/* Key positions of a group as floats (exact below 2^24). */
static void group_positions(const pkvi_attend_job *job, int64_t slot0, uint32_t shift, float *pos)
{
    for (uint32_t s = 0; s < GROUP; s++) {
        int64_t slot = slot0 + s, j = slot - (int64_t)job->tree_slot;
        int64_t page = slot >> shift;
        int64_t at = slot;
        if (page < 0 || page >= (int64_t)job->n_pages)
            at = 0; /* not visible */
        else if (job->tree_pos && j >= 0 && j < (int64_t)job->tree_n)
            at = job->tree_pos[j];
        else if (job->page_pos)
            at = job->page_pos[page] + (slot - (page << shift));
        pos[s] = (float)at;
    }
}

/* Any lane of token vector v in a row's bits? */
VI bool sees_lanes(uint64_t vis, uint32_t v)
{
    return (vis >> (v * VL) & ((UINT64_C(1) << VL) - 1)) != 0;
}

/* Turns raw dot products into base-2 scores (scale, softcap, ALiBi, mask) and updates the maxima.
 */
static __attribute__((noinline)) void group_finish(const struct tile *t, uint32_t gi, uint32_t h,
                                                   const float *pos)
{
    const pkvi_attend_job *job = t->job;
    const struct group *g = &t->groups[gi];
    const uint32_t first = g->first / VL, last = (g->last + VL - 1) / VL;
    const vf scale = v_set1(job->softcap > 0 ? job->scale / job->softcap : job->scale * LOG2E);
    const vf cap = v_set1(job->softcap * LOG2E);
    const size_t head = t->head0 - job->head0 + h;
    for (uint32_t r = 0; r < t->rows; r++) {
        float *s = t->s + (size_t)(h * t->rows + r) * S_STRIDE + gi * GROUP;
        float *max_at = t->vmax + (size_t)(h * t->rows + r) * VL;
        vf max = v_load(max_at);
        const uint64_t vis = g->full ? UINT64_MAX : g->vis[r];
        for (uint32_t v = first; v < last; v++) {
            if (!sees_lanes(vis, v)) continue; /* row_probs makes these zero */
            vf x = v_mul(v_load(s + v * VL), scale);
            if (job->softcap > 0) x = v_mul(v_tanh(x), cap);
            if (pos) {
                vf slope = v_set1(job->slopes[head * job->n_rows + t->row0 + r] * LOG2E);
                vf away = v_sub(v_load(pos + v * VL), v_set1((float)job->q_pos[t->row0 + r]));
                x = v_fma(slope, away, x);
            }
            if (!g->full) x = v_keep_bits(x, (uint32_t)(vis >> (v * VL)), v_set1(NEG_INF));
            v_store(s + v * VL, x);
            max = v_max(x, max); /* a NaN score is not a maximum; it surfaces in the sum */
        }
        v_store(max_at, max);
    }
}

/* Sum of a page's columns [from, to) of p. */
static float column_sum(const float *p, uint32_t from, uint32_t to)
{
    if ((to - from) % VL == 0 && from % VL == 0) {
        vf sum = v_zero();
        for (uint32_t c = from; c < to; c += VL)
            sum = v_add(sum, v_load(p + c));
        return v_hsum(sum);
    }
    float sum = 0;
    for (uint32_t c = from; c < to; c++)
        sum += p[c];
    return sum;
}

/* Adds the group's probabilities, page by page, to sums[page]. */
static void add_page_sums(const struct tile *t, const struct group *g, const float *p, float *sums)
{
    const uint32_t P = t->job->layout->page_tokens, run = P < GROUP ? P : GROUP;
    const int64_t page0 = g->slot0 >> t->page_shift;
    if (P == VL && page0 >= 0 && page0 + GROUP_VECS <= (int64_t)t->job->n_pages) {
        for (uint32_t v = 0; v < GROUP_VECS; v += 4) /* slots nobody sees are zero */
            v_add_hsum4(sums + page0 + v, p + v * VL);
        return;
    }
    for (uint32_t at = g->first / run * run; at < g->last; at += run) {
        int64_t page = (g->slot0 + at) >> t->page_shift;
        if (page >= 0 && page < (int64_t)t->job->n_pages) sums[page] += column_sum(p, at, at + run);
    }
}

/* Scores of one row and group become probabilities 2^(s - m), in place (BFDOT: bf16, packed at the
 * front); their sum is added to vsum and, per page, to page_sums (may be NULL). `scale` (may be
 * NULL) then multiplies what is stored, where the row sees: a scale that is not a number stays
 * away. */
static void row_probs(const struct tile *t, const struct group *g, uint32_t r, float *s, float m,
                      float *vsum, float *page_sums, const float *scale)
{
    const uint32_t first = g->first / VL, last = (g->last + VL - 1) / VL;
    const uint64_t vis = g->full ? UINT64_MAX : g->vis[r];
    float p[GROUP];
    vf base = v_set1(m), sum = v_load(vsum);
    if (page_sums && last - first < GROUP_VECS) memset(p, 0, sizeof p);
    for (uint32_t v = first; v < last; v++) {
        vf x = v_zero();
        if (sees_lanes(vis, v)) x = v_exp2(v_sub(v_load(s + v * VL), base));
#ifdef PKVI_BFDOT
        (void)scale;
        uint16_t *half = (uint16_t *)(void *)s + v * VL;
        v_store_prob(half, x);
        x = v_load_bf16(half);
#else
        vf y = x;
        if (scale && sees_lanes(vis, v)) {
            y = v_mul(x, v_load(scale + v * VL));
            if (!g->full) y = v_keep_bits(y, (uint32_t)(vis >> (v * VL)), v_zero());
        }
        v_store(s + v * VL, y);
#endif
        sum = v_add(sum, x);
        if (page_sums) v_store(p + v * VL, x);
    }
    v_store(vsum, sum);
    if (page_sums) add_page_sums(t, g, p, page_sums);
}

/* 2^(old - new) for a state whose maximum rose from old to new. */
static float rescale(float old, float now)
{
    return old == now ? 1.0f : exp2_one(old - now);
}

static void scale_floats(float *x, size_t n, float by)
{
    size_t i = 0;
    for (; i + VL <= n; i += VL)
        v_store(x + i, v_mul(v_load(x + i), v_set1(by)));
    for (; i < n; i++)
        x[i] *= by;
}

/* After a leaf's scores: the new maximum of every row, and the state so far rescaled to it. */
static __attribute__((noinline)) void leaf_maxima(const struct tile *t)
{
    const pkvi_attend_job *job = t->job;
    for (uint32_t h = 0; h < t->heads; h++)
        for (uint32_t r = 0; r < t->rows; r++) {
            size_t head = t->head0 - job->head0 + h, row = head * job->n_rows + t->row0 + r;
            float leaf = v_hmax(v_load(t->vmax + (size_t)(h * t->rows + r) * VL));
            float old = job->m[row], now = leaf > old ? leaf : old;
            float by = rescale(old, now);
            job->m[row] = now;
            if (by == 1.0f) continue;
            job->l[row] *= by;
            scale_floats(job->o + head * job->o_head_stride + (t->row0 + r) * job->o_stride,
                         job->layout->dim_v, by);
            if (job->page_sum && old != NEG_INF)
                scale_floats(job->page_sum + row * job->n_pages, job->n_pages, by);
        }
}

/* V tile in codes of a head: where column `at` of a group lies in it, and its slot there. */
VI const char *coded_values(const struct tile *t, const struct group *g, uint32_t h, uint32_t at,
                            uint32_t *slot)
{
    const pkvi_layout *l = t->job->layout;
    const int64_t place = g->slot0 + at;
    *slot = (uint32_t)(place & (l->page_tokens - 1));
    return part_of(t->job, place >> t->page_shift) + l->v_offset +
           (size_t)(t->head0 + h) * l->v_head_bytes;
}

/* V8: the scales of a group's tokens by column. */
static void load_value_scales(const struct tile *t, const struct group *g, uint32_t h, float *scale)
{
    const pkvi_layout *l = t->job->layout;
    const uint32_t run = l->page_tokens < GROUP ? l->page_tokens : GROUP;
    for (uint32_t at = g->first / run * run; at < g->last; at += run) {
        uint32_t slot;
        const char *tile = coded_values(t, g, h, at, &slot);
        convert(scale + at, PKV_DTYPE_F32, tile + l->v_scale + 2 * (size_t)slot, PKV_DTYPE_F16,
                run);
    }
}

/* V4: probabilities s of `rows` rows times a group of dims' scales, to p, and summed with its
 * minima, to base. What a row does not see adds nothing: a scale that is not a number stays away.
 */
VI void weigh_values(int rows, const struct tile *t, const struct group *g, uint32_t h, uint32_t j,
                     uint32_t r0, const float *s, float *p, float *base)
{
    const pkvi_layout *l = t->job->layout;
    const uint32_t run = l->page_tokens < GROUP ? l->page_tokens : GROUP;
    const bool half = VL > run;
    vf sum[4];
    UNROLL for (int r = 0; r < rows; r++) sum[r] = v_zero();
    for (uint32_t at = g->first / run * run; at < g->last; at += run) {
        uint32_t slot;
        const char *tile = coded_values(t, g, h, at, &slot);
        const size_t skip = 2 * ((size_t)j * l->page_tokens + slot);
        const char *scale = tile + l->v_scale + skip, *min = tile + l->v_min + skip;
        for (uint32_t c = 0; c < run; c += VL) {
            const vf by = half ? v_load_f16_half(scale + 2 * c) : v_load_f16(scale + 2 * c);
            const vf low = half ? v_load_f16_half(min + 2 * c) : v_load_f16(min + 2 * c);
            UNROLL for (int r = 0; r < rows; r++)
            {
                const vf x = load_out(s + r * S_STRIDE + at + c, half);
                vf y = v_mul(x, by), z = v_mul(x, low);
                if (!g->full) {
                    const uint32_t bits = (uint32_t)(g->vis[r0 + (uint32_t)r] >> (at + c));
                    y = v_keep_bits(y, bits, v_zero());
                    z = v_keep_bits(z, bits, v_zero());
                }
                store_out(p + r * GROUP + at + c, y, half);
                sum[r] = v_add(sum[r], z);
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++) base[r] = v_hsum(sum[r]);
}

static void weigh_values_block(const struct tile *t, const struct group *g, uint32_t h, uint32_t r0,
                               uint32_t rows, const float *s)
{
    const uint32_t groups = t->job->layout->v_groups;
    for (uint32_t j = 0; j < groups; j++) {
        float *p = t->v_weights + (size_t)j * BLOCK_ROWS * GROUP;
        float *base = t->v_base + (size_t)j * BLOCK_ROWS;
        uint32_t r = 0;
        for (; r + 4 <= rows; r += 4)
            weigh_values(4, t, g, h, j, r0 + r, s + r * S_STRIDE, p + r * GROUP, base + r);
        for (; r < rows; r++)
            weigh_values(1, t, g, h, j, r0 + r, s + r * S_STRIDE, p + r * GROUP, base + r);
    }
}

/* Where the values of one group and head are. */
static __attribute__((noinline)) void value_span(const struct tile *t, uint32_t gi, uint32_t h,
                                                 struct pv_span *span)
{
    const struct group *g = &t->groups[gi];
    const pkvi_layout *l = t->job->layout;
    const uint32_t run = l->page_tokens < GROUP ? l->page_tokens : GROUP;
    span->n_pages = 0;
    span->row_bytes = t->v_kind == KIND_V8 || t->v_kind == KIND_V4 ? l->dim_v
                      : t->v_kind == KIND_F16                      ? (size_t)l->dim_v * 2
                                                                   : (size_t)l->dim_v * 4;
    for (uint32_t at = g->first / run * run; at < g->last; at += run) {
        uint32_t i = span->n_pages++;
        span->v[i] = v_tile(t, t->head0 + h, g->slot0 + at);
        span->next[i] = tile_ahead(t, 1, true, gi, h, at);
        for (uint32_t byte = l->v_scale;
             l->v_scale && byte < l->v_head_bytes && run == l->page_tokens; byte += 64)
            v_prefetch(span->next[i] + byte);
        span->t0[i] = g->first > at ? g->first - at : 0;
        span->t1[i] = g->last < at + run ? g->last - at : run;
        span->column[i] = at;
    }
}

/* The part of a span in columns [from, to), at least one of its tokens. */
static void span_clip(struct pv_span *out, const struct pv_span *s, uint32_t from, uint32_t to)
{
    out->n_pages = 0;
    out->row_bytes = s->row_bytes;
    for (uint32_t i = 0; i < s->n_pages; i++) {
        const uint32_t column = s->column[i];
        const uint32_t t0 = column + s->t0[i] > from ? s->t0[i] : from - column;
        const uint32_t t1 = column + s->t1[i] < to ? s->t1[i] : to > column ? to - column : 0;
        if (t0 >= t1) continue;
        const uint32_t j = out->n_pages++;
        out->v[j] = s->v[i];
        out->next[j] = s->next[i];
        out->t0[j] = t0;
        out->t1[j] = t1;
        out->column[j] = column;
    }
}

/* One vector of dims of one token, from the page's tile. */
VI vf span_value(int kind, const struct pv_span *s, uint32_t page, uint32_t token, uint32_t vec,
                 bool half)
{
    const bool pairs = kind == KIND_BF16 || kind == KIND_BFDOT;
    const char *row = s->v[page] + (size_t)(pairs ? token / 2 : token) * s->row_bytes +
                      (size_t)vec * value_bytes(kind);
    return load_value(kind, row, half, pairs && token % 2);
}

static __attribute__((noinline)) bool span_finite(int kind, const struct pv_span *s, uint32_t dims)
{
    vf sum = v_zero();
    for (uint32_t i = 0; i < s->n_pages; i++)
        for (uint32_t token = s->t0[i]; token < s->t1[i]; token++) {
            uint32_t vec = 0;
            for (; vec < dims / VL; vec++)
                sum = v_fma(span_value(kind, s, i, token, vec, false), v_zero(), sum);
            if (dims % VL) sum = v_fma(span_value(kind, s, i, token, vec, true), v_zero(), sum);
        }
    return v_hsum(sum) == 0.0f;
}

static float prob_at(int kind, const float *s, uint32_t column)
{
#ifdef PKVI_BFDOT
    (void)kind;
    const uint32_t bits = (uint32_t)((const uint16_t *)(const void *)s)[column] << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
#else
    (void)kind;
    return s[column];
#endif
}

/* P*V where some row must not even multiply by zero what another row sees: token by token. */
static void careful_values(const struct tile *t, uint32_t gi, uint32_t h, int kind,
                           const struct pv_span *s, float *o)
{
    const struct group *g = &t->groups[gi];
    const uint32_t dims = t->job->layout->dim_v;
    for (uint32_t r = 0; r < t->rows; r++) {
        const float *p = t->s + (size_t)(h * t->rows + r) * S_STRIDE + gi * GROUP;
        float *row = o + r * t->job->o_stride;
        for (uint32_t i = 0; i < s->n_pages; i++)
            for (uint32_t token = s->t0[i]; token < s->t1[i]; token++) {
                const uint32_t column = s->column[i] + token;
                if (!(g->vis[r] >> column & 1)) continue;
                vf w = v_set1(prob_at(kind, p, column));
                for (uint32_t vec = 0; vec * VL < dims; vec++) {
                    const bool half = (vec + 1) * VL > dims;
                    vf x = span_value(kind, s, i, token, vec, half);
                    store_out(row + vec * VL, v_fma(w, x, load_out(row + vec * VL, half)), half);
                }
            }
    }
}

static __attribute__((noinline)) void group_values(const struct tile *t, uint32_t gi, uint32_t h)
{
    const pkvi_attend_job *job = t->job;
    const struct group *g = &t->groups[gi];
    const uint32_t dims = job->layout->dim_v;
    const size_t head = t->head0 - job->head0 + h;
    float *o = job->o + head * job->o_head_stride + t->row0 * job->o_stride;
    const int kind = t->v_kind;
    float scale[GROUP];
    struct pv_span span;
    if (kind == KIND_V8) load_value_scales(t, g, h, scale);
    value_span(t, gi, h, &span);
    for (uint32_t r = 0; r < t->rows; r++) {
        const size_t at = h * t->rows + r, row = head * job->n_rows + t->row0 + r;
        const float m = job->m[row];
        row_probs(t, g, r, t->s + at * S_STRIDE + gi * GROUP, m == NEG_INF ? 0.0f : m,
                  t->vsum + at * VL, job->page_sum ? job->page_sum + row * job->n_pages : NULL,
                  kind == KIND_V8 ? scale : NULL);
    }
    const bool coded = pkvi_layout_v_coded(job->layout); /* finite, and weighted by what rows see */
    if (g->mixed && !coded && !span_finite(kind, &span, dims)) {
        careful_values(t, gi, h, kind, &span, o);
        return;
    }
    struct pv_span block_span;
    struct pv_block b = {.span = &block_span, .o_stride = job->o_stride};
    for (uint32_t r = 0, n, from, to; r < t->rows; r += n) {
        n = block_rows(t->rows - r);
        if (!group_block(g, r, n, &from, &to)) continue;
        span_clip(&block_span, &span, from, to);
        b.p = t->s + (size_t)(h * t->rows + r) * S_STRIDE + gi * GROUP;
        b.o = o + r * job->o_stride;
        if (kind == KIND_V4) {
            weigh_values_block(t, g, h, r, n, b.p);
            b.p = t->v_weights;
            b.base = t->v_base;
        }
        pv_run(kind, n, &b, dims);
        memcpy(span.next, span.v, sizeof span.next); /* prefetched once */
    }
}

/* PKVI_JOB_MASS_ONLY: probabilities under known LSEs, summed per page. */
static void group_mass(const struct tile *t, uint32_t gi, uint32_t h)
{
    const pkvi_attend_job *job = t->job;
    const size_t head = t->head0 - job->head0 + h;
    float unused[VL] = {0};
    for (uint32_t r = 0; r < t->rows; r++) {
        const float lse2 = job->mass_lse2[head * job->n_rows + t->row0 + r];
        if (lse2 == NEG_INF) continue;
        float *s = t->s + (size_t)(h * t->rows + r) * S_STRIDE + gi * GROUP;
        row_probs(t, &t->groups[gi], r, s, lse2, unused, job->mass + head * job->n_pages, NULL);
    }
}

static void leaf(struct tile *t)
{
    const pkvi_attend_job *job = t->job;
    const size_t states = (size_t)t->heads * t->rows;
    float pos[GROUP];
    for (size_t i = 0; i < states; i++) {
        v_store(t->vmax + i * VL, v_set1(NEG_INF));
        v_store(t->vsum + i * VL, v_zero());
    }
    for (uint32_t g = 0; g < t->n_groups; g++) {
        if (job->slopes) group_positions(job, t->groups[g].slot0, t->page_shift, pos);
        for (uint32_t h = 0; h < t->heads; h++) {
#ifndef PKVI_BFDOT
            if (t->codes)
                code_scores(t, g, h);
            else
#endif
                group_scores(t, g, h);
            bridge(t, 2, false, g, h); /* the next tile is on its way already */
            group_finish(t, g, h, job->slopes ? pos : NULL);
        }
    }
    if (job->flags & PKVI_JOB_MASS_ONLY) {
        for (uint32_t g = 0; g < t->n_groups; g++)
            for (uint32_t h = 0; h < t->heads; h++)
                group_mass(t, g, h);
        return;
    }
    leaf_maxima(t);
    for (uint32_t g = 0; g < t->n_groups; g++)
        for (uint32_t h = 0; h < t->heads; h++) {
            bridge(t, 1, true, g, h);
            group_values(t, g, h);
        }
    for (uint32_t h = 0; h < t->heads; h++)
        for (uint32_t r = 0; r < t->rows; r++)
            job->l[(t->head0 - job->head0 + h) * job->n_rows + t->row0 + r] +=
                v_hsum(v_load(t->vsum + (size_t)(h * t->rows + r) * VL));
}

static __attribute__((noinline)) void empty_state(const struct tile *t)
{
    const pkvi_attend_job *job = t->job;
    for (uint32_t h = 0; h < t->heads; h++)
        for (uint32_t r = 0; r < t->rows; r++) {
            size_t head = t->head0 - job->head0 + h, row = head * job->n_rows + t->row0 + r;
            job->m[row] = NEG_INF;
            job->l[row] = 0;
            memset(job->o + head * job->o_head_stride + (t->row0 + r) * job->o_stride, 0,
                   job->layout->dim_v * sizeof(float));
        }
}

/* Scratch is laid out for the largest tile the job can have; see pkvi_kernel_scratch. */
static void tile_scratch(struct tile *t)
{
    const pkvi_layout *l = t->job->layout;
    const size_t states = (size_t)t->heads * t->rows;
    float *at = t->job->scratch;
    t->s = at;
    at += states * S_STRIDE;
    t->vmax = at;
    at += states * 16;
    t->vsum = at;
    at += states * 16;
    uint64_t *vis = (uint64_t *)(void *)at;
    at += (size_t)LEAF_GROUPS * t->rows * 2 + 16 - (size_t)LEAF_GROUPS * t->rows * 2 % 16;
    for (uint32_t g = 0; g < LEAF_GROUPS; g++)
        t->groups[g].vis = vis + (size_t)g * t->rows;
    t->k_panel = at;
    at += t->panel ? (size_t)GROUP * l->dim_k : 0;
    t->weights = at;
    at += t->codes ? (size_t)(l->page_tokens < GROUP ? GROUP / l->page_tokens : 1) * W_PAGE : 0;
    t->v_weights = at;
    at += (size_t)l->v_groups * BLOCK_ROWS * GROUP;
    t->v_base = at;
    at += (size_t)l->v_groups * 16;
    t->q = at;
    t->q_low = NULL;
#ifdef PKVI_BFDOT
    if (!(t->job->flags & PKVI_JOB_Q_BF16)) t->q_low = at + states * l->dim_k / 2;
#endif
}

static void attend_tile(struct tile *t)
{
    const pkvi_attend_job *job = t->job;
    const bool mass_only = job->flags & PKVI_JOB_MASS_ONLY;
    tile_scratch(t);
    if (!(job->flags & PKVI_JOB_ACCUMULATE) && !mass_only) empty_state(t);
    if (job->page_sum && !mass_only)
        for (uint32_t h = 0; h < t->heads; h++)
            memset(job->page_sum +
                       ((t->head0 - job->head0 + h) * (size_t)job->n_rows + t->row0) * job->n_pages,
                   0, (size_t)t->rows * job->n_pages * sizeof(float));
    const struct row_bounds bounds = row_bounds(job, t->row0, t->rows);
    if (bounds.min_lo >= bounds.max_hi) return;
    if (!(job->flags & PKVI_JOB_SAME_Q) && !t->codes) pack_queries(t);
    const int64_t phase = job->leaf_phase;
    int64_t slot = (bounds.min_lo + phase) / PKVI_LEAF * PKVI_LEAF - phase;
    for (; slot < bounds.max_hi; slot += PKVI_LEAF) {
        t->n_groups = 0;
        for (uint32_t g = 0; g < LEAF_GROUPS; g++) {
            struct group *group = &t->groups[t->n_groups];
            if (group_make(job, &bounds, t->row0, t->rows, slot + (int64_t)g * GROUP, group,
                           group->vis))
                t->n_groups++;
        }
        if (t->n_groups > 0) leaf(t);
    }
}

static void attend(const pkvi_attend_job *job)
{
    const pkvi_layout *l = job->layout;
    struct tile t = {.job = job};
    t.page_shift = (uint32_t)__builtin_ctz(l->page_tokens);
#ifdef PKVI_BFDOT
    t.k_kind = t.v_kind = KIND_BFDOT;
#else
    t.k_kind = key_kind(l);
    t.v_kind = value_kind(l);
#endif
    uint32_t rows = job->n_rows <= PKVI_TILE_ROWS ? job->n_rows : PKVI_PREFILL_ROWS;
    uint32_t heads = PKVI_TILE_ROWS / rows;
    for (t.head0 = job->head0; t.head0 < job->head1; t.head0 += t.heads) {
        t.heads = job->head1 - t.head0 < heads ? job->head1 - t.head0 : heads;
        for (t.row0 = 0; t.row0 < job->n_rows; t.row0 += t.rows) {
            t.rows = job->n_rows - t.row0 < rows ? job->n_rows - t.row0 : rows;
            /* A vector of tokens must lie in one page, and of short pages with codes too many would
             * be weighted at a time. */
            const bool coded = pkvi_layout_k_coded(l);
            t.panel = VL > l->page_tokens || (coded && l->page_tokens < LEAST_CODE_PAGE);
            t.codes = coded && !t.panel;
            attend_tile(&t);
        }
    }
}
