/* Configs of programs that were compiled against older headers. */
#include "cache/cache_internal.h"

/* What the structs had in 0.2.0 without spare fields. (A pkv_config of 232 bytes is that of 0.1,
 * which had other fields: hence most of the spare ones count.) */
#define LEAST_CONFIG 240u
#define LEAST_GROUP 88u /* up to state_bytes */
#define LEAST_ROPE 32u  /* up to frequencies */

/* The sizes of every version of the headers, newest last. pkv_config grows whenever an array
 * element does, so that its size alone tells them all. */
static const struct {
    size_t config, group, rope;
} versions[] = {
    {LEAST_CONFIG, 152, 64}, /* 0.2.0 */
};
_Static_assert(sizeof(pkv_group_config) == 152 && sizeof(pkv_rope_config) == 64,
               "new sizes of array elements need a larger pkv_config and a row in versions");

bool pkvi_config_known(size_t size)
{
    return pkvi_size_known(size, LEAST_CONFIG, sizeof(pkv_config));
}

bool pkvi_group_size_known(size_t size)
{
    return pkvi_size_known(size, LEAST_GROUP, sizeof(pkv_group_config));
}

bool pkvi_rope_size_known(size_t size)
{
    return pkvi_size_known(size, LEAST_ROPE, sizeof(pkv_rope_config));
}

void pkvi_config_sizes(size_t size, size_t *group_size, size_t *rope_size)
{
    size_t i = sizeof versions / sizeof versions[0] - 1;
    while (i > 0 && versions[i].config > size)
        i--;
    *group_size = versions[i].group;
    *rope_size = versions[i].rope;
}

void pkvi_config_read(const pkv_config *from, pkv_config *config)
{
    pkvi_struct_read(config, sizeof *config, from, from->struct_size);
    if (config->storage == PKV_STORAGE_DEFAULT) config->storage = PKV_STORAGE_HOST;
}

pkv_group_config pkvi_config_group(const pkv_config *config, uint32_t group)
{
    pkv_group_config ours;
    const char *at = (const char *)config->groups + group * config->group_size;
    pkvi_struct_read(&ours, sizeof ours, at, config->group_size);
    return ours;
}

pkv_rope_config pkvi_config_rope(const pkv_config *config, uint32_t group)
{
    pkv_rope_config ours;
    const char *at = (const char *)config->rope + group * config->rope_size;
    pkvi_struct_read(&ours, sizeof ours, at, config->rope_size);
    return ours;
}

uint32_t pkvi_config_paged(const pkv_config *config)
{
    uint32_t n = 0;
    while (n < config->n_groups && pkvi_config_group(config, n).state_bytes == 0)
        n++;
    return n;
}

pkv_dtype pkvi_dtype_open(const pkv_group_config *group)
{
    return group->dtype != 0 ? group->dtype : PKV_DTYPE_F16;
}

pkv_dtype pkvi_dtype_k(const pkv_group_config *group)
{
    return group->dtype_k != 0 ? group->dtype_k : pkvi_dtype_open(group);
}

pkv_dtype pkvi_dtype_v(const pkv_group_config *group)
{
    return group->dtype_v != 0 ? group->dtype_v : pkvi_dtype_open(group);
}
