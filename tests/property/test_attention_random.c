/* Attention on random shapes: sequences that grow by decode, chunks, trees and partly accepted
 * speculation, forks that share pages, truncation, windows, all options, all kernel rows. Every
 * step is run three times: in one cache with one thread, again with other threads, order of calls
 * and cascade, and in a second cache with other pages and another batch order. All must be bitwise
 * equal, and rows picked at random agree with the naive model.
 *
 * PKV_ROUNDS sets the number of shapes (default 40). */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "attn_case.h"
#include "random.h"
#include "suite.h"

enum { SEQS = 6, MOST_NEW = 300 };

static uint32_t pick(uint64_t *random, const uint32_t *from, uint32_t n)
{
    return from[pkvt_below(random, n)];
}

static ac_shape random_shape(uint64_t *random)
{
    static const uint32_t pages[] = {8, 16, 32, 64, 128};
    static const uint32_t groups[] = {1, 2, 3, 4, 5, 6, 7, 8, 12, 16};
    static const uint32_t dims[] = {8, 16, 24, 40, 64, 80, 96, 112, 128, 192, 256};
    static const uint32_t windows[] = {0, 0, 0, 1, 5, 64, 100, 700};
    static const pkv_dtype types[] = {PKV_DTYPE_F32, PKV_DTYPE_F16, PKV_DTYPE_BF16};
    uint32_t n_rows = 0;
    const char *rows[16];
    while (n_rows < 16 && pkv_kernel_list(n_rows, &rows[n_rows]) == PKV_OK)
        n_rows++;
    ac_shape s = {.n_layers = 1 + pkvt_below(random, 2)};
    s.page_tokens = pick(random, pages, 5);
    s.kv_heads = 1 + pkvt_below(random, 5);
    s.q_heads = s.kv_heads * pick(random, groups, 10);
    s.dim_k = pick(random, dims, 11);
    s.dim_v = pkvt_below(random, 3) ? s.dim_k : pick(random, dims, 11);
    s.window = pick(random, windows, 8);
    s.dtype = types[pkvt_below(random, 3)];
    if (pkvt_below(random, 2)) { /* quantised, K and V apart */
        static const pkv_dtype keys[] = {0, PKV_DTYPE_K8, PKV_DTYPE_K4};
        static const pkv_dtype values[] = {0, PKV_DTYPE_V8, PKV_DTYPE_V4};
        s.dtype_k = keys[pkvt_below(random, 3)];
        s.dtype_v = values[pkvt_below(random, 3)];
    }
    s.isa = rows[pkvt_below(random, n_rows)];
    s.softcap = pkvt_below(random, 4) ? 0.0f : 3.0f;
    s.scale = pkvt_below(random, 4) ? 0.0f : 0.2f;
    s.alibi = pkvt_below(random, 4) == 0;
    s.sinks = pkvt_below(random, 4) == 0;
    s.debug = pkvt_below(random, 2) ? PKV_DEBUG_POISON : 0;
    return s;
}

/* A random lower triangle with its diagonal, closed under nothing: any mask is legal. */
static uint8_t *random_mask(uint64_t *random, uint32_t n, uint32_t *depth)
{
    uint32_t row_bytes = (n + 7) / 8;
    uint8_t *mask = calloc(n, row_bytes);
    for (uint32_t i = 0; i < n; i++) {
        mask[i * row_bytes + i / 8] |= (uint8_t)(1u << i % 8);
        depth[i] = 0;
        if (i == 0) continue;
        uint32_t parent = pkvt_below(random, i);
        for (uint32_t j = 0; j < row_bytes; j++)
            mask[i * row_bytes + j] |= mask[parent * row_bytes + j];
        depth[i] = depth[parent] + 1;
    }
    return mask;
}

struct step {
    ac_entry entries[SEQS];
    uint64_t content[SEQS][MOST_NEW];
    uint32_t depth[SEQS][MOST_NEW];
    uint8_t *masks[SEQS];
    uint32_t n;
};

static void random_step(struct step *s, uint64_t *random, const ac_case *c)
{
    bool used[SEQS] = {false};
    memset(s, 0, sizeof *s);
    s->n = 1 + pkvt_below(random, SEQS);
    for (uint32_t e = 0; e < s->n; e++) {
        uint32_t seq = pkvt_below(random, SEQS);
        while (used[seq])
            seq = (seq + 1) % SEQS;
        used[seq] = true;
        uint32_t kind = pkvt_below(random, 8);
        uint32_t n = kind < 4   ? 1
                     : kind < 7 ? 1 + pkvt_below(random, 12)
                                : 1 + pkvt_below(random, MOST_NEW);
        if (c->seqs[seq].length < 400 && kind == 0) n = MOST_NEW;
        for (uint32_t i = 0; i < n; i++)
            s->content[e][i] = pkvt_random(random);
        s->entries[e] = (ac_entry){.seq = seq, .n = n, .content = s->content[e]};
        if (n > 1 && n < 60 && pkvt_below(random, 3) == 0) {
            s->masks[e] = random_mask(random, n, s->depth[e]);
            s->entries[e].mask = s->masks[e];
            if (pkvt_below(random, 2)) s->entries[e].depth = s->depth[e];
        }
    }
}

static void free_step(struct step *s)
{
    for (uint32_t e = 0; e < s->n; e++)
        free(s->masks[e]);
}

static size_t floats(const ac_case *c, const ac_result *r)
{
    return (size_t)c->shape.n_layers * r->n_rows * c->shape.q_heads;
}

static void same(const ac_case *c, const ac_result *a, const ac_result *b, const char *what)
{
    ck_assert_msg(memcmp(a->lse, b->lse, floats(c, a) * sizeof(float)) == 0, "%s: lse differs",
                  what);
    ck_assert_msg(memcmp(a->out, b->out, floats(c, a) * c->shape.dim_v * sizeof(float)) == 0,
                  "%s: outputs differ", what);
}

/* The rows of entry e of a result with `entries` before it, moved to where `to` has them. */
static ac_result permuted(const ac_case *c, const struct step *s, const uint32_t *order,
                          const ac_result *from)
{
    size_t row = (size_t)c->shape.q_heads * c->shape.dim_v;
    ac_result to = {.n_rows = from->n_rows};
    to.out = malloc(floats(c, from) * c->shape.dim_v * sizeof *to.out);
    to.lse = malloc(floats(c, from) * sizeof *to.lse);
    uint64_t at = 0;
    for (uint32_t i = 0; i < s->n; i++) {
        uint64_t first = 0, n = s->entries[order[i]].n;
        for (uint32_t e = 0; e < order[i]; e++)
            first += s->entries[e].n;
        for (uint32_t layer = 0; layer < c->shape.n_layers; layer++) {
            size_t base = (size_t)layer * from->n_rows;
            memcpy(to.out + (base + first) * row, from->out + (base + at) * row,
                   n * row * sizeof(float));
            memcpy(to.lse + (base + first) * c->shape.q_heads,
                   from->lse + (base + at) * c->shape.q_heads,
                   n * c->shape.q_heads * sizeof(float));
        }
        at += n;
    }
    return to;
}

static void shuffle(uint64_t *random, uint32_t *order, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        order[i] = i;
    for (uint32_t i = n; i > 1; i--) {
        uint32_t j = pkvt_below(random, i), swap = order[i - 1];
        order[i - 1] = order[j];
        order[j] = swap;
    }
}

/* `accepted` new tokens of each entry, in the order given: ascending places, entry after entry. */
static void paths(const struct step *s, const uint32_t *order, const uint32_t *accepted,
                  uint64_t seed, uint32_t *kept)
{
    for (uint32_t i = 0; i < s->n; i++) {
        const uint32_t e = order ? order[i] : i, n = s->entries[e].n;
        uint64_t random = seed + e;
        uint32_t wanted = accepted[i];
        for (uint32_t at = 0; wanted > 0; at++) {
            if (pkvt_below(&random, n - at) >= wanted) continue;
            *kept++ = at;
            wanted--;
        }
    }
}

static void one_step(ac_case *a, ac_case *b, pkv_plan *plan, pkv_plan *other, uint64_t *random)
{
    static const pkv_dtype types[] = {PKV_DTYPE_F32, PKV_DTYPE_F16, PKV_DTYPE_BF16};
    struct step *s = malloc(sizeof *s);
    random_step(s, random, a);
    ac_run run = {.nth = 1,
                  .in = types[pkvt_below(random, 3)],
                  .out = types[pkvt_below(random, 3)],
                  .padded = pkvt_below(random, 2)};
    ac_result first = ac_step(a, plan, s->entries, s->n, &run);
    ac_check(a, s->entries, s->n, &run, &first, 2, random);
    run.nth = 1 + pkvt_below(random, 40);
    run.order_seed = pkvt_random(random) | 1;
    ac_result again = ac_step(a, other, s->entries, s->n, &run);
    same(a, &first, &again, "threads");
    ac_result_free(&again);

    uint32_t order[SEQS], accepted[SEQS], moved[SEQS];
    ac_entry entries[SEQS];
    shuffle(random, order, s->n);
    bool partial = pkvt_below(random, 4) == 0;
    for (uint32_t i = 0; i < s->n; i++)
        accepted[i] = pkvt_below(random, s->entries[i].n + 1);
    for (uint32_t i = 0; i < s->n; i++) {
        entries[i] = s->entries[order[i]];
        moved[i] = accepted[order[i]];
    }
    run.nth = 1 + pkvt_below(random, 5);
    run.commit = true;
    run.accepted = partial ? moved : NULL;
    const bool trees = partial && pkvt_below(random, 2);
    const uint64_t seed = pkvt_random(random);
    uint32_t *kept = malloc(SEQS * MOST_NEW * sizeof *kept);
    if (trees) paths(s, order, moved, seed, run.kept = kept);
    pkv_plan *third = NULL;
    pkv_plan_options options = ac_options(b);
    options.cascade = pkvt_below(random, 3);
    ck_assert_int_eq(pkv_plan_create(b->cache, &options, &third), PKV_OK);
    ac_result elsewhere = ac_step(b, third, entries, s->n, &run);
    pkv_plan_destroy(third);
    ac_result back = permuted(b, s, order, &elsewhere);
    same(a, &first, &back, "placement and order");
    ac_result_free(&back);
    ac_result_free(&elsewhere);
    run.accepted = partial ? accepted : NULL;
    if (trees) paths(s, NULL, accepted, seed, kept);
    again = ac_step(a, plan, s->entries, s->n, &run);
    same(a, &first, &again, "commit");
    free(kept);
    ac_result_free(&again);
    ac_result_free(&first);
    free_step(s);
    free(s);
}

/* Takes pages out of the order in which they would be used. */
static void scatter(ac_case *c, uint64_t *random)
{
    enum { N = 64 };
    pkv_page pages[N];
    if (pkv_page_alloc(c->cache, 0, N, pages) != PKV_OK) return;
    for (uint32_t n = N; n > 0; n--) {
        uint32_t i = pkvt_below(random, n);
        ck_assert_int_eq(pkv_page_unref(c->cache, 0, 1, &pages[i]), PKV_OK);
        pages[i] = pages[n - 1];
    }
}

static void change_sequences(ac_case *a, ac_case *b, uint64_t *random)
{
    uint32_t seq = pkvt_below(random, SEQS), other = pkvt_below(random, SEQS);
    if (seq == other || pkvt_below(random, 3)) return;
    if (pkvt_below(random, 2)) {
        ac_destroy(a, other);
        ac_destroy(b, other);
        ac_fork(a, seq, other);
        ac_fork(b, seq, other);
    } else if (a->seqs[seq].length) {
        const uint64_t length = a->seqs[seq].length, page = a->shape.page_tokens;
        uint64_t to = length - pkvt_below(random, 20) % (length + 1);
        /* A row that goes on in a sealed page sees it dequantised, which the model does not know. */
        if ((a->shape.dtype_k || a->shape.dtype_v) && to / page != length / page) to -= to % page;
        pkv_status status = pkv_seq_truncate(a->seqs[seq].handle, to);
        ck_assert_int_eq(pkv_seq_truncate(b->seqs[seq].handle, to), status);
        if (status == PKV_OK) a->seqs[seq].length = b->seqs[seq].length = to;
    }
}

static void one_shape(uint64_t *random)
{
    ac_shape shape = random_shape(random);
    ac_case *a = ac_open(&shape), *b = ac_open(&shape);
    scatter(b, random);
    pkv_plan_options options = ac_options(a);
    options.cascade = pkvt_below(random, 3);
    pkv_plan *plan, *other;
    ck_assert_int_eq(pkv_plan_create(a->cache, &options, &plan), PKV_OK);
    options.cascade = 2 - options.cascade;
    options.max_threads = 1 + pkvt_below(random, 20);
    ck_assert_int_eq(pkv_plan_create(a->cache, &options, &other), PKV_OK);
    for (uint32_t i = 0; i < SEQS; i++) {
        ac_create(a, i);
        ac_create(b, i);
    }
    if (pkvt_below(random, 2)) { /* something to share */
        uint64_t seed = pkvt_random(random), copy = seed;
        ac_fill(a, 0, 1300, 512, &seed);
        ac_fill(b, 0, 1300, 400, &copy);
        for (uint32_t i = 1; i < 4; i++) {
            ac_destroy(a, i);
            ac_destroy(b, i);
            ac_fork(a, 0, i);
            ac_fork(b, 0, i);
        }
    }
    uint32_t steps = 2 + pkvt_below(random, 6);
    for (uint32_t i = 0; i < steps; i++) {
        one_step(a, b, plan, other, random);
        change_sequences(a, b, random);
    }
    pkv_plan_destroy(plan);
    pkv_plan_destroy(other);
    ac_close(a);
    ac_close(b);
}

START_TEST(shapes)
{
    uint64_t random = pkvt_seed("attention_random");
    const char *text = getenv("PKV_ROUNDS");
    long rounds = text ? atol(text) : 40;
    for (long i = 0; i < rounds; i++)
        one_shape(&random);
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("attention_random");
    TCase *tc = tcase_create("attention_random");
    tcase_set_timeout(tc, 0);
    tcase_add_test(tc, shapes);
    suite_add_tcase(suite, tc);
    return suite;
}
