/* Admission: a scheduler that asks the library before it admits and before it steps never
 * deadlocks, whatever it is given; the same scheduler without asking does.
 *
 *     test_admission [schedules [small]]        PKV_SEED=… repeats a run
 *
 * Small schedules have up to six sequences of a few pages: hundreds of them a second, for long runs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <pagedkv/pagedkv.h>

#include "random.h"

#define RUNNING 24
#define PROMPTS 4
#define MAX_FORKS 12 /* or they outrun the finished */

struct request {
    pkv_seq seq;
    uint32_t prompt, claim; /* tokens */
    uint32_t length;
    int32_t salt; /* of its token ids; < PROMPTS: shares its prompt */
};

struct schedule {
    pkv_cache *cache;
    uint64_t random, seed;
    bool ask; /* use the rule */
    bool small;
    uint32_t most_running;
    uint32_t n_groups;
    struct request running[RUNNING];
    uint32_t n_running;
    uint32_t to_come, finished, refused, forks, pins, pins_refused;
};

static void fail(const struct schedule *s, int line, const char *what)
{
    char text[256];
    pkv_cache_last_error(s->cache, text, sizeof text);
    fprintf(stderr, "test_admission.c:%d: seed %llu: %s (last error: %s)\n", line,
            (unsigned long long)s->seed, what, text);
    exit(1);
}

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) fail(s, __LINE__, #condition);                                           \
    } while (0)

static uint32_t below(struct schedule *s, uint32_t n)
{
    return pkvt_below(&s->random, n);
}

static void open_schedule(struct schedule *s, uint64_t seed, bool ask, bool small)
{
    memset(s, 0, sizeof *s);
    s->seed = s->random = seed;
    s->ask = ask;
    s->small = small;
    s->to_come = small ? 10 : 30;
    s->most_running = small ? 6 : RUNNING;
    s->n_groups = 1 + below(s, 3);
    pkv_config config;
    pkv_config_init(&config, sizeof config);
    pkv_group_config groups[3] = {{0}};
    const bool quantised = below(s, 3) == 0;
    for (uint32_t g = 0; g < s->n_groups; g++)
        groups[g] = (pkv_group_config){
            .n_layers = 1 + below(s, 4),
            .kv_heads = 8,
            .head_dim_k = 128,
            .window = g == 0 ? 0 : 20 + below(s, small ? 60 : 200),
            .max_pages = below(s, 4) != 0 ? 0 : small ? 12 + below(s, 12) : 60 + below(s, 60),
            .dtype_k = quantised ? PKV_DTYPE_K8 : 0,
            .dtype_v = quantised ? PKV_DTYPE_V4 : 0,
        };
    config.groups = groups;
    config.n_groups = s->n_groups;
    config.storage = PKV_STORAGE_NONE;
    config.page_tokens = 16;
    config.memory_limit = (uint64_t)(small ? 4 + below(s, 5) : 12 + below(s, 12)) << 20;
    config.prefix = below(s, 2);
    config.watermark_pages = below(s, 3) == 0 ? below(s, 4) : 0;
    CHECK(pkv_cache_create(&config, &s->cache) == PKV_OK);
}

static void end_request(struct schedule *s, uint32_t i)
{
    CHECK(pkv_seq_destroy(s->running[i].seq) == PKV_OK);
    s->running[i] = s->running[--s->n_running];
}

/* ---- admitting ------------------------------------------------------------------------------ */

static void token_ids(const struct request *r, uint32_t first, uint32_t n, int32_t *ids)
{
    for (uint32_t i = 0; i < n; i++)
        ids[i] = r->salt * 100000 + (int32_t)(first + i);
}

/* What is known of the prompt; false if nothing is. */
static bool find(struct schedule *s, const struct request *r, pkv_match *match)
{
    static int32_t ids[1000];
    token_ids(r, 0, r->prompt, ids);
    *match = (pkv_match){.struct_size = sizeof *match};
    const pkv_status status = pkv_prefix_match(s->cache, NULL, ids, r->prompt, match);
    return status == PKV_OK && match->n_tokens != 0;
}

static uint32_t attach(struct schedule *s, struct request *r)
{
    pkv_match match;
    if (!find(s, r, &match)) return 0;
    CHECK(pkv_seq_attach(r->seq, &match) == PKV_OK);
    return (uint32_t)match.n_tokens;
}

/* Attaches and admits in one; 1 = done, 0 = must wait, -1 = nothing is known of the prompt. What the
 * outlook says is what happens. */
static int attach_admitted(struct schedule *s, struct request *r)
{
    pkv_match match;
    if (!find(s, r, &match)) return -1;
    pkv_admit_outlook outlook = {.struct_size = sizeof outlook};
    CHECK(pkv_admit_probe_match(s->cache, &match, r->claim, &outlook, NULL, 0) == PKV_OK);
    const pkv_status status = pkv_admit_attach(r->seq, &match, r->claim);
    CHECK(status == (outlook.safe ? PKV_OK : PKV_EUNSAFE));
    if (status == PKV_OK) r->length = (uint32_t)match.n_tokens;
    return status == PKV_OK;
}

/* Gives the next request to the cache; false if it must wait. */
static bool admit(struct schedule *s, struct request *r)
{
    uint32_t safe = 1, missing[3] = {0};
    if (s->ask)
        CHECK(pkv_admit_probe(s->cache, r->claim, 0, &safe, missing, s->n_groups) == PKV_OK);
    uint32_t lacking = 0;
    for (uint32_t g = 0; g < s->n_groups; g++)
        lacking += missing[g];
    CHECK(safe == (lacking == 0));
    CHECK(pkv_seq_create(s->cache, &r->seq) == PKV_OK);
    const int at_once = s->ask && below(s, 2) ? attach_admitted(s, r) : -1;
    if (at_once == 1) return true;
    if (at_once == 0) {
        CHECK(pkv_seq_destroy(r->seq) == PKV_OK);
        return false;
    }
    r->length = attach(s, r);
    if (!s->ask) return true;
    const pkv_status status = pkv_admit(r->seq, r->claim);
    CHECK(status == PKV_OK || status == PKV_EUNSAFE);
    CHECK(r->length != 0 || (status == PKV_OK) == (safe == 1)); /* the probe told so */
    if (status == PKV_OK) return true;
    CHECK(pkv_seq_destroy(r->seq) == PKV_OK);
    return false;
}

static bool admit_next(struct schedule *s)
{
    if (s->to_come == 0 || s->n_running == s->most_running) return false;
    struct request r = {.salt = (int32_t)below(s, 2 * PROMPTS)};
    if (r.salt >= PROMPTS) r.salt += (int32_t)s->to_come;
    const uint32_t scale = s->small ? 4 : 1;
    r.prompt = 1 + below(s, (below(s, 3) == 0 ? 700 : 200) / scale);
    r.claim = r.prompt + 1 + below(s, 200 / scale);
    if (!admit(s, &r)) {
        if (s->n_running != 0) return false;
        s->refused++; /* does not even fit an empty cache */
        s->to_come--;
        return true;
    }
    s->running[s->n_running++] = r;
    s->to_come--;
    return true;
}

static void fork_one(struct schedule *s)
{
    if (s->n_running == 0 || s->n_running == s->most_running || s->forks == MAX_FORKS) return;
    const struct request *parent = &s->running[below(s, s->n_running)];
    struct request child = *parent;
    CHECK(pkv_seq_fork(parent->seq, &child.seq) == PKV_OK);
    child.salt += 1000;
    if (s->ask) {
        const pkv_status status = pkv_admit(child.seq, child.claim);
        CHECK(status == PKV_OK || status == PKV_EUNSAFE);
        if (status == PKV_EUNSAFE) {
            CHECK(pkv_seq_destroy(child.seq) == PKV_OK);
            return;
        }
    }
    s->forks++;
    s->running[s->n_running++] = child;
}

/* Pins or unpins some tokens of somebody, who may not bear it. */
static void pin_one(struct schedule *s)
{
    if (s->n_running == 0) return;
    const struct request *r = &s->running[below(s, s->n_running)];
    const uint64_t begin = below(s, r->claim), end = begin + 1 + below(s, 100);
    const pkv_status status = pkv_seq_pin(r->seq, begin, end);
    CHECK(status == PKV_OK || status == PKV_EUNSAFE || status == PKV_ERANGE);
    s->pins += status == PKV_OK;
    s->pins_refused += status == PKV_EUNSAFE;
    if (status == PKV_OK && below(s, 3) == 0) CHECK(pkv_seq_unpin(r->seq, begin, end) == PKV_OK);
}

/* ---- stepping ------------------------------------------------------------------------------- */

/* Reserves and commits `n[i]` tokens for the requests in which[]; false if the pages lack. */
static bool step(struct schedule *s, uint32_t *which, uint32_t *n, uint32_t *count)
{
    pkv_batch batch;
    for (;;) {
        if (*count == 0) return false;
        CHECK(pkv_batch_begin(s->cache, &batch) == PKV_OK);
        for (uint32_t i = 0; i < *count; i++) {
            const struct request *r = &s->running[which[i]];
            static int32_t ids[1000];
            token_ids(r, r->length, n[i], ids);
            CHECK(pkv_batch_add(batch, r->seq, ids, n[i]) == PKV_OK);
        }
        if (!s->ask) break;
        uint32_t blocked = 12345;
        const pkv_status status = pkv_admit_check_batch(batch, &blocked);
        if (status == PKV_OK) break;
        CHECK(status == PKV_EUNSAFE && blocked < *count);
        CHECK(pkv_batch_abort(batch) == PKV_OK);
        /* Leave it out and ask again. */
        (*count)--;
        memmove(which + blocked, which + blocked + 1, (*count - blocked) * sizeof *which);
        memmove(n + blocked, n + blocked + 1, (*count - blocked) * sizeof *n);
    }
    const pkv_status status = pkv_batch_reserve(batch);
    if (status == PKV_ENOPAGES && !s->ask) {
        CHECK(pkv_batch_abort(batch) == PKV_OK);
        return false;
    }
    CHECK(status == PKV_OK); /* what the check allows must be there */
    CHECK(pkv_batch_commit(batch) == PKV_OK);
    for (uint32_t i = 0; i < *count; i++)
        s->running[which[i]].length += n[i];
    return true;
}

static uint32_t chunk(struct schedule *s, const struct request *r, uint32_t most)
{
    const uint32_t left = r->claim - r->length;
    uint32_t n = r->length < r->prompt ? 1 + below(s, r->prompt - r->length) : 1;
    if (n > most) n = most;
    return n < left ? n : left;
}

/* One round of the host's loop; false if nothing can move any more. */
static bool round_of(struct schedule *s)
{
    uint32_t which[RUNNING], n[RUNNING], count = 0;
    const uint32_t first = s->n_running != 0 ? below(s, s->n_running) : 0;
    for (uint32_t i = 0; i < s->n_running; i++) {
        const uint32_t r = (first + i) % s->n_running;
        if (s->running[r].length == s->running[r].claim) continue;
        which[count] = r;
        n[count++] = chunk(s, &s->running[r], 64);
    }
    bool moved = step(s, which, n, &count);
    /* Nothing together or in large chunks: one by one, one token each. */
    for (uint32_t i = 0; i < s->n_running && !moved; i++) {
        const uint32_t r = (first + i) % s->n_running;
        if (s->running[r].length == s->running[r].claim) continue;
        which[0] = r;
        n[0] = 1;
        count = 1;
        moved = step(s, which, n, &count);
    }
    for (uint32_t i = s->n_running; i-- > 0;)
        if (s->running[i].length >= s->running[i].claim) {
            end_request(s, i);
            s->finished++;
            moved = true;
        }
    return moved;
}

/* Plays a schedule to its end; false if it deadlocked. */
static bool play(struct schedule *s)
{
    char text[256];
    for (uint32_t round = 0; s->to_come != 0 || s->n_running != 0; round++) {
        while (admit_next(s))
            if (below(s, 3) == 0) break;
        if (below(s, 12) == 0) fork_one(s);
        if (below(s, 12) == 0) pin_one(s);
        if (!round_of(s) && s->n_running != 0) return false;
        CHECK(round < 200000);
        if (round % 256 == 0) CHECK(pkv_cache_verify(s->cache, text, sizeof text) == PKV_OK);
    }
    return true;
}

/* ---- a case of its own ---------------------------------------------------------------------- */

/* One sequence with a ticket, to `tokens` in one step and then to its claim in single ones. */
static void open_one(struct schedule *s, struct request *r, uint32_t tokens, uint32_t claim)
{
    CHECK(pkv_seq_create(s->cache, &r->seq) == PKV_OK);
    CHECK(pkv_admit(r->seq, claim) == PKV_OK);
    for (r->length = 0; r->length < claim; r->length += tokens, tokens = 1) {
        pkv_batch batch;
        uint32_t blocked;
        CHECK(pkv_batch_begin(s->cache, &batch) == PKV_OK);
        CHECK(pkv_batch_add(batch, r->seq, NULL, tokens) == PKV_OK);
        CHECK(pkv_admit_check_batch(batch, &blocked) == PKV_OK);
        CHECK(pkv_batch_reserve(batch) == PKV_OK);
        CHECK(pkv_batch_commit(batch) == PKV_OK);
    }
}

/* Memory for 127 pages, of which the second group may have 44. Whatever ends in whatever order, what
 * the first group was promised must be there. */
static void play_cut_region(struct schedule *s)
{
    memset(s, 0, sizeof *s);
    pkv_config config;
    pkv_config_init(&config, sizeof config);
    pkv_group_config groups[2] = {
        {.n_layers = 1, .kv_heads = 8, .head_dim_k = 128},
        {.n_layers = 1, .kv_heads = 8, .head_dim_k = 128, .window = 497, .max_pages = 44},
    };
    config.groups = groups;
    config.n_groups = 2;
    config.storage = PKV_STORAGE_NONE;
    config.page_tokens = 16;
    config.region_bytes = UINT64_C(2) << 20;
    config.memory_limit = UINT64_C(8) << 20;
    CHECK(pkv_cache_create(&config, &s->cache) == PKV_OK);
    struct request first, second, third;
    open_one(s, &first, 500, 500);
    open_one(s, &second, 192, 192);
    CHECK(pkv_seq_destroy(first.seq) == PKV_OK);
    CHECK(pkv_cache_trim(s->cache, NULL) == PKV_OK);
    CHECK(pkv_seq_destroy(second.seq) == PKV_OK);
    open_one(s, &third, 1, 90 * 16);
    CHECK(pkv_seq_destroy(third.seq) == PKV_OK);
    pkv_cache_destroy(s->cache);
}

int main(int argc, char **argv)
{
    const uint64_t seed = pkvt_seed("test_admission");
    const uint32_t n = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 12;
    const bool small = argc > 2 && strcmp(argv[2], "small") == 0;
    static struct schedule s;
    uint32_t deadlocks = 0, finished = 0, refused = 0, forks = 0, pins = 0, pins_refused = 0;
    play_cut_region(&s);
    /* A region that max_pages cuts short stood empty: it once counted as a whole one. */
    open_schedule(&s, 1795510171, true, false);
    if (!play(&s)) fail(&s, __LINE__, "deadlock under the rule");
    pkv_cache_destroy(s.cache);
    for (uint32_t i = 0; i < n; i++) {
        open_schedule(&s, seed + i, true, small);
        if (!play(&s)) fail(&s, __LINE__, "deadlock under the rule");
        finished += s.finished;
        refused += s.refused;
        forks += s.forks;
        pins += s.pins;
        pins_refused += s.pins_refused;
        pkv_cache_destroy(s.cache);
        if (small && i % 64 != 0) continue; /* that they deadlock otherwise is known */
        open_schedule(&s, seed + i, false, small);
        deadlocks += !play(&s);
        pkv_cache_destroy(s.cache);
    }
    printf("test_admission: %u schedules, %u requests finished, %u never fit, %u forks, %u pins and %u "
           "refused; without asking %u of them deadlocked\n",
           n, finished, refused, forks, pins, pins_refused, deadlocks);
    if (deadlocks == 0) fprintf(stderr, "test_admission: the schedules are too easy\n");
    return deadlocks == 0 || finished < (small ? 4 : 15) * n;
}
