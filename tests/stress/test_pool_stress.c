/* Many threads on two small pools under one limit: indices, ids, magazines, owned pages, ids that
 * change hands, double frees, trimming and limits at the same time. Run under TSan it shows races;
 * anywhere, at the end nothing may be in use and everything must verify. PKV_STRESS scales the
 * number of operations (default 1). */
#include <check.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "pools.h"
#include "random.h"
#include "suite.h"

#define MIB (UINT64_C(1) << 20)

enum { THREADS = 4, POOLS = 2, MAILBOXES = 16, HELD = 64, NODES = 64 };

/* A prefix index in miniature: some pages have a node as owner; idle ones wait to be reclaimed. */
struct index {
    pthread_mutex_t lock;
    uint32_t n_idle, idle[4096];
};

static struct pkvt_pools world;
static struct index indices[POOLS];
static _Atomic pkv_page mailbox[POOLS][MAILBOXES];
static uint64_t n_steps = 40000;
static _Atomic uint64_t surprises;

static void on_idle(void *context, struct pkvi_pool *pool, uint32_t n, const uint32_t *pages)
{
    struct index *index = context;
    pthread_mutex_lock(&index->lock);
    index->n_idle += pkvi_pool_release_owned(pool, n, pages, index->idle + index->n_idle);
    pthread_mutex_unlock(&index->lock);
}

/* Takes an idle page back into use ("a match"); false if there is none. */
static bool match(struct index *index, struct pkvi_pool *pool, uint64_t *seed, uint32_t *page)
{
    pthread_mutex_lock(&index->lock);
    bool found = index->n_idle > 0;
    if (found) {
        uint32_t at = pkvt_below(seed, index->n_idle);
        *page = index->idle[at];
        index->idle[at] = index->idle[--index->n_idle];
        pkvi_pool_ref(pool, 1, page);
    }
    pthread_mutex_unlock(&index->lock);
    return found;
}

static void reclaim(struct index *index, struct pkvi_pool *pool, uint32_t n)
{
    pthread_mutex_lock(&index->lock);
    n = pkvi_min_u32(n, index->n_idle);
    index->n_idle -= n;
    pkvi_pool_free_cached(pool, n, index->idle + index->n_idle);
    pthread_mutex_unlock(&index->lock);
}

struct worker {
    uint64_t seed;
    struct held {
        uint32_t n, page[HELD];
    } held[POOLS];
    pkv_magazine *magazine[POOLS];
};

static void expect(bool as_it_should)
{
    if (!as_it_should) atomic_fetch_add(&surprises, 1);
}

static void use_indices(struct worker *worker, uint32_t p)
{
    struct pkvi_pool *pool = &world.pool[p];
    struct held *held = &worker->held[p];
    uint32_t n = 1 + pkvt_below(&worker->seed, 8);
    switch (pkvt_below(&worker->seed, 5)) {
    case 0:
        if (held->n + n > HELD) break;
        if (pkvi_pool_alloc(pool, n, held->page + held->n) == PKV_OK)
            held->n += n;
        else
            reclaim(&indices[p], pool, 4);
        break;
    case 1: /* fork and end */
        pkvi_pool_ref(pool, held->n, held->page);
        pkvi_pool_unref(pool, held->n, held->page);
        break;
    case 2: /* publish */
        if (!held->n) break;
        n = pkvt_below(&worker->seed, held->n);
        pthread_mutex_lock(&indices[p].lock);
        if (!pkvi_pool_owner(pool, held->page[n]))
            pkvi_pool_set_owner(pool, held->page[n], &indices[p]);
        else if (pkvt_below(&worker->seed, 4) == 0)
            pkvi_pool_clear_owner(pool, held->page[n]);
        pthread_mutex_unlock(&indices[p].lock);
        break;
    case 3:
        if (held->n < HELD && match(&indices[p], pool, &worker->seed, &held->page[held->n]))
            held->n++;
        break;
    default:
        n = pkvi_min_u32(n, held->n);
        pkvi_pool_unref(pool, n, held->page + held->n - n);
        held->n -= n;
    }
}

/* Ids travel through mailboxes: whoever takes one out releases it, and then its sender's copy is
 * stale for everybody. */
static void use_ids(struct worker *worker, uint32_t p)
{
    struct pkvi_pool *pool = &world.pool[p];
    pkv_page id = PKV_PAGE_NONE, other;
    bool by_magazine = pkvt_below(&worker->seed, 2);
    pkv_status status = by_magazine ? pkv_magazine_alloc(worker->magazine[p], &id)
                                    : pkvi_pool_alloc_ids(pool, 1, &id);
    expect(status == PKV_OK || status == PKV_ENOPAGES);
    if (pkvt_below(&worker->seed, 3) == 0 && status == PKV_OK) {
        expect(pkvi_pool_ref_ids(pool, 1, &id) == PKV_OK);
        expect(pkvi_pool_unref_ids(pool, 1, &id) == PKV_OK);
    }
    other = atomic_exchange(&mailbox[p][pkvt_below(&worker->seed, MAILBOXES)], id);
    if (other == PKV_PAGE_NONE) return;
    pkv_page copy = other;
    bool free_by_magazine = pkvt_below(&worker->seed, 2);
    if (free_by_magazine)
        expect(pkv_magazine_free(worker->magazine[p], other) == PKV_OK);
    else
        expect(pkvi_pool_unref_ids(pool, 1, &other) == PKV_OK);
    expect(pkv_magazine_free(worker->magazine[p], copy) == PKV_ESTALE);
    expect(pkvi_pool_unref_ids(pool, 1, &copy) == PKV_ESTALE);
    uint32_t refs;
    expect(pkvi_pool_refs_id(pool, copy, &refs) == PKV_ESTALE);
}

static void use_memory(struct worker *worker)
{
    struct pkvi_pool_counts counts;
    pkv_event events[32];
    switch (pkvt_below(&worker->seed, 4)) {
    case 0:
        pkvi_regions_trim(&world.regions, 2 * MIB);
        break;
    case 1:
        pkvi_regions_set_limit(&world.regions,
                               (8 + pkvt_below(&worker->seed, 24)) * MIB); /* or PKV_EBUSY */
        break;
    case 2:
        pkvi_pool_counts(&world.pool[0], &counts);
        expect(counts.used + counts.cached + counts.free == counts.total);
        pkvi_pool_obtainable(&world.pool[1]);
        break;
    default:
        pkvi_events_take(&world.stats, events, 32);
    }
}

static void *work(void *context)
{
    struct worker *worker = context;
    for (uint64_t i = 0; i < n_steps; i++) {
        uint32_t what = pkvt_below(&worker->seed, 20), p = pkvt_below(&worker->seed, POOLS);
        if (what < 10)
            use_indices(worker, p);
        else if (what < 19)
            use_ids(worker, p);
        else
            use_memory(worker);
    }
    for (uint32_t p = 0; p < POOLS; p++)
        pkvi_pool_unref(&world.pool[p], worker->held[p].n, worker->held[p].page);
    return NULL;
}

START_TEST(pools_survive_threads)
{
    uint64_t seed = pkvt_seed("pools_survive_threads");
    static struct worker workers[THREADS];
    pthread_t threads[THREADS];
    struct pkvt_pools_config config = {.limit = 24 * MIB,
                                       .page_bytes = {64 << 10, 96 << 10},
                                       .event_capacity = 256,
                                       .storage = PKV_STORAGE_HOST,
                                       .debug = (uint32_t)_i * PKV_DEBUG_POISON};
    ck_assert_int_eq(pkvt_pools_create(&world, &config, false), PKV_OK);
    for (uint32_t p = 0; p < POOLS; p++) {
        pthread_mutex_init(&indices[p].lock, NULL);
        pkvi_pool_set_idle(&world.pool[p], on_idle, &indices[p]);
    }
    for (uint32_t t = 0; t < THREADS; t++) {
        workers[t] = (struct worker){.seed = pkvt_random(&seed)};
        for (uint32_t p = 0; p < POOLS; p++)
            ck_assert_int_eq(
                pkvi_magazine_create(&world.pool[p], 1 + 5 * t, &workers[t].magazine[p]), PKV_OK);
    }
    for (uint32_t t = 0; t < THREADS; t++)
        ck_assert_int_eq(pthread_create(&threads[t], NULL, work, &workers[t]), 0);
    for (uint32_t t = 0; t < THREADS; t++)
        pthread_join(threads[t], NULL);
    ck_assert_uint_eq(atomic_load(&surprises), 0);
    ck_assert_int_eq(pkvt_pools_verify(&world, NULL, 0), PKV_OK);
    for (uint32_t p = 0; p < POOLS; p++) {
        struct pkvi_pool_counts counts;
        for (int i = 0; i < MAILBOXES; i++) {
            pkv_page id = mailbox[p][i];
            if (id) ck_assert_int_eq(pkvi_pool_unref_ids(&world.pool[p], 1, &id), PKV_OK);
        }
        reclaim(&indices[p], &world.pool[p], UINT32_MAX);
        for (uint32_t t = 0; t < THREADS; t++)
            pkv_magazine_destroy(workers[t].magazine[p]);
        pkvi_pool_counts(&world.pool[p], &counts);
        ck_assert_uint_eq(counts.used, 0);
        ck_assert_uint_eq(counts.cached, 0);
        ck_assert_uint_eq(counts.shared, 0);
        ck_assert_uint_eq(counts.allocs, counts.frees);
        ck_assert_uint_gt(counts.allocs, 0);
    }
    ck_assert_int_eq(pkvt_pools_verify(&world, NULL, 0), PKV_OK);
    pkvi_regions_trim(&world.regions, UINT64_MAX);
    ck_assert_uint_eq(world.os.live_maps, 0);
    pkvt_pools_destroy(&world);
    ck_assert_uint_eq(world.allocator.live_blocks, 0);
}
END_TEST

Suite *pkvt_suite(void)
{
    const char *scale = getenv("PKV_STRESS");
    if (scale) n_steps *= strtoull(scale, NULL, 0);
    Suite *suite = suite_create("pool stress");
    TCase *tests = tcase_create("stress");
    tcase_set_timeout(tests, 600);
    tcase_add_loop_test(tests, pools_survive_threads, 0, 2);
    suite_add_tcase(suite, tests);
    return suite;
}
