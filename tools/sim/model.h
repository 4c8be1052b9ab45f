/* Model geometries: named presets and custom descriptions, as the layer groups of a cache. */
#ifndef TOOLS_SIM_MODEL_H
#define TOOLS_SIM_MODEL_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <pagedkv/config.h>

#include "tool_error.h"

enum { MODEL_MAX_GROUPS = 2 };

typedef struct model {
    char name[96];
    uint32_t n_layers, kv_heads, q_heads, head_dim;
    uint32_t window; /* of the sliding-window layers; 0 = every layer attends to everything */
    bool full[PKV_MAX_LAYERS]; /* with a window: these layers attend to everything all the same */
    pkv_dtype dtype;           /* of the cache */
    double parameters;         /* weights read per step; 0 = unknown */
    uint32_t n_groups;         /* 1, or 2 for a hybrid: the windowed layers come second */
    pkv_group_config groups[MODEL_MAX_GROUPS]; /* .layers point into `layers` below: do not copy a
                                                * model by assignment */
    uint32_t layers[PKV_MAX_LAYERS];
} model;

/* Parses "NAME", "NAME,key=value,…" (a preset with changes), or "key=value,…". NAME may be the path
 * of a Hugging Face config.json (it has a slash or ends with .json, and no comma). Keys: layers,
 * kv_heads, head_dim, dtype (f16, bf16, f32), window, q_heads, full_every, params. Custom models
 * need layers, kv_heads and head_dim. `flat` != 0 ignores windows: one group of full attention,
 * what a manager without layer groups holds. -1 with err for anything unknown or out of bounds. */
int model_parse(const char *text, int flat, model *out, tool_error *err);

/* Bytes of K and V of one token in all layers, and in one group. */
uint64_t model_token_bytes(const model *m);
uint64_t model_group_token_bytes(const model *m, uint32_t group);

/* Lists the presets with their geometry. */
void model_list(FILE *to);

/* True if some layer has a sliding window. */
static inline int model_is_windowed(const model *m)
{
    return m->window != 0;
}

#endif
