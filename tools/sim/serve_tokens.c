#include "serve.h"

/* A mixing step (the finaliser of MurmurHash3's 64-bit variant, public domain). */
static uint64_t mix(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdu;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53u;
    return x ^ (x >> 33);
}

/* Token `i` of the stream that `seed` names. */
static int32_t draw(uint64_t mixed, uint64_t i)
{
    uint64_t x = mixed + (i + 1) * 0x9e3779b97f4a7c15u;
    return (int32_t)(((x ^ (x >> 29)) >> 20) % 100003u);
}

static void fill(uint64_t seed, uint64_t n, int32_t *tokens)
{
    uint64_t mixed = mix(seed);
    for (uint64_t i = 0; i < n; i++)
        tokens[i] = draw(mixed, i);
}

/* Blocks have even seeds, what a request does not share has odd ones. */
static uint64_t block_seed(uint64_t id)
{
    return 2 * id;
}

static uint64_t own_seed(const trace *input, const trace_request *r)
{
    return 2 * (uint64_t)(r - input->requests) + 1;
}

/* Prompt tokens that block ids describe. */
static uint64_t covered(const trace_request *r)
{
    uint64_t blocks = (uint64_t)r->n_blocks * r->block_tokens;
    return blocks < r->input ? blocks : r->input;
}

void serve_tokens(const trace *input, const trace_request *r, uint64_t n, int32_t *tokens)
{
    uint64_t at = 0, shared = covered(r) < n ? covered(r) : n;
    for (uint32_t i = 0; at < shared; i++) {
        uint64_t left = shared - at, take = left < r->block_tokens ? left : r->block_tokens;
        fill(block_seed(input->blocks[r->first_block + i]), take, tokens + at);
        at += take;
    }
    fill(own_seed(input, r), n - at, tokens + at);
}

int32_t serve_answer_token(const trace *input, const trace_request *r, uint64_t at)
{
    return draw(mix(own_seed(input, r)), at - covered(r));
}

uint64_t serve_common_tokens(const trace *input, const trace_request *a, const trace_request *b)
{
    const uint64_t *x = input->blocks + a->first_block, *y = input->blocks + b->first_block;
    uint64_t end = covered(a) < covered(b) ? covered(a) : covered(b), at = 0;
    if (a->block_tokens == b->block_tokens) {
        for (uint32_t i = 0; at < end && x[i] == y[i]; i++)
            at += a->block_tokens;
        return at < end ? at : end;
    }
    /* Blocks of different sizes are equal as far as the shorter one goes, and only at the start. */
    uint64_t shorter = a->block_tokens < b->block_tokens ? a->block_tokens : b->block_tokens;
    if (end == 0 || x[0] != y[0]) return 0;
    return shorter < end ? shorter : end;
}
