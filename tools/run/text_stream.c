#include "text_stream.h"

#include <stdlib.h>
#include <string.h>

/* Length of the character that begins at s[0..size): 1..4; 0 = needs more bytes; -1 = invalid. */
static int character(const unsigned char *s, size_t size)
{
    static const unsigned least[] = {0, 0, 0x80, 0x800, 0x10000};
    int length = s[0] < 0x80                   ? 1
                 : s[0] >= 0xc2 && s[0] < 0xe0 ? 2
                 : (s[0] & 0xf0) == 0xe0       ? 3
                 : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
                                               : -1;
    if (length <= 1) return length;
    unsigned code = s[0] & (0xffu >> (length + 1));
    for (int i = 1; i < length; i++) {
        if ((size_t)i == size) return 0;
        if ((s[i] & 0xc0) != 0x80) return -1;
        code = code << 6 | (s[i] & 0x3fu);
    }
    bool surrogate = code >= 0xd800 && code < 0xe000;
    return code < least[length] || code > 0x10ffff || surrogate ? -1 : length;
}

bool text_is_utf8(const char *text, size_t size)
{
    for (size_t i = 0; i < size;) {
        int n = character((const unsigned char *)text + i, size - i);
        if (n <= 0) return false;
        i += (size_t)n;
    }
    return true;
}

static void append(text_stream *t, const char *bytes, size_t n)
{
    if (t->size + n + 1 > t->capacity) {
        size_t capacity = (t->size + n + 1) * 2;
        char *more = realloc(t->text, capacity);
        if (!more) {
            t->failed = true;
            return;
        }
        t->text = more;
        t->capacity = capacity;
    }
    memcpy(t->text + t->size, bytes, n);
    t->size += n;
    t->text[t->size] = '\0';
}

/* Moves whole characters of the tail into the text. */
static void drain(text_stream *t, bool all)
{
    while (t->n_tail) {
        int n = character((const unsigned char *)t->tail, t->n_tail);
        if (n == 0 && !all) return;
        if (n > 0)
            append(t, t->tail, (size_t)n);
        else
            append(t, "\xef\xbf\xbd", 3);
        size_t used = n > 0 ? (size_t)n : 1;
        memmove(t->tail, t->tail + used, t->n_tail - used);
        t->n_tail -= used;
    }
}

/* Cuts the text at the first stop string that ends behind `from`; else holds back what may become
 * one. */
static void look_for_stops(text_stream *t, size_t from)
{
    t->ready = t->size;
    char *first = NULL;
    for (size_t i = 0; i < t->n_stops; i++) {
        size_t length = strlen(t->stops[i]);
        size_t start = from > length ? from - length : 0;
        char *at = strstr(t->text + start, t->stops[i]);
        if (at && (!first || at < first)) first = at;
        for (size_t n = length - 1; n > 0; n--)
            if (n <= t->size && memcmp(t->text + t->size - n, t->stops[i], n) == 0) {
                if (t->size - n < t->ready) t->ready = t->size - n;
                break;
            }
    }
    if (!first) return;
    *first = '\0';
    t->ready = t->size = (size_t)(first - t->text);
    t->stopped = true;
}

void text_stream_add(text_stream *t, const char *piece, size_t size)
{
    if (t->stopped || t->failed) return;
    size_t from = t->size;
    for (size_t i = 0; i < size; i++) {
        t->tail[t->n_tail++] = piece[i];
        drain(t, false);
    }
    if (t->text) look_for_stops(t, from);
}

void text_stream_end(text_stream *t)
{
    if (!t->stopped) drain(t, true);
    t->ready = t->size;
}

void text_stream_free(text_stream *t)
{
    for (size_t i = 0; i < t->n_stops; i++)
        free(t->stops[i]);
    free(t->text);
}
