/* One policy and budget: all sequences side by side, a prompt in chunks, then token by token. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "longseq.h"

#define REGRET_EVERY 16u
#define REGRET_PAGES 256u

typedef struct run {
    const longseq_options *o;
    const longseq_source *s;
    const longseq_truth *truth;
    longseq_result *result;
    tool_error *err;
    bool evicts, topk;
    uint32_t budget_pages; /* 0 = no bound */
    pkv_cache *cache;
    pkv_plan *plan, *mass_plan; /* the second one also keeps the mass (TOPK, at samples) */
    pkv_seq *sequences;
    float *q, *k, *v, *out; /* rows of all sequences, one layer */
    float *place;           /* [sequences * chunk][LONGSEQ_PLACE] */
    uint32_t rows;          /* capacity */
    uint32_t next_sample;
    double retained, oracle, error;
    float *step_us; /* per decode step */
    uint64_t n_us;
    struct {
        double us, retained, error, from;
        uint64_t steps, samples;
    } window; /* since the last point */
} run;

/* Processor time: the run is one thread, and the machine may be shared. */
static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static int library_failed(run *r, const char *what, pkv_status status)
{
    char text[256] = "";
    if (r->cache != NULL) pkv_cache_last_error(r->cache, text, sizeof text);
    return tool_fail(r->err, "%s: %s (%s)", what, pkv_status_text(status), text);
}

/* ---- set up --------------------------------------------------------------------------------- */

static int open_cache(run *r, const char *policy, uint64_t budget)
{
    const longseq_options *o = r->o;
    pkv_config config;
    pkv_config_init(&config, sizeof config);
    pkv_group_config group = o->geometry->groups[0];
    config.groups = &group;
    config.n_groups = 1;
    config.page_tokens = o->page_tokens;
    config.memory_limit = o->memory;
    config.prefix = 0;
    config.signals = r->evicts ? PKV_SIGNAL_BOUNDS : 0;
    if (strcmp(policy, "keydiff") == 0) config.signals |= PKV_SIGNAL_KEYSUM;
    char text[200];
    if (pkv_config_check(&config, text, sizeof text) != PKV_OK)
        return tool_fail(r->err, "configuration: %s", text);
    pkv_status status = pkv_cache_create(&config, &r->cache);
    if (status != PKV_OK) return library_failed(r, "pkv_cache_create", status);
    pkv_evict_config evict;
    status = pkv_evict_config_named(&evict, sizeof evict, policy, budget);
    if (status != PKV_OK) return tool_fail(r->err, "--policy: unknown policy '%.40s'", policy);
    evict.seed = o->seed;
    if (r->evicts && !r->topk) {
        evict.regret = 1;
        evict.regret_every = REGRET_EVERY;
        evict.regret_pages = REGRET_PAGES;
    }
    if (pkv_evict_check(r->cache, 0, &evict, text, sizeof text) != PKV_OK)
        return tool_fail(r->err, "policy %s, budget %llu: %s", policy, (unsigned long long)budget,
                         text);
    status = pkv_cache_set_evict(r->cache, 0, &evict);
    if (status != PKV_OK) return library_failed(r, "pkv_cache_set_evict", status);
    for (uint32_t i = 0; i < o->sequences; i++) {
        status = pkv_seq_create(r->cache, &r->sequences[i]);
        if (status != PKV_OK) return library_failed(r, "pkv_seq_create", status);
    }
    pkv_plan_options options;
    pkv_plan_options_init(&options, sizeof options);
    status = pkv_plan_create(r->cache, &options, &r->plan);
    options.mass = 1;
    if (status == PKV_OK) status = pkv_plan_create(r->cache, &options, &r->mass_plan);
    if (status != PKV_OK) return library_failed(r, "pkv_plan_create", status);
    if (!r->evicts || r->topk) return 0;
    pkv_evict_info info = {.struct_size = sizeof info};
    pkv_seq_evict_info(r->sequences[0], 0, &info);
    r->budget_pages = info.budget_pages;
    return 0;
}

static int allocate(run *r)
{
    const longseq_options *o = r->o;
    const size_t kv = (size_t)r->s->kv_heads * r->s->dim;
    r->rows = o->sequences * (o->chunk > 1 ? o->chunk : 1);
    r->sequences = calloc(o->sequences, sizeof *r->sequences);
    r->q = malloc(r->rows * kv * r->s->group_size * sizeof *r->q);
    r->out = malloc(r->rows * kv * r->s->group_size * sizeof *r->out);
    r->k = malloc(r->rows * kv * sizeof *r->k);
    r->v = malloc(r->rows * kv * sizeof *r->v);
    r->place = malloc(r->rows * LONGSEQ_PLACE * sizeof *r->place);
    r->step_us = malloc((o->tokens + 1) * sizeof *r->step_us);
    if (r->sequences && r->q && r->out && r->k && r->v && r->place && r->step_us) return 0;
    return tool_fail(r->err, "out of memory");
}

static void close_run(run *r)
{
    pkv_plan_destroy(r->plan);
    pkv_plan_destroy(r->mass_plan);
    pkv_cache_destroy(r->cache);
    free(r->sequences), free(r->q), free(r->out), free(r->k), free(r->v), free(r->place);
    free(r->step_us);
}

/* ---- samples -------------------------------------------------------------------------------- */

static int descending(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* Mass of the n heaviest of some pages besides the tail, which is held anyway. */
static double best_pages(const float *mass, uint64_t pages, uint32_t n, float *scratch)
{
    memcpy(scratch, mass, (pages - 1) * sizeof *scratch);
    qsort(scratch, pages - 1, sizeof *scratch, descending);
    double sum = (double)mass[pages - 1];
    for (uint64_t i = 0; i < n && i < pages - 1; i++)
        sum += (double)scratch[i];
    return sum;
}

/* After the attend of one sampled layer at a sampled step: how much of the true mass was seen, and
 * how far the output is off. Sums over the layers; `tables` collects the mass of whole pages. */
static int sample_layer(run *r, uint32_t layer, const pkv_page *held, uint64_t pages,
                        uint32_t budget_pages, double *tables, double *retained, double *oracle)
{
    const longseq_truth *truth = r->truth;
    const float *mass = truth->mass[r->next_sample];
    uint32_t resident = 0;
    for (uint64_t p = 0; p < pages; p++)
        resident += held[p] != PKV_PAGE_NONE;
    float *read = malloc(resident * sizeof *read), *scratch = malloc(pages * sizeof *scratch);
    if (read == NULL || scratch == NULL) {
        free(read), free(scratch);
        return tool_fail(r->err, "out of memory");
    }
    pkv_status status = PKV_OK;
    for (uint32_t h = 0; h < truth->kv_heads && status == PKV_OK; h++) {
        const float *of_head = mass + (layer * truth->kv_heads + h) * pages;
        if (r->topk) status = pkv_plan_mass(r->mass_plan, layer, 0, h, read, resident);
        for (uint64_t p = 0, i = 0; p < pages; p++) {
            tables[p] += (double)of_head[p];
            if (held[p] == PKV_PAGE_NONE) continue;
            if (!r->topk || read[i] > 0) *retained += (double)of_head[p];
            i++;
        }
        if (r->topk) *oracle += best_pages(of_head, pages, budget_pages, scratch);
    }
    const float *want = truth->out[r->next_sample] + (size_t)layer * truth->q_heads * truth->dim;
    double difference = 0, size = 0;
    for (uint32_t i = 0; i < truth->q_heads * truth->dim; i++) {
        const double d = (double)r->out[i] - (double)want[i];
        difference += d * d;
        size += (double)want[i] * (double)want[i];
    }
    r->error += sqrt(difference / size) / truth->n_layers;
    r->window.error += sqrt(difference / size) / truth->n_layers;
    free(read), free(scratch);
    return status == PKV_OK ? 0 : library_failed(r, "pkv_plan_mass", status);
}

/* ---- a step --------------------------------------------------------------------------------- */

static void fill_rows(run *r, uint64_t position, uint32_t n, uint32_t layer)
{
    const longseq_source *s = r->s;
    for (uint32_t i = 0; i < r->o->sequences; i++)
        for (uint32_t j = 0; j < n; j++) {
            const size_t row = (size_t)i * n + j;
            const float *place = r->place + row * LONGSEQ_PLACE;
            for (uint32_t h = 0; h < s->kv_heads; h++) {
                const size_t at = (row * s->kv_heads + h) * s->dim;
                longseq_key(s, i, position + j, place, layer, h, r->k + at);
                longseq_value(s, i, position + j, layer, h, r->v + at);
            }
            for (uint32_t h = 0; h < s->kv_heads * s->group_size; h++)
                longseq_query(s, i, position + j, place, layer, h,
                              r->q + (row * s->kv_heads * s->group_size + h) * s->dim);
        }
}

static pkv_status attend_layer(run *r, pkv_plan *plan, uint32_t layer, double *us)
{
    const longseq_source *s = r->s;
    const uint32_t q_heads = s->kv_heads * s->group_size;
    const ptrdiff_t head = (ptrdiff_t)(s->dim * sizeof(float));
    const pkv_rows k = {.data = r->k,
                        .dtype = PKV_DTYPE_F32,
                        .heads = s->kv_heads,
                        .dim = s->dim,
                        .token_stride = head * s->kv_heads,
                        .head_stride = head};
    const pkv_rows v = {.data = r->v,
                        .dtype = PKV_DTYPE_F32,
                        .heads = s->kv_heads,
                        .dim = s->dim,
                        .token_stride = head * s->kv_heads,
                        .head_stride = head};
    const pkv_rows q = {.data = r->q,
                        .dtype = PKV_DTYPE_F32,
                        .heads = q_heads,
                        .dim = s->dim,
                        .token_stride = head * q_heads,
                        .head_stride = head};
    const pkv_rows_out out = {.data = r->out,
                              .dtype = PKV_DTYPE_F32,
                              .heads = q_heads,
                              .dim = s->dim,
                              .token_stride = head * q_heads,
                              .head_stride = head};
    const double start = now_us();
    pkv_status status = pkv_write(plan, layer, &k, &v, 0, 1);
    if (status == PKV_OK) status = pkv_attend(plan, layer, &q, &out, NULL, 0, 1);
    *us += now_us() - start;
    return status;
}

/* budget + 1 page + the step's own tokens, in every sequence, while the step runs. */
static int check_bound(run *r, uint32_t n)
{
    longseq_result *result = r->result;
    for (uint32_t i = 0; i < r->o->sequences; i++) {
        pkv_seq_info info = {.struct_size = sizeof info};
        pkv_seq_get_info(r->sequences[i], 0, &info);
        const uint64_t tokens = info.resident_tokens + n;
        if (tokens > result->resident_tokens_max_in_step)
            result->resident_tokens_max_in_step = tokens;
        if (r->budget_pages == 0) continue;
        if (tokens > ((uint64_t)r->budget_pages + 1) * r->o->page_tokens + n)
            return tool_fail(r->err,
                             "sequence %u holds %llu tokens, more than budget + page + step", i,
                             (unsigned long long)tokens);
    }
    return 0;
}

static int run_layers(run *r, uint64_t position, uint32_t n, bool sample, double *us)
{
    const longseq_truth *truth = r->truth;
    pkv_plan *plan = sample && r->topk ? r->mass_plan : r->plan;
    const uint64_t pages = (position + n + r->o->page_tokens - 1) / r->o->page_tokens;
    pkv_page *held = sample ? calloc(pages, sizeof *held) : NULL;
    double *tables = sample ? calloc(pages, sizeof *tables) : NULL;
    double retained = 0, oracle = 0;
    int code = 0;
    if (sample && (held == NULL || tables == NULL)) code = tool_fail(r->err, "out of memory");
    if (sample && code == 0) pkv_seq_pages(r->sequences[0], 0, 0, (uint32_t)pages, held);
    const uint32_t budget =
        r->evicts ? (uint32_t)(r->result->budget_tokens / r->o->page_tokens) : UINT32_MAX;
    for (uint32_t row = 0; row < r->o->sequences * n; row++)
        longseq_place(position + row % n, r->place + row * LONGSEQ_PLACE);
    for (uint32_t l = 0; l < r->o->geometry->n_layers && code == 0; l++) {
        fill_rows(r, position, n, l);
        const pkv_status status = attend_layer(r, plan, l, us);
        if (status != PKV_OK) code = library_failed(r, "attention", status);
        if (sample && code == 0 && l < truth->n_layers)
            code = sample_layer(r, l, held, pages, budget, tables, &retained, &oracle);
    }
    if (sample && code == 0) {
        const double all = (double)truth->n_layers * truth->q_heads;
        if (!r->topk) { /* one set of pages for all heads and layers */
            float *sums = malloc(pages * sizeof *sums), *scratch = malloc(pages * sizeof *scratch);
            for (uint64_t p = 0; sums && scratch && p < pages; p++)
                sums[p] = (float)tables[p];
            if (sums && scratch) oracle = best_pages(sums, pages, budget, scratch);
            free(sums), free(scratch);
        }
        r->retained += retained / all;
        r->oracle += oracle / all;
        r->window.retained += retained / all;
        r->window.samples++;
        r->next_sample++;
    }
    free(held), free(tables);
    return code;
}

/* One step of n tokens of every sequence. 1 = done, 0 = memory ran out, -1 = failed. */
static int step(run *r, uint64_t position, uint32_t n)
{
    const longseq_truth *truth = r->truth;
    const bool sample =
        n == 1 && r->next_sample < truth->n_samples && truth->position[r->next_sample] == position;
    double start = now_us();
    pkv_batch batch;
    pkv_status status = pkv_batch_begin(r->cache, &batch);
    for (uint32_t i = 0; i < r->o->sequences && status == PKV_OK; i++)
        status = pkv_batch_add(batch, r->sequences[i], NULL, n);
    if (status != PKV_OK) return library_failed(r, "pkv_batch_add", status);
    status = pkv_batch_reserve(batch);
    if (status == PKV_ENOPAGES || status == PKV_ENOMEM) {
        pkv_batch_abort(batch);
        return 0;
    }
    if (status == PKV_OK)
        status = pkv_plan_build(sample && r->topk ? r->mass_plan : r->plan, batch);
    double us = now_us() - start;
    if (status != PKV_OK) return library_failed(r, "pkv_batch_reserve", status);
    if (check_bound(r, n) != 0 || run_layers(r, position, n, sample, &us) != 0) return -1;
    start = now_us();
    status = pkv_batch_commit(batch);
    us += now_us() - start;
    if (status != PKV_OK) return library_failed(r, "pkv_batch_commit", status);
    if (n == 1 && !sample) {
        r->step_us[r->n_us++] = (float)(us / r->o->sequences);
        r->window.us += us / r->o->sequences;
        r->window.steps++;
    }
    return 1;
}

/* ---- figures over time ---------------------------------------------------------------------- */

static void add_point(run *r, uint64_t token)
{
    longseq_result *result = r->result;
    uint64_t resident = 0;
    for (uint32_t i = 0; i < r->o->sequences; i++) {
        pkv_seq_info info = {.struct_size = sizeof info};
        pkv_seq_get_info(r->sequences[i], 0, &info);
        if (info.resident_tokens > resident) resident = info.resident_tokens;
    }
    pkv_stats stats = {.struct_size = sizeof stats};
    pkv_cache_stats(r->cache, &stats);
    const uint64_t bytes = stats.bytes_used + stats.metadata_bytes;
    if (bytes > result->memory_bytes_max) result->memory_bytes_max = bytes;
    if (result->n_points == LONGSEQ_POINTS) return;
    result->points[result->n_points++] = (longseq_point){
        .token = (double)token,
        .resident_tokens = (double)resident,
        .memory_bytes = (double)bytes,
        .us_per_token = r->window.steps ? r->window.us / (double)r->window.steps : NAN,
        .mass_retained = r->window.samples ? r->window.retained / (double)r->window.samples : NAN,
        .output_error = r->window.samples ? r->window.error / (double)r->window.samples : NAN,
    };
    memset(&r->window, 0, sizeof r->window);
}

static void note_resident(run *r)
{
    for (uint32_t i = 0; i < r->o->sequences; i++) {
        pkv_seq_info seq = {.struct_size = sizeof seq};
        pkv_seq_get_info(r->sequences[i], 0, &seq);
        if (seq.resident_tokens > r->result->resident_tokens_max)
            r->result->resident_tokens_max = seq.resident_tokens;
    }
}

static int ascending(const void *a, const void *b)
{
    return descending(b, a);
}

static double median(float *values, uint64_t n)
{
    if (n == 0) return NAN;
    qsort(values, n, sizeof *values, ascending);
    return (double)values[n / 2];
}

static void summarise(run *r)
{
    longseq_result *result = r->result;
    uint64_t checks = 0, regrets = 0;
    for (uint32_t i = 0; i < r->o->sequences; i++) {
        pkv_evict_info info = {.struct_size = sizeof info};
        pkv_seq_evict_info(r->sequences[i], 0, &info);
        result->pages_evicted += info.pages_evicted;
        checks += info.regret_checks;
        regrets += info.regrets;
    }
    const double n = r->next_sample;
    result->samples = r->next_sample;
    result->mass_retained = n > 0 ? r->retained / n : NAN;
    result->mass_retained_oracle = n > 0 ? r->oracle / n : NAN;
    result->output_error = n > 0 ? r->error / n : NAN;
    result->regret_rate = checks > 0 ? (double)regrets / (double)checks : NAN;
    const uint64_t tenth = r->n_us / 10;
    result->us_first_tenth = median(r->step_us, tenth);
    result->us_last_tenth = median(r->step_us + (r->n_us - tenth), tenth);
}

static int run_steps(run *r, progress *bar)
{
    const longseq_options *o = r->o;
    uint64_t position = 0, next_point = 1;
    while (position < o->tokens) {
        const uint64_t left = o->prompt > position ? o->prompt - position : 0;
        const uint32_t n = left == 0 ? 1 : left < o->chunk ? (uint32_t)left : o->chunk;
        const int done = step(r, position, n);
        if (done < 0) return -1;
        if (done == 0) {
            r->result->exhausted = true;
            progress_add(bar, (o->tokens - position) * o->sequences);
            break;
        }
        position += n;
        r->result->steps++;
        note_resident(r);
        progress_add(bar, (uint64_t)n * o->sequences);
        if (position * LONGSEQ_POINTS < o->tokens * next_point && position != o->tokens) continue;
        add_point(r, position);
        next_point = position * LONGSEQ_POINTS / o->tokens + 1;
    }
    if (r->result->exhausted) add_point(r, position);
    r->result->tokens_reached = position;
    summarise(r);
    return 0;
}

int longseq_run(const longseq_options *o, const longseq_source *s, const longseq_truth *truth,
                const char *policy, uint64_t budget, progress *bar, longseq_result *result,
                tool_error *err)
{
    run r = {.o = o, .s = s, .truth = truth, .result = result, .err = err};
    memset(result, 0, sizeof *result);
    snprintf(result->policy, sizeof result->policy, "%s", policy);
    result->pattern = s->pattern;
    r.evicts = strcmp(policy, "none") != 0;
    r.topk = strcmp(policy, "topk") == 0;
    result->budget_tokens = r.evicts ? budget : 0;
    int code = allocate(&r);
    if (code == 0) code = open_cache(&r, policy, budget);
    if (code == 0) code = run_steps(&r, bar);
    close_run(&r);
    return code;
}
