#include "options.h"

#include <stddef.h>
#include <string.h>

/* Quantised formats of keys and values go together in pairs. */
static int take_type(void *target, const char *name, tool_error *err)
{
    engine_options *o = target;
    static const struct {
        const char *name;
        pkv_dtype k, v;
    } types[] = {{"f16", PKV_DTYPE_F16, PKV_DTYPE_F16}, {"bf16", PKV_DTYPE_BF16, PKV_DTYPE_BF16},
                 {"f32", PKV_DTYPE_F32, PKV_DTYPE_F32}, {"k8v8", PKV_DTYPE_K8, PKV_DTYPE_V8},
                 {"k8v4", PKV_DTYPE_K8, PKV_DTYPE_V4},  {"k4v4", PKV_DTYPE_K4, PKV_DTYPE_V4}};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (strcmp(types[i].name, name) == 0) {
            o->type_k = types[i].k;
            o->type_v = types[i].v;
            return 0;
        }
    return tool_fail(err, "--kv-type: '%.40s' is not a page format", name);
}

#define ENGINE(field) offsetof(run_options, engine.field)
#define SCHED(field) offsetof(run_options, sched.field)

const cli_option run_common_options[] = {
    {.kind = CLI_TITLE, .help = "Model and cache"},
    {"model", "FILE", CLI_TEXT, ENGINE(model),
     .help = "a GGUF file: llama, qwen2, qwen3 or gemma3 (required)"},
    {"memory", "BYTES", CLI_SIZE, ENGINE(memory),
     .help = "limit of the cache, pages and metadata (default 1GiB)"},
    {"threads", "N", CLI_U32, ENGINE(threads), 1, 256, .help = "(default: CPUs online)"},
    {"page-tokens", "N", CLI_U32, ENGINE(page_tokens), 8, 128,
     .help = "tokens per page: 8, 16, 32, 64 or 128 (default 16)"},
    {"kv-type", "NAME", CLI_CALL, offsetof(run_options, engine), .call = take_type,
     .help = "page format: f16, bf16, f32, k8v8, k8v4, k4v4 (default f16)"},
    {"no-prefix", NULL, CLI_FLAG, offsetof(run_options, no_prefix),
     .help = "do not keep finished pages for later prompts"},
    {.kind = CLI_TITLE, .help = "Scheduling"},
    {"rows", "N", CLI_U32, ENGINE(max_rows), 1, 1 << 16,
     .help = "most tokens of a step (default 512)"},
    {"chunk", "N", CLI_U32, SCHED(chunk), 1, 1 << 16,
     .help = "most prompt tokens of a step while others decode (default 256)"},
    {"draft", "N", CLI_U32, SCHED(n_draft), 0, 64,
     .help = "speculate up to N tokens by prompt lookup (default 0)"},
    {"max-running", "N", CLI_U32, SCHED(max_running), 1, 4096,
     .help = "most requests at a time (default 64)"},
    {0},
};

void run_options_defaults(run_options *o)
{
    memset(o, 0, sizeof *o);
    o->engine.memory = UINT64_C(1) << 30;
}

int run_options_check(run_options *o, tool_error *err)
{
    o->engine.prefix = !o->no_prefix;
    return o->engine.model ? 0 : tool_fail(err, "--model is missing");
}
