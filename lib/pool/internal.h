/* pool, private part. */
#ifndef PKVI_POOL_INTERNAL_H
#define PKVI_POOL_INTERNAL_H

#include "pool/pool.h"

/* Fullness classes, the order in which pages are taken from them being 1, 2, 3, 4. */
enum { CLASS_FULL = 0, CLASS_EMPTY = PKVI_REGION_CLASSES - 1 };

/* Page indices must fit int32, the type of the exports. */
#define MAX_PAGE_INDEX ((uint32_t)INT32_MAX)

/* Most references the host may take of one page; the library's own come on top. */
#define MAX_HOST_REFS (PKVI_WORD_REFS / 2)

static inline _Atomic uint64_t *word_at(const struct pkvi_pool *pool, uint32_t page)
{
    return pkvi_segvec_at(&pool->words, page, sizeof(_Atomic uint64_t));
}

/* Finds words one after another: neighbours in a list of pages mostly lie in the same segment. */
struct word_cursor {
    _Atomic uint64_t *words; /* of pages first, first + 1, … */
    uint32_t first, n;
};

static inline _Atomic uint64_t *cursor_word(const struct pkvi_pool *pool,
                                            struct word_cursor *cursor, uint32_t page)
{
    if (PKVI_UNLIKELY(page - cursor->first >= cursor->n)) {
        uint32_t n = UINT32_C(64) << pkvi_log2_u32((page >> 6) + 1);
        *cursor = (struct word_cursor){word_at(pool, n - 64), n - 64, n};
    }
    return cursor->words + (page - cursor->first);
}

static inline struct pkvi_page_aux *aux_at(const struct pkvi_pool *pool, uint32_t page)
{
    return pkvi_segvec_at(&pool->aux, page, sizeof(struct pkvi_page_aux));
}

static inline struct pkvi_region *region_at(const struct pkvi_pool *pool, uint32_t slot)
{
    return pkvi_segvec_at(&pool->slots, slot, sizeof(struct pkvi_region));
}

static inline uint64_t load_word(const _Atomic uint64_t *word)
{
    return atomic_load_explicit(word, memory_order_relaxed);
}

/* Under the pool's lock, for words without the MAGAZINE flag. Readers without lock may follow. */
static inline void store_word(_Atomic uint64_t *word, uint64_t value)
{
    atomic_store_explicit(word, value, memory_order_release);
}

static inline uint64_t refs_of(uint64_t word)
{
    return word & PKVI_WORD_REFS;
}

/* The generation part of a word or id, and that of the next life of its page (0 is skipped: no id
 * has it). */
static inline uint64_t generation_of(uint64_t word)
{
    return word & ~UINT64_C(0xffffffff);
}

static inline uint64_t next_generation(uint64_t word)
{
    uint32_t next = (uint32_t)(word >> 32) + 1;
    return (uint64_t)(next + (next == 0)) << 32;
}

/* Counters with one writer at a time: no read-modify-write needed. */
static inline void counter_add(_Atomic uint64_t *counter, uint64_t n)
{
    uint64_t value = atomic_load_explicit(counter, memory_order_relaxed);
    atomic_store_explicit(counter, value + n, memory_order_relaxed);
}

static inline uint64_t counter_get(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

static inline uint64_t free_pages(const struct pkvi_pool *pool)
{
    return counter_get(&pool->total) - counter_get(&pool->out) - counter_get(&pool->cached);
}

/* ---- regions.c ---------------------------------------------------------------------------------
 */

void pkvi_regions_add(struct pkvi_regions *regions, struct pkvi_pool *pool);
void pkvi_regions_remove(struct pkvi_regions *regions, struct pkvi_pool *pool);
/* A region for `pool`, charged: a new mapping, or under the limit the empty region of another pool.
 * *base is NULL if regions are not mapped. PKV_ENOPAGES, PKV_ENOMEM. No lock above GROW is held. */
pkv_status pkvi_regions_get(struct pkvi_regions *regions, struct pkvi_pool *pool, void **base);
/* Unmaps and uncharges. */
void pkvi_regions_put(struct pkvi_regions *regions, void *base);

/* ---- grow.c ------------------------------------------------------------------------------------
 */

/* Adds one region. grow_lock held, lock not. */
pkv_status pkvi_pool_add_region(struct pkvi_pool *pool);
/* Takes an empty region out of the pool; its charge and mapping are the caller's then. False if the
 * pool has none. Locks the pool. */
bool pkvi_pool_give_region(struct pkvi_pool *pool, void **base);
/* Puts a region into a slot and into the list of its class. Lock held. */
void pkvi_pool_install(struct pkvi_pool *pool, uint32_t slot, void *base, uint32_t pages);
/* The last slot, which max_pages may cut short, serves last: once its region is empty and another
 * slot vacant, the region moves there. So whoever counts free pages and regions may take every
 * region that can be opened for a whole one, up to max_pages. Lock held. O(1). */
void pkvi_pool_settle(struct pkvi_pool *pool);
/* Pages that slot `slot` holds: all, or what max_pages leaves for the last. */
uint32_t pkvi_pool_slot_pages(const struct pkvi_pool *pool, uint32_t slot);

/* ---- pool.c: the free lists; lock held
 * ----------------------------------------------------------- */

/* For whom pages are taken. */
enum holder {
    HOLDER_LIBRARY,  /* a reference, as index */
    HOLDER_HOST,     /* a reference of the host's, as id */
    HOLDER_MAGAZINE, /* parked: no reference, MAGAZINE flag, as id */
};

/* Where taken pages are written: indices (LIBRARY) or ids (the others). */
struct taken {
    enum holder holder;
    uint32_t *pages;
    pkv_page *ids;
};

/* Takes n pages (at most free_pages) out of the regions. Counts them as out, not as allocated. */
void pkvi_pool_take(struct pkvi_pool *pool, uint32_t n, struct taken to);
/* Puts a page, whose word says FREE already, back into its region. */
void pkvi_pool_put(struct pkvi_pool *pool, uint32_t page);
/* Takes between `least` and `most` pages, growing if need be; *got how many, and counts them as
 * allocated unless they are for a magazine. Locks the pool itself. Errors as alloc. */
pkv_status pkvi_pool_obtain(struct pkvi_pool *pool, uint32_t least, uint32_t most, struct taken to,
                            uint32_t *got);
/* Moves a region to the list of its class after free_count changed. */
void pkvi_pool_reclass(struct pkvi_pool *pool, uint32_t slot, struct pkvi_region *region);
void pkvi_pool_unlink(struct pkvi_pool *pool, struct pkvi_region *region);

/* ---- debug.c -----------------------------------------------------------------------------------
 */

/* Fills a freed page with NaN patterns if the pool is asked to. */
void pkvi_pool_poison(const struct pkvi_pool *pool, uint32_t page);
/* False if a freed page was written after it was poisoned. */
bool pkvi_pool_poison_intact(const struct pkvi_pool *pool, uint32_t page);
/* Checksum of a page's bytes. */
uint64_t pkvi_pool_checksum(const struct pkvi_pool *pool, uint32_t page);

/* ---- magazine.c --------------------------------------------------------------------------------
 */

struct pkv_magazine {
    struct pkvi_pool *pool;
    struct pkvi_list link; /* in pool->magazines; guarded by pool->lock */
    size_t bytes;          /* of this struct */
    uint32_t capacity;
    /* Written by the owning thread, read by anybody. */
    _Atomic uint32_t parked; /* ids in the stack */
    _Atomic uint64_t allocs, frees;
    pkv_page ids[]; /* of free pages, with the generation they will have when taken */
};

/* Frees the magazines that the host forgot. */
void pkvi_magazines_free_all(struct pkvi_pool *pool);

#endif
