/* Trees that are kept: a path of a step's new tokens leaves what a step of just that path leaves.
 */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "attn_case.h"
#include "random.h"
#include "suite.h"

enum { MOST = 60, LAYERS = 2 };

static const struct {
    pkv_dtype dtype, k, v;
} formats[] = {{PKV_DTYPE_F32, 0, 0},
               {PKV_DTYPE_F16, 0, 0},
               {PKV_DTYPE_BF16, 0, 0},
               {PKV_DTYPE_F16, PKV_DTYPE_K8, PKV_DTYPE_V8},
               {PKV_DTYPE_BF16, PKV_DTYPE_K4, PKV_DTYPE_V4},
               {PKV_DTYPE_F16, PKV_DTYPE_K8, 0}};

static ac_shape shape_of(int i)
{
    return (ac_shape){.page_tokens = 16,
                      .n_layers = LAYERS,
                      .kv_heads = 3,
                      .q_heads = 6,
                      .dim_k = 64,
                      .dim_v = 40,
                      .dtype = formats[i].dtype,
                      .dtype_k = formats[i].k,
                      .dtype_v = formats[i].v,
                      .signals = (formats[i].k ? 0 : PKV_SIGNAL_BOUNDS) | PKV_SIGNAL_KEYSUM};
}

/* n of `from` ascending numbers. */
static void path(uint64_t *random, uint32_t *kept, uint32_t n, uint32_t from)
{
    for (uint32_t at = 0, got = 0; got < n; at++)
        if (pkvt_below(random, from - at) < n - got) kept[got++] = at;
}

static void append(ac_case *c, pkv_plan *plan, const uint64_t *content, uint32_t n,
                   uint32_t *accepted, uint32_t *kept)
{
    const ac_entry entry = {.seq = 0, .n = n, .content = content};
    const ac_run run = {.commit = true, .accepted = accepted, .kept = kept};
    ac_result result = ac_step(c, plan, &entry, 1, &run);
    ac_result_free(&result);
}

/* Every byte of every full page: codes, scales and digests included. */
static void same_pages(const ac_case *a, const ac_case *b)
{
    ck_assert_uint_eq(a->seqs[0].length, b->seqs[0].length);
    for (uint32_t l = 0; l < a->seqs[0].length / a->shape.page_tokens; l++)
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            pkv_page pages[2];
            void *at[2];
            pkv_group_info info = {.struct_size = sizeof info};
            ck_assert_int_eq(pkv_cache_group_info(a->cache, 0, &info), PKV_OK);
            for (int i = 0; i < 2; i++) {
                const ac_case *c = i ? b : a;
                ck_assert_int_eq(pkv_seq_pages(c->seqs[0].handle, 0, l, 1, &pages[i]), PKV_OK);
                ck_assert_int_eq(pkv_page_address(c->cache, 0, pages[i], layer, &at[i]), PKV_OK);
            }
            ck_assert_msg(memcmp(at[0], at[1], info.layer_bytes) == 0, "page %u, layer %u", l,
                          layer);
        }
}

static pkv_plan *plan_of(ac_case *c)
{
    const pkv_plan_options options = ac_options(c);
    pkv_plan *plan;
    ck_assert_int_eq(pkv_plan_create(c->cache, &options, &plan), PKV_OK);
    return plan;
}

START_TEST(as_if_it_were_the_step)
{
    const ac_shape shape = shape_of(_i);
    uint64_t random = 77 + (uint64_t)_i;
    ac_case *tree = ac_open(&shape), *chain = ac_open(&shape);
    pkv_plan *plans[2] = {plan_of(tree), plan_of(chain)};
    ac_create(tree, 0);
    ac_create(chain, 0);
    for (int step = 0; step < 40; step++) {
        uint64_t content[MOST], kept_content[MOST];
        uint32_t kept[MOST], n = 1 + pkvt_below(&random, MOST);
        uint32_t n_kept = pkvt_below(&random, n + 1);
        for (uint32_t i = 0; i < n; i++)
            content[i] = pkvt_random(&random);
        path(&random, kept, n_kept, n);
        for (uint32_t i = 0; i < n_kept; i++)
            kept_content[i] = content[kept[i]];
        append(tree, plans[0], content, n, &n_kept, kept);
        if (n_kept) append(chain, plans[1], kept_content, n_kept, NULL, NULL);
        same_pages(tree, chain);
    }
    /* What comes after sees the same, tails included. */
    uint64_t next[3] = {1, 2, 3};
    const ac_entry entry = {.seq = 0, .n = 3, .content = next};
    const ac_run run = {0};
    ac_result a = ac_step(tree, plans[0], &entry, 1, &run);
    ac_result b = ac_step(chain, plans[1], &entry, 1, &run);
    const size_t rows = (size_t)LAYERS * 3 * shape.q_heads;
    ck_assert(memcmp(a.lse, b.lse, rows * sizeof(float)) == 0);
    ck_assert(memcmp(a.out, b.out, rows * shape.dim_v * sizeof(float)) == 0);
    ac_result_free(&a);
    ac_result_free(&b);
    pkv_plan_destroy(plans[0]);
    pkv_plan_destroy(plans[1]);
    ac_close(tree);
    ac_close(chain);
}
END_TEST

START_TEST(ids_move_with_their_tokens)
{
    pkv_config config;
    pkv_config_init(&config, sizeof config);
    const pkv_group_config group = {.n_layers = 1,
                                    .kv_heads = 1,
                                    .q_heads = 1,
                                    .head_dim_k = 8,
                                    .head_dim_v = 8,
                                    .dtype = PKV_DTYPE_F16};
    config.groups = &group;
    config.n_groups = 1;
    config.page_tokens = 8;
    config.storage = PKV_STORAGE_NONE;
    config.prefix = 1;
    config.memory_limit = 1 << 20;
    pkv_cache *cache;
    ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_OK);
    pkv_seq seq;
    pkv_batch batch;
    const int32_t tokens[12] = {10, 90, 11, 12, 91, 13, 14, 15, 92, 16, 93, 17};
    const uint32_t kept[8] = {0, 2, 3, 5, 6, 7, 9, 11}, n_kept = 8;
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, seq, tokens, 12), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    /* Runs of neighbours, cut at page ends: 2 3 | 5 6 7 | 9 | 11. */
    pkv_slot_copy copies[8];
    uint32_t n;
    ck_assert_int_eq(pkv_batch_path_copies(batch, 0, 0, kept, n_kept, copies, 8, &n), PKV_OK);
    ck_assert_uint_eq(n, 4);
    static const uint32_t from[] = {2, 5, 1, 3}, to[] = {1, 3, 6, 7}, count[] = {2, 3, 1, 1};
    for (uint32_t i = 0; i < n; i++) {
        ck_assert_uint_eq(copies[i].src_slot, from[i]);
        ck_assert_uint_eq(copies[i].dst_slot, to[i]);
        ck_assert_uint_eq(copies[i].n_tokens, count[i]);
        ck_assert_int_eq(copies[i].src == copies[i].dst, i < 2);
        ck_assert_uint_eq(copies[i].open, 0);
    }
    ck_assert_int_eq(pkv_batch_commit_paths(batch, kept, &n_kept, 1), PKV_OK);
    const int32_t path_tokens[9] = {10, 11, 12, 13, 14, 15, 16, 17, 0};
    pkv_match match = {.struct_size = sizeof match};
    ck_assert_int_eq(pkv_prefix_match(cache, NULL, path_tokens, 9, &match), PKV_OK);
    ck_assert_uint_eq(match.n_tokens, 8);
    ck_assert_int_eq(pkv_prefix_match(cache, NULL, tokens, 9, &match), PKV_OK);
    ck_assert_uint_le(match.n_tokens, 1);
    ck_assert_int_eq(pkv_cache_verify(cache, NULL, 0), PKV_OK);
    pkv_cache_destroy(cache);
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("paths");
    TCase *tcase = tcase_create("paths");
    tcase_set_timeout(tcase, 120);
    tcase_add_loop_test(tcase, as_if_it_were_the_step, 0, sizeof formats / sizeof *formats);
    tcase_add_test(tcase, ids_move_with_their_tokens);
    suite_add_tcase(suite, tcase);
    return suite;
}
