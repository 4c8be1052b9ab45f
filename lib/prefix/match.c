/* Finding the longest known prefix. */
#include <string.h>

#include "internal.h"

/* How far ahead of the comparison the hash chain runs, and its memory is asked for. */
#define AHEAD 8u

/* What a match will say. */
struct longest {
    uint32_t last, pages; /* node of page pages - 1 */
    uint32_t partial, partial_tokens;
    uint32_t first_salted; /* page, or PKVI_NO_SALTED */
};

struct walk {
    struct pkvi_prefix *px;
    const struct pkvi_space *space;
    const uint32_t *tokens;
    uint64_t n, n_full, salt; /* n_full: full pages of tokens */

    uint32_t last;                /* node of page n_pages - 1 */
    uint64_t hash;                /* its hash */
    uint32_t n_pages;             /* pages compared and usable in every full group */
    uint32_t first_salted;        /* page, or PKVI_NO_SALTED */
    uint32_t best, best_pages;    /* longest that also has every window */
    uint32_t run[PKV_MAX_GROUPS]; /* window groups: pages resident in a row up to `last` */

    uint32_t reached; /* pages of the plain walk, states or not */
    struct longest found;
};

/* Does a window group have its `wanted` last pages up to node `last`? */
static bool resident_up(const struct pkvi_prefix *px, uint32_t last, uint32_t group,
                        uint32_t wanted)
{
    for (; wanted; wanted--, last = pkvi_node(&px->core, last)->parent)
        if (!pkvi_node_has(pkvi_node(&px->core, last), group)) return false;
    return true;
}

/* Of the first `pages` pages, the last of which is node `last`: does every window group have what a
 * query after n_tokens, which may be some way into the next page, needs? */
static bool windows_hold(const struct walk *w, uint32_t last, uint32_t pages, uint64_t n_tokens)
{
    uint64_t groups = w->px->all_groups & ~w->px->full_groups;
    for (; groups; groups &= groups - 1) {
        uint32_t g = (uint32_t)__builtin_ctzll(groups);
        uint32_t first = pkvi_prefix_first(w->px, g, n_tokens);
        if (first >= pages) continue;
        if (last == w->last ? w->run[g] < pages - first
                            : !resident_up(w->px, last, g, pages - first))
            return false;
    }
    return true;
}

/* Takes one more page into the walk; false if a full group lacks it. */
static bool accept(struct walk *w, uint32_t id, uint64_t hash)
{
    const struct pkvi_node *node = pkvi_node(&w->px->core, id);
    uint64_t full = w->px->full_groups;
    if ((node->resident & full) != full) return false;
    w->last = id;
    w->hash = hash;
    w->n_pages++;
    uint64_t windows = w->px->all_groups & ~full;
    for (uint64_t groups = windows; groups; groups &= groups - 1) {
        uint32_t g = (uint32_t)__builtin_ctzll(groups);
        w->run[g] = node->resident >> g & 1 ? w->run[g] + 1 : 0;
    }
    if (!windows || windows_hold(w, id, w->n_pages, (uint64_t)w->n_pages << w->px->page_shift)) {
        w->best = id;
        w->best_pages = w->n_pages;
    }
    return true;
}

/* Pages whose content depends on tokens alone; the hash chain runs ahead of the comparison. */
static void walk_plain(struct walk *w)
{
    const struct pkvi_index *ix = &w->px->core;
    uint32_t p = w->px->config.page_tokens;
    uint64_t ring[AHEAD], hash = w->space->hash;
    uint64_t hashed = 0;
    for (uint64_t i = 0; i < w->n_full; i++) {
        for (; hashed < w->n_full && hashed < i + AHEAD; hashed++) {
            hash = pkvi_hash_tokens(ix, hash, w->tokens + hashed * p, 0);
            ring[hashed % AHEAD] = hash;
            pkvi_index_prefetch_bucket(ix, hash);
        }
        if (i + AHEAD / 2 < hashed) pkvi_index_prefetch_node(ix, ring[(i + AHEAD / 2) % AHEAD]);
        uint32_t id =
            pkvi_index_find(ix, w->space->slot, w->last, ring[i % AHEAD], w->tokens + i * p, 0);
        if (id == PKVI_NIL || !accept(w, id, ring[i % AHEAD])) return;
    }
}

/* Pages that were computed after evictions of the same policy. */
static void walk_salted(struct walk *w)
{
    const struct pkvi_index *ix = &w->px->core;
    uint32_t p = w->px->config.page_tokens;
    while (w->n_pages < w->n_full) {
        const uint32_t *tokens = w->tokens + (uint64_t)w->n_pages * p;
        uint64_t hash = pkvi_hash_tokens(ix, w->hash, tokens, w->salt);
        uint32_t id = pkvi_index_find(ix, w->space->slot, w->last, hash, tokens, w->salt);
        if (id == PKVI_NIL) return;
        uint32_t page = w->n_pages;
        if (!accept(w, id, hash)) return;
        if (w->first_salted == PKVI_NO_SALTED) w->first_salted = page;
    }
}

/* Of the children of node `last` (page pages - 1) that the walk may use, the one that shares the
 * most of the tokens left; PKVI_NIL if there is none, or a window group lacks what it would need.
 */
static uint32_t longest_partial(const struct walk *w, uint32_t last, uint32_t pages,
                                uint32_t *shared)
{
    const struct pkvi_index *ix = &w->px->core;
    uint64_t at = (uint64_t)pages << w->px->page_shift;
    /* There are no states inside pages. */
    if (at >= w->n || w->px->state_groups) return PKVI_NIL;
    uint32_t most = (uint32_t)pkvi_min_u64(w->n - at, w->px->config.page_tokens - 1u);
    uint32_t id = pkvi_siblings_longest(ix, w->space->slot, last, 0, w->tokens + at, most, shared);
    if (PKVI_UNLIKELY(w->salt)) {
        uint32_t more;
        uint32_t salted =
            pkvi_siblings_longest(ix, w->space->slot, last, w->salt, w->tokens + at, most, &more);
        if (more > *shared) {
            id = salted;
            *shared = more;
        }
    }
    return id != PKVI_NIL && windows_hold(w, last, pages, at + *shared) ? id : PKVI_NIL;
}

/* The walk has come to an end: keeps what it found if that is longer than anything before. Where
 * window groups lack pages, a part of a page may be usable although its beginning alone is not. */
static void finish(struct walk *w)
{
    struct longest l = {.last = w->best, .pages = w->best_pages, .partial = PKVI_NIL};
    uint32_t id = w->last, pages = w->n_pages, shared = 0;
    for (;; pages--, id = pkvi_node(&w->px->core, id)->parent) {
        uint32_t partial = longest_partial(w, id, pages, &shared);
        if (partial != PKVI_NIL) {
            l = (struct longest){id, pages, partial, shared, PKVI_NO_SALTED};
            break;
        }
        if (pages == w->best_pages || id == PKVI_NIL) break;
    }
    l.first_salted = w->first_salted;
    if (l.partial != PKVI_NIL && pkvi_node(&w->px->core, l.partial)->id)
        l.first_salted = pkvi_min_u32(l.first_salted, l.pages);
    if (l.first_salted >= l.pages + (l.partial != PKVI_NIL)) l.first_salted = PKVI_NO_SALTED;
    const bool longer = l.pages > w->found.pages ||
                        (l.pages == w->found.pages && l.partial_tokens > w->found.partial_tokens);
    if (longer) w->found = l;
}

/* Puts the walk at a node of the path it has come. */
static void stand_at(struct walk *w, uint32_t id, uint32_t pages)
{
    uint64_t groups = w->px->all_groups & ~w->px->full_groups;
    w->last = id;
    w->n_pages = pages;
    w->hash = id == PKVI_NIL ? w->space->hash : pkvi_node(&w->px->core, id)->hash;
    w->first_salted = PKVI_NO_SALTED;
    w->best = PKVI_NIL;
    w->best_pages = 0;
    for (; groups; groups &= groups - 1) {
        uint32_t g = (uint32_t)__builtin_ctzll(groups);
        const uint32_t enough = (w->px->groups[g].window >> w->px->page_shift) + 2;
        uint32_t up = id;
        for (w->run[g] = 0; up != PKVI_NIL && w->run[g] < enough; w->run[g]++) {
            const struct pkvi_node *node = pkvi_node(&w->px->core, up);
            if (!pkvi_node_has(node, g)) break;
            up = node->parent;
        }
    }
}

/* Pages with the walk's salt may hang on any page without one, not only on the last. */
static void walk_branches(struct walk *w)
{
    const struct pkvi_index *ix = &w->px->core;
    uint32_t id = w->last;
    for (uint32_t pages = w->n_pages;; pages--, id = pkvi_node(ix, id)->parent) {
        if (id == PKVI_NIL || pkvi_side(ix, id)->salted) {
            stand_at(w, id, pages);
            walk_salted(w);
            if (w->n_pages > pages) finish(w);
        }
        const uint64_t found = (uint64_t)w->found.pages << w->px->page_shift;
        if (id == PKVI_NIL || found + w->found.partial_tokens == w->n) return;
    }
}

static uint64_t reference(const struct pkvi_prefix *px, uint32_t id)
{
    if (id == PKVI_NIL) return UINT64_MAX;
    return (uint64_t)pkvi_side(&px->core, id)->generation << 32 | id;
}

static void fill(const struct walk *w, pkv_match *match)
{
    struct pkvi_prefix *px = w->px;
    const struct longest *found = &w->found;
    match->cache = px->config.cache;
    match->n_pages = found->pages;
    match->partial_tokens = found->partial_tokens;
    match->n_tokens = ((uint64_t)found->pages << px->page_shift) + found->partial_tokens;
    match->opaque[PKVI_MATCH_LAST] = reference(px, found->last);
    match->opaque[PKVI_MATCH_PARTIAL] = reference(px, found->partial);
    match->opaque[PKVI_MATCH_SPACE] = (uint64_t)w->space->generation << 32 | w->space->slot;
    match->opaque[PKVI_MATCH_SALTED] = found->first_salted;
    match->opaque[PKVI_MATCH_MARK] = PKVI_MATCH_MAGIC;
    match->opaque[PKVI_MATCH_JUNCTION] = w->reached;
}

static void match_in(struct pkvi_prefix *px, struct pkvi_space *space, const int32_t *tokens,
                     uint64_t n, uint64_t salt, pkv_match *match)
{
    struct walk w = {.px = px,
                     .space = space,
                     .tokens = (const uint32_t *)(const void *)tokens,
                     .n = n,
                     /* Node depths and page counts are 32 bits. */
                     .n_full = pkvi_min_u64(n >> px->page_shift, UINT32_MAX - 1),
                     .salt = salt,
                     .last = PKVI_NIL,
                     .hash = space->hash,
                     .first_salted = PKVI_NO_SALTED,
                     .best = PKVI_NIL,
                     .found = {PKVI_NIL, 0, PKVI_NIL, 0, PKVI_NO_SALTED}};
    walk_plain(&w);
    w.reached = w.n_pages;
    finish(&w);
    if (PKVI_UNLIKELY(salt)) walk_branches(&w);
    fill(&w, match);
    space->lookups++;
    space->tokens_asked += n;
    space->tokens_hit += match->n_tokens;
    pkvi_count(px->stats, PKVI_COUNT_PREFIX_LOOKUPS, 1);
    pkvi_count(px->stats, PKVI_COUNT_PREFIX_TOKENS_ASKED, n);
    pkvi_count(px->stats, PKVI_COUNT_PREFIX_TOKENS_HIT, match->n_tokens);
}

pkv_status pkvi_prefix_match(struct pkvi_prefix *px, const pkv_namespace *name,
                             const int32_t *tokens, uint64_t n, uint64_t salt, pkv_match *match)
{
    pkvi_prefix_lock(px);
    struct pkvi_space *space;
    pkv_status status = pkvi_space_get(px, name, &space);
    if (status == PKV_OK) match_in(px, space, tokens, n, salt, match);
    pkvi_prefix_unlock(px);
    return status;
}

pkv_status pkvi_prefix_match_seq(struct pkvi_prefix *px, const struct pkvi_prefix_seq *seq,
                                 const int32_t *tokens, uint64_t n, uint64_t salt, pkv_match *match)
{
    pkvi_prefix_lock(px);
    match_in(px, seq->space, tokens, n, salt, match);
    pkvi_prefix_unlock(px);
    return PKV_OK;
}
