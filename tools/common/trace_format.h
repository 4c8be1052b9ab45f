/* Private to the trace reader: one parser per format, fed line by line. */
#ifndef TOOLS_COMMON_TRACE_FORMAT_H
#define TOOLS_COMMON_TRACE_FORMAT_H

#include "lines.h"
#include "trace.h"

/* Parses everything from `in`, whose first line (already read, blank lines skipped) is `first`. */
int trace_parse_mooncake(lines *in, char *first, size_t length, trace *out, tool_error *err);
int trace_parse_csv(lines *in, char *first, size_t length, trace_format format, trace *out,
                    tool_error *err);

/* The CSV format that a header line announces, or TRACE_AUTO if none. */
trace_format trace_csv_detect(const char *header, size_t length);

/* Reads the elements of the line's "hash_ids" array into ids (room for length / 2 + 1) and *n, and
 * writes the line with an empty array in their place into rest. Returns the length of rest, or 0
 * where that is not safe: not exactly one such array anywhere in the line, anything but plain whole
 * numbers in it, escapes, or more than `capacity` characters beside it. O(length). */
size_t trace_cut_ids(const char *text, size_t length, uint64_t *ids, size_t *n, char *rest,
                     size_t capacity);

/* Is the line empty but for white space? */
bool trace_line_blank(const char *text, size_t length);

#endif
