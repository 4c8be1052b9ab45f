/* A progress bar on stderr, drawn only when stderr is a terminal, at most ten times a second.
 * progress_add may be called from several threads. */
#ifndef TOOLS_COMMON_PROGRESS_H
#define TOOLS_COMMON_PROGRESS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct progress {
    const char *label;
    uint64_t total;
    bool shown; /* stderr is a terminal */
    _Atomic uint64_t done;
    _Atomic uint64_t next_draw_ns;
} progress;

/* `label` must stay valid. total 0 counts as 1. */
void progress_start(progress *p, const char *label, uint64_t total);
void progress_add(progress *p, uint64_t n);
/* Removes the bar from the line. */
void progress_end(progress *p);

#endif
