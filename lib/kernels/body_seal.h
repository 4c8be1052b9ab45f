/* Sealing: a full page in f32, f16 or bf16 becomes one in a format with codes, and back.
 *
 * The minimum is rounded down and the scale up to halves, and codes are computed against what is
 * stored: every value lies between the lowest and the highest code, and so within half a step. */

enum { FIT = 16 }; /* channels or tokens whose scales are computed together */

static const float LARGEST = 65504.0f; /* of a half */

/* The half `by` (1, 0 or -1) places above a finite one. By value they are integers with a sign. No
 * branch: which way a number was rounded cannot be predicted. */
static uint16_t half_step(uint16_t h, int by)
{
    const int place = (h & 0x8000 ? -(h & 0x7fff) : h) + by;
    return (uint16_t)(place < 0 ? 0x8000 - place : place);
}

/* FIT floats (|x| <= 65504) to halves no smaller (up) or no larger than they, and back to floats.
 */
VI void halves_towards(uint16_t *h, float *x, bool up)
{
    float back[FIT];
    for (int i = 0; i < FIT; i += VL) {
        v_store_f16(h + i, v_load(x + i));
        v_store(back + i, v_load_f16(h + i));
    }
    for (int i = 0; i < FIT; i++)
        h[i] = half_step(h[i], up ? back[i] < x[i] : -(back[i] > x[i]));
    for (int i = 0; i < FIT; i += VL)
        v_store(x + i, v_load_f16(h + i));
}

/* Scales and minima of FIT ranges [lo, hi]; lo becomes the stored minimum, hi the inverse step. */
static void fit_ranges(float *lo, float *hi, float levels, uint16_t *scale, uint16_t *min)
{
    float step[FIT];
    halves_towards(min, lo, false);
    for (int i = 0; i < FIT; i++)
        step[i] = (hi[i] - lo[i]) / levels;
    halves_towards(scale, step, true);
    for (int i = 0; i < FIT; i++)
        hi[i] = step[i] > 0 ? 1.0f / step[i] : 0.0f;
}

/* Floats to become codes (x - min) * inverse; room for PAD more. */
struct to_codes {
    const float *x;
    float min, inverse;
};

VI vf code_of(const struct to_codes *c, uint32_t i)
{
    return v_mul(v_sub(v_load(c->x + i), v_set1(c->min)), v_set1(c->inverse));
}

/* n bytes of codes; with `high` of two rows of floats, which share bytes. */
VI void encode(uint8_t *row, uint32_t n, const struct to_codes *low, const struct to_codes *high)
{
    for (uint32_t i = 0; i < n; i += VL) {
        vf code = code_of(low, i);
        if (high) code = v_fma(v_round(code_of(high, i)), v_set1(16.0f), v_round(code));
        if (i + VL <= n) {
            v_store_bytes(row + i, code);
        } else {
            uint8_t bytes[VL];
            v_store_bytes(bytes, code);
            memcpy(row + i, bytes, n - i);
        }
    }
}

/* Range of the numbers of a row of n floats, a multiple of 8, vector by vector; `odd` is not zero
 * any more if some are not finite. */
struct range {
    vf low, high, odd;
};

VI void range_add(struct range *g, vf y, bool half)
{
    g->low = v_min(half ? v_keep_bits(y, 0xff, g->low) : y, g->low);
    g->high = v_max(half ? v_keep_bits(y, 0xff, g->high) : y, g->high);
    g->odd = v_fma(half ? v_keep_bits(y, 0xff, v_zero()) : y, v_zero(), g->odd);
}

/* A row begins, with what was odd before. */
VI struct range range_new(vf odd)
{
    return (struct range){v_set1(-NEG_INF), v_set1(NEG_INF), odd};
}

VI vf range_end(const struct range *g, float *lo, float *hi)
{
    *lo = -v_hmax(v_sub(v_zero(), g->low));
    *hi = v_hmax(g->high);
    return g->odd;
}

/* Are FIT ranges, found without anything odd, within +-limit? */
static bool ranges_fit(const float *lo, const float *hi, vf odd, float limit)
{
    bool fit = v_hsum(odd) == 0.0f;
    for (int i = 0; i < FIT; i++)
        fit &= (lo[i] >= -limit) & (hi[i] <= limit);
    return fit;
}

static bool representable(float x, float limit)
{
    return x >= -limit && x <= limit; /* not NaN */
}

/* Bits of the tokens with a key that halves cannot hold; their number. */
static uint32_t flag_keys(const pkvi_layout *open, const char *tile, uint8_t *flags)
{
    const uint32_t P = open->page_tokens;
    float x[MAX_PAGE + PAD];
    uint32_t n = 0;
    for (uint32_t d = 0; d < open->dim_k; d++) {
        channel_floats(open, tile, NULL, d, x);
        for (uint32_t t = 0; t < P; t++)
            if (!representable(x[t], LARGEST)) flags[t / 8] |= (uint8_t)(1u << t % 8);
    }
    for (uint32_t i = 0; i < P / 8; i++)
        n += (uint32_t)__builtin_popcount(flags[i]);
    return n;
}

/* Flagged tokens take the value of one that is not, so that they do not widen the range. */
static void fill_flagged(float *x, uint32_t n, const uint8_t *flags)
{
    float fill = 0;
    for (uint32_t t = 0; t < n; t++)
        if (!(flags[t / 8] >> (t % 8) & 1)) {
            fill = x[t];
            break;
        }
    for (uint32_t t = 0; t < n; t++)
        if (flags[t / 8] >> (t % 8) & 1) x[t] = fill;
}

/* n channels from d0 on. False, if there is something in them that halves cannot hold and no flags
 * say where. */
VI bool seal_channels(int kind, bool four, const pkvi_layout *open, const char *from,
                      const pkvi_layout *to, char *tile, const uint8_t *flags, uint32_t d0,
                      uint32_t n)
{
    const uint32_t P = to->page_tokens;
    float x[FIT][MAX_PAGE + PAD], lo[FIT] = {0}, hi[FIT] = {0};
    uint16_t scale[FIT], min[FIT];
    vf odd = v_zero();
    for (uint32_t i = 0; i < n; i++) {
        struct range range = range_new(odd);
        if (flags) {
            channel_of(kind, open, from, NULL, d0 + i, x[i]);
            fill_flagged(x[i], P, flags);
        }
        for (uint32_t s = 0; s < P; s += VL) {
            const vf y = flags ? v_load(x[i] + s) : key_of(kind, open, from, d0 + i, s);
            if (!flags) v_store(x[i] + s, y);
            range_add(&range, y, VL > P);
        }
        odd = range_end(&range, &lo[i], &hi[i]);
    }
    if (!ranges_fit(lo, hi, odd, LARGEST)) return false;
    fit_ranges(lo, hi, four ? 15.0f : 255.0f, scale, min);
    uint8_t *row = (uint8_t *)tile + (size_t)(four ? d0 / 2 : d0) * P;
    for (uint32_t i = 0; i < n; i += four ? 2 : 1, row += P) {
        const struct to_codes low = {x[i], lo[i], hi[i]};
        if (four) {
            const struct to_codes high = {x[i + 1], lo[i + 1], hi[i + 1]};
            encode(row, P, &low, &high);
        } else {
            encode(row, P, &low, NULL);
        }
    }
    memcpy(tile + to->k_scale + 2 * d0, scale, 2 * n);
    memcpy(tile + to->k_min + 2 * d0, min, 2 * n);
    return true;
}

/* Meanwhile sends for the head's values, whose groups of dims are read with strides. */
VI bool seal_tile(int kind, const pkvi_layout *open, const char *from, const pkvi_layout *to,
                  char *tile, const uint8_t *flags, const char *values)
{
    bool sealed = true;
    for (uint32_t d = 0; sealed && d < to->dim_k; d += FIT) {
        const uint32_t n = to->dim_k - d < FIT ? to->dim_k - d : FIT;
        for (uint32_t at = d * open->k_row_bytes; at < (d + n) * open->k_row_bytes; at += 64)
            v_prefetch(values + at);
        if (to->dtype_k == PKV_DTYPE_K4)
            sealed = seal_channels(kind, true, open, from, to, tile, flags, d, n);
        else
            sealed = seal_channels(kind, false, open, from, to, tile, flags, d, n);
    }
    return sealed;
}

static bool seal_key_tile(const pkvi_layout *open, const char *from, const pkvi_layout *to,
                          char *tile, const uint8_t *flags, const char *values)
{
    switch (key_kind(open)) {
    case KIND_F32:
        return seal_tile(KIND_F32, open, from, to, tile, flags, values);
    case KIND_F16:
        return seal_tile(KIND_F16, open, from, to, tile, flags, values);
    default:
        return seal_tile(KIND_BF16, open, from, to, tile, flags, values);
    }
}

static uint32_t seal_keys(const pkvi_layout *open, const char *from, const pkvi_layout *to,
                          char *tile, uint8_t *flags, const char *values)
{
    memset(flags, 0, to->page_tokens / 8);
    if (seal_key_tile(open, from, to, tile, NULL, values)) return 0;
    const uint32_t flagged = flag_keys(open, from, flags);
    seal_key_tile(open, from, to, tile, flags, values);
    return flagged;
}

static const uint16_t HALF_NAN = 0x7e00;

/* A vector of dims of a token of a plain tile, from d on. */
VI vf value_of(int kind, const pkvi_layout *l, const char *tile, uint32_t t, uint32_t d, bool half)
{
    const char *row = tile + (size_t)(kind == KIND_BF16 ? t / 2 * 2 : t) * l->v_row_bytes;
    return load_value(kind, row + (size_t)d * (kind == KIND_F16 ? 2 : 4), half, t % 2);
}

/* V8: tokens [t0, t0 + FIT), or as many as the page has. */
VI uint32_t seal_tokens(int kind, const pkvi_layout *open, const char *from, const pkvi_layout *to,
                        char *tile, uint32_t t0)
{
    const uint32_t left = to->page_tokens - t0, n = left < FIT ? left : FIT, dims = to->dim_v;
    const float limit = 127 * LARGEST;
    float x[PKV_MAX_HEAD_DIM + V4_GROUP], most[FIT] = {0};
    uint16_t scale[FIT];
    bool lost[FIT] = {false};
    uint32_t flagged = 0;
    vf odd = v_zero();
    for (uint32_t i = 0; i < n; i++) {
        vf largest = v_zero();
        for (uint32_t d = 0; d < dims; d += VL) {
            const vf y = value_of(kind, open, from, t0 + i, d, d + VL > dims);
            largest = v_max(v_abs(y), largest);
            odd = v_fma(y, v_zero(), odd);
        }
        most[i] = v_hmax(largest);
    }
    if (!ranges_fit(most, most, odd, limit)) {
        for (uint32_t i = 0; i < n; i++) {
            token_of(kind, open, from, t0 + i, x);
            for (uint32_t d = 0; d < dims; d++)
                lost[i] |= !representable(x[d], limit);
            flagged += lost[i];
            if (lost[i]) most[i] = 0;
        }
    }
    for (uint32_t i = 0; i < FIT; i++)
        most[i] /= 127.0f;
    halves_towards(scale, most, true);
    for (uint32_t i = 0; i < n; i++) {
        uint8_t *row = (uint8_t *)tile + (size_t)(t0 + i) * to->v_row_bytes;
        if (lost[i]) {
            scale[i] = HALF_NAN;
            memset(row, 0, dims);
            continue;
        }
        token_of(kind, open, from, t0 + i, x);
        const struct to_codes codes = {x, 0, most[i] > 0 ? 1.0f / most[i] : 0.0f};
        encode(row, dims, &codes, NULL);
    }
    memcpy(tile + to->v_scale + 2 * t0, scale, 2 * n);
    return flagged;
}

/* V4: ranges [e0, e0 + FIT) of the page, tokens of one group of dims after the other, or as many as
 * there are. */
VI uint32_t seal_groups(int kind, const pkvi_layout *open, const char *from, const pkvi_layout *to,
                        char *tile, uint32_t e0)
{
    const uint32_t P = to->page_tokens, dims = to->dim_v, all = P * to->v_groups;
    const uint32_t shift = (uint32_t)__builtin_ctz(P);
    const uint32_t n = all - e0 < FIT ? all - e0 : FIT;
    float x[FIT][V4_GROUP + PAD], lo[FIT] = {0}, hi[FIT] = {0};
    uint16_t scale[FIT], min[FIT];
    bool lost[FIT] = {false};
    uint32_t count[FIT], flagged = 0;
    vf odd = v_zero();
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t d0 = ((e0 + i) >> shift) * V4_GROUP;
        count[i] = dims - d0 < V4_GROUP ? dims - d0 : V4_GROUP;
        struct range range = range_new(odd);
        for (uint32_t d = 0; d < count[i]; d += VL) {
            const bool half = d + VL > count[i];
            const vf y = value_of(kind, open, from, (e0 + i) & (P - 1), d0 + d, half);
            v_store(x[i] + d, y);
            range_add(&range, y, half);
        }
        odd = range_end(&range, &lo[i], &hi[i]);
    }
    if (!ranges_fit(lo, hi, odd, LARGEST)) {
        for (uint32_t i = 0; i < n; i++) {
            for (uint32_t d = 0; d < count[i]; d++)
                lost[i] |= !representable(x[i][d], LARGEST);
            flagged += lost[i];
            if (!lost[i]) continue;
            memset(x[i], 0, sizeof x[i]);
            lo[i] = hi[i] = 0;
        }
    }
    fit_ranges(lo, hi, 15.0f, scale, min);
    for (uint32_t i = 0; i < n; i += 2) {
        const uint32_t t = (e0 + i) & (P - 1), d0 = ((e0 + i) >> shift) * V4_GROUP;
        const struct to_codes low = {x[i], lo[i], hi[i]}, high = {x[i + 1], lo[i + 1], hi[i + 1]};
        encode((uint8_t *)tile + (size_t)(t / 2) * dims + d0, count[i], &low, &high);
    }
    for (uint32_t i = 0; flagged > 0 && i < n; i++)
        if (lost[i]) scale[i] = min[i] = HALF_NAN;
    memcpy(tile + to->v_scale + 2 * e0, scale, 2 * n);
    memcpy(tile + to->v_min + 2 * e0, min, 2 * n);
    return flagged;
}

VI uint32_t seal_value_tile(int kind, const pkvi_layout *open, const char *from,
                            const pkvi_layout *to, char *tile)
{
    uint32_t flagged = 0;
    if (to->dtype_v == PKV_DTYPE_V8)
        for (uint32_t t = 0; t < to->page_tokens; t += FIT)
            flagged += seal_tokens(kind, open, from, to, tile, t);
    else
        for (uint32_t e = 0; e < to->page_tokens * to->v_groups; e += FIT)
            flagged += seal_groups(kind, open, from, to, tile, e);
    return flagged;
}

static uint32_t seal_values(const pkvi_layout *open, const char *from, const pkvi_layout *to,
                            char *tile)
{
    switch (value_kind(open)) {
    case KIND_F32:
        return seal_value_tile(KIND_F32, open, from, to, tile);
    case KIND_F16:
        return seal_value_tile(KIND_F16, open, from, to, tile);
    default:
        return seal_value_tile(KIND_BF16, open, from, to, tile);
    }
}

/* Rows of floats into a tile of plain elements: the inverse of channel_floats and token_floats. Of
 * bf16 tiles two rows make one row of pairs. */
static void put_row(pkv_dtype dtype, char *tile, size_t row_bytes, uint32_t row, const float *x,
                    uint32_t n)
{
    uint16_t halves[PKV_MAX_HEAD_DIM];
    if (dtype != PKV_DTYPE_BF16) {
        convert(tile + row * row_bytes, dtype, x, PKV_DTYPE_F32, n);
        return;
    }
    convert(halves, PKV_DTYPE_BF16, x, PKV_DTYPE_F32, n);
    uint16_t *pairs = (uint16_t *)(void *)(tile + row / 2 * 2 * row_bytes) + row % 2;
    for (uint32_t i = 0; i < n; i++)
        pairs[2 * i] = halves[i];
}

static void keys_to(const pkvi_layout *from, const void *part, uint32_t head, const pkvi_layout *to,
                    char *tile)
{
    const char *source = (const char *)part + (size_t)head * from->k_head_bytes;
    const bool coded = pkvi_layout_k_coded(from);
    const bool flagged = pkvi_layout_flagged(from, part, head) > 0;
    const uint8_t *flags = coded ? key_flags(from, part, head) : NULL;
    struct key_scales scales;
    float x[MAX_PAGE + PAD];
    if (coded) load_key_scales(from, source, &scales);
    for (uint32_t d = 0; d < from->dim_k; d++) {
        channel_floats(from, source, &scales, d, x);
        for (uint32_t t = 0; flagged && t < from->page_tokens; t++)
            if (flags[t / 8] >> (t % 8) & 1) x[t] = __builtin_nanf("");
        put_row(to->dtype_k, tile, to->k_row_bytes, d, x, from->page_tokens);
    }
}

static void values_to(const pkvi_layout *from, const char *source, const pkvi_layout *to,
                      char *tile)
{
    float x[PKV_MAX_HEAD_DIM + V4_GROUP];
    for (uint32_t t = 0; t < from->page_tokens; t++) {
        token_floats(from, source, t, x);
        put_row(to->dtype_v, tile, to->v_row_bytes, t, x, from->dim_v);
    }
}

static const char *k_source(const pkvi_layout *l, const void *part, uint32_t head)
{
    return (const char *)part + (size_t)head * l->k_head_bytes;
}
static const char *v_source(const pkvi_layout *l, const void *part, uint32_t head)
{
    return (const char *)part + l->v_offset + (size_t)head * l->v_head_bytes;
}

/* What padding lies behind a tile's arrays and the flags is zero, so that equal pages are equal
 * bytes. */
static void clear_padding(const pkvi_layout *l, void *part, uint32_t head)
{
    const uint32_t k_end = l->k_min + 2 * l->dim_k;
    const uint32_t v_end =
        l->v_groups ? l->v_min + 2 * l->page_tokens * l->v_groups : l->v_scale + 2 * l->page_tokens;
    char *k = (char *)part + (size_t)head * l->k_head_bytes;
    char *v = (char *)part + l->v_offset + (size_t)head * l->v_head_bytes;
    if (pkvi_layout_k_coded(l)) memset(k + k_end, 0, l->k_head_bytes - k_end);
    if (pkvi_layout_v_coded(l)) memset(v + v_end, 0, l->v_head_bytes - v_end);
    if (pkvi_layout_k_coded(l) && head + 1 == l->kv_heads) {
        const size_t flags = (size_t)l->kv_heads * (l->page_tokens / 8);
        memset((char *)part + l->flag_offset + flags, 0, (flags + 63) / 64 * 64 - flags);
    }
}

static uint32_t seal(const pkvi_layout *open, const void *open_part, const pkvi_layout *sealed,
                     void *sealed_part, uint32_t head0, uint32_t head1)
{
    uint32_t flagged = 0;
    for (uint32_t h = head0; h < head1; h++) {
        char *k = (char *)sealed_part + (size_t)h * sealed->k_head_bytes;
        char *v = (char *)sealed_part + sealed->v_offset + (size_t)h * sealed->v_head_bytes;
        if (pkvi_layout_k_coded(sealed))
            flagged += seal_keys(open, k_source(open, open_part, h), sealed, k,
                                 (uint8_t *)(uintptr_t)key_flags(sealed, sealed_part, h),
                                 v_source(open, open_part, h));
        else
            keys_to(open, open_part, h, sealed, k);
        if (pkvi_layout_v_coded(sealed))
            flagged += seal_values(open, v_source(open, open_part, h), sealed, v);
        else
            values_to(open, v_source(open, open_part, h), sealed, v);
        clear_padding(sealed, sealed_part, h);
    }
    return flagged;
}

static void unseal(const pkvi_layout *sealed, const void *sealed_part, const pkvi_layout *open,
                   void *open_part, uint32_t head0, uint32_t head1)
{
    for (uint32_t h = head0; h < head1; h++) {
        char *k = (char *)open_part + (size_t)h * open->k_head_bytes;
        char *v = (char *)open_part + open->v_offset + (size_t)h * open->v_head_bytes;
        keys_to(sealed, sealed_part, h, open, k);
        values_to(sealed, v_source(sealed, sealed_part, h), open, v);
    }
}
