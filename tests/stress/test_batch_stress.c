/* Threads with their own sequences and batches on one cache, through the public interface alone:
 * create, match, attach, append, fork, truncate, abort, partial commit, destroy, under a memory
 * limit that moves, while another thread trims, reclaims, forgets a namespace and reads counters.
 * Keys and values are functions of the token, so whatever a sequence holds can be checked: a page
 * that was shared, copied, reclaimed or reused wrongly reads as another token. PKV_STRESS scales
 * the number of steps (default 1). */
#include <check.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <pagedkv/pagedkv.h>

#include "random.h"
#include "suite.h"

#define MIB (UINT64_C(1) << 20)

enum {
    THREADS = 4,
    SEQS = 6, /* of each thread */
    LONGEST = 400,
    HEADS = 2,
    DIM = 64,
    WIDTH = HEADS * DIM,
    WINDOW = 24,
    ADDED = 20 /* most new tokens of a sequence in a batch */
};

struct sequence {
    pkv_seq seq;
    uint64_t length;
    bool live;
    int32_t tokens[LONGEST];
};

struct worker {
    uint64_t seed;
    pkv_plan *plan;
    struct sequence seqs[SEQS];
    float k[SEQS * ADDED * WIDTH], v[SEQS * ADDED * WIDTH];
    float k_read[LONGEST * WIDTH], v_read[LONGEST * WIDTH];
    uint64_t steps, commits, short_of_pages, hits, checked;
};

static pkv_cache *cache;
static uint64_t n_steps = 1500;
static _Atomic uint64_t surprises, finished;

static void surprise(const char *what, pkv_status status)
{
    if (atomic_fetch_add(&surprises, 1) < 5)
        fprintf(stderr, "unexpected: %s: %s\n", what, pkv_status_name(status));
}

static void expect_ok(pkv_status status, const char *what)
{
    if (status != PKV_OK) surprise(what, status);
}

/* ---- the content of a token ----------------------------------------------------------------- */

static float key_of(int32_t token, int i)
{
    return (float)token + (float)i / 256;
}

static void fill(float *k, float *v, int32_t token)
{
    for (int i = 0; i < WIDTH; i++) {
        k[i] = key_of(token, i);
        v[i] = -key_of(token, i);
    }
}

/* Reads tokens [first, length) of a layer back and compares. */
static void check(struct worker *w, const struct sequence *s, uint32_t layer, uint64_t first)
{
    uint32_t n = (uint32_t)(s->length - first);
    if (!n) return;
    pkv_rows_out k = {.data = w->k_read,
                      .dtype = PKV_DTYPE_F32,
                      .heads = HEADS,
                      .dim = DIM,
                      .token_stride = WIDTH * 4,
                      .head_stride = DIM * 4};
    pkv_rows_out v = {.data = w->v_read,
                      .dtype = PKV_DTYPE_F32,
                      .heads = HEADS,
                      .dim = DIM,
                      .token_stride = WIDTH * 4,
                      .head_stride = DIM * 4};
    pkv_status status = pkv_read(s->seq, layer, first, n, &k, &v);
    if (status != PKV_OK) {
        surprise("read", status);
        return;
    }
    for (uint32_t t = 0; t < n; t++) {
        const float *k_row = w->k_read + (size_t)t * WIDTH, *v_row = w->v_read + (size_t)t * WIDTH;
        for (int i = 0; i < WIDTH; i++) {
            float expected = key_of(s->tokens[first + t], i);
            if (k_row[i] == expected && v_row[i] == -expected) continue;
            surprise("a token's content", PKV_ECORRUPT);
            return;
        }
    }
    w->checked += n;
}

static void check_sequence(struct worker *w, const struct sequence *s)
{
    uint64_t length;
    expect_ok(pkv_seq_length(s->seq, &length), "length");
    if (length != s->length) surprise("a sequence's length", PKV_ECORRUPT);
    check(w, s, 0, 0);
    check(w, s, 1, s->length > WINDOW ? s->length - WINDOW + 1 : 0);
}

/* ---- steps of a worker ---------------------------------------------------------------------- */

static struct sequence *pick(struct worker *w, bool live)
{
    uint32_t from = pkvt_below(&w->seed, SEQS);
    for (uint32_t i = 0; i < SEQS; i++) {
        struct sequence *s = &w->seqs[(from + i) % SEQS];
        if (s->live == live) return s;
    }
    return NULL;
}

static void destroy(struct sequence *s)
{
    expect_ok(pkv_seq_destroy(s->seq), "destroy");
    s->live = false;
    if (pkv_seq_destroy(s->seq) != PKV_ESTALE) surprise("second destroy", PKV_OK);
}

/* All threads' prompts begin alike, so that they share pages. */
static void make_prompt(struct worker *w, int32_t *tokens, uint32_t n)
{
    int32_t family = (int32_t)pkvt_below(&w->seed, 3);
    uint32_t common = pkvt_below(&w->seed, n);
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = i < common ? family * 1000 + (int32_t)(i * 7 % 97)
                               : (int32_t)pkvt_below(&w->seed, 5000);
}

static void create(struct worker *w)
{
    struct sequence *s = pick(w, false);
    if (!s) return;
    int32_t prompt[128];
    make_prompt(w, prompt, 128);
    pkv_status status = pkv_seq_create(cache, &s->seq);
    if (status == PKV_ENOMEM) return;
    expect_ok(status, "create");
    if (status != PKV_OK) return;
    s->live = true;
    s->length = 0;
    pkv_namespace space = {"b", pkvt_below(&w->seed, 2)};
    expect_ok(pkv_seq_set_namespace(s->seq, &space), "set_namespace");
    pkv_match match = {.struct_size = sizeof match};
    expect_ok(pkv_seq_match(s->seq, prompt, 128, &match), "match");
    status = pkv_seq_attach(s->seq, &match);
    if (status == PKV_ESTALE || status == PKV_ENOMEM) return; /* reclaimed since, or no room */
    expect_ok(status, "attach");
    if (status != PKV_OK) return;
    s->length = match.n_tokens;
    memcpy(s->tokens, prompt, match.n_tokens * sizeof *prompt);
    w->hits += match.n_tokens > 0;
    check_sequence(w, s);
}

static void fork_one(struct worker *w)
{
    struct sequence *parent = pick(w, true), *child = pick(w, false);
    if (!parent || !child) return;
    pkv_status status = pkv_seq_fork(parent->seq, &child->seq);
    if (status == PKV_ENOMEM) return;
    expect_ok(status, "fork");
    if (status != PKV_OK) return;
    child->live = true;
    child->length = parent->length;
    memcpy(child->tokens, parent->tokens, sizeof child->tokens);
}

static void truncate_one(struct worker *w)
{
    struct sequence *s = pick(w, true);
    if (!s || !s->length) return;
    uint64_t back = pkvt_below(&w->seed, 30), length = back < s->length ? s->length - back : 0;
    pkv_status status = pkv_seq_truncate(s->seq, length);
    if (status == PKV_EDROPPED) return; /* the window has moved on */
    expect_ok(status, "truncate");
    if (status == PKV_OK) s->length = length;
    check_sequence(w, s);
}

struct step {
    pkv_batch batch;
    uint32_t n, total;
    struct sequence *entry[SEQS];
    uint32_t added[SEQS];
};

static void add_entries(struct worker *w, struct step *step)
{
    for (uint32_t i = 0; i < SEQS; i++) {
        struct sequence *s = &w->seqs[i];
        uint32_t n = 1 + pkvt_below(&w->seed, ADDED);
        if (!s->live || s->length + n > LONGEST || pkvt_below(&w->seed, 4) == 0) continue;
        for (uint32_t t = 0; t < n; t++) {
            int32_t token = (int32_t)pkvt_below(&w->seed, 5000);
            if (s->length + t < 96) token = (int32_t)((s->length + t) * 7 % 97); /* as prompts */
            s->tokens[s->length + t] = token;
            fill(w->k + (step->total + t) * WIDTH, w->v + (step->total + t) * WIDTH, token);
        }
        pkv_status status = pkv_batch_add(step->batch, s->seq, s->tokens + s->length, n);
        if (status == PKV_ENOMEM) continue;
        expect_ok(status, "add");
        step->entry[step->n] = s;
        step->added[step->n++] = n;
        step->total += n;
    }
}

/* False if the limit leaves no room for the plan. */
static bool write_all(struct worker *w, const struct step *step)
{
    pkv_rows k = {.data = w->k,
                  .dtype = PKV_DTYPE_F32,
                  .heads = HEADS,
                  .dim = DIM,
                  .token_stride = WIDTH * 4,
                  .head_stride = DIM * 4};
    pkv_rows v = {.data = w->v,
                  .dtype = PKV_DTYPE_F32,
                  .heads = HEADS,
                  .dim = DIM,
                  .token_stride = WIDTH * 4,
                  .head_stride = DIM * 4};
    pkv_status status = pkv_plan_build(w->plan, step->batch);
    if (status == PKV_ENOMEM) return false;
    expect_ok(status, "plan_build");
    for (uint32_t layer = 0; layer < 2; layer++)
        expect_ok(pkv_write(w->plan, layer, &k, &v, 0, 1), "write");
    if (pkv_seq_truncate(step->entry[0]->seq, 0) != PKV_EBUSY)
        surprise("a change of a sequence in a batch", PKV_OK);
    return true;
}

static void end_batch(struct worker *w, struct step *step)
{
    uint32_t how = pkvt_below(&w->seed, 8), accepted[SEQS];
    memcpy(accepted, step->added, sizeof accepted);
    if (how == 0) {
        expect_ok(pkv_batch_abort(step->batch), "abort");
        return;
    }
    if (how == 1) {
        for (uint32_t i = 0; i < step->n; i++)
            accepted[i] = pkvt_below(&w->seed, step->added[i] + 1);
        expect_ok(pkv_batch_commit_partial(step->batch, accepted, step->n), "commit_partial");
    } else {
        expect_ok(pkv_batch_commit(step->batch), "commit");
    }
    for (uint32_t i = 0; i < step->n; i++)
        step->entry[i]->length += accepted[i];
    w->commits++;
}

static void run_batch(struct worker *w)
{
    struct step step = {0};
    pkv_status status = pkv_batch_begin(cache, &step.batch);
    if (status == PKV_ENOMEM) return;
    expect_ok(status, "begin");
    if (status != PKV_OK) return;
    add_entries(w, &step);
    status = step.n ? pkv_batch_reserve(step.batch) : PKV_ENOPAGES;
    if (status == PKV_OK && write_all(w, &step)) {
        end_batch(w, &step);
        return;
    }
    if (status != PKV_OK && status != PKV_ENOPAGES && status != PKV_ENOMEM)
        surprise("reserve", status);
    expect_ok(pkv_batch_abort(step.batch), "abort");
    struct sequence *victim = pick(w, true);
    if (step.n && victim) {
        w->short_of_pages++;
        destroy(victim);
    }
}

static void *work(void *context)
{
    struct worker *w = context;
    for (uint64_t i = 0; i < n_steps; i++) {
        uint32_t what = pkvt_below(&w->seed, 16);
        struct sequence *s = pick(w, true);
        if (what < 3)
            create(w);
        else if (what < 5)
            fork_one(w);
        else if (what < 7)
            truncate_one(w);
        else if (what < 8 && s)
            destroy(s);
        else if (what < 9 && s)
            check_sequence(w, s);
        else
            run_batch(w);
    }
    for (uint32_t i = 0; i < SEQS; i++) {
        if (!w->seqs[i].live) continue;
        check_sequence(w, &w->seqs[i]);
        destroy(&w->seqs[i]);
    }
    atomic_fetch_add(&finished, 1);
    return NULL;
}

/* What an operator's thread does meanwhile. */
static void *manage(void *context)
{
    uint64_t seed = *(uint64_t *)context;
    while (atomic_load(&finished) < THREADS) {
        pkv_stats stats = {.struct_size = sizeof stats};
        pkv_group_stats group = {.struct_size = sizeof group};
        pkv_event events[64];
        uint32_t n;
        uint64_t bytes;
        pkv_status status = PKV_OK;
        switch (pkvt_below(&seed, 6)) {
        case 0:
            status = pkv_cache_set_limit(cache, (6 + pkvt_below(&seed, 5)) * MIB);
            if (status == PKV_EBUSY) status = PKV_OK;
            break;
        case 1:
            status = pkv_cache_trim(cache, &bytes);
            break;
        case 2:
            status = pkv_cache_stats(cache, &stats);
            if (stats.region_bytes + stats.metadata_bytes > 11 * MIB)
                surprise("the limit", PKV_ERANGE);
            break;
        case 3:
            status = pkv_cache_group_stats(cache, pkvt_below(&seed, 2), &group);
            break;
        case 4:
            status = pkv_cache_events(cache, events, 64, &n);
            break;
        default:
            status = pkvt_below(&seed, 4)
                         ? pkv_prefix_reclaim(cache, pkvt_below(&seed, 2), 4, &bytes)
                         : pkv_prefix_drop(cache, &(pkv_namespace){"b", 1}, &bytes);
            if (status == PKV_EINVAL) status = PKV_OK; /* a namespace not used yet */
        }
        expect_ok(status, "manager");
        struct timespec pause = {0, 200000};
        nanosleep(&pause, NULL);
    }
    return NULL;
}

static void create_cache(void)
{
    pkv_config config;
    pkv_group_config groups[2] = {
        {.n_layers = 1, .kv_heads = HEADS, .head_dim_k = DIM, .dtype = PKV_DTYPE_F32},
        {.n_layers = 1,
         .kv_heads = HEADS,
         .head_dim_k = DIM,
         .dtype = PKV_DTYPE_F32,
         .window = WINDOW}};
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    config.page_tokens = 8;
    config.n_groups = 2;
    config.groups = groups;
    config.memory_limit = 7 * MIB;
    config.region_bytes = 2 * MIB;
    config.event_capacity = 1024;
    ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_OK);
}

START_TEST(batches_survive_threads)
{
    uint64_t seed = pkvt_seed("batches_survive_threads");
    static struct worker workers[THREADS];
    pthread_t threads[THREADS + 1];
    create_cache();
    for (int i = 0; i < THREADS; i++) {
        workers[i].seed = pkvt_random(&seed);
        ck_assert_int_eq(pkv_plan_create(cache, NULL, &workers[i].plan), PKV_OK);
    }
    for (int i = 0; i < THREADS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    ck_assert_int_eq(pthread_create(&threads[THREADS], NULL, manage, &seed), 0);
    for (int i = 0; i <= THREADS; i++)
        pthread_join(threads[i], NULL);

    char text[256] = "";
    pkv_status status = pkv_cache_verify(cache, text, sizeof text);
    ck_assert_msg(status == PKV_OK, "verify: %s", text);
    ck_assert_uint_eq(atomic_load(&surprises), 0);
    pkv_stats stats = {.struct_size = sizeof stats};
    ck_assert_int_eq(pkv_cache_stats(cache, &stats), PKV_OK);
    ck_assert_uint_eq(stats.sequences, 0);
    ck_assert_uint_eq(stats.batches, 0);
    ck_assert_uint_eq(stats.tokens, 0);
    ck_assert_uint_eq(stats.pages_used, 0);
    ck_assert_uint_eq(stats.bytes_live, 0);
    uint64_t commits = 0, shortages = 0, hits = 0, checked = 0;
    for (int i = 0; i < THREADS; i++) {
        commits += workers[i].commits;
        shortages += workers[i].short_of_pages;
        hits += workers[i].hits;
        checked += workers[i].checked;
        pkv_plan_destroy(workers[i].plan);
    }
    printf("%llu commits, %llu shortages, %llu prefix hits, %llu tokens checked\n",
           (unsigned long long)commits, (unsigned long long)shortages, (unsigned long long)hits,
           (unsigned long long)checked);
    ck_assert_uint_gt(commits, 0);
    ck_assert_uint_gt(hits, 0);
    ck_assert_uint_gt(checked, 0);
    pkv_cache_destroy(cache);
}
END_TEST

Suite *pkvt_suite(void)
{
    const char *scale = getenv("PKV_STRESS");
    if (scale) n_steps *= strtoull(scale, NULL, 0);
    Suite *suite = suite_create("batch stress");
    TCase *tests = tcase_create("stress");
    tcase_set_timeout(tests, 600);
    tcase_add_test(tests, batches_survive_threads);
    suite_add_tcase(suite, tests);
    return suite;
}
