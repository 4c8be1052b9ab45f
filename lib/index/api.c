/* The public index without a cache (pagedkv/index.h). */
#include <pagedkv/index.h>

#include <string.h>

#include "policy.h"

/* Far above what there is, and sums with it do not overflow. */
#define NO_LIMIT (UINT64_C(1) << 60)
#define LEAST_CONFIG 64u /* pkv_index_config up to dense_ids */

struct pkv_index {
    struct pkvi_budget budget;
    struct pkvi_mem mem;
    struct pkvi_index core;
    struct pkvi_policy *policy;
};

pkv_status pkv_index_config_init(pkv_index_config *config, size_t size)
{
    if (!config) return PKV_EINVAL;
    if (!pkvi_size_known(size, LEAST_CONFIG, sizeof *config)) return PKV_EVERSION;
    const pkv_index_config defaults = {.pages = PKV_INDEX_UNLIMITED};
    pkvi_struct_write(config, size, &defaults);
    return PKV_OK;
}

static pkv_status random_key(const uint64_t given[2], uint64_t key[2])
{
    key[0] = given[0];
    key[1] = given[1];
    if (key[0] || key[1]) return PKV_OK;
    const struct pkvi_os *os = pkvi_os_default();
    return os->random(os->user, key, 2 * sizeof *key) ? PKV_OK : PKV_EIO;
}

/* Everything behind the object itself. */
static pkv_status set_up(pkv_index *index, const pkv_index_config *config,
                         const struct pkvi_policy_ops *ops)
{
    struct pkvi_index_options options = {.n_groups = 1,
                                         .full_groups = 1,
                                         .holes = true,
                                         .replay = true,
                                         .dense_ids = config->dense_ids};
    pkv_status status = random_key(config->key, options.key);
    if (status == PKV_OK) status = pkvi_index_init(&index->core, &index->mem, &options);
    if (status) return status;
    index->policy = pkvi_policy_create(ops, &index->core, 0, config->pages);
    if (index->policy) return PKV_OK;
    pkvi_index_destroy(&index->core);
    return PKV_ENOMEM;
}

/* The object and its accounting; the allocator must exist before what it allocates. */
static pkv_index *new_object(const pkv_index_config *config)
{
    struct pkvi_mem mem;
    if (pkvi_mem_init(&mem, config->allocator)) return NULL;
    pkv_index *index = pkvi_mem_zalloc(&mem, sizeof *index);
    if (!index) {
        pkvi_mem_destroy(&mem);
        return NULL;
    }
    index->mem = mem;
    uint64_t limit = config->memory_limit ? config->memory_limit : NO_LIMIT;
    if (pkvi_budget_init(&index->budget, limit, NULL)) {
        if (pkvi_mem_attach(&index->mem, &index->budget, sizeof *index)) return index;
        pkvi_budget_destroy(&index->budget);
    }
    pkvi_mem_free(&mem, index, sizeof *index);
    pkvi_mem_destroy(&mem);
    return NULL;
}

static void free_object(pkv_index *index)
{
    struct pkvi_mem mem;
    pkvi_mem_detach(&index->mem, sizeof *index);
    pkvi_budget_destroy(&index->budget);
    mem = index->mem;
    pkvi_mem_free(&mem, index, sizeof *index);
    pkvi_mem_destroy(&mem);
}

pkv_status pkv_index_create(const pkv_index_config *given, pkv_index **out)
{
    if (!given || !out) return PKV_EINVAL;
    pkv_index_config ours;
    const pkv_index_config *config = &ours;
    if (!pkvi_size_known(given->struct_size, LEAST_CONFIG, sizeof ours)) return PKV_EVERSION;
    pkvi_struct_read(&ours, sizeof ours, given, given->struct_size);
    for (size_t i = 0; i < sizeof ours.reserved / sizeof *ours.reserved; i++)
        if (ours.reserved[i]) return PKV_EINVAL;
    const struct pkvi_policy_ops *ops =
        pkvi_policy_find(config->policy ? config->policy : "lru-leaf");
    if (!ops || config->pages == 0) return PKV_EINVAL;
    pkv_index *index = new_object(config);
    if (!index) return PKV_ENOMEM;
    pkv_status status = set_up(index, config, ops);
    if (status)
        free_object(index);
    else
        *out = index;
    return status;
}

void pkv_index_destroy(pkv_index *index)
{
    if (!index) return;
    pkvi_policy_destroy(index->policy);
    pkvi_index_destroy(&index->core);
    free_object(index);
}

/* Are dense ids what the configuration said? */
static bool ids_in_range(const struct pkvi_index *ix, const uint64_t *ids, uint32_t n)
{
    if (!ix->options.dense_ids) return true;
    uint64_t most = 0;
    for (uint32_t i = 0; i < n; i++)
        most = ids[i] > most ? ids[i] : most;
    return n == 0 || most < ix->options.dense_ids;
}

pkv_status pkv_index_replay(pkv_index *index, const uint64_t *ids, uint32_t n,
                            const uint32_t *next_use, int partial_last, uint32_t *hits)
{
    if (!index || (!ids && n) || !hits) return PKV_EINVAL;
    if (index->core.epoch == UINT32_MAX - 1) return PKV_ERANGE;
    if (!ids_in_range(&index->core, ids, n)) return PKV_ERANGE;
    return pkvi_index_replay(&index->core, index->policy, ids, n, next_use, partial_last != 0,
                             hits);
}

pkv_status pkv_index_match(const pkv_index *index, const uint64_t *ids, uint32_t n, uint32_t *hits)
{
    if (!index || (!ids && n) || !hits) return PKV_EINVAL;
    const struct pkvi_index *ix = &index->core;
    uint32_t i = 0;
    for (; i < n; i++) {
        if (!ids_in_range(ix, &ids[i], 1)) return PKV_ERANGE;
        uint32_t id = pkvi_index_find_id(ix, pkvi_hash_id(ix, ids[i]), ids[i]);
        if (id == PKVI_NIL || !pkvi_node(ix, id)->resident) break;
    }
    *hits = i;
    return PKV_OK;
}

pkv_status pkv_index_get_stats(const pkv_index *index, pkv_index_stats *stats)
{
    if (!index || !stats) return PKV_EINVAL;
    if (!pkvi_size_known(stats->struct_size, PKVI_LEAST_OUTPUT, sizeof *stats)) return PKV_EVERSION;
    const pkv_index_stats ours = {.pages = index->core.n_resident[0],
                                  .nodes = index->core.n_nodes,
                                  .metadata_bytes = atomic_load(&index->budget.metadata),
                                  .requests = index->core.epoch};
    pkvi_struct_write(stats, stats->struct_size, &ours);
    return PKV_OK;
}

pkv_status pkv_index_verify(const pkv_index *index, char *text, size_t capacity)
{
    if (!index) return PKV_EINVAL;
    const char *broken = pkvi_index_check(&index->core);
    if (!broken && index->policy->size != index->core.n_resident[0])
        broken = "the policy counts another number of pages than the index";
    if (!broken) return PKV_OK;
    pkvi_text(text, capacity, "%s", broken);
    return PKV_ECORRUPT;
}

const char *pkv_policy_name(uint32_t i, uint32_t *offline)
{
    const struct pkvi_policy_ops *ops = pkvi_policy_at(i);
    if (!ops) return NULL;
    if (offline) *offline = ops->offline;
    return ops->name;
}
