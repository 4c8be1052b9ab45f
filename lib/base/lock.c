#include "base/base.h"

bool pkvi_mutex_init(struct pkvi_mutex *mutex, enum pkvi_rank rank, struct pkvi_lock_ranks *ranks)
{
#ifdef PKV_DEBUG
    mutex->rank = rank;
    mutex->ranks = ranks;
#else
    (void)rank;
    (void)ranks;
#endif
#ifdef PTHREAD_ADAPTIVE_MUTEX_INITIALIZER_NP
    /* Locks are held for some ten nanoseconds: spinning a little beats sleeping and being woken. */
    pthread_mutexattr_t attributes;
    if (pthread_mutexattr_init(&attributes) != 0) return false;
    bool made = pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP) == 0 &&
                pthread_mutex_init(&mutex->mutex, &attributes) == 0;
    pthread_mutexattr_destroy(&attributes);
    return made;
#else
    return pthread_mutex_init(&mutex->mutex, NULL) == 0;
#endif
}

void pkvi_mutex_destroy(struct pkvi_mutex *mutex)
{
    int failed = pthread_mutex_destroy(&mutex->mutex);
    PKVI_ASSERT(!failed);
    (void)failed;
}

#ifdef PKV_DEBUG

static int find_thread(struct pkvi_lock_ranks *ranks, uintptr_t thread)
{
    for (int i = 0; i < PKVI_LOCK_RANK_THREADS; i++)
        if (atomic_load_explicit(&ranks->entry[i].thread, memory_order_acquire) == thread) return i;
    return -1;
}

/* The calling thread's entry, claimed if it has none; -1 if the table is full. */
static int claim_entry(struct pkvi_lock_ranks *ranks)
{
    uintptr_t self = (uintptr_t)pthread_self();
    int found = find_thread(ranks, self);
    if (found >= 0) return found;
    for (int i = 0; i < PKVI_LOCK_RANK_THREADS; i++) {
        uintptr_t none = 0;
        if (atomic_compare_exchange_strong(&ranks->entry[i].thread, &none, self)) return i;
    }
    return -1;
}

void pkvi_rank_enter(struct pkvi_mutex *mutex)
{
    if (!mutex->ranks) return;
    int i = claim_entry(mutex->ranks);
    if (i < 0) return;
    /* No held rank may be as high as this one. */
    PKVI_ASSERT(mutex->ranks->entry[i].held >> mutex->rank == 0);
    mutex->ranks->entry[i].held |= 1u << mutex->rank;
}

void pkvi_rank_leave(struct pkvi_mutex *mutex)
{
    if (!mutex->ranks) return;
    int i = find_thread(mutex->ranks, (uintptr_t)pthread_self());
    if (i < 0) return;
    uint32_t held = mutex->ranks->entry[i].held & ~(1u << mutex->rank);
    mutex->ranks->entry[i].held = held;
    if (!held) atomic_store_explicit(&mutex->ranks->entry[i].thread, 0, memory_order_release);
}

#endif
