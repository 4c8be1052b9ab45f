/* Subcommands of pkv-run: argv[0] is the command's name; the result is an exit status. */
#ifndef TOOLS_RUN_RUN_H
#define TOOLS_RUN_RUN_H

int run_generate(int argc, char **argv);
int run_bench(int argc, char **argv);
int run_compare(int argc, char **argv);
int run_serve(int argc, char **argv);

#endif
