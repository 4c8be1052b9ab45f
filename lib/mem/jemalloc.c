/* The one file that knows jemalloc. Its functions are referenced weakly: where the process has
 * jemalloc they are there, elsewhere their addresses are NULL and libc serves. Only the
 * non-standard functions are used, never malloc or free, which might belong to another allocator.
 */
#include <stdio.h>

#include "mem/internal.h"

/* From jemalloc's public interface (stable since 4.0); a test compares them with the header. */
extern void *mallocx(size_t size, int flags) __attribute__((weak));
extern void dallocx(void *ptr, int flags) __attribute__((weak));
extern int mallctl(const char *name, void *old_value, size_t *old_size, void *new_value,
                   size_t new_size) __attribute__((weak));

#define FLAG_ARENA(arena) ((int)(((arena) + 1u) << 20))
#define FLAG_NO_TCACHE (1 << 8)

/* A thread's cache would belong to the thread and outlive the arena: allocations go straight to the
 * arena, which is fine for metadata, allocated rarely and in large pieces. */
static int flags_of(void *user, size_t alignment)
{
    unsigned arena = (unsigned)(uintptr_t)user;
    return FLAG_ARENA(arena) | FLAG_NO_TCACHE | (int)pkvi_log2_u32((uint32_t)alignment);
}

static void *je_alloc(void *user, size_t size, size_t alignment)
{
    if (alignment > UINT32_MAX) return NULL;
    return mallocx(size, flags_of(user, alignment));
}

static void je_free(void *user, void *ptr, size_t size)
{
    (void)user;
    /* Not sdallocx: it needs the alignment as well as the size to find the size class, and the
     * vtable's free does not have it. */
    (void)size;
    dallocx(ptr, FLAG_NO_TCACHE);
}

bool pkvi_jemalloc_present(void)
{
    return mallocx && dallocx && mallctl;
}

bool pkvi_jemalloc_create(pkv_allocator *allocator, unsigned *arena)
{
    unsigned index;
    size_t size = sizeof index;
    if (mallctl("arenas.create", &index, &size, NULL, 0) != 0) return false;
    *arena = index;
    *allocator = (pkv_allocator){(void *)(uintptr_t)index, je_alloc, je_free};
    return true;
}

void pkvi_jemalloc_destroy(unsigned arena)
{
    char name[64];
    snprintf(name, sizeof name, "arena.%u.destroy", arena);
    mallctl(name, NULL, NULL, NULL, 0);
}

static uint64_t read_counter(unsigned arena, const char *what)
{
    char name[64];
    snprintf(name, sizeof name, "stats.arenas.%u.%s.allocated", arena, what);
    size_t value = 0, size = sizeof value;
    return mallctl(name, &value, &size, NULL, 0) == 0 ? value : 0;
}

uint64_t pkvi_jemalloc_bytes(unsigned arena)
{
    uint64_t epoch = 1;
    size_t size = sizeof epoch;
    if (mallctl("epoch", &epoch, &size, &epoch, sizeof epoch) != 0) return 0;
    return read_counter(arena, "small") + read_counter(arena, "large");
}
