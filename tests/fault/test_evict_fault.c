/* Eviction without memory: every allocation of a scenario per policy is refused once. The refused
 * call must change nothing, its repetition must succeed, and the run must end with exactly the
 * pages of a run without faults. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <pagedkv/pagedkv.h>

#include "faults.h"

#define P 16u
#define HEADS 2u
#define DIM 16u
#define STEPS 14u
#define CHUNK 20u

static struct pkvt_allocator allocator;
static const char *policy;
static pkv_cache *cache;
static uint64_t refused;

static void fail(int line, const char *what)
{
    char text[256] = "";
    if (cache != NULL) pkv_cache_last_error(cache, text, sizeof text);
    fprintf(stderr, "test_evict_fault.c:%d: %s, allocation %llu: %s (%s)\n", line, policy,
            (unsigned long long)allocator.fail_at, what, text);
    exit(1);
}

static void verify(int line)
{
    char text[256];
    const uint64_t armed = allocator.fail_at;
    allocator.fail_at = 0; /* verify needs memory, too */
    if (cache != NULL && pkv_cache_verify(cache, text, sizeof text) != PKV_OK) fail(line, text);
    allocator.fail_at = armed;
}

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) fail(__LINE__, #condition);                                              \
    } while (0)

/* A call that may be refused once. */
#define TRY(call)                                                                                  \
    do {                                                                                           \
        const uint64_t before_ = fingerprint();                                                    \
        const pkv_status status_ = (call);                                                         \
        if (status_ == PKV_OK) break;                                                              \
        if (status_ != PKV_ENOMEM) fail(__LINE__, pkv_status_name(status_));                       \
        allocator.fail_at = 0;                                                                     \
        refused++;                                                                                 \
        verify(__LINE__);                                                                          \
        if (before_ != fingerprint()) fail(__LINE__, "a refused call changed something");          \
        if ((call) != PKV_OK) fail(__LINE__, #call);                                               \
    } while (0)

static pkv_seq seqs[4];

/* Which logical pages every sequence holds, and what eviction says about it. */
static uint64_t fingerprint(void)
{
    uint64_t h = 1;
    for (int i = 0; cache != NULL && i < 4; i++) {
        uint64_t length;
        if (seqs[i].cache == NULL) continue;
        CHECK(pkv_seq_length(seqs[i], &length) == PKV_OK);
        h = (h ^ length) * UINT64_C(0x9e3779b97f4a7c15) + 1;
        pkv_page page;
        for (uint32_t l = 0; pkv_seq_pages(seqs[i], 0, l, 1, &page) == PKV_OK; l++)
            h = (h ^ (page != PKV_PAGE_NONE) ^ l) * UINT64_C(0x9e3779b97f4a7c15) + 1;
        pkv_evict_info info = {.struct_size = sizeof info};
        CHECK(pkv_seq_evict_info(seqs[i], 0, &info) == PKV_OK);
        h = (h ^ info.pages_evicted ^ info.pages_restored << 20 ^ info.journal_pages) *
                UINT64_C(0x9e3779b97f4a7c15) +
            1;
        h = (h ^ info.salt ^ (uint64_t)info.kind << 8 ^ info.tainted) *
                UINT64_C(0x9e3779b97f4a7c15) +
            1;
    }
    return h;
}

static void open_cache(void)
{
    pkv_config config;
    CHECK(pkv_config_init(&config, sizeof config) == PKV_OK);
    pkv_group_config group = {.n_layers = 2, .kv_heads = HEADS, .head_dim_k = DIM};
    config.groups = &group;
    config.n_groups = 1;
    config.memory_limit = 64u << 20;
    config.signals = PKV_SIGNAL_BOUNDS | PKV_SIGNAL_KEYSUM;
    config.allocator = &allocator.vtable;
    TRY(pkv_cache_create(&config, &cache));
}

/* Writes (so that pages have digests) and attends, then feeds some mass and commits. */
static void step(pkv_plan *plan, uint32_t s)
{
    static float rows[4 * CHUNK * HEADS * DIM], out[4 * CHUNK * HEADS * DIM];
    for (uint32_t i = 0; i < sizeof rows / sizeof *rows; i++)
        rows[i] = (float)((i * 2654435761u + s * 40503u) >> 20 & 255) / 128 - 1;
    pkv_batch batch;
    const uint32_t n = s % 3 == 2 ? 1 : CHUNK;
    TRY(pkv_batch_begin(cache, &batch));
    for (int i = 0; i < 4; i++)
        if (seqs[i].cache != NULL) TRY(pkv_batch_add(batch, seqs[i], NULL, n));
    TRY(pkv_batch_reserve(batch));
    TRY(pkv_plan_build(plan, batch));
    const ptrdiff_t head = DIM * sizeof(float);
    const pkv_rows in = {.data = rows,
                         .dtype = PKV_DTYPE_F32,
                         .heads = HEADS,
                         .dim = DIM,
                         .token_stride = head * HEADS,
                         .head_stride = head};
    const pkv_rows_out to = {.data = out,
                             .dtype = PKV_DTYPE_F32,
                             .heads = HEADS,
                             .dim = DIM,
                             .token_stride = head * HEADS,
                             .head_stride = head};
    for (uint32_t l = 0; l < 2; l++) {
        CHECK(pkv_write(plan, l, &in, &in, 0, 1) == PKV_OK);
        CHECK(pkv_attend(plan, l, &in, &to, NULL, 0, 1) == PKV_OK);
    }
    CHECK(pkv_batch_commit(batch) == PKV_OK); /* commits cannot fail */
}

static uint64_t play(uint64_t fail_at)
{
    pkvt_allocator_init(&allocator);
    allocator.fail_at = fail_at;
    memset(seqs, 0, sizeof seqs);
    cache = NULL;
    open_cache();
    pkv_evict_config config, other;
    CHECK(pkv_evict_config_named(&config, sizeof config, policy, 6 * P) == PKV_OK);
    config.journal_steps = 3;
    config.regret = config.kind != PKV_EVICT_TOPK;
    config.regret_pages = 20;
    CHECK(pkv_evict_config_named(&other, sizeof other, "mass", 4 * P) == PKV_OK);
    TRY(pkv_cache_set_evict(cache, 0, &config));
    pkv_plan *plan;
    TRY(pkv_plan_create(cache, NULL, &plan));
    TRY(pkv_seq_create(cache, &seqs[0]));
    TRY(pkv_seq_create(cache, &seqs[1]));
    for (uint32_t s = 0; s < STEPS; s++) {
        if (s == 7) TRY(pkv_seq_fork(seqs[0], &seqs[2]));
        if (s == 9) TRY(pkv_seq_truncate(seqs[0], 6 * CHUNK + 3 - 9));
        if (s == 11) TRY(pkv_seq_set_evict(seqs[1], 0, &other));
        step(plan, s);
        verify(__LINE__);
    }
    const uint64_t end = fingerprint();
    pkv_plan_destroy(plan);
    for (int i = 0; i < 3; i++)
        CHECK(pkv_seq_destroy(seqs[i]) == PKV_OK);
    memset(seqs, 0, sizeof seqs);
    verify(__LINE__);
    pkv_cache_destroy(cache);
    cache = NULL;
    CHECK(allocator.live_blocks == 0 && allocator.wrong_frees == 0);
    return end;
}

int main(void)
{
    static const char *const names[] = {"window",   "sink",   "mass",    "obs",
                                        "lru-mass", "random", "keydiff", "topk"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        policy = names[i];
        refused = 0;
        const uint64_t want = play(0), calls = allocator.calls;
        for (uint64_t at = 1; at <= calls; at++)
            if (play(at) != want) fail(__LINE__, "other pages than without faults");
        printf("%s: %llu allocations, %llu calls refused\n", policy, (unsigned long long)calls,
               (unsigned long long)refused);
        if (refused < calls / 2) fail(__LINE__, "refusals went unnoticed");
    }
    return 0;
}
