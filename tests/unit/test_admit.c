/* Admission: what is shared counts once, attaching and admitting are one, one request alone, pins. */
#include <string.h>

#include <pagedkv/pagedkv.h>

#include "suite.h"

#define P 16u
#define PROMPT (40 * P)
#define PAGE_BYTES 131072u /* 1 layer, 16 heads, 128, K and V, f16 */

static pkv_cache *cache;
static pkv_match found;
static int32_t ids[4096];

/* A cache of about `pages` pages, with a prefix index. */
static void open_cache(uint32_t pages, uint32_t window)
{
    pkv_config config;
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    const pkv_group_config group = {
        .n_layers = 1, .kv_heads = 16, .head_dim_k = 128, .window = window};
    config.groups = &group;
    config.n_groups = 1;
    config.storage = PKV_STORAGE_NONE;
    config.page_tokens = P;
    config.memory_limit = (uint64_t)pages * PAGE_BYTES;
    config.prefix = 1;
    ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_OK);
    for (int i = 0; i < 4096; i++)
        ids[i] = i;
}

static void close_cache(void)
{
    char text[200];
    ck_assert_int_eq(pkv_cache_verify(cache, text, sizeof text), PKV_OK);
    pkv_cache_destroy(cache);
}

static pkv_seq create(void)
{
    pkv_seq seq;
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    return seq;
}

/* The status of the reserve. */
static pkv_status grow(pkv_seq seq, uint32_t n)
{
    pkv_batch batch;
    uint64_t length;
    ck_assert_int_eq(pkv_seq_length(seq, &length), PKV_OK);
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, seq, ids + length % 4096, n), PKV_OK);
    const pkv_status status = pkv_batch_reserve(batch);
    if (status == PKV_OK)
        ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
    else
        ck_assert_int_eq(pkv_batch_abort(batch), PKV_OK);
    return status;
}

/* Somebody holds the prompt's pages; what they are is in `found`. */
static pkv_seq compute_prompt(void)
{
    const pkv_seq seq = create();
    ck_assert_int_eq(grow(seq, PROMPT), PKV_OK);
    found = (pkv_match){.struct_size = sizeof found};
    ck_assert_int_eq(pkv_prefix_match(cache, NULL, ids, PROMPT, &found), PKV_OK);
    ck_assert_uint_eq(found.n_tokens, PROMPT);
    return seq;
}

static pkv_group_stats stats(void)
{
    pkv_group_stats now = {.struct_size = sizeof now};
    ck_assert_int_eq(pkv_cache_group_stats(cache, 0, &now), PKV_OK);
    return now;
}

static pkv_admit_outlook outlook_of(const pkv_match *match, uint64_t tokens)
{
    pkv_admit_outlook outlook = {.struct_size = sizeof outlook};
    uint32_t missing = 99;
    ck_assert_int_eq(pkv_admit_probe_match(cache, match, tokens, &outlook, &missing, 1), PKV_OK);
    ck_assert_uint_eq(missing == 0, outlook.safe);
    return outlook;
}

/* Pages that a running sequence holds cost the next one nothing. (All of them were once taken out of
 * what is free, as many as there were cached ones, whoever held them.) */
START_TEST(held_pages_cost_nothing)
{
    open_cache(100, 0);
    compute_prompt();
    const pkv_seq idle = create(); /* other pages that are cached */
    for (int i = 0; i < 4096; i++)
        ids[i] += 10000;
    ck_assert_int_eq(grow(idle, PROMPT), PKV_OK);
    ck_assert_int_eq(pkv_seq_destroy(idle), PKV_OK);
    ck_assert_uint_eq(stats().pages_cached, PROMPT / P);
    const uint64_t claim = PROMPT + 50 * P;
    uint32_t safe;
    ck_assert_int_eq(pkv_admit_probe(cache, claim, PROMPT, &safe, NULL, 0), PKV_OK);
    ck_assert_uint_eq(safe, 0); /* without the match the worst is assumed */
    const pkv_admit_outlook outlook = outlook_of(&found, claim);
    ck_assert_uint_eq(outlook.safe, 1);
    ck_assert_uint_eq(outlook.claimed_bytes, 50 * (uint64_t)PAGE_BYTES);
    ck_assert_uint_ge(outlook.available_bytes, outlook.claimed_bytes);
    ck_assert_uint_eq(outlook_of(NULL, claim).safe, 0);
    const pkv_seq second = create();
    ck_assert_int_eq(pkv_admit_attach(second, &found, claim), PKV_OK);
    ck_assert_int_eq(pkv_admit(second, claim), PKV_ESTATE);
    ck_assert_int_eq(grow(second, 50 * P), PKV_OK);
    close_cache();
}
END_TEST

/* A matched page comes back with its last holder, the newcomer being one: the first sequence's end
 * does not bring it what it needs. */
START_TEST(matched_pages_do_not_come_back_early)
{
    open_cache(100, 0);
    const pkv_seq first = compute_prompt();
    ck_assert_int_eq(pkv_admit(first, PROMPT + P), PKV_OK);
    /* 59 pages at most beside the prompt's 40. */
    ck_assert_uint_eq(outlook_of(&found, PROMPT + 70 * P).safe, 0);
    const pkv_seq second = create();
    ck_assert_int_eq(pkv_admit_attach(second, &found, PROMPT + 70 * P), PKV_EUNSAFE);
    /* Without the match the first one's end would do. */
    ck_assert_int_eq(pkv_admit(second, 80 * P), PKV_OK);
    close_cache();
}
END_TEST

START_TEST(a_refusal_changes_nothing)
{
    open_cache(100, 0);
    ck_assert_int_eq(pkv_seq_destroy(compute_prompt()), PKV_OK);
    const pkv_seq seq = create();
    const pkv_group_stats before = stats();
    ck_assert_int_eq(pkv_admit_attach(seq, &found, 200 * P), PKV_EUNSAFE);
    ck_assert_int_eq(pkv_admit_attach(seq, &found, PROMPT - 1), PKV_EINVAL);
    ck_assert_int_eq(pkv_admit_attach(seq, NULL, PROMPT), PKV_EINVAL);
    const pkv_group_stats after = stats();
    uint64_t length = 1;
    ck_assert_int_eq(pkv_seq_length(seq, &length), PKV_OK);
    ck_assert_uint_eq(length, 0);
    ck_assert_uint_eq(before.pages_cached, after.pages_cached);
    ck_assert_int_eq(pkv_admit_release(seq), PKV_ESTATE);
    ck_assert_int_eq(pkv_admit_attach(seq, &found, PROMPT + 10 * P), PKV_OK);
    ck_assert_int_eq(pkv_seq_length(seq, &length), PKV_OK);
    ck_assert_uint_eq(length, PROMPT);
    ck_assert_int_eq(pkv_admit_release(seq), PKV_OK);
    uint64_t freed;
    ck_assert_int_eq(pkv_seq_destroy(seq), PKV_OK);
    ck_assert_int_eq(pkv_prefix_drop(cache, NULL, &freed), PKV_OK);
    const pkv_seq late = create();
    ck_assert_int_eq(pkv_admit_attach(late, &found, PROMPT), PKV_ESTALE);
    pkv_admit_outlook outlook = {.struct_size = sizeof outlook, .safe = 77};
    ck_assert_int_eq(pkv_admit_probe_match(cache, &found, PROMPT, &outlook, NULL, 0), PKV_ESTALE);
    ck_assert_uint_eq(outlook.safe, 77);
    close_cache();
}
END_TEST

/* What one sequence alone can fill is what it may claim: the longest that can be filled is admitted,
 * and what is admitted can be filled. */
START_TEST(one_alone_may_have_everything)
{
    for (uint32_t pages = 60; pages <= 2000; pages += pages / 2) {
        open_cache(pages, 0);
        pkv_seq seq = create();
        uint32_t most = 0;
        while (grow(seq, P) == PKV_OK)
            most++;
        ck_assert_int_eq(pkv_seq_destroy(seq), PKV_OK);
        pkv_cache_destroy(cache);
        open_cache(pages, 0);
        seq = create();
        uint32_t claim = most + 2;
        while (pkv_admit(seq, (uint64_t)claim * P) == PKV_EUNSAFE)
            claim--;
        ck_assert_uint_le(claim, most);
        ck_assert_uint_ge(claim + 2 + pages / 1000, most);
        for (uint32_t i = 0; i < claim; i++) {
            pkv_batch batch;
            uint32_t blocked;
            ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
            ck_assert_int_eq(pkv_batch_add(batch, seq, ids + i * P % 4096, P), PKV_OK);
            ck_assert_int_eq(pkv_admit_check_batch(batch, &blocked), PKV_OK);
            ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
            ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
        }
        close_cache();
    }
}
END_TEST

/* Two windows fit; with one pinned not both could end. (Both stood still for ever.) */
START_TEST(pins_of_admitted_sequences_are_asked_about)
{
    open_cache(60, 20 * P);
    pkv_seq seqs[2] = {create(), create()};
    for (int i = 0; i < 2; i++)
        ck_assert_int_eq(pkv_admit(seqs[i], 200 * P), PKV_OK);
    ck_assert_int_eq(pkv_seq_pin(seqs[0], 0, 4 * P), PKV_OK); /* four pages more */
    ck_assert_int_eq(pkv_seq_pin(seqs[0], 0, UINT64_MAX), PKV_EUNSAFE);
    ck_assert_int_eq(pkv_seq_pin(seqs[1], 50 * P, 150 * P), PKV_EUNSAFE);
    for (uint32_t step = 0; step < 200 * P; step++) {
        for (int i = 0; i < 2; i++) {
            pkv_batch batch;
            uint32_t blocked;
            ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
            ck_assert_int_eq(pkv_batch_add(batch, seqs[i], NULL, 1), PKV_OK);
            ck_assert_int_eq(pkv_admit_check_batch(batch, &blocked), PKV_OK);
            ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
            ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
        }
    }
    ck_assert_int_eq(pkv_seq_unpin(seqs[0], 0, 4 * P), PKV_OK);
    ck_assert_int_eq(pkv_seq_unpin(seqs[1], 50 * P, 150 * P), PKV_EINVAL);
    const pkv_seq free_one = create(); /* without a ticket nobody asks */
    ck_assert_int_eq(pkv_seq_pin(free_one, 0, UINT64_MAX), PKV_OK);
    close_cache();
}
END_TEST

/* Between reserve and commit a host takes a reference on the new page: the commit makes it a tail that
 * the next step must copy, which the ticket did not count while the page was only reserved. */
START_TEST(a_new_tail_may_be_shared)
{
    open_cache(64, 0);
    pkv_seq seq = create();
    ck_assert_int_eq(pkv_admit(seq, 20 * P), PKV_OK);
    pkv_batch batch;
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, seq, NULL, 1), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    pkv_page page;
    ck_assert_int_eq(pkv_seq_pages(seq, 0, 0, 1, &page), PKV_OK);
    ck_assert_int_eq(pkv_page_ref(cache, 0, 1, &page), PKV_OK);
    uint32_t safe, missing;
    ck_assert_int_eq(pkv_admit_probe(cache, P, 0, &safe, &missing, 1), PKV_OK);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
    char text[200];
    ck_assert_int_eq(pkv_cache_verify(cache, text, sizeof text), PKV_OK);
    ck_assert_int_eq(pkv_page_unref(cache, 0, 1, &page), PKV_OK);
    ck_assert_int_eq(pkv_seq_destroy(seq), PKV_OK);
    close_cache();
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("admit");
    TCase *tests = tcase_create("admit");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, held_pages_cost_nothing);
    tcase_add_test(tests, matched_pages_do_not_come_back_early);
    tcase_add_test(tests, a_refusal_changes_nothing);
    tcase_add_test(tests, one_alone_may_have_everything);
    tcase_add_test(tests, pins_of_admitted_sequences_are_asked_about);
    tcase_add_test(tests, a_new_tail_may_be_shared);
    suite_add_tcase(suite, tests);
    return suite;
}
