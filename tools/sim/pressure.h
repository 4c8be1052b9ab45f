#ifndef TOOLS_SIM_PRESSURE_H
#define TOOLS_SIM_PRESSURE_H

#include <stddef.h>

#include "tool_error.h"

/* A change of the memory limit while a simulation runs. */
typedef struct pressure {
    double at;     /* seconds from the start */
    int relative;  /* 1: `amount` is a factor of the limit at the start, added to the limit now */
    double amount; /* relative: -0.5 for -50 %; absolute: the new limit in bytes */
} pressure;

/* "60s:-50%,120s:+50%,300s:8GiB": at most `capacity` changes, times not decreasing. */
int pressure_parse(const char *text, pressure *changes, size_t capacity, size_t *n,
                   tool_error *err);

#endif
