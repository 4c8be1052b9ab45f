/* Options that every subcommand of pkv-run has. */
#ifndef TOOLS_RUN_OPTIONS_H
#define TOOLS_RUN_OPTIONS_H

#include "cli.h"
#include "engine.h"
#include "scheduler.h"

typedef struct run_options {
    engine_options engine;
    sched_options sched;
    bool no_prefix;
} run_options;

/* For CLI_GROUP, target run_options. */
extern const cli_option run_common_options[];

/* 1 GiB, f16, pages of 16, prefix index. */
void run_options_defaults(run_options *o);

/* After the last option: is there a model? */
int run_options_check(run_options *o, tool_error *err);

#endif
