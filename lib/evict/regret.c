/* evict: the regret meter. Keeps the key bounds of the last dropped pages and looks whether the
 * current query would have wanted one of them: its upper bound on q·k over a dropped page against
 * those of the kept pages. */
#include <string.h>

#include "evict/evict_internal.h"
#include "kernels/kernels.h"

#define BLOCK_HEADER 64u /* so that no offset inside a block is 0, which means "absent" */
#define CHUNK_PAGES 64u
#define CHUNK_ROWS 16u

/* Bytes of one layer's minima (or maxima), padded. */
static size_t half_bytes(const struct pkvi_evict_group *info)
{
    const struct pkvi_layout *l = info->layout;
    return ((size_t)l->kv_heads * l->dim_k * l->k_elem_bytes + 63) / 64 * 64;
}

static size_t layer_bytes(const struct pkvi_evict_group *info)
{
    return BLOCK_HEADER + 2 * half_bytes(info);
}

static size_t block_bytes(const struct pkvi_evict_group *info)
{
    return info->n_layers * layer_bytes(info);
}

pkv_status pkvi_regret_reserve(struct pkvi_regret *regret, struct pkvi_mem *mem,
                               const struct pkvi_evict_group *info, uint32_t limit, uint32_t n)
{
    regret->limit = limit;
    const uint64_t want = pkvi_min_u64((uint64_t)regret->count + n, limit);
    if (want <= regret->capacity) return PKV_OK;
    const uint32_t capacity =
        (uint32_t)pkvi_min_u64(pkvi_max_u64(want, 2 * regret->capacity), limit);
    const size_t bytes = block_bytes(info);
    /* Kernels read the bounds with vector loads. */
    size_t total;
    if (!pkvi_mul_size(capacity, bytes, &total)) return PKV_ENOMEM;
    unsigned char *blocks = pkvi_mem_alloc_aligned(mem, total, 64);
    uint32_t *logical = pkvi_mem_array(mem, capacity, sizeof *logical);
    if (!blocks || !logical) {
        pkvi_mem_free(mem, blocks, total);
        pkvi_mem_free_array(mem, logical, capacity, sizeof *logical);
        return PKV_ENOMEM;
    }
    /* Below the limit the ring never wrapped: entries are [0, count). */
    if (regret->capacity != 0) {
        memcpy(blocks, regret->blocks, regret->count * bytes);
        memcpy(logical, regret->logical, regret->count * sizeof *logical);
        pkvi_mem_free(mem, regret->blocks, regret->capacity * bytes);
        pkvi_mem_free_array(mem, regret->logical, regret->capacity, sizeof *logical);
    }
    regret->blocks = blocks;
    regret->logical = logical;
    regret->capacity = capacity;
    regret->next = regret->count;
    return PKV_OK;
}

void pkvi_regret_keep(struct pkvi_regret *regret, const struct pkvi_evict_group *info,
                      uint32_t logical, uint32_t page)
{
    if (regret->capacity == 0) return;
    if (regret->next >= regret->capacity) regret->next = 0;
    const struct pkvi_layout *layout = info->layout;
    const size_t bytes = (size_t)layout->kv_heads * layout->dim_k * layout->k_elem_bytes;
    const unsigned char *part = pkvi_pool_address(info->pool, page);
    unsigned char *block = regret->blocks + (size_t)regret->next * block_bytes(info);
    for (uint32_t l = 0; l < info->n_layers; l++) {
        memcpy(block + BLOCK_HEADER, part + layout->min_offset, bytes);
        memcpy(block + BLOCK_HEADER + half_bytes(info), part + layout->max_offset, bytes);
        part += info->layer_bytes;
        block += layer_bytes(info);
    }
    regret->logical[regret->next++] = logical;
    if (regret->count < regret->capacity) regret->count++;
}

void pkvi_regret_forget(struct pkvi_regret *regret, const struct pkvi_evict_group *info,
                        uint32_t first, uint32_t end)
{
    const size_t bytes = block_bytes(info);
    uint32_t to = 0;
    for (uint32_t i = 0; i < regret->count; i++) {
        if (regret->logical[i] >= first && regret->logical[i] < end) continue;
        if (to != i) {
            memcpy(regret->blocks + to * bytes, regret->blocks + i * bytes, bytes);
            regret->logical[to] = regret->logical[i];
        }
        to++;
    }
    if (to == regret->count) return;
    regret->count = regret->next = to;
}

void pkvi_regret_free(struct pkvi_regret *regret, struct pkvi_mem *mem,
                      const struct pkvi_evict_group *info)
{
    if (regret->capacity != 0) {
        pkvi_mem_free(mem, regret->blocks, regret->capacity * block_bytes(info));
        pkvi_mem_free_array(mem, regret->logical, regret->capacity, sizeof *regret->logical);
    }
    memset(regret, 0, sizeof *regret);
}

pkv_status pkvi_regret_copy(struct pkvi_regret *to, const struct pkvi_regret *from,
                            struct pkvi_mem *mem, const struct pkvi_evict_group *info)
{
    if (from->capacity == 0) return PKV_OK;
    const pkv_status status = pkvi_regret_reserve(to, mem, info, from->capacity, from->capacity);
    if (status != PKV_OK) return status;
    memcpy(to->blocks, from->blocks, from->count * block_bytes(info));
    memcpy(to->logical, from->logical, from->count * sizeof *from->logical);
    to->limit = from->limit;
    to->count = from->count;
    to->next = from->next;
    to->steps = from->steps;
    return PKV_OK;
}

/* ---- the look ------------------------------------------------------------------------------- */

bool pkvi_evict_look_due(const struct pkvi_evict_seq *es, uint32_t group)
{
    if (!es || !es->groups[group].policy) return false;
    const struct pkvi_regret *regret = &es->groups[group].regret;
    return regret->due && regret->count > 0;
}

struct look {
    const struct pkvi_kernels *kernels;
    uint32_t head;
    uint32_t n_rows; /* <= CHUNK_ROWS */
    const float *q;
};

/* best[i] = largest bound over the rows for each of the n parts. */
static void bounds(const struct look *look, const struct pkvi_layout *layout,
                   const void *const *parts, uint32_t n, float *best)
{
    look->kernels->score(layout, parts, n, look->head, look->head + 1, look->q, look->n_rows, best);
}

/* Largest bound among the dropped pages. */
static float best_dropped(const struct look *look, const struct pkvi_regret *regret,
                          const struct pkvi_evict_group *info, uint32_t layer)
{
    struct pkvi_layout layout = *info->layout;
    layout.min_offset = BLOCK_HEADER;
    layout.max_offset = BLOCK_HEADER + half_bytes(info);
    const unsigned char *base = regret->blocks + layer * layer_bytes(info);
    float top = -__builtin_inff();
    for (uint32_t first = 0; first < regret->count; first += CHUNK_PAGES) {
        const uint32_t n = pkvi_min_u32(regret->count - first, CHUNK_PAGES);
        const void *parts[CHUNK_PAGES];
        float best[CHUNK_PAGES];
        for (uint32_t i = 0; i < n; i++)
            parts[i] = base + (size_t)(first + i) * block_bytes(info);
        bounds(look, &layout, parts, n, best);
        for (uint32_t i = 0; i < n; i++)
            if (best[i] > top) top = best[i];
    }
    return top;
}

/* Kept full pages whose bound is at least `dropped`; *n = pages looked at. */
static uint32_t count_better(const struct look *look, const struct pkvi_evict_group *info,
                             const struct pkvi_table *table, uint32_t layer, uint32_t n_full,
                             float dropped, uint32_t *n)
{
    uint32_t better = 0, cursor = 0, used = 0;
    struct pkvi_resident page;
    const void *parts[CHUNK_PAGES];
    float best[CHUNK_PAGES];
    *n = 0;
    for (bool more = true; more;) {
        more = pkvi_table_next(table, &cursor, &page) && page.logical < n_full;
        if (more) {
            const unsigned char *base = pkvi_pool_address(info->pool, page.page);
            parts[used++] = base + layer * info->layer_bytes;
        }
        if (used == 0 || (more && used < CHUNK_PAGES)) continue;
        bounds(look, info->layout, parts, used, best);
        for (uint32_t i = 0; i < used; i++)
            better += best[i] >= dropped;
        *n += used;
        used = 0;
    }
    return better;
}

void pkvi_evict_look(struct pkvi_evict_seq *es, uint32_t group, uint32_t layer, uint32_t kv_head,
                     const struct pkvi_kernels *kernels, const struct pkvi_table *table,
                     const float *q, uint32_t n_rows)
{
    if (!pkvi_evict_look_due(es, group) || n_rows == 0) return;
    const struct pkvi_evict_group *info = &es->evict->groups[group];
    struct pkvi_evict_state *state = &es->groups[group];
    struct pkvi_regret *regret = &state->regret;
    if (n_rows > CHUNK_ROWS) { /* the last rows are the newest */
        q += (size_t)(n_rows - CHUNK_ROWS) * info->layout->dim_k;
        n_rows = CHUNK_ROWS;
    }
    const struct look look = {kernels, kv_head, n_rows, q};
    const float dropped = best_dropped(&look, regret, info, layer);
    const uint32_t n_full = table->next - (table->resident - state->reserved_full);
    uint32_t n;
    const uint32_t better = count_better(&look, info, table, layer, n_full, dropped, &n);
    const uint32_t rank = state->policy->config.regret_rank;
    atomic_fetch_add_explicit(&regret->checks, 1, memory_order_relaxed);
    if (better >= (rank == 0 || rank > n ? n : rank)) return;
    atomic_fetch_add_explicit(&regret->hits, 1, memory_order_relaxed);
    atomic_store_explicit(&regret->step_hit, 1, memory_order_relaxed);
}

bool pkvi_evict_take_regret(struct pkvi_evict_seq *es, uint32_t group, uint64_t *checks,
                            uint64_t *regrets)
{
    struct pkvi_regret *regret = &es->groups[group].regret;
    const uint64_t all = atomic_load_explicit(&regret->checks, memory_order_relaxed);
    const uint64_t hits = atomic_load_explicit(&regret->hits, memory_order_relaxed);
    *checks = all - regret->taken_checks;
    *regrets = hits - regret->taken_hits;
    regret->taken_checks = all;
    regret->taken_hits = hits;
    return *checks != 0;
}
