/* Groups and layers: what a config's numbers mean in bytes. */
#include <string.h>

#include "cache/cache_internal.h"
#include "cache/config_limits.h"

static uint32_t digests_of(const pkv_config *config)
{
    uint32_t digest = 0;
    if (config->signals & PKV_SIGNAL_BOUNDS) digest |= PKVI_DIGEST_MINMAX;
    if (config->signals & PKV_SIGNAL_KEYSUM) digest |= PKVI_DIGEST_SUM;
    return digest;
}

/* The config was checked, so the layout accepts it. */
static void set_layout(const struct pkvi_group *group, pkvi_layout *layout, uint32_t page_tokens,
                       pkv_dtype k, pkv_dtype v, uint32_t digest)
{
    const pkv_status status = pkvi_layout_init(layout, k, v, page_tokens, group->kv_heads,
                                               group->head_dim_k, group->head_dim_v, digest);
    PKVI_ASSERT(status == PKV_OK);
    (void)status;
}

void pkvi_geometry_group(const pkv_config *config, uint32_t index, struct pkvi_group *group)
{
    const pkv_group_config given = pkvi_config_group(config, index);
    const pkv_group_config *from = &given;
    group->index = index;
    group->n_layers = from->n_layers;
    group->kv_heads = from->kv_heads;
    group->q_heads = from->q_heads != 0 ? from->q_heads : from->kv_heads;
    group->head_dim_k = from->head_dim_k;
    group->head_dim_v = from->head_dim_v != 0 ? from->head_dim_v : from->head_dim_k;
    group->window = from->window;
    group->dtype_k = pkvi_dtype_k(from);
    group->dtype_v = pkvi_dtype_v(from);
    group->quantised = pkv_dtype_size(group->dtype_k) == 0 || pkv_dtype_size(group->dtype_v) == 0;
    group->dtype = group->quantised                   ? pkvi_dtype_open(from)
                   : group->dtype_k == group->dtype_v ? group->dtype_k
                                                      : 0;
    set_layout(group, &group->layout, config->page_tokens, group->dtype_k, group->dtype_v, 0);
    group->token_bytes = group->n_layers * (uint64_t)group->layout.part_bytes / config->page_tokens;
    set_layout(group, &group->layout, config->page_tokens, group->dtype_k, group->dtype_v,
               digests_of(config));
    group->layer_bytes = group->layout.part_bytes;
    group->page_bytes = group->n_layers * group->layer_bytes;
    if (!group->quantised) return;
    set_layout(group, &group->open_layout, config->page_tokens, group->dtype, group->dtype, 0);
    group->open_layer_bytes = group->open_layout.part_bytes;
    group->open_page_bytes = group->n_layers * group->open_layer_bytes;
}

void pkvi_geometry_state(const pkv_config *config, uint32_t index, struct pkvi_state_group *group)
{
    const pkv_group_config from = pkvi_config_group(config, index);
    group->n_layers = from.n_layers;
    group->state_bytes = from.state_bytes;
    group->layer_bytes =
        pkvi_ceil_div_u64(from.state_bytes, PKVI_STATE_ALIGNMENT) * PKVI_STATE_ALIGNMENT;
    group->slot_bytes = group->n_layers * group->layer_bytes;
}

uint64_t pkvi_geometry_os_page(const pkv_config *config)
{
    const struct pkvi_os *os = pkvi_os_default();
    return config->storage == PKV_STORAGE_HOST ? os->page_bytes(os->user) : 1;
}

uint64_t pkvi_geometry_region_bytes(const pkv_config *config)
{
    if (config->storage == PKV_STORAGE_EXTERNAL) return PKVI_REGION_UNIT;
    uint64_t page_bytes[2 * PKV_MAX_GROUPS];
    uint32_t n = 0;
    uint64_t largest = 0;
    const uint32_t n_paged = pkvi_config_paged(config);
    for (uint32_t g = 0; g < n_paged; g++) {
        struct pkvi_group group = {0};
        pkvi_geometry_group(config, g, &group);
        page_bytes[n++] = group.page_bytes;
        if (group.quantised) page_bytes[n++] = group.open_page_bytes;
        largest = pkvi_max_u64(largest, pkvi_max_u64(group.page_bytes, group.open_page_bytes));
    }
    for (uint32_t g = n_paged; g < config->n_groups; g++) {
        struct pkvi_state_group group = {0};
        pkvi_geometry_state(config, g, &group);
        page_bytes[n++] = group.slot_bytes;
        largest = pkvi_max_u64(largest, group.slot_bytes);
    }
    if (config->region_bytes != 0)
        return config->region_bytes >= largest ? config->region_bytes : 0;
    const uint64_t limit =
        config->memory_limit != 0 ? config->memory_limit : PKVI_DEFAULT_MEMORY_LIMIT;
    return pkvi_regions_choose(page_bytes, n, limit);
}

static void map_layers(struct pkv_cache *cache, const pkv_config *config)
{
    uint32_t next = 0;
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        const pkv_group_config group = pkvi_config_group(config, g);
        for (uint32_t i = 0; i < group.n_layers; i++) {
            const uint32_t layer = group.layers ? group.layers[i] : next;
            cache->layers[layer] = (struct pkvi_layer){(uint16_t)g, (uint16_t)i};
            next = layer + 1;
        }
    }
}

pkv_status pkvi_geometry_init(struct pkv_cache *cache, const pkv_config *config)
{
    cache->page_tokens = config->page_tokens;
    cache->page_shift = pkvi_log2_u32(config->page_tokens);
    cache->n_groups = pkvi_config_paged(config);
    cache->states.n = config->n_groups - cache->n_groups;
    cache->states.mem = &cache->mem;
    for (uint32_t g = 0; g < cache->n_groups; g++)
        cache->n_layers += pkvi_config_group(config, g).n_layers;
    cache->groups = pkvi_mem_array(&cache->mem, cache->n_groups, sizeof *cache->groups);
    cache->layers = pkvi_mem_array(&cache->mem, cache->n_layers, sizeof *cache->layers);
    if (cache->states.n != 0)
        cache->states.groups =
            pkvi_mem_array(&cache->mem, cache->states.n, sizeof *cache->states.groups);
    if (!cache->groups || !cache->layers || (cache->states.n != 0 && !cache->states.groups)) {
        pkvi_geometry_free(cache);
        return PKV_ENOMEM;
    }
    for (uint32_t s = 0; s < cache->states.n; s++)
        pkvi_geometry_state(config, cache->n_groups + s, &cache->states.groups[s]);
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        pkvi_geometry_group(config, g, &cache->groups[g]);
        cache->token_bytes += cache->groups[g].token_bytes;
        cache->n_windows += cache->groups[g].window != 0;
    }
    map_layers(cache, config);
    return PKV_OK;
}

void pkvi_geometry_free(struct pkv_cache *cache)
{
    pkvi_mem_free_array(&cache->mem, cache->groups, cache->n_groups, sizeof *cache->groups);
    pkvi_mem_free_array(&cache->mem, cache->layers, cache->n_layers, sizeof *cache->layers);
    pkvi_mem_free_array(&cache->mem, cache->states.groups, cache->states.n,
                        sizeof *cache->states.groups);
    cache->groups = NULL;
    cache->layers = NULL;
    cache->states.groups = NULL;
}

pkv_status pkv_cache_group_info(pkv_cache *cache, uint32_t group, pkv_group_info *info)
{
    if (!cache) return PKV_EINVAL;
    if (!info) return pkvi_fail(cache, PKV_EINVAL, "cache_group_info: info is NULL");
    if (!pkvi_size_known(info->struct_size, PKVI_LEAST_OUTPUT, sizeof *info))
        return pkvi_fail(cache, PKV_EVERSION, "cache_group_info: struct_size %zu is unknown",
                         info->struct_size);
    if (group >= cache->n_groups)
        return pkvi_fail(cache, PKV_EINVAL, "cache_group_info: group %u of %u", group,
                         cache->n_groups);
    const struct pkvi_group *from = &cache->groups[group];
    const pkv_group_info out = {
        .n_layers = from->n_layers,
        .kv_heads = from->kv_heads,
        .q_heads = from->q_heads,
        .head_dim_k = from->head_dim_k,
        .head_dim_v = from->head_dim_v,
        .window = from->window,
        .dtype = from->dtype,
        .pages_per_region = pkvi_pool_pages_per_region(&from->pool),
        .page_bytes = from->page_bytes,
        .layer_bytes = from->layer_bytes,
        .token_bytes = from->token_bytes,
        .dtype_k = from->dtype_k,
        .dtype_v = from->dtype_v,
        .storage = cache->storage,
        .page_tokens = cache->page_tokens,
        .open_page_bytes = from->open_page_bytes,
    };
    pkvi_struct_write(info, info->struct_size, &out);
    return PKV_OK;
}

pkv_status pkv_cache_group_count(pkv_cache *cache, uint32_t *n_groups)
{
    if (!cache) return PKV_EINVAL;
    if (!n_groups) return pkvi_fail(cache, PKV_EINVAL, "cache_group_count: n_groups is NULL");
    *n_groups = cache->n_groups;
    return PKV_OK;
}

pkv_status pkv_cache_layer_group(pkv_cache *cache, uint32_t layer, uint32_t *group, uint32_t *index)
{
    if (!cache) return PKV_EINVAL;
    if (!group || !index)
        return pkvi_fail(cache, PKV_EINVAL, "cache_layer_group: group or index is NULL");
    if (layer >= cache->n_layers)
        return pkvi_fail(cache, PKV_EINVAL, "cache_layer_group: layer %u of %u", layer,
                         cache->n_layers);
    *group = cache->layers[layer].group;
    *index = cache->layers[layer].index;
    return PKV_OK;
}
