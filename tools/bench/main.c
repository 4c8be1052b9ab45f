/* pkv-bench: measures the library beside what it is compared with, in one process. */
#include "bench.h"
#include "cli.h"

static const cli_verb verbs[] = {
    {"pool", bench_pool, "pages, appends and forks beside malloc and a locked free list"},
    {"attention", bench_attention, "paged attention beside contiguous attention and the machine"},
    {"step", bench_step, "bookkeeping beside attention in a decode step"},
    {"decode-growth", bench_decode_growth,
     "recomputation, a concatenating cache and pagedkv as a sequence grows"},
    {"evict", bench_evict, "commits and attention with eviction policies beside the same without"},
    {"admit", bench_admit, "decisions of admission beside running sequences"},
    {"prefix", bench_prefix, "matching, publishing and evicting in the prefix index"},
    {NULL, NULL, NULL},
};

int main(int argc, char **argv)
{
    static const cli_program program = {"pkv-bench", "Measures the pagedkv library.", verbs, NULL,
                                        ""};
    return cli_main(&program, argc, argv);
}
