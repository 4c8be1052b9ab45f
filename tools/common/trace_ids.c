/* Block ids are nearly all that a trace consists of, and a general JSON reader makes an object of
 * each. Where they are written as plain numbers they are read here, and the JSON reader gets the
 * line without them: it still judges everything else, and whole lines that look different. */
#include <ctype.h>
#include <string.h>

#include "trace_format.h"

#define KEY "\"hash_ids\""

static const char *skip_space(const char *at, const char *end)
{
    while (at < end && (*at == ' ' || *at == '\t'))
        at++;
    return at;
}

/* One number of JSON without sign, fraction and exponent, of at most 18 digits. Returns its end, or
 * NULL. */
static const char *read_id(const char *at, const char *end, uint64_t *id)
{
    const char *begin = at;
    uint64_t value = 0;
    for (; at < end && isdigit((unsigned char)*at); at++)
        value = 10 * value + (uint64_t)(*at - '0');
    *id = value;
    bool fine = at > begin && at - begin <= 18 && (*begin != '0' || at - begin == 1);
    return fine ? at : NULL;
}

/* Everything up to the array's end, which is returned, or NULL. `at` is behind its start. */
static const char *read_array(const char *at, const char *end, uint64_t *ids, size_t *n)
{
    *n = 0;
    at = skip_space(at, end);
    if (at < end && *at == ']') return at;
    while ((at = read_id(skip_space(at, end), end, &ids[*n])) != NULL) {
        ++*n;
        at = skip_space(at, end);
        if (at == end) return NULL;
        if (*at == ']') return at;
        if (*at++ != ',') return NULL;
    }
    return NULL;
}

size_t trace_cut_ids(const char *text, size_t length, uint64_t *ids, size_t *n, char *rest,
                     size_t capacity)
{
    const char *end = text + length, *key = memmem(text, length, KEY, strlen(KEY));
    if (key == NULL) return 0;
    const char *at = skip_space(key + strlen(KEY), end);
    if (at == end || *at++ != ':') return 0;
    at = skip_space(at, end);
    if (at == end || *at++ != '[') return 0;
    const char *close = read_array(at, end, ids, n);
    if (close == NULL) return 0;
    size_t before = (size_t)(at - text), after = (size_t)(end - close);
    if (before + after > capacity) return 0;
    memcpy(rest, text, before);
    memcpy(rest + before, close, after);
    /* A second such key, or one written with escapes, might be the one that counts. */
    if (memmem(close, after, KEY, strlen(KEY)) != NULL) return 0;
    return memchr(rest, '\\', before + after) == NULL ? before + after : 0;
}
