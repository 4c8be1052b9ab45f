/* Token ids that come late: an asynchronous host publishes and matches what a synchronous one does.
 */
#include <string.h>

#include "prefix_case.h"
#include "random.h"
#include "suite.h"

enum { PAGE = PKVT_PAGE, SEQS = 6, LENGTH = 12 * PAGE, STEPS = 300 };

struct host {
    pkv_cache *cache;
    pkv_seq seq[SEQS];
    bool late; /* asynchronous: ids come when the next step is open already */
};

static struct {
    int32_t tokens[LENGTH];
    uint32_t n, n_new;
    bool live;
} text[SEQS];

static void missing(pkv_seq seq, uint64_t first, uint64_t n)
{
    uint64_t f, m;
    ck_assert_int_eq(pkv_seq_missing_tokens(seq, &f, &m), PKV_OK);
    ck_assert_uint_eq(m, n);
    if (n) ck_assert_uint_eq(f, first);
}

/* Starts a step; the asynchronous host learns what the step before sampled only now. */
static void step(struct host *h, uint64_t *seed)
{
    pkv_batch batch;
    uint32_t entry[SEQS], n = 0;
    ck_assert_int_eq(pkv_batch_begin(h->cache, &batch), PKV_OK);
    for (uint32_t i = 0; i < SEQS; i++) {
        if (!text[i].live || !text[i].n_new) continue;
        const int32_t *ids = h->late ? NULL : text[i].tokens + text[i].n;
        ck_assert_int_eq(pkv_batch_add(batch, h->seq[i], ids, text[i].n_new), PKV_OK);
        entry[n++] = i;
    }
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    for (uint32_t i = 0; i < SEQS && h->late; i++) {
        uint64_t first, lacks;
        if (!text[i].live) continue;
        ck_assert_int_eq(pkv_seq_missing_tokens(h->seq[i], &first, &lacks), PKV_OK);
        if (lacks)
            ck_assert_int_eq(
                pkv_seq_set_tokens(h->seq[i], first, text[i].tokens + first, (uint32_t)lacks),
                PKV_OK);
        missing(h->seq[i], 0, 0);
    }
    /* Some ids of this step are known in time. */
    for (uint32_t k = n; k-- > 0 && h->late;)
        if (pkvt_below(seed, 3) == 0)
            ck_assert_int_eq(pkv_batch_set_tokens(batch, k,
                                                  text[entry[k]].tokens + text[entry[k]].n,
                                                  text[entry[k]].n_new),
                             PKV_OK);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
}

static void give_all(struct host *h)
{
    uint64_t first, lacks;
    for (uint32_t i = 0; i < SEQS; i++) {
        if (!text[i].live) continue;
        ck_assert_int_eq(pkv_seq_missing_tokens(h->seq[i], &first, &lacks), PKV_OK);
        for (; lacks; lacks--, first++) /* one by one */
            ck_assert_int_eq(pkv_seq_set_tokens(h->seq[i], first, text[i].tokens + first, 1),
                             PKV_OK);
        missing(h->seq[i], 0, 0);
    }
}

static void compare(struct host *hosts, const int32_t *tokens, uint32_t n)
{
    const pkv_match a = pkvt_match(hosts[0].cache, NULL, tokens, n);
    const pkv_match b = pkvt_match(hosts[1].cache, NULL, tokens, n);
    ck_assert_uint_eq(a.n_tokens, b.n_tokens);
}

static void start(struct host *hosts, uint32_t i, uint64_t *seed)
{
    int32_t prompt[LENGTH];
    const uint32_t n = 1 + pkvt_below(seed, LENGTH / 2);
    for (uint32_t k = 0; k < n; k++)
        prompt[k] = (int32_t)(k < 5 * PAGE ? 7 : pkvt_below(seed, 2));
    for (int h = 0; h < 2; h++) {
        const pkv_match m = pkvt_match(hosts[h].cache, NULL, prompt, n);
        ck_assert_int_eq(pkv_seq_create(hosts[h].cache, &hosts[h].seq[i]), PKV_OK);
        ck_assert_int_eq(pkv_seq_attach(hosts[h].seq[i], &m), PKV_OK);
        if (h) ck_assert_uint_eq(text[i].n, m.n_tokens);
        text[i].n = (uint32_t)m.n_tokens;
    }
    memcpy(text[i].tokens, prompt, text[i].n * sizeof *prompt);
    text[i].live = true;
}

START_TEST(asynchronous_is_synchronous)
{
    uint64_t seed = pkvt_seed("late tokens") + (uint64_t)_i;
    struct host hosts[2] = {{.cache = pkvt_open(NULL, 0, false)},
                            {.cache = pkvt_open(NULL, 0, false), .late = true}};
    memset(text, 0, sizeof text);
    for (int s = 0; s < STEPS; s++) {
        for (uint32_t i = 0; i < SEQS; i++) {
            if (!text[i].live) start(hosts, i, &seed);
            text[i].n_new = pkvt_below(&seed, 5) ? 1 : 1 + pkvt_below(&seed, 2 * PAGE);
            if (text[i].n + text[i].n_new > LENGTH) text[i].n_new = 0;
            for (uint32_t k = 0; k < text[i].n_new; k++)
                text[i].tokens[text[i].n + k] = (int32_t)pkvt_below(&seed, 2);
        }
        for (int h = 0; h < 2; h++)
            step(&hosts[h], &seed);
        for (uint32_t i = 0; i < SEQS; i++)
            text[i].n += text[i].n_new;
        if (pkvt_below(&seed, 4)) continue;
        give_all(&hosts[1]);
        for (uint32_t i = 0; i < SEQS; i++) {
            compare(hosts, text[i].tokens, text[i].n);
            if (text[i].n < LENGTH - PAGE && pkvt_below(&seed, 8)) continue;
            for (int h = 0; h < 2; h++)
                pkvt_end(hosts[h].seq[i]);
            text[i].live = false;
            compare(hosts, text[i].tokens, text[i].n);
        }
        for (int h = 0; h < 2; h++)
            pkvt_verify(hosts[h].cache);
        ck_assert_uint_eq(pkvt_published(hosts[0].cache, NULL),
                          pkvt_published(hosts[1].cache, NULL));
    }
    for (int h = 0; h < 2; h++)
        pkv_cache_destroy(hosts[h].cache);
}
END_TEST

START_TEST(gaps_and_errors)
{
    pkv_cache *cache = pkvt_open(NULL, 0, false);
    int32_t t[6 * PAGE];
    pkvt_count_from(1, t, 6 * PAGE);
    pkv_seq seq = pkvt_run(cache, NULL, t, PAGE + 3);
    pkvt_append(cache, seq, NULL, PAGE);
    missing(seq, PAGE + 3, PAGE);
    pkvt_append(cache, seq, t + 2 * PAGE + 3, PAGE); /* behind a gap: forgotten */
    missing(seq, PAGE + 3, 2 * PAGE);
    ck_assert_uint_eq(pkvt_match(cache, NULL, t, 6 * PAGE).n_tokens, PAGE);
    ck_assert_int_eq(pkv_seq_set_tokens(seq, PAGE, t, 3), PKV_EINVAL);
    ck_assert_int_eq(pkv_seq_set_tokens(seq, PAGE + 4, t, 3), PKV_EINVAL);
    ck_assert_int_eq(pkv_seq_set_tokens(seq, PAGE + 3, t, 2 * PAGE + 1), PKV_EINVAL);
    ck_assert_int_eq(pkv_seq_set_tokens(seq, PAGE + 3, NULL, 1), PKV_EINVAL);
    ck_assert_int_eq(pkv_seq_set_tokens(seq, PAGE + 3, NULL, 0), PKV_OK);
    ck_assert_int_eq(pkv_seq_set_tokens(seq, PAGE + 3, t + PAGE + 3, PAGE), PKV_OK);
    ck_assert_uint_eq(pkvt_match(cache, NULL, t, 6 * PAGE).n_tokens, 2 * PAGE);
    ck_assert_int_eq(pkv_seq_set_tokens(seq, 2 * PAGE + 3, t + 2 * PAGE + 3, PAGE), PKV_OK);
    ck_assert_uint_eq(pkvt_match(cache, NULL, t, 6 * PAGE).n_tokens, 3 * PAGE);
    missing(seq, 0, 0);
    pkvt_append(cache, seq, NULL, 2);
    missing(seq, 3 * PAGE + 3, 2);
    ck_assert_int_eq(pkv_seq_truncate(seq, 3 * PAGE + 2), PKV_OK); /* they are gone */
    missing(seq, 0, 0);
    pkvt_append(cache, seq, t + 3 * PAGE + 2, PAGE);
    ck_assert_uint_eq(pkvt_match(cache, NULL, t, 6 * PAGE).n_tokens, 4 * PAGE);
    pkvt_append(cache, seq, NULL, PAGE);
    pkvt_drop(cache, NULL);
    missing(seq, 0, 0); /* nothing of it is wanted any more */
    ck_assert_int_eq(pkv_seq_set_tokens(seq, 4 * PAGE + 2, t, 1), PKV_OK);
    ck_assert_uint_eq(pkvt_match(cache, NULL, t, 6 * PAGE).n_tokens, 0);
    pkv_batch batch;
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, seq, NULL, 3), PKV_OK);
    ck_assert_int_eq(pkv_batch_set_tokens(batch, 1, t, 3), PKV_EINVAL);
    ck_assert_int_eq(pkv_batch_set_tokens(batch, 0, t, 2), PKV_EINVAL);
    ck_assert_int_eq(pkv_batch_set_tokens(batch, 0, NULL, 3), PKV_EINVAL);
    ck_assert_int_eq(pkv_batch_set_tokens(batch, 0, t, 3), PKV_OK);
    ck_assert_int_eq(pkv_batch_set_tokens(batch, 0, t + 1, 3), PKV_OK);
    ck_assert_int_eq(pkv_batch_abort(batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_set_tokens(batch, 0, t, 3), PKV_ESTALE);
    pkvt_end(seq);
    pkvt_close(cache);
}
END_TEST

/* Ids that came in another order than the entries, and entries taken out among them. */
START_TEST(removal_keeps_late_ids)
{
    enum { N = 5 };
    pkv_cache *cache = pkvt_open(NULL, 0, false);
    pkv_seq seq[N];
    int32_t t[N][PAGE];
    pkv_batch batch;
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    for (int i = 0; i < N; i++) {
        pkvt_count_from(100 * i, t[i], PAGE);
        ck_assert_int_eq(pkv_seq_create(cache, &seq[i]), PKV_OK);
        ck_assert_int_eq(pkv_batch_add(batch, seq[i], i % 2 ? t[i] : NULL, PAGE), PKV_OK);
    }
    for (uint32_t i = N + 1; i-- > 0;)
        if (i % 2 == 0 && i < N)
            ck_assert_int_eq(pkv_batch_set_tokens(batch, i, t[i], PAGE), PKV_OK);
    ck_assert_int_eq(pkv_batch_remove(batch, (uint32_t)_i), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
    for (int i = 0; i < N; i++) {
        ck_assert_uint_eq(pkvt_match(cache, NULL, t[i], PAGE).n_pages, i != _i);
        pkvt_end(seq[i]);
    }
    pkvt_close(cache);
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("late_tokens");
    TCase *all = tcase_create("all");
    tcase_set_timeout(all, 60);
    tcase_add_loop_test(all, asynchronous_is_synchronous, 0, 4);
    tcase_add_test(all, gaps_and_errors);
    tcase_add_loop_test(all, removal_keeps_late_ids, 0, 5);
    suite_add_tcase(suite, all);
    return suite;
}
