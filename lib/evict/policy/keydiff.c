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
 * bound of today's score, so the exact minimum is found by refreshing heap tops until a fresh one
 * stays on top. Sealing or dropping a page costs O(layers * heads * dim), finding the minimum a few
 * times that, independent of the number of pages but for the heap's log n. */
#include <math.h>
#include <string.h>

#include "evict/evict_internal.h"

#define LANES 16u

struct pkvi_keydiff {
    uint32_t n_layers, heads, dim, page_tokens;
    size_t elements;  /* n_layers * heads * dim */
    float *sum;       /* A */
    float *anchor;    /* a, zero where A is */
    double drift;     /* total so far */
    uint32_t entered; /* logical pages below this are in the heap (if evictable) */
    struct pkvi_candidate *heap;
    struct pkvi_candidate *parked; /* scratch of victim() */
    uint32_t n, capacity;
    uint64_t refreshes; /* scores computed, for benches */
};

static float dot(const float *a, const float *b, uint32_t n)
{
    float lane[LANES] = {0};
    uint32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (uint32_t j = 0; j < LANES; j++)
            lane[j] += a[i + j] * b[i + j];
    for (uint32_t j = 0; i < n; i++, j++)
        lane[j] += a[i] * b[i];
    float sum = 0;
    for (uint32_t j = 0; j < LANES; j++)
        sum += lane[j];
    return sum;
}

static const float *page_sums(const struct pkvi_evict_call *call, uint32_t page, uint32_t layer)
{
    const unsigned char *base = pkvi_pool_address(call->info->pool, page);
    return (const float *)(const void *)(base + layer * call->info->layer_bytes +
                                         call->info->layout->sum_offset);
}

/* ---- the mean key -----------------------------------------------------------------------------
 */

/* a = A / |A| per (layer, head); adds how far it moved to the drift. */
static void move_anchor(struct pkvi_keydiff *k)
{
    double moved = 0;
    for (size_t at = 0; at < k->elements; at += k->dim) {
        const float *sum = k->sum + at;
        float *anchor = k->anchor + at;
        const float norm = sqrtf(dot(sum, sum, k->dim));
        const float scale = norm > 1e-20f ? 1 / norm : 0;
        float lane[8] = {0}; /* dims are multiples of 8 */
        for (uint32_t i = 0; i < k->dim; i += 8)
            for (uint32_t j = 0; j < 8; j++) {
                const float now = sum[i + j] * scale;
                const float d = now - anchor[i + j];
                lane[j] += d * d;
                anchor[i + j] = now;
            }
        const float square =
            lane[0] + lane[1] + lane[2] + lane[3] + lane[4] + lane[5] + lane[6] + lane[7];
        moved += sqrt((double)square);
    }
    /* Round up: the bound must hold in floating point too. */
    k->drift += moved / ((double)k->n_layers * k->heads) * (1 + 1e-5) + 1e-7;
}

static void add_page(const struct pkvi_evict_call *call, uint32_t page, float sign)
{
    struct pkvi_keydiff *k = call->state->keydiff;
    const size_t width = (size_t)k->heads * k->dim;
    for (uint32_t l = 0; l < k->n_layers; l++) {
        const float *u = page_sums(call, page, l);
        float *sum = k->sum + l * width;
        for (size_t i = 0; i < width; i++)
            sum[i] += sign * u[i];
    }
}

static float page_score(const struct pkvi_evict_call *call, uint32_t page)
{
    const struct pkvi_keydiff *k = call->state->keydiff;
    const size_t width = (size_t)k->heads * k->dim;
    double sum = 0;
    for (uint32_t l = 0; l < k->n_layers; l++)
        sum += (double)dot(page_sums(call, page, l), k->anchor + l * width, (uint32_t)width);
    return (float)(-sum / ((double)k->n_layers * k->heads * k->page_tokens));
}

/* ---- the heap of lower bounds -----------------------------------------------------------------
 */

/* Today's score of a page as a heap key. */
static float fresh_key(const struct pkvi_evict_call *call, uint32_t logical)
{
    struct pkvi_keydiff *k = call->state->keydiff;
    k->refreshes++;
    const uint32_t page = pkvi_table_page(call->table, logical);
    return (float)((double)page_score(call, page) + k->drift);
}

static void push_page(const struct pkvi_evict_call *call, uint32_t logical)
{
    struct pkvi_keydiff *k = call->state->keydiff;
    if (pkvi_table_find(call->table, logical) == PKVI_NO_SLOT || k->n == k->capacity) return;
    const float key = fresh_key(call, logical);
    pkvi_heap_push(k->heap, &k->n, (struct pkvi_candidate){key, logical});
}

/* Pages that left the protected window since the last time. */
static void enter_pages(const struct pkvi_evict_call *call)
{
    struct pkvi_keydiff *k = call->state->keydiff;
    uint32_t logical = pkvi_max_u32(k->entered, call->first);
    for (; logical < call->end; logical++)
        push_page(call, logical);
    if (call->end > k->entered) k->entered = call->end;
}

/* Refreshes the top until it stays there: then it is the exact minimum. Pinned pages are parked. */
static uint32_t settle(const struct pkvi_evict_call *call, uint32_t *n_parked)
{
    struct pkvi_keydiff *k = call->state->keydiff;
    while (k->n > 0) {
        struct pkvi_candidate top = k->heap[0];
        if (pkvi_table_find(call->table, top.logical) == PKVI_NO_SLOT) {
            pkvi_heap_pop(k->heap, &k->n);
            continue;
        }
        if (pkvi_evict_is_pinned(call, top.logical)) {
            k->parked[(*n_parked)++] = pkvi_heap_pop(k->heap, &k->n);
            continue;
        }
        top.score = fresh_key(call, top.logical);
        pkvi_heap_pop(k->heap, &k->n);
        const bool lowest = k->n == 0 || !pkvi_candidate_before(k->heap[0], top);
        pkvi_heap_push(k->heap, &k->n, top);
        if (lowest) return top.logical;
    }
    return PKVI_NO_PAGE;
}

static uint32_t victim(const struct pkvi_evict_call *call)
{
    struct pkvi_keydiff *k = call->state->keydiff;
    uint32_t n_parked = 0;
    enter_pages(call);
    const uint32_t found = settle(call, &n_parked);
    while (n_parked > 0)
        pkvi_heap_push(k->heap, &k->n, k->parked[--n_parked]);
    return found;
}

/* ---- what happens to pages --------------------------------------------------------------------
 */

/* Keys are floats: keep the drift, which only grows, small. Subtracting it keeps the order. */
static void rebase(struct pkvi_keydiff *k)
{
    if (k->drift < 1) return;
    for (uint32_t i = 0; i < k->n; i++)
        k->heap[i].score = (float)((double)k->heap[i].score - k->drift);
    k->drift = 0;
    pkvi_heap_build(k->heap, k->n); /* rounding may have made ties */
}

static void sealed(const struct pkvi_evict_call *call, uint32_t first, uint32_t end)
{
    for (uint32_t logical = first; logical < end; logical++) {
        const uint32_t page = pkvi_table_page(call->table, logical);
        if (page != PKVI_NO_PAGE) add_page(call, page, 1);
    }
    move_anchor(call->state->keydiff);
    rebase(call->state->keydiff);
}

/* The heap entry goes when it comes up and the page is not found; a restored page gets a new one,
 * so the old one must go at once. It is on top: only the victim is forgotten. */
static void forget(const struct pkvi_evict_call *call, uint32_t logical)
{
    struct pkvi_keydiff *k = call->state->keydiff;
    add_page(call, pkvi_table_page(call->table, logical), -1);
    if (k->n > 0 && k->heap[0].logical == logical) pkvi_heap_pop(k->heap, &k->n);
    move_anchor(k);
    rebase(k);
}

static void restored(const struct pkvi_evict_call *call, uint32_t logical)
{
    add_page(call, pkvi_table_page(call->table, logical), 1);
    move_anchor(call->state->keydiff);
    if (logical < call->state->keydiff->entered) push_page(call, logical);
}

/* Full pages that are gone or no longer full leave the mean; entries past the new window leave the
 * heap and come back when the window passes them again. */
static void truncate_to(const struct pkvi_evict_call *call, uint64_t n_tokens)
{
    struct pkvi_keydiff *k = call->state->keydiff;
    const uint32_t full = (uint32_t)(n_tokens >> call->page_shift);
    const uint32_t old_full = pkvi_evict_full_pages(call);
    for (uint32_t logical = full; logical < old_full; logical++) {
        const uint32_t page = pkvi_table_page(call->table, logical);
        if (page != PKVI_NO_PAGE) add_page(call, page, -1);
    }
    const uint64_t window = call->policy->window_tokens;
    const uint32_t end =
        n_tokens > window ? (uint32_t)((n_tokens - window) >> call->page_shift) : 0;
    if (end < k->entered) {
        uint32_t to = 0;
        for (uint32_t i = 0; i < k->n; i++)
            if (k->heap[i].logical < end) k->heap[to++] = k->heap[i];
        k->n = to;
        k->entered = end;
        pkvi_heap_build(k->heap, k->n);
    }
    move_anchor(k);
    rebase(k);
}

static float peek(const struct pkvi_evict_call *call, uint32_t slot)
{
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

/* ---- memory -----------------------------------------------------------------------------------
 */

pkv_status pkvi_keydiff_create(struct pkvi_keydiff **keydiff, struct pkvi_mem *mem,
                               const struct pkvi_evict_group *info)
{
    struct pkvi_keydiff *k = pkvi_mem_zalloc(mem, sizeof *k);
    if (k == NULL) return PKV_ENOMEM;
    k->n_layers = info->n_layers;
    k->heads = info->layout->kv_heads;
    k->dim = info->layout->dim_k;
    k->page_tokens = info->layout->page_tokens;
    k->elements = (size_t)k->n_layers * k->heads * k->dim;
    k->sum = pkvi_mem_array(mem, k->elements, sizeof *k->sum);
    k->anchor = pkvi_mem_array(mem, k->elements, sizeof *k->anchor);
    if (k->sum == NULL || k->anchor == NULL) {
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
    if (heap == NULL || parked == NULL) {
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
    if (k == NULL) return PKV_ENOMEM;
    *k = *from;
    k->heap = k->parked = NULL;
    k->n = k->capacity = 0;
    k->sum = pkvi_mem_array(mem, k->elements, sizeof *k->sum);
    k->anchor = pkvi_mem_array(mem, k->elements, sizeof *k->anchor);
    if (k->sum == NULL || k->anchor == NULL ||
        pkvi_keydiff_reserve(k, mem, from->capacity) != PKV_OK) {
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
    if (k == NULL) return;
    pkvi_mem_free_array(mem, k->sum, k->elements, sizeof *k->sum);
    pkvi_mem_free_array(mem, k->anchor, k->elements, sizeof *k->anchor);
    if (k->capacity != 0) {
        pkvi_mem_free_array(mem, k->heap, k->capacity, sizeof *k->heap);
        pkvi_mem_free_array(mem, k->parked, k->capacity, sizeof *k->parked);
    }
    pkvi_mem_free(mem, k, sizeof *k);
}
