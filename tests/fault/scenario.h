/* A scenario that touches every public function, for runs in which one allocation, mapping or other
 * OS call is refused. */
#ifndef PKVT_SCENARIO_H
#define PKVT_SCENARIO_H

#include <stdbool.h>
#include <stdint.h>

#include <pagedkv/pagedkv.h>

#include "faults.h"

struct scenario {
    struct pkvt_allocator allocator;
    struct pkvt_os os;
    pkv_cache *cache; /* NULL until created */
    uint64_t refused; /* calls that failed and were repeated */
    bool faulty;      /* something is to be refused */
    pkv_seq seqs[8];  /* live ones; cache == NULL: none */
    const char *call; /* the call under way, for messages */
};

/* Initialises counters; then set what to refuse, then play. */
void scenario_init(struct scenario *s);

/* Plays the whole scenario. Whenever a call fails, its effect must be nil: sequences, tables and
 * counters are compared with before, pkv_cache_verify must be clean, and the call repeated without
 * faults must succeed. Exits with a message if anything is wrong, leaks included. */
void scenario_play(struct scenario *s);

#endif
