/* mem: where metadata comes from and how much there may be.
 *
 *   pkvi_budget   one per cache: page memory and metadata together stay within the memory limit
 *   pkvi_mem      one per cache: the allocator vtable, accounted against the budget
 *   pkvi_segvec   growable array whose elements never move
 *
 * One file (jemalloc.c) knows jemalloc. */
#ifndef PKVI_MEM_MEM_H
#define PKVI_MEM_MEM_H

#include "base/base.h"
#include "os/os.h"

/* ---- budget --------------------------------------------------------------------------------- */

/* Asked when metadata does not fit: give up memory of pages that nobody uses, `bytes` of it if
 * there is so much (uncharging it); false if there is none. Called without the budget's lock, so it
 * may lock pools: nothing may be allocated under a pool's lock. */
typedef bool (*pkvi_pressure_fn)(void *context, uint64_t bytes);

/* Page memory is charged only as long as a little room stays for metadata (limit / 512 + 64 KiB in
 * all, and limit / 1024 + 16 KiB beyond what there is): otherwise a cache full of pages could not
 * even create the sequence that would release some. Metadata may use every byte that pages do not.
 */
struct pkvi_budget {
    struct pkvi_mutex lock; /* held for charges, so that checks are exact; releases only subtract */
    _Atomic uint64_t limit;
    _Atomic uint64_t metadata, regions; /* regions: their memory, see pool/pool.h */
    _Atomic uint64_t metadata_peak, regions_peak;
    pkvi_pressure_fn pressure; /* set once, before the second thread */
    void *pressure_context;
};

/* limit in bytes. False if the mutex cannot be made. */
bool pkvi_budget_init(struct pkvi_budget *budget, uint64_t limit, struct pkvi_lock_ranks *ranks);
void pkvi_budget_destroy(struct pkvi_budget *budget);

/* Charges bytes of page memory, or fails leaving everything as it was. MT-safe; a pool's lock may
 * be held. */
bool pkvi_budget_charge_region(struct pkvi_budget *budget, uint64_t bytes);
/* Charges as many times `bytes` as fit, at most n times; returns how many. */
uint64_t pkvi_budget_charge_units(struct pkvi_budget *budget, uint64_t bytes, uint64_t n);
void pkvi_budget_release_region(struct pkvi_budget *budget, uint64_t bytes);
/* The same for metadata; asks the pressure hook for room before it gives up. (pkvi_mem calls it.)
 */
bool pkvi_budget_charge_metadata(struct pkvi_budget *budget, uint64_t bytes);
void pkvi_budget_release_metadata(struct pkvi_budget *budget, uint64_t bytes);
/* Bytes of page memory that could still be charged. O(1), MT-safe. */
uint64_t pkvi_budget_region_room(struct pkvi_budget *budget);
/* Bytes that page memory may take in all, metadata being what it is. O(1), MT-safe. */
uint64_t pkvi_budget_for_pages(struct pkvi_budget *budget);
/* The same under a limit and with so much metadata. */
uint64_t pkvi_budget_beside(uint64_t limit, uint64_t metadata);
/* The same under another limit and with nothing charged: what a fresh cache could have. */
uint64_t pkvi_budget_capacity(uint64_t limit);
/* Bytes in use: metadata + page memory. */
static inline uint64_t pkvi_budget_used(struct pkvi_budget *budget)
{
    return atomic_load_explicit(&budget->metadata, memory_order_relaxed) +
           atomic_load_explicit(&budget->regions, memory_order_relaxed);
}
/* The memory limit. */
static inline uint64_t pkvi_budget_limit(struct pkvi_budget *budget)
{
    return atomic_load_explicit(&budget->limit, memory_order_relaxed);
}
/* Sets the limit if what is in use fits it; false otherwise. MT-safe. */
bool pkvi_budget_try_limit(struct pkvi_budget *budget, uint64_t limit);

/* ---- allocator ------------------------------------------------------------------------------ */

struct pkvi_mem {
    pkv_allocator allocator;
    struct pkvi_budget *budget; /* NULL until attached: then nothing is counted */
    bool owns_arena;            /* the built-in jemalloc allocator: destroy the arena at the end */
    unsigned arena;
};

/* `allocator` NULL = jemalloc with a private arena if the process has it, else libc. PKV_ENOMEM if
 * no arena can be made. A mem without budget may be copied, so that the struct that will contain it
 * can be allocated from it first. */
pkv_status pkvi_mem_init(struct pkvi_mem *mem, const pkv_allocator *allocator);
/* From now on everything is charged to `budget` (which must outlive the mem or its detaching),
 * `bytes` allocated so far included; false if they do not fit the limit. */
bool pkvi_mem_attach(struct pkvi_mem *mem, struct pkvi_budget *budget, size_t bytes);
/* The opposite: `bytes` are still allocated and no longer charged. Debug builds assert that nothing
 * else is. */
void pkvi_mem_detach(struct pkvi_mem *mem, size_t bytes);
/* Everything must have been freed before. */
void pkvi_mem_destroy(struct pkvi_mem *mem);

/* All MT-safe; NULL on failure: over the limit or refused by the allocator. Must not be called with
 * a pool's lock held. Alignment is at least 16. size > 0. */
void *pkvi_mem_alloc(struct pkvi_mem *mem, size_t size);
void *pkvi_mem_zalloc(struct pkvi_mem *mem, size_t size);
/* Zeroed array; NULL on overflow too. n and size > 0. */
void *pkvi_mem_array(struct pkvi_mem *mem, size_t n, size_t size);
/* alignment: a power of two. */
void *pkvi_mem_alloc_aligned(struct pkvi_mem *mem, size_t size, size_t alignment);
/* `size` as given to alloc. NULL is allowed. Never fails and takes no lock of ours. */
void pkvi_mem_free(struct pkvi_mem *mem, void *ptr, size_t size);
static inline void pkvi_mem_free_array(struct pkvi_mem *mem, void *ptr, size_t n, size_t size)
{
    pkvi_mem_free(mem, ptr, n * size);
}
/* A zeroed array that is not charged: for checks, which must work when the limit is reached. */
void *pkvi_mem_scratch(struct pkvi_mem *mem, size_t n, size_t size);
void pkvi_mem_free_scratch(struct pkvi_mem *mem, void *ptr, size_t n, size_t size);
/* Grows an array of `size`-byte elements from `old_n` to `new_n` (> old_n) elements; the new ones
 * are not initialised. Returns the new block, or NULL and the old one stays valid. */
void *pkvi_mem_grow_array(struct pkvi_mem *mem, void *ptr, size_t old_n, size_t new_n, size_t size);

/* Bytes jemalloc itself counts in the private arena; 0 with another allocator. Slow (refreshes
 * jemalloc's statistics). MT-safe. */
uint64_t pkvi_mem_allocator_bytes(struct pkvi_mem *mem);

/* ---- segmented vector ---------------------------------------------------------------------------
 * Elements never move, so readers need no lock: segment s holds 64 << s elements and, once there,
 * stays until the end. Growing and trimming need the owner's lock; reading an index below a
 * `capacity` that was seen does not, even if the vector is trimmed meanwhile.
 *
 * With OS hooks, segments of 64 KiB and more are mappings instead of blocks of the allocator: they
 * are charged by the OS page, as far as elements are in use, and shrink again, their addresses
 * staying valid. Without, the memory is at most twice what is used, and stays. */

#define PKVI_SEGVEC_SEGMENTS 26
#define PKVI_SEGVEC_MAX (UINT32_MAX - 63)

struct pkvi_segvec {
    void *_Atomic segment[PKVI_SEGVEC_SEGMENTS];
    _Atomic uint32_t capacity; /* elements that exist */
    uint32_t element_bytes;
    const struct pkvi_os *os; /* NULL: everything from the allocator */
    size_t os_page;
};

void pkvi_segvec_init(struct pkvi_segvec *vec, uint32_t element_bytes, const struct pkvi_os *os);
void pkvi_segvec_destroy(struct pkvi_segvec *vec, struct pkvi_mem *mem);
/* Makes indices 0..n-1 valid; new elements are zero, or what they were before a trim. False if
 * memory is refused or n is too large (what exists stays). Callers serialise. Amortised O(new
 * elements). */
bool pkvi_segvec_ensure(struct pkvi_segvec *vec, struct pkvi_mem *mem, uint32_t n);
/* Gives back what elements n, n + 1, … take, as far as it can be; a reader of one of them that is
 * under way finds its old value or zeros. Callers serialise with ensure. O(log n). */
void pkvi_segvec_trim(struct pkvi_segvec *vec, struct pkvi_mem *mem, uint32_t n);

/* Element `index` (< capacity) of a vector of `element_bytes`-byte elements; give the size as a
 * constant. O(1), MT-safe. */
static inline void *pkvi_segvec_at(const struct pkvi_segvec *vec, uint32_t index,
                                   size_t element_bytes)
{
    uint32_t segment = pkvi_log2_u32((index >> 6) + 1);
    char *base = atomic_load_explicit(&vec->segment[segment], memory_order_acquire);
    return base + (size_t)(index - ((UINT32_C(64) << segment) - 64)) * element_bytes;
}

#endif
