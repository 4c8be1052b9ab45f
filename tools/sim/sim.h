/* pkv-sim: one function per subcommand, and what they share. */
#ifndef TOOLS_SIM_SIM_H
#define TOOLS_SIM_SIM_H

#include <stdbool.h>

#include "cli.h"
#include "trace.h"

/* Each parses its own argv (argv[0] = the subcommand) and returns an exit status (tool_error.h). */
int sim_waste(int argc, char **argv);
int sim_prefix(int argc, char **argv);
int sim_serve(int argc, char **argv);
int sim_longseq(int argc, char **argv);

enum { SIM_MAX_TRACES = 32 };

/* Where requests come from: --trace FILE [--trace-format F], or --synthetic DESCRIPTION, or neither
 * (then `fallback`, a synthetic description). */
typedef struct sim_source {
    const char *paths[SIM_MAX_TRACES]; /* prefix replays all, others the last one */
    size_t n_paths;
    const char *synthetic;
    trace_format format;
} sim_source;

extern const cli_option sim_source_options[];

/* Are the options possible together? */
int sim_source_check(const sim_source *source, tool_error *err);

/* Loads trace number `i`, or the workload if no trace was given; -1 with err. */
int sim_source_load(const sim_source *source, size_t i, const char *fallback, trace *out,
                    tool_error *err);

/* Where results go. */
typedef struct sim_output {
    bool json;
    const char *csv, *plot;
} sim_output;

extern const cli_option sim_output_options[];

/* Is a table for people wanted on standard output? */
bool sim_wants_table(const sim_output *output);

/* Processors this process may use, at least 1. */
unsigned sim_processors(void);

#endif
