/* Private to the trace reader: one parser per format, fed line by line. */
#ifndef TOOLS_SIM_TRACE_FORMAT_H
#define TOOLS_SIM_TRACE_FORMAT_H

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

/* Is the line empty but for white space? */
bool trace_line_blank(const char *text, size_t length);

#endif
