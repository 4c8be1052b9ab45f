/* The hash table: chains through the nodes, buckets grown one at a time (linear hashing), so no
 * insertion ever pays for the whole table. Where ids are dense there is a plain table instead. */
#include "nodes.h"

#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

uint64_t pkvi_hash_tokens(const struct pkvi_index *ix, uint64_t parent_hash, const uint32_t *tokens,
                          uint64_t salt)
{
    if (ix->collide) return 0;
    uint64_t seed = parent_hash ^ ix->options.key[0];
    if (PKVI_UNLIKELY(salt)) seed = XXH3_64bits_withSeed(&salt, sizeof salt, seed);
    return XXH3_64bits_withSeed(tokens, ix->key_bytes, seed);
}

uint64_t pkvi_buckets_hash_id(const struct pkvi_index *ix, uint64_t id)
{
    if (ix->collide) return 0;
    return XXH3_64bits_withSeed(&id, sizeof id, ix->options.key[0] ^ ix->options.key[1]);
}

uint64_t pkvi_hash_space(const struct pkvi_index *ix, const void *name, size_t n)
{
    if (ix->collide) return 0;
    XXH64_hash_t low = XXH3_64bits_withSeed(name, n, ix->options.key[0]);
    return XXH3_64bits_withSeed(&low, sizeof low, ix->options.key[1]);
}

/* Bucket of a hash: the low bits under the larger mask if that bucket exists already. */
static inline uint32_t bucket_of(const struct pkvi_index *ix, uint64_t hash)
{
    uint32_t b = (uint32_t)hash & ix->bucket_mask;
    return b < ix->n_buckets ? b : b & (ix->bucket_mask >> 1);
}

static inline uint32_t *bucket_at(const struct pkvi_index *ix, uint32_t b)
{
    return &ix->bucket[b / PKVI_BUCKET_SEGMENT][b % PKVI_BUCKET_SEGMENT];
}

static uint32_t *new_segment(struct pkvi_index *ix)
{
    uint32_t *segment = pkvi_mem_alloc(ix->mem, PKVI_BUCKET_SEGMENT * sizeof *segment);
    if (segment) memset(segment, 0xff, PKVI_BUCKET_SEGMENT * sizeof *segment);
    return segment;
}

pkv_status pkvi_buckets_init(struct pkvi_index *ix)
{
    if (ix->options.dense_ids) {
        size_t bytes;
        if (!pkvi_mul_size(ix->options.dense_ids, sizeof *ix->by_id, &bytes)) return PKV_ENOMEM;
        ix->by_id = pkvi_mem_alloc(ix->mem, bytes);
        if (!ix->by_id) return PKV_ENOMEM;
        memset(ix->by_id, 0xff, bytes); /* an allocator's zeroes may be pages taken anew */
        return PKV_OK;
    }
    ix->bucket_capacity = 16;
    ix->bucket = pkvi_mem_array(ix->mem, ix->bucket_capacity, sizeof *ix->bucket);
    if (!ix->bucket) return PKV_ENOMEM;
    ix->bucket[0] = new_segment(ix);
    if (!ix->bucket[0]) {
        pkvi_mem_free_array(ix->mem, ix->bucket, ix->bucket_capacity, sizeof *ix->bucket);
        ix->bucket = NULL;
        return PKV_ENOMEM;
    }
    ix->n_buckets = PKVI_BUCKET_SEGMENT;
    ix->bucket_mask = 2 * PKVI_BUCKET_SEGMENT - 1;
    return PKV_OK;
}

void pkvi_buckets_destroy(struct pkvi_index *ix)
{
    if (ix->by_id)
        pkvi_mem_free_array(ix->mem, ix->by_id, ix->options.dense_ids, sizeof *ix->by_id);
    ix->by_id = NULL;
    if (!ix->bucket) return;
    uint32_t n_segments = (ix->n_buckets + PKVI_BUCKET_SEGMENT - 1) / PKVI_BUCKET_SEGMENT;
    for (uint32_t s = 0; s < n_segments; s++)
        pkvi_mem_free_array(ix->mem, ix->bucket[s], PKVI_BUCKET_SEGMENT, sizeof **ix->bucket);
    pkvi_mem_free_array(ix->mem, ix->bucket, ix->bucket_capacity, sizeof *ix->bucket);
    ix->bucket = NULL;
}

/* Makes room for one more bucket. False if memory is refused: chains then grow a little longer,
 * which is not an error. */
static bool extend(struct pkvi_index *ix)
{
    if (ix->n_buckets % PKVI_BUCKET_SEGMENT) return true;
    uint32_t s = ix->n_buckets / PKVI_BUCKET_SEGMENT;
    if (s == ix->bucket_capacity) {
        uint32_t **wider =
            pkvi_mem_grow_array(ix->mem, ix->bucket, s, 2 * (size_t)s, sizeof *wider);
        if (!wider) return false;
        ix->bucket = wider;
        ix->bucket_capacity = 2 * s;
    }
    ix->bucket[s] = new_segment(ix);
    return ix->bucket[s];
}

/* Adds bucket n_buckets and moves to it the part of one chain that belongs there. */
static void split(struct pkvi_index *ix)
{
    if (ix->n_buckets >= UINT32_C(1) << 31 || !extend(ix)) return;
    uint32_t added = ix->n_buckets++;
    uint32_t *from = bucket_at(ix, added & (ix->bucket_mask >> 1));
    uint32_t *to = bucket_at(ix, added);
    while (*from != PKVI_NIL) {
        struct pkvi_node *node = pkvi_node(ix, *from);
        if (((uint32_t)node->hash & ix->bucket_mask) == added) {
            uint32_t id = *from;
            *from = node->next;
            node->next = *to;
            *to = id;
        } else {
            from = &node->next;
        }
    }
    if (ix->n_buckets > ix->bucket_mask) ix->bucket_mask = 2 * ix->bucket_mask + 1;
}

void pkvi_buckets_insert(struct pkvi_index *ix, uint32_t id)
{
    struct pkvi_node *node = pkvi_node(ix, id);
    uint32_t *head = bucket_at(ix, bucket_of(ix, node->hash));
    node->next = *head;
    *head = id;
    if (ix->n_nodes > ix->n_buckets) split(ix);
}

void pkvi_buckets_remove(struct pkvi_index *ix, uint32_t id)
{
    struct pkvi_node *node = pkvi_node(ix, id);
    uint32_t *link = bucket_at(ix, bucket_of(ix, node->hash));
    while (*link != id)
        link = &pkvi_node(ix, *link)->next;
    *link = node->next;
}

uint32_t pkvi_index_find(const struct pkvi_index *ix, uint32_t space, uint32_t parent,
                         uint64_t hash, const uint32_t *tokens, uint64_t salt)
{
    uint32_t id = *bucket_at(ix, bucket_of(ix, hash));
    while (id != PKVI_NIL) {
        const struct pkvi_node *node = pkvi_node(ix, id);
        if (node->hash == hash && node->parent == parent && node->space == space &&
            node->id == salt && memcmp(pkvi_node_tokens(ix, id), tokens, ix->key_bytes) == 0)
            return id;
        id = node->next;
    }
    return PKVI_NIL;
}

uint32_t pkvi_buckets_find_id(const struct pkvi_index *ix, uint64_t hash, uint64_t id)
{
    uint32_t at = *bucket_at(ix, bucket_of(ix, hash));
    while (at != PKVI_NIL) {
        const struct pkvi_node *node = pkvi_node(ix, at);
        if (node->hash == hash && node->id == id) return at;
        at = node->next;
    }
    return PKVI_NIL;
}

void pkvi_index_prefetch_bucket(const struct pkvi_index *ix, uint64_t hash)
{
    __builtin_prefetch(bucket_at(ix, bucket_of(ix, hash)));
}

void pkvi_index_prefetch_node(const struct pkvi_index *ix, uint64_t hash)
{
    uint32_t id = *bucket_at(ix, bucket_of(ix, hash));
    if (id == PKVI_NIL) return;
    __builtin_prefetch(pkvi_node(ix, id));
    __builtin_prefetch(ix->key_bytes ? (void *)pkvi_node_tokens(ix, id)
                                     : (void *)pkvi_member(ix, 0, id));
}

void pkvi_index_prefetch_removal(const struct pkvi_index *ix, uint32_t id)
{
    uint32_t parent = pkvi_node(ix, id)->parent;
    if (parent == PKVI_NIL) return;
    const struct pkvi_node *above = pkvi_node(ix, parent);
    uint32_t head = *bucket_at(ix, bucket_of(ix, above->hash));
    if (head != PKVI_NIL) __builtin_prefetch(pkvi_node(ix, head));
    if (above->parent == PKVI_NIL) return;
    const struct pkvi_node *next = pkvi_node(ix, above->parent);
    __builtin_prefetch(bucket_at(ix, bucket_of(ix, next->hash)));
    if (next->parent != PKVI_NIL) __builtin_prefetch(pkvi_node(ix, next->parent));
}
