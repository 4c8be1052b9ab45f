/* Results for programs: JSON on stdout and CSV files. Both check that everything was written. */
#ifndef TOOLS_COMMON_OUTPUT_H
#define TOOLS_COMMON_OUTPUT_H

#include <jansson.h>
#include <stdint.h>
#include <stdio.h>

#include "tool_error.h"

/* Prints `value` (two-space indent, 17 significant digits, keys in insertion order) and a newline
 * to stdout, and drops the caller's reference, also on failure. A NULL value means that building it
 * ran out of memory. */
int output_json(json_t *value, tool_error *err);

/* A JSON real, or null where a figure is undefined (NaN, infinity). */
json_t *output_real(double value);

/* A JSON string; bytes that are not UTF-8 (file names may have any) become '?'. */
json_t *output_text(const char *text);

typedef struct csv csv;

/* Creates a file ("-" = stdout) and writes the header, names separated by commas. NULL with err. */
csv *csv_open(const char *path, const char *header, tool_error *err);

/* Adds one field to the current row; text with commas, quotes or newlines is quoted. */
void csv_text(csv *out, const char *text);
void csv_real(csv *out, double value); /* 17 significant digits; NaN and infinity are left empty */
void csv_u64(csv *out, uint64_t value);
void csv_end_row(csv *out);

/* Closes; -1 with err if anything could not be written. NULL is allowed. */
int csv_close(csv *out, tool_error *err);

#endif
