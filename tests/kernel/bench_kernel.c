/* Speed of single kernel rows, as fractions of what this machine can read and multiply. A tool for
 * working on the kernels, not a test: pkv-bench measures the library.
 *
 *   bench_kernel [--isa NAME] [--dtype f16] [--k-type k8] [--v-type v8] [--seal] [--heads 8]
 * [--group 4] [--queries 1] [--dim 128]
 *                [--page 16] [--context 16384] [--threads 2] [--reps 15] [--resident] [--cpu]
 *
 * --resident uses a context that stays in the L2 cache, to see the compute side alone. Every
 * repetition runs the read probes, the FMA probe and the kernel back to back; the best of each is
 * printed, and the median fraction. --seal times sealing pages against copying the open ones. */
#include <getopt.h>
#include <pthread.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "kernels/kernels.h"
#include "../../tools/bench/probe.h"

enum { MAX_THREADS = 64, MAX_REPS = 200, ATTEND = 100, STORE_STEP = 1 << 20 };

struct options {
    const pkvi_kernels *kernels;
    pkv_dtype k, v;
    uint32_t heads, group, queries, dim, page, context, threads, reps;
    bool resident, ordered, cpu, seal;
};

/* Pages of one format. */
struct store {
    pkvi_layout layout;
    char *arena;
    size_t layer_bytes;
    uint32_t layers, n_pages;
    const void ***parts; /* [layers][n_pages] */
};

struct bench {
    struct options o;
    struct store stores[2]; /* what is measured, and f16 pages to compare it with */
    uint32_t n_stores;
    struct worker {
        struct bench *bench;
        uint32_t index;
        float *q, *out, *m, *l, sink;
        uint32_t *lo, *hi;
        void *scratch;
        double flops;
    } workers[MAX_THREADS];
    int phase; /* -2 = quit, -1 = FMA, -3 = bf16, 0.. = read shape, ATTEND + store, layer = attend
                */
    pthread_barrier_t start, stop;
};

/* --cpu: time that thread 0 ran, for compute-bound shapes on a busy machine. */
static double now(bool cpu)
{
    struct timespec t;
    clock_gettime(cpu ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *must(void *p)
{
    if (!p) {
        fputs("out of memory\n", stderr);
        exit(1);
    }
    return p;
}

static void attend_share(struct worker *w, const struct store *b, uint32_t layer)
{
    const struct options *o = &w->bench->o;
    const uint32_t rows = o->group * o->queries, leaf_pages = PKVI_LEAF / o->page;
    uint32_t page0 = 0, page1 = b->n_pages, head0 = 0, head1 = o->heads;
    if (o->queries > 16) { /* prefill: share heads */
        head0 = o->heads * w->index / o->threads;
        head1 = o->heads * (w->index + 1) / o->threads;
    } else { /* share the context, at leaves */
        const uint32_t leaves = (b->n_pages + leaf_pages - 1) / leaf_pages;
        page0 = leaves * w->index / o->threads * leaf_pages;
        page1 = leaves * (w->index + 1) / o->threads * leaf_pages;
        if (page1 > b->n_pages) page1 = b->n_pages;
    }
    if (page0 >= page1 || head0 >= head1) return;
    for (uint32_t r = 0; r < rows; r++) {
        uint32_t end = o->context - o->queries + 1 + r / o->group;
        if (end > page1 * o->page) end = page1 * o->page;
        w->hi[r] = end - page0 * o->page;
    }
    pkvi_attend_job job = {.layout = &b->layout,
                           .parts = b->parts[layer] + page0,
                           .n_pages = page1 - page0,
                           .head0 = head0,
                           .head1 = head1,
                           .n_rows = rows,
                           .q = w->q,
                           .q_head_stride = (size_t)rows * o->dim,
                           .lo = w->lo,
                           .hi = w->hi,
                           .scale = 1 / sqrtf((float)o->dim),
                           .o = w->out,
                           .o_head_stride = (size_t)rows * o->dim,
                           .o_stride = o->dim,
                           .m = w->m,
                           .l = w->l,
                           .scratch = w->scratch,
                           .flags = PKVI_JOB_Q_BF16};
    o->kernels->attend(&job);
}

static void run_phase(struct worker *w)
{
    struct bench *b = w->bench;
    const struct store *first = &b->stores[0];
    const size_t total = first->layer_bytes * first->layers / b->o.threads / 65536 * 65536;
    if (b->phase == -1)
        w->flops = probe_fma(b->o.kernels->name, 400000, &w->sink);
    else if (b->phase == -3)
        w->flops = probe_bf16_dot(400000, &w->sink);
    else if (b->phase >= ATTEND)
        attend_share(w, &b->stores[b->phase / STORE_STEP],
                     (uint32_t)(b->phase % STORE_STEP) - ATTEND);
    else
        w->sink += (float)probe_read((unsigned)b->phase, first->arena + w->index * total, total);
}

static void *work(void *arg)
{
    struct worker *w = arg;
    for (;;) {
        pthread_barrier_wait(&w->bench->start);
        if (w->bench->phase == -2) return NULL;
        run_phase(w);
        pthread_barrier_wait(&w->bench->stop);
    }
}

static double timed(struct bench *b, int phase)
{
    b->phase = phase;
    pthread_barrier_wait(&b->start);
    const double t = now(b->o.cpu);
    run_phase(&b->workers[0]);
    pthread_barrier_wait(&b->stop);
    return now(b->o.cpu) - t;
}

/* Random bits become small elements of any sign. */
static void fill_plain(pkv_dtype dtype, void *data, size_t bytes, uint64_t *state)
{
    uint32_t *words = data;
    for (size_t i = 0; i < bytes / 4; i++) {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        const uint32_t x = (uint32_t)*state;
        words[i] = dtype == PKV_DTYPE_F32   ? (x & 0x807fffffu) | 0x3e800000u
                   : dtype == PKV_DTYPE_F16 ? (x & 0x83ff83ffu) | 0x34003400u
                                            : (x & 0x807f807fu) | 0x3e803e80u;
    }
}

/* Pages with codes (or K and V in two types) are copies of a few that are sealed. */
static void fill_pages(const struct options *o, struct store *b, size_t bytes, uint64_t *state)
{
    enum { DIFFERENT = 8 };
    pkvi_layout open;
    if (b->layout.dtype_k == b->layout.dtype_v) {
        fill_plain(b->layout.dtype_k, b->arena, bytes, state);
        return;
    }
    pkvi_layout_init(&open, PKV_DTYPE_F16, PKV_DTYPE_F16, o->page, o->heads, o->dim, o->dim, 0);
    void *plain = must(aligned_alloc(64, open.part_bytes));
    const size_t part = b->layout.part_bytes;
    for (size_t i = 0; i < bytes / part; i++) {
        if (i < DIFFERENT) {
            fill_plain(PKV_DTYPE_F16, plain, open.part_bytes, state);
            o->kernels->seal(&open, plain, &b->layout, b->arena + i * part, 0, o->heads);
        } else {
            memcpy(b->arena + i * part, b->arena + i % DIFFERENT * part, part);
        }
    }
    free(plain);
}

static void setup_store(const struct options *o, struct store *b, pkv_dtype k, pkv_dtype v)
{
    if (pkvi_layout_init(&b->layout, k, v, o->page, o->heads, o->dim, o->dim, 0) != PKV_OK) exit(2);
    b->n_pages = (o->context + o->page - 1) / o->page;
    b->layer_bytes = b->layout.part_bytes * b->n_pages;
    b->layers = o->resident ? 1 : (uint32_t)((256u << 20) / b->layer_bytes) + 1;
    size_t bytes = b->layer_bytes * b->layers;
    b->arena =
        mmap(NULL, bytes + (4 << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (b->arena == MAP_FAILED) exit(1);
    b->arena = (char *)(((uintptr_t)b->arena + (2 << 20) - 1) & ~(uintptr_t)((2 << 20) - 1));
    madvise(b->arena, bytes, MADV_HUGEPAGE);
    uint64_t state = 88172645463325252u;
    fill_pages(o, b, bytes, &state);
    b->parts = must(calloc(b->layers, sizeof *b->parts));
    for (uint32_t l = 0; l < b->layers; l++) {
        b->parts[l] = must(calloc(b->n_pages, sizeof **b->parts));
        for (uint32_t i = 0; i < b->n_pages; i++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            uint32_t j = o->ordered ? i : (uint32_t)(state >> 33) % (i + 1);
            b->parts[l][i] = b->parts[l][j];
            b->parts[l][j] = b->arena + l * b->layer_bytes + i * b->layout.part_bytes;
        }
    }
}

static void setup(struct bench *b)
{
    const struct options *o = &b->o;
    b->n_stores = o->k == PKV_DTYPE_F16 && o->v == PKV_DTYPE_F16 ? 1 : 2;
    setup_store(o, &b->stores[0], o->k, o->v);
    if (b->n_stores > 1) setup_store(o, &b->stores[1], PKV_DTYPE_F16, PKV_DTYPE_F16);
    size_t scratch = 0;
    for (uint32_t i = 0; i < b->n_stores; i++) {
        const size_t need =
            pkvi_kernel_scratch(&b->stores[i].layout, o->heads, o->group * o->queries);
        if (need > scratch) scratch = need;
    }
    const size_t rows = (size_t)o->group * o->queries, states = rows * o->heads;
    for (uint32_t i = 0; i < o->threads; i++) {
        struct worker *w = &b->workers[i];
        w->bench = b;
        w->index = i;
        w->q = must(aligned_alloc(64, states * o->dim * 4));
        w->out = must(aligned_alloc(64, states * o->dim * 4));
        w->m = must(calloc(states, 4));
        w->l = must(calloc(states, 4));
        w->lo = must(calloc(rows, 4));
        w->hi = must(calloc(rows, 4));
        w->scratch = must(aligned_alloc(64, scratch));
        for (size_t j = 0; j < states * o->dim; j++)
            w->q[j] = (float)(j % 17) * 0.125f - 1.0f;
    }
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *x, uint32_t n)
{
    qsort(x, n, sizeof *x, by_value);
    return x[n / 2];
}

static void measure(struct bench *b)
{
    const struct options *o = &b->o;
    const struct store *store = &b->stores[0];
    const double all_bytes = (double)(store->layer_bytes * store->layers);
    static double fraction[MAX_REPS], against[MAX_REPS];
    const double rows = (double)o->group * o->queries;
    /* Causal: query i of n sees context - n + 1 + i tokens. */
    const double seen = (double)o->context - 0.5 * (o->queries - 1.0);
    const double flops = seen * o->heads * rows * o->dim * 4;
    double best_read = 0, best_fma = 0, best_dot = 0, best = 1e9;
    for (uint32_t rep = 0; rep < o->reps; rep++) {
        double read = 0;
        for (unsigned s = 0; s < probe_read_shapes(); s++) {
            const double t = timed(b, (int)s);
            const double rate = all_bytes / t / 1e9;
            if (rate > read) read = rate;
            if (rep == 0 && !o->resident)
                fprintf(stderr, "%s %.1f  ", probe_read_shape_name(s), rate);
        }
        if (rep == 0) fputc('\n', stderr);
        double t = timed(b, -1), f = 0;
        for (uint32_t i = 0; i < o->threads; i++)
            f += b->workers[i].flops;
        const double fma = f / t / 1e9;
        t = timed(b, -3);
        f = 0;
        for (uint32_t i = 0; i < o->threads; i++)
            f += b->workers[i].flops;
        if (f / t / 1e9 > best_dot) best_dot = f / t / 1e9;
        double attend = 1e9, plain = 1e9;
        uint32_t tries = o->resident ? 40 : store->layers < 4 ? store->layers : 4;
        for (uint32_t i = 0; i < tries; i++) {
            t = timed(b, ATTEND + (int)((rep * tries + i) % store->layers));
            if (t < attend) attend = t;
            if (b->n_stores == 1) continue;
            t = timed(b, STORE_STEP + ATTEND + (int)((rep * tries + i) % b->stores[1].layers));
            if (t < plain) plain = t;
        }
        against[rep] = attend / plain;
        if (read > best_read) best_read = read;
        if (fma > best_fma) best_fma = fma;
        if (attend < best) best = attend;
        double limit = o->resident
                           ? fma
                           : fmin(fma, flops / ((double)store->layer_bytes / (read * 1e9)) / 1e9);
        fraction[rep] = flops / attend / 1e9 / limit;
    }
    const double limit =
        fmin(best_fma, o->resident ? 1e9 : flops / (double)store->layer_bytes * best_read);
    printf(
        "%-10s %-4s/%-4s heads %u G %u q %u d %u P %u ctx %u thr %u: %8.1f us, %5.1f GB/s, %6.1f "
        "GFLOP/s "
        "| read %.1f fma %.1f dot %.1f | of roofline: median %.2f, best/best %.2f\n",
        o->kernels->name, pkv_dtype_name(o->k), pkv_dtype_name(o->v), o->heads, o->group,
        o->queries, o->dim, o->page, o->context, o->threads, best * 1e6,
        (double)store->layer_bytes / best / 1e9, flops / best / 1e9, best_read, best_fma, best_dot,
        median(fraction, o->reps), flops / best / 1e9 / limit);
    if (b->n_stores > 1)
        printf("%-10s time against f16: median %.3f\n", o->kernels->name, median(against, o->reps));
}

/* Time of sealing a page's part, and of copying the open one, both out of and into memory. */
static void measure_seal(struct bench *b)
{
    const struct options *o = &b->o;
    const struct store *to = &b->stores[0], *from = &b->stores[1];
    static double against[MAX_REPS];
    char *copy = must(aligned_alloc(64, from->layer_bytes));
    memset(copy, 1, from->layer_bytes);
    double best_copy = 1e9, best_seal = 1e9;
    for (uint32_t rep = 0; rep < o->reps; rep++) {
        const void *const *source = from->parts[rep % from->layers];
        const void *const *sink = to->parts[rep % to->layers];
        double t0 = now(o->cpu);
        for (uint32_t i = 0; i < from->n_pages; i++)
            memcpy(copy + i * from->layout.part_bytes, source[i], from->layout.part_bytes);
        double t1 = now(o->cpu);
        for (uint32_t i = 0; i < from->n_pages; i++)
            o->kernels->seal(&from->layout, source[i], &to->layout, (void *)(uintptr_t)sink[i], 0,
                             o->heads);
        double t2 = now(o->cpu);
        against[rep] = (t2 - t1) / (t1 - t0);
        if (t1 - t0 < best_copy) best_copy = t1 - t0;
        if (t2 - t1 < best_seal) best_seal = t2 - t1;
    }
    printf("%-10s %-4s/%-4s seal %.2f us a part, copy %.2f: median %.2f times\n", o->kernels->name,
           pkv_dtype_name(o->k), pkv_dtype_name(o->v), best_seal * 1e6 / from->n_pages,
           best_copy * 1e6 / from->n_pages, median(against, o->reps));
    free(copy);
}

static pkv_dtype type_named(const char *name)
{
    for (pkv_dtype t = PKV_DTYPE_F32; t <= PKV_DTYPE_V4; t++)
        if (strcmp(pkv_dtype_name(t), name) == 0) return t;
    fprintf(stderr, "no such type: %s\n", name);
    exit(2);
}

int main(int argc, char **argv)
{
    static struct bench bench;
    struct options *o = &bench.o;
    const char *isa = NULL;
    *o = (struct options){.k = PKV_DTYPE_F16,
                          .v = PKV_DTYPE_F16,
                          .heads = 8,
                          .group = 4,
                          .queries = 1,
                          .dim = 128,
                          .page = 16,
                          .context = 16384,
                          .threads = 2,
                          .reps = 15};
    const struct option longs[] = {{"isa", 1, 0, 'i'},
                                   {"dtype", 1, 0, 't'},
                                   {"k-type", 1, 0, 'k'},
                                   {"v-type", 1, 0, 'v'},
                                   {"seal", 0, 0, 's'},
                                   {"heads", 1, 0, 'h'},
                                   {"group", 1, 0, 'g'},
                                   {"queries", 1, 0, 'q'},
                                   {"dim", 1, 0, 'd'},
                                   {"page", 1, 0, 'p'},
                                   {"context", 1, 0, 'c'},
                                   {"threads", 1, 0, 'n'},
                                   {"reps", 1, 0, 'r'},
                                   {"resident", 0, 0, 'R'},
                                   {"ordered", 0, 0, 'O'},
                                   {"cpu", 0, 0, 'C'},
                                   {0, 0, 0, 0}};
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        const uint32_t n = optarg ? (uint32_t)strtoul(optarg, NULL, 10) : 0;
        switch (c) {
        case 'i':
            isa = optarg;
            break;
        case 't':
            o->k = o->v = type_named(optarg);
            break;
        case 'k':
            o->k = type_named(optarg);
            break;
        case 'v':
            o->v = type_named(optarg);
            break;
        case 's':
            o->seal = true;
            break;
        case 'h':
            o->heads = n;
            break;
        case 'g':
            o->group = n;
            break;
        case 'q':
            o->queries = n;
            break;
        case 'd':
            o->dim = n;
            break;
        case 'p':
            o->page = n;
            break;
        case 'c':
            o->context = n;
            break;
        case 'n':
            o->threads = n < MAX_THREADS ? n : MAX_THREADS;
            break;
        case 'r':
            o->reps = n < MAX_REPS ? n : MAX_REPS;
            break;
        case 'R':
            o->resident = true;
            break;
        case 'O':
            o->ordered = true;
            break;
        case 'C':
            o->cpu = true;
            break;
        default:
            return 2;
        }
    }
    o->kernels = pkvi_kernel_find(isa);
    if (!o->kernels) {
        fprintf(stderr, "no such kernel row here: %s\n", isa);
        return 2;
    }
    setup(&bench);
    if (o->seal && bench.n_stores > 1) {
        measure_seal(&bench);
        return 0;
    }
    pthread_barrier_init(&bench.start, NULL, o->threads);
    pthread_barrier_init(&bench.stop, NULL, o->threads);
    pthread_t threads[MAX_THREADS];
    for (uint32_t i = 1; i < o->threads; i++)
        pthread_create(&threads[i], NULL, work, &bench.workers[i]);
    measure(&bench);
    bench.phase = -2;
    pthread_barrier_wait(&bench.start);
    for (uint32_t i = 1; i < o->threads; i++)
        pthread_join(threads[i], NULL);
    return 0;
}
