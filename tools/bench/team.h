/* A fixed team of threads, each pinned to its own CPU, that runs one function at a time. */
#ifndef BENCH_TEAM_H
#define BENCH_TEAM_H

#include <stdint.h>

typedef struct team team;

/* Work of member `ith` of `nth`. */
typedef void (*team_fn)(void *context, uint32_t ith, uint32_t nth);

/* Starts a team of n (>= 1), the caller being member 0. Members are pinned to different CPUs of
 * those the machine has online (whatever affinity the process was started with), in turn if there
 * are fewer. NULL if threads cannot be made. */
team *team_start(uint32_t n);
void team_stop(team *t);

/* Runs fn on every member and returns when all are done. Waiting members spin briefly, then yield.
 */
void team_run(team *t, team_fn fn, void *context);

/* Inside fn: waits until every member got here. */
void team_barrier(team *t);

uint32_t team_size(const team *t);

/* CPUs online, at most 64: a sensible size. */
uint32_t team_online(void);

/* How many different CPUs the members were seen on during the last team_run. */
uint32_t team_cpus(const team *t);

#endif
