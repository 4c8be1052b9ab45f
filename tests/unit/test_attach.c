/* pkv_seq_attach: all or nothing, and only where the pages mean what the sequence takes them for.
 */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include <pagedkv/pagedkv.h>
#include "suite.h"

enum { PAGE = 16, LENGTH = 96 };

/* Refuses the allocations after the next `left`. */
static uint64_t left;

static void *counting_alloc(void *user, size_t size, size_t alignment)
{
    (void)user;
    if (left == 0) return NULL;
    left--;
    return aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}

static void counting_free(void *user, void *ptr, size_t size)
{
    (void)user;
    (void)size;
    free(ptr);
}

static pkv_cache *cache;

static void setup(void)
{
    static const pkv_allocator allocator = {.alloc = counting_alloc, .free = counting_free};
    pkv_group_config group = {.n_layers = 1, .kv_heads = 1, .head_dim_k = 8};
    pkv_config config;
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    config.groups = &group;
    config.n_groups = 1;
    config.page_tokens = PAGE;
    config.storage = PKV_STORAGE_NONE;
    config.allocator = &allocator;
    left = UINT64_MAX;
    ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_OK);
}

static void teardown(void)
{
    char text[256];
    left = UINT64_MAX;
    ck_assert_msg(pkv_cache_verify(cache, text, sizeof text) == PKV_OK, "%s", text);
    pkv_cache_destroy(cache);
}

static pkv_seq new_seq(void)
{
    pkv_seq seq;
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    return seq;
}

static void append(pkv_seq seq, const int32_t *tokens, uint32_t n)
{
    pkv_batch batch;
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, seq, tokens, n), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
}

static pkv_match match_in(const pkv_namespace *space, const int32_t *tokens)
{
    pkv_match match = {.struct_size = sizeof match};
    ck_assert_int_eq(pkv_prefix_match(cache, space, tokens, LENGTH, &match), PKV_OK);
    return match;
}

static void fill(int32_t *tokens, int32_t first)
{
    for (int32_t i = 0; i < LENGTH; i++)
        tokens[i] = first + i;
}

/* A refused attach leaves the sequence in its own namespace: what it computes later is published
 * there, not where the match was. */
START_TEST(refused_attach_changes_nothing)
{
    const pkv_namespace tenant = {"tenant", 6};
    int32_t theirs[LENGTH], ours[LENGTH];
    fill(theirs, 1000);
    fill(ours, 5000);
    pkv_seq seq = new_seq();
    ck_assert_int_eq(pkv_seq_set_namespace(seq, &tenant), PKV_OK);
    append(seq, theirs, LENGTH);
    ck_assert_int_eq(pkv_seq_destroy(seq), PKV_OK);
    const pkv_match match = match_in(&tenant, theirs);
    ck_assert_uint_gt(match.n_tokens, 0);

    uint64_t refused = 0;
    for (;; refused++) {
        ck_assert_uint_lt(refused, 100);
        seq = new_seq();
        left = refused;
        const pkv_status status = pkv_seq_attach(seq, &match);
        left = UINT64_MAX;
        if (status == PKV_OK) break;
        ck_assert_int_eq(status, PKV_ENOMEM);
        fill(ours, 5000 + 1000 * (int32_t)refused);
        append(seq, ours, LENGTH);
        ck_assert_int_eq(pkv_seq_destroy(seq), PKV_OK);
        ck_assert_uint_eq(match_in(&tenant, ours).n_tokens, 0);
        ck_assert_uint_eq(match_in(NULL, ours).n_pages, LENGTH / PAGE);
    }
    ck_assert_uint_gt(refused, 1);
    uint64_t length;
    ck_assert_int_eq(pkv_seq_length(seq, &length), PKV_OK);
    ck_assert_uint_eq(length, match.n_tokens);
    ck_assert_int_eq(pkv_seq_destroy(seq), PKV_OK);
}
END_TEST

/* Pages computed after evictions are for sequences with the same policy only, whoever hands over
 * the match. */
START_TEST(pages_of_a_policy_need_the_policy)
{
    int32_t tokens[LENGTH];
    fill(tokens, 1);
    pkv_evict_config sink, wider;
    ck_assert_int_eq(pkv_evict_config_init(&sink, sizeof sink, PKV_EVICT_SINK, 2 * PAGE), PKV_OK);
    ck_assert_int_eq(pkv_evict_config_init(&wider, sizeof wider, PKV_EVICT_SINK, 3 * PAGE), PKV_OK);
    pkv_seq writer = new_seq();
    ck_assert_int_eq(pkv_seq_set_evict(writer, 0, &sink), PKV_OK);
    for (uint32_t at = 0; at < LENGTH; at += PAGE)
        append(writer, tokens + at, PAGE);

    pkv_seq same = new_seq(), plain = new_seq(), other = new_seq();
    ck_assert_int_eq(pkv_seq_set_evict(same, 0, &sink), PKV_OK);
    ck_assert_int_eq(pkv_seq_set_evict(other, 0, &wider), PKV_OK);
    pkv_match match = {.struct_size = sizeof match};
    ck_assert_int_eq(pkv_seq_match(plain, tokens, LENGTH, &match), PKV_OK);
    const uint64_t plain_tokens = match.n_tokens;
    ck_assert_int_eq(pkv_seq_match(same, tokens, LENGTH, &match), PKV_OK);
    ck_assert_uint_gt(match.n_tokens, plain_tokens);

    ck_assert_int_eq(pkv_seq_attach(plain, &match), PKV_ESTATE);
    ck_assert_int_eq(pkv_seq_attach(other, &match), PKV_ESTATE);
    uint64_t length = 7;
    ck_assert_int_eq(pkv_seq_length(plain, &length), PKV_OK);
    ck_assert_uint_eq(length, 0);
    char text[256];
    ck_assert_int_eq(pkv_cache_last_error(cache, text, sizeof text), PKV_ESTATE);
    ck_assert_msg(strstr(text, "policy") != NULL, "%s", text);
    ck_assert_int_eq(pkv_seq_attach(same, &match), PKV_OK);
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("attach");
    TCase *tests = tcase_create("attach");
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, refused_attach_changes_nothing);
    tcase_add_test(tests, pages_of_a_policy_need_the_policy);
    suite_add_tcase(suite, tests);
    return suite;
}
