/* Bytes become a cache, sequences, a batch with trees, and attention calls with any number of
 * threads, in any order, with valid and invalid arguments. Nothing may crash; every output of a
 * valid call must agree with the double reference, and with one thread bit for bit. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <pagedkv/pagedkv.h>

enum {
    MOST_SEQS = 4,
    MOST_NEW = 40,
    MOST_ROWS = MOST_SEQS * MOST_NEW,
    MOST_HEADS = 8,
    MOST_DIM = 64
};

struct input {
    const uint8_t *data;
    size_t size;
    uint64_t numbers; /* state of the generator for keys, values and queries */
};

static uint32_t take(struct input *in, uint32_t bound)
{
    if (in->size == 0) return 0;
    in->size--;
    return *in->data++ % bound;
}

static void fill(struct input *in, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        in->numbers = in->numbers * UINT64_C(6364136223846793005) + 1442695040888963407u;
        x[i] = (float)((double)(in->numbers >> 33) * 0x1p-30 - 1.0);
    }
}

static void require(int condition)
{
    if (!condition) abort();
}

struct run {
    struct input in;
    pkv_cache *cache;
    pkv_plan *plan;
    pkv_seq seqs[MOST_SEQS];
    uint32_t kv_heads, q_heads, dim_k, dim_v, n_seqs;
    double tolerance;
    float k[MOST_ROWS * MOST_HEADS * MOST_DIM], v[MOST_ROWS * MOST_HEADS * MOST_DIM];
    float q[MOST_ROWS * MOST_HEADS * MOST_DIM], a[MOST_ROWS * MOST_HEADS * MOST_DIM];
    float b[MOST_ROWS * MOST_HEADS * MOST_DIM], lse[MOST_ROWS * MOST_HEADS];
    double expect[MOST_ROWS * MOST_HEADS * MOST_DIM];
};

static int make_cache(struct run *r)
{
    static const uint32_t groups[] = {1, 2, 3, 4, 7, 8};
    pkv_group_config group = {.n_layers = 1, .kv_heads = 1 + take(&r->in, 3)};
    uint32_t size = groups[take(&r->in, 6)];
    while (group.kv_heads * size > MOST_HEADS)
        size = 1;
    group.q_heads = group.kv_heads * size;
    group.head_dim_k = 8 * (1 + take(&r->in, MOST_DIM / 8));
    group.head_dim_v = 8 * (1 + take(&r->in, MOST_DIM / 8));
    group.window = take(&r->in, 4) ? 0 : 1 + take(&r->in, 100);
    group.dtype = 1 + (pkv_dtype)take(&r->in, 3);
    pkv_config config;
    pkv_config_init(&config, sizeof config);
    config.page_tokens = 8u << take(&r->in, 5);
    config.groups = &group;
    config.n_groups = 1;
    config.memory_limit = UINT64_C(64) << 20;
    config.debug = PKV_DEBUG_POISON;
    if (pkv_cache_create(&config, &r->cache) != PKV_OK) return -1;
    r->kv_heads = group.kv_heads;
    r->q_heads = group.q_heads;
    r->dim_k = group.head_dim_k;
    r->dim_v = group.head_dim_v;
    r->tolerance = group.dtype == PKV_DTYPE_BF16 ? 0.02 : 1e-4;
    return 0;
}

static pkv_rows rows(const float *x, uint32_t heads, uint32_t dim)
{
    return (pkv_rows){.data = x,
                      .dtype = PKV_DTYPE_F32,
                      .heads = heads,
                      .dim = dim,
                      .token_stride = (ptrdiff_t)(heads * dim * 4),
                      .head_stride = (ptrdiff_t)(dim * 4)};
}

static void attend(struct run *r, uint64_t n_rows)
{
    pkv_rows k = rows(r->k, r->kv_heads, r->dim_k), v = rows(r->v, r->kv_heads, r->dim_v);
    pkv_rows q = rows(r->q, r->q_heads, r->dim_k);
    pkv_rows_out out = {.data = r->a,
                        .dtype = PKV_DTYPE_F32,
                        .heads = r->q_heads,
                        .dim = r->dim_v,
                        .token_stride = (ptrdiff_t)(r->q_heads * r->dim_v * 4),
                        .head_stride = (ptrdiff_t)(r->dim_v * 4)};
    uint32_t nth = 1 + take(&r->in, 20);
    for (uint32_t i = 0; i < nth; i++)
        require(pkv_write(r->plan, 0, &k, &v, i, nth) == PKV_OK);
    nth = 1 + take(&r->in, 40);
    uint32_t turn = take(&r->in, 255) % nth;
    for (uint32_t i = 0; i < nth; i++)
        require(pkv_attend(r->plan, 0, &q, &out, r->lse, (i + turn) % nth, nth) == PKV_OK);
    out.data = r->b;
    require(pkv_attend(r->plan, 0, &q, &out, NULL, 0, 1) == PKV_OK);
    size_t n = n_rows * r->q_heads * r->dim_v;
    require(memcmp(r->a, r->b, n * sizeof *r->a) == 0);
    require(pkv_attend_reference(r->plan, 0, &q, r->expect, NULL) == PKV_OK);
    for (size_t i = 0; i < n; i++)
        require(fabs((double)r->a[i] - r->expect[i]) <= r->tolerance);
    /* Something wrong: an error, and no output touched. */
    pkv_rows bad = q;
    uint32_t what = take(&r->in, 5);
    if (what == 0) bad.heads++;
    if (what == 1) bad.token_stride++;
    if (what == 2) bad.dtype = 77;
    if (what == 3) bad.data = NULL;
    if (what == 4) bad.dim -= 8;
    require(pkv_attend(r->plan, 0, &bad, &out, NULL, 0, 1) == PKV_EINVAL);
    require(memcmp(r->a, r->b, n * sizeof *r->a) == 0);
}

static void step(struct run *r)
{
    static uint8_t mask[MOST_NEW * ((MOST_NEW + 7) / 8)];
    static uint32_t depth[MOST_NEW];
    pkv_batch batch;
    uint64_t n_rows = 0;
    uint32_t entries = 0, counts[MOST_SEQS];
    require(pkv_batch_begin(r->cache, &batch) == PKV_OK);
    for (uint32_t s = 0; s < r->n_seqs; s++) {
        if (take(&r->in, 3) == 0 && s + 1 < r->n_seqs) continue;
        uint32_t n = 1 + take(&r->in, MOST_NEW);
        require(pkv_batch_add(batch, r->seqs[s], NULL, n) == PKV_OK);
        counts[entries++] = n;
        n_rows += n;
    }
    if (pkv_batch_reserve(batch) != PKV_OK) {
        require(pkv_batch_abort(batch) == PKV_OK);
        return;
    }
    for (uint32_t e = 0; e < entries; e++) {
        if (take(&r->in, 3)) continue;
        uint32_t row_bytes = (counts[e] + 7) / 8;
        memset(mask, 0, sizeof mask);
        for (uint32_t i = 0; i < counts[e]; i++) {
            for (uint32_t j = 0; j < i; j++)
                if (take(&r->in, 2)) mask[i * row_bytes + j / 8] |= (uint8_t)(1u << j % 8);
            mask[i * row_bytes + i / 8] |= (uint8_t)(1u << i % 8);
            depth[i] = i ? take(&r->in, i + 1) : 0;
        }
        require(pkv_plan_set_tree(r->plan, e, counts[e], mask, take(&r->in, 2) ? depth : NULL) ==
                PKV_OK);
    }
    require(pkv_plan_build(r->plan, batch) == PKV_OK);
    fill(&r->in, r->k, n_rows * r->kv_heads * r->dim_k);
    fill(&r->in, r->v, n_rows * r->kv_heads * r->dim_v);
    fill(&r->in, r->q, n_rows * r->q_heads * r->dim_k);
    attend(r, n_rows);
    if (take(&r->in, 4))
        require(pkv_batch_commit(batch) == PKV_OK);
    else
        require(pkv_batch_abort(batch) == PKV_OK);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct run *r = calloc(1, sizeof *r);
    if (!r) return 0;
    r->in = (struct input){data, size, size};
    if (make_cache(r) == 0) {
        pkv_plan_options options;
        pkv_plan_options_init(&options, sizeof options);
        options.cascade = take(&r->in, 3);
        options.softcap = take(&r->in, 3) ? 0.0f : 2.0f;
        options.max_threads = 1 + take(&r->in, 32);
        require(pkv_plan_create(r->cache, &options, &r->plan) == PKV_OK);
        r->n_seqs = 1 + take(&r->in, MOST_SEQS);
        require(pkv_seq_create(r->cache, &r->seqs[0]) == PKV_OK);
        /* A common past of up to 1,200 tokens, whose pages hold whatever they held. */
        uint32_t past = take(&r->in, 200) * 6;
        if (past) {
            pkv_batch batch;
            require(pkv_batch_begin(r->cache, &batch) == PKV_OK);
            require(pkv_batch_add(batch, r->seqs[0], NULL, past) == PKV_OK);
            require(pkv_batch_reserve(batch) == PKV_OK);
            require(pkv_plan_build(r->plan, batch) == PKV_OK);
            size_t n = (size_t)past * r->kv_heads * (r->dim_k > r->dim_v ? r->dim_k : r->dim_v);
            float *x = malloc(n * sizeof *x);
            fill(&r->in, x, n);
            pkv_rows k = rows(x, r->kv_heads, r->dim_k), v = rows(x, r->kv_heads, r->dim_v);
            require(pkv_write(r->plan, 0, &k, &v, 0, 1) == PKV_OK);
            free(x);
            require(pkv_batch_commit(batch) == PKV_OK);
        }
        for (uint32_t s = 1; s < r->n_seqs; s++)
            require((take(&r->in, 2) ? pkv_seq_fork(r->seqs[0], &r->seqs[s])
                                     : pkv_seq_create(r->cache, &r->seqs[s])) == PKV_OK);
        for (int i = 0; i < 4 && r->in.size > 0; i++)
            step(r);
        pkv_plan_destroy(r->plan);
        require(pkv_cache_verify(r->cache, NULL, 0) == PKV_OK);
        pkv_cache_destroy(r->cache);
    }
    free(r);
    return 0;
}
