#include "trace.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "trace_format.h"

static const struct {
    const char *name;
    trace_format format;
} format_names[] = {
    {"auto", TRACE_AUTO},
    {"mooncake", TRACE_MOONCAKE},
    {"azure", TRACE_AZURE},
    {"lengths", TRACE_LENGTHS},
};

int trace_format_parse(const char *text, trace_format *format, tool_error *err)
{
    for (size_t i = 0; i < sizeof format_names / sizeof format_names[0]; i++) {
        if (strcmp(text, format_names[i].name) == 0) {
            *format = format_names[i].format;
            return 0;
        }
    }
    return tool_fail(err, "--trace-format: '%.60s' is not auto, mooncake, azure or lengths", text);
}

const char *trace_format_name(trace_format format)
{
    if (format == TRACE_SYNTHETIC) return "synthetic";
    for (size_t i = 0; i < sizeof format_names / sizeof format_names[0]; i++)
        if (format_names[i].format == format) return format_names[i].name;
    return "?";
}

bool trace_line_blank(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (!isspace((unsigned char)text[i])) return false;
    return true;
}

/* The array with room for `needed` elements, or NULL when memory runs out. */
static void *widen(void *array, size_t *capacity, size_t needed, size_t size)
{
    if (needed <= *capacity) return array;
    size_t wider = 2 * *capacity > needed ? 2 * *capacity : needed;
    if (wider < 64) wider = 64;
    void *grown = realloc(array, wider * size);
    if (grown != NULL) *capacity = wider;
    return grown;
}

int trace_append(trace *t, const trace_request *request, const uint64_t *blocks, uint32_t n,
                 tool_error *err)
{
    trace_request *requests =
        widen(t->requests, &t->request_capacity, t->n_requests + 1, sizeof *requests);
    if (requests == NULL) return tool_fail(err, "out of memory after %zu requests", t->n_requests);
    t->requests = requests;
    if (n > 0) {
        uint64_t *all = widen(t->blocks, &t->block_capacity, t->n_blocks + n, sizeof *all);
        if (all == NULL) return tool_fail(err, "out of memory after %zu requests", t->n_requests);
        t->blocks = all;
        memcpy(all + t->n_blocks, blocks, n * sizeof *blocks);
    }
    trace_request *r = &requests[t->n_requests++];
    *r = *request;
    r->first_block = t->n_blocks;
    r->n_blocks = n;
    t->n_blocks += n;
    t->input_tokens += request->input;
    t->output_tokens += request->output;
    return 0;
}

/* Arrivals count from the earliest one. */
static void rebase_arrivals(trace *t)
{
    double first = INFINITY;
    for (size_t i = 0; i < t->n_requests; i++)
        if (t->requests[i].arrival < first) first = t->requests[i].arrival;
    for (size_t i = 0; i < t->n_requests; i++)
        t->requests[i].arrival -= first;
}

static int parse(lines *in, trace_format format, trace *out, tool_error *err)
{
    char *text;
    size_t length;
    int got;
    do
        got = lines_next(in, &text, &length, err);
    while (got == 1 && trace_line_blank(text, length));
    if (got < 0) return -1;
    if (got == 0) return tool_fail(err, "%.200s: the trace is empty", lines_name(in));
    if (length >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) text += 3, length -= 3; /* BOM */
    if (format == TRACE_AUTO) {
        size_t skip = strspn(text, " \t");
        format = text[skip] == '{' ? TRACE_MOONCAKE : trace_csv_detect(text, length);
        if (format == TRACE_AUTO)
            return tool_fail(err,
                             "%.200s:%llu: unknown trace format: neither JSON lines nor a CSV "
                             "header with TIMESTAMP,ContextTokens,GeneratedTokens or "
                             "num_prefill_tokens,num_decode_tokens",
                             lines_name(in), (unsigned long long)lines_number(in));
    }
    out->format = format;
    out->has_blocks = format == TRACE_MOONCAKE;
    out->has_arrivals = format != TRACE_LENGTHS;
    /* A guess, for the sake of fewer copies; memory not used costs nothing. */
    if (out->has_blocks)
        out->blocks = widen(NULL, &out->block_capacity, lines_bytes(in) / 6, sizeof *out->blocks);
    int failed = format == TRACE_MOONCAKE ? trace_parse_mooncake(in, text, length, out, err)
                                          : trace_parse_csv(in, text, length, format, out, err);
    if (failed) return -1;
    if (out->n_requests == 0)
        return tool_fail(err, "%.200s: the trace has a header but no requests", lines_name(in));
    rebase_arrivals(out);
    return 0;
}

static int load(lines *in, const char *name, trace_format format, trace *out, tool_error *err)
{
    memset(out, 0, sizeof *out);
    if (in == NULL) return -1;
    out->name = strdup(name);
    int code = out->name == NULL ? tool_fail(err, "out of memory") : parse(in, format, out, err);
    lines_close(in);
    if (code != 0) trace_free(out);
    return code;
}

int trace_load(const char *path, trace_format format, trace *out, tool_error *err)
{
    return load(lines_open(path, err), path, format, out, err);
}

int trace_load_memory(const void *data, size_t size, const char *name, trace_format format,
                      trace *out, tool_error *err)
{
    return load(lines_open_memory(data, size, name, err), name, format, out, err);
}

void trace_free(trace *t)
{
    free(t->name);
    free(t->requests);
    free(t->blocks);
    memset(t, 0, sizeof *t);
}
