/* Runs requests through the library, up to 256 sequences at a time: as one completes the next
 * starts.
 *
 * What is held changes only at few steps of a request: when a token opens a page, and when a page
 * leaves a sliding window. So the sequences do not decode token by token: each appends up to its
 * next change in one go (a "span"; all live sequences in one batch), and what is held counts once
 * per step in the span. That is exact, not an approximation.
 *
 * What is held is measured between reserve and commit, as a model step would see it. Each
 * sequence's count is computed, and the sum over all live ones is compared with the library's own
 * counter at every batch; if they ever differ, the library is asked for each sequence. */
#include <pagedkv/pagedkv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "waste.h"

enum { LIVE_SEQUENCES = 256, LIVE_PAGES = 1 << 13 };
#define IDS_ONLY_LIMIT ((uint64_t)1 << 50)

typedef struct member {
    const trace_request *request;
    pkv_seq seq;
    uint64_t length; /* committed tokens */
    uint64_t span;   /* tokens being appended; 0 = not in this batch */
    bool counted;    /* the span consists of decode steps */
    uint64_t end;    /* input + output */
    waste_sum reserved_end, reserved_decode;
} member;

typedef struct run {
    waste_scheme *scheme;
    const waste_options *options;
    const model *model;
    const trace *input;
    pkv_cache *cache;
    uint32_t page_tokens;
    uint64_t page_bytes[MODEL_MAX_GROUPS];
    member live[LIVE_SEQUENCES];
    size_t n_live;
    uint64_t live_pages; /* that the live ones will hold at their ends */
    size_t most;         /* live sequences allowed: less after memory was short */
    size_t next;         /* request that starts next */
    const trace_request *again[LIVE_SEQUENCES]; /* that had to give way and start anew */
    size_t n_again;
    tool_error *err;
} run;

static int library_failed(run *r, const char *call, pkv_status status, const member *m)
{
    char detail[256] = "", what[400];
    if (r->cache != NULL) pkv_cache_last_error(r->cache, detail, sizeof detail);
    size_t n = (size_t)snprintf(what, sizeof what, "%s: %s", call, pkv_status_text(status));
    if (detail[0] != '\0') snprintf(what + n, sizeof what - n, " (%s)", detail);
    if (m == NULL) return tool_fail(r->err, "%s: %s", r->scheme->name, what);
    return tool_fail(r->err, "%.120s:%llu: %s: a request of %llu + %llu tokens: %s", r->input->name,
                     (unsigned long long)m->request->line, r->scheme->name,
                     (unsigned long long)m->request->input, (unsigned long long)m->request->output,
                     what);
}

static int open_cache(run *r)
{
    pkv_config config;
    pkv_status status = pkv_config_init(&config, sizeof config);
    if (status != PKV_OK) return library_failed(r, "pkv_config_init", status, NULL);
    pkv_group_config groups[MODEL_MAX_GROUPS];
    memcpy(groups, r->model->groups, sizeof groups);
    config.page_tokens = r->page_tokens;
    config.groups = groups;
    config.n_groups = r->model->n_groups;
    config.storage = r->options->touch ? PKV_STORAGE_HOST : PKV_STORAGE_NONE;
    config.memory_limit = r->options->touch ? r->options->memory_limit : IDS_ONLY_LIMIT;
    config.max_sequences = LIVE_SEQUENCES;
    config.prefix = 0;
    char text[256] = "";
    status = pkv_config_check(&config, text, sizeof text);
    if (status != PKV_OK)
        return tool_fail(r->err, "%s: %s: %s", r->scheme->name, pkv_status_text(status), text);
    status = pkv_cache_create(&config, &r->cache);
    if (status != PKV_OK) return library_failed(r, "pkv_cache_create", status, NULL);
    for (uint32_t g = 0; g < r->model->n_groups; g++) {
        pkv_group_info info = {.struct_size = sizeof info};
        status = pkv_cache_group_info(r->cache, g, &info);
        if (status != PKV_OK) return library_failed(r, "pkv_cache_group_info", status, NULL);
        /* Token bytes, not page_bytes: the latter may hold alignment and digests. */
        r->page_bytes[g] = info.token_bytes * r->page_tokens;
    }
    return 0;
}

/* Pages of a group that hold the step which appends token number n (from 1). */
static uint64_t pages_held(const run *r, uint32_t group, uint64_t n)
{
    uint64_t window = r->model->groups[group].window;
    uint64_t first = window != 0 && n > window ? (n - window) / r->page_tokens : 0;
    return (n + r->page_tokens - 1) / r->page_tokens - first;
}

/* Tokens that can be appended after `length` without what is held changing between the steps. */
static uint64_t span_length(const run *r, uint64_t length, uint64_t end)
{
    uint64_t page = r->page_tokens, n = length + 1; /* the first step of the span */
    uint64_t last = (n + page - 1) / page * page;
    for (uint32_t g = 0; g < r->model->n_groups; g++) {
        uint64_t window = r->model->groups[g].window;
        if (window == 0) continue;
        /* The last step before the next page leaves the window. */
        uint64_t until =
            n < window ? window + page - 1 : window + ((n - window) / page + 1) * page - 1;
        if (until < last) last = until;
    }
    return (last < end ? last : end) - length;
}

/* The prompt in one go, then spans. With no output the prompt's last token is the one step that
 * counts, so it comes alone. */
static void next_span(const run *r, member *m)
{
    const trace_request *q = m->request;
    m->counted = false;
    if (m->length == 0 && q->input > 0 && q->output > 0) {
        m->span = q->input;
    } else if (m->length == 0 && q->output == 0 && q->input > 1) {
        m->span = q->input - 1;
    } else {
        m->span = span_length(r, m->length, m->end);
        m->counted = true;
    }
}

static int measured_pages(run *r, const member *m, uint32_t group, uint64_t *pages)
{
    pkv_seq_info info = {.struct_size = sizeof info};
    pkv_status status = pkv_seq_get_info(m->seq, group, &info);
    if (status != PKV_OK) return library_failed(r, "pkv_seq_get_info", status, m);
    *pages = info.resident_pages;
    return 0;
}

/* Pages that the library holds for a sequence between reserve and commit, or at rest. */
static uint64_t pages_expected(const run *r, const member *m, uint32_t group)
{
    uint64_t n = m->length + m->span;
    if (m->counted) return pages_held(r, group, n);
    /* A prompt: nothing leaves the window before the commit. */
    return (n + r->page_tokens - 1) / r->page_tokens;
}

/* Does the library hold exactly the computed number of pages in a group? */
static int check_group(run *r, uint32_t group, bool *agrees)
{
    pkv_group_stats stats = {.struct_size = sizeof stats};
    pkv_status status = pkv_cache_group_stats(r->cache, group, &stats);
    if (status != PKV_OK) return library_failed(r, "pkv_cache_group_stats", status, NULL);
    uint64_t sum = 0;
    for (size_t i = 0; i < r->n_live; i++)
        sum += pages_expected(r, &r->live[i], group);
    *agrees = sum == stats.pages_used;
    return 0;
}

/* Adds what is held now to each sequence's sums. */
static int count_held(run *r)
{
    for (uint32_t g = 0; g < r->model->n_groups; g++) {
        bool agrees = false;
        if (check_group(r, g, &agrees) != 0) return -1;
        for (size_t i = 0; i < r->n_live; i++) {
            member *m = &r->live[i];
            if (!m->counted) continue;
            uint64_t pages = pages_expected(r, m, g);
            if (!agrees && measured_pages(r, m, g, &pages) != 0) return -1;
            waste_sum bytes = (waste_sum)pages * r->page_bytes[g];
            m->reserved_decode += bytes * m->span;
            if (m->length + m->span == m->end) m->reserved_end += bytes;
        }
    }
    return 0;
}

/* Writes to every memory page (4 KiB) of a library page. */
static int touch_page(run *r, const member *m, uint32_t group, const pkv_group_info *info,
                      uint64_t logical)
{
    pkv_page page = PKV_PAGE_NONE;
    void *base = NULL;
    pkv_status status = pkv_seq_pages(m->seq, group, (uint32_t)logical, 1, &page);
    for (uint32_t l = 0; status == PKV_OK && l < info->n_layers; l++) {
        status = pkv_page_address(r->cache, group, page, l, &base);
        for (uint64_t at = 0; status == PKV_OK && at < info->layer_bytes; at += 4096)
            ((volatile char *)base)[at] = 1;
    }
    if (status != PKV_OK) return library_failed(r, "pkv_page_address", status, m);
    r->scheme->touched_bytes += info->page_bytes;
    return 0;
}

/* Touches the pages that the batch opened. */
static int touch_opened(run *r)
{
    for (uint32_t g = 0; g < r->model->n_groups; g++) {
        pkv_group_info info = {.struct_size = sizeof info};
        pkv_status status = pkv_cache_group_info(r->cache, g, &info);
        if (status != PKV_OK) return library_failed(r, "pkv_cache_group_info", status, NULL);
        for (size_t i = 0; i < r->n_live; i++) {
            const member *m = &r->live[i];
            uint64_t page = r->page_tokens, end = m->length + m->span;
            for (uint64_t k = (m->length + page - 1) / page; k < (end + page - 1) / page; k++)
                if (touch_page(r, m, g, &info, k) != 0) return -1;
        }
    }
    return 0;
}

/* Metadata at the moment with the most tokens live, give or take 2 %: pkv_cache_stats asks the
 * allocator, which is too much for every batch. */
static int sample_metadata(run *r)
{
    uint64_t tokens = 0;
    for (size_t i = 0; i < r->n_live; i++)
        tokens += r->live[i].length;
    if (tokens <= r->scheme->live_tokens + r->scheme->live_tokens / 50) return 0;
    pkv_stats stats = {.struct_size = sizeof stats};
    pkv_status status = pkv_cache_stats(r->cache, &stats);
    if (status != PKV_OK) return library_failed(r, "pkv_cache_stats", status, NULL);
    if (stats.tokens != tokens)
        return tool_fail(r->err, "%s: the cache counts %llu tokens instead of %llu",
                         r->scheme->name, (unsigned long long)stats.tokens,
                         (unsigned long long)tokens);
    r->scheme->live_tokens = tokens;
    /* The allocator's own count includes what rounding up to its size classes costs. */
    uint64_t allocator = stats.metadata_bytes_allocator, asked = stats.metadata_bytes;
    r->scheme->metadata_bytes = allocator > asked ? allocator : asked;
    return 0;
}

/* Takes a live sequence out; the last one takes its place. */
static int remove_live(run *r, size_t i)
{
    member *m = &r->live[i];
    pkv_status status = pkv_seq_destroy(m->seq);
    if (status != PKV_OK) return library_failed(r, "pkv_seq_destroy", status, m);
    r->live_pages -= m->end / r->page_tokens + 1;
    *m = r->live[--r->n_live];
    return 0;
}

/* The youngest sequence gives way and starts again later, and fewer may live from now on. The
 * oldest always goes on, so this ends. */
static int give_way(run *r)
{
    size_t youngest = 0;
    for (size_t i = 1; i < r->n_live; i++)
        if (r->live[i].request > r->live[youngest].request) youngest = i;
    r->again[r->n_again++] = r->live[youngest].request;
    r->most = r->n_live - 1;
    return remove_live(r, youngest);
}

static int start(run *r, const trace_request *q)
{
    member *m = &r->live[r->n_live];
    *m = (member){.request = q, .end = (uint64_t)q->input + q->output};
    pkv_status status = pkv_seq_create(r->cache, &m->seq);
    if (status != PKV_OK) return library_failed(r, "pkv_seq_create", status, m);
    r->live_pages += m->end / r->page_tokens + 1;
    r->n_live++;
    return 0;
}

/* Starts requests while there is room. */
static int refill(run *r)
{
    while (r->n_live < r->most && (r->n_live == 0 || r->live_pages < LIVE_PAGES)) {
        const trace_request *q;
        if (r->n_again > 0)
            q = r->again[--r->n_again];
        else if (r->next < r->input->n_requests)
            q = &r->input->requests[r->next++];
        else
            break;
        if (start(r, q) != 0) return -1;
    }
    return 0;
}

/* Books the requests that are complete. */
static int complete(run *r, progress *bar)
{
    waste_totals *t = &r->scheme->totals;
    for (size_t i = 0; i < r->n_live;) {
        const member *m = &r->live[i];
        const trace_request *q = m->request;
        if (m->length < m->end) {
            i++;
            continue;
        }
        t->served++;
        t->reserved_end += m->reserved_end;
        t->reserved_decode += m->reserved_decode;
        t->needed_end += waste_needed(r->options->model, m->end);
        t->needed_decode += q->output == 0
                                ? waste_needed(r->options->model, q->input)
                                : waste_needed_sum(r->options->model, q->input, q->output);
        if (remove_live(r, i) != 0) return -1;
        progress_add(bar, 1);
    }
    return 0;
}

/* Reserves, counts and commits a batch that holds every live sequence's span. */
static int run_batch(run *r, pkv_batch batch)
{
    pkv_status status = pkv_batch_reserve(batch);
    if ((status == PKV_ENOPAGES || status == PKV_ENOMEM) && r->n_live > 1) {
        status = pkv_batch_abort(batch);
        return status == PKV_OK ? give_way(r) : library_failed(r, "pkv_batch_abort", status, NULL);
    }
    if (status != PKV_OK) return library_failed(r, "pkv_batch_reserve", status, &r->live[0]);
    if (count_held(r) != 0 || (r->options->touch && touch_opened(r) != 0)) return -1;
    status = pkv_batch_commit(batch);
    if (status != PKV_OK) return library_failed(r, "pkv_batch_commit", status, NULL);
    for (size_t i = 0; i < r->n_live; i++)
        r->live[i].length += r->live[i].span;
    return sample_metadata(r);
}

static int step(run *r)
{
    pkv_batch batch;
    pkv_status status = pkv_batch_begin(r->cache, &batch);
    if (status != PKV_OK) return library_failed(r, "pkv_batch_begin", status, NULL);
    for (size_t i = 0; i < r->n_live; i++) {
        member *m = &r->live[i];
        next_span(r, m);
        status = pkv_batch_add(batch, m->seq, NULL, (uint32_t)m->span);
        if (status != PKV_OK) return library_failed(r, "pkv_batch_add", status, m);
    }
    return run_batch(r, batch);
}

static int run_all(run *r, progress *bar)
{
    for (;;) {
        /* Twice: a request without any token is complete as it starts. */
        if (complete(r, bar) != 0 || refill(r) != 0 || complete(r, bar) != 0) return -1;
        if (r->n_live > 0 && step(r) != 0) return -1;
        if (r->n_live == 0 && r->n_again == 0 && r->next == r->input->n_requests) break;
    }
    char text[256] = "";
    pkv_status status = pkv_cache_verify(r->cache, text, sizeof text);
    if (status != PKV_OK)
        return tool_fail(r->err, "%s: the cache is inconsistent: %s", r->scheme->name, text);
    return 0;
}

int waste_paged(waste_scheme *scheme, const waste_options *options, const trace *input,
                progress *bar, tool_error *err)
{
    run *r = calloc(1, sizeof *r);
    if (r == NULL) return tool_fail(err, "out of memory");
    r->scheme = scheme;
    r->options = options;
    r->model = scheme->kind == WASTE_PAGED_FLAT ? options->flat : options->model;
    r->input = input;
    r->page_tokens = scheme->parameter;
    r->most = LIVE_SEQUENCES;
    r->err = err;
    int code = open_cache(r) == 0 ? run_all(r, bar) : -1;
    pkv_cache_destroy(r->cache);
    free(r);
    return code;
}
