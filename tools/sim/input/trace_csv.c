/* CSV traces of plain numbers: a header line names the columns, fields are separated by commas and
 * may stand in double quotes (no commas or quotes inside: no trace has text fields). */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "trace_format.h"

enum { MAX_COLUMNS = 64 };
enum { COLUMN_TIME, COLUMN_INPUT, COLUMN_OUTPUT, N_WANTED };

static const char *const azure_columns[N_WANTED] = {"TIMESTAMP", "ContextTokens",
                                                    "GeneratedTokens"};
static const char *const lengths_columns[N_WANTED] = {NULL, "num_prefill_tokens",
                                                      "num_decode_tokens"};

typedef struct field {
    const char *text; /* not NUL-terminated */
    size_t length;
} field;

typedef struct place {
    const char *name;
    unsigned long long line;
} place;

/* Splits a line; returns the number of fields, MAX_COLUMNS + 1 if there are more. */
static size_t split(const char *text, size_t length, field *fields)
{
    size_t n = 0;
    const char *end = text + length;
    for (;;) {
        if (n == MAX_COLUMNS) return MAX_COLUMNS + 1;
        const char *comma = memchr(text, ',', (size_t)(end - text));
        const char *a = text, *b = comma != NULL ? comma : end;
        while (a < b && isspace((unsigned char)*a))
            a++;
        while (b > a && isspace((unsigned char)b[-1]))
            b--;
        if (b - a >= 2 && *a == '"' && b[-1] == '"') a++, b--;
        fields[n++] = (field){a, (size_t)(b - a)};
        if (comma == NULL) return n;
        text = comma + 1;
    }
}

static bool is_name(const field *f, const char *name)
{
    return f->length == strlen(name) && memcmp(f->text, name, f->length) == 0;
}

/* Finds the wanted columns in a header; returns the first missing name, or NULL. */
static const char *find_columns(const field *fields, size_t n, const char *const *names,
                                size_t columns[N_WANTED])
{
    for (int w = 0; w < N_WANTED; w++) {
        columns[w] = MAX_COLUMNS;
        if (names[w] == NULL) continue;
        for (size_t i = 0; i < n && columns[w] == MAX_COLUMNS; i++)
            if (is_name(&fields[i], names[w])) columns[w] = i;
        if (columns[w] == MAX_COLUMNS) return names[w];
    }
    return NULL;
}

trace_format trace_csv_detect(const char *header, size_t length)
{
    field fields[MAX_COLUMNS];
    size_t columns[N_WANTED];
    size_t n = split(header, length, fields);
    if (n > MAX_COLUMNS) return TRACE_AUTO;
    if (find_columns(fields, n, azure_columns, columns) == NULL) return TRACE_AZURE;
    if (find_columns(fields, n, lengths_columns, columns) == NULL) return TRACE_LENGTHS;
    return TRACE_AUTO;
}

static int bad(const place *at, const char *column, const field *f, const char *reason,
               tool_error *err)
{
    int shown = f->length < 40 ? (int)f->length : 40;
    return tool_fail(err, "%.200s:%llu: field \"%s\": '%.*s' %s", at->name, at->line, column, shown,
                     f->text, reason);
}

static int tokens(const place *at, const char *column, const field *f, uint32_t *value,
                  tool_error *err)
{
    if (f->length == 0)
        return tool_fail(err, "%.200s:%llu: field \"%s\" is missing", at->name, at->line, column);
    uint64_t v = 0;
    size_t digits = f->length;
    /* "512.0" is what some writers make of 512. */
    while (digits > 0 && f->text[digits - 1] == '0')
        digits--;
    if (digits < 2 || digits == f->length || f->text[--digits] != '.') digits = f->length;
    for (size_t i = 0; i < digits; i++) {
        if (!isdigit((unsigned char)f->text[i]))
            return bad(at, column, f, "is not a whole number (0 or more)", err);
        v = v * 10 + (uint64_t)(f->text[i] - '0');
        if (v > TRACE_MAX_TOKENS) return bad(at, column, f, "is more than 268435456 tokens", err);
    }
    *value = (uint32_t)v;
    return 0;
}

/* "+HH:MM", "-HH:MM" or "Z" after a time of day, to seconds; nothing else may follow. */
static bool zone_offset(const char *text, double *seconds)
{
    *seconds = 0;
    if (*text == '\0' || strcmp(text, "Z") == 0) return true;
    int hours, minutes, used = 0;
    if ((*text != '+' && *text != '-') ||
        sscanf(text + 1, "%2d:%2d%n", &hours, &minutes, &used) != 2 || text[1 + used] != '\0')
        return false;
    *seconds = (*text == '-' ? -1 : 1) * (hours * 3600.0 + minutes * 60.0);
    return true;
}

/* Plain seconds, or "YYYY-MM-DD HH:MM:SS[.fraction][zone]" ('T' may stand for the space). */
static int timestamp(const place *at, const char *column, const field *f, double *seconds,
                     tool_error *err)
{
    char text[64];
    if (f->length == 0)
        return tool_fail(err, "%.200s:%llu: field \"%s\" is missing", at->name, at->line, column);
    if (f->length >= sizeof text) return bad(at, column, f, "is too long for a time", err);
    memcpy(text, f->text, f->length);
    text[f->length] = '\0';
    char *end;
    double plain = strtod(text, &end);
    if (end != text && *end == '\0') {
        if (!(plain >= 0 && plain <= 1e12) || !isdigit((unsigned char)text[0]))
            return bad(at, column, f, "is not a time in 0..1e12 s", err);
        *seconds = plain;
        return 0;
    }
    struct tm tm = {0};
    end = strptime(text, "%Y-%m-%d", &tm);
    if (end != NULL && (*end == ' ' || *end == 'T'))
        end = strptime(end + 1, "%H:%M:%S", &tm);
    else
        end = NULL;
    if (end == NULL) return bad(at, column, f, "is not a time (YYYY-MM-DD HH:MM:SS)", err);
    double fraction = 0, zone = 0;
    if (*end == '.') fraction = strtod(end, &end);
    if (!zone_offset(end, &zone) || !(fraction >= 0 && fraction < 1))
        return bad(at, column, f, "is not a time (YYYY-MM-DD HH:MM:SS)", err);
    *seconds = (double)timegm(&tm) + fraction - zone;
    return 0;
}

static int parse_row(const place *at, const char *text, size_t length, size_t n_header,
                     const char *const *names, const size_t *columns, trace *out, tool_error *err)
{
    field fields[MAX_COLUMNS];
    size_t n = split(text, length, fields);
    trace_request r = {.line = at->line, .block_tokens = TRACE_DEFAULT_BLOCK_TOKENS};
    for (int w = 0; w < N_WANTED; w++)
        if (names[w] != NULL && columns[w] >= n)
            return tool_fail(err, "%.200s:%llu: field \"%s\" is missing", at->name, at->line,
                             names[w]);
    if (n != n_header)
        return tool_fail(err, "%.200s:%llu: %zu fields, but the header has %zu", at->name, at->line,
                         n, n_header);
    if (names[COLUMN_TIME] != NULL &&
        timestamp(at, names[COLUMN_TIME], &fields[columns[COLUMN_TIME]], &r.arrival, err) != 0)
        return -1;
    if (tokens(at, names[COLUMN_INPUT], &fields[columns[COLUMN_INPUT]], &r.input, err) != 0 ||
        tokens(at, names[COLUMN_OUTPUT], &fields[columns[COLUMN_OUTPUT]], &r.output, err) != 0)
        return -1;
    if (trace_append(out, &r, NULL, 0, err) != 0)
        return tool_fail_in(err, "%.200s:%llu", at->name, at->line);
    return 0;
}

int trace_parse_csv(lines *in, char *first, size_t length, trace_format format, trace *out,
                    tool_error *err)
{
    const char *const *names = format == TRACE_AZURE ? azure_columns : lengths_columns;
    place at = {lines_name(in), lines_number(in)};
    field fields[MAX_COLUMNS];
    size_t columns[N_WANTED];
    size_t n_header = split(first, length, fields);
    if (n_header > MAX_COLUMNS)
        return tool_fail(err, "%.200s:%llu: more than %d columns", at.name, at.line, MAX_COLUMNS);
    const char *missing = find_columns(fields, n_header, names, columns);
    if (missing != NULL)
        return tool_fail(err, "%.200s:%llu: the header has no column \"%s\"", at.name, at.line,
                         missing);
    char *text;
    int got;
    while ((got = lines_next(in, &text, &length, err)) == 1) {
        at.line = lines_number(in);
        if (trace_line_blank(text, length)) continue;
        if (parse_row(&at, text, length, n_header, names, columns, out, err) != 0) return -1;
    }
    return got;
}
