/* pkv-sim waste: the parts of the subcommand. Definitions are in docs/tools.md. */
#ifndef TOOLS_SIM_WASTE_H
#define TOOLS_SIM_WASTE_H

#include <stdbool.h>
#include <stdint.h>

#include "model.h"
#include "progress.h"
#include "trace.h"

__extension__ typedef unsigned __int128 waste_sum; /* byte-steps overflow 64 bits on long traces */

/* Sums over served requests, in bytes: what the model needs, and what the scheme holds. */
typedef struct waste_totals {
    uint64_t served;
    waste_sum needed_end, reserved_end;       /* when the last token is there */
    waste_sum needed_decode, reserved_decode; /* summed over decode steps */
} waste_totals;

typedef enum waste_kind {
    WASTE_PAGED,
    WASTE_PAGED_FLAT,
    WASTE_MAX,
    WASTE_POW2,
    WASTE_ORACLE
} waste_kind;

/* One line of the result. */
typedef struct waste_scheme {
    waste_kind kind;
    uint32_t parameter; /* page tokens, or the reserved maximum */
    char name[40];
    waste_totals totals;
    /* paged only: at the moment with the most tokens live */
    uint64_t metadata_bytes, live_tokens;
    uint64_t touched_bytes; /* --touch: bytes of pages written to */
} waste_scheme;

/* NaN where nothing was reserved (no request served). */
double waste_at_completion(const waste_totals *t);
double waste_decode_averaged(const waste_totals *t);
double waste_metadata_per_token(const waste_scheme *s);

/* Bytes that a sequence of n tokens needs: in a layer with window w only the last w count. */
uint64_t waste_needed(const model *m, uint64_t n);
/* The sum of waste_needed over n = first + 1 … first + steps. */
waste_sum waste_needed_sum(const model *m, uint64_t first, uint64_t steps);

/* Adds one request whose whole reservation of `tokens` is held from the start. */
void waste_add_contiguous(waste_totals *t, const model *m, const trace_request *r, uint64_t tokens);
/* Fills in the totals of a contiguous scheme. */
void waste_contiguous(waste_scheme *scheme, const model *m, const trace *input);

typedef struct waste_options {
    const model *model;    /* with layer groups */
    const model *flat;     /* the same without: for WASTE_PAGED_FLAT */
    bool touch;            /* HOST storage, every page written to */
    uint64_t memory_limit; /* with touch */
} waste_options;

/* Runs every request through a cache of the library with this page size and fills in the scheme;
 * several may run at once. -1 with err. */
int waste_paged(waste_scheme *scheme, const waste_options *options, const trace *input,
                progress *bar, tool_error *err);

/* Output. `path` of CSV and plot as given by the user. */
void waste_print_table(const waste_scheme *schemes, size_t n, const trace *input, const model *m,
                       bool touch);
int waste_print_json(const waste_scheme *schemes, size_t n, const trace *input, const model *m,
                     bool touch, tool_error *err);
int waste_write_csv(const char *path, const waste_scheme *schemes, size_t n, const trace *input,
                    tool_error *err);
int waste_write_plot(const char *path, const waste_scheme *schemes, size_t n, const trace *input,
                     const model *m, tool_error *err);

#endif
