/* attn: finds the entries of a batch whose page tables begin with the same pages, so that those
 * pages are read once for all their rows.
 *
 * The unit of sharing is a whole leaf of committed positions: then the state of a leaf is the same
 * whether it is computed for one entry or for many, and results do not change. Entries are sorted
 * into classes by the content of leaf 0, each class is extended over as many further leaves as all
 * of it shares (a segment), and its members are sorted again by the next leaf. */
#include "plan.h"

#include <string.h>

/* Rows of an entry above which its own work is no longer bound by reading. */
#define CASCADE_ROWS 32u

/* Automatic mode: fewer bytes saved per layer are not worth it. */
#define CASCADE_SAVES (128u * 1024u)

struct search {
    struct pkvi_plan *plan;
    const struct pkvi_attn_group *ag;
    struct plan_body *body;
    struct plan_group *pg;
};

/* An entry's pages of one leaf; n = 0 unless the leaf is wholly committed. */
struct leaf_pages {
    const uint32_t *logical, *page;
    uint32_t n;
};

static struct leaf_pages pages_of(const struct search *s, uint32_t entry, uint32_t leaf)
{
    struct leaf_pages out = {NULL, NULL, 0};
    if (((uint64_t)leaf + 1) * PKVI_LEAF > s->body->entries[entry].length) return out;
    const struct plan_pages *pages = &s->pg->lanes[entry].pages;
    uint32_t first = pkvi_plan_page_of_leaf(s->plan->model, pages, 0, pages->n, leaf);
    uint32_t end = pkvi_plan_page_of_leaf(s->plan->model, pages, first, pages->n, leaf + 1);
    out.logical = pages->logical + first;
    out.page = pages->page + first;
    out.n = end - first;
    return out;
}

/* Any total order in which equal leaves are neighbours and absent ones come last. */
static int compare(const struct search *s, uint32_t a, uint32_t b, uint32_t leaf)
{
    struct leaf_pages x = pages_of(s, a, leaf), y = pages_of(s, b, leaf);
    if (x.n != y.n) return x.n > y.n ? -1 : 1;
    if (x.n == 0) return 0;
    if (x.page[0] != y.page[0]) return x.page[0] < y.page[0] ? -1 : 1;
    int by_page = memcmp(x.page, y.page, x.n * sizeof *x.page);
    return by_page ? by_page : memcmp(x.logical, y.logical, x.n * sizeof *x.logical);
}

/* Shell sort: no memory, fine for the few thousand entries a batch may have; ties by entry, so that
 * the order does not depend on where an entry stood. */
static void sort(const struct search *s, uint32_t *entries, uint32_t n, uint32_t leaf)
{
    uint32_t gap = 1;
    while (gap < n / 3)
        gap = 3 * gap + 1;
    for (; gap > 0; gap /= 3)
        for (uint32_t i = gap; i < n; i++) {
            uint32_t entry = entries[i], j = i;
            while (j >= gap) {
                int order = compare(s, entries[j - gap], entry, leaf);
                if (order < 0 || (order == 0 && entries[j - gap] < entry)) break;
                entries[j] = entries[j - gap];
                j -= gap;
            }
            entries[j] = entry;
        }
}

static pkv_status enter_tile(struct search *s, const uint32_t *members, uint32_t n,
                             uint32_t n_tokens, uint32_t leaf0, uint32_t leaf1)
{
    struct plan_group *pg = s->pg;
    struct pkvi_mem *mem = s->plan->mem;
    void *tiles = pg->shared, *links = pg->links, *list = pg->members;
    bool ok = pkvi_plan_room(mem, &tiles, &pg->shared_capacity, (uint64_t)pg->n_shared + 1,
                             sizeof *pg->shared);
    pg->shared = tiles;
    ok = pkvi_plan_room(mem, &links, &pg->link_capacity, (uint64_t)pg->n_links + n,
                        sizeof *pg->links) &&
         ok;
    pg->links = links;
    ok = pkvi_plan_room(mem, &list, &pg->member_capacity, (uint64_t)pg->n_members + n,
                        sizeof *pg->members) &&
         ok;
    pg->members = list;
    if (!ok) return PKV_ENOMEM;

    const struct plan_pages *pages = &pg->lanes[members[0]].pages;
    uint32_t page0 = pkvi_plan_page_of_leaf(s->plan->model, pages, 0, pages->n, leaf0);
    uint32_t page1 = pkvi_plan_page_of_leaf(s->plan->model, pages, page0, pages->n, leaf1);
    pg->shared[pg->n_shared] = (struct plan_shared){.member0 = pg->n_members,
                                                    .n_members = n,
                                                    .n_tokens = n_tokens,
                                                    .leaf0 = leaf0,
                                                    .leaf1 = leaf1,
                                                    .page0 = page0,
                                                    .page1 = page1};
    uint32_t token = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct plan_lane *lane = &pg->lanes[members[i]];
        pg->members[pg->n_members++] = members[i];
        pg->links[pg->n_links] =
            (struct plan_link){.shared = pg->n_shared,
                               .token0 = token,
                               .before = lane->n_links ? lane->link : PKVI_NONE};
        lane->link = pg->n_links++;
        lane->n_links++;
        token += s->body->entries[members[i]].n_tokens;
    }
    pg->n_shared++;
    return PKV_OK;
}

/* Enters a class that shares leaves [leaf0, leaf1), tile by tile. */
static pkv_status enter_segment(struct search *s, const uint32_t *members, uint32_t n,
                                uint32_t leaf0, uint32_t leaf1)
{
    uint32_t most = PKVI_ITEM_ROWS / s->ag->group_size, from = 0, tokens = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t more = s->body->entries[members[i]].n_tokens;
        if (tokens > 0 && tokens + more > most) {
            pkv_status status = enter_tile(s, members + from, i - from, tokens, leaf0, leaf1);
            if (status != PKV_OK) return status;
            from = i;
            tokens = 0;
        }
        tokens += more;
    }
    return enter_tile(s, members + from, n - from, tokens, leaf0, leaf1);
}

static bool worth_it(const struct search *s, uint32_t n, uint32_t leaves)
{
    if (s->plan->options.cascade == 2) return true;
    const pkvi_layout *l = &s->ag->layout;
    uint64_t leaf_bytes =
        (uint64_t)(PKVI_LEAF / l->page_tokens) * (l->k_head_bytes + l->v_head_bytes) * l->kv_heads;
    return leaf_bytes * leaves * (n - 1) >= CASCADE_SAVES;
}

static pkv_status split(struct search *s, uint32_t *entries, uint32_t n, uint32_t leaf,
                        uint32_t depth)
{
    if (depth == PKVI_CASCADE_DEPTH) return PKV_OK;
    sort(s, entries, n, leaf);
    for (uint32_t from = 0, to; from < n; from = to) {
        to = from + 1;
        if (pages_of(s, entries[from], leaf).n == 0) break;
        while (to < n && compare(s, entries[from], entries[to], leaf) == 0)
            to++;
        if (to - from < 2) continue;
        uint32_t end = leaf + 1;
        for (bool same = true; same;) {
            same = pages_of(s, entries[from], end).n != 0;
            for (uint32_t i = from + 1; same && i < to; i++)
                same = compare(s, entries[from], entries[i], end) == 0;
            end += same;
        }
        if (!worth_it(s, to - from, end - leaf)) continue;
        pkv_status status = enter_segment(s, entries + from, to - from, leaf, end);
        if (status == PKV_OK) status = split(s, entries + from, to - from, end, depth + 1);
        if (status != PKV_OK) return status;
    }
    return PKV_OK;
}

pkv_status pkvi_plan_find_shared(struct pkvi_plan *plan, struct plan_body *body, uint32_t g)
{
    const struct pkvi_attn_group *ag = &plan->model->groups[g];
    struct search s = {.plan = plan, .ag = ag, .body = body, .pg = &body->groups[g]};
    if (plan->options.mass || ag->window) return PKV_OK;
    void *array = plan->sort;
    bool ok = pkvi_plan_room(plan->mem, &array, &plan->sort_capacity, body->n_entries,
                             sizeof *plan->sort);
    plan->sort = array;
    if (!ok) return PKV_ENOMEM;
    uint32_t n = 0;
    for (uint32_t e = 0; e < body->n_entries; e++) {
        const struct plan_lane *lane = &s.pg->lanes[e];
        const struct plan_entry *entry = &body->entries[e];
        bool plain = !lane->wish.mass_rows && !lane->wish.select_pages && !lane->wish.compact;
        if (plain && lane->pages.n && entry->length >= PKVI_LEAF &&
            entry->n_tokens * (uint64_t)ag->group_size <= CASCADE_ROWS &&
            pkvi_pool_refs(ag->pool, lane->pages.page[0]) > 1)
            plan->sort[n++] = e;
    }
    return n < 2 ? PKV_OK : split(&s, plan->sort, n, 0, 0);
}
