/* Operations on batches and admission. A step is spread over several operations, so that others
 * come in between. */
#include <string.h>

#include "world.h"

static struct world_batch *any_batch(struct world *w, bool reserved)
{
    const uint32_t from = world_below(w, WORLD_BATCHES);
    for (uint32_t i = 0; i < WORLD_BATCHES; i++) {
        struct world_batch *b = &w->batch[(from + i) % WORLD_BATCHES];
        if (b->live && b->reserved == reserved) return b;
    }
    return NULL;
}

static void op_begin(struct world *w)
{
    for (int i = 0; i < WORLD_BATCHES; i++) {
        struct world_batch *b = &w->batch[i];
        if (b->live) continue;
        memset(b, 0, sizeof *b);
        b->live =
            world_did(w, pkv_batch_begin(w->cache, &b->handle), "pkv_batch_begin", WORLD_NONE);
        return;
    }
}

static void op_add(struct world *w)
{
    struct world_batch *b = any_batch(w, false);
    struct world_seq *s = world_any_seq(w);
    if (b == NULL || s == NULL) return;
    uint32_t n = world_once(w, 3) ? 1 : 1 + world_below(w, WORLD_STEP);
    if (n > WORLD_LENGTH - s->length) n = WORLD_LENGTH - s->length;
    if (n == 0) return;
    struct world_entry e = {.seq = s, .n = n, .named = !world_once(w, 20)};
    uint64_t h = s->length > 0 ? s->history[s->length - 1] : world_first_history(w, s);
    for (uint32_t t = 0; t < n; t++) {
        e.token[t] = world_token(w, s->length + t);
        h = world_mix(h, (uint64_t)(uint32_t)e.token[t] + 1);
        e.history[t] = h;
    }
    const pkv_status status = pkv_batch_add(b->handle, s->handle, e.named ? e.token : NULL, n);
    if (s->batch >= 0) {
        WORLD_CHECK(w, status == PKV_EBUSY || status == PKV_EINVAL || status == PKV_ENOMEM,
                    "added twice: %s", pkv_status_name(status));
        return;
    }
    if (!world_did(w, status, "pkv_batch_add", WORLD_NONE)) return;
    b->entry[b->n_entries++] = e;
    s->batch = (int)(b - w->batch);
    world_keep_states(w, b, (uint32_t)b->n_entries - 1);
    if (!e.named || !world_once(w, 8)) return;
    /* The same ids again: as if they had come late. */
    world_did(w, pkv_batch_set_tokens(b->handle, (uint32_t)b->n_entries - 1, e.token, n),
              "pkv_batch_set_tokens", WORLD_NONE);
    uint64_t first, missing;
    WORLD_CHECK(w,
                !w->config.prefix ||
                    (pkv_seq_missing_tokens(s->handle, &first, &missing) == PKV_OK &&
                     first + missing == s->length &&
                     pkv_seq_set_tokens(s->handle, s->length, e.token, 0) == PKV_OK),
                "missing ids");
}

static void remove_entry(struct world *w, struct world_batch *b, int e)
{
    const pkv_status status = pkv_batch_remove(b->handle, (uint32_t)e);
    WORLD_CHECK(w, status == PKV_OK, "pkv_batch_remove: %s", pkv_status_name(status));
    b->entry[e].seq->batch = -1;
    for (b->n_entries--; e < b->n_entries; e++)
        b->entry[e] = b->entry[e + 1];
}

static void op_remove(struct world *w)
{
    struct world_batch *b = any_batch(w, false), *reserved = any_batch(w, true);
    if (reserved != NULL)
        WORLD_CHECK(w, pkv_batch_remove(reserved->handle, 0) == PKV_ESTATE, "removed too late");
    if (b != NULL && b->n_entries > 0)
        remove_entry(w, b, (int)world_below(w, (uint32_t)b->n_entries));
}

/* ---- reserve -------------------------------------------------------------------------------- */

static void set_trees(struct world *w, struct world_batch *b)
{
    for (int e = 0; e < b->n_entries; e++) {
        struct world_entry *entry = &b->entry[e];
        if (entry->n > 8 || !world_once(w, 4)) continue;
        uint8_t mask[8] = {0};
        uint32_t depth[8] = {0};
        for (uint32_t i = 0; i < entry->n; i++) {
            mask[i] = (uint8_t)(1u << i);
            if (i == 0) continue;
            const uint32_t parent = world_below(w, i);
            mask[i] |= mask[parent];
            depth[i] = depth[parent] + 1;
        }
        entry->tree = world_did(w, pkv_plan_set_tree(w->plan, (uint32_t)e, entry->n, mask, depth),
                                "pkv_plan_set_tree", WORLD_NONE);
    }
}

/* What the new tokens depend on. */
static void set_contents(struct world *w, struct world_entry *e)
{
    const struct world_seq *s = e->seq;
    e->dep = s->dep;
    for (uint32_t g = 0; g < w->n_groups; g++) {
        const struct world_policy *p = &s->policy[g];
        if (p->kind != PKV_EVICT_TOPK || e->n > 16) continue;
        uint32_t full = 0;
        for (uint32_t l = 0; l < s->length / w->page_tokens; l++)
            full += s->page[g][l] != PKV_PAGE_NONE;
        if (full > p->budget && (e->dep == 0 || (e->dep & 1))) e->dep = ++w->unique * 2;
    }
    for (uint32_t t = 0; t < e->n; t++)
        e->content[t] = world_content(e->history[t], e->dep);
}

static void check_reserved(struct world *w, struct world_batch *b)
{
    for (int e = 0; e < b->n_entries; e++) {
        struct world_seq *s = b->entry[e].seq;
        const struct world_seq before = *s;
        for (uint32_t g = 0; g < w->n_groups; g++)
            b->entry[e].tail[g] = s->length % w->page_tokens != 0
                                      ? s->page[g][s->length / w->page_tokens]
                                      : PKV_PAGE_NONE;
        s->n_pages = world_pages_for(w, s->length + b->entry[e].n);
        world_look(w, s);
        for (uint32_t g = 0; g < w->n_groups; g++)
            for (uint32_t l = 0; l < s->n_pages; l++) {
                if (l < s->length / w->page_tokens)
                    WORLD_CHECK(w, s->page[g][l] == before.page[g][l],
                                "group %u: reserve changed page %u", g, l);
                else
                    WORLD_CHECK(w, s->page[g][l] != PKV_PAGE_NONE,
                                "group %u: no page %u for new tokens", g, l);
            }
        if (!b->entry[e].named) s->silent = true;
    }
}

static void feed(struct world *w, struct world_batch *b)
{
    for (int e = 0; e < b->n_entries; e++)
        for (uint32_t g = 0; g < w->n_groups; g++) {
            const struct world_seq *s = b->entry[e].seq;
            float mass[WORLD_PAGES];
            uint32_t n = 0;
            for (uint32_t l = 0; l < s->n_pages; l++)
                if (s->page[g][l] != PKV_PAGE_NONE) mass[n++] = (float)world_below(w, 100);
            (void)world_did(w, pkv_seq_feed_mass(s->handle, g, mass, n), "pkv_seq_feed_mass",
                            WORLD_NONE);
        }
}

/* Contents of a reserved batch. False: there is no memory for the plan, without which a host cannot
 * write. */
static bool fill(struct world *w, struct world_batch *b)
{
    world_copy(w, b);
    for (int e = 0; e < b->n_entries; e++)
        set_contents(w, &b->entry[e]);
    if (w->config.storage != PKV_STORAGE_NONE) {
        if (w->plan == NULL && !world_make_plan(w)) return false;
        set_trees(w, b);
        if (!world_did(w, pkv_plan_build(w->plan, b->handle), "pkv_plan_build", WORLD_NONE) &&
            !world_did(w, pkv_plan_build(w->plan, b->handle), "pkv_plan_build", WORLD_NONE)) {
            pkv_plan_destroy(w->plan); /* with the trees, which were for this batch */
            w->plan = NULL;
            return false;
        }
    }
    world_write(w, b);
    world_write_states(w, b);
    if (w->plan != NULL && world_once(w, 12)) {
        world_attend(w, b);
        float mass[WORLD_PAGES];
        const pkv_status status = pkv_plan_mass(w->plan, 0, 0, 0, mass, 1);
        WORLD_CHECK(w, status == PKV_ESTATE || status == PKV_EINVAL || status == PKV_OK,
                    "pkv_plan_mass: %s", pkv_status_name(status));
    }
    if (world_once(w, 3)) feed(w, b);
    if (world_once(w, 4)) world_check_exports(w, b);
    return true;
}

static void abort_batch(struct world *w, struct world_batch *b)
{
    const pkv_status status = pkv_batch_abort(b->handle);
    WORLD_CHECK(w, status == PKV_OK, "abort: %s", pkv_status_name(status));
    b->live = false;
    for (int e = 0; e < b->n_entries; e++) {
        struct world_seq *s = b->entry[e].seq;
        const struct world_seq before = *s;
        s->batch = -1;
        s->n_pages = world_pages_for(w, s->length);
        world_look(w, s);
        for (uint32_t g = 0; g < w->n_groups; g++)
            for (uint32_t l = 0; l < s->length / w->page_tokens; l++)
                WORLD_CHECK(w, s->page[g][l] == before.page[g][l],
                            "group %u: an aborted step changed page %u", g, l);
        world_check_seq(w, s);
        world_check_contents(w, s);
    }
    b->reserved = false;
}

/* Asks admission first; *asked = it said yes. False: an entry should be left out. */
static bool ask(struct world *w, struct world_batch *b, bool *asked)
{
    uint32_t blocked = UINT32_MAX;
    const pkv_status status = pkv_admit_check_batch(b->handle, &blocked);
    *asked = status == PKV_OK;
    if (!world_did(w, status, "pkv_admit_check_batch", WORLD_OTHERS(PKV_EUNSAFE))) {
        WORLD_CHECK(w, status != PKV_EUNSAFE || blocked < (uint32_t)b->n_entries, "blocked %u",
                    blocked);
        if (status == PKV_EUNSAFE) remove_entry(w, b, (int)blocked);
        return world_once(w, 2);
    }
    return true;
}

/* Where admission's rule is a proof, says architecture.md. */
static bool is_proof(const struct world *w)
{
    const bool units = w->config.storage == PKV_STORAGE_HOST; /* several pages to a unit */
    bool taken = w->armed || (units && w->n_groups + w->n_states > 1 && w->config.prefix);
    for (int i = 0; i < WORLD_PREFIX_PINS; i++)
        taken = taken || w->prefix_pin[i] != 0;
    for (int i = 0; i < WORLD_MAGAZINES; i++)
        taken = taken || w->magazine[i].magazine != NULL;
    return !taken;
}

static void op_reserve(struct world *w)
{
    struct world_batch *b = any_batch(w, false);
    if (b == NULL || b->n_entries == 0) return;
    bool asked = false;
    if (world_once(w, 3) && !ask(w, b, &asked)) return;
    if (b->n_entries == 0) return;
    const pkv_status status = pkv_batch_reserve(b->handle);
    uint32_t missing[WORLD_GROUPS + WORLD_STATES] = {0};
    const uint32_t n_all = w->n_groups + w->n_states;
    WORLD_CHECK(w,
                pkv_batch_shortfall(b->handle, missing, w->n_groups) == PKV_OK &&
                    pkv_batch_shortfall(b->handle, missing, n_all) == PKV_OK,
                "shortfall");
    WORLD_CHECK(w, status != PKV_ENOPAGES || !asked || !is_proof(w),
                "admission allowed a step that finds no pages");
    if (!world_did(w, status, "pkv_batch_reserve", WORLD_OTHERS(PKV_ENOPAGES))) {
        bool any = false;
        for (uint32_t g = 0; g < n_all; g++)
            any = any || missing[g] > 0;
        WORLD_CHECK(w, any || status != PKV_ENOPAGES, "no pages, and none is missing");
        return;
    }
    for (uint32_t g = 0; g < n_all; g++)
        WORLD_CHECK(w, missing[g] == 0, "a shortfall after success");
    b->reserved = true;
    check_reserved(w, b);
    if (!fill(w, b)) abort_batch(w, b);
}

/* ---- end ------------------------------------------------------------------------------------ */

static void commit_entry(struct world *w, struct world_entry *e, uint32_t accepted)
{
    struct world_seq *s = e->seq;
    struct world_seq before = *s;
    for (uint32_t t = 0; t < accepted; t++) {
        s->token[s->length + t] = e->token[t];
        s->history[s->length + t] = e->history[t];
        s->content[s->length + t] = e->content[t];
    }
    for (uint32_t g = 0; g < w->n_groups; g++) /* a copy of the tail may have been in vain */
        if (accepted == 0 && e->tail[g] != PKV_PAGE_NONE) {
            pkv_page page = PKV_PAGE_NONE;
            const uint32_t l = s->length / w->page_tokens;
            (void)pkv_seq_pages(s->handle, g, l, 1, &page);
            if (page == e->tail[g]) before.page[g][l] = page;
        }
    for (uint32_t g = 0; g < w->n_groups && accepted > 0; g++) {
        const uint32_t page = (s->length + accepted) / w->page_tokens;
        s->open[g] = w->group[g].quantised && (s->length + accepted) % w->page_tokens != 0
                         ? e->open[g][page - s->length / w->page_tokens].open
                         : PKV_PAGE_NONE;
    }
    s->length += accepted;
    s->n_pages = world_pages_for(w, s->length);
    s->batch = -1;
    if (accepted > 0) s->dep = e->dep;
    /* The step itself left something out, so what comes depends on it. */
    world_look(w, s);
    world_check_drops(w, s, before.page, false);
    for (uint32_t g = 0; g < w->n_groups; g++)
        for (uint32_t l = 0; l < s->n_pages; l++)
            w->evictions += before.page[g][l] != PKV_PAGE_NONE && s->page[g][l] == PKV_PAGE_NONE;
    s->dep = world_next_dep(w, s, s->dep);
    world_check_seq(w, s);
    if (world_once(w, 3)) world_check_contents(w, s);
    world_check_published(w, s);
}

/* The first new tokens, named as paths: contents depend on all tokens before them, so a host that
 * writes before it knows the path would have others. */
static pkv_status commit_paths(struct world *w, const struct world_batch *b,
                               const uint32_t *accepted)
{
    uint32_t kept[WORLD_SEQS * WORLD_STEP], n = 0, copies = 1;
    for (int e = 0; e < b->n_entries; e++)
        for (uint32_t i = 0; i < accepted[e]; i++)
            kept[n++] = i;
    WORLD_CHECK(w,
                pkv_batch_path_copies(b->handle, 0, 0, kept, accepted[0], NULL, 0, &copies) ==
                        PKV_OK &&
                    copies == 0,
                "%u copies for tokens that stay", copies);
    return pkv_batch_commit_paths(b->handle, kept, accepted, (uint32_t)b->n_entries);
}

static void op_commit(struct world *w)
{
    struct world_batch *b = any_batch(w, true);
    if (b == NULL) return;
    uint32_t accepted[WORLD_SEQS];
    const bool partial = world_once(w, 3), paths = partial && world_once(w, 2);
    for (int e = 0; e < b->n_entries; e++)
        accepted[e] = partial ? world_below(w, b->entry[e].n + 1) : b->entry[e].n;
    bool there = true;
    for (int e = 0; e < b->n_entries; e++)
        there = there && world_has_state(w, &b->entry[e], accepted[e]);
    if (!there) {
        const pkv_status refused =
            pkv_batch_commit_partial(b->handle, accepted, (uint32_t)b->n_entries);
        WORLD_CHECK(w, refused == PKV_EDROPPED, "accepted without a state: %s",
                    pkv_status_name(refused));
        for (int e = 0; e < b->n_entries; e++)
            if (!world_has_state(w, &b->entry[e], accepted[e])) accepted[e] = b->entry[e].n;
    }
    const pkv_status status =
        paths     ? commit_paths(w, b, accepted)
        : partial ? pkv_batch_commit_partial(b->handle, accepted, (uint32_t)b->n_entries)
                  : pkv_batch_commit(b->handle);
    WORLD_CHECK(w, status == PKV_OK, "commit: %s", pkv_status_name(status));
    WORLD_CHECK(w, pkv_batch_commit(b->handle) == PKV_ESTALE, "committed twice");
    b->live = b->reserved = false;
    for (int e = 0; e < b->n_entries; e++)
        commit_entry(w, &b->entry[e], accepted[e]);
    w->commits++;
}

static void op_abort(struct world *w)
{
    struct world_batch *b = any_batch(w, world_once(w, 2));
    if (b != NULL) abort_batch(w, b);
}

/* ---- admission ------------------------------------------------------------------------------ */

static void op_admit(struct world *w)
{
    uint32_t safe = 2, missing[WORLD_GROUPS];
    const uint32_t tokens = 20 + world_below(w, WORLD_LENGTH - 20);
    if (!world_did(
            w, pkv_admit_probe(w->cache, tokens, world_below(w, 20), &safe, missing, w->n_groups),
            "pkv_admit_probe", WORLD_NONE))
        return;
    WORLD_CHECK(w, safe <= 1, "safe is %u", safe);
    pkv_admit_outlook outlook = {.struct_size = sizeof outlook};
    if (!world_did(w, pkv_admit_probe_match(w->cache, NULL, tokens, &outlook, missing, w->n_groups),
                   "pkv_admit_probe_match", WORLD_NONE))
        return;
    WORLD_CHECK(w, outlook.safe <= 1, "safe is %u", outlook.safe);
    struct world_seq *s = world_any_seq(w);
    if (s == NULL) return;
    if (s->ticket) {
        WORLD_CHECK(w, pkv_admit(s->handle, WORLD_LENGTH) != PKV_OK, "a second ticket");
        s->ticket = pkv_admit_release(s->handle) != PKV_OK;
        WORLD_CHECK(w, !s->ticket || s->batch >= 0, "ticket");
        return;
    }
    const pkv_status status = pkv_admit(s->handle, WORLD_LENGTH);
    if (s->batch >= 0 && status == PKV_EBUSY) return;
    s->ticket = world_did(w, status, "pkv_admit", WORLD_OTHERS(PKV_EUNSAFE));
}

const struct world_op world_batch_ops[] = {{"begin", op_begin, 24},     {"add", op_add, 50},
                                           {"reserve", op_reserve, 30}, {"commit", op_commit, 26},
                                           {"abort", op_abort, 3},      {"remove", op_remove, 2},
                                           {"admit", op_admit, 2},      {NULL, NULL, 0}};
