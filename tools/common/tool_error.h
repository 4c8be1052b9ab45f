/* Errors of the tools: one line of text that says what failed, where, and why. */
#ifndef TOOLS_COMMON_TOOL_ERROR_H
#define TOOLS_COMMON_TOOL_ERROR_H

#include <stddef.h>

typedef struct tool_error {
    char text[512]; /* NUL-terminated, no newline */
} tool_error;

/* Exit statuses of every tool. */
enum {
    TOOL_EXIT_OK = 0,     /* the run did what was asked */
    TOOL_EXIT_FAILED = 1, /* the run failed: bad input data, no memory, an I/O error */
    TOOL_EXIT_USAGE = 2   /* the command line is wrong; nothing was run */
};

/* Formats the text (truncated if too long) and returns -1, so that a failing function can write
 * `return tool_fail(err, ...)`. `err` may be NULL. */
int tool_fail(tool_error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* As tool_fail, and puts "PREFIX: " before the text that err already holds. */
int tool_fail_in(tool_error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
