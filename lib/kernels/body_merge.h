/* Merging partial states and finishing them. */

/* a = a * by_a + b * by_b. */
static void blend(float *a, float by_a, const float *b, float by_b, size_t n)
{
    const vf x = v_set1(by_a), y = v_set1(by_b);
    size_t i = 0;
    for (; i + VL <= n; i += VL)
        v_store(a + i, v_fma(v_load(b + i), y, v_mul(v_load(a + i), x)));
    for (; i < n; i++)
        a[i] = a[i] * by_a + b[i] * by_b;
}

static void merge(float *o_a, float *m_a, float *l_a, const float *o_b, const float *m_b,
                  const float *l_b, uint32_t n_rows, uint32_t dim, size_t stride)
{
    for (uint32_t r = 0; r < n_rows; r++) {
        const float m = m_a[r] > m_b[r] ? m_a[r] : m_b[r];
        const float a = rescale(m_a[r], m), b = rescale(m_b[r], m);
        blend(o_a + r * stride, a, o_b + r * stride, b, dim);
        l_a[r] = l_a[r] * a + l_b[r] * b;
        m_a[r] = m;
    }
}

/* Natural logarithm of l * 2^m. */
static float state_lse(float m, float l)
{
    return l == 0.0f ? NEG_INF : (float)(((double)m + log2((double)l)) * 0.693147180559945309417);
}

/* o * by, converted. */
static void store_row(void *out, pkv_dtype dtype, const float *o, float by, uint32_t dim)
{
    const vf x = v_set1(by);
    char *to = out;
    const size_t bytes = bytes_of(dtype);
    uint32_t i = 0;
    for (; i + VL <= dim; i += VL) {
        vf y = v_mul(v_load(o + i), x);
        if (dtype == PKV_DTYPE_F32)
            v_store((float *)out + i, y);
        else if (dtype == PKV_DTYPE_F16)
            v_store_f16(to + i * bytes, y);
        else
            v_store_bf16(to + i * bytes, y);
    }
    if (i < dim) { /* 8 dims of 16 lanes */
        vf y = v_mul(v_load_half(o + i), x);
        if (dtype == PKV_DTYPE_F32)
            v_store_half((float *)out + i, y);
        else if (dtype == PKV_DTYPE_F16)
            v_store_f16_half(to + i * bytes, y);
        else
            v_store_bf16_half(to + i * bytes, y);
    }
}

static void finish(const pkvi_finish_job *job)
{
    for (uint32_t r = 0; r < job->n_rows; r++) {
        const float sink = job->sinks ? job->sinks[r] * LOG2E : NEG_INF;
        float m = job->m[r], l = job->l[r], by = 1.0f;
        if (sink > m) {
            by = exp2_one(m - sink);
            l = l * by + 1.0f;
            m = sink;
        } else if (sink > NEG_INF) {
            l += exp2_one(sink - m);
        }
        if (job->lse && job->lse[r]) *job->lse[r] = state_lse(m, l);
        if (!job->out[r]) continue;
        by = job->l[r] == 0.0f ? 0.0f : by / l;
        store_row(job->out[r], job->dtype, job->o + r * job->o_stride, by, job->dim);
    }
}

static void merge_states(float *out_a, float *lse_a, const float *out_b, const float *lse_b,
                         size_t n_rows, size_t dim)
{
    for (size_t r = 0; r < n_rows; r++) {
        const double a = lse_a[r], b = lse_b[r], m = a > b ? a : b;
        if (m == (double)NEG_INF) continue; /* both empty: out_a is zero already */
        const double wa = exp(a - m), wb = exp(b - m);
        blend(out_a + r * dim, (float)(wa / (wa + wb)), out_b + r * dim, (float)(wb / (wa + wb)),
              dim);
        lse_a[r] = (float)(m + log(wa + wb));
    }
}
