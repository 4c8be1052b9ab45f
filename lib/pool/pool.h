/* pool: the pages of one layer group.
 *
 * Regions (huge-page-sized mappings) are carved into pages. Region slot r holds the page indices
 * r * pages_per_region + k, so indices are dense. Per page there is one 64-bit state word:
 * generation, flags and reference count, read without a lock.
 *
 * A region is address space; what the budget is charged for is the memory behind it. As long as the
 * limit has room a region is WHOLE: charged in full, backed by huge pages, its free pages cost
 * nothing more to hand out. Where the limit is reached, regions are SPLIT: charged by the unit (a
 * page, or a few small ones that share an OS page), and units whose pages are all free can go COLD:
 * the OS has their memory back, the budget their charge, and any pool may use it. Under the limit
 * that happens only when a charge is refused; no page is moved for it.
 *
 *   FREE    refs == 0, no owner    in its region's free stack, a magazine or a cold unit
 *   USED    refs > 0               held by tables, batches or the host
 *   CACHED  refs == 0, owner set   only the prefix index knows it; reclaimable
 *
 * Words change under the pool's lock only, by plain stores, so that a fork pays an increment per
 * page and no locked instruction. The exception is a page that left through a magazine: its word
 * carries the MAGAZINE flag and is changed by compare-and-swap; any function under the lock that
 * meets such a page first takes the flag off it. Tables never hold one.
 *
 * The host's references are also counted apart, per page, so that the host can release only its
 * own: releasing a page that only a table holds is PKV_ESTALE, not a hole in the table.
 *
 * Inside the library pages are u32 indices: whoever holds one holds a reference, so it cannot be
 * stale. The host's pkv_page ids carry the generation and are checked (…_ids functions).
 *
 * Lock order: prefix index → pool. Nothing is allocated, mapped or called back under the pool's
 * lock. */
#ifndef PKVI_POOL_POOL_H
#define PKVI_POOL_POOL_H

#include <pagedkv/page.h>

#include "mem/mem.h"
#include "stats/stats.h"

/* ---- regions: shared by the pools of one cache ---------------------------------------------- */

struct pkvi_regions_config {
    size_t region_bytes;  /* multiple of PKVI_OS_GRANULE */
    bool mapped;          /* HOST storage: map memory; else only account for it */
    bool huge, dont_fork; /* advice for each mapping */
    int numa_node;        /* -1 = none */
};

struct pkvi_pool;

/* Takes region memory from the OS and moves memory between pools: under the limit a pool that needs
 * a region gets the empty region of another without unmapping it, or the memory of free pages,
 * whose units go cold. Pools keep empty regions and free pages until another pool or metadata needs
 * their memory, or trim or set_limit gives it back. */
struct pkvi_regions {
    struct pkvi_mutex lock; /* guards pools, and serialises who takes memory from them; rank
                             * REGIONS: held while pools are asked */
    struct pkvi_list pools;
    struct pkvi_regions_config config;
    struct pkvi_budget *budget;
    const struct pkvi_os *os;
    _Atomic uint64_t lost; /* bytes that the OS refused to take back: charged until the end */
};

/* Also installs itself as the budget's pressure hook. False if the mutex cannot be made. */
bool pkvi_regions_init(struct pkvi_regions *regions, const struct pkvi_regions_config *config,
                       struct pkvi_budget *budget, const struct pkvi_os *os,
                       struct pkvi_lock_ranks *ranks);
/* All pools must be gone. */
void pkvi_regions_destroy(struct pkvi_regions *regions);

/* Gives empty regions of any pool back until `bytes` are given back or none is left, and metadata
 * of regions that are gone; returns the bytes of memory given back. MT-safe; no locks held.
 * O(regions given back + split regions + pools). */
uint64_t pkvi_regions_trim(struct pkvi_regions *regions, uint64_t bytes);

/* Gives back metadata of regions that are gone. MT-safe; no locks held. O(pools + regions). */
void pkvi_regions_trim_metadata(struct pkvi_regions *regions);

/* Takes memory that nobody uses away from all pools but `except` (NULL = from all) until `bytes`
 * are given back or none is left: empty regions, free pages of split regions, then those of whole
 * ones, which are split, emptiest first. Returns the bytes given back; at least a sixteenth of a
 * region if there is so much. MT-safe; locks up to GROW may be held. O(pages of the regions
 * touched). */
uint64_t pkvi_regions_squeeze(struct pkvi_regions *regions, uint64_t bytes,
                              const struct pkvi_pool *except);

/* Sets the memory limit, taking memory of free pages back as far as that needs. PKV_EBUSY if what
 * is in use does not fit: the limit is then as before. MT-safe; no locks held. (The cache reclaims
 * cached pages and tries again.) */
pkv_status pkvi_regions_set_limit(struct pkvi_regions *regions, uint64_t limit);

/* Bytes that squeezing all pools could still hand out: what the limit leaves for pages, less the
 * units that hold used or cached pages. MT-safe, O(pools). */
uint64_t pkvi_regions_available(struct pkvi_regions *regions);
/* Bytes that squeezing could give back: charged for units without used and cached pages. MT-safe,
 * O(pools). */
uint64_t pkvi_regions_spare(struct pkvi_regions *regions);

/* Makes split regions whole again as far as the limit has ample room, so that they get huge pages.
 * MT-safe; no locks held. O(split regions). */
void pkvi_regions_heal(struct pkvi_regions *regions);

/* Checks that what the pools' regions are charged adds up to what the budget says. Quiescent only.
 */
pkv_status pkvi_regions_verify(struct pkvi_regions *regions, char *text, size_t capacity);

/* Region size for a set of page sizes: the smallest multiple of 2 MiB, from 1/64 of what the limit
 * allows for pages (but at most 8 MiB) to 1/4 of it, that wastes at most 1/32 of a region at its
 * tail in every group; else the one of least waste. 0 if a page cannot fit the limit. */
size_t pkvi_regions_choose(const uint64_t *page_bytes, uint32_t n_groups, uint64_t limit);
/* Bytes that n pages of this size cost a fresh cache whose memory comes in OS pages of `os_page`
 * bytes (1 = no memory behind pages): whole units. */
uint64_t pkvi_pool_cost(uint64_t page_bytes, uint64_t os_page, uint64_t n);

/* ---- pool ----------------------------------------------------------------------------------- */

/* Called without the pool's lock when the last reference of pages that have an owner is about to
 * go. The callee must take the owner's lock (the index's), call pkvi_pool_release_owned() with
 * these pages, and enter what that reports as idle into its order of replacement. The pages still
 * carry the caller's reference until then, so their owners cannot vanish on the way. */
typedef void (*pkvi_idle_fn)(void *context, struct pkvi_pool *pool, uint32_t n,
                             const uint32_t *pages);

struct pkvi_pool_config {
    uint32_t group;      /* number of the layer group, for events */
    uint64_t page_bytes; /* all layers; > 0, <= region_bytes unless EXTERNAL */
    uint64_t layer_bytes;
    uint32_t max_pages; /* 0 = no bound but the budget */
    pkv_storage storage;
    void
        *external_base; /* EXTERNAL: external_bytes / page_bytes pages, indices 0.. in order; not */
    size_t external_bytes; /* charged to the budget (the memory is the caller's) */
    uint32_t debug;        /* PKV_DEBUG_* */
};

/* Per-page fields that need no lock-free readers. */
struct pkvi_page_aux {
    void *_Atomic owner;
    uint32_t next; /* free stack of its region: place in the region + 1, 0 = end; or, for the first
                    * page of a cold unit, the stack of those: unit in the region + 1 */
    uint32_t host; /* references of the host (word without MAGAZINE flag) */
    bool sealed;   /* with PKV_DEBUG_CHECKSUM: its checksum is kept */
    bool cold;     /* for the first page of a unit: it has no memory, or is just losing it */
};

struct pkvi_region {
    void *_Atomic base;  /* NULL if not mapped (or the slot is empty) */
    uint32_t free_head;  /* stack of freed pages: index + 1 */
    uint32_t free_count; /* freed plus never used, with memory */
    uint32_t fresh;      /* whole: pages k >= fresh were never handed out since the region came */
    uint32_t pages;      /* pages in this region; 0 = empty slot */
    uint32_t next, prev; /* list of its fullness class: slot + 1, 0 = end */
    uint32_t cold_next, cold_prev; /* list of regions with cold units: slot + 1, 0 = end */
    uint32_t cold_head;            /* stack of cold units: number in the region + 1 */
    uint32_t cold_units, cold_pages;
    uint32_t transit; /* units that are losing their memory: in no stack, still charged */
    uint8_t class;
    bool split;
    bool barren; /* split: no unit was wholly free when last looked, nothing was freed since */
};

/* Classes of regions: without free pages; whole with few, some, many; split; whole and empty. */
#define PKVI_REGION_CLASSES 6

struct pkvi_pool {
    struct pkvi_pool_config config;
    struct pkvi_regions *regions;
    struct pkvi_mem *mem;
    struct pkvi_stats *stats;
    struct pkvi_divisor per_region; /* pages per region */
    struct pkvi_divisor per_unit;   /* pages per unit */
    uint64_t unit_bytes;            /* from unit to unit; a multiple of the OS page if mapped */
    uint32_t max_slots;             /* region slots that may ever exist */
    uint32_t max_index;             /* pages that may ever exist */

    struct pkvi_segvec words;     /* _Atomic uint64_t: the state word */
    struct pkvi_segvec aux;       /* struct pkvi_page_aux */
    struct pkvi_segvec checksums; /* uint64_t, if PKV_DEBUG_CHECKSUM */
    struct pkvi_segvec slots;     /* struct pkvi_region */

    struct pkvi_mutex grow_lock; /* rank GROW: one growth at a time; guards the segvecs' growth */
    struct pkvi_list link;       /* in regions->pools; guarded by regions->lock */

    struct pkvi_mutex lock; /* rank POOL: guards everything below, page states and regions */
    uint32_t class_head[PKVI_REGION_CLASSES]; /* slot + 1 */
    uint32_t empty_slots;                     /* stack of region slots without region: slot + 1 */
    uint32_t cold_regions;                    /* list of regions with cold units: slot + 1 */
    uint64_t first_generation;                /* of pages that have none, as in their words */
    _Atomic uint32_t n_slots;                 /* slots ever used, and not trimmed */
    uint32_t n_whole, n_split;                /* regions */
    struct pkvi_list magazines;
    /* Written under lock, read without. free = not cached, not out. */
    _Atomic uint64_t total, out, cached, shared; /* total: with memory; out: taken, not cached */
    _Atomic uint64_t cold;                       /* pages without memory */
    _Atomic uint64_t held_units; /* with a page out or cached; kept if units hold several pages */
    _Atomic uint64_t allocs, frees; /* pages, magazines apart */
    pkvi_idle_fn idle;              /* set once, before the second thread */
    void *idle_context;
};

/* State word: generation << 32 | MAGAZINE | OWNED | refs. */
#define PKVI_WORD_MAGAZINE (UINT64_C(1) << 31)
#define PKVI_WORD_OWNED (UINT64_C(1) << 30)
#define PKVI_WORD_REFS (PKVI_WORD_OWNED - 1)

/* Registers with `regions`. Maps nothing yet. PKV_ENOMEM, PKV_EINVAL (a page larger than a region,
 * an EXTERNAL buffer without room for a page, a size that overflows the index space). */
pkv_status pkvi_pool_init(struct pkvi_pool *pool, const struct pkvi_pool_config *config,
                          struct pkvi_regions *regions, struct pkvi_mem *mem,
                          struct pkvi_stats *stats, struct pkvi_lock_ranks *ranks);
/* Gives all regions back whatever state pages are in. Magazines must have been destroyed. */
void pkvi_pool_destroy(struct pkvi_pool *pool);
/* Installs the hook for owned pages (the prefix index). Before the second thread. */
void pkvi_pool_set_idle(struct pkvi_pool *pool, pkvi_idle_fn idle, void *context);

/* Allocates n pages with one reference each, all or nothing; n = 0 is fine. Takes pages from the
 * fullest partial region class first and ascending consecutive ones from a fresh region; maps
 * regions and takes memory of free pages from other pools as needed and the budget allows; never
 * reclaims. PKV_ENOPAGES (limit or max_pages;
 * nothing changed), PKV_ENOMEM (the OS or the allocator refused). MT-safe; O(n). */
pkv_status pkvi_pool_alloc(struct pkvi_pool *pool, uint32_t n, uint32_t *pages);

/* Adds a reference to each. The caller must hold one already (or, for CACHED pages, the owner's
 * lock). MT-safe, one lock, about 1 ns a page. */
void pkvi_pool_ref(struct pkvi_pool *pool, uint32_t n, const uint32_t *pages);

/* Releases one reference of each; a page without owner is free after the last, a page with one is
 * passed to the idle hook. A page may be listed several times. The caller must not hold the owner's
 * lock. MT-safe; O(n). */
void pkvi_pool_unref(struct pkvi_pool *pool, uint32_t n, const uint32_t *pages);

/* References of a page now (another thread may change it). Lock-free. */
static inline uint32_t pkvi_pool_refs(const struct pkvi_pool *pool, uint32_t page)
{
    const _Atomic uint64_t *word = pkvi_segvec_at(&pool->words, page, sizeof *word);
    return (uint32_t)(atomic_load_explicit(word, memory_order_acquire) & PKVI_WORD_REFS);
}

/* True if somebody else could see a write to this page: it has further references or is published.
 */
static inline bool pkvi_pool_is_shared(const struct pkvi_pool *pool, uint32_t page)
{
    const _Atomic uint64_t *word = pkvi_segvec_at(&pool->words, page, sizeof *word);
    uint64_t w = atomic_load_explicit(word, memory_order_acquire);
    return (w & PKVI_WORD_OWNED) || (w & PKVI_WORD_REFS) > 1;
}

/* Owner of a page (the prefix node that published it), or NULL. Set and cleared under the owner's
 * lock. set: the caller holds a reference and there is no owner yet. clear: refs > 0 (a CACHED page
 * is given up with pkvi_pool_free_cached instead). */
void pkvi_pool_set_owner(struct pkvi_pool *pool, uint32_t page, void *owner);
void pkvi_pool_clear_owner(struct pkvi_pool *pool, uint32_t page);
static inline void *pkvi_pool_owner(const struct pkvi_pool *pool, uint32_t page)
{
    const struct pkvi_page_aux *aux = pkvi_segvec_at(&pool->aux, page, sizeof *aux);
    return atomic_load_explicit(&aux->owner, memory_order_acquire);
}

/* For the idle hook, under the owner's lock: releases the pending reference of each page. Those
 * that are CACHED now are written to idle[] (which may be `pages` itself) in order; returns how
 * many. The others were taken again or lost their owner (then they are freed). */
uint32_t pkvi_pool_release_owned(struct pkvi_pool *pool, uint32_t n, const uint32_t *pages,
                                 uint32_t *idle);

/* Frees CACHED pages, under the owner's lock: the owner is cleared. O(n). */
void pkvi_pool_free_cached(struct pkvi_pool *pool, uint32_t n, const uint32_t *pages);

/* Address of a page's bytes (the layer part l is at + l * layer_bytes): the one place that knows
 * how pages lie in memory. NULL for NONE. The caller holds a reference. Lock-free, O(1). */
void *pkvi_pool_address(const struct pkvi_pool *pool, uint32_t page);

/* Marks full pages as no longer written; with PKV_DEBUG_CHECKSUM their checksum is kept for verify.
 * unseal: before a page is written again (truncate into it). The caller holds a reference. */
void pkvi_pool_seal(struct pkvi_pool *pool, uint32_t n, const uint32_t *pages);
void pkvi_pool_unseal(struct pkvi_pool *pool, uint32_t page);

/* ---- the host's view: generation-tagged ids ------------------------------------------------- */

/* Id of a page the caller holds. Lock-free. */
static inline pkv_page pkvi_pool_id(const struct pkvi_pool *pool, uint32_t page)
{
    const _Atomic uint64_t *word = pkvi_segvec_at(&pool->words, page, sizeof *word);
    return (atomic_load_explicit(word, memory_order_acquire) & ~UINT64_C(0xffffffff)) | page;
}

/* Index of an id whose page is USED; PKV_ESTALE otherwise. The answer holds as long as the caller
 * keeps its reference. Lock-free. */
pkv_status pkvi_pool_lookup(const struct pkvi_pool *pool, pkv_page id, uint32_t *page);

/* What page.h promises, for one pool; all or nothing, also when an id is listed twice. */
pkv_status pkvi_pool_alloc_ids(struct pkvi_pool *pool, uint32_t n, pkv_page *ids);
pkv_status pkvi_pool_ref_ids(struct pkvi_pool *pool, uint32_t n, const pkv_page *ids);
pkv_status pkvi_pool_unref_ids(struct pkvi_pool *pool, uint32_t n, const pkv_page *ids);
pkv_status pkvi_pool_refs_id(struct pkvi_pool *pool, pkv_page id, uint32_t *refs);
/* layer: index inside the group; the caller checks it against the group's layers. */
pkv_status pkvi_pool_address_id(struct pkvi_pool *pool, pkv_page id, uint32_t layer,
                                void **address);

/* pkv_magazine_create for one pool. (pkv_magazine_alloc, _free and _destroy live in this module.)
 */
pkv_status pkvi_magazine_create(struct pkvi_pool *pool, uint32_t capacity, pkv_magazine **magazine);

/* ---- figures and checks --------------------------------------------------------------------- */

struct pkvi_pool_counts {
    uint64_t total, used, cached, free, shared, cold, regions, split, allocs, frees;
    uint64_t parked;     /* free pages that magazines keep */
    uint64_t held_bytes; /* units with used, cached or parked pages */
};

/* O(magazines), MT-safe, consistent. */
void pkvi_pool_counts(struct pkvi_pool *pool, struct pkvi_pool_counts *counts);
/* Used pages of which the host has a reference. O(pages), MT-safe. */
uint64_t pkvi_pool_hosted(struct pkvi_pool *pool);

/* Number of the layer group, and what one page and one unit measure. Constant. */
static inline uint32_t pkvi_pool_group(const struct pkvi_pool *pool)
{
    return pool->config.group;
}
static inline uint64_t pkvi_pool_page_bytes(const struct pkvi_pool *pool)
{
    return pool->config.page_bytes;
}
static inline uint32_t pkvi_pool_pages_per_region(const struct pkvi_pool *pool)
{
    return pool->per_region.d;
}
static inline uint32_t pkvi_pool_unit_pages(const struct pkvi_pool *pool)
{
    return pool->per_unit.d;
}
static inline uint64_t pkvi_pool_unit_bytes(const struct pkvi_pool *pool)
{
    return pool->unit_bytes;
}
/* Cached pages now, and pages that are used or parked. Lock-free. */
static inline uint64_t pkvi_pool_cached(const struct pkvi_pool *pool)
{
    return atomic_load_explicit(&pool->cached, memory_order_relaxed);
}
static inline uint64_t pkvi_pool_out(const struct pkvi_pool *pool)
{
    return atomic_load_explicit(&pool->out, memory_order_relaxed);
}
/* Bytes of the units that hold pages out or cached. Lock-free. 0 for EXTERNAL. */
static inline uint64_t pkvi_pool_held_bytes(const struct pkvi_pool *pool)
{
    if (pool->config.storage == PKV_STORAGE_EXTERNAL) return 0;
    if (pool->per_unit.d != 1)
        return atomic_load_explicit(&pool->held_units, memory_order_relaxed) * pool->unit_bytes;
    return (pkvi_pool_out(pool) + pkvi_pool_cached(pool)) * pool->unit_bytes;
}
/* Pages that the pool may have in all: max_pages, or what its buffer or its index space holds. */
static inline uint32_t pkvi_pool_bound(const struct pkvi_pool *pool)
{
    return pool->max_index;
}

/* How many pages an alloc could get now: free ones, and those that the budget still allows or whose
 * memory other pools' free pages have. An estimate while others allocate. MT-safe, O(pools). */
uint64_t pkvi_pool_obtainable(struct pkvi_pool *pool);
/* Of n pages, how many could not be had now; 0 = alloc(n) would succeed, unless the metadata of
 * new regions takes the last room. */
uint32_t pkvi_pool_missing(struct pkvi_pool *pool, uint32_t n);

/* What a pool has to hand out if all cached pages were reclaimed. */
struct pkvi_pool_census {
    uint64_t own;        /* pages that only this pool can use: free in units with used pages */
    uint64_t used_bytes; /* units with used or parked pages; the rest any pool can use */
    uint64_t cap;        /* pages it may still take at all */
};
/* exact = false: cached pages may count as `own` where they could be everybody's. O(1), or with
 * `exact`, units of several pages and cached pages O(pages). MT-safe. */
void pkvi_pool_census(struct pkvi_pool *pool, bool exact, struct pkvi_pool_census *census);
/* Unit of a page, by number, and how many of a unit's pages are used or parked. Lock-free. */
static inline uint32_t pkvi_pool_unit_of(const struct pkvi_pool *pool, uint32_t page)
{
    return pkvi_div(pool->per_unit, page);
}
uint32_t pkvi_pool_used_in_unit(const struct pkvi_pool *pool, uint32_t unit);

/* One more than the highest page index that is valid: the size for per-page arrays. */
uint32_t pkvi_pool_index_limit(const struct pkvi_pool *pool);

/* ---- moving pages --------------------------------------------------------------------------- */

/* Gives memory to cold units until n more pages are free, as far as the budget and the cold units
 * go; returns by how many pages that is. MT-safe. */
uint32_t pkvi_pool_back(struct pkvi_pool *pool, uint32_t n);
/* Plans at most `most` moves that empty the sparsest regions (of one region, its end): pages
 * from[i] to free ones to[i]. Moved are pages all of whose references are in holders[] (per page
 * index) and none of which is the host's, and cached ones. `scratch`: pkvi_pool_plan_bytes. Changes
 * nothing. The pool is quiescent until the moves are made. O(pages + regions log regions). */
uint32_t pkvi_pool_plan_moves(struct pkvi_pool *pool, const uint32_t *holders, void *scratch,
                              uint32_t most, uint32_t *from, uint32_t *to);
size_t pkvi_pool_plan_bytes(struct pkvi_pool *pool);
/* Makes planned moves: references, owner and checksum go along, the bytes are the caller's business
 * and were copied before; from[i] is free then. Cannot fail. O(pages). */
void pkvi_pool_move(struct pkvi_pool *pool, uint32_t n, const uint32_t *from, const uint32_t *to);

/* Walks the pool. holders (may be NULL): the number of references that the library's tables and
 * batches hold, for every index below n_holders (>= pkvi_pool_index_limit); the rest must be the
 * host's. PKV_ECORRUPT names the first broken invariant in text. Quiescent only. O(pages). */
pkv_status pkvi_pool_verify(struct pkvi_pool *pool, const uint32_t *holders, uint32_t n_holders,
                            char *text, size_t capacity);

#endif
