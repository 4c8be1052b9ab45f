/* Eviction and the kernel together: what attention sees is what the policy left, at the positions
 * the mode says; signals that the kernel gives are what the policies think they are. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "evict_case.h"
#include "random.h"
#include "suite.h"

#define COUNT(x) (sizeof(x) / sizeof *(x))
#define BOTH (PKV_SIGNAL_BOUNDS | PKV_SIGNAL_KEYSUM)

static const char *const all_policies[] = {"window", "sink",     "mass",   "h2o",     "tova",
                                           "obs",    "lru-mass", "random", "keydiff", "topk"};

static struct ec_shape base_shape(void)
{
    return (struct ec_shape){.page_tokens = 16,
                             .n_layers = 2,
                             .kv_heads = 2,
                             .group_size = 2,
                             .dim = 16,
                             .dtype = PKV_DTYPE_F32,
                             .signals = BOTH,
                             .peak = 3};
}

static pkv_evict_config named(const char *name, uint64_t budget)
{
    pkv_evict_config c;
    ck_assert_int_eq(pkv_evict_config_named(&c, sizeof c, name, budget), PKV_OK);
    return c;
}

static pkv_seq new_seq(struct ec_case *c, const pkv_evict_config *config)
{
    pkv_seq seq;
    ck_assert_int_eq(pkv_seq_create(c->cache, &seq), PKV_OK);
    if (config != NULL) {
        char text[200] = "";
        pkv_evict_check(c->cache, 0, config, text, sizeof text);
        ck_assert_msg(pkv_seq_set_evict(seq, 0, config) == PKV_OK, "%s", text);
    }
    return seq;
}

static uint32_t resident(pkv_seq seq)
{
    pkv_seq_info info = {.struct_size = sizeof info};
    ck_assert_int_eq(pkv_seq_get_info(seq, 0, &info), PKV_OK);
    return info.resident_pages;
}

static uint64_t length_of(pkv_seq seq)
{
    uint64_t length;
    ck_assert_int_eq(pkv_seq_length(seq, &length), PKV_OK);
    return length;
}

static size_t out_bytes(const struct ec_case *c, uint32_t n)
{
    return (size_t)c->shape.n_layers * n * c->shape.kv_heads * c->shape.group_size * c->shape.dim *
           sizeof(float);
}

/* The worst difference of the last step's outputs to the reference, over some rows. */
static double worst_error(struct ec_case *c, pkv_seq seq, uint64_t base, uint64_t length,
                          uint32_t n, bool compact, uint64_t *rng)
{
    const struct ec_shape *s = &c->shape;
    const uint32_t q_heads = s->kv_heads * s->group_size;
    bool *visible = malloc(length + n);
    double out[1024], worst = 0;
    for (int i = 0; i < 6; i++) {
        const uint32_t row = i == 0 ? n - 1 : pkvt_below(rng, n);
        const uint32_t layer = pkvt_below(rng, s->n_layers), head = pkvt_below(rng, q_heads);
        ec_visible(c, seq, length, n, row, visible);
        ec_reference(c, base, length + row, layer, head, visible, compact, out);
        const float *got = c->out + (((size_t)layer * n + row) * q_heads + head) * s->dim;
        for (uint32_t d = 0; d < s->dim; d++)
            worst = fmax(worst, fabs((double)got[d] - out[d]));
    }
    free(visible);
    return worst;
}

/* ---- a budget that is never reached changes nothing ----------------------------------------- */

static void same_as_without(const struct ec_shape *shape, const char *name)
{
    struct ec_case *a = ec_open(shape, 0), *b = ec_open(shape, 0);
    const pkv_evict_config config = named(name, 4096);
    pkv_seq with = new_seq(a, &config), without = new_seq(b, NULL);
    uint64_t rng = 5;
    while (length_of(with) < 260) {
        const uint32_t n = pkvt_below(&rng, 3) ? 1 + pkvt_below(&rng, 3) : 1 + pkvt_below(&rng, 70);
        ec_step(a, with, 0, n, NULL);
        ec_step(b, without, 0, n, NULL);
        ck_assert_msg(memcmp(a->out, b->out, out_bytes(a, n)) == 0, "%s differs", name);
        ck_assert_uint_eq(resident(with), resident(without));
    }
    uint32_t tainted;
    ck_assert_int_eq(pkv_seq_tainted(with, &tainted), PKV_OK);
    ck_assert_uint_eq(tainted, 0);
    ec_close(a);
    ec_close(b);
}

START_TEST(budget_beyond_length_is_bit_identical)
{
    struct ec_shape shape = base_shape();
    static const pkv_dtype types[] = {PKV_DTYPE_F32, PKV_DTYPE_F16, PKV_DTYPE_BF16};
    shape.dtype = types[_i % 3];
    shape.group_size = 1 + (uint32_t)_i % 4;
    same_as_without(&shape, all_policies[_i]);
}
END_TEST

/* A sliding-window group that lets pages go gives the very output of one that keeps them. */
START_TEST(window_release_is_bit_identical)
{
    static const uint32_t windows[] = {1, 5, 16, 17, 31, 32, 33, 50, 64, 100};
    for (size_t i = 0; i < COUNT(windows); i++) {
        struct ec_shape shape = base_shape();
        shape.window = windows[i];
        struct ec_case *a = ec_open(&shape, 0), *b = ec_open(&shape, 0);
        pkv_seq gone = new_seq(a, NULL), kept = new_seq(b, NULL);
        ck_assert_int_eq(pkv_seq_pin(kept, 0, 100000), PKV_OK);
        uint64_t rng = 7 + i;
        while (length_of(gone) < 400) {
            const uint32_t n = pkvt_below(&rng, 2) ? 1 : 1 + pkvt_below(&rng, 40);
            ec_step(a, gone, 0, n, NULL);
            ec_step(b, kept, 0, n, NULL);
            ck_assert_mem_eq(a->out, b->out, out_bytes(a, n));
        }
        ck_assert_uint_eq(resident(kept), (length_of(kept) + 15) / 16);
        ck_assert_uint_le(resident(gone), (windows[i] + 14) / 16 + 1);
        ec_close(a);
        ec_close(b);
    }
}
END_TEST

/* ---- every policy, group size and window: bounded, and exact over what is left -------------- */

/* Past several leaves of the kernel, with gaps at their borders. */
START_TEST(exact_over_long_sequences)
{
    static const pkv_dtype types[] = {PKV_DTYPE_F32, PKV_DTYPE_F16, PKV_DTYPE_BF16};
    static const char *const names[] = {"window", "sink", "random"};
    const char *name = names[_i % 3];
    struct ec_shape shape = base_shape();
    uint64_t rng = pkvt_seed(name);
    shape.dtype = types[_i / 3];
    shape.kv_heads = 1;
    shape.group_size = 4;
    shape.n_layers = 1;
    shape.dim = 64;
    struct ec_case *c = ec_open(&shape, 0);
    const pkv_evict_config config = named(name, 20 * 16);
    pkv_seq seq = new_seq(c, &config);
    while (length_of(seq) < 2500) {
        const uint64_t length = length_of(seq);
        const uint32_t n = pkvt_below(&rng, 2) ? 1 : 1 + pkvt_below(&rng, 150);
        pkv_batch batch;
        ec_step(c, seq, 0, n, &batch);
        ck_assert_double_le(worst_error(c, seq, 0, length, n, false, &rng),
                            shape.dtype == PKV_DTYPE_F32 ? 1e-5 : 0.03);
        ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
    }
    ec_close(c);
}
END_TEST

START_TEST(bounded_and_exact)
{
    static const uint32_t groups[] = {1, 2, 3, 4, 5, 6, 7, 8, 12, 16};
    static const uint32_t windows[] = {0, 40, 1000};
    const char *name = all_policies[_i];
    uint64_t rng = pkvt_seed(name);
    for (size_t i = 0; i < COUNT(groups) * COUNT(windows); i++) {
        struct ec_shape shape = base_shape();
        shape.kv_heads = 1;
        shape.group_size = groups[i / COUNT(windows)];
        shape.window = windows[i % COUNT(windows)];
        if (shape.window != 0 && strcmp(name, "keydiff") == 0) continue; /* refused */
        struct ec_case *c = ec_open(&shape, 0);
        c->nth = 1 + pkvt_below(&rng, 3);
        const bool topk = strcmp(name, "topk") == 0;
        const pkv_evict_config config = named(name, 6 * 16);
        pkv_seq seq = new_seq(c, &config);
        while (length_of(seq) < 300) {
            const uint64_t length = length_of(seq);
            const uint32_t n = pkvt_below(&rng, 2) ? 1 : 1 + pkvt_below(&rng, 50);
            pkv_batch batch;
            ec_step(c, seq, 0, n, &batch);
            if (!topk || n > 16 || length < 7 * 16)
                ck_assert_double_le(worst_error(c, seq, 0, length, n, false, &rng), 1e-5);
            if (!topk) ck_assert_uint_le(resident(seq), 6 + 1 + (n + 15) / 16);
            ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
            if (!topk) ck_assert_uint_le(resident(seq), 6 + (length_of(seq) % 16 != 0));
        }
        ec_close(c);
    }
}
END_TEST

/* The bound over a million tokens of one sequence (no bytes: only the tables and policies). */
START_TEST(a_million_tokens)
{
    pkv_config config;
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    pkv_group_config group = {.n_layers = 1, .kv_heads = 1, .head_dim_k = 8};
    config.groups = &group;
    config.n_groups = 1;
    config.storage = PKV_STORAGE_NONE;
    config.memory_limit = 8u << 20;
    pkv_cache *cache;
    ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_OK);
    static const char *const names[] = {"window", "sink", "mass", "lru-mass", "random"};
    const pkv_evict_config evict = named(names[_i], 512);
    pkv_seq seq;
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    ck_assert_int_eq(pkv_seq_set_evict(seq, 0, &evict), PKV_OK);
    float mass[40];
    for (int i = 0; i < 40; i++)
        mass[i] = (float)(i % 7 + 1);
    uint64_t metadata = 0;
    for (uint32_t t = 0; t < 1000000; t++) {
        pkv_batch batch;
        pkv_batch_begin(cache, &batch);
        pkv_batch_add(batch, seq, NULL, 1);
        ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
        if (t % 16 == 5) {
            const uint32_t n = resident(seq);
            ck_assert_uint_le(n, 33);
            ck_assert_int_eq(pkv_seq_feed_mass(seq, 0, mass, n), PKV_OK);
        }
        ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
        if (t != 10000 && t != 999999) continue;
        pkv_stats stats = {.struct_size = sizeof stats};
        ck_assert_int_eq(pkv_cache_stats(cache, &stats), PKV_OK);
        ck_assert_uint_le(stats.pages_used, 33);
        if (t == 10000) metadata = stats.metadata_bytes;
        ck_assert_uint_le(stats.metadata_bytes, metadata);
    }
    pkv_evict_info info = {.struct_size = sizeof info};
    ck_assert_int_eq(pkv_seq_evict_info(seq, 0, &info), PKV_OK);
    ck_assert_uint_eq(info.pages_evicted, 1000000 / 16 - 32);
    pkv_cache_destroy(cache);
}
END_TEST

/* ---- positions ------------------------------------------------------------------------------ */

static void check_positions(const struct ec_shape *shape, const char *name, int32_t mode,
                            uint32_t most_new)
{
    struct ec_case *c = ec_open(shape, 0);
    pkv_evict_config config = named(name, 5 * 16);
    config.position_mode = mode;
    config.window = 16;
    pkv_seq seq = new_seq(c, &config);
    uint64_t rng = pkvt_seed(name);
    double worst = 0;
    while (length_of(seq) < 700) {
        const uint64_t length = length_of(seq);
        const uint32_t n = 1 + pkvt_below(&rng, most_new);
        pkv_batch batch;
        ec_step(c, seq, 0, n, &batch);
        worst = fmax(worst, worst_error(c, seq, 0, length, n, mode == PKV_POSITION_COMPACT, &rng));
        ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
    }
    ck_assert_double_le(worst, 1e-4);
    pkv_evict_info info = {.struct_size = sizeof info};
    ck_assert_int_eq(pkv_seq_evict_info(seq, 0, &info), PKV_OK);
    ck_assert_int_eq(info.position_mode, mode);
    ck_assert_uint_gt(info.dropped_tokens, 500);
    ec_close(c);
}

START_TEST(positions_match_a_slow_reference)
{
    struct ec_shape shape = base_shape();
    shape.rotary_dims = _i % 2 ? 16 : 12;
    shape.interleaved = (uint32_t)_i / 2 % 2;
    shape.position_scale = _i / 4 ? 0.25 : 0;
    check_positions(&shape, "sink", PKV_POSITION_COMPACT, 1);
    check_positions(&shape, "mass", PKV_POSITION_COMPACT, 30);
    check_positions(&shape, "random", PKV_POSITION_COMPACT, 5);
    check_positions(&shape, "sink", PKV_POSITION_ORIGINAL, 30);
}
END_TEST

/* ---- signals -------------------------------------------------------------------------------- */

START_TEST(mass_sums_to_rows)
{
    uint64_t rng = pkvt_seed("mass_sums_to_rows");
    static const uint32_t groups[] = {1, 3, 4, 8};
    for (size_t g = 0; g < COUNT(groups); g++) {
        struct ec_shape shape = base_shape();
        shape.group_size = groups[g];
        shape.dtype = g % 2 ? PKV_DTYPE_BF16 : PKV_DTYPE_F16;
        struct ec_case *c = ec_open(&shape, 1);
        pkv_evict_config config = named("tova", 8 * 16);
        config.mass_every = 1;
        pkv_seq seq = new_seq(c, &config);
        while (length_of(seq) < 400) {
            const uint32_t n = pkvt_below(&rng, 2) ? 1 : 1 + pkvt_below(&rng, 60);
            pkv_batch batch;
            ec_step(c, seq, 0, n, &batch);
            const uint32_t pages = resident(seq);
            float mass[64];
            double all[64] = {0};
            for (uint32_t l = 0; l < 2; l++)
                for (uint32_t h = 0; h < 2; h++) {
                    ck_assert_int_eq(pkv_plan_mass(c->plan, l, 0, h, mass, pages), PKV_OK);
                    double sum = 0;
                    for (uint32_t i = 0; i < pages; i++)
                        sum += (double)mass[i], all[i] += (double)mass[i];
                    ck_assert_double_eq_tol(sum, n * groups[g], 1e-3 * n * groups[g]);
                }
            ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
            if (n > 1 || resident(seq) != pages) continue;
            /* What the policy was fed by itself: TOVA's score is the last row's share. */
            uint32_t logical[64], got;
            float scores[64];
            ck_assert_int_eq(pkv_seq_page_scores(seq, 0, logical, scores, 64, &got), PKV_OK);
            for (uint32_t i = 0; i < got; i++)
                if (isfinite(scores[i]))
                    ck_assert_double_eq_tol(scores[i], all[i] / (2.0 * 2 * groups[g]), 2e-3);
        }
        ec_close(c);
    }
}
END_TEST

/* The decisions do not depend on how many threads computed the signals. */
START_TEST(decisions_do_not_depend_on_threads)
{
    for (size_t p = 0; p < COUNT(all_policies); p++) {
        struct ec_shape shape = base_shape();
        struct ec_case *a = ec_open(&shape, 0), *b = ec_open(&shape, 0);
        const pkv_evict_config config = named(all_policies[p], 5 * 16);
        pkv_seq x = new_seq(a, &config), y = new_seq(b, &config);
        a->nth = 1;
        b->nth = 3;
        uint64_t rng = 3;
        while (length_of(x) < 300) {
            const uint32_t n = pkvt_below(&rng, 2) ? 1 : 1 + pkvt_below(&rng, 40);
            ec_step(a, x, 0, n, NULL);
            ec_step(b, y, 0, n, NULL);
            ck_assert_mem_eq(a->out, b->out, out_bytes(a, n));
            const uint32_t pages = (uint32_t)((length_of(x) + 15) / 16);
            pkv_page one, other;
            for (uint32_t l = 0; l < pages; l++) {
                ck_assert_int_eq(pkv_seq_pages(x, 0, l, 1, &one), PKV_OK);
                ck_assert_int_eq(pkv_seq_pages(y, 0, l, 1, &other), PKV_OK);
                ck_assert_int_eq(one == PKV_PAGE_NONE, other == PKV_PAGE_NONE);
            }
        }
        ec_close(a);
        ec_close(b);
    }
}
END_TEST

/* Mean cosine of a page's keys to the mean normalised key over `in` pages, by the definition. */
static double keydiff_score(const struct ec_case *c, const bool *in, uint32_t n_full, uint32_t page)
{
    const struct ec_shape *s = &c->shape;
    double total = 0, k[1024], mean[1024];
    for (uint32_t l = 0; l < s->n_layers; l++)
        for (uint32_t h = 0; h < s->kv_heads; h++) {
            memset(mean, 0, sizeof mean);
            for (uint32_t p = 0; p < n_full; p++)
                for (uint32_t t = 0; in[p] && t < 16; t++) {
                    ec_vector(c, 1, p * 16 + t, l, h, 0, k);
                    double norm = 0;
                    for (uint32_t i = 0; i < s->dim; i++)
                        norm += k[i] * k[i];
                    for (uint32_t i = 0; i < s->dim; i++)
                        mean[i] += k[i] / sqrt(norm);
                }
            double length = 0;
            for (uint32_t i = 0; i < s->dim; i++)
                length += mean[i] * mean[i];
            for (uint32_t t = 0; t < 16; t++) {
                ec_vector(c, 1, page * 16 + t, l, h, 0, k);
                double norm = 0, dot = 0;
                for (uint32_t i = 0; i < s->dim; i++)
                    norm += k[i] * k[i], dot += k[i] * mean[i];
                total += dot / sqrt(norm * length);
            }
        }
    return -total / (16.0 * s->n_layers * s->kv_heads);
}

START_TEST(keydiff_drops_the_most_ordinary_page)
{
    struct ec_shape shape = base_shape();
    struct ec_case *c = ec_open(&shape, 0);
    pkv_evict_config config = named("keydiff", 12 * 16);
    config.journal_steps = 40;
    pkv_seq seq = new_seq(c, &config);
    uint64_t rng = pkvt_seed("keydiff");
    c->seed = rng;
    bool in[100] = {0};
    uint32_t drops = 0;
    while (length_of(seq) < 60 * 16) {
        const uint32_t n = pkvt_below(&rng, 2) ? 1 + pkvt_below(&rng, 4) : 1 + pkvt_below(&rng, 40);
        if (length_of(seq) > 400 && pkvt_below(&rng, 12) == 0) {
            ck_assert_int_eq(pkv_seq_truncate(seq, length_of(seq) - 1 - pkvt_below(&rng, 20)),
                             PKV_OK);
            ec_verify(c);
        }
        uint32_t old_full = (uint32_t)(length_of(seq) / 16);
        for (uint32_t l = 0; l < 100; l++) {
            pkv_page page = PKV_PAGE_NONE;
            if (l < old_full) ck_assert_int_eq(pkv_seq_pages(seq, 0, l, 1, &page), PKV_OK);
            in[l] = page != PKV_PAGE_NONE;
        }
        ec_step(c, seq, 0, n, NULL);
        const uint32_t full = (uint32_t)(length_of(seq) / 16);
        for (uint32_t l = old_full; l < full; l++)
            in[l] = true;
        const uint32_t window = (uint32_t)((length_of(seq) - 48) / 16); /* a quarter of 12 pages */
        /* Several pages may go at once, each seeing the mean without the ones before; follow. */
        bool out[100] = {0};
        uint32_t n_out = 0;
        for (uint32_t l = 0; l < full; l++) {
            pkv_page page;
            ck_assert_int_eq(pkv_seq_pages(seq, 0, l, 1, &page), PKV_OK);
            out[l] = in[l] && page == PKV_PAGE_NONE;
            n_out += out[l];
        }
        for (uint32_t i = 0; i < n_out; i++) {
            double lowest = INFINITY, own = INFINITY;
            uint32_t victim = 0;
            for (uint32_t l = 1; l < window; l++) {
                if (!in[l]) continue;
                const double score = keydiff_score(c, in, full, l);
                lowest = fmin(lowest, score);
                if (out[l] && score < own) own = score, victim = l;
            }
            ck_assert_double_le(own, lowest + 1e-5);
            in[victim] = out[victim] = false;
            drops++;
        }
    }
    ck_assert_uint_gt(drops, 30);
    /* What the library thinks the scores are. */
    uint32_t logical[64], got;
    float scores[64];
    ck_assert_int_eq(pkv_seq_page_scores(seq, 0, logical, scores, 64, &got), PKV_OK);
    for (uint32_t i = 0; i < got; i++)
        if (isfinite(scores[i]))
            ck_assert_double_eq_tol(
                scores[i], keydiff_score(c, in, (uint32_t)(length_of(seq) / 16), logical[i]), 1e-4);
    ec_close(c);
}
END_TEST

/* Scores too large to bring all up to date: the choice is no longer exact, but far from blind. */
START_TEST(keydiff_is_near_where_exact_is_dear)
{
    struct ec_shape shape = base_shape();
    shape.n_layers = 6, shape.kv_heads = 8, shape.dim = 128; /* three scores per dropped page */
    struct ec_case *c = ec_open(&shape, 0);
    pkv_evict_config config = named("keydiff", 12 * 16);
    pkv_seq seq = new_seq(c, &config);
    c->seed = pkvt_seed("keydiff_near");
    bool in[32] = {0};
    double rank = 0, most = 0;
    for (uint32_t full = 1; full <= 32; full++) {
        ec_step(c, seq, 0, 16, NULL);
        in[full - 1] = true;
        uint32_t victim = UINT32_MAX;
        for (uint32_t l = 0; l < full; l++) {
            pkv_page page;
            ck_assert_int_eq(pkv_seq_pages(seq, 0, l, 1, &page), PKV_OK);
            if (!in[l] || page != PKV_PAGE_NONE) continue;
            ck_assert_uint_eq(victim, UINT32_MAX);
            victim = l;
        }
        ck_assert(full <= 12 ? victim == UINT32_MAX : victim >= 1 && victim < full - 3);
        if (full <= 12) continue;
        const double own = keydiff_score(c, in, full, victim);
        for (uint32_t l = 1; l < full - 3; l++) {
            if (!in[l] || l == victim) continue;
            rank += keydiff_score(c, in, full, l) < own;
            most++;
        }
        in[victim] = false;
    }
    ck_assert_msg(rank < 0.25 * most, "%g of %g pages were better to drop", rank, most);
    ec_close(c);
}
END_TEST

/* ---- TOPK ----------------------------------------------------------------------------------- */

/* Visible positions of a TOPK step of one KV head by the definition, from the stored keys. */
static void choose_plainly(struct ec_case *c, uint64_t length, uint32_t n, uint32_t layer,
                           uint32_t head, uint32_t pages, bool *visible, double *margin)
{
    const struct ec_shape *s = &c->shape;
    const uint32_t n_full = (uint32_t)(length / 16);
    double bound[200], q[1024], k[1024];
    bool in[200];
    for (uint32_t p = 0; p < n_full; p++) {
        double low[1024], high[1024];
        for (uint32_t t = 0; t < 16; t++) {
            ec_vector(c, 1, p * 16 + t, layer, head, p * 16 + t, k);
            for (uint32_t i = 0; i < s->dim; i++) {
                low[i] = t == 0 ? k[i] : fmin(low[i], k[i]);
                high[i] = t == 0 ? k[i] : fmax(high[i], k[i]);
            }
        }
        bound[p] = -INFINITY;
        for (uint32_t r = 0; r < n * s->group_size; r++) {
            double sum = 0;
            ec_vector(c, 0, length + r / s->group_size, layer,
                      head * s->group_size + r % s->group_size,
                      (double)(length + r / s->group_size), q);
            for (uint32_t i = 0; i < s->dim; i++)
                sum += fmax(q[i] * low[i], q[i] * high[i]);
            bound[p] = fmax(bound[p], sum);
        }
        in[p] = p == 0 || p + 2 >= n_full;
    }
    double last = INFINITY;
    for (uint32_t taken = 3; taken < pages; taken++) {
        uint32_t best = UINT32_MAX;
        for (uint32_t p = 0; p < n_full; p++)
            if (!in[p] && (best == UINT32_MAX || bound[p] > bound[best])) best = p;
        in[best] = true;
        last = bound[best];
    }
    *margin = INFINITY;
    for (uint32_t p = 0; p < n_full; p++)
        if (!in[p]) *margin = fmin(*margin, last - bound[p]);
    for (uint64_t t = 0; t < length + n; t++)
        visible[t] = t / 16 >= n_full || in[t / 16];
}

START_TEST(topk_reads_the_best_pages)
{
    struct ec_shape shape = base_shape();
    struct ec_case *c = ec_open(&shape, 0);
    const pkv_evict_config config = named("topk", 6 * 16);
    pkv_seq seq = new_seq(c, &config);
    uint64_t rng = pkvt_seed("topk");
    c->seed = rng;
    bool *visible = malloc(2000);
    uint32_t checks = 0, tainted;
    ec_step(c, seq, 0, 200, NULL); /* prefill reads everything */
    ck_assert_int_eq(pkv_seq_tainted(seq, &tainted), PKV_OK);
    ck_assert_uint_eq(tainted, 0);
    while (length_of(seq) < 700) {
        const uint64_t length = length_of(seq);
        const uint32_t n = pkvt_below(&rng, 3) ? 1 : 1 + pkvt_below(&rng, 8);
        c->nth = 1 + pkvt_below(&rng, 3);
        pkv_batch batch;
        ec_step(c, seq, 0, n, &batch);
        for (uint32_t h = 0; h < 4; h++) {
            double want[16], margin;
            const uint32_t layer = pkvt_below(&rng, 2);
            choose_plainly(c, length, n, layer, h / 2, 6, visible, &margin);
            if (margin < 1e-5) continue; /* rounding may choose the other one */
            for (uint64_t t = length + n; t-- > length + 1;)
                visible[t] = false; /* the first new row */
            ec_reference(c, 0, length, layer, h, visible, false, want);
            const float *got = c->out + ((size_t)layer * n * 4 + h) * 16;
            for (uint32_t d = 0; d < 16; d++)
                ck_assert_double_eq_tol(got[d], want[d], 1e-5);
            checks++;
        }
        ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
    }
    ck_assert_uint_gt(checks, 300);
    ck_assert_int_eq(pkv_seq_tainted(seq, &tainted), PKV_OK);
    ck_assert_uint_eq(tainted, 1);
    ck_assert_int_eq(pkv_seq_truncate(seq, 150), PKV_OK); /* before anything was left out */
    ck_assert_int_eq(pkv_seq_tainted(seq, &tainted), PKV_OK);
    ck_assert_uint_eq(tainted, 0);
    free(visible);
    ec_close(c);
}
END_TEST

/* ---- regret --------------------------------------------------------------------------------- */

/* q looks for the key of one early page: as long as that page is kept there is nothing to regret.
 */
START_TEST(regret_is_noticed)
{
    for (int keep = 0; keep < 2; keep++) {
        struct ec_shape shape = base_shape();
        shape.kv_heads = shape.group_size = 1;
        shape.n_layers = 1;
        struct ec_case *c = ec_open(&shape, 0);
        pkv_evict_config config = named("sink", 6 * 16);
        config.regret = 1;
        config.regret_rank = 1;
        config.regret_pages = 16;
        pkv_seq seq = new_seq(c, &config);
        if (keep) ck_assert_int_eq(pkv_seq_pin(seq, 40, 41), PKV_OK);
        for (uint64_t t = 0; t < 300; t++) {
            float q[16], k[16], v[16] = {0}, out[16];
            for (uint32_t i = 0; i < 16; i++) {
                k[i] = 0.1f * ec_value(c, 1, t, 0, 0, i);
                q[i] = i == 3 ? 1 : 0;
            }
            if (t == 40) k[3] = 5;
            pkv_batch batch;
            pkv_rows rows = {.data = k,
                             .dtype = PKV_DTYPE_F32,
                             .heads = 1,
                             .dim = 16,
                             .token_stride = 64,
                             .head_stride = 64},
                     values = rows, queries = rows;
            values.data = v;
            queries.data = q;
            pkv_rows_out to = {.data = out,
                               .dtype = PKV_DTYPE_F32,
                               .heads = 1,
                               .dim = 16,
                               .token_stride = 64,
                               .head_stride = 64};
            ck_assert_int_eq(pkv_batch_begin(c->cache, &batch), PKV_OK);
            ck_assert_int_eq(pkv_batch_add(batch, seq, NULL, 1), PKV_OK);
            ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
            ck_assert_int_eq(pkv_plan_build(c->plan, batch), PKV_OK);
            ck_assert_int_eq(pkv_write(c->plan, 0, &rows, &values, 0, 1), PKV_OK);
            ck_assert_int_eq(pkv_attend(c->plan, 0, &queries, &to, NULL, 0, 1), PKV_OK);
            ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
        }
        pkv_evict_info info = {.struct_size = sizeof info};
        ck_assert_int_eq(pkv_seq_evict_info(seq, 0, &info), PKV_OK);
        pkv_stats stats = {.struct_size = sizeof stats};
        ck_assert_int_eq(pkv_cache_stats(c->cache, &stats), PKV_OK);
        ck_assert_uint_gt(info.regret_checks, 150);
        ck_assert_uint_eq(stats.evict_regret_checks, info.regret_checks);
        ck_assert_uint_eq(stats.evict_regret_steps, info.regret_steps);
        /* Page 2 went at 128 tokens; from then on every step misses it. */
        if (keep)
            ck_assert_uint_lt(info.regrets, info.regret_checks / 4);
        else
            ck_assert_uint_ge(info.regrets, 300 - 130);
        pkv_event events[4096];
        uint32_t n, reported = 0;
        ck_assert_int_eq(pkv_cache_events(c->cache, events, 4096, &n), PKV_OK);
        for (uint32_t i = 0; i < n; i++)
            reported += events[i].kind == PKV_EVENT_EVICT_REGRET;
        ck_assert_uint_eq(reported, info.regret_steps);
        ec_close(c);
    }
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("evict_attention");
    TCase *tc = tcase_create("attention");
    const int n = COUNT(all_policies);
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, budget_beyond_length_is_bit_identical, 0, n);
    tcase_add_test(tc, window_release_is_bit_identical);
    tcase_add_loop_test(tc, exact_over_long_sequences, 0, 9);
    tcase_add_loop_test(tc, bounded_and_exact, 0, n);
    tcase_add_loop_test(tc, a_million_tokens, 0, 5);
    tcase_add_loop_test(tc, positions_match_a_slow_reference, 0, 8);
    tcase_add_test(tc, mass_sums_to_rows);
    tcase_add_test(tc, decisions_do_not_depend_on_threads);
    tcase_add_test(tc, keydiff_drops_the_most_ordinary_page);
    tcase_add_test(tc, keydiff_is_near_where_exact_is_dear);
    tcase_add_test(tc, topk_reads_the_best_pages);
    tcase_add_test(tc, regret_is_noticed);
    suite_add_tcase(suite, tc);
    return suite;
}
