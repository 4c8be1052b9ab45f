/* Fuzzes the trace reader: any bytes give a trace or an error with a text, never a crash or a leak,
 * and what is accepted keeps the promises of trace.h. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "trace.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) abort();                                                                 \
    } while (0)

static void check(const trace *t)
{
    uint64_t input = 0, output = 0, blocks = 0;
    REQUIRE(t->n_requests > 0);
    for (size_t i = 0; i < t->n_requests; i++) {
        const trace_request *r = &t->requests[i];
        REQUIRE(isfinite(r->arrival) && r->arrival >= 0);
        REQUIRE(r->input <= TRACE_MAX_TOKENS && r->output <= TRACE_MAX_TOKENS);
        REQUIRE(r->block_tokens >= 1);
        REQUIRE(r->first_block == blocks);
        for (uint32_t k = 0; k < r->n_blocks; k++)
            REQUIRE(t->blocks[blocks + k] <= INT64_MAX);
        blocks += r->n_blocks;
        input += r->input;
        output += r->output;
    }
    REQUIRE(blocks == t->n_blocks && input == t->input_tokens && output == t->output_tokens);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const trace_format formats[] = {TRACE_AUTO, TRACE_MOONCAKE, TRACE_AZURE, TRACE_LENGTHS};
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++) {
        trace t;
        tool_error err;
        err.text[0] = '\0';
        if (trace_load_memory(data, size, "fuzz", formats[i], &t, &err) == 0) {
            check(&t);
            trace_free(&t);
        } else {
            REQUIRE(t.requests == NULL && t.blocks == NULL && t.name == NULL);
            REQUIRE(strncmp(err.text, "fuzz", 4) == 0);
        }
    }
    return 0;
}
