/* Mooncake's JSON lines, one object a line, read value by value: a reader that makes an object of
 * each takes several times as long as replaying the trace. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <yajl/yajl_parse.h>

#include "trace_format.h"

enum { TIMESTAMP, INPUT, OUTPUT, BLOCK_SIZE, N_NUMBERS, HASH_IDS = N_NUMBERS, N_FIELDS, OTHER };

static const char *const field_names[N_FIELDS] = {"timestamp", "input_length", "output_length",
                                                  "block_size", "hash_ids"};

typedef enum number_kind { MISSING, WHOLE, REAL, NO_NUMBER } number_kind;

typedef struct number {
    number_kind kind;
    long long whole;
    double real;
} number;

typedef struct record {
    const char *name; /* file and line for errors */
    unsigned long long line;
    /* Scratch, reused from line to line, for lines of up to `capacity` characters. */
    uint64_t *ids;
    size_t capacity;
    /* What the line holds. Of a name that occurs twice the last one counts. */
    number numbers[N_NUMBERS];
    bool object, ids_given, ids_array;
    size_t n_ids, bad_id; /* bad_id: number + 1 of the first that is none */
    bool bad_is_negative;
    /* Where the reader is. */
    unsigned depth, field;
    bool in_ids;
} record;

/* ---- events --------------------------------------------------------------------------------- */

static void add_id(record *at, number_kind kind, long long whole)
{
    if (at->bad_id == 0 && (kind != WHOLE || whole < 0)) {
        at->bad_id = at->n_ids + 1;
        at->bad_is_negative = kind == WHOLE;
    }
    at->ids[at->n_ids++] = (uint64_t)whole;
}

/* Any value where the reader is. Those deeper inside others do not matter. */
static int value(record *at, number_kind kind, long long whole, double real)
{
    if (at->depth == 2 && at->in_ids) add_id(at, kind, whole);
    if (at->depth != 1 || at->field >= N_FIELDS) return 1;
    if (at->field == HASH_IDS) {
        at->ids_given = true;
        at->ids_array = false;
    } else {
        at->numbers[at->field] = (number){kind, whole, real};
    }
    return 1;
}

static int on_null(void *at)
{
    return value(at, NO_NUMBER, 0, 0);
}

static int on_boolean(void *at, int truth)
{
    (void)truth;
    return value(at, NO_NUMBER, 0, 0);
}

static int on_integer(void *at, long long whole)
{
    return value(at, WHOLE, whole, 0);
}

static int on_double(void *at, double real)
{
    return value(at, REAL, 0, real);
}

static int on_string(void *at, const unsigned char *text, size_t length)
{
    (void)text, (void)length;
    return value(at, NO_NUMBER, 0, 0);
}

static int on_start(void *context)
{
    record *at = context;
    value(at, NO_NUMBER, 0, 0);
    at->depth++;
    return 1;
}

static int on_start_map(void *context)
{
    record *at = context;
    if (at->depth == 0) at->object = true;
    return on_start(context);
}

static int on_start_array(void *context)
{
    record *at = context;
    on_start(context);
    if (at->depth != 2 || at->field != HASH_IDS) return 1;
    at->in_ids = at->ids_array = true;
    at->n_ids = at->bad_id = 0;
    return 1;
}

static int on_end(void *context)
{
    record *at = context;
    if (--at->depth == 1) at->in_ids = false;
    return 1;
}

static int on_key(void *context, const unsigned char *name, size_t length)
{
    record *at = context;
    if (at->depth != 1) return 1;
    for (at->field = 0; at->field < N_FIELDS; at->field++)
        if (strlen(field_names[at->field]) == length &&
            memcmp(field_names[at->field], name, length) == 0)
            return 1;
    at->field = OTHER;
    return 1;
}

static const yajl_callbacks callbacks = {.yajl_null = on_null,
                                         .yajl_boolean = on_boolean,
                                         .yajl_integer = on_integer,
                                         .yajl_double = on_double,
                                         .yajl_string = on_string,
                                         .yajl_start_map = on_start_map,
                                         .yajl_map_key = on_key,
                                         .yajl_end_map = on_end,
                                         .yajl_start_array = on_start_array,
                                         .yajl_end_array = on_end};

/* ---- lines ---------------------------------------------------------------------------------- */

/* `format` says what is wrong with the field. */
#define FAIL(at, field, format, ...)                                                               \
    tool_fail(err, "%.200s:%llu: field \"%s\"" format, (at)->name, (at)->line, field_names[field], \
              __VA_ARGS__)

static int bounded(const record *at, unsigned field, double most, double *out, tool_error *err)
{
    const number *n = &at->numbers[field];
    if (n->kind == MISSING) return FAIL(at, field, " is %s", "missing");
    if (n->kind == NO_NUMBER) return FAIL(at, field, " is %s", "not a number");
    *out = n->kind == WHOLE ? (double)n->whole : n->real;
    if (field != TIMESTAMP) return 0;
    if (*out >= 0 && *out <= most) return 0;
    return FAIL(at, field, ": %.17g is not in 0..1e15 ms", *out);
}

static int whole(const record *at, unsigned field, uint32_t least, uint64_t most, uint32_t *out,
                 tool_error *err)
{
    double v = 0; /* 512.0 is what some writers make of 512 */
    if (bounded(at, field, 0, &v, err) != 0) return -1;
    if (!(v >= least && v <= (double)most && v == floor(v)))
        return FAIL(at, field, ": %.17g is not a whole number in %u..%llu", v, least,
                    (unsigned long long)most);
    *out = (uint32_t)v;
    return 0;
}

static int check_ids(const record *at, tool_error *err)
{
    if (!at->ids_given) return FAIL(at, HASH_IDS, " is %s", "missing");
    if (!at->ids_array) return FAIL(at, HASH_IDS, " is %s", "not an array");
    if (at->n_ids > TRACE_MAX_TOKENS)
        return FAIL(at, HASH_IDS, " has more than %llu ids", (unsigned long long)TRACE_MAX_TOKENS);
    if (at->bad_id != 0)
        return FAIL(at, HASH_IDS, ": item %zu is %s", at->bad_id - 1,
                    at->bad_is_negative ? "negative" : "not an integer");
    return 0;
}

static int make_request(const record *at, trace_request *r, tool_error *err)
{
    double ms = 0;
    if (!at->object)
        return tool_fail(err, "%.200s:%llu: the line is not a JSON object", at->name, at->line);
    if (bounded(at, TIMESTAMP, (double)TRACE_MAX_TIMESTAMP, &ms, err) != 0 ||
        whole(at, INPUT, 0, TRACE_MAX_TOKENS, &r->input, err) != 0 ||
        whole(at, OUTPUT, 0, TRACE_MAX_TOKENS, &r->output, err) != 0)
        return -1;
    r->arrival = ms / 1000;
    r->block_tokens = TRACE_DEFAULT_BLOCK_TOKENS;
    if (at->numbers[BLOCK_SIZE].kind != MISSING &&
        whole(at, BLOCK_SIZE, 1, TRACE_MAX_BLOCK_TOKENS, &r->block_tokens, err) != 0)
        return -1;
    r->n_blocks = (uint32_t)at->n_ids;
    return check_ids(at, err);
}

/* The parser's own words, without their line end. */
static int not_json(yajl_handle parser, const record *at, tool_error *err)
{
    unsigned char *why = yajl_get_error(parser, 0, NULL, 0);
    const char *text = why != NULL ? (const char *)why : "out of memory";
    tool_fail(err, "%.200s:%llu: column %zu: not JSON: %.*s", at->name, at->line,
              yajl_get_bytes_consumed(parser) + 1, (int)strcspn(text, "\n"), text);
    yajl_free_error(parser, why);
    return -1;
}

static int read_line(record *at, const char *text, size_t length, tool_error *err)
{
    if (length > at->capacity) { /* a line holds less than half as many ids as characters */
        size_t wider = length < 2 * at->capacity ? 2 * at->capacity : length;
        uint64_t *ids = realloc(at->ids, (wider / 2 + 1) * sizeof *ids);
        if (ids == NULL) return tool_fail(err, "%.200s:%llu: out of memory", at->name, at->line);
        at->ids = ids;
        at->capacity = wider;
    }
    yajl_handle parser = yajl_alloc(&callbacks, NULL, at);
    if (parser == NULL) return tool_fail(err, "%.200s:%llu: out of memory", at->name, at->line);
    int code = 0;
    if (yajl_parse(parser, (const unsigned char *)text, length) != yajl_status_ok ||
        yajl_complete_parse(parser) != yajl_status_ok)
        code = not_json(parser, at, err);
    yajl_free(parser);
    return code;
}

static int parse_line(record *at, const char *text, size_t length, trace *out, tool_error *err)
{
    trace_request r = {.line = at->line};
    if (read_line(at, text, length, err) != 0 || make_request(at, &r, err) != 0) return -1;
    if (trace_append(out, &r, at->ids, r.n_blocks, err) != 0)
        return tool_fail_in(err, "%.200s:%llu", at->name, at->line);
    return 0;
}

int trace_parse_mooncake(lines *in, char *first, size_t length, trace *out, tool_error *err)
{
    record at = {.name = lines_name(in)};
    char *text = first;
    int got = 1, code = 0;
    while (got == 1 && code == 0) {
        at = (record){.name = at.name,
                      .line = lines_number(in),
                      .ids = at.ids,
                      .capacity = at.capacity,
                      .field = OTHER};
        if (!trace_line_blank(text, length)) code = parse_line(&at, text, length, out, err);
        if (code == 0) got = lines_next(in, &text, &length, err);
    }
    free(at.ids);
    return code != 0 || got < 0 ? -1 : 0;
}
