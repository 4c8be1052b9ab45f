/* Finding the longest known prefix. */
#include <string.h>

#include "internal.h"

/* How far ahead of the comparison the hash chain runs, and its memory is asked for. */
#define AHEAD 8u

/* What a match keeps in pkv_match.opaque. */
enum { OPAQUE_LAST, OPAQUE_PARTIAL, OPAQUE_SPACE, OPAQUE_SALTED, OPAQUE_MARK };
#define MARK UINT64_C(0x706b766d61746368)

struct walk {
    struct pkvi_prefix *px;
    const struct pkvi_space *space;
    const uint32_t *tokens;
    uint64_t n, salt;
    uint32_t last;             /* node of page n_pages - 1 */
    uint64_t hash;             /* its hash */
    uint32_t n_pages;          /* pages compared and usable in every full group */
    uint32_t first_salted;     /* page, or PKVI_NO_SALTED */
    uint32_t best, best_pages; /* longest that also has every window */
    uint32_t partial, partial_tokens;
    uint32_t run[PKV_MAX_GROUPS]; /* window groups: pages resident in a row up to `last` */
};

/* Would every window group have what a query after n_tokens needs, with `more` pages beyond the
 * runs? */
static bool windows_hold(const struct walk *w, uint64_t n_tokens, uint32_t more)
{
    uint64_t groups = w->px->all_groups & ~w->px->full_groups;
    for (; groups; groups &= groups - 1) {
        uint32_t g = (uint32_t)__builtin_ctzll(groups);
        uint32_t pages = w->n_pages + more;
        if (w->run[g] + more < pages - pkvi_prefix_first(w->px, g, n_tokens)) return false;
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
    if (!windows || windows_hold(w, (uint64_t)w->n_pages << w->px->page_shift, 0)) {
        w->best = id;
        w->best_pages = w->n_pages;
    }
    return true;
}

/* Pages whose content depends on tokens alone; the hash chain runs ahead of the comparison. */
static void walk_plain(struct walk *w, uint64_t n_full)
{
    const struct pkvi_index *ix = &w->px->core;
    uint32_t p = w->px->config.page_tokens;
    uint64_t ring[AHEAD], hash = w->space->hash;
    uint64_t hashed = 0;
    for (uint64_t i = 0; i < n_full; i++) {
        for (; hashed < n_full && hashed < i + AHEAD; hashed++) {
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

/* From the first page on that was computed after evictions of the same policy. */
static void walk_salted(struct walk *w, uint64_t n_full)
{
    const struct pkvi_index *ix = &w->px->core;
    uint32_t p = w->px->config.page_tokens;
    while (w->n_pages < n_full) {
        const uint32_t *tokens = w->tokens + (uint64_t)w->n_pages * p;
        uint64_t hash = pkvi_hash_tokens(ix, w->hash, tokens, w->salt);
        uint32_t id = pkvi_index_find(ix, w->space->slot, w->last, hash, tokens, w->salt);
        if (id == PKVI_NIL) return;
        uint32_t page = w->n_pages;
        if (!accept(w, id, hash)) return;
        if (w->first_salted == PKVI_NO_SALTED) w->first_salted = page;
    }
}

/* The child of the last page that shares the most of the tokens left. */
static void walk_partial(struct walk *w)
{
    const struct pkvi_index *ix = &w->px->core;
    uint64_t at = (uint64_t)w->n_pages << w->px->page_shift;
    if (at >= w->n) return;
    uint32_t most = (uint32_t)pkvi_min_u64(w->n - at, w->px->config.page_tokens - 1u);
    uint32_t root = w->last == PKVI_NIL ? ix->roots[w->space->slot] : pkvi_node(ix, w->last)->first;
    uint32_t shared;
    uint32_t id = pkvi_siblings_longest(ix, root, w->tokens + at, most, &shared);
    if (id == PKVI_NIL) return;
    const struct pkvi_node *node = pkvi_node(ix, id);
    if (node->resident != w->px->all_groups || (node->id != 0 && node->id != w->salt)) return;
    if (!windows_hold(w, at + shared, 1)) return;
    w->best = w->last;
    w->best_pages = w->n_pages;
    w->partial = id;
    w->partial_tokens = shared;
    if (node->id && w->first_salted == PKVI_NO_SALTED) w->first_salted = w->n_pages;
}

static uint64_t reference(const struct pkvi_prefix *px, uint32_t id)
{
    if (id == PKVI_NIL) return UINT64_MAX;
    return (uint64_t)*pkvi_node_generation(&px->core, id) << 32 | id;
}

static void fill(const struct walk *w, pkv_match *match)
{
    struct pkvi_prefix *px = w->px;
    const uint32_t pages = w->best_pages + (w->partial != PKVI_NIL);
    match->cache = px->config.cache;
    match->n_pages = w->best_pages;
    match->partial_tokens = w->partial_tokens;
    match->n_tokens = ((uint64_t)w->best_pages << px->page_shift) + w->partial_tokens;
    match->opaque[OPAQUE_LAST] = reference(px, w->best);
    match->opaque[OPAQUE_PARTIAL] = reference(px, w->partial);
    match->opaque[OPAQUE_SPACE] = (uint64_t)w->space->generation << 32 | w->space->slot;
    match->opaque[OPAQUE_SALTED] = w->first_salted < pages ? w->first_salted : PKVI_NO_SALTED;
    match->opaque[OPAQUE_MARK] = MARK;
}

static void match_in(struct pkvi_prefix *px, struct pkvi_space *space, const int32_t *tokens,
                     uint64_t n, uint64_t salt, pkv_match *match)
{
    /* Node depths and page counts are 32 bits. */
    uint64_t n_full = pkvi_min_u64(n >> px->page_shift, UINT32_MAX - 1);
    struct walk w = {.px = px,
                     .space = space,
                     .tokens = (const uint32_t *)(const void *)tokens,
                     .n = n,
                     .salt = salt,
                     .last = PKVI_NIL,
                     .hash = space->hash,
                     .first_salted = PKVI_NO_SALTED,
                     .best = PKVI_NIL,
                     .partial = PKVI_NIL};
    walk_plain(&w, n_full);
    if (salt) walk_salted(&w, n_full);
    walk_partial(&w);
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

/* ---- what a match refers to
 * ---------------------------------------------------------------------- */

static pkv_status resolve_node(const struct pkvi_prefix *px, uint64_t ref, uint32_t space,
                               uint32_t *id)
{
    *id = PKVI_NIL;
    if (ref == UINT64_MAX) return PKV_OK;
    uint32_t at = (uint32_t)ref;
    if (at >= px->core.fresh_node) return PKV_EINVAL;
    if (*pkvi_node_generation(&px->core, at) != ref >> 32 ||
        pkvi_node(&px->core, at)->space != space)
        return PKV_ESTALE;
    *id = at;
    return PKV_OK;
}

pkv_status pkvi_match_resolve(struct pkvi_prefix *px, const pkv_match *match,
                              struct pkvi_found *found)
{
    if (match->opaque[OPAQUE_MARK] != MARK) return PKV_EINVAL;
    if (match->cache != px->config.cache) return PKV_EFOREIGN;
    uint32_t slot = (uint32_t)match->opaque[OPAQUE_SPACE];
    if (slot >= px->n_spaces) return PKV_EINVAL;
    found->space = px->space[slot];
    if (!found->space->live || found->space->generation != match->opaque[OPAQUE_SPACE] >> 32)
        return PKV_ESTALE;
    pkv_status status = resolve_node(px, match->opaque[OPAQUE_LAST], slot, &found->last);
    if (status) return status;
    status = resolve_node(px, match->opaque[OPAQUE_PARTIAL], slot, &found->partial);
    if (status) return status;
    /* A match that was tampered with must not lead astray. */
    const struct pkvi_index *ix = &px->core;
    uint32_t pages = found->last == PKVI_NIL ? 0 : pkvi_node(ix, found->last)->depth + 1;
    bool fits = pages == match->n_pages && match->partial_tokens < px->config.page_tokens &&
                (found->partial == PKVI_NIL) == (match->partial_tokens == 0) &&
                match->n_tokens == ((uint64_t)pages << px->page_shift) + match->partial_tokens;
    if (fits && found->partial != PKVI_NIL)
        fits = pkvi_node(ix, found->partial)->parent == found->last;
    return fits ? PKV_OK : PKV_EINVAL;
}

/* ---- granting
 * ------------------------------------------------------------------------------------ */

/* As resolve, and PKV_ESTATE unless the sequence's salt admits the pages. Once a page has a salt
 * all later ones have, so the last tells. */
static pkv_status resolve_for(struct pkvi_prefix *px, const pkv_match *match, uint64_t salt,
                              struct pkvi_found *found)
{
    const pkv_status status = pkvi_match_resolve(px, match, found);
    if (status) return status;
    const uint32_t id = found->partial != PKVI_NIL ? found->partial : found->last;
    if (id == PKVI_NIL) return PKV_OK;
    const uint64_t needed = pkvi_node(&px->core, id)->id;
    return needed == 0 || needed == salt ? PKV_OK : PKV_ESTATE;
}

pkv_status pkvi_prefix_may_grant(struct pkvi_prefix *px, const pkv_match *match, uint64_t salt)
{
    struct pkvi_found found;
    pkvi_prefix_lock(px);
    const pkv_status status = resolve_for(px, match, salt, &found);
    pkvi_prefix_unlock(px);
    return status;
}

static pkv_status lay_out(struct pkvi_prefix *px, const pkv_match *match,
                          struct pkvi_prefix_grant *grant)
{
    uint32_t pages = match->n_pages + (match->partial_tokens != 0);
    grant->capacity = 0;
    for (uint32_t g = 0; g < px->config.n_groups; g++) {
        grant->first[g] = pkvi_min_u32(pkvi_prefix_first(px, g, match->n_tokens), pages);
        grant->n[g] = pages - grant->first[g];
        grant->capacity += grant->n[g];
    }
    grant->memory = NULL;
    if (grant->capacity == 0) return PKV_OK;
    grant->memory = pkvi_mem_array(px->mem, grant->capacity, sizeof *grant->memory);
    if (!grant->memory) return PKV_ENOMEM;
    uint32_t *next = grant->memory;
    for (uint32_t g = 0; g < px->config.n_groups; g++) {
        grant->pages[g] = next;
        next += grant->n[g];
    }
    return PKV_OK;
}

/* Fills the grant with node numbers, last to first; false if some page is gone. */
static bool collect_nodes(const struct pkvi_prefix *px, const struct pkvi_found *found,
                          struct pkvi_prefix_grant *grant, uint32_t pages)
{
    uint32_t id = found->partial != PKVI_NIL ? found->partial : found->last;
    for (uint32_t i = pages; i-- > 0; id = pkvi_node(&px->core, id)->parent) {
        uint64_t needed = 0;
        for (uint32_t g = 0; g < px->config.n_groups; g++) {
            if (i < grant->first[g]) continue;
            needed |= UINT64_C(1) << g;
            grant->pages[g][i - grant->first[g]] = id;
        }
        if (needed & ~pkvi_node(&px->core, id)->resident) return false;
    }
    return true;
}

/* Turns node numbers into pages with a reference each, front to back. */
static void take_pages(struct pkvi_prefix *px, struct pkvi_prefix_grant *grant)
{
    for (uint32_t g = 0; g < px->config.n_groups; g++) {
        struct pkvi_use use = {.next_use = UINT32_MAX, .length = grant->n[g]};
        for (uint32_t i = 0; i < grant->n[g]; i++) {
            uint32_t id = grant->pages[g][i];
            struct pkvi_policy *policy = pkvi_policy_of(px, id, g);
            use.position = grant->first[g] + i;
            policy->now = px->now;
            if (policy->ops->touch) policy->ops->touch(policy, id, &use);
            pkvi_member_busy(px, id, g);
            grant->pages[g][i] = pkvi_member(&px->core, g, id)->page;
        }
        if (grant->n[g]) pkvi_pool_ref(px->groups[g].pool, grant->n[g], grant->pages[g]);
    }
}

static void place_sequence(struct pkvi_prefix *px, struct pkvi_prefix_seq *seq,
                           const pkv_match *match, const struct pkvi_found *found)
{
    if (seq->space != found->space) {
        struct pkvi_space *before = seq->space;
        before->sequences--;
        found->space->sequences++;
        seq->space = found->space;
        pkvi_space_settle(px, before);
        pkvi_space_settle(px, found->space);
    }
    seq->space_generation = found->space->generation;
    pkvi_cursor_move(px, seq, found->last);
    seq->published = match->n_pages;
    seq->n_tail = match->partial_tokens;
    seq->broken = false;
    if (seq->n_tail)
        memcpy(seq->tail, pkvi_node_tokens(&px->core, found->partial),
               seq->n_tail * sizeof *seq->tail);
}

pkv_status pkvi_prefix_grant(struct pkvi_prefix *px, struct pkvi_prefix_seq *seq,
                             const pkv_match *match, uint64_t salt, struct pkvi_prefix_grant *grant)
{
    if (match->n_tokens > (uint64_t)UINT32_MAX << px->page_shift) return PKV_EINVAL;
    pkv_status status = lay_out(px, match, grant);
    if (status) return status;
    pkvi_prefix_lock(px);
    px->now = px->config.clock(px->config.clock_user);
    struct pkvi_found found;
    status = resolve_for(px, match, salt, &found);
    uint32_t pages = match->n_pages + (match->partial_tokens != 0);
    if (status == PKV_OK && !collect_nodes(px, &found, grant, pages)) status = PKV_ESTALE;
    if (status == PKV_OK) {
        take_pages(px, grant);
        place_sequence(px, seq, match, &found);
        grant->first_salted = (uint32_t)match->opaque[OPAQUE_SALTED];
    }
    pkvi_prefix_unlock(px);
    if (status) pkvi_prefix_grant_free(px, grant);
    return status;
}

void pkvi_prefix_grant_free(struct pkvi_prefix *px, struct pkvi_prefix_grant *grant)
{
    if (grant->memory)
        pkvi_mem_free_array(px->mem, grant->memory, grant->capacity, sizeof *grant->memory);
    grant->memory = NULL;
}
