/* Attention under threads, meant for ThreadSanitizer: several hosts at once, each with its own
 * sequences, batch and plan on one cache; in each, threads that split every layer, two layers in
 * flight, more threads than work; beside them readers of a sequence at rest. Results must be those
 * of one thread. */
#include <check.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "attn_case.h"
#include "random.h"
#include "suite.h"

enum {
    HOSTS = 2,
    THREADS = 5,
    STEPS = 12,
    LAYERS = 4,
    HEADS = 2,
    Q_HEADS = 4,
    DIM = 64,
    BATCH = 3,
    NEW = 2,
    ROWS = BATCH * NEW
};

struct host {
    ac_case *c;
    uint32_t first_seq;
    pkv_plan *plan;
    pthread_barrier_t barrier;
    float kv[LAYERS][ROWS * HEADS * DIM], q[LAYERS][ROWS * Q_HEADS * DIM];
    float out[LAYERS][ROWS * Q_HEADS * DIM], expect[LAYERS][ROWS * Q_HEADS * DIM];
    int wrong;
};

struct thread {
    struct host *host;
    uint32_t ith;
    int wrong;
};

static pkv_rows rows(const float *x, uint32_t heads)
{
    return (pkv_rows){.data = x,
                      .dtype = PKV_DTYPE_F32,
                      .heads = heads,
                      .dim = DIM,
                      .token_stride = (ptrdiff_t)(heads * DIM * 4),
                      .head_stride = DIM * 4};
}

static pkv_rows_out rows_out(float *x)
{
    return (pkv_rows_out){.data = x,
                          .dtype = PKV_DTYPE_F32,
                          .heads = Q_HEADS,
                          .dim = DIM,
                          .token_stride = Q_HEADS * DIM * 4,
                          .head_stride = DIM * 4};
}

/* One thread's part of a step: all layers written, then attended two at a time. */
static void *layers(void *context)
{
    struct thread *t = context;
    struct host *h = t->host;
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        pkv_rows kv = rows(h->kv[layer], HEADS);
        t->wrong |= pkv_write(h->plan, layer, &kv, &kv, t->ith, THREADS) != PKV_OK;
    }
    pthread_barrier_wait(&h->barrier);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        pkv_rows q = rows(h->q[layer], Q_HEADS);
        pkv_rows_out out = rows_out(h->out[layer]);
        t->wrong |= pkv_attend(h->plan, layer, &q, &out, NULL, t->ith, THREADS) != PKV_OK;
        if (layer % 2) pthread_barrier_wait(&h->barrier);
    }
    return NULL;
}

static int step(struct host *h, uint64_t *random)
{
    pkv_batch batch;
    int wrong = pkv_batch_begin(h->c->cache, &batch) != PKV_OK;
    for (uint32_t i = 0; i < BATCH; i++)
        wrong |= pkv_batch_add(batch, h->c->seqs[h->first_seq + i].handle, NULL, NEW) != PKV_OK;
    wrong |= pkv_batch_reserve(batch) != PKV_OK;
    wrong |= pkv_plan_build(h->plan, batch) != PKV_OK;
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        for (size_t i = 0; i < sizeof h->kv[0] / sizeof(float); i++)
            h->kv[layer][i] = ac_value(pkvt_random(random), 'k', layer, 0, 0);
        for (size_t i = 0; i < sizeof h->q[0] / sizeof(float); i++)
            h->q[layer][i] = ac_value(pkvt_random(random), 'q', layer, 0, 0);
    }
    struct thread threads[THREADS];
    pthread_t ids[THREADS];
    for (uint32_t i = 0; i < THREADS; i++) {
        threads[i] = (struct thread){h, i, 0};
        wrong |= pthread_create(&ids[i], NULL, layers, &threads[i]) != 0;
    }
    for (uint32_t i = 0; i < THREADS; i++) {
        pthread_join(ids[i], NULL);
        wrong |= threads[i].wrong;
    }
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        pkv_rows q = rows(h->q[layer], Q_HEADS);
        pkv_rows_out out = rows_out(h->expect[layer]);
        wrong |= pkv_attend(h->plan, layer, &q, &out, NULL, 0, 1) != PKV_OK;
    }
    wrong |= memcmp(h->out, h->expect, sizeof h->out) != 0;
    wrong |= pkv_batch_commit(batch) != PKV_OK;
    return wrong;
}

static void *host_main(void *context)
{
    struct host *h = context;
    uint64_t random = h->first_seq + 1;
    for (int i = 0; i < STEPS; i++)
        h->wrong |= step(h, &random);
    return NULL;
}

static void *reader_main(void *context)
{
    ac_case *c = context;
    static float k[600 * HEADS * DIM];
    pkv_rows_out out = {.data = k,
                        .dtype = PKV_DTYPE_F32,
                        .heads = HEADS,
                        .dim = DIM,
                        .token_stride = HEADS * DIM * 4,
                        .head_stride = DIM * 4};
    for (int i = 0; i < 30; i++)
        if (pkv_read(c->seqs[50].handle, (uint32_t)i % LAYERS, 0, 600, &out, NULL) != PKV_OK)
            return c;
    return NULL;
}

START_TEST(hosts_beside_each_other)
{
    ac_shape shape = {.page_tokens = 16,
                      .n_layers = LAYERS,
                      .kv_heads = HEADS,
                      .q_heads = Q_HEADS,
                      .dim_k = DIM,
                      .dim_v = DIM,
                      .dtype = PKV_DTYPE_F16,
                      .dtype_k = _i ? PKV_DTYPE_K8 : 0,
                      .dtype_v = _i ? PKV_DTYPE_V4 : 0};
    ac_case *c = ac_open(&shape);
    uint64_t random = 5;
    struct host *all = calloc(HOSTS, sizeof *all);
    ac_create(c, 50);
    ac_fill(c, 50, 600, 512, &random);
    for (uint32_t i = 0; i < HOSTS; i++) {
        struct host *h = &all[i];
        h->c = c;
        h->first_seq = i * BATCH;
        /* Sequence 1 of each shares its first leaf with 0: cascades run as well. */
        ac_create(c, h->first_seq);
        ac_fill(c, h->first_seq, 1100 + i, 512, &random);
        ac_fork(c, h->first_seq, h->first_seq + 1);
        ac_create(c, h->first_seq + 2);
        ac_fill(c, h->first_seq + 2, 40, 512, &random);
        pkv_plan_options options = ac_options(c);
        options.concurrent_layers = 2;
        options.cascade = 2;
        ck_assert_int_eq(pkv_plan_create(c->cache, &options, &h->plan), PKV_OK);
        pthread_barrier_init(&h->barrier, NULL, THREADS);
    }
    pthread_t hosts[HOSTS], reader;
    for (uint32_t i = 0; i < HOSTS; i++)
        ck_assert_int_eq(pthread_create(&hosts[i], NULL, host_main, &all[i]), 0);
    ck_assert_int_eq(pthread_create(&reader, NULL, reader_main, c), 0);
    void *failed;
    pthread_join(reader, &failed);
    ck_assert_ptr_null(failed);
    for (uint32_t i = 0; i < HOSTS; i++) {
        pthread_join(hosts[i], NULL);
        ck_assert_int_eq(all[i].wrong, 0);
        pthread_barrier_destroy(&all[i].barrier);
        pkv_plan_destroy(all[i].plan);
    }
    free(all);
    ac_close(c);
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("attention_threads");
    TCase *tc = tcase_create("attention_threads");
    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, hosts_beside_each_other, 0, 2);
    suite_add_tcase(suite, tc);
    return suite;
}
