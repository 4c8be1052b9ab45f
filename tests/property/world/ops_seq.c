/* Operations on sequences: life, forks, truncation, pins, policies, attaching. */
#include <string.h>

#include "world.h"

struct world_seq *world_any_seq(struct world *w)
{
    const uint32_t from = world_below(w, WORLD_SEQS);
    for (uint32_t i = 0; i < WORLD_SEQS; i++) {
        struct world_seq *s = &w->seq[(from + i) % WORLD_SEQS];
        if (s->live) return s;
    }
    return NULL;
}

struct world_seq *world_free_seq(struct world *w)
{
    for (uint32_t i = 0; i < WORLD_SEQS; i++)
        if (!w->seq[i].live) return &w->seq[i];
    return NULL;
}

int32_t world_token(struct world *w, uint32_t at)
{
    /* Two streams that agree for a while, and a few strays. */
    if (world_once(w, 24)) return (int32_t)world_below(w, 3);
    return (int32_t)(world_mix(world_once(w, 12) ? 1 : 0, at) % 3);
}

/* A change of a sequence that is in a batch must be refused. */
static bool is_busy(struct world *w, const struct world_seq *s, pkv_status status)
{
    if (s->batch < 0) return false;
    WORLD_CHECK(w, status == PKV_EBUSY, "%s of a busy sequence: %s", w->op_name,
                pkv_status_name(status));
    return true;
}

static void op_create(struct world *w)
{
    struct world_seq *s = world_free_seq(w);
    if (s == NULL) return;
    pkv_seq handle;
    if (!world_did(w, pkv_seq_create(w->cache, &handle), "pkv_seq_create", WORLD_NONE)) return;
    memset(s, 0, sizeof *s);
    s->live = true;
    s->handle = handle;
    s->batch = -1;
    s->born = w->disturbed;
    memcpy(s->policy, w->defaults, sizeof s->policy);
}

static void op_destroy(struct world *w)
{
    struct world_seq *s = world_any_seq(w);
    if (s == NULL) return;
    const pkv_status status = pkv_seq_destroy(s->handle);
    if (is_busy(w, s, status)) return;
    WORLD_CHECK(w, status == PKV_OK, "pkv_seq_destroy: %s", pkv_status_name(status));
    WORLD_CHECK(w, pkv_seq_destroy(s->handle) == PKV_ESTALE, "destroyed twice");
    uint64_t length;
    WORLD_CHECK(w, pkv_seq_length(s->handle, &length) == PKV_ESTALE, "a stale handle works");
    s->live = false;
}

static void op_fork(struct world *w)
{
    struct world_seq *s = world_any_seq(w), *child = world_free_seq(w);
    if (s == NULL || child == NULL) return;
    pkv_seq handle;
    const pkv_status status = pkv_seq_fork(s->handle, &handle);
    if (is_busy(w, s, status)) return;
    if (!world_did(w, status, "pkv_seq_fork", WORLD_NONE)) return;
    *child = *s;
    child->handle = handle;
    child->ticket = false;
    world_check_seq(w, child);
    world_check_contents(w, child);
}

/* ---- truncation ----------------------------------------------------------------------------- */

/* Is something missing that a sequence of n tokens needs to go on? */
static bool is_short(const struct world *w, const struct world_seq *s, uint32_t n)
{
    for (uint32_t g = 0; g < w->n_groups; g++) {
        if (n % w->page_tokens != 0 && s->page[g][n / w->page_tokens] == PKV_PAGE_NONE) return true;
        if (w->group_config[g].window == 0) continue;
        for (uint32_t l = 0; l < world_pages_for(w, n); l++)
            if (s->page[g][l] == PKV_PAGE_NONE && !world_left(w, g, l, n)) return true;
    }
    return false;
}

void world_truncate(struct world *w, struct world_seq *s, uint32_t n)
{
    const pkv_status status = pkv_seq_truncate(s->handle, n);
    if (is_busy(w, s, status)) return;
    if (n > s->length) {
        WORLD_CHECK(w, status == PKV_EINVAL, "truncated to more: %s", pkv_status_name(status));
        return;
    }
    if (n == s->length) {
        WORLD_CHECK(w, status == PKV_OK, "truncated to itself: %s", pkv_status_name(status));
        return;
    }
    const bool was_short = is_short(w, s, n) || (w->n_states > 0 && n > 0 && !s->mark[n]);
    bool journal = false;
    for (uint32_t g = 0; g < w->n_groups; g++)
        journal = journal || s->policy[g].journal > 0;
    WORLD_CHECK(w, status != PKV_EDROPPED || was_short, "truncation to %u is PKV_EDROPPED", n);
    WORLD_CHECK(w, status != PKV_OK || journal || !was_short || world_misses(w, s),
                "truncation to %u succeeds without its pages", n);
    if (!world_did(w, status, "pkv_seq_truncate", WORLD_OTHERS(PKV_EDROPPED))) return;
    const struct world_seq before = *s;
    for (uint32_t g = 0; g < w->n_groups; g++)
        if (n % w->page_tokens == 0 || n / w->page_tokens != s->length / w->page_tokens)
            s->open[g] = PKV_PAGE_NONE;
    s->length = n;
    memset(s->mark + n + 1, 0, WORLD_LENGTH - n);
    s->n_pages = world_pages_for(w, n);
    world_look(w, s);
    for (uint32_t g = 0; g < w->n_groups; g++) {
        for (uint32_t l = 0; l < s->n_pages; l++) {
            if (before.page[g][l] == s->page[g][l]) continue;
            WORLD_CHECK(w, before.page[g][l] == PKV_PAGE_NONE && s->policy[g].journal > 0,
                        "group %u: truncation changed page %u", g, l);
            w->undone++;
        }
        WORLD_CHECK(w, n % w->page_tokens == 0 || s->page[g][n / w->page_tokens] != PKV_PAGE_NONE,
                    "group %u: no tail page after truncation to %u", g, n);
    }
    bool plain = true;
    for (uint32_t t = 0; t < n; t++)
        plain = plain && s->content[t] == world_content(s->history[t], 0);
    if (plain && !world_misses(w, s))
        s->dep = 0;
    else
        s->dep = world_next_dep(w, s, s->dep);
    world_check_seq(w, s);
    world_check_contents(w, s);
}

static void op_truncate(struct world *w)
{
    struct world_seq *s = world_any_seq(w);
    if (s == NULL) return;
    uint32_t n = world_below(w, s->length + 2);
    if (!world_once(w, 3) && s->length > 12) n = s->length - world_below(w, 12);
    if (world_once(w, 12)) n = 0;
    world_truncate(w, s, n);
}

/* ---- pins and policies ---------------------------------------------------------------------- */

static void op_pin(struct world *w)
{
    struct world_seq *s = world_any_seq(w);
    if (s == NULL) return;
    if (s->n_pins == WORLD_PINS || (s->n_pins > 0 && world_once(w, 2))) {
        const uint32_t i = world_below(w, s->n_pins);
        const pkv_status status = pkv_seq_unpin(s->handle, s->pin[i].begin, s->pin[i].end);
        if (is_busy(w, s, status)) return;
        WORLD_CHECK(w, status == PKV_OK, "pkv_seq_unpin: %s", pkv_status_name(status));
        s->pin[i] = s->pin[--s->n_pins];
        const struct world_seq before = *s;
        world_look(w, s);
        for (uint32_t g = 0; g < w->n_groups; g++)
            for (uint32_t l = 0; l < s->n_pages; l++) {
                const bool held = before.page[g][l] != PKV_PAGE_NONE;
                const bool stays =
                    !world_left(w, g, l, s->length) || world_pinned(s, w->page_tokens, l);
                WORLD_CHECK(w, s->page[g][l] == (held && stays ? before.page[g][l] : PKV_PAGE_NONE),
                            "group %u: page %u after an unpin", g, l);
            }
        return;
    }
    const uint32_t begin = world_below(w, WORLD_LENGTH), end = begin + 1 + world_below(w, 20);
    const pkv_status status = pkv_seq_pin(s->handle, begin, end);
    if (is_busy(w, s, status)) return;
    if (!world_did(w, status, "pkv_seq_pin", s->ticket ? WORLD_OTHERS(PKV_EUNSAFE) : WORLD_NONE))
        return;
    s->pin[s->n_pins].begin = begin;
    s->pin[s->n_pins++].end = end;
}

/* The host's scores: any function of the page. */
static void score(void *user, pkv_seq seq, uint32_t group, uint64_t n_tokens,
                  const uint32_t *logical, float *scores, uint32_t n)
{
    (void)user;
    (void)seq;
    for (uint32_t i = 0; i < n; i++)
        scores[i] = (float)(world_mix(n_tokens + group, logical[i]) % 1000);
}

static pkv_evict_config random_policy(struct world *w, struct world_policy *policy)
{
    static const char *names[] = {"none", "window",   "sink",    "window",   "sink",
                                  "mass", "obs",      "h2o",     "lru-mass", "random",
                                  "tova", "callback", "keydiff", "topk"};
    pkv_evict_config c;
    const char *name = names[world_below(w, 14)];
    const uint32_t pages = 2 + world_below(w, 6);
    WORLD_CHECK(
        w, pkv_evict_config_named(&c, sizeof c, name, (uint64_t)pages * w->page_tokens) == PKV_OK,
        "policy %s", name);
    if (world_once(w, 3))
        WORLD_CHECK(w, pkv_evict_config_init(&c, sizeof c, c.kind, c.budget) == PKV_OK, "kind");
    c.sinks = world_below(w, 2) * (1 + world_below(w, w->page_tokens));
    if (c.kind == PKV_EVICT_CALLBACK) c.score = score;
    if (world_once(w, 2)) c.journal_steps = 1 + world_below(w, 6);
    if (world_once(w, 4)) c.position_mode = PKV_POSITION_COMPACT;
    if (world_once(w, 4)) c.pool = 1;
    if (world_once(w, 4)) c.mass_every = 1 + world_below(w, 4);
    if (world_once(w, 4)) c.regret = 1;
    c.regret_pages = 1 + world_below(w, 8);
    c.seed = world_below(w, 100);
    *policy =
        (struct world_policy){.kind = c.kind, .journal = c.journal_steps, .mode = c.position_mode};
    return c;
}

static void op_policy(struct world *w)
{
    const uint32_t group = world_once(w, 2) ? PKV_EVICT_FULL_GROUPS : world_below(w, w->n_groups);
    struct world_policy policy;
    const pkv_evict_config c = random_policy(w, &policy);
    char text[128];
    const pkv_status possible = pkv_evict_check(w->cache, group, &c, text, sizeof text);
    if (possible == PKV_ENOTSUP || possible == PKV_EINVAL) {
        WORLD_CHECK(w, text[0] != '\0', "a refused policy without a text");
        const pkv_status status = pkv_cache_set_evict(w->cache, group, &c);
        WORLD_CHECK(w, status == possible || status == PKV_ENOMEM, "cache_set_evict");
        return;
    }
    if (!world_did(w, possible, "pkv_evict_check", WORLD_NONE)) return;
    WORLD_CHECK(w, pkv_evict_kind_name(c.kind)[0] != '?', "name of a kind");
    struct world_seq *s = world_any_seq(w);
    if (s == NULL || world_once(w, 5)) {
        if (!world_did(w, pkv_cache_set_evict(w->cache, group, &c), "pkv_cache_set_evict",
                       WORLD_NONE))
            return;
        pkv_seq seq; /* shows the library's choices */
        if (!world_did(w, pkv_seq_create(w->cache, &seq), "pkv_seq_create", WORLD_NONE)) {
            WORLD_CHECK(w, pkv_cache_set_evict(w->cache, group, NULL) == PKV_OK, "no default");
            for (uint32_t g = 0; g < w->n_groups; g++)
                if (g == group ||
                    (group == PKV_EVICT_FULL_GROUPS && w->group_config[g].window == 0))
                    w->defaults[g] = (struct world_policy){0};
            return;
        }
        for (uint32_t g = 0; g < w->n_groups; g++) {
            pkv_evict_info info = {.struct_size = sizeof info};
            pkv_evict_config got = {.struct_size = sizeof got};
            WORLD_CHECK(w, pkv_seq_evict_info(seq, g, &info) == PKV_OK, "evict info");
            WORLD_CHECK(w, pkv_seq_get_evict(seq, g, &got) == PKV_OK, "get evict");
            WORLD_CHECK(w, info.kind == got.kind, "kinds differ");
            w->defaults[g] =
                (struct world_policy){.kind = got.kind,
                                      .budget = info.budget_pages,
                                      .sinks = info.sink_pages,
                                      .window = got.kind == PKV_EVICT_NONE ? 0 : got.window,
                                      .journal = got.journal_steps,
                                      .mode = got.position_mode};
        }
        WORLD_CHECK(w, pkv_seq_destroy(seq) == PKV_OK, "destroy");
        return;
    }
    const pkv_status status =
        pkv_seq_set_evict(s->handle, group, policy.kind == PKV_EVICT_NONE ? NULL : &c);
    if (is_busy(w, s, status)) return;
    if (!world_did(w, status, "pkv_seq_set_evict", WORLD_NONE)) return;
    for (uint32_t g = 0; g < w->n_groups; g++) {
        pkv_evict_info info = {.struct_size = sizeof info};
        pkv_evict_config got = {.struct_size = sizeof got};
        WORLD_CHECK(w, pkv_seq_evict_info(s->handle, g, &info) == PKV_OK, "evict info");
        WORLD_CHECK(w, pkv_seq_get_evict(s->handle, g, &got) == PKV_OK, "get evict");
        s->policy[g] = (struct world_policy){.kind = got.kind,
                                             .budget = info.budget_pages,
                                             .sinks = info.sink_pages,
                                             .window = got.kind == PKV_EVICT_NONE ? 0 : got.window,
                                             .journal = got.journal_steps,
                                             .mode = got.position_mode};
    }
    if (s->dep != 0) s->dep = ++w->unique * 2; /* of two policies */
    s->dep = world_next_dep(w, s, s->dep);
    world_check_seq(w, s);
}

/* ---- prefixes ------------------------------------------------------------------------------- */

/* Which of what it may be has each attached token? */
static void learn_contents(struct world *w, struct world_seq *s)
{
    const uint64_t salt = world_salt(w, s);
    for (uint32_t t = 0; t < s->length; t++) {
        s->content[t] = world_content(s->history[t], 0);
        for (uint32_t g = 0; g < w->n_groups; g++) {
            if (s->page[g][t / w->page_tokens] == PKV_PAGE_NONE) continue;
            if (!world_reads(w, s, g, t, t + 1, s->content) && salt != 0) {
                s->content[t] = world_content(s->history[t], salt);
                s->dep = salt;
            }
            break;
        }
    }
    world_check_contents(w, s);
}

static void op_attach(struct world *w)
{
    if (!w->config.prefix) return;
    struct world_seq *s = NULL;
    for (int i = 0; i < WORLD_SEQS && s == NULL; i++)
        if (w->seq[i].live && w->seq[i].length == 0 && w->seq[i].batch < 0) s = &w->seq[i];
    if (s == NULL) op_create(w);
    if (s == NULL || world_once(w, 16)) s = world_any_seq(w);
    if (s == NULL) return;
    const struct world_seq *like = world_any_seq(w);
    int32_t tokens[WORLD_LENGTH];
    uint32_t n = world_below(w, WORLD_LENGTH / 2);
    for (uint32_t t = 0; t < n; t++) {
        tokens[t] = world_token(w, t);
        if (like->length > t && !world_once(w, 64)) tokens[t] = like->token[t];
    }
    pkv_match match = {.struct_size = sizeof match};
    char bytes[8];
    const uint32_t wanted = world_below(w, WORLD_SPACES);
    const pkv_namespace space = world_space(wanted, bytes);
    uint32_t in = s->space;
    if (world_once(w, 2)) {
        if (!world_did(w, pkv_seq_match(s->handle, tokens, n, &match), "pkv_seq_match", WORLD_NONE))
            return;
    } else {
        if (!world_did(w, pkv_prefix_match(w->cache, &space, tokens, n, &match), "pkv_prefix_match",
                       WORLD_NONE))
            return;
        in = wanted;
    }
    WORLD_CHECK(w,
                match.n_tokens <= n && match.partial_tokens < w->page_tokens &&
                    match.n_tokens == match.n_pages * w->page_tokens + match.partial_tokens,
                "a match of %llu tokens", (unsigned long long)match.n_tokens);
    const bool admit = !s->ticket && world_once(w, 3);
    const pkv_status status = admit ? pkv_admit_attach(s->handle, &match, WORLD_LENGTH)
                                    : pkv_seq_attach(s->handle, &match);
    if (s->length != 0 || s->batch >= 0) {
        WORLD_CHECK(w, status == PKV_ESTATE || status == PKV_EBUSY,
                    "attached to a sequence of %u tokens: %s", s->length, pkv_status_name(status));
        return;
    }
    if (!world_did(w, status, admit ? "pkv_admit_attach" : "pkv_seq_attach",
                   admit ? WORLD_OTHERS(PKV_EUNSAFE) : WORLD_NONE))
        return;
    s->ticket = s->ticket || admit;
    s->space = in;
    s->length = (uint32_t)match.n_tokens;
    s->n_pages = world_pages_for(w, s->length);
    s->born = UINT64_MAX; /* others' pages */
    s->dep = 0;
    uint64_t h = world_first_history(w, s);
    for (uint32_t t = 0; t < s->length; t++) {
        s->token[t] = tokens[t];
        s->history[t] = h = world_mix(h, (uint64_t)(uint32_t)tokens[t] + 1);
    }
    world_look(w, s);
    struct world_seq before = *s;
    for (uint32_t g = 0; g < w->n_groups; g++) /* nothing tells what was dropped at once */
        for (uint32_t l = 0; l < s->n_pages; l++)
            if (before.page[g][l] == PKV_PAGE_NONE && !world_left(w, g, l, s->length))
                before.page[g][l] = 1;
    world_check_drops(w, s, before.page, true);
    learn_contents(w, s);
    s->dep = world_next_dep(w, s, s->dep);
    if (s->length > 0) {
        w->hits++;
        w->hit_tokens += s->length;
    }
    world_check_seq(w, s);
}

static void op_space(struct world *w)
{
    struct world_seq *s = world_any_seq(w);
    if (s == NULL || !w->config.prefix) return;
    char bytes[8];
    const uint32_t wanted = world_below(w, WORLD_SPACES);
    const pkv_namespace space = world_space(wanted, bytes);
    const pkv_status status = pkv_seq_set_namespace(s->handle, &space);
    if (is_busy(w, s, status)) return;
    if (s->length != 0) {
        WORLD_CHECK(w, status == PKV_ESTATE, "namespace of %u tokens: %s", s->length,
                    pkv_status_name(status));
        return;
    }
    if (!world_did(w, status, "pkv_seq_set_namespace", WORLD_NONE)) return;
    s->space = wanted;
}

static void op_retention(struct world *w)
{
    struct world_seq *s = world_any_seq(w);
    if (s == NULL || !w->config.prefix) return;
    const pkv_status status = pkv_seq_set_retention(s->handle, world_below(w, PKV_PRIORITY_MAX + 1),
                                                    world_once(w, 2) ? 0 : world_below(w, 1000));
    if (s->batch >= 0 && status == PKV_EBUSY) return;
    (void)world_did(w, status, "pkv_seq_set_retention", WORLD_NONE);
}

static void op_look(struct world *w)
{
    struct world_seq *s = world_any_seq(w);
    if (s == NULL) return;
    uint32_t tainted = 0, wants = 0;
    WORLD_CHECK(w, pkv_seq_tainted(s->handle, &tainted) == PKV_OK && tainted <= 1, "tainted");
    WORLD_CHECK(w, tainted || s->dep == 0 || (s->dep & 1) != 0,
                "a sequence that depends on data is not tainted");
    for (uint32_t g = 0; g < w->n_groups; g++)
        WORLD_CHECK(w, pkv_seq_wants_mass(s->handle, g, &wants) == PKV_OK, "wants mass");
    world_check_seq(w, s);
    world_check_contents(w, s);
}

const struct world_op world_seq_ops[] = {{"create", op_create, 12},
                                         {"destroy", op_destroy, 9},
                                         {"fork", op_fork, 5},
                                         {"truncate", op_truncate, 7},
                                         {"pin", op_pin, 3},
                                         {"policy", op_policy, 4},
                                         {"attach", op_attach, 12},
                                         {"namespace", op_space, 4},
                                         {"retention", op_retention, 1},
                                         {"look", op_look, 3},
                                         {NULL, NULL, 0}};
