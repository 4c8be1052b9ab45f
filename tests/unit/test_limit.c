/* Memory that follows its limit: what fits is accepted, what is free can be had by any group, what
 * the operating system has given is what was charged. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <pagedkv/pagedkv.h>

#include "cache/cache_internal.h"
#include "faults.h"
#include "random.h"
#include "suite.h"

#define MIB ((uint64_t)1 << 20)

enum { PAGE = 16, MAX_SEQS = 64, MAX_MAPS = 4096 };

static pkv_cache *cache;
static uint64_t seed;

struct geometry {
    const char *name;
    uint32_t n_groups;
    pkv_group_config group[2];
};

static const struct geometry models[] = {
    {"llama-3-8b", 1, {{.n_layers = 32, .kv_heads = 8, .head_dim_k = 128}}},
    {"qwen2.5-7b", 1, {{.n_layers = 28, .kv_heads = 4, .head_dim_k = 128}}},
    {"qwen2.5-0.5b", 1, {{.n_layers = 24, .kv_heads = 2, .head_dim_k = 64}}},
    {"smollm2-135m", 1, {{.n_layers = 30, .kv_heads = 3, .head_dim_k = 64}}},
    {"gemma-3-4b",
     2,
     {{.n_layers = 5, .kv_heads = 4, .head_dim_k = 256},
      {.n_layers = 29, .kv_heads = 4, .head_dim_k = 256, .window = 1024}}},
    {"gemma-3-270m",
     2,
     {{.n_layers = 3, .kv_heads = 1, .head_dim_k = 256},
      {.n_layers = 15, .kv_heads = 1, .head_dim_k = 256, .window = 512}}},
    {"gpt-oss",
     2,
     {{.n_layers = 12, .kv_heads = 8, .head_dim_k = 64},
      {.n_layers = 12, .kv_heads = 8, .head_dim_k = 64, .window = 128}}},
};
enum { MODELS = sizeof models / sizeof models[0] };

static pkv_config describe(const struct geometry *model, pkv_storage storage, uint64_t limit)
{
    pkv_config config;
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    config.groups = model->group;
    config.n_groups = model->n_groups;
    config.page_tokens = PAGE;
    config.storage = storage;
    config.memory_limit = limit;
    return config;
}

static void open_cache(const struct geometry *model, pkv_storage storage, uint64_t limit,
                       bool prefix)
{
    pkv_config config = describe(model, storage, limit);
    config.prefix = prefix;
    ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_OK);
}

static void verify(void)
{
    char text[256];
    ck_assert_msg(pkv_cache_verify(cache, text, sizeof text) == PKV_OK, "%s", text);
}

static void close_cache(void)
{
    verify();
    pkv_cache_destroy(cache);
}

static pkv_stats stats(void)
{
    pkv_stats s = {.struct_size = sizeof s};
    ck_assert_int_eq(pkv_cache_stats(cache, &s), PKV_OK);
    return s;
}

static pkv_limit_shortfall shortfall(uint64_t bytes)
{
    pkv_limit_shortfall s = {.struct_size = sizeof s};
    ck_assert_int_eq(pkv_cache_limit_shortfall(cache, bytes, &s), PKV_OK);
    return s;
}

static pkv_status append(pkv_seq seq, const int32_t *tokens, uint32_t n)
{
    pkv_batch batch;
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(batch, seq, tokens, n), PKV_OK);
    const pkv_status status = pkv_batch_reserve(batch);
    ck_assert_int_eq(status == PKV_OK ? pkv_batch_commit(batch) : pkv_batch_abort(batch), PKV_OK);
    return status;
}

static void end(pkv_seq seq)
{
    ck_assert_int_eq(pkv_seq_destroy(seq), PKV_OK);
}

/* ---- accepted as soon as it fits ------------------------------------------------------------ */

/* 64 equal sequences grown in turn and ended from the last on: whatever regions their pages lie in,
 * a limit is accepted with the ending that makes room for it. */
START_TEST(limit_is_accepted_when_it_fits)
{
    const struct geometry *model = &models[_i];
    enum { LENGTH = 320, ENDED = 27 };
    open_cache(model, PKV_STORAGE_NONE, 4096 * MIB, false);
    pkv_seq seqs[MAX_SEQS];
    for (int i = 0; i < MAX_SEQS; i++)
        ck_assert_int_eq(pkv_seq_create(cache, &seqs[i]), PKV_OK);
    for (int turn = 0; turn < LENGTH / PAGE; turn++)
        for (int i = 0; i < MAX_SEQS; i++)
            ck_assert_int_eq(append(seqs[i], NULL, PAGE), PKV_OK);
    const uint64_t full = stats().bytes_used;
    const uint64_t fits = full - full * ENDED / MAX_SEQS;
    const uint64_t limit = fits + stats().metadata_bytes + fits / 50;
    int ended = 0;
    while (pkv_cache_set_limit(cache, limit) != PKV_OK) {
        ck_assert_int_lt(ended, MAX_SEQS);
        ck_assert_uint_gt(shortfall(limit).bytes, 0);
        end(seqs[MAX_SEQS - 1 - ended++]);
    }
    ck_assert_int_le(ended, ENDED);
    /* To the byte, as the shortfall says. */
    const uint64_t needed = shortfall(limit).needed;
    ck_assert_int_eq(pkv_cache_set_limit(cache, needed - 1), PKV_EBUSY);
    ck_assert_int_eq(pkv_cache_set_limit(cache, needed), PKV_OK);
    close_cache();
}
END_TEST

/* Between groups, under churn: what is unused when a reserve fails. */
START_TEST(what_is_unused_can_be_had)
{
    static const struct {
        int model;
        pkv_storage storage;
        uint64_t limit;
    } cases[] = {{5, PKV_STORAGE_HOST, 256 * MIB},
                 {5, PKV_STORAGE_NONE, 256 * MIB},
                 {6, PKV_STORAGE_NONE, 256 * MIB},
                 {4, PKV_STORAGE_NONE, 1024 * MIB},
                 {3, PKV_STORAGE_NONE, 256 * MIB}};
    const struct geometry *model = &models[cases[_i].model];
    const uint64_t limit = cases[_i].limit;
    open_cache(model, cases[_i].storage, limit, false);
    pkv_seq seqs[400];
    uint32_t n = 0;
    double sum = 0, worst = 0;
    int failures = 0;
    for (int round = 0; round < 20000 && failures < 300; round++) {
        if (n == 0 || (n < 400 && pkvt_below(&seed, 8) == 0))
            ck_assert_int_eq(pkv_seq_create(cache, &seqs[n++]), PKV_OK);
        const uint32_t at = pkvt_below(&seed, n);
        if (append(seqs[at], NULL, 1 + pkvt_below(&seed, 200)) == PKV_OK) continue;
        if (append(seqs[at], NULL, 1) == PKV_OK) continue;
        failures++;
        const pkv_stats s = stats();
        const double unused =
            (double)(limit - s.bytes_used - s.metadata_bytes) / (double)limit;
        sum += unused;
        if (unused > worst) worst = unused;
        for (int i = 0; i < 3 && n > 0; i++) {
            const uint32_t victim = pkvt_below(&seed, n);
            end(seqs[victim]);
            seqs[victim] = seqs[--n];
        }
    }
    printf("unused when a reserve fails, %s, storage %d: mean %.3f %%, worst %.3f %% of %d\n",
           model->name, (int)cases[_i].storage, 100 * sum / failures, 100 * worst, failures);
    ck_assert_int_gt(failures, 50);
    ck_assert(sum / failures <= 0.01);
    ck_assert(worst <= 0.02);
    close_cache();
}
END_TEST

/* Two groups in 3 MiB, in less than two regions: it works, or the check says that it cannot. */
START_TEST(tiny_limits_work_or_are_refused)
{
    for (int m = 0; m < MODELS; m++) {
        for (uint64_t limit = 256 << 10; limit <= 24 * MIB; limit += 256 << 10) {
            const pkv_config config = describe(&models[m], PKV_STORAGE_HOST, limit);
            char text[256];
            if (pkv_config_check(&config, text, sizeof text) != PKV_OK) {
                ck_assert_ptr_nonnull(strstr(text, "memory_limit"));
                continue;
            }
            ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_OK);
            pkv_seq seq;
            ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
            ck_assert_int_eq(append(seq, NULL, 1), PKV_OK);
            close_cache();
        }
    }
}
END_TEST

/* A cache that was large keeps nothing of it: after 16 GiB it uses 80 MiB as one made for them. */
START_TEST(metadata_shrinks)
{
    static const struct geometry small = {
        "small", 1, {{.n_layers = 4, .kv_heads = 1, .head_dim_k = 64}}}; /* pages of 16 KiB */
    const struct geometry *shapes[] = {&models[0], &small};
    const struct geometry *model = shapes[_i];
    uint64_t had[2];
    for (int large = 0; large < 2; large++) {
        open_cache(model, PKV_STORAGE_NONE, (large ? 16384 : 80) * MIB, false);
        if (large) {
            pkv_seq seq;
            ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
            while (append(seq, NULL, 8192 * PAGE / 4) == PKV_OK)
                ;
            end(seq);
            ck_assert_int_eq(pkv_cache_set_limit(cache, 80 * MIB), PKV_OK);
        }
        pkv_seq seq;
        ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
        while (append(seq, NULL, PAGE) == PKV_OK)
            ;
        had[large] = stats().pages_used;
        close_cache();
    }
    printf("pages in 80 MiB, %s: %llu, and %llu after 16 GiB\n", model->name,
           (unsigned long long)had[0], (unsigned long long)had[1]);
    ck_assert_uint_ge(had[1] * 100, had[0] * 99);
    if (_i == 0) ck_assert_uint_ge(had[1], 39); /* of 40, metadata has the rest */
}
END_TEST

START_TEST(shortfall_names_what_is_in_the_way)
{
    open_cache(&models[3], PKV_STORAGE_NONE, 256 * MIB, true);
    int32_t tokens[8 * PAGE];
    for (int i = 0; i < 8 * PAGE; i++)
        tokens[i] = i;
    pkv_seq cached, held;
    ck_assert_int_eq(pkv_seq_create(cache, &cached), PKV_OK);
    ck_assert_int_eq(append(cached, tokens, 8 * PAGE), PKV_OK);
    end(cached);
    ck_assert_int_eq(pkv_seq_create(cache, &held), PKV_OK);
    ck_assert_int_eq(append(held, NULL, 5 * PAGE), PKV_OK);
    pkv_page pages[3], one;
    ck_assert_int_eq(pkv_page_alloc(cache, 0, 3, pages), PKV_OK);
    pkv_magazine *magazine;
    ck_assert_int_eq(pkv_magazine_create(cache, 0, 4, &magazine), PKV_OK);
    ck_assert_int_eq(pkv_magazine_alloc(magazine, &one), PKV_OK);
    ck_assert_int_eq(pkv_magazine_free(magazine, one), PKV_OK); /* one or two are parked */
    pkv_group_stats g = {.struct_size = sizeof g};
    ck_assert_int_eq(pkv_cache_group_stats(cache, 0, &g), PKV_OK);
    pkv_limit_shortfall s = shortfall(MIB);
    ck_assert_uint_eq(s.cached, 8 * g.page_bytes);
    ck_assert_uint_eq(s.sequences, 5 * g.page_bytes);
    ck_assert_uint_eq(s.host, 3 * g.page_bytes);
    ck_assert(s.magazines == g.page_bytes || s.magazines == 2 * g.page_bytes);
    ck_assert_uint_eq(s.needed, 8 * g.page_bytes + s.magazines + s.metadata);
    ck_assert_uint_eq(s.bytes, s.needed - MIB);
    ck_assert_uint_eq(shortfall(256 * MIB).bytes, 0);
    ck_assert_int_eq(pkv_cache_limit_shortfall(cache, 0, &s), PKV_EINVAL);
    ck_assert_int_eq(pkv_cache_limit_shortfall(cache, MIB, NULL), PKV_EINVAL);
    s.struct_size = 7;
    ck_assert_int_eq(pkv_cache_limit_shortfall(cache, MIB, &s), PKV_EVERSION);
    pkv_magazine_destroy(magazine);
    close_cache();
}
END_TEST

/* ---- what the operating system says --------------------------------------------------------- */

static struct pkvi_os hooks;
static struct mapping {
    char *base;
    size_t bytes;
} maps[MAX_MAPS];

static void *recording_map(void *user, size_t size, size_t alignment)
{
    char *base = pkvi_os_default()->map(user, size, alignment);
    for (int i = 0; base != NULL && i < MAX_MAPS; i++)
        if (maps[i].base == NULL) {
            maps[i] = (struct mapping){base, size};
            return base;
        }
    return base;
}

static bool recording_unmap(void *user, void *address, size_t size)
{
    for (int i = 0; i < MAX_MAPS; i++)
        if (maps[i].base == address) maps[i].base = NULL;
    return pkvi_os_default()->unmap(user, address, size);
}

static void open_recorded(const struct geometry *model, uint64_t limit, bool prefix)
{
    hooks = *pkvi_os_default();
    hooks.map = recording_map;
    hooks.unmap = recording_unmap;
    memset(maps, 0, sizeof maps);
    pkv_config config = describe(model, PKV_STORAGE_HOST, limit);
    config.prefix = prefix;
    ck_assert_int_eq(pkvi_cache_create(&config, &hooks, &cache), PKV_OK);
}

/* Bytes of the library's mappings that are resident. */
static uint64_t resident(void)
{
    static unsigned char present[64 * 1024];
    const size_t page = hooks.page_bytes(NULL);
    uint64_t n = 0;
    for (int i = 0; i < MAX_MAPS; i++) {
        if (maps[i].base == NULL) continue;
        const size_t pages = (maps[i].bytes + page - 1) / page;
        ck_assert_uint_le(pages, sizeof present);
        ck_assert_int_eq(mincore(maps[i].base, maps[i].bytes, present), 0);
        for (size_t k = 0; k < pages; k++)
            n += present[k] & 1;
    }
    return n * page;
}

/* Touches every byte that a sequence has. */
static void fill(pkv_seq seq, const struct geometry *model, uint32_t first, uint32_t n)
{
    for (uint32_t g = 0; g < model->n_groups; g++) {
        pkv_group_info info = {.struct_size = sizeof info};
        ck_assert_int_eq(pkv_cache_group_info(cache, g, &info), PKV_OK);
        for (uint32_t i = first; i < first + n; i++) {
            pkv_page page;
            void *address;
            if (pkv_seq_pages(seq, g, i, 1, &page) != PKV_OK || page == PKV_PAGE_NONE) continue;
            ck_assert_int_eq(pkv_page_address(cache, g, page, 0, &address), PKV_OK);
            memset(address, 1 + (int)(i % 200), info.page_bytes);
        }
    }
}

/* At every step of a random run with 20 changes of the limit, in all of it. */
START_TEST(resident_follows_the_limit)
{
    static const int which[] = {5, 3, 6};
    const struct geometry *model = &models[which[_i]];
    uint64_t limit = 96 * MIB;
    open_recorded(model, limit, _i == 1);
    pkv_seq seqs[200];
    uint32_t n = 0, changes = 0, tight = 0;
    double worst = 0;
    for (int step = 0; step < 1200; step++) {
        if (n < 200 && pkvt_below(&seed, 4) == 0)
            ck_assert_int_eq(pkv_seq_create(cache, &seqs[n++]), PKV_OK);
        const uint32_t at = n != 0 ? pkvt_below(&seed, n) : 0;
        uint64_t length = 0;
        if (n != 0) ck_assert_int_eq(pkv_seq_length(seqs[at], &length), PKV_OK);
        const uint32_t more = 1 + pkvt_below(&seed, 160);
        int32_t tokens[160];
        for (uint32_t i = 0; i < more; i++)
            tokens[i] = (int32_t)(at % 7 * 100000 + length + i);
        if (n != 0 && append(seqs[at], tokens, more) == PKV_OK) {
            fill(seqs[at], model, (uint32_t)(length / PAGE), more / PAGE + 2);
        } else if (n != 0) {
            tight++;
            end(seqs[at]);
            seqs[at] = seqs[--n];
        }
        if (step % 60 == 59) {
            limit = (16 + pkvt_below(&seed, 96)) * MIB;
            changes++;
            while (pkv_cache_set_limit(cache, limit) == PKV_EBUSY) {
                ck_assert_uint_gt(n, 0);
                end(seqs[--n]);
            }
        }
        const double share = (double)resident() / (double)limit;
        if (share > worst) worst = share;
        ck_assert_msg(share <= 1.02, "step %d: %.1f MiB resident of %.1f", step,
                      (double)resident() / MIB, (double)limit / MIB);
        ck_assert_uint_le(stats().region_bytes + stats().metadata_bytes, limit);
        if (step % 200 == 0) verify();
    }
    printf("resident at most %.2f %% of the limit, %s; %u changes, %u failed reserves\n",
           100 * worst, model->name, changes, tight);
    ck_assert_uint_eq(changes, 20);
    ck_assert_uint_gt(tight, 10);
    close_cache();
}
END_TEST

static uint64_t huge_bytes(const char *base)
{
    FILE *smaps = fopen("/proc/self/smaps", "r");
    if (smaps == NULL) return 0;
    char line[512];
    unsigned long low, high, kib = 0;
    bool inside = false;
    while (fgets(line, sizeof line, smaps) != NULL) {
        if (sscanf(line, "%lx-%lx ", &low, &high) == 2)
            inside = (uintptr_t)base >= low && (uintptr_t)base < high;
        else if (inside && sscanf(line, "AnonHugePages: %lu kB", &kib) == 1)
            break;
    }
    fclose(smaps);
    return inside ? (uint64_t)kib << 10 : 0;
}

/* Does this kernel give huge pages to who asks? */
static bool has_huge_pages(void)
{
    const struct pkvi_os *os = pkvi_os_default();
    char *base = os->map(NULL, 8 * MIB, 2 * MIB);
    ck_assert_ptr_nonnull(base);
    os->advise_huge(NULL, base, 8 * MIB);
    memset(base, 1, 8 * MIB);
    const bool has = huge_bytes(base) == 8 * MIB;
    os->unmap(NULL, base, 8 * MIB);
    return has;
}

START_TEST(huge_pages_at_rest)
{
    if (!has_huge_pages()) {
        printf("huge pages: this kernel gives none, skipped\n");
        return;
    }
    open_recorded(&models[3], 128 * MIB, false);
    pkv_seq seq;
    ck_assert_int_eq(pkv_seq_create(cache, &seq), PKV_OK);
    ck_assert_int_eq(append(seq, NULL, 1600), PKV_OK);
    fill(seq, &models[3], 0, 100);
    uint64_t huge = 0, all = 0;
    for (int i = 0; i < MAX_MAPS; i++)
        if (maps[i].base != NULL && maps[i].bytes >= 2 * MIB) {
            all += maps[i].bytes;
            huge += huge_bytes(maps[i].base);
        }
    ck_assert_uint_gt(all, 0);
    ck_assert_uint_ge(huge * 10, all * 9 - 20 * MIB);
    ck_assert_uint_eq(stats().regions_split, 0);
    close_cache();
}
END_TEST

/* The OS refuses advice and memory at any point of a tightening: nothing is lost, all adds up. */
START_TEST(refusals_change_nothing)
{
    static struct pkvt_os os;
    for (uint64_t call = 1; call < 60; call++) {
        pkvt_os_init(&os);
        pkv_config config = describe(&models[5], PKV_STORAGE_HOST, 48 * MIB);
        config.debug = PKV_DEBUG_POISON | PKV_DEBUG_CHECKSUM;
        ck_assert_int_eq(pkvi_cache_create(&config, &os.hooks, &cache), PKV_OK);
        pkv_seq seqs[12];
        for (int i = 0; i < 12; i++)
            ck_assert_int_eq(pkv_seq_create(cache, &seqs[i]), PKV_OK);
        for (int turn = 0; turn < 8; turn++)
            for (int i = 0; i < 12; i++)
                ck_assert_int_eq(append(seqs[i], NULL, PAGE), PKV_OK);
        for (int i = 0; i < 12; i += 2)
            end(seqs[i]);
        os.fail_other = os.others + call;
        os.fail_map = os.maps + call;
        const uint64_t needed = shortfall(48 * MIB).needed;
        pkv_status status = pkv_cache_set_limit(cache, needed + needed / 50);
        ck_assert(status == PKV_OK || status == PKV_EBUSY);
        verify();
        while (append(seqs[1], NULL, PAGE) == PKV_OK)
            verify();
        os.fail_other = os.fail_map = 0;
        ck_assert_int_eq(pkv_cache_set_limit(cache, shortfall(48 * MIB).needed), PKV_OK);
        close_cache();
        ck_assert_uint_eq(os.live_maps, 0);
    }
}
END_TEST

/* ---- compaction ----------------------------------------------------------------------------- */

static uint8_t *bytes_of(pkv_seq seq, uint32_t g, uint32_t i)
{
    pkv_page page;
    void *address;
    ck_assert_int_eq(pkv_seq_pages(seq, g, i, 1, &page), PKV_OK);
    ck_assert_int_eq(pkv_page_address(cache, g, page, 0, &address), PKV_OK);
    return address;
}

static int32_t *prompt(int32_t salt)
{
    static int32_t tokens[20 * PAGE];
    for (int i = 0; i < 20 * PAGE; i++)
        tokens[i] = salt * 1000 + i;
    return tokens;
}

START_TEST(compact_moves_and_all_follow)
{
    enum { N = 24, LENGTH = 20 };
    const struct geometry *model = &models[3];
    open_recorded(model, 512 * MIB, true);
    pkv_seq seqs[N], fork;
    for (int i = 0; i < N; i++) {
        ck_assert_int_eq(pkv_seq_create(cache, &seqs[i]), PKV_OK);
    }
    for (int turn = 0; turn < LENGTH; turn++)
        for (int i = 0; i < N; i++) {
            ck_assert_int_eq(append(seqs[i], prompt(i) + turn * PAGE, PAGE), PKV_OK);
            *bytes_of(seqs[i], 0, (uint32_t)turn) = (uint8_t)(i * 7 + turn);
        }
    pkv_page kept;
    ck_assert_int_eq(pkv_seq_pages(seqs[23], 0, 3, 1, &kept), PKV_OK);
    ck_assert_int_eq(pkv_page_ref(cache, 0, 1, &kept), PKV_OK);
    ck_assert_int_eq(pkv_seq_fork(seqs[17], &fork), PKV_OK);
    for (int i = 0; i < 16; i++)
        end(seqs[i]); /* cached now */
    uint64_t freed; /* and gone, but those of the last two */
    ck_assert_int_eq(pkv_prefix_reclaim(cache, 0, 14 * LENGTH, &freed), PKV_OK);
    ck_assert_uint_eq(freed, 14 * LENGTH);
    pkv_batch open;
    ck_assert_int_eq(pkv_batch_begin(cache, &open), PKV_OK);
    ck_assert_int_eq(pkv_batch_add(open, seqs[20], prompt(99), 40), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(open), PKV_OK);
    const uint8_t *stays = bytes_of(seqs[20], 0, 5);
    const pkv_stats before = stats();
    uint64_t moved = 0;
    ck_assert_int_eq(pkv_cache_compact(cache, UINT64_MAX, &moved), PKV_OK);
    ck_assert_uint_gt(moved, 0);
    verify();
    ck_assert_uint_lt(stats().regions, before.regions);
    ck_assert_uint_eq(stats().pages_used, before.pages_used);
    ck_assert_ptr_eq(bytes_of(seqs[20], 0, 5), stays);
    ck_assert_int_eq(pkv_batch_commit(open), PKV_OK);
    for (int i = 16; i < N; i++)
        for (uint32_t turn = 0; turn < LENGTH; turn++)
            ck_assert_uint_eq(*bytes_of(seqs[i], 0, turn), (uint8_t)(i * 7 + (int)turn));
    ck_assert_ptr_eq(bytes_of(fork, 0, 9), bytes_of(seqs[17], 0, 9));
    pkv_page now;
    ck_assert_int_eq(pkv_seq_pages(seqs[23], 0, 3, 1, &now), PKV_OK);
    ck_assert_uint_eq(now, kept);
    /* The index finds the moved pages. */
    pkv_match match = {.struct_size = sizeof match};
    pkv_seq again;
    ck_assert_int_eq(pkv_seq_create(cache, &again), PKV_OK);
    ck_assert_int_eq(pkv_prefix_match(cache, NULL, prompt(18), LENGTH * PAGE, &match), PKV_OK);
    ck_assert_uint_ge(match.n_tokens, (LENGTH - 1) * PAGE);
    ck_assert_int_eq(pkv_seq_attach(again, &match), PKV_OK);
    ck_assert_ptr_eq(bytes_of(again, 0, 11), bytes_of(seqs[18], 0, 11));
    ck_assert_int_eq(pkv_cache_compact(cache, UINT64_MAX, &moved), PKV_OK);
    ck_assert_int_eq(pkv_page_unref(cache, 0, 1, &kept), PKV_OK);
    close_cache();
}
END_TEST

struct host_copies {
    uint8_t *buffer;
    uint64_t page_bytes;
    pkv_status answer;
    uint32_t n;
};

static pkv_status host_copy(void *user, uint32_t group, uint32_t n, const uint32_t *from,
                            const uint32_t *to)
{
    struct host_copies *copies = user;
    ck_assert_uint_eq(group, 0);
    for (uint32_t i = 0; i < n; i++)
        memcpy(copies->buffer + to[i] * copies->page_bytes,
               copies->buffer + from[i] * copies->page_bytes, copies->page_bytes);
    copies->n += n;
    return copies->answer;
}

/* In the host's buffer pages move to the front, and the host moves their bytes. */
START_TEST(compact_in_an_external_buffer)
{
    enum { N = 8, LENGTH = 8, PAGES = 100 };
    pkv_group_config group = {.n_layers = 1, .kv_heads = 1, .head_dim_k = 64};
    const uint64_t page_bytes = 4096;
    group.external_bytes = PAGES * page_bytes;
    group.external_base = aligned_alloc(64, group.external_bytes);
    struct host_copies copies = {group.external_base, page_bytes, PKV_EIO, 0};
    struct geometry model = {"external", 1, {group}};
    open_cache(&model, PKV_STORAGE_EXTERNAL, 16 * MIB, false);
    pkv_seq seqs[N];
    for (int i = 0; i < N; i++)
        ck_assert_int_eq(pkv_seq_create(cache, &seqs[i]), PKV_OK);
    for (int turn = 0; turn < LENGTH; turn++)
        for (int i = 0; i < N; i++) {
            ck_assert_int_eq(append(seqs[i], NULL, PAGE), PKV_OK);
            *bytes_of(seqs[i], 0, (uint32_t)turn) = (uint8_t)(i * 9 + turn);
        }
    for (int i = 0; i < N - 1; i++)
        end(seqs[i]);
    uint64_t moved = 1;
    ck_assert_int_eq(pkv_cache_compact(cache, UINT64_MAX, &moved), PKV_ENOTSUP);
    ck_assert_int_eq(pkv_cache_compact_with(cache, UINT64_MAX, NULL, NULL, &moved), PKV_EINVAL);
    /* Refused: nothing changed. */
    const uint8_t *last = bytes_of(seqs[N - 1], 0, LENGTH - 1);
    ck_assert_int_eq(pkv_cache_compact_with(cache, UINT64_MAX, host_copy, &copies, &moved),
                     PKV_EIO);
    ck_assert_ptr_eq(bytes_of(seqs[N - 1], 0, LENGTH - 1), last);
    verify();
    /* As much as was asked for. */
    copies.answer = PKV_OK;
    copies.n = 0;
    ck_assert_int_eq(pkv_cache_compact_with(cache, 2 * page_bytes, host_copy, &copies, &moved),
                     PKV_OK);
    ck_assert_uint_eq(moved, 2 * page_bytes);
    ck_assert_uint_eq(copies.n, 2);
    ck_assert_int_eq(pkv_cache_compact_with(cache, UINT64_MAX, host_copy, &copies, &moved),
                     PKV_OK);
    for (uint32_t turn = 0; turn < LENGTH; turn++) {
        const uint8_t *at = bytes_of(seqs[N - 1], 0, turn);
        ck_assert(at < copies.buffer + LENGTH * page_bytes);
        ck_assert_uint_eq(*at, (uint8_t)((N - 1) * 9 + (int)turn));
    }
    close_cache();
    free(group.external_base);
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("limit");
    seed = pkvt_seed("test_limit");
    TCase *tests = tcase_create("limit");
    tcase_set_timeout(tests, 300);
    tcase_add_loop_test(tests, limit_is_accepted_when_it_fits, 0, MODELS);
    tcase_add_loop_test(tests, what_is_unused_can_be_had, 0, 5);
    tcase_add_test(tests, tiny_limits_work_or_are_refused);
    tcase_add_loop_test(tests, metadata_shrinks, 0, 2);
    tcase_add_test(tests, shortfall_names_what_is_in_the_way);
    tcase_add_loop_test(tests, resident_follows_the_limit, 0, 3);
    tcase_add_test(tests, huge_pages_at_rest);
    tcase_add_test(tests, refusals_change_nothing);
    tcase_add_test(tests, compact_moves_and_all_follow);
    tcase_add_test(tests, compact_in_an_external_buffer);
    suite_add_tcase(suite, tests);
    return suite;
}
