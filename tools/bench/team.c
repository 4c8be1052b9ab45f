#include "team.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

#define SPINS 20000u

struct member {
    team *t;
    uint32_t ith;
    int cpu;       /* to be pinned to */
    atomic_int on; /* seen on */
    pthread_t thread;
};

struct team {
    uint32_t n;
    struct member *members;
    team_fn fn;
    void *context;
    atomic_uint job;     /* number of the job to run; members wait for it to change */
    atomic_uint waiting; /* of the barrier */
    atomic_uint phase;
    atomic_bool quit;
    cpu_set_t before; /* the caller's affinity */
};

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void wait_change(atomic_uint *word, uint32_t old)
{
    for (uint32_t spin = 0; atomic_load_explicit(word, memory_order_acquire) == old; spin++) {
        if (spin < SPINS)
            relax();
        else
            sched_yield();
    }
}

static void pin(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

static void work(struct member *m)
{
    m->t->fn(m->t->context, m->ith, m->t->n);
    atomic_store_explicit(&m->on, sched_getcpu(), memory_order_relaxed);
    team_barrier(m->t);
}

static void *member_main(void *context)
{
    struct member *m = context;
    pin(m->cpu);
    for (uint32_t seen = 0;;) {
        wait_change(&m->t->job, seen);
        seen = atomic_load_explicit(&m->t->job, memory_order_acquire);
        if (atomic_load_explicit(&m->t->quit, memory_order_acquire)) return NULL;
        work(m);
    }
}

/* The CPUs that can be used: all online ones that accept a thread. */
static uint32_t usable_cpus(int *cpus, uint32_t capacity)
{
    long online = sysconf(_SC_NPROCESSORS_CONF);
    uint32_t n = 0;
    for (int cpu = 0; cpu < online && n < capacity; cpu++) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET((size_t)cpu, &set);
        if (pthread_setaffinity_np(pthread_self(), sizeof set, &set) == 0) cpus[n++] = cpu;
    }
    return n;
}

team *team_start(uint32_t n)
{
    team *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    int cpus[CPU_SETSIZE];
    pthread_getaffinity_np(pthread_self(), sizeof t->before, &t->before);
    uint32_t n_cpus = usable_cpus(cpus, CPU_SETSIZE);
    t->members = calloc(n, sizeof *t->members);
    if (!t->members) {
        free(t);
        return NULL;
    }
    t->n = 1;
    for (uint32_t i = 0; i < n; i++) {
        struct member *m = &t->members[i];
        m->t = t;
        m->ith = i;
        m->cpu = n_cpus ? cpus[i % n_cpus] : 0;
        if (i == 0) {
            pin(m->cpu);
        } else if (pthread_create(&m->thread, NULL, member_main, m) == 0) {
            t->n++;
        } else {
            team_stop(t);
            return NULL;
        }
    }
    return t;
}

void team_stop(team *t)
{
    if (!t) return;
    atomic_store_explicit(&t->quit, true, memory_order_release);
    atomic_fetch_add_explicit(&t->job, 1, memory_order_release);
    for (uint32_t i = 1; i < t->n; i++)
        pthread_join(t->members[i].thread, NULL);
    pthread_setaffinity_np(pthread_self(), sizeof t->before, &t->before);
    free(t->members);
    free(t);
}

void team_run(team *t, team_fn fn, void *context)
{
    t->fn = fn;
    t->context = context;
    atomic_fetch_add_explicit(&t->job, 1, memory_order_release);
    work(&t->members[0]);
}

void team_barrier(team *t)
{
    uint32_t phase = atomic_load_explicit(&t->phase, memory_order_acquire);
    if (atomic_fetch_add_explicit(&t->waiting, 1, memory_order_acq_rel) + 1 == t->n) {
        atomic_store_explicit(&t->waiting, 0, memory_order_relaxed);
        atomic_store_explicit(&t->phase, phase + 1, memory_order_release);
        return;
    }
    wait_change(&t->phase, phase);
}

uint32_t team_size(const team *t)
{
    return t->n;
}

uint32_t team_online(void)
{
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > 64 ? 64 : (uint32_t)n;
}

uint32_t team_cpus(const team *t)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < t->n; i++) {
        int on = atomic_load_explicit(&t->members[i].on, memory_order_relaxed);
        bool seen = false;
        for (uint32_t j = 0; j < i; j++)
            seen |= atomic_load_explicit(&t->members[j].on, memory_order_relaxed) == on;
        n += !seen;
    }
    return n;
}
