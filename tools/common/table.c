#include "table.h"

#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_COLUMNS = 32 };

struct table {
    char *headers;
    const char *names[MAX_COLUMNS];
    bool left[MAX_COLUMNS];
    size_t widths[MAX_COLUMNS];
    size_t n_columns;
    char **cells; /* NULL = a rule, stored in the first column of its own row */
    size_t n_cells, capacity;
    bool failed;
};

/* Characters, not bytes, of UTF-8 text. */
static size_t width(const char *text)
{
    size_t n = 0;
    for (; *text != '\0'; text++)
        n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

table *table_new(const char *columns)
{
    table *t = calloc(1, sizeof *t);
    if (t == NULL) return NULL;
    t->headers = strdup(columns);
    if (t->headers == NULL) {
        free(t);
        return NULL;
    }
    char *save = NULL;
    for (char *name = strtok_r(t->headers, "|", &save); name != NULL && t->n_columns < MAX_COLUMNS;
         name = strtok_r(NULL, "|", &save)) {
        size_t i = t->n_columns++;
        t->left[i] = *name == '<';
        t->names[i] = name + t->left[i];
        t->widths[i] = width(t->names[i]);
    }
    return t;
}

static void add(table *t, char *cell)
{
    if (t->n_cells == t->capacity) {
        size_t capacity = t->capacity == 0 ? 64 : 2 * t->capacity;
        char **grown = realloc(t->cells, capacity * sizeof *grown);
        if (grown == NULL) {
            free(cell);
            t->failed = true;
            return;
        }
        t->cells = grown;
        t->capacity = capacity;
    }
    t->cells[t->n_cells++] = cell;
}

void table_cell(table *t, const char *format, ...)
{
    if (t == NULL || t->failed) return;
    char *cell = NULL;
    va_list args;
    va_start(args, format);
    if (vasprintf(&cell, format, args) < 0) cell = NULL;
    va_end(args);
    if (cell == NULL) {
        t->failed = true;
        return;
    }
    size_t column = t->n_cells % t->n_columns;
    if (width(cell) > t->widths[column]) t->widths[column] = width(cell);
    add(t, cell);
}

double table_percent(double share, int decimals)
{
    return share < 1 ? fmin(100 * share, 100 - pow(10, -decimals)) : 100 * share;
}

void table_share(table *t, double share, int decimals)
{
    double least = pow(10, -decimals);
    if (isnan(share))
        table_cell(t, "-");
    else if (share > 0 && 100 * share < least / 2)
        table_cell(t, "<%.*f %%", decimals, least);
    else
        table_cell(t, "%.*f %%", decimals, table_percent(share, decimals));
}

void table_rule(table *t)
{
    if (t == NULL || t->failed) return;
    for (size_t i = 0; i < t->n_columns; i++)
        add(t, NULL);
}

static void print_cell(const table *t, size_t column, const char *text, FILE *to)
{
    int pad = (int)(t->widths[column] - width(text));
    bool last = column + 1 == t->n_columns;
    if (t->left[column])
        fprintf(to, "%s%*s", text, last ? 0 : pad, "");
    else
        fprintf(to, "%*s%s", pad, "", text);
    fputs(last ? "\n" : "  ", to);
}

static void print_rule(const table *t, FILE *to)
{
    for (size_t i = 0; i < t->n_columns; i++) {
        for (size_t j = 0; j < t->widths[i]; j++)
            fputc('-', to);
        fputs(i + 1 == t->n_columns ? "\n" : "  ", to);
    }
}

void table_print(const table *t, FILE *to)
{
    if (t == NULL || t->failed) {
        fputs("(out of memory while building the table)\n", to);
        return;
    }
    for (size_t i = 0; i < t->n_columns; i++)
        print_cell(t, i, t->names[i], to);
    print_rule(t, to);
    for (size_t i = 0; i + t->n_columns <= t->n_cells; i += t->n_columns) {
        if (t->cells[i] == NULL) print_rule(t, to);
        for (size_t j = 0; t->cells[i] != NULL && j < t->n_columns; j++)
            print_cell(t, j, t->cells[i + j], to);
    }
}

void table_free(table *t)
{
    if (t == NULL) return;
    for (size_t i = 0; i < t->n_cells; i++)
        free(t->cells[i]);
    free(t->cells);
    free(t->headers);
    free(t);
}
