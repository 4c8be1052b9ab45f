#include "mem/mem.h"

#include <string.h>

static uint32_t segment_elements(uint32_t segment)
{
    return UINT32_C(64) << segment;
}

void pkvi_segvec_init(struct pkvi_segvec *vec, uint32_t element_bytes)
{
    for (uint32_t i = 0; i < PKVI_SEGVEC_SEGMENTS; i++)
        atomic_init(&vec->segment[i], NULL);
    atomic_init(&vec->capacity, 0);
    vec->element_bytes = element_bytes;
}

void pkvi_segvec_destroy(struct pkvi_segvec *vec, struct pkvi_mem *mem)
{
    for (uint32_t i = 0; i < PKVI_SEGVEC_SEGMENTS; i++) {
        void *segment = atomic_load_explicit(&vec->segment[i], memory_order_relaxed);
        pkvi_mem_free_array(mem, segment, segment_elements(i), vec->element_bytes);
    }
    pkvi_segvec_init(vec, vec->element_bytes);
}

bool pkvi_segvec_ensure(struct pkvi_segvec *vec, struct pkvi_mem *mem, uint32_t n)
{
    if (n > PKVI_SEGVEC_MAX) return false;
    uint32_t capacity = atomic_load_explicit(&vec->capacity, memory_order_relaxed);
    while (capacity < n) {
        /* capacity = 64 * (2^s - 1) when segments 0..s-1 exist. */
        uint32_t segment = pkvi_log2_u32((capacity >> 6) + 1);
        void *elements = pkvi_mem_array(mem, segment_elements(segment), vec->element_bytes);
        if (!elements) return false;
        atomic_store_explicit(&vec->segment[segment], elements, memory_order_release);
        capacity += segment_elements(segment);
        atomic_store_explicit(&vec->capacity, capacity, memory_order_release);
    }
    return true;
}
