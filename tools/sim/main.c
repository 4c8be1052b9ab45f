/* pkv-sim: replays request traces through pagedkv. */
#include <pagedkv/version.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "model.h"
#include "sim.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary;
} commands[] = {
    {"waste", sim_waste, "memory waste of paging against contiguous reservation"},
    {"prefix", sim_prefix, "prefix blocks under replacement policies and capacities"},
    {"longseq", sim_longseq, "long sequences under eviction policies and a memory limit"},
    {"serve", sim_serve, "continuous batching with a clock, under memory pressure"},
};

static void help(void)
{
    puts("Usage: pkv-sim COMMAND [OPTION...]\n"
         "Replays LLM request traces through the pagedkv library.\n\n"
         "Commands:");
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        printf("  %-9s %s\n", commands[i].name, commands[i].summary);
    puts(
        "\n'pkv-sim COMMAND --help' describes a command's options. Without --trace a command runs\n"
        "a built-in workload.\n\n"
        "Other options:\n"
        "  --models   list the model presets\n"
        "  --version  print the version\n"
        "  --help     print this text\n\n"
        "Exit status: 0 success, 1 the run failed (bad trace, no memory), 2 wrong command line.");
}

int main(int argc, char **argv)
{
    tool_error err;
    if (argc < 2) {
        tool_fail(&err, "a command is missing");
        return cli_usage_error("pkv-sim", &err);
    }
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        if (strcmp(argv[1], commands[i].name) == 0) return commands[i].run(argc - 1, argv + 1);
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        help();
        return cli_finish("pkv-sim");
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("pkv-sim %s\n", pkv_version_string());
        return cli_finish("pkv-sim");
    }
    if (strcmp(argv[1], "--models") == 0) {
        model_list(stdout);
        return cli_finish("pkv-sim");
    }
    tool_fail(&err, "unknown command '%.60s'", argv[1]);
    return cli_usage_error("pkv-sim", &err);
}
