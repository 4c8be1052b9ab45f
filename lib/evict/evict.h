/* evict: bounds the pages that one sequence holds in one layer group.
 *
 * The module sees page tables, pools and page layouts; it never sees a cache, a sequence or a
 * batch. lib/cache/bind_evict.c binds it: it owns one `struct pkvi_evict` per cache and keeps a
 * `struct pkvi_evict_seq` in seq->state[PKVI_HOOK_EVICT] for sequences that have a policy (NULL =
 * none; every function here that takes one accepts NULL and answers "no policy").
 *
 * Who calls what
 *   cache/bind_evict.c  create/destroy, set policy, fork, reserve, commit, truncate
 *   attention       pkvi_evict_mass_rows + pkvi_evict_feed, pkvi_evict_topk, pkvi_evict_compact,
 *                   pkvi_evict_look
 *   prefix          pkvi_evict_publication, pkvi_evict_salt, pkvi_evict_depend
 *
 * Per page it keeps: the table's 16-byte score, and while a mass policy runs 8 bytes of accumulator
 * and 8 bytes of scratch. Nothing is allocated at commit. */
#ifndef PKVI_EVICT_EVICT_H
#define PKVI_EVICT_EVICT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <pagedkv/evict.h>

struct pkvi_mem;
struct pkvi_pool;
struct pkvi_table;
struct pkvi_kernels;
struct pkvi_layout;

struct pkvi_evict;
struct pkvi_evict_seq;

/* ---- what the module knows about a cache ---------------------------------------------------- */

struct pkvi_evict_group {
    struct pkvi_pool *pool;
    const struct pkvi_layout *layout; /* of one layer's part of a page */
    const struct pkvi_kernels *kernels;
    uint64_t layer_bytes; /* distance of layer parts inside a page */
    uint64_t page_bytes;
    uint32_t n_layers;
    uint32_t kv_heads;
    uint32_t window; /* the group's own sliding window; 0 = full attention */
    bool bytes;      /* page bytes are readable (HOST, EXTERNAL storage) */
    bool rope;       /* the config described the group's RoPE */
};

/* groups: n_groups entries, copied. PKV_ENOMEM. */
pkv_status pkvi_evict_create(struct pkvi_evict **evict, struct pkvi_mem *mem, uint32_t page_tokens,
                             const struct pkvi_evict_group *groups, uint32_t n_groups);
void pkvi_evict_destroy(struct pkvi_evict *evict);

/* ---- policies ------------------------------------------------------------------------------- */

/* A checked config with everything filled in. Immutable, reference counted, MT-safe. */
struct pkvi_evict_policy;

/* Checks and resolves a config for one group; *policy = NULL for kind NONE. On failure the reason
 * goes to text (may be NULL). PKV_EINVAL, PKV_EVERSION, PKV_ENOTSUP, PKV_ENOMEM. */
pkv_status pkvi_evict_policy_create(struct pkvi_evict *evict, uint32_t group,
                                    const pkv_evict_config *config,
                                    struct pkvi_evict_policy **policy, char *text, size_t capacity);
void pkvi_evict_policy_ref(struct pkvi_evict_policy *policy);
void pkvi_evict_policy_unref(struct pkvi_evict_policy *policy);
/* The config it came from, with the choices filled in (AUTO window, budget in pages). */
const pkv_evict_config *pkvi_evict_policy_config(const struct pkvi_evict_policy *policy);

/* Is this a struct_size of pkv_evict_config that the library takes? */
bool pkvi_evict_config_known(size_t size);

/* The defaults for sequences to come. The references pass to the module. MT-safe. */
void pkvi_evict_set_default(struct pkvi_evict *evict, uint32_t group,
                            struct pkvi_evict_policy *policy);
/* True if any group has a default policy: only then a new sequence needs a state. MT-safe. */
bool pkvi_evict_has_default(struct pkvi_evict *evict);

/* True if any live sequence runs a regret meter: only then attention has to ask. MT-safe. */
bool pkvi_evict_has_meters(struct pkvi_evict *evict);

/* ---- one sequence --------------------------------------------------------------------------- */

/* What the module needs to know about a sequence's table of one group, filled in by the binding for
 * each call. */
struct pkvi_evict_target {
    struct pkvi_table *table;
    uint64_t length; /* committed tokens (after this commit) */
    pkv_seq handle;  /* for the host's callback */
    void *owner;     /* given to the functions below */
    /* Does a pin touch the page? NULL = nothing is pinned. */
    bool (*pinned)(const void *owner, uint32_t logical);
    uint32_t unpins; /* pins taken away so far */
    /* Takes the page out of the table, gives the table's reference back, counts and reports it.
     * False if refused. */
    bool (*drop)(void *owner, uint32_t group, uint32_t logical);
    /* Puts a page back as logical page `logical`; the table takes over the reference. False if
     * there is no memory. */
    bool (*restore)(void *owner, uint32_t group, uint32_t logical, uint32_t page);
};

/* A state with the default policies (or, defaults = false, without any). PKV_ENOMEM. O(groups). */
pkv_status pkvi_evict_seq_create(struct pkvi_evict *evict, bool defaults,
                                 struct pkvi_evict_seq **es);
/* Also gives up the journal's references. NULL is allowed. */
void pkvi_evict_seq_destroy(struct pkvi_evict_seq *es);
/* A copy for a fork: policies, counters, signals; not the journal. The scores live in the tables.
 * PKV_ENOMEM. O(state). */
pkv_status pkvi_evict_seq_fork(const struct pkvi_evict_seq *parent, struct pkvi_evict_seq **child);

/* Replaces the policies of the groups whose bit is set in `groups` (policies[g] NULL = none; the
 * references pass to the state). targets[g] for every group. Tables get score arrays where a policy
 * needs them; scores start at zero. PKV_ENOMEM changes nothing, and the caller keeps the
 * references. O(groups + resident pages). */
pkv_status pkvi_evict_seq_set(struct pkvi_evict_seq *es, uint64_t groups,
                              struct pkvi_evict_policy *const *policies,
                              const struct pkvi_evict_target *targets);
const struct pkvi_evict_policy *pkvi_evict_seq_policy(const struct pkvi_evict_seq *es,
                                                      uint32_t group);

/* Reserve: the tables hold the step's new pages; room for everything the commit needs.
 * pkvi_evict_cancel undoes it (abort). n_new: the step's new tokens. PKV_ENOMEM. O(resident). */
pkv_status pkvi_evict_reserve(struct pkvi_evict_seq *es, uint32_t group,
                              const struct pkvi_evict_target *target, uint32_t n_new);
void pkvi_evict_cancel(struct pkvi_evict_seq *es, uint32_t group);

/* Commit of one group: observes the step's mass, takes note of pages that became full, drops full
 * pages down to the budget. old_length: committed tokens before. Returns the pages dropped. */
uint32_t pkvi_evict_commit(struct pkvi_evict_seq *es, uint32_t group,
                           const struct pkvi_evict_target *target, uint64_t old_length,
                           uint32_t n_new);

/* A prefix of target->length tokens was attached to an empty sequence: takes note of its pages and
 * drops down to the budget if the policy decides by length alone (others wait for a commit). */
void pkvi_evict_attached(struct pkvi_evict_seq *es, uint32_t group,
                         const struct pkvi_evict_target *target);

/* Truncation. `restorable`: will the undo put the page, which is not held, back into the table?
 * `undone_pages`: how many pages it will put back; the owner makes room for them first, so that
 * target->restore succeeds. `truncate`: undoes the evictions decided at lengths above n_tokens that
 * the journal still has, forgets what lies past the end; the table still has its old pages.
 * target->length is the old length. */
bool pkvi_evict_restorable(const struct pkvi_evict_seq *es, uint32_t group, uint32_t logical,
                           uint64_t n_tokens);
uint32_t pkvi_evict_undone_pages(const struct pkvi_evict_seq *es, uint32_t group,
                                 uint64_t n_tokens);
void pkvi_evict_truncate(struct pkvi_evict_seq *es, uint32_t group,
                         const struct pkvi_evict_target *target, uint64_t n_tokens);

/* After pkvi_evict_truncate of every group: what may be published from now on. */
void pkvi_evict_truncated(struct pkvi_evict_seq *es, uint64_t n_tokens);

/* Gives up journal pages of a group, oldest first, until n are given up; returns how many. */
uint32_t pkvi_evict_journal_release(struct pkvi_evict_seq *es, uint32_t group, uint32_t n);
/* Pages in the journal of a group. */
uint32_t pkvi_evict_journal_pages(const struct pkvi_evict_seq *es, uint32_t group);
/* Adds the journal's references to holders[page] (verify). */
void pkvi_evict_journal_count(const struct pkvi_evict_seq *es, uint32_t group, uint32_t *holders,
                              uint32_t n_holders);

void pkvi_evict_seq_info(const struct pkvi_evict_seq *es, uint32_t group,
                         const struct pkvi_evict_target *target, pkv_evict_info *info);
/* Current scores of all resident pages, see pkv_seq_page_scores. Arrays hold table->resident. */
void pkvi_evict_seq_scores(const struct pkvi_evict_seq *es, uint32_t group,
                           const struct pkvi_evict_target *target, uint32_t *logical,
                           float *scores);
/* NULL if the state's invariants hold, else a fixed text. */
const char *pkvi_evict_seq_check(const struct pkvi_evict_seq *es, uint32_t group,
                                 const struct pkvi_evict_target *target);

/* ---- signals: called by attention, from any of the host's threads --------------------------- */

/* Rows of an entry's new tokens whose attention mass the policy wants: 0 = none (do not compute
 * mass), UINT32_MAX = all rows, else the last so many. Constant while a batch is reserved. O(1). */
uint32_t pkvi_evict_mass_rows(const struct pkvi_evict_seq *es, uint32_t group);

/* Adds mass[head][i] of n_heads heads for the i-th resident page (logical order, the step's new
 * pages included). Call per layer and KV head, or with sums over them, after the final
 * normalisation: mass[i] = sum over the wanted rows and the heads of the probability given to the
 * page. Safe from several threads at once; the sum does not depend on the order (fixed point).
 * Values that are not finite or below 0 count as 0. n other than the number of resident pages at
 * reserve is ignored. O(n). */
void pkvi_evict_feed(struct pkvi_evict_seq *es, uint32_t group, const float *mass, uint32_t n_heads,
                     uint32_t n);

/* The same for values in any unit, n of them, finite and not negative: sums that differ by more
 * than 2^20 in one commit lose the smaller. PKV_ENOMEM: nothing was added. O(n). */
pkv_status pkvi_evict_feed_any(struct pkvi_evict_seq *es, uint32_t group, const float *mass,
                               uint32_t n);

/* TOPK: attention of an entry reads the first `first` pages, the last `recent` full pages, every
 * page that is not full or that the step writes, and of the other pages the best by bound, so that
 * `pages` full pages are read in all. Ties go to the older page. False: read everything (no TOPK
 * policy, or nothing to leave out, or more than PKVI_TOPK_MAX_ROWS new tokens). Constant while a
 * batch is reserved, false otherwise. */
#define PKVI_TOPK_MAX_ROWS 16u
struct pkvi_evict_topk {
    uint32_t pages, first, recent;
};
bool pkvi_evict_topk(const struct pkvi_evict_seq *es, uint32_t group, struct pkvi_evict_topk *rule);

/* The choice itself. keys: from pkvi_evict_keys, for n_full leading pages at least; logical: of the
 * resident pages, ascending, n_pages of them, the first n_full of which were full before the step.
 * Writes the indices to read, ascending, and returns their number. O(n_pages). */
uint32_t pkvi_evict_choose(const struct pkvi_evict_topk *rule, const uint32_t *logical,
                           uint32_t *keys, uint32_t n_pages, uint32_t n_full, uint32_t *chosen);
/* keys[i] = scores[i] as integers in the same order (NaN lowest).
 * keys may be `scores` itself. */
void pkvi_evict_keys(const float *scores, uint32_t n_pages, uint32_t *keys);

/* COMPACT: the query of a run must be turned by
 *     shift(run) - shift(last run)  positions (<= 0; the last run is never turned),
 * shift(run) = (run.first_logical - run.first_resident) * page_tokens. False: ORIGINAL. O(1). */
bool pkvi_evict_compact(const struct pkvi_evict_seq *es, uint32_t group);

/* Regret meter: is a look due in the step being reserved? If so, call pkvi_evict_look once per
 * (layer of the group, KV head), from any thread, with the entry's last query rows of that head:
 * q[n_rows][dim_k] f32. Kept pages are the full ones of `table`. O(pages looked at). */
bool pkvi_evict_look_due(const struct pkvi_evict_seq *es, uint32_t group);
void pkvi_evict_look(struct pkvi_evict_seq *es, uint32_t group, uint32_t layer, uint32_t kv_head,
                     const struct pkvi_kernels *kernels, const struct pkvi_table *table,
                     const float *q, uint32_t n_rows);
/* What the looks found since the last call: (layer, head) pairs looked at and those with a regret.
 * False if none was looked at. */
bool pkvi_evict_take_regret(struct pkvi_evict_seq *es, uint32_t group, uint64_t *checks,
                            uint64_t *regrets);

/* ---- publication: called by the prefix index ------------------------------------------------ */

enum pkvi_publication {
    PKVI_PUBLISH_PLAIN,  /* contents depend on the tokens alone */
    PKVI_PUBLISH_SALTED, /* … and on the policy: mix *salt into this page's hash */
    PKVI_PUBLISH_NEVER   /* … and on data: do not publish */
};

/* How logical page i (or any after it up to the next change) of this sequence may be published.
 * *salt is written for SALTED. Once not PLAIN for a page, not PLAIN for all later ones. O(1). */
enum pkvi_publication pkvi_evict_publication(const struct pkvi_evict_seq *es, uint32_t logical,
                                             uint64_t *salt);

/* The salt under which this sequence may match salted pages (its policies drop by length alone);
 * 0 = match plain pages only. O(groups). */
uint64_t pkvi_evict_salt(const struct pkvi_evict_seq *es);

/* After an attach: pages from `first_salted` on were matched under the salt. */
void pkvi_evict_depend(struct pkvi_evict_seq *es, uint32_t first_salted);

bool pkvi_evict_tainted(const struct pkvi_evict_seq *es);

#endif
