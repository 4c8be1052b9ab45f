/* Geometry from a Hugging Face config.json. */
#ifndef TOOLS_SIM_MODEL_CONFIG_H
#define TOOLS_SIM_MODEL_CONFIG_H

#include "model.h"

/* Fills in layers, heads, head_dim, window, which layers are full, dtype and (of dense models) the
 * number of weights. Fields that a file may leave out have the values of the model type's class.
 * -1 with err that names the file and the field for anything missing, out of bounds, or that the
 * library cannot hold (latent attention, recurrent layers, chunked windows, layers that differ in
 * geometry or share keys, encoders). */
int model_read_config(const char *path, model *out, tool_error *err);

#endif
