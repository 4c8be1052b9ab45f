/* Eviction and the prefix index: who may find whose pages, and everything mixed at random: forks,
 * shared prefixes, evictions with a journal, truncations, pins, with verify after each operation
 * and attention checked against the slow reference. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "evict_case.h"
#include "random.h"
#include "suite.h"

#define P 16u

static struct ec_shape base_shape(void)
{
    return (struct ec_shape){.page_tokens = P,
                             .n_layers = 1,
                             .kv_heads = 1,
                             .group_size = 2,
                             .dim = 16,
                             .dtype = PKV_DTYPE_F32,
                             .signals = PKV_SIGNAL_BOUNDS | PKV_SIGNAL_KEYSUM,
                             .peak = 3,
                             .prefix = 1};
}

static pkv_evict_config named(const char *name, uint64_t budget)
{
    pkv_evict_config c;
    ck_assert_int_eq(pkv_evict_config_named(&c, sizeof c, name, budget), PKV_OK);
    return c;
}

static pkv_seq new_seq(struct ec_case *c, const pkv_evict_config *config)
{
    pkv_seq seq;
    ck_assert_int_eq(pkv_seq_create(c->cache, &seq), PKV_OK);
    if (config != NULL) ck_assert_int_eq(pkv_seq_set_evict(seq, 0, config), PKV_OK);
    return seq;
}

static uint64_t length_of(pkv_seq seq)
{
    uint64_t length;
    ck_assert_int_eq(pkv_seq_length(seq, &length), PKV_OK);
    return length;
}

static pkv_evict_info info_of(pkv_seq seq)
{
    pkv_evict_info info = {.struct_size = sizeof info};
    ck_assert_int_eq(pkv_seq_evict_info(seq, 0, &info), PKV_OK);
    return info;
}

/* Tokens found for this sequence of the text that starts at `base`. */
static uint64_t find(pkv_seq seq, uint64_t base, uint64_t n, pkv_match *match)
{
    int32_t *tokens = malloc(n * sizeof *tokens);
    for (uint64_t i = 0; i < n; i++)
        tokens[i] = (int32_t)(base + i);
    memset(match, 0, sizeof *match);
    match->struct_size = sizeof *match;
    ck_assert_int_eq(pkv_seq_match(seq, tokens, n, match), PKV_OK);
    free(tokens);
    return match->n_tokens;
}

START_TEST(salted_pages_match_the_same_policy_only)
{
    struct ec_shape shape = base_shape();
    struct ec_case *c = ec_open(&shape, 0);
    const pkv_evict_config sink = named("sink", 4 * P), wider = named("sink", 6 * P),
                           mass = named("mass", 4 * P);
    pkv_seq a = new_seq(c, &sink);
    for (int i = 0; i < 20; i++)
        ec_step(c, a, 0, P, NULL);
    pkv_match match;
    pkv_seq plain = new_seq(c, NULL), other = new_seq(c, &wider), data = new_seq(c, &mass);
    /* The fifth full page made the first one go: five pages were computed with everything. */
    ck_assert_uint_eq(find(plain, 0, 30 * P, &match), 5 * P);
    ck_assert_uint_eq(find(other, 0, 30 * P, &match), 5 * P);
    ck_assert_uint_eq(find(data, 0, 30 * P, &match), 5 * P);
    pkv_seq b = new_seq(c, &sink);
    ck_assert_uint_eq(find(b, 0, 30 * P, &match), 20 * P);
    ck_assert_int_eq(pkv_seq_attach(b, &match), PKV_OK);
    ck_assert_uint_eq(info_of(b).resident_pages, 4); /* the bound holds at once */
    ck_assert_uint_eq(info_of(b).salt, info_of(a).salt);
    ck_assert_uint_eq(info_of(b).tainted, 0);
    ec_verify(c);
    /* From here on both give the same, bit for bit. */
    float out[64 * 2 * 16];
    for (int i = 0; i < 12; i++) {
        const uint32_t n = i % 3 ? 1 : P;
        ec_step(c, a, 0, n, NULL);
        memcpy(out, c->out, n * 2 * 16 * sizeof *out);
        ec_step(c, b, 0, n, NULL);
        ck_assert_mem_eq(out, c->out, n * 2 * 16 * sizeof *out);
    }
    /* A tainted sequence publishes what it had before, and nothing after. */
    for (int i = 0; i < 20; i++)
        ec_step(c, data, 100000, P, NULL);
    ck_assert_uint_eq(info_of(data).tainted, 1);
    ck_assert_uint_eq(find(plain, 100000, 30 * P, &match), 5 * P);
    pkv_seq twin = new_seq(c, &mass);
    ck_assert_uint_eq(find(twin, 100000, 30 * P, &match), 5 * P);
    ec_close(c);
}
END_TEST

#define SEQS 8u

struct live {
    bool alive;
    pkv_seq seq;
    uint64_t base;
};

static void check_step(struct ec_case *c, struct live *l, uint32_t n, uint64_t *rng)
{
    const uint64_t length = length_of(l->seq);
    bool *visible = malloc(length + n);
    double want[16];
    pkv_batch batch;
    ec_step(c, l->seq, l->base, n, &batch);
    const uint32_t row = pkvt_below(rng, n), head = pkvt_below(rng, 2);
    ec_visible(c, l->seq, length, n, row, visible);
    ec_reference(c, l->base, length + row, 0, head, visible, false, want);
    for (uint32_t d = 0; d < 16; d++)
        ck_assert_double_eq_tol(c->out[(row * 2 + head) * 16 + d], want[d], 1e-5);
    free(visible);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
}

START_TEST(everything_mixed)
{
    static const char *const names[] = {"none", "window",   "sink",   "mass",    "h2o",
                                        "obs",  "lru-mass", "random", "keydiff", "sink"};
    uint64_t rng = pkvt_seed("everything_mixed");
    for (int round = 0; round < 6; round++) {
        struct ec_shape shape = base_shape();
        shape.window = round % 3 == 2 ? 100 : 0;
        struct ec_case *c = ec_open(&shape, 0);
        struct live seqs[SEQS] = {0};
        uint64_t attached = 0, undone = 0;
        for (int i = 0; i < 500; i++) {
            struct live *l = &seqs[pkvt_below(&rng, SEQS)], *m = &seqs[pkvt_below(&rng, SEQS)];
            const uint32_t dice = pkvt_below(&rng, 20);
            if (!l->alive) {
                pkv_evict_config config =
                    named(names[pkvt_below(&rng, 10)], (2 + pkvt_below(&rng, 10)) * P);
                config.journal_steps = pkvt_below(&rng, 4);
                config.regret = pkvt_below(&rng, 2);
                if (shape.window && config.kind == PKV_EVICT_KEYDIFF) config.kind = PKV_EVICT_SINK;
                *l = (struct live){true, new_seq(c, &config), 10000 * pkvt_below(&rng, 2)};
                pkv_match match;
                if (find(l->seq, l->base, 600, &match) > 0 && pkvt_below(&rng, 2)) {
                    ck_assert_int_eq(pkv_seq_attach(l->seq, &match), PKV_OK);
                    attached += match.n_tokens;
                }
            } else if (dice == 0) {
                ck_assert_int_eq(pkv_seq_destroy(l->seq), PKV_OK);
                l->alive = false;
            } else if (dice == 1 && !m->alive) {
                *m = *l;
                ck_assert_int_eq(pkv_seq_fork(l->seq, &m->seq), PKV_OK);
            } else if (dice < 5) {
                const uint64_t length = length_of(l->seq), back = pkvt_below(&rng, 40);
                const uint64_t before = info_of(l->seq).pages_restored;
                const pkv_status status =
                    pkv_seq_truncate(l->seq, length > back ? length - back : 0);
                ck_assert(status == PKV_OK || status == PKV_EDROPPED);
                undone += info_of(l->seq).pages_restored - before;
            } else if (dice == 5) {
                const uint64_t begin = pkvt_below(&rng, 300);
                ck_assert_int_eq(pkv_seq_pin(l->seq, begin, begin + 20), PKV_OK);
            } else if (length_of(l->seq) < 900) {
                check_step(c, l, pkvt_below(&rng, 2) ? 1 : 1 + pkvt_below(&rng, 60), &rng);
            } else {
                ck_assert_int_eq(pkv_seq_destroy(l->seq), PKV_OK);
                l->alive = false;
            }
            ec_verify(c);
        }
        ck_assert_uint_gt(attached, 0);
        if (shape.window == 0) ck_assert_uint_gt(undone, 0);
        ec_close(c);
    }
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("evict_sharing");
    TCase *tc = tcase_create("sharing");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, salted_pages_match_the_same_policy_only);
    tcase_add_test(tc, everything_mixed);
    suite_add_tcase(suite, tc);
    return suite;
}
