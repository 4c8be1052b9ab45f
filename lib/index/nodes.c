/* Nodes: where they live, how they are added, and when they go. */
#include "nodes.h"

#include <string.h>

bool pkvi_index_ensure_root(struct pkvi_index *ix, uint32_t space)
{
    if (space < ix->n_roots) return true;
    uint32_t wider = ix->n_roots ? 2 * ix->n_roots : 8;
    while (wider <= space)
        wider *= 2;
    struct pkvi_heads *roots =
        pkvi_mem_grow_array(ix->mem, ix->roots, ix->n_roots, wider, sizeof *roots);
    if (!roots) return false;
    for (uint32_t i = ix->n_roots; i < wider; i++)
        roots[i] = (struct pkvi_heads){PKVI_NIL, PKVI_NIL, 0};
    ix->roots = roots;
    ix->n_roots = wider;
    return true;
}

static void lay_out_chunk(struct pkvi_index *ix)
{
    size_t nodes = PKVI_NODE_CHUNK * sizeof(struct pkvi_node);
    size_t members = PKVI_NODE_CHUNK * sizeof(struct pkvi_member) * ix->options.n_groups;
    ix->member_offset = nodes;
    ix->key_offset = nodes + members;
    ix->side_offset = ix->key_offset + PKVI_NODE_CHUNK * ix->key_bytes;
    ix->chunk_bytes = ix->side_offset;
    if (ix->key_bytes) ix->chunk_bytes += PKVI_NODE_CHUNK * sizeof(struct pkvi_side);
}

pkv_status pkvi_index_init(struct pkvi_index *ix, struct pkvi_mem *mem,
                           const struct pkvi_index_options *options)
{
    *ix = (struct pkvi_index){.mem = mem, .options = *options, .free_node = PKVI_NIL};
    ix->key_bytes = options->page_tokens * sizeof(uint32_t);
    ix->all_groups = UINT64_MAX >> (64 - options->n_groups);
    ix->collide = options->key[0] == UINT64_MAX && options->key[1] == UINT64_MAX;
    lay_out_chunk(ix);
    ix->n_resident = pkvi_mem_array(mem, options->n_groups, sizeof *ix->n_resident);
    if (!ix->n_resident) return PKV_ENOMEM;
    pkv_status status = pkvi_buckets_init(ix);
    if (status) pkvi_mem_free_array(mem, ix->n_resident, options->n_groups, sizeof *ix->n_resident);
    return status;
}

void pkvi_index_destroy(struct pkvi_index *ix)
{
    for (uint32_t i = 0; i < ix->n_chunks; i++)
        pkvi_mem_free(ix->mem, ix->chunk[i], ix->chunk_bytes);
    if (ix->chunk) pkvi_mem_free_array(ix->mem, ix->chunk, ix->chunk_capacity, sizeof *ix->chunk);
    if (ix->roots) pkvi_mem_free_array(ix->mem, ix->roots, ix->n_roots, sizeof *ix->roots);
    if (ix->path) pkvi_mem_free_array(ix->mem, ix->path, ix->path_capacity, sizeof *ix->path);
    pkvi_buckets_destroy(ix);
    pkvi_mem_free_array(ix->mem, ix->n_resident, ix->options.n_groups, sizeof *ix->n_resident);
    *ix = (struct pkvi_index){.free_node = PKVI_NIL};
}

static bool add_chunk(struct pkvi_index *ix)
{
    if (ix->n_chunks == PKVI_NIL >> PKVI_NODE_CHUNK_SHIFT) return false;
    if (ix->n_chunks == ix->chunk_capacity) {
        uint32_t wider = ix->chunk_capacity ? 2 * ix->chunk_capacity : 8;
        char **chunk =
            pkvi_mem_grow_array(ix->mem, ix->chunk, ix->chunk_capacity, wider, sizeof *chunk);
        if (!chunk) return false;
        ix->chunk = chunk;
        ix->chunk_capacity = wider;
    }
    char *memory = pkvi_mem_alloc_aligned(ix->mem, ix->chunk_bytes, PKVI_CACHE_LINE);
    if (!memory) return false;
    if (ix->key_bytes)
        memset(memory + ix->side_offset, 0, PKVI_NODE_CHUNK * sizeof(struct pkvi_side));
    ix->chunk[ix->n_chunks++] = memory;
    return true;
}

/* A node nobody uses, or PKVI_NIL when memory is refused. */
static uint32_t take_node(struct pkvi_index *ix)
{
    uint32_t id = ix->free_node;
    if (id != PKVI_NIL) {
        ix->free_node = pkvi_node(ix, id)->next;
        return id;
    }
    if (ix->fresh_node == ix->n_chunks << PKVI_NODE_CHUNK_SHIFT && !add_chunk(ix)) return PKVI_NIL;
    return ix->fresh_node++;
}

uint32_t pkvi_index_add(struct pkvi_index *ix, uint32_t space, uint32_t parent, uint64_t hash,
                        const uint32_t *tokens, uint64_t id)
{
    uint32_t at = take_node(ix);
    if (at == PKVI_NIL) return PKVI_NIL;
    struct pkvi_node *node = pkvi_node(ix, at);
    *node = (struct pkvi_node){.hash = hash,
                               .id = id,
                               .parent = parent,
                               .space = space,
                               .first = PKVI_NIL,
                               .left = PKVI_NIL,
                               .right = PKVI_NIL};
    for (uint32_t g = 0; g < ix->options.n_groups; g++)
        *pkvi_member(ix, g, at) =
            (struct pkvi_member){.page = PKVI_NIL, .newer = PKVI_NIL, .older = PKVI_NIL};
    if (ix->key_bytes) {
        memcpy(pkvi_node_tokens(ix, at), tokens, ix->key_bytes);
        pkvi_side(ix, at)->others = PKVI_NIL;
        pkvi_side(ix, at)->salted = false;
        if (id && parent != PKVI_NIL) pkvi_side(ix, parent)->salted = true;
        ix->roots[space].n_nodes++;
    }
    if (parent != PKVI_NIL) {
        struct pkvi_node *above = pkvi_node(ix, parent);
        node->depth = above->depth + 1;
        above->children++;
    }
    ix->n_nodes++;
    pkvi_index_enter(ix, at);
    return at;
}

void pkvi_index_collect(struct pkvi_index *ix, uint32_t id)
{
    while (id != PKVI_NIL) {
        struct pkvi_node *node = pkvi_node(ix, id);
        if (pkvi_node_needed(ix, node)) return;
        uint32_t parent = node->parent;
        pkvi_index_leave(ix, id);
        if (ix->key_bytes) {
            pkvi_siblings_leave(ix, id);
            pkvi_side(ix, id)->generation++;
            ix->roots[node->space].n_nodes--;
        }
        if (parent != PKVI_NIL) pkvi_node(ix, parent)->children--;
        node->space = PKVI_NIL;
        node->next = ix->free_node;
        ix->free_node = id;
        ix->n_nodes--;
        id = parent;
    }
}
