#include "pool_work.h"

#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* jemalloc's own interface, if the process has it. */
extern void *mallocx(size_t size, int flags) __attribute__((weak));
extern void sdallocx(void *ptr, size_t size, int flags) __attribute__((weak));

/* A list of free page numbers behind one mutex: the simplest thing that could work. */
typedef struct free_list {
    pthread_mutex_t lock;
    uint32_t n;
    uint32_t page[1024];
} free_list;

typedef struct member {
    pkv_magazine *magazine;
    pkv_page page[POOL_LIVE];
    void *block[POOL_LIVE];
    uint32_t number[POOL_LIVE];
    char padding[128]; /* members do not share cache lines */
} member;

struct pool_work {
    pkv_cache *pages;   /* of the page rows: the bytes are mapped, never touched */
    pkv_cache *appends; /* ids only: 256 growing sequences */
    pkv_cache *forks;   /* ids only: a sequence of 32k tokens */
    uint64_t page_bytes, block_bytes;
    pkv_seq seqs[POOL_SEQUENCES];
    uint64_t longest; /* tokens of the longest of seqs */
    pkv_seq parent;
    void *(*libc_malloc)(size_t);
    void (*libc_free)(void *);
    free_list list;
    member members[POOL_MAX_THREADS];
    uint64_t n; /* operations of the running sample */
    _Atomic int failed;
};

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* ---- making --------------------------------------------------------------------------------- */

static int make_cache(pkv_cache **cache, pkv_storage storage, uint64_t limit, tool_error *err)
{
    pkv_config config;
    pkv_group_config llama = {
        .n_layers = 32, .kv_heads = 8, .q_heads = 32, .head_dim_k = 128, .dtype = PKV_DTYPE_F16};
    char text[256];
    pkv_config_init(&config, sizeof config);
    config.page_tokens = 16;
    config.n_groups = 1;
    config.groups = &llama;
    config.storage = storage;
    config.memory_limit = limit;
    config.prefix = 0;
    pkv_status status = pkv_cache_create(&config, cache);
    if (status == PKV_OK) return 0;
    pkv_config_check(&config, text, sizeof text);
    return tool_fail(err, "pkv_cache_create: %s %s", pkv_status_text(status), text);
}

/* Appends n tokens to each of the sequences in one batch; *ns (may be NULL) = time of reserve and
 * commit. */
static pkv_status append(pkv_cache *cache, const pkv_seq *seqs, uint32_t n_seqs, uint32_t n,
                         double *ns)
{
    pkv_batch batch;
    pkv_status status = pkv_batch_begin(cache, &batch);
    if (status != PKV_OK) return status;
    for (uint32_t i = 0; i < n_seqs && status == PKV_OK; i++)
        status = pkv_batch_add(batch, seqs[i], NULL, n);
    double start = now_ns();
    if (status == PKV_OK) status = pkv_batch_reserve(batch);
    if (status == PKV_OK) {
        status = pkv_batch_commit(batch);
        if (ns) *ns = now_ns() - start;
        return status;
    }
    pkv_batch_abort(batch);
    return status;
}

/* Sequences start at different offsets in their pages, as they do in a server. */
static pkv_status make_sequences(pool_work *work)
{
    pkv_status status = PKV_OK;
    for (uint32_t i = 0; i < POOL_SEQUENCES && status == PKV_OK; i++) {
        status = pkv_seq_create(work->appends, &work->seqs[i]);
        if (status == PKV_OK) status = append(work->appends, &work->seqs[i], 1, 512 + i % 16, NULL);
    }
    work->longest = 512 + 15;
    if (status == PKV_OK) status = pkv_seq_create(work->forks, &work->parent);
    if (status == PKV_OK) status = append(work->forks, &work->parent, 1, POOL_FORK_TOKENS, NULL);
    return status;
}

static void find_libc(pool_work *work)
{
    /* The tool runs on jemalloc; libc's own malloc is still in the process. */
    void *libc = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
    if (!libc) return;
    void *get = dlsym(libc, "malloc"), *put = dlsym(libc, "free");
    memcpy(&work->libc_malloc, &get, sizeof get);
    memcpy(&work->libc_free, &put, sizeof put);
}

pool_work *pool_work_make(uint64_t block_bytes, tool_error *err)
{
    pool_work *work = calloc(1, sizeof *work);
    if (!work) {
        tool_fail(err, "out of memory");
        return NULL;
    }
    pthread_mutex_init(&work->list.lock, NULL);
    work->list.n = sizeof work->list.page / sizeof *work->list.page;
    for (uint32_t i = 0; i < work->list.n; i++)
        work->list.page[i] = i;
    find_libc(work);
    const uint64_t gib = UINT64_C(1) << 30;
    pkv_status status = PKV_OK;
    if (make_cache(&work->pages, PKV_STORAGE_HOST, 4 * gib, err) ||
        make_cache(&work->appends, PKV_STORAGE_NONE, 512 * gib, err) ||
        make_cache(&work->forks, PKV_STORAGE_NONE, 512 * gib, err)) {
        pool_work_free(work);
        return NULL;
    }
    status = make_sequences(work);
    for (int i = 0; i < POOL_MAX_THREADS && status == PKV_OK; i++)
        status = pkv_magazine_create(work->pages, 0, 2 * POOL_LIVE, &work->members[i].magazine);
    if (status != PKV_OK) {
        tool_fail(err, "preparing the caches: %s", pkv_status_text(status));
        pool_work_free(work);
        return NULL;
    }
    pkv_group_info info = {.struct_size = sizeof info};
    pkv_cache_group_info(work->pages, 0, &info);
    work->page_bytes = info.page_bytes;
    work->block_bytes = block_bytes ? block_bytes : info.page_bytes;
    return work;
}

void pool_work_free(pool_work *work)
{
    if (!work) return;
    for (int i = 0; i < POOL_MAX_THREADS; i++)
        pkv_magazine_destroy(work->members[i].magazine);
    pkv_cache_destroy(work->pages);
    pkv_cache_destroy(work->appends);
    pkv_cache_destroy(work->forks);
    pthread_mutex_destroy(&work->list.lock);
    free(work);
}

uint64_t pool_work_page_bytes(const pool_work *work)
{
    return work->page_bytes;
}

uint64_t pool_work_block_bytes(const pool_work *work)
{
    return work->block_bytes;
}

void pool_work_metadata(pool_work *work, uint64_t *metadata, uint64_t *pages)
{
    pkv_stats stats = {.struct_size = sizeof stats};
    *metadata = *pages = 0;
    if (pkv_cache_stats(work->appends, &stats) != PKV_OK) return;
    *metadata = stats.metadata_bytes;
    *pages = stats.bytes_used;
}

/* ---- allocation: each thread holds POOL_LIVE blocks and replaces the oldest, n times ----
 * One body per contender; the loops around them are the same. */

static void fail(pool_work *work)
{
    atomic_store(&work->failed, 1);
}

static void direct(void *context, uint32_t ith, uint32_t nth)
{
    (void)nth;
    pool_work *work = context;
    pkv_cache *cache = work->pages;
    pkv_page *page = work->members[ith].page;
    pkv_status status = PKV_OK;
    for (uint64_t i = 0; i < work->n; i++) {
        pkv_page *slot = &page[i % POOL_LIVE];
        if (*slot) status |= pkv_page_unref(cache, 0, 1, slot);
        status |= pkv_page_alloc(cache, 0, 1, slot);
    }
    if (status != PKV_OK) fail(work);
}

static void direct_end(void *context, uint32_t ith, uint32_t nth)
{
    (void)nth;
    pool_work *work = context;
    for (int i = 0; i < POOL_LIVE; i++) {
        pkv_page *slot = &work->members[ith].page[i];
        if (*slot && pkv_page_unref(work->pages, 0, 1, slot) != PKV_OK) fail(work);
        *slot = PKV_PAGE_NONE;
    }
}

static void magazine(void *context, uint32_t ith, uint32_t nth)
{
    (void)nth;
    pool_work *work = context;
    pkv_magazine *own = work->members[ith].magazine;
    pkv_page *page = work->members[ith].page;
    pkv_status status = PKV_OK;
    for (uint64_t i = 0; i < work->n; i++) {
        pkv_page *slot = &page[i % POOL_LIVE];
        if (*slot) status |= pkv_magazine_free(own, *slot);
        status |= pkv_magazine_alloc(own, slot);
    }
    if (status != PKV_OK) fail(work);
}

static void jemalloc(void *context, uint32_t ith, uint32_t nth)
{
    (void)nth;
    pool_work *work = context;
    void **block = work->members[ith].block;
    size_t size = (size_t)work->block_bytes;
    for (uint64_t i = 0; i < work->n; i++) {
        void **slot = &block[i % POOL_LIVE];
        if (*slot) sdallocx(*slot, size, 0);
        *slot = mallocx(size, 0);
        if (!*slot) fail(work);
    }
}

static void jemalloc_end(void *context, uint32_t ith, uint32_t nth)
{
    (void)nth;
    pool_work *work = context;
    for (int i = 0; i < POOL_LIVE; i++) {
        void **slot = &work->members[ith].block[i];
        if (*slot) sdallocx(*slot, (size_t)work->block_bytes, 0);
        *slot = NULL;
    }
}

static void libc(void *context, uint32_t ith, uint32_t nth)
{
    (void)nth;
    pool_work *work = context;
    void **block = work->members[ith].block;
    for (uint64_t i = 0; i < work->n; i++) {
        void **slot = &block[i % POOL_LIVE];
        work->libc_free(*slot);
        *slot = work->libc_malloc((size_t)work->block_bytes);
        if (!*slot) fail(work);
    }
}

static void libc_end(void *context, uint32_t ith, uint32_t nth)
{
    (void)nth;
    pool_work *work = context;
    for (int i = 0; i < POOL_LIVE; i++) {
        work->libc_free(work->members[ith].block[i]);
        work->members[ith].block[i] = NULL;
    }
}

static void locked(void *context, uint32_t ith, uint32_t nth)
{
    (void)nth;
    pool_work *work = context;
    free_list *list = &work->list;
    uint32_t *number = work->members[ith].number; /* page + 1; 0 = none yet */
    for (uint64_t i = 0; i < work->n; i++) {
        uint32_t *slot = &number[i % POOL_LIVE];
        if (*slot) {
            pthread_mutex_lock(&list->lock);
            list->page[list->n++] = *slot - 1;
            pthread_mutex_unlock(&list->lock);
        }
        pthread_mutex_lock(&list->lock);
        *slot = list->page[--list->n] + 1;
        pthread_mutex_unlock(&list->lock);
    }
}

static double timed(pool_work *work, team *t, uint64_t n, team_fn body, team_fn end)
{
    work->n = POOL_LIVE; /* fill first: the steady state is measured */
    team_run(t, body, work);
    work->n = n;
    double start = now_ns();
    team_run(t, body, work);
    double ns = (now_ns() - start) / (double)n;
    if (end) team_run(t, end, work);
    return atomic_exchange(&work->failed, 0) ? -1 : ns;
}

static double run_direct(pool_work *work, team *t, uint64_t n)
{
    return timed(work, t, n, direct, direct_end);
}

static void magazine_end(void *context, uint32_t ith, uint32_t nth)
{
    (void)nth;
    pool_work *work = context;
    for (int i = 0; i < POOL_LIVE; i++) {
        pkv_page *slot = &work->members[ith].page[i];
        if (*slot && pkv_magazine_free(work->members[ith].magazine, *slot) != PKV_OK) fail(work);
        *slot = PKV_PAGE_NONE;
    }
}

static double run_magazine(pool_work *work, team *t, uint64_t n)
{
    return timed(work, t, n, magazine, magazine_end);
}

static double run_jemalloc(pool_work *work, team *t, uint64_t n)
{
    return mallocx && sdallocx ? timed(work, t, n, jemalloc, jemalloc_end) : NAN;
}

static double run_libc(pool_work *work, team *t, uint64_t n)
{
    return work->libc_malloc && work->libc_free ? timed(work, t, n, libc, libc_end) : NAN;
}

static double run_locked(pool_work *work, team *t, uint64_t n)
{
    return timed(work, t, n, locked, NULL);
}

/* ---- sequences ------------------------------------------------------------------------------ */

/* n steps of one new token for each of 256 sequences; per sequence. Sequences that reach 2,048
 * tokens are cut back (not measured). */
static double run_append(pool_work *work, uint64_t n, bool whole)
{
    double total = 0;
    for (uint64_t i = 0; i < 2 * n; i++) {
        if (work->longest >= 2048) {
            for (uint32_t s = 0; s < POOL_SEQUENCES; s++)
                if (pkv_seq_truncate(work->seqs[s], 512 + s % 16) != PKV_OK) return -1;
            work->longest = 512 + 15;
        }
        double start = now_ns(), ns = 0;
        if (append(work->appends, work->seqs, POOL_SEQUENCES, 1, &ns) != PKV_OK) return -1;
        if (i >= n) total += whole ? now_ns() - start : ns;
        work->longest++;
    }
    return total / (double)n / POOL_SEQUENCES;
}

static double run_append_step(pool_work *work, team *t, uint64_t n)
{
    (void)t;
    return run_append(work, n, false);
}

static double run_append_whole(pool_work *work, team *t, uint64_t n)
{
    (void)t;
    return run_append(work, n, true);
}

static double run_fork(pool_work *work, team *t, uint64_t n)
{
    (void)t;
    double total = 0;
    for (uint64_t i = 0; i < 2 * n; i++) {
        pkv_seq child;
        double start = now_ns();
        if (pkv_seq_fork(work->parent, &child) != PKV_OK) return -1;
        if (i >= n) total += now_ns() - start; /* the first half warms up */
        if (pkv_seq_destroy(child) != PKV_OK) return -1;
    }
    return total / (double)n;
}

const pool_row pool_rows[] = {
    {"pkv-magazine", "page out of and into a magazine", 1, 20000, "alloc+free", 10, run_magazine},
    {"pkv-magazine-2t", "the same, two threads", 2, 20000, "alloc+free", 0, run_magazine},
    {"pkv-page", "pkv_page_alloc + pkv_page_unref", 1, 20000, "alloc+free", 10, run_direct},
    {"pkv-page-2t", "the same, two threads", 2, 20000, "alloc+free", 0, run_direct},
    {"locked-list", "free list behind a mutex", 1, 20000, "alloc+free", 0, run_locked},
    {"locked-list-2t", "the same, two threads", 2, 20000, "alloc+free", 0, run_locked},
    {"jemalloc", "mallocx + sdallocx", 1, 2000, "alloc+free", 0, run_jemalloc},
    {"jemalloc-2t", "the same, two threads", 2, 2000, "alloc+free", 0, run_jemalloc},
    {"glibc", "malloc + free of libc", 1, 2000, "alloc+free", 0, run_libc},
    {"glibc-2t", "the same, two threads", 2, 2000, "alloc+free", 0, run_libc},
    {"append-256", "reserve + commit of one token each", 1, 50, "sequence", 10, run_append_step},
    {"append-256-whole", "the same with begin and add", 1, 50, "sequence", 0, run_append_whole},
    {"fork-32k", "fork of 32,768 tokens (2,048 pages)", 1, 20, "fork", 10000, run_fork},
};

const uint32_t pool_row_count = sizeof pool_rows / sizeof *pool_rows;
