#include "scenario.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cache/cache_internal.h"

#define P 16
#define HEADS 2
#define DIM 16
#define LAYERS 3

/* ---- the harness ---------------------------------------------------------------------------- */

static void fail(const struct scenario *s, int line, const char *what, const char *detail)
{
    fprintf(stderr,
            "scenario.c:%d: %s: %s (allocations %llu, refused %llu/%llu; maps %llu, refused "
            "%llu; others refused %llu): %s\n",
            line, s->call, what, (unsigned long long)s->allocator.calls,
            (unsigned long long)s->allocator.fail_at, (unsigned long long)s->allocator.fail_from,
            (unsigned long long)s->os.maps, (unsigned long long)s->os.fail_map,
            (unsigned long long)s->os.fail_other, detail);
    exit(1);
}

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) fail(s, __LINE__, #condition, "does not hold");                          \
    } while (0)

/* What must not change when a call fails. */
struct snapshot {
    uint64_t length[8];
    uint64_t pages[8][2];
    uint64_t used, shared, sequences, batches, tokens, live;
};

static uint64_t mix(uint64_t hash, uint64_t value)
{
    return (hash ^ value) * UINT64_C(0x9e3779b97f4a7c15) + 1;
}

static void take(struct scenario *s, struct snapshot *out)
{
    memset(out, 0, sizeof *out);
    if (s->cache == NULL) return;
    for (int i = 0; i < 8; i++) {
        if (s->seqs[i].cache == NULL) continue;
        if (pkv_seq_length(s->seqs[i], &out->length[i]) != PKV_OK) continue;
        for (uint32_t g = 0; g < 2; g++) {
            pkv_page page;
            for (uint32_t l = 0; pkv_seq_pages(s->seqs[i], g, l, 1, &page) == PKV_OK; l++)
                out->pages[i][g] = mix(out->pages[i][g], page + l);
        }
    }
    pkv_stats stats = {.struct_size = sizeof stats};
    CHECK(pkv_cache_stats(s->cache, &stats) == PKV_OK);
    out->used = stats.pages_used;
    out->shared = stats.pages_shared;
    out->sequences = stats.sequences;
    out->batches = stats.batches;
    out->tokens = stats.tokens;
    out->live = stats.bytes_live;
}

static void disarm(struct scenario *s)
{
    s->allocator.fail_at = s->allocator.fail_from = 0;
    s->os.fail_map = s->os.fail_maps_from = s->os.fail_other = 0;
}

static void verify(struct scenario *s, int line)
{
    char text[256];
    if (s->cache != NULL && pkv_cache_verify(s->cache, text, sizeof text) != PKV_OK)
        fail(s, line, "pkv_cache_verify", text);
}

/* After a failed call: nothing may have changed. */
static void after_failure(struct scenario *s, int line, pkv_status status,
                          const struct snapshot *before)
{
    if (status != PKV_ENOMEM && status != PKV_ENOPAGES && status != PKV_EIO)
        fail(s, line, "unexpected status", pkv_status_name(status));
    disarm(s);
    s->refused++;
    verify(s, line);
    struct snapshot after;
    take(s, &after);
    if (memcmp(before, &after, sizeof after) != 0)
        fail(s, line, "state", "changed by a failed call");
    if (s->cache == NULL && (s->allocator.live_blocks != 0 || s->os.live_maps != 0))
        fail(s, line, "leak", "a failed create left something behind");
}

/* A call that may fail for want of memory, and must then have done nothing. */
#define TRY(expression)                                                                            \
    do {                                                                                           \
        struct snapshot before;                                                                    \
        take(s, &before);                                                                          \
        s->call = #expression;                                                                     \
        pkv_status status_ = (expression);                                                         \
        if (status_ != PKV_OK) {                                                                   \
            after_failure(s, __LINE__, status_, &before);                                          \
            status_ = (expression);                                                                \
        }                                                                                          \
        if (status_ != PKV_OK) fail(s, __LINE__, "status", pkv_status_name(status_));              \
    } while (0)

void scenario_init(struct scenario *s)
{
    memset(s, 0, sizeof *s);
    pkvt_allocator_init(&s->allocator);
    pkvt_os_init(&s->os);
    s->call = "";
}

/* ---- the parts ------------------------------------------------------------------------------ */

static void play_create(struct scenario *s)
{
    CHECK(pkv_version() >> 16 == PKV_VERSION_MAJOR);
    CHECK(strcmp(pkv_version_string(), PKV_VERSION_STRING) == 0);
    CHECK(strcmp(pkv_status_name(PKV_ENOMEM), "PKV_ENOMEM") == 0 && *pkv_status_text(PKV_ENOMEM));
    CHECK(pkv_dtype_size(PKV_DTYPE_F32) == 4 && strcmp(pkv_dtype_name(PKV_DTYPE_F32), "f32") == 0);
    pkv_config config;
    CHECK(pkv_config_init(&config, sizeof config) == PKV_OK);
    pkv_group_config groups[2] = {
        {.n_layers = 2,
         .kv_heads = HEADS,
         .head_dim_k = DIM,
         .dtype = PKV_DTYPE_F32,
         .dtype_k = PKV_DTYPE_K8,
         .dtype_v = PKV_DTYPE_V4},
        {.n_layers = 1, .kv_heads = HEADS, .head_dim_k = DIM, .dtype = PKV_DTYPE_F32, .window = 40},
    };
    config.groups = groups;
    config.n_groups = 2;
    config.memory_limit = (uint64_t)32 << 20;
    config.event_capacity = 64;
    config.signals = PKV_SIGNAL_BOUNDS | PKV_SIGNAL_KEYSUM;
    config.debug = PKV_DEBUG_POISON | PKV_DEBUG_CHECKSUM;
    config.allocator = &s->allocator.vtable;
    uint64_t min, max;
    CHECK(pkv_config_bounds("page_tokens", &min, &max) == PKV_OK && min == 8 && max == 128);
    CHECK(pkv_config_check(&config, NULL, 0) == PKV_OK);
    pkv_cache *plain = NULL; /* its mappings cannot be refused: the rest runs on hooks of our own */
    TRY(pkv_cache_create(&config, &plain));
    pkv_cache_destroy(plain);
    TRY(pkvi_cache_create(&config, &s->os.hooks, &s->cache));
    uint32_t n, group, index;
    CHECK(pkv_cache_group_count(s->cache, &n) == PKV_OK && n == 2);
    CHECK(pkv_cache_layer_group(s->cache, 2, &group, &index) == PKV_OK && group == 1 && index == 0);
    pkv_group_info info = {.struct_size = sizeof info};
    CHECK(pkv_cache_group_info(s->cache, 0, &info) == PKV_OK && info.n_layers == 2);
    pkv_group_stats stats = {.struct_size = sizeof stats};
    CHECK(pkv_cache_group_stats(s->cache, 0, &stats) == PKV_OK && stats.pages_used == 0);
    CHECK(pkv_cache_last_error(s->cache, NULL, 0) <= 0);
    const char *name;
    CHECK(pkv_kernel_name(s->cache, &name) == PKV_OK && pkv_kernel_list(0, &name) == PKV_OK);
    uint64_t tag;
    CHECK(pkv_layout_tag(s->cache, 0, &tag) == PKV_OK);
}

static void play_pages(struct scenario *s)
{
    pkv_page pages[3], page;
    uint32_t refs;
    void *address;
    TRY(pkv_page_alloc(s->cache, 0, 3, pages));
    TRY(pkv_page_ref(s->cache, 0, 1, pages));
    CHECK(pkv_page_refs(s->cache, 0, pages[0], &refs) == PKV_OK && refs == 2);
    CHECK(pkv_page_address(s->cache, 0, pages[1], 1, &address) == PKV_OK);
    CHECK(pkv_page_index(pages[1]) != pkv_page_index(pages[2]));
    CHECK(pkv_page_generation(pages[1]) != 0);
    static float plain[2 * P * HEADS * DIM];
    TRY(pkv_page_pack(s->cache, 0, address, PKV_LAYOUT_NHD, plain, sizeof plain));
    TRY(pkv_page_unpack(s->cache, 0, address, PKV_LAYOUT_HND, plain, sizeof plain));
    TRY(pkv_page_unref(s->cache, 0, 3, pages));
    TRY(pkv_page_unref(s->cache, 0, 1, pages));
    pkv_magazine *magazine;
    TRY(pkv_magazine_create(s->cache, 1, 8, &magazine));
    TRY(pkv_magazine_alloc(magazine, &page));
    TRY(pkv_magazine_free(magazine, page));
    pkv_magazine_destroy(magazine);
}

/* Rows for n new tokens, the same for k, v and q. */
static pkv_rows rows_of(const float *data, uint32_t heads)
{
    return (pkv_rows){.data = data,
                      .dtype = PKV_DTYPE_F32,
                      .heads = heads,
                      .dim = DIM,
                      .token_stride = (ptrdiff_t)(heads * DIM * sizeof(float)),
                      .head_stride = DIM * sizeof(float)};
}

static pkv_rows_out rows_out(float *data, uint32_t heads)
{
    return (pkv_rows_out){.data = data,
                          .dtype = PKV_DTYPE_F32,
                          .heads = heads,
                          .dim = DIM,
                          .token_stride = (ptrdiff_t)(heads * DIM * sizeof(float)),
                          .head_stride = DIM * sizeof(float)};
}

#define MAX_ROWS 256
static float input[MAX_ROWS * HEADS * DIM], output[MAX_ROWS * HEADS * DIM];
static double exact[MAX_ROWS * HEADS * DIM];
static float lse[MAX_ROWS * HEADS];

/* A model step over a reserved batch. */
static void play_step(struct scenario *s, pkv_plan *plan, pkv_batch batch)
{
    for (size_t i = 0; i < sizeof input / sizeof input[0]; i++)
        input[i] = (float)((i * 37 % 101)) / 101.0f - 0.5f;
    TRY(pkv_plan_build(plan, batch));
    const pkv_rows in = rows_of(input, HEADS);
    const pkv_rows_out out = rows_out(output, HEADS);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        TRY(pkv_write(plan, layer, &in, &in, 0, 1));
        TRY(pkv_attend(plan, layer, &in, &out, lse, 0, 1));
    }
}

static void play_exports(struct scenario *s, pkv_batch batch)
{
    uint32_t n_entries, n = 64;
    uint64_t n_tokens;
    TRY(pkv_batch_size(batch, &n_entries, &n_tokens));
    int32_t indptr[9], indices[64], last[8], table[8 * 16];
    int64_t slots[MAX_ROWS];
    pkv_block_row state[8] = {0};
    pkv_block_table to = {
        .struct_size = sizeof to, .data = table, .n_rows = 8, .row_stride = 16, .hole = -1};
    TRY(pkv_export_csr(batch, 0, indptr, indices, &n, last));
    TRY(pkv_export_block_table(batch, 1, &to));
    to.state = state;
    TRY(pkv_export_block_table(batch, 1, &to));
    TRY(pkv_export_slot_mapping(batch, 0, slots, n_tokens));
    pkv_copy copies[8];
    TRY(pkv_batch_copies(batch, copies, 8, &n));
    pkv_open_page open[8];
    TRY(pkv_batch_open_pages(batch, 0, 0, open, 8, &n));
}

static void tokens_of(int32_t *tokens, uint32_t n, int32_t salt)
{
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = (int32_t)(i * 7) + salt;
}

static void play_prompt(struct scenario *s)
{
    pkv_batch batch;
    int32_t tokens[70];
    tokens_of(tokens, 70, 5);
    for (int i = 0; i < 3; i++)
        TRY(pkv_seq_create(s->cache, &s->seqs[i]));
    const pkv_namespace space = {"tenant", 6};
    TRY(pkv_seq_set_namespace(s->seqs[0], &space));
    TRY(pkv_seq_set_retention(s->seqs[0], 60, 0));
    uint32_t safe, blocked, missing[2];
    TRY(pkv_admit_probe(s->cache, 100, 0, &safe, missing, 2));
    TRY(pkv_admit(s->seqs[0], 200));
    TRY(pkv_batch_begin(s->cache, &batch));
    TRY(pkv_batch_add(batch, s->seqs[0], tokens, 70));
    TRY(pkv_batch_add(batch, s->seqs[2], tokens, 30));
    TRY(pkv_batch_add(batch, s->seqs[1], NULL, 20));
    TRY(pkv_batch_remove(batch, 1));
    TRY(pkv_admit_check_batch(batch, &blocked));
    TRY(pkv_batch_reserve(batch));
    TRY(pkv_batch_shortfall(batch, missing, 2));
    play_exports(s, batch);
    pkv_plan_options options;
    CHECK(pkv_plan_options_init(&options, sizeof options) == PKV_OK);
    options.mass = 1;
    pkv_plan *plan;
    TRY(pkv_plan_create(s->cache, &options, &plan));
    play_step(s, plan, batch);
    const pkv_rows in = rows_of(input, HEADS);
    TRY(pkv_attend_reference(plan, 0, &in, exact, NULL));
    CHECK(fabs(exact[0] - output[0]) < 2.0);
    float mass[5];
    TRY(pkv_plan_mass(plan, 0, 0, 0, mass, 5));
    TRY(pkv_batch_commit(batch));
    pkv_plan_destroy(plan);
    uint64_t first, lacks;
    TRY(pkv_seq_missing_tokens(s->seqs[1], &first, &lacks));
    CHECK(first == 0 && lacks == 20);
    TRY(pkv_seq_set_tokens(s->seqs[1], first, tokens + 3, 20));
    float k[4 * HEADS * DIM], v[4 * HEADS * DIM];
    const pkv_rows_out ko = rows_out(k, HEADS), vo = rows_out(v, HEADS);
    TRY(pkv_read(s->seqs[0], 0, 66, 4, &ko, &vo));
    CHECK(k[0] == input[66 * HEADS * DIM]);
    float other[HEADS * DIM] = {0}, other_lse[HEADS] = {0};
    TRY(pkv_merge_states(output, lse, other, other_lse, HEADS, DIM));
    TRY(pkv_admit_release(s->seqs[0]));
}

/* Forks, copy-on-write, a speculative tree, rollback, pins. */
static void play_fork(struct scenario *s)
{
    pkv_batch batch;
    TRY(pkv_seq_fork(s->seqs[0], &s->seqs[3]));
    TRY(pkv_seq_fork(s->seqs[1], &s->seqs[4]));
    TRY(pkv_batch_begin(s->cache, &batch));
    int32_t tokens[4];
    tokens_of(tokens, 4, 1000);
    TRY(pkv_batch_add(batch, s->seqs[0], tokens, 1));
    TRY(pkv_batch_add(batch, s->seqs[3], tokens, 4));
    TRY(pkv_batch_add(batch, s->seqs[4], NULL, 2));
    TRY(pkv_batch_reserve(batch));
    TRY(pkv_batch_set_tokens(batch, 2, tokens, 2));
    play_exports(s, batch);
    pkv_plan *plan;
    TRY(pkv_plan_create(s->cache, NULL, &plan));
    const uint8_t mask[4] = {1, 3, 5, 9};
    const uint32_t depths[4] = {0, 1, 1, 1};
    TRY(pkv_plan_set_tree(plan, 1, 4, mask, depths));
    play_step(s, plan, batch);
    pkv_slot_copy copies[2];
    uint32_t n_copies;
    TRY(pkv_batch_path_copies(batch, 1, 0, (const uint32_t[]){0, 3}, 2, copies, 2, &n_copies));
    CHECK(n_copies == 1);
    TRY(pkv_batch_commit_paths(batch, (const uint32_t[]){0, 0, 3}, (const uint32_t[]){1, 2, 0}, 3));
    TRY(pkv_batch_begin(s->cache, &batch));
    TRY(pkv_batch_add(batch, s->seqs[4], NULL, 2));
    TRY(pkv_batch_reserve(batch));
    TRY(pkv_batch_commit_partial(batch, (const uint32_t[]){0}, 1));
    pkv_plan_destroy(plan);
    TRY(pkv_seq_truncate(s->seqs[3], 71));
    TRY(pkv_seq_pin(s->seqs[1], 0, 16));
    TRY(pkv_seq_pin(s->seqs[1], 2, 9));
    TRY(pkv_seq_pin(s->seqs[1], 3, 9));
    TRY(pkv_seq_fork(s->seqs[1], &s->seqs[5]));
    TRY(pkv_seq_unpin(s->seqs[1], 2, 9));
    pkv_seq_info info = {.struct_size = sizeof info};
    TRY(pkv_seq_get_info(s->seqs[1], 1, &info));
    TRY(pkv_batch_begin(s->cache, &batch));
    TRY(pkv_batch_add(batch, s->seqs[3], NULL, 40));
    TRY(pkv_batch_reserve(batch));
    TRY(pkv_batch_abort(batch));
}

/* Grows a sequence by n tokens without computing anything. */
static void grow(struct scenario *s, pkv_seq seq, const int32_t *tokens, uint32_t n)
{
    pkv_batch batch;
    TRY(pkv_batch_begin(s->cache, &batch));
    TRY(pkv_batch_add(batch, seq, tokens, n));
    TRY(pkv_batch_reserve(batch));
    TRY(pkv_batch_commit(batch));
}

static void play_evict(struct scenario *s)
{
    pkv_evict_config config, mass;
    CHECK(pkv_evict_config_init(&config, sizeof config, PKV_EVICT_SINK, 48) == PKV_OK);
    CHECK(pkv_evict_config_named(&mass, sizeof mass, "h2o", 64) == PKV_OK);
    CHECK(strcmp(pkv_evict_kind_name(PKV_EVICT_SINK), "sink") == 0);
    config.journal_steps = 2;
    TRY(pkv_evict_check(s->cache, 0, &config, NULL, 0));
    TRY(pkv_seq_set_evict(s->seqs[1], 0, &config));
    grow(s, s->seqs[1], NULL, 100);
    grow(s, s->seqs[1], NULL, 20);
    TRY(pkv_seq_fork(s->seqs[1], &s->seqs[6]));
    TRY(pkv_cache_set_evict(s->cache, PKV_EVICT_FULL_GROUPS, &mass));
    TRY(pkv_seq_create(s->cache, &s->seqs[7]));
    TRY(pkv_cache_set_evict(s->cache, PKV_EVICT_FULL_GROUPS, NULL));
    for (int i = 0; i < 8; i++) {
        pkv_batch batch;
        TRY(pkv_batch_begin(s->cache, &batch));
        TRY(pkv_batch_add(batch, s->seqs[7], NULL, 16));
        TRY(pkv_batch_reserve(batch));
        uint32_t wants;
        TRY(pkv_seq_wants_mass(s->seqs[7], 0, &wants));
        CHECK(wants == 1);
        pkv_seq_info info = {.struct_size = sizeof info};
        TRY(pkv_seq_get_info(s->seqs[7], 0, &info));
        float values[16] = {0.5f, 0.25f, 0.25f};
        TRY(pkv_seq_feed_mass(s->seqs[7], 0, values, info.resident_pages));
        TRY(pkv_batch_commit(batch));
    }
    pkv_evict_info info = {.struct_size = sizeof info};
    TRY(pkv_seq_evict_info(s->seqs[7], 0, &info));
    CHECK(info.pages_evicted != 0);
    uint64_t position;
    TRY(pkv_seq_position(s->seqs[7], 0, &position));
    pkv_evict_run runs[16];
    uint32_t n, tainted, logical[16];
    float scores[16];
    TRY(pkv_seq_runs(s->seqs[7], 0, runs, 16, &n));
    TRY(pkv_seq_page_scores(s->seqs[7], 0, logical, scores, 16, &n));
    TRY(pkv_seq_tainted(s->seqs[7], &tainted));
    CHECK(tainted == 1);
    TRY(pkv_seq_get_evict(s->seqs[7], 0, &mass));
    TRY(pkv_seq_set_evict(s->seqs[7], 0, NULL));
}

static void play_prefix(struct scenario *s)
{
    const pkv_namespace space = {"tenant", 6}, other = {"other", 5};
    int32_t tokens[70];
    tokens_of(tokens, 70, 5);
    const pkv_prefix_quota quota = {.struct_size = sizeof quota, .share = 2, .max = 100};
    TRY(pkv_prefix_set_quota(s->cache, &other, &quota));
    TRY(pkv_seq_destroy(s->seqs[3]));
    s->seqs[3].cache = NULL;
    pkv_match match = {.struct_size = sizeof match};
    TRY(pkv_prefix_match(s->cache, &space, tokens, 70, &match));
    /* A refused allocation may have kept pages from being published, never more. */
    CHECK(s->faulty || match.n_tokens >= 64);
    if (match.n_tokens != 0) {
        pkv_pin pin;
        TRY(pkv_prefix_pin(s->cache, &match, 70, 0, &pin));
        TRY(pkv_prefix_unpin(s->cache, pin));
        pkv_digest digests[8], same[8];
        /* A build without the hash library has no digests. */
        const uint64_t n = (uint64_t)match.n_pages * P;
        if (pkv_digest_tokens(&space, P, tokens, n, same, 8) != PKV_ENOTSUP) {
            TRY(pkv_digest_tokens(&space, P, tokens, n, same, 8));
            TRY(pkv_prefix_digests(s->cache, &match, digests, 8));
            CHECK(memcmp(digests, same, match.n_pages * sizeof *digests) == 0);
        }
        TRY(pkv_seq_create(s->cache, &s->seqs[3]));
        TRY(pkv_seq_attach(s->seqs[3], &match));
        pkv_admit_outlook outlook = {.struct_size = sizeof outlook};
        uint32_t missing[2];
        TRY(pkv_admit_probe_match(s->cache, &match, 100, &outlook, missing, 2));
        CHECK(outlook.safe == 1);
        pkv_seq admitted;
        TRY(pkv_seq_create(s->cache, &admitted));
        TRY(pkv_admit_attach(admitted, &match, 100));
        TRY(pkv_seq_destroy(admitted));
        grow(s, s->seqs[3], NULL, 3);
    }
    pkv_seq fresh;
    TRY(pkv_seq_create(s->cache, &fresh));
    TRY(pkv_seq_match(fresh, tokens, 70, &match));
    TRY(pkv_seq_destroy(fresh));
    pkv_prefix_stats stats = {.struct_size = sizeof stats};
    TRY(pkv_prefix_get_stats(s->cache, &space, &stats));
    CHECK(stats.lookups != 0);
    uint64_t freed;
    TRY(pkv_seq_destroy(s->seqs[0]));
    s->seqs[0].cache = NULL;
    TRY(pkv_prefix_reclaim(s->cache, 0, 1, &freed));
    uint32_t n_listed;
    CHECK(pkv_prefix_list(s->cache, NULL, NULL, NULL, 0, &n_listed) ==
          (n_listed ? PKV_ERANGE : PKV_OK));
    TRY(pkv_prefix_drop(s->cache, &space, &freed));
}

static void play_one_index(struct scenario *s, size_t dense_ids)
{
    pkv_index_config config;
    CHECK(pkv_index_config_init(&config, sizeof config) == PKV_OK);
    config.pages = 8;
    config.dense_ids = dense_ids;
    config.allocator = &s->allocator.vtable;
    config.key[0] = 1;
    pkv_index *index;
    TRY(pkv_index_create(&config, &index));
    uint64_t ids[20];
    uint32_t hits;
    for (uint64_t i = 0; i < 20; i++)
        ids[i] = i * 3;
    s->call = "pkv_index_replay";
    if (pkv_index_replay(index, ids, 20, NULL, 0, &hits) != PKV_OK) disarm(s);
    TRY(pkv_index_match(index, ids, 20, &hits));
    pkv_index_stats stats = {.struct_size = sizeof stats};
    TRY(pkv_index_get_stats(index, &stats));
    TRY(pkv_index_verify(index, NULL, 0));
    CHECK(pkv_policy_name(0, NULL) != NULL);
    pkv_index_destroy(index);
}

static void play_index(struct scenario *s)
{
    play_one_index(s, 0);
    play_one_index(s, 58);
}

static void play_end(struct scenario *s)
{
    pkv_event events[16];
    uint32_t n;
    TRY(pkv_cache_events(s->cache, events, 16, &n));
    CHECK(n != 0);
    TRY(pkv_cache_set_limit(s->cache, (uint64_t)24 << 20));
    pkv_limit_shortfall shortfall = {.struct_size = sizeof shortfall};
    TRY(pkv_cache_limit_shortfall(s->cache, (uint64_t)1 << 20, &shortfall));
    TRY(pkv_cache_compact(s->cache, (uint64_t)1 << 20, NULL));
    TRY(pkv_cache_compact_with(s->cache, UINT64_MAX, NULL, NULL, NULL));
    for (int i = 0; i < 8; i++)
        if (s->seqs[i].cache != NULL) TRY(pkv_seq_destroy(s->seqs[i]));
    memset(s->seqs, 0, sizeof s->seqs);
    TRY(pkv_cache_trim(s->cache, NULL));
    disarm(s);
    verify(s, __LINE__);
    pkv_cache_destroy(s->cache);
    s->cache = NULL;
    s->call = "pkv_cache_destroy";
    CHECK(s->allocator.live_blocks == 0);
    CHECK(s->allocator.wrong_frees == 0);
    CHECK(s->os.live_maps == 0);
}

/* Writes the states of a reserved batch's entry. */
static void play_states_of(struct scenario *s, pkv_batch batch, uint32_t entry)
{
    pkv_page from, to[4];
    uint32_t n;
    TRY(pkv_batch_states(batch, entry, 0, &from, to, 4, &n));
    for (uint32_t i = 0; i < n; i++) {
        void *at;
        TRY(pkv_state_address(s->cache, 0, to[i], 1, &at));
        memset(at, (int)i, 100);
    }
}

/* A hybrid model's cache: states beside pages. */
static void play_states(struct scenario *s)
{
    const pkv_group_config groups[2] = {{.n_layers = 1, .kv_heads = HEADS, .head_dim_k = DIM},
                                        {.n_layers = 2, .state_bytes = 100}};
    pkv_config config;
    CHECK(pkv_config_init(&config, sizeof config) == PKV_OK);
    config.groups = groups;
    config.n_groups = 2;
    config.memory_limit = (uint64_t)8 << 20;
    config.debug = PKV_DEBUG_POISON | PKV_DEBUG_CHECKSUM;
    config.allocator = &s->allocator.vtable;
    TRY(pkvi_cache_create(&config, &s->os.hooks, &s->cache));
    uint32_t n;
    CHECK(pkv_cache_state_count(s->cache, &n) == PKV_OK && n == 1);
    for (int i = 0; i < 2; i++)
        TRY(pkv_seq_create(s->cache, &s->seqs[i]));
    pkv_batch batch;
    for (int round = 0; round < 6; round++) {
        TRY(pkv_batch_begin(s->cache, &batch));
        for (uint32_t i = 0; i < 2; i++) {
            TRY(pkv_batch_add(batch, s->seqs[i], NULL, 10));
            TRY(pkv_batch_keep_states(batch, i, 3));
        }
        TRY(pkv_batch_reserve(batch));
        for (uint32_t i = 0; i < 2; i++)
            play_states_of(s, batch, i);
        TRY(pkv_batch_commit_partial(batch, (const uint32_t[]){8, 10}, 2));
        TRY(pkv_seq_checkpoint(s->seqs[0]));
    }
    TRY(pkv_seq_fork(s->seqs[0], &s->seqs[2]));
    TRY(pkv_seq_truncate(s->seqs[0], 16));
    TRY(pkv_seq_drop_checkpoint(s->seqs[0], 8));
    uint64_t marks[8];
    TRY(pkv_seq_checkpoints(s->seqs[2], marks, 8, &n));
    uint64_t stop;
    TRY(pkv_seq_state_stop(s->seqs[2], 100, &stop));
    CHECK(n == 6 && marks[5] == 48);
    pkv_page slot;
    TRY(pkv_seq_state(s->seqs[0], 0, &slot));
    CHECK(slot != PKV_PAGE_NONE);
    pkv_state_info info = {.struct_size = sizeof info};
    TRY(pkv_cache_state_info(s->cache, 0, &info));
    CHECK(info.slots_used == 7); /* six checkpoints, of which two are states, and one state */
    int32_t tokens[32];
    tokens_of(tokens, 32, 3);
    TRY(pkv_seq_create(s->cache, &s->seqs[3]));
    grow(s, s->seqs[3], tokens, 32);
    TRY(pkv_seq_create(s->cache, &s->seqs[4]));
    pkv_match match = {.struct_size = sizeof match};
    TRY(pkv_prefix_match(s->cache, NULL, tokens, 32, &match));
    CHECK(s->faulty || match.n_tokens == 32);
    TRY(pkv_seq_attach(s->seqs[4], &match));
    for (int i = 0; i < 5; i++)
        TRY(pkv_seq_destroy(s->seqs[i]));
    memset(s->seqs, 0, sizeof s->seqs);
    disarm(s);
    verify(s, __LINE__);
    pkv_cache_destroy(s->cache);
    s->cache = NULL;
    s->call = "pkv_cache_destroy";
    CHECK(s->allocator.live_blocks == 0 && s->os.live_maps == 0);
}

void scenario_play(struct scenario *s)
{
    s->faulty = s->allocator.fail_at != 0 || s->allocator.fail_from != 0 || s->os.fail_map != 0 ||
                s->os.fail_maps_from != 0 || s->os.fail_other != 0;
    play_create(s);
    play_pages(s);
    play_prompt(s);
    play_fork(s);
    play_evict(s);
    play_prefix(s);
    play_index(s);
    play_end(s);
    play_states(s);
}
