#include "output.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

int output_json(json_t *value, tool_error *err)
{
    if (value == NULL) return tool_fail(err, "--json: out of memory");
    int code = json_dumpf(value, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    json_decref(value);
    if (code != 0 || fputc('\n', stdout) == EOF || fflush(stdout) != 0)
        return tool_fail(err, "--json: cannot write to standard output: %s", strerror(errno));
    return 0;
}

json_t *output_real(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

json_t *output_text(const char *text)
{
    json_t *value = json_string(text);
    if (value != NULL) return value;
    char *ascii = strdup(text);
    if (ascii == NULL) return NULL;
    for (char *c = ascii; *c != '\0'; c++)
        if ((unsigned char)*c >= 0x80) *c = '?';
    value = json_string(ascii);
    free(ascii);
    return value;
}

struct csv {
    FILE *file;
    char *path;
    bool row_started;
};

csv *csv_open(const char *path, const char *header, tool_error *err)
{
    csv *out = calloc(1, sizeof *out);
    if (out != NULL) out->path = strdup(path);
    if (out == NULL || out->path == NULL) {
        free(out);
        tool_fail(err, "out of memory");
        return NULL;
    }
    out->file = strcmp(path, "-") == 0 ? stdout : fopen(path, "w");
    if (out->file == NULL) {
        tool_fail(err, "%.200s: %s", path, strerror(errno));
        free(out->path);
        free(out);
        return NULL;
    }
    fprintf(out->file, "%s\n", header);
    return out;
}

static void separate(csv *out)
{
    if (out->row_started) fputc(',', out->file);
    out->row_started = true;
}

void csv_text(csv *out, const char *text)
{
    separate(out);
    if (strpbrk(text, ",\"\r\n") == NULL) {
        fputs(text, out->file);
        return;
    }
    fputc('"', out->file);
    for (; *text != '\0'; text++) {
        if (*text == '"') fputc('"', out->file);
        fputc(*text, out->file);
    }
    fputc('"', out->file);
}

void csv_real(csv *out, double value)
{
    separate(out);
    if (isfinite(value)) fprintf(out->file, "%.17g", value);
}

void csv_u64(csv *out, uint64_t value)
{
    separate(out);
    fprintf(out->file, "%" PRIu64, value);
}

void csv_end_row(csv *out)
{
    fputc('\n', out->file);
    out->row_started = false;
}

int csv_close(csv *out, tool_error *err)
{
    if (out == NULL) return 0;
    bool failed = fflush(out->file) != 0 || ferror(out->file) != 0;
    if (out->file != stdout) failed |= fclose(out->file) != 0;
    if (failed) tool_fail(err, "%.200s: cannot write: %s", out->path, strerror(errno));
    free(out->path);
    free(out);
    return failed ? -1 : 0;
}
