#include <errno.h>
#include <limits.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "os/os.h"

/* From <linux/mempolicy.h>, which not every system installs. */
#define MPOL_PREFERRED_MODE 1

static size_t linux_page_bytes(void *user)
{
    (void)user;
    long bytes = sysconf(_SC_PAGESIZE);
    return bytes > 0 ? (size_t)bytes : 4096;
}

static void *linux_map(void *user, size_t size, size_t alignment)
{
    (void)user;
    if (size > SIZE_MAX - alignment) return NULL;
    /* Map more, then give back what lies outside the aligned part. */
    size_t span = size + alignment;
    char *base = mmap(NULL, span, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return NULL;
    size_t before = (alignment - ((uintptr_t)base & (alignment - 1))) & (alignment - 1);
    size_t after = span - before - size;
    if (before) munmap(base, before);
    if (after) munmap(base + before + size, after);
    return base + before;
}

static bool linux_unmap(void *user, void *address, size_t size)
{
    (void)user;
    return munmap(address, size) == 0;
}

static bool linux_decommit(void *user, void *address, size_t size)
{
    (void)user;
    return madvise(address, size, MADV_DONTNEED) == 0;
}

static bool linux_advise_huge(void *user, void *address, size_t size)
{
    (void)user;
    return madvise(address, size, MADV_HUGEPAGE) == 0;
}

static bool linux_advise_small(void *user, void *address, size_t size)
{
    (void)user;
    return madvise(address, size, MADV_NOHUGEPAGE) == 0;
}

static bool linux_advise_dont_fork(void *user, void *address, size_t size)
{
    (void)user;
    return madvise(address, size, MADV_DONTFORK) == 0;
}

static bool linux_advise_numa(void *user, void *address, size_t size, int node)
{
    (void)user;
    enum { MASK_WORDS = 16, WORD_BITS = sizeof(unsigned long) * CHAR_BIT };
    if (node < 0 || node >= MASK_WORDS * WORD_BITS) return false;
    unsigned long mask[MASK_WORDS] = {0};
    mask[node / WORD_BITS] = 1ul << (node % WORD_BITS);
    return syscall(SYS_mbind, address, size, MPOL_PREFERRED_MODE, mask,
                   (unsigned long)MASK_WORDS * WORD_BITS, 0) == 0;
}

static uint64_t linux_clock_ns(void *user)
{
    (void)user;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static bool linux_random(void *user, void *buffer, size_t size)
{
    (void)user;
    char *at = buffer;
    while (size) {
        ssize_t got = getrandom(at, size, 0);
        if (got < 0) {
            if (errno == EINTR) continue;
            return false;
        }
        at += got;
        size -= (size_t)got;
    }
    return true;
}

const struct pkvi_os *pkvi_os_default(void)
{
    static const struct pkvi_os hooks = {
        .page_bytes = linux_page_bytes,
        .map = linux_map,
        .unmap = linux_unmap,
        .decommit = linux_decommit,
        .advise_huge = linux_advise_huge,
        .advise_small = linux_advise_small,
        .advise_dont_fork = linux_advise_dont_fork,
        .advise_numa = linux_advise_numa,
        .clock_ns = linux_clock_ns,
        .random = linux_random,
    };
    return &hooks;
}
