#include "engine.h"

#include <ggml-cpu.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* One layer group per distinct window: the layers of a group share a page table. */
static uint32_t make_groups(const engine *e, pkv_group_config *groups, uint32_t *layers)
{
    const model *m = e->model;
    uint32_t n_groups = 0, used = 0;
    for (uint32_t i = 0; i < m->n_layers; i++) {
        uint32_t g = 0;
        while (g < n_groups && groups[g].window != m->layers[i].window)
            g++;
        if (g < n_groups || g == PKV_MAX_GROUPS) continue;
        groups[n_groups++] = (pkv_group_config){.kv_heads = m->n_kv_heads,
                                                .q_heads = m->n_heads,
                                                .head_dim_k = m->head_dim,
                                                .window = m->layers[i].window,
                                                .dtype_k = e->options.type_k,
                                                .dtype_v = e->options.type_v,
                                                .layers = layers + used};
        for (uint32_t l = i; l < m->n_layers; l++)
            if (m->layers[l].window == m->layers[i].window) {
                layers[used++] = l;
                groups[g].n_layers++;
            }
    }
    return n_groups;
}

static int open_cache(engine *e, tool_error *err)
{
    pkv_group_config groups[PKV_MAX_GROUPS];
    uint32_t layers[MODEL_MAX_LAYERS];
    pkv_config config;
    char text[256];
    memset(groups, 0, sizeof groups);
    pkv_config_init(&config, sizeof config);
    config.groups = groups;
    config.n_groups = e->n_groups = make_groups(e, groups, layers);
    config.memory_limit = e->options.memory;
    config.page_tokens = e->options.page_tokens;
    config.prefix = e->options.prefix;
    config.event_capacity = e->options.event_capacity;
    if (pkv_config_check(&config, text, sizeof text)) return tool_fail(err, "cache: %s", text);
    pkv_status status = pkv_cache_create(&config, &e->cache);
    if (status) return tool_fail(err, "cache: %s", pkv_status_text(status));
    for (uint32_t g = 0; g < e->n_groups; g++) {
        pkv_group_info info = {.struct_size = sizeof info};
        if (pkv_cache_group_info(e->cache, g, &info) == PKV_OK) e->token_bytes += info.token_bytes;
    }
    return 0;
}

static int open_plan(engine *e, tool_error *err)
{
    pkv_plan_options options;
    pkv_plan_options_init(&options, sizeof options);
    options.scale = e->model->attention_scale;
    options.max_threads = e->options.threads;
    pkv_status status = pkv_plan_create(e->cache, &options, &e->plan);
    if (status) return tool_fail(err, "plan: %s", pkv_status_text(status));
    if (kv_ops_init(&e->ops, e->plan, e->model->n_layers))
        return tool_fail(err, "not enough memory");
    return 0;
}

static int open_all(engine *e, tool_error *err)
{
    ggml_backend_load_all();
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (!cpu) return tool_fail(err, "ggml has no CPU device");
    e->backend = ggml_backend_dev_init(cpu, NULL);
    if (!e->backend) return tool_fail(err, "ggml's CPU device does not start");
    ggml_backend_cpu_set_n_threads(e->backend, (int)e->options.threads);
    e->model = model_load(e->options.model, cpu, err);
    if (!e->model) return tool_fail_in(err, "%.200s", e->options.model);
    if (open_cache(e, err) || open_plan(e, err)) return -1;
    e->tokens = calloc(e->options.max_rows, sizeof *e->tokens);
    e->positions = calloc(e->options.max_rows, sizeof *e->positions);
    e->outputs = calloc(e->options.max_rows, sizeof *e->outputs);
    if (!e->tokens || !e->positions || !e->outputs) return tool_fail(err, "not enough memory");
    e->forward = forward_new(e->model, &e->ops, e->backend, err);
    return e->forward ? 0 : -1;
}

engine *engine_open(const engine_options *options, tool_error *err)
{
    engine *e = calloc(1, sizeof *e);
    if (!e) {
        tool_fail(err, "not enough memory");
        return NULL;
    }
    e->options = *options;
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    if (!e->options.threads) e->options.threads = online > 0 ? (uint32_t)online : 1;
    if (!e->options.page_tokens) e->options.page_tokens = 16;
    if (!e->options.type_k) e->options.type_k = e->options.type_v = PKV_DTYPE_F16;
    if (!e->options.max_rows) e->options.max_rows = 512;
    if (open_all(e, err)) {
        engine_close(e);
        return NULL;
    }
    return e;
}

void engine_close(engine *e)
{
    if (!e) return;
    forward_free(e->forward);
    kv_ops_release(&e->ops);
    pkv_plan_destroy(e->plan);
    pkv_cache_destroy(e->cache);
    model_free(e->model);
    ggml_backend_free(e->backend);
    free(e->tokens);
    free(e->positions);
    free(e->outputs);
    free(e);
}

/* Lays the entries' rows out one after the other, as the cache's batch has them. */
static pkv_status lay_out(engine *e, const engine_entry *entries, uint32_t n)
{
    e->n_rows = e->n_outputs = 0;
    for (uint32_t i = 0; i < n; i++) {
        const engine_entry *s = &entries[i];
        if (s->n > e->options.max_rows - e->n_rows) return PKV_ERANGE;
        for (uint32_t t = 0; t < s->n; t++) {
            if (t + s->n_logits >= s->n) e->outputs[e->n_outputs++] = (int32_t)e->n_rows;
            e->tokens[e->n_rows] = s->tokens[t];
            e->positions[e->n_rows++] = (int32_t)(s->position + (s->depths ? s->depths[t] : t));
        }
        pkv_status status = pkv_batch_add(e->batch, s->seq, s->tokens, s->n);
        if (status) return status;
    }
    return PKV_OK;
}

pkv_status engine_begin(engine *e, const engine_entry *entries, uint32_t n, bool admission,
                        uint32_t *blocked)
{
    pkv_status status = pkv_batch_begin(e->cache, &e->batch);
    if (status) return status;
    status = lay_out(e, entries, n);
    if (!status && admission) status = pkv_admit_check_batch(e->batch, blocked);
    if (!status) status = pkv_batch_reserve(e->batch);
    if (status) pkv_batch_abort(e->batch);
    return status;
}

int engine_compute(engine *e, const engine_entry *entries, uint32_t n, tool_error *err)
{
    pkv_status status = PKV_OK;
    for (uint32_t i = 0; i < n && !status; i++)
        if (entries[i].tree)
            status =
                pkv_plan_set_tree(e->plan, i, entries[i].n, entries[i].tree, entries[i].depths);
    if (!status) status = pkv_plan_build(e->plan, e->batch);
    if (status) tool_fail(err, "plan: %s", pkv_status_text(status));
    if (status || forward_run(e->forward, e->tokens, e->positions, e->n_rows, e->outputs,
                              e->n_outputs, &e->logits, err)) {
        engine_abort(e);
        return -1;
    }
    return 0;
}

pkv_status engine_commit(engine *e, const uint32_t *accepted, uint32_t n)
{
    return accepted ? pkv_batch_commit_partial(e->batch, accepted, n) : pkv_batch_commit(e->batch);
}

void engine_abort(engine *e)
{
    pkv_batch_abort(e->batch);
}
