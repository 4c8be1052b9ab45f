/* The banker's answers where the order matters: who can end only after others have, and what those
 * give back. Two groups: one with full attention and small pages, one with a window and large
 * pages, so that a sequence's need can be bounded by what it holds. */
#include <check.h>
#include <pagedkv/pagedkv.h>

#include "suite.h"

enum { P = 16, LARGE = 2 << 20 };

static pkv_cache *cache;

/* Both groups, or one of large pages without a window. */
static void open_cache(uint32_t n_groups)
{
    pkv_group_config groups[2] = {
        {.n_layers = 1, .kv_heads = 1, .head_dim_k = 8},
        {.n_layers = 32, .kv_heads = 16, .head_dim_k = 64, .window = P}};
    pkv_config config;
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    if (n_groups == 1) groups[1].window = 0;
    config.groups = n_groups == 1 ? &groups[1] : groups;
    config.n_groups = n_groups;
    config.page_tokens = P;
    config.storage = PKV_STORAGE_NONE;
    config.memory_limit = 64u << 20;
    config.prefix = 0;
    ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_OK);
    pkv_group_info info = {.struct_size = sizeof info};
    ck_assert_int_eq(pkv_cache_group_info(cache, n_groups - 1, &info), PKV_OK);
    ck_assert_uint_eq(info.page_bytes, LARGE);
}

static pkv_seq grown(uint32_t n_tokens)
{
    pkv_seq seq;
    pkv_batch batch;
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    if (n_tokens != 0) ck_assert_int_eq(pkv_batch_add(batch, seq, NULL, n_tokens), PKV_OK);
    if (n_tokens != 0) ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    ck_assert_int_eq(n_tokens != 0 ? pkv_batch_commit(batch) : pkv_batch_abort(batch), PKV_OK);
    return seq;
}

static bool is_safe(uint64_t max_tokens)
{
    uint32_t safe = 2;
    ck_assert_int_eq(pkv_admit_probe(cache, max_tokens, 0, &safe, NULL, 0), PKV_OK);
    return safe != 0;
}

/* Pages that one sequence can have in an empty cache. */
static uint32_t capacity(void)
{
    uint32_t n = 1;
    while (is_safe((uint64_t)(n + 1) * P))
        n++;
    return n;
}

/* What the first gives back is what the second needs: no more, and no less. */
START_TEST(who_ends_gives_back_what_it_held)
{
    open_cache(1);
    const uint32_t n = capacity();
    ck_assert_uint_ge(n, 12);
    const pkv_seq first = grown(6 * P);
    ck_assert(!is_safe((uint64_t)n * P)); /* nobody promises to end */
    ck_assert_int_eq(pkv_admit(first, 8 * P), PKV_OK);
    ck_assert(is_safe((uint64_t)n * P));
    ck_assert(!is_safe((uint64_t)(n + 1) * P));
    const pkv_seq second = grown((n - 8) * P); /* leaves two pages: just enough for the first */
    ck_assert_int_eq(pkv_admit(second, (uint64_t)(n + 1) * P), PKV_EUNSAFE);
    ck_assert_int_eq(pkv_admit(second, (uint64_t)n * P), PKV_OK);
    ck_assert(is_safe((uint64_t)n * P));
    ck_assert(!is_safe((uint64_t)(n + 1) * P));
    pkv_cache_destroy(cache);
}
END_TEST

/* The smallest needs need not come first: large pages are short, and only the sequence with most to
 * grow has some to give back. Then those that waited end one after the other, as they could not
 * together. */
START_TEST(the_order_is_sought_in_rounds)
{
    open_cache(2);
    pkv_seq waiting[2];
    for (int i = 0; i < 2; i++)
        waiting[i] = grown(0);
    const pkv_seq holder = grown(2 * P + P / 2); /* two large pages: it never needs a third */
    while (is_safe(P)) {
        pkv_page page;
        ck_assert_int_eq(pkv_page_alloc(cache, 1, 1, &page), PKV_OK);
    }
    ck_assert_int_eq(pkv_admit(waiting[0], 2 * P), PKV_EUNSAFE);
    ck_assert_int_eq(pkv_admit(holder, 6 * P), PKV_OK);
    for (int i = 0; i < 2; i++)
        ck_assert_int_eq(pkv_admit(waiting[i], 2 * P), PKV_OK);
    ck_assert_int_eq(pkv_admit_release(holder), PKV_OK);
    ck_assert(!is_safe(P));
    pkv_cache_destroy(cache);
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("safe state");
    TCase *tc = tcase_create("safe state");
    tcase_add_test(tc, who_ends_gives_back_what_it_held);
    tcase_add_test(tc, the_order_is_sought_in_rounds);
    suite_add_tcase(suite, tc);
    return suite;
}
