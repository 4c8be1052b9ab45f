/* Pools beside a plain model: every page's references of the library and of the host, owner and id
 * are kept in arrays, and after each operation the library's answers must agree; all is verified
 * with the exact number of holders now and then. PKV_OPERATIONS sets the number of operations. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "pools.h"
#include "random.h"
#include "suite.h"

#define MIB (UINT64_C(1) << 20)

enum { PAGES = 4096, MAGAZINES = 2, RECENT = 256 };

struct model {
    uint32_t held[PAGES]; /* references of the library */
    uint32_t host[PAGES]; /* of the host */
    bool alive[PAGES], owned[PAGES], cached[PAGES];
    pkv_page id[PAGES]; /* of the page's current life; 0 = never used */
    uint64_t used, cached_pages;
};

static struct pkvt_pools world;
static struct model model;
static struct pkvi_pool *pool;
static pkv_magazine *magazines[MAGAZINES];
static pkv_page stale[RECENT]; /* ids whose page was freed */
static uint32_t n_stale;
static uint64_t seed;

static uint32_t below(uint32_t n)
{
    return pkvt_below(&seed, n);
}

static void gone(uint32_t page)
{
    stale[n_stale++ % RECENT] = model.id[page];
    model.alive[page] = false;
    model.used--;
}

static void taken(uint32_t page, pkv_page id, uint32_t held, uint32_t host)
{
    ck_assert_uint_lt(page, PAGES);
    ck_assert(!model.held[page] && !model.host[page] && !model.cached[page]);
    ck_assert_uint_eq(pkv_page_index(id), page);
    ck_assert(pkv_page_generation(id) > pkv_page_generation(model.id[page]));
    model.id[page] = id;
    model.alive[page] = true;
    model.held[page] = held;
    model.host[page] = host;
    model.used++;
}

/* A random page of a kind, or PAGES. */
static uint32_t find(bool (*is)(uint32_t page))
{
    uint32_t from = below(PAGES);
    for (uint32_t i = 0; i < PAGES; i++)
        if (is((from + i) % PAGES)) return (from + i) % PAGES;
    return PAGES;
}

static bool is_held(uint32_t page)
{
    return model.held[page] != 0;
}

static bool is_hosted(uint32_t page)
{
    return model.host[page] != 0;
}

static bool is_cached(uint32_t page)
{
    return model.cached[page];
}

static bool is_publishable(uint32_t page)
{
    return model.held[page] && !model.host[page] && !model.owned[page];
}

static void on_idle(void *context, struct pkvi_pool *of, uint32_t n, const uint32_t *pages)
{
    (void)context;
    uint32_t idle[64];
    ck_assert_uint_le(n, 64);
    ck_assert_uint_eq(pkvi_pool_release_owned(of, n, pages, idle), n);
    for (uint32_t i = 0; i < n; i++) {
        ck_assert_uint_eq(idle[i], pages[i]);
        model.cached[pages[i]] = true;
        model.cached_pages++;
        model.used--;
    }
}

static void forget_if_free(uint32_t page)
{
    if (!model.held[page] && !model.host[page] && !model.owned[page]) gone(page);
}

static void library_step(void)
{
    uint32_t pages[64], n = 1 + below(12), page;
    switch (below(7)) {
    case 0:
    case 1:
        if (pkvi_pool_alloc(pool, n, pages) != PKV_OK) break;
        for (uint32_t i = 0; i < n; i++)
            taken(pages[i], pkvi_pool_id(pool, pages[i]), 1, 0);
        break;
    case 2:
        page = find(is_held);
        if (page == PAGES) break;
        pkvi_pool_ref(pool, 1, &page);
        model.held[page]++;
        break;
    case 3: /* match a cached page */
        page = find(is_cached);
        if (page == PAGES) break;
        pkvi_pool_ref(pool, 1, &page);
        model.cached[page] = false;
        model.cached_pages--;
        model.held[page] = 1;
        model.used++;
        break;
    case 4:
        page = find(is_publishable);
        if (page == PAGES) break;
        pkvi_pool_set_owner(pool, page, &model.owned[page]);
        model.owned[page] = true;
        break;
    case 5:
        page = find(is_cached);
        if (page == PAGES) break;
        pkvi_pool_free_cached(pool, 1, &page);
        model.cached[page] = model.owned[page] = false;
        model.cached_pages--;
        model.used++; /* gone() takes it off again */
        gone(page);
        break;
    default:
        for (uint32_t i = 0; i < 2 * n; i++) {
            page = find(is_held);
            if (page == PAGES) break;
            model.held[page]--;
            pkvi_pool_unref(pool, 1, &page);
            if (!model.cached[page]) forget_if_free(page);
        }
    }
}

static void host_step(void)
{
    pkv_page ids[12];
    uint32_t n = 1 + below(6), page = find(is_hosted), which = below(MAGAZINES);
    switch (below(6)) {
    case 0:
        if (pkvi_pool_alloc_ids(pool, n, ids) != PKV_OK) break;
        for (uint32_t i = 0; i < n; i++)
            taken(pkv_page_index(ids[i]), ids[i], 0, 1);
        break;
    case 1:
        if (pkv_magazine_alloc(magazines[which], ids) == PKV_OK)
            taken(pkv_page_index(ids[0]), ids[0], 0, 1);
        break;
    case 2: /* also pages that only a table holds */
        if (below(2)) page = find(is_held);
        if (page == PAGES) break;
        ids[0] = ids[1] = model.id[page];
        ck_assert_int_eq(pkvi_pool_ref_ids(pool, 2, ids), PKV_OK);
        model.host[page] += 2;
        break;
    case 3: /* more than it has, hidden behind good ones; nothing may happen */
        if (page == PAGES || model.host[page] > 8) break;
        for (uint32_t i = 0; i <= model.host[page]; i++)
            ids[i] = model.id[page];
        ck_assert_int_eq(pkvi_pool_unref_ids(pool, model.host[page] + 1, ids), PKV_ESTALE);
        break;
    default:
        if (page == PAGES) break;
        ids[0] = model.id[page];
        model.host[page]--;
        ck_assert_int_eq(below(2) ? pkv_magazine_free(magazines[which], ids[0])
                                  : pkvi_pool_unref_ids(pool, 1, ids),
                         PKV_OK);
        if (!model.cached[page]) forget_if_free(page);
    }
    if (!n_stale) return;
    pkv_page old = stale[below(n_stale < RECENT ? n_stale : RECENT)];
    ck_assert_int_eq(below(2) ? pkv_magazine_free(magazines[which], old)
                              : pkvi_pool_unref_ids(pool, 1, &old),
                     PKV_ESTALE);
}

static void memory_step(void)
{
    if (below(2)) {
        pkvi_regions_trim(&world.regions, (1 + below(4)) * 2 * MIB);
        return;
    }
    uint64_t limit = (4 + below(12)) * MIB;
    if (pkvi_regions_set_limit(&world.regions, limit) == PKV_EBUSY)
        ck_assert_uint_gt(pkvi_budget_used(&world.budget), limit);
}

/* Lets go of most pages, so that regions become empty and can be given back. */
static void drain(void)
{
    uint32_t keep = 1 + below(50);
    for (uint32_t page = 0; page < PAGES; page++) {
        if (below(keep) == 1) continue;
        while (model.held[page] && model.held[page]--)
            pkvi_pool_unref(pool, 1, &page);
        while (model.host[page] && model.host[page]--)
            ck_assert_int_eq(pkvi_pool_unref_ids(pool, 1, &model.id[page]), PKV_OK);
        if (model.cached[page]) {
            pkvi_pool_free_cached(pool, 1, &page);
            model.cached[page] = model.owned[page] = false;
            model.cached_pages--;
            model.used++; /* gone() takes it off again */
            gone(page);
        } else if (model.alive[page] && pkvi_pool_refs(pool, page) == 0) {
            gone(page);
        }
    }
}

static void compare(void)
{
    struct pkvi_pool_counts counts;
    uint64_t shared = 0;
    for (uint32_t i = 0; i < PAGES; i++)
        shared += model.held[i] + model.host[i] > 1;
    pkvi_pool_counts(pool, &counts);
    ck_assert_uint_eq(counts.used, model.used);
    ck_assert_uint_eq(counts.cached, model.cached_pages);
    ck_assert_uint_eq(counts.shared, shared);
    ck_assert_uint_eq(counts.total, counts.used + counts.cached + counts.free);
    ck_assert_int_eq(pkvt_pools_verify(&world, model.held, PAGES), PKV_OK);
}

START_TEST(pool_agrees_with_model)
{
    const char *operations = getenv("PKV_OPERATIONS");
    uint64_t n = operations ? strtoull(operations, NULL, 0) : 100000;
    struct pkvt_pools_config config = {.limit = 16 * MIB,
                                       .page_bytes = {20 << 10},
                                       .max_pages = _i ? 333 : 0,
                                       .storage = PKV_STORAGE_NONE};
    seed = pkvt_seed("pool_agrees_with_model");
    memset(&model, 0, sizeof model);
    ck_assert_int_eq(pkvt_pools_create(&world, &config, false), PKV_OK);
    pool = &world.pool[0];
    pkvi_pool_set_idle(pool, on_idle, NULL);
    for (uint32_t i = 0; i < MAGAZINES; i++)
        ck_assert_int_eq(pkvi_magazine_create(pool, 3 + 20 * i, &magazines[i]), PKV_OK);
    for (uint64_t i = 0; i < n; i++) {
        uint32_t what = below(100);
        if (what < 55)
            library_step();
        else if (what < 99)
            host_step();
        else
            memory_step();
        if (i % 100 == 0) compare();
        if (below(2000) == 0) drain();
    }
    compare();
    pkvt_pools_destroy(&world);
    ck_assert_uint_eq(world.allocator.live_blocks, 0);
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("pool model");
    TCase *tests = tcase_create("property");
    tcase_set_timeout(tests, 3600);
    tcase_add_loop_test(tests, pool_agrees_with_model, 0, 2);
    suite_add_tcase(suite, tests);
    return suite;
}
