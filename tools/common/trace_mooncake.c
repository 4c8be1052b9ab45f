/* Mooncake's JSON lines, one object a line: plain ones by RapidJSON (trace_plain.cc), all
 * others by jansson, which also has the say on what is wrong. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "trace_format.h"

typedef struct record {
    const char *name; /* file and line for errors */
    unsigned long long line;
    /* Scratch, reused from line to line: for lines of up to `capacity` characters. */
    uint64_t *ids;
    char *copy;
    size_t capacity;
} record;

static int whole(const record *at, json_t *object, const char *field, uint64_t min, uint64_t max,
                 uint32_t *value, tool_error *err)
{
    json_t *item = json_object_get(object, field);
    if (item == NULL)
        return tool_fail(err, "%.200s:%llu: field \"%s\" is missing", at->name, at->line, field);
    double v;
    if (json_is_integer(item)) {
        json_int_t exact = json_integer_value(item);
        if (exact >= (json_int_t)min && exact <= (json_int_t)max) {
            *value = (uint32_t)exact;
            return 0;
        }
        v = (double)exact;
    } else if (json_is_real(item)) {
        v = json_real_value(item); /* 512.0 is what some writers make of 512 */
        if (v >= (double)min && v <= (double)max && v == floor(v)) {
            *value = (uint32_t)v;
            return 0;
        }
    } else {
        return tool_fail(err, "%.200s:%llu: field \"%s\" is not a number", at->name, at->line,
                         field);
    }
    return tool_fail(err, "%.200s:%llu: field \"%s\": %.17g is not a whole number in %llu..%llu",
                     at->name, at->line, field, v, (unsigned long long)min,
                     (unsigned long long)max);
}

static int arrival(const record *at, json_t *object, double *seconds, tool_error *err)
{
    json_t *item = json_object_get(object, "timestamp");
    if (item == NULL)
        return tool_fail(err, "%.200s:%llu: field \"timestamp\" is missing", at->name, at->line);
    if (!json_is_number(item))
        return tool_fail(err, "%.200s:%llu: field \"timestamp\" is not a number", at->name,
                         at->line);
    double ms = json_number_value(item);
    if (!(ms >= 0 && ms <= (double)TRACE_MAX_TIMESTAMP))
        return tool_fail(err, "%.200s:%llu: field \"timestamp\": %.17g is not in 0..1e15 ms",
                         at->name, at->line, ms);
    *seconds = ms / 1000;
    return 0;
}

static int make_room(record *at, size_t length, tool_error *err)
{
    if (length <= at->capacity) return 0;
    if (length < 2 * at->capacity) length = 2 * at->capacity;
    uint64_t *ids =
        realloc(at->ids, (length / 2 + 1) * sizeof *ids); /* more than a line can hold */
    if (ids != NULL) at->ids = ids;
    char *copy = realloc(at->copy, length + 1);
    if (copy != NULL) at->copy = copy;
    if (ids == NULL || copy == NULL)
        return tool_fail(err, "%.200s:%llu: out of memory", at->name, at->line);
    at->capacity = length;
    return 0;
}

static int block_ids(record *at, json_t *object, uint32_t *n, tool_error *err)
{
    json_t *array = json_object_get(object, "hash_ids");
    if (array == NULL)
        return tool_fail(err, "%.200s:%llu: field \"hash_ids\" is missing", at->name, at->line);
    if (!json_is_array(array))
        return tool_fail(err, "%.200s:%llu: field \"hash_ids\" is not an array", at->name,
                         at->line);
    size_t count = json_array_size(array);
    if (count > TRACE_MAX_TOKENS)
        return tool_fail(err, "%.200s:%llu: field \"hash_ids\" has more than %llu ids", at->name,
                         at->line, (unsigned long long)TRACE_MAX_TOKENS);
    for (size_t i = 0; i < count; i++) {
        json_t *item = json_array_get(array, i);
        if (!json_is_integer(item))
            return tool_fail(err, "%.200s:%llu: field \"hash_ids\": item %zu is not an integer",
                             at->name, at->line, i);
        json_int_t id = json_integer_value(item);
        if (id < 0)
            return tool_fail(err, "%.200s:%llu: field \"hash_ids\": item %zu is negative", at->name,
                             at->line, i);
        at->ids[i] = (uint64_t)id;
    }
    *n = (uint32_t)count;
    return 0;
}

static int parse_object(record *at, json_t *object, trace_request *r, tool_error *err)
{
    if (!json_is_object(object))
        return tool_fail(err, "%.200s:%llu: the line is not a JSON object", at->name, at->line);
    if (arrival(at, object, &r->arrival, err) != 0 ||
        whole(at, object, "input_length", 0, TRACE_MAX_TOKENS, &r->input, err) != 0 ||
        whole(at, object, "output_length", 0, TRACE_MAX_TOKENS, &r->output, err) != 0)
        return -1;
    r->block_tokens = TRACE_DEFAULT_BLOCK_TOKENS;
    if (json_object_get(object, "block_size") != NULL &&
        whole(at, object, "block_size", 1, TRACE_MAX_BLOCK_TOKENS, &r->block_tokens, err) != 0)
        return -1;
    return block_ids(at, object, &r->n_blocks, err);
}

static int parse_json(record *at, const char *text, size_t length, trace_request *r,
                      tool_error *err)
{
    json_error_t why;
    json_t *object = json_loadb(text, length, 0, &why);
    int code = object == NULL ? tool_fail(err, "%.200s:%llu: column %d: not JSON: %s", at->name,
                                          at->line, why.column, why.text)
                              : parse_object(at, object, r, err);
    json_decref(object);
    return code;
}

static int parse_line(record *at, const char *text, size_t length, trace *out, tool_error *err)
{
    trace_request r = {.line = at->line};
    if (make_room(at, length, err) != 0) return -1;
    memcpy(at->copy, text, length + 1);
    if (!trace_read_plain(at->copy, length, &r, at->ids) &&
        parse_json(at, text, length, &r, err) != 0)
        return -1;
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
        at.line = lines_number(in);
        if (!trace_line_blank(text, length)) code = parse_line(&at, text, length, out, err);
        if (code == 0) got = lines_next(in, &text, &length, err);
    }
    free(at.ids);
    free(at.copy);
    return code != 0 || got < 0 ? -1 : 0;
}
