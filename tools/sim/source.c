#include <sched.h>
#include <stdio.h>
#include <unistd.h>

#include "sim.h"
#include "synthetic.h"

int sim_source_check(const sim_source *source, tool_error *err)
{
    if (source->path != NULL && source->synthetic != NULL)
        return tool_fail(err, "--trace and --synthetic exclude each other");
    if (source->format != TRACE_AUTO && source->path == NULL)
        return tool_fail(err, "--trace-format needs --trace");
    return source->synthetic != NULL ? synthetic_check(source->synthetic, err) : 0;
}

int sim_source_load(const sim_source *source, const char *fallback, trace *out, tool_error *err)
{
    if (source->path != NULL) return trace_load(source->path, source->format, out, err);
    return synthetic_trace(source->synthetic != NULL ? source->synthetic : fallback, out, err);
}

void sim_source_help(void)
{
    fputs(
        "Requests:\n"
        "  --trace FILE            a trace, plain or .gz, .xz, .zst, .bz2, .lz4; '-' = stdin\n"
        "  --trace-format FORMAT   auto (default), mooncake (JSON lines: timestamp, input_length,\n"
        "                          output_length, hash_ids[, block_size]), azure (CSV: TIMESTAMP,\n"
        "                          ContextTokens, GeneratedTokens) or lengths (CSV:\n"
        "                          num_prefill_tokens, num_decode_tokens)\n"
        "  --synthetic SPEC        a built-in workload: lengths or chat, then settings, as in\n"
        "                          'chat,requests=2000,seed=7'. Settings (defaults for lengths /\n"
        "                          chat): requests=4000 seed=1 rate=4/1 (arrivals per second)\n"
        "                          in=600/120 in_sigma=1.1 out=200 out_sigma=0.9 (log-normal\n"
        "                          tokens: median and sigma) max_tokens=32768; chat only: turns=5\n"
        "                          think=30 prompts=8 prompt_tokens=1200 block=512\n",
        stdout);
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
