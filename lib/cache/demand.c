#include "cache/demand.h"

#include <string.h>

#include "cache/open_pages.h"

/* Metadata beside what an empty cache has: first arrays of every kind, and per page its words, its
 * places in tables and counters (arrays that grow by doubling), and its node of the prefix index
 * (tests/unit/test_admit.c holds it against what there is). */
enum {
    FIRST_ARRAYS = 192 << 10,
    STATE_ARRAYS = 20 << 10, /* per group of recurrent states */
    PAGE_METADATA = 88,
    NODE_METADATA = 200,
    NODES_HELD = 320 /* as metadata_to_come counts them: with those that stay for their children */
};

/* What metadata comes to when the one sequence has all its pages. */
static uint64_t metadata_of_one(const struct pkvi_demand *demand)
{
    const struct pkv_cache *cache = demand->cache;
    uint64_t pages = 0;
    for (uint32_t g = 0; g < cache->n_groups; g++)
        pages += demand->total[g];
    const uint64_t now = atomic_load_explicit(&cache->budget.metadata, memory_order_relaxed);
    const uint64_t per_page =
        PAGE_METADATA + (cache->hooks[PKVI_HOOK_PREFIX] ? NODE_METADATA : 0u);
    const uint64_t first =
        cache->empty_metadata + FIRST_ARRAYS + cache->states.n * (uint64_t)STATE_ARRAYS;
    return pkvi_max_u64(now, first) + pages * per_page;
}

/* What metadata may come to while the cache is full of the smallest pages. Promised to nobody as
 * pages, and the same whatever has happened: so a state that is safe stays safe when metadata grows. */
static uint64_t metadata_to_come(const struct pkvi_demand *demand, uint64_t limit)
{
    const struct pkv_cache *cache = demand->cache;
    uint64_t smallest = UINT64_MAX;
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        const struct pkvi_pool *pool = &cache->groups[g].pool;
        smallest = pkvi_min_u64(smallest, pkvi_pool_unit_bytes(pool) / pkvi_pool_unit_pages(pool));
    }
    const uint64_t per_page =
        PAGE_METADATA + (cache->hooks[PKVI_HOOK_PREFIX] ? NODES_HELD : 0u);
    const uint64_t bytes = cache->empty_metadata + FIRST_ARRAYS + limit / smallest * per_page;
    return pkvi_min_u64(limit / 8, bytes);
}

/* What the pools can hand out. Cached pages count as free: a reserve reclaims them. Whatever is in
 * no unit with used pages is the stock: any group can have its memory. */
static void read_bank(struct pkvi_demand *demand)
{
    struct pkv_cache *cache = demand->cache;
    struct pkvi_bank *bank = &demand->bank;
    const bool exact = demand->exact;
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
    for (uint32_t s = 0; s < cache->states.n; s++) {
        struct pkvi_pool_census census;
        pkvi_pool_census(&cache->states.groups[s].pool, exact, &census);
        used += census.used_bytes;
    }
    const uint64_t limit = pkvi_budget_limit(&cache->budget);
    const uint64_t metadata =
        demand->alone ? metadata_of_one(demand) : metadata_to_come(demand, limit);
    const uint64_t bound = pkvi_min_u64(pkvi_budget_for_pages(&cache->budget),
                                        pkvi_budget_beside(limit, metadata));
    bank->stock = bound > used ? bound - used : 0;
    bank->debt = used > bound ? used - bound : 0; /* one that was alone may have gone beyond */
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
    admission->match_held = false;
    if (++admission->check != 0) return;
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        if (admission->n_ended[g] != 0)
            memset(admission->ended[g], 0, admission->n_ended[g] * sizeof *admission->ended[g]);
        if (admission->n_in_use[g] != 0)
            memset(admission->in_use[g], 0, admission->n_in_use[g] * sizeof *admission->in_use[g]);
    }
    admission->check = 1;
}

/* Pages of a unit that are in use as the check goes on; NULL if there was no memory for the counter. */
static uint64_t *unit_entry(const struct pkv_cache *cache, uint32_t g, uint32_t page)
{
    const struct pkvi_admission *admission = cache->admission;
    const struct pkvi_pool *pool = &cache->groups[g].pool;
    const uint32_t unit = pkvi_pool_unit_of(pool, page);
    if (unit >= admission->n_in_use[g]) return NULL;
    uint64_t *entry = &admission->in_use[g][unit];
    if (*entry >> 32 != admission->check)
        *entry = (uint64_t)admission->check << 32 | pkvi_pool_used_in_unit(pool, unit);
    return entry;
}

/* The page comes back: true if nothing of its unit is in use now. */
static bool empties_unit(const struct pkv_cache *cache, uint32_t g, uint32_t page)
{
    if (has_single_units(cache, g)) return true;
    uint64_t *entry = unit_entry(cache, g, page);
    return entry && (uint32_t)-- * entry == 0;
}

/* One more of the page's holders has ended: true if it was the last. Counts nothing, and says so only
 * of pages with one holder, where there was no memory for the counter. */
static bool last_holder_ends(const struct pkv_cache *cache, uint32_t g, uint32_t page, uint32_t refs)
{
    const struct pkvi_admission *admission = cache->admission;
    if (refs == 1 && !admission->match_held) return true; /* this one: nothing to count */
    if (page >= admission->n_ended[g]) return refs == 1;
    uint64_t *entry = &admission->ended[g][page];
    if (*entry >> 32 != admission->check) *entry = (uint64_t)admission->check << 32;
    *entry = (*entry & ~UINT64_C(0xffffffff)) | (uint32_t)(*entry + 1);
    return (uint32_t)*entry == refs;
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
    const struct pkv_cache *cache = seq->cache;
    *back = *units = 0;
    uint32_t cursor = 0;
    struct pkvi_resident r;
    while (pkvi_table_next(&seq->tables[g], &cursor, &r)) {
        const uint32_t refs = pkvi_pool_refs(&cache->groups[g].pool, r.page);
        if (!last_holder_ends(cache, g, r.page, refs)) continue;
        ++*back;
        *units += empties_unit(cache, g, r.page);
    }
}

/* ---- the newcomer ---------------------------------------------------------------------------- */

/* Takes n idle pages out of the bank, with the units that they open. */
static bool take_idle(struct pkvi_bank *bank, uint32_t g, uint64_t n, uint64_t opened)
{
    if (n > bank->cap[g] || opened > bank->stock / bank->unit_bytes[g] ||
        n > bank->free[g] + opened * bank->per_unit[g])
        return false;
    bank->cap[g] -= n;
    bank->stock -= opened * bank->unit_bytes[g];
    bank->free[g] += opened * bank->per_unit[g];
    bank->free[g] -= n;
    return true;
}

/* The newcomer holds its match: others' pages come back only after it, too, idle ones are in use.
 * Returns units that are opened thereby. */
static uint64_t hold_match(struct pkvi_demand *demand, uint32_t g)
{
    const struct pkv_cache *cache = demand->cache;
    struct pkvi_admission *admission = cache->admission;
    const struct pkvi_prefix_grant *grant = demand->newcomer->grant;
    uint64_t opened = 0;
    grow_all(demand->cache, g);
    admission->match_held = admission->match_held || grant->n[g] != 0;
    for (uint32_t i = 0; i < grant->n[g]; i++) {
        const uint32_t page = grant->pages[g][i];
        if (pkvi_pool_refs(&cache->groups[g].pool, page) == 0) {
            uint64_t *entry = has_single_units(cache, g) ? NULL : unit_entry(cache, g, page);
            opened += !entry || (uint32_t)(*entry)++ == 0;
        } else if (page < admission->n_ended[g]) {
            admission->ended[g][page] = (uint64_t)admission->check << 32 | UINT32_MAX;
        } else {
            demand->blind = true;
        }
    }
    return opened;
}

static void let_go_of_match(const struct pkvi_demand *demand, struct pkvi_holder *holder)
{
    const struct pkv_cache *cache = demand->cache;
    const struct pkvi_prefix_grant *grant = demand->newcomer->grant;
    for (uint32_t g = 0; grant && g < cache->n_groups; g++) {
        holder->back[g] = holder->units[g] = 0;
        for (uint32_t i = 0; i < grant->n[g]; i++) {
            const uint32_t page = grant->pages[g][i];
            const uint32_t refs = pkvi_pool_refs(&cache->groups[g].pool, page);
            if (refs != 0 && !last_holder_ends(cache, g, page, refs)) continue;
            holder->back[g]++;
            holder->units[g] += empties_unit(cache, g, page);
        }
        if (demand->bank.per_unit[g] == 0) holder->units[g] = 0;
    }
}

/* Gives the newcomer the place behind all that have tickets. False if its pages are not there. */
static bool seat_newcomer(struct pkvi_demand *demand)
{
    const struct pkv_cache *cache = demand->cache;
    const struct pkvi_newcomer *newcomer = demand->newcomer;
    struct pkvi_holder *holder = &cache->admission->holders[cache->admission->n];
    bool there = true;
    holder->id = cache->admission->n;
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        const uint64_t idle = newcomer->idle[g];
        /* Where they lie is open: then, at worst, each in a unit of its own. */
        uint64_t opened = demand->bank.per_unit[g] == 0 ? 0 : idle;
        if (demand->exact && newcomer->grant) {
            const uint64_t known = hold_match(demand, g);
            opened = demand->bank.per_unit[g] == 0 ? 0 : known;
        }
        there = take_idle(&demand->bank, g, idle, opened) && there;
        holder->need[g] = newcomer->need[g];
        holder->back[g] = idle;
        holder->units[g] = opened;
    }
    return there;
}

/* ---- needs ---------------------------------------------------------------------------------- */

static void refresh(void *context, struct pkvi_holder *holder)
{
    const struct pkvi_demand *demand = context;
    const struct pkvi_admission *admission = demand->cache->admission;
    if (holder->id >= admission->n) return; /* the newcomer */
    const struct pkvi_seq *seq = admission->seqs[holder->id];
    uint64_t own[PKV_MAX_GROUPS];
    bool bounded = false;
    for (uint32_t g = 0; g < demand->cache->n_groups; g++) {
        own[g] = 0;
        if (pkvi_ticket_most_held(demand->cache, seq, g) == UINT64_MAX) continue;
        grow_all(demand->cache, g);
        own[g] = own_pages(seq, g);
        bounded = true;
    }
    if (bounded) pkvi_ticket_need(seq, &admission->steps[holder->id], own, holder->need);
}

/* In which units the batch's pages will lie is open. So until all its entries have ended no unit of
 * the group counts as empty, neither those it opens nor old ones. */
static void end_in_group(struct pkvi_demand *demand, const struct pkvi_seq *seq,
                         struct pkvi_holder *holder, uint32_t g, uint64_t taken)
{
    uint64_t emptied;
    let_go(seq, g, &holder->back[g], &emptied);
    holder->back[g] += taken;
    if (demand->bank.per_unit[g] <= 1) {
        holder->units[g] = demand->bank.per_unit[g] == 0 ? 0 : emptied + taken;
        return;
    }
    demand->emptied[g] += emptied;
    if (taken != 0) demand->openers[g]--;
    holder->units[g] = demand->openers[g] == 0 ? demand->emptied[g] : 0;
    if (demand->openers[g] == 0) demand->emptied[g] = 0;
}

static void end(void *context, struct pkvi_holder *holder)
{
    struct pkvi_demand *demand = context;
    const struct pkvi_admission *admission = demand->cache->admission;
    if (holder->id >= admission->n) {
        let_go_of_match(demand, holder);
        return;
    }
    const struct pkvi_seq *seq = admission->seqs[holder->id];
    const struct pkvi_step *step = &admission->steps[holder->id];
    for (uint32_t g = 0; g < demand->cache->n_groups; g++) {
        grow_all(demand->cache, g);
        end_in_group(demand, seq, holder, g, pkvi_ticket_takes(seq, step, g));
    }
}

static uint32_t pages_added(const struct pkvi_entry *entry)
{
    const struct pkvi_seq *seq = entry->seq;
    return (uint32_t)(pkvi_pages_for(seq->cache, seq->length + entry->n_tokens) -
                      pkvi_pages_for(seq->cache, seq->length));
}

/* Notes what the batch takes in all, and per sequence, or what that changes of the sum. */
static void read_batch(struct pkvi_demand *demand, uint64_t *taken)
{
    const struct pkv_cache *cache = demand->cache;
    struct pkvi_admission *admission = cache->admission;
    for (uint32_t i = 0; i < demand->n_entries; i++) {
        const struct pkvi_entry *entry = &demand->batch->entries[i];
        const struct pkvi_seq *seq = entry->seq;
        const struct pkvi_step step = {pages_added(entry), entry->n_tokens};
        for (uint32_t g = 0; g < cache->n_groups; g++) {
            const uint64_t pages = pkvi_ticket_takes(seq, &step, g);
            taken[g] += pages;
            demand->openers[g] += pages != 0;
        }
        if (seq->claim == 0) continue;
        if (demand->exact) {
            admission->steps[seq->claim_index] = step;
            continue;
        }
        uint64_t need[PKV_MAX_GROUPS];
        pkvi_ticket_need(seq, &step, NULL, need);
        for (uint32_t g = 0; g < cache->n_groups; g++)
            demand->total[g] +=
                need[g] - admission->counted[(size_t)seq->claim_index * cache->n_groups + g];
    }
}

/* What all may still need, and what the batch takes. */
static void read_needs(struct pkvi_demand *demand, uint64_t *taken)
{
    const struct pkv_cache *cache = demand->cache;
    struct pkvi_admission *admission = cache->admission;
    pkvi_tickets_read_marked(demand->cache);
    for (uint32_t g = 0; g < cache->n_groups; g++)
        demand->total[g] =
            admission->total[g] + (demand->newcomer ? demand->newcomer->need[g] : 0);
    if (demand->exact)
        memset(admission->steps, 0, ((size_t)admission->n + 1) * sizeof *admission->steps);
    read_batch(demand, taken);
    for (uint32_t i = 0; demand->exact && i < admission->n; i++) {
        admission->holders[i].id = i;
        pkvi_ticket_need(admission->seqs[i], &admission->steps[i], NULL,
                         admission->holders[i].need);
    }
}

/* ---- open pages --------------------------------------------------------------------------------
 * Every sequence of a quantised group may hold one open page at any time, so what admitted
 * sequences lack of that is set aside: the rest of the check is about the group's other pages. What
 * a step takes beyond comes back at its commit; it must be there, no more. */

/* Bytes that n more open pages need: freed places in used units are filled first, so units never
 * outnumber what their pages need at most. */
static uint64_t open_bytes(const struct pkvi_pool *pool, uint64_t n)
{
    return pkvi_ceil_div_u64(n, pkvi_pool_unit_pages(pool)) * pkvi_pool_unit_bytes(pool);
}

static uint64_t take_from_stock(struct pkvi_bank *bank, uint64_t bytes)
{
    const uint64_t taken = pkvi_min_u64(bank->stock, bytes);
    bank->stock -= taken;
    return bytes - taken;
}

/* States, likewise: every admitted sequence keeps one of its own, and one more slot per group stays
 * free for steps, so that any sequence can take a token: the slot it read comes back at the commit.
 * Returns how much is missing of that; adds what the step takes beyond to demand->open_bytes, all that it
 * takes to *own; *there becomes false if a group has not so many slots. */
static uint64_t set_states_aside(struct pkvi_demand *demand, uint64_t *own, bool *there)
{
    struct pkv_cache *cache = demand->cache;
    const struct pkvi_admission *admission = cache->admission;
    if (cache->states.n == 0) return 0;
    uint64_t stay = demand->newcomer != NULL, step = 0, rows = 0, lacking = 0;
    for (uint32_t i = 0; i < admission->n; i++)
        stay += !pkvi_states_own(&cache->states, pkvi_states_of(admission->seqs[i]));
    for (uint32_t i = 0; i < demand->n_entries; i++) {
        const struct pkvi_entry *entry = &demand->batch->entries[i];
        const bool stays = !pkvi_states_own(&cache->states, pkvi_states_of(entry->seq));
        stay += stays && entry->seq->claim == 0;
        step += pkvi_state_rows(entry) - stays;
        rows += pkvi_state_rows(entry);
    }
    const uint64_t spare = admission->n != 0 || demand->newcomer;
    for (uint32_t s = 0; s < cache->states.n; s++) {
        struct pkvi_pool *pool = &cache->states.groups[s].pool;
        struct pkvi_pool_census census;
        pkvi_pool_census(pool, demand->exact, &census);
        if (rows > census.cap) *there = false;
        if (stay + pkvi_max_u64(spare, step) > census.cap) lacking++;
        if (cache->storage == PKV_STORAGE_EXTERNAL) continue;
        *own += open_bytes(pool, rows);
        lacking += take_from_stock(&demand->bank, open_bytes(pool, stay + spare));
        demand->open_bytes += open_bytes(pool, step > spare ? step - spare : 0);
    }
    return lacking;
}

/* Sets open pages and states aside. False if the step's own are not there: whether admitted sequences
 * lack theirs is another question (short_of_open), which may have the same answer without the step. */
static bool set_open_aside(struct pkvi_demand *demand)
{
    const struct pkv_cache *cache = demand->cache;
    const struct pkvi_admission *admission = cache->admission;
    demand->open_bytes = 0;
    bool there = true;
    const uint64_t stock = demand->bank.stock;
    uint64_t own = 0, lacking = set_states_aside(demand, &own, &there);
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        if (!cache->groups[g].quantised) continue;
        uint64_t stay = demand->newcomer != NULL, step = 0, pages = 0;
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
            pages += needed;
        }
        own += open_bytes(&cache->groups[g].open_pool, pages);
        lacking += take_from_stock(&demand->bank, open_bytes(&cache->groups[g].open_pool, stay));
        demand->open_bytes += open_bytes(&cache->groups[g].open_pool, step);
    }
    demand->short_of_open = lacking != 0;
    return take_from_stock(&demand->bank, demand->open_bytes) == 0 && there && own <= stock;
}

bool pkvi_demand_read(struct pkvi_demand *demand)
{
    uint64_t taken[PKV_MAX_GROUPS] = {0};
    memset(demand->emptied, 0, sizeof demand->emptied);
    memset(demand->openers, 0, sizeof demand->openers);
    read_needs(demand, taken);
    read_bank(demand);
    if (demand->exact) forget_ended(demand->cache);
    const bool open = set_open_aside(demand);
    const bool pages = pkvi_bank_take(&demand->bank, taken, demand->emptied);
    demand->bank.stock += demand->open_bytes;
    return (!demand->newcomer || seat_newcomer(demand)) && open && pages;
}

uint32_t pkvi_demand_stuck(struct pkvi_demand *demand, uint32_t *stuck)
{
    struct pkvi_admission *admission = demand->cache->admission;
    const uint32_t n = admission->n + (demand->newcomer != NULL);
    if (demand->short_of_open || demand->blind) return n;
    if (!demand->exact) return pkvi_bank_can(&demand->bank, demand->total) ? 0 : n;
    const struct pkvi_bank_ops ops = {.context = demand, .refresh = refresh, .end = end};
    return pkvi_bank_stuck(&demand->bank, admission->holders, n, admission->order, &ops, stuck);
}

void pkvi_demand_figures(const struct pkvi_demand *demand, uint64_t *claimed, uint64_t *available)
{
    *claimed = 0;
    *available = demand->bank.stock;
    for (uint32_t g = 0; g < demand->cache->n_groups; g++) {
        const struct pkvi_pool *pool = &demand->cache->groups[g].pool;
        const uint64_t page = pkvi_pool_unit_bytes(pool) / pkvi_pool_unit_pages(pool);
        *claimed += demand->total[g] * page;
        *available += demand->bank.free[g] * page;
    }
}

void pkvi_demand_missing(const struct pkvi_demand *demand, uint32_t stuck, uint32_t *missing)
{
    const struct pkv_cache *cache = demand->cache;
    pkvi_bank_missing(&demand->bank, cache->admission->holders[stuck].need, missing);
    for (uint32_t g = 0; demand->short_of_open && g < cache->n_groups; g++)
        if (cache->groups[g].quantised) missing[g] = pkvi_max_u32(missing[g], 1);
}
