/* Eviction on many threads: each steps its own sequences, forks them and truncates them, while all
 * share pages, pools and default policies; some steps are fed mass by several threads at once. Run
 * it under TSan. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include <pagedkv/pagedkv.h>

#include "random.h"

#define THREADS 4
#define STEPS 3000u
#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "test_evict_threads.c:%d: %s\n", __LINE__, #condition);                \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static pkv_cache *cache;
static pkv_seq root;
static uint64_t seed;

struct feeder {
    pkv_seq seq;
    uint32_t n;
};

static void *feed(void *context)
{
    const struct feeder *f = context;
    float mass[64];
    for (uint32_t i = 0; i < f->n; i++)
        mass[i] = (float)(i % 5 + 1);
    for (int i = 0; i < 20; i++)
        CHECK(pkv_seq_feed_mass(f->seq, 0, mass, f->n) == PKV_OK);
    return NULL;
}

static void step(pkv_seq seq, uint64_t *rng)
{
    pkv_batch batch;
    int32_t tokens[24];
    const uint32_t n = 1 + pkvt_below(rng, 24);
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = (int32_t)pkvt_below(rng, 2);
    CHECK(pkv_batch_begin(cache, &batch) == PKV_OK);
    CHECK(pkv_batch_add(batch, seq, tokens, n) == PKV_OK);
    CHECK(pkv_batch_reserve(batch) == PKV_OK);
    pkv_seq_info info = {.struct_size = sizeof info};
    CHECK(pkv_seq_get_info(seq, 0, &info) == PKV_OK);
    struct feeder f = {seq, info.resident_pages};
    CHECK(f.n <= 64);
    if (pkvt_below(rng, 8) == 0) {
        pthread_t other;
        CHECK(pthread_create(&other, NULL, feed, &f) == 0);
        feed(&f);
        pthread_join(other, NULL);
    } else {
        feed(&f);
    }
    CHECK(pkv_batch_commit(batch) == PKV_OK);
}

static void *work(void *context)
{
    static const char *const names[] = {"sink", "mass", "random", "lru-mass", "window", "obs"};
    const uint64_t id = (uint64_t)(uintptr_t)context;
    uint64_t rng = seed + id;
    pkv_seq seq;
    CHECK(pkv_seq_create(cache, &seq) == PKV_OK);
    for (uint32_t s = 0; s < STEPS; s++) {
        step(seq, &rng);
        uint64_t length;
        CHECK(pkv_seq_length(seq, &length) == PKV_OK);
        const uint32_t dice = pkvt_below(&rng, 12);
        if (dice == 0) {
            pkv_seq child;
            CHECK(pkv_seq_fork(seq, &child) == PKV_OK);
            CHECK(pkv_seq_destroy(seq) == PKV_OK);
            seq = child;
        } else if (dice == 1) {
            const pkv_status status = pkv_seq_truncate(seq, length - length / 8);
            CHECK(status == PKV_OK || status == PKV_EDROPPED);
        } else if (dice == 2) {
            pkv_evict_config config;
            CHECK(pkv_evict_config_named(&config, sizeof config, names[pkvt_below(&rng, 6)],
                                         16 * (2 + pkvt_below(&rng, 20))) == PKV_OK);
            config.journal_steps = pkvt_below(&rng, 4);
            if (pkvt_below(&rng, 2))
                CHECK(pkv_cache_set_evict(cache, PKV_EVICT_FULL_GROUPS, &config) == PKV_OK);
            else
                CHECK(pkv_seq_set_evict(seq, 0, &config) == PKV_OK);
        } else if (dice == 3 || length > 3000) {
            CHECK(pkv_seq_destroy(seq) == PKV_OK);
            CHECK(pkv_seq_create(cache, &seq) == PKV_OK);
        }
    }
    CHECK(pkv_seq_destroy(seq) == PKV_OK);
    return NULL;
}

int main(void)
{
    pkv_config config;
    seed = pkvt_seed("test_evict_threads");
    CHECK(pkv_config_init(&config, sizeof config) == PKV_OK);
    pkv_group_config groups[2] = {{.n_layers = 1, .kv_heads = 1, .head_dim_k = 8},
                                  {.n_layers = 1, .kv_heads = 1, .head_dim_k = 8, .window = 40}};
    config.groups = groups;
    config.n_groups = 2;
    config.storage = PKV_STORAGE_NONE;
    config.memory_limit = 64u << 20;
    CHECK(pkv_cache_create(&config, &cache) == PKV_OK);
    pkv_evict_config evict;
    CHECK(pkv_evict_config_named(&evict, sizeof evict, "mass", 10 * 16) == PKV_OK);
    CHECK(pkv_cache_set_evict(cache, PKV_EVICT_FULL_GROUPS, &evict) == PKV_OK);
    CHECK(pkv_seq_create(cache, &root) == PKV_OK);
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, work, (void *)i) == 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    char text[256];
    if (pkv_cache_verify(cache, text, sizeof text) != PKV_OK) {
        fprintf(stderr, "verify: %s\n", text);
        return 1;
    }
    pkv_cache_destroy(cache);
    return 0;
}
