#include "sampler.h"

#include <llama.h>
#include <stdbool.h>
#include <stdlib.h>

struct sampler {
    struct llama_sampler *chain; /* NULL = greedy */
    llama_token_data *candidates;
    uint32_t n_vocab;
};

static struct llama_sampler *make_chain(const sampler_options *o, uint32_t n_vocab)
{
    struct llama_sampler *chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
    bool penalties = o->presence_penalty != 0 || o->frequency_penalty != 0;
    if (penalties)
        llama_sampler_chain_add(chain, llama_sampler_init_penalties((int32_t)n_vocab, 256, 1.0f,
                                                                    o->frequency_penalty,
                                                                    o->presence_penalty));
    if (o->temperature <= 0) {
        llama_sampler_chain_add(chain, llama_sampler_init_greedy());
        return chain;
    }
    if (o->top_k > 0) llama_sampler_chain_add(chain, llama_sampler_init_top_k(o->top_k));
    if (o->top_p < 1) llama_sampler_chain_add(chain, llama_sampler_init_top_p(o->top_p, 1));
    if (o->min_p > 0) llama_sampler_chain_add(chain, llama_sampler_init_min_p(o->min_p, 1));
    llama_sampler_chain_add(chain, llama_sampler_init_temp(o->temperature));
    llama_sampler_chain_add(chain, llama_sampler_init_dist(o->seed));
    return chain;
}

sampler *sampler_new(const sampler_options *o, uint32_t n_vocab)
{
    sampler *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    s->n_vocab = n_vocab;
    if (o->temperature <= 0 && o->presence_penalty == 0 && o->frequency_penalty == 0) return s;
    s->chain = make_chain(o, n_vocab);
    s->candidates = malloc(n_vocab * sizeof *s->candidates);
    if (s->chain && s->candidates) return s;
    sampler_free(s);
    return NULL;
}

void sampler_free(sampler *s)
{
    if (!s) return;
    if (s->chain) llama_sampler_free(s->chain);
    free(s->candidates);
    free(s);
}

/* In blocks, so that the compiler compares many at a time; only the best block is looked through.
 */
uint32_t sampler_argmax(const float *values, uint32_t n)
{
    enum { BLOCK = 512 };
    uint32_t best_block = 0;
    float best = -3.4e38f;
    for (uint32_t at = 0; at < n; at += BLOCK) {
        uint32_t size = n - at < BLOCK ? n - at : BLOCK;
        float lanes[16], most = -3.4e38f;
        for (uint32_t l = 0; l < 16; l++)
            lanes[l] = -3.4e38f;
        uint32_t i = 0;
        for (; i + 16 <= size; i += 16)
            for (uint32_t l = 0; l < 16; l++)
                lanes[l] = values[at + i + l] > lanes[l] ? values[at + i + l] : lanes[l];
        for (; i < size; i++)
            most = values[at + i] > most ? values[at + i] : most;
        for (uint32_t l = 0; l < 16; l++)
            most = lanes[l] > most ? lanes[l] : most;
        if (most > best) {
            best = most;
            best_block = at;
        }
    }
    for (uint32_t i = best_block; i < n; i++)
        if (values[i] == best) return i;
    return 0;
}

int32_t sampler_choose(sampler *s, const float *logits)
{
    if (!s->chain) return (int32_t)sampler_argmax(logits, s->n_vocab);
    for (uint32_t i = 0; i < s->n_vocab; i++)
        s->candidates[i] = (llama_token_data){(llama_token)i, logits[i], 0};
    llama_token_data_array list = {s->candidates, s->n_vocab, -1, false};
    llama_sampler_apply(s->chain, &list);
    int32_t token = list.data[list.selected < 0 ? 0 : list.selected].id;
    llama_sampler_accept(s->chain, token);
    return token;
}
