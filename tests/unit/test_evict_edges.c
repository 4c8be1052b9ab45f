/* Eviction where it meets something else: an allocator that refuses, masses in any unit, pins,
 * forks of emptied sequences, pages that came by an attach. */
#include <check.h>
#include <math.h>
#include <string.h>

#include <pagedkv/pagedkv.h>

#include "cache/evict.h"
#include "evict/evict_internal.h"
#include "faults.h"
#include "suite.h"

#define P 16u

static pkv_cache *cache;
static struct pkvt_allocator allocator;

static void open_with(uint32_t page_tokens, pkv_storage storage, uint32_t signals)
{
    pkvt_allocator_init(&allocator);
    pkv_config config;
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    pkv_group_config group = {.n_layers = 1, .kv_heads = 1, .head_dim_k = 8};
    config.groups = &group;
    config.n_groups = 1;
    config.page_tokens = page_tokens;
    config.storage = storage;
    config.signals = signals;
    config.memory_limit = 64u << 20;
    config.allocator = &allocator.vtable;
    ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_OK);
}

static void open_cache(pkv_storage storage, uint32_t signals)
{
    open_with(P, storage, signals);
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
    ck_assert_uint_eq(allocator.live_blocks, 0);
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

static pkv_evict_info info_of(pkv_seq seq)
{
    pkv_evict_info info = {.struct_size = sizeof info};
    ck_assert_int_eq(pkv_seq_evict_info(seq, 0, &info), PKV_OK);
    return info;
}

static pkv_batch reserve(pkv_seq seq, uint32_t n, const int32_t *tokens)
{
    pkv_batch batch;
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, seq, tokens, n), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    return batch;
}

static void step(pkv_seq seq, uint32_t n)
{
    ck_assert_int_eq(pkv_batch_commit(reserve(seq, n, NULL)), PKV_OK);
}

static bool holds(pkv_seq seq, uint32_t logical)
{
    pkv_page page;
    ck_assert_int_eq(pkv_seq_pages(seq, 0, logical, 1, &page), PKV_OK);
    return page != PKV_PAGE_NONE;
}

static const struct pkvi_seq *object(pkv_seq seq)
{
    return pkvi_slots_get(&cache->sequences, seq.id);
}

/* ---- truncation without memory -------------------------------------------------------------- */

/* A sequence of `pages` pages, one a step, that remembers all evictions. */
static pkv_seq remembering(const char *policy, uint32_t budget, uint32_t pages)
{
    pkv_evict_config c = named(policy, (uint64_t)budget * P);
    c.journal_steps = 1000;
    const pkv_seq seq = new_seq(&c);
    for (uint32_t i = 0; i < pages; i++)
        step(seq, P);
    return seq;
}

/* The table has room for what it held, not for that and what comes back. */
START_TEST(undo_without_memory_changes_nothing)
{
    static const char *policies[] = {"window", "sink", "mass", "random"};
    open_cache(PKV_STORAGE_NONE, 0);
    const uint32_t budget = 90, pages = 300, kept = pages - budget + 10;
    const pkv_seq seq = remembering(policies[_i], budget, pages);
    const uint64_t end = kept * P + 1;
    const pkv_evict_info before = info_of(seq);
    ck_assert_uint_eq(before.journal_pages, pages - budget);
    allocator.fail_from = allocator.calls + 1;
    const pkv_status status = pkv_seq_truncate(seq, end);
    allocator.fail_from = 0;
    ck_assert_int_eq(status, PKV_ENOMEM);
    const pkv_evict_info after = info_of(seq);
    ck_assert_mem_eq(&before, &after, sizeof after);
    uint64_t length;
    ck_assert_int_eq(pkv_seq_length(seq, &length), PKV_OK);
    ck_assert_uint_eq(length, pages * P);
    verify();
    ck_assert_int_eq(pkv_seq_truncate(seq, end), PKV_OK);
    ck_assert_uint_eq(info_of(seq).resident_pages, budget + 1);
    ck_assert(holds(seq, kept)); /* the tail */
    verify();
    close_cache();
}
END_TEST

/* A page that comes back is judged as before. */
START_TEST(undo_brings_the_score_back)
{
    open_cache(PKV_STORAGE_NONE, 0);
    pkv_evict_config c = named("h2o", 2 * P);
    c.journal_steps = 10;
    c.mass_every = 1;
    c.sinks = 0;
    const pkv_seq seq = new_seq(&c);
    step(seq, P);
    pkv_batch batch = reserve(seq, P, NULL);
    ck_assert_int_eq(pkv_seq_feed_mass(seq, 0, (const float[]){1, 3}, 2), PKV_OK);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
    const struct pkvi_table *table = &object(seq)->tables[0];
    const float before = table->score[table->head].score;
    ck_assert_float_gt(before, 0);
    step(seq, P); /* page 0 goes */
    ck_assert(!holds(seq, 0));
    ck_assert_int_eq(pkv_seq_truncate(seq, 2 * P + 1), PKV_OK);
    ck_assert(holds(seq, 0));
    ck_assert_float_eq(table->score[table->head].score, before);
    close_cache();
}
END_TEST

/* ---- KEYDIFF: pages that did not come by a commit ------------------------------------------- */

START_TEST(keydiff_drops_attached_pages)
{
    open_cache(PKV_STORAGE_HOST, PKV_SIGNAL_KEYSUM);
    int32_t tokens[20 * P];
    for (uint32_t i = 0; i < 20 * P; i++)
        tokens[i] = (int32_t)i;
    const pkv_seq first = new_seq(NULL);
    ck_assert_int_eq(pkv_batch_commit(reserve(first, 20 * P, tokens)), PKV_OK);
    const pkv_evict_config c = named("keydiff", 6 * P);
    const pkv_seq seq = new_seq(&c);
    pkv_match match = {.struct_size = sizeof match};
    ck_assert_int_eq(pkv_seq_match(seq, tokens, 20 * P, &match), PKV_OK);
    ck_assert_int_eq(pkv_seq_attach(seq, &match), PKV_OK);
    step(seq, P);
    ck_assert_uint_eq(info_of(seq).resident_pages, 6);
    step(seq, 1);
    ck_assert_uint_eq(info_of(seq).resident_pages, 7);
    close_cache();
}
END_TEST

START_TEST(keydiff_drops_restored_pages_again)
{
    open_cache(PKV_STORAGE_HOST, PKV_SIGNAL_KEYSUM);
    const pkv_seq seq = remembering("keydiff", 2, 100);
    ck_assert_int_eq(pkv_seq_truncate(seq, 60 * P), PKV_OK);
    step(seq, 20 * P);
    ck_assert_uint_eq(info_of(seq).resident_pages, 2);
    ck_assert_int_eq(pkv_seq_truncate(seq, 2 * P), PKV_OK);
    ck_assert_uint_eq(info_of(seq).resident_pages, 2);
    step(seq, P);
    ck_assert_uint_eq(info_of(seq).resident_pages, 2);
    close_cache();
}
END_TEST

/* ---- masses in any unit --------------------------------------------------------------------- */

#define PAGES 6u

/* Scores after a step that was fed `calls` calls of mass, each value times `unit`. */
static void scores_of(const float (*mass)[PAGES], uint32_t calls, double unit, bool backwards,
                      float *scores)
{
    const pkv_evict_config c = named("h2o", 100 * P);
    const pkv_seq seq = new_seq(&c);
    step(seq, (PAGES - 1) * P);
    const pkv_batch batch = reserve(seq, 2, NULL);
    for (uint32_t i = 0; i < calls; i++) {
        float values[PAGES];
        for (uint32_t j = 0; j < PAGES; j++)
            values[j] = (float)((double)mass[backwards ? calls - 1 - i : i][j] * unit);
        ck_assert_int_eq(pkv_seq_feed_mass(seq, 0, values, PAGES), PKV_OK);
    }
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
    const struct pkvi_seq *s = object(seq);
    const struct pkvi_table *table = &s->tables[0];
    for (uint32_t i = 0; i < PAGES; i++)
        scores[i] = table->score[table->head + i].score;
    ck_assert_uint_eq(info_of(seq).mass_steps, 1);
    ck_assert_int_eq(pkv_seq_destroy(seq), PKV_OK);
}

static const float shares[3][PAGES] = {{0.5f, 0.125f, 0.0625f, 0.0625f, 0, 0.25f},
                                       {0.25f, 0.25f, 0.25f, 0.125f, 0, 0.125f},
                                       {0.75f, 0, 0, 0.125f, 0, 0.125f}};

START_TEST(only_proportions_of_masses_matter)
{
    static const double units[] = {1,    3,    1e-3, 1e-9,  1e-12, 1e-30, 1e-37,
                                   1e3f, 1e10, 1e11, 1e12f, 1e19,  1e30,  1e38};
    open_cache(PKV_STORAGE_NONE, 0);
    float one[PAGES], other[PAGES];
    scores_of(shares, 3, 1, false, one);
    for (uint32_t j = 0; j < PAGES; j++)
        ck_assert_double_eq_tol((double)one[j],
                                (double)(shares[0][j] + shares[1][j] + shares[2][j]) / 3 * 2, 1e-6);
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
        scores_of(shares, 3, units[u], false, other);
        for (uint32_t j = 0; j < PAGES; j++)
            ck_assert_msg(fabsf(one[j] - other[j]) <= 2e-6f, "unit %g, page %u: %g, not %g",
                          units[u], j, (double)other[j], (double)one[j]);
    }
    close_cache();
}
END_TEST

START_TEST(sums_of_masses_depend_on_no_order)
{
    /* Bands apart: each next call is 2^17 times as large. */
    float mass[5][PAGES], forward[PAGES], backward[PAGES];
    for (uint32_t i = 0; i < 5; i++)
        for (uint32_t j = 0; j < PAGES; j++)
            mass[i][j] = ldexpf(0.1f + (float)((i + j) % PAGES) / 7, (int)(17 * i) - 34);
    open_cache(PKV_STORAGE_NONE, 0);
    scores_of((const float(*)[PAGES])mass, 5, 1, false, forward);
    scores_of((const float(*)[PAGES])mass, 5, 1, true, backward);
    ck_assert_mem_eq(forward, backward, sizeof forward);
    float total = 0;
    for (uint32_t j = 0; j < PAGES; j++)
        total += mass[4][j];
    for (uint32_t j = 0; j < PAGES; j++)
        ck_assert_double_eq_tol((double)forward[j], (double)(2 * mass[4][j] / total), 1e-4);
    close_cache();
}
END_TEST

START_TEST(feeding_without_memory_adds_nothing)
{
    open_cache(PKV_STORAGE_NONE, 0);
    const pkv_evict_config c = named("h2o", 100 * P);
    const pkv_seq seq = new_seq(&c);
    step(seq, P);
    const pkv_batch batch = reserve(seq, 2, NULL);
    const float values[2] = {1, 3};
    allocator.fail_from = allocator.calls + 1;
    ck_assert_int_eq(pkv_seq_feed_mass(seq, 0, values, 2), PKV_ENOMEM);
    allocator.fail_from = 0;
    ck_assert_int_eq(pkv_seq_feed_mass(seq, 0, values, 2), PKV_OK);
    ck_assert_int_eq(pkv_batch_abort(batch), PKV_OK);
    step(seq, 2);
    ck_assert_uint_eq(info_of(seq).mass_steps, 0); /* an aborted step leaves no mass */
    close_cache();
}
END_TEST

/* The sums of an aborted step must not reach the next one that is fed. */
START_TEST(aborted_sums_are_gone)
{
    open_cache(PKV_STORAGE_NONE, 0);
    const pkv_evict_config c = named("h2o", 100 * P);
    float score[2];
    for (int aborted = 0; aborted < 2; aborted++) {
        const pkv_seq seq = new_seq(&c);
        step(seq, P);
        if (aborted) {
            const pkv_batch batch = reserve(seq, 2, NULL);
            ck_assert_int_eq(pkv_seq_feed_mass(seq, 0, (const float[]){100, 1}, 2), PKV_OK);
            pkvi_evict_feed(pkvi_seq_evict(object(seq)), 0, (const float[]){100, 1}, 1, 2);
            ck_assert_int_eq(pkv_batch_abort(batch), PKV_OK);
        }
        const pkv_batch batch = reserve(seq, 2, NULL);
        ck_assert_int_eq(pkv_seq_feed_mass(seq, 0, (const float[]){1, 3}, 2), PKV_OK);
        ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
        const struct pkvi_table *table = &object(seq)->tables[0];
        score[aborted] = table->score[table->head].score;
    }
    ck_assert_float_eq(score[0], score[1]);
    ck_assert_float_gt(score[0], 0);
    close_cache();
}
END_TEST

/* ---- forks of emptied sequences ------------------------------------------------------------- */

START_TEST(fork_of_an_emptied_sequence_is_sound)
{
    static const char *policies[] = {"mass", "obs", "lru-mass", "h2o"};
    open_cache(PKV_STORAGE_NONE, 0);
    int32_t tokens[4 * P];
    for (uint32_t i = 0; i < 4 * P; i++)
        tokens[i] = (int32_t)i;
    const pkv_seq first = new_seq(NULL);
    ck_assert_int_eq(pkv_batch_commit(reserve(first, 4 * P, tokens)), PKV_OK);

    const pkv_evict_config c = named(policies[_i], 3 * P);
    const pkv_seq seq = new_seq(&c);
    const pkv_batch batch = reserve(seq, 2 * P, NULL);
    ck_assert_int_eq(pkv_seq_feed_mass(seq, 0, (const float[]){1, 3}, 2), PKV_OK);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
    ck_assert_int_eq(pkv_seq_truncate(seq, 0), PKV_OK);
    pkv_seq child;
    ck_assert_int_eq(pkv_seq_fork(seq, &child), PKV_OK);
    pkv_match match = {.struct_size = sizeof match};
    ck_assert_int_eq(pkv_seq_match(child, tokens, 4 * P, &match), PKV_OK);
    ck_assert_int_eq(pkv_seq_attach(child, &match), PKV_OK);
    verify();
    uint32_t logical[4], n;
    float scores[4];
    ck_assert_int_eq(pkv_seq_page_scores(child, 0, logical, scores, 4, &n), PKV_OK);
    step(child, 1);
    verify();
    close_cache();
}
END_TEST

/* ---- what attention and keys say ------------------------------------------------------------ */

enum { DIM = 8 };

/* One step of n tokens with these keys, attending with these queries. */
static void attend(pkv_seq seq, uint32_t n, float (*keys)[DIM], float (*queries)[DIM])
{
    pkv_plan *plan;
    float out[2 * P][DIM];
    const ptrdiff_t stride = sizeof out[0];
    const pkv_rows k = {.data = keys,
                        .dtype = PKV_DTYPE_F32,
                        .heads = 1,
                        .dim = DIM,
                        .token_stride = stride,
                        .head_stride = stride};
    pkv_rows q = k;
    q.data = queries;
    const pkv_rows_out o = {.data = out,
                            .dtype = PKV_DTYPE_F32,
                            .heads = 1,
                            .dim = DIM,
                            .token_stride = stride,
                            .head_stride = stride};
    const pkv_batch batch = reserve(seq, n, NULL);
    ck_assert_int_eq(pkv_plan_create(cache, NULL, &plan), PKV_OK);
    ck_assert_int_eq(pkv_plan_build(plan, batch), PKV_OK);
    ck_assert_int_eq(pkv_write(plan, 0, &k, &k, 0, 1), PKV_OK);
    ck_assert_int_eq(pkv_attend(plan, 0, &q, &o, NULL, 0, 1), PKV_OK);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
    pkv_plan_destroy(plan);
}

/* A prompt whose rows look at the first page, but for the last, which looks at the second: with one
 * row to observe only that one counts, although the rows are computed together. */
START_TEST(only_observed_rows_have_mass)
{
    open_cache(PKV_STORAGE_HOST, 0);
    pkv_evict_config c = named("obs", 8 * P);
    c.obs_rows = 1;
    c.window = P;
    c.sinks = 0;
    const pkv_seq seq = new_seq(&c);
    float keys[2 * P][DIM] = {{0}}, queries[2 * P][DIM] = {{0}};
    for (uint32_t t = 0; t < 2 * P; t++)
        keys[t][t / P] = 10;
    attend(seq, 2 * P, keys, queries);
    for (uint32_t t = 0; t < P; t++) {
        keys[t][0] = keys[t][1] = -10;
        queries[t][t == P - 1] = 10;
    }
    attend(seq, P, keys, queries);
    uint32_t logical[3], n;
    float scores[3];
    ck_assert_int_eq(pkv_seq_page_scores(seq, 0, logical, scores, 3, &n), PKV_OK);
    ck_assert_uint_eq(n, 3);
    ck_assert_float_lt(scores[0], 1e-3f * scores[1]);
    ck_assert_float_gt(scores[1], 0);
    close_cache();
}
END_TEST

/* Two pages whose keys point the same way but for one: which is more like the rest is up to the
 * last key of each. */
START_TEST(the_last_key_of_a_page_counts)
{
    enum { SMALL = 8 };
    open_with(SMALL, PKV_STORAGE_HOST, PKV_SIGNAL_KEYSUM);
    pkv_evict_config c = named("keydiff", 4 * SMALL);
    c.sinks = 0;
    c.window = SMALL;
    const pkv_seq seq = new_seq(&c);
    for (uint32_t page = 0; page < 5; page++) {
        float keys[SMALL][DIM] = {{0}}, queries[SMALL][DIM] = {{0}};
        for (uint32_t t = 0; t < SMALL; t++)
            keys[t][page < 2 ? 0 : page] = 1;
        if (page == 0) keys[SMALL - 1][0] = -1; /* 7 before it, 6 with it */
        if (page == 1) keys[0][5] = 0.5f;       /* 6.9 and 7.9 */
        attend(seq, SMALL, keys, queries);
    }
    ck_assert(holds(seq, 0));
    ck_assert(!holds(seq, 1));
    close_cache();
}
END_TEST

/* ---- pins ----------------------------------------------------------------------------------- */

START_TEST(pinned_pages_are_passed_once)
{
    static const char *policies[] = {"window", "sink"};
    open_cache(PKV_STORAGE_NONE, 0);
    const pkv_evict_config c = named(policies[_i], 4 * P);
    const pkv_seq seq = new_seq(&c);
    const uint32_t pinned = 30, pages = 600;
    ck_assert_int_eq(pkv_seq_pin(seq, 0, 1), PKV_OK);
    ck_assert_int_eq(pkv_seq_pin(seq, 100 * P, (100 + pinned - 1) * P), PKV_OK);
    for (uint32_t i = 0; i < pages; i++)
        step(seq, P);
    ck_assert(holds(seq, 0) && holds(seq, 100) && holds(seq, 100 + pinned - 2));
    ck_assert(!holds(seq, 1) == (_i == 0) || _i == 1);
    /* What is gone or pinned is not looked at again. */
    const struct pkvi_evict_seq *es = pkvi_seq_evict(object(seq));
    ck_assert_uint_ge(es->groups[0].cursor, pages - pinned - 6);
    /* Without their pins the pages are the oldest and go. */
    ck_assert_int_eq(pkv_seq_unpin(seq, 100 * P, (100 + pinned - 1) * P), PKV_OK);
    step(seq, P);
    ck_assert(!holds(seq, 100) && !holds(seq, 100 + pinned - 5));
    ck_assert(holds(seq, 0));
    pkv_seq child;
    ck_assert_int_eq(pkv_seq_fork(seq, &child), PKV_OK);
    ck_assert_int_eq(pkv_seq_unpin(child, 0, 1), PKV_OK);
    step(child, P);
    ck_assert(holds(child, 0) == (_i == 1)); /* a sink stays without a pin */
    close_cache();
}
END_TEST

/* ---- what may be published ------------------------------------------------------------------ */

static uint64_t found(pkv_seq like, const int32_t *tokens, uint32_t n)
{
    pkv_match match = {.struct_size = sizeof match};
    ck_assert_int_eq(pkv_seq_match(like, tokens, n, &match), PKV_OK);
    return match.n_tokens;
}

static bool tainted(pkv_seq seq)
{
    uint32_t is;
    ck_assert_int_eq(pkv_seq_tainted(seq, &is), PKV_OK);
    return is != 0;
}

START_TEST(topk_publishes_nothing_of_its_first_choice)
{
    open_cache(PKV_STORAGE_HOST, PKV_SIGNAL_BOUNDS);
    int32_t tokens[6 * P];
    for (uint32_t i = 0; i < 6 * P; i++)
        tokens[i] = (int32_t)i;
    const pkv_evict_config c = named("topk", 3 * P);
    const pkv_seq seq = new_seq(&c), plain = new_seq(NULL);
    ck_assert_int_eq(pkv_batch_commit(reserve(seq, 4 * P + 8, tokens)), PKV_OK);
    ck_assert(!tainted(seq));
    ck_assert_uint_eq(found(plain, tokens, 6 * P), 4 * P);
    ck_assert_int_eq(pkv_batch_abort(reserve(seq, 8, tokens + 4 * P + 8)), PKV_OK);
    ck_assert(!tainted(seq));
    const pkv_batch batch = reserve(seq, 8, tokens + 4 * P + 8); /* fills a page, reads 3 of 4 */
    ck_assert_int_eq(pkv_batch_commit_partial(batch, (const uint32_t[]){0}, 1), PKV_OK);
    ck_assert(!tainted(seq));
    ck_assert_int_eq(pkv_batch_commit(reserve(seq, 8, tokens + 4 * P + 8)), PKV_OK);
    ck_assert(tainted(seq));
    ck_assert_uint_eq(found(plain, tokens, 6 * P), 4 * P);
    close_cache();
}
END_TEST

/* What WINDOW and SINK dropped further on does not come back with a truncation. */
START_TEST(truncation_into_what_was_dropped_taints)
{
    static const char *policies[] = {"window", "sink"};
    open_cache(PKV_STORAGE_NONE, 0);
    int32_t tokens[20 * P];
    for (uint32_t i = 0; i < 20 * P; i++)
        tokens[i] = (int32_t)i;
    const pkv_evict_config c = named(policies[_i], 4 * P);
    const pkv_seq seq = new_seq(&c), other = new_seq(&c);
    for (uint32_t i = 0; i < 12; i++)
        ck_assert_int_eq(pkv_batch_commit(reserve(seq, P, tokens + i * P)), PKV_OK);
    ck_assert(!tainted(seq));
    ck_assert_int_eq(pkv_batch_commit(reserve(seq, 5, tokens + 12 * P)), PKV_OK);
    ck_assert_int_eq(pkv_seq_truncate(seq, 12 * P + 3), PKV_OK); /* nothing is missed */
    ck_assert(!tainted(seq));
    ck_assert_int_eq(pkv_seq_truncate(seq, 10 * P), PKV_OK);
    ck_assert(tainted(seq));
    const uint64_t known = found(other, tokens, 20 * P);
    for (uint32_t i = 10; i < 20; i++)
        ck_assert_int_eq(pkv_batch_commit(reserve(seq, P, tokens + i * P)), PKV_OK);
    ck_assert_uint_eq(found(other, tokens, 20 * P), known);
    close_cache();
}
END_TEST

START_TEST(pins_beyond_the_budget_taint)
{
    open_cache(PKV_STORAGE_NONE, 0);
    const pkv_evict_config c = named("window", 4 * P);
    const pkv_seq seq = new_seq(&c);
    for (uint32_t i = 0; i < 6; i++)
        step(seq, P);
    ck_assert(!tainted(seq));
    ck_assert_int_eq(pkv_seq_pin(seq, 0, 100 * P), PKV_OK);
    step(seq, 1);
    ck_assert(!tainted(seq)); /* nothing had to go yet */
    step(seq, P - 1);
    ck_assert_uint_eq(info_of(seq).resident_pages, 5);
    ck_assert(tainted(seq)); /* others of this length hold four */
    close_cache();
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("evict edges");
    TCase *tc = tcase_create("edges");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, undo_without_memory_changes_nothing, 0, 4);
    tcase_add_test(tc, undo_brings_the_score_back);
    tcase_add_test(tc, keydiff_drops_attached_pages);
    tcase_add_test(tc, keydiff_drops_restored_pages_again);
    tcase_add_test(tc, only_proportions_of_masses_matter);
    tcase_add_test(tc, sums_of_masses_depend_on_no_order);
    tcase_add_test(tc, feeding_without_memory_adds_nothing);
    tcase_add_test(tc, aborted_sums_are_gone);
    tcase_add_loop_test(tc, fork_of_an_emptied_sequence_is_sound, 0, 4);
    tcase_add_test(tc, only_observed_rows_have_mass);
    tcase_add_test(tc, the_last_key_of_a_page_counts);
    tcase_add_loop_test(tc, pinned_pages_are_passed_once, 0, 2);
    tcase_add_test(tc, topk_publishes_nothing_of_its_first_choice);
    tcase_add_loop_test(tc, truncation_into_what_was_dropped_taints, 0, 2);
    tcase_add_test(tc, pins_beyond_the_budget_taint);
    suite_add_tcase(suite, tc);
    return suite;
}
