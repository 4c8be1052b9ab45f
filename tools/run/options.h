/* Options that every subcommand of pkv-run has. */
#ifndef TOOLS_RUN_OPTIONS_H
#define TOOLS_RUN_OPTIONS_H

#include <getopt.h>

#include "engine.h"
#include "sched.h"

/* Their getopt_long values start here; a subcommand's own stay below. */
enum { OPT_COMMON = 1000 };

#define RUN_COMMON_OPTIONS                                                                         \
    {"model", required_argument, NULL, OPT_COMMON}, {"memory", required_argument, NULL, 1001},     \
        {"threads", required_argument, NULL, 1002}, {"page-tokens", required_argument, NULL, 1003}, \
        {"kv-type", required_argument, NULL, 1004}, {"rows", required_argument, NULL, 1005},       \
        {"chunk", required_argument, NULL, 1006}, {"draft", required_argument, NULL, 1007},        \
        {"no-prefix", no_argument, NULL, 1008}, {"max-running", required_argument, NULL, 1009}

extern const char run_common_usage[];

typedef struct run_options {
    engine_options engine;
    sched_options sched;
} run_options;

/* Defaults: 1 GiB, f16, pages of 16, prefix index. */
void run_options_init(run_options *o);

/* Takes option `c` if it is one of the common ones: 1, 0 if it is not, -1 with a text. */
int run_options_take(run_options *o, int c, const char *argument, tool_error *err);

/* After the last option: is there a model? */
int run_options_check(const run_options *o, tool_error *err);

#endif
