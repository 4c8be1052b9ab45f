/* pool, private part. */
#ifndef PKVI_POOL_INTERNAL_H
#define PKVI_POOL_INTERNAL_H

#include "pool/pool.h"

/* Classes of regions, the order in which pages are taken from them being 1, 2, 3, 4, 5. */
enum { CLASS_FULL = 0, CLASS_MOSTLY_FREE = 3, CLASS_SPLIT = 4, CLASS_EMPTY = 5 };

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

/* Free, as far as the word says it: it may be in a cold unit or in transit. */
static inline bool page_is_free(const struct pkvi_pool *pool, uint32_t page)
{
    return (uint32_t)load_word(word_at(pool, page)) == 0;
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

/* Pages per unit: 1 if pages are multiples of the OS page, or large enough to be rounded up. */
static inline uint32_t unit_pages(const struct pkvi_pool *pool)
{
    return pool->per_unit.d;
}

/* Units of a region, the last of which may hold fewer pages. */
static inline uint32_t units_of(const struct pkvi_pool *pool, const struct pkvi_region *region)
{
    return pkvi_div(pool->per_unit, region->pages + unit_pages(pool) - 1);
}

/* Pages of unit u of a region. */
static inline uint32_t pages_in(const struct pkvi_pool *pool, const struct pkvi_region *region,
                                uint32_t u)
{
    return pkvi_min_u32(unit_pages(pool), region->pages - u * unit_pages(pool));
}

/* The aux of the first page of unit u of slot `slot`: it stands for the unit. */
static inline struct pkvi_page_aux *unit_aux(const struct pkvi_pool *pool, uint32_t slot,
                                             uint32_t u)
{
    return aux_at(pool, slot * pool->per_region.d + u * unit_pages(pool));
}

/* Files call downwards only, in this order: pool, magazine, refs, alloc, census, regions, squeeze,
 * slots, units, and what calls none of these: mapping, classes, debug, place. */

/* ---- place.c -------------------------------------------------------------------------------- */

/* Pages that slot `slot` holds: all, or what max_pages leaves for the last. */
uint32_t pkvi_pool_slot_pages(const struct pkvi_pool *pool, uint32_t slot);

/* ---- mapping.c ------------------------------------------------------------------------------ */

/* Address space for a region, for huge or for single OS pages; charges nothing. *base is NULL if
 * regions are not mapped. PKV_ENOMEM. */
pkv_status pkvi_regions_map(struct pkvi_regions *regions, bool split, void **base);
/* Unmaps and takes `charge` off the budget; returns the bytes that are free thereby: none if the OS
 * kept the memory, which then stays charged. */
uint64_t pkvi_regions_put(struct pkvi_regions *regions, void *base, uint64_t charge);

/* ---- classes.c; lock held ------------------------------------------------------------------- */

/* Takes a region out of the list of its class, or moves it to the list of another. */
void pkvi_pool_unlink(struct pkvi_pool *pool, struct pkvi_region *region);
void pkvi_pool_relink(struct pkvi_pool *pool, uint32_t slot, struct pkvi_region *region,
                      uint32_t class);

/* Fuller regions come first when pages are taken, so that sparse ones get a chance to become empty,
 * and whole ones before split ones. Three partial classes are enough for that and keep a region
 * from moving at every page. */
static inline uint32_t class_of(const struct pkvi_region *region)
{
    uint32_t free_count = region->free_count, pages = region->pages;
    if (!free_count) return CLASS_FULL;
    if (region->split) return CLASS_SPLIT;
    if (free_count == pages) return CLASS_EMPTY;
    if (free_count <= pages / 4) return 1;
    return free_count <= pages - pages / 4 ? 2 : CLASS_MOSTLY_FREE;
}

/* To be called after free_count changed. */
static inline void reclass(struct pkvi_pool *pool, uint32_t slot, struct pkvi_region *region)
{
    const uint32_t class = class_of(region);
    if (class != region->class) pkvi_pool_relink(pool, slot, region, class);
}

/* ---- units.c; lock held --------------------------------------------------------------------- */

/* Pages per unit for a page size, and the unit's bytes. Needs no lock. */
uint32_t pkvi_pool_choose_unit(uint64_t page_bytes, uint64_t os_page, uint64_t *unit_bytes);
/* What a region is charged. */
uint64_t pkvi_pool_charge(const struct pkvi_pool *pool, const struct pkvi_region *region);
/* Units of several pages: a free page is about to be taken; a page was just freed. */
void pkvi_pool_unit_taken(struct pkvi_pool *pool, uint32_t page);
void pkvi_pool_unit_freed(struct pkvi_pool *pool, uint32_t page);
/* The cold stack of a region: a unit that has lost its memory enters, or the topmost leaves, whose
 * number is returned. */
void pkvi_pool_push_cold(struct pkvi_pool *pool, uint32_t slot, struct pkvi_region *region,
                         uint32_t u);
uint32_t pkvi_pool_pop_cold(struct pkvi_pool *pool, uint32_t slot, struct pkvi_region *region);
/* Puts all units of a region on its cold stack. */
void pkvi_pool_chill(struct pkvi_pool *pool, uint32_t slot);
/* Leaves the list of regions with cold units. */
void pkvi_pool_unlink_cold(struct pkvi_pool *pool, struct pkvi_region *region);
/* Puts the pages of a unit, which has memory, on the free stack; the first comes out first. */
void pkvi_pool_push_free(struct pkvi_pool *pool, uint32_t slot, struct pkvi_region *region,
                         uint32_t u);
/* Makes a region's free stack anew from the pages that are free and not in cold units or in
 * transit, in ascending order. O(pages of the region). */
void pkvi_pool_restack(struct pkvi_pool *pool, uint32_t slot, struct pkvi_region *region);

/* ---- slots.c -------------------------------------------------------------------------------- */

/* Makes the per-page data of slots 0..n-1 exist; false without memory. grow_lock held (or nobody
 * else there yet). */
bool pkvi_pool_ensure_slots(struct pkvi_pool *pool, uint32_t n);
/* A vacant slot for a region to come; false if there is none. Locks the pool. */
bool pkvi_pool_pop_slot(struct pkvi_pool *pool, uint32_t *slot);
/* Makes a slot vacant. Lock held. */
void pkvi_pool_push_slot(struct pkvi_pool *pool, uint32_t slot);
/* Puts a region into a vacant slot and into the lists where it belongs. Lock held. */
void pkvi_pool_install(struct pkvi_pool *pool, uint32_t slot, void *base, bool split);
/* Takes the region of a slot out, which has no used and no cached pages; returns its base. Lock
 * held. */
void *pkvi_pool_detach(struct pkvi_pool *pool, uint32_t slot, uint64_t *charge);
/* Which regions may be taken out: whole ones without used and cached pages, or split ones, too. */
enum give { GIVE_WHOLE, GIVE_ANY };
/* Takes an empty region out of the pool; its charge and mapping are the caller's then. False if the
 * pool has none. Locks the pool. */
bool pkvi_pool_give_region(struct pkvi_pool *pool, enum give kind, void **base, uint64_t *charge);
/* Gives back metadata of slots behind the last region. Takes grow_lock. */
void pkvi_pool_trim_metadata(struct pkvi_pool *pool);

/* ---- squeeze.c ------------------------------------------------------------------------------ */

/* Makes a split region whole if its remaining charge and `room` bytes beyond fit the limit; false
 * if not, or if there is none (`full`: also one without cold units). Locks regions and the pool. */
bool pkvi_pool_heal(struct pkvi_pool *pool, uint64_t room, bool full);
/* Regions to take memory from. */
enum squeeze { SQUEEZE_SPLIT, SQUEEZE_WHOLE, SQUEEZE_FULL };
/* Takes about `bytes` of memory from free pages of regions of a kind; returns how many, 0 if there
 * are none. FULL: from whole regions without free pages, what lies behind their last unit. The
 * regions' lock is held; locks the pool. */
uint64_t pkvi_pool_squeeze(struct pkvi_pool *pool, enum squeeze kind, uint64_t bytes);

/* ---- regions.c ------------------------------------------------------------------------------ */

void pkvi_regions_add(struct pkvi_regions *regions, struct pkvi_pool *pool);
void pkvi_regions_remove(struct pkvi_regions *regions, struct pkvi_pool *pool);
/* A whole region for `pool`, charged: a new mapping, or under the limit the empty region of another
 * pool. *base is NULL if regions are not mapped. PKV_ENOPAGES, PKV_ENOMEM. No lock above GROW is
 * held. */
pkv_status pkvi_regions_get(struct pkvi_regions *regions, struct pkvi_pool *pool, void **base);

/* ---- alloc.c -------------------------------------------------------------------------------- */

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

/* Puts a page, whose word says FREE already, back into its region. Lock held. */
void pkvi_pool_put(struct pkvi_pool *pool, uint32_t page);
/* Takes between `least` and `most` pages, growing if need be; *got how many, and counts them as
 * allocated unless they are for a magazine. Locks the pool itself. Errors as alloc. */
pkv_status pkvi_pool_obtain(struct pkvi_pool *pool, uint32_t least, uint32_t most, struct taken to,
                            uint32_t *got);

/* ---- debug.c -------------------------------------------------------------------------------- */

/* Fills a freed page with NaN patterns if the pool is asked to. */
void pkvi_pool_poison(const struct pkvi_pool *pool, uint32_t page);
/* False if a freed page was written after it was poisoned. */
bool pkvi_pool_poison_intact(const struct pkvi_pool *pool, uint32_t page);
/* Checksum of a page's bytes. */
uint64_t pkvi_pool_checksum(const struct pkvi_pool *pool, uint32_t page);

/* ---- magazine.c ----------------------------------------------------------------------------- */

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
