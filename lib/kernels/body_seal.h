/* Sealing: a full page in f32, f16 or bf16 becomes one in a format with codes, and back.
 *
 * The minimum is rounded down and the scale up to halves, and codes are computed against what is
 * stored: every value lies between the lowest and the highest code, and so within half a step. */

enum { FIT = 16 }; /* channels or tokens whose scales are computed together */

static const float LARGEST = 65504.0f; /* of a half */

/* The neighbour of a finite half. */
static uint16_t half_step(uint16_t h, bool up)
{
    if ((h & 0x7fff) == 0) return up ? 0x0001 : 0x8001;
    const bool away = (h & 0x8000) ? !up : up;
    return (uint16_t)(away ? h + 1 : h - 1);
}

/* FIT floats (|x| <= 65504) to halves no smaller (up) or no larger than they, and back to floats.
 */
static void halves_towards(uint16_t *h, float *x, bool up)
{
    float back[FIT];
    convert(h, PKV_DTYPE_F16, x, PKV_DTYPE_F32, FIT);
    convert(back, PKV_DTYPE_F32, h, PKV_DTYPE_F16, FIT);
    for (int i = 0; i < FIT; i++)
        if (up ? back[i] < x[i] : back[i] > x[i]) h[i] = half_step(h[i], up);
    convert(x, PKV_DTYPE_F32, h, PKV_DTYPE_F16, FIT);
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

/* Codes of n floats in the range (codes has room for PAD more). */
VI void encode(uint8_t *codes, const float *x, uint32_t n, float min, float inverse)
{
    const vf base = v_set1(min), by = v_set1(inverse);
    for (uint32_t i = 0; i < n; i += VL)
        v_store_bytes(codes + i, v_mul(v_sub(v_load(x + i), base), by));
}

/* n codes of four bits into the low (odd: high) halves of bytes; even rows come first. */
static void put_nibbles(uint8_t *row, const uint8_t *codes, uint32_t n, bool odd)
{
    for (uint32_t i = 0; i < n; i++)
        row[i] = (uint8_t)(odd ? row[i] | codes[i] << 4 : codes[i]);
}

/* Range of n floats, n a multiple of 8. */
static void range_of(const float *x, uint32_t n, float *lo, float *hi)
{
    const bool half = n % VL != 0;
    vf low = v_set1(-NEG_INF), high = v_set1(NEG_INF);
    uint32_t i = 0;
    for (; i + VL <= n; i += VL) {
        const vf y = v_load(x + i);
        low = v_min(y, low);
        high = v_max(y, high);
    }
    if (half) {
        const vf y = v_load(x + i);
        low = v_min(v_keep_bits(y, 0xff, low), low);
        high = v_max(v_keep_bits(y, 0xff, high), high);
    }
    *lo = -v_hmax(v_sub(v_zero(), low));
    *hi = v_hmax(high);
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
    memset(flags, 0, P / 8);
    for (uint32_t d = 0; d < open->dim_k; d++) {
        channel_floats(open, tile, NULL, d, x);
        for (uint32_t t = 0; t < P; t++)
            if (!representable(x[t], LARGEST)) flags[t / 8] |= (uint8_t)(1u << t % 8);
    }
    for (uint32_t i = 0; i < P / 8; i++)
        n += (uint32_t)__builtin_popcount(flags[i]);
    return n;
}

/* May a tile of n_rows plain rows hold something that is not finite or above the limit? */
static bool suspect(const pkvi_layout *l, bool keys, const char *tile, float limit)
{
    const pkv_dtype dtype = keys ? l->dtype_k : l->dtype_v;
    const size_t n = (size_t)l->page_tokens * (keys ? l->dim_k : l->dim_v);
    const size_t bytes = bytes_of(dtype);
    vf bad = v_zero(), largest = v_zero();
    for (size_t i = 0; i < n; i += VL) { /* a multiple of 64 elements in any order */
        const vf x = load_as(dtype, tile + i * bytes);
        bad = v_fma(x, v_zero(), bad);
        largest = v_max(v_abs(x), largest);
    }
    return v_hsum(bad) != 0.0f || v_hmax(largest) > limit;
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

/* n channels from d0 on; x are their tokens, with scale and minimum to come. */
VI void seal_channels(int kind, bool four, const pkvi_layout *open, const char *from,
                      const pkvi_layout *to, char *tile, const uint8_t *flags, uint32_t d0,
                      uint32_t n)
{
    const uint32_t P = to->page_tokens;
    float x[FIT][MAX_PAGE + PAD], lo[FIT] = {0}, hi[FIT] = {0};
    uint8_t codes[MAX_PAGE + PAD];
    uint16_t scale[FIT], min[FIT];
    for (uint32_t i = 0; i < n; i++) {
        channel_of(kind, open, from, NULL, d0 + i, x[i]);
        if (flags) fill_flagged(x[i], P, flags);
        range_of(x[i], P, &lo[i], &hi[i]);
    }
    fit_ranges(lo, hi, four ? 15.0f : 255.0f, scale, min);
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t d = d0 + i;
        uint8_t *row = (uint8_t *)tile + (size_t)(four ? d / 2 : d) * P;
        if (!four && P >= VL) {
            encode(row, x[i], P, lo[i], hi[i]);
            continue;
        }
        encode(codes, x[i], P, lo[i], hi[i]);
        if (four)
            put_nibbles(row, codes, P, d % 2);
        else
            memcpy(row, codes, P);
    }
    memcpy(tile + to->k_scale + 2 * d0, scale, 2 * n);
    memcpy(tile + to->k_min + 2 * d0, min, 2 * n);
}

VI void seal_tile(int kind, const pkvi_layout *open, const char *from, const pkvi_layout *to,
                  char *tile, const uint8_t *flags)
{
    for (uint32_t d = 0; d < to->dim_k; d += FIT) {
        const uint32_t n = to->dim_k - d < FIT ? to->dim_k - d : FIT;
        if (to->dtype_k == PKV_DTYPE_K4)
            seal_channels(kind, true, open, from, to, tile, flags, d, n);
        else
            seal_channels(kind, false, open, from, to, tile, flags, d, n);
    }
}

static uint32_t seal_keys(const pkvi_layout *open, const char *from, const pkvi_layout *to,
                          char *tile, uint8_t *flags)
{
    uint32_t flagged = 0;
    memset(flags, 0, to->page_tokens / 8);
    if (suspect(open, true, from, LARGEST)) flagged = flag_keys(open, from, flags);
    const uint8_t *fill = flagged > 0 ? flags : NULL;
    switch (key_kind(open)) {
    case KIND_F32:
        seal_tile(KIND_F32, open, from, to, tile, fill);
        break;
    case KIND_F16:
        seal_tile(KIND_F16, open, from, to, tile, fill);
        break;
    default:
        seal_tile(KIND_BF16, open, from, to, tile, fill);
    }
    return flagged;
}

static const uint16_t HALF_NAN = 0x7e00;

/* V8: tokens [t0, t0 + FIT), or as many as the page has. */
static uint32_t seal_values8(const pkvi_layout *open, const char *from, const pkvi_layout *to,
                             char *tile, uint32_t t0, bool careful)
{
    const uint32_t left = to->page_tokens - t0, n = left < FIT ? left : FIT, dims = to->dim_v;
    float x[PKV_MAX_HEAD_DIM + V4_GROUP], lo, hi, step[FIT] = {0};
    uint8_t codes[PKV_MAX_HEAD_DIM + PAD];
    uint16_t scale[FIT];
    bool lost[FIT] = {false};
    uint32_t flagged = 0;
    for (uint32_t i = 0; i < n; i++) {
        token_floats(open, from, t0 + i, x);
        for (uint32_t d = 0; careful && d < dims; d++)
            lost[i] |= !representable(x[d], 127 * LARGEST);
        flagged += lost[i];
        range_of(x, dims, &lo, &hi);
        if (!lost[i]) step[i] = (-lo > hi ? -lo : hi) / 127.0f;
    }
    halves_towards(scale, step, true);
    for (uint32_t i = 0; i < n; i++) {
        char *row = tile + (size_t)(t0 + i) * to->v_row_bytes;
        token_floats(open, from, t0 + i, x);
        encode(codes, x, dims, 0, step[i] > 0 ? 1.0f / step[i] : 0.0f);
        if (lost[i]) {
            memset(codes, 0, dims);
            scale[i] = HALF_NAN;
        }
        memcpy(row, codes, dims);
    }
    memcpy(tile + to->v_scale + 2 * t0, scale, 2 * n);
    return flagged;
}

/* Dims [d, d + n) of a token of a plain tile; x has room for PAD more. */
VI void dims_of(int kind, const pkvi_layout *l, const char *tile, uint32_t t, uint32_t d,
                uint32_t n, float *x)
{
    const uint32_t bytes = kind == KIND_F16 ? 2 : 4;
    const char *row = tile + (size_t)(kind == KIND_BF16 ? t / 2 * 2 : t) * l->v_row_bytes;
    for (uint32_t i = 0; i < n; i += VL)
        v_store(x + i, load_value(kind, row + (size_t)(d + i) * bytes, i + VL > n, t % 2));
}

/* V4: ranges [e0, e0 + FIT) of the page, tokens of one group of dims after the other, or as many as
 * there are. */
VI uint32_t seal_groups(int kind, const pkvi_layout *open, const char *from, const pkvi_layout *to,
                        char *tile, uint32_t e0, bool careful)
{
    const uint32_t P = to->page_tokens, dims = to->dim_v, all = P * to->v_groups;
    const uint32_t n = all - e0 < FIT ? all - e0 : FIT;
    float x[FIT][V4_GROUP + PAD], lo[FIT] = {0}, hi[FIT] = {0};
    uint8_t codes[V4_GROUP + PAD];
    uint16_t scale[FIT], min[FIT];
    bool lost[FIT] = {false};
    uint32_t count[FIT], flagged = 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t t = (e0 + i) % P, d0 = (e0 + i) / P * V4_GROUP;
        count[i] = dims - d0 < V4_GROUP ? dims - d0 : V4_GROUP;
        dims_of(kind, open, from, t, d0, count[i], x[i]);
        for (uint32_t d = 0; careful && d < count[i]; d++)
            lost[i] |= !representable(x[i][d], LARGEST);
        flagged += lost[i];
        if (!lost[i]) range_of(x[i], count[i], &lo[i], &hi[i]);
    }
    fit_ranges(lo, hi, 15.0f, scale, min);
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t t = (e0 + i) % P, d0 = (e0 + i) / P * V4_GROUP;
        if (lost[i]) {
            scale[i] = min[i] = HALF_NAN;
            memset(codes, 0, sizeof codes);
        } else {
            encode(codes, x[i], count[i], lo[i], hi[i]);
        }
        put_nibbles((uint8_t *)tile + (size_t)(t / 2) * dims + d0, codes, count[i], t % 2);
    }
    memcpy(tile + to->v_scale + 2 * e0, scale, 2 * n);
    memcpy(tile + to->v_min + 2 * e0, min, 2 * n);
    return flagged;
}

static uint32_t seal_values4(const pkvi_layout *open, const char *from, const pkvi_layout *to,
                             char *tile, bool careful)
{
    uint32_t flagged = 0;
    const uint32_t all = to->page_tokens * to->v_groups;
    const int kind = value_kind(open);
    for (uint32_t e = 0; e < all; e += FIT)
        flagged += kind == KIND_F32   ? seal_groups(KIND_F32, open, from, to, tile, e, careful)
                   : kind == KIND_F16 ? seal_groups(KIND_F16, open, from, to, tile, e, careful)
                                      : seal_groups(KIND_BF16, open, from, to, tile, e, careful);
    return flagged;
}

static uint32_t seal_values(const pkvi_layout *open, const char *from, const pkvi_layout *to,
                            char *tile)
{
    const bool eight = to->dtype_v == PKV_DTYPE_V8;
    const bool careful = suspect(open, false, from, eight ? 127 * LARGEST : LARGEST);
    uint32_t flagged = 0;
    if (!eight) return seal_values4(open, from, to, tile, careful);
    for (uint32_t t = 0; t < to->page_tokens; t += FIT)
        flagged += seal_values8(open, from, to, tile, t, careful);
    return flagged;
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
                                 (uint8_t *)(uintptr_t)key_flags(sealed, sealed_part, h));
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
