/* pkv-sim: one function per subcommand, and what they share. */
#ifndef TOOLS_SIM_SIM_H
#define TOOLS_SIM_SIM_H

#include "trace.h"

/* Each parses its own argv (argv[0] = the subcommand) and returns an exit status (tool_error.h). */
int sim_waste(int argc, char **argv);
int sim_prefix(int argc, char **argv);
int sim_serve(int argc, char **argv);
int sim_longseq(int argc, char **argv);

/* Where requests come from: --trace FILE [--trace-format F], or --synthetic DESCRIPTION, or neither
 * (then `fallback`, a synthetic description). */
typedef struct sim_source {
    const char *path;
    const char *synthetic;
    trace_format format;
} sim_source;

/* Loads it; -1 with err. Giving both a path and a description is reported as a usage error by
 * sim_source_check. */
int sim_source_check(const sim_source *source, tool_error *err);
int sim_source_load(const sim_source *source, const char *fallback, trace *out, tool_error *err);

/* The help text about traces and workloads, for the subcommands' --help. */
void sim_source_help(void);

/* Processors this process may use, at least 1. */
unsigned sim_processors(void);

#endif
