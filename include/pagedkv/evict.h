/* pagedkv: eviction. Bounds the pages that one sequence holds in one layer group.
 *
 *     pkv_evict_config cfg;
 *     pkv_evict_config_init(&cfg, sizeof cfg, PKV_EVICT_SINK, 1024);   // 1,024 tokens
 *     pkv_cache_set_evict(cache, PKV_EVICT_FULL_GROUPS, &cfg);         // for sequences to come
 *
 * How it works
 * - The unit is a page. A policy decides at pkv_batch_commit only, never inside a step, and only
 *   over full pages: after a commit a sequence holds at most `budget` full pages of the group plus
 *   the partial tail. During a step it holds the step's own tokens on top. So at every step, in
 *   chunked prefill too:  resident tokens <= budget + 1 page + the step's own tokens.
 *   Pinned pages (pkv_seq_pin) are never dropped; if the pinned and protected pages alone exceed
 *   the budget, the bound is those pages instead.
 * - Attention reads what the page table holds, nothing else: there is no second place that knows
 *   about sinks or windows.
 * - Dropping releases this sequence's reference; a page that a fork or the prefix index holds too
 *   lives on, unchanged.
 * - Keys stay as they were written. With PKV_POSITION_ORIGINAL every token keeps its distance to
 *   the query; with PKV_POSITION_COMPACT the survivors close up: the library turns the *query* by
 *   each run's shift, so pages stay immutable and shareable.
 * - After an eviction the K and V of later tokens depend on what was dropped. WINDOW and SINK drop
 *   as a function of the token count alone: their later pages are published to the prefix index
 *   under a salt and match only sequences with the same policy. All other policies *taint* the
 *   sequence: it publishes nothing further.
 *
 * Costs: a commit that evicts nothing is O(1) per sequence and group for WINDOW, SINK, RANDOM,
 * CALLBACK and TOPK; policies that read attention mass (MASS, OBS, LRU_MASS) touch the score of
 * every resident page at every step, because the signal does. Evicting one page is O(1) for WINDOW,
 * SINK and RANDOM, O(log n) for the others after that one pass; KEYDIFF brings a few page scores up
 * to date, of which the lowest goes: the exact minimum if those are all that could be it. */
#ifndef PAGEDKV_EVICT_H
#define PAGEDKV_EVICT_H

#include "types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Group number that stands for every group without a sliding window of its own. */
#define PKV_EVICT_FULL_GROUPS UINT32_MAX

typedef int32_t pkv_evict_kind;
enum {
    PKV_EVICT_NONE = 0,     /* nothing is dropped */
    PKV_EVICT_WINDOW = 1,   /* keep the most recent pages */
    PKV_EVICT_SINK = 2,     /* keep the first `sinks` tokens and the most recent pages */
    PKV_EVICT_MASS = 3,     /* drop the page with the least attention mass (H2O: gamma = 1,
                             * TOVA: gamma = 0) */
    PKV_EVICT_OBS = 4,      /* while entries have several tokens, only their last `obs_rows` rows
                             * count and the newest entry replaces older scores (SnapKV); in decode
                             * as MASS */
    PKV_EVICT_KEYDIFF = 5,  /* drop the page whose keys are most like the mean key (KeyDiff) */
    PKV_EVICT_LRU_MASS = 6, /* drop the page that got notable mass longest ago (RaaS) */
    PKV_EVICT_RANDOM = 7,   /* drop any page: a baseline */
    PKV_EVICT_CALLBACK = 8, /* the host scores pages */
    PKV_EVICT_TOPK = 9      /* drop nothing; per layer and KV head attention reads only the `budget`
                             * best pages by key digests (Quest); first and recent pages always */
};

/* Unit of pkv_evict_config.budget. */
enum {
    PKV_BUDGET_TOKENS = 0, /* rounded down to pages, at least one page */
    PKV_BUDGET_PAGES = 1,
    PKV_BUDGET_BYTES = 2 /* bytes of this group's pages, rounded down, at least one page */
};

/* Which distances attention sees after something was dropped. */
enum {
    PKV_POSITION_ORIGINAL = 0, /* tokens keep their positions: within the trained length */
    PKV_POSITION_COMPACT = 1   /* survivors close up (positions inside the cache): beyond that
                                * length. Needs pkv_config.rope for the group (PKV_ENOTSUP without)
                                * and a group without a window */
};

/* pkv_evict_config.window: let the library choose, see there. */
#define PKV_EVICT_AUTO UINT32_MAX

/* Host callback: score n evictable full pages of a sequence; lower is dropped first, ties drop the
 * older page, NaN counts as lowest. `logical` are ascending logical page numbers (page i holds
 * tokens [i * page_tokens, (i + 1) * page_tokens)); `n_tokens` is the sequence's length. Called
 * inside pkv_batch_commit, only when a page must go, for at most 64 pages at a time; must not call
 * into the cache. */
typedef void (*pkv_evict_score_fn)(void *user, pkv_seq seq, uint32_t group, uint64_t n_tokens,
                                   const uint32_t *logical, float *scores, uint32_t n);

typedef struct pkv_evict_config {
    size_t struct_size;     /* set by pkv_evict_config_init */
    pkv_evict_kind kind;    /* PKV_EVICT_* */
    int32_t budget_unit;    /* PKV_BUDGET_*; default tokens */
    uint64_t budget;        /* full pages kept per sequence and group; TOPK: pages read. Required
                             * for every kind but NONE */
    uint32_t sinks;         /* S: the pages with the first S tokens are never dropped. Default 4
                             * (so one page); WINDOW ignores it */
    uint32_t window;        /* W: pages with a position >= length - W are never dropped. Default
                             * PKV_EVICT_AUTO: a quarter of the budget, at least one page where
                             * the budget leaves room. WINDOW and SINK use the whole budget
                             * anyway */
    int32_t position_mode;  /* PKV_POSITION_*; default ORIGINAL */
    float gamma;            /* MASS, OBS: memory per token, 0..1: S = gamma S + (1 - gamma) mass.
                             * 1 = plain sum, 0 = the last row only. Default 0.99 */
    uint32_t normalize_age; /* MASS, OBS: 1 = divide by 1 - gamma^age (gamma = 1: by age), so that
                             * old pages have no advantage; default 1 */
    uint32_t obs_rows;      /* OBS: rows of an entry that count; default 32 */
    float epsilon;          /* LRU_MASS: a page was used in a step if its mass is more than epsilon
                             * times the mean mass per resident page; default 0.5 */
    uint32_t pool;          /* MASS, OBS, LRU_MASS: 1 = a page's mass is the largest of its own and
                             * its two neighbours' (keeps a passage together); default 0 */
    uint64_t seed;          /* RANDOM */
    pkv_evict_score_fn score; /* CALLBACK: required. May be called from any thread that commits */
    void *score_user;
    uint32_t journal_steps; /* evictions of the last so many commits can be undone by
                             * pkv_seq_truncate: their pages stay allocated that long (or until
                             * memory is short). Default 0 */
    uint32_t regret;        /* 1 = run the regret meter: keep the key digests of dropped pages and
                             * look whether a dropped page would rank among the kept ones.
                             * Needs PKV_SIGNAL_BOUNDS; not in groups
                             * with quantised keys (PKV_ENOTSUP). Default 0 */
    uint32_t regret_pages;  /* digests kept at most, newest first out last; default 256 */
    uint32_t regret_every;  /* look at every n-th step; default 1 */
    uint32_t regret_rank;   /* a dropped page is regretted if its bound exceeds that of the
                             * regret_rank-th best kept page; 0 = of the worst kept page. Default 8 */
    uint32_t mass_every;    /* MASS, OBS, LRU_MASS: in decode, attention computes mass only when
                             * the new length is a multiple of this; the step that fills a page
                             * always counts if it divides page_tokens. Steps of several tokens
                             * always do. Default 2, which halves the cost; 1 = every step */
    uint64_t reserved[8];   /* zero */
} pkv_evict_config;

/* Fills the defaults for a kind with a budget in tokens. `size` is sizeof(pkv_evict_config) as the
 * caller was compiled: PKV_EVERSION if unknown; PKV_EINVAL for NULL or an unknown kind. O(1). */
PKV_API pkv_status pkv_evict_config_init(pkv_evict_config *config, size_t size, pkv_evict_kind kind,
                                         uint64_t budget_tokens);

/* The same by name: "none", "window", "sink", "mass", "obs", "keydiff", "lru-mass", "random",
 * "topk", and the settings "h2o" (MASS, gamma 1) and "tova" (MASS, gamma 0). PKV_EINVAL for an
 * unknown name. */
PKV_API pkv_status pkv_evict_config_named(pkv_evict_config *config, size_t size, const char *name,
                                          uint64_t budget_tokens);

/* Name of a kind ("lru-mass"; "?" if unknown), static storage. */
PKV_API const char *pkv_evict_kind_name(pkv_evict_kind kind);

/* Checks a config against a group (PKV_EVICT_FULL_GROUPS: all of them) without applying it; on
 * failure the reason is written to text[0..capacity), NUL-terminated ("window: 1024 tokens and 4
 * sinks do not fit a budget of 512"); text may be NULL. PKV_ENOTSUP if the cache lacks a signal or
 * the RoPE description. MT-safe, O(groups). */
PKV_API pkv_status pkv_evict_check(pkv_cache *cache, uint32_t group, const pkv_evict_config *config,
                                   char *text, size_t capacity);

/* Sets the policy of sequences created from now on. Live sequences keep theirs. NULL = none.
 * Errors as pkv_evict_check, PKV_ENOMEM. The config is copied. MT-safe. O(groups). */
PKV_API pkv_status pkv_cache_set_evict(pkv_cache *cache, uint32_t group,
                                       const pkv_evict_config *config);

/* Gives a sequence its own policy (NULL = none) from its next commit on. Scores start anew, the
 * journal is given up, what was dropped stays dropped, the position mode changes at once. Forks
 * inherit policy and scores. PKV_EBUSY while in a reserved batch. O(resident pages). */
PKV_API pkv_status pkv_seq_set_evict(pkv_seq seq, uint32_t group, const pkv_evict_config *config);

/* The policy of a sequence, with the library's choices filled in (window; the budget in pages).
 * config->struct_size is set by the caller: PKV_EVERSION for a size this library does not know. */
PKV_API pkv_status pkv_seq_get_evict(pkv_seq seq, uint32_t group, pkv_evict_config *config);

/* The position at which the host rotates the sequence's next query and key of this group's layers
 * (the following new tokens: + 1, + 2, …). In both modes it is the true position, i.e. the number
 * of committed tokens, because COMPACT turns the query inside pkv_attend and never the stored keys:
 * the mode may change at any time and pages stay valid. Compute the angle in double precision
 * beyond some 100,000 tokens. O(1). */
PKV_API pkv_status pkv_seq_position(pkv_seq seq, uint32_t group, uint64_t *position);

/* A run: consecutive resident tokens with the same shift (original - compact position). */
typedef struct pkv_evict_run {
    uint64_t first; /* original position of its first token */
    uint64_t n_tokens;
    uint64_t shift; /* tokens dropped before it */
    uint64_t reserved; /* 0 in this version */
} pkv_evict_run;

/* The runs of a sequence in ascending order, committed tokens only. Writes at most `capacity` and
 * the total to *n; PKV_ERANGE if capacity is too small (nothing written but *n). For hosts with
 * their own kernels: in COMPACT mode the query is turned by (shift - all dropped tokens) positions
 * for a run; the last run is never turned. O(runs). */
PKV_API pkv_status pkv_seq_runs(pkv_seq seq, uint32_t group, pkv_evict_run *runs, uint32_t capacity,
                                uint32_t *n);

typedef struct pkv_evict_info {
    size_t struct_size; /* set by the caller to sizeof(pkv_evict_info) */
    pkv_evict_kind kind;
    int32_t position_mode;
    uint32_t budget_pages;
    uint32_t sink_pages;     /* never dropped */
    uint32_t window_pages;   /* never dropped: the most recent full pages, at a page boundary */
    uint32_t resident_pages; /* full and partial */
    uint32_t journal_pages;  /* dropped, but still allocated for an undo */
    uint32_t tainted;        /* 1: this sequence publishes no further pages */
    uint64_t dropped_tokens; /* by policy, journal included: original - compact position of the
                              * next token */
    uint64_t pages_evicted;  /* over the sequence's life */
    uint64_t pages_restored; /* undone by truncation */
    uint64_t salt;           /* of pages published from now on; 0 = none */
    uint64_t mass_steps;     /* commits that had a mass signal */
    uint64_t regret_checks;  /* (step, layer, KV head) triples looked at */
    uint64_t regrets;        /* of these, a dropped page would have ranked among the kept */
    uint64_t regret_steps;   /* steps with at least one */
} pkv_evict_info;

/* Eviction state of a sequence in one group. O(1). */
PKV_API pkv_status pkv_seq_evict_info(pkv_seq seq, uint32_t group, pkv_evict_info *info);

/* 1 if the sequence publishes no further pages because a data-dependent policy dropped (TOPK: left
 * out) something. Over all groups. Truncation to before that clears it if nothing below the new end
 * is missing: all evictions there were undone, or there were none. O(groups). */
PKV_API pkv_status pkv_seq_tainted(pkv_seq seq, uint32_t *tainted);

/* The policy's current score of every resident page in logical order (lower goes first; +inf for
 * protected ones), for inspection. Arrays of `capacity`; *n = resident pages; PKV_ERANGE if they do
 * not fit. CALLBACK is not called (0). O(resident pages). */
PKV_API pkv_status pkv_seq_page_scores(pkv_seq seq, uint32_t group, uint32_t *logical,
                                       float *scores, uint32_t capacity, uint32_t *n);

/* Feeds attention mass of one entry's new tokens for hosts with their own kernels; pkv_attend does
 * it by itself when a policy asks. Call between reserve and commit, once per layer and KV head or
 * with sums over them: only the proportions between pages matter, whatever the unit (calls that are
 * less than a millionth of another call of the commit count for nothing), normalised per commit.
 * mass[i] = probability given by the new tokens to the i-th resident page (logical order, the
 * step's new pages included), n = their number (PKV_EINVAL if different), values finite and >= 0.
 * With OBS give the last pkv_evict_config.obs_rows rows only. PKV_ESTATE if the sequence is in no
 * reserved batch, PKV_ENOMEM with nothing added; ignored (PKV_OK) if the policy needs no mass.
 * Several threads may feed the same sequence at once; the sum does not depend on their order. O(n).
 */
PKV_API pkv_status pkv_seq_feed_mass(pkv_seq seq, uint32_t group, const float *mass, uint32_t n);

/* 1 if the policy of this sequence and group wants mass for the next commit. O(1). */
PKV_API pkv_status pkv_seq_wants_mass(pkv_seq seq, uint32_t group, uint32_t *wants);

#ifdef __cplusplus
}
#endif
#endif
