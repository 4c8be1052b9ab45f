/* Namespaces: a name, where its chains start, its counters and its quota domain. Those with nothing
 * in them are kept for their counters, the oldest forgotten first. */
#include <string.h>

#include "internal.h"

#define FIRST_BUCKETS 16u

static uint64_t name_hash(const struct pkvi_prefix *px, const void *name, size_t size)
{
    return pkvi_hash_space(&px->core, size ? name : "", size);
}

pkv_status pkvi_spaces_init(struct pkvi_prefix *px)
{
    px->free_space = PKVI_NIL;
    pkvi_list_init(&px->empty_spaces);
    px->space_bucket = pkvi_mem_alloc(px->mem, FIRST_BUCKETS * sizeof *px->space_bucket);
    if (!px->space_bucket) return PKV_ENOMEM;
    memset(px->space_bucket, 0xff, FIRST_BUCKETS * sizeof *px->space_bucket);
    px->n_space_buckets = FIRST_BUCKETS;
    px->common = pkvi_domain_create(px);
    if (!px->common) return PKV_ENOMEM;
    struct pkvi_space *everyone;
    return pkvi_space_get(px, NULL, &everyone); /* slot 0: the default namespace */
}

static void free_space(struct pkvi_prefix *px, struct pkvi_space *space)
{
    if (space->domain != px->common) pkvi_domain_destroy(px, space->domain);
    space->domain = NULL;
    if (space->size) pkvi_mem_free(px->mem, space->name, space->size);
    space->name = NULL;
    space->size = 0;
    space->live = false;
}

void pkvi_spaces_destroy(struct pkvi_prefix *px)
{
    for (uint32_t i = 0; i < px->n_spaces; i++) {
        if (px->space[i]->live) free_space(px, px->space[i]);
        pkvi_mem_free(px->mem, px->space[i], sizeof **px->space);
    }
    if (px->space) pkvi_mem_free_array(px->mem, px->space, px->space_capacity, sizeof *px->space);
    if (px->space_bucket)
        pkvi_mem_free_array(px->mem, px->space_bucket, px->n_space_buckets,
                            sizeof *px->space_bucket);
    if (px->common) pkvi_domain_destroy(px, px->common);
}

static struct pkvi_space *find(struct pkvi_prefix *px, uint64_t hash, const void *name, size_t size)
{
    uint32_t at = px->space_bucket[hash & (px->n_space_buckets - 1)];
    for (; at != PKVI_NIL; at = px->space[at]->next) {
        struct pkvi_space *space = px->space[at];
        if (space->hash == hash && space->size == size &&
            (size == 0 || memcmp(space->name, name, size) == 0))
            return space;
    }
    return NULL;
}

struct pkvi_space *pkvi_space_find(struct pkvi_prefix *px, const pkv_namespace *name)
{
    if (!pkvi_space_named(name)) return NULL;
    const void *bytes = name ? name->bytes : NULL;
    size_t size = name ? name->size : 0;
    return find(px, name_hash(px, bytes, size), bytes, size);
}

/* Doubles the buckets; a refusal only makes chains longer. */
static void widen_buckets(struct pkvi_prefix *px)
{
    uint32_t wider = 2 * px->n_space_buckets;
    if (wider == 0) return;
    uint32_t *bucket = pkvi_mem_alloc(px->mem, wider * sizeof *bucket);
    if (!bucket) return;
    memset(bucket, 0xff, wider * sizeof *bucket);
    for (uint32_t i = 0; i < px->n_spaces; i++) {
        struct pkvi_space *space = px->space[i];
        if (!space->live) continue;
        space->next = bucket[space->hash & (wider - 1)];
        bucket[space->hash & (wider - 1)] = i;
    }
    pkvi_mem_free_array(px->mem, px->space_bucket, px->n_space_buckets, sizeof *bucket);
    px->space_bucket = bucket;
    px->n_space_buckets = wider;
}

/* A slot without namespace, or NULL. Its generation goes on where it was. */
static struct pkvi_space *take_slot(struct pkvi_prefix *px)
{
    if (px->free_space != PKVI_NIL) {
        struct pkvi_space *space = px->space[px->free_space];
        px->free_space = space->next;
        return space;
    }
    if (px->n_spaces == px->space_capacity) {
        uint32_t wider = px->space_capacity ? 2 * px->space_capacity : 8;
        struct pkvi_space **array =
            pkvi_mem_grow_array(px->mem, px->space, px->space_capacity, wider, sizeof *array);
        if (!array) return NULL;
        px->space = array;
        px->space_capacity = wider;
    }
    if (!pkvi_index_ensure_root(&px->core, px->n_spaces)) return NULL;
    struct pkvi_space *space = pkvi_mem_zalloc(px->mem, sizeof *space);
    if (!space) return NULL;
    space->slot = px->n_spaces;
    space->generation = 1;
    px->space[px->n_spaces++] = space;
    return space;
}

static void give_slot(struct pkvi_prefix *px, struct pkvi_space *space)
{
    space->next = px->free_space;
    px->free_space = space->slot;
}

pkv_status pkvi_space_get(struct pkvi_prefix *px, const pkv_namespace *name,
                          struct pkvi_space **out)
{
    if (!pkvi_space_named(name)) return PKV_EINVAL;
    const void *bytes = name ? name->bytes : NULL;
    size_t size = name ? name->size : 0;
    uint64_t hash = name_hash(px, bytes, size);
    *out = find(px, hash, bytes, size);
    if (*out) return PKV_OK;
    struct pkvi_space *space = take_slot(px);
    if (!space) return PKV_ENOMEM;
    void *copy = size ? pkvi_mem_alloc(px->mem, size) : NULL;
    if (size && !copy) {
        give_slot(px, space);
        return PKV_ENOMEM;
    }
    if (size) memcpy(copy, bytes, size);
    if (++px->n_live_spaces > px->n_space_buckets) widen_buckets(px);
    *space = (struct pkvi_space){.name = copy,
                                 .size = size,
                                 .hash = hash,
                                 .domain = px->common,
                                 .slot = space->slot,
                                 .generation = space->generation,
                                 .live = true};
    pkvi_list_init(&space->empty);
    uint32_t *bucket = &px->space_bucket[hash & (px->n_space_buckets - 1)];
    space->next = *bucket;
    *bucket = space->slot;
    pkvi_space_settle(px, space);
    *out = space;
    return PKV_OK;
}

static void forget(struct pkvi_prefix *px, struct pkvi_space *space)
{
    uint32_t *link = &px->space_bucket[space->hash & (px->n_space_buckets - 1)];
    while (*link != space->slot)
        link = &px->space[*link]->next;
    *link = space->next;
    pkvi_list_remove(&space->empty);
    px->n_empty_spaces--;
    px->n_live_spaces--;
    space->generation++;
    free_space(px, space);
    give_slot(px, space);
}

void pkvi_space_settle(struct pkvi_prefix *px, struct pkvi_space *space)
{
    if (space->slot == 0) return; /* the default namespace always stays */
    bool empty = space->sequences == 0 && space->pins == 0 && !space->domain->has_quota &&
                 pkvi_index_is_empty(&px->core, space->slot);
    bool listed = !pkvi_list_empty(&space->empty);
    if (empty == listed) return;
    if (!empty) {
        pkvi_list_remove(&space->empty);
        px->n_empty_spaces--;
        return;
    }
    pkvi_list_push_back(&px->empty_spaces, &space->empty);
    if (++px->n_empty_spaces > PKVI_EMPTY_SPACES)
        forget(px, PKVI_CONTAINER_OF(px->empty_spaces.next, struct pkvi_space, empty));
}
