/* Text that comes in pieces which may end inside a UTF-8 character, with stop strings. What may be
 * sent is always whole characters of valid UTF-8 (bytes that are none become U+FFFD) and never the
 * beginning of a stop string. */
#ifndef TOOLS_RUN_TEXT_STREAM_H
#define TOOLS_RUN_TEXT_STREAM_H

#include <stdbool.h>
#include <stddef.h>

enum { TEXT_MAX_STOPS = 4 };

typedef struct text_stream {
    char *text; /* NUL-terminated */
    size_t size, capacity;
    size_t ready; /* bytes that may be sent */
    char tail[4]; /* of an unfinished character */
    size_t n_tail;
    char *stops[TEXT_MAX_STOPS]; /* owned */
    size_t n_stops;
    bool stopped, failed; /* a stop string came; memory ran out */
} text_stream;

/* Adds bytes; nothing more after a stop string, which itself is cut off. */
void text_stream_add(text_stream *t, const char *piece, size_t size);
/* No more will come: everything left may be sent. */
void text_stream_end(text_stream *t);
void text_stream_free(text_stream *t);

/* Is text[0..size) valid UTF-8? */
bool text_is_utf8(const char *text, size_t size);

#endif
