/* KEYDIFF: drop the page whose keys are most like the mean key (Park et al., "KeyDiff"), exactly at
 * page granularity: with u_p = sum of a page's normalised keys (stored in the page when it is
 * sealed), A = sum of u_p over the resident full pages and a = A / |A| per (layer, KV head), the
 * mean cosine of the page's keys to the mean key is u_p·a / P, averaged over layers and heads.
 *
 *     score(p) = -mean over (layer, head) of u_p·a / P        lowest goes first
 *
 * a moves with every sealed and every dropped page, so all scores do. They are kept lazily: since
 * |u_p| / P <= 1, a score moves by at most the mean |a' - a| =: drift. The heap holds
 * (score when computed) + (total drift when computed); minus today's total drift that is a lower
 * bound of today's score, so the exact minimum is found by refreshing heap tops until none can be
 * lower. Where keys have little in common the bounds are loose and every page would be read; so no
 * more than `refreshes` are, and the lowest of these goes. Those that were refreshed rise in the
 * heap as the drift grows by what it was, so every page gets its turn. Sealing or dropping a page
 * costs O(layers * heads * dim), independent of the number of pages but for the heap. */
#include <math.h>
#include <string.h>

#include "evict/evict_internal.h"

#define LINE_FLOATS 16u

/* Scores are refreshed for as many pages as have so many floats of key sums (what is read in some
 * microseconds), but for a few at least. */
#define REFRESHED_FLOATS 16384u
#define LEAST_REFRESHES 3u

struct pkvi_keydiff {
    const pkvi_kernels *kernels;
    uint32_t n_layers, heads, dim, page_tokens;
    size_t elements;    /* n_layers * heads * dim */
    float *sum;         /* A */
    float *anchor;      /* a, zero where A is */
    uint32_t refreshes; /* most scores brought up to date per dropped page */
    bool moved;         /* A changed: a is not its direction yet */
    bool incomplete;    /* the heap lacks evictable pages */
    double drift;       /* total so far */
    struct pkvi_candidate *heap;
    struct pkvi_candidate *parked; /* scratch of victim() */
    uint32_t n, capacity;
};

/* Layers ahead whose sums are sent for: each layer's are a place of their own in memory. */
#define LAYERS_AHEAD 6u

static const char *page_sums(const struct pkvi_evict_call *call, uint32_t page)
{
    return (const char *)pkvi_pool_address(call->info->pool, page) + call->info->layout->sum_offset;
}

/* The sums of one layer, 64-byte aligned. */
static inline const float *layer_sums(const struct pkvi_evict_call *call, const char *sums,
                                      uint32_t layer)
{
    const struct pkvi_keydiff *k = call->state->keydiff;
    const char *at = sums + layer * call->info->layer_bytes;
    if (layer + LAYERS_AHEAD < k->n_layers) {
        const char *ahead = at + LAYERS_AHEAD * call->info->layer_bytes;
        for (uint32_t i = 0; i < k->heads * k->dim; i += LINE_FLOATS)
            __builtin_prefetch(ahead + i * sizeof(float));
    }
    return (const float *)(const void *)at;
}

/* ---- the mean key --------------------------------------------------------------------------- */

/* a = A / |A| per (layer, head); adds how far it moved to the drift. */
static void move_anchor(struct pkvi_keydiff *k)
{
    double moved = 0;
    for (size_t at = 0; at < k->elements; at += k->dim) {
        const float *sum = k->sum + at;
        const float norm = sqrtf(k->kernels->dot(sum, sum, k->dim));
        const float scale = norm > 1e-20f ? 1 / norm : 0;
        moved += sqrt((double)k->kernels->turn(k->anchor + at, sum, scale, k->dim));
    }
    /* Round up: the bound must hold in floating point too. */
    k->drift += moved / ((double)k->n_layers * k->heads) * (1 + 1e-5) + 1e-7;
}

/* Keys are floats: keep the drift, which only grows, small. Subtracting it keeps the order. */
static void rebase(struct pkvi_keydiff *k)
{
    if (k->drift < 1) return;
    for (uint32_t i = 0; i < k->n; i++)
        k->heap[i].score = (float)((double)k->heap[i].score - k->drift);
    k->drift = 0;
    pkvi_heap_build(k->heap, k->n); /* rounding may have made ties */
}

/* Brings a up to date. Pages come and go in pairs, so this is put off until a score is asked for.
 */
static void settle_anchor(struct pkvi_keydiff *k)
{
    if (!k->moved) return;
    move_anchor(k);
    rebase(k);
    k->moved = false;
}

static void add_page(const struct pkvi_evict_call *call, uint32_t page, float sign)
{
    struct pkvi_keydiff *k = call->state->keydiff;
    const size_t width = (size_t)k->heads * k->dim;
    const char *sums = page_sums(call, page);
    k->moved = true;
    for (uint32_t l = 0; l < k->n_layers; l++) {
        const float *u = layer_sums(call, sums, l);
        float *sum = k->sum + l * width;
        for (size_t i = 0; i < width; i++)
            sum[i] += sign * u[i];
    }
}

static float page_score(const struct pkvi_evict_call *call, uint32_t page)
{
    const struct pkvi_keydiff *k = call->state->keydiff;
    const size_t width = (size_t)k->heads * k->dim;
    const char *sums = page_sums(call, page);
    double sum = 0;
    for (uint32_t l = 0; l < k->n_layers; l++)
        sum += (double)k->kernels->dot(layer_sums(call, sums, l), k->anchor + l * width, width);
    return (float)(-sum / ((double)k->n_layers * k->heads * k->page_tokens));
}

/* ---- the heap of lower bounds --------------------------------------------------------------- */

/* A page's score as a heap key, by the anchor as it is. */
static float fresh_key(const struct pkvi_evict_call *call, uint32_t page)
{
    return (float)((double)page_score(call, page) + call->state->keydiff->drift);
}

/* Enters a page and its keys. */
static void enter(const struct pkvi_evict_call *call, uint32_t logical)
{
    struct pkvi_keydiff *k = call->state->keydiff;
    const uint32_t page = pkvi_table_page(call->table, logical);
    if (page == PKVI_NO_PAGE) return;
    const struct pkvi_candidate entry = {fresh_key(call, page), logical};
    if (logical >= call->first && k->n < k->capacity)
        pkvi_heap_push(k->heap, &k->n, entry);
    else if (logical >= call->first)
        k->incomplete = true;
    add_page(call, page, 1);
}

/* Pages that came by an attach or an undo found no room in the heap; a reserve has made it since.
 */
static void complete(const struct pkvi_evict_call *call)
{
    struct pkvi_keydiff *k = call->state->keydiff;
    const uint32_t full = pkvi_evict_full_pages(call);
    struct pkvi_resident page;
    uint32_t cursor = 0;
    k->n = 0;
    k->incomplete = false;
    while (pkvi_table_next(call->table, &cursor, &page) && page.logical < full)
        if (page.logical >= call->first)
            k->heap[k->n++] = (struct pkvi_candidate){fresh_key(call, page.page), page.logical};
    pkvi_heap_build(k->heap, k->n);
}

/* Refreshes tops until none can be lower: then the lowest refreshed one is the exact minimum. If
 * that takes too many, it is the lowest of those. What was popped is parked. */
static uint32_t settle(const struct pkvi_evict_call *call, uint32_t *n_parked)
{
    struct pkvi_keydiff *k = call->state->keydiff;
    struct pkvi_candidate lowest = {.logical = PKVI_NO_PAGE};
    for (uint32_t left = k->refreshes; left > 0 && k->n > 0;) {
        if (lowest.logical != PKVI_NO_PAGE && !pkvi_candidate_before(k->heap[0], lowest)) break;
        struct pkvi_candidate top = pkvi_heap_pop(k->heap, &k->n);
        const uint32_t page = pkvi_table_page(call->table, top.logical);
        if (page == PKVI_NO_PAGE) continue;
        if (top.logical < call->end && !pkvi_evict_is_pinned(call, top.logical)) {
            top.score = fresh_key(call, page);
            left--;
            if (lowest.logical == PKVI_NO_PAGE || pkvi_candidate_before(top, lowest)) lowest = top;
        }
        k->parked[(*n_parked)++] = top;
    }
    return lowest.logical;
}

static uint32_t victim(const struct pkvi_evict_call *call)
{
    struct pkvi_keydiff *k = call->state->keydiff;
    uint32_t n_parked = 0;
    settle_anchor(k);
    if (k->incomplete) complete(call);
    const uint32_t found = settle(call, &n_parked);
    while (n_parked > 0)
        pkvi_heap_push(k->heap, &k->n, k->parked[--n_parked]);
    return found;
}

/* ---- what happens to pages ------------------------------------------------------------------ */

static void sealed(const struct pkvi_evict_call *call, uint32_t first, uint32_t end)
{
    for (uint32_t logical = first;; logical++) { /* of a long sequence most may be gone */
        const uint32_t slot = pkvi_table_seek(call->table, logical);
        if (slot == PKVI_NO_SLOT || call->table->logical[slot] >= end) break;
        logical = call->table->logical[slot];
        enter(call, logical);
    }
}

/* The heap entry goes at once: a restored page gets a new one. */
static void forget(const struct pkvi_evict_call *call, uint32_t logical)
{
    struct pkvi_keydiff *k = call->state->keydiff;
    add_page(call, pkvi_table_page(call->table, logical), -1);
    for (uint32_t i = 0; i < k->n; i++)
        if (k->heap[i].logical == logical) {
            pkvi_heap_remove(k->heap, &k->n, i);
            break;
        }
}

static void restored(const struct pkvi_evict_call *call, uint32_t logical)
{
    enter(call, logical);
}

/* Pages that are gone or no longer full leave the mean and the heap. */
static void truncate_to(const struct pkvi_evict_call *call, uint64_t n_tokens)
{
    struct pkvi_keydiff *k = call->state->keydiff;
    const uint32_t full = (uint32_t)(n_tokens >> call->page_shift);
    const uint32_t old_full = pkvi_evict_full_pages(call);
    uint32_t n = 0;
    for (uint32_t logical = full; logical < old_full; logical++) {
        const uint32_t page = pkvi_table_page(call->table, logical);
        if (page != PKVI_NO_PAGE) add_page(call, page, -1);
    }
    for (uint32_t i = 0; i < k->n; i++)
        if (k->heap[i].logical < full) k->heap[n++] = k->heap[i];
    k->n = n;
    pkvi_heap_build(k->heap, k->n);
}

static float peek(const struct pkvi_evict_call *call, uint32_t slot)
{
    settle_anchor(call->state->keydiff);
    return page_score(call, call->table->page[slot]);
}

const struct pkvi_evict_ops pkvi_evict_keydiff = {
    .name = "keydiff",
    .kind = PKV_EVICT_KEYDIFF,
    .needs = PKVI_NEEDS_KEYS,
    .sealed = sealed,
    .victim = victim,
    .forget = forget,
    .truncate = truncate_to,
    .restored = restored,
    .peek = peek,
};

/* ---- memory --------------------------------------------------------------------------------- */

pkv_status pkvi_keydiff_create(struct pkvi_keydiff **keydiff, struct pkvi_mem *mem,
                               const struct pkvi_evict_group *info)
{
    struct pkvi_keydiff *k = pkvi_mem_zalloc(mem, sizeof *k);
    if (!k) return PKV_ENOMEM;
    k->kernels = info->kernels;
    k->n_layers = info->n_layers;
    k->heads = info->layout->kv_heads;
    k->dim = info->layout->dim_k;
    k->page_tokens = info->layout->page_tokens;
    k->elements = (size_t)k->n_layers * k->heads * k->dim;
    k->refreshes = pkvi_max_u32(LEAST_REFRESHES, (uint32_t)(REFRESHED_FLOATS / k->elements));
    k->sum = pkvi_mem_array(mem, k->elements, sizeof *k->sum);
    k->anchor = pkvi_mem_array(mem, k->elements, sizeof *k->anchor);
    if (!k->sum || !k->anchor) {
        pkvi_keydiff_free(k, mem);
        return PKV_ENOMEM;
    }
    *keydiff = k;
    return PKV_OK;
}

pkv_status pkvi_keydiff_reserve(struct pkvi_keydiff *k, struct pkvi_mem *mem, uint32_t pages)
{
    /* Entries of pages that are gone are dropped lazily only by window and truncation, which remove
     * them at once: there are never more entries than resident pages. */
    if (pages <= k->capacity) return PKV_OK;
    const uint32_t capacity = pages + pages / 4 + 8;
    struct pkvi_candidate *heap = pkvi_mem_array(mem, capacity, sizeof *heap);
    struct pkvi_candidate *parked = pkvi_mem_array(mem, capacity, sizeof *parked);
    if (!heap || !parked) {
        pkvi_mem_free_array(mem, heap, capacity, sizeof *heap);
        pkvi_mem_free_array(mem, parked, capacity, sizeof *parked);
        return PKV_ENOMEM;
    }
    if (k->capacity != 0) {
        memcpy(heap, k->heap, k->n * sizeof *heap);
        pkvi_mem_free_array(mem, k->heap, k->capacity, sizeof *heap);
        pkvi_mem_free_array(mem, k->parked, k->capacity, sizeof *heap);
    }
    k->heap = heap;
    k->parked = parked;
    k->capacity = capacity;
    return PKV_OK;
}

pkv_status pkvi_keydiff_copy(struct pkvi_keydiff **to, const struct pkvi_keydiff *from,
                             struct pkvi_mem *mem)
{
    struct pkvi_keydiff *k = pkvi_mem_zalloc(mem, sizeof *k);
    if (!k) return PKV_ENOMEM;
    *k = *from;
    k->heap = k->parked = NULL;
    k->n = k->capacity = 0;
    k->sum = pkvi_mem_array(mem, k->elements, sizeof *k->sum);
    k->anchor = pkvi_mem_array(mem, k->elements, sizeof *k->anchor);
    if (!k->sum || !k->anchor || pkvi_keydiff_reserve(k, mem, from->capacity) != PKV_OK) {
        pkvi_keydiff_free(k, mem);
        return PKV_ENOMEM;
    }
    memcpy(k->sum, from->sum, k->elements * sizeof *k->sum);
    memcpy(k->anchor, from->anchor, k->elements * sizeof *k->anchor);
    if (from->n > 0) memcpy(k->heap, from->heap, from->n * sizeof *k->heap);
    k->n = from->n;
    *to = k;
    return PKV_OK;
}

void pkvi_keydiff_free(struct pkvi_keydiff *k, struct pkvi_mem *mem)
{
    if (!k) return;
    pkvi_mem_free_array(mem, k->sum, k->elements, sizeof *k->sum);
    pkvi_mem_free_array(mem, k->anchor, k->elements, sizeof *k->anchor);
    if (k->capacity != 0) {
        pkvi_mem_free_array(mem, k->heap, k->capacity, sizeof *k->heap);
        pkvi_mem_free_array(mem, k->parked, k->capacity, sizeof *k->parked);
    }
    pkvi_mem_free(mem, k, sizeof *k);
}
