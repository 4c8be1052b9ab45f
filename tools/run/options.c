#include "options.h"

#include <string.h>

#include "parse.h"

const char run_common_usage[] =
    "  --model FILE       a GGUF file: llama, qwen2, qwen3 or gemma3 (required)\n"
    "  --memory BYTES     limit of the cache, pages and metadata (default 1GiB)\n"
    "  --threads N        (default: CPUs online)\n"
    "  --page-tokens N    8, 16, 32, 64 or 128 (default 16)\n"
    "  --kv-type NAME     page format: f16, bf16, f32 (default f16)\n"
    "  --rows N           most tokens of a step (default 512)\n"
    "  --chunk N          most prompt tokens of a step while others decode (default 256)\n"
    "  --draft N          speculate up to N tokens by prompt lookup (default 0)\n"
    "  --max-running N    most requests at a time (default 64)\n"
    "  --no-prefix        do not keep finished pages for later prompts\n";

void run_options_init(run_options *o)
{
    memset(o, 0, sizeof *o);
    o->engine.memory = UINT64_C(1) << 30;
    o->engine.prefix = true;
}

static int take_type(const char *name, pkv_dtype *type, tool_error *err)
{
    for (pkv_dtype t = 1; t < 64; t++)
        if (pkv_dtype_size(t) && strcmp(pkv_dtype_name(t), name) == 0) {
            *type = t;
            return 0;
        }
    return tool_fail(err, "--kv-type: '%.40s' is not a page format", name);
}

static int take_u32(const char *text, const char *what, uint64_t min, uint64_t max, uint32_t *value,
                    tool_error *err)
{
    uint64_t v = 0;
    if (parse_u64(text, what, min, max, &v, err)) return -1;
    *value = (uint32_t)v;
    return 0;
}

int run_options_take(run_options *o, int c, const char *argument, tool_error *err)
{
    int bad = 0;
    switch (c) {
    case OPT_COMMON:
        o->engine.model = argument;
        break;
    case OPT_COMMON + 1:
        bad = parse_size(argument, "--memory", &o->engine.memory, err);
        break;
    case OPT_COMMON + 2:
        bad = take_u32(argument, "--threads", 1, 256, &o->engine.threads, err);
        break;
    case OPT_COMMON + 3:
        bad = take_u32(argument, "--page-tokens", 8, 128, &o->engine.page_tokens, err);
        break;
    case OPT_COMMON + 4:
        bad = take_type(argument, &o->engine.kv_type, err);
        break;
    case OPT_COMMON + 5:
        bad = take_u32(argument, "--rows", 1, 1 << 16, &o->engine.max_rows, err);
        break;
    case OPT_COMMON + 6:
        bad = take_u32(argument, "--chunk", 1, 1 << 16, &o->sched.chunk, err);
        break;
    case OPT_COMMON + 7:
        bad = take_u32(argument, "--draft", 0, 64, &o->sched.n_draft, err);
        break;
    case OPT_COMMON + 8:
        o->engine.prefix = false;
        break;
    case OPT_COMMON + 9:
        bad = take_u32(argument, "--max-running", 1, 4096, &o->sched.max_running, err);
        break;
    default:
        return 0;
    }
    return bad ? -1 : 1;
}

int run_options_check(const run_options *o, tool_error *err)
{
    return o->engine.model ? 0 : tool_fail(err, "--model is missing");
}
