/* Eviction: configurations, the heap, the choice of pages, and each policy against a plain model in
 * double precision, driven through the public interface of a cache without bytes. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <pagedkv/pagedkv.h>

#include "evict/evict.h"
#include "evict/heap.h"
#include "random.h"
#include "suite.h"

#define P 16u

static pkv_cache *cache;

static void open_cache(uint32_t window)
{
    pkv_config config;
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    pkv_group_config groups[2] = {
        {.n_layers = 2, .kv_heads = 2, .q_heads = 4, .head_dim_k = 16},
        {.n_layers = 1, .kv_heads = 1, .q_heads = 2, .head_dim_k = 16, .window = window}};
    config.groups = groups;
    config.n_groups = window ? 2 : 1;
    config.page_tokens = P;
    config.storage = PKV_STORAGE_NONE;
    config.memory_limit = 64u << 20;
    config.event_capacity = 1024;
    ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_OK);
}

static void verify(void)
{
    char text[256];
    const pkv_status status = pkv_cache_verify(cache, text, sizeof text);
    ck_assert_msg(status == PKV_OK, "verify: %s", text);
}

static void close_cache(void)
{
    verify();
    pkv_cache_destroy(cache);
}

static pkv_evict_config named(const char *name, uint64_t budget)
{
    pkv_evict_config c;
    ck_assert_int_eq(pkv_evict_config_named(&c, sizeof c, name, budget), PKV_OK);
    return c;
}

static pkv_seq new_seq(const pkv_evict_config *config)
{
    pkv_seq seq;
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    if (config != NULL) ck_assert_int_eq(pkv_seq_set_evict(seq, 0, config), PKV_OK);
    return seq;
}

static uint32_t resident(pkv_seq seq, uint32_t group)
{
    pkv_seq_info info = {.struct_size = sizeof info};
    ck_assert_int_eq(pkv_seq_get_info(seq, group, &info), PKV_OK);
    return info.resident_pages;
}

static bool holds(pkv_seq seq, uint32_t group, uint32_t logical)
{
    pkv_page page;
    ck_assert_int_eq(pkv_seq_pages(seq, group, logical, 1, &page), PKV_OK);
    return page != PKV_PAGE_NONE;
}

/* One step of n tokens; mass (of the resident pages during the step) may be NULL. */
static void step(pkv_seq seq, uint32_t n, const float *mass)
{
    pkv_batch batch;
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, seq, NULL, n), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    if (mass != NULL) ck_assert_int_eq(pkv_seq_feed_mass(seq, 0, mass, resident(seq, 0)), PKV_OK);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
}

static pkv_evict_info info_of(pkv_seq seq)
{
    pkv_evict_info info = {.struct_size = sizeof info};
    ck_assert_int_eq(pkv_seq_evict_info(seq, 0, &info), PKV_OK);
    return info;
}

/* ---- configurations ------------------------------------------------------------------------- */

START_TEST(config_defaults_and_names)
{
    pkv_evict_config c;
    ck_assert_int_eq(pkv_evict_config_init(NULL, sizeof c, PKV_EVICT_SINK, 1), PKV_EINVAL);
    ck_assert_int_eq(pkv_evict_config_init(&c, sizeof c - 1, PKV_EVICT_SINK, 1), PKV_EVERSION);
    ck_assert_int_eq(pkv_evict_config_init(&c, sizeof c, 99, 1), PKV_EINVAL);
    ck_assert_int_eq(pkv_evict_config_init(&c, sizeof c, PKV_EVICT_SINK, 512), PKV_OK);
    ck_assert_uint_eq(c.sinks, 4);
    ck_assert_uint_eq(c.window, PKV_EVICT_AUTO);
    ck_assert_uint_eq(c.budget, 512);
    static const char *names[] = {"none",    "window",   "sink",   "mass",     "obs",
                                  "keydiff", "lru-mass", "random", "callback", "topk"};
    for (int32_t kind = 0; kind < 10; kind++) {
        ck_assert_str_eq(pkv_evict_kind_name(kind), names[kind]);
        ck_assert_int_eq(pkv_evict_config_named(&c, sizeof c, names[kind], 64), PKV_OK);
        ck_assert_int_eq(c.kind, kind);
    }
    ck_assert_str_eq(pkv_evict_kind_name(10), "?");
    c = named("h2o", 64);
    ck_assert_int_eq(c.kind, PKV_EVICT_MASS);
    ck_assert_float_eq(c.gamma, 1);
    c = named("tova", 64);
    ck_assert_float_eq(c.gamma, 0);
    ck_assert_int_eq(pkv_evict_config_named(&c, sizeof c, "best", 64), PKV_EINVAL);
}
END_TEST

static void refuse(const pkv_evict_config *c, pkv_status status, const char *word)
{
    char text[200];
    ck_assert_int_eq(pkv_evict_check(cache, 0, c, text, sizeof text), status);
    ck_assert_msg(strstr(text, word) != NULL, "\"%s\" does not name %s", text, word);
    ck_assert_int_eq(pkv_cache_set_evict(cache, 0, c), status);
    ck_assert_int_eq(pkv_evict_check(cache, 0, c, NULL, 0), status);
}

START_TEST(config_checks)
{
    open_cache(32);
    pkv_evict_config c = named("mass", 0);
    refuse(&c, PKV_EINVAL, "budget");
    c = named("mass", 512);
    c.gamma = 1.5f;
    refuse(&c, PKV_EINVAL, "gamma");
    c.gamma = NAN;
    refuse(&c, PKV_EINVAL, "gamma");
    c = named("lru-mass", 512);
    c.epsilon = -1;
    refuse(&c, PKV_EINVAL, "epsilon");
    c = named("sink", 512);
    c.window = 512;
    refuse(&c, PKV_EINVAL, "window");
    c.sinks = 1024;
    refuse(&c, PKV_EINVAL, "sinks");
    c = named("sink", 512);
    c.budget_unit = 7;
    refuse(&c, PKV_EINVAL, "budget_unit");
    c = named("sink", 512);
    c.position_mode = 2;
    refuse(&c, PKV_EINVAL, "position_mode");
    c.position_mode = PKV_POSITION_COMPACT;
    refuse(&c, PKV_ENOTSUP, "rope");
    c = named("callback", 512);
    refuse(&c, PKV_EINVAL, "score");
    c = named("topk", 512);
    refuse(&c, PKV_ENOTSUP, "BOUNDS");
    c = named("keydiff", 512);
    refuse(&c, PKV_ENOTSUP, "KEYSUM");
    c = named("sink", 512);
    c.regret = 1;
    refuse(&c, PKV_ENOTSUP, "BOUNDS");
    c = named("sink", 512);
    c.journal_steps = 1u << 30;
    refuse(&c, PKV_ERANGE, "journal");
    c = named("obs", 512);
    c.obs_rows = 0;
    refuse(&c, PKV_EINVAL, "obs_rows");
    c = named("mass", 512);
    c.mass_every = 0;
    refuse(&c, PKV_EINVAL, "mass_every");
    c = named("sink", 512);
    c.reserved[3] = 1;
    refuse(&c, PKV_EINVAL, "reserved");
    c = named("sink", 512);
    c.struct_size = 8;
    refuse(&c, PKV_EVERSION, "struct_size");
    c = named("sink", 512);
    char text[200];
    ck_assert_int_eq(pkv_evict_check(cache, 2, &c, text, sizeof text), PKV_EINVAL);
    ck_assert_int_eq(pkv_evict_check(cache, PKV_EVICT_FULL_GROUPS, &c, text, sizeof text), PKV_OK);
    ck_assert_str_eq(text, "");
    ck_assert_int_eq(pkv_evict_check(NULL, 0, &c, NULL, 0), PKV_EINVAL);
    close_cache();
}
END_TEST

START_TEST(config_resolution)
{
    open_cache(0);
    pkv_evict_config c = named("mass", 1024), got = {.struct_size = sizeof got};
    pkv_seq seq = new_seq(&c);
    ck_assert_int_eq(pkv_seq_get_evict(seq, 0, &got), PKV_OK);
    ck_assert_int_eq(got.budget_unit, PKV_BUDGET_PAGES);
    ck_assert_uint_eq(got.budget, 64);
    ck_assert_uint_eq(got.window, 16 * P); /* a quarter */
    c.budget_unit = PKV_BUDGET_BYTES;
    pkv_group_info group = {.struct_size = sizeof group};
    ck_assert_int_eq(pkv_cache_group_info(cache, 0, &group), PKV_OK);
    c.budget = 7 * group.page_bytes + group.page_bytes / 2;
    c.sinks = 17;
    ck_assert_int_eq(pkv_seq_set_evict(seq, 0, &c), PKV_OK);
    pkv_evict_info info = info_of(seq);
    ck_assert_uint_eq(info.budget_pages, 7);
    ck_assert_uint_eq(info.sink_pages, 2);
    ck_assert_uint_eq(info.window_pages, 1);
    c = named("window", 5); /* less than a page is a page; WINDOW has no sinks */
    c.sinks = 100;
    ck_assert_int_eq(pkv_seq_set_evict(seq, 0, &c), PKV_OK);
    info = info_of(seq);
    ck_assert_uint_eq(info.budget_pages, 1);
    ck_assert_uint_eq(info.sink_pages, 0);
    ck_assert_int_eq(pkv_seq_set_evict(seq, 0, NULL), PKV_OK);
    ck_assert_int_eq(pkv_seq_get_evict(seq, 0, &got), PKV_OK);
    ck_assert_int_eq(got.kind, PKV_EVICT_NONE);
    ck_assert_int_eq(info_of(seq).kind, PKV_EVICT_NONE);
    close_cache();
}
END_TEST

START_TEST(defaults_reach_new_sequences_only)
{
    open_cache(32);
    pkv_seq before = new_seq(NULL);
    pkv_evict_config c = named("sink", 64);
    ck_assert_int_eq(pkv_cache_set_evict(cache, PKV_EVICT_FULL_GROUPS, &c), PKV_OK);
    pkv_seq after = new_seq(NULL);
    for (int i = 0; i < 20; i++) {
        step(before, P, NULL);
        step(after, P, NULL);
    }
    ck_assert_uint_eq(resident(before, 0), 20);
    ck_assert_uint_eq(resident(after, 0), 4);
    ck_assert_uint_eq(resident(after, 1), resident(before, 1)); /* the window's own business */
    ck_assert_int_eq(pkv_cache_set_evict(cache, 0, NULL), PKV_OK);
    pkv_seq last = new_seq(NULL);
    step(last, 20 * P, NULL);
    ck_assert_uint_eq(resident(last, 0), 20);
    close_cache();
}
END_TEST

/* ---- heap and choice ------------------------------------------------------------------------ */

START_TEST(heap_sorts)
{
    uint64_t rng = pkvt_seed("heap_sorts");
    for (int round = 0; round < 200; round++) {
        struct pkvi_candidate heap[300];
        uint32_t n = pkvt_below(&rng, 200), pushed = pkvt_below(&rng, 100);
        for (uint32_t i = 0; i < n; i++)
            heap[i] = (struct pkvi_candidate){(float)pkvt_below(&rng, 50), i};
        pkvi_heap_build(heap, n);
        for (uint32_t i = 0; i < pushed; i++)
            pkvi_heap_push(heap, &n,
                           (struct pkvi_candidate){(float)pkvt_below(&rng, 50), 1000 + i});
        struct pkvi_candidate last = {-1, 0};
        while (n > 0) {
            const uint32_t before = n;
            const struct pkvi_candidate next = pkvi_heap_pop(heap, &n);
            ck_assert_uint_eq(n, before - 1);
            ck_assert(pkvi_candidate_before(last, next));
            last = next;
        }
    }
}
END_TEST

/* The definition: sort the candidates by (score descending, age), take as many as are wanted. */
static uint32_t choose_plainly(const struct pkvi_evict_topk *rule, const uint32_t *logical,
                               const float *scores, uint32_t n_pages, uint32_t n_full, bool *in)
{
    uint32_t taken = 0;
    for (uint32_t i = 0; i < n_pages; i++) {
        in[i] = i >= n_full || logical[i] < rule->first || i + rule->recent >= n_full;
        if (i < n_full) taken += in[i];
    }
    while (taken < rule->pages && taken < n_full) {
        uint32_t best = UINT32_MAX;
        for (uint32_t i = 0; i < n_full; i++)
            if (!in[i] && (best == UINT32_MAX || scores[i] > scores[best])) best = i;
        in[best] = true;
        taken++;
    }
    uint32_t n = 0;
    for (uint32_t i = 0; i < n_pages; i++)
        n += in[i];
    return n;
}

START_TEST(choice_of_pages)
{
    uint64_t rng = pkvt_seed("choice_of_pages");
    for (int round = 0; round < 2000; round++) {
        uint32_t logical[120], keys[120], chosen[120], full[120];
        float scores[120];
        bool in[120];
        const uint32_t n_full = pkvt_below(&rng, 100), n_pages = n_full + pkvt_below(&rng, 10);
        for (uint32_t i = 0, l = 0; i < n_pages; i++) {
            logical[i] = l;
            l += 1 + (uint32_t)(pkvt_below(&rng, 4) == 0);
        }
        for (uint32_t i = 0; i < n_full; i++)
            scores[i] = (float)((int)pkvt_below(&rng, 40) - 20) / 4;
        struct pkvi_evict_topk rule = {.first = pkvt_below(&rng, 4), .recent = pkvt_below(&rng, 4)};
        rule.pages = rule.first + rule.recent + pkvt_below(&rng, 50);
        pkvi_evict_keys(scores, n_full, keys);
        memcpy(full, keys, sizeof full);
        const uint32_t n = pkvi_evict_choose(&rule, logical, full, n_pages, n_full, chosen);
        ck_assert_uint_eq(n, choose_plainly(&rule, logical, scores, n_pages, n_full, in));
        for (uint32_t i = 0; i < n; i++) {
            ck_assert(in[chosen[i]]);
            if (i > 0) ck_assert_uint_lt(chosen[i - 1], chosen[i]);
        }
    }
}
END_TEST

/* ---- which pages go ------------------------------------------------------------------------- */

START_TEST(window_and_sink_keep_what_they_say)
{
    open_cache(0);
    const pkv_evict_config window = named("window", 4 * P);
    pkv_evict_config sink = named("sink", 4 * P);
    pkv_seq a = new_seq(&window), b = new_seq(&sink);
    for (uint32_t t = 1; t <= 20 * P; t++) {
        step(a, 1, NULL);
        step(b, 1, NULL);
        const uint32_t full = t / P, tail = t % P != 0;
        ck_assert_uint_le(resident(a, 0), 4 + tail);
        for (uint32_t l = 0; l < full; l++) {
            ck_assert_int_eq(holds(a, 0, l), l + 4 >= full);
            ck_assert_int_eq(holds(b, 0, l), full <= 4 || l == 0 || l + 3 >= full);
        }
    }
    ck_assert_uint_eq(info_of(b).pages_evicted, 16);
    ck_assert_uint_eq(info_of(b).dropped_tokens, 16 * P);
    uint64_t position;
    ck_assert_int_eq(pkv_seq_position(b, 0, &position), PKV_OK);
    ck_assert_uint_eq(position, 20 * P);
    pkv_evict_run runs[4];
    uint32_t n;
    ck_assert_int_eq(pkv_seq_runs(b, 0, runs, 1, &n), PKV_ERANGE);
    ck_assert_uint_eq(n, 2);
    ck_assert_int_eq(pkv_seq_runs(b, 0, runs, 4, &n), PKV_OK);
    ck_assert_uint_eq(runs[0].first, 0);
    ck_assert_uint_eq(runs[0].n_tokens, P);
    ck_assert_uint_eq(runs[0].shift, 0);
    ck_assert_uint_eq(runs[1].first, 17 * P);
    ck_assert_uint_eq(runs[1].n_tokens, 3 * P);
    ck_assert_uint_eq(runs[1].shift, 16 * P);
    pkv_stats stats = {.struct_size = sizeof stats};
    ck_assert_int_eq(pkv_cache_stats(cache, &stats), PKV_OK);
    ck_assert_uint_eq(stats.pages_evicted, 32);
    close_cache();
}
END_TEST

START_TEST(bound_holds_in_chunked_prefill)
{
    open_cache(0);
    static const char *kinds[] = {"window", "sink", "random", "mass", "lru-mass", "obs"};
    uint64_t rng = pkvt_seed("bound_holds_in_chunked_prefill");
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        const pkv_evict_config c = named(kinds[k], 8 * P);
        pkv_seq seq = new_seq(&c);
        uint64_t length = 0;
        for (int i = 0; i < 60; i++) {
            const uint32_t n = 1 + pkvt_below(&rng, 100);
            float mass[64];
            pkv_batch batch;
            ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
            ck_assert_int_eq(pkv_batch_add(batch, seq, NULL, n), PKV_OK);
            ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
            const uint32_t pages = resident(seq, 0);
            /* budget + 1 page + the step's own tokens */
            ck_assert_uint_le(pages, 8 + 1 + (n + P - 1) / P);
            for (uint32_t j = 0; j < pages; j++)
                mass[j] = (float)pkvt_below(&rng, 1000) / 1000;
            ck_assert_int_eq(pkv_seq_feed_mass(seq, 0, mass, pages), PKV_OK);
            ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
            length += n;
            ck_assert_uint_le(resident(seq, 0), 8 + (length % P != 0));
        }
        ck_assert_int_eq(pkv_seq_destroy(seq), PKV_OK);
    }
    close_cache();
}
END_TEST

START_TEST(pins_are_kept_and_taint)
{
    open_cache(0);
    const pkv_evict_config c = named("sink", 4 * P);
    pkv_seq seq = new_seq(&c);
    ck_assert_int_eq(pkv_seq_pin(seq, 2 * P + 3, 3 * P + 1), PKV_OK); /* pages 2 and 3 */
    step(seq, 30 * P, NULL);
    ck_assert_uint_eq(resident(seq, 0), 4);
    ck_assert(holds(seq, 0, 0) && holds(seq, 0, 2) && holds(seq, 0, 3) && holds(seq, 0, 29));
    uint32_t tainted;
    ck_assert_int_eq(pkv_seq_tainted(seq, &tainted), PKV_OK);
    ck_assert_uint_eq(tainted, 1);
    ck_assert_int_eq(pkv_seq_unpin(seq, 2 * P + 3, 3 * P + 1), PKV_OK);
    step(seq, 2 * P, NULL); /* now they go first */
    ck_assert(!holds(seq, 0, 2) && !holds(seq, 0, 3));
    ck_assert_uint_eq(resident(seq, 0), 4);
    /* More pins than budget: the bound gives way, nothing else is kept. */
    pkv_seq big = new_seq(&c);
    ck_assert_int_eq(pkv_seq_pin(big, 0, 10 * P), PKV_OK);
    step(big, 30 * P, NULL);
    ck_assert_uint_eq(resident(big, 0), 10);
    close_cache();
}
END_TEST

static void by_position(void *user, pkv_seq seq, uint32_t group, uint64_t n_tokens,
                        const uint32_t *logical, float *scores, uint32_t n)
{
    (void)seq;
    (void)n_tokens;
    ck_assert_uint_eq(group, 0);
    ck_assert_uint_le(n, 64);
    for (uint32_t i = 0; i < n; i++) {
        if (i > 0) ck_assert_uint_lt(logical[i - 1], logical[i]);
        scores[i] = logical[i] == 5 ? NAN : (float)(logical[i] % 7);
    }
    ++*(uint32_t *)user;
}

START_TEST(callback_scores)
{
    open_cache(0);
    pkv_evict_config c = named("callback", 100 * P);
    uint32_t calls = 0;
    c.score = by_position;
    c.score_user = &calls;
    c.sinks = 0;
    c.window = 0;
    pkv_seq seq = new_seq(&c);
    step(seq, 100 * P, NULL);
    ck_assert_uint_eq(calls, 0);
    step(seq, 3 * P, NULL);
    ck_assert_uint_eq(calls, 2);
    ck_assert_uint_eq(resident(seq, 0), 100);
    ck_assert(!holds(seq, 0, 5));                      /* NaN is lowest */
    ck_assert(!holds(seq, 0, 0) && !holds(seq, 0, 7)); /* ties: the older */
    ck_assert(holds(seq, 0, 14));
    close_cache();
}
END_TEST

/* ---- scores against the definition ---------------------------------------------------------- */

/* A sequence that gets random mass, next to the sums in double. */
static void follow_mass(const char *name, float gamma, uint32_t normalize, uint32_t most_new)
{
    open_cache(0);
    uint64_t rng = pkvt_seed(name);
    pkv_evict_config c = named("mass", 1000 * P);
    c.gamma = gamma;
    c.normalize_age = normalize;
    c.sinks = 0;
    c.window = 0;
    pkv_seq seq = new_seq(&c);
    double sum[400] = {0}, age[400] = {0};
    uint64_t length = 0;
    for (int s = 0; s < 150; s++) {
        const uint32_t n = 1 + pkvt_below(&rng, most_new);
        const uint32_t pages = (uint32_t)((length + n + P - 1) / P);
        float mass[400];
        double total = 0;
        for (uint32_t i = 0; i < pages; i++)
            total += mass[i] = (float)pkvt_below(&rng, 1000) / 100;
        if (total == 0) total = mass[0] = 1;
        step(seq, n, mass);
        length += n;
        for (uint32_t i = 0; i < pages; i++) {
            const double rows = gamma > 0 ? n : 1;
            const double behind = (double)(length - (uint64_t)i * P);
            const double seen = behind < rows ? behind : rows;
            const double share = (double)mass[i] / total;
            age[i] += seen;
            if (gamma >= 1)
                sum[i] += share * rows;
            else
                sum[i] = pow((double)gamma, seen) * sum[i] +
                         (1 - pow((double)gamma, seen)) * share * rows / seen;
        }
        uint32_t logical[400], got;
        float scores[400];
        ck_assert_int_eq(pkv_seq_page_scores(seq, 0, logical, scores, 400, &got), PKV_OK);
        ck_assert_uint_eq(got, pages);
        for (uint32_t i = 0; i < length / P; i++) {
            double want = sum[i];
            if (normalize && gamma >= 1) want /= age[i];
            if (normalize && gamma < 1) want /= 1 - pow((double)gamma, age[i]);
            ck_assert_double_eq_tol(scores[i], want, 1e-5 + 1e-4 * want);
        }
    }
    close_cache();
}

START_TEST(mass_scores)
{
    follow_mass("mass 0.9", 0.9f, 1, 1);
    follow_mass("mass 0.99 chunks", 0.99f, 1, 40);
    follow_mass("mass 0.99 raw", 0.99f, 0, 20);
    follow_mass("h2o", 1, 1, 20);
    follow_mass("h2o raw", 1, 0, 1);
    follow_mass("tova", 0, 1, 20);
}
END_TEST

START_TEST(mass_drops_the_lowest)
{
    open_cache(0);
    pkv_evict_config c = named("mass", 8 * P);
    c.window = P;
    pkv_seq seq = new_seq(&c);
    float mass[9] = {5, 4, 3, 0.1f, 2, 2, 2, 2, 2};
    step(seq, 8 * P, mass);
    step(seq, P, mass); /* the ninth page: 3 goes */
    ck_assert(!holds(seq, 0, 3));
    ck_assert_uint_eq(resident(seq, 0), 8);
    uint32_t tainted;
    ck_assert_int_eq(pkv_seq_tainted(seq, &tainted), PKV_OK);
    ck_assert_uint_eq(tainted, 1);
    /* The pooled variant keeps 3 beside the heavy 2 (a tie with 2, and 4 is lower). */
    c.pool = 1;
    pkv_seq pooled = new_seq(&c);
    float peaks[9] = {5, 4, 3, 0.1f, 0.2f, 0.1f, 2, 2, 2};
    step(pooled, 8 * P, peaks);
    step(pooled, P, peaks);
    ck_assert(holds(pooled, 0, 3));
    ck_assert(!holds(pooled, 0, 4));
    close_cache();
}
END_TEST

START_TEST(obs_lets_the_last_chunk_decide)
{
    open_cache(0);
    pkv_evict_config c = named("obs", 6 * P);
    c.window = P;
    pkv_seq seq = new_seq(&c);
    uint32_t wants;
    ck_assert_int_eq(pkv_seq_wants_mass(seq, 0, &wants), PKV_OK);
    ck_assert_uint_eq(wants, 1);
    float first[4] = {9, 1, 9, 9}, second[8] = {1, 5, 5, 0.5f, 5, 0.25f, 5, 5};
    step(seq, 4 * P, first);
    step(seq, 4 * P, second); /* 3 and 5 are lowest now, whatever the first chunk said */
    ck_assert(!holds(seq, 0, 3) && !holds(seq, 0, 5));
    ck_assert_uint_eq(resident(seq, 0), 6);
    close_cache();
}
END_TEST

START_TEST(lru_mass_drops_the_longest_unused)
{
    open_cache(0);
    pkv_evict_config c = named("lru-mass", 6 * P);
    c.window = P;
    pkv_seq seq = new_seq(&c);
    float mass[7] = {1, 1, 1, 1, 1, 1, 1};
    step(seq, 6 * P, mass);
    for (int i = 0; i < 5; i++) { /* 2 and 4 are used, the others not; 3 once more at the end */
        float uses[7] = {1, 0.01f, 1, i == 4 ? 1.0f : 0.01f, 1, 0.01f, 1};
        step(seq, 1, uses);
    }
    float even[7] = {1, 0, 1, 0, 1, 0, 1};
    step(seq, P - 5, even);
    ck_assert(!holds(seq, 0, 1)); /* as long unused as 5, and older */
    ck_assert(holds(seq, 0, 3) && holds(seq, 0, 5));
    close_cache();
}
END_TEST

START_TEST(random_is_repeatable_and_spread)
{
    open_cache(0);
    pkv_evict_config c = named("random", 20 * P);
    c.seed = 7;
    c.window = 0;
    pkv_seq a = new_seq(&c), b = new_seq(&c);
    c.seed = 8;
    pkv_seq other = new_seq(&c);
    uint32_t differ = 0, young = 0;
    for (int i = 0; i < 200; i++) {
        step(a, P, NULL);
        step(b, P, NULL);
        step(other, P, NULL);
    }
    for (uint32_t l = 0; l < 200; l++) {
        ck_assert_int_eq(holds(a, 0, l), holds(b, 0, l));
        differ += holds(a, 0, l) != holds(other, 0, l);
        young += holds(a, 0, l) && l >= 150;
    }
    ck_assert_uint_gt(differ, 0);
    ck_assert_uint_gt(young, 5); /* survivors thin out with age */
    ck_assert_uint_lt(young, 20);
    close_cache();
}
END_TEST

/* ---- mass feeding --------------------------------------------------------------------------- */

START_TEST(feeding_is_checked)
{
    open_cache(0);
    pkv_evict_config c = named("mass", 4 * P);
    pkv_seq seq = new_seq(&c), plain = new_seq(NULL);
    float mass[3] = {1, 2, 3};
    ck_assert_int_eq(pkv_seq_feed_mass(seq, 0, mass, 0), PKV_ESTATE);
    pkv_batch batch;
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, seq, NULL, 3 * P), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, plain, NULL, 3 * P), PKV_OK);
    ck_assert_int_eq(pkv_seq_feed_mass(seq, 0, mass, 0), PKV_ESTATE);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    ck_assert_int_eq(pkv_seq_feed_mass(seq, 0, mass, 2), PKV_EINVAL);
    ck_assert_int_eq(pkv_seq_feed_mass(seq, 1, mass, 3), PKV_EINVAL);
    ck_assert_int_eq(pkv_seq_feed_mass(seq, 0, NULL, 3), PKV_EINVAL);
    const float bad[3][3] = {{1, -1, 0}, {NAN, 0, 0}, {0, INFINITY, 0}};
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(pkv_seq_feed_mass(seq, 0, bad[i], 3), PKV_EINVAL);
    ck_assert_int_eq(pkv_seq_feed_mass(plain, 0, mass, 3), PKV_OK);
    ck_assert_int_eq(pkv_seq_set_evict(seq, 0, NULL), PKV_EBUSY);
    ck_assert_int_eq(pkv_batch_abort(batch), PKV_OK);
    ck_assert_uint_eq(info_of(seq).mass_steps, 0);
    close_cache();
}
END_TEST

START_TEST(an_aborted_step_leaves_no_mass)
{
    open_cache(0);
    pkv_evict_config c = named("h2o", 100 * P);
    pkv_seq seq = new_seq(&c), twin = new_seq(&c);
    float mass[4] = {1, 2, 3, 4}, noise[4] = {9, 0, 0, 9};
    step(seq, 3 * P, mass);
    step(twin, 3 * P, mass);
    pkv_batch batch;
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, seq, NULL, 1), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    ck_assert_int_eq(pkv_seq_feed_mass(seq, 0, noise, 4), PKV_OK);
    ck_assert_int_eq(pkv_batch_abort(batch), PKV_OK);
    step(seq, 1, mass);
    step(twin, 1, mass);
    float a[4], b[4];
    uint32_t logical[4], n;
    ck_assert_int_eq(pkv_seq_page_scores(seq, 0, logical, a, 4, &n), PKV_OK);
    ck_assert_int_eq(pkv_seq_page_scores(twin, 0, logical, b, 4, &n), PKV_OK);
    ck_assert_mem_eq(a, b, sizeof a);
    close_cache();
}
END_TEST

/* ---- journal, forks, salt ------------------------------------------------------------------- */

START_TEST(journal_undoes_evictions)
{
    open_cache(0);
    pkv_evict_config c = named("sink", 4 * P);
    c.journal_steps = 2;
    pkv_seq seq = new_seq(&c);
    for (int i = 0; i < 6; i++)
        step(seq, P, NULL); /* 1 went at length 5 P, 2 at 6 P */
    ck_assert(!holds(seq, 0, 1) && !holds(seq, 0, 2));
    ck_assert_uint_eq(info_of(seq).journal_pages, 2);
    verify();
    ck_assert_int_eq(pkv_seq_truncate(seq, 5 * P + 3), PKV_OK); /* 2 comes back */
    ck_assert(!holds(seq, 0, 1) && holds(seq, 0, 2));
    ck_assert_uint_eq(info_of(seq).pages_restored, 1);
    ck_assert_uint_ne(info_of(seq).salt, 0); /* 1 is still away */
    verify();
    ck_assert_int_eq(pkv_seq_truncate(seq, 5 * P - 1), PKV_OK);
    ck_assert(holds(seq, 0, 1) && holds(seq, 0, 2) && holds(seq, 0, 3));
    ck_assert_uint_eq(info_of(seq).salt, 0); /* as if nothing had been dropped */
    ck_assert_uint_eq(info_of(seq).journal_pages, 0);
    for (int i = 0; i < 3 * (int)P; i++)
        step(seq, 1, NULL);
    ck_assert_uint_eq(info_of(seq).journal_pages, 0); /* expired: two steps are long ago */
    /* 3 went at 7 P, more than two commits ago: cannot continue inside it. */
    ck_assert(!holds(seq, 0, 3));
    ck_assert_int_eq(pkv_seq_truncate(seq, 3 * P + 5), PKV_EDROPPED);
    ck_assert_int_eq(pkv_seq_truncate(seq, 3 * P), PKV_OK); /* a boundary needs no page */
    close_cache();
}
END_TEST

START_TEST(journal_brings_the_tail_back)
{
    open_cache(0);
    pkv_evict_config c = named("window", P);
    c.journal_steps = 1;
    pkv_seq seq = new_seq(&c);
    step(seq, P, NULL);
    step(seq, 3 * P, NULL); /* 0, 1, 2 go */
    ck_assert_uint_eq(resident(seq, 0), 1);
    ck_assert_int_eq(pkv_seq_truncate(seq, 2 * P + 1), PKV_OK);
    ck_assert_uint_eq(resident(seq, 0), 3);
    ck_assert(holds(seq, 0, 0) && holds(seq, 0, 1) && holds(seq, 0, 2));
    verify();
    step(seq, 1, NULL); /* two full pages, one is budgeted */
    ck_assert_uint_eq(resident(seq, 0), 2);
    close_cache();
}
END_TEST

START_TEST(journal_gives_way_when_pages_are_short)
{
    pkv_config config;
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    pkv_group_config group = {.n_layers = 1, .kv_heads = 1, .head_dim_k = 8, .max_pages = 10};
    config.groups = &group;
    config.n_groups = 1;
    config.page_tokens = P;
    config.storage = PKV_STORAGE_NONE;
    config.memory_limit = 64u << 20;
    ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_OK);
    pkv_evict_config c = named("window", 2 * P);
    c.journal_steps = 1000;
    pkv_seq seq = new_seq(&c);
    for (int i = 0; i < 50; i++) {
        step(seq, P, NULL); /* ten pages in all: two held, one new, seven to undo */
        verify();
    }
    pkv_evict_info info = info_of(seq);
    ck_assert_uint_eq(info.resident_pages, 2);
    ck_assert_uint_ge(info.journal_pages, 7);
    ck_assert_int_eq(pkv_seq_truncate(seq, 46 * P + 1), PKV_OK); /* still undone that far */
    ck_assert(holds(seq, 0, 44) && holds(seq, 0, 46));
    /* Another sequence may not take them. */
    pkv_seq other = new_seq(NULL);
    pkv_batch batch;
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, other, NULL, 9 * P), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_ENOPAGES);
    ck_assert_int_eq(pkv_batch_abort(batch), PKV_OK);
    close_cache();
}
END_TEST

START_TEST(forks_copy_scores)
{
    open_cache(0);
    pkv_evict_config c = named("h2o", 4 * P);
    c.window = P;
    pkv_seq seq = new_seq(&c), child;
    float mass[5] = {5, 1, 4, 3, 2};
    step(seq, 4 * P, mass);
    ck_assert_int_eq(pkv_seq_fork(seq, &child), PKV_OK);
    step(child, P, NULL); /* no new mass: the parent's decides */
    ck_assert(!holds(child, 0, 1));
    ck_assert(holds(seq, 0, 1)); /* the parent keeps its own */
    verify();
    step(seq, P, NULL);
    ck_assert(!holds(seq, 0, 1));
    close_cache();
}
END_TEST

START_TEST(salts_tell_policies_apart)
{
    open_cache(0);
    pkv_evict_config a = named("sink", 4 * P), b = named("sink", 5 * P), w = named("window", 4 * P);
    pkv_evict_config zero = named("sink", 4 * P);
    zero.sinks = 0; /* the same as WINDOW */
    pkv_seq seqs[4] = {new_seq(&a), new_seq(&b), new_seq(&w), new_seq(&zero)};
    uint64_t salts[4];
    for (int i = 0; i < 4; i++) {
        step(seqs[i], 4 * P, NULL);
        ck_assert_uint_eq(info_of(seqs[i]).salt, 0); /* nothing dropped yet */
        step(seqs[i], 4 * P, NULL);
        salts[i] = info_of(seqs[i]).salt;
        ck_assert_uint_ne(salts[i], 0);
    }
    ck_assert(salts[0] != salts[1] && salts[0] != salts[2] && salts[1] != salts[2]);
    ck_assert_uint_eq(salts[2], salts[3]);
    /* A change of policy after an eviction: neither salt says what is missing. */
    ck_assert_int_eq(pkv_seq_set_evict(seqs[0], 0, &b), PKV_OK);
    ck_assert_uint_eq(info_of(seqs[0]).tainted, 1);
    close_cache();
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("evict");
    TCase *tc = tcase_create("evict");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, config_defaults_and_names);
    tcase_add_test(tc, config_checks);
    tcase_add_test(tc, config_resolution);
    tcase_add_test(tc, defaults_reach_new_sequences_only);
    tcase_add_test(tc, heap_sorts);
    tcase_add_test(tc, choice_of_pages);
    tcase_add_test(tc, window_and_sink_keep_what_they_say);
    tcase_add_test(tc, bound_holds_in_chunked_prefill);
    tcase_add_test(tc, pins_are_kept_and_taint);
    tcase_add_test(tc, callback_scores);
    tcase_add_test(tc, mass_scores);
    tcase_add_test(tc, mass_drops_the_lowest);
    tcase_add_test(tc, obs_lets_the_last_chunk_decide);
    tcase_add_test(tc, lru_mass_drops_the_longest_unused);
    tcase_add_test(tc, random_is_repeatable_and_spread);
    tcase_add_test(tc, feeding_is_checked);
    tcase_add_test(tc, an_aborted_step_leaves_no_mass);
    tcase_add_test(tc, journal_undoes_evictions);
    tcase_add_test(tc, journal_brings_the_tail_back);
    tcase_add_test(tc, journal_gives_way_when_pages_are_short);
    tcase_add_test(tc, forks_copy_scores);
    tcase_add_test(tc, salts_tell_policies_apart);
    suite_add_tcase(suite, tc);
    return suite;
}
