#include <stdlib.h>

#include "mem/internal.h"

static void *libc_alloc(void *user, size_t size, size_t alignment)
{
    (void)user;
    if (alignment <= _Alignof(max_align_t)) return malloc(size);
    void *ptr;
    return posix_memalign(&ptr, alignment, size) == 0 ? ptr : NULL;
}

static void libc_free(void *user, void *ptr, size_t size)
{
    (void)user;
    (void)size;
    free(ptr);
}

void pkvi_libc_allocator(pkv_allocator *allocator)
{
    *allocator = (pkv_allocator){.alloc = libc_alloc, .free = libc_free};
}
