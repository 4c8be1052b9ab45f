/* Command-line conventions that every tool keeps: exit status 0, 1 or 2 (tool_error.h), messages as
 * "PROGRAM: text" on stderr, help on stdout. */
#ifndef TOOLS_COMMON_CLI_H
#define TOOLS_COMMON_CLI_H

#include "tool_error.h"

/* Reports a wrong command line ("… Try 'pkv-sim waste --help'.") and returns TOOL_EXIT_USAGE.
 * `command` is the program and subcommand as typed ("pkv-sim waste"). */
int cli_usage_error(const char *command, const tool_error *err);

/* Reports a failed run and returns TOOL_EXIT_FAILED. */
int cli_failed(const char *command, const tool_error *err);

/* For getopt_long's '?' and ':' returns (with opterr = 0 and a ':' first in the short options):
 * describes what was wrong and returns -1. `option` is getopt_long's return value, `short_option` its
 * optopt, `argument` = argv[optind - 1]. */
int cli_bad_option(int option, int short_option, const char *argument, tool_error *err);

/* Flushes stdout; TOOL_EXIT_OK, or TOOL_EXIT_FAILED with a message if it could not be written. */
int cli_finish(const char *command);

#endif
