/* Per-page summaries of keys, and the page scores computed from them. */

/* Lanes [0, left) as bits for v_keep_bits. */
VI uint32_t first_lanes(uint32_t left)
{
    return left >= VL ? UINT32_MAX : (1u << left) - 1;
}

/* 1 / |k| of a page's tokens; 0 for a key that is zero or not finite. `rows` K rows (dims, or pairs
 * of dims) of row_bytes. */
static void inverse_norms(int kind, const char *k, uint32_t rows, size_t row_bytes, uint32_t tokens,
                          float *inverse)
{
    const bool half = VL > tokens;
    for (uint32_t s = 0; s < tokens; s += VL) {
        float norm[VL];
        vf sum = v_zero();
        for (uint32_t i = 0; i < rows; i++) {
            const char *at = k + i * row_bytes + s * k_slot_bytes(kind);
            vf x = load_value(kind, at, half, false);
            sum = v_fma(x, x, sum);
            if (kind != KIND_BF16) continue;
            x = load_value(kind, at, half, true);
            sum = v_fma(x, x, sum);
        }
        v_store(norm, sum);
        for (uint32_t i = 0; i < VL && s + i < tokens; i++)
            inverse[s + i] = norm[i] > 0 && norm[i] < -NEG_INF ? 1.0f / sqrtf(norm[i]) : 0.0f;
    }
}

/* Minimum, maximum and sum of the normalised values of one dim over the first n tokens; `at` is the
 * dim's row (bf16: its pair's row). */
static void dim_summary(int kind, const char *at, bool odd, uint32_t tokens, uint32_t n,
                        const float *inverse, float *min, float *max, float *sum)
{
    const vf inf = v_set1(-NEG_INF), big = v_set1(0x1.fffffep127f), low = v_set1(-0x1.fffffep127f);
    const bool half = VL > tokens;
    vf lowest = inf, highest = v_set1(NEG_INF), total = v_zero();
    for (uint32_t s = 0; s < n; s += VL) {
        const uint32_t bits = first_lanes(n - s);
        vf x = load_value(kind, at + s * k_slot_bytes(kind), half, odd);
        lowest = v_min(v_keep_bits(x, bits, inf), lowest);
        highest = v_max(v_keep_bits(x, bits, v_set1(NEG_INF)), highest);
        vf finite = v_max(v_min(x, big), low); /* so that a weight of 0 removes it */
        vf share = v_mul(finite, load_out(inverse + s, half));
        total = v_add(total, v_keep_bits(share, bits, v_zero()));
    }
    *min = -v_hmax(v_sub(v_zero(), lowest));
    *max = v_hmax(highest);
    *sum = v_hsum(total);
}

/* Sums of the normalised keys of a head in codes; flagged tokens add nothing. */
static void coded_sums(const pkvi_layout *l, const void *part, uint32_t head, uint32_t n,
                       float *sum)
{
    const char *tile = (const char *)part + (size_t)head * l->k_head_bytes;
    const uint8_t *flags = key_flags(l, part, head);
    struct key_scales scales;
    float x[MAX_PAGE + PAD], norm[MAX_PAGE + PAD] = {0};
    load_key_scales(l, tile, &scales);
    for (uint32_t d = 0; d < l->dim_k; d++) {
        channel_floats(l, tile, &scales, d, x);
        for (uint32_t s = 0; s < l->page_tokens; s += VL) {
            const vf y = v_load(x + s);
            v_store(norm + s, v_fma(y, y, v_load(norm + s)));
        }
    }
    for (uint32_t t = 0; t < l->page_tokens; t++) {
        const bool counts = t < n && !(flags[t / 8] >> (t % 8) & 1);
        norm[t] = counts && norm[t] > 0 && norm[t] < -NEG_INF ? 1.0f / sqrtf(norm[t]) : 0.0f;
    }
    memset(norm + l->page_tokens, 0, PAD * sizeof *norm);
    for (uint32_t d = 0; d < l->dim_k; d++) {
        vf total = v_zero();
        channel_floats(l, tile, &scales, d, x);
        for (uint32_t s = 0; s < l->page_tokens; s += VL)
            total = v_fma(v_load(x + s), v_load(norm + s), total);
        sum[d] = v_hsum(total);
    }
}

static void plain_summaries(const pkvi_layout *l, const void *part, uint32_t head, uint32_t n,
                            float *min, float *max, float *sum)
{
    const int kind = key_kind(l);
    const size_t row = (size_t)l->page_tokens * k_slot_bytes(kind);
    const bool pairs = kind == KIND_BF16;
    const char *k = (const char *)part + (size_t)head * l->k_head_bytes;
    float inverse[MAX_PAGE];
    inverse_norms(kind, k, pairs ? l->dim_k / 2 : l->dim_k, row, l->page_tokens, inverse);
    for (uint32_t d = 0; d < l->dim_k; d++)
        dim_summary(kind, k + (pairs ? d / 2 : d) * row, pairs && d % 2, l->page_tokens, n, inverse,
                    &min[d], &max[d], &sum[d]);
}

static void digest(const pkvi_layout *l, void *part, uint32_t head0, uint32_t head1,
                   uint32_t n_tokens)
{
    const bool coded = pkvi_layout_k_coded(l); /* the bounds are there already */
    float min[PKV_MAX_HEAD_DIM], max[PKV_MAX_HEAD_DIM], sum[PKV_MAX_HEAD_DIM];
    if (!l->digest || (coded && !(l->digest & PKVI_DIGEST_SUM))) return;
    for (uint32_t h = head0; h < head1; h++) {
        const size_t keys = (size_t)h * l->dim_k;
        if (coded)
            coded_sums(l, part, h, n_tokens, sum);
        else
            plain_summaries(l, part, h, n_tokens, min, max, sum);
        if (!coded && l->digest & PKVI_DIGEST_MINMAX) {
            convert((char *)part + l->min_offset + keys * l->k_elem_bytes, l->dtype_k, min,
                    PKV_DTYPE_F32, l->dim_k);
            convert((char *)part + l->max_offset + keys * l->k_elem_bytes, l->dtype_k, max,
                    PKV_DTYPE_F32, l->dim_k);
        }
        if (l->digest & PKVI_DIGEST_SUM)
            memcpy((char *)part + l->sum_offset + keys * sizeof(float), sum,
                   l->dim_k * sizeof(float));
    }
}

/* A vector of digest elements (plain order, unlike the tiles). */
VI vf load_plain(pkv_dtype dtype, const char *p, bool half)
{
    if (half) {
        if (dtype == PKV_DTYPE_F16) return v_load_f16_half(p);
        if (dtype == PKV_DTYPE_F32) return v_load_half((const float *)(const void *)p);
        float x[VL] = {0};
        char bits[VL * 2] = {0};
        memcpy(bits, p, VL);
        v_store(x, v_load_bf16(bits));
        return v_load(x);
    }
    return load_as(dtype, p);
}

/* The larger one; what is not a number never is. */
VI float larger(float a, float b)
{
    return b > a ? b : a;
}

/* The largest bound of NR rows (dims apart) for one page and head: a min or max element is loaded
 * and converted once for all of them. The bound's terms max(q * min, q * max) follow from q's sign
 * alone. levels > 0: max holds scales, and the maximum is min + levels * scale. */
#define SCORE_ROWS 4
VI float page_score(pkv_dtype dtype, float levels, uint32_t dims, int nr, const char *min,
                    const char *max, const float *q)
{
    const size_t bytes = bytes_of(dtype);
    vf sum[SCORE_ROWS];
    UNROLL for (int r = 0; r < nr; r++) sum[r] = v_zero();
    uint32_t d = 0;
    for (; d + VL <= dims; d += VL) {
        const vf a = load_as(dtype, min + d * bytes);
        vf b = load_as(dtype, max + d * bytes);
        if (levels > 0) b = v_fma(v_set1(levels), b, a);
        UNROLL for (int r = 0; r < nr; r++)
        {
            const vf x = v_load(q + (size_t)r * dims + d);
            sum[r] = v_fma(x, v_select_lt(x, v_zero(), a, b), sum[r]);
        }
    }
    if (d < dims) {
        const vf a = load_plain(dtype, min + d * bytes, true);
        vf b = load_plain(dtype, max + d * bytes, true);
        if (levels > 0) b = v_fma(v_set1(levels), b, a);
        UNROLL for (int r = 0; r < nr; r++)
        {
            const vf x = load_out(q + (size_t)r * dims + d, true);
            sum[r] = v_fma(x, v_select_lt(x, v_zero(), a, b), sum[r]);
        }
    }
    float best = NEG_INF;
    UNROLL for (int r = 0; r < nr; r++) best = larger(best, v_hsum(sum[r]));
    return best;
}

/* Pages ahead whose digests are on their way while one is scored: each is a place of its own in
 * memory, out of reach of the hardware's prefetcher. */
#define SCORE_AHEAD 4u

/* Where a page's bounds are: one head's follow those of the head before by `stride`. */
struct bound_place {
    size_t min, max, stride, bytes;
};

static struct bound_place bound_place(const pkvi_layout *l)
{
    const size_t bytes = (size_t)l->dim_k * l->k_elem_bytes;
    if (pkvi_layout_k_coded(l))
        return (struct bound_place){l->k_min, l->k_scale, l->k_head_bytes, 2 * (size_t)l->dim_k};
    return (struct bound_place){l->min_offset, l->max_offset, bytes, bytes};
}

/* Always inline: GCC finds a function that only prefetches to be without effect and drops its
 * calls.
 */
VI void prefetch_digest(const struct bound_place *at, const void *part, uint32_t head)
{
    const char *min = (const char *)part + at->min + head * at->stride;
    const char *max = (const char *)part + at->max + head * at->stride;
    for (size_t line = 0; line < at->bytes; line += 64) {
        v_prefetch(min + line);
        v_prefetch(max + line);
    }
}

/* Pages outside, heads inside: the digests of a page's heads are neighbours in memory. */
VI void score_pages(pkv_dtype dtype, float levels, const pkvi_layout *l, const void *const *parts,
                    uint32_t n_pages, uint32_t head0, uint32_t head1, const float *q,
                    uint32_t n_rows, float *out)
{
    const struct bound_place at = bound_place(l);
    for (uint32_t page = 0; page < n_pages; page++)
        for (uint32_t h = head0; h < head1; h++) {
            if (page + SCORE_AHEAD < n_pages) prefetch_digest(&at, parts[page + SCORE_AHEAD], h);
            const char *min = (const char *)parts[page] + at.min + h * at.stride;
            const char *max = (const char *)parts[page] + at.max + h * at.stride;
            const float *rows = q + (size_t)(h - head0) * n_rows * l->dim_k;
            float best = NEG_INF;
            uint32_t r = 0;
            for (; r + SCORE_ROWS <= n_rows; r += SCORE_ROWS)
                best = larger(best, page_score(dtype, levels, l->dim_k, SCORE_ROWS, min, max,
                                               rows + (size_t)r * l->dim_k));
            for (; r < n_rows; r++)
                best = larger(best, page_score(dtype, levels, l->dim_k, 1, min, max,
                                               rows + (size_t)r * l->dim_k));
            out[(size_t)(h - head0) * n_pages + page] = best;
        }
}

static void score(const pkvi_layout *l, const void *const *parts, uint32_t n_pages, uint32_t head0,
                  uint32_t head1, const float *q, uint32_t n_rows, float *best)
{
    if (pkvi_layout_k_coded(l))
        score_pages(PKV_DTYPE_F16, l->dtype_k == PKV_DTYPE_K8 ? 255.0f : 15.0f, l, parts, n_pages,
                    head0, head1, q, n_rows, best);
    else if (l->dtype_k == PKV_DTYPE_F16)
        score_pages(PKV_DTYPE_F16, 0, l, parts, n_pages, head0, head1, q, n_rows, best);
    else if (l->dtype_k == PKV_DTYPE_BF16)
        score_pages(PKV_DTYPE_BF16, 0, l, parts, n_pages, head0, head1, q, n_rows, best);
    else
        score_pages(PKV_DTYPE_F32, 0, l, parts, n_pages, head0, head1, q, n_rows, best);
}

/* ---- vectors of floats, for policies that compare keys -------------------------------------- */

/* Sum of a[i] * b[i]; n a multiple of 8. Four sums, so that no addition waits for the last. */
static float dot(const float *a, const float *b, size_t n)
{
    vf sum[4] = {v_zero(), v_zero(), v_zero(), v_zero()};
    size_t i = 0;
    for (; i + 4 * VL <= n; i += 4 * VL) {
        UNROLL
        for (size_t j = 0; j < 4; j++)
            sum[j] = v_fma(v_load(a + i + j * VL), v_load(b + i + j * VL), sum[j]);
    }
    for (; i + VL <= n; i += VL)
        sum[0] = v_fma(v_load(a + i), v_load(b + i), sum[0]);
    if (i < n) sum[1] = v_fma(v_load_half(a + i), v_load_half(b + i), sum[1]);
    return v_hsum(v_add(v_add(sum[0], sum[1]), v_add(sum[2], sum[3])));
}

/* to[i] = from[i] * scale; returns the squared distance that `to` moved. n a multiple of 8. */
static float turn(float *to, const float *from, float scale, size_t n)
{
    const vf s = v_set1(scale);
    vf square = v_zero();
    size_t i = 0;
    for (; i + VL <= n; i += VL) {
        const vf now = v_mul(v_load(from + i), s), by = v_sub(now, v_load(to + i));
        square = v_fma(by, by, square);
        v_store(to + i, now);
    }
    if (i < n) {
        const vf now = v_mul(v_load_half(from + i), s), by = v_sub(now, v_load_half(to + i));
        square = v_fma(by, by, square);
        v_store_half(to + i, now);
    }
    return v_hsum(square);
}
