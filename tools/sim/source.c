#include <sched.h>
#include <stddef.h>
#include <unistd.h>

#include "parse.h"
#include "sim.h"
#include "synthetic.h"

static int add_trace(void *target, const char *text, tool_error *err)
{
    sim_source *s = target;
    if (s->n_paths == SIM_MAX_TRACES) return tool_fail(err, "more than %d traces", SIM_MAX_TRACES);
    s->paths[s->n_paths++] = text;
    return 0;
}

static int set_format(void *target, const char *text, tool_error *err)
{
    return trace_format_parse(text, &((sim_source *)target)->format, err);
}

const cli_option sim_source_options[] = {
    {.kind = CLI_TITLE, .help = "Requests"},
    {"trace", "FILE", CLI_CALL, 0, .call = add_trace,
     .help = "a trace, plain or .gz, .xz, .lzma, .bz2, .zst, .lz4 (known by content); '-' = stdin"},
    {"trace-format", "FORMAT", CLI_CALL, 0, .call = set_format,
     .help = "auto (default), mooncake (JSON lines: timestamp, input_length, output_length, "
             "hash_ids[, block_size]), azure (CSV: TIMESTAMP, ContextTokens, GeneratedTokens) or "
             "lengths (CSV: num_prefill_tokens, num_decode_tokens)"},
    {"synthetic", "SPEC", CLI_TEXT, offsetof(sim_source, synthetic),
     .help = "a built-in workload: lengths or chat, then settings, as in "
             "'chat,requests=2000,seed=7'. Settings (defaults for lengths / chat): requests=4000 "
             "seed=1 rate=4/1 (arrivals per second) in=600/120 in_sigma=1.1 out=200 out_sigma=0.9 "
             "(log-normal tokens: median and sigma) max_tokens=32768; chat only: turns=5 think=30 "
             "prompts=8 prompt_tokens=1200 block=512"},
    {0},
};

int sim_source_check(const sim_source *source, tool_error *err)
{
    if (source->n_paths > 0 && source->synthetic != NULL)
        return tool_fail(err, "--trace and --synthetic exclude each other");
    if (source->format != TRACE_AUTO && source->n_paths == 0)
        return tool_fail(err, "--trace-format needs --trace");
    return source->synthetic != NULL ? synthetic_check(source->synthetic, err) : 0;
}

int sim_source_load(const sim_source *source, size_t i, const char *fallback, trace *out,
                    tool_error *err)
{
    if (source->n_paths > 0) return trace_load(source->paths[i], source->format, out, err);
    return synthetic_trace(source->synthetic != NULL ? source->synthetic : fallback, out, err);
}

const cli_option sim_output_options[] = {
    {.kind = CLI_TITLE, .help = "Output (a table unless --json or --csv -)"},
    {"json", NULL, CLI_JSON, offsetof(sim_output, json), .help = "results as JSON on stdout"},
    {"csv", "FILE", CLI_CSV, offsetof(sim_output, csv),
     .help = "results as CSV ('-' = stdout, instead of the table)"},
    {"plot", "FILE", CLI_TEXT, offsetof(sim_output, plot), .help = "results as an SVG plot"},
    {0},
};

bool sim_wants_table(const sim_output *output)
{
    return !output->json && !cli_is_stdout(output->csv);
}

unsigned sim_processors(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        int n = CPU_COUNT(&set);
        if (n > 0) return (unsigned)n;
    }
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (unsigned)n : 1;
}
