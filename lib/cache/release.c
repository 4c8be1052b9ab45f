/* Full pages that leave a sequence before it ends: dropped by a policy, or out of a window and no
 * longer pinned. */
#include "cache/cache_internal.h"

bool pkvi_seq_pinned(const struct pkvi_seq *seq, uint32_t logical)
{
    const uint64_t begin = (uint64_t)logical << seq->cache->page_shift;
    const uint64_t end = begin + seq->cache->page_tokens;
    for (uint32_t i = 0; i < seq->n_pins; i++)
        if (seq->pins[i].begin < end && begin < seq->pins[i].end) return true;
    return false;
}

/* Takes one full page out of a table and accounts for it. */
static void take_out(struct pkvi_seq *seq, uint32_t g, uint32_t logical, int32_t event,
                     enum pkvi_counter counter)
{
    struct pkv_cache *cache = seq->cache;
    struct pkvi_group *group = &cache->groups[g];
    const uint32_t page = pkvi_table_drop(&seq->tables[g], logical);
    if (pkvi_events_on(&cache->stats))
        pkvi_event(&cache->stats, event, g, pkvi_pool_id(&group->pool, page), seq->id, logical);
    pkvi_pool_unref(&group->pool, 1, &page);
    pkvi_count(&cache->stats, counter, 1);
    pkvi_uncount(&cache->stats, PKVI_COUNT_BYTES_LIVE, group->token_bytes << cache->page_shift);
}

pkv_status pkvi_seq_drop(struct pkvi_seq *seq, uint32_t g, uint32_t logical)
{
    struct pkv_cache *cache = seq->cache;
    if (logical >= seq->length >> cache->page_shift) return PKV_EINVAL;
    if (pkvi_table_find(&seq->tables[g], logical) == PKVI_NO_SLOT) return PKV_EDROPPED;
    if (pkvi_seq_pinned(seq, logical)) return PKV_EBUSY;
    take_out(seq, g, logical, PKV_EVENT_PAGE_EVICT, PKVI_COUNT_PAGES_EVICTED);
    return PKV_OK;
}

/* Releases the unpinned resident pages [first, end) of one window group. */
static void release_range(struct pkvi_seq *seq, uint32_t g, uint32_t first, uint32_t end)
{
    const struct pkvi_table *table = &seq->tables[g];
    for (uint32_t l = first; l < end; l++) {
        const uint32_t slot = pkvi_table_seek(table, l);
        if (slot == PKVI_NO_SLOT || table->logical[slot] >= end) return;
        l = table->logical[slot];
        if (pkvi_seq_pinned(seq, l)) continue;
        take_out(seq, g, l, PKV_EVENT_PAGE_WINDOW, PKVI_COUNT_PAGES_WINDOW_RELEASED);
    }
}

void pkvi_seq_release_window(struct pkvi_seq *seq)
{
    struct pkv_cache *cache = seq->cache;
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        struct pkvi_table *table = &seq->tables[g];
        const uint32_t first = pkvi_window_first(cache, &cache->groups[g], seq->length);
        if (table->released >= first) continue;
        release_range(seq, g, table->released, first);
        table->released = first;
    }
}

void pkvi_seq_release_unpinned(struct pkvi_seq *seq, uint64_t first_page, uint64_t end_page)
{
    for (uint32_t g = 0; g < seq->cache->n_groups; g++) {
        const uint32_t released = seq->tables[g].released;
        if (first_page >= released) continue;
        release_range(seq, g, (uint32_t)first_page, (uint32_t)pkvi_min_u64(end_page, released));
    }
}
