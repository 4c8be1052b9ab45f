/* pkv-bench's subcommands. Each takes its own argument vector (argv[0] = its name) and returns an
 * exit status. To add one: a file NAME.c with bench_NAME, a line here, and a row in main.c. */
#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

int bench_pool(int argc, char **argv);
int bench_attention(int argc, char **argv);
int bench_decode_growth(int argc, char **argv);
int bench_step(int argc, char **argv);
int bench_prefix(int argc, char **argv);
int bench_evict(int argc, char **argv);
int bench_admit(int argc, char **argv);

#endif
