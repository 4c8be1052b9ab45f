/* The prefix index of a cache against a naive model.
 *
 * Every token slot of a page holds a tag: a hash of the namespace and all tokens up to there. So a
 * page that is attached, shared, copied or reclaimed wrongly shows as a wrong tag. The naive index
 * is a list of every prefix ever published; while nothing was reclaimed a match must be exactly the
 * longest of them, afterwards at most that. Tokens come from a tiny alphabet, so that prefixes
 * meet often; the same runs with every hash equal. */
#include <check.h>
#include <pagedkv/pagedkv.h>
#include <stdlib.h>
#include <string.h>

#include "random.h"
#include "suite.h"

enum {
    PAGE = 8,
    MAX_LENGTH = 160,
    MAX_SEQUENCES = 12,
    MAX_SPACES = 3,
    MAX_KNOWN = 20000,
    MAX_PINS = 8,
    MAX_GROUPS = 3
};

struct live {
    bool used;
    pkv_seq seq;
    int space;
    uint32_t n;
    uint32_t given; /* leading tokens that the library was told */
    bool dead;      /* its namespace was dropped under it, and it was never empty since */
    int32_t tokens[MAX_LENGTH];
};

/* A prefix of full pages that was published. */
struct known {
    int space;
    uint32_t n;
    int32_t tokens[MAX_LENGTH];
};

struct world {
    uint64_t seed;
    pkv_cache *cache;
    uint32_t n_groups;
    uint32_t window[MAX_GROUPS];
    struct live live[MAX_SEQUENCES];
    struct known *known;
    size_t n_known;
    bool lossy; /* something may have been reclaimed: matches may be shorter than the model's */
    pkv_pin pins[MAX_PINS];
    uint64_t clock;
};

static uint64_t world_clock(void *user)
{
    return ((struct world *)user)->clock;
}

static uint32_t below(struct world *w, uint32_t n)
{
    return (uint32_t)(pkvt_random(&w->seed) % n);
}

static const pkv_namespace spaces[MAX_SPACES] = {{NULL, 0}, {"a", 1}, {"ab", 2}};

static uint64_t tag_at(int space, const int32_t *tokens, uint32_t n)
{
    uint64_t tag = UINT64_C(0x1234567) * (uint64_t)(space + 1);
    for (uint32_t i = 0; i < n; i++)
        tag = (tag ^ (uint64_t)(uint32_t)tokens[i]) * UINT64_C(0x9e3779b97f4a7c15) + 1;
    return tag;
}

static uint64_t *slot(struct world *w, uint32_t group, pkv_page page, uint32_t at)
{
    void *base = NULL;
    ck_assert_int_eq(pkv_page_address(w->cache, group, page, 0, &base), PKV_OK);
    return (uint64_t *)base + at;
}

/* Writes or checks the tags of tokens [from, to) in every group that holds them. */
static void tags(struct world *w, const struct live *s, uint32_t from, uint32_t to, bool write)
{
    for (uint32_t g = 0; g < w->n_groups; g++)
        for (uint32_t i = from; i < to; i++) {
            pkv_page page;
            ck_assert_int_eq(pkv_seq_pages(s->seq, g, i / PAGE, 1, &page), PKV_OK);
            if (page == PKV_PAGE_NONE) {
                ck_assert_uint_ne(w->window[g], 0);
                continue;
            }
            uint64_t tag = tag_at(s->space, s->tokens, i + 1);
            if (write)
                *slot(w, g, page, i % PAGE) = tag;
            else
                ck_assert_uint_eq(*slot(w, g, page, i % PAGE), tag);
        }
}

/* What a window group may lack: pages that a query at the end does not see. */
static void check_contents(struct world *w, const struct live *s)
{
    for (uint32_t g = 0; g < w->n_groups; g++) {
        uint32_t first = 0;
        if (w->window[g] && s->n >= w->window[g]) first = (s->n - w->window[g] + 1) / PAGE;
        for (uint32_t p = first; p * PAGE < s->n; p++) {
            pkv_page page;
            ck_assert_int_eq(pkv_seq_pages(s->seq, g, p, 1, &page), PKV_OK);
            ck_assert_uint_ne(page, PKV_PAGE_NONE);
        }
    }
    tags(w, s, 0, s->n, false);
}

static uint32_t common(const int32_t *a, uint32_t n, const int32_t *b, uint32_t m)
{
    uint32_t i = 0;
    while (i < n && i < m && a[i] == b[i])
        i++;
    return i;
}

/* The longest prefix of tokens[0..n) that some published prefix starts with. */
static uint32_t naive_match(const struct world *w, int space, const int32_t *tokens, uint32_t n)
{
    uint32_t best = 0;
    for (size_t k = 0; k < w->n_known; k++) {
        if (w->known[k].space != space) continue;
        uint32_t c = common(w->known[k].tokens, w->known[k].n, tokens, n);
        if (c > best) best = c;
    }
    return best;
}

static void note_published(struct world *w, const struct live *s)
{
    uint32_t n = s->given / PAGE * PAGE;
    if (s->dead || n == 0 || naive_match(w, s->space, s->tokens, n) == n) return;
    ck_assert_uint_lt(w->n_known, MAX_KNOWN);
    struct known *k = &w->known[w->n_known++];
    k->space = s->space;
    k->n = n;
    memcpy(k->tokens, s->tokens, n * sizeof *k->tokens);
}

static struct live *pick(struct world *w, bool used)
{
    uint32_t at = below(w, MAX_SEQUENCES);
    for (uint32_t i = 0; i < MAX_SEQUENCES; i++) {
        struct live *s = &w->live[(at + i) % MAX_SEQUENCES];
        if (s->used == used) return s;
    }
    return NULL;
}

/* Half of the prompts continue something known, with a little noise. */
static uint32_t make_prompt(struct world *w, int space, int32_t *tokens)
{
    uint32_t n = 1 + below(w, MAX_LENGTH - 40), i = 0;
    if (w->n_known && below(w, 4)) {
        const struct known *k = &w->known[below(w, (uint32_t)w->n_known)];
        uint32_t m = below(w, k->n + 1);
        memcpy(tokens, k->tokens, m * sizeof *tokens);
        i = m;
        if (n < m) n = m ? m : 1;
        (void)space;
    }
    for (; i < n; i++)
        tokens[i] = (int32_t)below(w, 2);
    return n;
}

static pkv_match do_match(struct world *w, int space, const int32_t *tokens, uint32_t n)
{
    pkv_match m = {.struct_size = sizeof m};
    ck_assert_int_eq(pkv_prefix_match(w->cache, &spaces[space], tokens, n, &m), PKV_OK);
    uint32_t naive = naive_match(w, space, tokens, n);
    ck_assert_uint_le(m.n_tokens, naive);
    ck_assert_uint_eq(m.n_tokens, (uint64_t)m.n_pages * PAGE + m.partial_tokens);
    if (!w->lossy) ck_assert_uint_eq(m.n_tokens, naive);
    return m;
}

static void op_create(struct world *w)
{
    struct live *s = pick(w, false);
    if (!s) return;
    int32_t prompt[MAX_LENGTH];
    s->space = (int)below(w, MAX_SPACES);
    uint32_t n = make_prompt(w, s->space, prompt);
    ck_assert_int_eq(pkv_seq_create(w->cache, &s->seq), PKV_OK);
    s->used = true;
    s->dead = false;
    s->n = 0;
    pkv_match m = do_match(w, s->space, prompt, n);
    ck_assert_int_eq(pkv_seq_attach(s->seq, &m), PKV_OK);
    s->n = (uint32_t)m.n_tokens;
    s->given = s->n;
    memcpy(s->tokens, prompt, s->n * sizeof *prompt);
    uint64_t length;
    ck_assert_int_eq(pkv_seq_length(s->seq, &length), PKV_OK);
    ck_assert_uint_eq(length, s->n);
    check_contents(w, s);
}

static void op_destroy(struct world *w)
{
    struct live *s = pick(w, true);
    if (!s) return;
    ck_assert_int_eq(pkv_seq_destroy(s->seq), PKV_OK);
    s->used = false;
}

static void op_fork(struct world *w)
{
    struct live *s = pick(w, true), *child = pick(w, false);
    if (!s || !child) return;
    *child = *s;
    ck_assert_int_eq(pkv_seq_fork(s->seq, &child->seq), PKV_OK);
    check_contents(w, child);
}

static void op_truncate(struct world *w)
{
    struct live *s = pick(w, true);
    if (!s || s->n == 0) return;
    uint32_t n = below(w, s->n + 1);
    pkv_status status = pkv_seq_truncate(s->seq, n);
    if (status == PKV_EDROPPED) return; /* a window group no longer has what it would need */
    ck_assert_int_eq(status, PKV_OK);
    s->n = n;
    if (s->given > n) s->given = n;
    if (n == 0) s->dead = false;
    check_contents(w, s);
}

/* A batch over some sequences; reserve may fail for want of pages, then nothing happened. */
static void op_batch(struct world *w)
{
    pkv_batch batch;
    ck_assert_int_eq(pkv_batch_begin(w->cache, &batch), PKV_OK);
    struct live *entry[MAX_SEQUENCES];
    uint32_t n_new[MAX_SEQUENCES], accepted[MAX_SEQUENCES], n = 0;
    bool silent[MAX_SEQUENCES];
    for (uint32_t i = 0; i < MAX_SEQUENCES; i++) {
        struct live *s = &w->live[i];
        if (!s->used || s->n >= MAX_LENGTH - 24 || below(w, 3) == 0) continue;
        n_new[n] = 1 + below(w, below(w, 2) ? 20 : 3);
        accepted[n] = below(w, 4) ? n_new[n] : below(w, n_new[n] + 1);
        for (uint32_t k = 0; k < n_new[n]; k++)
            s->tokens[s->n + k] = (int32_t)below(w, 2);
        silent[n] = below(w, 60) == 0;
        const int32_t *tokens = silent[n] ? NULL : s->tokens + s->n;
        ck_assert_int_eq(pkv_batch_add(batch, s->seq, tokens, n_new[n]), PKV_OK);
        entry[n++] = s;
    }
    pkv_status status = n ? pkv_batch_reserve(batch) : PKV_ENOPAGES;
    if (status != PKV_OK) {
        ck_assert_int_eq(status, PKV_ENOPAGES);
        ck_assert_int_eq(pkv_batch_abort(batch), PKV_OK);
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        tags(w, entry[i], entry[i]->n, entry[i]->n + n_new[i], true);
    ck_assert_int_eq(pkv_batch_commit_partial(batch, accepted, n), PKV_OK);
    for (uint32_t i = 0; i < n; i++) {
        if (!silent[i] && entry[i]->given == entry[i]->n) entry[i]->given += accepted[i];
        entry[i]->n += accepted[i];
        note_published(w, entry[i]);
        check_contents(w, entry[i]);
    }
}

static void op_pin(struct world *w)
{
    uint32_t at = below(w, MAX_PINS);
    if (w->pins[at]) {
        pkv_status status = pkv_prefix_unpin(w->cache, w->pins[at]);
        ck_assert(status == PKV_OK || status == PKV_ESTALE);
        ck_assert_int_eq(pkv_prefix_unpin(w->cache, w->pins[at]), PKV_ESTALE);
        w->pins[at] = 0;
        return;
    }
    int32_t prompt[MAX_LENGTH];
    int space = (int)below(w, MAX_SPACES);
    uint32_t n = make_prompt(w, space, prompt);
    pkv_match m = do_match(w, space, prompt, n);
    if (m.n_tokens == 0) return;
    ck_assert_int_eq(
        pkv_prefix_pin(w->cache, &m, below(w, PKV_PIN_FIRM), 1 + below(w, 1000), &w->pins[at]),
        PKV_OK);
    w->clock += below(w, 200);
}

static void op_reclaim(struct world *w)
{
    uint64_t freed;
    ck_assert_int_eq(pkv_prefix_reclaim(w->cache, below(w, w->n_groups), below(w, 10), &freed),
                     PKV_OK);
    if (freed) w->lossy = true;
}

static void op_drop(struct world *w)
{
    int space = (int)below(w, MAX_SPACES);
    ck_assert_int_eq(pkv_prefix_drop(w->cache, &spaces[space], NULL), PKV_OK);
    size_t kept = 0;
    for (size_t k = 0; k < w->n_known; k++)
        if (w->known[k].space != space) w->known[kept++] = w->known[k];
    w->n_known = kept;
    for (uint32_t i = 0; i < MAX_SEQUENCES; i++)
        if (w->live[i].space == space && w->live[i].n) w->live[i].dead = true;
}

static void verify(struct world *w)
{
    char text[256] = "";
    pkv_status status = pkv_cache_verify(w->cache, text, sizeof text);
    ck_assert_msg(status == PKV_OK, "%s", text);
}

struct shape {
    const char *policy;
    uint32_t n_groups;
    uint32_t windows[MAX_GROUPS];
    bool collide, pressure;
};

static void open_world(struct world *w, const struct shape *shape, uint64_t seed)
{
    memset(w, 0, sizeof *w);
    w->seed = seed;
    w->known = malloc(MAX_KNOWN * sizeof *w->known);
    w->n_groups = shape->n_groups;
    w->lossy = shape->pressure || shape->n_groups > 1;
    pkv_group_config groups[MAX_GROUPS];
    memset(groups, 0, sizeof groups);
    for (uint32_t g = 0; g < shape->n_groups; g++) {
        w->window[g] = shape->windows[g];
        groups[g] = (pkv_group_config){.n_layers = 1,
                                       .kv_heads = 1,
                                       .head_dim_k = 8,
                                       .window = shape->windows[g],
                                       .dtype = PKV_DTYPE_F32,
                                       .max_pages = shape->pressure ? 110 : 0};
    }
    pkv_config config;
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    config.page_tokens = PAGE;
    config.groups = groups;
    config.n_groups = shape->n_groups;
    config.memory_limit = 64 << 20;
    config.prefix_policy = shape->policy;
    config.clock = world_clock;
    config.clock_user = w;
    config.debug = PKV_DEBUG_POISON | PKV_DEBUG_CHECKSUM;
    if (shape->collide) config.prefix_key[0] = config.prefix_key[1] = UINT64_MAX;
    ck_assert_int_eq(pkv_cache_create(&config, &w->cache), PKV_OK);
}

static void close_world(struct world *w)
{
    for (uint32_t i = 0; i < MAX_SEQUENCES; i++)
        if (w->live[i].used) ck_assert_int_eq(pkv_seq_destroy(w->live[i].seq), PKV_OK);
    verify(w);
    pkv_stats stats = {.struct_size = sizeof stats};
    ck_assert_int_eq(pkv_cache_stats(w->cache, &stats), PKV_OK);
    ck_assert_uint_eq(stats.pages_used, 0);
    for (int s = 0; s < MAX_SPACES; s++)
        ck_assert_int_eq(pkv_prefix_drop(w->cache, &spaces[s], NULL), PKV_OK);
    ck_assert_int_eq(pkv_cache_stats(w->cache, &stats), PKV_OK);
    ck_assert_uint_eq(stats.pages_cached, 0);
    ck_assert_uint_eq(stats.prefix_nodes, 0);
    pkv_cache_destroy(w->cache);
    free(w->known);
}

static void run(const struct shape *shape, uint64_t seed, int steps)
{
    static struct world world;
    struct world *w = &world;
    open_world(w, shape, seed);
    for (int i = 0; i < steps; i++) {
        uint32_t op = below(w, 100);
        if (op < 16)
            op_create(w);
        else if (op < 28)
            op_destroy(w);
        else if (op < 34)
            op_fork(w);
        else if (op < 42)
            op_truncate(w);
        else if (op < 90)
            op_batch(w);
        else if (op < 95)
            op_pin(w);
        else if (op < 97 && shape->pressure)
            op_reclaim(w);
        else if (op == 99 && below(w, 4) == 0)
            op_drop(w);
        if (i % 40 == 0) verify(w);
    }
    close_world(w);
}

static const struct shape shapes[] = {
    {"lru-leaf", 1, {0}, false, false},     {"lru-leaf", 1, {0}, true, false},
    {"lru-leaf", 1, {0}, false, true},      {"lru-leaf", 1, {0}, true, true},
    {"lru-leaf", 2, {0, 24}, false, true},  {"lru-leaf", 3, {0, 17, 40}, false, true},
    {"lru-leaf", 2, {16, 33}, false, true}, {"lru-leaf", 2, {0, 0}, false, true},
    {"lru-leaf", 2, {0, 24}, false, false},
};

START_TEST(against_model)
{
    uint64_t seed = pkvt_seed("prefix");
    for (int round = 0; round < 2; round++)
        run(&shapes[_i], seed * 1000 + (uint64_t)(_i * 10 + round), 1000);
}
END_TEST

START_TEST(every_policy)
{
    uint64_t seed = pkvt_seed("prefix policies");
    uint32_t offline;
    const char *name = pkv_policy_name((uint32_t)_i, &offline);
    if (!name || offline) return;
    struct shape one = {name, 1, {0}, false, true};
    struct shape two = {name, 2, {0, 24}, false, true};
    run(&one, seed + (uint64_t)_i, 1000);
    run(&two, seed + (uint64_t)_i + 100, 1000);
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("prefix");
    TCase *model = tcase_create("model");
    tcase_set_timeout(model, 200);
    tcase_add_loop_test(model, against_model, 0, (int)(sizeof shapes / sizeof *shapes));
    tcase_add_loop_test(model, every_policy, 0, 16);
    suite_add_tcase(suite, model);
    return suite;
}
