#include "evict/heap.h"

static void sift_down(struct pkvi_candidate *heap, uint32_t n, uint32_t i)
{
    const struct pkvi_candidate entry = heap[i];
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= n) break;
        if (child + 1 < n && pkvi_candidate_before(heap[child + 1], heap[child])) child++;
        if (!pkvi_candidate_before(heap[child], entry)) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = entry;
}

void pkvi_heap_build(struct pkvi_candidate *heap, uint32_t n)
{
    for (uint32_t i = n / 2; i-- > 0;)
        sift_down(heap, n, i);
}

struct pkvi_candidate pkvi_heap_pop(struct pkvi_candidate *heap, uint32_t *n)
{
    const struct pkvi_candidate first = heap[0];
    const uint32_t left = --*n;
    if (left > 0) {
        heap[0] = heap[left];
        sift_down(heap, left, 0);
    }
    return first;
}

static void sift_up(struct pkvi_candidate *heap, uint32_t i, struct pkvi_candidate entry)
{
    while (i > 0) {
        const uint32_t parent = (i - 1) / 2;
        if (!pkvi_candidate_before(entry, heap[parent])) break;
        heap[i] = heap[parent];
        i = parent;
    }
    heap[i] = entry;
}

void pkvi_heap_push(struct pkvi_candidate *heap, uint32_t *n, struct pkvi_candidate entry)
{
    sift_up(heap, (*n)++, entry);
}

void pkvi_heap_remove(struct pkvi_candidate *heap, uint32_t *n, uint32_t i)
{
    const struct pkvi_candidate last = heap[--*n];
    if (i == *n) return;
    sift_up(heap, i, last);
    if (heap[i].logical == last.logical) sift_down(heap, *n, i);
}
