/* Page table of one sequence in one layer group: which physical page holds which logical page.
 *
 * Logical page i holds token positions [i * P, (i + 1) * P), so original positions are implied.
 * Resident pages live in parallel arrays ("slots"), in ascending logical order:
 *
 *     slot      head                          end
 *     logical    3     4     5     6     7
 *     page      17    18    --    20    21            -- = hole (PKVI_NO_PAGE)
 *
 * Dropping from the front moves `head` (sliding windows), dropping in the middle leaves a hole that
 * keeps its logical number (eviction); holes are squeezed out when they exceed half the slots, so
 * memory is O(resident pages), never O(length), and a drop is amortised O(1). The first and last
 * slot are never holes. While the slots between head and end carry consecutive logical numbers a
 * lookup is one subtraction, otherwise a binary search.
 *
 * A table holds one pool reference per resident page. Not MT-safe: a sequence has one writer;
 * readers of a sequence in a reserved batch are safe because nothing changes it until commit. */
#ifndef PKVI_TABLE_H
#define PKVI_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <pagedkv/status.h>

struct pkvi_mem;
struct pkvi_pool;

/* "No page": a hole, or the answer for a logical page that is not held. */
#define PKVI_NO_PAGE UINT32_MAX

/* "No slot": the answer of pkvi_table_find for a logical page that is not held. */
#define PKVI_NO_SLOT UINT32_MAX

/* What eviction policies remember per resident page. The table only keeps it beside the page
 * through growth, compaction and fork; new pages start zeroed. */
struct pkvi_page_score {
    float score;       /* accumulated or decayed attention mass */
    float peak;        /* largest single-step mass */
    uint32_t last_use; /* the policy's step counter at the last notable use */
    uint32_t flags;    /* the policy's own */
};

struct pkvi_table {
    uint32_t *logical;             /* [capacity], ascending over [head, end) */
    uint32_t *page;                /* [capacity], PKVI_NO_PAGE in holes */
    struct pkvi_page_score *score; /* [capacity] or NULL while scores are off */
    uint32_t head, end;            /* slots in use are [head, end) */
    uint32_t capacity;
    uint32_t resident; /* slots that are not holes */
    uint32_t next;     /* logical number the next appended page gets, i.e. logical pages
                        * so far, dropped ones included */
    uint32_t released; /* logical pages below this left the sliding window (pinned ones
                        * may still be resident) */
    /* Logical pages [dirty_lo, dirty_hi) changed since the last incremental export, apart from
     * pages appended at the end. Empty when lo >= hi. */
    uint32_t dirty_lo, dirty_hi;
    uint64_t exported; /* stamp of that export; 0 = none. Of the exporter, not copied by a fork */
};

/* An empty table; owns nothing yet. O(1). */
void pkvi_table_init(struct pkvi_table *table);

/* Gives every reference back to the pool and every array back to mem; the table is empty again.
 * O(slots). */
void pkvi_table_clear(struct pkvi_table *table, struct pkvi_mem *mem, struct pkvi_pool *pool);

/* Makes room for n more appended pages, so that the appends cannot fail. ENOMEM changes nothing.
 * Amortised O(n). */
pkv_status pkvi_table_reserve(struct pkvi_table *table, struct pkvi_mem *mem, uint32_t n);

/* Appends n pages as the next logical pages; the table takes over one reference of each. Room must
 * have been reserved. O(n). */
void pkvi_table_append(struct pkvi_table *table, const uint32_t *pages, uint32_t n);

/* Fills an empty table with n pages as logical pages first, first + 1, …; pages below `first` count
 * as having left the window. Takes over one reference of each. Room must have been reserved. */
void pkvi_table_attach(struct pkvi_table *table, uint32_t first, const uint32_t *pages, uint32_t n);

/* Slot of a logical page, or PKVI_NO_SLOT if it is not held. O(1) without squeezed holes, else
 * O(log resident). */
uint32_t pkvi_table_find(const struct pkvi_table *table, uint32_t logical);

/* Slot of the first resident page whose logical number is at least `logical`, or PKVI_NO_SLOT.
 * O(log slots + holes skipped). */
uint32_t pkvi_table_seek(const struct pkvi_table *table, uint32_t logical);

/* Physical page of a logical page, or PKVI_NO_PAGE. Same cost as find. */
uint32_t pkvi_table_page(const struct pkvi_table *table, uint32_t logical);

/* Replaces the physical page of a resident logical page (copy-on-write) and returns the old one,
 * whose reference passes to the caller; the reference of `page` passes to the table. Scores stay.
 */
uint32_t pkvi_table_replace(struct pkvi_table *table, uint32_t logical, uint32_t page);

/* Takes one logical page out of the table and returns its physical page, whose reference passes to
 * the caller; PKVI_NO_PAGE if it is not held. Amortised O(1), plus find. */
uint32_t pkvi_table_drop(struct pkvi_table *table, uint32_t logical);

/* Puts a page back as logical page `logical` (below `next`, not resident now); the table takes over
 * one reference. Its score is zero. ENOMEM changes nothing. O(1) while the hole is still there, else
 * O(slots behind it). */
pkv_status pkvi_table_insert(struct pkvi_table *table, struct pkvi_mem *mem, uint32_t logical,
                             uint32_t page);

/* Shortens the table to its first n_pages logical pages and gives the references of the rest back
 * to the pool. Returns how many pages that were. O(released). */
uint32_t pkvi_table_truncate(struct pkvi_table *table, struct pkvi_pool *pool, uint32_t n_pages);

/* Makes dst (an initialised empty table) a copy of src: one more reference of every resident page.
 * Holes are not copied. ENOMEM changes nothing. O(resident). */
pkv_status pkvi_table_fork(struct pkvi_table *dst, const struct pkvi_table *src,
                           struct pkvi_mem *mem, struct pkvi_pool *pool);

/* Allocates the score array (zeroed) if there is none. ENOMEM changes nothing. O(capacity). */
pkv_status pkvi_table_enable_scores(struct pkvi_table *table, struct pkvi_mem *mem);

/* Marks [lo, hi) as changed for the incremental export. O(1). */
void pkvi_table_mark_dirty(struct pkvi_table *table, uint32_t lo, uint32_t hi);

/* NULL if the table's own invariants hold, else a fixed text naming the broken one. O(slots). */
const char *pkvi_table_check(const struct pkvi_table *table);

/* One resident page while iterating. */
struct pkvi_resident {
    uint32_t logical;
    uint32_t page;
    uint32_t slot; /* index into the arrays, score included */
};

/* Next resident page in ascending logical order; *cursor starts at 0. False at the end.
 *
 *     uint32_t cursor = 0;
 *     struct pkvi_resident r;
 *     while (pkvi_table_next(table, &cursor, &r)) … */
static inline bool pkvi_table_next(const struct pkvi_table *table, uint32_t *cursor,
                                   struct pkvi_resident *out)
{
    uint32_t slot = *cursor < table->head ? table->head : *cursor;
    while (slot < table->end && table->page[slot] == PKVI_NO_PAGE)
        slot++;
    if (slot >= table->end) return false;
    out->logical = table->logical[slot];
    out->page = table->page[slot];
    out->slot = slot;
    *cursor = slot + 1;
    return true;
}

/* A run: a maximal span of resident pages with consecutive logical numbers. All its tokens have the
 * same shift: (first_logical - first_resident) * P tokens between the original position and the
 * position inside the cache. */
struct pkvi_run {
    uint32_t first_logical;
    uint32_t first_resident; /* how many resident pages precede the run */
    uint32_t n_pages;
    uint32_t first_slot; /* the run's pages are page[first_slot .. first_slot + n_pages) */
};

/* Next run; *cursor starts at a zeroed struct pkvi_run and is the previous run afterwards. False at
 * the end. O(length of the run + holes skipped). */
bool pkvi_table_next_run(const struct pkvi_table *table, struct pkvi_run *cursor);

#endif
