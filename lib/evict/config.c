/* evict: configurations: defaults, names, checks, resolution against a group. */
#include <math.h>
#include <string.h>

#include "evict/evict_internal.h"

#define MAX_JOURNAL_STEPS 65536u
#define MAX_REGRET_PAGES 65536u
#define LEAST_CONFIG 104u /* pkv_evict_config up to mass_every */

static const struct pkvi_evict_ops *const all_ops[] = {
    &pkvi_evict_window, &pkvi_evict_sink,     &pkvi_evict_mass,
    &pkvi_evict_obs,    &pkvi_evict_keydiff,  &pkvi_evict_lru_mass,
    &pkvi_evict_random, &pkvi_evict_callback, &pkvi_evict_topk_ops,
};
#define N_OPS (sizeof all_ops / sizeof all_ops[0])

const struct pkvi_evict_ops *pkvi_evict_ops_of(pkv_evict_kind kind)
{
    for (size_t i = 0; i < N_OPS; i++)
        if (all_ops[i]->kind == kind) return all_ops[i];
    return NULL;
}

const char *pkv_evict_kind_name(pkv_evict_kind kind)
{
    if (kind == PKV_EVICT_NONE) return "none";
    const struct pkvi_evict_ops *ops = pkvi_evict_ops_of(kind);
    return ops ? ops->name : "?";
}

bool pkvi_evict_config_known(size_t size)
{
    return pkvi_size_known(size, LEAST_CONFIG, sizeof(pkv_evict_config));
}

pkv_status pkv_evict_config_init(pkv_evict_config *config, size_t size, pkv_evict_kind kind,
                                 uint64_t budget_tokens)
{
    if (!config) return PKV_EINVAL;
    if (!pkvi_evict_config_known(size)) return PKV_EVERSION;
    if (kind != PKV_EVICT_NONE && !pkvi_evict_ops_of(kind)) return PKV_EINVAL;
    const pkv_evict_config defaults = {
        .kind = kind,
        .budget_unit = PKV_BUDGET_TOKENS,
        .budget = budget_tokens,
        .sinks = 4,
        .window = PKV_EVICT_AUTO,
        .position_mode = PKV_POSITION_ORIGINAL,
        .gamma = 0.99f,
        .normalize_age = 1,
        .obs_rows = 32,
        .epsilon = 0.5f,
        .regret_pages = 256,
        .regret_every = 1,
        .regret_rank = 8,
        .mass_every = 2,
    };
    pkvi_struct_write(config, size, &defaults);
    return PKV_OK;
}

pkv_status pkv_evict_config_named(pkv_evict_config *config, size_t size, const char *name,
                                  uint64_t budget_tokens)
{
    if (!config || !name) return PKV_EINVAL;
    if (strcmp(name, "none") == 0)
        return pkv_evict_config_init(config, size, PKV_EVICT_NONE, budget_tokens);
    const bool h2o = strcmp(name, "h2o") == 0;
    const bool tova = strcmp(name, "tova") == 0;
    if (h2o || tova) {
        const pkv_status status =
            pkv_evict_config_init(config, size, PKV_EVICT_MASS, budget_tokens);
        if (status == PKV_OK) config->gamma = h2o ? 1.0f : 0.0f;
        return status;
    }
    for (size_t i = 0; i < N_OPS; i++)
        if (strcmp(all_ops[i]->name, name) == 0)
            return pkv_evict_config_init(config, size, all_ops[i]->kind, budget_tokens);
    return PKV_EINVAL;
}

/* ---- resolution ----------------------------------------------------------------------------- */

struct check {
    char *text;
    size_t capacity;
};

#define REFUSE(check, status, ...)                                                                 \
    (pkvi_text((check)->text, (check)->capacity, __VA_ARGS__), (pkv_status)(status))

static pkv_status check_numbers(const pkv_evict_config *c, struct check *to)
{
    if (!(c->gamma >= 0 && c->gamma <= 1))
        return REFUSE(to, PKV_EINVAL, "gamma: %g is not in 0..1", (double)c->gamma);
    if (!(c->epsilon >= 0) || isinf(c->epsilon))
        return REFUSE(to, PKV_EINVAL, "epsilon: %g is not a finite number >= 0",
                      (double)c->epsilon);
    if (c->kind == PKV_EVICT_OBS && c->obs_rows == 0)
        return REFUSE(to, PKV_EINVAL, "obs_rows: 0 rows observe nothing");
    if (c->normalize_age > 1 || c->pool > 1 || c->regret > 1)
        return REFUSE(to, PKV_EINVAL, "normalize_age, pool and regret are 0 or 1");
    if (c->kind == PKV_EVICT_CALLBACK && !c->score)
        return REFUSE(to, PKV_EINVAL, "score: the callback policy needs a callback");
    if (c->journal_steps > MAX_JOURNAL_STEPS)
        return REFUSE(to, PKV_ERANGE, "journal_steps: %u is more than %u", c->journal_steps,
                      MAX_JOURNAL_STEPS);
    if (c->regret &&
        (c->regret_pages == 0 || c->regret_pages > MAX_REGRET_PAGES || c->regret_every == 0))
        return REFUSE(to, PKV_EINVAL, "regret_pages is 1..%u and regret_every >= 1",
                      MAX_REGRET_PAGES);
    if (c->mass_every == 0) return REFUSE(to, PKV_EINVAL, "mass_every: 0");
    for (size_t i = 0; i < sizeof c->reserved / sizeof c->reserved[0]; i++)
        if (c->reserved[i] != 0) return REFUSE(to, PKV_EINVAL, "reserved must be zero");
    return PKV_OK;
}

static pkv_status check_support(const pkv_evict_config *c, const struct pkvi_evict_group *info,
                                struct check *to)
{
    const bool bytes = info->bytes && info->layout;
    /* Minimum and scale of quantised keys are bounds already. */
    const bool coded = bytes && pkvi_layout_k_coded(info->layout);
    const bool bounds = bytes && (coded || info->layout->min_offset != 0);
    const bool sums = info->bytes && info->layout && info->layout->sum_offset != 0;
    if ((c->kind == PKV_EVICT_TOPK || c->regret) && !bounds)
        return REFUSE(to, PKV_ENOTSUP, "%s needs PKV_SIGNAL_BOUNDS in pkv_config.signals",
                      c->regret ? "regret" : "topk");
    if (c->regret && coded) return REFUSE(to, PKV_ENOTSUP, "regret in a group with quantised keys");
    if (c->kind == PKV_EVICT_KEYDIFF && !sums)
        return REFUSE(to, PKV_ENOTSUP, "keydiff needs PKV_SIGNAL_KEYSUM in pkv_config.signals");
    if (c->kind == PKV_EVICT_KEYDIFF && info->window != 0)
        return REFUSE(to, PKV_ENOTSUP, "keydiff in a group with a window");
    if (c->position_mode == PKV_POSITION_COMPACT) {
        if (info->window != 0)
            return REFUSE(to, PKV_ENOTSUP, "position_mode: COMPACT in a group with a window");
        if (!info->rope)
            return REFUSE(to, PKV_ENOTSUP, "position_mode: COMPACT needs pkv_config.rope");
    } else if (c->position_mode != PKV_POSITION_ORIGINAL) {
        return REFUSE(to, PKV_EINVAL, "position_mode: %d is unknown", (int)c->position_mode);
    }
    return PKV_OK;
}

/* Budget, sinks and window in pages. */
static pkv_status resolve_pages(struct pkvi_evict_policy *p, const struct pkvi_evict_group *info,
                                struct check *to)
{
    const pkv_evict_config *c = &p->config;
    const uint32_t page_tokens = p->evict->page_tokens;
    uint64_t pages = c->budget;
    if (c->budget == 0) return REFUSE(to, PKV_EINVAL, "budget: 0");
    if (c->budget_unit == PKV_BUDGET_TOKENS)
        pages /= page_tokens;
    else if (c->budget_unit == PKV_BUDGET_BYTES)
        pages /= info->page_bytes;
    else if (c->budget_unit != PKV_BUDGET_PAGES)
        return REFUSE(to, PKV_EINVAL, "budget_unit: %d is unknown", (int)c->budget_unit);
    if (pages == 0) pages = 1;
    if (pages > UINT32_MAX / 2) pages = UINT32_MAX / 2; /* more than a table can hold */
    p->budget_pages = (uint32_t)pages;
    p->sink_pages = 0;
    if (c->kind != PKV_EVICT_WINDOW)
        p->sink_pages = (uint32_t)pkvi_ceil_div_u64(c->sinks, page_tokens);
    if (p->sink_pages > p->budget_pages)
        return REFUSE(to, PKV_EINVAL, "sinks: %u tokens do not fit a budget of %u pages", c->sinks,
                      p->budget_pages);

    const uint32_t room = p->budget_pages - p->sink_pages;
    if (c->window != PKV_EVICT_AUTO) {
        p->window_tokens = c->window;
        if (pkvi_ceil_div_u64(c->window, page_tokens) > room)
            return REFUSE(to, PKV_EINVAL,
                          "window: %u tokens and %u sinks do not fit a budget of %u pages",
                          c->window, c->sinks, p->budget_pages);
    } else if (c->kind == PKV_EVICT_WINDOW || c->kind == PKV_EVICT_SINK) {
        p->window_tokens = 0; /* oldest first keeps the whole budget recent */
    } else {
        uint32_t recent = c->kind == PKV_EVICT_TOPK ? 2 : pkvi_max_u32(p->budget_pages / 4, 1);
        recent = pkvi_min_u32(recent, room);
        p->window_tokens =
            recent > UINT32_MAX / page_tokens ? UINT32_MAX - 1 : recent * page_tokens;
    }
    p->recent_pages = (uint32_t)pkvi_ceil_div_u64(p->window_tokens, page_tokens);
    return PKV_OK;
}

static uint64_t mix(uint64_t h, uint64_t value)
{
    h = (h ^ value) * UINT64_C(0x9e3779b97f4a7c15);
    h = (h ^ (h >> 32)) * UINT64_C(0xd6e8feb86659fd93);
    return h ^ (h >> 32);
}

/* What decides which pages a by-length policy keeps: sinks, budget, page size; and the positions.
 */
static uint64_t salt_of(const struct pkvi_evict_policy *p, uint32_t group)
{
    uint64_t h = mix(UINT64_C(0x6576696374), group);
    h = mix(h, p->sink_pages);
    h = mix(h, p->budget_pages);
    h = mix(h, p->evict->page_tokens);
    h = mix(h, (uint64_t)(uint32_t)p->config.position_mode);
    return h != 0 ? h : 1;
}

static pkv_status resolve(struct pkvi_evict_policy *p, uint32_t group, struct check *to)
{
    const struct pkvi_evict_group *info = &p->evict->groups[group];
    pkv_status status = check_numbers(&p->config, to);
    if (status == PKV_OK) status = check_support(&p->config, info, to);
    if (status == PKV_OK) status = resolve_pages(p, info, to);
    if (status != PKV_OK) return status;
    p->config.window = p->window_tokens;
    p->config.budget_unit = PKV_BUDGET_PAGES;
    p->config.budget = p->budget_pages;
    p->salt = p->ops->by_length ? salt_of(p, group) : 0;
    return PKV_OK;
}

pkv_status pkvi_evict_policy_create(struct pkvi_evict *evict, uint32_t group,
                                    const pkv_evict_config *config,
                                    struct pkvi_evict_policy **policy, char *text, size_t capacity)
{
    struct check to = {text, capacity};
    if (group >= evict->n_groups)
        return REFUSE(&to, PKV_EINVAL, "group: %u of %u", group, evict->n_groups);
    if (!pkvi_evict_config_known(config->struct_size))
        return REFUSE(&to, PKV_EVERSION, "struct_size: %zu is unknown", config->struct_size);
    if (config->kind == PKV_EVICT_NONE) {
        *policy = NULL;
        return PKV_OK;
    }
    const struct pkvi_evict_ops *ops = pkvi_evict_ops_of(config->kind);
    if (!ops) return REFUSE(&to, PKV_EINVAL, "kind: %d is unknown", (int)config->kind);

    struct pkvi_evict_policy *p = pkvi_mem_zalloc(evict->mem, sizeof *p);
    if (!p) return REFUSE(&to, PKV_ENOMEM, "no memory for a policy");
    atomic_init(&p->refs, 1);
    p->evict = evict;
    p->ops = ops;
    pkvi_struct_read(&p->config, sizeof p->config, config, config->struct_size);
    const pkv_status status = resolve(p, group, &to);
    if (status != PKV_OK) {
        pkvi_mem_free(evict->mem, p, sizeof *p);
        return status;
    }
    *policy = p;
    return PKV_OK;
}

void pkvi_evict_policy_ref(struct pkvi_evict_policy *policy)
{
    if (policy) atomic_fetch_add_explicit(&policy->refs, 1, memory_order_relaxed);
}

void pkvi_evict_policy_unref(struct pkvi_evict_policy *policy)
{
    if (!policy) return;
    if (atomic_fetch_sub_explicit(&policy->refs, 1, memory_order_acq_rel) == 1)
        pkvi_mem_free(policy->evict->mem, policy, sizeof *policy);
}

const pkv_evict_config *pkvi_evict_policy_config(const struct pkvi_evict_policy *policy)
{
    return &policy->config;
}
