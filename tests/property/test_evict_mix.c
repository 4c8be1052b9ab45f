/* Eviction under everything at once: steps of one and of many tokens, partial and aborted batches,
 * forks, truncations that undo the journal, pins and changes of policy, against a plain model of
 * which pages each sequence holds and of their scores in double precision. After every operation
 * the model and the library agree; pkv_cache_verify agrees with both. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <pagedkv/pagedkv.h>

#include "random.h"
#include "suite.h"

#define P 8u
#define MAX_PAGES 400u
#define MAX_SEQS 12u
#define MAX_PINS 3u

struct page {
    bool resident;
    double score; /* MASS: S; LRU_MASS: step of the last use */
    double age;
    bool seen;
};

struct undo {
    uint32_t logical;
    uint64_t length, step;
    struct page page;
};

struct model {
    bool alive;
    pkv_seq seq;
    uint64_t length, steps, mass_steps;
    struct page pages[MAX_PAGES];
    pkv_evict_config config; /* resolved: budget in pages, window in tokens */
    struct undo journal[MAX_PAGES];
    uint32_t n_journal;
    uint64_t pins[MAX_PINS][2];
    uint32_t n_pins;
};

static pkv_cache *cache;
static struct model models[MAX_SEQS];
static uint64_t rng;

/* ---- the model ------------------------------------------------------------------------------ */

static bool pinned(const struct model *m, uint32_t logical)
{
    for (uint32_t i = 0; i < m->n_pins; i++)
        if (m->pins[i][0] < (logical + 1ull) * P && (uint64_t)logical * P < m->pins[i][1])
            return true;
    return false;
}

static bool candidate(const struct model *m, uint32_t logical)
{
    const uint64_t sinks = m->config.kind == PKV_EVICT_WINDOW ? 0 : m->config.sinks;
    const uint64_t first = (uint64_t)logical * P, last = first + P - 1;
    if (!m->pages[logical].resident || last >= m->length || first < sinks) return false;
    return last + m->config.window < m->length && !pinned(m, logical);
}

static uint32_t full_resident(const struct model *m)
{
    uint32_t n = 0;
    for (uint32_t l = 0; l < m->length / P; l++)
        n += m->pages[l].resident;
    return n;
}

static double host_score(uint32_t logical)
{
    return (double)(logical * 2654435761u >> 20);
}

static void score_pages(void *user, pkv_seq seq, uint32_t group, uint64_t n_tokens,
                        const uint32_t *logical, float *scores, uint32_t n)
{
    (void)user, (void)seq, (void)group, (void)n_tokens;
    for (uint32_t i = 0; i < n; i++)
        scores[i] = (float)host_score(logical[i]);
}

static double value(const struct model *m, uint32_t logical)
{
    const struct page *p = &m->pages[logical];
    switch (m->config.kind) {
    case PKV_EVICT_WINDOW:
    case PKV_EVICT_SINK:
        return logical;
    case PKV_EVICT_CALLBACK:
        return host_score(logical);
    case PKV_EVICT_LRU_MASS:
        return p->seen ? p->score - (double)m->mass_steps : 0;
    case PKV_EVICT_MASS:
        if (p->age == 0) return p->score;
        if (m->config.gamma >= 1) return p->score / p->age;
        return p->score / (1 - pow((double)m->config.gamma, p->age));
    default:
        return 0; /* RANDOM: any page may go */
    }
}

static void observe(struct model *m, const float *mass, uint32_t n_pages, uint32_t rows)
{
    double total = 0;
    uint32_t i = 0;
    for (i = 0; i < n_pages; i++)
        total += (double)mass[i];
    if (total == 0 || rows == 0) return;
    m->mass_steps++;
    i = 0;
    if (m->config.kind == PKV_EVICT_MASS && m->config.gamma <= 0) rows = 1;
    for (uint32_t l = 0; (uint64_t)l * P < m->length; l++) {
        struct page *p = &m->pages[l];
        if (!p->resident) continue;
        const double share = (double)mass[i++] / total;
        if (m->config.kind == PKV_EVICT_LRU_MASS) {
            if (share > (double)m->config.epsilon / n_pages || !p->seen)
                p->score = (double)m->mass_steps;
            p->seen = true;
        } else {
            const double behind = (double)(m->length - (uint64_t)l * P);
            const double seen = behind < rows ? behind : rows;
            const double decay = pow((double)m->config.gamma, seen);
            p->age += seen;
            p->score = m->config.gamma >= 1 ? p->score + share * rows
                                            : decay * p->score + (1 - decay) * share * rows / seen;
        }
    }
}

/* What the library dropped must be what the policy says; the model then follows. */
static void follow_commit(struct model *m)
{
    pkv_page held[MAX_PAGES];
    const uint32_t pages = (uint32_t)((m->length + P - 1) / P);
    if (pages > 0) ck_assert_int_eq(pkv_seq_pages(m->seq, 0, 0, pages, held), PKV_OK);
    m->steps++;
    uint32_t n = 0;
    for (uint32_t i = 0; i < m->n_journal; i++)
        if (m->journal[i].step + m->config.journal_steps > m->steps)
            m->journal[n++] = m->journal[i];
    m->n_journal = n;

    const uint32_t full = full_resident(m);
    uint32_t candidates = 0, dropped = 0;
    double worst = -INFINITY, best = INFINITY; /* highest dropped, lowest kept */
    for (uint32_t l = 0; l < pages; l++) {
        const bool may_go = m->config.kind != PKV_EVICT_NONE && candidate(m, l);
        candidates += may_go;
        if (!m->pages[l].resident) {
            ck_assert(held[l] == PKV_PAGE_NONE);
        } else if (held[l] == PKV_PAGE_NONE) {
            ck_assert_msg(may_go, "page %u was protected", l);
            dropped++;
            worst = fmax(worst, value(m, l));
        } else if (may_go) {
            best = fmin(best, value(m, l));
        }
    }
    uint32_t over = full > m->config.budget ? full - (uint32_t)m->config.budget : 0;
    if (m->config.kind == PKV_EVICT_NONE) over = 0;
    ck_assert_uint_eq(dropped, over < candidates ? over : candidates);
    if (dropped > 0)
        ck_assert_msg(worst <= best + 1e-6 + 1e-4 * fabs(best), "dropped %g, kept %g", worst, best);
    for (uint32_t l = 0; l < pages; l++) {
        struct page *p = &m->pages[l];
        if (!p->resident || held[l] != PKV_PAGE_NONE) continue;
        if (m->config.journal_steps > 0)
            m->journal[m->n_journal++] =
                (struct undo){.logical = l, .length = m->length, .step = m->steps, .page = *p};
        *p = (struct page){0};
    }
}

static void compare(const struct model *m)
{
    pkv_seq_info info = {.struct_size = sizeof info};
    ck_assert_int_eq(pkv_seq_get_info(m->seq, 0, &info), PKV_OK);
    ck_assert_uint_eq(info.length, m->length);
    const uint32_t pages = (uint32_t)((m->length + P - 1) / P);
    pkv_page held[MAX_PAGES];
    if (pages > 0) ck_assert_int_eq(pkv_seq_pages(m->seq, 0, 0, pages, held), PKV_OK);
    uint32_t resident = 0;
    for (uint32_t l = 0; l < pages; l++) {
        ck_assert_msg((held[l] != PKV_PAGE_NONE) == m->pages[l].resident, "page %u", l);
        resident += m->pages[l].resident;
    }
    ck_assert_uint_eq(info.resident_pages, resident);
    pkv_evict_info evict = {.struct_size = sizeof evict};
    ck_assert_int_eq(pkv_seq_evict_info(m->seq, 0, &evict), PKV_OK);
    ck_assert_uint_eq(evict.journal_pages, m->n_journal);
    ck_assert_uint_eq(evict.dropped_tokens, (uint64_t)(pages - resident) * P);
    /* The other group has no policy: its window alone decides. */
    ck_assert_int_eq(pkv_seq_evict_info(m->seq, 1, &evict), PKV_OK);
    ck_assert_int_eq(evict.kind, PKV_EVICT_NONE);
    pkv_evict_run runs[MAX_PAGES];
    uint32_t n, seen = 0;
    ck_assert_int_eq(pkv_seq_runs(m->seq, 0, runs, MAX_PAGES, &n), PKV_OK);
    for (uint32_t i = 0; i < n; i++) {
        for (uint64_t t = runs[i].first; t < runs[i].first + runs[i].n_tokens; t++)
            ck_assert(m->pages[t / P].resident);
        ck_assert_uint_eq(runs[i].shift, runs[i].first - (uint64_t)seen * P);
        seen += (uint32_t)((runs[i].n_tokens + P - 1) / P);
    }
    ck_assert_uint_eq(seen, resident);
}

/* ---- operations ----------------------------------------------------------------------------- */

static struct model *pick(bool alive)
{
    for (int i = 0; i < 40; i++) {
        struct model *m = &models[pkvt_below(&rng, MAX_SEQS)];
        if (m->alive == alive) return m;
    }
    return NULL;
}

static void choose_policy(struct model *m)
{
    static const char *const names[] = {"none", "window",   "sink",   "mass",    "h2o",
                                        "tova", "lru-mass", "random", "callback"};
    const uint32_t budget = 1 + pkvt_below(&rng, 12);
    pkv_evict_config c;
    ck_assert_int_eq(pkv_evict_config_named(&c, sizeof c, names[pkvt_below(&rng, 9)], budget * P),
                     PKV_OK);
    c.sinks = pkvt_below(&rng, budget * P / 2 + 1);
    if (pkvt_below(&rng, 2)) {
        const uint32_t room = budget - (c.kind == PKV_EVICT_WINDOW ? 0 : (c.sinks + P - 1) / P);
        c.window = pkvt_below(&rng, room * P + 1);
    }
    if (c.kind == PKV_EVICT_MASS && c.gamma > 0 && c.gamma < 1) c.gamma = 0.9f;
    c.journal_steps = pkvt_below(&rng, 3) ? pkvt_below(&rng, 5) : 0;
    c.seed = pkvt_random(&rng);
    c.score = score_pages;
    ck_assert_int_eq(pkv_seq_set_evict(m->seq, 0, &c), PKV_OK);
    m->config.struct_size = sizeof m->config;
    ck_assert_int_eq(pkv_seq_get_evict(m->seq, 0, &m->config), PKV_OK);
    m->n_journal = 0;
    m->steps = m->mass_steps = 0;
    for (uint32_t l = 0; l < MAX_PAGES; l++)
        m->pages[l] = (struct page){.resident = m->pages[l].resident};
}

static void op_create(void)
{
    struct model *m = pick(false);
    if (m == NULL) return;
    memset(m, 0, sizeof *m);
    m->alive = true;
    ck_assert_int_eq(pkv_seq_create(cache, &m->seq), PKV_OK);
    choose_policy(m);
}

static void op_destroy(void)
{
    struct model *m = pick(true);
    if (m == NULL) return;
    ck_assert_int_eq(pkv_seq_destroy(m->seq), PKV_OK);
    m->alive = false;
}

static void op_fork(void)
{
    struct model *m = pick(true), *child = pick(false);
    if (m == NULL || child == NULL) return;
    *child = *m;
    ck_assert_int_eq(pkv_seq_fork(m->seq, &child->seq), PKV_OK);
    child->n_journal = 0;
    compare(child);
}

static void op_pin(void)
{
    struct model *m = pick(true);
    if (m == NULL) return;
    if (m->n_pins > 0 && pkvt_below(&rng, 2)) {
        m->n_pins--;
        ck_assert_int_eq(pkv_seq_unpin(m->seq, m->pins[m->n_pins][0], m->pins[m->n_pins][1]),
                         PKV_OK);
    } else if (m->n_pins < MAX_PINS) {
        const uint64_t begin = pkvt_below(&rng, 300), end = begin + 1 + pkvt_below(&rng, 40);
        ck_assert_int_eq(pkv_seq_pin(m->seq, begin, end), PKV_OK);
        m->pins[m->n_pins][0] = begin;
        m->pins[m->n_pins++][1] = end;
    }
}

static void op_policy(void)
{
    struct model *m = pick(true);
    if (m != NULL) choose_policy(m);
}

static void op_truncate(void)
{
    struct model *m = pick(true);
    if (m == NULL || m->length == 0) return;
    const uint64_t back = pkvt_below(&rng, 4) ? pkvt_below(&rng, 30) : pkvt_below(&rng, 400);
    const uint64_t n = m->length > back ? m->length - back : 0;
    struct model next = *m;
    while (next.n_journal > 0 && next.journal[next.n_journal - 1].length > n) {
        const struct undo *u = &next.journal[--next.n_journal];
        if ((uint64_t)u->logical * P >= n) continue;
        next.pages[u->logical] = u->page;
        next.pages[u->logical].resident = true;
    }
    for (uint64_t l = (n + P - 1) / P; l < MAX_PAGES; l++)
        next.pages[l] = (struct page){0};
    next.length = n;
    const pkv_status status = pkv_seq_truncate(m->seq, n);
    bool lost = n != m->length && n % P != 0 && !next.pages[n / P].resident;
    if (n == m->length) {
        ck_assert_int_eq(status, PKV_OK);
        return;
    }
    /* The window group may refuse on its own. */
    if (status == PKV_EDROPPED) {
        pkv_seq_info info = {.struct_size = sizeof info};
        ck_assert_int_eq(pkv_seq_get_info(m->seq, 1, &info), PKV_OK);
        ck_assert(lost || info.dropped_pages > 0);
        return;
    }
    ck_assert_int_eq(status, PKV_OK);
    ck_assert(!lost);
    *m = next;
}

static void op_batch(void)
{
    struct model *in[MAX_SEQS];
    uint32_t n_new[MAX_SEQS], accepted[MAX_SEQS], n = 0;
    const uint32_t chunk = pkvt_below(&rng, 3) ? 3 : 60;
    pkv_batch batch;
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    for (uint32_t i = 0; i < MAX_SEQS; i++) {
        struct model *m = &models[i];
        if (!m->alive || pkvt_below(&rng, 3) == 0) continue;
        n_new[n] = 1 + pkvt_below(&rng, chunk);
        if ((m->length + n_new[n]) / P + 2 > MAX_PAGES) continue;
        int32_t tokens[64];
        for (uint32_t t = 0; t < n_new[n]; t++)
            tokens[t] = (int32_t)pkvt_below(&rng, 3);
        ck_assert_int_eq(
            pkv_batch_add(batch, m->seq, pkvt_below(&rng, 2) ? tokens : NULL, n_new[n]), PKV_OK);
        in[n++] = m;
    }
    if (n == 0) {
        ck_assert_int_eq(pkv_batch_abort(batch), PKV_OK);
        return;
    }
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    const bool abort = pkvt_below(&rng, 8) == 0, partial = pkvt_below(&rng, 3) == 0;
    static float mass[MAX_SEQS][MAX_PAGES];
    uint32_t n_mass[MAX_SEQS];
    for (uint32_t e = 0; e < n; e++) {
        pkv_seq_info info = {.struct_size = sizeof info};
        ck_assert_int_eq(pkv_seq_get_info(in[e]->seq, 0, &info), PKV_OK);
        n_mass[e] = pkvt_below(&rng, 5) ? info.resident_pages : 0;
        for (uint32_t i = 0; i < n_mass[e]; i++)
            mass[e][i] = in[e]->config.kind == PKV_EVICT_LRU_MASS
                             ? (pkvt_below(&rng, 3) ? 0.0001f : 1)
                             : (float)(1 + pkvt_below(&rng, 1000)) / 64;
        if (n_mass[e] > 0)
            ck_assert_int_eq(pkv_seq_feed_mass(in[e]->seq, 0, mass[e], n_mass[e]), PKV_OK);
        accepted[e] = partial ? pkvt_below(&rng, n_new[e] + 1) : n_new[e];
    }
    if (abort) {
        ck_assert_int_eq(pkv_batch_abort(batch), PKV_OK);
        return;
    }
    ck_assert_int_eq(pkv_batch_commit_partial(batch, accepted, n), PKV_OK);
    for (uint32_t e = 0; e < n; e++) {
        struct model *m = in[e];
        const uint32_t pages = (uint32_t)((m->length + n_new[e] + P - 1) / P);
        const uint32_t kept = (uint32_t)((m->length + accepted[e] + P - 1) / P);
        for (uint32_t l = (uint32_t)((m->length + P - 1) / P); l < kept; l++)
            m->pages[l] = (struct page){.resident = true};
        m->length += accepted[e];
        const bool wants = m->config.kind == PKV_EVICT_MASS || m->config.kind == PKV_EVICT_LRU_MASS;
        if (wants && n_mass[e] > 0) observe(m, mass[e], n_mass[e] - (pages - kept), accepted[e]);
        follow_commit(m);
    }
}

static void verify(void)
{
    char text[256];
    const pkv_status status = pkv_cache_verify(cache, text, sizeof text);
    ck_assert_msg(status == PKV_OK, "verify: %s", text);
}

static void run(uint32_t operations, bool prefix)
{
    pkv_config config;
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    pkv_group_config groups[2] = {{.n_layers = 1, .kv_heads = 1, .head_dim_k = 8},
                                  {.n_layers = 1, .kv_heads = 1, .head_dim_k = 8, .window = 50}};
    config.groups = groups;
    config.n_groups = 2;
    config.page_tokens = P;
    config.storage = PKV_STORAGE_NONE;
    config.memory_limit = 64u << 20;
    config.prefix = prefix;
    ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_OK);
    memset(models, 0, sizeof models);
    for (uint32_t i = 0; i < operations; i++) {
        const uint32_t dice = pkvt_below(&rng, 100);
        if (dice < 6)
            op_create();
        else if (dice < 8)
            op_destroy();
        else if (dice < 14)
            op_fork();
        else if (dice < 20)
            op_pin();
        else if (dice < 24)
            op_policy();
        else if (dice < 40)
            op_truncate();
        else
            op_batch();
        for (uint32_t s = 0; s < MAX_SEQS; s++)
            if (models[s].alive) compare(&models[s]);
        if (i % 8 == 0) verify();
    }
    for (uint32_t s = 0; s < MAX_SEQS; s++)
        if (models[s].alive) ck_assert_int_eq(pkv_seq_destroy(models[s].seq), PKV_OK);
    verify();
    pkv_cache_destroy(cache);
}

START_TEST(follows_the_model)
{
    rng = pkvt_seed("follows_the_model");
    for (int i = 0; i < 20; i++)
        run(400, i % 2);
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("evict_mix");
    TCase *tc = tcase_create("mix");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, follows_the_model);
    suite_add_tcase(suite, tc);
    return suite;
}
