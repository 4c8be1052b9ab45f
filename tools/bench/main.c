/* pkv-bench: measures the library beside what it is compared with, in one process. */
#include <pagedkv/version.h>
#include <stdio.h>
#include <string.h>

#include "bench.h"
#include "cli.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary;
} commands[] = {
    {"pool", bench_pool, "pages, appends and forks beside malloc and a locked free list"},
    {"attention", bench_attention, "paged attention beside contiguous attention and the machine"},
    {"step", bench_step, "bookkeeping beside attention in a decode step"},
    {"decode-growth", bench_decode_growth,
     "recomputation, a concatenating cache and pagedkv as a sequence grows"},
    {"evict", bench_evict, "commits and attention with eviction policies beside the same without"},
    {"prefix", bench_prefix, "matching, publishing and evicting in the prefix index"},
};

static void help(void)
{
    puts("Usage: pkv-bench COMMAND [OPTION...]\n"
         "Measures the pagedkv library.\n\n"
         "Commands:");
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        printf("  %-10s %s\n", commands[i].name, commands[i].summary);
    puts("\n'pkv-bench COMMAND --help' describes a command's options.\n\n"
         "Other options:\n"
         "  --version  print the version\n"
         "  --help     print this text\n\n"
         "Exit status: 0 success, 1 the run failed, 2 wrong command line.");
}

int main(int argc, char **argv)
{
    tool_error err;
    if (argc < 2) {
        tool_fail(&err, "a command is missing");
        return cli_usage_error("pkv-bench", &err);
    }
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        if (strcmp(argv[1], commands[i].name) == 0) return commands[i].run(argc - 1, argv + 1);
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        help();
        return cli_finish("pkv-bench");
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("pkv-bench %s\n", pkv_version_string());
        return cli_finish("pkv-bench");
    }
    tool_fail(&err, "unknown command '%.60s'", argv[1]);
    return cli_usage_error("pkv-bench", &err);
}
