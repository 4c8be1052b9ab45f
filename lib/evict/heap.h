/* evict: a binary min-heap of pages by (score, logical page): the lowest score first, ties the
 * older page. Arrays are the caller's. */
#ifndef PKVI_EVICT_HEAP_H
#define PKVI_EVICT_HEAP_H

#include <stdbool.h>
#include <stdint.h>

struct pkvi_candidate {
    float score;      /* never NaN: pkvi_score_clean */
    uint32_t logical; /* or the table slot, while a policy scores */
};

/* The order of eviction. */
static inline bool pkvi_candidate_before(struct pkvi_candidate a, struct pkvi_candidate b)
{
    return a.score < b.score || (a.score == b.score && a.logical < b.logical);
}

/* NaN counts as lowest. */
static inline float pkvi_score_clean(float score)
{
    return score == score ? score : -__builtin_inff();
}

/* Makes n entries a heap. O(n). */
void pkvi_heap_build(struct pkvi_candidate *heap, uint32_t n);
/* Takes the first out (heap[0] becomes the next): n > 0, returns it. O(log n). */
struct pkvi_candidate pkvi_heap_pop(struct pkvi_candidate *heap, uint32_t *n);
/* Adds one: the array has room. O(log n). */
void pkvi_heap_push(struct pkvi_candidate *heap, uint32_t *n, struct pkvi_candidate entry);
/* Takes entry i < n out. O(log n). */
void pkvi_heap_remove(struct pkvi_candidate *heap, uint32_t *n, uint32_t i);

#endif
