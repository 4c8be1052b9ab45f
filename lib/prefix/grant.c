/* Giving what a match refers to to a sequence. */
#include <string.h>

#include "internal.h"

/* ---- granting ------------------------------------------------------------------------------- */

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
    memset(grant->idle, 0, sizeof grant->idle);
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

/* Fills the grant with pages, last to first; false if some page is gone. */
static bool find_pages(const struct pkvi_prefix *px, const struct pkvi_found *found,
                       struct pkvi_prefix_grant *grant, uint32_t pages)
{
    uint32_t id = found->partial != PKVI_NIL ? found->partial : found->last;
    for (uint32_t i = pages; i-- > 0; id = pkvi_node(&px->core, id)->parent) {
        for (uint32_t g = 0; g < px->config.n_groups; g++) {
            if (i < grant->first[g]) continue;
            if (!pkvi_node_has(pkvi_node(&px->core, id), g)) return false;
            const uint32_t page = pkvi_member(&px->core, g, id)->page;
            grant->pages[g][i - grant->first[g]] = page;
            grant->idle[g] += pkvi_pool_refs(px->groups[g].pool, page) == 0;
        }
    }
    return true;
}

/* Takes a reference of each page, front to back. */
static void take_pages(struct pkvi_prefix *px, struct pkvi_prefix_grant *grant)
{
    for (uint32_t g = 0; g < px->config.n_groups; g++) {
        struct pkvi_use use = {.next_use = UINT32_MAX, .length = grant->n[g]};
        for (uint32_t i = 0; i < grant->n[g]; i++) {
            const uint32_t id = pkvi_owner_node(px->groups[g].pool, grant->pages[g][i]);
            struct pkvi_policy *policy = pkvi_policy_of(px, id, g);
            use.position = grant->first[g] + i;
            policy->now = px->now;
            if (policy->ops->touch) policy->ops->touch(policy, id, &use);
            pkvi_member_busy(px, id, g);
        }
        if (grant->n[g]) pkvi_pool_ref(px->groups[g].pool, grant->n[g], grant->pages[g]);
    }
}

static void place_sequence(struct pkvi_prefix *px, struct pkvi_prefix_seq *seq,
                           const pkv_match *match, const struct pkvi_found *found)
{
    pkvi_seq_leave_dropped(seq);
    if (seq->space != found->space) {
        struct pkvi_space *before = seq->space;
        before->sequences--;
        found->space->sequences++;
        seq->space = found->space;
        seq->space_generation = found->space->generation;
        pkvi_space_settle(px, before);
        pkvi_space_settle(px, found->space);
    }
    pkvi_cursor_move(px, seq, found->last);
    const uint64_t reached = match->opaque[PKVI_MATCH_JUNCTION];
    seq->junction = reached > match->n_pages ? (uint32_t)reached : 0;
    seq->published = match->n_pages;
    seq->n_tail = match->partial_tokens;
    seq->broken = false;
    if (seq->n_tail)
        memcpy(seq->tail, pkvi_node_tokens(&px->core, found->partial),
               seq->n_tail * sizeof *seq->tail);
}

/* The pages of a match that was laid out, if they are all there and `ask` agrees. Lock held. */
static pkv_status find(struct pkvi_prefix *px, const pkv_match *match,
                       const struct pkvi_found *found, pkvi_grant_fn ask, void *context,
                       struct pkvi_prefix_grant *grant)
{
    const uint32_t pages = match->n_pages + (match->partial_tokens != 0);
    if (!find_pages(px, found, grant, pages)) return PKV_ESTALE;
    return ask ? ask(context, grant) : PKV_OK;
}

pkv_status pkvi_prefix_look(struct pkvi_prefix *px, const pkv_match *match, pkvi_grant_fn ask,
                            void *context)
{
    struct pkvi_prefix_grant grant = {.memory = NULL};
    struct pkvi_found found;
    pkvi_prefix_lock(px);
    pkv_status status = pkvi_match_resolve(px, match, &found);
    if (status == PKV_OK) status = lay_out(px, match, &grant);
    if (status == PKV_OK) status = find(px, match, &found, ask, context, &grant);
    pkvi_prefix_unlock(px);
    pkvi_prefix_grant_free(px, &grant);
    return status;
}

pkv_status pkvi_prefix_grant(struct pkvi_prefix *px, struct pkvi_prefix_seq *seq,
                             const pkv_match *match, uint64_t salt, pkvi_grant_fn ask,
                             void *context, struct pkvi_prefix_grant *grant)
{
    if (match->n_tokens > (uint64_t)UINT32_MAX << px->page_shift) return PKV_EINVAL;
    pkv_status status = lay_out(px, match, grant);
    if (status) return status;
    pkvi_prefix_lock(px);
    px->now = px->config.clock(px->config.clock_user);
    struct pkvi_found found;
    status = resolve_for(px, match, salt, &found);
    if (status == PKV_OK) status = find(px, match, &found, ask, context, grant);
    if (status == PKV_OK) {
        take_pages(px, grant);
        place_sequence(px, seq, match, &found);
        grant->first_salted = (uint32_t)match->opaque[PKVI_MATCH_SALTED];
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
