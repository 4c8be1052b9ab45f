/* What the files of lib/cache share: the cache, its sequences and its batches.
 *
 * lib/cache is the top of the library: it implements the public API by orchestrating the modules
 * below it. Files and owners of a subject:
 *
 *     config.c    defaults, bounds, checks             sequence.c  create, fork, truncate, destroy
 *     geometry.c  groups, layers, bytes per page       pins.c      pinned ranges
 *     cache.c     create, destroy                      release.c   pages that leave a sequence
 *     limit.c     limit, trim, shortfall               compact.c   moving pages
 *     reclaim.c   memory back, and trying again        batch.c     begin, add, commit, abort
 *     verify.c    every invariant                      reserve.c   pages for a batch, or nothing
 *     error.c     last error                           export.c    CSR, block table, slot mapping
 *     slots.c     handles                              admission.c the safe-state rule
 *     tickets.c   claims and the sum of needs
 *     bind_M.c    hooks and state of module M (attention, evict, prefix)
 *     api_M.c     the public functions of module M
 *     open_pages.c 16-bit pages of quantised groups
 *     bind_state.c, api_state.c  recurrent states
 *
 * Locks (ranks in base/base.h): cache->lock guards the slot tables and the free batches,
 * cache->admission_lock the claims, cache->error_lock the last error. No hook is called with any of
 * them held.
 *
 * A sequence has one writer at a time (the host's promise); its `batch` field makes a sequence in
 * an open batch refuse every other change. */
#ifndef PKVI_CACHE_INTERNAL_H
#define PKVI_CACHE_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <pagedkv/admission.h>
#include <pagedkv/batch.h>
#include <pagedkv/cache.h>
#include <pagedkv/config.h>
#include <pagedkv/sequence.h>

#include "base/base.h"
#include "cache/hooks.h"
#include "cache/slots.h"
#include "kernels/kernels.h"
#include "mem/mem.h"
#include "os/os.h"
#include "pool/pool.h"
#include "state/state.h"
#include "stats/stats.h"
#include "table/table.h"

#define PKVI_MAX_PINS 64u

/* One layer group. Immutable after create, apart from the pool and the counters. */
struct pkvi_group {
    struct pkvi_pool pool;
    uint32_t index;
    uint32_t n_layers;
    uint32_t kv_heads, q_heads;
    uint32_t head_dim_k, head_dim_v;
    uint32_t window;            /* 0 = full attention */
    pkv_dtype dtype;            /* of pages, or of open pages if quantised */
    pkv_dtype dtype_k, dtype_v; /* of pages */
    pkvi_layout layout;         /* one layer's part of a page */
    uint64_t token_bytes;       /* K and V of one token in all layers, without digests; a quantised
                                 * token's share of its page, rounded down */
    uint64_t layer_bytes;       /* layout.part_bytes */
    uint64_t page_bytes;        /* n_layers * layer_bytes */
    bool quantised;             /* full pages are sealed, partial ones open (open_pages.h) */
    struct pkvi_pool open_pool; /* if quantised */
    pkvi_layout open_layout;
    uint64_t open_layer_bytes, open_page_bytes;
};

/* Where a model layer lives. */
struct pkvi_layer {
    uint16_t group;
    uint16_t index; /* layer number inside the group */
};

struct pkvi_attention; /* bind_attention.c: kernel row, per-cache constants */

struct pkv_cache {
    const struct pkvi_os *os;
    struct pkvi_lock_ranks *ranks; /* debug builds; else NULL */
    struct pkvi_budget budget;
    struct pkvi_mem mem;
    struct pkvi_regions regions;
    struct pkvi_stats stats;
    struct pkvi_log log;
    pkv_clock_fn clock; /* never NULL */
    void *clock_user;

    uint32_t page_tokens; /* P, a power of two */
    uint32_t page_shift;  /* log2 P */
    uint32_t n_groups;
    uint32_t n_layers;
    uint32_t n_windows;           /* groups with a sliding window */
    uint64_t token_bytes;         /* K and V of one token in all groups */
    struct pkvi_group *groups;    /* [n_groups] */
    struct pkvi_layer *layers;    /* [n_layers], by model layer number */
    struct pkvi_state_set states; /* state groups: they stand behind the others in the config */
    pkv_storage storage;
    uint32_t debug; /* PKV_DEBUG_* */
    uint32_t watermark_pages;
    _Atomic uint64_t exports; /* stamp of the next row of a block table; starts at the clock, so
                               * that no other cache's rows have it */
    uint64_t empty_metadata;  /* bytes after create */

    struct pkvi_mutex lock; /* sequences, batches, free_batches */
    struct pkvi_slots sequences;
    struct pkvi_slots batches;
    struct pkvi_batch *free_batches; /* ended batches whose arrays are reused */
    struct pkvi_mutex admission_lock;
    struct pkvi_admission *admission; /* guarded by admission_lock */

    const struct pkvi_hooks *hooks[PKVI_HOOK_SLOTS]; /* NULL = module absent */
    void *hook_context[PKVI_HOOK_SLOTS];
    struct pkvi_attention *attention;

    struct pkvi_mutex error_lock;
    pkv_status error_status;
    char error_text[256];
};

/* A half-open range of token positions. */
struct pkvi_range {
    uint64_t begin, end;
};

struct pkvi_seq {
    struct pkv_cache *cache;
    uint64_t id;
    uint64_t length;         /* committed tokens */
    _Atomic uint64_t batch;  /* id of the open batch it is in, or 0 */
    struct pkvi_range *pins; /* [pin_capacity], unordered, may overlap */
    uint32_t n_pins, pin_capacity;
    uint32_t unpins;              /* pins taken away so far */
    uint64_t claim;               /* admission: most tokens it will hold; 0 = no ticket */
    uint32_t claim_index;         /* admission: place in the list of claims */
    struct pkvi_list marked;      /* admission: in the list of claims to be read again, or alone */
    void *state[PKVI_HOOK_SLOTS]; /* the modules' own, see hooks.h */
    bool quiet[PKVI_HOOK_SLOTS];  /* set by a module: its batch points have nothing to do here */
    struct pkvi_table tables[];   /* [n_groups] */
};

/* One (sequence, new tokens) pair of a batch. */
struct pkvi_entry {
    struct pkvi_seq *seq;
    uint64_t first_row; /* rows (new tokens) of the entries before it */
    uint32_t n_tokens;  /* new tokens, >= 1 */
    uint32_t accepted;  /* set by commit before the hooks run: 0..n_tokens */
    uint64_t tokens;    /* offset into batch->tokens, or PKVI_NO_TOKENS */
    uint32_t n_states;  /* states wanted, those after the last tokens; 0 = one */
};
#define PKVI_NO_TOKENS UINT64_MAX

/* Copy-on-write of one partial tail. The batch holds src's former reference until it ends, so that
 * abort can put it back and the host can still copy from it. */
struct pkvi_copy {
    uint32_t entry, group;
    uint32_t logical;
    uint32_t n_tokens; /* token slots [0, n_tokens) are valid in src */
    uint32_t src, dst; /* page indices in the group's pool; src == PKVI_NO_PAGE once undone */
};

/* How often the batch copies from one page: whoever is left as its only holder writes in place, if
 * that leaves every slot alone that abort would have to give back to a copier. */
struct pkvi_copy_count {
    uint32_t group, page;
    uint32_t count;    /* 0 = free place */
    uint32_t n_tokens; /* the copiers' slots [0, n_tokens) */
};

enum pkvi_batch_phase { PKVI_BATCH_OPEN = 0, PKVI_BATCH_RESERVED = 1 };

struct pkvi_batch {
    struct pkv_cache *cache;
    uint64_t id;
    uint32_t phase;
    uint32_t n_entries, entry_capacity;
    struct pkvi_entry *entries;
    uint32_t *growing; /* [entry_capacity] entries that need new pages, in order */
    uint32_t n_growing;
    uint64_t n_rows;                        /* new tokens over all entries */
    uint32_t n_with_tokens;                 /* entries that carry token ids */
    uint32_t n_with_state[PKVI_HOOK_SLOTS]; /* entries whose sequence has module state */
    int32_t *tokens;                        /* ids of all entries that gave them, back to back */
    uint64_t n_token_ids, token_capacity;
    struct pkvi_copy *copies; /* in (entry, group) order */
    uint32_t n_copies, copy_capacity;
    struct pkvi_copy_count *copy_counts; /* hash by (group, page), linear probing */
    uint32_t copy_count_capacity;        /* power of two, at least twice copy_capacity */
    uint32_t *shortfall;                 /* [n_groups + states.n] */
    uint32_t *needed;                    /* [n_groups] scratch of reserve */
    uint32_t *pages;                     /* scratch of reserve: pages being handed out */
    uint64_t page_capacity;
    void *state[PKVI_HOOK_SLOTS];
    struct pkvi_batch *next_free;
};

/* ---- handles -------------------------------------------------------------------------------- */

/* Resolves a handle: PKV_EINVAL for a NULL cache or a zero id, PKV_ESTALE. Records the failure as
 * the cache's last error under the name of the calling function. Lock-free, O(1). */
pkv_status pkvi_seq_get(pkv_seq handle, const char *caller, struct pkvi_seq **seq);
pkv_status pkvi_batch_get(pkv_batch handle, const char *caller, struct pkvi_batch **batch);

/* As pkvi_seq_get, and PKV_EBUSY while the sequence is in an open batch. */
pkv_status pkvi_seq_get_idle(pkv_seq handle, const char *caller, struct pkvi_seq **seq);

/* As pkvi_batch_get, and PKV_ESTATE unless the batch is reserved. */
pkv_status pkvi_batch_get_reserved(pkv_batch handle, const char *caller, struct pkvi_batch **batch);

static inline pkv_seq pkvi_seq_handle(const struct pkvi_seq *seq)
{
    return (pkv_seq){seq->cache, seq->id};
}

/* ---- errors --------------------------------------------------------------------------------- */

/* Records `status` with a printf-style text ("batch_add: sequence 7 is listed twice") as the
 * cache's last error and returns `status`. cache may be NULL: then it only returns. MT-safe. */
pkv_status pkvi_fail(struct pkv_cache *cache, pkv_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* ---- arithmetic of pages and tokens --------------------------------------------------------- */

/* Pages that n tokens need: ceil(n / P). */
static inline uint64_t pkvi_pages_for(const struct pkv_cache *cache, uint64_t tokens)
{
    return (tokens >> cache->page_shift) + ((tokens & (cache->page_tokens - 1u)) != 0);
}

/* First logical page that a query at position `length` can still see in a group: 0 for full
 * attention; a page has left the window w when its last position is below length - w + 1. */
static inline uint32_t pkvi_window_first(const struct pkv_cache *cache,
                                         const struct pkvi_group *group, uint64_t length)
{
    if (group->window == 0 || length < group->window) return 0;
    return (uint32_t)((length - group->window + 1) >> cache->page_shift);
}

/* Committed tokens of a sequence that one group's table holds; pages reserved for the current step
 * do not count. Relies on a partial tail always being resident. O(1). */
static inline uint64_t pkvi_resident_tokens(const struct pkvi_seq *seq, uint32_t group)
{
    const struct pkv_cache *cache = seq->cache;
    const struct pkvi_table *table = &seq->tables[group];
    const uint64_t reserved = table->next - pkvi_pages_for(cache, seq->length);
    uint64_t tokens = (table->resident - reserved) << cache->page_shift;
    const uint64_t in_tail = seq->length & (cache->page_tokens - 1u);
    if (in_tail != 0) tokens -= cache->page_tokens - in_tail;
    return tokens;
}

/* Groups of the config, those with states included. */
static inline uint32_t pkvi_all_groups(const struct pkv_cache *cache)
{
    return cache->n_groups + cache->states.n;
}

/* ---- services for the modules' bindings (bind_prefix.c, bind_evict.c) ----------------------- */

/* Drops one resident page of a sequence (an eviction): takes it out of the table, gives its
 * reference back, counts and reports PKV_EVENT_PAGE_EVICT. PKV_EDROPPED if not held, PKV_EBUSY if a
 * pin covers it, PKV_EINVAL if it holds the position the next token goes to. Call from the commit
 * hook, or while nothing else uses the sequence. Amortised O(1). */
pkv_status pkvi_seq_drop(struct pkvi_seq *seq, uint32_t group, uint32_t logical);

/* Does a pinned range touch this logical page? O(pins). */
bool pkvi_seq_pinned(const struct pkvi_seq *seq, uint32_t logical);

/* What an attach puts into one group's table. */
struct pkvi_attach {
    uint32_t first;        /* logical number of pages[0]; pages before it left the window */
    uint32_t n;            /* first + n must be ceil(n_tokens / P) */
    const uint32_t *pages; /* the caller has one reference of each, which the table takes over */
};

/* Fills an empty, idle sequence with n_tokens tokens whose pages exist already (prefix match):
 * tables, length, counters, share events. n_tokens may end inside a page: the last page is then a
 * partially valid shared page, and the first write into it copies it (reserve does that for any
 * tail page that has other references or an owner). `from` is the hook slot of the caller, whose
 * own seq_attach is not called. On failure (PKV_ESTATE not empty, PKV_EBUSY, PKV_ENOMEM) nothing
 * changed and the caller keeps the references. O(pages). */
pkv_status pkvi_seq_attach(struct pkvi_seq *seq, uint64_t n_tokens,
                           const struct pkvi_attach *groups, int from);

/* Reclaims (prefix index, then eviction) until `group` could hand out n pages, or leaves everything
 * as it is if that is hopeless; returns how many of n stay missing. 0 = an allocation is worth
 * trying again. at_least: pages to reclaim although none seem to be missing (an allocation failed
 * all the same: metadata of a new region took the room). Used by reserve and by pkv_page_alloc
 * (requester NULL). No locks may be held. */
uint32_t pkvi_cache_missing(struct pkv_cache *cache, uint32_t group, uint32_t n, uint32_t at_least,
                            struct pkvi_batch *requester);
/* Frees about `bytes` of pages over all groups, cheapest first. Returns the bytes freed. */
uint64_t pkvi_cache_reclaim_bytes(struct pkv_cache *cache, uint64_t bytes);
/* Pages of the group that reclaiming could free, at most. O(entries of the requester). */
uint64_t pkvi_cache_reclaimable(const struct pkv_cache *cache, uint32_t group,
                                const struct pkvi_batch *requester);
/* How many of n pages no reclaiming could yield, at least; reclaims nothing. O(groups + entries of
 * the requester). */
uint32_t pkvi_cache_hopeless(struct pkv_cache *cache, uint32_t group, uint32_t n,
                             const struct pkvi_batch *requester);
#define PKVI_RETRY_BYTES ((uint64_t)64 << 10) /* room that a retry makes at least */
#define PKVI_ALLOC_ATTEMPTS 8                 /* other threads may take what was reclaimed */

/* A pool other than a group's own (open pages) is short of n pages: reclaims cached pages of all
 * groups if that could be enough. True if an allocation is worth trying again. No locks may be
 * held.
 */
bool pkvi_cache_reclaim_for(struct pkv_cache *cache, struct pkvi_pool *pool, uint32_t n);

/* The same for n slots of a state group: cached states first. */
bool pkvi_cache_reclaim_slots(struct pkv_cache *cache, uint32_t state, uint32_t n);

/* After attempt number `attempt` (from 0) of something ended with `status`: is another one worth
 * it? Only if it was refused memory because pages leave no room for metadata: then cached pages are
 * reclaimed until there is some. `bytes`: what it needs, if that may be much. What cannot
 * fit reclaims nothing. No locks may be held. */
bool pkvi_cache_retry(struct pkv_cache *cache, pkv_status status, int attempt, uint64_t bytes);

/* ---- between the files of lib/cache --------------------------------------------------------- */

/* cache.c: pkv_cache_create with other OS hooks (tests). */
pkv_status pkvi_cache_create(const pkv_config *config, const struct pkvi_os *os, pkv_cache **cache);

/* config_sizes.c: the caller's config and its array elements as this library has them: fields that
 * the caller's headers did not know are zero. config.groups and .rope stay the caller's arrays: go
 * through the functions, which take the config that pkvi_config_read filled. */
bool pkvi_config_known(size_t size);
void pkvi_config_read(const pkv_config *from, pkv_config *config);
pkv_group_config pkvi_config_group(const pkv_config *config, uint32_t group);
pkv_rope_config pkvi_config_rope(const pkv_config *config, uint32_t group);
/* Groups with pages; the rest of config.n_groups are state groups. */
uint32_t pkvi_config_paged(const pkv_config *config);
/* Sizes of the array elements in the headers that had a pkv_config of `size` bytes. */
void pkvi_config_sizes(size_t size, size_t *group_size, size_t *rope_size);
bool pkvi_group_size_known(size_t size);
bool pkvi_rope_size_known(size_t size);
/* Formats that a group asks for: of open pages, of keys and of values. */
pkv_dtype pkvi_dtype_open(const pkv_group_config *group);
pkv_dtype pkvi_dtype_k(const pkv_group_config *group);
pkv_dtype pkvi_dtype_v(const pkv_group_config *group);

/* geometry.c: sizes of one group as the config describes it; the pool is not touched. */
void pkvi_geometry_group(const pkv_config *config, uint32_t index, struct pkvi_group *group);
/* The same of a state group; `index` counts all groups. */
void pkvi_geometry_state(const pkv_config *config, uint32_t index, struct pkvi_state_group *group);
/* Unit in which memory comes to pages: the OS page, or a byte where there is none behind them. */
uint64_t pkvi_geometry_os_page(const pkv_config *config);
/* Region size for a config (0 = none fits the limit); needs no cache. */
uint64_t pkvi_geometry_region_bytes(const pkv_config *config);
/* Fills page_tokens, groups and layers of a cache. PKV_ENOMEM; undone by free. */
pkv_status pkvi_geometry_init(struct pkv_cache *cache, const pkv_config *config);
void pkvi_geometry_free(struct pkv_cache *cache);

/* reserve.c: pages, tables and copies of a batch; all or nothing. */
pkv_status pkvi_reserve(struct pkvi_batch *batch);
/* Gives back what the reserve took, hooks included. */
void pkvi_unreserve(struct pkvi_batch *batch);
/* Rolls one entry's tables back to `length` committed tokens, the copy-on-write of its tail
 * included if nothing of the entry stays. */
void pkvi_unreserve_entry(struct pkvi_batch *batch, uint32_t entry, uint64_t length);

/* sequence.c: destroys a sequence without looking at its batch (cache destroy, too). */
void pkvi_seq_destroy(struct pkvi_seq *seq);
/* release.c: releases the pages of window groups that no query from seq->length on can see, unless
 * a pin keeps them. O(released). */
void pkvi_seq_release_window(struct pkvi_seq *seq);
/* After an unpin: releases pages [first_page, end_page) of window groups that only the pin kept. */
void pkvi_seq_release_unpinned(struct pkvi_seq *seq, uint64_t first_page, uint64_t end_page);

/* May the entry keep only its first tokens, as far as the modules are concerned? */
bool pkvi_batch_can_accept(const struct pkvi_batch *batch, uint32_t entry, uint32_t accepted);

/* The end of a reserved batch whose entries' `accepted` are set. */
void pkvi_batch_commit(struct pkvi_batch *batch);

/* batch.c: frees the arrays of all batches, open ones included (cache destroy); and of ended ones
 * kept for reuse (trim). */
void pkvi_batches_destroy(struct pkv_cache *cache);
void pkvi_batches_trim(struct pkv_cache *cache);

/* admission.c */
pkv_status pkvi_admission_init(struct pkv_cache *cache);
void pkvi_admission_destroy(struct pkv_cache *cache);
/* Would reserving nothing leave more sequences stuck than if `seq`, which has a ticket, had its last
 * pin not? */
bool pkvi_admission_bears_pin(struct pkvi_seq *seq);
/* Gives back scratch that the next check makes anew. */
void pkvi_admission_trim(struct pkv_cache *cache);
pkv_status pkvi_admission_verify(struct pkv_cache *cache, char *text, size_t capacity);

/* tickets.c: the sequence gives its ticket back, if it has one. */
void pkvi_ticket_forget(struct pkvi_seq *seq);
/* What a ticket may need has changed: its table or pins, or who shares its tail; the same
 * for what a batch does to its entries, and for all tickets. Nothing without tickets. */
void pkvi_ticket_changed(struct pkvi_seq *seq);
void pkvi_tickets_changed_by(const struct pkvi_batch *batch);
void pkvi_tickets_changed(struct pkv_cache *cache);

/* bind_attention.c, bind_prefix.c, bind_evict.c: bind the modules at create. A module that is
 * absent leaves its pointers NULL. On failure nothing is left behind. */
pkv_status pkvi_attention_bind(struct pkv_cache *cache, const pkv_config *config);
void pkvi_attention_unbind(struct pkv_cache *cache);
pkv_status pkvi_prefix_bind(struct pkv_cache *cache, const pkv_config *config);
pkv_status pkvi_evict_bind(struct pkv_cache *cache, const pkv_config *config);

/* bind_state.c: binds if there are state groups. */
void pkvi_state_bind(struct pkv_cache *cache);
/* States that an entry takes slots for. */
static inline uint32_t pkvi_state_rows(const struct pkvi_entry *entry)
{
    return entry->n_states != 0 ? entry->n_states : 1;
}
/* Rows of slots ([states.n] each) that a reserved batch's entry writes to, one per state. */
const uint32_t *pkvi_state_of_entry(const struct pkvi_batch *batch, uint32_t entry);
static inline struct pkvi_states *pkvi_states_of(const struct pkvi_seq *seq)
{
    return seq->state[PKVI_HOOK_STATE];
}
/* pkv_cache_verify: every state group's slots, and the states of every sequence. */
pkv_status pkvi_state_verify(struct pkv_cache *cache, char *text, size_t capacity);

#endif
