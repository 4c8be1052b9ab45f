/* Walks the index and checks what must always hold; for tests and pkv_cache_verify. */
#include "nodes.h"

static const char *check_node(const struct pkvi_index *ix, uint32_t id)
{
    const struct pkvi_node *node = pkvi_node(ix, id);
    if (!pkvi_node_needed(ix, node)) return "index: a node that nothing needs is still there";
    if (node->parent != PKVI_NIL) {
        const struct pkvi_node *parent = pkvi_node(ix, node->parent);
        if (parent->space == PKVI_NIL) return "index: a node's parent is free";
        if (parent->space != node->space) return "index: a node and its parent differ in namespace";
        if (parent->depth + 1 != node->depth) return "index: a node's depth is wrong";
        if (parent->children == 0) return "index: a parent does not count its child";
    } else if (node->depth != 0) {
        return "index: a node without parent has a depth";
    }
    for (uint32_t g = 0; g < ix->options.n_groups; g++) {
        const struct pkvi_member *m = pkvi_member(ix, g, id);
        if (!pkvi_node_has(node, g) && m->page != PKVI_NIL)
            return "index: a member without page remembers one";
        if (m->kids > node->children) return "index: more resident children than children";
    }
    if (ix->key_bytes && pkvi_siblings_check(ix, node->space, id) != node->children)
        return "index: a node's children do not stand where they must";
    uint32_t found = ix->key_bytes ? pkvi_index_find(ix, node->space, node->parent, node->hash,
                                                     pkvi_node_tokens(ix, id), node->id)
                                   : pkvi_index_find_id(ix, node->hash, node->id);
    return found == id ? NULL : "index: a node is not found under its own identity";
}

/* Nodes of all namespaces, by their own counts. */
static uint64_t count_all(const struct pkvi_index *ix)
{
    uint64_t n = 0;
    for (uint32_t space = 0; space < ix->n_roots; space++)
        n += ix->roots[space].n_nodes;
    return n;
}

/* First pages of all namespaces, or UINT32_MAX. */
static uint64_t count_tops(const struct pkvi_index *ix)
{
    uint64_t n = 0;
    for (uint32_t space = 0; space < ix->n_roots; space++)
        n += pkvi_siblings_check(ix, space, PKVI_NIL);
    return n;
}

/* Sums over all nodes against the counters kept on the way. */
const char *pkvi_index_check(const struct pkvi_index *ix)
{
    uint64_t nodes = 0, children = 0, with_parent = 0;
    for (uint32_t id = 0; id < ix->fresh_node; id++) {
        const struct pkvi_node *node = pkvi_node(ix, id);
        if (node->space == PKVI_NIL) continue;
        const char *broken = check_node(ix, id);
        if (broken) return broken;
        nodes++;
        children += node->children;
        with_parent += node->parent != PKVI_NIL;
    }
    if (nodes != ix->n_nodes) return "index: node count is wrong";
    if (children != with_parent) return "index: child counts do not add up";
    if (ix->key_bytes && count_all(ix) != nodes)
        return "index: the namespaces' nodes do not add up";
    if (ix->key_bytes && count_tops(ix) != nodes - with_parent)
        return "index: first pages do not stand where they must";
    for (uint32_t g = 0; g < ix->options.n_groups; g++) {
        uint64_t resident = 0, kids = 0, resident_below = 0;
        for (uint32_t id = 0; id < ix->fresh_node; id++) {
            const struct pkvi_node *node = pkvi_node(ix, id);
            if (node->space == PKVI_NIL) continue;
            resident += pkvi_node_has(node, g);
            resident_below += pkvi_node_has(node, g) && node->parent != PKVI_NIL;
            kids += pkvi_member(ix, g, id)->kids;
        }
        if (resident != ix->n_resident[g]) return "index: page count of a group is wrong";
        if (kids != resident_below) return "index: resident child counts do not add up";
    }
    return NULL;
}
