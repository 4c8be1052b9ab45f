/* priority: the page of the lowest priority goes first, among equals the one whose last holder left
 * longest ago (leaf-first, as in lru-leaf). The publisher gives priority and time to live; when the
 * time since the last use has run out the priority is 0.
 *
 * One queue per priority and a bitmap of those that may have members; a heap by end of life over
 * the members that have one: O(log members). Priorities that nobody gives (replays) are all equal.
 */
#include "index/policies.h"
#include "index/policy.h"

#include <pagedkv/prefix.h>

#define LEVELS (PKV_PRIORITY_MAX + 1u)

struct priority {
    struct pkvi_policy base;
    struct pkvi_queue queue[LEVELS];
    uint64_t filled[PKVI_BITMAP_WORDS(LEVELS)];
    struct entry {
        uint64_t ends, ttl_ns;
        uint32_t id;
    } * heap; /* earliest end first */
    uint32_t n, capacity;
};

/* In pkvi_member: list = current priority, count = the one it was given, a = place in the heap + 1,
 * or 0. */

static struct priority *self(struct pkvi_policy *policy)
{
    return (struct priority *)policy;
}

static bool setup(struct pkvi_policy *policy)
{
    for (uint32_t level = 0; level < LEVELS; level++)
        pkvi_queue_init(&self(policy)->queue[level]);
    return true;
}

static void teardown(struct pkvi_policy *policy)
{
    struct priority *p = self(policy);
    if (p->heap) pkvi_mem_free_array(policy->ix->mem, p->heap, p->capacity, sizeof *p->heap);
}

/* ---- heap ----------------------------------------------------------------------------------- */

static void set(struct priority *p, uint32_t place, struct entry entry)
{
    p->heap[place] = entry;
    pkvi_policy_member(&p->base, entry.id)->a = place + 1;
}

static void sift(struct priority *p, uint32_t place)
{
    struct entry entry = p->heap[place];
    while (place > 0 && entry.ends < p->heap[(place - 1) / 2].ends) {
        set(p, place, p->heap[(place - 1) / 2]);
        place = (place - 1) / 2;
    }
    for (uint32_t child; (child = 2 * place + 1) < p->n; place = child) {
        if (child + 1 < p->n && p->heap[child + 1].ends < p->heap[child].ends) child++;
        if (entry.ends <= p->heap[child].ends) break;
        set(p, place, p->heap[child]);
    }
    set(p, place, entry);
}

/* When memory is refused the member lives for ever. */
static void heap_add(struct priority *p, uint32_t id, uint64_t ttl_ns)
{
    if (p->n == p->capacity) {
        uint32_t wider = p->capacity ? 2 * p->capacity : 64;
        struct entry *heap =
            pkvi_mem_grow_array(p->base.ix->mem, p->heap, p->capacity, wider, sizeof *heap);
        if (!heap) return;
        p->heap = heap;
        p->capacity = wider;
    }
    uint64_t ends = 0;
    if (!pkvi_add_u64(p->base.now, ttl_ns, &ends)) return;
    set(p, p->n, (struct entry){ends, ttl_ns, id});
    sift(p, p->n++);
}

static void heap_remove(struct priority *p, uint32_t id)
{
    uint32_t *place = &pkvi_policy_member(&p->base, id)->a;
    if (*place == 0) return;
    uint32_t at = *place - 1;
    *place = 0;
    struct entry last = p->heap[--p->n];
    if (last.id == id) return;
    set(p, at, last);
    sift(p, at);
}

/* ---- queues --------------------------------------------------------------------------------- */

static void place_newest(struct priority *p, uint32_t id, uint32_t level)
{
    pkvi_policy_member(&p->base, id)->list = (uint8_t)level;
    pkvi_queue_push_newest(&p->base, &p->queue[level], id);
    pkvi_bitmap_set(p->filled, level);
}

static void take_out(struct priority *p, uint32_t id)
{
    pkvi_queue_remove(&p->base, &p->queue[pkvi_policy_member(&p->base, id)->list], id);
}

/* A use gives the priority and the time back. */
static void renew(struct priority *p, uint32_t id)
{
    struct pkvi_member *m = pkvi_policy_member(&p->base, id);
    take_out(p, id);
    place_newest(p, id, m->count);
    if (m->a == 0) return;
    struct entry *entry = &p->heap[m->a - 1];
    entry->ends =
        entry->ttl_ns < UINT64_MAX - p->base.now ? p->base.now + entry->ttl_ns : UINT64_MAX;
    sift(p, m->a - 1);
}

static void insert(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use)
{
    struct priority *p = self(policy);
    struct pkvi_member *m = pkvi_policy_member(policy, id);
    m->count = (uint16_t)pkvi_min_u32(use->priority, PKV_PRIORITY_MAX);
    m->a = 0;
    place_newest(p, id, m->count);
    if (use->ttl_ns) heap_add(p, id, use->ttl_ns);
}

static void finish(struct pkvi_policy *policy, const uint32_t *path, uint32_t n,
                   const uint32_t *next_use, bool partial_last)
{
    (void)next_use;
    (void)partial_last;
    while (n-- > 0)
        if (path[n] != PKVI_NIL) renew(self(policy), path[n]);
}

/* Members whose time ran out; held ones are renewed when they are let go. An ended entry stays in
 * the heap, out of the way, so that a use can renew it. */
static void expire(struct priority *p)
{
    while (p->n && p->heap[0].ends != UINT64_MAX && p->heap[0].ends <= p->base.now) {
        uint32_t id = p->heap[0].id;
        p->heap[0].ends = UINT64_MAX;
        sift(p, 0);
        if (pkvi_policy_member(&p->base, id)->list == 0) continue;
        take_out(p, id);
        place_newest(p, id, 0);
    }
}

static uint32_t victim(struct pkvi_policy *policy)
{
    struct priority *p = self(policy);
    expire(p);
    uint32_t level = 0;
    while ((level = pkvi_bitmap_next(p->filled, LEVELS, level)) != PKVI_BITMAP_NONE) {
        uint32_t id = pkvi_queue_oldest(policy, &p->queue[level]);
        if (id != PKVI_NIL) return id;
        if (p->queue[level].oldest == PKVI_NIL) pkvi_bitmap_clear(p->filled, level);
        level++;
    }
    return PKVI_NIL;
}

static void remove_member(struct pkvi_policy *policy, uint32_t id, bool evicted)
{
    (void)evicted;
    heap_remove(self(policy), id);
    take_out(self(policy), id);
}

static void unpark(struct pkvi_policy *policy, uint32_t id)
{
    struct priority *p = self(policy);
    uint32_t level = pkvi_policy_member(policy, id)->list;
    pkvi_queue_unpark(policy, &p->queue[level], id);
    pkvi_bitmap_set(p->filled, level);
}

const struct pkvi_policy_ops pkvi_policy_priority = {
    .name = "priority",
    .bytes = sizeof(struct priority),
    .leaf_first = true,
    .setup = setup,
    .teardown = teardown,
    .insert = insert,
    .finish = finish,
    .victim = victim,
    .remove = remove_member,
    .unpark = unpark,
};
