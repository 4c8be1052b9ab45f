/* The prefix index through the public functions, one behaviour at a time. */
#include <check.h>
#include <pagedkv/pagedkv.h>
#include <stdlib.h>
#include <string.h>

#include "random.h"
#include "suite.h"

enum { PAGE = 16 };

static uint64_t clock_now;
static uint64_t test_clock(void *user)
{
    (void)user;
    return clock_now;
}

static pkv_cache *open_cache(const char *policy, uint32_t max_pages, bool collide)
{
    pkv_config config;
    pkv_group_config group = {.n_layers = 2,
                              .kv_heads = 1,
                              .head_dim_k = 8,
                              .dtype = PKV_DTYPE_F32,
                              .max_pages = max_pages};
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    config.page_tokens = PAGE;
    config.groups = &group;
    config.n_groups = 1;
    config.storage = PKV_STORAGE_NONE;
    config.prefix_policy = policy;
    config.clock = test_clock;
    if (collide) config.prefix_key[0] = config.prefix_key[1] = UINT64_MAX;
    pkv_cache *cache;
    clock_now = 1000;
    ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_OK);
    return cache;
}

static void close_cache(pkv_cache *cache)
{
    char text[256] = "";
    pkv_status status = pkv_cache_verify(cache, text, sizeof text);
    ck_assert_msg(status == PKV_OK, "%s", text);
    pkv_cache_destroy(cache);
}

/* Appends tokens to a sequence. */
static pkv_status append(pkv_cache *cache, pkv_seq seq, const int32_t *tokens, uint32_t n)
{
    pkv_batch batch;
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, seq, tokens, n), PKV_OK);
    pkv_status status = pkv_batch_reserve(batch);
    if (status == PKV_OK)
        status = pkv_batch_commit(batch);
    else
        ck_assert_int_eq(pkv_batch_abort(batch), PKV_OK);
    return status;
}

/* A sequence in a namespace that ran through tokens; destroyed unless `keep`. */
static pkv_seq run(pkv_cache *cache, const pkv_namespace *space, const int32_t *tokens, uint32_t n,
                   bool keep)
{
    pkv_seq seq;
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    ck_assert_int_eq(pkv_seq_set_namespace(seq, space), PKV_OK);
    ck_assert_int_eq(append(cache, seq, tokens, n), PKV_OK);
    if (!keep) ck_assert_int_eq(pkv_seq_destroy(seq), PKV_OK);
    return seq;
}

static pkv_match match(pkv_cache *cache, const pkv_namespace *space, const int32_t *tokens,
                       uint64_t n)
{
    pkv_match m = {.struct_size = sizeof m};
    ck_assert_int_eq(pkv_prefix_match(cache, space, tokens, n, &m), PKV_OK);
    return m;
}

/* n tokens that start with `first` and then count. */
static const int32_t *count_from(int32_t first, uint32_t n)
{
    static int32_t tokens[8][4096];
    static int which;
    int32_t *t = tokens[which++ % 8];
    for (uint32_t i = 0; i < n; i++)
        t[i] = first * 10000 + (int32_t)i;
    return t;
}

static uint64_t cached_pages(pkv_cache *cache)
{
    pkv_stats stats = {.struct_size = sizeof stats};
    ck_assert_int_eq(pkv_cache_stats(cache, &stats), PKV_OK);
    return stats.pages_cached;
}

START_TEST(full_and_partial_pages)
{
    pkv_cache *cache = open_cache(NULL, 0, false);
    const int32_t *tokens = count_from(1, 100);
    run(cache, NULL, tokens, 100, false);
    ck_assert_uint_eq(cached_pages(cache), 6); /* the open page went with its sequence */
    for (uint64_t n = 0; n <= 100; n++) {
        pkv_match m = match(cache, NULL, tokens, n);
        uint64_t expected = n < 96 ? n : 96;
        ck_assert_uint_eq(m.n_tokens, expected);
        ck_assert_uint_eq(m.n_pages, expected / PAGE);
        ck_assert_uint_eq(m.partial_tokens, expected % PAGE);
    }
    close_cache(cache);
}
END_TEST

/* The longest of many children is found, whatever their number. */
START_TEST(partial_match_at_any_fan_out)
{
    enum { CHILDREN = 3000 };
    pkv_cache *cache = open_cache(NULL, 0, false);
    int32_t tokens[2 * PAGE];
    memcpy(tokens, count_from(1, PAGE), PAGE * sizeof *tokens);
    for (int32_t child = 0; child < CHILDREN; child++) {
        for (int i = 0; i < PAGE; i++) /* differ early: digits of the number in base 7 */
            tokens[PAGE + i] = i < 5 ? child / (int[]){1, 7, 49, 343, 2401}[i] % 7 : child;
        run(cache, NULL, tokens, 2 * PAGE, false);
    }
    for (int32_t child = 0; child < CHILDREN; child += 37)
        for (uint32_t keep = 1; keep < PAGE; keep++) {
            for (int i = 0; i < PAGE; i++)
                tokens[PAGE + i] = i < 5 ? child / (int[]){1, 7, 49, 343, 2401}[i] % 7 : child;
            for (uint32_t i = keep; i < PAGE; i++)
                tokens[PAGE + i] = -1 - (int32_t)i;
            pkv_match m = match(cache, NULL, tokens, 2 * PAGE);
            ck_assert_uint_eq(m.n_pages, 1);
            ck_assert_uint_eq(m.partial_tokens, keep);
        }
    close_cache(cache);
}
END_TEST

START_TEST(attached_partial_page_is_copied_when_written)
{
    pkv_cache *cache = open_cache(NULL, 0, false);
    const int32_t *tokens = count_from(1, 64);
    run(cache, NULL, tokens, 64, false);
    pkv_match m = match(cache, NULL, tokens, 40);
    pkv_seq seq;
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    ck_assert_int_eq(pkv_seq_attach(seq, &m), PKV_OK);
    pkv_page before[3], after[3];
    ck_assert_int_eq(pkv_seq_pages(seq, 0, 0, 3, before), PKV_OK);
    ck_assert_int_eq(append(cache, seq, count_from(9, 8), 8), PKV_OK);
    ck_assert_int_eq(pkv_seq_pages(seq, 0, 0, 3, after), PKV_OK);
    ck_assert_uint_eq(before[0], after[0]);
    ck_assert_uint_eq(before[1], after[1]);
    ck_assert_uint_ne(before[2], after[2]);
    /* The page that was finished with other tokens is known too, beside the old one. */
    int32_t other[48];
    memcpy(other, tokens, 40 * sizeof *other);
    memcpy(other + 40, count_from(9, 8), 8 * sizeof *other);
    ck_assert_uint_eq(match(cache, NULL, other, 48).n_pages, 3);
    ck_assert_uint_eq(match(cache, NULL, tokens, 48).n_pages, 3);
    ck_assert_int_eq(pkv_seq_destroy(seq), PKV_OK);
    close_cache(cache);
}
END_TEST

START_TEST(namespaces_never_match_each_other)
{
    pkv_cache *cache = open_cache(NULL, 0, _i != 0);
    const pkv_namespace a = {"tenant", 6}, b = {"tenant\0", 7}, c = {"tenanT", 6};
    const int32_t *tokens = count_from(1, 64);
    run(cache, &a, tokens, 64, false);
    ck_assert_uint_eq(match(cache, &a, tokens, 64).n_tokens, 64);
    ck_assert_uint_eq(match(cache, &b, tokens, 64).n_tokens, 0);
    ck_assert_uint_eq(match(cache, &c, tokens, 64).n_tokens, 0);
    ck_assert_uint_eq(match(cache, NULL, tokens, 64).n_tokens, 0);
    run(cache, &b, tokens, 32, false);
    ck_assert_uint_eq(match(cache, &b, tokens, 64).n_tokens, 32);
    /* Attaching moves the sequence into the namespace, also after a match of nothing. */
    pkv_seq seq;
    pkv_match m = match(cache, &c, tokens, 64);
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    ck_assert_int_eq(pkv_seq_attach(seq, &m), PKV_OK);
    ck_assert_int_eq(append(cache, seq, tokens, 16), PKV_OK);
    ck_assert_uint_eq(match(cache, &c, tokens, 64).n_tokens, 16);
    ck_assert_uint_eq(match(cache, NULL, tokens, 64).n_tokens, 0);
    ck_assert_int_eq(pkv_seq_set_namespace(seq, &a), PKV_ESTATE);
    ck_assert_int_eq(pkv_seq_destroy(seq), PKV_OK);
    const pkv_namespace big = {tokens, PKV_MAX_NAMESPACE_BYTES + 1};
    ck_assert_int_eq(pkv_prefix_match(cache, &big, tokens, 64, &m), PKV_EINVAL);
    close_cache(cache);
}
END_TEST

/* Far more namespaces than are kept with nothing in them. */
START_TEST(empty_namespaces_are_forgotten)
{
    pkv_cache *cache = open_cache(NULL, 0, false);
    const int32_t *tokens = count_from(1, 32);
    const pkv_namespace kept = {"kept", 4};
    run(cache, &kept, tokens, 32, false);
    pkv_stats first = {.struct_size = sizeof first}, last = first;
    for (uint32_t i = 0; i < 20000; i++) {
        const pkv_namespace space = {&i, sizeof i};
        ck_assert_uint_eq(match(cache, &space, tokens, 32).n_tokens, 0);
        if (i == 3000) ck_assert_int_eq(pkv_cache_stats(cache, &first), PKV_OK);
    }
    ck_assert_int_eq(pkv_cache_stats(cache, &last), PKV_OK);
    ck_assert_uint_eq(first.metadata_bytes, last.metadata_bytes);
    ck_assert_uint_eq(match(cache, &kept, tokens, 32).n_tokens, 32);
    close_cache(cache);
}
END_TEST

START_TEST(reclaim_takes_leaves_first)
{
    pkv_cache *cache = open_cache(NULL, 0, false);
    const int32_t *tokens = count_from(1, 160);
    run(cache, NULL, tokens, 160, false);
    for (uint64_t left = 10; left > 0; left--) {
        ck_assert_uint_eq(match(cache, NULL, tokens, 160).n_pages, left);
        uint64_t freed = 0;
        ck_assert_int_eq(pkv_prefix_reclaim(cache, 0, 1, &freed), PKV_OK);
        ck_assert_uint_eq(freed, 1);
    }
    ck_assert_uint_eq(match(cache, NULL, tokens, 160).n_tokens, 0);
    close_cache(cache);
}
END_TEST

START_TEST(reserve_reclaims_but_never_what_is_held)
{
    pkv_cache *cache = open_cache(NULL, 12, false);
    const int32_t *kept = count_from(1, 96), *gone = count_from(2, 96);
    pkv_seq holder = run(cache, NULL, kept, 96, true);
    run(cache, NULL, gone, 96, false);
    pkv_seq seq;
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    ck_assert_int_eq(append(cache, seq, count_from(3, 48), 48), PKV_OK);
    ck_assert_uint_eq(match(cache, NULL, kept, 96).n_pages, 6);
    ck_assert_uint_eq(match(cache, NULL, gone, 96).n_pages, 3);
    ck_assert_int_eq(append(cache, seq, count_from(4, 64), 64), PKV_ENOPAGES);
    ck_assert_int_eq(append(cache, seq, count_from(4, 48), 48), PKV_OK);
    ck_assert_uint_eq(match(cache, NULL, gone, 96).n_tokens, 0);
    ck_assert_uint_eq(match(cache, NULL, kept, 96).n_pages, 6);
    ck_assert_int_eq(pkv_seq_destroy(holder), PKV_OK);
    ck_assert_int_eq(pkv_seq_destroy(seq), PKV_OK);
    close_cache(cache);
}
END_TEST

START_TEST(a_match_goes_stale)
{
    pkv_cache *cache = open_cache(NULL, 0, false), *other = open_cache(NULL, 0, false);
    const int32_t *tokens = count_from(1, 64);
    run(cache, NULL, tokens, 64, false);
    pkv_match m = match(cache, NULL, tokens, 64), zero = {.struct_size = sizeof zero};
    pkv_seq seq, foreign;
    pkv_pin pin = 7;
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    ck_assert_int_eq(pkv_seq_create(other, &foreign), PKV_OK);
    ck_assert_int_eq(pkv_seq_attach(foreign, &m), PKV_EFOREIGN);
    ck_assert_int_eq(pkv_seq_attach(seq, &zero), PKV_EINVAL);
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 0, 1, NULL), PKV_OK);
    ck_assert_int_eq(pkv_seq_attach(seq, &m), PKV_ESTALE);
    ck_assert_int_eq(pkv_prefix_pin(cache, &m, 1, 0, &pin), PKV_ESTALE);
    ck_assert_uint_eq(pin, 7);
    /* Published again, in the same place: still another page than the match saw. */
    run(cache, NULL, tokens, 64, false);
    ck_assert_int_eq(pkv_seq_attach(seq, &m), PKV_ESTALE);
    m = match(cache, NULL, tokens, 64);
    pkv_match bent = m;
    bent.n_pages = 3;
    ck_assert_int_eq(pkv_seq_attach(seq, &bent), PKV_EINVAL);
    ck_assert_int_eq(pkv_seq_attach(seq, &m), PKV_OK);
    ck_assert_int_eq(pkv_seq_attach(seq, &m), PKV_ESTATE);
    ck_assert_int_eq(pkv_seq_destroy(seq), PKV_OK);
    ck_assert_int_eq(pkv_seq_destroy(foreign), PKV_OK);
    close_cache(cache);
    close_cache(other);
}
END_TEST

START_TEST(duplicates_change_no_table)
{
    pkv_cache *cache = open_cache(NULL, 0, false);
    const int32_t *tokens = count_from(1, 64);
    pkv_seq a = run(cache, NULL, tokens, 64, true), b = run(cache, NULL, tokens, 64, true);
    pkv_page of_a[4], of_b[4];
    ck_assert_int_eq(pkv_seq_pages(a, 0, 0, 4, of_a), PKV_OK);
    ck_assert_int_eq(pkv_seq_pages(b, 0, 0, 4, of_b), PKV_OK);
    for (int i = 0; i < 4; i++)
        ck_assert_uint_ne(of_a[i], of_b[i]);
    pkv_prefix_stats stats = {.struct_size = sizeof stats};
    ck_assert_int_eq(pkv_prefix_get_stats(cache, NULL, &stats), PKV_OK);
    ck_assert_uint_eq(stats.pages, 4);
    ck_assert_uint_eq(stats.pages_published, 4);
    ck_assert_uint_eq(stats.pages_duplicate, 4);
    /* The first one's pages go; the second one's take their place when it publishes again. */
    ck_assert_int_eq(pkv_seq_destroy(a), PKV_OK);
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 0, 100, NULL), PKV_OK);
    ck_assert_uint_eq(match(cache, NULL, tokens, 64).n_tokens, 0);
    ck_assert_int_eq(append(cache, b, count_from(5, 16), 16), PKV_OK);
    int32_t longer[80];
    memcpy(longer, tokens, 64 * sizeof *longer);
    memcpy(longer + 64, count_from(5, 16), 16 * sizeof *longer);
    ck_assert_uint_eq(match(cache, NULL, longer, 80).n_tokens, 80);
    ck_assert_int_eq(pkv_seq_destroy(b), PKV_OK);
    close_cache(cache);
}
END_TEST

/* Idle pages above pages that somebody holds can be had too, if nothing else is left. */
START_TEST(every_idle_page_can_be_reclaimed)
{
    pkv_cache *cache = open_cache(NULL, 0, false);
    int32_t tokens[96];
    memcpy(tokens, count_from(1, 96), sizeof tokens);
    pkv_seq a = run(cache, NULL, tokens, 64, true), b = run(cache, NULL, tokens, 64, true);
    ck_assert_int_eq(append(cache, b, tokens + 64, 16), PKV_OK);
    ck_assert_int_eq(pkv_seq_destroy(a), PKV_OK);
    ck_assert_uint_eq(cached_pages(cache), 4);
    uint64_t freed;
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 0, 100, &freed), PKV_OK);
    ck_assert_uint_eq(freed, 4);
    ck_assert_uint_eq(cached_pages(cache), 0);
    char text[256] = "";
    ck_assert_msg(pkv_cache_verify(cache, text, sizeof text) == PKV_OK, "%s", text);
    ck_assert_uint_eq(match(cache, NULL, tokens, 80).n_tokens, 0);
    /* The next publication closes the hole with the sequence's own pages. */
    ck_assert_int_eq(append(cache, b, tokens + 80, 16), PKV_OK);
    ck_assert_uint_eq(match(cache, NULL, tokens, 96).n_tokens, 96);
    ck_assert_int_eq(pkv_seq_destroy(b), PKV_OK);
    ck_assert_uint_eq(cached_pages(cache), 6);
    close_cache(cache);
}
END_TEST

START_TEST(pins_hold_until_their_time_runs_out)
{
    pkv_cache *cache = open_cache(NULL, 0, false);
    const int32_t *tokens = count_from(1, 64);
    run(cache, NULL, tokens, 64, false);
    pkv_match m = match(cache, NULL, tokens, 48);
    pkv_pin pin;
    ck_assert_int_eq(pkv_prefix_pin(cache, &m, PKV_PIN_FIRM, 500, &pin), PKV_OK);
    uint64_t freed;
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 0, 100, &freed), PKV_OK);
    ck_assert_uint_eq(freed, 1); /* the page after the pinned ones */
    ck_assert_uint_eq(match(cache, NULL, tokens, 64).n_pages, 3);
    clock_now += 499;
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 0, 100, &freed), PKV_OK);
    ck_assert_uint_eq(freed, 0);
    clock_now += 1;
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 0, 100, &freed), PKV_OK);
    ck_assert_uint_eq(freed, 3);
    ck_assert_int_eq(pkv_prefix_unpin(cache, pin), PKV_ESTALE);
    ck_assert_int_eq(pkv_prefix_pin(cache, &m, PKV_PIN_FIRM + 1, 0, &pin), PKV_EINVAL);
    close_cache(cache);
}
END_TEST

START_TEST(soft_pins_give_way_by_priority)
{
    pkv_cache *cache = open_cache(NULL, 0, false);
    const int32_t *t[3] = {count_from(1, 32), count_from(2, 32), count_from(3, 32)};
    pkv_pin pin[3];
    const uint32_t priority[3] = {20, 10, PKV_PIN_FIRM};
    for (int i = 0; i < 3; i++) {
        run(cache, NULL, t[i], 32, false);
        pkv_match m = match(cache, NULL, t[i], 32);
        ck_assert_int_eq(pkv_prefix_pin(cache, &m, priority[i], 0, &pin[i]), PKV_OK);
    }
    uint64_t freed;
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 0, 2, &freed), PKV_OK);
    ck_assert_uint_eq(freed, 2);
    ck_assert_uint_eq(match(cache, NULL, t[1], 32).n_tokens, 0);
    ck_assert_uint_eq(match(cache, NULL, t[0], 32).n_tokens, 32);
    ck_assert_int_eq(pkv_prefix_unpin(cache, pin[1]), PKV_ESTALE);
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 0, 100, &freed), PKV_OK);
    ck_assert_uint_eq(freed, 2);
    ck_assert_uint_eq(match(cache, NULL, t[2], 32).n_tokens, 32);
    ck_assert_int_eq(pkv_prefix_unpin(cache, pin[2]), PKV_OK);
    ck_assert_int_eq(pkv_prefix_unpin(cache, pin[2]), PKV_ESTALE);
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 0, 100, &freed), PKV_OK);
    ck_assert_uint_eq(freed, 2);
    close_cache(cache);
}
END_TEST

/* Of pins with the same priority the one that would end first gives way first, one without an end
 * last, in whatever order they were made. */
START_TEST(of_equal_pins_the_shortest_gives_way)
{
    enum { PINS = 6 };
    static const uint64_t ttl[PINS] = {500, 0, 300, 700, 200, 600};
    static const int order[PINS] = {4, 2, 0, 5, 3, 1};
    pkv_cache *cache = open_cache(NULL, 0, false);
    const int32_t *t[PINS];
    for (int32_t i = 0; i < PINS; i++) {
        t[i] = count_from(i + 1, 32);
        run(cache, NULL, t[i], 32, false);
        const pkv_match m = match(cache, NULL, t[i], 32);
        pkv_pin pin;
        ck_assert_int_eq(pkv_prefix_pin(cache, &m, 20, ttl[i], &pin), PKV_OK);
    }
    for (int i = 0; i < PINS; i++) {
        ck_assert_int_eq(pkv_prefix_reclaim(cache, 0, 2, NULL), PKV_OK);
        for (int j = 0; j < PINS; j++)
            ck_assert_uint_eq(match(cache, NULL, t[order[j]], 32).n_tokens, j <= i ? 0 : 32);
    }
    close_cache(cache);
}
END_TEST

/* Pins that a drop ended and nobody released take no memory for ever. */
START_TEST(pins_of_dropped_namespaces_go)
{
    pkv_cache *cache = open_cache(NULL, 0, false);
    const pkv_namespace space = {"s", 1};
    const int32_t *tokens = count_from(1, 32);
    pkv_pin first = 0, pin;
    pkv_stats stats = {.struct_size = sizeof stats};
    uint64_t metadata = 0;
    for (int i = 0; i < 5000; i++) {
        run(cache, &space, tokens, 32, false);
        pkv_match m = match(cache, &space, tokens, 32);
        ck_assert_int_eq(pkv_prefix_pin(cache, &m, PKV_PIN_FIRM, 0, &pin), PKV_OK);
        if (i == 0) first = pin;
        ck_assert_int_eq(pkv_prefix_drop(cache, &space, NULL), PKV_OK);
        ck_assert_int_eq(pkv_cache_stats(cache, &stats), PKV_OK);
        if (i == 100) metadata = stats.metadata_bytes;
    }
    ck_assert_uint_le(stats.metadata_bytes, metadata + 1024);
    ck_assert_int_eq(pkv_prefix_unpin(cache, first), PKV_ESTALE);
    ck_assert_int_eq(pkv_prefix_unpin(cache, pin), PKV_ESTALE);
    close_cache(cache);
}
END_TEST

START_TEST(drop_forgets_a_namespace)
{
    pkv_cache *cache = open_cache(NULL, 0, false);
    const pkv_namespace a = {"a", 1}, b = {"b", 1};
    const int32_t *tokens = count_from(1, 64);
    pkv_seq seq = run(cache, &a, tokens, 64, true);
    run(cache, &a, count_from(2, 64), 64, false);
    run(cache, &b, tokens, 64, false);
    pkv_match m = match(cache, &a, tokens, 64);
    pkv_pin pin;
    ck_assert_int_eq(pkv_prefix_pin(cache, &m, PKV_PIN_FIRM, 0, &pin), PKV_OK);
    uint64_t pages;
    ck_assert_int_eq(pkv_prefix_drop(cache, &a, &pages), PKV_OK);
    ck_assert_uint_eq(pages, 4); /* the live sequence keeps its own */
    ck_assert_uint_eq(match(cache, &a, tokens, 64).n_tokens, 0);
    ck_assert_uint_eq(match(cache, &b, tokens, 64).n_tokens, 64);
    ck_assert_int_eq(pkv_prefix_unpin(cache, pin), PKV_ESTALE);
    ck_assert_int_eq(append(cache, seq, count_from(3, 32), 32), PKV_OK);
    ck_assert_uint_eq(match(cache, &a, tokens, 64).n_tokens, 0);
    ck_assert_int_eq(pkv_seq_destroy(seq), PKV_OK);
    ck_assert_uint_eq(cached_pages(cache), 4);
    /* The namespace can be used again. */
    run(cache, &a, tokens, 64, false);
    ck_assert_uint_eq(match(cache, &a, tokens, 64).n_tokens, 64);
    close_cache(cache);
}
END_TEST

START_TEST(quotas_limit_and_protect)
{
    pkv_cache *cache = open_cache(NULL, 20, false);
    const pkv_namespace small = {"small", 5}, large = {"large", 5};
    pkv_prefix_quota quota = {.struct_size = sizeof quota, .share = 4, .max = 6};
    ck_assert_int_eq(pkv_prefix_set_quota(cache, &small, &quota), PKV_OK);
    const int32_t *s = count_from(1, 160), *s2 = count_from(2, 64), *l = count_from(3, 160);
    run(cache, &small, s, 160, false); /* ten pages, six may be published */
    ck_assert_uint_eq(match(cache, &small, s, 160).n_pages, 6);
    run(cache, &small, s2, 64, false); /* replaces its own */
    ck_assert_uint_eq(match(cache, &small, s2, 64).n_pages, 4);
    ck_assert_uint_eq(match(cache, &small, s, 160).n_pages, 2);
    pkv_prefix_stats stats = {.struct_size = sizeof stats};
    ck_assert_int_eq(pkv_prefix_get_stats(cache, &small, &stats), PKV_OK);
    ck_assert_uint_eq(stats.pages, 6);
    /* Pressure from another namespace: the small one gives what is beyond its share, then only the
     * large one gives. */
    run(cache, &large, l, 160, false);
    run(cache, &large, count_from(4, 160), 160, false);
    run(cache, &large, count_from(5, 160), 160, false);
    ck_assert_int_eq(pkv_prefix_get_stats(cache, &small, &stats), PKV_OK);
    ck_assert_uint_eq(stats.pages, 4);
    quota.max = 0;
    ck_assert_int_eq(pkv_prefix_set_quota(cache, &large, &quota), PKV_ESTATE);
    quota.share = 0;
    ck_assert_int_eq(pkv_prefix_set_quota(cache, &small, &quota), PKV_OK);
    uint64_t freed;
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 0, 8, &freed), PKV_OK); /* in turn now */
    ck_assert_int_eq(pkv_prefix_get_stats(cache, &small, &stats), PKV_OK);
    ck_assert_uint_eq(stats.pages, 0);
    close_cache(cache);
}
END_TEST

START_TEST(priority_policy_keeps_what_matters)
{
    pkv_cache *cache = open_cache("priority", 0, false);
    const int32_t *t[3] = {count_from(1, 32), count_from(2, 32), count_from(3, 32)};
    const uint32_t priority[3] = {90, 10, 95};
    for (int i = 0; i < 3; i++) {
        pkv_seq seq;
        ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
        ck_assert_int_eq(pkv_seq_set_retention(seq, priority[i], i == 2 ? 100 : 0), PKV_OK);
        ck_assert_int_eq(append(cache, seq, t[i], 32), PKV_OK);
        ck_assert_int_eq(pkv_seq_destroy(seq), PKV_OK);
    }
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 0, 2, NULL), PKV_OK);
    ck_assert_uint_eq(match(cache, NULL, t[1], 32).n_tokens, 0);
    ck_assert_uint_eq(match(cache, NULL, t[2], 32).n_tokens, 32);
    clock_now += 100; /* the highest priority has run out */
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 0, 2, NULL), PKV_OK);
    ck_assert_uint_eq(match(cache, NULL, t[2], 32).n_tokens, 0);
    ck_assert_uint_eq(match(cache, NULL, t[0], 32).n_tokens, 32);
    close_cache(cache);
}
END_TEST

/* A sequence that publishes 32 tokens with a retention, or attaches them, and ends. */
static void use(pkv_cache *cache, const int32_t *tokens, uint32_t priority, uint64_t ttl_ns)
{
    const pkv_match m = match(cache, NULL, tokens, 32);
    pkv_seq seq;
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    ck_assert_int_eq(pkv_seq_set_retention(seq, priority, ttl_ns), PKV_OK);
    if (m.n_tokens == 32)
        ck_assert_int_eq(pkv_seq_attach(seq, &m), PKV_OK);
    else
        ck_assert_int_eq(append(cache, seq, tokens, 32), PKV_OK);
    ck_assert_int_eq(pkv_seq_destroy(seq), PKV_OK);
}

/* The time to live counts from the last use, not from the first; and a page whose time ran out has
 * both, priority and time, again once it is used. */
START_TEST(a_use_renews_retention)
{
    pkv_cache *cache = open_cache("priority", 0, false);
    const int32_t *lasting = count_from(1, 32), *other = count_from(2, 32);
    const int32_t *filler = count_from(3, 32);
    use(cache, lasting, 90, 100);
    use(cache, other, 10, 0);
    clock_now += 60;
    use(cache, lasting, 0, 0); /* as its publisher said, whatever the user says */
    clock_now += 60;           /* 120 since it came, 60 since it was used */
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 0, 2, NULL), PKV_OK);
    ck_assert_uint_eq(match(cache, NULL, lasting, 32).n_tokens, 32);
    ck_assert_uint_eq(match(cache, NULL, other, 32).n_tokens, 0);

    use(cache, filler, 0, 0);
    clock_now += 100; /* its time runs out, which is noted when a victim is looked for */
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 0, 1, NULL), PKV_OK);
    ck_assert_uint_eq(match(cache, NULL, filler, 32).n_pages, 1);
    use(cache, other, 10, 0);
    use(cache, lasting, 0, 0);
    clock_now += 99;
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 0, 3, NULL), PKV_OK);
    ck_assert_uint_eq(match(cache, NULL, other, 32).n_tokens, 0);
    ck_assert_uint_eq(match(cache, NULL, lasting, 32).n_tokens, 32);
    use(cache, other, 10, 0);
    clock_now += 1; /* and runs out again */
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 0, 2, NULL), PKV_OK);
    ck_assert_uint_eq(match(cache, NULL, lasting, 32).n_tokens, 0);
    ck_assert_uint_eq(match(cache, NULL, other, 32).n_tokens, 32);
    close_cache(cache);
}
END_TEST

/* A page that was used lasts longer; those beside it run out when they would have. */
START_TEST(a_use_renews_no_other)
{
    pkv_cache *cache = open_cache("priority", 0, false);
    const int32_t *used = count_from(1, 32), *unused = count_from(2, 32);
    const int32_t *lower = count_from(3, 32);
    use(cache, used, 90, 100);
    use(cache, unused, 90, 120);
    use(cache, lower, 50, 0);
    clock_now += 90;
    use(cache, used, 90, 100); /* until 190 */
    clock_now += 40;
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 0, 2, NULL), PKV_OK);
    ck_assert_uint_eq(match(cache, NULL, unused, 32).n_tokens, 0);
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 0, 2, NULL), PKV_OK);
    ck_assert_uint_eq(match(cache, NULL, lower, 32).n_tokens, 0);
    ck_assert_uint_eq(match(cache, NULL, used, 32).n_tokens, 32);
    close_cache(cache);
}
END_TEST

START_TEST(digests_are_stable)
{
    pkv_cache *cache = open_cache(NULL, 0, false);
    const pkv_namespace space = {"tenant", 6};
    int32_t tokens[64];
    for (int i = 0; i < 64; i++)
        tokens[i] = i * 3 - 5;
    pkv_digest direct[4], kept[4], again[4];
    pkv_status status = pkv_digest_tokens(&space, PAGE, tokens, 64, direct, 4);
    if (status == PKV_ENOTSUP) {
        pkv_cache_destroy(cache);
        return;
    }
    ck_assert_int_eq(status, PKV_OK);
    run(cache, &space, tokens, 64, false);
    pkv_match m = match(cache, &space, tokens, 64);
    ck_assert_int_eq(pkv_prefix_digests(cache, &m, kept, 3), PKV_ERANGE);
    ck_assert_int_eq(pkv_prefix_digests(cache, &m, kept, 4), PKV_OK);
    ck_assert_int_eq(pkv_prefix_digests(cache, &m, again, 4), PKV_OK);
    ck_assert_mem_eq(direct, kept, sizeof direct);
    ck_assert_mem_eq(direct, again, sizeof direct);
    /* Computed once with another implementation (hashlib in Python). */
    static const uint8_t third[8] = {0xac, 0x6d, 0x4a, 0x20, 0xc9, 0x87, 0x7a, 0xb3};
    ck_assert_mem_eq(direct[2].bytes, third, sizeof third);
    ck_assert_int_eq(pkv_digest_tokens(NULL, PAGE, tokens, 64, kept, 4), PKV_OK);
    ck_assert_mem_ne(direct, kept, sizeof(pkv_digest));
    close_cache(cache);
}
END_TEST

START_TEST(truncate_and_go_on)
{
    pkv_cache *cache = open_cache(NULL, 0, false);
    const int32_t *tokens = count_from(1, 64), *other = count_from(2, 64);
    pkv_seq seq = run(cache, NULL, tokens, 64, true);
    ck_assert_int_eq(pkv_seq_truncate(seq, 20), PKV_OK);
    ck_assert_int_eq(append(cache, seq, other, 28), PKV_OK);
    int32_t both[48];
    memcpy(both, tokens, 20 * sizeof *both);
    memcpy(both + 20, other, 28 * sizeof *both);
    ck_assert_uint_eq(match(cache, NULL, both, 48).n_tokens, 48);
    ck_assert_uint_eq(match(cache, NULL, tokens, 64).n_tokens, 64);
    /* Without token ids nothing further is published, until the gap is taken back. */
    ck_assert_int_eq(append(cache, seq, NULL, 16), PKV_OK);
    ck_assert_int_eq(append(cache, seq, other, 16), PKV_OK);
    ck_assert_uint_eq(cached_pages(cache), 3); /* pages 1..3 of the first version */
    ck_assert_int_eq(pkv_seq_truncate(seq, 48), PKV_OK);
    ck_assert_int_eq(append(cache, seq, other, 16), PKV_OK);
    ck_assert_int_eq(pkv_seq_destroy(seq), PKV_OK);
    ck_assert_uint_eq(cached_pages(cache), 7);
    close_cache(cache);
}
END_TEST

/* Two branches of one trunk, in one of two namespaces: the list has every page once, parents first,
 * with its tokens, and nothing of the other namespace. */
START_TEST(the_list_is_a_tree)
{
    pkv_cache *cache = open_cache(NULL, 0, false);
    const pkv_namespace one = {"one", 3}, two = {"two", 3};
    int32_t tokens[2][48];
    for (int32_t i = 0; i < 48; i++) {
        tokens[0][i] = i;
        tokens[1][i] = i < 32 ? i : -i;
    }
    run(cache, &one, tokens[0], 48, false);
    run(cache, &one, tokens[1], 48, false);
    run(cache, &two, tokens[1], 48, false);
    pkv_prefix_node nodes[8];
    int32_t ids[8 * PAGE];
    uint32_t n = 0;
    ck_assert_int_eq(pkv_prefix_list(cache, &one, nodes, ids, 3, &n), PKV_ERANGE);
    ck_assert_uint_eq(n, 4); /* two of the trunk, one of each branch */
    ck_assert_int_eq(pkv_prefix_list(cache, &one, nodes, ids, 8, &n), PKV_OK);
    ck_assert_uint_eq(n, 4);
    uint32_t seen[2] = {0};
    for (uint32_t i = 0; i < n; i++) {
        ck_assert_uint_eq(nodes[i].groups, 1);
        if (nodes[i].depth == 0) {
            ck_assert_uint_eq(nodes[i].parent, UINT32_MAX);
        } else {
            ck_assert_uint_lt(nodes[i].parent, i);
            ck_assert_uint_eq(nodes[nodes[i].parent].depth, nodes[i].depth - 1);
        }
        for (int branch = 0; branch < 2; branch++)
            seen[branch] += memcmp(ids + i * PAGE, tokens[branch] + nodes[i].depth * PAGE,
                                   PAGE * sizeof *ids) == 0;
    }
    ck_assert_uint_eq(seen[0], 3);
    ck_assert_uint_eq(seen[1], 3);
    const pkv_namespace unknown = {"?", 1};
    ck_assert_int_eq(pkv_prefix_list(cache, &unknown, nodes, ids, 8, &n), PKV_OK);
    ck_assert_uint_eq(n, 0);
    close_cache(cache);
}
END_TEST

START_TEST(no_index_no_functions)
{
    pkv_config config;
    pkv_group_config group = {.n_layers = 1, .kv_heads = 1, .head_dim_k = 8};
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    config.groups = &group;
    config.n_groups = 1;
    config.storage = PKV_STORAGE_NONE;
    config.prefix_policy = "no such policy";
    char text[128];
    ck_assert_int_eq(pkv_config_check(&config, text, sizeof text), PKV_EINVAL);
    ck_assert_ptr_nonnull(strstr(text, "no such policy"));
    config.prefix_policy = "opt"; /* knows the future: not for a cache */
    ck_assert_int_eq(pkv_config_check(&config, text, sizeof text), PKV_EINVAL);
    config.prefix = 0;
    pkv_cache *cache;
    ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_OK);
    pkv_match m = {.struct_size = sizeof m};
    ck_assert_int_eq(pkv_prefix_match(cache, NULL, NULL, 0, &m), PKV_ENOTSUP);
    ck_assert_int_eq(pkv_prefix_drop(cache, NULL, NULL), PKV_ENOTSUP);
    pkv_cache_destroy(cache);
}
END_TEST

START_TEST(index_alone)
{
    pkv_index_config config;
    ck_assert_int_eq(pkv_index_config_init(&config, sizeof config), PKV_OK);
    pkv_index *index = NULL;
    config.policy = "none";
    ck_assert_int_eq(pkv_index_create(&config, &index), PKV_EINVAL);
    config.policy = "lru";
    config.pages = 3;
    config.key[0] = config.key[1] = UINT64_MAX;
    ck_assert_int_eq(pkv_index_create(&config, &index), PKV_OK);
    const uint64_t ids[] = {10, 11, 12, 13}, other[] = {10, 21};
    uint32_t hits = 99;
    ck_assert_int_eq(pkv_index_replay(index, ids, 4, NULL, 0, &hits), PKV_OK);
    ck_assert_uint_eq(hits, 0);
    ck_assert_int_eq(pkv_index_match(index, ids, 4, &hits), PKV_OK);
    ck_assert_uint_eq(hits, 3); /* the fourth found everything pinned */
    ck_assert_int_eq(pkv_index_replay(index, other, 2, NULL, 0, &hits), PKV_OK);
    ck_assert_uint_eq(hits, 1);
    ck_assert_int_eq(pkv_index_match(index, ids, 4, &hits), PKV_OK);
    ck_assert_uint_eq(hits, 1); /* lru took block 11, leaving a hole before 12 */
    pkv_index_stats stats = {.struct_size = sizeof stats};
    ck_assert_int_eq(pkv_index_get_stats(index, &stats), PKV_OK);
    ck_assert_uint_eq(stats.pages, 3);
    ck_assert_uint_eq(stats.nodes, 4); /* 11 stays as the parent of 12 */
    ck_assert_uint_eq(stats.requests, 2);
    char text[128];
    ck_assert_int_eq(pkv_index_verify(index, text, sizeof text), PKV_OK);
    pkv_index_destroy(index);
    pkv_index_destroy(NULL);
}
END_TEST

/* A table instead of a hash: the same hits, the same pages and nodes, for every policy. */
START_TEST(dense_ids_change_nothing)
{
    enum { IDS = 300, LONGEST = 40 };
    uint64_t random = pkvt_seed("dense_ids") + (uint64_t)_i;
    pkv_index_config config;
    ck_assert_int_eq(pkv_index_config_init(&config, sizeof config), PKV_OK);
    ck_assert_uint_eq(config.dense_ids, 0);
    config.policy = pkv_policy_name((uint32_t)_i, NULL);
    config.pages = 1 + pkvt_below(&random, 80);
    pkv_index *index[2];
    for (int k = 0; k < 2; k++) {
        config.dense_ids = k ? IDS : 0;
        ck_assert_int_eq(pkv_index_create(&config, &index[k]), PKV_OK);
    }
    for (uint32_t request = 0; request < 500; request++) {
        uint64_t ids[LONGEST];
        uint32_t next[LONGEST], hits[2];
        uint32_t n = pkvt_below(&random, LONGEST + 1), at = pkvt_below(&random, IDS);
        for (uint32_t i = 0; i < n; i++) { /* mostly runs, sometimes a block seen before */
            ids[i] = pkvt_below(&random, 12) ? (at + i) % IDS : pkvt_below(&random, IDS);
            next[i] = request + 1 + pkvt_below(&random, 9);
        }
        for (int k = 0; k < 2; k++)
            ck_assert_int_eq(pkv_index_replay(index[k], ids, n, next, 0, &hits[k]), PKV_OK);
        ck_assert_uint_eq(hits[0], hits[1]);
        for (int k = 0; k < 2; k++)
            ck_assert_int_eq(pkv_index_match(index[k], ids, n, &hits[k]), PKV_OK);
        ck_assert_uint_eq(hits[0], hits[1]);
    }
    pkv_index_stats stats[2] = {{.struct_size = sizeof stats[0]}, {.struct_size = sizeof stats[0]}};
    for (int k = 0; k < 2; k++) {
        char text[128];
        ck_assert_int_eq(pkv_index_verify(index[k], text, sizeof text), PKV_OK);
        ck_assert_int_eq(pkv_index_get_stats(index[k], &stats[k]), PKV_OK);
    }
    ck_assert_uint_eq(stats[0].pages, stats[1].pages);
    ck_assert_uint_eq(stats[0].nodes, stats[1].nodes);
    const uint64_t beyond[] = {0, IDS};
    uint32_t hits = 99;
    ck_assert_int_eq(pkv_index_replay(index[1], beyond, 2, NULL, 0, &hits), PKV_ERANGE);
    ck_assert_uint_eq(hits, 99);
    ck_assert_int_eq(pkv_index_match(index[1], beyond + 1, 1, &hits), PKV_ERANGE);
    ck_assert_int_eq(pkv_index_get_stats(index[1], &stats[1]), PKV_OK);
    ck_assert_uint_eq(stats[1].requests, 500);
    pkv_index_destroy(index[0]);
    pkv_index_destroy(index[1]);
    config.dense_ids = SIZE_MAX;
    ck_assert_int_eq(pkv_index_create(&config, &index[0]), PKV_ENOMEM);
}
END_TEST

Suite *pkvt_suite(void)
{
    uint32_t n_policies = 0;
    while (pkv_policy_name(n_policies, NULL))
        n_policies++;
    Suite *suite = suite_create("prefix");
    TCase *all = tcase_create("all");
    tcase_set_timeout(all, 60);
    tcase_add_test(all, full_and_partial_pages);
    tcase_add_test(all, partial_match_at_any_fan_out);
    tcase_add_test(all, attached_partial_page_is_copied_when_written);
    tcase_add_loop_test(all, namespaces_never_match_each_other, 0, 2);
    tcase_add_test(all, empty_namespaces_are_forgotten);
    tcase_add_test(all, reclaim_takes_leaves_first);
    tcase_add_test(all, reserve_reclaims_but_never_what_is_held);
    tcase_add_test(all, a_match_goes_stale);
    tcase_add_test(all, duplicates_change_no_table);
    tcase_add_test(all, every_idle_page_can_be_reclaimed);
    tcase_add_test(all, pins_hold_until_their_time_runs_out);
    tcase_add_test(all, soft_pins_give_way_by_priority);
    tcase_add_test(all, of_equal_pins_the_shortest_gives_way);
    tcase_add_test(all, drop_forgets_a_namespace);
    tcase_add_test(all, pins_of_dropped_namespaces_go);
    tcase_add_test(all, quotas_limit_and_protect);
    tcase_add_test(all, priority_policy_keeps_what_matters);
    tcase_add_test(all, a_use_renews_retention);
    tcase_add_test(all, a_use_renews_no_other);
    tcase_add_test(all, digests_are_stable);
    tcase_add_test(all, truncate_and_go_on);
    tcase_add_test(all, no_index_no_functions);
    tcase_add_test(all, the_list_is_a_tree);
    tcase_add_test(all, index_alone);
    tcase_add_loop_test(all, dense_ids_change_nothing, 0, (int)n_policies);
    suite_add_tcase(suite, all);
    return suite;
}
