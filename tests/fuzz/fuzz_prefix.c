/* Fuzzes the prefix index with sequences of operations: each byte pair is an operation on one of a
 * few sequences. Whatever happens, the cache must verify, and nothing may be left when everything
 * is destroyed and dropped. The first byte chooses policy, groups and whether all hashes collide.
 * The second half of the input is replayed through the index without a cache. */
#include <pagedkv/pagedkv.h>
#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) abort();                                                                 \
    } while (0)

enum { SEQUENCES = 6, PAGE = 8, MAX_TOKENS = 24, MOST = 4096 };

static uint64_t fuzz_clock(void *user)
{
    return ++*(uint64_t *)user;
}

struct state {
    pkv_cache *cache;
    pkv_seq seq[SEQUENCES];
    int live[SEQUENCES];
    pkv_pin pin;
    uint64_t clock;
};

static const pkv_namespace spaces[2] = {{NULL, 0}, {"n", 1}};

static const char *policy_of(uint8_t byte)
{
    uint32_t offline = 0;
    const char *name = pkv_policy_name(byte % 16, &offline);
    return name && !offline ? name : NULL;
}

static void open_cache(struct state *s, uint8_t shape)
{
    pkv_config config;
    pkv_group_config groups[2] = {
        {.n_layers = 1, .kv_heads = 1, .head_dim_k = 8, .max_pages = 24},
        {.n_layers = 1, .kv_heads = 1, .head_dim_k = 8, .max_pages = 24, .window = 20}};
    REQUIRE(pkv_config_init(&config, sizeof config) == PKV_OK);
    config.page_tokens = PAGE;
    config.groups = groups;
    config.n_groups = shape & 16 ? 2 : 1;
    config.storage = PKV_STORAGE_NONE;
    config.memory_limit = 64 << 20;
    config.prefix_policy = policy_of(shape);
    config.clock = fuzz_clock;
    config.clock_user = &s->clock;
    if (shape & 32)
        config.prefix_key[0] = config.prefix_key[1] = UINT64_MAX;
    else
        config.prefix_key[0] = 1; /* the same run each time */
    REQUIRE(pkv_cache_create(&config, &s->cache) == PKV_OK);
}

/* Few different tokens, so that prefixes meet. */
static void fill(int32_t *tokens, uint32_t n, uint8_t argument)
{
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = (argument >> (i / PAGE) % 3) & 1;
}

static void append(struct state *s, int at, uint8_t argument)
{
    int32_t tokens[MAX_TOKENS];
    uint32_t n = 1 + argument % MAX_TOKENS;
    uint64_t length;
    pkv_batch batch;
    REQUIRE(pkv_seq_length(s->seq[at], &length) == PKV_OK);
    if (length > 120) return;
    fill(tokens, n, argument);
    REQUIRE(pkv_batch_begin(s->cache, &batch) == PKV_OK);
    REQUIRE(pkv_batch_add(batch, s->seq[at], argument == 255 ? NULL : tokens, n) == PKV_OK);
    pkv_status status = pkv_batch_reserve(batch);
    if (status == PKV_OK && argument & 64) {
        uint32_t accepted = n / 2;
        status = pkv_batch_commit_partial(batch, &accepted, 1);
    } else if (status == PKV_OK) {
        status = pkv_batch_commit(batch);
    } else {
        REQUIRE(status == PKV_ENOPAGES);
        status = pkv_batch_abort(batch);
    }
    REQUIRE(status == PKV_OK);
}

static void start(struct state *s, int at, uint8_t argument)
{
    int32_t tokens[5 * MAX_TOKENS];
    pkv_match match = {.struct_size = sizeof match};
    fill(tokens, 5 * MAX_TOKENS, argument);
    REQUIRE(pkv_prefix_match(s->cache, &spaces[argument & 1], tokens, argument % (5 * MAX_TOKENS),
                             &match) == PKV_OK);
    if (argument & 128 && match.n_tokens) {
        if (s->pin) pkv_prefix_unpin(s->cache, s->pin);
        REQUIRE(pkv_prefix_pin(s->cache, &match, argument % 102, argument, &s->pin) == PKV_OK);
    }
    REQUIRE(pkv_seq_create(s->cache, &s->seq[at]) == PKV_OK);
    REQUIRE(pkv_seq_attach(s->seq[at], &match) == PKV_OK);
    s->live[at] = 1;
}

static void step(struct state *s, uint8_t what, uint8_t argument)
{
    int at = what % SEQUENCES, other = argument % SEQUENCES;
    uint64_t length;
    if (what == 254) {
        REQUIRE(pkv_prefix_drop(s->cache, &spaces[argument & 1], NULL) == PKV_OK);
    } else if (what == 253) {
        REQUIRE(pkv_prefix_reclaim(s->cache, 0, argument % 8, NULL) == PKV_OK);
    } else if (!s->live[at]) {
        start(s, at, argument);
    } else if (what < 150) {
        append(s, at, argument);
    } else if (what < 190) {
        REQUIRE(pkv_seq_destroy(s->seq[at]) == PKV_OK);
        s->live[at] = 0;
    } else if (what < 220) {
        REQUIRE(pkv_seq_length(s->seq[at], &length) == PKV_OK);
        pkv_status status = pkv_seq_truncate(s->seq[at], length * argument / 256);
        REQUIRE(status == PKV_OK || status == PKV_EDROPPED);
    } else if (!s->live[other]) {
        REQUIRE(pkv_seq_fork(s->seq[at], &s->seq[other]) == PKV_OK);
        s->live[other] = 1;
    }
}

static void verify(const struct state *s)
{
    char text[256];
    REQUIRE(pkv_cache_verify(s->cache, text, sizeof text) == PKV_OK);
}

static void run_cache(const uint8_t *data, size_t size)
{
    struct state s = {.clock = 1};
    open_cache(&s, data[0]);
    for (size_t i = 1; i + 1 < size; i += 2) {
        step(&s, data[i], data[i + 1]);
        if (i % 32 == 1) verify(&s);
    }
    for (int i = 0; i < SEQUENCES; i++)
        if (s.live[i]) REQUIRE(pkv_seq_destroy(s.seq[i]) == PKV_OK);
    verify(&s);
    for (int i = 0; i < 2; i++)
        REQUIRE(pkv_prefix_drop(s.cache, &spaces[i], NULL) == PKV_OK);
    pkv_stats stats = {.struct_size = sizeof stats};
    REQUIRE(pkv_cache_stats(s.cache, &stats) == PKV_OK);
    REQUIRE(stats.pages_used == 0 && stats.pages_cached == 0 && stats.prefix_nodes == 0);
    pkv_cache_destroy(s.cache);
}

/* Requests of up to 16 blocks, also such as no trace should hold: repeated and rootless ids. */
static void run_replay(const uint8_t *data, size_t size)
{
    pkv_index_config config;
    pkv_index *index;
    REQUIRE(pkv_index_config_init(&config, sizeof config) == PKV_OK);
    config.policy = pkv_policy_name(data[0] % 13, NULL);
    config.pages = 1 + data[0] / 13;
    config.key[0] = config.key[1] = data[0] & 1 ? UINT64_MAX : 1;
    config.dense_ids = data[0] & 2 ? 64 : 0;
    REQUIRE(pkv_index_create(&config, &index) == PKV_OK);
    uint32_t request = 0;
    for (size_t i = 1; i < size; request++) {
        uint64_t ids[16];
        uint32_t next[16], n = 0, hits = 0;
        for (uint32_t most = 1 + data[i++] % 16; n < most && i < size; n++) {
            ids[n] = data[i] % 64;
            next[n] = data[i] & 64 ? PKV_INDEX_NEVER : request + 1 + data[i] / 16;
            i++;
        }
        REQUIRE(pkv_index_replay(index, ids, n, next, data[i - 1] & 1, &hits) == PKV_OK);
        REQUIRE(hits <= n);
    }
    char text[256];
    REQUIRE(pkv_index_verify(index, text, sizeof text) == PKV_OK);
    pkv_index_destroy(index);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 4 || size > MOST) return 0;
    run_cache(data, size / 2);
    run_replay(data + size / 2, size - size / 2);
    return 0;
}
