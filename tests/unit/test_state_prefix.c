/* Recurrent states in the prefix index: where they are published, what a match is, and that they go
 * like pages. */
#include <string.h>

#include "prefix_case.h"
#include "suite.h"

enum { PAGE = PKVT_PAGE, STATES = 2, LENGTH = 1200 };

static int32_t text[LENGTH];

/* Two state groups; max: most slots of each, 0 = as many as fit. */
static pkv_cache *open_cache(uint32_t max)
{
    const pkv_group_config groups[3] = {
        {.n_layers = 1, .kv_heads = 1, .head_dim_k = 8},
        {.n_layers = 2, .state_bytes = 8, .max_pages = max},
        {.n_layers = 1, .state_bytes = 8, .max_pages = max},
    };
    pkv_config config;
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    config.page_tokens = PAGE;
    config.groups = groups;
    config.n_groups = 3;
    config.memory_limit = (uint64_t)32 << 20;
    pkv_cache *cache;
    ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_OK);
    pkvt_count_from(0, text, LENGTH);
    return cache;
}

static uint64_t *value_at(pkv_cache *cache, uint32_t state, pkv_page slot)
{
    void *at;
    ck_assert_int_eq(pkv_state_address(cache, state, slot, 0, &at), PKV_OK);
    return at;
}

/* Steps to `end`; the state is the number of tokens and the last of them. */
static void run_to(pkv_seq seq, const int32_t *tokens, uint64_t end)
{
    uint64_t length;
    pkv_batch batch;
    ck_assert_int_eq(pkv_seq_length(seq, &length), PKV_OK);
    ck_assert_int_eq(pkv_batch_begin(seq.cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, seq, tokens + length, (uint32_t)(end - length)), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    for (uint32_t s = 0; s < STATES; s++) {
        pkv_page to;
        uint32_t n;
        ck_assert_int_eq(pkv_batch_states(batch, 0, s, NULL, &to, 1, &n), PKV_OK);
        *value_at(seq.cache, s, to) = end << 32 | (uint32_t)tokens[end - 1];
    }
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
}

static pkv_seq create(pkv_cache *cache)
{
    pkv_seq seq;
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    return seq;
}

/* A sequence that has what is known of the tokens, which must be n_known. */
static pkv_seq attach(pkv_cache *cache, const int32_t *tokens, uint64_t n, uint64_t n_known)
{
    const pkv_match match = pkvt_match(cache, NULL, tokens, n);
    ck_assert_uint_eq(match.n_tokens, n_known);
    const pkv_seq seq = create(cache);
    ck_assert_int_eq(pkv_seq_attach(seq, &match), PKV_OK);
    for (uint32_t s = 0; s < STATES; s++) {
        pkv_page slot;
        ck_assert_int_eq(pkv_seq_state(seq, s, &slot), PKV_OK);
        ck_assert_int_eq(slot == PKV_PAGE_NONE, n_known == 0);
        if (n_known)
            ck_assert_uint_eq(*value_at(cache, s, slot),
                              n_known << 32 | (uint32_t)tokens[n_known - 1]);
    }
    pkvt_verify(cache);
    return seq;
}

static void known(pkv_cache *cache, const int32_t *tokens, uint64_t n, uint64_t n_known)
{
    pkvt_end(attach(cache, tokens, n, n_known));
}

/* The whole prompt as pkv_seq_state_stop says. */
static void prompt(pkv_seq seq, const int32_t *tokens, uint64_t n)
{
    uint64_t length, stop;
    for (;;) {
        ck_assert_int_eq(pkv_seq_length(seq, &length), PKV_OK);
        if (length == n) return;
        ck_assert_int_eq(pkv_seq_state_stop(seq, n, &stop), PKV_OK);
        ck_assert(stop > length && stop <= n);
        run_to(seq, tokens, stop);
    }
}

START_TEST(a_match_ends_with_a_state)
{
    pkv_cache *cache = open_cache(0);
    const pkv_seq seq = create(cache);
    run_to(seq, text, 3 * PAGE);
    run_to(seq, text, 7 * PAGE + 5); /* no end of a page: six pages more, and no state */
    known(cache, text, LENGTH, 3 * PAGE);
    known(cache, text, 3 * PAGE, 3 * PAGE);
    known(cache, text, 3 * PAGE - 1, 0);
    run_to(seq, text, 9 * PAGE);
    known(cache, text, LENGTH, 9 * PAGE);
    known(cache, text, 9 * PAGE - 1, 3 * PAGE);
    pkvt_end(seq);
    known(cache, text, LENGTH, 9 * PAGE); /* cached */
    pkv_state_info info = {.struct_size = sizeof info};
    ck_assert_int_eq(pkv_cache_state_info(cache, 1, &info), PKV_OK);
    ck_assert_uint_eq(info.slots_cached, 2);
    ck_assert_uint_eq(info.slots_used, 0);
    pkvt_close(cache);
}
END_TEST

/* Whoever attached goes on in slots of his own: what is published stays what it was. */
START_TEST(attached_states_stay)
{
    pkv_cache *cache = open_cache(0);
    run_to(create(cache), text, 4 * PAGE);
    const pkv_seq a = attach(cache, text, LENGTH, 4 * PAGE), b = attach(cache, text, 70, 4 * PAGE);
    int32_t other[LENGTH];
    memcpy(other, text, sizeof other);
    other[4 * PAGE] = -5;
    run_to(a, text, 6 * PAGE);
    run_to(b, other, 6 * PAGE);
    known(cache, text, 5 * PAGE, 4 * PAGE);
    known(cache, text, LENGTH, 6 * PAGE);
    known(cache, other, LENGTH, 6 * PAGE);
    ck_assert_int_eq(pkv_seq_truncate(a, 4 * PAGE), PKV_EDROPPED);
    ck_assert_int_eq(pkv_seq_truncate(a, 0), PKV_OK);
    known(cache, text, LENGTH, 6 * PAGE);
    pkvt_close(cache);
}
END_TEST

/* Single tokens publish a state now and then; the host wherever it makes a checkpoint. */
START_TEST(generation)
{
    pkv_cache *cache = open_cache(0);
    const pkv_seq seq = create(cache);
    for (uint32_t n = 1; n <= 20 * PAGE; n++) {
        run_to(seq, text, n);
        if (n == 18 * PAGE) ck_assert_int_eq(pkv_seq_checkpoint(seq), PKV_OK);
        if (n == 18 * PAGE) known(cache, text, LENGTH, 16 * PAGE); /* published already, without */
    }
    known(cache, text, LENGTH, 16 * PAGE);
    pkvt_end(seq);
    pkvt_close(cache);
}
END_TEST

/* Token ids that come late find a checkpoint, or the state of the sequence's end. */
START_TEST(late_tokens)
{
    pkv_cache *cache = open_cache(0);
    const pkv_seq seq = create(cache);
    for (uint32_t i = 0; i < 2; i++) {
        pkv_batch batch;
        ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
        ck_assert_int_eq(pkv_batch_add(batch, seq, NULL, 2 * PAGE), PKV_OK);
        ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
        for (uint32_t s = 0; s < STATES; s++) {
            pkv_page to;
            uint32_t n;
            ck_assert_int_eq(pkv_batch_states(batch, 0, s, NULL, &to, 1, &n), PKV_OK);
            const uint64_t end = (i + 1) * 2 * PAGE;
            *value_at(cache, s, to) = end << 32 | (uint32_t)text[end - 1];
        }
        ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
        if (i == 0) ck_assert_int_eq(pkv_seq_checkpoint(seq), PKV_OK);
    }
    ck_assert_int_eq(pkv_seq_set_tokens(seq, 0, text, 3 * PAGE), PKV_OK);
    known(cache, text, LENGTH, 2 * PAGE);
    ck_assert_int_eq(pkv_seq_set_tokens(seq, 3 * PAGE, text + 3 * PAGE, PAGE), PKV_OK);
    known(cache, text, LENGTH, 4 * PAGE);
    pkvt_close(cache);
}
END_TEST

/* Steps as suggested: the end of the prompt, distances that double before it, and where a match was
 * cut short. */
START_TEST(placer)
{
    pkv_cache *cache = open_cache(0);
    const pkv_seq seq = create(cache);
    uint64_t stop;
    ck_assert_int_eq(pkv_seq_state_stop(seq, LENGTH, &stop), PKV_OK);
    ck_assert_uint_eq(stop, 1184 - 1024);
    ck_assert_int_eq(pkv_seq_state_stop(seq, PAGE, &stop), PKV_OK);
    ck_assert_uint_eq(stop, PAGE);
    ck_assert_int_eq(pkv_seq_state_stop(seq, PAGE + 1, &stop), PKV_OK);
    ck_assert_uint_eq(stop, PAGE);
    ck_assert_int_eq(pkv_seq_state_stop(seq, 0, &stop), PKV_OK);
    ck_assert_int_eq(pkv_seq_state_stop(seq, 9, NULL), PKV_EINVAL);
    prompt(seq, text, LENGTH);
    known(cache, text, LENGTH, LENGTH); /* it ends with a page, too */
    known(cache, text, LENGTH - 1, 1184);
    known(cache, text, 1183, 1184 - 256);
    known(cache, text, 700, 1184 - 512);
    known(cache, text, 300, 1184 - 1024);
    /* Another prompt, 500 tokens of which are the same: 496 with pages, 160 with a state. */
    int32_t other[LENGTH];
    memcpy(other, text, sizeof other);
    for (int i = 500; i < LENGTH; i++)
        other[i] = -i;
    const pkv_seq second = attach(cache, other, LENGTH - 1, 160);
    prompt(second, other, LENGTH);
    /* The third finds the place where the second left the first. */
    for (int i = 500; i < LENGTH; i++)
        other[i] = -2 * i;
    known(cache, other, LENGTH - 1, 496);
    pkvt_close(cache);
}
END_TEST

/* 64 prompts of 2,200 tokens, one after another, that begin alike: how many find something, and how
 * many tokens in all. */
static uint32_t shared_prompts(uint32_t shared, uint64_t *hit_tokens)
{
    enum { PROMPT = 2200, PROMPTS = 64 };
    static int32_t tokens[PROMPT];
    pkv_cache *cache = open_cache(0);
    uint32_t hits = 0;
    *hit_tokens = 0;
    for (int i = 0; i < PROMPTS; i++) {
        for (int k = 0; k < PROMPT; k++)
            tokens[k] = k < (int)shared ? k : (i + 1) * 10000 + k;
        const pkv_match match = pkvt_match(cache, NULL, tokens, PROMPT - 1);
        const pkv_seq seq = create(cache);
        ck_assert_int_eq(pkv_seq_attach(seq, &match), PKV_OK);
        hits += match.n_tokens != 0;
        *hit_tokens += match.n_tokens;
        prompt(seq, tokens, PROMPT);
        pkvt_end(seq);
    }
    pkvt_close(cache);
    return hits;
}

/* A cache that keeps one state per prompt, at the last end of a large block, has hits only if that
 * happens to lie in what is shared. */
START_TEST(shared_beginnings)
{
    uint64_t hit_tokens;
    ck_assert_uint_eq(shared_prompts(1600, &hit_tokens), 63);
    ck_assert_uint_eq(hit_tokens, 1168 + 62 * 1600);
    ck_assert_uint_eq(shared_prompts(1500, &hit_tokens), 63);
    ck_assert_uint_eq(hit_tokens, 1168 + 62 * 1488);
}
END_TEST

START_TEST(reclaim)
{
    pkv_cache *cache = open_cache(0);
    const pkv_seq seq = create(cache);
    run_to(seq, text, 2 * PAGE);
    run_to(seq, text, 4 * PAGE);
    pkvt_end(seq);
    uint64_t freed;
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 3, 1, &freed), PKV_EINVAL);
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 2, 1, &freed),
                     PKV_OK); /* one of two groups is enough */
    ck_assert_uint_eq(freed, 1);
    pkvt_verify(cache);
    const pkv_match match = pkvt_match(cache, NULL, text, LENGTH);
    ck_assert(match.n_tokens == 2 * PAGE || match.n_tokens == 4 * PAGE);
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 2, 9, &freed), PKV_OK);
    ck_assert_uint_eq(freed, 1);
    known(cache, text, LENGTH, 0);
    const pkv_seq again = create(cache);
    run_to(again, text, 4 * PAGE); /* fills the gap */
    known(cache, text, LENGTH, 4 * PAGE);
    pkvt_end(again);
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 0, 1, &freed),
                     PKV_OK); /* the last page: its state, too */
    known(cache, text, LENGTH, 0);
    pkvt_drop(cache, NULL);
    pkvt_verify(cache);
    pkv_state_info info = {.struct_size = sizeof info};
    ck_assert_int_eq(pkv_cache_state_info(cache, 0, &info), PKV_OK);
    ck_assert_uint_eq(info.slots_used + info.slots_cached, 0);
    pkvt_close(cache);
}
END_TEST

/* A step takes cached states when slots are short, and only then. */
START_TEST(short_of_slots)
{
    pkv_cache *cache = open_cache(3);
    for (int i = 0; i < 8; i++) {
        int32_t tokens[2 * PAGE];
        pkvt_count_from(1000 * i, tokens, 2 * PAGE);
        const pkv_seq seq = create(cache);
        run_to(seq, tokens, 2 * PAGE);
        pkvt_end(seq);
        known(cache, tokens, 2 * PAGE, 2 * PAGE);
    }
    pkvt_close(cache);
}
END_TEST

/* A namespace's quota holds for states as for pages, and what has no room costs no page. */
START_TEST(quotas)
{
    pkv_cache *cache = open_cache(0);
    const pkv_namespace space = {"a", 1};
    const pkv_prefix_quota quota = {.struct_size = sizeof quota, .share = 1, .max = 8};
    ck_assert_int_eq(pkv_prefix_set_quota(cache, &space, &quota), PKV_OK);
    const pkv_seq seq = create(cache);
    ck_assert_int_eq(pkv_seq_set_namespace(seq, &space), PKV_OK);
    for (uint64_t n = 1; n <= 8; n++)
        run_to(seq, text, n * PAGE);
    ck_assert_uint_eq(pkvt_match(cache, &space, text, LENGTH).n_tokens, 8 * PAGE);
    ck_assert_uint_le(pkvt_published(cache, &space), 3 * 8);
    pkvt_end(seq);
    pkvt_close(cache);
}
END_TEST

START_TEST(without_an_index)
{
    const pkv_group_config groups[2] = {{.n_layers = 1, .kv_heads = 1, .head_dim_k = 8},
                                        {.n_layers = 1, .state_bytes = 8}};
    pkv_config config;
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    config.groups = groups;
    config.n_groups = 2;
    config.prefix = 0;
    pkv_cache *cache;
    uint64_t stop;
    ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_OK);
    ck_assert_int_eq(pkv_seq_state_stop(create(cache), 777, &stop), PKV_OK);
    ck_assert_uint_eq(stop, 777);
    pkv_cache_destroy(cache);
    cache = pkvt_open(NULL, 0, false);
    ck_assert_int_eq(pkv_seq_state_stop(create(cache), 777, &stop), PKV_ENOTSUP);
    pkv_cache_destroy(cache);
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("state prefix");
    TCase *tc = tcase_create("states in the index");
    tcase_add_test(tc, a_match_ends_with_a_state);
    tcase_add_test(tc, attached_states_stay);
    tcase_add_test(tc, generation);
    tcase_add_test(tc, late_tokens);
    tcase_add_test(tc, placer);
    tcase_add_test(tc, shared_beginnings);
    tcase_add_test(tc, reclaim);
    tcase_add_test(tc, short_of_slots);
    tcase_add_test(tc, quotas);
    tcase_add_test(tc, without_an_index);
    suite_add_tcase(suite, tc);
    return suite;
}
