#include "faults.h"

#include <stdlib.h>
#include <string.h>

#define MAGIC UINT64_C(0x6b76616c6c6f6321)

/* In front of each block, within the last bytes of its alignment's padding. */
struct header {
    void *base;
    uint64_t size;
    uint64_t magic;
};

static void *fail_alloc(void *user, size_t size, size_t alignment)
{
    struct pkvt_allocator *allocator = user;
    uint64_t call = atomic_fetch_add(&allocator->calls, 1) + 1;
    uint64_t from = atomic_load(&allocator->fail_from);
    if (call == atomic_load(&allocator->fail_at) || (from && call >= from)) return NULL;
    if (alignment < 16) alignment = 16;
    size_t room = (sizeof(struct header) + alignment - 1) / alignment * alignment;
    void *base;
    if (posix_memalign(&base, alignment, room + size) != 0) return NULL;
    char *ptr = (char *)base + room;
    struct header header = {base, size, MAGIC};
    memcpy(ptr - sizeof header, &header, sizeof header);
    memset(ptr, 0xa5, size); /* nobody may count on zeros */
    atomic_fetch_add(&allocator->live_blocks, 1);
    atomic_fetch_add(&allocator->live_bytes, size);
    return ptr;
}

static void fail_free(void *user, void *ptr, size_t size)
{
    struct pkvt_allocator *allocator = user;
    struct header header;
    char *at = (char *)ptr - sizeof header;
    memcpy(&header, at, sizeof header);
    if (header.magic != MAGIC || header.size != size) {
        atomic_fetch_add(&allocator->wrong_frees, 1);
        return;
    }
    memset(at, 0, sizeof header);
    memset(ptr, 0x5a, size);
    atomic_fetch_sub(&allocator->live_blocks, 1);
    atomic_fetch_sub(&allocator->live_bytes, size);
    free(header.base);
}

void pkvt_allocator_init(struct pkvt_allocator *allocator)
{
    memset(allocator, 0, sizeof *allocator);
    allocator->vtable = (pkv_allocator){allocator, fail_alloc, fail_free};
}

static bool refuse_other(struct pkvt_os *os)
{
    return atomic_fetch_add(&os->others, 1) + 1 == atomic_load(&os->fail_other);
}

static void *os_map(void *user, size_t size, size_t alignment)
{
    struct pkvt_os *os = user;
    uint64_t call = atomic_fetch_add(&os->maps, 1) + 1;
    uint64_t from = atomic_load(&os->fail_maps_from);
    if (call == atomic_load(&os->fail_map) || (from && call >= from)) return NULL;
    void *base = pkvi_os_default()->map(NULL, size, alignment);
    if (base) {
        atomic_fetch_add(&os->live_maps, 1);
        atomic_fetch_add(&os->live_bytes, size);
    }
    return base;
}

static bool os_unmap(void *user, void *address, size_t size)
{
    struct pkvt_os *os = user;
    if (atomic_load(&os->keep_memory)) return false;
    atomic_fetch_sub(&os->live_maps, 1);
    atomic_fetch_sub(&os->live_bytes, size);
    return pkvi_os_default()->unmap(NULL, address, size);
}

static bool os_decommit(void *user, void *address, size_t size)
{
    const struct pkvt_os *os = user;
    if (atomic_load(&os->keep_memory)) return false;
    return !refuse_other(user) && pkvi_os_default()->decommit(NULL, address, size);
}

static bool os_advise_huge(void *user, void *address, size_t size)
{
    return !refuse_other(user) && pkvi_os_default()->advise_huge(NULL, address, size);
}

static bool os_advise_small(void *user, void *address, size_t size)
{
    return !refuse_other(user) && pkvi_os_default()->advise_small(NULL, address, size);
}

static bool os_advise_dont_fork(void *user, void *address, size_t size)
{
    return !refuse_other(user) && pkvi_os_default()->advise_dont_fork(NULL, address, size);
}

static bool os_advise_numa(void *user, void *address, size_t size, int node)
{
    return !refuse_other(user) && pkvi_os_default()->advise_numa(NULL, address, size, node);
}

static uint64_t os_clock_ns(void *user)
{
    (void)user;
    return pkvi_os_default()->clock_ns(NULL);
}

static bool os_random(void *user, void *buffer, size_t size)
{
    return !refuse_other(user) && pkvi_os_default()->random(NULL, buffer, size);
}

void pkvt_os_init(struct pkvt_os *os)
{
    memset(os, 0, sizeof *os);
    os->hooks = (struct pkvi_os){
        .user = os,
        .page_bytes = pkvi_os_default()->page_bytes,
        .map = os_map,
        .unmap = os_unmap,
        .decommit = os_decommit,
        .advise_huge = os_advise_huge,
        .advise_small = os_advise_small,
        .advise_dont_fork = os_advise_dont_fork,
        .advise_numa = os_advise_numa,
        .clock_ns = os_clock_ns,
        .random = os_random,
    };
}
