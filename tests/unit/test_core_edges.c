/* Edges of the core: what failing calls leave behind, memory that the OS keeps, clocks at their end,
 * reserves that fail late, pages that come back, and faults that verify must see. */
#include <string.h>

#include <pagedkv/pagedkv.h>

#include "cache/cache_internal.h"
#include "cache/prefix.h"
#include "faults.h"
#include "prefix/internal.h"
#include "suite.h"

#define P 16u
#define PAGE_BYTES 131072u /* 1 layer, 16 heads, 128, K and V, f16, 16 tokens */

static pkv_cache *cache;
static uint64_t clock_now;
static int32_t ids[64 * P];

static uint64_t test_clock(void *user)
{
    (void)user;
    return clock_now;
}

static void make_config(pkv_config *config, pkv_group_config *groups, uint32_t n_groups,
                        uint32_t pages)
{
    ck_assert_int_eq(pkv_config_init(config, sizeof *config), PKV_OK);
    for (uint32_t g = 0; g < n_groups; g++)
        groups[g] = (pkv_group_config){.n_layers = 1, .kv_heads = 16, .head_dim_k = 128};
    config->groups = groups;
    config->n_groups = n_groups;
    config->storage = PKV_STORAGE_NONE;
    config->page_tokens = P;
    config->memory_limit = (uint64_t)pages * PAGE_BYTES;
    config->prefix = 1;
    config->clock = test_clock;
    clock_now = 1000;
    for (uint32_t i = 0; i < 64 * P; i++)
        ids[i] = (int32_t)i;
}

static void open_cache(const pkv_config *config)
{
    ck_assert_int_eq(pkv_cache_create(config, &cache), PKV_OK);
}

static void close_cache(void)
{
    char text[256] = "";
    const pkv_status status = pkv_cache_verify(cache, text, sizeof text);
    ck_assert_msg(status == PKV_OK, "%s", text);
    pkv_cache_destroy(cache);
}

static pkv_seq create(void)
{
    pkv_seq seq;
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    return seq;
}

static pkv_status grow(pkv_seq seq, uint32_t n)
{
    pkv_batch batch;
    uint64_t length;
    ck_assert_int_eq(pkv_seq_length(seq, &length), PKV_OK);
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, seq, ids + length, n), PKV_OK);
    const pkv_status status = pkv_batch_reserve(batch);
    ck_assert_int_eq(status == PKV_OK ? pkv_batch_commit(batch) : pkv_batch_abort(batch), PKV_OK);
    return status;
}

static uint64_t matched(uint64_t n)
{
    pkv_match match = {.struct_size = sizeof match};
    ck_assert_int_eq(pkv_prefix_match(cache, NULL, ids, n, &match), PKV_OK);
    return match.n_tokens;
}

static uint64_t cached(uint32_t group)
{
    pkv_group_stats stats = {.struct_size = sizeof stats};
    ck_assert_int_eq(pkv_cache_group_stats(cache, group, &stats), PKV_OK);
    return stats.pages_cached;
}

/* ---- outputs -------------------------------------------------------------------------------- */

/* What every call below may write to, poisoned. */
static union {
    unsigned char bytes[4096];
    uint64_t u64[8];
    uint32_t u32[8];
    int32_t i32[8];
    float f32[8];
    pkv_page page[8];
    pkv_seq seq;
    pkv_batch batch;
    pkv_pin pin;
    void *pointer;
    pkv_cache *cache;
    pkv_magazine *magazine;
    pkv_plan *plan;
    pkv_copy copy[4];
    pkv_digest digest[4];
    pkv_event event[4];
} out[3];

static void poison(void)
{
    memset(out, 0xa5, sizeof out);
}

static void unchanged(pkv_status status, const char *call)
{
    ck_assert_msg(status != PKV_OK, "%s did not fail", call);
    for (int i = 0; i < 3; i++)
        for (size_t b = 0; b < sizeof out[i]; b++)
            ck_assert_msg(out[i].bytes[b] == 0xa5, "%s wrote output %d", call, i);
}

#define FAILS(call)                                                                                \
    do {                                                                                           \
        poison();                                                                                  \
        unchanged((call), #call);                                                                  \
    } while (0)

/* pkv_export_csr with a NULL indptr once overwrote *n_indices: a capacity that the caller still needs. */
START_TEST(failing_calls_write_nothing)
{
    pkv_config config;
    pkv_group_config groups[2];
    make_config(&config, groups, 2, 200);
    open_cache(&config);
    const pkv_seq seq = create(), stale = {cache, UINT64_C(0x900000001)};
    const pkv_batch gone = {cache, UINT64_C(0x900000001)};
    ck_assert_int_eq(grow(seq, 3 * P), PKV_OK);
    pkv_batch open, reserved;
    ck_assert_int_eq(pkv_batch_begin(cache, &open), PKV_OK);
    ck_assert_int_eq(pkv_batch_begin(cache, &reserved), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(reserved, seq, ids + 3 * P, 1), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(reserved), PKV_OK);
    int32_t scratch[64];
    uint32_t *n = out[0].u32;
    FAILS(pkv_export_csr(reserved, 0, NULL, NULL, n, scratch));
    FAILS(pkv_export_csr(reserved, 0, NULL, scratch, n, scratch));
    FAILS(pkv_export_csr(reserved, 0, scratch, scratch, n, NULL));
    FAILS(pkv_export_csr(reserved, 0, scratch, NULL, n, scratch));
    FAILS(pkv_export_csr(reserved, 2, out[1].i32, out[2].i32, n, scratch));
    FAILS(pkv_export_csr(open, 0, out[1].i32, out[2].i32, n, scratch));
    FAILS(pkv_export_csr(gone, 0, out[1].i32, out[2].i32, n, scratch));
    FAILS(pkv_export_slot_mapping(reserved, 0, (int64_t *)out[0].u64, 2));
    FAILS(pkv_export_slot_mapping(open, 0, (int64_t *)out[0].u64, 1));
    FAILS(pkv_batch_copies(open, out[0].copy, 4, out[1].u32));
    FAILS(pkv_batch_size(gone, out[0].u32, out[1].u64));
    FAILS(pkv_batch_size(open, out[0].u32, NULL));
    FAILS(pkv_batch_shortfall(open, out[0].u32, 3));
    FAILS(pkv_batch_begin(NULL, &out[0].batch));
    FAILS(pkv_seq_create(NULL, &out[0].seq));
    FAILS(pkv_seq_fork(stale, &out[0].seq));
    FAILS(pkv_seq_fork(seq, &out[0].seq)); /* in a batch */
    FAILS(pkv_seq_length(stale, out[0].u64));
    FAILS(pkv_seq_pages(seq, 0, 0, 90, out[0].page));
    FAILS(pkv_seq_pages(seq, 2, 0, 1, out[0].page));
    FAILS(pkv_seq_missing_tokens(seq, out[0].u64, NULL));
    FAILS(pkv_seq_missing_tokens(stale, out[0].u64, out[1].u64));
    FAILS(pkv_page_alloc(cache, 0, 100000, out[0].page));
    FAILS(pkv_page_refs(cache, 0, 12345, out[0].u32));
    FAILS(pkv_page_address(cache, 0, 12345, 0, &out[0].pointer));
    FAILS(pkv_magazine_create(cache, 9, 16, &out[0].magazine));
    FAILS(pkv_admit_probe(cache, 0, 0, out[0].u32, out[1].u32, 2));
    FAILS(pkv_admit_probe(cache, 10, 20, out[0].u32, out[1].u32, 2));
    FAILS(pkv_admit_probe(cache, 10, 0, out[0].u32, out[1].u32, 1));
    FAILS(pkv_admit_check_batch(gone, out[0].u32));
    FAILS(pkv_admit_check_batch(reserved, out[0].u32));
    FAILS(pkv_cache_events(NULL, out[0].event, 4, out[1].u32));
    FAILS(pkv_cache_layer_group(cache, 99, out[0].u32, out[1].u32));
    FAILS(pkv_prefix_drop(NULL, NULL, out[0].u64));
    FAILS(pkv_prefix_reclaim(cache, 5, 1, out[0].u64));
    FAILS(pkv_prefix_list(cache, NULL, NULL, out[1].i32, 1, out[2].u32));
    pkv_match match = {.struct_size = sizeof match}, nothing = match;
    ck_assert_int_eq(pkv_prefix_match(cache, NULL, ids, 2 * P, &match), PKV_OK);
    FAILS(pkv_prefix_pin(cache, &nothing, 1, 0, &out[0].pin));
    FAILS(pkv_prefix_pin(cache, &match, 1000, 0, &out[0].pin));
    FAILS(pkv_prefix_digests(cache, &match, out[0].digest, 1));
    FAILS(pkv_plan_create(cache, NULL, &out[0].plan)); /* ids only */
    FAILS(pkv_cache_create(NULL, &out[0].cache));
    config.page_tokens = 3;
    FAILS(pkv_cache_create(&config, &out[0].cache));
    /* The one exception that a header names: how much room it would take. */
    uint32_t room = 1;
    ck_assert_int_eq(pkv_export_csr(reserved, 0, scratch, scratch + 8, &room, scratch + 40),
                     PKV_ERANGE);
    ck_assert_uint_eq(room, 4);
    room = 0; /* asked for alone, too */
    ck_assert_int_eq(pkv_export_csr(reserved, 0, NULL, NULL, &room, NULL), PKV_ERANGE);
    ck_assert_uint_eq(room, 4);
    ck_assert_int_eq(pkv_batch_abort(reserved), PKV_OK);
    ck_assert_int_eq(pkv_batch_abort(open), PKV_OK);
    close_cache();
}
END_TEST

/* ---- memory --------------------------------------------------------------------------------- */

START_TEST(regions_are_no_larger_than_the_limit)
{
    pkv_config config;
    pkv_group_config groups[1];
    char text[256];
    make_config(&config, groups, 1, 64); /* 8 MiB */
    config.region_bytes = UINT64_C(8) << 20;
    ck_assert_int_eq(pkv_config_check(&config, text, sizeof text), PKV_OK);
    config.region_bytes = UINT64_C(10) << 20;
    ck_assert_int_eq(pkv_config_check(&config, text, sizeof text), PKV_EINVAL);
    ck_assert_ptr_nonnull(strstr(text, "region_bytes"));
    ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_EINVAL);
}
END_TEST

/* Memory that the OS does not take back stays charged: a limit that does not hold would be worse. */
START_TEST(memory_that_stays_is_charged)
{
    static struct pkvt_os os;
    pkv_config config;
    pkv_group_config groups[1];
    make_config(&config, groups, 1, 256);
    config.storage = PKV_STORAGE_HOST;
    config.region_bytes = UINT64_C(2) << 20;
    pkvt_os_init(&os);
    ck_assert_int_eq(pkvi_cache_create(&config, &os.hooks, &cache), PKV_OK);
    const pkv_seq seq = create();
    ck_assert_int_eq(grow(seq, 60 * P), PKV_OK);
    ck_assert_int_eq(pkv_seq_destroy(seq), PKV_OK);
    ck_assert_int_eq(pkv_prefix_drop(cache, NULL, NULL), PKV_OK);
    pkv_stats stats = {.struct_size = sizeof stats};
    ck_assert_int_eq(pkv_cache_stats(cache, &stats), PKV_OK);
    const uint64_t before = stats.region_bytes;
    ck_assert_uint_ge(before, 60 * PAGE_BYTES);
    atomic_store(&os.keep_memory, true);
    uint64_t given = 1;
    ck_assert_int_eq(pkv_cache_trim(cache, &given), PKV_OK);
    ck_assert_int_eq(pkv_cache_stats(cache, &stats), PKV_OK);
    ck_assert_uint_eq(stats.region_bytes, before);
    ck_assert_uint_eq(given, 0);
    atomic_store(&os.keep_memory, false);
    close_cache();
}
END_TEST

/* Both groups could have their pages, but not at the same time: found out before cached pages (or an
 * eviction's journal) are spent on the first. */
START_TEST(a_reserve_that_fails_later_spends_nothing)
{
    pkv_config config;
    pkv_group_config groups[2];
    make_config(&config, groups, 2, 64);
    open_cache(&config);
    const pkv_seq first = create(), second = create();
    ck_assert_int_eq(grow(first, 20 * P), PKV_OK);
    for (int i = 0; i < (int)(64 * P); i++)
        ids[i] += 100000;
    ck_assert_int_eq(pkv_seq_destroy(first), PKV_OK);
    const uint64_t before[2] = {cached(0), cached(1)};
    ck_assert_uint_eq(before[0], 20);
    ck_assert_int_eq(grow(second, 35 * P), PKV_ENOPAGES); /* 70 of about 62 */
    ck_assert_uint_eq(cached(0), before[0]);
    ck_assert_uint_eq(cached(1), before[1]);
    ck_assert_int_eq(grow(second, 30 * P), PKV_OK);
    close_cache();
}
END_TEST

/* ---- clocks --------------------------------------------------------------------------------- */

START_TEST(a_clock_at_its_end_ends_nothing_for_ever)
{
    pkv_config config;
    pkv_group_config groups[1];
    make_config(&config, groups, 1, 64);
    config.prefix_policy = "priority";
    open_cache(&config);
    const pkv_seq seq = create();
    ck_assert_int_eq(pkv_seq_set_retention(seq, 60, 500), PKV_OK);
    ck_assert_int_eq(grow(seq, 20 * P), PKV_OK);
    pkv_match match = {.struct_size = sizeof match};
    ck_assert_int_eq(pkv_prefix_match(cache, NULL, ids, 20 * P, &match), PKV_OK);
    pkv_pin pin;
    ck_assert_int_eq(pkv_prefix_pin(cache, &match, PKV_PIN_FIRM, 0, &pin), PKV_OK);
    ck_assert_int_eq(pkv_seq_destroy(seq), PKV_OK);
    clock_now = UINT64_MAX;
    uint64_t freed = 1;
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 0, 5, &freed), PKV_OK); /* looped */
    ck_assert_uint_eq(freed, 0);
    ck_assert_int_eq(pkv_prefix_unpin(cache, pin), PKV_OK); /* had ended */
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 0, 5, &freed), PKV_OK);
    ck_assert_uint_eq(freed, 5);
    clock_now = 0; /* back, and standing still */
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 0, 5, &freed), PKV_OK);
    ck_assert_uint_eq(freed, 5);
    close_cache();
}
END_TEST

/* ---- the path of a live sequence ------------------------------------------------------------- */

/* Two sequences compute the same; the one whose pages are published ends and they are reclaimed. What
 * the other goes on with can be reached only if its own pages take their place. */
START_TEST(windows_come_back_on_a_live_path)
{
    pkv_config config;
    pkv_group_config groups[2];
    make_config(&config, groups, 2, 200);
    groups[0].window = 6 * P;
    groups[1].window = 3 * P;
    open_cache(&config);
    const pkv_seq seqs[2] = {create(), create()};
    for (int step = 0; step < 10; step++) {
        pkv_batch batch;
        ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
        for (int i = 0; i < 2; i++)
            ck_assert_int_eq(pkv_batch_add(batch, seqs[i], ids + step * (int)P, P), PKV_OK);
        ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
        ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
    }
    ck_assert_uint_eq(matched(10 * P), 10 * P);
    ck_assert_int_eq(pkv_seq_destroy(seqs[0]), PKV_OK);
    for (uint32_t g = 0; g < 2; g++)
        ck_assert_int_eq(pkv_prefix_reclaim(cache, g, 1000, NULL), PKV_OK);
    ck_assert_int_eq(grow(seqs[1], P), PKV_OK);
    ck_assert_uint_eq(matched(11 * P), 11 * P);
    close_cache();
}
END_TEST

/* ---- verify --------------------------------------------------------------------------------- */

static void broken(const char *wanted)
{
    char text[256] = "";
    ck_assert_int_eq(pkv_cache_verify(cache, text, sizeof text), PKV_ECORRUPT);
    ck_assert_msg(strstr(text, wanted) != NULL, "%s, not %s", text, wanted);
}

START_TEST(verify_sees_holds_namespaces_and_quotas)
{
    pkv_config config;
    pkv_group_config groups[1];
    make_config(&config, groups, 1, 200);
    open_cache(&config);
    const pkv_namespace name = {"tenant", 6};
    const pkv_prefix_quota quota = {.struct_size = sizeof quota, .share = 10, .max = 20};
    ck_assert_int_eq(pkv_prefix_set_quota(cache, &name, &quota), PKV_OK);
    const pkv_seq seq = create(), other = create();
    ck_assert_int_eq(pkv_seq_set_namespace(other, &name), PKV_OK);
    ck_assert_int_eq(grow(seq, 4 * P), PKV_OK);
    ck_assert_int_eq(grow(other, 3 * P), PKV_OK);
    struct pkvi_prefix *px = pkvi_prefix_binding_of(cache)->prefix;
    struct pkvi_seq *inner;
    ck_assert_int_eq(pkvi_seq_get(seq, "test", &inner), PKV_OK);
    struct pkvi_prefix_seq *state = inner->state[PKVI_HOOK_PREFIX];
    struct pkvi_node *last = pkvi_node(&px->core, state->cursor);

    last->holds++; /* kept for nobody */
    broken("holds");
    last->holds--;
    const uint32_t cursor = state->cursor; /* a cursor that stands elsewhere: a wrong match */
    state->cursor = last->parent;
    broken("cursor");
    state->published--;
    broken("holds");
    state->published++;
    state->cursor = cursor;
    state->published--;
    broken("cursor");
    state->published++;

    struct pkvi_space *space = px->space[last->space], *tenant = state->space;
    space->sequences++;
    broken("sequences");
    space->sequences--;
    for (uint32_t i = 0; i < px->n_spaces; i++)
        if (px->space[i]->live && px->space[i] != space) tenant = px->space[i];
    space->pages--; /* one namespace's page in another's account */
    tenant->pages++;
    broken("pages");
    space->pages++;
    tenant->pages--;
    px->common->has_quota = true;
    broken("quota");
    px->common->has_quota = false;
    close_cache();
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("core edges");
    TCase *tests = tcase_create("core edges");
    tcase_set_timeout(tests, 60);
    tcase_add_test(tests, failing_calls_write_nothing);
    tcase_add_test(tests, regions_are_no_larger_than_the_limit);
    tcase_add_test(tests, memory_that_stays_is_charged);
    tcase_add_test(tests, a_reserve_that_fails_later_spends_nothing);
    tcase_add_test(tests, a_clock_at_its_end_ends_nothing_for_ever);
    tcase_add_test(tests, windows_come_back_on_a_live_path);
    tcase_add_test(tests, verify_sees_holds_namespaces_and_quotas);
    suite_add_tcase(suite, tests);
    return suite;
}
