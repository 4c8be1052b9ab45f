/* Replaying a trace through the library's index, several runs side by side. */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "prefix.h"
#include "progress.h"

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Tokens in the first k blocks of a request. */
static uint64_t leading_tokens(const trace_request *r, uint32_t k)
{
    uint32_t full = r->input / r->block_tokens;
    if (k <= full) return (uint64_t)k * r->block_tokens;
    uint64_t tokens = (uint64_t)full * r->block_tokens;
    for (uint32_t i = full; i < k; i++)
        tokens += trace_block_tokens(r, i);
    return tokens;
}

static int library_failed(const prefix_run *run, const char *call, pkv_status status,
                          tool_error *err)
{
    return tool_fail(err, "%.100s: policy %s: %s: %s", run->trace->name, run->policy, call,
                     pkv_status_text(status));
}

static int replay(prefix_run *run, pkv_index *index, progress *bar, tool_error *err)
{
    const trace *t = run->trace;
    for (size_t i = 0; i < t->n_requests; i++) {
        const trace_request *r = &t->requests[i];
        bool partial = (uint64_t)r->n_blocks * r->block_tokens > r->input;
        uint32_t hits = 0;
        pkv_status status =
            pkv_index_replay(index, t->blocks + r->first_block, r->n_blocks,
                             run->next_use ? run->next_use + r->first_block : NULL, partial, &hits);
        if (status != PKV_OK) return library_failed(run, "pkv_index_replay", status, err);
        if (i % 256 == 0) progress_add(bar, i ? 256 : 0);
        if (i < run->warmup) continue;
        run->hit_blocks += hits;
        run->total_blocks += r->n_blocks;
        run->hit_tokens += leading_tokens(r, hits);
        run->total_tokens += leading_tokens(r, r->n_blocks);
    }
    return 0;
}

/* Every run needs the same memory: what one frees the next one takes, which costs no new pages. */
static void *take(void *user, size_t size, size_t alignment)
{
    (void)user;
    return aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}

static void give_back(void *user, void *memory, size_t size)
{
    (void)user;
    (void)size;
    free(memory);
}

static int execute_one(prefix_run *run, progress *bar, tool_error *err)
{
    const pkv_allocator memory = {.alloc = take, .free = give_back};
    pkv_index_config config;
    pkv_index *index = NULL;
    pkv_status status = pkv_index_config_init(&config, sizeof config);
    config.pages = run->pages;
    config.policy = run->policy;
    config.dense_ids = run->dense_ids;
    config.allocator = &memory;
    if (status == PKV_OK) status = pkv_index_create(&config, &index);
    if (status != PKV_OK) return library_failed(run, "pkv_index_create", status, err);
    double start = now();
    int failed = replay(run, index, bar, err);
    run->seconds = now() - start;
    pkv_index_stats stats = {.struct_size = sizeof stats};
    if (!failed && pkv_index_get_stats(index, &stats) == PKV_OK) run->peak_pages = stats.pages;
    char text[200] = "";
    if (!failed && run->verify && pkv_index_verify(index, text, sizeof text) != PKV_OK)
        failed = tool_fail(err, "%.100s: policy %s: %s", run->trace->name, run->policy, text);
    pkv_index_destroy(index);
    return failed;
}

typedef struct pool {
    prefix_run *runs;
    size_t n;
    _Atomic size_t next;
    atomic_int failed;
    pthread_mutex_t lock; /* guards err */
    tool_error *err;
    progress bar;
} pool;

static void *work(void *argument)
{
    pool *p = argument;
    size_t i;
    while (!p->failed && (i = atomic_fetch_add(&p->next, 1)) < p->n) {
        tool_error err;
        if (execute_one(&p->runs[i], &p->bar, &err) == 0) continue;
        pthread_mutex_lock(&p->lock);
        if (!p->failed) *p->err = err;
        p->failed = 1;
        pthread_mutex_unlock(&p->lock);
    }
    return NULL;
}

int prefix_execute(prefix_run *runs, size_t n, unsigned jobs, tool_error *err)
{
    enum { MOST_JOBS = 256 };
    pthread_t threads[MOST_JOBS];
    pool p = {.runs = runs, .n = n, .err = err};
    uint64_t requests = 0;
    for (size_t i = 0; i < n; i++)
        requests += runs[i].trace->n_requests;
    pthread_mutex_init(&p.lock, NULL);
    progress_start(&p.bar, "replaying", requests);
    if (jobs > n) jobs = (unsigned)n;
    if (jobs > MOST_JOBS) jobs = MOST_JOBS;
    unsigned started = 0; /* helpers; a thread that cannot be had is done without */
    while (started + 1 < jobs && pthread_create(&threads[started], NULL, work, &p) == 0)
        started++;
    work(&p);
    while (started > 0)
        pthread_join(threads[--started], NULL);
    progress_end(&p.bar);
    pthread_mutex_destroy(&p.lock);
    return p.failed ? -1 : 0;
}

/* ---- next uses: one pass from the end, remembering where each block was seen last ----------- */

typedef struct seen {
    uint32_t request; /* 1 + the one that used it last, seen from the end; 0 = none yet */
    uint32_t after;   /* the next request that used it after that one */
} seen;

typedef struct seen_table {
    seen *slot;
    uint64_t *id;  /* of each slot, if it is a hash table; NULL: ids are dense, slot[id] */
    uint64_t mask; /* slots - 1 */
} seen_table;

static uint64_t mix(uint64_t x)
{
    x ^= x >> 32;
    x *= UINT64_C(0xd6e8feb86659fd93);
    x ^= x >> 32;
    x *= UINT64_C(0xd6e8feb86659fd93);
    return x ^ x >> 32;
}

static seen *slot_of(seen_table *table, uint64_t id)
{
    if (table->id == NULL) return &table->slot[id];
    uint64_t at = mix(id) & table->mask;
    while (table->slot[at].request != 0 && table->id[at] != id)
        at = (at + 1) & table->mask;
    table->id[at] = id;
    return &table->slot[at];
}

size_t prefix_dense_ids(const trace *t)
{
    uint64_t most = 0;
    for (size_t i = 0; i < t->n_blocks; i++)
        most = t->blocks[i] > most ? t->blocks[i] : most;
    return most / 2 < t->n_blocks ? (size_t)most + 1 : 0;
}

/* -1 when memory runs out; the caller frees what there is. */
static int make_table(seen_table *table, const trace *t, size_t dense_ids)
{
    size_t slots = 1024;
    while (slots < 2 * t->n_blocks)
        slots *= 2;
    if (dense_ids) slots = dense_ids;
    table->mask = slots - 1;
    table->id = dense_ids ? NULL : malloc(slots * sizeof *table->id);
    table->slot = calloc(slots, sizeof *table->slot);
    return table->slot == NULL || (!dense_ids && table->id == NULL) ? -1 : 0;
}

uint32_t *prefix_next_uses(const trace *t, size_t dense_ids, tool_error *err)
{
    seen_table table;
    uint32_t *next = malloc((t->n_blocks ? t->n_blocks : 1) * sizeof *next);
    if (make_table(&table, t, dense_ids) != 0 || next == NULL) {
        free(next);
        next = NULL;
        tool_fail(err, "out of memory");
    }
    for (size_t r = next != NULL ? t->n_requests : 0; r-- > 0;) {
        uint64_t first = t->requests[r].first_block;
        for (uint32_t i = t->requests[r].n_blocks; i-- > 0;) {
            seen *s = slot_of(&table, t->blocks[first + i]);
            if (s->request != r + 1)
                *s = (seen){(uint32_t)r + 1, s->request ? s->request - 1 : PKV_INDEX_NEVER};
            next[first + i] = s->after;
        }
    }
    free(table.slot);
    free(table.id);
    return next;
}

double prefix_hit_rate(const prefix_run *run)
{
    return run->total_blocks ? (double)run->hit_blocks / (double)run->total_blocks : (double)NAN;
}
