/* Operations on the prefix index: drops, quotas, pins, reclaim, digests; and the index on its own.
 */
#include <string.h>

#include "world.h"

static void op_drop(struct world *w)
{
    if (!w->config.prefix) return;
    char bytes[8];
    const uint32_t which = world_below(w, WORLD_SPACES);
    const pkv_namespace space = world_space(which, bytes);
    uint64_t pages = 0;
    const pkv_status status = pkv_prefix_drop(w->cache, &space, &pages);
    if (!world_did(w, status, "pkv_prefix_drop", WORLD_OTHERS(PKV_EINVAL))) return;
    w->disturbed++;
    w->generation[which]++;
    for (int i = 0; i < WORLD_SEQS; i++) {
        struct world_seq *s = &w->seq[i];
        if (!s->live || s->space != which) continue;
        s->silent = true;
        pkv_match match = {.struct_size = sizeof match};
        WORLD_CHECK(w, pkv_prefix_match(w->cache, &space, s->token, s->length, &match) == PKV_OK,
                    "match after a drop");
        WORLD_CHECK(w, match.n_tokens == 0, "%llu tokens are found after a drop",
                    (unsigned long long)match.n_tokens);
    }
    world_check_all(w);
}

static void op_quota(struct world *w)
{
    if (!w->config.prefix) return;
    char bytes[8];
    const uint32_t which = world_below(w, WORLD_SPACES);
    const pkv_namespace space = world_space(which, bytes);
    const pkv_prefix_quota quota = {.struct_size = sizeof quota,
                                    .share = world_below(w, 8),
                                    .max = world_once(w, 4) ? 0 : 1 + world_below(w, 12)};
    if (!world_did(w, pkv_prefix_set_quota(w->cache, &space, &quota), "pkv_prefix_set_quota",
                   WORLD_OTHERS(PKV_ESTATE, PKV_EINVAL)))
        return;
    pkv_prefix_stats stats = {.struct_size = sizeof stats};
    WORLD_CHECK(w, pkv_prefix_get_stats(w->cache, &space, &stats) == PKV_OK, "stats");
    uint32_t n_nodes = 0;
    const pkv_status listed = pkv_prefix_list(w->cache, &space, NULL, NULL, 0, &n_nodes);
    WORLD_CHECK(w, listed == (n_nodes == 0 ? PKV_OK : PKV_ERANGE), "list of %u nodes", n_nodes);
    /* Pages that are in use stay beyond a smaller quota, and the counter does not tell groups
     * apart. */
    const uint64_t most = quota.max * (w->n_groups + w->n_states);
    if (quota.max == 0)
        w->quota_bound[which] = UINT64_MAX; /* a share: not all is found */
    else if (w->n_groups + w->n_states == 1)
        w->quota_bound[which] = most > stats.pages ? most : stats.pages;
    else
        w->quota_bound[which] = most + stats.pages;
    w->disturbed++;
}

static void op_reclaim(struct world *w)
{
    if (!w->config.prefix) return;
    if (w->n_states != 0 && world_once(w, 2)) {
        uint64_t slots = 0;
        const uint32_t state = w->n_groups + world_below(w, w->n_states);
        WORLD_CHECK(w, pkv_prefix_reclaim(w->cache, state, 3, &slots) == PKV_OK && slots <= 3,
                    "reclaim of states");
        w->disturbed++;
        return;
    }
    const uint32_t g = world_below(w, w->n_groups);
    pkv_group_stats before = {.struct_size = sizeof before}, after = before;
    WORLD_CHECK(w, pkv_cache_group_stats(w->cache, g, &before) == PKV_OK, "stats");
    const uint64_t n = world_once(w, 6) ? UINT64_MAX : world_below(w, 20);
    uint64_t freed = 0;
    WORLD_CHECK(w, pkv_prefix_reclaim(w->cache, g, n, &freed) == PKV_OK, "reclaim");
    WORLD_CHECK(w, pkv_cache_group_stats(w->cache, g, &after) == PKV_OK, "stats");
    WORLD_CHECK(w,
                freed <= n && after.pages_used == before.pages_used &&
                    before.pages_cached - after.pages_cached >= freed,
                "%llu pages freed, %llu of %llu cached are left", (unsigned long long)freed,
                (unsigned long long)after.pages_cached, (unsigned long long)before.pages_cached);
    w->disturbed++;
}

static void op_pin(struct world *w)
{
    const struct world_seq *s = world_any_seq(w);
    if (!w->config.prefix || s == NULL) return;
    pkv_pin *pin = &w->prefix_pin[world_below(w, WORLD_PREFIX_PINS)];
    if (*pin != 0) {
        const pkv_status status = pkv_prefix_unpin(w->cache, *pin);
        WORLD_CHECK(w, status == PKV_OK || status == PKV_ESTALE, "unpin: %s",
                    pkv_status_name(status));
        WORLD_CHECK(w, pkv_prefix_unpin(w->cache, *pin) == PKV_ESTALE, "unpinned twice");
        *pin = 0;
        return;
    }
    char bytes[8];
    const pkv_namespace space = world_space(s->space, bytes);
    pkv_match match = {.struct_size = sizeof match};
    if (!world_did(w, pkv_prefix_match(w->cache, &space, s->token, s->length, &match),
                   "pkv_prefix_match", WORLD_NONE))
        return;
    if (match.n_tokens == 0) return;
    const uint32_t priority =
        world_once(w, 10) ? PKV_PIN_FIRM : world_below(w, PKV_PRIORITY_MAX + 1);
    const uint64_t ttl = world_once(w, 2) ? 0 : 1 + world_below(w, 2000);
    (void)world_did(w, pkv_prefix_pin(w->cache, &match, priority, ttl, pin), "pkv_prefix_pin",
                    WORLD_NONE);
}

static void op_digests(struct world *w)
{
    const struct world_seq *s = world_any_seq(w);
    if (!w->config.prefix || s == NULL) return;
    char bytes[8];
    const pkv_namespace space = world_space(s->space, bytes);
    pkv_match match = {.struct_size = sizeof match};
    if (!world_did(w, pkv_prefix_match(w->cache, &space, s->token, s->length, &match),
                   "pkv_prefix_match", WORLD_NONE))
        return;
    pkv_digest kept[WORLD_PAGES], own[WORLD_PAGES];
    if (!world_did(w, pkv_prefix_digests(w->cache, &match, kept, WORLD_PAGES), "pkv_prefix_digests",
                   WORLD_OTHERS(PKV_ENOTSUP)))
        return;
    const pkv_status status =
        pkv_digest_tokens(&space, w->page_tokens, s->token, match.n_tokens, own, WORLD_PAGES);
    WORLD_CHECK(w, status == PKV_OK, "pkv_digest_tokens: %s", pkv_status_name(status));
    for (uint32_t i = 0; i < match.n_pages; i++)
        WORLD_CHECK(w, memcmp(&kept[i], &own[i], sizeof own[i]) == 0, "digest of page %u", i);
}

/* ---- the index without a cache -------------------------------------------------------------- */

static void op_index(struct world *w)
{
    pkv_index_config config;
    WORLD_CHECK(w, pkv_index_config_init(&config, sizeof config) == PKV_OK, "index config");
    config.pages = 2 + world_below(w, 12);
    uint32_t offline = 1, policy = world_below(w, 10);
    config.policy = pkv_policy_name(policy, &offline);
    if (config.policy == NULL || offline) config.policy = NULL;
    config.key[0] = 1;
    if (world_once(w, 2)) config.dense_ids = 40;
    config.allocator = &w->allocator.vtable;
    pkv_index *index;
    if (!world_did(w, pkv_index_create(&config, &index), "pkv_index_create", WORLD_NONE)) return;
    bool resident[40] = {false}; /* may be */
    for (uint32_t i = world_below(w, 12); i > 0; i--) {
        uint64_t ids[8];
        uint32_t hits = 99, found = 99;
        const uint32_t n = 1 + world_below(w, 6), first = world_below(w, 4) * 10;
        for (uint32_t j = 0; j < n; j++)
            ids[j] = first + j;
        WORLD_CHECK(w, pkv_index_match(index, ids, n, &found) == PKV_OK && found <= n, "match");
        for (uint32_t j = 0; j < found; j++)
            WORLD_CHECK(w, resident[ids[j]], "a block that was never inserted is found");
        if (!world_did(w, pkv_index_replay(index, ids, n, NULL, 0, &hits), "pkv_index_replay",
                       WORLD_NONE)) {
            for (uint32_t j = 0; j < n; j++)
                resident[ids[j]] = true; /* perhaps */
            continue;
        }
        WORLD_CHECK(w, hits == found, "%u hits instead of %u", hits, found);
        for (uint32_t j = 0; j < n; j++)
            resident[ids[j]] = true;
        pkv_index_stats stats = {.struct_size = sizeof stats};
        WORLD_CHECK(w,
                    pkv_index_get_stats(index, &stats) == PKV_OK && stats.pages <= config.pages &&
                        stats.pages <= stats.nodes,
                    "index stats");
    }
    char text[128];
    const uint64_t at = w->allocator.fail_at;
    w->allocator.fail_at = 0;
    WORLD_CHECK(w, pkv_index_verify(index, text, sizeof text) == PKV_OK, "index: %s", text);
    w->allocator.fail_at = at;
    pkv_index_destroy(index);
}

const struct world_op world_prefix_ops[] = {{"drop", op_drop, 2},
                                            {"quota", op_quota, 1},
                                            {"reclaim", op_reclaim, 1},
                                            {"prefix pin", op_pin, 3},
                                            {"digests", op_digests, 1},
                                            {"index", op_index, 1},
                                            {NULL, NULL, 0}};
