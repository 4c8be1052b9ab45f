/* Command lines. A subcommand is one descriptor: its options with their targets, bounds and help,
 * and what it runs. From it come parsing, --help and the manual page (docs/pkv-sim.1). Conventions
 * that every tool keeps: exit status 0, 1 or 2 (tool_error.h), messages as "PROGRAM: text" on
 * stderr, help on stdout. */
#ifndef TOOLS_COMMON_CLI_H
#define TOOLS_COMMON_CLI_H

#include <stddef.h>

#include "tool_error.h"

typedef enum cli_kind {
    CLI_TITLE, /* `help` heads what follows */
    CLI_GROUP, /* `group`: options that several commands share, with their own struct at `at` */
    CLI_FLAG,  /* bool; takes no value */
    CLI_TEXT,  /* const char * into argv */
    CLI_U32,   /* uint32_t in min..max, see parse_u64 */
    CLI_U64,   /* uint64_t in min..max */
    CLI_REAL,  /* double in min..max */
    CLI_SIZE,  /* uint64_t bytes, see parse_size */
    CLI_CALL,  /* `call` gets the struct at `at` and the text */
    CLI_CSV,   /* as CLI_TEXT; "-" leaves standard output to it: no table, and not with --json */
    CLI_JSON   /* as CLI_FLAG */
} cli_kind;

typedef struct cli_option {
    const char *name;  /* without dashes; NULL for titles and groups */
    const char *value; /* its place holder in help: "FILE" */
    cli_kind kind;
    size_t at; /* offset of the target */
    double min, max;
    const char *help; /* wrapped where it is printed */
    int (*call)(void *target, const char *text, tool_error *err);
    const struct cli_option *group;
} cli_option; /* an array ends with one that is all zero */

typedef struct cli_command {
    const char *name;                /* the program and subcommand as typed: "pkv-sim waste" */
    const char *summary;             /* what it does */
    const cli_option *options;       /* --help comes by itself */
    const char *notes;               /* below the options; may be NULL */
    size_t size;                     /* of the struct that the options fill; zeroed */
    void (*defaults)(void *command); /* may be NULL */
    /* Checks what was given together; a failure is a wrong command line. May be NULL. */
    int (*prepare)(void *command, tool_error *err);
    int (*run)(void *command, tool_error *err);
    void (*end)(void *command); /* also after a failure, but not after --help; may be NULL */
} cli_command;

/* Parses argv (argv[0] = the subcommand's name), prints help, or runs; returns the exit status. */
int cli_run(const cli_command *command, int argc, char **argv);

/* One of a program's subcommands. */
typedef struct cli_verb {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary;
} cli_verb;

/* What only prints: a flag of the program itself, beside --help and --version. */
typedef struct cli_print {
    const char *name; /* with dashes */
    void (*print)(void);
    const char *summary;
} cli_print;

typedef struct cli_program {
    const char *name, *summary;
    const cli_verb *verbs; /* up to one without a name; so are prints */
    const cli_print *prints;
    const char *notes;
} cli_program;

/* main of a program with subcommands. */
int cli_main(const cli_program *program, int argc, char **argv);

/* True if `path` is "-". */
int cli_is_stdout(const char *path);

/* Reports a wrong command line ("… Try 'pkv-sim waste --help'.") and returns TOOL_EXIT_USAGE.
 * `command` is the program and subcommand as typed ("pkv-sim waste"). */
int cli_usage_error(const char *command, const tool_error *err);

/* Reports a failed run and returns TOOL_EXIT_FAILED. */
int cli_failed(const char *command, const tool_error *err);

/* For getopt_long's '?' and ':' returns (with opterr = 0 and a ':' first in the short options):
 * describes what was wrong and returns -1. `option` is getopt_long's return value, `short_option`
 * its optopt, `argument` = argv[optind - 1]. */
int cli_bad_option(int option, int short_option, const char *argument, tool_error *err);

/* Flushes stdout; TOOL_EXIT_OK, or TOOL_EXIT_FAILED with a message if it could not be written. */
int cli_finish(const char *command);

#endif
