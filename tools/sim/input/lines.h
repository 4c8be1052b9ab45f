/* Reads a text file line by line, plain or compressed with gzip, xz, lzma, bzip2, zstd or lz4
 * (known by content, not by name). Built on libarchive's raw format. */
#ifndef TOOLS_SIM_LINES_H
#define TOOLS_SIM_LINES_H

#include <stddef.h>
#include <stdint.h>

#include "tool_error.h"

typedef struct lines lines;

/* Opens a file ("-" is standard input); `name` in errors is the path. NULL with err on failure.
 * The caller closes it. */
lines *lines_open(const char *path, tool_error *err);

/* The same over memory, which must stay valid until closed; `name` is used in errors. */
lines *lines_open_memory(const void *data, size_t size, const char *name, tool_error *err);

/* Next line without its end ('\n' or "\r\n"), NUL-terminated, valid until the next call; 1 = got
 * one, 0 = end, -1 = error (truncated or damaged archive, I/O error, NUL byte, a line of more than
 * 256 MiB) with the name and line in err. */
int lines_next(lines *in, char **text, size_t *length, tool_error *err);

/* Number of the line that lines_next returned last, from 1. */
uint64_t lines_number(const lines *in);

/* Size of the file or memory behind it, compressed or not; 0 if unknown (a pipe). */
size_t lines_bytes(const lines *in);

/* Name for errors. */
const char *lines_name(const lines *in);

/* NULL is allowed. */
void lines_close(lines *in);

#endif
