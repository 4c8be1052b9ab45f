/* pkv-run: a small runtime on ggml whose cache and attention are pagedkv. */
#include <pagedkv/version.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "run.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary;
} commands[] = {
    {"generate", run_generate, "text from a prompt, streamed"},
    {"bench", run_bench, "prompts, decode steps and requests beside libllama"},
    {"compare", run_compare, "greedy tokens beside libllama's"},
};

static void help(void)
{
    puts("Usage: pkv-run COMMAND --model FILE [OPTION...]\n"
         "Runs a GGUF model with ggml's products and pagedkv's cache and attention.\n\n"
         "Commands:");
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        printf("  %-10s %s\n", commands[i].name, commands[i].summary);
    puts("\n'pkv-run COMMAND --help' describes a command's options.\n\n"
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
        return cli_usage_error("pkv-run", &err);
    }
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        if (strcmp(argv[1], commands[i].name) == 0) return commands[i].run(argc - 1, argv + 1);
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        help();
        return cli_finish("pkv-run");
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("pkv-run %s\n", pkv_version_string());
        return cli_finish("pkv-run");
    }
    tool_fail(&err, "unknown command '%.60s'", argv[1]);
    return cli_usage_error("pkv-run", &err);
}
