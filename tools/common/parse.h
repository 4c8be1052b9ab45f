/* Values on command lines: numbers, sizes, durations, percentages and comma lists. All functions
 * return 0, or -1 with a text in err that quotes the offending value; outputs are untouched then.
 * No locale is consulted. */
#ifndef TOOLS_COMMON_PARSE_H
#define TOOLS_COMMON_PARSE_H

#include <stddef.h>
#include <stdint.h>

#include "tool_error.h"

/* A whole number in min..max, decimal digits only (an optional suffix k, M or G means powers of
 * ten). `what` names the value in the error. */
int parse_u64(const char *text, const char *what, uint64_t min, uint64_t max, uint64_t *value,
              tool_error *err);

/* A finite decimal number in min..max. */
int parse_double(const char *text, const char *what, double min, double max, double *value,
                 tool_error *err);

/* Bytes: "4096", "512KiB", "16GiB", "1.5TiB" (powers of 1024), "16GB" (powers of 1000); a bare K,
 * M, G or T is a power of 1024. At least 1 and less than 2^63. */
int parse_size(const char *text, const char *what, uint64_t *bytes, tool_error *err);

/* Seconds: "90", "90s", "250ms", "30us", "2m", "1.5h". Not negative. */
int parse_duration(const char *text, const char *what, double *seconds, tool_error *err);

/* --page-tokens: 8, 16, 32, 64 or 128 into a uint32_t. */
int parse_page_tokens(void *target, const char *text, tool_error *err);

/* Steps through a comma-separated list: *cursor starts at the text; every call copies the next item
 * (spaces around it dropped) to item[0..capacity) and returns 1, or 0 at the end, or -1 for an
 * empty or too long item. */
int parse_list_next(const char **cursor, char *item, size_t capacity, const char *what,
                    tool_error *err);

/* "16777216" → "16.0 MiB"; writes to text[0..capacity) and returns text. */
const char *format_size(uint64_t bytes, char *text, size_t capacity);

#endif
