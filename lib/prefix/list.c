/* Telling everything that is published in a namespace. */
#include <string.h>

#include "internal.h"

struct lister {
    struct pkvi_prefix *px;
    pkv_prefix_node *nodes;
    int32_t *tokens;
    uint32_t n, parent; /* parent: place in the list */
};

/* There is room. */
static bool note(void *context, uint32_t id)
{
    struct lister *l = context;
    const struct pkvi_index *ix = &l->px->core;
    const struct pkvi_node *node = pkvi_node(ix, id);
    const uint32_t p = l->px->config.page_tokens;
    l->nodes[l->n] = (pkv_prefix_node){.id = (uint64_t)pkvi_side(ix, id)->generation << 32 | id,
                                       .groups = node->resident,
                                       .salt = node->id,
                                       .parent = l->parent,
                                       .depth = node->depth};
    memcpy(l->tokens + (size_t)l->n++ * p, pkvi_node_tokens(ix, id), p * sizeof *l->tokens);
    return true;
}

/* The list is the queue of a breadth-first walk, so parents come first. */
static void list_all(struct lister *l, uint32_t space)
{
    l->parent = UINT32_MAX;
    pkvi_siblings_each(&l->px->core, space, PKVI_NIL, note, l);
    for (uint32_t i = 0; i < l->n; i++) {
        l->parent = i;
        pkvi_siblings_each(&l->px->core, space, (uint32_t)l->nodes[i].id, note, l);
    }
}

pkv_status pkvi_prefix_list(struct pkvi_prefix *px, const pkv_namespace *name,
                            pkv_prefix_node *nodes, int32_t *tokens, uint32_t capacity, uint32_t *n)
{
    if (!pkvi_space_named(name)) return PKV_EINVAL;
    struct lister l = {.px = px, .nodes = nodes, .tokens = tokens};
    pkvi_prefix_lock(px);
    const struct pkvi_space *space = pkvi_space_find(px, name);
    *n = space ? px->core.roots[space->slot].n_nodes : 0;
    if (*n && *n <= capacity) list_all(&l, space->slot);
    pkvi_prefix_unlock(px);
    PKVI_ASSERT(*n > capacity || l.n == *n);
    return *n > capacity ? PKV_ERANGE : PKV_OK;
}
