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

/* Arrivals, in milliseconds. */
#define TRACE_MAX_TIMESTAMP UINT64_C(1000000000000000)

/* Reads a line (length characters and a NUL, overwritten) that is a flat JSON object of plain whole
 * numbers and an array "hash_ids" of such, if it is one and complete and within bounds; false says
 * nothing about any other line. Fills the request, but for `line`, and ids, which has room for half
 * as many as the line has characters. */
bool trace_read_plain(char *text, size_t length, trace_request *r, uint64_t *ids);

/* Is the line empty but for white space? */
bool trace_line_blank(const char *text, size_t length);

#endif
