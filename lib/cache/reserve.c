/* Reserve: every page for every new token of a batch, or nothing.
 *
 *   plan        how many new pages, which partial tails must be copied      (changes nothing)
 *   make room   scratch and table slots                                     (capacity only)
 *   allocate    pages of every group, reclaiming where a pool is short      (undone by unref)
 *   hand out    pages into tables, copies executed                          (cannot fail)
 *   hooks       the modules prepare commit                                  (undone by unreserve)
 *
 * A step that needs no page, which is most decode steps, ends after the plan and the hooks. */
#include <string.h>

#include "cache/cache_internal.h"
#include "cache/open_pages.h"

/* Above this many pages of a group the pool is asked before scratch memory is allocated, so that an
 * absurd batch fails for want of pages and not of memory. */
#define PKVI_PROBE_PAGES 1024u

/* ---- plan ----------------------------------------------------------------------------------- */

static uint32_t hash_page(uint32_t group, uint32_t page)
{
    return (page * 0x9e3779b1u) ^ (group * 0x85ebca6bu);
}

/* The counter of (group, page): its place, or the free place where it belongs. */
static struct pkvi_copy_count *find_count(const struct pkvi_batch *batch, uint32_t group,
                                          uint32_t page)
{
    const uint32_t mask = batch->copy_count_capacity - 1;
    uint32_t at = hash_page(group, page) & mask;
    while (batch->copy_counts[at].count != 0 &&
           (batch->copy_counts[at].group != group || batch->copy_counts[at].page != page))
        at = (at + 1) & mask;
    return &batch->copy_counts[at];
}

static void count_copy(struct pkvi_batch *batch, const struct pkvi_copy *copy)
{
    struct pkvi_copy_count *count = find_count(batch, copy->group, copy->src);
    count->group = copy->group;
    count->page = copy->src;
    count->count++;
    count->n_tokens = pkvi_max_u32(count->n_tokens, copy->n_tokens);
}

static pkv_status grow_copies(struct pkvi_batch *batch)
{
    struct pkvi_mem *mem = &batch->cache->mem;
    const uint32_t capacity = batch->copy_capacity == 0 ? 16 : 2 * batch->copy_capacity;
    struct pkvi_copy_count *counts = pkvi_mem_array(mem, 2 * (size_t)capacity, sizeof *counts);
    if (!counts) return PKV_ENOMEM;
    struct pkvi_copy *copies =
        pkvi_mem_grow_array(mem, batch->copies, batch->copy_capacity, capacity, sizeof *copies);
    if (!copies) {
        pkvi_mem_free_array(mem, counts, 2 * (size_t)capacity, sizeof *counts);
        return PKV_ENOMEM;
    }
    pkvi_mem_free_array(mem, batch->copy_counts, batch->copy_count_capacity, sizeof *counts);
    batch->copies = copies;
    batch->copy_capacity = capacity;
    batch->copy_counts = counts;
    batch->copy_count_capacity = 2 * capacity;
    for (uint32_t i = 0; i < batch->n_copies; i++)
        count_copy(batch, &copies[i]);
    return PKV_OK;
}

/* Would a write into this tail page, from slot `first` on, be seen by somebody outside of the
 * batch, by an entry of the batch that has not been given a copy of its own, or by one that has but
 * would get the page back by an abort? */
static bool must_copy(const struct pkvi_batch *batch, uint32_t group, uint32_t page, uint32_t first)
{
    const struct pkvi_pool *pool = &batch->cache->groups[group].pool;
    if (PKVI_LIKELY(!pkvi_pool_is_shared(pool, page))) return false;
    if (batch->n_copies == 0 || pkvi_pool_owner(pool, page)) return true;
    const struct pkvi_copy_count *count = find_count(batch, group, page);
    return pkvi_pool_refs(pool, page) - count->count > 1 || count->n_tokens > first;
}

static pkv_status note_copy(struct pkvi_batch *batch, uint32_t entry, uint32_t group, uint32_t page)
{
    if (batch->n_copies == batch->copy_capacity) {
        const pkv_status status = grow_copies(batch);
        if (status != PKV_OK) return status;
    }
    if (batch->n_copies == 0)
        memset(batch->copy_counts, 0, batch->copy_count_capacity * sizeof *batch->copy_counts);
    const struct pkvi_seq *seq = batch->entries[entry].seq;
    batch->copies[batch->n_copies++] = (struct pkvi_copy){
        .entry = entry,
        .group = group,
        .logical = (uint32_t)(seq->length >> batch->cache->page_shift),
        .n_tokens = (uint32_t)(seq->length & (batch->cache->page_tokens - 1u)),
        .src = page,
        .dst = PKVI_NO_PAGE,
    };
    count_copy(batch, &batch->copies[batch->n_copies - 1]);
    return PKV_OK;
}

/* Logical pages that the entry adds to every table. */
static uint64_t new_pages(const struct pkvi_batch *batch, const struct pkvi_entry *entry)
{
    return pkvi_pages_for(batch->cache, entry->seq->length + entry->n_tokens) -
           pkvi_pages_for(batch->cache, entry->seq->length);
}

static pkv_status plan(struct pkvi_batch *batch, uint64_t *total_new)
{
    const uint32_t mask = batch->cache->page_tokens - 1;
    const uint32_t n_groups = batch->cache->n_groups;
    uint64_t total = 0;
    batch->n_copies = 0;
    batch->n_growing = 0;
    for (uint32_t i = 0; i < batch->n_entries; i++) {
        const struct pkvi_entry *entry = &batch->entries[i];
        const struct pkvi_seq *seq = entry->seq;
        const uint64_t adds = new_pages(batch, entry);
        if (adds != 0) batch->growing[batch->n_growing++] = i;
        total += adds;
        if ((seq->length & mask) == 0) continue;
        for (uint32_t g = 0; g < n_groups; g++) {
            const struct pkvi_table *table = &seq->tables[g];
            const uint32_t page = table->page[table->end - 1];
            if (PKVI_LIKELY(!must_copy(batch, g, page, (uint32_t)seq->length & mask) &&
                            !pkvi_open_reseals(seq, g, entry->n_tokens)))
                continue;
            const pkv_status status = note_copy(batch, i, g, page);
            if (status != PKV_OK) return status;
        }
    }
    *total_new = total;
    return PKV_OK;
}

/* ---- allocate ------------------------------------------------------------------------------- */

static pkv_status not_enough(struct pkvi_batch *batch, uint32_t group)
{
    return pkvi_fail(batch->cache, PKV_ENOPAGES,
                     "batch_reserve: %u pages of group %u are missing for %u entries",
                     batch->shortfall[group], group, batch->n_entries);
}

/* Each group from `from` on could have its pages, but there is not memory for all of them? Then the
 * last one lacks the rest, and is the answer; else n_groups. Pages that share a unit with others may
 * cost nothing: they are left out. */
static uint32_t hopeless_together(struct pkvi_batch *batch, uint32_t from)
{
    struct pkv_cache *cache = batch->cache;
    const uint32_t n_groups = cache->n_groups;
    uint64_t wanted = 0, available = 0;
    uint32_t last = n_groups;
    if (cache->storage == PKV_STORAGE_EXTERNAL) return n_groups;
    for (uint32_t g = 0; g < n_groups; g++) {
        const struct pkvi_pool *pool = &cache->groups[g].pool;
        available += pkvi_cache_reclaimable(cache, g, batch) * pkvi_pool_unit_bytes(pool);
        if (g < from || batch->needed[g] == 0 || pkvi_pool_unit_pages(pool) != 1) continue;
        wanted += batch->needed[g] * pkvi_pool_unit_bytes(pool);
        last = g;
    }
    available += pkvi_regions_available(&cache->regions);
    if (wanted <= available) return n_groups;
    const uint64_t page = pkvi_pool_unit_bytes(&cache->groups[last].pool);
    batch->shortfall[last] =
        (uint32_t)pkvi_min_u64(pkvi_ceil_div_u64(wanted - available, page), UINT32_MAX);
    return last;
}

/* The first group from `from` on that cannot have its pages, whatever is reclaimed; n_groups if all
 * can. Fills the shortfall. Asked before anything is reclaimed: a batch that fails should not cost
 * cached pages. */
static uint32_t first_hopeless(struct pkvi_batch *batch, uint32_t from)
{
    const uint32_t n_groups = batch->cache->n_groups;
    uint32_t first = n_groups;
    for (uint32_t g = from; g < n_groups; g++) {
        batch->shortfall[g] = pkvi_cache_hopeless(batch->cache, g, batch->needed[g], batch);
        if (batch->shortfall[g] != 0 && first == n_groups) first = g;
    }
    return first < n_groups ? first : hopeless_together(batch, from);
}

static pkv_status count_needs(struct pkvi_batch *batch, uint64_t total_new, uint64_t *all)
{
    const uint32_t n_groups = batch->cache->n_groups;
    uint32_t copies[PKV_MAX_GROUPS] = {0};
    for (uint32_t i = 0; i < batch->n_copies; i++)
        copies[batch->copies[i].group]++;
    bool probe = false;
    *all = 0;
    for (uint32_t g = 0; g < n_groups; g++) {
        const uint64_t needed = pkvi_min_u64(total_new + copies[g], UINT32_MAX);
        batch->needed[g] = (uint32_t)needed;
        *all += needed;
        probe = probe || needed > PKVI_PROBE_PAGES;
    }
    if (!probe) return PKV_OK;
    const uint32_t first = first_hopeless(batch, 0);
    return first < n_groups ? not_enough(batch, first) : PKV_OK;
}

static pkv_status make_room(struct pkvi_batch *batch, uint64_t pages)
{
    struct pkvi_mem *mem = &batch->cache->mem;
    if (pages > batch->page_capacity) {
        uint64_t capacity = batch->page_capacity == 0 ? 64 : batch->page_capacity;
        while (capacity < pages)
            capacity *= 2;
        uint32_t *scratch = pkvi_mem_array(mem, capacity, sizeof *scratch);
        if (!scratch) return PKV_ENOMEM;
        pkvi_mem_free_array(mem, batch->pages, batch->page_capacity, sizeof *scratch);
        batch->pages = scratch;
        batch->page_capacity = capacity;
    }
    for (uint32_t i = 0; i < batch->n_growing; i++) {
        const struct pkvi_entry *entry = &batch->entries[batch->growing[i]];
        const uint32_t n = (uint32_t)new_pages(batch, entry);
        for (uint32_t g = 0; g < batch->cache->n_groups; g++) {
            const pkv_status status = pkvi_table_reserve(&entry->seq->tables[g], mem, n);
            if (status != PKV_OK) return status;
        }
    }
    return PKV_OK;
}

/* Reclaims for a group whose pool is short, and tries again. */
static pkv_status reclaim_and_allocate(struct pkvi_batch *batch, uint32_t group, uint32_t *pages)
{
    const uint32_t n = batch->needed[group];
    uint32_t missing = 0;
    for (int attempt = 0; attempt < PKVI_ALLOC_ATTEMPTS; attempt++) {
        missing = pkvi_cache_missing(batch->cache, group, n, attempt != 0, batch);
        if (missing != 0) break;
        const pkv_status status = pkvi_pool_alloc(&batch->cache->groups[group].pool, n, pages);
        if (status != PKV_ENOPAGES) return status;
    }
    batch->shortfall[group] = pkvi_max_u32(missing, 1);
    return PKV_ENOPAGES;
}

/* Pages of all groups, back to back in batch->pages. After a failure the groups behind it are still
 * tried, so that the shortfall of every group is what is missing if the others get theirs. */
static pkv_status allocate(struct pkvi_batch *batch)
{
    const uint32_t n_groups = batch->cache->n_groups;
    pkv_status result = PKV_OK;
    uint32_t failed = 0;
    uint64_t got = 0; /* bit g: group g has its pages */
    bool is_short = false;
    uint32_t *pages = batch->pages;
    for (uint32_t g = 0; g < n_groups; g++) {
        pkv_status status = pkvi_pool_alloc(&batch->cache->groups[g].pool, batch->needed[g], pages);
        if (PKVI_UNLIKELY(status == PKV_ENOPAGES)) {
            const uint32_t hopeless = is_short ? n_groups : first_hopeless(batch, g);
            if (hopeless < n_groups) {
                failed = hopeless;
                result = status;
                break;
            }
            is_short = true;
            status = reclaim_and_allocate(batch, g, pages);
        }
        if (status == PKV_OK) got |= (uint64_t)1 << g;
        pages += batch->needed[g];
        if (status == PKV_OK || result == PKV_ENOMEM) continue;
        if (result == PKV_OK || status == PKV_ENOMEM) failed = g;
        result = status;
    }
    if (result == PKV_OK) return PKV_OK;
    pages = batch->pages;
    for (uint32_t g = 0; g < n_groups; g++) {
        if (got >> g & 1) pkvi_pool_unref(&batch->cache->groups[g].pool, batch->needed[g], pages);
        pages += batch->needed[g];
    }
    if (result == PKV_ENOPAGES) return not_enough(batch, failed);
    return pkvi_fail(batch->cache, result, "batch_reserve: no memory for a region of group %u",
                     failed);
}

/* ---- hand out ------------------------------------------------------------------------------- */

static void execute_copy(struct pkvi_batch *batch, const struct pkvi_copy *copy)
{
    struct pkv_cache *cache = batch->cache;
    const struct pkvi_group *group = &cache->groups[copy->group];
    /* Of a quantised group's tail that is open the page holds nothing yet. */
    const bool empty = pkvi_open_tail(batch->entries[copy->entry].seq, copy->group) != PKVI_NO_PAGE;
    if (cache->storage == PKV_STORAGE_HOST && !empty)
        memcpy(pkvi_pool_address(&group->pool, copy->dst),
               pkvi_pool_address(&group->pool, copy->src), group->page_bytes);
    if (pkvi_events_on(&cache->stats))
        pkvi_event(&cache->stats, PKV_EVENT_PAGE_COPY, copy->group,
                   pkvi_pool_id(&group->pool, copy->dst), batch->entries[copy->entry].seq->id,
                   copy->src);
}

static void hand_out(struct pkvi_batch *batch)
{
    struct pkv_cache *cache = batch->cache;
    uint32_t *next[PKV_MAX_GROUPS];
    next[0] = batch->pages;
    for (uint32_t g = 1; g < cache->n_groups; g++)
        next[g] = next[g - 1] + batch->needed[g - 1];
    for (uint32_t c = 0; c < batch->n_copies; c++) {
        struct pkvi_copy *copy = &batch->copies[c];
        copy->dst = *next[copy->group]++;
        pkvi_table_replace(&batch->entries[copy->entry].seq->tables[copy->group], copy->logical,
                           copy->dst);
        execute_copy(batch, copy);
    }
    for (uint32_t i = 0; i < batch->n_growing; i++) {
        const struct pkvi_entry *entry = &batch->entries[batch->growing[i]];
        const uint32_t n = (uint32_t)new_pages(batch, entry);
        for (uint32_t g = 0; g < cache->n_groups; g++) {
            pkvi_table_append(&entry->seq->tables[g], next[g], n);
            next[g] += n;
        }
    }
    if (batch->n_copies != 0) pkvi_count(&cache->stats, PKVI_COUNT_PAGE_COPIES, batch->n_copies);
}

/* A tail that is written in place again after a truncate may still be sealed. */
static void unseal_tails(struct pkvi_batch *batch)
{
    struct pkv_cache *cache = batch->cache;
    for (uint32_t i = 0; i < batch->n_entries; i++) {
        const struct pkvi_seq *seq = batch->entries[i].seq;
        if ((seq->length & (cache->page_tokens - 1u)) == 0) continue;
        for (uint32_t g = 0; g < cache->n_groups; g++)
            pkvi_pool_unseal(
                &cache->groups[g].pool,
                pkvi_table_page(&seq->tables[g], (uint32_t)(seq->length >> cache->page_shift)));
    }
}

/* ---- undo ----------------------------------------------------------------------------------- */

static void undo_copy(struct pkvi_batch *batch, struct pkvi_copy *copy)
{
    if (copy->src == PKVI_NO_PAGE) return;
    struct pkvi_seq *seq = batch->entries[copy->entry].seq;
    pkvi_table_replace(&seq->tables[copy->group], copy->logical, copy->src);
    pkvi_pool_unref(&batch->cache->groups[copy->group].pool, 1, &copy->dst);
    copy->src = PKVI_NO_PAGE;
}

static void undo_pages(struct pkvi_batch *batch, struct pkvi_seq *seq, uint64_t length)
{
    struct pkv_cache *cache = batch->cache;
    const uint32_t pages = (uint32_t)pkvi_pages_for(cache, length);
    for (uint32_t g = 0; g < cache->n_groups; g++)
        pkvi_table_truncate(&seq->tables[g], &cache->groups[g].pool, pages);
}

void pkvi_unreserve_entry(struct pkvi_batch *batch, uint32_t entry, uint64_t length)
{
    struct pkvi_seq *seq = batch->entries[entry].seq;
    pkvi_ticket_changed(seq);
    undo_pages(batch, seq, length);
    if (length != seq->length) return;
    uint32_t low = 0;
    uint32_t high = batch->n_copies;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (batch->copies[middle].entry < entry)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < batch->n_copies && batch->copies[low].entry == entry; low++)
        undo_copy(batch, &batch->copies[low]);
}

static void call_rollback_hooks(struct pkvi_batch *batch, int from)
{
    struct pkv_cache *cache = batch->cache;
    for (int slot = from; slot >= 0; slot--) {
        const struct pkvi_hooks *hooks = cache->hooks[slot];
        if (hooks && hooks->rollback && batch->n_with_state[slot] != 0)
            hooks->rollback(cache->hook_context[slot], batch);
    }
}

static void undo_tables(struct pkvi_batch *batch)
{
    for (uint32_t i = 0; i < batch->n_entries; i++)
        undo_pages(batch, batch->entries[i].seq, batch->entries[i].seq->length);
    for (uint32_t i = 0; i < batch->n_copies; i++)
        undo_copy(batch, &batch->copies[i]);
    batch->n_copies = 0;
}

void pkvi_unreserve(struct pkvi_batch *batch)
{
    pkvi_tickets_changed_by(batch);
    call_rollback_hooks(batch, PKVI_HOOK_SLOTS - 1);
    undo_tables(batch);
    batch->phase = PKVI_BATCH_OPEN;
}

/* ---- the whole ------------------------------------------------------------------------------ */

static pkv_status call_reserve_hooks(struct pkvi_batch *batch)
{
    struct pkv_cache *cache = batch->cache;
    for (int slot = 0; slot < PKVI_HOOK_SLOTS; slot++) {
        const struct pkvi_hooks *hooks = cache->hooks[slot];
        if (!hooks || !hooks->reserve || batch->n_with_state[slot] == 0) continue;
        const pkv_status status = hooks->reserve(cache->hook_context[slot], batch);
        if (status == PKV_OK) continue;
        call_rollback_hooks(batch, slot - 1);
        return status;
    }
    return PKV_OK;
}

static pkv_status take_pages(struct pkvi_batch *batch, uint64_t total_new)
{
    uint64_t pages = 0;
    pkv_status status = count_needs(batch, total_new, &pages);
    if (status != PKV_OK) return status;
    status = make_room(batch, pages);
    if (status != PKV_OK)
        return pkvi_fail(batch->cache, status, "batch_reserve: no memory for the tables");
    status = allocate(batch);
    if (status != PKV_OK) return status;
    memset(batch->shortfall, 0, pkvi_all_groups(batch->cache) * sizeof *batch->shortfall);
    hand_out(batch);
    return PKV_OK;
}

pkv_status pkvi_reserve(struct pkvi_batch *batch)
{
    struct pkv_cache *cache = batch->cache;
    uint64_t total_new = 0;
    memset(batch->shortfall, 0, pkvi_all_groups(cache) * sizeof *batch->shortfall);
    pkv_status status = plan(batch, &total_new);
    if (PKVI_UNLIKELY(status != PKV_OK)) {
        batch->n_copies = 0;
        return pkvi_fail(cache, status, "batch_reserve: no memory for the copy plan");
    }
    if (total_new != 0 || batch->n_copies != 0) {
        status = take_pages(batch, total_new);
        if (PKVI_UNLIKELY(status != PKV_OK)) {
            batch->n_copies = 0;
            return status;
        }
    }
    status = call_reserve_hooks(batch);
    if (PKVI_UNLIKELY(status != PKV_OK)) {
        undo_tables(batch);
        if (status == PKV_ENOPAGES) return status; /* open pages, states: the text is there */
        return pkvi_fail(cache, status, "batch_reserve: no memory to prepare the commit");
    }
    if (PKVI_UNLIKELY(cache->debug & PKV_DEBUG_CHECKSUM)) unseal_tails(batch);
    pkvi_tickets_changed_by(batch);
    return PKV_OK;
}
