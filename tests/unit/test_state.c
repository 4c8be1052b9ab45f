/* Recurrent states: which slot a step reads and writes, and what forks, checkpoints, rollback and
 * limits make of it. */
#include <string.h>

#include <pagedkv/pagedkv.h>

#include "suite.h"

enum { STATE = 200, SLOTS = 6 };

static pkv_group_config groups[2] = {
    {.n_layers = 1, .kv_heads = 1, .head_dim_k = 16},
    {.n_layers = 3, .state_bytes = STATE, .max_pages = SLOTS},
};

static pkv_cache *open_cache(void)
{
    pkv_config config;
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    config.groups = groups;
    config.n_groups = 2;
    config.prefix = 0;
    config.debug = PKV_DEBUG_POISON | PKV_DEBUG_CHECKSUM;
    pkv_cache *cache;
    ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_OK);
    return cache;
}

static uint64_t used(pkv_cache *cache)
{
    pkv_state_info info = {.struct_size = sizeof info};
    ck_assert_int_eq(pkv_cache_state_info(cache, 0, &info), PKV_OK);
    ck_assert_uint_eq(info.group, 1);
    ck_assert_uint_eq(info.slot_bytes, 3 * 256);
    ck_assert_int_eq(pkv_cache_verify(cache, NULL, 0), PKV_OK);
    return info.slots_used;
}

static pkv_page state_of(pkv_seq seq)
{
    pkv_page slot;
    ck_assert_int_eq(pkv_seq_state(seq, 0, &slot), PKV_OK);
    return slot;
}

/* A batch of one entry, reserved; the slots it writes are filled with their number. */
static pkv_batch reserve(pkv_seq seq, uint32_t n_tokens, uint32_t keep, pkv_page *to)
{
    pkv_batch batch;
    pkv_page from;
    uint32_t n;
    ck_assert_int_eq(pkv_batch_begin(seq.cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, seq, NULL, n_tokens), PKV_OK);
    ck_assert_int_eq(pkv_batch_keep_states(batch, 0, keep), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_states(batch, 0, 0, &from, to, SLOTS, &n), PKV_OK);
    ck_assert_uint_eq(n, keep);
    ck_assert_uint_eq(from, state_of(seq));
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t layer = 0; layer < 3; layer++) {
            void *at;
            ck_assert_int_eq(pkv_state_address(seq.cache, 0, to[i], layer, &at), PKV_OK);
            memset(at, (int)(i + layer), STATE);
        }
    return batch;
}

static void step(pkv_seq seq, uint32_t n_tokens)
{
    pkv_page to[SLOTS];
    ck_assert_int_eq(pkv_batch_commit(reserve(seq, n_tokens, 1, to)), PKV_OK);
    ck_assert_uint_eq(state_of(seq), to[0]);
}

START_TEST(steps)
{
    pkv_cache *cache = open_cache();
    pkv_seq seq, child;
    pkv_page to[SLOTS];
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    ck_assert_uint_eq(state_of(seq), PKV_PAGE_NONE);
    step(seq, 20);
    const pkv_page before = state_of(seq);
    pkv_batch batch = reserve(seq, 4, 3, to); /* after 2, 3 and 4 of them */
    ck_assert_uint_eq(used(cache), 4);
    ck_assert_int_eq(pkv_batch_abort(batch), PKV_OK);
    ck_assert_uint_eq(state_of(seq), before);
    ck_assert_uint_eq(used(cache), 1);
    batch = reserve(seq, 4, 3, to);
    ck_assert_int_eq(pkv_batch_commit_partial(batch, (const uint32_t[]){1}, 1), PKV_EDROPPED);
    ck_assert_int_eq(pkv_batch_commit_partial(batch, (const uint32_t[]){2}, 1), PKV_OK);
    ck_assert_uint_eq(state_of(seq), to[0]);
    batch = reserve(seq, 4, 1, to);
    const pkv_page kept = state_of(seq);
    ck_assert_int_eq(pkv_batch_commit_partial(batch, (const uint32_t[]){0}, 1), PKV_OK);
    ck_assert_uint_eq(state_of(seq), kept);
    ck_assert_uint_eq(used(cache), 1);
    ck_assert_int_eq(pkv_seq_fork(seq, &child), PKV_OK); /* shares it, and leaves it alone */
    ck_assert_uint_eq(used(cache), 1);
    step(child, 1);
    ck_assert_uint_eq(state_of(seq), kept);
    ck_assert_uint_eq(used(cache), 2);
    pkv_cache_destroy(cache);
}
END_TEST

START_TEST(checkpoints)
{
    pkv_cache *cache = open_cache();
    pkv_seq seq, child;
    uint64_t at[4];
    uint32_t n;
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    ck_assert_int_eq(pkv_seq_checkpoint(seq), PKV_EINVAL);
    step(seq, 10);
    ck_assert_int_eq(pkv_seq_checkpoint(seq), PKV_OK);
    ck_assert_int_eq(pkv_seq_checkpoint(seq), PKV_OK); /* the same */
    const pkv_page ten = state_of(seq);
    step(seq, 10);
    ck_assert_int_eq(pkv_seq_checkpoint(seq), PKV_OK);
    step(seq, 10);
    ck_assert_uint_eq(used(cache), 3);
    ck_assert_int_eq(pkv_seq_checkpoints(seq, at, 1, &n), PKV_ERANGE);
    ck_assert_int_eq(pkv_seq_checkpoints(seq, at, 4, &n), PKV_OK);
    ck_assert(n == 2 && at[0] == 10 && at[1] == 20);
    ck_assert_int_eq(pkv_seq_truncate(seq, 29), PKV_EDROPPED);
    ck_assert_int_eq(pkv_seq_fork(seq, &child), PKV_OK);
    ck_assert_int_eq(pkv_seq_truncate(seq, 10), PKV_OK);
    ck_assert_uint_eq(state_of(seq), ten);
    ck_assert_int_eq(pkv_seq_truncate(seq, 0), PKV_OK);
    ck_assert_uint_eq(state_of(seq), PKV_PAGE_NONE);
    ck_assert_int_eq(pkv_seq_checkpoints(seq, NULL, 0, &n), PKV_OK); /* none is left */
    ck_assert_uint_eq(used(cache), 3);                               /* the child's */
    ck_assert_int_eq(pkv_seq_drop_checkpoint(child, 20), PKV_OK);
    ck_assert_int_eq(pkv_seq_drop_checkpoint(child, 20), PKV_EINVAL);
    ck_assert_uint_eq(used(cache), 2);
    ck_assert_int_eq(pkv_seq_destroy(child), PKV_OK);
    ck_assert_uint_eq(used(cache), 0);
    pkv_cache_destroy(cache);
}
END_TEST

/* All or nothing: without slots there are no pages either, and the shortfall says which. */
START_TEST(shortfall)
{
    pkv_cache *cache = open_cache();
    pkv_seq seq;
    pkv_batch batch;
    uint32_t missing[2], blocked;
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    ck_assert_int_eq(pkv_admit(seq, 100), PKV_OK);
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, seq, NULL, 20), PKV_OK);
    ck_assert_int_eq(pkv_batch_keep_states(batch, 0, 21), PKV_EINVAL);
    ck_assert_int_eq(pkv_batch_keep_states(batch, 0, SLOTS + 2), PKV_OK);
    ck_assert_int_eq(pkv_admit_check_batch(batch, &blocked), PKV_EUNSAFE);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_ENOPAGES);
    ck_assert_int_eq(pkv_batch_shortfall(batch, missing, 2), PKV_OK);
    ck_assert(missing[0] == 0 && missing[1] == 2);
    ck_assert_uint_eq(used(cache), 0);
    pkv_stats stats = {.struct_size = sizeof stats};
    ck_assert_int_eq(pkv_cache_stats(cache, &stats), PKV_OK);
    ck_assert_uint_eq(stats.pages_used, 0);
    ck_assert_int_eq(pkv_batch_keep_states(batch, 0, 2), PKV_OK);
    ck_assert_int_eq(pkv_admit_check_batch(batch, &blocked), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_keep_states(batch, 0, 1), PKV_ESTATE);
    ck_assert_int_eq(pkv_batch_abort(batch), PKV_OK);
    pkv_cache_destroy(cache);
}
END_TEST

/* Every admitted sequence has a state set aside, and one slot stays free for steps. */
START_TEST(admission)
{
    pkv_cache *cache = open_cache();
    pkv_seq seq[SLOTS];
    for (int i = 0; i < SLOTS; i++) {
        ck_assert_int_eq(pkv_seq_create(cache, &seq[i]), PKV_OK);
        ck_assert_int_eq(pkv_admit(seq[i], 64), i < SLOTS - 1 ? PKV_OK : PKV_EUNSAFE);
    }
    for (int round = 0; round < 3; round++)
        for (int i = 0; i < SLOTS - 1; i++)
            step(seq[i], 7);
    ck_assert_uint_eq(used(cache), SLOTS - 1);
    pkv_cache_destroy(cache);
}
END_TEST

START_TEST(configs)
{
    pkv_group_config given[3] = {groups[0], groups[1], groups[0]};
    pkv_config config;
    char text[200];
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    config.groups = given;
    config.n_groups = 2;
    ck_assert_int_eq(pkv_config_check(&config, text, sizeof text), PKV_OK);
    config.n_groups = 3;
    ck_assert_int_eq(pkv_config_check(&config, text, sizeof text), PKV_EINVAL);
    ck_assert_ptr_nonnull(strstr(text, "groups[2]: a group with pages behind a state group"));
    given[0] = given[1];
    config.n_groups = 1;
    ck_assert_int_eq(pkv_config_check(&config, text, sizeof text), PKV_EINVAL);
    given[0] = groups[0];
    config.n_groups = 2;
    given[1].state_bytes = (uint64_t)1 << 30; /* two slots exceed the limit */
    ck_assert_int_eq(pkv_config_check(&config, text, sizeof text), PKV_EINVAL);
    ck_assert_ptr_nonnull(strstr(text, "memory_limit"));
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("state");
    TCase *tcase = tcase_create("state");
    tcase_add_test(tcase, steps);
    tcase_add_test(tcase, checkpoints);
    tcase_add_test(tcase, shortfall);
    tcase_add_test(tcase, admission);
    tcase_add_test(tcase, configs);
    suite_add_tcase(suite, tcase);
    return suite;
}
