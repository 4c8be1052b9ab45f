/* The children of one node as a search tree (a treap) ordered by their tokens, so that the child
 * sharing the longest run of leading tokens with a query is found in O(log fan-out): it is a
 * neighbour of the place where the query would stand. Heap ranks come from the node number. */
#include "nodes.h"

static uint32_t rank(uint32_t id)
{
    id *= 0x9e3779b1u;
    id ^= id >> 16;
    return id * 0x85ebca6bu;
}

/* Leading tokens two pages share, at most n. */
static uint32_t common(const uint32_t *a, const uint32_t *b, uint32_t n)
{
    uint32_t i = 0;
    while (i < n && a[i] == b[i])
        i++;
    return i;
}

static bool before(const struct pkvi_index *ix, const uint32_t *a, const uint32_t *b)
{
    uint32_t n = ix->options.page_tokens;
    uint32_t i = common(a, b, n);
    return i < n && a[i] < b[i];
}

/* Splits a tree into what stands before `tokens` and the rest. */
static void split(struct pkvi_index *ix, uint32_t tree, const uint32_t *tokens, uint32_t *less,
                  uint32_t *rest)
{
    while (tree != PKVI_NIL) {
        struct pkvi_node *node = pkvi_node(ix, tree);
        if (before(ix, pkvi_node_tokens(ix, tree), tokens)) {
            *less = tree;
            less = &node->right;
            tree = node->right;
        } else {
            *rest = tree;
            rest = &node->left;
            tree = node->left;
        }
    }
    *less = *rest = PKVI_NIL;
}

void pkvi_siblings_insert(struct pkvi_index *ix, uint32_t *root, uint32_t id)
{
    const uint32_t *tokens = pkvi_node_tokens(ix, id);
    uint32_t *link = root;
    while (*link != PKVI_NIL && rank(*link) >= rank(id)) {
        struct pkvi_node *node = pkvi_node(ix, *link);
        link = before(ix, pkvi_node_tokens(ix, *link), tokens) ? &node->right : &node->left;
    }
    struct pkvi_node *node = pkvi_node(ix, id);
    split(ix, *link, tokens, &node->left, &node->right);
    *link = id;
}

void pkvi_siblings_remove(struct pkvi_index *ix, uint32_t *root, uint32_t id)
{
    const uint32_t *tokens = pkvi_node_tokens(ix, id);
    uint32_t *link = root;
    while (*link != id) {
        struct pkvi_node *node = pkvi_node(ix, *link);
        link = before(ix, pkvi_node_tokens(ix, *link), tokens) ? &node->right : &node->left;
    }
    uint32_t left = pkvi_node(ix, id)->left, right = pkvi_node(ix, id)->right;
    while (left != PKVI_NIL && right != PKVI_NIL) {
        if (rank(left) >= rank(right)) {
            *link = left;
            link = &pkvi_node(ix, left)->right;
            left = *link;
        } else {
            *link = right;
            link = &pkvi_node(ix, right)->left;
            right = *link;
        }
    }
    *link = left != PKVI_NIL ? left : right;
}

uint32_t pkvi_siblings_longest(const struct pkvi_index *ix, uint32_t root, const uint32_t *tokens,
                               uint32_t n, uint32_t *n_common)
{
    uint32_t best = PKVI_NIL, longest = 0;
    /* Both neighbours of the query's place lie on the way down to it. */
    while (root != PKVI_NIL) {
        const uint32_t *there = pkvi_node_tokens(ix, root);
        uint32_t shared = common(there, tokens, n);
        if (shared > longest) {
            longest = shared;
            best = root;
        }
        if (shared == n) break;
        root =
            there[shared] < tokens[shared] ? pkvi_node(ix, root)->right : pkvi_node(ix, root)->left;
    }
    *n_common = longest;
    return best;
}
