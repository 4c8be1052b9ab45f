#include "cache/demand.h"

#include <string.h>

#include "cache/open_pages.h"

/* What metadata may come to while the cache is full of the smallest pages: what an empty cache has,
 * first arrays of every kind and what the budget keeps beside them, and per page its words, its
 * places in tables and counters (arrays that grow by doubling), and its node of the prefix index.
 * Promised to nobody as pages: so a state that is safe stays safe when metadata grows. */
static uint64_t metadata_to_come(const struct pkv_cache *cache, uint64_t limit)
{
    enum { FIRST_ARRAYS = 128 << 10, PAGE_METADATA = 80, NODE_METADATA = 320 };
    uint64_t smallest = UINT64_MAX;
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        const struct pkvi_pool *pool = &cache->groups[g].pool;
        smallest = pkvi_min_u64(smallest, pkvi_pool_unit_bytes(pool) / pkvi_pool_unit_pages(pool));
    }
    const uint64_t per_page = PAGE_METADATA + (cache->hooks[PKVI_HOOK_PREFIX] ? NODE_METADATA : 0);
    return cache->empty_metadata + FIRST_ARRAYS + limit / 256 + limit / smallest * per_page;
}

/* What the pools can hand out. Cached pages count as free: a reserve reclaims them. Whatever is in
 * no unit with used pages is the stock: any group can have its memory. */
static void read_bank(struct pkv_cache *cache, bool exact, struct pkvi_bank *bank)
{
    bank->n_groups = cache->n_groups;
    uint64_t used = 0;
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        struct pkvi_pool *pool = &cache->groups[g].pool;
        struct pkvi_pool_census census;
        pkvi_pool_census(pool, exact, &census);
        bank->free[g] = census.own;
        bank->cap[g] = census.cap;
        bank->keep[g] = 0;
        bank->per_unit[g] = cache->storage != PKV_STORAGE_EXTERNAL ? pkvi_pool_unit_pages(pool) : 0;
        bank->unit_bytes[g] = pkvi_pool_unit_bytes(pool);
        used += census.used_bytes;
        if (!cache->groups[g].quantised) continue;
        pkvi_pool_census(&cache->groups[g].open_pool, exact, &census);
        used += census.used_bytes;
    }
    const uint64_t limit = pkvi_budget_limit(&cache->budget);
    uint64_t bound = pkvi_budget_for_pages(&cache->budget);
    bound = pkvi_min_u64(bound, limit - pkvi_min_u64(limit / 8, metadata_to_come(cache, limit)));
    bank->stock = bound > used ? bound - used : 0;
}

uint64_t pkvi_demand_most_held(const struct pkv_cache *cache, const struct pkvi_seq *seq,
                               uint32_t g)
{
    const uint32_t window = cache->groups[g].window;
    if (window == 0 || (seq && seq->n_pins != 0)) return UINT64_MAX;
    return (((uint64_t)window + cache->page_tokens - 2) >> cache->page_shift) + 1;
}

/* Must a step of n tokens copy the sequence's partial tail? */
static bool copies_tail(const struct pkvi_seq *seq, uint32_t g, uint32_t n_tokens)
{
    const struct pkv_cache *cache = seq->cache;
    if ((seq->length & (cache->page_tokens - 1u)) == 0) return false;
    const uint32_t page =
        pkvi_table_page(&seq->tables[g], (uint32_t)(seq->length >> cache->page_shift));
    if (page == PKVI_NO_PAGE) return false;
    return pkvi_pool_is_shared(&cache->groups[g].pool, page) || pkvi_open_reseals(seq, g, n_tokens);
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
    if (!grown) return;
    if (*capacity != 0) memcpy(grown, *counters, *capacity * sizeof *grown);
    pkvi_mem_free_array(&cache->mem, *counters, *capacity, sizeof *grown);
    *counters = grown;
    *capacity = wider;
}

/* Does a page of this group make a unit of its own? Then its coming back needs no counting. */
static bool has_single_units(const struct pkv_cache *cache, uint32_t g)
{
    return pkvi_pool_unit_pages(&cache->groups[g].pool) == 1;
}

static void grow_all(struct pkv_cache *cache, uint32_t g)
{
    struct pkvi_admission *admission = cache->admission;
    const struct pkvi_pool *pool = &cache->groups[g].pool;
    const uint32_t pages = pkvi_pool_index_limit(pool);
    grow_counters(cache, &admission->ended[g], &admission->n_ended[g], pages);
    if (has_single_units(cache, g) || pages == 0) return;
    grow_counters(cache, &admission->in_use[g], &admission->n_in_use[g],
                  pkvi_pool_unit_of(pool, pages - 1) + 1);
}

void pkvi_demand_free(struct pkv_cache *cache)
{
    struct pkvi_admission *admission = cache->admission;
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        pkvi_mem_free_array(&cache->mem, admission->ended[g], admission->n_ended[g],
                            sizeof *admission->ended[g]);
        pkvi_mem_free_array(&cache->mem, admission->in_use[g], admission->n_in_use[g],
                            sizeof *admission->in_use[g]);
        admission->ended[g] = admission->in_use[g] = NULL;
        admission->n_ended[g] = admission->n_in_use[g] = 0;
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

/* The page comes back: true if nothing of its unit is in use now. */
static bool empties_unit(const struct pkvi_seq *seq, uint32_t g, uint32_t page)
{
    const struct pkvi_admission *admission = seq->cache->admission;
    const struct pkvi_pool *pool = &seq->cache->groups[g].pool;
    if (has_single_units(seq->cache, g)) return true;
    const uint32_t unit = pkvi_pool_unit_of(pool, page);
    if (unit >= admission->n_in_use[g]) return false;
    uint64_t *entry = &admission->in_use[g][unit];
    if (*entry >> 32 != admission->check)
        *entry = (uint64_t)admission->check << 32 | pkvi_pool_used_in_unit(pool, unit);
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

/* The sequence lets go of all its pages: counts those that come back, and the units of which
 * nothing is in use thereby. */
static void let_go(const struct pkvi_seq *seq, uint32_t g, uint64_t *back, uint64_t *units)
{
    const struct pkvi_admission *admission = seq->cache->admission;
    *back = *units = 0;
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
        *units += empties_unit(seq, g, r.page);
    }
}

/* ---- needs ---------------------------------------------------------------------------------- */

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
        const uint64_t held = own ? own[g] + step->adds : 0;
        more = pkvi_min_u64(more, most > held ? most - held : 0);
        if (step->n_tokens == 0 && seq->length < seq->claim && copies_tail(seq, g, 1)) more++;
        need[g] = more;
    }
}

/* Pages that the step takes in one group: new ones, and the copy of a shared tail. */
static uint64_t pages_taken(const struct pkvi_seq *seq, const struct pkvi_step *step, uint32_t g)
{
    return step->adds + (step->n_tokens != 0 && copies_tail(seq, g, step->n_tokens) ? 1u : 0u);
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
    for (uint32_t g = 0; g < demand->cache->n_groups; g++) {
        grow_all(demand->cache, g);
        uint64_t emptied;
        let_go(seq, g, &holder->back[g], &emptied);
        const uint64_t taken = pages_taken(seq, step, g);
        holder->back[g] += taken;
        if (demand->bank.per_unit[g] <= 1) {
            holder->units[g] = demand->bank.per_unit[g] == 0 ? 0 : emptied + taken;
            continue;
        }
        /* In which units the batch's pages will lie is open. So until all its entries have ended no
         * unit of the group counts as empty, neither those it opens nor old ones. */
        demand->emptied[g] += emptied;
        if (taken != 0) demand->openers[g]--;
        holder->units[g] = demand->openers[g] == 0 ? demand->emptied[g] : 0;
        if (demand->openers[g] == 0) demand->emptied[g] = 0;
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
        const struct pkvi_step step = {pages_added(entry), entry->n_tokens};
        for (uint32_t g = 0; g < cache->n_groups; g++) {
            const uint64_t pages = pages_taken(entry->seq, &step, g);
            taken[g] += pages;
            demand->openers[g] += pages != 0;
        }
        if (entry->seq->claim != 0) admission->steps[entry->seq->claim_index] = step;
    }
}

/* ---- open pages --------------------------------------------------------------------------------
 * Every sequence of a quantised group may hold one open page at any time, so what admitted
 * sequences lack of that is set aside: the rest of the check is about the group's other pages. What
 * a step takes beyond comes back at its commit; it must be there, no more. */

/* Bytes that n more open pages need: freed places in used units are filled first, so units never
 * outnumber what their pages need at most. */
static uint64_t open_bytes(const struct pkvi_group *group, uint64_t n)
{
    const struct pkvi_pool *pool = &group->open_pool;
    return pkvi_ceil_div_u64(n, pkvi_pool_unit_pages(pool)) * pkvi_pool_unit_bytes(pool);
}

static uint64_t take_from_stock(struct pkvi_bank *bank, uint64_t bytes)
{
    const uint64_t taken = pkvi_min_u64(bank->stock, bytes);
    bank->stock -= taken;
    return bytes - taken;
}

/* Sets open pages aside. False if the step's are not there. */
static bool set_open_aside(struct pkvi_demand *demand)
{
    const struct pkv_cache *cache = demand->cache;
    const struct pkvi_admission *admission = cache->admission;
    uint64_t lacking = 0;
    demand->open_bytes = 0;
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        if (!cache->groups[g].quantised) continue;
        uint64_t stay = demand->n_to_come, step = 0;
        for (uint32_t i = 0; i < admission->n; i++) {
            const struct pkvi_seq *seq = admission->seqs[i];
            stay += seq->length < seq->claim && !pkvi_open_is_own(seq, g);
        }
        for (uint32_t i = 0; i < demand->n_entries; i++) {
            const struct pkvi_entry *entry = &demand->batch->entries[i];
            const uint32_t needed = pkvi_open_needed(entry, g);
            const bool counted = entry->seq->claim != 0 && !pkvi_open_is_own(entry->seq, g);
            const bool stays = needed != 0 && (counted || entry->seq->claim == 0);
            stay += stays && !counted;
            step += needed - stays;
        }
        lacking += take_from_stock(&demand->bank, open_bytes(&cache->groups[g], stay));
        demand->open_bytes += open_bytes(&cache->groups[g], step);
    }
    demand->short_of_open = lacking != 0;
    return lacking + take_from_stock(&demand->bank, demand->open_bytes) == 0;
}

bool pkvi_demand_read(struct pkvi_demand *demand)
{
    struct pkv_cache *cache = demand->cache;
    struct pkvi_admission *admission = cache->admission;
    uint64_t taken[PKV_MAX_GROUPS] = {0};
    memset(demand->emptied, 0, sizeof demand->emptied);
    memset(demand->openers, 0, sizeof demand->openers);
    read_batch(demand, taken);
    for (uint32_t i = 0; i < admission->n; i++) {
        admission->holders[i].id = i;
        read_need(admission->seqs[i], &admission->steps[i], NULL, admission->holders[i].need);
    }
    read_bank(cache, demand->exact, &demand->bank);
    const bool open = set_open_aside(demand);
    const bool pages = pkvi_bank_take(&demand->bank, taken, demand->emptied);
    demand->bank.stock += demand->open_bytes;
    return open && pages;
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
    if (demand->short_of_open) return n;
    if (!demand->exact) return all_at_once(demand, n) ? 0 : n;
    const struct pkvi_bank_ops ops = {.context = demand, .refresh = refresh, .end = end};
    forget_ended(demand->cache);
    return pkvi_bank_stuck(&demand->bank, admission->holders, n, admission->order, &ops, stuck);
}

void pkvi_demand_missing(const struct pkvi_demand *demand, uint32_t stuck, uint32_t *missing)
{
    const struct pkv_cache *cache = demand->cache;
    pkvi_bank_missing(&demand->bank, cache->admission->holders[stuck].need, missing);
    for (uint32_t g = 0; demand->short_of_open && g < cache->n_groups; g++)
        if (cache->groups[g].quantised) missing[g] = pkvi_max_u32(missing[g], 1);
}
