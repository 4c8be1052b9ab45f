#include "limits.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "probe.h"

#define HUGE ((size_t)2 << 20)
#define BEST 3

struct limits {
    team *t;
    unsigned char *map, *data;
    size_t map_bytes, bytes;
    unsigned best[BEST];
    /* the pass being run */
    unsigned shape;
    const char *row;
    uint64_t rounds;
    int what;
    double flops[256];
    _Atomic uint64_t sink;
};

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

enum { TOUCH, READ, FMA, BF16 };

static void pass(void *context, uint32_t ith, uint32_t nth)
{
    limits *l = context;
    size_t share = l->bytes / nth / 65536 * 65536;
    unsigned char *at = l->data + (size_t)ith * share;
    float sink = 0;
    if (l->what == TOUCH) memset(at, (int)ith + 1, share);
    if (l->what == READ)
        atomic_fetch_add_explicit(&l->sink, probe_read(l->shape, at, share), memory_order_relaxed);
    if (l->what == FMA) l->flops[ith % 256] = probe_fma(l->row, l->rounds, &sink);
    if (l->what == BF16) l->flops[ith % 256] = probe_bf16_dot(l->rounds, &sink);
    if (sink == 42) atomic_fetch_add_explicit(&l->sink, 1, memory_order_relaxed);
}

static double read_once(limits *l, unsigned shape)
{
    l->what = READ;
    l->shape = shape;
    size_t share = l->bytes / team_size(l->t) / 65536 * 65536;
    double start = seconds();
    team_run(l->t, pass, l);
    return (double)(share * team_size(l->t)) / (seconds() - start) * 1e-9;
}

limits *limits_make(team *t, size_t bytes, tool_error *err)
{
    limits *l = calloc(1, sizeof *l);
    if (!l) return NULL;
    l->t = t;
    l->bytes = bytes;
    l->map_bytes = bytes + HUGE;
    void *map =
        mmap(NULL, l->map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) {
        tool_fail(err, "no memory for the read probe");
        free(l);
        return NULL;
    }
    l->map = map;
    l->data = (unsigned char *)(((uintptr_t)map + HUGE - 1) & ~(uintptr_t)(HUGE - 1));
    madvise(l->data, bytes, MADV_HUGEPAGE);
    l->what = TOUCH;
    team_run(t, pass, l);

    double speed[64] = {0};
    unsigned n = probe_read_shapes() < 64 ? probe_read_shapes() : 64;
    for (int round = 0; round < 3; round++)
        for (unsigned i = 0; i < n; i++) {
            double now = read_once(l, i);
            if (now > speed[i]) speed[i] = now;
        }
    for (unsigned k = 0; k < BEST; k++) {
        unsigned best = 0;
        for (unsigned i = 1; i < n; i++)
            if (speed[i] > speed[best]) best = i;
        l->best[k] = best;
        speed[best] = 0;
    }
    return l;
}

void limits_free(limits *l)
{
    if (!l) return;
    munmap(l->map, l->map_bytes);
    free(l);
}

double limits_read(limits *l)
{
    double best = 0;
    for (unsigned k = 0; k < BEST; k++) {
        double now = read_once(l, l->best[k]);
        if (now > best) best = now;
    }
    return best;
}

/* Enough work for a millisecond or more on any core. */
#define FLOPS_EACH 3e8

static double flops_once(limits *l, int what, const char *row)
{
    l->what = what;
    l->row = row;
    l->rounds = 1;
    for (;;) {
        double start = seconds(), sum = 0;
        team_run(l->t, pass, l);
        double took = seconds() - start;
        for (uint32_t i = 0; i < team_size(l->t) && i < 256; i++)
            sum += l->flops[i];
        if (sum == 0) return 0;
        double each = sum / team_size(l->t);
        if (each >= FLOPS_EACH) return sum / took * 1e-9;
        l->rounds = (uint64_t)((double)l->rounds * FLOPS_EACH / each) + 1;
    }
}

double limits_fma(limits *l, const char *row)
{
    return flops_once(l, FMA, row);
}

double limits_bf16(limits *l)
{
    return flops_once(l, BF16, NULL);
}

const char *limits_shape(const limits *l)
{
    return probe_read_shape_name(l->best[0]);
}
