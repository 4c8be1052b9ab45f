/* Formats with codes: their elements as floats, channel by channel and token by token. A value is
 * fma(code, scale, minimum) (V8: code * scale) in f32, everywhere. Reads of a whole vector may pass
 * the end of a row but stay in its tile, since the scales come last. */

enum { MAX_PAGE = 256, PAD = 16 };

/* VL codes of a channel from a slot on; `at` is its place in the channel's row (K4: in the row of
 * the pair of channels). */
VI vf key_codes(bool four, const char *at, bool odd)
{
    return four ? v_nibble(v_load_bytes(at), odd) : v_load_u8(at);
}

/* Scales and minima of one K tile as floats. */
struct key_scales {
    float scale[PKV_MAX_HEAD_DIM + PAD], min[PKV_MAX_HEAD_DIM + PAD];
};

static void load_key_scales(const pkvi_layout *l, const char *tile, struct key_scales *s)
{
    convert(s->scale, PKV_DTYPE_F32, tile + l->k_scale, PKV_DTYPE_F16, l->dim_k);
    convert(s->min, PKV_DTYPE_F32, tile + l->k_min, PKV_DTYPE_F16, l->dim_k);
}

static const uint8_t *key_flags(const pkvi_layout *l, const void *part, uint32_t head)
{
    return (const uint8_t *)part + l->flag_offset + (size_t)head * (l->page_tokens / 8);
}

static int key_kind(const pkvi_layout *l)
{
    switch (l->dtype_k) {
    case PKV_DTYPE_F32:
        return KIND_F32;
    case PKV_DTYPE_F16:
        return KIND_F16;
    case PKV_DTYPE_BF16:
        return KIND_BF16;
    case PKV_DTYPE_K8:
        return KIND_K8;
    default:
        return KIND_K4;
    }
}

static int value_kind(const pkvi_layout *l)
{
    switch (l->dtype_v) {
    case PKV_DTYPE_F32:
        return KIND_F32;
    case PKV_DTYPE_F16:
        return KIND_F16;
    case PKV_DTYPE_BF16:
        return KIND_BF16;
    case PKV_DTYPE_V8:
        return KIND_V8;
    default:
        return KIND_V4;
    }
}

/* A vector of tokens, from slot s on, of channel d of a plain K tile. */
VI vf key_of(int kind, const pkvi_layout *l, const char *tile, uint32_t d, uint32_t s)
{
    const bool pairs = kind == KIND_BF16;
    const char *row = tile + (size_t)(pairs ? d / 2 * 2 : d) * l->k_row_bytes;
    return load_value(kind, row + s * (kind == KIND_F16 ? 2 : 4), VL > l->page_tokens, d % 2);
}

/* Channel d of a K tile, all P tokens, as floats; x has room for PAD more. `scales` only for codes.
 * Flagged tokens come out as any number. */
VI void channel_of(int kind, const pkvi_layout *l, const char *tile,
                   const struct key_scales *scales, uint32_t d, float *x)
{
    const uint32_t P = l->page_tokens;
    if (kind == KIND_K8 || kind == KIND_K4) {
        const vf scale = v_set1(scales->scale[d]), min = v_set1(scales->min[d]);
        const bool four = kind == KIND_K4;
        const char *row = tile + (size_t)(four ? d / 2 : d) * P;
        for (uint32_t s = 0; s < P; s += VL)
            v_store(x + s, v_fma(key_codes(four, row + s, d % 2), scale, min));
        return;
    }
    for (uint32_t s = 0; s < P; s += VL)
        v_store(x + s, key_of(kind, l, tile, d, s));
}

static void channel_floats(const pkvi_layout *l, const char *tile, const struct key_scales *scales,
                           uint32_t d, float *x)
{
    switch (key_kind(l)) {
    case KIND_F32:
        channel_of(KIND_F32, l, tile, scales, d, x);
        break;
    case KIND_F16:
        channel_of(KIND_F16, l, tile, scales, d, x);
        break;
    case KIND_BF16:
        channel_of(KIND_BF16, l, tile, scales, d, x);
        break;
    case KIND_K8:
        channel_of(KIND_K8, l, tile, scales, d, x);
        break;
    default:
        channel_of(KIND_K4, l, tile, scales, d, x);
    }
}

/* Token t of a V tile, all dims, as floats; x has room for V4_GROUP more. */
VI void token_of(int kind, const pkvi_layout *l, const char *tile, uint32_t t, float *x)
{
    const uint32_t dims = l->dim_v;
    const char *row = tile + (size_t)t * l->v_row_bytes;
    if (kind == KIND_V8) {
        float scale[1];
        convert(scale, PKV_DTYPE_F32, tile + l->v_scale + 2 * t, PKV_DTYPE_F16, 1);
        for (uint32_t d = 0; d < dims; d += VL)
            v_store(x + d, v_mul(v_load_i8(row + d), v_set1(scale[0])));
    } else if (kind == KIND_V4) {
        row = tile + (size_t)(t / 2) * dims;
        for (uint32_t g = 0; g < l->v_groups; g++) {
            const size_t at = 2 * ((size_t)g * l->page_tokens + t);
            const uint32_t d0 = g * V4_GROUP, d1 = d0 + V4_GROUP < dims ? d0 + V4_GROUP : dims;
            float scale[1], min[1];
            convert(scale, PKV_DTYPE_F32, tile + l->v_scale + at, PKV_DTYPE_F16, 1);
            convert(min, PKV_DTYPE_F32, tile + l->v_min + at, PKV_DTYPE_F16, 1);
            for (uint32_t d = d0; d < d1; d += VL)
                v_store(x + d, v_fma(v_nibble(v_load_bytes(row + d), t % 2), v_set1(scale[0]),
                                     v_set1(min[0])));
        }
    } else {
        if (kind == KIND_BF16) row = tile + (size_t)(t / 2 * 2) * l->v_row_bytes;
        for (uint32_t d = 0; d < dims; d += VL)
            v_store(x + d, load_value(kind, row + (size_t)d * (kind == KIND_F16 ? 2 : 4),
                                      d + VL > dims, t % 2));
    }
}

static void token_floats(const pkvi_layout *l, const char *tile, uint32_t t, float *x)
{
    switch (value_kind(l)) {
    case KIND_F32:
        token_of(KIND_F32, l, tile, t, x);
        break;
    case KIND_F16:
        token_of(KIND_F16, l, tile, t, x);
        break;
    case KIND_BF16:
        token_of(KIND_BF16, l, tile, t, x);
        break;
    case KIND_V8:
        token_of(KIND_V8, l, tile, t, x);
        break;
    default:
        token_of(KIND_V4, l, tile, t, x);
    }
}
