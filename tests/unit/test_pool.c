/* Pools: allocation, references, owners, regions, limits, ids. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "pools.h"
#include "suite.h"

#define MIB (UINT64_C(1) << 20)
#define PAGE (128 * UINT64_C(1024)) /* 16 pages in a region of 2 MiB */

static struct pkvt_pools world;

static void start(uint64_t limit, const struct pkvt_pools_config *more)
{
    struct pkvt_pools_config config = more ? *more : (struct pkvt_pools_config){0};
    config.limit = limit;
    if (!config.page_bytes[0]) config.page_bytes[0] = PAGE;
    ck_assert_int_eq(pkvt_pools_create(&world, &config, false), PKV_OK);
}

static struct pkvi_pool *pool(uint32_t i)
{
    return &world.pool[i];
}

static void verify(void)
{
    ck_assert_int_eq(pkvt_pools_verify(&world, NULL, 0), PKV_OK);
}

static void stop(void)
{
    verify();
    pkvt_pools_destroy(&world);
    ck_assert_uint_eq(atomic_load(&world.budget.regions), 0);
    ck_assert_uint_eq(world.allocator.live_blocks, 0);
    ck_assert_uint_eq(world.allocator.wrong_frees, 0);
    ck_assert_uint_eq(world.os.live_maps, 0);
}

static void expect_counts(uint32_t i, uint64_t total, uint64_t used, uint64_t cached,
                          uint64_t shared)
{
    struct pkvi_pool_counts counts;
    pkvi_pool_counts(pool(i), &counts);
    ck_assert_uint_eq(counts.total, total);
    ck_assert_uint_eq(counts.used, used);
    ck_assert_uint_eq(counts.cached, cached);
    ck_assert_uint_eq(counts.free, total - used - cached);
    ck_assert_uint_eq(counts.shared, shared);
    verify();
}

/* ---- pages ---------------------------------------------------------------------------------- */

START_TEST(fresh_pages_ascend)
{
    start(64 * MIB, &(struct pkvt_pools_config){.storage = PKV_STORAGE_HOST});
    uint32_t pages[40];
    expect_counts(0, 0, 0, 0, 0); /* nothing is mapped before it is needed */
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 0, pages), PKV_OK);
    ck_assert_uint_eq(world.os.maps, 0);
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 40, pages), PKV_OK);
    for (uint32_t i = 0; i < 40; i++) {
        ck_assert_uint_eq(pages[i] / 16 * 16 + pages[i] % 16, pages[i]);
        if (pages[i] % 16) ck_assert_uint_eq(pages[i], pages[i - 1] + 1);
    }
    expect_counts(0, 48, 40, 0, 0);
    ck_assert_uint_eq(pkvi_pool_index_limit(pool(0)), 48);
    pkvi_pool_unref(pool(0), 40, pages);
    expect_counts(0, 48, 0, 0, 0);
    /* Empty regions start over: the same order again. */
    uint32_t again[16];
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 16, again), PKV_OK);
    for (uint32_t i = 1; i < 16; i++)
        ck_assert_uint_eq(again[i], again[i - 1] + 1);
    pkvi_pool_unref(pool(0), 16, again);
    stop();
}
END_TEST

START_TEST(addresses_are_disjoint_and_writable)
{
    start(64 * MIB, &(struct pkvt_pools_config){.storage = PKV_STORAGE_HOST});
    uint32_t pages[50];
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 50, pages), PKV_OK);
    for (uint32_t i = 0; i < 50; i++)
        memset(pkvi_pool_address(pool(0), pages[i]), (int)i + 1, PAGE);
    for (uint32_t i = 0; i < 50; i++) {
        const unsigned char *bytes = pkvi_pool_address(pool(0), pages[i]);
        ck_assert_uint_eq((uintptr_t)bytes % 4096, 0);
        ck_assert_int_eq(bytes[0], (int)i + 1);
        ck_assert_int_eq(bytes[PAGE - 1], (int)i + 1);
    }
    pkvi_pool_unref(pool(0), 50, pages);
    stop();
}
END_TEST

START_TEST(alloc_is_all_or_nothing)
{
    start(8 * MIB + (100 << 10), NULL); /* 64 pages beside what is set aside for metadata */
    uint32_t pages[100] = {0};
    pages[0] = 12345;
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 65, pages), PKV_ENOPAGES);
    ck_assert_uint_eq(pages[0], 12345);
    expect_counts(0, 0, 0, 0, 0); /* no region was taken in vain */
    ck_assert_uint_eq(pkvi_pool_missing(pool(0), 65), 1);
    ck_assert_uint_eq(pkvi_pool_missing(pool(0), 64), 0);
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 60, pages), PKV_OK);
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 5, pages + 60), PKV_ENOPAGES);
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), UINT32_MAX, pages + 60), PKV_ENOPAGES);
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 4, pages + 60), PKV_OK);
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 1, pages + 64), PKV_ENOPAGES);
    expect_counts(0, 64, 64, 0, 0);
    pkvi_pool_unref(pool(0), 64, pages);
    stop();
}
END_TEST

START_TEST(fullest_regions_fill_first)
{
    start(64 * MIB, NULL);
    uint32_t pages[64], page;
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 64, pages), PKV_OK);
    /* Regions with 15, 8 and 1 used pages, and a full one. */
    for (uint32_t i = 0; i < 64; i++) {
        uint32_t slot = pages[i] / 16, place = pages[i] % 16;
        if ((slot == 0 && place >= 15) || (slot == 1 && place >= 8) || (slot == 2 && place >= 1))
            pkvi_pool_unref(pool(0), 1, &pages[i]);
    }
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 1, &page), PKV_OK);
    ck_assert_uint_eq(page / 16, 0);
    for (int i = 0; i < 8; i++) {
        ck_assert_int_eq(pkvi_pool_alloc(pool(0), 1, &page), PKV_OK);
        ck_assert_uint_eq(page / 16, 1);
    }
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 1, &page), PKV_OK);
    ck_assert_uint_eq(page / 16, 2);
    stop(); /* destroy with pages in use gives everything back too */
}
END_TEST

START_TEST(references_count)
{
    start(64 * MIB, NULL);
    uint32_t page[2];
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 2, page), PKV_OK);
    ck_assert(!pkvi_pool_is_shared(pool(0), page[0]));
    pkvi_pool_ref(pool(0), 2, page);
    pkvi_pool_ref(pool(0), 1, page);
    ck_assert_uint_eq(pkvi_pool_refs(pool(0), page[0]), 3);
    ck_assert_uint_eq(pkvi_pool_refs(pool(0), page[1]), 2);
    ck_assert(pkvi_pool_is_shared(pool(0), page[1]));
    expect_counts(0, 16, 2, 0, 2);
    uint32_t twice[2] = {page[1], page[1]};
    pkvi_pool_unref(pool(0), 2, twice);
    expect_counts(0, 16, 1, 0, 1);
    pkvi_pool_unref(pool(0), 1, page);
    pkvi_pool_unref(pool(0), 1, page);
    expect_counts(0, 16, 1, 0, 0);
    pkvi_pool_unref(pool(0), 1, page);
    expect_counts(0, 16, 0, 0, 0);
    stop();
}
END_TEST

START_TEST(verify_counts_holders)
{
    start(64 * MIB, NULL);
    uint32_t page[2], holders[16] = {0};
    pkv_page id;
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 2, page), PKV_OK);
    ck_assert_int_eq(pkvi_pool_alloc_ids(pool(0), 1, &id), PKV_OK);
    pkvi_pool_ref(pool(0), 1, page);
    holders[page[0]] = 2;
    holders[page[1]] = 1;
    ck_assert_int_eq(pkvt_pools_verify(&world, holders, 16), PKV_OK);
    char text[200];
    holders[page[1]] = 0; /* a reference that nobody holds: a leak */
    ck_assert_int_eq(pkvi_pool_verify(pool(0), holders, 16, text, sizeof text), PKV_ECORRUPT);
    ck_assert_ptr_nonnull(strstr(text, "references"));
    holders[page[1]] = 2; /* a holder without reference: a use after free to come */
    ck_assert_int_eq(pkvi_pool_verify(pool(0), holders, 16, text, sizeof text), PKV_ECORRUPT);
    ck_assert_int_eq(pkvi_pool_verify(pool(0), holders, 15, text, sizeof text), PKV_EINVAL);
    stop();
}
END_TEST

/* Every counter and link that verify checks, broken on purpose. */
START_TEST(verify_finds_damage)
{
    start(64 * MIB, NULL);
    uint32_t pages[20];
    char text[200];
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 20, pages), PKV_OK);
    pkvi_pool_unref(pool(0), 3, pages + 2);
    struct pkvi_region *region = pkvi_segvec_at(&pool(0)->slots, pages[4] / 16, sizeof *region);
    _Atomic uint64_t *word = pkvi_segvec_at(&pool(0)->words, pages[4], sizeof *word);
    struct pkvi_page_aux *aux = pkvi_segvec_at(&pool(0)->aux, pages[4], sizeof *aux);
#define DAMAGE(change, repair)                                                                     \
    do {                                                                                           \
        verify();                                                                                  \
        change;                                                                                    \
        text[0] = 0;                                                                               \
        ck_assert_int_eq(pkvi_pool_verify(pool(0), NULL, 0, text, sizeof text), PKV_ECORRUPT);     \
        ck_assert_msg(text[0] != 0, "no text for %s", #change);                                    \
        repair;                                                                                    \
    } while (0)
    DAMAGE(pool(0)->out++, pool(0)->out--);
    DAMAGE(pool(0)->cached++, pool(0)->cached--);
    DAMAGE(pool(0)->shared++, pool(0)->shared--);
    DAMAGE(pool(0)->total++, pool(0)->total--);
    DAMAGE(pool(0)->n_whole++, pool(0)->n_whole--);
    DAMAGE(pool(0)->cold++, pool(0)->cold--);
    DAMAGE(region->free_count++, region->free_count--);
    DAMAGE(region->pages++, region->pages--);
    DAMAGE(region->class ++, region->class --);
    DAMAGE(atomic_fetch_add(word, 1), atomic_fetch_sub(word, 1)); /* free and referenced */
    DAMAGE(atomic_fetch_or(word, PKVI_WORD_OWNED), atomic_fetch_and(word, ~PKVI_WORD_OWNED));
    DAMAGE(aux->owner = text, aux->owner = NULL);
    uint32_t next = aux->next;
    DAMAGE(aux->next = pages[4] % 16 + 1, aux->next = next); /* a loop */
    DAMAGE(aux->next = 0, aux->next = next);                 /* lost pages or a short stack */
    stop();
}
END_TEST

/* ---- owners: what the prefix index does ----------------------------------------------------- */

struct index {
    uint32_t n, page[64];
};

static void on_idle(void *context, struct pkvi_pool *of, uint32_t n, const uint32_t *pages)
{
    struct index *index = context;
    ck_assert_uint_gt(n, 0);
    for (uint32_t i = 0; i < n; i++)
        ck_assert_uint_ge(pkvi_pool_refs(of, pages[i]), 1); /* not gone yet */
    index->n += pkvi_pool_release_owned(of, n, pages, index->page + index->n);
}

START_TEST(owned_pages_are_cached)
{
    start(64 * MIB, NULL);
    struct index index = {0};
    uint32_t page[3];
    pkvi_pool_set_idle(pool(0), on_idle, &index);
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 3, page), PKV_OK);
    pkv_page id = pkvi_pool_id(pool(0), page[0]);
    pkvi_pool_set_owner(pool(0), page[0], &page[0]);
    pkvi_pool_set_owner(pool(0), page[1], &page[1]);
    ck_assert(pkvi_pool_is_shared(pool(0), page[0])); /* the index would see a write */
    ck_assert_ptr_eq(pkvi_pool_owner(pool(0), page[1]), &page[1]);
    ck_assert_ptr_null(pkvi_pool_owner(pool(0), page[2]));
    pkvi_pool_unref(pool(0), 3, page);
    ck_assert_uint_eq(index.n, 2);
    ck_assert_uint_eq(index.page[0], page[0]);
    expect_counts(0, 16, 0, 2, 0);

    /* To the host a cached page is not in use. */
    uint32_t refs;
    ck_assert_int_eq(pkvi_pool_refs_id(pool(0), id, &refs), PKV_ESTALE);
    ck_assert_int_eq(pkvi_pool_ref_ids(pool(0), 1, &id), PKV_ESTALE);
    /* Matched again: the same life of the page. */
    pkvi_pool_ref(pool(0), 1, page);
    expect_counts(0, 16, 1, 1, 0);
    ck_assert_uint_eq(pkvi_pool_id(pool(0), page[0]), id);
    /* The owner leaves while the page is in use: it is free after the last reference. */
    pkvi_pool_clear_owner(pool(0), page[0]);
    pkvi_pool_unref(pool(0), 1, page);
    ck_assert_uint_eq(index.n, 2);
    expect_counts(0, 16, 0, 1, 0);
    pkvi_pool_free_cached(pool(0), 1, page + 1);
    expect_counts(0, 16, 0, 0, 0);
    ck_assert_ptr_null(pkvi_pool_owner(pool(0), page[1]));
    stop();
}
END_TEST

START_TEST(many_owned_pages_go_in_bunches)
{
    start(64 * MIB, NULL);
    static struct index index;
    static uint32_t cached[64];
    uint32_t pages[200];
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 64, pages), PKV_OK);
    index.n = 0;
    pkvi_pool_set_idle(pool(0), on_idle, &index);
    for (int i = 0; i < 64; i++)
        pkvi_pool_set_owner(pool(0), pages[i], &index);
    pkvi_pool_unref(pool(0), 64, pages);
    ck_assert_uint_eq(index.n, 64);
    memcpy(cached, index.page, sizeof cached);
    expect_counts(0, 64, 0, 64, 0);
    pkvi_pool_free_cached(pool(0), 64, cached);
    stop();
}
END_TEST

/* ---- ids ------------------------------------------------------------------------------------ */

START_TEST(stale_ids_are_errors)
{
    start(64 * MIB, &(struct pkvt_pools_config){.storage = PKV_STORAGE_HOST});
    pkv_page id[3], old;
    uint32_t refs = 77, page;
    void *address;
    ck_assert_int_eq(pkvi_pool_alloc_ids(pool(0), 3, id), PKV_OK);
    ck_assert_uint_eq(pkv_page_generation(id[0]), 1);
    ck_assert_int_eq(pkvi_pool_refs_id(pool(0), id[0], &refs), PKV_OK);
    ck_assert_uint_eq(refs, 1);
    ck_assert_int_eq(pkvi_pool_address_id(pool(0), id[1], 1, &address), PKV_OK);
    ck_assert_ptr_eq(address, (char *)pkvi_pool_address(pool(0), 1) + PAGE / 2);
    old = id[0];
    ck_assert_int_eq(pkvi_pool_unref_ids(pool(0), 1, &old), PKV_OK);
    static const pkv_page junk[] = {0,
                                    1,
                                    UINT64_MAX,
                                    UINT64_C(1) << 32 | 40,
                                    UINT64_C(1) << 32 | UINT32_MAX,
                                    UINT64_C(2) << 32 | 1};
    for (uint32_t i = 0; i < sizeof junk / sizeof *junk + 1; i++) {
        pkv_page bad = i ? junk[i - 1] : old;
        pkv_page list[3] = {id[1], id[2], bad};
        ck_assert_int_eq(pkvi_pool_unref_ids(pool(0), 3, list), PKV_ESTALE);
        ck_assert_int_eq(pkvi_pool_ref_ids(pool(0), 3, list), PKV_ESTALE);
        ck_assert_int_eq(pkvi_pool_refs_id(pool(0), bad, &refs), PKV_ESTALE);
        ck_assert_int_eq(pkvi_pool_lookup(pool(0), bad, &page), PKV_ESTALE);
        ck_assert_int_eq(pkvi_pool_address_id(pool(0), bad, 0, &address), PKV_ESTALE);
        expect_counts(0, 16, 2, 0, 0); /* none was touched */
    }
    /* The page's next life has another id. */
    ck_assert_int_eq(pkvi_pool_alloc_ids(pool(0), 1, id), PKV_OK);
    ck_assert_uint_eq(pkv_page_index(id[0]), pkv_page_index(old));
    ck_assert_uint_eq(pkv_page_generation(id[0]), pkv_page_generation(old) + 1);
    ck_assert_int_eq(pkvi_pool_unref_ids(pool(0), 1, &old), PKV_ESTALE);
    stop();
}
END_TEST

START_TEST(repeated_ids_are_counted)
{
    start(64 * MIB, NULL);
    pkv_page id;
    ck_assert_int_eq(pkvi_pool_alloc_ids(pool(0), 1, &id), PKV_OK);
    pkv_page list[3] = {id, id, id};
    ck_assert_int_eq(pkvi_pool_unref_ids(pool(0), 2, list), PKV_ESTALE);
    expect_counts(0, 16, 1, 0, 0);
    ck_assert_int_eq(pkvi_pool_ref_ids(pool(0), 2, list), PKV_OK);
    expect_counts(0, 16, 1, 0, 1);
    ck_assert_int_eq(pkvi_pool_unref_ids(pool(0), 3, list), PKV_OK);
    expect_counts(0, 16, 0, 0, 0);
    stop();
}
END_TEST

START_TEST(host_releases_only_its_own)
{
    start(64 * MIB, NULL);
    uint32_t page;
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 1, &page), PKV_OK); /* a table's */
    pkv_page id = pkvi_pool_id(pool(0), page);
    ck_assert_int_eq(pkvi_pool_unref_ids(pool(0), 1, &id), PKV_ESTALE);
    ck_assert_uint_eq(pkvi_pool_refs(pool(0), page), 1);
    ck_assert_int_eq(pkvi_pool_ref_ids(pool(0), 1, &id), PKV_OK);
    ck_assert_int_eq(pkvi_pool_unref_ids(pool(0), 1, &id), PKV_OK);
    ck_assert_int_eq(pkvi_pool_unref_ids(pool(0), 1, &id), PKV_ESTALE);
    /* The host may outlive the table. */
    ck_assert_int_eq(pkvi_pool_ref_ids(pool(0), 1, &id), PKV_OK);
    pkvi_pool_unref(pool(0), 1, &page);
    expect_counts(0, 16, 1, 0, 0);
    ck_assert_int_eq(pkvi_pool_unref_ids(pool(0), 1, &id), PKV_OK);
    expect_counts(0, 16, 0, 0, 0);
    stop();
}
END_TEST

START_TEST(generations_survive_regions)
{
    start(64 * MIB, &(struct pkvt_pools_config){.storage = PKV_STORAGE_HOST});
    pkv_page id, again;
    ck_assert_int_eq(pkvi_pool_alloc_ids(pool(0), 1, &id), PKV_OK);
    ck_assert_int_eq(pkvi_pool_unref_ids(pool(0), 1, &id), PKV_OK);
    ck_assert_uint_eq(pkvi_regions_trim(&world.regions, UINT64_MAX), 2 * MIB);
    expect_counts(0, 0, 0, 0, 0);
    ck_assert_int_eq(pkvi_pool_unref_ids(pool(0), 1, &id), PKV_ESTALE);
    ck_assert_int_eq(pkvi_pool_alloc_ids(pool(0), 1, &again), PKV_OK);
    ck_assert_uint_eq(pkv_page_index(id), pkv_page_index(again));
    ck_assert_uint_ne(id, again);
    ck_assert_int_eq(pkvi_pool_unref_ids(pool(0), 1, &id), PKV_ESTALE);
    stop();
}
END_TEST

/* Generations skip 0 when they wrap, since no id may look like "none". */
START_TEST(generation_wraps_past_zero)
{
    start(64 * MIB, NULL);
    pkv_page id;
    ck_assert_int_eq(pkvi_pool_alloc_ids(pool(0), 1, &id), PKV_OK);
    _Atomic uint64_t *word = pkvi_segvec_at(&pool(0)->words, pkv_page_index(id), sizeof *word);
    atomic_store(word, UINT64_C(0xffffffff) << 32 | 1);
    id = UINT64_C(0xffffffff) << 32 | pkv_page_index(id);
    ck_assert_int_eq(pkvi_pool_unref_ids(pool(0), 1, &id), PKV_OK);
    ck_assert_int_eq(pkvi_pool_alloc_ids(pool(0), 1, &id), PKV_OK);
    ck_assert_uint_eq(pkv_page_generation(id), 1);
    stop();
}
END_TEST

/* ---- regions, limits, storages -------------------------------------------------------------- */

START_TEST(regions_move_between_pools)
{
    start(8 * MIB + (100 << 10),
          &(struct pkvt_pools_config){.page_bytes = {PAGE, 3 * PAGE}, .storage = PKV_STORAGE_HOST});
    uint32_t pages[64], others[8];
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 64, pages), PKV_OK); /* all 4 regions */
    ck_assert_int_eq(pkvi_pool_alloc(pool(1), 1, others), PKV_ENOPAGES);
    uint32_t first = pages[0] / 16;
    for (int i = 0; i < 64; i++)
        if (pages[i] / 16 == first) pkvi_pool_unref(pool(0), 1, &pages[i]);
    ck_assert_uint_eq(pkvi_pool_missing(pool(1), 5), 0);
    ck_assert_uint_eq(pkvi_pool_missing(pool(1), 6), 1);
    uint64_t maps = world.os.maps;
    ck_assert_int_eq(pkvi_pool_alloc(pool(1), 5, others), PKV_OK);
    ck_assert_uint_eq(world.os.maps, maps); /* the very mapping moved */
    ck_assert_uint_eq(world.os.live_maps, 4);
    expect_counts(0, 48, 48, 0, 0);
    expect_counts(1, 5, 5, 0, 0);
    memset(pkvi_pool_address(pool(1), others[4]), 1, 3 * PAGE);
    stop();
}
END_TEST

START_TEST(limit_shrinks_and_grows)
{
    start(65 * MIB, &(struct pkvt_pools_config){.storage = PKV_STORAGE_HOST});
    static uint32_t pages[480];
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 480, pages), PKV_OK); /* 30 regions */
    ck_assert_int_eq(pkvi_regions_set_limit(&world.regions, 61 * MIB), PKV_OK);
    ck_assert_int_eq(pkvi_regions_set_limit(&world.regions, 59 * MIB), PKV_EBUSY);
    ck_assert_uint_eq(atomic_load(&world.budget.limit), 61 * MIB);
    pkvi_pool_unref(pool(0), 320, pages); /* 20 regions empty */
    ck_assert_uint_eq(world.os.live_maps, 30);
    ck_assert_int_eq(pkvi_regions_set_limit(&world.regions, 41 * MIB), PKV_OK);
    ck_assert_uint_eq(world.os.live_maps, 20); /* no more than needed */
    ck_assert_int_eq(pkvi_regions_set_limit(&world.regions, 16 * MIB), PKV_EBUSY);
    ck_assert_int_eq(pkvi_regions_set_limit(&world.regions, 21 * MIB), PKV_OK);
    ck_assert_uint_eq(world.os.live_maps, 10);
    /* A region does not fit, seven pages do. */
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 8, pages), PKV_ENOPAGES);
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 7, pages), PKV_OK);
    expect_counts(0, 167, 167, 0, 0);
    ck_assert_int_eq(pkvi_regions_set_limit(&world.regions, 90 * MIB), PKV_OK);
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 313, pages + 7), PKV_OK);
    expect_counts(0, 480, 480, 0, 0);
    stop();
}
END_TEST

START_TEST(max_pages_bounds_indices)
{
    start(64 * MIB, &(struct pkvt_pools_config){.max_pages = 20});
    uint32_t pages[21];
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 21, pages), PKV_ENOPAGES);
    ck_assert_uint_eq(pkvi_pool_missing(pool(0), 23), 3);
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 20, pages), PKV_OK);
    for (int i = 0; i < 20; i++)
        ck_assert_uint_lt(pages[i], 20);
    expect_counts(0, 20, 20, 0, 0);
    pkvi_pool_unref(pool(0), 20, pages);
    pkvi_regions_trim(&world.regions, UINT64_MAX);
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 20, pages), PKV_OK);
    stop();
}
END_TEST

/* max_pages cuts the last region short; whatever becomes free in whatever order, all pages can be
 * had, and no more. */
START_TEST(cut_region_counts)
{
    start(64 * MIB, &(struct pkvt_pools_config){.max_pages = 36});
    uint32_t pages[36];
    for (uint32_t first = 0; first < 36; first += 4) {
        ck_assert_int_eq(pkvi_pool_alloc(pool(0), 36, pages), PKV_OK);
        ck_assert_int_eq(pkvi_pool_alloc(pool(0), 1, pages), PKV_ENOPAGES);
        for (int i = 0; i < 36; i++)
            ck_assert_uint_lt(pages[i], 36);
        pkvi_pool_unref(pool(0), first, pages);
        pkvi_regions_trim(&world.regions, UINT64_MAX);
        ck_assert_uint_eq(pkvi_pool_obtainable(pool(0)), first);
        pkvi_pool_unref(pool(0), 36 - first, pages + first);
        ck_assert_uint_eq(pkvi_pool_obtainable(pool(0)), 36);
        pkvi_regions_trim(&world.regions, first % 8 * MIB);
    }
    stop();
}
END_TEST

START_TEST(external_pages_are_the_callers)
{
    static char buffer[10 * 4096 + 100];
    start(MIB, &(struct pkvt_pools_config){.page_bytes = {4096},
                                           .storage = PKV_STORAGE_EXTERNAL,
                                           .external_base = buffer,
                                           .external_bytes = sizeof buffer});
    uint32_t pages[11];
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 11, pages), PKV_ENOPAGES);
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 10, pages), PKV_OK);
    for (uint32_t i = 0; i < 10; i++) {
        ck_assert_uint_eq(pages[i], i);
        ck_assert_ptr_eq(pkvi_pool_address(pool(0), i), buffer + 4096 * i);
    }
    ck_assert_uint_eq(atomic_load(&world.budget.regions), 0);
    pkvi_pool_unref(pool(0), 10, pages);
    ck_assert_uint_eq(pkvi_regions_trim(&world.regions, UINT64_MAX), 0);
    expect_counts(0, 10, 0, 0, 0);
    stop();
    struct pkvt_pools_config bad = {.limit = MIB,
                                    .page_bytes = {4096},
                                    .storage = PKV_STORAGE_EXTERNAL,
                                    .external_base = buffer,
                                    .external_bytes = 4095};
    ck_assert_int_eq(pkvt_pools_create(&world, &bad, false), PKV_EINVAL);
    bad.storage = PKV_STORAGE_HOST; /* a page that no region can hold */
    bad.page_bytes[0] = 3 * MIB;
    ck_assert_int_eq(pkvt_pools_create(&world, &bad, false), PKV_EINVAL);
    ck_assert_uint_eq(world.allocator.live_blocks, 0);
}
END_TEST

START_TEST(ids_only_maps_nothing)
{
    start(UINT64_C(1) << 40, NULL);
    static uint32_t pages[100000];
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 100000, pages), PKV_OK);
    ck_assert_uint_lt(world.os.live_bytes, 8 * MIB); /* words and fields of pages, no pages */
    ck_assert_ptr_null(pkvi_pool_address(pool(0), pages[0]));
    void *address;
    ck_assert_int_eq(pkvi_pool_address_id(pool(0), pkvi_pool_id(pool(0), pages[0]), 0, &address),
                     PKV_ENOTSUP);
    stop();
}
END_TEST

START_TEST(events_tell_the_story)
{
    start(64 * MIB, &(struct pkvt_pools_config){.event_capacity = 64});
    pkv_page id;
    uint32_t page;
    ck_assert_int_eq(pkvi_pool_alloc_ids(pool(0), 1, &id), PKV_OK);
    ck_assert_int_eq(pkvi_pool_ref_ids(pool(0), 1, &id), PKV_OK);
    ck_assert_int_eq(pkvi_pool_unref_ids(pool(0), 2, (pkv_page[]){id, id}), PKV_OK);
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 1, &page), PKV_OK);
    pkvi_pool_ref(pool(0), 1, &page);
    pkvi_pool_unref(pool(0), 2, (uint32_t[]){page, page});
    pkvi_regions_trim(&world.regions, 1);
    static const int32_t kinds[] = {
        PKV_EVENT_REGION_MAP, PKV_EVENT_PAGE_ALLOC, PKV_EVENT_PAGE_SHARE, PKV_EVENT_PAGE_FREE,
        PKV_EVENT_PAGE_ALLOC, PKV_EVENT_PAGE_SHARE, PKV_EVENT_PAGE_FREE,  PKV_EVENT_REGION_UNMAP};
    pkv_event events[16];
    ck_assert_uint_eq(pkvi_events_take(&world.stats, events, 16), 8);
    for (int i = 0; i < 8; i++) {
        ck_assert_int_eq(events[i].kind, kinds[i]);
        if (i >= 1 && i <= 3) ck_assert_uint_eq(events[i].page, id);
        if (i >= 4 && i <= 6) ck_assert_uint_eq(events[i].page, id + (UINT64_C(1) << 32));
    }
    stop();
}
END_TEST

START_TEST(poison_and_checksums)
{
    start(64 * MIB, &(struct pkvt_pools_config){.storage = PKV_STORAGE_HOST,
                                                .debug = PKV_DEBUG_POISON | PKV_DEBUG_CHECKSUM});
    uint32_t pages[4];
    char text[200];
    ck_assert_int_eq(pkvi_pool_alloc(pool(0), 4, pages), PKV_OK);
    unsigned char *bytes = pkvi_pool_address(pool(0), pages[1]);
    memset(bytes, 5, PAGE);
    pkvi_pool_seal(pool(0), 2, pages);
    verify();
    bytes[PAGE - 1] ^= 1;
    ck_assert_int_eq(pkvi_pool_verify(pool(0), NULL, 0, text, sizeof text), PKV_ECORRUPT);
    ck_assert_ptr_nonnull(strstr(text, "sealed page"));
    pkvi_pool_unseal(pool(0), pages[1]);
    verify();
    pkvi_pool_unref(pool(0), 1, &pages[1]);
    for (size_t i = 0; i < PAGE; i++)
        if (bytes[i] != 0xff) ck_abort_msg("byte %zu is not poisoned", i);
    verify();
    bytes[PAGE / 2] = 0; /* a write after free */
    ck_assert_int_eq(pkvi_pool_verify(pool(0), NULL, 0, text, sizeof text), PKV_ECORRUPT);
    ck_assert_ptr_nonnull(strstr(text, "after it was freed"));
    bytes[PAGE / 2] = 0xff;
    stop();
}
END_TEST

/* Everything that asks for memory, once: pages over several regions, a magazine, a change of pools.
 */
static pkv_status scenario(void)
{
    static uint32_t pages[200], others[30];
    struct pkvt_pools_config config = {.limit = 32 * MIB,
                                       .page_bytes = {PAGE, 2 * PAGE},
                                       .event_capacity = 16,
                                       .storage = PKV_STORAGE_HOST,
                                       .debug = PKV_DEBUG_CHECKSUM};
    pkv_magazine *magazine;
    pkv_page id;
    pkv_status status = pkvt_pools_create(&world, &config, true);
    if (status != PKV_OK) return status;
    status = pkvi_magazine_create(pool(1), 4, &magazine);
    if (status == PKV_OK) status = pkv_magazine_alloc(magazine, &id);
    if (status == PKV_OK) status = pkv_magazine_free(magazine, id);
    for (uint32_t i = 0; i < 200 && status == PKV_OK; i += 20) {
        status = pkvi_pool_alloc(pool(0), 20, pages + i);
        if (status != PKV_OK) pkvi_pool_unref(pool(0), i, pages);
    }
    if (status == PKV_OK) {
        pkvi_pool_unref(pool(0), 100, pages + 100);
        status = pkvi_pool_alloc(pool(1), 30, others);
        if (status == PKV_OK) pkvi_pool_unref(pool(1), 30, others);
        pkvi_pool_unref(pool(0), 100, pages);
    }
    verify();
    for (uint32_t i = 0; i < 2; i++) {
        struct pkvi_pool_counts counts;
        pkvi_pool_counts(pool(i), &counts);
        ck_assert_uint_eq(counts.used, 0);
    }
    pkvt_pools_destroy(&world);
    return status;
}

START_TEST(every_refusal_is_survived)
{
    for (uint64_t refuse = 0, calls = 0; refuse <= calls; refuse++) {
        pkvt_allocator_init(&world.allocator);
        pkvt_os_init(&world.os);
        atomic_store(_i == 0   ? &world.allocator.fail_at
                     : _i == 1 ? &world.os.fail_map
                               : &world.os.fail_other,
                     refuse);
        pkv_status status = scenario();
        if (!refuse) {
            calls = _i == 0 ? world.allocator.calls : _i == 1 ? world.os.maps : world.os.others;
            ck_assert_uint_gt(calls, 5);
        }
        /* Refused advice is not even noticed; a refused region may come from the other pool. */
        if (!refuse || _i == 2) ck_assert_int_eq(status, PKV_OK);
        if (refuse && _i == 0) ck_assert_int_eq(status, PKV_ENOMEM);
        ck_assert(status == PKV_OK || status == PKV_ENOMEM);
        ck_assert_uint_eq(world.allocator.live_blocks, 0);
        ck_assert_uint_eq(world.allocator.wrong_frees, 0);
        ck_assert_uint_eq(world.os.live_maps, 0);
    }
}
END_TEST

START_TEST(region_size_fits_the_pages)
{
    static const uint64_t llama[] = {2 * MIB}, small[] = {368640}, mixed[] = {2 * MIB, 1441792};
    ck_assert_uint_eq(pkvi_regions_choose(llama, 1, 64 * MIB), 2 * MIB);
    ck_assert_uint_eq(pkvi_regions_choose(llama, 1, MIB), 0);
    ck_assert_uint_eq(pkvi_regions_choose(llama, 1, UINT64_C(40) << 30), 8 * MIB);
    for (uint64_t limit = 64 * MIB; limit < UINT64_C(1) << 42; limit *= 3) {
        size_t region = pkvi_regions_choose(small, 1, limit);
        ck_assert_uint_eq(region % (2 * MIB), 0);
        ck_assert_uint_le(region % small[0] * 32, region);
        region = pkvi_regions_choose(mixed, 2, limit);
        ck_assert_uint_ge(region, 2 * MIB);
        ck_assert_uint_le(region, limit);
    }
    static const uint64_t giant[] = {100 * MIB + 1};
    ck_assert_uint_ge(pkvi_regions_choose(giant, 1, 1024 * MIB), 102 * MIB);
    ck_assert_uint_eq(pkvi_regions_choose(giant, 1, 100 * MIB), 0);
    static const uint64_t absurd[] = {UINT64_MAX};
    ck_assert_uint_eq(pkvi_regions_choose(absurd, 1, UINT64_MAX), 0);
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("pool");
    TCase *tests = tcase_create("pool");
    tcase_set_timeout(tests, 60);
    tcase_add_test(tests, fresh_pages_ascend);
    tcase_add_test(tests, addresses_are_disjoint_and_writable);
    tcase_add_test(tests, alloc_is_all_or_nothing);
    tcase_add_test(tests, fullest_regions_fill_first);
    tcase_add_test(tests, references_count);
    tcase_add_test(tests, verify_counts_holders);
    tcase_add_test(tests, verify_finds_damage);
    tcase_add_test(tests, owned_pages_are_cached);
    tcase_add_test(tests, many_owned_pages_go_in_bunches);
    tcase_add_test(tests, stale_ids_are_errors);
    tcase_add_test(tests, repeated_ids_are_counted);
    tcase_add_test(tests, host_releases_only_its_own);
    tcase_add_test(tests, generations_survive_regions);
    tcase_add_test(tests, generation_wraps_past_zero);
    tcase_add_test(tests, regions_move_between_pools);
    tcase_add_test(tests, limit_shrinks_and_grows);
    tcase_add_test(tests, max_pages_bounds_indices);
    tcase_add_test(tests, cut_region_counts);
    tcase_add_test(tests, external_pages_are_the_callers);
    tcase_add_test(tests, ids_only_maps_nothing);
    tcase_add_test(tests, events_tell_the_story);
    tcase_add_test(tests, poison_and_checksums);
    tcase_add_loop_test(tests, every_refusal_is_survived, 0, 3);
    tcase_add_test(tests, region_size_fits_the_pages);
    suite_add_tcase(suite, tests);
    return suite;
}
