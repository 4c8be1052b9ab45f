#include "parse.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A value is quoted in errors by its first characters only: it may be very long. */
#define QUOTE "%.60s"

static int scan_number(const char *text, const char *what, double *value, const char **rest,
                       tool_error *err)
{
    /* strtod alone would also take "inf", "nan", hexadecimal and leading spaces. */
    if (!isdigit((unsigned char)text[0]) && text[0] != '.')
        return tool_fail(err, "%s: '" QUOTE "' is not a number", what, text);
    if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X'))
        return tool_fail(err, "%s: '" QUOTE "' is not a decimal number", what, text);
    char *end = NULL;
    errno = 0;
    double v = strtod(text, &end);
    if (end == text) return tool_fail(err, "%s: '" QUOTE "' is not a number", what, text);
    if (!isfinite(v)) return tool_fail(err, "%s: '" QUOTE "' is too large", what, text);
    *value = v;
    *rest = end;
    return 0;
}

int parse_u64(const char *text, const char *what, uint64_t min, uint64_t max, uint64_t *value,
              tool_error *err)
{
    if (!isdigit((unsigned char)text[0]))
        return tool_fail(err, "%s: '" QUOTE "' is not a whole number", what, text);
    char *end = NULL;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    if (errno == ERANGE) return tool_fail(err, "%s: '" QUOTE "' is too large", what, text);
    uint64_t factor = 1;
    if (*end == 'k' || *end == 'K')
        factor = 1000, end++;
    else if (*end == 'M')
        factor = 1000000, end++;
    else if (*end == 'G')
        factor = 1000000000, end++;
    if (*end != '\0') return tool_fail(err, "%s: '" QUOTE "' is not a whole number", what, text);
    if (v > UINT64_MAX / factor) return tool_fail(err, "%s: '" QUOTE "' is too large", what, text);
    v *= factor;
    if (v < min || v > max)
        return tool_fail(err, "%s: %llu is not in %llu..%llu", what, v, (unsigned long long)min,
                         (unsigned long long)max);
    *value = v;
    return 0;
}

int parse_double(const char *text, const char *what, double min, double max, double *value,
                 tool_error *err)
{
    const char *digits = text;
    if (*digits == '-' || *digits == '+') digits++;
    const char *rest = NULL;
    double v = 0;
    if (scan_number(digits, what, &v, &rest, err) != 0) return -1;
    if (*rest != '\0') return tool_fail(err, "%s: '" QUOTE "' is not a number", what, text);
    if (*text == '-') v = -v;
    if (v < min || v > max) return tool_fail(err, "%s: %g is not in %g..%g", what, v, min, max);
    *value = v;
    return 0;
}

typedef struct unit {
    const char *name;
    double factor;
} unit;

static int apply_unit(const char *text, const char *what, const char *rest, const unit *units,
                      size_t n_units, double *value, tool_error *err)
{
    for (size_t i = 0; i < n_units; i++) {
        if (strcmp(rest, units[i].name) == 0) {
            *value *= units[i].factor;
            return 0;
        }
    }
    return tool_fail(err, "%s: '" QUOTE "' has an unknown unit", what, text);
}

int parse_size(const char *text, const char *what, uint64_t *bytes, tool_error *err)
{
    static const unit units[] = {
        {"", 1},       {"B", 1},        {"K", 0x1p10},   {"M", 0x1p20},   {"G", 0x1p30},
        {"T", 0x1p40}, {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40},
        {"kB", 1e3},   {"KB", 1e3},     {"MB", 1e6},     {"GB", 1e9},     {"TB", 1e12},
    };
    const char *rest = NULL;
    double v = 0;
    if (scan_number(text, what, &v, &rest, err) != 0) return -1;
    if (apply_unit(text, what, rest, units, sizeof units / sizeof units[0], &v, err) != 0)
        return -1;
    if (v < 1 || v >= 0x1p63)
        return tool_fail(err, "%s: '" QUOTE "' is not between 1 byte and 2^63", what, text);
    *bytes = (uint64_t)v;
    return 0;
}

int parse_duration(const char *text, const char *what, double *seconds, tool_error *err)
{
    static const unit units[] = {
        {"", 1}, {"s", 1}, {"ms", 1e-3}, {"us", 1e-6}, {"m", 60}, {"min", 60}, {"h", 3600},
    };
    const char *rest = NULL;
    double v = 0;
    if (scan_number(text, what, &v, &rest, err) != 0) return -1;
    if (apply_unit(text, what, rest, units, sizeof units / sizeof units[0], &v, err) != 0)
        return -1;
    if (!isfinite(v)) return tool_fail(err, "%s: '" QUOTE "' is too large", what, text);
    *seconds = v;
    return 0;
}

int parse_page_tokens(void *target, const char *text, tool_error *err)
{
    uint64_t p = 0;
    if (parse_u64(text, "--page-tokens", 8, 128, &p, err) != 0) return -1;
    if ((p & (p - 1)) != 0)
        return tool_fail(err, "--page-tokens: %u is not 8, 16, 32, 64 or 128", (unsigned)p);
    *(uint32_t *)target = (uint32_t)p;
    return 0;
}

int parse_list_next(const char **cursor, char *item, size_t capacity, const char *what,
                    tool_error *err)
{
    const char *at = *cursor;
    if (at == NULL) return 0;
    size_t n = strcspn(at, ",");
    const char *next = at[n] == ',' ? at + n + 1 : NULL;
    while (n > 0 && isspace((unsigned char)*at))
        at++, n--;
    while (n > 0 && isspace((unsigned char)at[n - 1]))
        n--;
    if (n == 0) return tool_fail(err, "%s: empty item in the list", what);
    if (n >= capacity) return tool_fail(err, "%s: '" QUOTE "' is too long", what, at);
    memcpy(item, at, n);
    item[n] = '\0';
    *cursor = next;
    return 1;
}

const char *format_size(uint64_t bytes, char *text, size_t capacity)
{
    static const char *const names[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double v = (double)bytes;
    size_t i = 0;
    while (v >= 1024 && i + 1 < sizeof names / sizeof names[0])
        v /= 1024, i++;
    snprintf(text, capacity, i == 0 ? "%.0f %s" : "%.1f %s", v, names[i]);
    return text;
}
