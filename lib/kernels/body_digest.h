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

static int layout_kind(const pkvi_layout *l)
{
    return l->dtype == PKV_DTYPE_F32 ? KIND_F32 : l->dtype == PKV_DTYPE_F16 ? KIND_F16 : KIND_BF16;
}

static void digest(const pkvi_layout *l, void *part, uint32_t head0, uint32_t head1,
                   uint32_t n_tokens)
{
    const int kind = layout_kind(l);
    const size_t row = (size_t)l->page_tokens * k_slot_bytes(kind);
    const bool pairs = kind == KIND_BF16;
    float min[PKV_MAX_HEAD_DIM], max[PKV_MAX_HEAD_DIM], sum[PKV_MAX_HEAD_DIM];
    float inverse[128];
    if (!l->digest) return;
    for (uint32_t h = head0; h < head1; h++) {
        const char *k = (const char *)part + (size_t)h * l->k_head_bytes;
        inverse_norms(kind, k, pairs ? l->dim_k / 2 : l->dim_k, row, l->page_tokens, inverse);
        for (uint32_t d = 0; d < l->dim_k; d++)
            dim_summary(kind, k + (pairs ? d / 2 : d) * row, pairs && d % 2, l->page_tokens,
                        n_tokens, inverse, &min[d], &max[d], &sum[d]);
        const size_t keys = (size_t)h * l->dim_k;
        if (l->digest & PKVI_DIGEST_MINMAX) {
            convert((char *)part + l->min_offset + keys * l->elem_bytes, l->dtype, min,
                    PKV_DTYPE_F32, l->dim_k);
            convert((char *)part + l->max_offset + keys * l->elem_bytes, l->dtype, max,
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
 * alone. */
#define SCORE_ROWS 4
VI float page_score(pkv_dtype dtype, uint32_t dims, int nr, const char *min, const char *max,
                    const float *q)
{
    const size_t bytes = bytes_of(dtype);
    vf sum[SCORE_ROWS];
    UNROLL for (int r = 0; r < nr; r++) sum[r] = v_zero();
    uint32_t d = 0;
    for (; d + VL <= dims; d += VL) {
        const vf a = load_as(dtype, min + d * bytes), b = load_as(dtype, max + d * bytes);
        UNROLL for (int r = 0; r < nr; r++)
        {
            const vf x = v_load(q + (size_t)r * dims + d);
            sum[r] = v_fma(x, v_select_lt(x, v_zero(), a, b), sum[r]);
        }
    }
    if (d < dims) {
        const vf a = load_plain(dtype, min + d * bytes, true);
        const vf b = load_plain(dtype, max + d * bytes, true);
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

/* Always inline: GCC finds a function that only prefetches to be without effect and drops its
 * calls.
 */
VI void prefetch_digest(const pkvi_layout *l, const void *part, size_t at)
{
    const size_t bytes = (size_t)l->dim_k * l->elem_bytes;
    const char *min = (const char *)part + l->min_offset + at;
    const char *max = (const char *)part + l->max_offset + at;
    for (size_t line = 0; line < bytes; line += 64) {
        v_prefetch(min + line);
        v_prefetch(max + line);
    }
}

/* Pages outside, heads inside: the digests of a page's heads are neighbours in memory. */
VI void score_pages(pkv_dtype dtype, const pkvi_layout *l, const void *const *parts,
                    uint32_t n_pages, uint32_t head0, uint32_t head1, const float *q,
                    uint32_t n_rows, float *out)
{
    const size_t bytes = (size_t)l->dim_k * l->elem_bytes;
    for (uint32_t page = 0; page < n_pages; page++)
        for (uint32_t h = head0; h < head1; h++) {
            if (page + SCORE_AHEAD < n_pages)
                prefetch_digest(l, parts[page + SCORE_AHEAD], h * bytes);
            const char *min = (const char *)parts[page] + l->min_offset + h * bytes;
            const char *max = (const char *)parts[page] + l->max_offset + h * bytes;
            const float *rows = q + (size_t)(h - head0) * n_rows * l->dim_k;
            float best = NEG_INF;
            uint32_t r = 0;
            for (; r + SCORE_ROWS <= n_rows; r += SCORE_ROWS)
                best = larger(best, page_score(dtype, l->dim_k, SCORE_ROWS, min, max,
                                               rows + (size_t)r * l->dim_k));
            for (; r < n_rows; r++)
                best = larger(
                    best, page_score(dtype, l->dim_k, 1, min, max, rows + (size_t)r * l->dim_k));
            out[(size_t)(h - head0) * n_pages + page] = best;
        }
}

static void score(const pkvi_layout *l, const void *const *parts, uint32_t n_pages, uint32_t head0,
                  uint32_t head1, const float *q, uint32_t n_rows, float *best)
{
    if (l->dtype == PKV_DTYPE_F16)
        score_pages(PKV_DTYPE_F16, l, parts, n_pages, head0, head1, q, n_rows, best);
    else if (l->dtype == PKV_DTYPE_BF16)
        score_pages(PKV_DTYPE_BF16, l, parts, n_pages, head0, head1, q, n_rows, best);
    else
        score_pages(PKV_DTYPE_F32, l, parts, n_pages, head0, head1, q, n_rows, best);
}
