/* The merge tree: any way of cutting the leaves gives the same tree. States are texts in disguise:
 * a block holds the hash of the expression that made it, and merging hashes both sides in order, so
 * two results are equal only if the trees are. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "attn/nodes.h"
#include "random.h"
#include "suite.h"

#define MOST 200

static uint32_t bits(const float *x)
{
    uint32_t u;
    memcpy(&u, x, sizeof u);
    return u;
}

static void set(float *x, uint32_t u)
{
    memcpy(x, &u, sizeof u);
}

static uint32_t mixed(uint32_t a, uint32_t b)
{
    uint64_t state = (uint64_t)a << 32 | b;
    return (uint32_t)pkvt_random(&state);
}

static void merge(void *context, float *left, const float *right)
{
    (*(uint32_t *)context)++;
    set(left, mixed(bits(left), bits(right)));
}

struct stack {
    struct pkvi_nodes nodes;
    uint32_t leaf[80], merges;
    float states[80];
};

static void init(struct stack *s)
{
    memset(s, 0, sizeof *s);
    s->nodes = (struct pkvi_nodes){
        .leaf = s->leaf, .states = s->states, .stride = 1, .merge = merge, .context = &s->merges};
}

/* The definition, by recursion over aligned nodes. 0 = nothing there. */
static uint32_t tree(const uint32_t *leaves, uint32_t n, uint64_t base, uint32_t height)
{
    if (n == 0) return 0;
    if (height == 0) return mixed(leaves[0], 77);
    uint64_t middle = base + (UINT64_C(1) << (height - 1));
    uint32_t split = 0;
    while (split < n && leaves[split] < middle)
        split++;
    uint32_t a = tree(leaves, split, base, height - 1);
    uint32_t b = tree(leaves + split, n - split, middle, height - 1);
    return split == 0 ? b : split == n ? a : mixed(a, b);
}

static uint32_t random_leaves(uint64_t *random, uint32_t *leaves)
{
    uint32_t n = 1 + pkvt_below(random, MOST),
             at = pkvt_below(random, 3) ? 0 : pkvt_below(random, 5000);
    uint32_t gap = 1 + pkvt_below(random, 3) * pkvt_below(random, 9);
    for (uint32_t i = 0; i < n; i++) {
        leaves[i] = at;
        at += 1 + pkvt_below(random, gap);
    }
    return n;
}

static void walk(struct stack *s, const uint32_t *leaves, uint32_t from, uint32_t to)
{
    pkvi_nodes_start(&s->nodes, from > 0, from > 0 ? leaves[from] - 1 : 0);
    for (uint32_t i = from; i < to; i++) {
        set(pkvi_nodes_push(&s->nodes, leaves[i]), mixed(leaves[i], 77));
        ck_assert_uint_le(s->nodes.n, pkvi_nodes_bound(leaves[to - 1]));
    }
}

START_TEST(whole)
{
    uint64_t random = pkvt_seed("nodes");
    uint32_t leaves[MOST];
    struct stack s;
    for (int round = 0; round < 3000; round++) {
        uint32_t n = random_leaves(&random, leaves);
        init(&s);
        walk(&s, leaves, 0, n);
        pkvi_nodes_finish(&s.nodes);
        ck_assert_uint_eq(s.nodes.n, 1);
        ck_assert_uint_eq(s.merges, n - 1);
        ck_assert_uint_eq(bits(s.states), tree(leaves, n, 0, 32));
    }
}
END_TEST

START_TEST(cut_anywhere)
{
    uint64_t random = pkvt_seed("nodes");
    uint32_t leaves[MOST];
    for (int round = 0; round < 3000; round++) {
        uint32_t n = random_leaves(&random, leaves), parts = 0;
        struct stack part, all;
        init(&all);
        pkvi_nodes_start(&all.nodes, false, 0);
        for (uint32_t from = 0, to; from < n; from = to, parts++) {
            to = from + 1 + pkvt_below(&random, n - from);
            init(&part);
            walk(&part, leaves, from, to);
            for (uint32_t i = 0; i < part.nodes.n; i++)
                set(pkvi_nodes_push(&all.nodes, part.leaf[i]), bits(&part.states[i]));
        }
        pkvi_nodes_finish(&all.nodes);
        ck_assert_uint_eq(bits(all.states), tree(leaves, n, 0, 32));
    }
}
END_TEST

/* What a part leaves behind is few nodes, not one per leaf. */
START_TEST(parts_are_small)
{
    struct stack s;
    uint32_t leaves[MOST];
    for (uint32_t i = 0; i < MOST; i++)
        leaves[i] = 1000 + i;
    init(&s);
    walk(&s, leaves, 3, MOST);
    ck_assert_uint_le(s.nodes.n, 14);
    init(&s);
    for (uint32_t i = 0; i < 64; i++)
        leaves[i] = i;
    walk(&s, leaves, 0, 64);
    pkvi_nodes_push(&s.nodes, 64);
    ck_assert_uint_eq(s.nodes.n, 2); /* the first 64 are one node */
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("nodes");
    TCase *tc = tcase_create("nodes");
    tcase_add_test(tc, whole);
    tcase_add_test(tc, cut_anywhere);
    tcase_add_test(tc, parts_are_small);
    suite_add_tcase(suite, tc);
    return suite;
}
