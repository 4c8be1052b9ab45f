/* The children of one node. Those with a page in every group stand in a search tree (a treap)
 * ordered by their salt and tokens, so that the child of a salt that shares the longest run of
 * leading tokens with a query is found in O(log fan-out): it is a neighbour of the place where the
 * query would stand. Nobody can use a part of the page of any other child, so those wait in a list,
 * out of the search's way. Heap ranks come from the node number. */
#include "nodes.h"

enum { NOWHERE, IN_TREE, IN_LIST }; /* pkvi_side.place */

/* Where a node stands, or would: no two siblings are equal in all three. */
struct key {
    uint64_t salt;
    const uint32_t *tokens;
    uint32_t id;
};

static struct key key_of(const struct pkvi_index *ix, uint32_t id)
{
    return (struct key){pkvi_node(ix, id)->id, pkvi_node_tokens(ix, id), id};
}

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

/* Equals in salt and tokens are told apart by their number: insertion and removal must take the
 * same way down. */
static bool before(const struct pkvi_index *ix, uint32_t id, const struct key *key)
{
    const uint64_t salt = pkvi_node(ix, id)->id;
    if (salt != key->salt) return salt < key->salt;
    const uint32_t n = ix->options.page_tokens;
    const uint32_t *tokens = pkvi_node_tokens(ix, id);
    const uint32_t i = common(tokens, key->tokens, n);
    return i < n ? tokens[i] < key->tokens[i] : id < key->id;
}

/* ---- the tree ------------------------------------------------------------------------------- */

static uint32_t *tree_of(struct pkvi_index *ix, uint32_t id)
{
    const struct pkvi_node *node = pkvi_node(ix, id);
    return node->parent != PKVI_NIL ? &pkvi_node(ix, node->parent)->first
                                    : &ix->roots[node->space].first;
}

/* Splits a tree into what stands before `key` and the rest. */
static void split(struct pkvi_index *ix, uint32_t tree, const struct key *key, uint32_t *less,
                  uint32_t *rest)
{
    while (tree != PKVI_NIL) {
        struct pkvi_node *node = pkvi_node(ix, tree);
        if (before(ix, tree, key)) {
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

static void tree_insert(struct pkvi_index *ix, uint32_t id)
{
    const struct key key = key_of(ix, id);
    uint32_t *link = tree_of(ix, id);
    while (*link != PKVI_NIL && rank(*link) >= rank(id)) {
        struct pkvi_node *node = pkvi_node(ix, *link);
        link = before(ix, *link, &key) ? &node->right : &node->left;
    }
    struct pkvi_node *node = pkvi_node(ix, id);
    split(ix, *link, &key, &node->left, &node->right);
    *link = id;
}

static void tree_remove(struct pkvi_index *ix, uint32_t id)
{
    const struct key key = key_of(ix, id);
    uint32_t *link = tree_of(ix, id);
    while (*link != id) {
        struct pkvi_node *node = pkvi_node(ix, *link);
        link = before(ix, *link, &key) ? &node->right : &node->left;
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

/* ---- the list, linked through left (the one before) and right (the one after) --------------- */

static uint32_t *list_of(struct pkvi_index *ix, uint32_t id)
{
    const struct pkvi_node *node = pkvi_node(ix, id);
    return node->parent != PKVI_NIL ? &pkvi_side(ix, node->parent)->others
                                    : &ix->roots[node->space].others;
}

static void list_insert(struct pkvi_index *ix, uint32_t id)
{
    struct pkvi_node *node = pkvi_node(ix, id);
    uint32_t *head = list_of(ix, id);
    node->left = PKVI_NIL;
    node->right = *head;
    if (*head != PKVI_NIL) pkvi_node(ix, *head)->left = id;
    *head = id;
}

static void list_remove(struct pkvi_index *ix, uint32_t id)
{
    const struct pkvi_node *node = pkvi_node(ix, id);
    if (node->left != PKVI_NIL)
        pkvi_node(ix, node->left)->right = node->right;
    else
        *list_of(ix, id) = node->right;
    if (node->right != PKVI_NIL) pkvi_node(ix, node->right)->left = node->left;
}

/* ---- what the index calls ------------------------------------------------------------------- */

void pkvi_siblings_leave(struct pkvi_index *ix, uint32_t id)
{
    struct pkvi_side *side = pkvi_side(ix, id);
    if (side->place == IN_TREE)
        tree_remove(ix, id);
    else if (side->place == IN_LIST)
        list_remove(ix, id);
    side->place = NOWHERE;
}

void pkvi_siblings_settle(struct pkvi_index *ix, uint32_t id)
{
    const bool whole = pkvi_node(ix, id)->resident == ix->all_groups;
    if (pkvi_side(ix, id)->place == (whole ? IN_TREE : IN_LIST)) return;
    pkvi_siblings_leave(ix, id);
    if (whole)
        tree_insert(ix, id);
    else
        list_insert(ix, id);
    pkvi_side(ix, id)->place = whole ? IN_TREE : IN_LIST;
}

uint32_t pkvi_siblings_longest(const struct pkvi_index *ix, uint32_t space, uint32_t parent,
                               uint64_t salt, const uint32_t *tokens, uint32_t n,
                               uint32_t *n_common)
{
    uint32_t at = parent == PKVI_NIL ? ix->roots[space].first : pkvi_node(ix, parent)->first;
    uint32_t best = PKVI_NIL, longest = 0;
    /* Both neighbours of the query's place lie on the way down to it. */
    while (at != PKVI_NIL) {
        const struct pkvi_node *node = pkvi_node(ix, at);
        bool right = node->id < salt;
        if (node->id == salt) {
            const uint32_t *there = pkvi_node_tokens(ix, at);
            uint32_t shared = common(there, tokens, n);
            if (shared > longest) {
                longest = shared;
                best = at;
            }
            if (shared == n) break;
            right = there[shared] < tokens[shared];
        }
        at = right ? node->right : node->left;
    }
    *n_common = longest;
    return best;
}

static bool each_of_tree(const struct pkvi_index *ix, uint32_t tree,
                         bool (*fn)(void *context, uint32_t id), void *context)
{
    for (; tree != PKVI_NIL; tree = pkvi_node(ix, tree)->right)
        if (!each_of_tree(ix, pkvi_node(ix, tree)->left, fn, context) || !fn(context, tree))
            return false;
    return true;
}

bool pkvi_siblings_each(const struct pkvi_index *ix, uint32_t space, uint32_t parent,
                        bool (*fn)(void *context, uint32_t id), void *context)
{
    const bool top = parent == PKVI_NIL;
    if (!each_of_tree(ix, top ? ix->roots[space].first : pkvi_node(ix, parent)->first, fn, context))
        return false;
    uint32_t id = top ? ix->roots[space].others : pkvi_side(ix, parent)->others;
    for (; id != PKVI_NIL; id = pkvi_node(ix, id)->right)
        if (!fn(context, id)) return false;
    return true;
}

/* ---- check ---------------------------------------------------------------------------------- */

/* Nodes of a tree; UINT32_MAX if one stands where it must not. */
static uint32_t check_tree(const struct pkvi_index *ix, uint32_t tree, uint32_t parent,
                           const struct key *low, const struct key *high)
{
    if (tree == PKVI_NIL) return 0;
    const struct pkvi_node *node = pkvi_node(ix, tree);
    const struct key key = key_of(ix, tree);
    if (node->parent != parent || node->resident != ix->all_groups ||
        pkvi_side(ix, tree)->place != IN_TREE || (low && before(ix, tree, low)) ||
        (high && !before(ix, tree, high)))
        return UINT32_MAX;
    const uint32_t left = check_tree(ix, node->left, parent, low, &key);
    const uint32_t right = check_tree(ix, node->right, parent, &key, high);
    return left == UINT32_MAX || right == UINT32_MAX ? UINT32_MAX : left + right + 1;
}

uint32_t pkvi_siblings_check(const struct pkvi_index *ix, uint32_t space, uint32_t parent)
{
    const struct pkvi_heads *root = &ix->roots[space];
    const uint32_t first = parent == PKVI_NIL ? root->first : pkvi_node(ix, parent)->first;
    uint32_t n = check_tree(ix, first, parent, NULL, NULL);
    uint32_t id = parent == PKVI_NIL ? root->others : pkvi_side(ix, parent)->others;
    for (; id != PKVI_NIL && n != UINT32_MAX; id = pkvi_node(ix, id)->right) {
        const struct pkvi_node *node = pkvi_node(ix, id);
        const bool right = node->parent == parent && node->resident != ix->all_groups &&
                           pkvi_side(ix, id)->place == IN_LIST;
        n = right ? n + 1 : UINT32_MAX;
    }
    return n;
}
