/* What attention asks of eviction: mass, choice of pages, positions, the regret meter. */
#include <string.h>

#include "cache/evict.h"

static void on_wish(void *context, void *object, uint32_t group, struct pkvi_attn_wish *wish)
{
    (void)context;
    const struct pkvi_evict_seq *es = pkvi_seq_evict(object);
    if (!es) return;
    wish->mass_rows = pkvi_evict_mass_rows(es, group);
    wish->compact = pkvi_evict_compact(es, group);
    struct pkvi_evict_topk rule;
    if (pkvi_evict_topk(es, group, &rule)) wish->select_pages = rule.pages;
}

static uint32_t on_select(void *context, struct pkvi_attn_selection *s)
{
    (void)context;
    const struct pkvi_seq *seq = s->seq;
    const struct pkvi_attn_group *group = &s->model->groups[s->group];
    const uint32_t n_full = s->n_old;
    struct pkvi_evict_topk rule;
    if (!pkvi_evict_topk(pkvi_seq_evict(seq), s->group, &rule) || n_full <= rule.pages) {
        for (uint32_t i = 0; i < s->n_pages; i++)
            s->chosen[i] = i;
        return s->n_pages;
    }
    if (!s->scored)
        s->model->kernels->score(&group->layout, s->parts, n_full, s->head, s->head + 1, s->q,
                                 s->n_rows, s->scores);
    uint32_t *keys = (uint32_t *)(void *)s->scores;
    pkvi_evict_keys(s->scores, n_full, keys);
    return pkvi_evict_choose(&rule, s->logical, keys, s->n_pages, n_full, s->chosen);
}

static void on_mass(void *context, void *object, uint32_t group, uint32_t layer, uint32_t head0,
                    uint32_t n_heads, const float *mass, uint32_t n_pages)
{
    (void)context;
    (void)layer;
    (void)head0;
    pkvi_evict_feed(pkvi_seq_evict(object), group, mass, n_heads, n_pages);
}

void pkvi_evict_attn_hooks(struct pkv_cache *cache, struct pkvi_attn_hooks *hooks)
{
    *hooks = (struct pkvi_attn_hooks){
        .context = cache, .wish = on_wish, .select = on_select, .mass = on_mass};
}

/* ---- regret meter --------------------------------------------------------------------------- */

#define METER_ROWS 16u

/* The last new token's query rows of one KV head, as floats. */
static uint32_t gather_rows(const struct pkvi_attn_group *group, const pkvi_kernels *kernels,
                            const pkvi_tensor *q, uint64_t row, uint32_t head, float *out)
{
    const uint32_t n = pkvi_min_u32(group->group_size, METER_ROWS);
    const char *at = (const char *)q->data + (ptrdiff_t)row * q->token_stride +
                     (ptrdiff_t)(head * group->group_size) * q->head_stride;
    for (uint32_t r = 0; r < n; r++, at += q->head_stride)
        kernels->convert(out + (size_t)r * group->layout.dim_k, PKV_DTYPE_F32, at, q->dtype,
                         group->layout.dim_k);
    return n;
}

void pkvi_evict_meter(const struct pkvi_attn_model *model, struct pkvi_batch *batch, uint32_t group,
                      uint32_t layer, const pkvi_tensor *q, uint32_t ith, uint32_t nth)
{
    if (!pkvi_evict_has_meters(pkvi_evict_of(batch->cache))) return;
    const struct pkvi_attn_group *ag = &model->groups[group];
    uint32_t unit = 0;
    float rows[METER_ROWS * PKV_MAX_HEAD_DIM];
    for (uint32_t i = 0; i < batch->n_entries; i++) {
        const struct pkvi_entry *entry = &batch->entries[i];
        struct pkvi_evict_seq *es = pkvi_seq_evict(entry->seq);
        if (!pkvi_evict_look_due(es, group)) continue;
        for (uint32_t h = 0; h < ag->kv_heads; h++, unit++) {
            if (unit % nth != ith) continue;
            const uint32_t n =
                gather_rows(ag, model->kernels, q, entry->first_row + entry->n_tokens - 1, h, rows);
            pkvi_evict_look(es, group, layer, h, model->kernels, &entry->seq->tables[group], rows,
                            n);
        }
    }
}
