#include "cache/demand.h"

#include <string.h>

/* The region slot that max_pages cuts short, and by how many pages; false if none is. */
static bool cut_slot(const struct pkvi_pool *pool, uint32_t *slot, uint64_t *pages)
{
    const uint64_t all = (uint64_t)pool->max_slots * pool->per_region.d;
    if (pool->config.max_pages == 0 || all <= pool->config.max_pages) return false;
    *slot = pool->max_slots - 1;
    *pages = all - pool->config.max_pages;
    return true;
}

/* Pages of a region that somebody holds or a magazine keeps; cached ones do not count, reclaiming
 * gets them. */
static uint32_t used_in_region(const struct pkvi_pool *pool, uint32_t slot)
{
    const uint32_t first = slot * pool->per_region.d;
    const uint32_t end =
        (uint32_t)pkvi_min_u64((uint64_t)first + pool->per_region.d, pkvi_pool_index_limit(pool));
    uint32_t used = 0;
    for (uint32_t page = first; page < end; page++) {
        const _Atomic uint64_t *word = pkvi_segvec_at(&pool->words, page, sizeof *word);
        const uint64_t w = atomic_load_explicit(word, memory_order_relaxed);
        used += (w & (PKVI_WORD_REFS | PKVI_WORD_MAGAZINE)) != 0;
    }
    return used;
}

/* Regions that hold cached pages but no used ones: reclaiming empties them. O(pages). */
static uint64_t cached_regions(struct pkvi_pool *pool)
{
    uint64_t n = 0;
    pkvi_mutex_lock(&pool->lock);
    const uint32_t limit = pkvi_pool_index_limit(pool);
    const uint32_t slots = (uint32_t)pkvi_ceil_div_u64(limit, pool->per_region.d);
    for (uint32_t slot = 0; slot < slots; slot++) {
        const struct pkvi_region *region = pkvi_segvec_at(&pool->slots, slot, sizeof *region);
        if (region->pages == 0 || region->free_count == region->pages) continue;
        n += used_in_region(pool, slot) == 0;
    }
    pkvi_mutex_unlock(&pool->lock);
    return n;
}

/* Does the slot hold a region without used pages (`cached`: counting those that reclaiming
 * empties)?
 */
static bool is_movable(struct pkvi_pool *pool, uint32_t slot, bool cached)
{
    pkvi_mutex_lock(&pool->lock);
    bool movable = false;
    if (slot < atomic_load_explicit(&pool->n_slots, memory_order_relaxed)) {
        const struct pkvi_region *region = pkvi_segvec_at(&pool->slots, slot, sizeof *region);
        movable = region->pages != 0 && (region->free_count == region->pages ||
                                         (cached && used_in_region(pool, slot) == 0));
    }
    pkvi_mutex_unlock(&pool->lock);
    return movable;
}

/* What the pools can hand out. Cached pages count as free: a reserve reclaims them. Empty regions
 * can move between pools, so their pages count as regions. */
static void read_bank(struct pkv_cache *cache, bool exact, struct pkvi_bank *bank)
{
    bank->n_groups = cache->n_groups;
    bank->regions = 0;
    if (cache->storage != PKV_STORAGE_EXTERNAL)
        bank->regions =
            pkvi_budget_region_room(&cache->budget) / cache->regions.config.region_bytes;
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        struct pkvi_pool *pool = &cache->groups[g].pool;
        const uint64_t used = atomic_load_explicit(&pool->out, memory_order_relaxed);
        bank->free[g] = atomic_load_explicit(&pool->total, memory_order_relaxed) - used;
        bank->per_region[g] = 0;
        bank->cut[g] = 0;
        bank->cap[g] = UINT64_MAX;
        bank->keep[g] = 0;
        if (pool->config.max_pages != 0)
            bank->cap[g] = pool->config.max_pages > used ? pool->config.max_pages - used : 0;
        if (cache->storage == PKV_STORAGE_EXTERNAL) continue;
        uint64_t movable = atomic_load_explicit(&pool->n_empty, memory_order_relaxed);
        const bool cached = exact && cache->n_groups > 1 &&
                            atomic_load_explicit(&pool->cached, memory_order_relaxed) != 0;
        if (cached) movable += cached_regions(pool);
        bank->per_region[g] = pool->per_region.d;
        bank->regions += movable;
        bank->free[g] -= movable * pool->per_region.d;
        uint32_t last;
        if (cut_slot(pool, &last, &bank->cut[g]) && is_movable(pool, last, cached))
            bank->free[g] += bank->cut[g];
    }
}

uint64_t pkvi_demand_most_held(const struct pkv_cache *cache, const struct pkvi_seq *seq,
                               uint32_t g)
{
    uint64_t most = UINT64_MAX;
    if (seq != NULL && seq->n_pins != 0) return most;
    const uint32_t window = cache->groups[g].window;
    if (window != 0) most = (((uint64_t)window + cache->page_tokens - 2) >> cache->page_shift) + 1;
    for (int slot = 0; slot < PKVI_HOOK_SLOTS; slot++) {
        const struct pkvi_hooks *hooks = cache->hooks[slot];
        if (hooks == NULL || hooks->most_held == NULL) continue;
        most = pkvi_min_u64(most, hooks->most_held(cache->hook_context[slot], seq, g));
    }
    return most;
}

/* Must the next write into the sequence's partial tail copy it? */
static bool tail_is_shared(const struct pkvi_seq *seq, uint32_t g)
{
    const struct pkv_cache *cache = seq->cache;
    if ((seq->length & (cache->page_tokens - 1u)) == 0) return false;
    const uint32_t page =
        pkvi_table_page(&seq->tables[g], (uint32_t)(seq->length >> cache->page_shift));
    return page != PKVI_NO_PAGE && pkvi_pool_is_shared(&cache->groups[g].pool, page);
}

/* ---- pages that come back ----------------------------------------------------------------------
 * A page is free again when the last of its holders ends. In the course of a check each page counts
 * those of its holders that have ended; one whose other holders all have belongs to the last alone.
 */

/* Makes an array of counters hold at least n, if memory allows. Old counts are of no use. */
static void grow_counters(struct pkv_cache *cache, uint64_t **counters, uint32_t *capacity,
                          uint32_t n)
{
    if (n <= *capacity) return;
    const uint32_t wider = pkvi_max_u32(n, *capacity <= UINT32_MAX / 2 ? 2 * *capacity : n);
    uint64_t *grown = pkvi_mem_array(&cache->mem, wider, sizeof *grown);
    if (grown == NULL) return;
    if (*capacity != 0) memcpy(grown, *counters, *capacity * sizeof *grown);
    pkvi_mem_free_array(&cache->mem, *counters, *capacity, sizeof *grown);
    *counters = grown;
    *capacity = wider;
}

static void grow_all(struct pkv_cache *cache, uint32_t g)
{
    struct pkvi_admission *admission = cache->admission;
    const struct pkvi_pool *pool = &cache->groups[g].pool;
    const uint32_t pages = pkvi_pool_index_limit(pool);
    const uint32_t slots = (uint32_t)pkvi_ceil_div_u64(pages, pool->per_region.d);
    grow_counters(cache, &admission->ended[g], &admission->n_ended[g], pages);
    grow_counters(cache, &admission->in_use[g], &admission->n_in_use[g], slots);
}

void pkvi_demand_free(struct pkv_cache *cache)
{
    struct pkvi_admission *admission = cache->admission;
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        pkvi_mem_free_array(&cache->mem, admission->ended[g], admission->n_ended[g],
                            sizeof *admission->ended[g]);
        pkvi_mem_free_array(&cache->mem, admission->in_use[g], admission->n_in_use[g],
                            sizeof *admission->in_use[g]);
    }
}

/* A new check: what the counters say is void. */
static void forget_ended(struct pkv_cache *cache)
{
    struct pkvi_admission *admission = cache->admission;
    if (++admission->check != 0) return;
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        if (admission->n_ended[g] != 0)
            memset(admission->ended[g], 0, admission->n_ended[g] * sizeof *admission->ended[g]);
        if (admission->n_in_use[g] != 0)
            memset(admission->in_use[g], 0, admission->n_in_use[g] * sizeof *admission->in_use[g]);
    }
    admission->check = 1;
}

/* The page comes back: true if its region stands empty now. */
static bool empties_region(const struct pkvi_seq *seq, uint32_t g, uint32_t page)
{
    const struct pkvi_admission *admission = seq->cache->admission;
    const struct pkvi_pool *pool = &seq->cache->groups[g].pool;
    const uint32_t slot = pkvi_div(pool->per_region, page);
    if (seq->cache->n_groups == 1 || slot >= admission->n_in_use[g]) return false;
    uint64_t *entry = &admission->in_use[g][slot];
    if (*entry >> 32 != admission->check)
        *entry = (uint64_t)admission->check << 32 | used_in_region(pool, slot);
    return (uint32_t)-- * entry == 0;
}

/* Pages of the table that only this sequence still holds. */
static uint64_t own_pages(const struct pkvi_seq *seq, uint32_t g)
{
    const struct pkvi_admission *admission = seq->cache->admission;
    uint64_t own = 0;
    uint32_t cursor = 0;
    struct pkvi_resident r;
    while (pkvi_table_next(&seq->tables[g], &cursor, &r)) {
        const uint32_t refs = pkvi_pool_refs(&seq->cache->groups[g].pool, r.page);
        uint32_t ended = 0;
        if (r.page < admission->n_ended[g] && admission->ended[g][r.page] >> 32 == admission->check)
            ended = (uint32_t)admission->ended[g][r.page];
        own += ended + 1 == refs;
    }
    return own;
}

/* The sequence lets go of all its pages: counts those that come back, and the regions that stand
 * empty thereby. */
static void let_go(const struct pkvi_seq *seq, uint32_t g, uint64_t *back, uint64_t *empties,
                   uint64_t *cuts)
{
    const struct pkvi_pool *pool = &seq->cache->groups[g].pool;
    uint32_t last = UINT32_MAX;
    uint64_t cut;
    cut_slot(pool, &last, &cut);
    const struct pkvi_admission *admission = seq->cache->admission;
    *back = *empties = 0;
    uint32_t cursor = 0;
    struct pkvi_resident r;
    while (pkvi_table_next(&seq->tables[g], &cursor, &r)) {
        const uint32_t refs = pkvi_pool_refs(&seq->cache->groups[g].pool, r.page);
        if (r.page < admission->n_ended[g]) {
            uint64_t *entry = &admission->ended[g][r.page];
            if (*entry >> 32 != admission->check) *entry = (uint64_t)admission->check << 32;
            if ((uint32_t)++ * entry != refs) continue;
        } else if (refs != 1) {
            continue;
        }
        ++*back;
        if (!empties_region(seq, g, r.page)) continue;
        ++*empties;
        if (pkvi_div(pool->per_region, r.page) == last) *cuts |= UINT64_C(1) << g;
    }
}

/* ---- needs -------------------------------------------------------------------------------------
 */

/* Pages that an admitted sequence may still take once the step is reserved; `own` (NULL = unknown,
 * taken as none) are the pages per group that come free as it moves on. */
static void read_need(const struct pkvi_seq *seq, const struct pkvi_step *step, const uint64_t *own,
                      uint64_t *need)
{
    const struct pkv_cache *cache = seq->cache;
    const uint64_t claimed = pkvi_pages_for(cache, seq->claim);
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        const uint64_t next = (uint64_t)seq->tables[g].next + step->adds;
        uint64_t more = claimed > next ? claimed - next : 0;
        const uint64_t most = pkvi_demand_most_held(cache, seq, g);
        const uint64_t held = own != NULL ? own[g] + step->adds : 0;
        more = pkvi_min_u64(more, most > held ? most - held : 0);
        if (!step->is_stepped && seq->length < seq->claim && tail_is_shared(seq, g)) more++;
        need[g] = more;
    }
}

/* Pages that the step takes in one group: new ones, and the copy of a shared tail. */
static uint64_t pages_taken(const struct pkvi_seq *seq, const struct pkvi_step *step, uint32_t g)
{
    return step->adds + (step->is_stepped && tail_is_shared(seq, g) ? 1u : 0u);
}

static void refresh(void *context, struct pkvi_holder *holder)
{
    const struct pkvi_demand *demand = context;
    const struct pkvi_admission *admission = demand->cache->admission;
    if (holder->id >= admission->n) return; /* a probe's newcomer */
    const struct pkvi_seq *seq = admission->seqs[holder->id];
    uint64_t own[PKV_MAX_GROUPS];
    bool bounded = false;
    for (uint32_t g = 0; g < demand->cache->n_groups; g++) {
        own[g] = 0;
        if (pkvi_demand_most_held(demand->cache, seq, g) == UINT64_MAX) continue;
        grow_all(demand->cache, g);
        own[g] = own_pages(seq, g);
        bounded = true;
    }
    if (bounded) read_need(seq, &admission->steps[holder->id], own, holder->need);
}

static void end(void *context, struct pkvi_holder *holder)
{
    struct pkvi_demand *demand = context;
    const struct pkvi_admission *admission = demand->cache->admission;
    if (holder->id >= admission->n) return; /* a probe's newcomer: its back[] is known */
    const struct pkvi_seq *seq = admission->seqs[holder->id];
    const struct pkvi_step *step = &admission->steps[holder->id];
    holder->cuts = 0;
    for (uint32_t g = 0; g < demand->cache->n_groups; g++) {
        grow_all(demand->cache, g);
        uint64_t emptied;
        let_go(seq, g, &holder->back[g], &emptied, &demand->cuts);
        const uint64_t taken = pages_taken(seq, step, g);
        holder->back[g] += taken;
        /* In which regions the batch's pages will lie is open. So until all its entries have ended
         * no region of the group counts as empty, neither those it opens nor old ones. */
        demand->emptied[g] += emptied;
        if (taken != 0) demand->openers[g]--;
        holder->empties[g] = demand->openers[g] == 0 ? demand->emptied[g] : 0;
        if (demand->openers[g] != 0) continue;
        holder->cuts |= demand->cuts & UINT64_C(1) << g;
        demand->cuts &= ~(UINT64_C(1) << g);
        demand->emptied[g] = 0;
    }
}

static uint32_t pages_added(const struct pkvi_entry *entry)
{
    const struct pkvi_seq *seq = entry->seq;
    return (uint32_t)(pkvi_pages_for(seq->cache, seq->length + entry->n_tokens) -
                      pkvi_pages_for(seq->cache, seq->length));
}

/* Notes what the batch takes, per sequence and in all. */
static void read_batch(struct pkvi_demand *demand, uint64_t *taken)
{
    const struct pkv_cache *cache = demand->cache;
    struct pkvi_admission *admission = cache->admission;
    memset(admission->steps, 0, ((size_t)admission->n + 1) * sizeof *admission->steps);
    for (uint32_t i = 0; i < demand->n_entries; i++) {
        const struct pkvi_entry *entry = &demand->batch->entries[i];
        const struct pkvi_step step = {pages_added(entry), true};
        for (uint32_t g = 0; g < cache->n_groups; g++) {
            const uint64_t pages = pages_taken(entry->seq, &step, g);
            taken[g] += pages;
            demand->openers[g] += pages != 0;
        }
        if (entry->seq->claim != 0) admission->steps[entry->seq->claim_index] = step;
    }
}

bool pkvi_demand_read(struct pkvi_demand *demand)
{
    struct pkv_cache *cache = demand->cache;
    struct pkvi_admission *admission = cache->admission;
    uint64_t taken[PKV_MAX_GROUPS] = {0};
    memset(demand->emptied, 0, sizeof demand->emptied);
    memset(demand->openers, 0, sizeof demand->openers);
    demand->cuts = 0;
    read_batch(demand, taken);
    for (uint32_t i = 0; i < admission->n; i++) {
        admission->holders[i].id = i;
        read_need(admission->seqs[i], &admission->steps[i], NULL, admission->holders[i].need);
    }
    read_bank(cache, demand->exact, &demand->bank);
    return pkvi_bank_take(&demand->bank, taken, demand->emptied);
}

/* Can everybody have everything at once? */
static bool all_at_once(const struct pkvi_demand *demand, uint32_t n)
{
    const struct pkvi_holder *holders = demand->cache->admission->holders;
    uint64_t total[PKV_MAX_GROUPS] = {0};
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t g = 0; g < demand->cache->n_groups; g++)
            total[g] += holders[i].need[g];
    return pkvi_bank_can(&demand->bank, total);
}

uint32_t pkvi_demand_stuck(struct pkvi_demand *demand, uint32_t n, uint32_t *stuck)
{
    struct pkvi_admission *admission = demand->cache->admission;
    if (!demand->exact) return all_at_once(demand, n) ? 0 : n;
    const struct pkvi_bank_ops ops = {demand, refresh, end};
    forget_ended(demand->cache);
    return pkvi_bank_stuck(&demand->bank, admission->holders, n, admission->order, &ops, stuck);
}
