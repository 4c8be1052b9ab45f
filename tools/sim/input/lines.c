#include "lines.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_LINE ((size_t)256 << 20)
#define READ_BLOCK ((size_t)128 << 10)

struct lines {
    struct archive *archive;
    char *name;
    uint64_t number;
    size_t bytes;      /* of the source, 0 = unknown */
    const char *block; /* libarchive's current block, its end, and where we are in it */
    const char *block_end;
    char *carry; /* the line being handed out */
    size_t carry_capacity;
    bool ended;
};

static const char *why(struct archive *archive)
{
    const char *text = archive_error_string(archive);
    return text != NULL ? text : "read error";
}

static lines *lines_new(const char *name, tool_error *err)
{
    lines *in = calloc(1, sizeof *in);
    if (in != NULL) {
        in->name = strdup(name);
        in->archive = archive_read_new();
    }
    if (in == NULL || in->name == NULL || in->archive == NULL) {
        tool_fail(err, "%.200s: out of memory", name);
        lines_close(in);
        return NULL;
    }
    /* Only filters that are libraries: archive_read_support_filter_all would also start programs.
     */
    archive_read_support_filter_gzip(in->archive);
    archive_read_support_filter_xz(in->archive);
    archive_read_support_filter_lzma(in->archive);
    archive_read_support_filter_bzip2(in->archive);
    archive_read_support_filter_zstd(in->archive);
    archive_read_support_filter_lz4(in->archive);
    archive_read_support_format_raw(in->archive);
    archive_read_support_format_empty(in->archive);
    return in;
}

/* After the source is opened: the raw format has exactly one entry, an empty file none. */
static lines *lines_start(lines *in, tool_error *err)
{
    struct archive_entry *entry;
    int code = archive_read_next_header(in->archive, &entry);
    if (code == ARCHIVE_EOF) {
        in->ended = true;
    } else if (code != ARCHIVE_OK && code != ARCHIVE_WARN) {
        tool_fail(err, "%.200s: %s", in->name, why(in->archive));
        lines_close(in);
        return NULL;
    }
    return in;
}

lines *lines_open(const char *path, tool_error *err)
{
    lines *in = lines_new(path, err);
    if (in == NULL) return NULL;
    const char *source = strcmp(path, "-") == 0 ? NULL : path;
    if (archive_read_open_filename(in->archive, source, READ_BLOCK) != ARCHIVE_OK) {
        int code = archive_errno(in->archive);
        tool_fail(err, "%.200s: %s", path, code > 0 ? strerror(code) : why(in->archive));
        lines_close(in);
        return NULL;
    }
    struct stat about;
    if (source != NULL && stat(source, &about) == 0 && S_ISREG(about.st_mode))
        in->bytes = (size_t)about.st_size;
    return lines_start(in, err);
}

lines *lines_open_memory(const void *data, size_t size, const char *name, tool_error *err)
{
    lines *in = lines_new(name, err);
    if (in == NULL) return NULL;
    if (archive_read_open_memory(in->archive, data, size) != ARCHIVE_OK) {
        tool_fail(err, "%.200s: %s", name, why(in->archive));
        lines_close(in);
        return NULL;
    }
    in->bytes = size;
    return lines_start(in, err);
}

/* Makes the next non-empty block current; 0 at the end. */
static int next_block(lines *in, tool_error *err)
{
    while (!in->ended) {
        const void *data;
        size_t size;
        la_int64_t offset;
        int code = archive_read_data_block(in->archive, &data, &size, &offset);
        if (code == ARCHIVE_EOF) {
            in->ended = true;
        } else if (code != ARCHIVE_OK && code != ARCHIVE_WARN) {
            in->ended = true;
            return tool_fail(err, "%.200s:%llu: damaged or truncated: %s", in->name,
                             (unsigned long long)in->number + 1, why(in->archive));
        } else if (size > 0) {
            in->block = data;
            in->block_end = in->block + size;
            return 1;
        }
    }
    return 0;
}

static int carry_add(lines *in, size_t used, const char *text, size_t n, tool_error *err)
{
    if (used + n > MAX_LINE)
        return tool_fail(err, "%.200s:%llu: the line is longer than 256 MiB", in->name,
                         (unsigned long long)in->number + 1);
    if (used + n + 1 > in->carry_capacity) {
        size_t capacity = 2 * (used + n + 1) + 4096;
        char *grown = realloc(in->carry, capacity);
        if (grown == NULL)
            return tool_fail(err, "%.200s:%llu: out of memory", in->name,
                             (unsigned long long)in->number + 1);
        in->carry = grown;
        in->carry_capacity = capacity;
    }
    memcpy(in->carry + used, text, n);
    in->carry[used + n] = '\0';
    return 0;
}

int lines_next(lines *in, char **text, size_t *length, tool_error *err)
{
    size_t used = 0;
    bool any = false, complete = false;
    while (!complete) {
        if (in->block == in->block_end) {
            int got = next_block(in, err);
            if (got < 0) return -1;
            if (got == 0) break;
        }
        size_t left = (size_t)(in->block_end - in->block);
        const char *newline = memchr(in->block, '\n', left);
        size_t n = newline != NULL ? (size_t)(newline - in->block) : left;
        if (carry_add(in, used, in->block, n, err) != 0) return -1;
        used += n;
        any = true;
        complete = newline != NULL;
        in->block += complete ? n + 1 : n;
    }
    if (!any) return 0;
    in->number++;
    if (used > 0 && in->carry[used - 1] == '\r') in->carry[--used] = '\0';
    if (memchr(in->carry, '\0', used) != NULL)
        return tool_fail(err, "%.200s:%llu: binary data (a NUL byte)", in->name,
                         (unsigned long long)in->number);
    *text = in->carry;
    *length = used;
    return 1;
}

uint64_t lines_number(const lines *in)
{
    return in->number;
}

size_t lines_bytes(const lines *in)
{
    return in->bytes;
}

const char *lines_name(const lines *in)
{
    return in->name;
}

void lines_close(lines *in)
{
    if (in == NULL) return;
    if (in->archive != NULL) archive_read_free(in->archive);
    free(in->name);
    free(in->carry);
    free(in);
}
