/* Tables for people: columns as wide as their widest cell, numbers to the right. */
#ifndef TOOLS_COMMON_TABLE_H
#define TOOLS_COMMON_TABLE_H

#include <stdio.h>

typedef struct table table;

/* `columns`: headers separated by '|'; one that starts with '<' is aligned left, others right:
 * "<scheme|served|waste". NULL if memory runs out. */
table *table_new(const char *columns);

/* Adds the next cell, left to right, row by row. A table that ran out of memory prints nothing. */
void table_cell(table *t, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A share in percent as it may be shown with so many decimals: rounding must not claim all, so what
 * is less than everything is at most 99.9. NaN stays. */
double table_percent(double share, int decimals);

/* Adds a share as "12.3 %", or "-" for NaN. Rounding claims neither all nor none: next to all is
 * "99.9 %", next to nothing "<0.1 %". */
void table_share(table *t, double share, int decimals);

/* A thin rule before the next row. */
void table_rule(table *t);

/* Prints header, rule and rows. */
void table_print(const table *t, FILE *to);

/* NULL is allowed. */
void table_free(table *t);

#endif
