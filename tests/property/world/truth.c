/* What every token holds, and what it depends on. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "world.h"

uint64_t world_mix(uint64_t h, uint64_t value)
{
    h = (h ^ value) * UINT64_C(0x9e3779b97f4a7c15);
    h = (h ^ (h >> 29)) * UINT64_C(0xbf58476d1ce4e5b9);
    return h ^ (h >> 32);
}

uint64_t world_first_history(const struct world *w, const struct world_seq *s)
{
    (void)w;
    return world_mix(UINT64_C(0x5eed), s->space);
}

uint64_t world_content(uint64_t history, uint64_t dep)
{
    return world_mix(history, dep);
}

uint32_t world_pages_for(const struct world *w, uint32_t tokens)
{
    return (tokens + w->page_tokens - 1) / w->page_tokens;
}

pkv_namespace world_space(uint32_t space, char *bytes)
{
    memcpy(bytes, "tenant-0", 8);
    bytes[7] = (char)('0' + space);
    return (pkv_namespace){space == 0 ? NULL : bytes, space == 0 ? 0 : 8};
}

/* A key, value or query that stands for a content; dim is a multiple of 8, at most 64. Every element
 * is exact in the format. Codes are two-valued: minimum and maximum of whatever a scale is for, so
 * that the step between codes is exact, too, and a page reads the same open or sealed. */
static void make_vector(uint64_t content, uint32_t layer, enum world_part part, uint32_t head,
                        uint32_t dim, pkv_dtype format, float *x)
{
    const uint64_t bits = world_mix(content, layer * 64 + (uint32_t)part * 32 + head);
    float low = 0, high = 0;
    switch (format) {
    case PKV_DTYPE_K8: high = 255.0f / 256; break;
    case PKV_DTYPE_V8: low = -127.0f / 16, high = 127.0f / 16; break;
    case PKV_DTYPE_K4: high = 15.0f / 16; break;
    case PKV_DTYPE_V4: high = 7.5f; break;
    default:
        for (uint32_t i = 0; i < 8; i++)
            x[i] = (float)(int8_t)(bits >> (8 * i)) / 2;
        for (uint32_t d = 8; d < dim; d += 8)
            for (uint32_t i = 0; i < 8; i++)
                x[d + i] = x[i] + (float)(d / 8);
        return;
    }
    for (uint32_t d = 0; d < dim; d += 8)
        for (uint32_t i = 0; i < 8; i++)
            x[d + i] = bits >> (8 * i + d / 8) & 1 ? high : low;
}

static bool is_vector(const float *x, uint64_t content, uint32_t layer, enum world_part part,
                      uint32_t head, uint32_t dim, pkv_dtype format)
{
    float expect[64];
    make_vector(content, layer, part, head, dim, format, expect);
    uint32_t wrong = 0;
    for (uint32_t d = 0; d < dim; d++)
        wrong += x[d] != expect[d];
    return wrong == 0;
}

/* ---- slots ---------------------------------------------------------------------------------- */

static uint64_t *slot_of(struct world *w, struct world_shadow *shadow, pkv_page page,
                         uint32_t offset)
{
    const uint32_t index = pkv_page_index(page);
    if (index >= shadow->pages) {
        const uint32_t pages = index + 64;
        uint64_t *slot = realloc(shadow->slot, (size_t)pages * w->page_tokens * sizeof *slot);
        WORLD_CHECK(w, slot != NULL, "out of memory");
        memset(slot + (size_t)shadow->pages * w->page_tokens, 0,
               (size_t)(pages - shadow->pages) * w->page_tokens * sizeof *slot);
        shadow->slot = slot;
        shadow->pages = pages;
    }
    return shadow->slot + (size_t)index * w->page_tokens + offset;
}

uint64_t *world_slot(struct world *w, uint32_t group, pkv_page page, uint32_t offset)
{
    return slot_of(w, &w->group[group].shadow, page, offset);
}

static uint64_t *open_slot(struct world *w, uint32_t group, pkv_page page, uint32_t offset)
{
    return slot_of(w, &w->group[group].open_shadow, page, offset);
}

/* ---- writing -------------------------------------------------------------------------------- */

static void copy_page(struct world *w, const pkv_copy *c)
{
    if (w->config.storage == PKV_STORAGE_NONE) {
        for (uint32_t t = 0; t < c->n_tokens; t++)
            *world_slot(w, c->group, c->dst, t) = *world_slot(w, c->group, c->src, t);
    } else if (w->config.storage == PKV_STORAGE_EXTERNAL) {
        const pkv_group_info *info = &w->group[c->group].info;
        for (uint32_t l = 0; l < info->n_layers; l++) {
            void *src, *dst;
            WORLD_CHECK(w,
                        pkv_page_address(w->cache, c->group, c->src, l, &src) == PKV_OK &&
                            pkv_page_address(w->cache, c->group, c->dst, l, &dst) == PKV_OK,
                        "addresses of a copy");
            memcpy(dst, src, info->layer_bytes);
        }
    }
}

/* Open pages of an entry: which they must be, and what they must be filled with. */
static void open_pages(struct world *w, struct world_batch *b, uint32_t entry, uint32_t g)
{
    struct world_entry *e = &b->entry[entry];
    const struct world_seq *s = e->seq;
    const uint32_t room = sizeof e->open[g] / sizeof *e->open[g], P = w->page_tokens;
    const uint32_t first = s->length / P, tail = s->length % P;
    uint32_t n = 0;
    WORLD_CHECK(w, pkv_batch_open_pages(b->handle, entry, g, e->open[g], room, &n) == PKV_OK,
                "open pages");
    WORLD_CHECK(w,
                n == (w->group[g].quantised ? world_pages_for(w, s->length + e->n) - first : 0),
                "group %u: %u open pages", g, n);
    for (uint32_t i = 0; i < n; i++) {
        const pkv_open_page *p = &e->open[g][i];
        WORLD_CHECK(w,
                    p->logical == first + i && p->sealed == s->page[g][first + i] &&
                        p->n_tokens == (i == 0 ? tail : 0),
                    "group %u: open page of page %u", g, p->logical);
        WORLD_CHECK(w, p->fill || p->n_tokens == 0 || p->open == s->open[g],
                    "group %u: the tail is in another open page", g);
        WORLD_CHECK(w, p->from == (p->fill ? s->open[g] : PKV_PAGE_NONE) && p->from != p->open,
                    "group %u: the tail comes out of another page", g);
        if (!p->fill || w->config.storage != PKV_STORAGE_NONE) continue;
        for (uint32_t t = 0; t < p->n_tokens; t++)
            *open_slot(w, g, p->open, t) = p->from != PKV_PAGE_NONE
                                               ? *open_slot(w, g, p->from, t)
                                               : *world_slot(w, g, p->sealed, t);
    }
}

void world_copy(struct world *w, struct world_batch *b)
{
    pkv_copy copies[WORLD_SEQS * WORLD_GROUPS];
    uint32_t n = 0;
    WORLD_CHECK(w, pkv_batch_copies(b->handle, copies, WORLD_SEQS * WORLD_GROUPS, &n) == PKV_OK,
                "copies");
    for (uint32_t i = 0; i < n; i++)
        copy_page(w, &copies[i]);
    for (int e = 0; e < b->n_entries; e++)
        for (uint32_t g = 0; g < w->n_groups; g++)
            open_pages(w, b, (uint32_t)e, g);
}

/* NONE: a new token goes into its page; the open one, and what is full is sealed. */
static void note_token(struct world *w, const struct world_entry *e, uint32_t g, uint32_t t)
{
    const struct world_seq *s = e->seq;
    const uint32_t P = w->page_tokens, at = s->length + t;
    const pkv_page page = s->page[g][at / P];
    if (!w->group[g].quantised) {
        *world_slot(w, g, page, at % P) = e->content[t];
        return;
    }
    const pkv_page open = e->open[g][at / P - s->length / P].open;
    *open_slot(w, g, open, at % P) = e->content[t];
    for (uint32_t i = 0; (at + 1) % P == 0 && i < P; i++)
        *world_slot(w, g, page, i) = *open_slot(w, g, open, i);
}

static void fill_rows(const struct world_batch *b, uint32_t layer, enum world_part part,
                      uint32_t heads, uint32_t dim, pkv_dtype format, float *rows)
{
    for (int e = 0; e < b->n_entries; e++)
        for (uint32_t t = 0; t < b->entry[e].n; t++)
            for (uint32_t h = 0; h < heads; h++, rows += dim)
                make_vector(b->entry[e].content[t], layer, part, h, dim, format, rows);
}

static uint32_t rows_of(const struct world_batch *b)
{
    uint32_t n = 0;
    for (int e = 0; e < b->n_entries; e++)
        n += b->entry[e].n;
    return n;
}

static pkv_rows rows(const float *data, uint32_t heads, uint32_t dim)
{
    return (pkv_rows){.data = data,
                      .dtype = PKV_DTYPE_F32,
                      .heads = heads,
                      .dim = dim,
                      .token_stride = (ptrdiff_t)(heads * dim * sizeof(float)),
                      .head_stride = (ptrdiff_t)(dim * sizeof(float))};
}

static pkv_rows_out rows_out(float *data, uint32_t heads, uint32_t dim)
{
    return (pkv_rows_out){.data = data,
                          .dtype = PKV_DTYPE_F32,
                          .heads = heads,
                          .dim = dim,
                          .token_stride = (ptrdiff_t)(heads * dim * sizeof(float)),
                          .head_stride = (ptrdiff_t)(dim * sizeof(float))};
}

void world_write(struct world *w, struct world_batch *b)
{
    if (w->config.storage == PKV_STORAGE_NONE) {
        for (int e = 0; e < b->n_entries; e++)
            for (uint32_t g = 0; g < w->n_groups; g++)
                for (uint32_t t = 0; t < b->entry[e].n; t++)
                    note_token(w, &b->entry[e], g, t);
        return;
    }
    const uint32_t n = rows_of(b);
    for (uint32_t layer = 0; layer < w->n_layers; layer++) {
        uint32_t g, index;
        WORLD_CHECK(w, pkv_cache_layer_group(w->cache, layer, &g, &index) == PKV_OK, "layer");
        const pkv_group_info *info = &w->group[g].info;
        float *k = malloc((size_t)n * info->kv_heads * info->head_dim_k * sizeof *k);
        float *v = malloc((size_t)n * info->kv_heads * info->head_dim_v * sizeof *v);
        WORLD_CHECK(w, k != NULL && v != NULL, "out of memory");
        fill_rows(b, layer, WORLD_KEY, info->kv_heads, info->head_dim_k, info->dtype_k, k);
        fill_rows(b, layer, WORLD_VALUE, info->kv_heads, info->head_dim_v, info->dtype_v, v);
        const pkv_rows krows = rows(k, info->kv_heads, info->head_dim_k);
        const pkv_rows vrows = rows(v, info->kv_heads, info->head_dim_v);
        const uint32_t nth = 1 + n % 3;
        for (uint32_t ith = 0; ith < nth; ith++)
            WORLD_CHECK(w, pkv_write(w->plan, layer, &krows, &vrows, ith, nth) == PKV_OK,
                        "pkv_write");
        free(k);
        free(v);
    }
}

/* ---- reading -------------------------------------------------------------------------------- */

static bool reads_bytes(struct world *w, const struct world_seq *s, uint32_t group, uint32_t first,
                        uint32_t end, const uint64_t *content)
{
    const pkv_group_info *info = &w->group[group].info;
    const uint32_t n = end - first, heads = info->kv_heads;
    float *k = malloc((size_t)n * heads * info->head_dim_k * sizeof *k);
    float *v = malloc((size_t)n * heads * info->head_dim_v * sizeof *v);
    WORLD_CHECK(w, k != NULL && v != NULL, "out of memory");
    bool same = true;
    for (uint32_t layer = 0; layer < w->n_layers; layer++) {
        uint32_t g, index;
        WORLD_CHECK(w, pkv_cache_layer_group(w->cache, layer, &g, &index) == PKV_OK, "layer");
        if (g != group) continue;
        const pkv_rows_out ko = rows_out(k, heads, info->head_dim_k);
        const pkv_rows_out vo = rows_out(v, heads, info->head_dim_v);
        const pkv_status status = pkv_read(s->handle, layer, first, n, &ko, &vo);
        WORLD_CHECK(w, status == PKV_OK, "pkv_read of tokens %u.. of %u: %s", first, s->length,
                    pkv_status_name(status));
        for (uint32_t t = 0; t < n && same; t++)
            for (uint32_t h = 0; h < heads && same; h++) {
                const size_t at = (size_t)t * heads + h;
                same = is_vector(k + at * info->head_dim_k, content[first + t], layer, WORLD_KEY, h,
                                 info->head_dim_k, info->dtype_k) &&
                       is_vector(v + at * info->head_dim_v, content[first + t], layer, WORLD_VALUE,
                                 h, info->head_dim_v, info->dtype_v);
            }
    }
    free(k);
    free(v);
    return same;
}

bool world_reads(struct world *w, const struct world_seq *s, uint32_t group, uint32_t first,
                 uint32_t end, const uint64_t *content)
{
    if (first >= end) return true;
    if (w->config.storage != PKV_STORAGE_NONE) return reads_bytes(w, s, group, first, end, content);
    const uint32_t P = w->page_tokens;
    for (uint32_t t = first; t < end; t++) {
        const bool open = s->open[group] != PKV_PAGE_NONE && t / P == s->length / P;
        const uint64_t *slot = open ? open_slot(w, group, s->open[group], t % P)
                                    : world_slot(w, group, s->page[group][t / P], t % P);
        if (*slot != content[t]) return false;
    }
    return true;
}

/* Whose content a token has instead, for the complaint. */
static const char *owner_of(struct world *w, uint32_t g, const struct world_seq *s, uint32_t at)
{
    static char text[80];
    text[0] = '\0';
    for (int i = 0; i < WORLD_SEQS; i++) {
        const struct world_seq *other = &w->seq[i];
        if (!other->live || other->length <= at || other == s) continue;
        if (!world_reads(w, s, g, at, at + 1, other->content)) continue;
        snprintf(text, sizeof text, ", that of sequence %d%s", i,
                 other->history[at] == s->history[at] ? " with the same tokens" : "");
    }
    return text;
}

void world_check_contents(struct world *w, const struct world_seq *s)
{
    world_check_states(w, s);
    for (uint32_t g = 0; g < w->n_groups; g++) {
        pkv_evict_run runs[WORLD_PAGES];
        uint32_t n = 0, held = 0;
        WORLD_CHECK(w, pkv_seq_runs(s->handle, g, runs, WORLD_PAGES, &n) == PKV_OK, "runs");
        for (uint32_t i = 0; i < n; i++) {
            const uint32_t first = (uint32_t)runs[i].first;
            const uint32_t end = first + (uint32_t)runs[i].n_tokens;
            WORLD_CHECK(w, end <= s->length && runs[i].n_tokens > 0, "a run past the end");
            WORLD_CHECK(w, runs[i].shift == first - held, "shift of a run");
            for (uint32_t t = first; t < end; t += w->page_tokens)
                WORLD_CHECK(w, s->page[g][t / w->page_tokens] != PKV_PAGE_NONE,
                            "a run of pages not held");
            uint32_t bad = first;
            if (!world_reads(w, s, g, first, end, s->content))
                while (world_reads(w, s, g, first, bad + 1, s->content))
                    bad++;
            else
                bad = end;
            WORLD_CHECK(w, bad == end, "group %u: token %u of sequence %d has another content%s", g,
                        bad, (int)(s - w->seq), owner_of(w, g, s, bad));
            held += end - first;
        }
        uint32_t expected = 0;
        for (uint32_t t = 0; t < s->length; t++)
            expected += s->page[g][t / w->page_tokens] != PKV_PAGE_NONE;
        WORLD_CHECK(w, held == expected, "runs cover %u tokens of %u", held, expected);
    }
}

/* ---- attending ------------------------------------------------------------------------------ */

static void query(uint64_t content, uint32_t layer, uint32_t head, uint32_t dim, float *q)
{
    make_vector(content, layer, WORLD_QUERY, head, dim, PKV_DTYPE_F32, q);
    for (uint32_t d = 0; d < dim; d++)
        q[d] /= 64;
}

/* out of one query row over what the sequence holds, in double. */
static void naive(const struct world *w, const struct world_entry *e, uint32_t t, uint32_t g,
                  uint32_t layer, uint32_t q_head, double *out)
{
    const pkv_group_info *info = &w->group[g].info;
    const struct world_seq *s = e->seq;
    const uint32_t head = q_head / (info->q_heads / info->kv_heads), at = s->length + t;
    double logit[WORLD_LENGTH], top = -INFINITY, sum = 0;
    float q[64], x[64];
    query(e->content[t], layer, q_head, info->head_dim_k, q);
    for (uint32_t p = 0; p <= at; p++) {
        logit[p] = -INFINITY;
        if (s->page[g][p / w->page_tokens] == PKV_PAGE_NONE) continue;
        if (info->window != 0 && p + info->window <= at) continue;
        const uint64_t content = p < s->length ? s->content[p] : e->content[p - s->length];
        make_vector(content, layer, WORLD_KEY, head, info->head_dim_k, info->dtype_k, x);
        logit[p] = 0;
        for (uint32_t d = 0; d < info->head_dim_k; d++)
            logit[p] += (double)q[d] * (double)x[d];
        logit[p] /= sqrt((double)info->head_dim_k);
        top = fmax(top, logit[p]);
    }
    memset(out, 0, info->head_dim_v * sizeof *out);
    for (uint32_t p = 0; p <= at; p++) {
        if (isinf(logit[p])) continue;
        const uint64_t content = p < s->length ? s->content[p] : e->content[p - s->length];
        make_vector(content, layer, WORLD_VALUE, head, info->head_dim_v, info->dtype_v, x);
        const double weight = exp(logit[p] - top);
        sum += weight;
        for (uint32_t d = 0; d < info->head_dim_v; d++)
            out[d] += weight * (double)x[d];
    }
    for (uint32_t d = 0; d < info->head_dim_v; d++)
        out[d] /= sum;
}

static bool is_plain(const struct world_entry *e, uint32_t g)
{
    const struct world_policy *p = &e->seq->policy[g];
    return !e->tree && p->kind != PKV_EVICT_TOPK && p->mode == PKV_POSITION_ORIGINAL;
}

static void check_out(struct world *w, const struct world_entry *e, uint32_t t, uint32_t layer,
                      uint32_t head, uint32_t n, const float *got, const double *expect)
{
    for (uint32_t d = 0; d < n; d++)
        WORLD_CHECK(w, fabs((double)got[d] - expect[d]) <= 0.5,
                    "layer %u, sequence %d, new token %u, head %u: %g instead of %g", layer,
                    (int)(e->seq - w->seq), t, head, (double)got[d], expect[d]);
}

/* One layer: the kernels beside the library's reference now and then, more often where that knows
 * more than this model; and one head of each row beside the model where it can. */
static void attend_layer(struct world *w, struct world_batch *b, uint32_t layer)
{
    uint32_t g, index;
    WORLD_CHECK(w, pkv_cache_layer_group(w->cache, layer, &g, &index) == PKV_OK, "layer");
    const pkv_group_info *info = &w->group[g].info;
    const uint32_t n = rows_of(b), heads = info->q_heads, dk = info->head_dim_k;
    const uint32_t dv = info->head_dim_v;
    float *q = malloc((size_t)n * heads * dk * sizeof *q), *at = q;
    float *out = malloc((size_t)n * heads * dv * sizeof *out);
    double *slow = malloc((size_t)n * heads * dv * sizeof *slow);
    WORLD_CHECK(w, q != NULL && out != NULL && slow != NULL, "out of memory");
    bool special = false;
    for (int e = 0; e < b->n_entries; e++) {
        special = special || !is_plain(&b->entry[e], g);
        for (uint32_t t = 0; t < b->entry[e].n; t++)
            for (uint32_t h = 0; h < heads; h++, at += dk)
                query(b->entry[e].content[t], layer, h, dk, at);
    }
    const pkv_rows qr = rows(q, heads, dk);
    const pkv_rows_out outr = rows_out(out, heads, dv);
    const uint32_t nth = 1 + (n & 1);
    for (uint32_t ith = 0; ith < nth; ith++)
        WORLD_CHECK(w, pkv_attend(w->plan, layer, &qr, &outr, NULL, ith, nth) == PKV_OK,
                    "pkv_attend");
    bool refer = world_once(w, special ? 2 : 8);
    refer = refer && world_did(w, pkv_attend_reference(w->plan, layer, &qr, slow, NULL),
                               "pkv_attend_reference", WORLD_NONE);
    uint32_t row = 0;
    for (int e = 0; e < b->n_entries; e++)
        for (uint32_t t = 0; t < b->entry[e].n; t++, row++) {
            const struct world_entry *entry = &b->entry[e];
            for (uint32_t h = 0; refer && h < heads; h++)
                check_out(w, entry, t, layer, h, dv, out + ((size_t)row * heads + h) * dv,
                          slow + ((size_t)row * heads + h) * dv);
            if (!is_plain(entry, g)) continue;
            double own[64];
            const uint32_t h = (uint32_t)(entry->content[t] % heads);
            naive(w, entry, t, g, layer, h, own);
            check_out(w, entry, t, layer, h, dv, out + ((size_t)row * heads + h) * dv, own);
        }
    free(q);
    free(out);
    free(slow);
}

void world_attend(struct world *w, struct world_batch *b)
{
    for (uint32_t layer = 0; layer < w->n_layers; layer++)
        attend_layer(w, b, layer);
    w->attends++;
}

/* ---- dependence ----------------------------------------------------------------------------- */

static bool by_length(pkv_evict_kind kind)
{
    return kind == PKV_EVICT_WINDOW || kind == PKV_EVICT_SINK;
}

uint64_t world_salt(const struct world *w, const struct world_seq *s)
{
    uint64_t h = 7;
    bool any = false;
    for (uint32_t g = 0; g < w->n_groups; g++) {
        const struct world_policy *p = &s->policy[g];
        if (p->kind == PKV_EVICT_NONE) continue;
        if (!by_length(p->kind)) return 0;
        any = true;
        h = world_mix(h, ((uint64_t)g << 40) + ((uint64_t)p->sinks << 24) + p->budget * 2 +
                             (uint32_t)p->mode);
    }
    return any ? h | 1 : 0;
}

bool world_misses(const struct world *w, const struct world_seq *s)
{
    for (uint32_t g = 0; g < w->n_groups; g++)
        for (uint32_t l = 0; l < world_pages_for(w, s->length); l++)
            if (s->page[g][l] == PKV_PAGE_NONE && !world_left(w, g, l, s->length)) return true;
    return false;
}

/* Does the sequence hold what its policies leave to any sequence of this length: the first pages
 * and the recent ones? Large steps may see more of the older ones, but no gap. */
static bool holds_by_length(const struct world *w, const struct world_seq *s)
{
    for (uint32_t g = 0; g < w->n_groups; g++) {
        const struct world_policy *p = &s->policy[g];
        const uint32_t full = s->length / w->page_tokens;
        const uint32_t recent = full > p->budget ? full - (p->budget - p->sinks) : 0;
        bool began = false;
        for (uint32_t l = 0; l < full; l++) {
            const bool held = s->page[g][l] != PKV_PAGE_NONE;
            if (world_left(w, g, l, s->length)) continue;
            const bool kept = p->kind == PKV_EVICT_NONE || l < p->sinks || l >= recent;
            if (!held && (kept || began)) return false;
            began = began || (held && l >= p->sinks);
        }
    }
    return true;
}

uint64_t world_next_dep(struct world *w, const struct world_seq *s, uint64_t dep)
{
    const uint64_t salt = world_salt(w, s);
    if (dep == 0 && !world_misses(w, s)) return 0;
    if ((dep == 0 || dep == salt) && salt != 0 && holds_by_length(w, s)) return salt;
    if (dep != 0 && dep != salt) return dep; /* unique already */
    return ++w->unique * 2;                  /* salts are odd */
}
