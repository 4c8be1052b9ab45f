/* adaptive: segments of pages that age together, the lists they stand in, and their leaves. */
#include "adaptive.h"

#include <string.h>

#define CLASSES PKVI_ADAPTIVE_CLASSES
#define BUCKETS PKVI_ADAPTIVE_BUCKETS
#define LISTS PKVI_ADAPTIVE_LISTS
#define AGING PKVI_ADAPTIVE_AGING
#define GIVING PKVI_ADAPTIVE_GIVING
#define KINDS PKVI_ADAPTIVE_KINDS

/* ---- lists of segments ---------------------------------------------------------------------- */

static struct pkvi_adaptive_ends *list_of(struct pkvi_adaptive *a, uint32_t s,
                                          enum pkvi_adaptive_kind kind)
{
    const struct pkvi_adaptive_segment *segment = &a->segment[s];
    return &a->list[kind][segment->class][segment->bucket[kind]];
}

static uint32_t age_rank(uint32_t class, uint32_t bucket)
{
    return (BUCKETS - 1 - bucket) * CLASSES + class;
}

static void note_giving(struct pkvi_adaptive *a, uint32_t s, bool filled)
{
    const struct pkvi_adaptive_segment *segment = &a->segment[s];
    uint32_t bucket = segment->bucket[GIVING];
    uint32_t value = a->rank[segment->class][bucket], age = age_rank(segment->class, bucket);
    if (filled) {
        pkvi_bitmap_set(a->by_value, value);
        pkvi_bitmap_set(a->by_age, age);
    } else {
        pkvi_bitmap_clear(a->by_value, value);
        pkvi_bitmap_clear(a->by_age, age);
    }
}

/* Puts a segment at the newest or the oldest end of its list. */
static void enlist(struct pkvi_adaptive *a, uint32_t s, enum pkvi_adaptive_kind kind, bool newest)
{
    struct pkvi_adaptive_ends *list = list_of(a, s, kind);
    struct pkvi_adaptive_links *link = &a->segment[s].link[kind];
    *link = (struct pkvi_adaptive_links){PKVI_NIL, PKVI_NIL};
    if (list->newest == PKVI_NIL) {
        list->newest = list->oldest = s;
    } else if (newest) {
        link->older = list->newest;
        a->segment[list->newest].link[kind].newer = s;
        list->newest = s;
    } else {
        link->newer = list->oldest;
        a->segment[list->oldest].link[kind].older = s;
        list->oldest = s;
    }
    if (kind == GIVING) note_giving(a, s, true);
}

static void delist(struct pkvi_adaptive *a, uint32_t s, enum pkvi_adaptive_kind kind)
{
    struct pkvi_adaptive_ends *list = list_of(a, s, kind);
    struct pkvi_adaptive_links link = a->segment[s].link[kind];
    if (link.newer != PKVI_NIL)
        a->segment[link.newer].link[kind].older = link.older;
    else
        list->newest = link.older;
    if (link.older != PKVI_NIL)
        a->segment[link.older].link[kind].newer = link.newer;
    else
        list->oldest = link.newer;
    if (kind == GIVING && list->newest == PKVI_NIL) note_giving(a, s, false);
}

bool pkvi_adaptive_widen(struct pkvi_adaptive *a)
{
    uint32_t wider = a->segment_capacity ? 2 * a->segment_capacity : 64;
    struct pkvi_adaptive_segment *segment = pkvi_mem_grow_array(
        a->base.ix->mem, a->segment, a->segment_capacity, wider, sizeof *segment);
    if (!segment) return false;
    a->segment = segment;
    a->segment_capacity = wider;
    return true;
}

uint32_t pkvi_adaptive_new_segment(struct pkvi_adaptive *a, uint32_t class)
{
    uint32_t s = a->free_segment;
    if (s != PKVI_NIL) {
        a->free_segment = a->segment[s].link[AGING].newer;
    } else {
        if (a->n_segments == a->segment_capacity && !pkvi_adaptive_widen(a)) return 0;
        s = a->n_segments++;
    }
    a->segment[s] = (struct pkvi_adaptive_segment){
        .time = a->now, .class = (uint8_t) class, .leaves = {PKVI_NIL, PKVI_NIL}};
    enlist(a, s, AGING, true);
    return s;
}

/* A page or ghost leaves its segment; an empty one is freed unless the request still fills it. */
void pkvi_adaptive_leave_segment(struct pkvi_adaptive *a, uint32_t id)
{
    uint32_t s = pkvi_adaptive_member(a, id)->b;
    pkvi_adaptive_member(a, id)->b = PKVI_NIL;
    if (s != PKVI_NIL) pkvi_adaptive_guard_leave(a, pkvi_adaptive_member(a, id)->a);
    if (s == PKVI_NIL || --a->segment[s].members > 0 || s == 0) return;
    if (a->current[a->segment[s].class] == s) a->current[a->segment[s].class] = PKVI_NIL;
    delist(a, s, AGING);
    a->segment[s].link[AGING].newer = a->free_segment;
    a->free_segment = s;
}

/* ---- leaves: pages of a segment that may go ------------------------------------------------- */

void pkvi_adaptive_add_leaf(struct pkvi_adaptive *a, uint32_t id)
{
    struct pkvi_member *m = pkvi_adaptive_member(a, id);
    struct pkvi_adaptive_segment *segment = &a->segment[m->b];
    m->newer = PKVI_NIL;
    m->older = segment->leaves.newest;
    if (m->older != PKVI_NIL)
        pkvi_adaptive_member(a, m->older)->newer = id;
    else
        segment->leaves.oldest = id;
    segment->leaves.newest = id;
    m->flags |= PKVI_ADAPTIVE_LEAF;
    if (segment->giving) return;
    segment->giving = true;
    segment->bucket[GIVING] = segment->bucket[AGING];
    enlist(a, m->b, GIVING, segment->time == a->now);
}

void pkvi_adaptive_remove_leaf(struct pkvi_adaptive *a, uint32_t id)
{
    struct pkvi_member *m = pkvi_adaptive_member(a, id);
    m->flags &= (uint8_t)~PKVI_MEMBER_PARKED;
    if (!(m->flags & PKVI_ADAPTIVE_LEAF)) return;
    struct pkvi_adaptive_segment *segment = &a->segment[m->b];
    if (m->newer != PKVI_NIL)
        pkvi_adaptive_member(a, m->newer)->older = m->older;
    else
        segment->leaves.newest = m->older;
    if (m->older != PKVI_NIL)
        pkvi_adaptive_member(a, m->older)->newer = m->newer;
    else
        segment->leaves.oldest = m->newer;
    m->flags &= (uint8_t)~PKVI_ADAPTIVE_LEAF;
    if (segment->leaves.newest != PKVI_NIL) return;
    delist(a, m->b, GIVING);
    segment->giving = false;
}

/* ---- order and age -------------------------------------------------------------------------- */

/* Sorts the lists by value (a merge sort, so that equals keep their order: older pages first). */
static void sort_lists(struct pkvi_adaptive *a)
{
    uint16_t other[LISTS], *from = a->of_rank, *to = other;
    const double *value = &a->value[0][0];
    for (uint32_t run = 1; run < LISTS; run *= 2) {
        for (uint32_t low = 0; low < LISTS; low += 2 * run) {
            uint32_t middle = pkvi_min_u32(low + run, LISTS);
            uint32_t high = pkvi_min_u32(low + 2 * run, LISTS);
            for (uint32_t i = low, j = middle, k = low; k < high; k++)
                to[k] = i < middle && (j >= high || value[from[i]] <= value[from[j]]) ? from[i++]
                                                                                      : from[j++];
        }
        uint16_t *swap = from;
        from = to;
        to = swap;
    }
    if (from != a->of_rank) memcpy(a->of_rank, from, sizeof a->of_rank);
}

void pkvi_adaptive_order(struct pkvi_adaptive *a)
{
    uint32_t n = 0;
    for (uint32_t c = 0; c < CLASSES; c++)
        for (uint32_t b = BUCKETS; b-- > 0;)
            a->of_rank[n++] = (uint16_t)(c * BUCKETS + b);
    sort_lists(a);
    memset(a->by_value, 0, sizeof a->by_value);
    for (uint32_t r = 0; r < LISTS; r++) {
        uint32_t c = a->of_rank[r] / BUCKETS, b = a->of_rank[r] % BUCKETS;
        a->rank[c][b] = (uint16_t)r;
        if (a->list[GIVING][c][b].newest != PKVI_NIL) pkvi_bitmap_set(a->by_value, r);
    }
    a->outside_bucket = BUCKETS;
}

/* Moves what has grown out of a bucket, and counts it in every bucket it survived. */
static void age_list(struct pkvi_adaptive *a, enum pkvi_adaptive_kind kind, uint32_t c, uint32_t b)
{
    uint32_t s;
    while ((s = a->list[kind][c][b].oldest) != PKVI_NIL) {
        struct pkvi_adaptive_segment *segment = &a->segment[s];
        uint32_t bucket = pkvi_adaptive_bucket(a->now - segment->time);
        if (bucket <= b) return;
        for (uint32_t passed = b; kind == AGING && passed < bucket; passed++)
            a->counts.survived[c][passed] += segment->members;
        delist(a, s, kind);
        segment->bucket[kind] = (uint8_t)bucket;
        enlist(a, s, kind, true);
    }
}

/* Promptly, not in batches: pages that cross into a bucket of little value are the ones to go, and
 * if they came in batches others would have to go in between. */
void pkvi_adaptive_grow_older(struct pkvi_adaptive *a)
{
    for (int kind = 0; kind < KINDS; kind++)
        for (uint32_t c = 0; c < CLASSES; c++)
            for (uint32_t b = BUCKETS - 1; b-- > 0;)
                age_list(a, (enum pkvi_adaptive_kind)kind, c, b);
}

/* ---- which leaf ----------------------------------------------------------------------------- */

static uint32_t first_of_rank(const struct pkvi_adaptive *a, uint32_t rank)
{
    uint32_t list = a->of_rank[rank];
    return a->list[GIVING][list / BUCKETS][list % BUCKETS].oldest;
}

uint32_t pkvi_adaptive_worst(const struct pkvi_adaptive *a)
{
    uint32_t rank = pkvi_bitmap_next(a->by_value, LISTS, 0);
    if (rank == PKVI_BITMAP_NONE) return PKVI_NIL;
    return a->segment[first_of_rank(a, rank)].leaves.oldest;
}

/* The ranks of lists in or beyond a bucket. */
static void mark_outside(struct pkvi_adaptive *a, uint32_t bucket)
{
    memset(a->outside, 0, sizeof a->outside);
    for (uint32_t c = 0; c < CLASSES; c++)
        for (uint32_t b = bucket; b < BUCKETS; b++)
            pkvi_bitmap_set(a->outside, a->rank[c][b]);
    a->outside_bucket = bucket;
}

uint32_t pkvi_adaptive_worst_outside(struct pkvi_adaptive *a)
{
    uint32_t from = a->guard.from;
    uint32_t bucket = pkvi_adaptive_bucket(a->now - from + 2);
    if (bucket != a->outside_bucket) mark_outside(a, bucket);
    for (uint32_t w = 0; w < PKVI_ADAPTIVE_WORDS; w++)
        for (uint64_t left = a->by_value[w] & a->outside[w]; left; left &= left - 1) {
            uint32_t s = first_of_rank(a, 64 * w + (uint32_t)__builtin_ctzll(left));
            if (a->segment[s].time + 1 < from) return a->segment[s].leaves.oldest;
        }
    return PKVI_NIL;
}

uint32_t pkvi_adaptive_oldest(const struct pkvi_adaptive *a)
{
    uint32_t first = pkvi_bitmap_next(a->by_age, LISTS, 0), best = PKVI_NIL;
    if (first == PKVI_BITMAP_NONE) return PKVI_NIL;
    uint32_t bucket = BUCKETS - 1 - first / CLASSES;
    for (uint32_t c = first % CLASSES; c < CLASSES; c++) {
        uint32_t s = a->list[GIVING][c][bucket].oldest;
        if (s == PKVI_NIL) continue;
        if (best == PKVI_NIL || a->segment[s].time < a->segment[best].time) best = s;
    }
    return a->segment[best].leaves.oldest;
}
