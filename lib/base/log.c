#include <stdarg.h>
#include <stdio.h>

#include "base/base.h"

void pkvi_log_debug(const struct pkvi_log *log, const char *format, ...)
{
    if (!log->fn) return;
    char line[256];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    log->fn(log->user, PKV_LOG_DEBUG, line);
}

void pkvi_text(char *text, size_t capacity, const char *format, ...)
{
    if (!text || !capacity) return;
    va_list args;
    va_start(args, format);
    vsnprintf(text, capacity, format, args);
    va_end(args);
}
