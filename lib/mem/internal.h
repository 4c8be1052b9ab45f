/* mem, private part: the allocators behind the vtable. */
#ifndef PKVI_MEM_INTERNAL_H
#define PKVI_MEM_INTERNAL_H

#include "mem/mem.h"

/* The libc allocator. */
void pkvi_libc_allocator(pkv_allocator *allocator);

/* True if this process has jemalloc (the symbols resolved). */
bool pkvi_jemalloc_present(void);
/* Makes a private arena and the vtable that allocates from it; false if jemalloc refuses. */
bool pkvi_jemalloc_create(pkv_allocator *allocator, unsigned *arena);
/* Destroys an arena with all that is in it. */
void pkvi_jemalloc_destroy(unsigned arena);
/* Bytes that jemalloc counts as allocated in the arena; 0 if it keeps no statistics. */
uint64_t pkvi_jemalloc_bytes(unsigned arena);

#endif
