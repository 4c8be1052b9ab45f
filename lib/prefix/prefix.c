/* The index of a cache: making it, taking it down, checking it. */
#include "prefix.h"

#include <string.h>

#include "internal.h"

static const struct pkvi_policy_ops *online_policy(const char *name)
{
    const struct pkvi_policy_ops *ops = pkvi_policy_find(name ? name : "lru-leaf");
    return ops && !ops->offline ? ops : NULL;
}

bool pkvi_prefix_policy_known(const char *name)
{
    return online_policy(name);
}

/* The pool's hook: pages are about to lose their last table. The last page of a sequence becomes
 * the oldest, so leaves go first. */
static void on_idle(void *context, struct pkvi_pool *pool, uint32_t n, const uint32_t *pages)
{
    enum { AT_ONCE = 128 };
    struct pkvi_prefix *px = context;
    uint32_t group = pkvi_pool_group(pool);
    uint32_t idle[AT_ONCE];
    pkvi_prefix_lock(px);
    px->now = px->config.clock(px->config.clock_user);
    const struct pkvi_policy *begun = NULL;
    while (n > 0) {
        uint32_t m = pkvi_min_u32(n, AT_ONCE);
        n -= m;
        uint32_t k = pkvi_pool_release_owned(pool, m, pages + n, idle);
        for (uint32_t i = 0; i < k; i++)
            idle[i] = pkvi_owner_node(pool, idle[i]);
        pkvi_members_idle(px, group, idle, k, &begun);
    }
    pkvi_prefix_unlock(px);
}

static bool copy_groups(struct pkvi_prefix *px)
{
    uint32_t n = px->config.n_groups;
    px->groups = pkvi_mem_array(px->mem, n, sizeof *px->groups);
    px->rings = pkvi_mem_array(px->mem, n, sizeof *px->rings);
    px->inner = pkvi_mem_array(px->mem, n, sizeof *px->inner);
    if (!px->groups || !px->rings || !px->inner) return false;
    for (uint32_t g = 0; g < n; g++) {
        px->inner[g] = (struct pkvi_inner){PKVI_NIL, PKVI_NIL};
        px->groups[g] = px->config.groups[g];
        px->all_groups |= UINT64_C(1) << g;
        if (!px->groups[g].window) px->full_groups |= UINT64_C(1) << g;
        if (g >= n - px->config.n_states) px->state_groups |= UINT64_C(1) << g;
        for (int r = 0; r < PKVI_RINGS; r++)
            pkvi_list_init(&px->rings[g][r]);
    }
    return true;
}

static void free_groups(struct pkvi_prefix *px)
{
    uint32_t n = px->config.n_groups;
    if (px->groups) pkvi_mem_free_array(px->mem, px->groups, n, sizeof *px->groups);
    if (px->inner) pkvi_mem_free_array(px->mem, px->inner, n, sizeof *px->inner);
    if (px->rings) pkvi_mem_free_array(px->mem, px->rings, n, sizeof *px->rings);
}

/* Everything but the object and its lock. */
static pkv_status set_up(struct pkvi_prefix *px)
{
    if (!copy_groups(px)) return PKV_ENOMEM;
    struct pkvi_index_options options = {.page_tokens = px->config.page_tokens,
                                         .n_groups = px->config.n_groups,
                                         .full_groups = px->full_groups,
                                         .key = {px->config.key[0], px->config.key[1]}};
    pkv_status status = pkvi_index_init(&px->core, px->mem, &options);
    if (status) return status;
    status = pkvi_spaces_init(px);
    if (status == PKV_OK) return PKV_OK;
    pkvi_spaces_destroy(px);
    pkvi_index_destroy(&px->core);
    return status;
}

pkv_status pkvi_prefix_create(const struct pkvi_prefix_config *config, struct pkvi_mem *mem,
                              struct pkvi_stats *stats, struct pkvi_lock_ranks *ranks,
                              struct pkvi_prefix **out)
{
    const struct pkvi_policy_ops *ops = online_policy(config->policy);
    if (!ops) return PKV_EINVAL;
    struct pkvi_prefix *px = pkvi_mem_zalloc(mem, sizeof *px);
    if (!px) return PKV_ENOMEM;
    px->mem = mem;
    px->stats = stats;
    px->config = *config;
    px->ops = ops;
    px->page_shift = pkvi_log2_u32(config->page_tokens);
    pkvi_pins_init(px);
    if (pkvi_mutex_init(&px->lock, PKVI_RANK_PREFIX, ranks)) {
        pkv_status status = set_up(px);
        if (status == PKV_OK) {
            for (uint32_t g = 0; g < config->n_groups; g++)
                pkvi_pool_set_idle(px->groups[g].pool, on_idle, px);
            *out = px;
            return PKV_OK;
        }
        pkvi_mutex_destroy(&px->lock);
    }
    free_groups(px);
    pkvi_mem_free(mem, px, sizeof *px);
    return PKV_ENOMEM;
}

void pkvi_prefix_destroy(struct pkvi_prefix *px)
{
    if (!px) return;
    for (uint32_t id = 0; id < px->core.fresh_node; id++)
        if (pkvi_node(&px->core, id)->space != PKVI_NIL) pkvi_node_strip(px, id);
    pkvi_digests_destroy(px);
    pkvi_pins_destroy(px);
    pkvi_spaces_destroy(px);
    pkvi_index_destroy(&px->core);
    for (uint32_t g = 0; g < px->config.n_groups; g++)
        pkvi_pool_set_idle(px->groups[g].pool, NULL, NULL);
    free_groups(px);
    pkvi_mutex_destroy(&px->lock);
    pkvi_mem_free(px->mem, px, sizeof *px);
}

/* ---- verify --------------------------------------------------------------------------------- */

static const char *check_members(const struct pkvi_prefix *px, uint32_t id)
{
    const struct pkvi_node *node = pkvi_node(&px->core, id);
    for (uint32_t g = 0; g < px->config.n_groups; g++) {
        if (!pkvi_node_has(node, g)) continue;
        const struct pkvi_member *m = pkvi_member(&px->core, g, id);
        const struct pkvi_pool *pool = px->groups[g].pool;
        if (m->page >= pkvi_pool_index_limit(pool)) return "prefix: a node's page does not exist";
        if ((uintptr_t)pkvi_pool_owner(pool, m->page) != (uintptr_t)id + 1)
            return "prefix: a node's page has another owner";
        if ((pkvi_pool_refs(pool, m->page) > 0) != (m->busy != 0))
            return "prefix: a page's references do not match its node";
        bool inner = px->full_groups >> g & 1 && !m->busy && m->kids && !node->pins;
        if (inner != ((m->flags & PKVI_MEMBER_INNER) != 0))
            return "prefix: the list of inner pages is wrong";
    }
    return NULL;
}

/* What nodes and sequences say of each namespace and node. */
struct tally {
    uint32_t *cursors;   /* [nodes] sequences that stand there */
    uint64_t *pages;     /* [namespaces] */
    uint32_t *sequences; /* [namespaces] */
};

static const char *tally_sequences(const struct pkvi_prefix *px, const struct tally *tally,
                                   struct pkvi_prefix_seq *const *seqs, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        const struct pkvi_prefix_seq *seq = seqs[i];
        if (!seq) continue;
        tally->sequences[seq->space->slot]++;
        if (seq->cursor == PKVI_NIL || seq->space_generation != seq->space->generation) continue;
        if (seq->cursor >= px->core.fresh_node) return "prefix: a cursor stands at no node";
        const struct pkvi_node *node = pkvi_node(&px->core, seq->cursor);
        tally->cursors[seq->cursor]++;
        if (node->space != seq->space->slot || node->depth + 1 != seq->published)
            return "prefix: a cursor's node is another page, or in another namespace";
    }
    return NULL;
}

/* A node is held by cursors and by the ghosts of its members. */
static const char *tally_nodes(const struct pkvi_prefix *px, const struct tally *tally)
{
    for (uint32_t id = 0; id < px->core.fresh_node; id++) {
        const struct pkvi_node *node = pkvi_node(&px->core, id);
        if (node->space == PKVI_NIL) continue;
        if (node->space >= px->n_spaces || !px->space[node->space]->live)
            return "prefix: a node is in no namespace";
        uint32_t holds = tally->cursors[id];
        for (uint32_t g = 0; g < px->config.n_groups; g++) {
            holds += (pkvi_member(&px->core, g, id)->flags & PKVI_MEMBER_GHOST) != 0;
            tally->pages[node->space] += pkvi_node_has(node, g);
        }
        if (holds != node->holds) return "prefix: a node's holds are not those of its cursors";
    }
    return NULL;
}

static const char *check_spaces(const struct pkvi_prefix *px, const struct tally *tally)
{
    for (uint32_t i = 0; i < px->n_spaces; i++) {
        const struct pkvi_space *space = px->space[i];
        if (!space->live) continue;
        if (space->pages != tally->pages[i]) return "prefix: a namespace's pages are miscounted";
        if (space->sequences != tally->sequences[i])
            return "prefix: a namespace's sequences are miscounted";
        if (space->domain->has_quota != (space->domain != px->common))
            return "prefix: a namespace shares its quota, or has none of its own";
    }
    return NULL;
}

static const char *check_tally(const struct pkvi_prefix *px, const struct tally *tally,
                               struct pkvi_prefix_seq *const *seqs, uint32_t n)
{
    const char *broken = tally_sequences(px, tally, seqs, n);
    if (!broken) broken = tally_nodes(px, tally);
    return broken ? broken : check_spaces(px, tally);
}

/* Every cached page of a pool is some node's. */
static const char *check_pools(const struct pkvi_prefix *px)
{
    for (uint32_t g = 0; g < px->config.n_groups; g++) {
        uint64_t idle = 0;
        for (uint32_t id = 0; id < px->core.fresh_node; id++) {
            const struct pkvi_node *node = pkvi_node(&px->core, id);
            if (node->space == PKVI_NIL || !pkvi_node_has(node, g)) continue;
            idle += pkvi_member(&px->core, g, id)->busy == 0;
        }
        if (idle != pkvi_pool_cached(px->groups[g].pool))
            return "prefix: the pool counts another number of cached pages";
    }
    return NULL;
}

pkv_status pkvi_prefix_verify(struct pkvi_prefix *px, struct pkvi_prefix_seq *const *seqs,
                              uint32_t n, char *text, size_t capacity)
{
    const size_t nodes = (size_t)px->core.fresh_node + 1, spaces = px->n_spaces;
    const struct tally tally = {pkvi_mem_scratch(px->mem, nodes, sizeof *tally.cursors),
                                pkvi_mem_scratch(px->mem, spaces, sizeof *tally.pages),
                                pkvi_mem_scratch(px->mem, spaces, sizeof *tally.sequences)};
    const bool room = tally.cursors && tally.pages && tally.sequences;
    pkvi_prefix_lock(px);
    const char *broken = pkvi_index_check(&px->core);
    for (uint32_t id = 0; id < px->core.fresh_node && !broken; id++)
        if (pkvi_node(&px->core, id)->space != PKVI_NIL) broken = check_members(px, id);
    if (!broken && room) broken = check_tally(px, &tally, seqs, n);
    if (!broken) broken = check_pools(px);
    pkvi_prefix_unlock(px);
    pkvi_mem_free_scratch(px->mem, tally.cursors, nodes, sizeof *tally.cursors);
    pkvi_mem_free_scratch(px->mem, tally.pages, spaces, sizeof *tally.pages);
    pkvi_mem_free_scratch(px->mem, tally.sequences, spaces, sizeof *tally.sequences);
    if (!broken) return room ? PKV_OK : PKV_ENOMEM;
    pkvi_text(text, capacity, "%s", broken);
    return PKV_ECORRUPT;
}
