/* Choosing the next token from logits. Greedy by itself; everything else through libllama's
 * samplers. */
#ifndef TOOLS_RUN_SAMPLER_H
#define TOOLS_RUN_SAMPLER_H

#include <stdint.h>

typedef struct sampler_options {
    float temperature; /* 0 = greedy */
    float top_p;       /* 1 = off */
    float min_p;       /* 0 = off */
    int32_t top_k;     /* 0 = off */
    float presence_penalty, frequency_penalty;
    uint32_t seed;
} sampler_options;

typedef struct sampler sampler;

/* NULL if memory runs out. */
sampler *sampler_new(const sampler_options *options, uint32_t n_vocab);
void sampler_free(sampler *s);

/* The token chosen by `logits`; it counts for penalties from now on. */
int32_t sampler_choose(sampler *s, const float *logits);

/* Index of the largest of n values, the first of equals. */
uint32_t sampler_argmax(const float *values, uint32_t n);

#endif
