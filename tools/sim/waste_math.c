/* The arithmetic of waste: what is needed, and what contiguous schemes reserve. */
#include <math.h>

#include "waste.h"

static double share(waste_sum needed, waste_sum reserved)
{
    if (reserved == 0) return NAN;
    return (double)(((long double)reserved - (long double)needed) / (long double)reserved);
}

double waste_at_completion(const waste_totals *t)
{
    return t->served == 0 ? NAN : share(t->needed_end, t->reserved_end);
}

double waste_decode_averaged(const waste_totals *t)
{
    return t->served == 0 ? NAN : share(t->needed_decode, t->reserved_decode);
}

double waste_metadata_per_token(const waste_scheme *s)
{
    return s->live_tokens == 0 ? 0 : (double)s->metadata_bytes / (double)s->live_tokens;
}

uint64_t waste_needed(const model *m, uint64_t n)
{
    uint64_t bytes = 0;
    for (uint32_t g = 0; g < m->n_groups; g++) {
        uint64_t window = m->groups[g].window;
        bytes += model_group_token_bytes(m, g) * (window != 0 && n > window ? window : n);
    }
    return bytes;
}

/* The sum of min(u, window) over u = 1..n. */
static waste_sum triangle(uint64_t n, uint64_t window)
{
    if (window == 0 || n <= window) return (waste_sum)n * (n + 1) / 2;
    return (waste_sum)window * (window + 1) / 2 + (waste_sum)(n - window) * window;
}

waste_sum waste_needed_sum(const model *m, uint64_t first, uint64_t steps)
{
    waste_sum bytes = 0;
    for (uint32_t g = 0; g < m->n_groups; g++) {
        uint64_t window = m->groups[g].window;
        bytes += model_group_token_bytes(m, g) *
                 (triangle(first + steps, window) - triangle(first, window));
    }
    return bytes;
}

void waste_add_contiguous(waste_totals *t, const model *m, const trace_request *r, uint64_t tokens)
{
    uint64_t total = (uint64_t)r->input + r->output;
    waste_sum held = (waste_sum)tokens * model_token_bytes(m);
    t->served++;
    t->needed_end += waste_needed(m, total);
    t->reserved_end += held;
    if (r->output == 0) {
        t->needed_decode += waste_needed(m, r->input);
        t->reserved_decode += held;
    } else {
        t->needed_decode += waste_needed_sum(m, r->input, r->output);
        t->reserved_decode += held * r->output;
    }
}

static uint64_t power_of_two(uint64_t n)
{
    uint64_t p = 1;
    if (n == 0) return 0;
    while (p < n)
        p *= 2;
    return p;
}

void waste_contiguous(waste_scheme *scheme, const model *m, const trace *input)
{
    for (size_t i = 0; i < input->n_requests; i++) {
        const trace_request *r = &input->requests[i];
        uint64_t total = (uint64_t)r->input + r->output, reserved = total;
        if (scheme->kind == WASTE_POW2) reserved = power_of_two(total);
        if (scheme->kind == WASTE_MAX) {
            reserved = scheme->parameter;
            if (total > reserved) continue;
        }
        waste_add_contiguous(&scheme->totals, m, r, reserved);
    }
}
