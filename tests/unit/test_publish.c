/* What a sequence publishes, and who may find it: where prefix index, tables and namespaces meet.
 */
#include <check.h>
#include <stdio.h>
#include <string.h>

#include <pagedkv/pagedkv.h>

#include "suite.h"

#define P 16u

static pkv_cache *cache;
static int32_t tokens[20 * P];

/* Every hash alike: only comparisons tell pages apart. */
static void open_cache(bool colliding)
{
    pkv_config config;
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    const pkv_group_config group = {.n_layers = 1, .kv_heads = 1, .head_dim_k = 8};
    config.groups = &group;
    config.n_groups = 1;
    config.page_tokens = P;
    config.storage = PKV_STORAGE_NONE;
    config.memory_limit = 64u << 20;
    if (colliding) config.prefix_key[0] = config.prefix_key[1] = UINT64_MAX;
    ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_OK);
    for (uint32_t i = 0; i < 20 * P; i++)
        tokens[i] = (int32_t)i;
}

static void close_cache(void)
{
    char text[256];
    const pkv_status status = pkv_cache_verify(cache, text, sizeof text);
    ck_assert_msg(status == PKV_OK, "verify: %s", text);
    pkv_cache_destroy(cache);
}

static pkv_seq new_seq(const pkv_evict_config *policy)
{
    pkv_seq seq;
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    if (policy != NULL) ck_assert_int_eq(pkv_seq_set_evict(seq, 0, policy), PKV_OK);
    return seq;
}

static void step(pkv_seq seq, const int32_t *ids, uint32_t n)
{
    pkv_batch batch;
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, seq, ids, n), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
}

static pkv_match matched(pkv_seq like, const int32_t *ids, uint32_t n)
{
    pkv_match match = {.struct_size = sizeof match};
    ck_assert_int_eq(pkv_seq_match(like, ids, n, &match), PKV_OK);
    return match;
}

static pkv_page page_of(pkv_seq seq, uint32_t logical)
{
    pkv_page page;
    ck_assert_int_eq(pkv_seq_pages(seq, 0, logical, 1, &page), PKV_OK);
    return page;
}

START_TEST(tokens_withheld_end_it)
{
    open_cache(false);
    const pkv_seq seq = new_seq(NULL), other = new_seq(NULL);
    step(seq, tokens, P);
    step(seq, NULL, P);
    step(seq, tokens + P, 2 * P);
    ck_assert_uint_eq(matched(other, tokens, 4 * P).n_tokens, P);
    ck_assert_int_eq(pkv_seq_truncate(seq, 3 * P), PKV_OK);
    step(seq, tokens + P, P);
    ck_assert_uint_eq(matched(other, tokens, 4 * P).n_tokens, P);
    close_cache();
}
END_TEST

/* A full page and a part of the next, for a policy that dropped and for none, with equal tokens. */
START_TEST(salts_keep_equal_tokens_apart)
{
    open_cache(_i == 1);
    pkv_evict_config policy;
    ck_assert_int_eq(pkv_evict_config_named(&policy, sizeof policy, "window", 2 * P), PKV_OK);
    const pkv_seq bounded = new_seq(&policy), plain = new_seq(NULL);
    for (uint32_t i = 0; i < 6; i++) /* pages 0, 1, 2 are as without a policy */
        step(bounded, tokens + i * P, P);
    ck_assert_uint_eq(matched(plain, tokens, 6 * P).n_tokens, 3 * P);
    ck_assert_uint_eq(matched(new_seq(&policy), tokens, 6 * P).n_tokens, 6 * P);
    pkv_seq others[2];
    for (int i = 0; i < 2;
         i++) { /* the bounded one first: without a plain page there is no choice */
        int32_t asked[6 * P];
        memcpy(asked, tokens, sizeof asked);
        asked[6 * P - 3] = -1; /* a part of page 5 */
        others[i] = new_seq(i == 0 ? &policy : NULL);
        const pkv_match match = matched(others[i], asked, 6 * P);
        ck_assert_uint_eq(match.n_tokens, 6 * P - 3);
        ck_assert_int_eq(pkv_seq_attach(others[i], &match), PKV_OK);
        for (uint32_t l = 4; l < 6; l++)
            ck_assert(page_of(others[i], l) == page_of(i == 0 ? bounded : plain, l));
        for (uint32_t l = 0; i == 0 && l < 6; l++)
            step(plain, tokens + l * P, P);
    }
    ck_assert_int_eq(pkv_seq_destroy(plain), PKV_OK);
    ck_assert_int_eq(pkv_seq_destroy(others[1]), PKV_OK);
    uint64_t freed;
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 0, 100, &freed), PKV_OK);
    ck_assert_uint_gt(freed, 0);
    close_cache();
}
END_TEST

/* Children of one page by the dozen, for no policy and two others: a part of a child's page is found
 * for its own policy, whatever the others' hold, also if every hash is the same. */
START_TEST(a_policy_finds_its_own_among_many_siblings)
{
    enum { KINDS = 3, CHILDREN = 40 };
    open_cache(_i == 1);
    pkv_evict_config policies[KINDS];
    for (int kind = 1; kind < KINDS; kind++)
        ck_assert_int_eq(pkv_evict_config_named(&policies[kind], sizeof *policies,
                                                kind == 1 ? "window" : "sink", 2 * P),
                         PKV_OK);
    int32_t child[KINDS][CHILDREN][4 * P];
    step(new_seq(NULL), tokens, 3 * P);
    for (uint32_t c = 0; c < CHILDREN; c++)
        for (int kind = 0; kind < KINDS; kind++) {
            int32_t *ids = child[kind][c];
            memcpy(ids, tokens, 4 * P * sizeof *ids);
            for (uint32_t i = 0; i < P; i++) /* digits of a number that no other child has */
                ids[3 * P + i] = (int32_t)((c * KINDS + (uint32_t)kind) * 77 % 121 >> i % 7 & 1);
            const pkv_seq seq = new_seq(kind == 0 ? NULL : &policies[kind]);
            for (uint32_t l = 0; l < 4; l++)
                step(seq, ids + l * P, P);
            ck_assert_int_eq(pkv_seq_destroy(seq), PKV_OK);
        }
    for (int kind = 0; kind < KINDS; kind++) {
        const pkv_seq like = new_seq(kind == 0 ? NULL : &policies[kind]);
        for (uint32_t c = 0; c < CHILDREN; c++)
            for (uint32_t shared = 1; shared <= P; shared++) {
                int32_t asked[4 * P];
                memcpy(asked, child[kind][c], sizeof asked);
                for (uint32_t i = shared; i < P; i++)
                    asked[3 * P + i] = -1;
                ck_assert_uint_eq(matched(like, asked, 4 * P).n_tokens, 3 * P + shared);
            }
    }
    close_cache();
}
END_TEST

/* A match of no tokens sets the namespace only: not one that took the place of its own. */
START_TEST(a_match_of_a_forgotten_namespace_is_stale)
{
    open_cache(false);
    pkv_namespace space = {"first", 5};
    pkv_match match = {.struct_size = sizeof match};
    ck_assert_int_eq(pkv_prefix_match(cache, &space, tokens, P, &match), PKV_OK);
    ck_assert_uint_eq(match.n_tokens, 0);
    for (uint32_t i = 0; i < 5000; i++) {
        char name[16];
        const int size = snprintf(name, sizeof name, "n%u", i);
        pkv_match unused = {.struct_size = sizeof unused};
        space = (pkv_namespace){name, (size_t)size};
        ck_assert_int_eq(pkv_prefix_match(cache, &space, tokens, P, &unused), PKV_OK);
    }
    const pkv_seq seq = new_seq(NULL);
    const pkv_status status = pkv_seq_attach(seq, &match);
    ck_assert_int_eq(status, PKV_ESTALE);
    close_cache();
}
END_TEST

/* Two groups: what was computed under policies that differ in the last group only is not found. */
START_TEST(policies_of_all_groups_count)
{
    pkv_config config;
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    const pkv_group_config groups[2] = {{.n_layers = 1, .kv_heads = 1, .head_dim_k = 8},
                                        {.n_layers = 1, .kv_heads = 1, .head_dim_k = 8}};
    config.groups = groups;
    config.n_groups = 2;
    config.page_tokens = P;
    config.storage = PKV_STORAGE_NONE;
    config.memory_limit = 64u << 20;
    ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_OK);
    for (int32_t i = 0; i < 20 * (int32_t)P; i++)
        tokens[i] = i;
    pkv_evict_config narrow, wide;
    ck_assert_int_eq(pkv_evict_config_named(&narrow, sizeof narrow, "window", 2 * P), PKV_OK);
    ck_assert_int_eq(pkv_evict_config_named(&wide, sizeof wide, "window", 3 * P), PKV_OK);
    pkv_seq seqs[4]; /* (narrow, narrow) twice, then another in one of the groups */
    for (int i = 0; i < 4; i++) {
        seqs[i] = new_seq(i == 3 ? &wide : &narrow);
        ck_assert_int_eq(pkv_seq_set_evict(seqs[i], 1, i == 2 ? &wide : &narrow), PKV_OK);
    }
    for (uint32_t l = 0; l < 8; l++)
        step(seqs[0], tokens + l * P, P);
    ck_assert_uint_eq(matched(seqs[1], tokens, 8 * P).n_tokens, 8 * P);
    ck_assert_uint_eq(matched(seqs[2], tokens, 8 * P).n_tokens, 3 * P);
    ck_assert_uint_eq(matched(seqs[3], tokens, 8 * P).n_tokens, 3 * P);
    const pkv_match match = matched(seqs[1], tokens, 8 * P);
    ck_assert_int_eq(pkv_seq_attach(seqs[2], &match), PKV_ESTATE);
    ck_assert_int_eq(pkv_seq_attach(seqs[1], &match), PKV_OK);
    close_cache();
}
END_TEST

/* H2O keeps what had most mass, so what is computed after it dropped a page is nobody else's. */
START_TEST(nothing_after_a_choice_by_data_is_published)
{
    open_cache(_i == 1);
    pkv_evict_config policy;
    ck_assert_int_eq(pkv_evict_config_named(&policy, sizeof policy, "h2o", 3 * P), PKV_OK);
    const pkv_seq seq = new_seq(&policy);
    uint32_t plain = 0;
    for (uint32_t l = 0; l < 8; l++) {
        pkv_evict_info info = {.struct_size = sizeof info};
        ck_assert_int_eq(pkv_seq_evict_info(seq, 0, &info), PKV_OK);
        if (info.resident_pages == l) plain = l + 1; /* the page to come sees all before it */
        step(seq, tokens + l * P, P);
    }
    uint32_t tainted = 0;
    ck_assert_int_eq(pkv_seq_tainted(seq, &tainted), PKV_OK);
    ck_assert_uint_eq(tainted, 1);
    ck_assert_uint_ge(plain, 3);
    ck_assert_uint_lt(plain, 8);
    ck_assert_uint_eq(matched(new_seq(NULL), tokens, 8 * P).n_tokens, plain * P);
    ck_assert_uint_eq(matched(new_seq(&policy), tokens, 8 * P).n_tokens, plain * P);
    close_cache();
}
END_TEST

/* What an undo brings back appears in a block table that was exported without it. */
START_TEST(an_undo_is_seen_by_the_next_export)
{
    open_cache(false);
    pkv_evict_config policy;
    ck_assert_int_eq(pkv_evict_config_named(&policy, sizeof policy, "window", 2 * P), PKV_OK);
    policy.journal_steps = 100;
    const pkv_seq seq = new_seq(&policy);
    for (uint32_t i = 0; i < 8; i++)
        step(seq, tokens + i * P, P);
    int32_t row[24];
    pkv_block_row state = {{0}};
    const pkv_block_table table = {.struct_size = sizeof table,
                                   .data = row,
                                   .n_rows = 1,
                                   .row_stride = 24,
                                   .state = &state,
                                   .hole = -1};
    for (int i = 0; i < 2; i++) {
        pkv_batch batch;
        ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
        ck_assert_int_eq(pkv_batch_add(batch, seq, NULL, 1), PKV_OK);
        ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
        ck_assert_int_eq(pkv_export_block_table(batch, 0, &table), PKV_OK);
        for (uint32_t l = 0; l < (i == 0 ? 9 : 8); l++) {
            const pkv_page page = page_of(seq, l);
            ck_assert_int_eq(row[l], page == PKV_PAGE_NONE ? -1 : (int32_t)pkv_page_index(page));
        }
        ck_assert_int_eq(pkv_batch_abort(batch), PKV_OK);
        if (i == 0) ck_assert_int_eq(pkv_seq_truncate(seq, 7 * P + 1), PKV_OK);
    }
    ck_assert(page_of(seq, 5) != PKV_PAGE_NONE);
    close_cache();
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("publish");
    TCase *tc = tcase_create("publish");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, tokens_withheld_end_it);
    tcase_add_loop_test(tc, salts_keep_equal_tokens_apart, 0, 2);
    tcase_add_loop_test(tc, a_policy_finds_its_own_among_many_siblings, 0, 2);
    tcase_add_test(tc, policies_of_all_groups_count);
    tcase_add_test(tc, nothing_after_a_choice_by_data_is_published);
    tcase_add_test(tc, a_match_of_a_forgotten_namespace_is_stale);
    tcase_add_test(tc, an_undo_is_seen_by_the_next_export);
    suite_add_tcase(suite, tc);
    return suite;
}
