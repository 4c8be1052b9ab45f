/* The world: how it begins, goes on and ends. */
#include "world.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cache/cache_internal.h"
#include "random.h"

/* ---- choices and complaints ----------------------------------------------------------------- */

uint32_t world_below(struct world *w, uint32_t n)
{
    struct world_source *s = &w->source;
    if (s->bytes == NULL) return pkvt_below(&s->random, n);
    if (n <= 1 || s->n_bytes == 0) return 0;
    uint32_t value = *s->bytes++;
    s->n_bytes--;
    if (n > 256 && s->n_bytes > 0) {
        value = value << 8 | *s->bytes++;
        s->n_bytes--;
    }
    return value % n;
}

bool world_once(struct world *w, uint32_t n)
{
    return world_below(w, n) == 0;
}

bool world_exhausted(const struct world *w)
{
    return w->source.bytes != NULL && w->source.n_bytes == 0;
}

/* What a reader of a complaint wants to know first. */
static void describe(const struct world *w)
{
    fprintf(stderr, "storage %d, pages of %u tokens, prefix %u, limit %llu MiB\n",
            w->config.storage, w->page_tokens, w->config.prefix,
            (unsigned long long)(w->limit >> 20));
    for (uint32_t g = 0; g < w->n_groups; g++)
        fprintf(stderr, "group %u: window %u, at most %u pages\n", g, w->group_config[g].window,
                w->group_config[g].max_pages);
    for (int i = 0; i < WORLD_SEQS; i++) {
        const struct world_seq *s = &w->seq[i];
        if (!s->live) continue;
        fprintf(stderr, "sequence %d: %u tokens of namespace %u, %u pins, depends on %llx%s\n", i,
                s->length, s->space, s->n_pins, (unsigned long long)s->dep,
                s->batch >= 0 ? ", in a batch" : "");
        for (uint32_t g = 0; g < w->n_groups; g++) {
            const struct world_policy *p = &s->policy[g];
            fprintf(stderr, "  group %u: policy %d, budget %u, sinks %u, journal %u; holds", g,
                    p->kind, p->budget, p->sinks, p->journal);
            for (uint32_t l = 0; l < s->n_pages; l++)
                if (s->page[g][l] != PKV_PAGE_NONE)
                    fprintf(stderr, " %u:%u", l, pkv_page_index(s->page[g][l]));
            fprintf(stderr, "\n");
        }
    }
}

_Noreturn void world_fail(const struct world *w, const char *file, int line, const char *format,
                          ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%s:%d: world of PKV_SEED=%llu, operation %llu (%s): ", file, line,
            (unsigned long long)w->seed, (unsigned long long)w->op,
            w->op_name != NULL ? w->op_name : "open");
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    char text[256] = "";
    if (w->cache != NULL) pkv_cache_last_error(w->cache, text, sizeof text);
    fprintf(stderr, "last error: %s\n", text);
    describe(w);
    abort();
}

bool world_did(struct world *w, pkv_status status, const char *call, const pkv_status *others)
{
    if (status == PKV_OK) {
        w->ok++;
        return true;
    }
    bool known = status == PKV_ENOMEM;
    while (*others != 0)
        known = *others++ == status || known;
    WORLD_CHECK(w, known, "%s: %s", call, pkv_status_name(status));
    w->refused++;
    w->disturbed++; /* something may have been reclaimed in vain */
    if (status == PKV_ENOMEM) world_disarm(w);
    world_check_all(w);
    return false;
}

void world_disarm(struct world *w)
{
    w->allocator.fail_at = w->allocator.fail_from = 0;
    w->os.fail_map = w->os.fail_maps_from = w->os.fail_other = 0;
    w->armed = false;
}

static uint64_t now(void *user)
{
    return ++((struct world *)user)->time;
}

/* ---- begin ---------------------------------------------------------------------------------- */

static void choose_group(struct world *w, uint32_t g, bool large)
{
    static const pkv_dtype dtypes[] = {PKV_DTYPE_F32, PKV_DTYPE_F16, PKV_DTYPE_BF16};
    pkv_group_config *c = &w->group_config[g];
    const bool bytes = w->config.storage != PKV_STORAGE_NONE;
    c->n_layers = 1 + world_below(w, 2);
    c->kv_heads = 1 + world_below(w, 2);
    c->q_heads = c->kv_heads * (1 + world_below(w, 2));
    c->head_dim_k = 8 + 8 * world_below(w, 2);
    c->head_dim_v = 8 + 8 * world_below(w, 2);
    c->dtype = dtypes[world_below(w, 3)];
    if (w->config.storage != PKV_STORAGE_EXTERNAL && world_once(w, 3)) {
        static const pkv_dtype keys[] = {PKV_DTYPE_K8, PKV_DTYPE_K4, 0};
        static const pkv_dtype values[] = {PKV_DTYPE_V8, PKV_DTYPE_V4, 0};
        c->dtype_k = keys[world_below(w, 3)];
        c->dtype_v = values[world_below(w, c->dtype_k != 0 ? 3 : 2)];
        w->group[g].quantised = true;
    }
    if (large && !bytes) { /* so that the limit means a few dozen pages */
        c->n_layers = 16;
        c->kv_heads = c->q_heads = 16;
        c->head_dim_k = c->head_dim_v = 64;
    } else if (large) {
        c->kv_heads = c->q_heads = 8;
        c->head_dim_k = c->head_dim_v = 64;
    }
    if (world_once(w, 3)) c->window = 1 + world_below(w, 60);
    if (world_once(w, 2)) c->max_pages = 20 + world_below(w, 120);
    w->n_layers += c->n_layers;
    if (w->config.storage == PKV_STORAGE_EXTERNAL) {
        c->external_bytes = (size_t)4 << 20;
        w->group[g].buffer = aligned_alloc(4096, c->external_bytes);
        c->external_base = w->group[g].buffer;
    }
    w->rope[g] = (pkv_rope_config){.rotary_dims = 8, .theta = 10000};
}

static void choose_config(struct world *w)
{
    static const pkv_storage storages[] = {PKV_STORAGE_NONE, PKV_STORAGE_HOST,
                                           PKV_STORAGE_EXTERNAL};
    static const char *policies[] = {NULL,   "lru",  "s3fifo", "sieve",    "arc",
                                     "slru", "twoq", "lfu",    "priority", "adaptive"};
    pkv_config *c = &w->config;
    WORLD_CHECK(w, pkv_config_init(c, sizeof *c) == PKV_OK, "config");
    c->storage = storages[world_below(w, 3)];
    c->page_tokens = world_once(w, 3) ? 16 : 8;
    c->n_groups = 1 + world_below(w, WORLD_GROUPS);
    const bool large = world_once(w, 3);
    w->page_tokens = c->page_tokens;
    w->n_groups = c->n_groups;
    for (uint32_t g = 0; g < c->n_groups; g++)
        choose_group(w, g, large);
    c->groups = w->group_config;
    c->memory_limit = (uint64_t)(large ? 12 + world_below(w, 40) : 16 + world_below(w, 16)) << 20;
    c->event_capacity = world_once(w, 2) ? 64 : 0;
    c->prefix = !world_once(w, 4);
    world_choose_states(w);
    c->prefix_policy = policies[world_below(w, 10)];
    bool known = c->prefix_policy == NULL;
    const char *name;
    for (uint32_t i = 0; (name = pkv_policy_name(i, NULL)) != NULL; i++)
        known = known || strcmp(name, c->prefix_policy) == 0;
    if (!known) c->prefix_policy = NULL;
    c->prefix_key[0] = 1;
    if (world_once(w, 4)) /* all hashes alike: only comparisons tell pages apart */
        c->prefix_key[0] = c->prefix_key[1] = UINT64_MAX;
    c->huge_pages = world_below(w, 2);
    c->watermark_pages = world_once(w, 4) ? world_below(w, 4) : 0;
    if (c->storage == PKV_STORAGE_HOST && world_once(w, 3))
        c->debug = PKV_DEBUG_POISON | PKV_DEBUG_CHECKSUM;
    if (c->storage != PKV_STORAGE_NONE && world_once(w, 2))
        c->signals = PKV_SIGNAL_BOUNDS | PKV_SIGNAL_KEYSUM;
    c->rope = w->rope;
    c->allocator = &w->allocator.vtable;
    c->clock = now;
    c->clock_user = w;
    w->limit = c->memory_limit;
    w->hole = world_once(w, 2) ? -1 : 0;
}

bool world_make_plan(struct world *w)
{
    if (w->config.storage == PKV_STORAGE_NONE) {
        WORLD_CHECK(w, pkv_plan_create(w->cache, NULL, &w->plan) == PKV_ENOTSUP, "a plan of ids");
        w->plan = NULL;
        return true;
    }
    pkv_plan_options options;
    WORLD_CHECK(w, pkv_plan_options_init(&options, sizeof options) == PKV_OK, "options");
    options.cascade = world_below(w, 3);
    options.mass = world_below(w, 2);
    options.max_threads = 2;
    w->plan = NULL;
    return world_did(w, pkv_plan_create(w->cache, &options, &w->plan), "pkv_plan_create",
                     WORLD_NONE);
}

bool world_open(struct world *w)
{
    pkvt_allocator_init(&w->allocator);
    pkvt_os_init(&w->os);
    choose_config(w);
    char text[256];
    if (pkv_config_check(&w->config, text, sizeof text) != PKV_OK) {
        WORLD_CHECK(w, text[0] != '\0', "a config is refused without a text");
        return false;
    }
    /* Mappings can be refused where the OS is the test's own. */
    const pkv_status status = world_once(w, 2)
                                  ? pkv_cache_create(&w->config, &w->cache)
                                  : pkvi_cache_create(&w->config, &w->os.hooks, &w->cache);
    WORLD_CHECK(w, status == PKV_OK, "cache: %s", pkv_status_name(status));
    for (uint32_t g = 0; g < w->n_groups; g++) {
        w->group[g].info.struct_size = sizeof w->group[g].info;
        WORLD_CHECK(w, pkv_cache_group_info(w->cache, g, &w->group[g].info) == PKV_OK,
                    "group info");
    }
    for (uint32_t s = 0; s < w->n_states; s++) {
        w->state[s].info.struct_size = sizeof w->state[s].info;
        WORLD_CHECK(w, pkv_cache_state_info(w->cache, s, &w->state[s].info) == PKV_OK,
                    "state info");
    }
    w->worlds++;
    return world_make_plan(w);
}

/* ---- end ------------------------------------------------------------------------------------ */

static void end_everything(struct world *w)
{
    world_disarm(w);
    for (int i = 0; i < WORLD_BATCHES; i++)
        if (w->batch[i].live)
            WORLD_CHECK(w, pkv_batch_abort(w->batch[i].handle) == PKV_OK, "last aborts");
    for (int i = 0; i < WORLD_SEQS; i++)
        if (w->seq[i].live)
            WORLD_CHECK(w, pkv_seq_destroy(w->seq[i].handle) == PKV_OK, "last destroys");
    for (int i = 0; i < WORLD_HOST_PAGES; i++)
        for (struct world_host_page *h = &w->host_page[i]; h->page != PKV_PAGE_NONE && h->refs > 0;
             h->refs--)
            WORLD_CHECK(w, pkv_page_unref(w->cache, h->group, 1, &h->page) == PKV_OK,
                        "last unrefs");
    for (int i = 0; i < WORLD_PREFIX_PINS; i++)
        if (w->prefix_pin[i] != 0) (void)pkv_prefix_unpin(w->cache, w->prefix_pin[i]);
    for (int i = 0; i < WORLD_MAGAZINES; i++)
        if (world_once(w, 2)) { /* others go with the cache */
            pkv_magazine_destroy(w->magazine[i].magazine);
            w->magazine[i].magazine = NULL;
        }
}

static void check_nothing_left(struct world *w)
{
    for (uint32_t g = 0; g < w->n_groups; g++) {
        uint64_t freed;
        if (w->config.prefix)
            WORLD_CHECK(w, pkv_prefix_reclaim(w->cache, g, UINT64_MAX, &freed) == PKV_OK,
                        "reclaim");
        pkv_group_stats stats = {.struct_size = sizeof stats};
        WORLD_CHECK(w, pkv_cache_group_stats(w->cache, g, &stats) == PKV_OK, "stats");
        WORLD_CHECK(w, stats.pages_used == 0 && stats.pages_cached == 0,
                    "group %u: %llu pages in use and %llu cached at the end", g,
                    (unsigned long long)stats.pages_used, (unsigned long long)stats.pages_cached);
    }
    for (uint32_t s = 0; s < w->n_states; s++) {
        pkv_state_info *info = &w->state[s].info;
        WORLD_CHECK(w, pkv_cache_state_info(w->cache, s, info) == PKV_OK && info->slots_used == 0,
                    "state group %u: %llu slots in use at the end", s,
                    (unsigned long long)info->slots_used);
    }
    char text[256];
    WORLD_CHECK(w, pkv_cache_verify(w->cache, text, sizeof text) == PKV_OK, "at the end: %s", text);
}

void world_close(struct world *w)
{
    w->op_name = "end";
    if (w->cache != NULL) {
        end_everything(w);
        check_nothing_left(w);
        pkv_plan_destroy(w->plan);
        pkv_cache_destroy(w->cache);
        w->cache = NULL;
        WORLD_CHECK(
            w,
            w->allocator.live_blocks == 0 && w->allocator.wrong_frees == 0 && w->os.live_maps == 0,
            "%llu blocks and %llu mappings are left", (unsigned long long)w->allocator.live_blocks,
            (unsigned long long)w->os.live_maps);
    }
    world_end_states(w);
    for (uint32_t g = 0; g < WORLD_GROUPS; g++) {
        free(w->group[g].buffer);
        free(w->group[g].shadow.slot);
        free(w->group[g].open_shadow.slot);
    }
}

/* ---- in between ----------------------------------------------------------------------------- */

static const struct world_op *const tables[] = {world_seq_ops, world_batch_ops, world_cache_ops,
                                                world_prefix_ops, world_state_ops};
#define TABLES (sizeof tables / sizeof *tables)

void world_step(struct world *w)
{
    uint32_t total = 0;
    for (size_t i = 0; i < TABLES; i++)
        for (const struct world_op *op = tables[i]; op->name != NULL; op++)
            total += op->weight;
    uint32_t pick = world_below(w, total);
    for (size_t i = 0; i < TABLES; i++)
        for (const struct world_op *op = tables[i]; op->name != NULL; op++) {
            if (pick < op->weight) {
                w->op++;
                w->op_name = op->name;
                op->run(w);
                return;
            }
            pick -= op->weight;
        }
}

void world_run(struct world *w, uint64_t n)
{
    const uint64_t first = w->seed;
    for (uint64_t done = 0, i = 0; done < n; i++) {
        struct world *next = calloc(1, sizeof *next);
        if (next == NULL) abort();
        next->seed = first + i; /* so that a world can be repeated by itself */
        next->source.random = world_mix(1, next->seed);
        const uint64_t steps = 500 + world_below(next, 4000);
        if (world_open(next))
            while (next->op < steps && done + next->op < n)
                world_step(next);
        done += next->op + 1;
        world_close(next);
        w->op += next->op;
        w->ok += next->ok;
        w->refused += next->refused;
        w->commits += next->commits;
        w->hits += next->hits;
        w->hit_tokens += next->hit_tokens;
        w->undone += next->undone;
        w->evictions += next->evictions;
        w->attends += next->attends;
        w->worlds += next->worlds;
        free(next);
    }
}
