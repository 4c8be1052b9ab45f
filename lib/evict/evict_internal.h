/* What the files of lib/evict share. Private to the module. */
#ifndef PKVI_EVICT_INTERNAL_H
#define PKVI_EVICT_INTERNAL_H

#include <stdatomic.h>

#include "base/base.h"
#include "evict/evict.h"
#include "evict/heap.h"
#include "kernels/kernels.h"
#include "mem/mem.h"
#include "pool/pool.h"
#include "table/table.h"

/* ---- policies ------------------------------------------------------------------------------- */

struct pkvi_evict_state;
struct pkvi_evict_call;

/* What a policy needs. */
enum {
    PKVI_NEEDS_MASS = 1u,   /* accumulators and table scores */
    PKVI_NEEDS_SCORES = 2u, /* one candidate list per evicting commit */
    PKVI_NEEDS_KEYS = 4u    /* struct pkvi_keydiff */
};

/* A policy: one file of lib/evict/policy each. Pointers that a policy does not need are NULL. */
struct pkvi_evict_ops {
    const char *name;
    pkv_evict_kind kind;
    uint32_t needs;
    bool by_length; /* drops as a function of the token count alone */

    /* Rows of an entry of n new tokens whose mass counts (see pkvi_evict_mass_rows). */
    uint32_t (*mass_rows)(const pkv_evict_config *config);
    /* A step's mass: share[i] of the i-th resident page, summing to 1, over the last `rows` new
     * tokens. */
    void (*observe)(const struct pkvi_evict_call *call, const float *share, uint32_t rows);
    /* Pages [first, end) became full; eviction follows. Also after an attach. */
    void (*sealed)(const struct pkvi_evict_call *call, uint32_t first, uint32_t end);
    /* Scores of n candidates (table slots, ascending): lower goes first. For SCORES policies. */
    void (*score)(const struct pkvi_evict_call *call, struct pkvi_candidate *candidates,
                  uint32_t n);
    /* The next page to drop, or PKVI_NO_PAGE. For the others. */
    uint32_t (*victim)(const struct pkvi_evict_call *call);
    /* A page is dropped (by eviction): called before it leaves the table. */
    void (*forget)(const struct pkvi_evict_call *call, uint32_t logical);
    /* The sequence is being shortened to n_tokens; restored: a journalled page came back. */
    void (*truncate)(const struct pkvi_evict_call *call, uint64_t n_tokens);
    void (*restored)(const struct pkvi_evict_call *call, uint32_t logical);
    /* Current score of a slot for inspection; NULL = 0. */
    float (*peek)(const struct pkvi_evict_call *call, uint32_t slot);
};

extern const struct pkvi_evict_ops pkvi_evict_window, pkvi_evict_sink, pkvi_evict_mass,
    pkvi_evict_obs, pkvi_evict_keydiff, pkvi_evict_lru_mass, pkvi_evict_random, pkvi_evict_callback,
    pkvi_evict_topk_ops;

/* The row of a kind, or NULL (NONE and unknown kinds). */
const struct pkvi_evict_ops *pkvi_evict_ops_of(pkv_evict_kind kind);

struct pkvi_evict_policy {
    atomic_uint refs;
    struct pkvi_evict *evict;
    const struct pkvi_evict_ops *ops;
    pkv_evict_config config; /* window and budget (in pages) filled in */
    uint32_t budget_pages;
    uint32_t sink_pages;
    uint32_t window_tokens; /* W */
    uint32_t recent_pages;  /* full pages that W protects at a page boundary */
    uint64_t salt;          /* of by_length policies */
};

struct pkvi_evict {
    struct pkvi_mem *mem;
    uint32_t page_tokens, page_shift;
    uint32_t n_groups;
    struct pkvi_evict_group *groups;
    struct pkvi_mutex lock;              /* rank EVICT: defaults */
    struct pkvi_evict_policy **defaults; /* [n_groups] */
    atomic_uint n_defaults;
    atomic_uint n_meters; /* states whose policy runs the regret meter */
};

/* ---- per sequence and group ----------------------------------------------------------------- */

/* One undone-able eviction. Holds one reference of the page. */
struct pkvi_journal_entry {
    uint64_t length; /* committed tokens when it was decided */
    uint64_t step;
    uint32_t logical;
    uint32_t page;
    struct pkvi_page_score score;
};

struct pkvi_journal {
    struct pkvi_journal_entry *ring; /* [capacity], power of two, or NULL */
    uint32_t capacity;
    uint32_t head; /* index of the oldest entry */
    uint32_t count;
};

/* Digests of dropped pages, newest `limit` of them. */
struct pkvi_regret {
    unsigned char *blocks; /* [capacity][block_bytes]: per layer minima, then maxima */
    uint32_t *logical;     /* [capacity] */
    uint32_t capacity, limit;
    uint32_t count, next; /* ring */
    bool due;             /* this step looks */
    atomic_uint step_hit; /* this step had a regret */
    _Atomic uint64_t checks, hits;
    uint64_t taken_checks, taken_hits; /* reported by pkvi_evict_take_regret */
    uint64_t steps;                    /* commits */
    uint64_t step_hits;                /* commits with at least one regret */
};

struct pkvi_keydiff; /* policy/keydiff.c */

/* What the host fed in this step, see feed.c. Allocated when it first does. */
struct pkvi_mass_feed {
    uint64_t *sum;     /* [2][capacity]: of the highest band and of the one below */
    uint32_t capacity; /* pages */
    int32_t band;      /* the highest so far */
    bool any;
};

struct pkvi_evict_state {
    struct pkvi_evict_policy *policy; /* NULL = none; then nothing below is in use */
    uint64_t steps;                   /* commits since the policy was set */
    uint64_t mass_steps;
    uint64_t evicted, restored; /* over the sequence's life */
    uint64_t gone;              /* evictions that were not undone, of any policy */
    uint32_t cursor;            /* WINDOW, SINK: nothing evictable below this logical page … */
    uint32_t unpins;            /* … as long as no pin is taken away: the target's count */

    /* Mass of the step, fixed point; [acc_n] while reserved. */
    uint64_t *acc; /* __atomic adds while the step runs, plain access at commit */
    float *share;  /* [acc_capacity] scratch */
    uint32_t acc_capacity;
    bool skips_mass;        /* this step's attention need not compute mass */
    bool reserved;          /* between reserve and commit or abort */
    uint32_t reserved_new;  /* … the step's new tokens */
    uint32_t reserved_full; /* … full pages resident before it */
    uint32_t acc_n;         /* resident pages at reserve; 0 = not reserved */
    atomic_uint fed;
    struct pkvi_mass_feed feed; /* under es->feeding while the step runs */

    struct pkvi_candidate *candidates; /* [candidate_capacity] scratch */
    uint32_t candidate_capacity;

    struct pkvi_journal journal;
    struct pkvi_regret regret;
    struct pkvi_keydiff *keydiff;
};

struct pkvi_evict_seq {
    struct pkvi_evict *evict;
    uint64_t depend_from; /* tokens from here on depend on evictions; UINT64_MAX = none */
    uint64_t taint_from;  /* … on evictions that depend on data; UINT64_MAX = none */
    uint64_t left_out;    /* tokens from here on of the step that is reserved attend to a choice of
                           * pages (TOPK); UINT64_MAX = none. It is published before it is marked */
    uint64_t salt;        /* of tokens from depend_from on */
    bool irregular;       /* a truncation left less than the policies leave to others */
    struct pkvi_mutex feeding;
    struct pkvi_evict_state groups[];
};

/* One call of the engine, handed to the policies. */
struct pkvi_evict_call {
    struct pkvi_evict_seq *es;
    struct pkvi_evict_state *state;
    const struct pkvi_evict_policy *policy;
    const struct pkvi_evict_group *info;
    const struct pkvi_evict_target *target;
    struct pkvi_table *table;
    uint32_t group;
    uint32_t page_shift;
    uint32_t first, end; /* candidates are resident unpinned pages in [first, end) */
};

/* Fills a call for a state that has a policy. */
struct pkvi_evict_call pkvi_evict_call(struct pkvi_evict_seq *es, uint32_t group,
                                       const struct pkvi_evict_target *target);

static inline bool pkvi_evict_is_pinned(const struct pkvi_evict_call *call, uint32_t logical)
{
    return call->target->pinned && call->target->pinned(call->target->owner, logical);
}

/* Full pages a sequence of `length` tokens has written. */
static inline uint32_t pkvi_evict_full_pages(const struct pkvi_evict_call *call)
{
    return (uint32_t)(call->target->length >> call->page_shift);
}

/* Does the policy ever drop? */
static inline bool pkvi_evict_drops(const struct pkvi_evict_ops *ops)
{
    return ops->victim || ops->score;
}

/* publish.c: tokens from `length` on depend on an eviction (taint: on data). */
void pkvi_evict_mark(struct pkvi_evict_seq *es, uint64_t length, bool taint);

/* ---- journal.c ------------------------------------------------------------------------------ */

/* Room for n more entries. */
pkv_status pkvi_journal_reserve(struct pkvi_journal *journal, struct pkvi_mem *mem, uint32_t n);
/* Takes a reference of the page and notes the eviction; room was reserved. */
void pkvi_journal_add(struct pkvi_journal *journal, struct pkvi_pool *pool,
                      const struct pkvi_journal_entry *entry);
/* Releases the entries of steps before `step`. */
void pkvi_journal_expire(struct pkvi_journal *journal, struct pkvi_pool *pool, uint64_t step);
/* Releases the oldest n entries. */
uint32_t pkvi_journal_release(struct pkvi_journal *journal, struct pkvi_pool *pool, uint32_t n);
void pkvi_journal_free(struct pkvi_journal *journal, struct pkvi_pool *pool, struct pkvi_mem *mem);
static inline struct pkvi_journal_entry *pkvi_journal_at(const struct pkvi_journal *journal,
                                                         uint32_t i)
{
    return &journal->ring[(journal->head + i) & (journal->capacity - 1)];
}

/* ---- mass.c --------------------------------------------------------------------------------- */

pkv_status pkvi_evict_mass_reserve(struct pkvi_evict_state *state, struct pkvi_mem *mem,
                                   uint32_t resident);
/* Normalises the step's accumulators into state->share (sum 1) for the table's current resident
 * pages and zeroes them; false if nothing was fed. */
bool pkvi_evict_mass_take(struct pkvi_evict_state *state, uint32_t resident);
/* A page's share becomes the largest of its own and its resident neighbours'. */
void pkvi_evict_mass_pool(const struct pkvi_table *table, float *share, uint32_t n);
void pkvi_evict_mass_free(struct pkvi_evict_state *state, struct pkvi_mem *mem);

/* feed.c: the sum of what the host fed for resident page i, in the host's unit. */
double pkvi_evict_feed_sum(const struct pkvi_mass_feed *feed, uint32_t i);
void pkvi_evict_feed_free(struct pkvi_mass_feed *feed, struct pkvi_mem *mem);

/* Shared by MASS and OBS (policy/mass.c): exponential mean with a memory of gamma per row; `age`
 * rows were observed before. */
void pkvi_mass_update(struct pkvi_page_score *score, float share, float gamma, uint32_t rows,
                      uint32_t seen);
float pkvi_mass_value(const struct pkvi_page_score *score, const pkv_evict_config *config);
/* Of `rows` rows that end at `length`, those at or after the page's first position. */
uint32_t pkvi_mass_rows_seen(const struct pkvi_evict_call *call, uint32_t logical, uint32_t rows);

/* ---- regret.c ------------------------------------------------------------------------------- */

pkv_status pkvi_regret_reserve(struct pkvi_regret *regret, struct pkvi_mem *mem,
                               const struct pkvi_evict_group *info, uint32_t limit, uint32_t n);
/* Copies the digests of a page that is about to be dropped. */
void pkvi_regret_keep(struct pkvi_regret *regret, const struct pkvi_evict_group *info,
                      uint32_t logical, uint32_t page);
/* Forgets digests of logical pages at or after `first` (truncation), or of one restored page. */
void pkvi_regret_forget(struct pkvi_regret *regret, const struct pkvi_evict_group *info,
                        uint32_t first, uint32_t end);
void pkvi_regret_free(struct pkvi_regret *regret, struct pkvi_mem *mem,
                      const struct pkvi_evict_group *info);
pkv_status pkvi_regret_copy(struct pkvi_regret *to, const struct pkvi_regret *from,
                            struct pkvi_mem *mem, const struct pkvi_evict_group *info);

/* ---- keydiff.c: what the engine needs of the policy's state --------------------------------- */

pkv_status pkvi_keydiff_create(struct pkvi_keydiff **keydiff, struct pkvi_mem *mem,
                               const struct pkvi_evict_group *info);
pkv_status pkvi_keydiff_reserve(struct pkvi_keydiff *keydiff, struct pkvi_mem *mem, uint32_t pages);
pkv_status pkvi_keydiff_copy(struct pkvi_keydiff **to, const struct pkvi_keydiff *from,
                             struct pkvi_mem *mem);
void pkvi_keydiff_free(struct pkvi_keydiff *keydiff, struct pkvi_mem *mem);

#endif
