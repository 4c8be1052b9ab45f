#include "cli.h"

#include <errno.h>
#include <getopt.h>
#include <pagedkv/version.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parse.h"

enum { MAX_OPTIONS = 64, HELP_COLUMN = 26, HELP_WIDTH = 100 };

int cli_usage_error(const char *command, const tool_error *err)
{
    fprintf(stderr, "%s: %s\nTry '%s --help'.\n", command, err->text, command);
    return TOOL_EXIT_USAGE;
}

int cli_failed(const char *command, const tool_error *err)
{
    fprintf(stderr, "%s: %s\n", command, err->text);
    return TOOL_EXIT_FAILED;
}

int cli_bad_option(int option, int short_option, const char *argument, tool_error *err)
{
    const char *text = argument != NULL ? argument : "?";
    if (option == ':') return tool_fail(err, "option '%.80s' needs a value", text);
    if (short_option != 0 && text[0] == '-' && text[1] == '-')
        return tool_fail(err, "option '%.80s' takes no value", text);
    return tool_fail(err, "unknown or ambiguous option '%.80s'", text);
}

int cli_finish(const char *command)
{
    if (fflush(stdout) == 0 && ferror(stdout) == 0) return TOOL_EXIT_OK;
    fprintf(stderr, "%s: cannot write to standard output: %s\n", command, strerror(errno));
    return TOOL_EXIT_FAILED;
}

int cli_is_stdout(const char *path)
{
    return path != NULL && strcmp(path, "-") == 0;
}

/* ---- help ----------------------------------------------------------------------------------- */

/* Prints words from `column` on, continuation lines below the first. A line break in the text is
 * one in the output. */
static void print_wrapped(const char *text, int column)
{
    int at = column;
    while (*text != '\0') {
        int n = (int)strcspn(text, " \n");
        if (at > column && at + 1 + n > HELP_WIDTH) {
            printf("\n%*s", column, "");
            at = column;
        }
        at += printf("%s%.*s", at > column ? " " : "", n, text);
        text += n;
        if (*text == '\n') {
            printf("\n%*s", column, "");
            at = column;
        }
        if (*text != '\0') text++;
    }
    putchar('\n');
}

static void print_options(const cli_option *list)
{
    for (const cli_option *o = list; o->kind != CLI_TITLE || o->help != NULL; o++) {
        if (o->kind == CLI_TITLE) {
            printf("\n%s:\n", o->help);
        } else if (o->kind == CLI_GROUP) {
            print_options(o->group);
        } else {
            int used = printf("  --%s %s", o->name, o->value != NULL ? o->value : "");
            printf("%*s", used < HELP_COLUMN ? HELP_COLUMN - used : 1, "");
            print_wrapped(o->help, HELP_COLUMN);
        }
    }
}

static void print_help(const cli_command *c)
{
    printf("Usage: %s [OPTION...]\n", c->name);
    print_wrapped(c->summary, 0);
    print_options(c->options);
    printf("  --help                  print this text\n");
    if (c->notes == NULL) return;
    putchar('\n');
    print_wrapped(c->notes, 0);
}

/* ---- parsing -------------------------------------------------------------------------------- */

typedef struct entry {
    const cli_option *option;
    char *target;
} entry;

typedef struct parser {
    struct option longs[MAX_OPTIONS + 2];
    entry entries[MAX_OPTIONS]; /* getopt_long returns 256 + index */
    int n;
} parser;

static void collect(parser *p, const cli_option *list, char *base)
{
    for (const cli_option *o = list; o->kind != CLI_TITLE || o->help != NULL; o++) {
        if (o->kind == CLI_GROUP) collect(p, o->group, base + o->at);
        if (o->kind <= CLI_GROUP || p->n == MAX_OPTIONS) continue;
        bool flag = o->kind == CLI_FLAG || o->kind == CLI_JSON;
        p->entries[p->n] = (entry){o, base + o->at};
        p->longs[p->n] =
            (struct option){o->name, flag ? no_argument : required_argument, NULL, 256 + p->n};
        p->n++;
    }
    p->longs[p->n] = (struct option){"help", no_argument, NULL, 'h'};
    p->longs[p->n + 1] = (struct option){0};
}

static int set(const entry *e, const char *text, tool_error *err)
{
    const cli_option *o = e->option;
    char what[64];
    uint64_t number;
    snprintf(what, sizeof what, "--%s", o->name);
    switch (o->kind) {
    case CLI_FLAG:
    case CLI_JSON:
        *(bool *)(void *)e->target = true;
        return 0;
    case CLI_U32:
        if (parse_u64(text, what, (uint64_t)o->min, (uint64_t)o->max, &number, err) != 0) return -1;
        *(uint32_t *)(void *)e->target = (uint32_t)number;
        return 0;
    case CLI_U64: /* no maximum, or one that a double holds */
        return parse_u64(text, what, (uint64_t)o->min, o->max > 0 ? (uint64_t)o->max : UINT64_MAX,
                         (uint64_t *)(void *)e->target, err);
    case CLI_REAL:
        return parse_double(text, what, o->min, o->max, (double *)(void *)e->target, err);
    case CLI_SIZE:
        return parse_size(text, what, (uint64_t *)(void *)e->target, err);
    case CLI_CALL:
        return o->call(e->target, text, err);
    default:
        *(const char **)(void *)e->target = text;
        return 0;
    }
}

/* Two kinds of results on one stream could not be told apart. */
static int check_streams(const parser *p, tool_error *err)
{
    bool json = false, csv = false;
    for (int i = 0; i < p->n; i++) {
        const entry *e = &p->entries[i];
        if (e->option->kind == CLI_JSON) json = *(bool *)(void *)e->target;
        if (e->option->kind == CLI_CSV) csv = cli_is_stdout(*(const char **)(void *)e->target);
    }
    return json && csv ? tool_fail(err, "--json and --csv - both write to standard output") : 0;
}

/* 1 = help is wanted, 0 = go on, -1 with err. */
static int parse(const cli_command *c, void *target, int argc, char **argv, tool_error *err)
{
    parser p = {.n = 0};
    collect(&p, c->options, target);
    bool help = false;
    opterr = 0;
    optind = 1;
    for (int got; (got = getopt_long(argc, argv, ":h", p.longs, NULL)) != -1;) {
        if (got == 'h')
            help = true;
        else if (got < 256)
            return cli_bad_option(got, optopt, argv[optind - 1], err);
        else if (set(&p.entries[got - 256], optarg, err) != 0)
            return -1;
    }
    if (help) return 1;
    if (optind < argc) return tool_fail(err, "unexpected argument '%.80s'", argv[optind]);
    if (check_streams(&p, err) != 0) return -1;
    return c->prepare != NULL ? c->prepare(target, err) : 0;
}

int cli_run(const cli_command *c, int argc, char **argv)
{
    tool_error err = {""};
    void *target = calloc(1, c->size);
    if (target == NULL) {
        tool_fail(&err, "out of memory");
        return cli_failed(c->name, &err);
    }
    if (c->defaults != NULL) c->defaults(target);
    int status, parsed = parse(c, target, argc, argv, &err);
    if (parsed < 0) {
        status = cli_usage_error(c->name, &err);
    } else if (parsed > 0) {
        print_help(c);
        status = cli_finish(c->name);
    } else {
        status = c->run(target, &err) == 0 ? cli_finish(c->name) : cli_failed(c->name, &err);
    }
    if (c->end != NULL && parsed <= 0) c->end(target);
    free(target);
    return status;
}

/* ---- programs ------------------------------------------------------------------------------- */

static void program_help(const cli_program *p)
{
    printf("Usage: %s COMMAND [OPTION...]\n%s\n\nCommands:\n", p->name, p->summary);
    for (const cli_verb *v = p->verbs; v->name != NULL; v++)
        printf("  %-14s %s\n", v->name, v->summary);
    printf("\n'%s COMMAND --help' describes a command's options.%s\n\nOther options:\n", p->name,
           p->notes);
    for (const cli_print *o = p->prints; o != NULL && o->name != NULL; o++)
        printf("  %-10s %s\n", o->name, o->summary);
    puts("  --version  print the version\n"
         "  --help     print this text\n\n"
         "Exit status: 0 success, 1 the run failed, 2 wrong command line.");
}

int cli_main(const cli_program *p, int argc, char **argv)
{
    tool_error err;
    const char *word = argc < 2 ? "" : argv[1];
    for (const cli_verb *v = p->verbs; v->name != NULL; v++)
        if (strcmp(word, v->name) == 0) return v->run(argc - 1, argv + 1);
    for (const cli_print *o = p->prints; o != NULL && o->name != NULL; o++)
        if (strcmp(word, o->name) == 0) {
            o->print();
            return cli_finish(p->name);
        }
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "help") == 0) {
        program_help(p);
        return cli_finish(p->name);
    }
    if (strcmp(word, "--version") == 0) {
        printf("%s %s\n", p->name, pkv_version_string());
        return cli_finish(p->name);
    }
    if (argc < 2)
        tool_fail(&err, "a command is missing");
    else
        tool_fail(&err, "unknown command '%.60s'", word);
    return cli_usage_error(p->name, &err);
}
