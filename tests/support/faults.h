/* Allocator and OS hooks for tests: they count, remember what is alive, check sizes, and refuse the
 * n-th call. Count a scenario once, then run it again refusing call 1, 2, 3 …; afterwards nothing
 * may be alive. MT-safe. */
#ifndef PKVT_FAULTS_H
#define PKVT_FAULTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <pagedkv/config.h>

#include "os/os.h"

struct pkvt_allocator {
    pkv_allocator vtable; /* give its address to the library */
    _Atomic uint64_t calls;
    _Atomic uint64_t fail_at;   /* refuse this call (1 = the first); 0 = none */
    _Atomic uint64_t fail_from; /* refuse this call and all later ones; 0 = none */
    _Atomic uint64_t live_blocks, live_bytes;
    _Atomic uint64_t wrong_frees; /* freed with another size than allocated, or twice */
};
/* `allocator` must not move afterwards. */
void pkvt_allocator_init(struct pkvt_allocator *allocator);

struct pkvt_os {
    struct pkvi_os hooks;
    _Atomic uint64_t maps;     /* map calls */
    _Atomic uint64_t fail_map; /* refuse this map call (1 = the first); 0 = none */
    _Atomic uint64_t fail_maps_from;
    _Atomic bool keep_memory; /* refuse to take memory back: unmap and decommit */
    _Atomic uint64_t others; /* calls of advice, random, I/O */
    _Atomic uint64_t fail_other;
    _Atomic uint64_t live_maps, live_bytes;
};
/* The default hooks with counting around them. `os` must not move afterwards. */
void pkvt_os_init(struct pkvt_os *os);

#endif
