#include "tool_error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int tool_fail(tool_error *err, const char *format, ...)
{
    if (err == NULL) return -1;
    va_list args;
    va_start(args, format);
    vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    return -1;
}

int tool_fail_in(tool_error *err, const char *format, ...)
{
    if (err == NULL) return -1;
    char inner[sizeof err->text];
    memcpy(inner, err->text, sizeof inner);
    char prefix[256];
    va_list args;
    va_start(args, format);
    vsnprintf(prefix, sizeof prefix, format, args);
    va_end(args);
    int used = snprintf(err->text, sizeof err->text, "%s: ", prefix);
    if (used > 0 && (size_t)used < sizeof err->text) {
        size_t room = sizeof err->text - (size_t)used - 1;
        size_t n = strnlen(inner, room);
        memcpy(err->text + used, inner, n);
        err->text[(size_t)used + n] = '\0';
    }
    return -1;
}
