/* attn: the fixed merge tree of attention states.
 *
 * A row's keys are cut into leaves of PKVI_LEAF absolute positions. The kernel gives one
 * state (o, m, l) per leaf; the states of a row are merged in the shape of the binary tree over
 * leaf numbers in which leaf i is in the node [i >> j << j, +2^j) at height j, and missing leaves
 * (outside the window, evicted) are skipped. The shape depends on leaf numbers alone, so a thread
 * may start and stop at any leaf: it keeps the subtrees that are complete, hands the others over,
 * and whoever comes last joins them to exactly the same tree. That is why results do not depend on
 * the number of threads, on what else is in the batch, or on whether a shared prefix was processed
 * in common.
 *
 * A stack is the right edge of the tree: at most two nodes per height are alive. */
#ifndef PKVI_ATTN_NODES_H
#define PKVI_ATTN_NODES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Merges the state `right` into `left` (both blocks of floats whose shape the context knows). */
typedef void (*pkvi_merge_fn)(void *context, float *left, const float *right);

/* Nodes that can be alive while the leaves 0..last are walked: fixed ones on the left edge plus
 * open ones on the right edge. */
static inline uint32_t pkvi_nodes_bound(uint32_t last)
{
    uint32_t bits = last ? 32u - (uint32_t)__builtin_clz(last) : 0;
    return 2 * (bits + 1);
}

struct pkvi_nodes {
    uint32_t n;     /* nodes alive; node i's state is block(i) */
    uint32_t fixed; /* nodes [0, fixed) have their left sibling elsewhere: not merged here */
    bool left_open; /* leaves before the first one exist elsewhere */
    uint32_t left;  /* the last of them */
    uint32_t *leaf; /* [capacity] a leaf of each node */
    float *states;  /* [capacity][stride] */
    size_t stride;  /* floats of a state, the shape's size */
    pkvi_merge_fn merge;
    void *context;
};

/* Height of the smallest node that contains two different leaves. */
static inline uint32_t pkvi_nodes_height(uint32_t a, uint32_t b)
{
    return 32u - (uint32_t)__builtin_clz(a ^ b);
}

/* Block of node i; NULL in a stack without states, which only counts nodes. */
static inline float *pkvi_nodes_state(const struct pkvi_nodes *nodes, uint32_t i)
{
    if (!nodes->states) return NULL;
    return nodes->states + (size_t)i * nodes->stride;
}

/* Empties the stack. left_open / left say whether the walk starts in the middle of a row's leaves.
 */
void pkvi_nodes_start(struct pkvi_nodes *nodes, bool left_open, uint32_t left);

/* Opens the node of `leaf`, which must be greater than every earlier one, after merging what is
 * complete without it; returns its block, which the caller fills before the next call. Amortised
 * one merge. */
float *pkvi_nodes_push(struct pkvi_nodes *nodes, uint32_t leaf);

/* Merges everything into node 0. Only for a stack that began at the row's first leaf and holds all
 * of its leaves. No-op when empty. */
void pkvi_nodes_finish(struct pkvi_nodes *nodes);

#endif
