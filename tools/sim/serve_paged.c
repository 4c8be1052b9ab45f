/* The memory of pkv-sim serve on the library: ids only, one cache. */
#include <math.h>
#include <pagedkv/pagedkv.h>
#include <stdlib.h>
#include <string.h>

#include "serve.h"

typedef struct paged {
    serve_memory base; /* first: the engine only sees this */
    const serve_options *options;
    const trace *input;
    pkv_cache *cache;
    pkv_batch batch; /* between reserve and commit */
    uint64_t page_bytes[MODEL_MAX_GROUPS];
    uint64_t slot_bytes; /* of a recurrent state; 0 = the model has none */
    uint32_t n_groups, page_tokens;
    uint64_t limit;
    uint64_t metadata; /* bytes, at the last sample */
    uint32_t until_sample;
} paged;

enum { STEPS_PER_SAMPLE = 256 };
#define SLACK ((uint64_t)4 << 20) /* per layer group: regions that are begun */

static paged *self(serve_memory *m)
{
    return (paged *)m;
}

static int failed(paged *p, const char *call, pkv_status status, tool_error *err)
{
    char detail[256] = "";
    pkv_cache_last_error(p->cache, detail, sizeof detail);
    if (detail[0] == '\0') return tool_fail(err, "%s: %s", call, pkv_status_text(status));
    return tool_fail(err, "%s: %s (%s)", call, pkv_status_text(status), detail);
}

/* Bytes of pages that n tokens of a sequence need when nothing is shared; a windowed group holds
 * its window and what one step adds. */
static uint64_t bytes_alone(const paged *p, uint64_t n)
{
    uint64_t bytes = 0, page = p->page_tokens;
    for (uint32_t g = 0; g < p->n_groups; g++) {
        uint64_t window = p->options->model->groups[g].window, held = n;
        if (window != 0 && held > window) held = window;
        bytes += (held + page - 1) / page * p->page_bytes[g];
    }
    return bytes + 2 * p->slot_bytes; /* a step reads a state and writes another */
}

/* ---- figures -------------------------------------------------------------------------------- */

/* Metadata is read once in a while only: pkv_cache_stats asks the allocator. */
static int sample_metadata(paged *p, tool_error *err)
{
    if (p->until_sample-- > 0) return 0;
    p->until_sample = STEPS_PER_SAMPLE;
    pkv_stats stats = {.struct_size = sizeof stats};
    pkv_status status = pkv_cache_stats(p->cache, &stats);
    if (status != PKV_OK) return failed(p, "pkv_cache_stats", status, err);
    p->metadata = stats.metadata_bytes;
    return 0;
}

static int usage(serve_memory *m, serve_sequence *const *list, size_t n, serve_usage *u,
                 tool_error *err)
{
    paged *p = self(m);
    if (sample_metadata(p, err) != 0) return -1;
    *u = (serve_usage){.limit = p->limit, .metadata = p->metadata};
    for (uint32_t g = 0; g < p->n_groups; g++) {
        pkv_group_stats group = {.struct_size = sizeof group};
        pkv_status status = pkv_cache_group_stats(p->cache, g, &group);
        if (status != PKV_OK) return failed(p, "pkv_cache_group_stats", status, err);
        u->used += group.pages_used * group.page_bytes;
        u->cached += group.pages_cached * group.page_bytes;
        if (g == 0) u->slots_held = group.pages_used * p->page_tokens;
    }
    if (p->slot_bytes != 0) {
        pkv_state_info info = {.struct_size = sizeof info};
        pkv_status status = pkv_cache_state_info(p->cache, 0, &info);
        if (status != PKV_OK) return failed(p, "pkv_cache_state_info", status, err);
        u->used += info.slots_used * p->slot_bytes;
        u->cached += info.slots_cached * p->slot_bytes;
    }
    for (size_t i = 0; i < n; i++) {
        uint64_t over = list[i]->length % p->page_tokens;
        u->slots_empty += over == 0 ? 0 : p->page_tokens - over;
    }
    return 1;
}

/* ---- start ---------------------------------------------------------------------------------- */

/* Bytes of pages that can be had without taking everything: what a request needs more than that
 * depends on metadata that is still to come, and is tried only while nothing else runs. */
static uint64_t easily_had(const paged *p)
{
    uint64_t kept = p->metadata + p->limit / 32 + p->n_groups * SLACK;
    return kept < p->limit ? p->limit - kept : 0;
}

/* Bytes of pages that a sequence with `have` tokens still takes to compute its prompt; a windowed
 * group never has to hold more than its window, for a chunk may be as small as it must. */
static uint64_t bytes_to_come(const paged *p, const serve_sequence *s, uint64_t have)
{
    const uint64_t page = p->page_tokens, all = (s->target + page - 1) / page;
    uint64_t bytes = 0;
    for (uint32_t g = 0; g < p->n_groups; g++) {
        const uint64_t window = p->options->model->groups[g].window, n = (have + page - 1) / page;
        uint64_t more = all - n;
        if (window != 0) {
            const uint64_t most = (window + page - 2) / page + 1;
            const uint64_t held = n - (have < window ? 0 : (have - window + 1) / page);
            const uint64_t left = most > held ? most - held : 0;
            if (more > left) more = left;
        }
        bytes += more * p->page_bytes[g];
    }
    return bytes + 2 * p->slot_bytes;
}

/* Would its prompt find memory now, beside the prompts being computed? The safe rule alone would
 * start everything, for a sequence that holds nothing harms nobody. */
static int fits_now(paged *p, const serve_sequence *s, serve_sequence *const *list, size_t n,
                    tool_error *err)
{
    serve_usage now;
    if (usage(&p->base, NULL, 0, &now, err) < 0) return -1;
    double wanted = (double)bytes_to_come(p, s, s->match.n_tokens);
    for (size_t i = 0; i < n; i++)
        if (list[i]->length < list[i]->target)
            wanted += (double)bytes_to_come(p, list[i], list[i]->length);
    double kept = p->options->watermark * (double)p->limit;
    return (double)now.used + (double)now.metadata + wanted + kept <= (double)p->limit;
}

/* Prompt tokens that these have still to compute. */
static uint64_t outstanding(serve_sequence *const *list, size_t n)
{
    uint64_t tokens = 0;
    for (size_t i = 0; i < n; i++)
        if (list[i]->length < list[i]->target) tokens += list[i]->target - list[i]->length;
    return tokens;
}

/* What starting a sequence of so many tokens would mean, of which the match has some. */
static int probe(paged *p, const serve_sequence *s, uint64_t tokens, pkv_admit_outlook *outlook,
                 tool_error *err)
{
    *outlook = (pkv_admit_outlook){.struct_size = sizeof *outlook};
    if (tokens > INT32_MAX) tokens = INT32_MAX; /* the longest sequence; it will not fit */
    const pkv_match *match = s->match.n_tokens > 0 ? &s->match : NULL;
    pkv_status status = pkv_admit_probe_match(p->cache, match, tokens, outlook, NULL, 0);
    if (status != PKV_OK) return failed(p, "pkv_admit_probe_match", status, err);
    return outlook->safe == 1;
}

/* May a sequence start, by the safe rule? Running requests end at different times, so their final
 * lengths may exceed what there is for them by a fifth: few then have to sit out, and not for long.
 */
static int bearable(paged *p, const serve_sequence *s, tool_error *err)
{
    pkv_admit_outlook outlook;
    const int got = probe(p, s, serve_final_length(s->request), &outlook, err);
    if (got != 1) return got;
    return (double)outlook.claimed_bytes <= 1.2 * (double)outlook.available_bytes;
}

/* May a sequence start, by the watermark rule? */
static int room(paged *p, const serve_sequence *s, uint64_t prompts, tool_error *err)
{
    double page = (double)bytes_alone(p, 1);
    double kept = floor(p->options->watermark * (double)p->limit / page) * p->page_tokens;
    pkv_admit_outlook outlook;
    return probe(p, s, s->target + prompts + (uint64_t)kept, &outlook, err);
}

/* Nothing else runs: can it be brought to its end? */
static int fits_alone(paged *p, const serve_sequence *s, tool_error *err)
{
    pkv_admit_outlook outlook;
    const int got = probe(p, s, serve_final_length(s->request), &outlook, err);
    return got == 0 ? SERVE_TOO_LARGE : got;
}

/* Destroys one that did not come to run. */
static int close_sequence(paged *p, pkv_seq seq, tool_error *err)
{
    pkv_status status = pkv_seq_destroy(seq);
    return status == PKV_OK ? 0 : failed(p, "pkv_seq_destroy", status, err);
}

/* Where the sequence's next step should end. */
static int find_stop(paged *p, serve_sequence *s, tool_error *err)
{
    if (p->slot_bytes == 0) return 1;
    pkv_status status = pkv_seq_state_stop(s->seq, s->target, &s->stop);
    return status == PKV_OK ? 1 : failed(p, "pkv_seq_state_stop", status, err);
}

/* A new sequence with what the match found, and its claim if the rule wants one. */
static int open_sequence(paged *p, serve_sequence *s, tool_error *err)
{
    pkv_status status = pkv_seq_create(p->cache, &s->seq);
    if (status != PKV_OK) return failed(p, "pkv_seq_create", status, err);
    /* Also a match of no tokens tells where a state was missing. */
    const bool matched = p->slot_bytes != 0 && s->match.struct_size != 0;
    const bool safe = p->options->admission == SERVE_SAFE;
    const bool found = s->match.n_tokens > 0 || matched;
    const uint64_t final = serve_final_length(s->request);
    const char *call = safe && found ? "pkv_admit_attach" : safe ? "pkv_admit" : "pkv_seq_attach";
    if (safe)
        status = found ? pkv_admit_attach(s->seq, &s->match, final) : pkv_admit(s->seq, final);
    else if (found)
        status = pkv_seq_attach(s->seq, &s->match);
    if (status == PKV_OK) {
        s->length = s->match.n_tokens;
        return find_stop(p, s, err);
    }
    if (status == PKV_EUNSAFE) return close_sequence(p, s->seq, err);
    failed(p, call, status, err);
    pkv_seq_destroy(s->seq);
    return -1;
}

static int match(serve_memory *m, serve_sequence *s, tool_error *err)
{
    /* All but the last token: the model needs one to run on. */
    s->match = (pkv_match){.struct_size = sizeof s->match};
    pkv_status status = pkv_prefix_match(self(m)->cache, NULL, s->tokens, s->target - 1, &s->match);
    return status == PKV_OK ? 1 : failed(self(m), "pkv_prefix_match", status, err);
}

/* The claim changes hands. If the rule refuses what was found as well, since pages that nobody
 * held would be, the old claim is as safe as it was. */
static int replace(serve_memory *m, serve_sequence *s, tool_error *err)
{
    paged *p = self(m);
    const bool safe = p->options->admission == SERVE_SAFE;
    const pkv_seq old = s->seq;
    const uint64_t length = s->length;
    pkv_status status = safe ? pkv_admit_release(old) : PKV_OK;
    if (status != PKV_OK) return failed(p, "pkv_admit_release", status, err);
    const int got = open_sequence(p, s, err);
    if (got == 1) return close_sequence(p, old, err) == 0 ? 1 : -1;
    s->seq = old;
    s->length = length;
    if (got < 0) return -1;
    status = pkv_admit(old, serve_final_length(s->request));
    return status == PKV_OK ? 0 : failed(p, "pkv_admit", status, err);
}

static int start(serve_memory *m, serve_sequence *s, serve_sequence *const *list, size_t n,
                 tool_error *err)
{
    paged *p = self(m);
    const uint64_t final = serve_final_length(s->request), bytes = bytes_alone(p, final);
    if (bytes > p->limit || final > INT32_MAX) return SERVE_TOO_LARGE;
    if (sample_metadata(p, err) != 0) return -1;
    int got;
    if (n == 0) {
        got = fits_alone(p, s, err);
    } else {
        got = bytes > easily_had(p) ? 0 : fits_now(p, s, list, n, err);
        if (got == 1 && p->options->admission == SERVE_SAFE) got = bearable(p, s, err);
        /* What a match found may be held by others or by nobody: the library knows. */
        else if (got == 1 && s->match.n_tokens > 0)
            got = room(p, s, outstanding(list, n), err);
    }
    if (got != 1) return got;
    got = open_sequence(p, s, err);
    return got == 0 && n == 0 ? SERVE_TOO_LARGE : got;
}

/* ---- steps ---------------------------------------------------------------------------------- */

static pkv_status add(paged *p, const serve_sequence *s)
{
    int32_t answer;
    const int32_t *tokens = NULL;
    if (s->tokens != NULL && s->length < s->target) {
        tokens = s->tokens + s->length;
    } else if (s->tokens != NULL) {
        answer = serve_answer_token(p->input, s->request, s->length);
        tokens = &answer;
    }
    return pkv_batch_add(p->batch, s->seq, tokens, s->step);
}

/* A batch of everything that has a step. 0 = nothing has. */
static int fill_batch(paged *p, serve_sequence *const *list, size_t n, tool_error *err)
{
    bool any = false;
    pkv_status status = pkv_batch_begin(p->cache, &p->batch);
    if (status != PKV_OK) return failed(p, "pkv_batch_begin", status, err);
    for (size_t i = 0; i < n; i++) {
        if (list[i]->step == 0) continue;
        any = true;
        status = add(p, list[i]);
        if (status != PKV_OK) return failed(p, "pkv_batch_add", status, err);
    }
    return any;
}

static int drop_batch(paged *p, tool_error *err)
{
    pkv_status status = pkv_batch_abort(p->batch);
    return status == PKV_OK ? 0 : failed(p, "pkv_batch_abort", status, err);
}

/* Makes the sequence behind batch entry number `entry` sit out. */
static void sit_out(serve_sequence *const *list, size_t n, uint32_t entry)
{
    for (size_t i = 0; i < n; i++) {
        if (list[i]->step == 0) continue;
        if (entry-- > 0) continue;
        list[i]->step = 0;
        return;
    }
}

static int reserve(serve_memory *m, serve_sequence *const *list, size_t n, tool_error *err)
{
    paged *p = self(m);
    for (;;) {
        uint32_t blocked = 0;
        int got = fill_batch(p, list, n, err);
        if (got < 0) return -1;
        if (got == 0) return drop_batch(p, err);
        if (p->options->admission == SERVE_WATERMARK) break;
        pkv_status status = pkv_admit_check_batch(p->batch, &blocked);
        if (status == PKV_OK) break;
        if (status != PKV_EUNSAFE) return failed(p, "pkv_admit_check_batch", status, err);
        if (drop_batch(p, err) < 0) return -1;
        sit_out(list, n, blocked);
    }
    pkv_status status = pkv_batch_reserve(p->batch);
    if (status == PKV_OK) return 1;
    if (status != PKV_ENOPAGES && status != PKV_ENOMEM)
        return failed(p, "pkv_batch_reserve", status, err);
    return drop_batch(p, err);
}

static int commit(serve_memory *m, serve_sequence *const *list, size_t n, tool_error *err)
{
    pkv_status status = pkv_batch_commit(self(m)->batch);
    if (status != PKV_OK) return failed(self(m), "pkv_batch_commit", status, err);
    for (size_t i = 0; i < n; i++)
        list[i]->length += list[i]->step;
    for (size_t i = 0; i < n; i++)
        if (find_stop(self(m), list[i], err) < 0) return -1;
    return 1;
}

static int stop(serve_memory *m, serve_sequence *s, tool_error *err)
{
    pkv_status status = pkv_seq_destroy(s->seq);
    return status == PKV_OK ? 1 : failed(self(m), "pkv_seq_destroy", status, err);
}

/* ---- limit ---------------------------------------------------------------------------------- */

static int set_limit(serve_memory *m, uint64_t bytes, tool_error *err)
{
    pkv_status status = pkv_cache_set_limit(self(m)->cache, bytes);
    if (status == PKV_EBUSY) return 0;
    if (status != PKV_OK) return failed(self(m), "pkv_cache_set_limit", status, err);
    self(m)->limit = bytes;
    return 1;
}

static int verify(serve_memory *m, tool_error *err)
{
    char text[256] = "";
    if (pkv_cache_verify(self(m)->cache, text, sizeof text) == PKV_OK) return 1;
    return tool_fail(err, "the cache is inconsistent: %s", text);
}

static void destroy(serve_memory *m)
{
    pkv_cache_destroy(self(m)->cache);
    free(self(m));
}

/* ---- create --------------------------------------------------------------------------------- */

static int open_cache(paged *p, tool_error *err)
{
    const serve_options *o = p->options;
    pkv_config config;
    pkv_group_config groups[MODEL_MAX_GROUPS + 1];
    char text[256] = "";
    pkv_status status = pkv_config_init(&config, sizeof config);
    if (status != PKV_OK) return tool_fail(err, "pkv_config_init: %s", pkv_status_text(status));
    memcpy(groups, o->model->groups, sizeof o->model->groups);
    groups[p->n_groups] = (pkv_group_config){.n_layers = 1, .state_bytes = o->state_bytes};
    config.page_tokens = o->page_tokens;
    config.groups = groups;
    config.n_groups = p->n_groups + (o->state_bytes != 0);
    config.storage = PKV_STORAGE_NONE;
    config.memory_limit = o->memory;
    config.max_sequences = o->max_seqs + 1;
    config.prefix = !o->no_prefix && p->input->has_blocks;
    config.prefix_policy = o->policy;
    status = pkv_config_check(&config, text, sizeof text);
    if (status != PKV_OK) return tool_fail(err, "%s: %s", pkv_status_text(status), text);
    status = pkv_cache_create(&config, &p->cache);
    if (status != PKV_OK) return tool_fail(err, "pkv_cache_create: %s", pkv_status_text(status));
    for (uint32_t g = 0; g < p->n_groups; g++) {
        pkv_group_info info = {.struct_size = sizeof info};
        status = pkv_cache_group_info(p->cache, g, &info);
        if (status != PKV_OK) return failed(p, "pkv_cache_group_info", status, err);
        p->page_bytes[g] = info.page_bytes;
    }
    if (o->state_bytes == 0) return 0;
    pkv_state_info info = {.struct_size = sizeof info};
    status = pkv_cache_state_info(p->cache, 0, &info);
    if (status != PKV_OK) return failed(p, "pkv_cache_state_info", status, err);
    p->slot_bytes = info.slot_bytes;
    return 0;
}

serve_memory *serve_paged_create(const serve_options *options, const trace *input, tool_error *err)
{
    paged *p = calloc(1, sizeof *p);
    if (p == NULL) {
        tool_fail(err, "out of memory");
        return NULL;
    }
    p->base = (serve_memory){match, start,     replace, reserve, commit,
                             stop,  set_limit, usage,   verify,  destroy};
    p->options = options;
    p->input = input;
    p->n_groups = options->model->n_groups;
    p->page_tokens = options->page_tokens;
    p->limit = options->memory;
    if (open_cache(p, err) == 0) return &p->base;
    destroy(&p->base);
    return NULL;
}
