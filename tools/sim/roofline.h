/* Time of a model step from a roofline: the larger of arithmetic and memory traffic, plus a fixed
 * overhead. Deliberately simple: it gives a simulation its clock, not a prediction of a product. */
#ifndef TOOLS_SIM_ROOFLINE_H
#define TOOLS_SIM_ROOFLINE_H

#include <stdint.h>
#include <stdio.h>

#include "model.h"
#include "tool_error.h"

typedef struct hardware {
    char name[96];
    double flops;     /* peak dense 16-bit floating-point operations per second */
    double bandwidth; /* peak bytes per second of device memory */
    double flops_share, bandwidth_share; /* of the peaks that kernels reach */
    double overhead;                     /* seconds per step: launches, sampling, scheduling */
} hardware;

/* Parses a preset name, "NAME,key=value,…" or "flops=…,bandwidth=…". Keys: flops, bandwidth (plain
 * numbers, exponents allowed), flops_share, bandwidth_share (0..1], overhead (a duration). */
int hardware_parse(const char *text, hardware *out, tool_error *err);

void hardware_list(FILE *to);

/* What one step works on; add every sequence of the batch, then ask for the time. */
typedef struct roofline_step {
    double tokens;          /* new tokens */
    double attention_flops; /* scores and weighted sums of all layers */
    double kv_bytes;        /* keys and values read and written */
} roofline_step;

/* `new_tokens` tokens of a sequence of which `before` tokens are cached. In a layer with window w a
 * token sees at most w keys. */
void roofline_add(roofline_step *step, const model *m, uint64_t before, uint64_t new_tokens);

/* Seconds. Weights are read once per step, at two bytes per parameter. */
double roofline_time(const roofline_step *step, const model *m, const hardware *h);

/* Parameters of a model: as given, or estimated from its geometry (12.5 hidden² per layer, hidden =
 * q_heads * head_dim) where it was described by geometry alone. */
double roofline_parameters(const model *m);

#endif
