/* attn: COMPACT positions. Keys stay as they were rotated; where pages were dropped the survivors
 * close up, so the query is turned by what was dropped between the run and the query. */
#include "plan.h"

#include <math.h>

static pkv_status enter_run(struct pkvi_plan *plan, struct plan_group *pg, uint32_t page_end,
                            uint32_t turn)
{
    void *runs = pg->runs;
    bool ok = pkvi_plan_room(plan->mem, &runs, &pg->run_capacity, (uint64_t)pg->n_runs + 1,
                             sizeof *pg->runs);
    pg->runs = runs;
    if (!ok) return PKV_ENOMEM;
    pg->runs[pg->n_runs++] = (struct plan_run){page_end, turn};
    return PKV_OK;
}

/* Rotation by `tokens` positions (negative: towards the past). */
static pkv_status enter_turn(struct pkvi_plan *plan, struct plan_group *pg,
                             const struct pkvi_attn_rope *rope, double tokens)
{
    void *turns = pg->turns;
    bool ok = pkvi_plan_room(plan->mem, &turns, &pg->turn_capacity, (uint64_t)pg->n_turns + 1,
                             sizeof(float) * rope->rotary_dims);
    pg->turns = turns;
    if (!ok) return PKV_ENOMEM;
    float *turn = pg->turns + (size_t)pg->n_turns * rope->rotary_dims;
    for (uint32_t i = 0; i < rope->rotary_dims / 2; i++) {
        double angle = tokens * rope->frequencies[i];
        turn[2 * i] = (float)cos(angle);
        turn[2 * i + 1] = (float)sin(angle);
    }
    pg->n_turns++;
    return PKV_OK;
}

pkv_status pkvi_plan_build_runs(struct pkvi_plan *plan, struct plan_body *body, uint32_t group,
                                uint32_t entry)
{
    struct plan_group *pg = &body->groups[group];
    const struct pkvi_attn_rope *rope = &plan->model->groups[group].rope;
    struct plan_lane *lane = &pg->lanes[entry];
    const struct plan_pages *pages = &lane->pages;
    lane->run0 = pg->n_runs;
    if (pages->n == 0) return PKV_OK;
    uint32_t last_shift = pages->logical[pages->n - 1] - (pages->n - 1);
    for (uint32_t from = 0, to; from < pages->n; from = to) {
        uint32_t shift = pages->logical[from] - from;
        to = from + 1;
        while (to < pages->n && pages->logical[to] - to == shift)
            to++;
        uint32_t turn = PKVI_NONE;
        if (shift != last_shift) {
            turn = pg->n_turns;
            double tokens = -(double)(last_shift - shift) * plan->model->page_tokens;
            pkv_status status = enter_turn(plan, pg, rope, tokens);
            if (status != PKV_OK) return status;
        }
        pkv_status status = enter_run(plan, pg, to, turn);
        if (status != PKV_OK) return status;
    }
    lane->n_runs = pg->n_runs - lane->run0;
    return PKV_OK;
}

void pkvi_plan_turn(const struct pkvi_attn_rope *rope, const float *turn, const float *q,
                    float *turned, size_t n_rows, uint32_t dim)
{
    uint32_t half = rope->rotary_dims / 2;
    uint32_t step = rope->interleaved ? 2 : 1, other = rope->interleaved ? 1 : half;
    for (size_t r = 0; r < n_rows; r++, q += dim, turned += dim) {
        for (uint32_t i = 0; i < half; i++) {
            float x = q[i * step], y = q[i * step + other];
            float c = turn[2 * i], s = turn[2 * i + 1];
            turned[i * step] = x * c - y * s;
            turned[i * step + other] = x * s + y * c;
        }
        for (uint32_t i = rope->rotary_dims; i < dim; i++)
            turned[i] = q[i];
    }
}
