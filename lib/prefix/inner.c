/* Idle pages inside a chain. In full-attention groups leaves go first, so such a page waits for the
 * pages below it. But those may be held by a sequence that does not hold the page itself: it had
 * computed a duplicate, or its eviction policy dropped the page. So that every idle page can be had
 * when memory is short, these are listed, and are taken when no leaf is left. That leaves a hole: a
 * match ends before it, until a sequence that has the page publishes it again. */
#include "internal.h"

static void take_out(struct pkvi_prefix *px, struct pkvi_member *m, uint32_t group)
{
    struct pkvi_inner *inner = &px->inner[group];
    if (m->inner_newer != PKVI_NIL)
        pkvi_member(&px->core, group, m->inner_newer)->inner_older = m->inner_older;
    else
        inner->newest = m->inner_older;
    if (m->inner_older != PKVI_NIL)
        pkvi_member(&px->core, group, m->inner_older)->inner_newer = m->inner_newer;
    else
        inner->oldest = m->inner_newer;
    m->flags &= (uint8_t)~PKVI_MEMBER_INNER;
}

static void put_in(struct pkvi_prefix *px, struct pkvi_member *m, uint32_t id, uint32_t group)
{
    struct pkvi_inner *inner = &px->inner[group];
    m->inner_newer = PKVI_NIL;
    m->inner_older = inner->newest;
    if (inner->newest != PKVI_NIL)
        pkvi_member(&px->core, group, inner->newest)->inner_newer = id;
    else
        inner->oldest = id;
    inner->newest = id;
    m->flags |= PKVI_MEMBER_INNER;
}

void pkvi_inner_settle(struct pkvi_prefix *px, uint32_t id, uint32_t group)
{
    if (id == PKVI_NIL || !(px->full_groups >> group & 1)) return;
    const struct pkvi_node *node = pkvi_node(&px->core, id);
    struct pkvi_member *m = pkvi_member(&px->core, group, id);
    bool inner = pkvi_node_has(node, group) && !m->busy && m->kids && !node->pins;
    if (inner == ((m->flags & PKVI_MEMBER_INNER) != 0)) return;
    if (inner)
        put_in(px, m, id, group);
    else
        take_out(px, m, group);
}

uint32_t pkvi_inner_victim(const struct pkvi_prefix *px, uint32_t group)
{
    return px->inner[group].oldest;
}
