/* os: mappings, advice, clock and randomness, behind one table of hooks, so that tests can refuse each
 * call in turn and ports have one thing to write. Locks are pthread's, CPU features are read by
 * kernels/cpu.c. */
#ifndef PKVI_OS_OS_H
#define PKVI_OS_OS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The contract. Every function gets `user` and is MT-safe. Those that return bool say whether they
 * succeeded; advice that is refused is not an error for the caller. Sizes and addresses of mapping
 * calls are multiples of page_bytes(). */
struct pkvi_os {
    void *user;
    /* The unit in which memory appears on first touch and is given back: a power of two. */
    size_t (*page_bytes)(void *user);
    /* Reserves `size` bytes of zeroed, readable and writable private memory at a multiple of
     * `alignment` (a power of two); NULL if refused. Physical memory appears on first touch. */
    void *(*map)(void *user, size_t size, size_t alignment);
    /* Gives back exactly what one map call returned. Contents are lost. */
    bool (*unmap)(void *user, void *address, size_t size);
    /* Drops the contents but keeps the range: it reads as zeros afterwards and uses no memory until
     * touched again. */
    bool (*decommit)(void *user, void *address, size_t size);
    /* Advice: back the range with huge pages. */
    bool (*advise_huge)(void *user, void *address, size_t size);
    /* Advice: the opposite. Only what is touched takes memory, page by page. */
    bool (*advise_small)(void *user, void *address, size_t size);
    /* Advice: children of fork() do not inherit the range. */
    bool (*advise_dont_fork)(void *user, void *address, size_t size);
    /* Advice: prefer memory of this NUMA node. */
    bool (*advise_numa)(void *user, void *address, size_t size, int node);
    /* Monotonic nanoseconds. */
    uint64_t (*clock_ns)(void *user);
    /* Fills the buffer with unpredictable bytes. */
    bool (*random)(void *user, void *buffer, size_t size);
};

/* Smallest unit of regions: one x86-64 or AArch64 huge page. */
#define PKVI_OS_GRANULE ((size_t)2 << 20)

/* The hooks of this operating system (Linux). Static storage, constant. MT-safe. */
const struct pkvi_os *pkvi_os_default(void);

#endif
