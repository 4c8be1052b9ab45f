#include "cli.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

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
