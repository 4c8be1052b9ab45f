/* Public plans: checks of arguments, and the view of a batch that lib/attn gets. */
#include "cache/attention.h"

#include <math.h>
#include <string.h>
#include <unistd.h>

#include "cache/evict.h"
#include "cache/open_pages.h"

/* Most threads that share one call: bounds the scratch. */
#define MOST_WORKERS 256u

struct pkv_plan {
    struct pkv_cache *cache;
    struct pkvi_plan *plan;
    pkv_batch batch; /* of the last build; id 0 before */
};

/* ---- options -------------------------------------------------------------------------------- */

#define LEAST_OPTIONS 56u /* up to max_threads */

pkv_status pkv_plan_options_init(pkv_plan_options *options, size_t size)
{
    if (!options) return PKV_EINVAL;
    if (!pkvi_size_known(size, LEAST_OPTIONS, sizeof *options)) return PKV_EVERSION;
    const pkv_plan_options defaults = {.concurrent_layers = 1, .cascade = 1};
    pkvi_struct_write(options, size, &defaults);
    return PKV_OK;
}

static bool all_finite(const float *values, size_t n, bool minus_infinity)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(values[i]) && !(minus_infinity && values[i] == -INFINITY)) return false;
    return true;
}

static uint32_t max_q_heads(const struct pkv_cache *cache)
{
    uint32_t most = 0;
    for (uint32_t g = 0; g < cache->n_groups; g++)
        most = pkvi_max_u32(most, cache->groups[g].q_heads);
    return most;
}

static pkv_status check_sinks(struct pkv_cache *cache, const pkv_plan_options *o)
{
    if (!o->sinks) return PKV_OK;
    for (uint32_t layer = 0; layer < cache->n_layers; layer++) {
        uint32_t heads = cache->groups[cache->layers[layer].group].q_heads;
        if (o->sinks_stride < heads)
            return pkvi_fail(cache, PKV_EINVAL, "plan_create: sinks_stride %u for %u query heads",
                             o->sinks_stride, heads);
        if (!all_finite(o->sinks + (size_t)layer * o->sinks_stride, heads, true))
            return pkvi_fail(cache, PKV_EINVAL, "plan_create: a sink of layer %u is no number",
                             layer);
    }
    return PKV_OK;
}

static pkv_status check_options(struct pkv_cache *cache, const pkv_plan_options *o)
{
    if (!isfinite(o->scale))
        return pkvi_fail(cache, PKV_EINVAL, "plan_create: scale is not finite");
    if (!isfinite(o->softcap) || o->softcap < 0)
        return pkvi_fail(cache, PKV_EINVAL, "plan_create: softcap is not a number >= 0");
    if (o->concurrent_layers < 1 || o->concurrent_layers > 8)
        return pkvi_fail(cache, PKV_EINVAL, "plan_create: concurrent_layers %u is not in 1..8",
                         o->concurrent_layers);
    if (o->cascade > 2)
        return pkvi_fail(cache, PKV_EINVAL, "plan_create: cascade %u is not in 0..2", o->cascade);
    if (o->mass > 1)
        return pkvi_fail(cache, PKV_EINVAL, "plan_create: mass %u is not in 0..1", o->mass);
    for (size_t i = 0; i < sizeof o->reserved / sizeof *o->reserved; i++)
        if (o->reserved[i])
            return pkvi_fail(cache, PKV_EINVAL, "plan_create: reserved[%zu] is not zero", i);
    if (o->alibi_slopes && !all_finite(o->alibi_slopes, max_q_heads(cache), false))
        return pkvi_fail(cache, PKV_EINVAL, "plan_create: an ALiBi slope is not finite");
    return check_sinks(cache, o);
}

static uint32_t choose_workers(uint32_t wanted)
{
    long n = wanted ? (long)wanted : sysconf(_SC_NPROCESSORS_ONLN);
    if (n < 1) n = 1;
    return n < (long)MOST_WORKERS ? (uint32_t)n : MOST_WORKERS;
}

/* ---- plans ---------------------------------------------------------------------------------- */

pkv_status pkv_plan_create(pkv_cache *cache, const pkv_plan_options *options, pkv_plan **out)
{
    if (!cache) return PKV_EINVAL;
    if (!out) return pkvi_fail(cache, PKV_EINVAL, "plan_create: plan is NULL");
    if (cache->storage == PKV_STORAGE_NONE)
        return pkvi_fail(cache, PKV_ENOTSUP, "plan_create: pages have no bytes (PKV_STORAGE_NONE)");
    pkv_plan_options ours;
    if (!options) {
        pkv_plan_options_init(&ours, sizeof ours);
    } else {
        if (!pkvi_size_known(options->struct_size, LEAST_OPTIONS, sizeof ours))
            return pkvi_fail(cache, PKV_EVERSION, "plan_create: struct_size %zu is unknown",
                             options->struct_size);
        pkvi_struct_read(&ours, sizeof ours, options, options->struct_size);
    }
    pkv_status status = check_options(cache, &ours);
    if (status != PKV_OK) return status;
    pkv_plan *plan = pkvi_mem_zalloc(&cache->mem, sizeof *plan);
    if (!plan) return pkvi_fail(cache, PKV_ENOMEM, "plan_create: no memory");
    struct pkvi_attn_hooks hooks = {0};
    pkvi_evict_attn_hooks(cache, &hooks);
    plan->cache = cache;
    status = pkvi_plan_make(&cache->attention->model, &ours, cache->n_layers, max_q_heads(cache),
                            choose_workers(ours.max_threads), &hooks, &plan->plan);
    if (status != PKV_OK) {
        pkvi_mem_free(&cache->mem, plan, sizeof *plan);
        return pkvi_fail(cache, status, "plan_create: no memory");
    }
    *out = plan;
    return PKV_OK;
}

void pkv_plan_destroy(pkv_plan *plan)
{
    if (!plan) return;
    struct pkvi_mem *mem = &plan->cache->mem;
    pkvi_plan_free(plan->plan);
    pkvi_mem_free(mem, plan, sizeof *plan);
}

pkv_status pkv_plan_set_tree(pkv_plan *plan, uint32_t entry, uint32_t n_tokens, const uint8_t *mask,
                             const uint32_t *positions)
{
    if (!plan) return PKV_EINVAL;
    if (!mask) return pkvi_fail(plan->cache, PKV_EINVAL, "plan_set_tree: mask is NULL");
    pkv_status status = pkvi_plan_tree(plan->plan, entry, n_tokens, mask, positions);
    if (status == PKV_OK) return PKV_OK;
    return pkvi_fail(plan->cache, status, "plan_set_tree: %s",
                     status == PKV_EINVAL   ? "not a lower triangle with its diagonal, or a depth "
                                              "above the token's index"
                     : status == PKV_ERANGE ? "1 to 4096 tokens"
                                            : "no memory");
}

static void view_entry(const void *context, uint32_t index, struct pkvi_attn_entry *out)
{
    const struct pkvi_batch *batch = context;
    const struct pkvi_entry *entry = &batch->entries[index];
    *out = (struct pkvi_attn_entry){.tables = entry->seq->tables,
                                    .length = entry->seq->length,
                                    .first_row = entry->first_row,
                                    .n_tokens = entry->n_tokens,
                                    .open = pkvi_open_of_entry(batch, index),
                                    .seq = entry->seq};
}

pkv_status pkv_plan_build(pkv_plan *plan, pkv_batch handle)
{
    if (!plan) return PKV_EINVAL;
    struct pkv_cache *cache = plan->cache;
    if (handle.cache && handle.cache != cache)
        return pkvi_fail(cache, PKV_EFOREIGN, "plan_build: the batch belongs to another cache");
    struct pkvi_batch *batch;
    pkv_status status = pkvi_batch_get_reserved(handle, "plan_build", &batch);
    if (status != PKV_OK) return status;
    struct pkvi_attn_batch view = {.context = batch,
                                   .n_entries = batch->n_entries,
                                   .n_rows = batch->n_rows,
                                   .entry = view_entry};
    status = pkvi_plan_make_items(plan->plan, &view);
    if (status != PKV_OK)
        return pkvi_fail(cache, status, "plan_build: %s",
                         status == PKV_EINVAL   ? "a tree does not fit its entry"
                         : status == PKV_ERANGE ? "a sequence or the batch is too long"
                                                : "no memory");
    plan->batch = handle;
    return PKV_OK;
}

/* ---- running -------------------------------------------------------------------------------- */

static pkv_status check_run(const pkv_plan *plan, const char *caller, uint32_t layer, uint32_t ith,
                            uint32_t nth, struct pkvi_batch **batch)
{
    struct pkv_cache *cache = plan->cache;
    if (plan->batch.id == 0)
        return pkvi_fail(cache, PKV_ESTATE, "%s: the plan was not built", caller);
    pkv_status status = pkvi_batch_get_reserved(plan->batch, caller, batch);
    if (status != PKV_OK) return status;
    if (layer >= cache->n_layers)
        return pkvi_fail(cache, PKV_EINVAL, "%s: layer %u of %u", caller, layer, cache->n_layers);
    if (nth == 0 || ith >= nth)
        return pkvi_fail(cache, PKV_EINVAL, "%s: thread %u of %u", caller, ith, nth);
    return PKV_OK;
}

pkv_status pkv_write(pkv_plan *plan, uint32_t layer, const pkv_rows *k, const pkv_rows *v,
                     uint32_t ith, uint32_t nth)
{
    if (!plan) return PKV_EINVAL;
    struct pkv_cache *cache = plan->cache;
    struct pkvi_batch *batch;
    pkv_status status = check_run(plan, "write", layer, ith, nth, &batch);
    if (status != PKV_OK) return status;
    if (!k || !v) return pkvi_fail(cache, PKV_EINVAL, "write: k or v is NULL");
    const struct pkvi_layer *at = &cache->layers[layer];
    const struct pkvi_group *group = &cache->groups[at->group];
    struct pkvi_rows_shape shape = pkvi_shape(k);
    status = pkvi_rows_check(cache, "write", "k", &shape, batch->n_rows, group->kv_heads,
                             group->head_dim_k, false);
    if (status != PKV_OK) return status;
    shape = pkvi_shape(v);
    status = pkvi_rows_check(cache, "write", "v", &shape, batch->n_rows, group->kv_heads,
                             group->head_dim_v, false);
    if (status != PKV_OK) return status;
    pkvi_tensor kt = pkvi_tensor_in(k), vt = pkvi_tensor_in(v);
    pkvi_plan_write(plan->plan, at->group, at->index, &kt, &vt, ith, nth);
    return PKV_OK;
}

static pkv_status check_q(struct pkv_cache *cache, const char *caller,
                          const struct pkvi_group *group, const pkv_rows *q, uint64_t n_rows)
{
    if (!q) return pkvi_fail(cache, PKV_EINVAL, "%s: q is NULL", caller);
    struct pkvi_rows_shape shape = pkvi_shape(q);
    return pkvi_rows_check(cache, caller, "q", &shape, n_rows, group->q_heads, group->head_dim_k,
                           false);
}

pkv_status pkv_attend(pkv_plan *plan, uint32_t layer, const pkv_rows *q, const pkv_rows_out *out,
                      float *lse, uint32_t ith, uint32_t nth)
{
    if (!plan) return PKV_EINVAL;
    struct pkv_cache *cache = plan->cache;
    struct pkvi_batch *batch;
    pkv_status status = check_run(plan, "attend", layer, ith, nth, &batch);
    if (status != PKV_OK) return status;
    const struct pkvi_layer *at = &cache->layers[layer];
    const struct pkvi_group *group = &cache->groups[at->group];
    status = check_q(cache, "attend", group, q, batch->n_rows);
    if (status != PKV_OK) return status;
    if (!out) return pkvi_fail(cache, PKV_EINVAL, "attend: out is NULL");
    struct pkvi_rows_shape shape = pkvi_shape_out(out);
    status = pkvi_rows_check(cache, "attend", "out", &shape, batch->n_rows, group->q_heads,
                             group->head_dim_v, true);
    if (status != PKV_OK) return status;
    struct pkvi_attn_call call = {.group = at->group,
                                  .layer = at->index,
                                  .model_layer = layer,
                                  .q = pkvi_tensor_in(q),
                                  .out = pkvi_tensor_out(out),
                                  .lse = lse};
    pkvi_plan_attend(plan->plan, &call, ith, nth);
    pkvi_evict_meter(&cache->attention->model, batch, at->group, at->index, &call.q, ith, nth);
    return PKV_OK;
}

pkv_status pkv_attend_reference(pkv_plan *plan, uint32_t layer, const pkv_rows *q, double *out,
                                double *lse)
{
    if (!plan) return PKV_EINVAL;
    struct pkv_cache *cache = plan->cache;
    struct pkvi_batch *batch;
    pkv_status status = check_run(plan, "attend_reference", layer, 0, 1, &batch);
    if (status != PKV_OK) return status;
    const struct pkvi_layer *at = &cache->layers[layer];
    status = check_q(cache, "attend_reference", &cache->groups[at->group], q, batch->n_rows);
    if (status != PKV_OK) return status;
    if (!out) return pkvi_fail(cache, PKV_EINVAL, "attend_reference: out is NULL");
    struct pkvi_attn_call call = {
        .group = at->group, .layer = at->index, .model_layer = layer, .q = pkvi_tensor_in(q)};
    return pkvi_plan_reference(plan->plan, &call, out, lse);
}

pkv_status pkv_plan_mass(pkv_plan *plan, uint32_t layer, uint32_t entry, uint32_t kv_head,
                         float *mass, uint32_t n_pages)
{
    if (!plan) return PKV_EINVAL;
    struct pkv_cache *cache = plan->cache;
    struct pkvi_batch *batch;
    pkv_status status = check_run(plan, "plan_mass", layer, 0, 1, &batch);
    if (status != PKV_OK) return status;
    if (!pkvi_plan_keeps_mass(plan->plan))
        return pkvi_fail(cache, PKV_ESTATE, "plan_mass: options.mass was not set");
    const struct pkvi_layer *at = &cache->layers[layer];
    if (entry >= batch->n_entries || kv_head >= cache->groups[at->group].kv_heads || !mass)
        return pkvi_fail(cache, PKV_EINVAL, "plan_mass: entry %u, KV head %u or a NULL pointer",
                         entry, kv_head);
    status = pkvi_plan_read_mass(plan->plan, at->group, layer, entry, kv_head, mass, n_pages);
    if (status != PKV_OK)
        return pkvi_fail(cache, status, "plan_mass: the entry does not hold %u pages", n_pages);
    return PKV_OK;
}
