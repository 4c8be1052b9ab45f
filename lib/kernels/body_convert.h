/* Conversion of plain arrays between element types. */

VI vf load_as(pkv_dtype dtype, const void *p)
{
    if (dtype == PKV_DTYPE_F16) return v_load_f16(p);
    if (dtype == PKV_DTYPE_BF16) return v_load_bf16(p);
    return v_load(p);
}

VI void store_as(pkv_dtype dtype, void *p, vf x)
{
    if (dtype == PKV_DTYPE_F16)
        v_store_f16(p, x);
    else if (dtype == PKV_DTYPE_BF16)
        v_store_bf16(p, x);
    else
        v_store(p, x);
}

VI size_t bytes_of(pkv_dtype dtype)
{
    return dtype == PKV_DTYPE_F32 ? 4 : 2;
}

VI void convert_typed(char *dst, pkv_dtype to, const char *src, pkv_dtype from, size_t n)
{
    const size_t out = bytes_of(to), in = bytes_of(from);
    size_t i = 0;
    for (; i + VL <= n; i += VL)
        store_as(to, dst + i * out, load_as(from, src + i * in));
    if (i < n) {
        char buffer[VL * 4] = {0};
        memcpy(buffer, src + i * in, (n - i) * in);
        store_as(to, buffer, load_as(from, buffer));
        memcpy(dst + i * out, buffer, (n - i) * out);
    }
}

static void convert(void *dst, pkv_dtype to, const void *src, pkv_dtype from, size_t n)
{
    if (to == from)
        memcpy(dst, src, n * bytes_of(to));
    else if (from == PKV_DTYPE_F32 && to == PKV_DTYPE_F16)
        convert_typed(dst, PKV_DTYPE_F16, src, PKV_DTYPE_F32, n);
    else if (from == PKV_DTYPE_F32)
        convert_typed(dst, PKV_DTYPE_BF16, src, PKV_DTYPE_F32, n);
    else if (from == PKV_DTYPE_F16 && to == PKV_DTYPE_F32)
        convert_typed(dst, PKV_DTYPE_F32, src, PKV_DTYPE_F16, n);
    else if (from == PKV_DTYPE_F16)
        convert_typed(dst, PKV_DTYPE_BF16, src, PKV_DTYPE_F16, n);
    else if (to == PKV_DTYPE_F32)
        convert_typed(dst, PKV_DTYPE_F32, src, PKV_DTYPE_BF16, n);
    else
        convert_typed(dst, PKV_DTYPE_F16, src, PKV_DTYPE_BF16, n);
}

static void exp2_array(float *y, const float *x, size_t n)
{
    size_t i = 0;
    for (; i + VL <= n; i += VL)
        v_store(y + i, v_exp2(v_load(x + i)));
    for (; i < n; i++)
        y[i] = exp2_one(x[i]);
}
