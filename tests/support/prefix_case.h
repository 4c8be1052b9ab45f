/* A cache with a prefix index and one group, driven through the public functions. */
#ifndef PKVT_PREFIX_CASE_H
#define PKVT_PREFIX_CASE_H

#include <check.h>
#include <pagedkv/pagedkv.h>
#include <stdbool.h>

enum { PKVT_PAGE = 16 };

/* max_pages 0 = as many as fit; `collide`: every hash is equal. */
static inline pkv_cache *pkvt_open(const char *policy, uint32_t max_pages, bool collide)
{
    pkv_config config;
    pkv_group_config group = {.n_layers = 2,
                              .kv_heads = 1,
                              .head_dim_k = 8,
                              .dtype = PKV_DTYPE_F32,
                              .max_pages = max_pages};
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    config.page_tokens = PKVT_PAGE;
    config.groups = &group;
    config.n_groups = 1;
    config.storage = PKV_STORAGE_NONE;
    config.prefix_policy = policy;
    if (collide) config.prefix_key[0] = config.prefix_key[1] = UINT64_MAX;
    pkv_cache *cache;
    ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_OK);
    return cache;
}

static inline void pkvt_verify(pkv_cache *cache)
{
    char text[256] = "";
    const pkv_status status = pkv_cache_verify(cache, text, sizeof text);
    ck_assert_msg(status == PKV_OK, "%s", text);
}

static inline void pkvt_close(pkv_cache *cache)
{
    pkvt_verify(cache);
    pkv_cache_destroy(cache);
}

/* Appends tokens to a sequence in one batch. */
static inline void pkvt_append(pkv_cache *cache, pkv_seq seq, const int32_t *tokens, uint32_t n)
{
    pkv_batch batch;
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, seq, tokens, n), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
}

/* A sequence in a namespace that ran through tokens. */
static inline pkv_seq pkvt_run(pkv_cache *cache, const pkv_namespace *space, const int32_t *tokens,
                               uint32_t n)
{
    pkv_seq seq;
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    ck_assert_int_eq(pkv_seq_set_namespace(seq, space), PKV_OK);
    pkvt_append(cache, seq, tokens, n);
    return seq;
}

static inline void pkvt_end(pkv_seq seq)
{
    ck_assert_int_eq(pkv_seq_destroy(seq), PKV_OK);
}

static inline pkv_match pkvt_match(pkv_cache *cache, const pkv_namespace *space,
                                   const int32_t *tokens, uint64_t n)
{
    pkv_match m = {.struct_size = sizeof m};
    ck_assert_int_eq(pkv_prefix_match(cache, space, tokens, n, &m), PKV_OK);
    return m;
}

static inline uint64_t pkvt_reclaim(pkv_cache *cache, uint64_t n)
{
    uint64_t freed;
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 0, n, &freed), PKV_OK);
    return freed;
}

static inline void pkvt_drop(pkv_cache *cache, const pkv_namespace *space)
{
    ck_assert_int_eq(pkv_prefix_drop(cache, space, NULL), PKV_OK);
}

/* Pages published in a namespace now. */
static inline uint64_t pkvt_published(pkv_cache *cache, const pkv_namespace *space)
{
    pkv_prefix_stats stats = {.struct_size = sizeof stats};
    ck_assert_int_eq(pkv_prefix_get_stats(cache, space, &stats), PKV_OK);
    return stats.pages;
}

/* tokens[0..n) count from `first` on. */
static inline void pkvt_count_from(int32_t first, int32_t *tokens, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = first + (int32_t)i;
}

#endif
