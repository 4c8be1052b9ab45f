/* A random world over every public function, beside what the headers promise.
 *
 * A world is one cache with random groups, storage and limits, and the plainest possible idea of
 * what is in it: every sequence is an array of tokens, and every token has a `content`: a number
 * that stands for the keys and values a model would have computed. It depends on the namespace, on
 * all tokens before it and, once pages were evicted, on how. Contents are what is written into
 * pages and read back, so whatever goes wrong between sequences, forks, prefixes, tenants, batches
 * and evictions ends as a token that has not the content it had when it was computed.
 *
 * The rest of the model is what a reader of the headers knows: lengths, which pages are held and
 * which may have been dropped, that a refused call changes nothing. It predicts nothing that the
 * headers leave to the library (which page a policy chooses, what is reclaimed when).
 *
 * All choices come from one source: a seeded generator, or the bytes of a fuzzer. */
#ifndef PKVT_WORLD_H
#define PKVT_WORLD_H

#include <stdbool.h>
#include <stdint.h>

#include <pagedkv/pagedkv.h>

#include "faults.h"

#define WORLD_SEQS 10
#define WORLD_BATCHES 2
#define WORLD_GROUPS 3
#define WORLD_STATES 2 /* state groups */
#define WORLD_LENGTH 256 /* most tokens of a sequence */
#define WORLD_PAGES (WORLD_LENGTH / 8 + 2)
#define WORLD_STEP 40 /* most new tokens of an entry */
#define WORLD_PINS 4
#define WORLD_SPACES 4
#define WORLD_HOST_PAGES 12
#define WORLD_PREFIX_PINS 4
#define WORLD_MAGAZINES 2

/* Where choices come from. */
struct world_source {
    uint64_t random;      /* generator, if bytes == NULL */
    const uint8_t *bytes; /* a fuzzer's */
    size_t n_bytes;
};

/* A policy of a sequence in a group as the host asked for it; kind NONE = none. */
struct world_policy {
    pkv_evict_kind kind;
    uint32_t budget, sinks; /* pages */
    uint32_t window;        /* tokens; protected */
    uint32_t journal;
    int32_t mode;
};

struct world_seq {
    bool live;
    pkv_seq handle;
    uint32_t length;
    int32_t token[WORLD_LENGTH];
    uint64_t history[WORLD_LENGTH]; /* of the namespace and the tokens up to here */
    uint64_t content[WORLD_LENGTH];
    uint64_t dep; /* what the next tokens depend on beside the tokens; 0 = nothing */
    uint32_t space;
    uint32_t n_pages; /* logical pages, those reserved included */
    pkv_page page[WORLD_GROUPS][WORLD_PAGES];
    pkv_page open[WORLD_GROUPS]; /* quantised groups: where the partial tail lies; or NONE: sealed */
    struct world_policy policy[WORLD_GROUPS];
    uint32_t n_pins;
    struct {
        uint32_t begin, end;
    } pin[WORLD_PINS];
    int batch;     /* open batch it is in, or -1 */
    bool silent;   /* publishes nothing further, or perhaps not */
    uint64_t born; /* world->disturbed when everything of it was published; see check.c */
    bool ticket;
    bool mark[WORLD_LENGTH + 1]; /* checkpoints, by position */
};

struct world_entry {
    struct world_seq *seq;
    uint32_t n;
    uint32_t n_states; /* states asked for, those after the last tokens */
    bool named; /* token ids were given */
    bool tree;
    int32_t token[WORLD_STEP];
    uint64_t history[WORLD_STEP], content[WORLD_STEP];
    uint64_t dep;                /* after this step */
    pkv_page tail[WORLD_GROUPS]; /* the partial page before the step, or NONE */
    pkv_open_page open[WORLD_GROUPS][WORLD_STEP / 8 + 2]; /* quantised groups: pages touched */
};

struct world_batch {
    bool live, reserved;
    pkv_batch handle;
    int n_entries;
    struct world_entry entry[WORLD_SEQS];
};

struct world_host_page {
    uint32_t group;
    pkv_page page; /* NONE = unused */
    uint32_t refs; /* the host's */
    uint64_t content;
    bool of_sequence; /* a reference to somebody's page: not written by the host */
    bool refused;     /* of a magazine, which gives it back */
};

/* NONE: contents of all slots by page index. */
struct world_shadow {
    uint64_t *slot;
    uint32_t pages;
};

struct world_group {
    pkv_group_info info;
    bool quantised;
    void *buffer; /* EXTERNAL */
    struct world_shadow shadow, open_shadow;
};

struct world {
    struct world_source source;
    uint64_t seed, op; /* for messages */
    const char *op_name;
    struct pkvt_allocator allocator;
    struct pkvt_os os;
    pkv_config config;
    pkv_group_config group_config[WORLD_GROUPS + WORLD_STATES];
    pkv_rope_config rope[WORLD_GROUPS + WORLD_STATES];
    pkv_cache *cache;
    pkv_plan *plan;
    uint32_t page_tokens, n_groups, n_layers, n_states;
    uint64_t limit;
    struct world_group group[WORLD_GROUPS];
    struct {
        pkv_state_info info;
        void *buffer;     /* EXTERNAL */
        uint64_t *shadow; /* NONE: the state in every slot, by index */
        uint32_t n_shadow;
    } state[WORLD_STATES];
    struct world_seq seq[WORLD_SEQS];
    struct world_batch batch[WORLD_BATCHES];
    struct world_policy defaults[WORLD_GROUPS];
    struct world_host_page host_page[WORLD_HOST_PAGES];
    pkv_pin prefix_pin[WORLD_PREFIX_PINS];
    struct {
        pkv_magazine *magazine;
        uint32_t group;
    } magazine[WORLD_MAGAZINES];
    /* The host's block tables, a row per sequence, kept up to date by exports. */
    int32_t table[WORLD_GROUPS][WORLD_SEQS][WORLD_PAGES];
    pkv_block_row table_state[WORLD_GROUPS][WORLD_SEQS];
    int32_t hole;
    uint64_t quota_bound[WORLD_SPACES]; /* most pages a namespace may have; 0 = no quota */
    uint64_t generation[WORLD_SPACES];  /* drops so far */
    uint64_t unique;                    /* last number given to what depends on data */
    uint64_t disturbed;                 /* grows whenever something published may be gone */
    uint64_t last_event, time;
    bool armed; /* some allocation or mapping will be refused */
    /* How much was really done, for the summary. */
    uint64_t ok, refused, commits, hits, hit_tokens, undone, evictions, attends, worlds;
};

/* ---- choices -------------------------------------------------------------------------------- */

/* 0..n-1. */
uint32_t world_below(struct world *w, uint32_t n);
/* True once in n. */
bool world_once(struct world *w, uint32_t n);
bool world_exhausted(const struct world *w);

/* ---- complaints: print the seed and abort --------------------------------------------------- */
_Noreturn void world_fail(const struct world *w, const char *file, int line, const char *format,
                          ...) __attribute__((format(printf, 4, 5)));
#define WORLD_CHECK(w, condition, ...)                                                             \
    do {                                                                                           \
        if (!(condition)) world_fail((w), __FILE__, __LINE__, __VA_ARGS__);                        \
    } while (0)

/* Judges a status: true if the call did what it says. PKV_OK; PKV_ENOMEM, after which nothing may
 * have changed; or one of `others` (a list that ends with 0), likewise. Anything else fails. */
/* No further refusals. */
void world_disarm(struct world *w);
bool world_did(struct world *w, pkv_status status, const char *call, const pkv_status *others);
#define WORLD_OTHERS(...) ((const pkv_status[]){__VA_ARGS__, 0})
#define WORLD_NONE ((const pkv_status[]){0})

/* ---- world.c -------------------------------------------------------------------------------- */

/* Opens a random world. False if the choices make no valid one. */
bool world_open(struct world *w);
/* A plan, if the storage allows one. False: no memory. */
bool world_make_plan(struct world *w);
/* Ends everything, checks that nothing is left, and closes. */
void world_close(struct world *w);
/* One random operation. */
void world_step(struct world *w);
/* `n` operations over worlds of some thousand each. */
void world_run(struct world *w, uint64_t n);

/* ---- truth.c: contents ---------------------------------------------------------------------- */

uint64_t world_mix(uint64_t h, uint64_t value);
uint64_t world_first_history(const struct world *w, const struct world_seq *s);
uint64_t world_content(uint64_t history, uint64_t dep);
uint32_t world_pages_for(const struct world *w, uint32_t tokens);
pkv_namespace world_space(uint32_t space, char *bytes);
/* Vectors that stand for a content; their elements are exact in every page format. */
enum world_part { WORLD_KEY, WORLD_VALUE, WORLD_QUERY = 3 };
/* NONE: where a slot's content is noted. */
uint64_t *world_slot(struct world *w, uint32_t group, pkv_page page, uint32_t offset);
/* The host's part of copy-on-write in a reserved batch, open pages included. */
void world_copy(struct world *w, struct world_batch *b);
/* Writes the new tokens of a reserved batch. */
void world_write(struct world *w, struct world_batch *b);
/* Attends and compares. */
void world_attend(struct world *w, struct world_batch *b);
/* Reads tokens [first, end) of a group back; false if one has another content. Pages must be held.
 */
bool world_reads(struct world *w, const struct world_seq *s, uint32_t group, uint32_t first,
                 uint32_t end, const uint64_t *content);
/* Contents of all held pages of a sequence. */
void world_check_contents(struct world *w, const struct world_seq *s);
/* What tokens computed under these policies depend on if nothing but they dropped; 0 = nothing
 * defined (no policy, or one that depends on data). */
uint64_t world_salt(const struct world *w, const struct world_seq *s);
/* After a change of what is held: what the next tokens depend on. */
uint64_t world_next_dep(struct world *w, const struct world_seq *s, uint64_t dep);
/* Is a full page missing that a policy dropped? */
bool world_misses(const struct world *w, const struct world_seq *s);

/* ---- states.c ------------------------------------------------------------------------------- */

/* State groups behind the others, which are chosen. */
void world_choose_states(struct world *w);
/* What a batch asks for before it is reserved, entry by entry. */
void world_keep_states(struct world *w, struct world_batch *b, uint32_t entry);
/* Writes the states of a reserved batch; those it starts from must be what they were. */
void world_write_states(struct world *w, struct world_batch *b);
/* The state and the checkpoints of a sequence are as they should be. */
void world_check_states(struct world *w, const struct world_seq *s);
/* Is there a state after this many of an entry's tokens? */
bool world_has_state(const struct world *w, const struct world_entry *e, uint32_t accepted);
void world_end_states(struct world *w); /* nothing is left, buffers go */

/* ---- check.c -------------------------------------------------------------------------------- */

void world_look(struct world *w, struct world_seq *s); /* notes the pages held */
void world_check_seq(struct world *w, struct world_seq *s);
void world_check_all(struct world *w);
void world_check_exports(struct world *w, struct world_batch *b);
bool world_pinned(const struct world_seq *s, uint32_t page_tokens, uint32_t logical);
/* Has the page left the group's window at this length? */
bool world_left(const struct world *w, uint32_t group, uint32_t logical, uint32_t length);
/* After a commit or attach: what was held before is in `before`. */
void world_check_drops(struct world *w, const struct world_seq *s,
                       pkv_page before[WORLD_GROUPS][WORLD_PAGES], bool attached);
/* After a commit: what was published must be found. */
void world_check_published(struct world *w, const struct world_seq *s);

/* ---- operations ----------------------------------------------------------------------------- */

struct world_op {
    const char *name;
    void (*run)(struct world *w);
    uint32_t weight;
};
extern const struct world_op world_seq_ops[], world_batch_ops[], world_cache_ops[],
    world_prefix_ops[], world_state_ops[]; /* each ends with a NULL name */

struct world_seq *world_any_seq(struct world *w); /* live, or NULL */
struct world_seq *world_free_seq(struct world *w);
/* Truncates, and judges whether that may be. */
void world_truncate(struct world *w, struct world_seq *s, uint32_t n);
/* The next token of a sequence at a position: mostly of a few common streams. */
int32_t world_token(struct world *w, uint32_t at);

#endif
