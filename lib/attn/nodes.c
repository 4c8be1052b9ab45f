/* attn: the fixed merge tree of attention states (see nodes.h). */
#include "nodes.h"

void pkvi_nodes_start(struct pkvi_nodes *nodes, bool left_open, uint32_t left)
{
    nodes->n = 0;
    nodes->fixed = 0;
    nodes->left_open = left_open;
    nodes->left = left;
}

static void merge_top(struct pkvi_nodes *nodes)
{
    nodes->merge(nodes->context, pkvi_nodes_state(nodes, nodes->n - 2),
                 pkvi_nodes_state(nodes, nodes->n - 1));
    nodes->n--;
}

/* Two neighbours belong together as soon as the next leaf lies outside their common node. */
static void settle(struct pkvi_nodes *nodes, uint32_t next)
{
    while (nodes->n > nodes->fixed) {
        uint32_t top = nodes->leaf[nodes->n - 1];
        uint32_t height = pkvi_nodes_height(top, next);
        if (nodes->n - nodes->fixed >= 2) {
            if (pkvi_nodes_height(nodes->leaf[nodes->n - 2], top) >= height) return;
            merge_top(nodes);
            continue;
        }
        /* The lowest open node: it merges leftwards, with something that is not here. */
        if (!nodes->left_open || pkvi_nodes_height(nodes->left, top) >= height) return;
        nodes->left = top;
        nodes->fixed = nodes->n;
    }
}

float *pkvi_nodes_push(struct pkvi_nodes *nodes, uint32_t leaf)
{
    if (nodes->n > 0) settle(nodes, leaf);
    nodes->leaf[nodes->n] = leaf;
    return pkvi_nodes_state(nodes, nodes->n++);
}

void pkvi_nodes_finish(struct pkvi_nodes *nodes)
{
    while (nodes->n > 1)
        merge_top(nodes);
}
