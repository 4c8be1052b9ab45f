/* Where a sequence stands in the index, and what it publishes. */
#include <string.h>

#include "internal.h"

static size_t seq_bytes(const struct pkvi_prefix *px)
{
    return sizeof(struct pkvi_prefix_seq) + px->config.page_tokens * sizeof(int32_t);
}

void pkvi_seq_leave_dropped(struct pkvi_prefix_seq *seq)
{
    if (seq->space_generation == seq->space->generation) return;
    seq->space_generation = seq->space->generation;
    seq->broken = seq->broken || seq->published || seq->n_tail;
    seq->cursor = PKVI_NIL;
    seq->published = seq->n_tail = 0;
}

void pkvi_cursor_move(struct pkvi_prefix *px, struct pkvi_prefix_seq *seq, uint32_t id)
{
    uint32_t before = seq->cursor;
    if (id != PKVI_NIL) pkvi_node(&px->core, id)->holds++;
    seq->cursor = id;
    if (before == PKVI_NIL) return;
    pkvi_node(&px->core, before)->holds--;
    pkvi_index_collect(&px->core, before);
}

pkv_status pkvi_prefix_seq_create(struct pkvi_prefix *px, struct pkvi_prefix_seq **out)
{
    struct pkvi_prefix_seq *seq = pkvi_mem_alloc(px->mem, seq_bytes(px));
    if (!seq) return PKV_ENOMEM;
    pkvi_prefix_lock(px);
    struct pkvi_space *space = px->space[0];
    *seq = (struct pkvi_prefix_seq){.space = space,
                                    .space_generation = space->generation,
                                    .cursor = PKVI_NIL,
                                    .priority = PKV_PRIORITY_DEFAULT};
    space->sequences++;
    pkvi_prefix_unlock(px);
    *out = seq;
    return PKV_OK;
}

pkv_status pkvi_prefix_seq_fork(struct pkvi_prefix *px, const struct pkvi_prefix_seq *parent,
                                struct pkvi_prefix_seq **out)
{
    struct pkvi_prefix_seq *seq = pkvi_mem_alloc(px->mem, seq_bytes(px));
    if (!seq) return PKV_ENOMEM;
    memcpy(seq, parent, sizeof *seq + parent->n_tail * sizeof *seq->tail);
    pkvi_prefix_lock(px);
    seq->space->sequences++;
    pkvi_seq_leave_dropped(seq);
    if (seq->cursor != PKVI_NIL) pkvi_node(&px->core, seq->cursor)->holds++;
    pkvi_prefix_unlock(px);
    *out = seq;
    return PKV_OK;
}

void pkvi_prefix_seq_destroy(struct pkvi_prefix *px, struct pkvi_prefix_seq *seq)
{
    if (!seq) return;
    pkvi_prefix_lock(px);
    pkvi_seq_leave_dropped(seq);
    pkvi_cursor_move(px, seq, PKVI_NIL);
    seq->space->sequences--;
    pkvi_space_settle(px, seq->space);
    pkvi_prefix_unlock(px);
    pkvi_mem_free(px->mem, seq, seq_bytes(px));
}

pkv_status pkvi_prefix_seq_set_space(struct pkvi_prefix *px, struct pkvi_prefix_seq *seq,
                                     const pkv_namespace *name)
{
    pkvi_prefix_lock(px);
    struct pkvi_space *space;
    pkv_status status = pkvi_space_get(px, name, &space);
    if (status == PKV_OK) {
        struct pkvi_space *before = seq->space;
        pkvi_seq_leave_dropped(seq);
        pkvi_cursor_move(px, seq, PKVI_NIL);
        space->sequences++;
        before->sequences--;
        seq->space = space;
        seq->space_generation = space->generation;
        seq->published = seq->n_tail = 0;
        seq->broken = false;
        pkvi_space_settle(px, space);
        pkvi_space_settle(px, before);
    }
    pkvi_prefix_unlock(px);
    return status;
}

void pkvi_prefix_seq_set_retention(struct pkvi_prefix_seq *seq, uint32_t priority, uint64_t ttl_ns)
{
    seq->priority = priority;
    seq->ttl_ns = ttl_ns;
}

/* Back into published pages: the cursor moves up, and the tokens of the page that is open again
 * come from its node. */
static void truncate_published(struct pkvi_prefix *px, struct pkvi_prefix_seq *seq,
                               uint64_t n_tokens)
{
    uint32_t pages = (uint32_t)(n_tokens >> px->page_shift);
    uint32_t id = seq->cursor, open = PKVI_NIL;
    for (uint32_t i = seq->published; i > pages; i--) {
        open = id;
        id = pkvi_node(&px->core, id)->parent;
    }
    seq->published = pages;
    seq->n_tail = (uint32_t)(n_tokens & (px->config.page_tokens - 1u));
    seq->broken = false;
    memcpy(seq->tail, pkvi_node_tokens(&px->core, open), seq->n_tail * sizeof *seq->tail);
    pkvi_cursor_move(px, seq, id);
}

/* Back to a length beyond what is published. */
static void truncate_tail(struct pkvi_prefix_seq *seq, uint64_t n_tokens)
{
    if (n_tokens > seq->n_tail) return; /* beyond what is known: stays broken */
    seq->n_tail = (uint32_t)n_tokens;
    seq->broken = false;
}

void pkvi_prefix_seq_truncate(struct pkvi_prefix *px, struct pkvi_prefix_seq *seq,
                              uint64_t n_tokens)
{
    uint64_t published = (uint64_t)seq->published << px->page_shift;
    if (n_tokens >= published) {
        truncate_tail(seq, n_tokens - published);
        return;
    }
    pkvi_prefix_lock(px);
    pkvi_seq_leave_dropped(seq);
    if (seq->published)
        truncate_published(px, seq, n_tokens);
    else
        truncate_tail(seq, n_tokens);
    pkvi_prefix_unlock(px);
}

/* ---- publishing ----------------------------------------------------------------------------- */

struct publisher {
    struct pkvi_prefix *px;
    struct pkvi_prefix_seq *seq;
    const struct pkvi_prefix_source *source;
    bool states; /* of this step: also without a checkpoint */
};

/* What the sequence has to publish as its logical page in a group, or PKVI_NO_PAGE. */
static uint32_t page_at(const struct publisher *p, uint32_t group, uint32_t logical)
{
    const struct pkvi_prefix *px = p->px;
    const uint32_t n_paged = px->config.n_groups - px->config.n_states;
    if (PKVI_LIKELY(group < n_paged)) return pkvi_table_page(&p->source->tables[group], logical);
    const struct pkvi_states *states = p->source->states;
    const uint64_t end = ((uint64_t)logical + 1) << px->page_shift;
    if (p->states && end == p->source->length) return states->live[group - n_paged];
    return pkvi_states_marked(states, px->config.n_states, end, group - n_paged);
}

/* The sequence computed what a node holds already. If nobody holds the node's page, the sequence's
 * own takes its place, so that one copy is enough; otherwise both stay, and no table changes. */
static void merge_page(const struct publisher *p, uint32_t id, uint32_t group, uint32_t page)
{
    struct pkvi_prefix *px = p->px;
    struct pkvi_use use = {.next_use = UINT32_MAX, .position = pkvi_node(&px->core, id)->depth};
    struct pkvi_policy *policy = pkvi_policy_of(px, id, group);
    policy->now = px->now;
    if (policy->ops->touch) policy->ops->touch(policy, id, &use);
    if (pkvi_member(&px->core, group, id)->busy) return;
    pkvi_member_replace(px, id, group, page);
}

/* Gives a node those pages of the table that it lacks; *had = how many it had already. The node
 * must be held, or evictions for the quota's sake could take it along. False: the quota has no
 * room.
 */
static bool fill_node(const struct publisher *p, uint32_t id, uint32_t logical, uint32_t *had)
{
    struct pkvi_prefix *px = p->px;
    bool room = true;
    *had = 0;
    for (uint32_t g = 0; g < px->config.n_groups && room; g++) {
        const uint32_t page = page_at(p, g, logical);
        if (page == PKVI_NO_PAGE) continue;
        const bool owned = pkvi_pool_owner(px->groups[g].pool, page);
        if (pkvi_node_has(pkvi_node(&px->core, id), g)) {
            if (pkvi_member(&px->core, g, id)->page == page) continue;
            ++*had;
            if (!owned) merge_page(p, id, g, page);
            continue;
        }
        if (owned) continue;
        room = pkvi_quota_room(px, p->seq->space, g);
        if (room) pkvi_member_publish(px, id, g, page, p->seq);
        room = room || (px->state_groups >> g & 1); /* the pages go on without */
    }
    pkvi_siblings_settle(&px->core, id);
    return room;
}

/* Has the sequence a page there in any group? */
static bool has_page(const struct publisher *p, uint32_t logical)
{
    for (uint32_t g = 0; g < p->px->config.n_groups - p->px->config.n_states; g++)
        if (pkvi_table_page(&p->source->tables[g], logical) != PKVI_NO_PAGE) return true;
    return false;
}

/* Pages up to the cursor may have been reclaimed although the sequence goes on: it has duplicates
 * of its own. They take the place of what is gone, so that what follows can be reached. O(1) unless
 * pages were taken from inside some chain since the last time. Where all groups have windows only
 * what the sequence still holds can come back, and counts. */
static void restore_path(const struct publisher *p)
{
    const struct pkvi_prefix *px = p->px;
    const bool holes = p->seq->holes_seen != px->n_holes;
    const bool windows_only = px->full_groups == 0;
    const uint64_t wanted = windows_only ? px->all_groups & ~px->state_groups : px->full_groups;
    uint32_t logical = p->seq->published, had;
    p->seq->holes_seen = px->n_holes;
    if (windows_only && !holes) return;
    for (uint32_t id = p->seq->cursor; id != PKVI_NIL; id = pkvi_node(&px->core, id)->parent) {
        logical--;
        if (windows_only && !has_page(p, logical)) return;
        if ((pkvi_node(&px->core, id)->resident & wanted) != wanted) {
            if (!fill_node(p, id, logical, &had)) return;
        } else if (!holes) {
            return;
        }
    }
}

/* Publishes the page after the cursor. */
static void publish_page(const struct publisher *p, const int32_t *tokens, uint64_t salt)
{
    struct pkvi_prefix *px = p->px;
    struct pkvi_prefix_seq *seq = p->seq;
    struct pkvi_index *ix = &px->core;
    const uint32_t *key = (const uint32_t *)(const void *)tokens;
    uint64_t above = seq->cursor == PKVI_NIL ? seq->space->hash : pkvi_node(ix, seq->cursor)->hash;
    uint64_t hash = pkvi_hash_tokens(ix, above, key, salt);
    uint32_t id = pkvi_index_find(ix, seq->space->slot, seq->cursor, hash, key, salt);
    if (id == PKVI_NIL) id = pkvi_index_add(ix, seq->space->slot, seq->cursor, hash, key, salt);
    seq->broken = id == PKVI_NIL;
    if (seq->broken) return;
    uint32_t had;
    pkvi_node(ix, id)->holds++;
    seq->broken = !fill_node(p, id, seq->published, &had);
    pkvi_node(ix, id)->holds--;
    seq->space->duplicate += had != 0;
    if (seq->broken) {
        pkvi_index_collect(ix, id);
        return;
    }
    pkvi_cursor_move(px, seq, id);
    seq->published++;
}

static void publish_pages(const struct publisher *p, const int32_t *tokens, uint32_t n,
                          pkvi_publish_fn may, void *context)
{
    struct pkvi_prefix_seq *seq = p->seq;
    uint32_t page_tokens = p->px->config.page_tokens;
    restore_path(p);
    while (seq->n_tail + n >= page_tokens && !seq->broken) {
        uint64_t salt = 0;
        if (may && !may(context, seq->published, &salt)) {
            seq->broken = true;
            break;
        }
        if (seq->n_tail) {
            uint32_t taken = page_tokens - seq->n_tail;
            memcpy(seq->tail + seq->n_tail, tokens, taken * sizeof *tokens);
            publish_page(p, seq->tail, salt);
            seq->n_tail = 0;
            tokens += taken;
            n -= taken;
        } else {
            publish_page(p, tokens, salt);
            tokens += page_tokens;
            n -= page_tokens;
        }
    }
    if (seq->broken) return;
    memcpy(seq->tail, tokens, n * sizeof *tokens);
    seq->n_tail = n;
}

static uint64_t known(const struct pkvi_prefix *px, const struct pkvi_prefix_seq *seq)
{
    return ((uint64_t)seq->published << px->page_shift) + seq->n_tail;
}

uint64_t pkvi_prefix_seq_known(struct pkvi_prefix *px, struct pkvi_prefix_seq *seq)
{
    pkvi_prefix_lock(px);
    pkvi_seq_leave_dropped(seq);
    pkvi_prefix_unlock(px);
    return seq->broken ? UINT64_MAX : known(px, seq);
}

void pkvi_prefix_publish(struct pkvi_prefix *px, struct pkvi_prefix_seq *seq,
                         const struct pkvi_prefix_source *source, uint64_t first,
                         const int32_t *tokens, uint32_t n, pkvi_publish_fn may, void *context)
{
    if (seq->broken || n == 0 || !tokens || first != known(px, seq)) return;
    /* The first tokens of all take the lock: from now on a drop of the namespace is about them. */
    if ((seq->published | seq->n_tail) && seq->n_tail + n < px->config.page_tokens) {
        memcpy(seq->tail + seq->n_tail, tokens, n * sizeof *tokens);
        seq->n_tail += n;
        return;
    }
    const struct publisher p = {
        .px = px, .seq = seq, .source = source, .states = pkvi_place_wanted(px, first, n)};
    pkvi_prefix_lock(px);
    px->now = px->config.clock(px->config.clock_user);
    pkvi_seq_leave_dropped(seq);
    if (!seq->broken) publish_pages(&p, tokens, n, may, context);
    pkvi_space_settle(px, seq->space);
    pkvi_prefix_unlock(px);
}
