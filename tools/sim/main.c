/* pkv-sim: replays request traces through pagedkv. */
#include <stdio.h>

#include "cli.h"
#include "model.h"
#include "sim.h"

static void print_models(void)
{
    model_list(stdout);
}

static const cli_verb verbs[] = {
    {"waste", sim_waste, "memory waste of paging against contiguous reservation"},
    {"prefix", sim_prefix, "prefix blocks under replacement policies and capacities"},
    {"longseq", sim_longseq, "long sequences under eviction policies and a memory limit"},
    {"serve", sim_serve, "continuous batching with a clock, under memory pressure"},
    {NULL, NULL, NULL},
};

static const cli_print prints[] = {{"--models", print_models, "list the model presets"},
                                   {NULL, NULL, NULL}};

int main(int argc, char **argv)
{
    static const cli_program program = {
        "pkv-sim", "Replays LLM request traces through the pagedkv library.", verbs, prints,
        " Without --trace a command runs\na built-in workload."};
    return cli_main(&program, argc, argv);
}
