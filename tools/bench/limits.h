/* What the machine can do, measured beside what is compared with it: by the same team, in the same
 * process, at the same time. */
#ifndef BENCH_LIMITS_H
#define BENCH_LIMITS_H

#include "team.h"
#include "tool_error.h"

typedef struct limits limits;

/* Takes a buffer of `bytes` (larger than the last-level cache) and finds out which stream shapes
 * read fastest. NULL with err. */
limits *limits_make(team *t, size_t bytes, tool_error *err);
void limits_free(limits *l);

/* Read limit now in GB/s: the best of the fastest shapes, one pass each. */
double limits_read(limits *l);

/* Peak of f32 fused multiply-adds now in GFLOP/s, as wide as the named kernel row ("avx512"; NULL =
 * the widest). */
double limits_fma(limits *l, const char *row);
/* The same with bf16 dot products; 0 without them. */
double limits_bf16(limits *l);

/* Name of the stream shape that was fastest at the start. */
const char *limits_shape(const limits *l);

#endif
