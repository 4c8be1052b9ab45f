/* The prefix index from several threads at once: each runs sequences whose prompts come from a
 * small common set, under a page limit that forces reclaim, while another pins, reclaims and drops.
 * Contents are checked through tags in the pages; afterwards every invariant must hold. */
#include <pagedkv/pagedkv.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "random.h"

enum { PAGE = 8, THREADS = 4, PROMPTS = 6, LENGTH = 96, ROUNDS = 400, MAX_PAGES = 40 };

static pkv_cache *cache;
static uint64_t seed;
static const pkv_namespace spaces[2] = {{"x", 1}, {"y", 1}};

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static int32_t token(uint32_t prompt, uint32_t i)
{
    /* Prompts share their first half with the next one. */
    return (int32_t)((i < LENGTH / 2 ? prompt / 2 : prompt) * 1000 + i);
}

static uint64_t tag(uint32_t space, uint32_t prompt, uint32_t i)
{
    return (uint64_t)(space + 1) << 48 | (uint64_t)(uint32_t)token(prompt, i) << 8 | 0xa5;
}

static uint64_t *slot(pkv_seq seq, uint32_t i)
{
    pkv_page page;
    void *base;
    CHECK(pkv_seq_pages(seq, 0, i / PAGE, 1, &page) == PKV_OK);
    CHECK(pkv_page_address(cache, 0, page, 0, &base) == PKV_OK);
    return (uint64_t *)base + i % PAGE;
}

/* One request: attach what is known, compute the rest in chunks. Gives up when pages are short. */
static void request(uint64_t *random)
{
    uint32_t prompt = (uint32_t)(pkvt_random(random) % PROMPTS);
    uint32_t space = (uint32_t)(pkvt_random(random) % 2);
    int32_t tokens[LENGTH];
    for (uint32_t i = 0; i < LENGTH; i++)
        tokens[i] = token(prompt, i);
    pkv_match match = {.struct_size = sizeof match};
    pkv_seq seq;
    CHECK(pkv_prefix_match(cache, &spaces[space], tokens, LENGTH - 1, &match) == PKV_OK);
    CHECK(pkv_seq_create(cache, &seq) == PKV_OK);
    pkv_status status = pkv_seq_attach(seq, &match);
    CHECK(status == PKV_OK || status == PKV_ESTALE);
    if (status != PKV_OK) CHECK(pkv_seq_set_namespace(seq, &spaces[space]) == PKV_OK);
    uint32_t n = status == PKV_OK ? (uint32_t)match.n_tokens : 0;
    for (uint32_t i = 0; i < n; i++)
        CHECK(*slot(seq, i) == tag(space, prompt, i));
    while (n < LENGTH) {
        uint32_t more = 1 + (uint32_t)(pkvt_random(random) % 30);
        if (more > LENGTH - n) more = LENGTH - n;
        pkv_batch batch;
        CHECK(pkv_batch_begin(cache, &batch) == PKV_OK);
        CHECK(pkv_batch_add(batch, seq, tokens + n, more) == PKV_OK);
        status = pkv_batch_reserve(batch);
        CHECK(status == PKV_OK || status == PKV_ENOPAGES);
        if (status != PKV_OK) {
            CHECK(pkv_batch_abort(batch) == PKV_OK);
            break;
        }
        for (uint32_t i = n; i < n + more; i++)
            *slot(seq, i) = tag(space, prompt, i);
        CHECK(pkv_batch_commit(batch) == PKV_OK);
        n += more;
    }
    for (uint32_t i = 0; i < n; i++)
        CHECK(*slot(seq, i) == tag(space, prompt, i));
    CHECK(pkv_seq_destroy(seq) == PKV_OK);
}

static void disturb(uint64_t *random)
{
    int32_t tokens[LENGTH];
    uint32_t prompt = (uint32_t)(pkvt_random(random) % PROMPTS);
    for (uint32_t i = 0; i < LENGTH; i++)
        tokens[i] = token(prompt, i);
    pkv_match match = {.struct_size = sizeof match};
    pkv_pin pin;
    pkv_digest digests[LENGTH / PAGE];
    CHECK(pkv_prefix_match(cache, &spaces[prompt % 2], tokens, LENGTH, &match) == PKV_OK);
    pkv_status status = pkv_prefix_digests(cache, &match, digests, LENGTH / PAGE);
    CHECK(status == PKV_OK || status == PKV_ESTALE || status == PKV_ENOTSUP);
    if (match.n_tokens && pkv_prefix_pin(cache, &match, 10, 1000000, &pin) == PKV_OK &&
        pkvt_random(random) % 2)
        pkv_prefix_unpin(cache, pin);
    CHECK(pkv_prefix_reclaim(cache, 0, pkvt_random(random) % 5, NULL) == PKV_OK);
    if (pkvt_random(random) % 20 == 0)
        CHECK(pkv_prefix_drop(cache, &spaces[pkvt_random(random) % 2], NULL) == PKV_OK);
    pkv_prefix_stats stats = {.struct_size = sizeof stats};
    pkv_prefix_get_stats(cache, &spaces[0], &stats);
}

static void *work(void *argument)
{
    uint32_t thread = *(uint32_t *)argument;
    uint64_t random = seed + thread * 7919;
    for (uint32_t i = 0; i < ROUNDS; i++) {
        if (thread == 0)
            disturb(&random);
        else
            request(&random);
    }
    return NULL;
}

static void run(const char *policy)
{
    pkv_config config;
    pkv_group_config group = {.n_layers = 1,
                              .kv_heads = 1,
                              .head_dim_k = 8,
                              .dtype = PKV_DTYPE_F32,
                              .max_pages = MAX_PAGES};
    CHECK(pkv_config_init(&config, sizeof config) == PKV_OK);
    config.page_tokens = PAGE;
    config.groups = &group;
    config.n_groups = 1;
    config.memory_limit = 64 << 20;
    config.prefix_policy = policy;
    CHECK(pkv_cache_create(&config, &cache) == PKV_OK);
    pthread_t threads[THREADS];
    uint32_t number[THREADS];
    for (uint32_t i = 0; i < THREADS; i++) {
        number[i] = i;
        CHECK(pthread_create(&threads[i], NULL, work, &number[i]) == 0);
    }
    for (uint32_t i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    char text[256] = "";
    if (pkv_cache_verify(cache, text, sizeof text) != PKV_OK) {
        fprintf(stderr, "%s: %s\n", policy, text);
        abort();
    }
    pkv_stats stats = {.struct_size = sizeof stats};
    CHECK(pkv_cache_stats(cache, &stats) == PKV_OK);
    CHECK(stats.pages_used == 0 && stats.pages_reclaimed > 0 && stats.prefix_tokens_hit > 0);
    pkv_cache_destroy(cache);
}

int main(void)
{
    seed = pkvt_seed("prefix threads");
    uint32_t offline;
    const char *name;
    for (uint32_t i = 0; (name = pkv_policy_name(i, &offline)); i++)
        if (!offline) run(name);
    return 0;
}
