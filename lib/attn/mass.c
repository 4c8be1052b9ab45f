/* attn: attention mass per page, from the page sums that the kernel leaves behind. */
#include "plan.h"

#include <math.h>
#include <string.h>

#define LOG2E 1.44269504088896340736f

/* scale[r] = 1 / (denominator of row r relative to its maximum); 0 for an empty row. */
static void denominators(const struct plan_run_item *run, const float *m, const float *l,
                         const float *sinks, float *scale)
{
    for (size_t r = 0; r < run->head_rows; r++) {
        float all = l[r];
        if (sinks) all += exp2f(sinks[r] * LOG2E - m[r]);
        scale[r] = isinf(m[r]) || !(all > 0) ? 0 : 1 / all;
    }
}

/* Adds the mass of tokens at or after `token0` (of the item's) to mass[head][page of the lane]. */
static void add_mass(struct plan_run_item *run, const float *m, const float *scale, uint32_t token0,
                     float *mass)
{
    const struct plan_item *item = run->item;
    const struct pkvi_attn_model *model = run->plan->model;
    size_t n = run->head_rows, stride = run->lane->pages.n;
    float *factor = PLAN_AT(run, float, mass_scale) + n;
    bool chosen = run->lane->wish.select_pages != 0;
    const uint32_t *index = PLAN_AT(run, uint32_t, chosen);
    memset(mass, 0, item->n_heads * stride * sizeof *mass);
    for (uint32_t a = run->page0, b; a < run->page1; a = b) {
        uint32_t leaf = plan_leaf_of_page(model, &run->pages, a);
        b = pkvi_plan_job_end(run, a,
                              pkvi_plan_page_of_leaf(model, &run->pages, a, run->page1, leaf + 1));
        uint32_t pages = b - a;
        const float *leaf_m = run->leaf_max + (size_t)(leaf - item->leaf0) * n;
        const float *sums = run->sums + (size_t)(a - run->page0) * n;
        for (size_t r = 0; r < n; r++)
            factor[r] = leaf_m[r] - m[r];
        model->kernels->exp2(factor, factor, n);
        for (uint32_t h = 0; h < item->n_heads; h++)
            for (uint32_t r = token0 * run->ag->group_size; r < run->rows; r++) {
                size_t at = (size_t)h * run->rows + r;
                float f = scale[at] != 0 ? factor[at] * scale[at] : 0;
                if (f == 0) continue;
                const float *row = sums + at * pages;
                float *to = mass + h * stride;
                if (chosen)
                    for (uint32_t p = 0; p < pages; p++)
                        to[index[a + p]] += row[p] * f;
                else
                    for (uint32_t p = 0; p < pages; p++)
                        to[a + p] += row[p] * f;
            }
    }
}

/* The same for the rows' own pages of a quantised group, which are not in the walk. */
static void add_own_mass(struct plan_run_item *run, const float *m, const float *scale,
                         uint32_t token0, float *mass)
{
    const struct plan_pages *all = &run->lane->pages;
    const uint64_t length = run->body->entries[run->item->entry].length + run->item->token0;
    const uint32_t shift = run->plan->model->page_shift;
    const size_t n = run->head_rows, stride = all->n;
    const float *sums = PLAN_AT(run, float, own_sums), *then = PLAN_AT(run, float, own_max);
    float *factor = PLAN_AT(run, float, mass_scale) + n;
    for (size_t r = 0; r < n; r++)
        factor[r] = then[r] - m[r];
    run->plan->model->kernels->exp2(factor, factor, n);
    for (uint32_t h = 0; h < run->item->n_heads; h++)
        for (uint32_t r = token0 * run->ag->group_size; r < run->rows; r++) {
            const size_t at = (size_t)h * run->rows + r;
            if (scale[at] == 0 || sums[at] == 0) continue;
            const uint32_t logical = (uint32_t)((length + r / run->ag->group_size) >> shift);
            mass[h * stride + plan_place_of_new(all, logical)] += sums[at] * factor[at] * scale[at];
        }
}

void pkvi_plan_finish_mass(struct plan_run_item *run, const float *m, const float *l,
                           const float *sinks)
{
    const struct plan_item *item = run->item;
    const struct plan_entry *entry = &run->body->entries[item->entry];
    const struct pkvi_attn_wish *wish = &run->lane->wish;
    float *scale = PLAN_AT(run, float, mass_scale), *mass = PLAN_AT(run, float, mass);
    denominators(run, m, l, sinks, scale);
    if (run->plan->options.mass) {
        add_mass(run, m, scale, 0, run->slot->mass + item->mass_at);
        if (run->lane->open) add_own_mass(run, m, scale, 0, run->slot->mass + item->mass_at);
    }
    if (wish->mass_rows == 0 || !run->plan->hooks.mass) return;
    uint32_t skip = wish->mass_rows < entry->n_tokens ? entry->n_tokens - wish->mass_rows : 0;
    if (skip >= item->token0 + item->n_tokens) return;
    const uint32_t token0 = skip > item->token0 ? skip - item->token0 : 0;
    add_mass(run, m, scale, token0, mass);
    if (run->lane->open) add_own_mass(run, m, scale, token0, mass);
    run->plan->hooks.mass(run->plan->hooks.context, entry->seq, run->call->group, run->call->layer,
                          item->head0, item->n_heads, mass, run->lane->pages.n);
}

bool pkvi_plan_keeps_mass(const struct pkvi_plan *plan)
{
    return plan->options.mass != 0;
}

pkv_status pkvi_plan_read_mass(const struct pkvi_plan *plan, uint32_t group, uint32_t model_layer,
                               uint32_t entry, uint32_t kv_head, float *mass, uint32_t n_pages)
{
    const struct plan_body *body = plan_front(plan);
    const struct plan_group *pg = &body->groups[group];
    const struct plan_lane *lane = &pg->lanes[entry];
    const struct plan_slot *slot = &plan->slots[model_layer % plan->options.concurrent_layers];
    if (n_pages != lane->pages.n) return PKV_EINVAL;
    memset(mass, 0, n_pages * sizeof *mass);
    for (uint32_t i = lane->item0; i < lane->item0 + lane->n_items; i++) {
        const struct plan_item *item = &pg->items[i];
        if (kv_head < item->head0 || kv_head >= item->head0 + item->n_heads) continue;
        const float *from = slot->mass + item->mass_at + (size_t)(kv_head - item->head0) * n_pages;
        for (uint32_t p = 0; p < n_pages; p++)
            mass[p] += from[p];
    }
    return PKV_OK;
}
