/* Bad input for the functions of cache, sequences, batches, exports and admission: a clear status,
 * a text that names the reason, no output touched, nothing changed. */
#include <check.h>
#include <string.h>

#include <pagedkv/pagedkv.h>

#include "cache/cache_internal.h"
#include "suite.h"

static pkv_cache *cache, *other;
static pkv_group_config groups[2];
static pkv_config config;

static void setup(void)
{
    memset(groups, 0, sizeof groups);
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    groups[0] = (pkv_group_config){.n_layers = 2, .kv_heads = 2, .head_dim_k = 16};
    groups[1] = (pkv_group_config){.n_layers = 1, .kv_heads = 2, .head_dim_k = 16, .window = 40};
    config.groups = groups;
    config.n_groups = 2;
    config.storage = PKV_STORAGE_NONE;
    config.max_sequences = 4;
    config.max_batches = 2;
    config.memory_limit = (uint64_t)16 << 20;
    ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_OK);
    ck_assert_int_eq(pkv_cache_create(&config, &other), PKV_OK);
}

static void teardown(void)
{
    char text[256];
    ck_assert_msg(pkv_cache_verify(cache, text, sizeof text) == PKV_OK, "%s", text);
    pkv_cache_destroy(cache);
    pkv_cache_destroy(other);
}

/* The last error has this code and its text contains the words. */
static void said(pkv_status status, const char *words)
{
    char text[256];
    ck_assert_int_eq(pkv_cache_last_error(cache, text, sizeof text), status);
    ck_assert_msg(strstr(text, words) != NULL, "\"%s\" does not say \"%s\"", text, words);
}

static pkv_seq new_seq(void)
{
    pkv_seq seq;
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    return seq;
}

static pkv_batch reserved(pkv_seq seq, uint32_t n)
{
    pkv_batch batch;
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, seq, NULL, n), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    return batch;
}

static void refused(const char *field)
{
    char text[256];
    pkv_cache *none = (pkv_cache *)8;
    ck_assert_int_lt(pkv_config_check(&config, text, sizeof text), 0);
    ck_assert_msg(strncmp(text, field, strlen(field)) == 0, "\"%s\" does not name %s", text, field);
    ck_assert_int_lt(pkv_cache_create(&config, &none), 0);
    ck_assert_ptr_eq(none, (pkv_cache *)8);
}

#define REFUSED(lvalue, value, field)                                                              \
    do {                                                                                           \
        const __typeof__(lvalue) before_ = (lvalue);                                               \
        (lvalue) = (value);                                                                        \
        refused(field);                                                                            \
        (lvalue) = before_;                                                                        \
    } while (0)

START_TEST(configs)
{
    uint64_t min = 7, max = 7;
    ck_assert_int_eq(pkv_config_init(NULL, sizeof config), PKV_EINVAL);
    ck_assert_int_eq(pkv_config_init(&config, sizeof config + 8), PKV_EVERSION);
    ck_assert_int_eq(pkv_config_init(&config, 232), PKV_EVERSION); /* that of 0.1 */
    ck_assert_int_eq(pkv_config_bounds(NULL, &min, &max), PKV_EINVAL);
    ck_assert_int_eq(pkv_config_bounds("nonsense", &min, &max), PKV_EINVAL);
    ck_assert_int_eq(pkv_config_bounds("kv_heads", NULL, &max), PKV_EINVAL);
    ck_assert_uint_eq(min, 7);
    ck_assert_int_eq(pkv_config_check(NULL, NULL, 0), PKV_EINVAL);
    ck_assert_int_eq(pkv_cache_create(NULL, &cache), PKV_EINVAL);
    ck_assert_int_eq(pkv_cache_create(&config, NULL), PKV_EINVAL);
    REFUSED(config.struct_size, 3, "struct_size");
    REFUSED(config.group_size, 0, "group_size");
    REFUSED(config.group_size, sizeof groups[0] + 8, "group_size");
    REFUSED(config.rope_size, 0, "rope_size");
    REFUSED(config.page_tokens, 0, "page_tokens");
    REFUSED(config.page_tokens, 24, "page_tokens");
    REFUSED(config.page_tokens, 256, "page_tokens");
    REFUSED(config.n_groups, 0, "n_groups");
    REFUSED(config.n_groups, PKV_MAX_GROUPS + 1, "n_groups");
    REFUSED(config.groups, NULL, "groups");
    REFUSED(config.storage, 4, "storage");
    REFUSED(config.storage, -1, "storage");
    REFUSED(config.debug, 8, "debug");
    REFUSED(config.debug, PKV_DEBUG_POISON, "debug"); /* NONE has no bytes */
    REFUSED(config.signals, PKV_SIGNAL_BOUNDS, "signals");
    REFUSED(config.memory_limit, UINT64_MAX, "memory_limit");
    REFUSED(config.region_bytes, 12345, "region_bytes");
    REFUSED(config.region_bytes, (uint64_t)3 << 20, "region_bytes");
    REFUSED(config.max_sequences, 0, "max_sequences");
    REFUSED(config.max_batches, UINT32_MAX, "max_batches");
    REFUSED(config.event_capacity, 3, "event_capacity");
    REFUSED(config.numa_node, -2, "numa_node");
    REFUSED(config.prefix, 2, "prefix");
    REFUSED(config.reserved[7], 1, "reserved");
    REFUSED(groups[1].n_layers, 0, "groups[1].n_layers");
    REFUSED(groups[1].n_layers, 1025, "groups[1].n_layers");
    REFUSED(groups[1].kv_heads, 0, "groups[1].kv_heads");
    REFUSED(groups[0].q_heads, 3, "groups[0].q_heads");
    REFUSED(groups[0].head_dim_k, 12, "groups[0].head_dim_k");
    REFUSED(groups[0].head_dim_v, 584, "groups[0].head_dim_v");
    REFUSED(groups[0].dtype, 9, "groups[0].dtype:");
    REFUSED(groups[0].dtype, PKV_DTYPE_K8, "groups[0].dtype: 4 is not in 1..3");
    REFUSED(groups[0].dtype_k, 8, "groups[0].dtype_k: 8 is not in 1..7");
    REFUSED(groups[0].dtype_k, PKV_DTYPE_V8, "groups[0].dtype_k: v8 is a format of values");
    REFUSED(groups[0].dtype_v, PKV_DTYPE_K4, "groups[0].dtype_v: k4 is a format of keys");
    REFUSED(groups[0].dtype_v, -1, "groups[0].dtype_v: -1");
    REFUSED(groups[1].storage, PKV_STORAGE_HOST, "groups[1].storage: not in this version");
    REFUSED(groups[1].page_tokens, 16, "groups[1].page_tokens: not in this version");
    REFUSED(groups[1].v_in_k, 1, "groups[1].v_in_k: not in this version");
    REFUSED(groups[1].chunk, 8192, "groups[1].chunk: not in this version");
    REFUSED(groups[1].state_bytes, 4096, "groups[1].kv_heads: a state group has none");
    REFUSED(groups[0].state_bytes, UINT64_MAX, "groups[0].state_bytes");
    REFUSED(groups[0].external_bytes, 4096, "groups[0].external_base");
    REFUSED(groups[0].reserved[0], 1, "groups[0].reserved");
    const uint32_t twice[2] = {0, 0}, far[2] = {0, 3};
    REFUSED(groups[0].layers, twice, "groups[0].layers[1]");
    REFUSED(groups[0].layers, far, "groups[0].layers[1]");
    const pkv_allocator half = {0};
    REFUSED(config.allocator, &half, "allocator");
    const pkv_rope_config rope[2] = {{.rotary_dims = 3, .theta = 1e4}, {0}};
    REFUSED(config.rope, rope, "rope[0].rotary_dims");
    const pkv_rope_config later[2] = {{.reserved = {0, 0, 0, 1}}, {0}};
    REFUSED(config.rope, later, "rope[0].reserved");
    REFUSED(config.isa, "abacus", "isa");
    REFUSED(config.memory_limit, (uint64_t)160 << 10, "memory_limit"); /* no page beside metadata */
    groups[1].kv_heads = groups[1].q_heads = 512;
    REFUSED(groups[1].n_layers, 1000, "memory_limit"); /* not one page */
    config.region_bytes = (uint64_t)2 << 20;
    REFUSED(groups[1].n_layers, 1000, "region_bytes");
    groups[1].kv_heads = 2;
    groups[1].q_heads = 0;
    config.region_bytes = 0;
    config.storage = PKV_STORAGE_EXTERNAL;
    for (int g = 0; g < 2; g++) {
        groups[g].external_base = (void *)(uintptr_t)((g + 1) << 20);
        groups[g].external_bytes = 1 << 20;
    }
    ck_assert_int_eq(pkv_config_check(&config, NULL, 0), PKV_OK);
    const char *overlaps = "groups[1].external_base: the buffer overlaps that of groups[0]";
    REFUSED(groups[1].external_base, groups[0].external_base, overlaps);
    REFUSED(groups[1].external_base, (void *)((2 << 20) - 64), overlaps);
    REFUSED(groups[0].external_base, (void *)((1 << 20) + 64), overlaps);
    REFUSED(groups[0].external_bytes, (size_t)4 << 20, overlaps); /* one inside the other */
    REFUSED(groups[1].external_bytes, 100, "groups[1].external_bytes");
    REFUSED(groups[1].external_bytes, (size_t)1 << 60, "groups[1].external_bytes");
    config.storage = PKV_STORAGE_NONE;
    for (int g = 0; g < 2; g++) {
        groups[g].external_base = NULL;
        groups[g].external_bytes = 0;
    }
    char tiny[4];
    config.n_groups = 0;
    ck_assert_int_eq(pkv_config_check(&config, tiny, sizeof tiny), PKV_EINVAL);
    ck_assert_str_eq(tiny, "n_g");
    config.n_groups = 2;
}
END_TEST

START_TEST(caches)
{
    uint32_t n = 7, m = 7;
    pkv_group_info info = {.struct_size = 3};
    ck_assert_int_eq(pkv_cache_set_limit(NULL, 1), PKV_EINVAL);
    ck_assert_int_eq(pkv_cache_set_limit(cache, 0), PKV_EINVAL);
    said(PKV_EINVAL, "cache_set_limit");
    ck_assert_int_eq(pkv_cache_set_limit(cache, 1), PKV_EBUSY);
    ck_assert_int_eq(pkv_cache_trim(NULL, NULL), PKV_EINVAL);
    ck_assert_int_eq(pkv_cache_verify(NULL, NULL, 0), PKV_EINVAL);
    ck_assert_int_eq(pkv_cache_last_error(NULL, NULL, 0), PKV_EINVAL);
    ck_assert_int_eq(pkv_cache_group_info(NULL, 0, &info), PKV_EINVAL);
    ck_assert_int_eq(pkv_cache_group_info(cache, 0, NULL), PKV_EINVAL);
    ck_assert_int_eq(pkv_cache_group_info(cache, 0, &info), PKV_EVERSION);
    info.struct_size = sizeof info;
    ck_assert_int_eq(pkv_cache_group_info(cache, 2, &info), PKV_EINVAL);
    said(PKV_EINVAL, "group 2 of 2");
    ck_assert_int_eq(pkv_cache_group_count(cache, NULL), PKV_EINVAL);
    ck_assert_int_eq(pkv_cache_layer_group(cache, 3, &n, &m), PKV_EINVAL);
    ck_assert_int_eq(pkv_cache_layer_group(cache, 0, NULL, &m), PKV_EINVAL);
    ck_assert_uint_eq(n, 7);
    pkv_stats stats = {.struct_size = 1};
    ck_assert_int_eq(pkv_cache_stats(cache, NULL), PKV_EINVAL);
    ck_assert_int_eq(pkv_cache_stats(cache, &stats), PKV_EVERSION);
    pkv_group_stats share = {.struct_size = 1};
    ck_assert_int_eq(pkv_cache_group_stats(cache, 0, &share), PKV_EVERSION);
    share.struct_size = sizeof share;
    ck_assert_int_eq(pkv_cache_group_stats(cache, 9, &share), PKV_EINVAL);
    ck_assert_int_eq(pkv_cache_events(cache, NULL, 4, &n), PKV_EINVAL);
    ck_assert_int_eq(pkv_cache_events(cache, NULL, 0, NULL), PKV_EINVAL);
    pkv_cache_destroy(NULL);
}
END_TEST

START_TEST(sequences)
{
    const pkv_seq zero = {NULL, 0}, blank = {cache, 0}, wild = {cache, UINT64_MAX};
    pkv_seq seq = new_seq(), out = {NULL, 77};
    uint64_t n = 7;
    ck_assert_int_eq(pkv_seq_create(NULL, &out), PKV_EINVAL);
    ck_assert_int_eq(pkv_seq_create(cache, NULL), PKV_EINVAL);
    ck_assert_int_eq(pkv_seq_length(zero, &n), PKV_EINVAL);
    ck_assert_int_eq(pkv_seq_length(blank, &n), PKV_EINVAL);
    ck_assert_int_eq(pkv_seq_length(wild, &n), PKV_ESTALE);
    ck_assert_int_eq(pkv_seq_length(seq, NULL), PKV_EINVAL);
    ck_assert_int_eq(pkv_seq_fork(seq, NULL), PKV_EINVAL);
    ck_assert_int_eq(pkv_seq_fork(wild, &out), PKV_ESTALE);
    ck_assert_int_eq(pkv_seq_truncate(seq, 1), PKV_EINVAL);
    ck_assert_int_eq(pkv_seq_pin(seq, 4, 4), PKV_EINVAL);
    ck_assert_int_eq(pkv_seq_pin(seq, 5, 4), PKV_EINVAL);
    ck_assert_int_eq(pkv_seq_unpin(seq, 0, 4), PKV_EINVAL);
    for (int i = 0; i < 64; i++)
        ck_assert_int_eq(pkv_seq_pin(seq, 0, UINT64_MAX), PKV_OK);
    ck_assert_int_eq(pkv_seq_pin(seq, 0, 1), PKV_ERANGE);
    pkv_seq_info info = {.struct_size = 1};
    ck_assert_int_eq(pkv_seq_get_info(seq, 0, NULL), PKV_EINVAL);
    ck_assert_int_eq(pkv_seq_get_info(seq, 0, &info), PKV_EVERSION);
    info.struct_size = sizeof info;
    ck_assert_int_eq(pkv_seq_get_info(seq, 2, &info), PKV_EINVAL);
    pkv_page page = 7;
    ck_assert_int_eq(pkv_seq_pages(seq, 0, 0, 1, &page), PKV_EINVAL);
    ck_assert_int_eq(pkv_seq_pages(seq, 0, UINT32_MAX, UINT32_MAX, &page), PKV_EINVAL);
    ck_assert_int_eq(pkv_seq_pages(seq, 3, 0, 0, &page), PKV_EINVAL);
    ck_assert_uint_eq(page, 7);
    for (int i = 0; i < 3; i++)
        new_seq();
    ck_assert_int_eq(pkv_seq_create(cache, &out), PKV_ERANGE);
    said(PKV_ERANGE, "4 sequences");
    ck_assert_int_eq(pkv_seq_fork(seq, &out), PKV_ERANGE);
    ck_assert_uint_eq(out.id, 77);
    ck_assert_int_eq(pkv_seq_destroy(seq), PKV_OK);
    ck_assert_int_eq(pkv_seq_destroy(seq), PKV_ESTALE);
    ck_assert_int_eq(pkv_seq_destroy(zero), PKV_EINVAL);
    /* The slot is reused, the old handle stays stale. */
    pkv_seq again = new_seq();
    ck_assert_uint_eq((uint32_t)again.id, (uint32_t)seq.id);
    ck_assert_int_eq(pkv_seq_length(seq, &n), PKV_ESTALE);
    ck_assert_uint_eq(n, 7);
}
END_TEST

START_TEST(batches)
{
    pkv_seq seq = new_seq(), foreign;
    ck_assert_int_eq(pkv_seq_create(other, &foreign), PKV_OK);
    pkv_batch batch, second, out = {NULL, 77};
    uint32_t n = 7, missing[2] = {7, 7};
    ck_assert_int_eq(pkv_batch_begin(NULL, &batch), PKV_EINVAL);
    ck_assert_int_eq(pkv_batch_begin(cache, NULL), PKV_EINVAL);
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_begin(cache, &second), PKV_OK);
    ck_assert_int_eq(pkv_batch_begin(cache, &out), PKV_ERANGE);
    ck_assert_uint_eq(out.id, 77);
    ck_assert_int_eq(pkv_batch_add(batch, seq, NULL, 0), PKV_EINVAL);
    ck_assert_int_eq(pkv_batch_add(batch, foreign, NULL, 1), PKV_EFOREIGN);
    ck_assert_int_eq(pkv_batch_add(batch, (pkv_seq){NULL, 0}, NULL, 1), PKV_EINVAL);
    ck_assert_int_eq(pkv_batch_add(batch, seq, NULL, UINT32_MAX), PKV_ERANGE);
    ck_assert_int_eq(pkv_batch_add(batch, seq, NULL, 20), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, seq, NULL, 1), PKV_EINVAL);
    said(PKV_EINVAL, "listed twice");
    ck_assert_int_eq(pkv_batch_add(second, seq, NULL, 1), PKV_EBUSY);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_ESTATE);
    ck_assert_int_eq(pkv_batch_commit_partial(batch, &n, 1), PKV_ESTATE);
    ck_assert_int_eq(pkv_batch_commit_paths(batch, &n, &n, 1), PKV_ESTATE);
    ck_assert_int_eq(pkv_batch_path_copies(batch, 0, 0, &n, 1, NULL, 0, &n), PKV_ESTATE);
    ck_assert_int_eq(pkv_batch_copies(batch, NULL, 0, &n), PKV_ESTATE);
    ck_assert_int_eq(pkv_batch_shortfall(batch, missing, 1), PKV_EINVAL);
    ck_assert_int_eq(pkv_batch_shortfall(batch, NULL, 2), PKV_EINVAL);
    ck_assert_int_eq(pkv_seq_destroy(seq), PKV_EBUSY);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_ESTATE);
    ck_assert_int_eq(pkv_batch_add(batch, new_seq(), NULL, 1), PKV_ESTATE);
    ck_assert_int_eq(pkv_seq_destroy(seq), PKV_EBUSY);
    ck_assert_int_eq(pkv_seq_fork(seq, &foreign), PKV_EBUSY);
    ck_assert_int_eq(pkv_seq_truncate(seq, 0), PKV_EBUSY);
    ck_assert_int_eq(pkv_seq_pin(seq, 0, 1), PKV_EBUSY);
    ck_assert_int_eq(pkv_batch_copies(batch, NULL, 1, &n), PKV_EINVAL);
    ck_assert_int_eq(pkv_batch_copies(batch, NULL, 0, NULL), PKV_EINVAL);
    const uint32_t accepted[2] = {21, 0};
    ck_assert_int_eq(pkv_batch_commit_partial(batch, NULL, 1), PKV_EINVAL);
    ck_assert_int_eq(pkv_batch_commit_partial(batch, accepted, 2), PKV_EINVAL);
    ck_assert_int_eq(pkv_batch_commit_partial(batch, accepted, 1), PKV_EINVAL);
    said(PKV_EINVAL, "not 21");
    const uint32_t two = 2, falling[2] = {3, 3}, far[2] = {19, 20};
    ck_assert_int_eq(pkv_batch_commit_paths(batch, falling, NULL, 1), PKV_EINVAL);
    ck_assert_int_eq(pkv_batch_commit_paths(batch, NULL, &two, 1), PKV_EINVAL);
    ck_assert_int_eq(pkv_batch_commit_paths(batch, falling, &two, 2), PKV_EINVAL);
    ck_assert_int_eq(pkv_batch_commit_paths(batch, falling, accepted, 1), PKV_EINVAL);
    said(PKV_EINVAL, "not 21");
    ck_assert_int_eq(pkv_batch_commit_paths(batch, falling, &two, 1), PKV_EINVAL);
    said(PKV_EINVAL, "does not ascend");
    ck_assert_int_eq(pkv_batch_commit_paths(batch, far, &two, 1), PKV_EINVAL);
    ck_assert_int_eq(pkv_batch_path_copies(batch, 1, 0, far, 1, NULL, 0, &n), PKV_EINVAL);
    ck_assert_int_eq(pkv_batch_path_copies(batch, 0, 9, far, 1, NULL, 0, &n), PKV_EINVAL);
    ck_assert_int_eq(pkv_batch_path_copies(batch, 0, 0, far, 2, NULL, 0, &n), PKV_EINVAL);
    ck_assert_int_eq(pkv_batch_path_copies(batch, 0, 0, far, 1, NULL, 1, &n), PKV_EINVAL);
    ck_assert_int_eq(pkv_batch_path_copies(batch, 0, 0, far, 1, NULL, 0, NULL), PKV_EINVAL);
    ck_assert_int_eq(pkv_batch_path_copies(batch, 0, 0, far, 1, NULL, 0, &n), PKV_ERANGE);
    ck_assert_uint_eq(n, 1);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_ESTALE);
    ck_assert_int_eq(pkv_batch_abort(batch), PKV_ESTALE);
    ck_assert_int_eq(pkv_batch_abort(second), PKV_OK);
    ck_assert_int_eq(pkv_batch_abort(second), PKV_ESTALE);
    ck_assert_int_eq(pkv_batch_abort((pkv_batch){NULL, 0}), PKV_EINVAL);
    ck_assert_int_eq(pkv_batch_size(second, &n, NULL), PKV_ESTALE);
    uint64_t length;
    ck_assert_int_eq(pkv_seq_length(seq, &length), PKV_OK);
    ck_assert_uint_eq(length, 20);
}
END_TEST

/* What the pools hold must be what the limit was charged for. */
START_TEST(verify_adds_regions_up)
{
    char text[256];
    ck_assert_int_eq(pkv_batch_abort(reserved(new_seq(), 20)), PKV_OK);
    ck_assert_int_eq(pkv_cache_verify(cache, text, sizeof text), PKV_OK);
    atomic_fetch_add(&cache->budget.regions, 4096);
    ck_assert_int_eq(pkv_cache_verify(cache, text, sizeof text), PKV_ECORRUPT);
    ck_assert_msg(strstr(text, "regions") != NULL, "%s", text);
    atomic_fetch_sub(&cache->budget.regions, 4096);
}
END_TEST

START_TEST(namespaces)
{
    const pkv_namespace nowhere = {NULL, 5}, endless = {"x", SIZE_MAX};
    const pkv_namespace *bad[] = {&nowhere, &endless};
    const int32_t tokens[20] = {0};
    pkv_seq seq = new_seq();
    for (int i = 0; i < 2; i++) {
        pkv_match match = {.struct_size = sizeof match};
        pkv_prefix_quota quota = {.struct_size = sizeof quota};
        pkv_prefix_stats stats = {.struct_size = sizeof stats, .pins = 7};
        uint64_t freed = 7;
        ck_assert_int_eq(pkv_prefix_match(cache, bad[i], tokens, 20, &match), PKV_EINVAL);
        ck_assert_int_eq(pkv_seq_set_namespace(seq, bad[i]), PKV_EINVAL);
        ck_assert_int_eq(pkv_prefix_set_quota(cache, bad[i], &quota), PKV_EINVAL);
        ck_assert_int_eq(pkv_prefix_drop(cache, bad[i], &freed), PKV_EINVAL);
        said(PKV_EINVAL, "prefix_drop");
        ck_assert_int_eq(pkv_prefix_get_stats(cache, bad[i], &stats), PKV_EINVAL);
        ck_assert(freed == 7 && stats.pins == 7);
    }
    pkv_prefix_quota quota = {.struct_size = sizeof quota, .reserved = {0, 1}};
    ck_assert_int_eq(pkv_prefix_set_quota(cache, NULL, &quota), PKV_EINVAL);
    said(PKV_EINVAL, "reserved");
}
END_TEST

/* More than the memory can ever hold, and more than numbers can hold. */
START_TEST(too_much)
{
    pkv_seq seq = new_seq();
    pkv_batch batch;
    uint32_t missing[2];
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, seq, NULL, INT32_MAX), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_ENOPAGES);
    ck_assert_int_eq(pkv_batch_shortfall(batch, missing, 2), PKV_OK);
    ck_assert_uint_gt(missing[0], 100000000);
    said(PKV_ENOPAGES, "missing");
    /* Still open: may be aborted, and the sequence is free again. */
    ck_assert_int_eq(pkv_batch_abort(batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_abort(reserved(seq, 1)), PKV_OK);
    pkv_stats stats = {.struct_size = sizeof stats};
    ck_assert_int_eq(pkv_cache_stats(cache, &stats), PKV_OK);
    ck_assert_uint_eq(stats.pages_used, 0);
    ck_assert_uint_eq(stats.reserve_failures, 1);
}
END_TEST

#define BAD_TABLE(field, value, status, words)                                                     \
    do {                                                                                           \
        const __typeof__(to.field) before_ = to.field;                                             \
        to.field = (value);                                                                        \
        ck_assert_int_eq(pkv_export_block_table(batch, 0, &to), status);                           \
        said(status, words);                                                                       \
        to.field = before_;                                                                        \
    } while (0)

START_TEST(exports)
{
    pkv_seq seq = new_seq();
    int32_t indptr[2] = {7, 7}, indices[2] = {7, 7}, last[1] = {7}, table[2] = {7, 7};
    int64_t slots[20] = {7};
    uint32_t n = 1;
    pkv_block_row state[1] = {0};
    pkv_block_table to = {.struct_size = sizeof to, .n_rows = 1, .row_stride = 2, .state = state};
    pkv_batch batch;
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, seq, NULL, 20), PKV_OK);
    ck_assert_int_eq(pkv_export_csr(batch, 0, indptr, indices, &n, last), PKV_ESTATE);
    ck_assert_int_eq(pkv_export_slot_mapping(batch, 0, slots, 20), PKV_ESTATE);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    ck_assert_int_eq(pkv_export_csr(batch, 2, indptr, indices, &n, last), PKV_EINVAL);
    ck_assert_int_eq(pkv_export_csr(batch, 0, indptr, indices, NULL, last), PKV_EINVAL);
    ck_assert_int_eq(pkv_export_csr(batch, 0, indptr, NULL, &n, last), PKV_EINVAL);
    ck_assert_int_eq(pkv_export_csr(batch, 0, indptr, indices, &n, last), PKV_ERANGE);
    ck_assert_uint_eq(n, 2);
    ck_assert_int_eq(pkv_export_csr(batch, 0, NULL, indices, &n, last), PKV_EINVAL);
    ck_assert_int_eq(pkv_export_block_table(batch, 0, NULL), PKV_EINVAL);
    ck_assert_int_eq(pkv_export_block_table(batch, 0, &to), PKV_EINVAL);
    said(PKV_EINVAL, "data is NULL");
    to.data = table;
    BAD_TABLE(struct_size, 40, PKV_EVERSION, "struct_size");
    BAD_TABLE(struct_size, sizeof to + 8, PKV_EVERSION, "struct_size");
    BAD_TABLE(n_rows, 0, PKV_EINVAL, "entry 0 has row 0 of 0");
    BAD_TABLE(row_stride, 1, PKV_ERANGE, "2 pages, a row holds 1");
    BAD_TABLE(rows, &(uint32_t){1}, PKV_EINVAL, "row 1 of 1");
    BAD_TABLE(reserved32, 1, PKV_EINVAL, "reserved");
    BAD_TABLE(reserved[3], 1, PKV_EINVAL, "reserved");
    ck_assert_uint_eq(state[0].opaque[0], 0);
    ck_assert_int_eq(pkv_export_slot_mapping(batch, 0, slots, 19), PKV_EINVAL);
    ck_assert_int_eq(pkv_export_slot_mapping(batch, 0, NULL, 20), PKV_EINVAL);
    ck_assert(indptr[0] == 7 && indices[0] == 7 && last[0] == 7 && table[0] == 7 && slots[0] == 7);
    ck_assert_int_eq(pkv_batch_abort(batch), PKV_OK);
    ck_assert_int_eq(pkv_export_csr(batch, 0, indptr, indices, &n, last), PKV_ESTALE);
}
END_TEST

START_TEST(admission)
{
    pkv_seq seq = new_seq();
    uint32_t safe = 7, missing[2], blocked = 7;
    ck_assert_int_eq(pkv_admit_probe(NULL, 1, 0, &safe, NULL, 0), PKV_EINVAL);
    ck_assert_int_eq(pkv_admit_probe(cache, 0, 0, &safe, NULL, 0), PKV_EINVAL);
    ck_assert_int_eq(pkv_admit_probe(cache, UINT64_MAX, 0, &safe, NULL, 0), PKV_ERANGE);
    ck_assert_int_eq(pkv_admit_probe(cache, 10, 11, &safe, NULL, 0), PKV_EINVAL);
    ck_assert_int_eq(pkv_admit_probe(cache, 10, 0, NULL, NULL, 0), PKV_EINVAL);
    ck_assert_int_eq(pkv_admit_probe(cache, 10, 0, &safe, missing, 3), PKV_EINVAL);
    ck_assert_uint_eq(safe, 7);
    ck_assert_int_eq(pkv_admit(seq, 0), PKV_EINVAL);
    ck_assert_int_eq(pkv_admit(seq, INT32_MAX), PKV_EUNSAFE);
    ck_assert_int_eq(pkv_admit_release(seq), PKV_ESTATE);
    ck_assert_int_eq(pkv_admit(seq, 100), PKV_OK);
    ck_assert_int_eq(pkv_admit(seq, 100), PKV_ESTATE);
    pkv_batch batch = reserved(seq, 20);
    ck_assert_int_eq(pkv_admit_check_batch(batch, &blocked), PKV_ESTATE);
    ck_assert_int_eq(pkv_admit_release(seq), PKV_EBUSY);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
    ck_assert_int_eq(pkv_admit_check_batch(batch, &blocked), PKV_ESTALE);
    ck_assert_uint_eq(blocked, 7);
    ck_assert_int_eq(pkv_admit_release(seq), PKV_OK);
    ck_assert_int_eq(pkv_admit(seq, 19), PKV_EINVAL); /* it has 20 already */
    ck_assert_int_eq(pkv_admit(seq, 20), PKV_OK);
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_admit_check_batch(batch, NULL), PKV_EINVAL);
    ck_assert_int_eq(pkv_admit_check_batch(batch, &blocked), PKV_OK);
    ck_assert_int_eq(pkv_seq_destroy(seq), PKV_OK); /* the ticket goes along */
    ck_assert_int_eq(pkv_admit_release(seq), PKV_ESTALE);
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("bad input");
    TCase *tests = tcase_create("bad input");
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, configs);
    tcase_add_test(tests, caches);
    tcase_add_test(tests, sequences);
    tcase_add_test(tests, batches);
    tcase_add_test(tests, namespaces);
    tcase_add_test(tests, verify_adds_regions_up);
    tcase_add_test(tests, too_much);
    tcase_add_test(tests, exports);
    tcase_add_test(tests, admission);
    suite_add_tcase(suite, tests);
    return suite;
}
