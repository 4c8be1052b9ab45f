#include "mem/mem.h"

#include <string.h>

/* Segments from here on are mapped. */
#define MAPPED_BYTES ((size_t)64 << 10)

static uint32_t segment_elements(uint32_t segment)
{
    return UINT32_C(64) << segment;
}

/* Number of the first element of a segment. */
static uint32_t segment_first(uint32_t segment)
{
    return (UINT32_C(64) << segment) - 64;
}

static size_t segment_bytes(const struct pkvi_segvec *vec, uint32_t segment)
{
    return (size_t)segment_elements(segment) * vec->element_bytes;
}

static bool is_mapped(const struct pkvi_segvec *vec, uint32_t segment)
{
    return vec->os && segment_bytes(vec, segment) >= MAPPED_BYTES;
}

static size_t whole_pages(const struct pkvi_segvec *vec, size_t bytes)
{
    return (bytes + vec->os_page - 1) / vec->os_page * vec->os_page;
}

/* Bytes of a mapped segment that are charged when the first n of its elements exist. */
static size_t charged_for(const struct pkvi_segvec *vec, uint32_t n)
{
    return whole_pages(vec, (size_t)n * vec->element_bytes);
}

static uint32_t get_capacity(const struct pkvi_segvec *vec)
{
    return atomic_load_explicit(&vec->capacity, memory_order_relaxed);
}

static void set_capacity(struct pkvi_segvec *vec, uint32_t n)
{
    atomic_store_explicit(&vec->capacity, n, memory_order_release);
}

/* Elements of a segment that exist. */
static uint32_t existing(const struct pkvi_segvec *vec, uint32_t segment)
{
    uint32_t capacity = get_capacity(vec), first = segment_first(segment);
    return capacity > first ? pkvi_min_u32(capacity - first, segment_elements(segment)) : 0;
}

void pkvi_segvec_init(struct pkvi_segvec *vec, uint32_t element_bytes, const struct pkvi_os *os)
{
    for (uint32_t i = 0; i < PKVI_SEGVEC_SEGMENTS; i++)
        atomic_init(&vec->segment[i], NULL);
    atomic_init(&vec->capacity, 0);
    vec->element_bytes = element_bytes;
    vec->os = os;
    vec->os_page = os ? os->page_bytes(os->user) : 0;
}

static void release(struct pkvi_mem *mem, size_t bytes)
{
    if (mem->budget && bytes != 0) pkvi_budget_release_metadata(mem->budget, bytes);
}

void pkvi_segvec_destroy(struct pkvi_segvec *vec, struct pkvi_mem *mem)
{
    for (uint32_t i = 0; i < PKVI_SEGVEC_SEGMENTS; i++) {
        void *segment = atomic_load_explicit(&vec->segment[i], memory_order_relaxed);
        if (!segment) continue;
        if (!is_mapped(vec, i)) {
            pkvi_mem_free_array(mem, segment, segment_elements(i), vec->element_bytes);
            continue;
        }
        vec->os->unmap(vec->os->user, segment, whole_pages(vec, segment_bytes(vec, i)));
        release(mem, charged_for(vec, existing(vec, i)));
    }
    pkvi_segvec_init(vec, vec->element_bytes, vec->os);
}

/* The address space of a mapped segment; it is charged as it is used. */
static void *map_segment(struct pkvi_segvec *vec, uint32_t segment)
{
    const struct pkvi_os *os = vec->os;
    const size_t bytes = whole_pages(vec, segment_bytes(vec, segment));
    void *base = os->map(os->user, bytes, vec->os_page);
    if (base) os->advise_small(os->user, base, bytes);
    return base;
}

/* Makes the first n elements of a mapped segment exist. */
static bool extend(struct pkvi_segvec *vec, struct pkvi_mem *mem, uint32_t segment, uint32_t n)
{
    if (!atomic_load_explicit(&vec->segment[segment], memory_order_relaxed)) {
        void *base = map_segment(vec, segment);
        if (!base) return false;
        atomic_store_explicit(&vec->segment[segment], base, memory_order_release);
    }
    const size_t before = charged_for(vec, existing(vec, segment)), after = charged_for(vec, n);
    if (after > before && mem->budget && !pkvi_budget_charge_metadata(mem->budget, after - before))
        return false;
    /* What fits the OS pages; the charge of that many is the same. */
    n = (uint32_t)pkvi_min_u64(after / vec->element_bytes, segment_elements(segment));
    set_capacity(vec, segment_first(segment) + n);
    return true;
}

bool pkvi_segvec_ensure(struct pkvi_segvec *vec, struct pkvi_mem *mem, uint32_t n)
{
    if (n > PKVI_SEGVEC_MAX) return false;
    while (get_capacity(vec) < n) {
        /* Segments before this one are there in full. */
        uint32_t segment = pkvi_log2_u32((get_capacity(vec) >> 6) + 1);
        uint32_t count = segment_elements(segment), first = segment_first(segment);
        if (is_mapped(vec, segment)) {
            if (!extend(vec, mem, segment, pkvi_min_u32(n - first, count))) return false;
            continue;
        }
        void *elements = pkvi_mem_array(mem, count, vec->element_bytes);
        if (!elements) return false;
        atomic_store_explicit(&vec->segment[segment], elements, memory_order_release);
        set_capacity(vec, first + count);
    }
    return true;
}

void pkvi_segvec_trim(struct pkvi_segvec *vec, struct pkvi_mem *mem, uint32_t n)
{
    while (get_capacity(vec) > n) {
        /* The last segment with elements. */
        uint32_t segment = pkvi_log2_u32(((get_capacity(vec) - 1) >> 6) + 1);
        if (!is_mapped(vec, segment)) return;
        uint32_t first = segment_first(segment), keep = n > first ? n - first : 0;
        size_t before = charged_for(vec, existing(vec, segment)), after = charged_for(vec, keep);
        if (after == before) return;
        char *base = atomic_load_explicit(&vec->segment[segment], memory_order_relaxed);
        if (!vec->os->decommit(vec->os->user, base + after, before - after)) return;
        set_capacity(vec, first + (uint32_t)(after / vec->element_bytes));
        release(mem, before - after);
    }
}
