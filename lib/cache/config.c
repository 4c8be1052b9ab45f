/* Defaults, bounds and checks of a config. */
#include <pagedkv/config.h>

#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "attn/attn.h"
#include "cache/cache_internal.h"
#include "cache/config_limits.h"
#include "prefix/prefix.h"

/* Bounds that one number decides. The texts of pkv_config_check come from here, too. */
struct bounds {
    const char *field;
    uint64_t min, max;
};

static const struct bounds bounds_table[] = {
    {"page_tokens", 8, 128},
    {"n_groups", 1, PKV_MAX_GROUPS},
    {"storage", PKV_STORAGE_DEFAULT, PKV_STORAGE_NONE},
    {"debug", 0, PKV_DEBUG_POISON | PKV_DEBUG_CHECKSUM},
    {"memory_limit", 1, PKVI_MAX_MEMORY},
    {"region_bytes", PKVI_REGION_UNIT, PKVI_MAX_REGION},
    {"max_sequences", 1, PKVI_MAX_SEQUENCES},
    {"max_batches", 1, PKVI_MAX_BATCHES},
    {"event_capacity", 0, PKVI_MAX_EVENTS},
    {"prefix", 0, 1},
    {"huge_pages", 0, 1},
    {"numa_node", 0, PKVI_MAX_NUMA_NODE},
    {"watermark_pages", 0, PKVI_MAX_PAGES},
    {"fork_policy", 0, 1},
    {"signals", 0, PKV_SIGNAL_BOUNDS | PKV_SIGNAL_KEYSUM},
    {"n_layers", 1, PKV_MAX_LAYERS},
    {"kv_heads", 1, PKV_MAX_HEADS},
    {"q_heads", 1, PKV_MAX_HEADS},
    {"head_dim_k", 8, PKV_MAX_HEAD_DIM},
    {"head_dim_v", 8, PKV_MAX_HEAD_DIM},
    {"window", 0, PKVI_MAX_LENGTH},
    {"dtype", PKV_DTYPE_F32, PKV_DTYPE_BF16},
    {"dtype_k", PKV_DTYPE_F32, PKV_DTYPE_V4},
    {"dtype_v", PKV_DTYPE_F32, PKV_DTYPE_V4},
    {"max_pages", 0, PKVI_MAX_PAGES},
    {"state_bytes", 0, PKVI_MAX_REGION},
    {"rotary_dims", 0, PKV_MAX_HEAD_DIM},
};

static const struct bounds *find_bounds(const char *field)
{
    for (size_t i = 0; i < sizeof bounds_table / sizeof bounds_table[0]; i++)
        if (strcmp(bounds_table[i].field, field) == 0) return &bounds_table[i];
    return NULL;
}

pkv_status pkv_config_init(pkv_config *config, size_t size)
{
    if (!config) return PKV_EINVAL;
    if (!pkvi_config_known(size)) return PKV_EVERSION;
    pkv_config defaults = {
        .page_tokens = 16,
        .storage = PKV_STORAGE_HOST,
        .memory_limit = PKVI_DEFAULT_MEMORY_LIMIT,
        .max_sequences = 65536,
        .max_batches = 64,
        .prefix = 1,
        .huge_pages = 1,
        .numa_node = -1,
    };
    pkvi_config_sizes(size, &defaults.group_size, &defaults.rope_size);
    pkvi_struct_write(config, size, &defaults);
    return PKV_OK;
}

pkv_status pkv_config_bounds(const char *field, uint64_t *min, uint64_t *max)
{
    if (!field || !min || !max) return PKV_EINVAL;
    const struct bounds *bounds = find_bounds(field);
    if (!bounds) return PKV_EINVAL;
    *min = bounds->min;
    *max = bounds->max;
    return PKV_OK;
}

/* Where the first complaint goes. `prefix` is "" or "groups[1]." */
struct check {
    char *text;
    size_t capacity;
    char prefix[24];
};

static pkv_status complain(struct check *check, pkv_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static pkv_status complain(struct check *check, pkv_status status, const char *format, ...)
{
    if (!check->text || check->capacity == 0) return status;
    const int n = snprintf(check->text, check->capacity, "%s", check->prefix);
    if (n < 0 || (size_t)n >= check->capacity) return status;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(check->text + n, check->capacity - (size_t)n, format, arguments);
    va_end(arguments);
    return status;
}

static pkv_status check_range(struct check *check, const char *field, uint64_t value)
{
    const struct bounds *bounds = find_bounds(field);
    if (value >= bounds->min && value <= bounds->max) return PKV_OK;
    return complain(check, PKV_EINVAL, "%s: %" PRIu64 " is not in %" PRIu64 "..%" PRIu64, field,
                    value, bounds->min, bounds->max);
}

/* Negative enum values are shown as they are. */
static pkv_status check_enum(struct check *check, const char *field, int32_t value)
{
    const struct bounds *bounds = find_bounds(field);
    if (value >= 0 && (uint64_t)value >= bounds->min && (uint64_t)value <= bounds->max)
        return PKV_OK;
    return complain(check, PKV_EINVAL, "%s: %" PRId32 " is not in %" PRIu64 "..%" PRIu64, field,
                    value, bounds->min, bounds->max);
}

static pkv_status check_dim(struct check *check, const char *field, uint32_t value)
{
    const pkv_status status = check_range(check, field, value);
    if (status != PKV_OK) return status;
    if (value % 8 != 0)
        return complain(check, PKV_EINVAL, "%s: %" PRIu32 " is not a multiple of 8", field, value);
    return PKV_OK;
}

static bool all_zero(const uint64_t *values, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (values[i] != 0) return false;
    return true;
}

static pkv_status check_external(struct check *check, const pkv_config *config,
                                 const pkv_group_config *group)
{
    if (config->storage != PKV_STORAGE_EXTERNAL) {
        if (group->external_base || group->external_bytes != 0)
            return complain(check, PKV_EINVAL,
                            "external_base: only PKV_STORAGE_EXTERNAL takes a buffer");
        return PKV_OK;
    }
    if (!group->external_base)
        return complain(check, PKV_EINVAL, "external_base: NULL with PKV_STORAGE_EXTERNAL");
    if (group->external_bytes == 0)
        return complain(check, PKV_EINVAL, "external_bytes: 0 with PKV_STORAGE_EXTERNAL");
    if ((uintptr_t)group->external_base % PKVI_EXTERNAL_ALIGNMENT != 0)
        return complain(check, PKV_EINVAL, "external_base: not aligned to %u bytes",
                        PKVI_EXTERNAL_ALIGNMENT);
    if (group->external_bytes > UINTPTR_MAX - (uintptr_t)group->external_base)
        return complain(check, PKV_EINVAL, "external_bytes: the buffer wraps around");
    return PKV_OK;
}

/* Formats of keys and values. */
static pkv_status check_formats(struct check *check, const pkv_group_config *group, bool external)
{
    pkv_status status = PKV_OK;
    if (group->dtype != 0) status = check_enum(check, "dtype", group->dtype);
    if (status == PKV_OK && group->dtype_k != 0)
        status = check_enum(check, "dtype_k", group->dtype_k);
    if (status == PKV_OK && group->dtype_v != 0)
        status = check_enum(check, "dtype_v", group->dtype_v);
    if (status != PKV_OK) return status;
    const pkv_dtype k = pkvi_dtype_k(group), v = pkvi_dtype_v(group);
    if (k == PKV_DTYPE_V8 || k == PKV_DTYPE_V4)
        return complain(check, PKV_EINVAL, "dtype_k: %s is a format of values", pkv_dtype_name(k));
    if (v == PKV_DTYPE_K8 || v == PKV_DTYPE_K4)
        return complain(check, PKV_EINVAL, "dtype_v: %s is a format of keys", pkv_dtype_name(v));
    const bool k_coded = pkv_dtype_size(k) == 0, v_coded = pkv_dtype_size(v) == 0;
    const pkv_dtype open = pkvi_dtype_open(group);
    if (!k_coded && !v_coded) return PKV_OK;
    if (!k_coded && k != open)
        return complain(check, PKV_EINVAL, "dtype_k: %s keys beside open pages of %s (dtype)",
                        pkv_dtype_name(k), pkv_dtype_name(open));
    if (!v_coded && v != open)
        return complain(check, PKV_EINVAL, "dtype_v: %s values beside open pages of %s (dtype)",
                        pkv_dtype_name(v), pkv_dtype_name(open));
    if (external)
        return complain(check, PKV_ENOTSUP, "%s: quantised pages need HOST or NONE storage",
                        k_coded ? "dtype_k" : "dtype_v");
    return PKV_OK;
}

/* Fields that later versions give a meaning. */
static pkv_status check_unused(struct check *check, const pkv_group_config *group)
{
    const char *field = group->storage != 0       ? "storage"
                        : group->page_tokens != 0 ? "page_tokens"
                        : group->v_in_k != 0      ? "v_in_k"
                        : group->chunk != 0       ? "chunk"
                                                  : NULL;
    if (field) return complain(check, PKV_EINVAL, "%s: not in this version, must be 0", field);
    if (!all_zero(group->reserved, sizeof group->reserved / sizeof group->reserved[0]))
        return complain(check, PKV_EINVAL, "reserved: not zero");
    return PKV_OK;
}

/* No byte belongs to two groups: each would write over the other's pages. */
static pkv_status check_overlaps(struct check *check, const pkv_config *config)
{
    if (config->storage != PKV_STORAGE_EXTERNAL) return PKV_OK;
    for (uint32_t g = 1; g < config->n_groups; g++) {
        const pkv_group_config a = pkvi_config_group(config, g);
        const uintptr_t begin = (uintptr_t)a.external_base, end = begin + a.external_bytes;
        for (uint32_t h = 0; h < g; h++) {
            const pkv_group_config b = pkvi_config_group(config, h);
            const uintptr_t other = (uintptr_t)b.external_base;
            if (begin < other + b.external_bytes && other < end)
                return complain(check, PKV_EINVAL,
                                "groups[%" PRIu32 "].external_base: the buffer overlaps that of "
                                "groups[%" PRIu32 "]",
                                g, h);
        }
    }
    return PKV_OK;
}

/* A group of states: what describes keys, values and pages must be zero. */
static pkv_status check_state_group(struct check *check, const pkv_config *config,
                                    const pkv_group_config *group)
{
    pkv_status status = check_range(check, "n_layers", group->n_layers);
    if (status == PKV_OK) status = check_range(check, "state_bytes", group->state_bytes);
    if (status == PKV_OK) status = check_range(check, "max_pages", group->max_pages);
    if (status != PKV_OK) return status;
    const char *field = group->kv_heads != 0     ? "kv_heads"
                        : group->q_heads != 0    ? "q_heads"
                        : group->head_dim_k != 0 ? "head_dim_k"
                        : group->head_dim_v != 0 ? "head_dim_v"
                        : group->window != 0     ? "window"
                        : group->dtype != 0      ? "dtype"
                        : group->dtype_k != 0    ? "dtype_k"
                        : group->dtype_v != 0    ? "dtype_v"
                        : group->layers          ? "layers"
                                                 : NULL;
    if (field) return complain(check, PKV_EINVAL, "%s: a state group has none", field);
    if (group->n_layers > PKVI_MAX_REGION / 2 / group->state_bytes)
        return complain(check, PKV_EINVAL,
                        "state_bytes: %" PRIu32 " layers of %" PRIu64 " bytes are too much",
                        group->n_layers, group->state_bytes);
    status = check_unused(check, group);
    if (status == PKV_OK) status = check_external(check, config, group);
    return status;
}

/* Groups with pages first, at least one. */
static pkv_status check_order(struct check *check, const pkv_config *config)
{
    const uint32_t n_paged = pkvi_config_paged(config);
    if (n_paged == 0)
        return complain(check, PKV_EINVAL, "groups[0].state_bytes: a group with pages comes first");
    for (uint32_t g = n_paged; g < config->n_groups; g++)
        if (pkvi_config_group(config, g).state_bytes == 0)
            return complain(check, PKV_EINVAL,
                            "groups[%" PRIu32 "]: a group with pages behind a state group", g);
    return PKV_OK;
}

static pkv_status check_group(struct check *check, const pkv_config *config,
                              const pkv_group_config *group)
{
    if (group->state_bytes != 0) return check_state_group(check, config, group);
    pkv_status status = check_range(check, "n_layers", group->n_layers);
    if (status == PKV_OK) status = check_range(check, "kv_heads", group->kv_heads);
    if (status == PKV_OK && group->q_heads != 0)
        status = check_range(check, "q_heads", group->q_heads);
    if (status == PKV_OK) status = check_dim(check, "head_dim_k", group->head_dim_k);
    if (status == PKV_OK && group->head_dim_v != 0)
        status = check_dim(check, "head_dim_v", group->head_dim_v);
    if (status == PKV_OK) status = check_range(check, "window", group->window);
    if (status == PKV_OK)
        status = check_formats(check, group, config->storage == PKV_STORAGE_EXTERNAL);
    if (status == PKV_OK) status = check_range(check, "max_pages", group->max_pages);
    if (status != PKV_OK) return status;
    if (group->q_heads % group->kv_heads != 0)
        return complain(check, PKV_EINVAL,
                        "q_heads: %" PRIu32 " is not a multiple of kv_heads %" PRIu32,
                        group->q_heads, group->kv_heads);
    status = check_unused(check, group);
    if (status != PKV_OK) return status;
    return check_external(check, config, group);
}

/* Every model layer number 0..total-1 exactly once. */
static pkv_status check_layers(struct check *check, const pkv_config *config)
{
    uint64_t seen[PKV_MAX_LAYERS / 64] = {0};
    const uint32_t n_paged = pkvi_config_paged(config);
    uint32_t total = 0;
    for (uint32_t g = 0; g < n_paged; g++)
        total += pkvi_config_group(config, g).n_layers;
    if (total > PKV_MAX_LAYERS)
        return complain(check, PKV_EINVAL, "groups: %" PRIu32 " layers in all, at most %d", total,
                        PKV_MAX_LAYERS);
    uint32_t next = 0;
    for (uint32_t g = 0; g < n_paged; g++) {
        const pkv_group_config group = pkvi_config_group(config, g);
        for (uint32_t i = 0; i < group.n_layers; i++) {
            const uint32_t layer = group.layers ? group.layers[i] : next;
            if (layer >= total)
                return complain(check, PKV_EINVAL,
                                "groups[%" PRIu32 "].layers[%" PRIu32 "]: %" PRIu32
                                " is not below the number of layers %" PRIu32,
                                g, i, layer, total);
            if (seen[layer / 64] >> (layer % 64) & 1)
                return complain(check, PKV_EINVAL,
                                "groups[%" PRIu32 "].layers[%" PRIu32 "]: layer %" PRIu32
                                " occurs twice",
                                g, i, layer);
            seen[layer / 64] |= (uint64_t)1 << (layer % 64);
            next = layer + 1;
        }
    }
    return PKV_OK;
}

static pkv_status check_rope(struct check *check, const pkv_config *config)
{
    if (!config->rope) return PKV_OK;
    for (uint32_t g = 0; g < config->n_groups; g++) {
        const pkv_rope_config rope = pkvi_config_rope(config, g);
        snprintf(check->prefix, sizeof check->prefix, "rope[%" PRIu32 "].", g);
        if (!all_zero(rope.reserved, sizeof rope.reserved / sizeof rope.reserved[0]))
            return complain(check, PKV_EINVAL, "reserved: not zero");
        if (rope.rotary_dims == 0) continue;
        const uint32_t dim = pkvi_config_group(config, g).head_dim_k;
        if (rope.rotary_dims % 2 != 0 || rope.rotary_dims > dim)
            return complain(check, PKV_EINVAL,
                            "rotary_dims: %" PRIu32 " is odd or exceeds head_dim_k %" PRIu32,
                            rope.rotary_dims, dim);
        if (rope.interleaved > 1)
            return complain(check, PKV_EINVAL, "interleaved: %" PRIu32 " is not 0 or 1",
                            rope.interleaved);
        if (!rope.frequencies && !(rope.theta > 0.0))
            return complain(check, PKV_EINVAL, "theta: not positive");
        if (!(rope.position_scale >= 0.0))
            return complain(check, PKV_EINVAL, "position_scale: negative");
    }
    check->prefix[0] = '\0';
    return PKV_OK;
}

static pkv_status check_memory(struct check *check, const pkv_config *config)
{
    pkv_status status = PKV_OK;
    if (config->memory_limit != 0)
        status = check_range(check, "memory_limit", config->memory_limit);
    if (status == PKV_OK && config->region_bytes != 0)
        status = check_range(check, "region_bytes", config->region_bytes);
    if (status != PKV_OK) return status;
    if (config->region_bytes % PKVI_REGION_UNIT != 0)
        return complain(check, PKV_EINVAL, "region_bytes: %" PRIu64 " is not a multiple of 2 MiB",
                        config->region_bytes);
    const uint64_t limit =
        config->memory_limit != 0 ? config->memory_limit : PKVI_DEFAULT_MEMORY_LIMIT;
    if (config->storage != PKV_STORAGE_EXTERNAL && config->region_bytes > limit)
        return complain(check, PKV_EINVAL, "region_bytes: %" PRIu64 " exceed the memory limit %" PRIu64,
                        config->region_bytes, limit);
    return PKV_OK;
}

/* What one page or slot of a group takes. */
struct page_size {
    uint64_t bytes;
    const char *name;
};

static struct page_size page_size(const pkv_config *config, uint32_t index)
{
    struct pkvi_group group = {0};
    struct pkvi_state_group states = {0};
    if (index >= pkvi_config_paged(config)) {
        pkvi_geometry_state(config, index, &states);
        return (struct page_size){states.slot_bytes, "slot"};
    }
    pkvi_geometry_group(config, index, &group);
    return (struct page_size){group.page_bytes, "page"};
}

/* A token needs a page in every group, a step two states, and the cache its own memory. */
static pkv_status check_limit(struct check *check, const pkv_config *config)
{
    if (config->storage == PKV_STORAGE_EXTERNAL) return PKV_OK;
    const uint64_t limit =
        config->memory_limit != 0 ? config->memory_limit : PKVI_DEFAULT_MEMORY_LIMIT;
    const uint64_t kept = limit - pkvi_budget_capacity(limit);
    uint64_t needed = kept > PKVI_MIN_METADATA ? kept : PKVI_MIN_METADATA;
    const uint32_t n_paged = pkvi_config_paged(config);
    for (uint32_t g = 0; g < config->n_groups; g++)
        needed += pkvi_pool_cost(page_size(config, g).bytes, pkvi_geometry_os_page(config),
                                 g < n_paged ? 1 : 2);
    if (needed > limit || pkvi_geometry_region_bytes(config) == 0)
        return complain(check, PKV_EINVAL,
                        "memory_limit: %" PRIu64 " leave no room for a page of every group, which "
                        "takes %" PRIu64 " with metadata",
                        limit, needed);
    return PKV_OK;
}

/* Pages must fit what holds them: the buffers, the regions, the memory limit. The rest of the
 * config was checked. */
static pkv_status check_sizes(struct check *check, const pkv_config *config)
{
    for (uint32_t g = 0; g < config->n_groups; g++) {
        const struct page_size size = page_size(config, g);
        const pkv_group_config given = pkvi_config_group(config, g);
        const uint64_t bytes = given.external_bytes;
        if (config->storage == PKV_STORAGE_EXTERNAL && bytes < size.bytes)
            return complain(check, PKV_EINVAL,
                            "groups[%" PRIu32 "].external_bytes: %" PRIu64 " hold no %s of %" PRIu64
                            " bytes",
                            g, bytes, size.name, size.bytes);
        if (config->storage == PKV_STORAGE_EXTERNAL && given.max_pages == 0 &&
            bytes / size.bytes > PKVI_MAX_PAGES)
            return complain(check, PKV_EINVAL,
                            "groups[%" PRIu32 "].external_bytes: more than %" PRId32 " %ss", g,
                            PKVI_MAX_PAGES, size.name);
        if (config->region_bytes != 0 && config->region_bytes < size.bytes)
            return complain(check, PKV_EINVAL,
                            "region_bytes: %" PRIu64 " hold no %s of group %" PRIu32 ", %" PRIu64
                            " bytes",
                            config->region_bytes, size.name, g, size.bytes);
    }
    return check_limit(check, config);
}

static pkv_status check_numbers(struct check *check, const pkv_config *config)
{
    pkv_status status = check_range(check, "page_tokens", config->page_tokens);
    if (status == PKV_OK && (config->page_tokens & (config->page_tokens - 1)) != 0)
        return complain(check, PKV_EINVAL, "page_tokens: %" PRIu32 " is not a power of two",
                        config->page_tokens);
    if (status == PKV_OK) status = check_enum(check, "storage", config->storage);
    if (status == PKV_OK) status = check_range(check, "debug", config->debug);
    if (status == PKV_OK) status = check_memory(check, config);
    if (status == PKV_OK) status = check_range(check, "max_sequences", config->max_sequences);
    if (status == PKV_OK) status = check_range(check, "max_batches", config->max_batches);
    if (status == PKV_OK) status = check_range(check, "event_capacity", config->event_capacity);
    if (status == PKV_OK && (config->event_capacity & (config->event_capacity - 1)) != 0)
        return complain(check, PKV_EINVAL, "event_capacity: %" PRIu32 " is not a power of two",
                        config->event_capacity);
    if (status == PKV_OK) status = check_range(check, "prefix", config->prefix);
    if (status == PKV_OK) status = check_range(check, "huge_pages", config->huge_pages);
    if (status == PKV_OK && config->numa_node != -1)
        status = check_enum(check, "numa_node", config->numa_node);
    if (status == PKV_OK) status = check_range(check, "watermark_pages", config->watermark_pages);
    if (status == PKV_OK) status = check_range(check, "fork_policy", config->fork_policy);
    if (status == PKV_OK) status = check_range(check, "signals", config->signals);
    if (status == PKV_OK && config->signals != 0 && config->storage == PKV_STORAGE_NONE)
        return complain(check, PKV_EINVAL, "signals: needs pages with bytes, storage is NONE");
    if (status == PKV_OK && config->debug != 0 && config->storage != PKV_STORAGE_HOST)
        return complain(check, PKV_EINVAL, "debug: needs PKV_STORAGE_HOST");
    return status;
}

/* The sizes of the structs, hence whether the rest can be read at all. */
static pkv_status check_struct_sizes(struct check *check, const pkv_config *config)
{
    if (!pkvi_config_known(config->struct_size))
        return complain(check, PKV_EVERSION, "struct_size: %zu is unknown, this library has %zu",
                        config->struct_size, sizeof(pkv_config));
    if (!pkvi_group_size_known(config->group_size))
        return complain(check, PKV_EVERSION, "group_size: %zu is unknown, this library has %zu",
                        config->group_size, sizeof(pkv_group_config));
    if (!pkvi_rope_size_known(config->rope_size))
        return complain(check, PKV_EVERSION, "rope_size: %zu is unknown, this library has %zu",
                        config->rope_size, sizeof(pkv_rope_config));
    return PKV_OK;
}

pkv_status pkv_config_check(const pkv_config *given, char *text, size_t capacity)
{
    struct check check = {.text = text, .capacity = capacity};
    if (text && capacity != 0) text[0] = '\0';
    if (!given) return complain(&check, PKV_EINVAL, "config: NULL");
    pkv_status status = check_struct_sizes(&check, given);
    if (status != PKV_OK) return status;
    pkv_config ours;
    const pkv_config *config = &ours;
    pkvi_config_read(given, &ours);
    status = check_numbers(&check, config);
    if (status == PKV_OK) status = check_range(&check, "n_groups", config->n_groups);
    if (status != PKV_OK) return status;
    if (!config->groups) return complain(&check, PKV_EINVAL, "groups: NULL");
    for (uint32_t g = 0; g < config->n_groups; g++) {
        const pkv_group_config group = pkvi_config_group(config, g);
        snprintf(check.prefix, sizeof check.prefix, "groups[%" PRIu32 "].", g);
        status = check_group(&check, config, &group);
        if (status != PKV_OK) return status;
    }
    check.prefix[0] = '\0';
    if (config->prefix != 0 && !pkvi_prefix_policy_known(config->prefix_policy))
        return complain(&check, PKV_EINVAL, "prefix_policy: '%s' is not a policy for a cache",
                        config->prefix_policy);
    status = check_order(&check, config);
    if (status == PKV_OK) status = check_layers(&check, config);
    if (status == PKV_OK) status = check_rope(&check, config);
    if (status == PKV_OK) status = check_overlaps(&check, config);
    if (status == PKV_OK) status = check_sizes(&check, config);
    if (status != PKV_OK) return status;
    if (!pkvi_kernel_find(config->isa))
        return complain(&check, PKV_ENOTSUP, "isa: this CPU and library have no '%s'", config->isa);
    if (config->allocator && (!config->allocator->alloc || !config->allocator->free))
        return complain(&check, PKV_EINVAL, "allocator: alloc or free is NULL");
    if (!all_zero(config->reserved, sizeof config->reserved / sizeof config->reserved[0]))
        return complain(&check, PKV_EINVAL, "reserved: not zero");
    return PKV_OK;
}
