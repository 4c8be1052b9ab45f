/* evict: the journal: pages that were dropped a few commits ago and can still come back. Each entry
 * holds its own reference of the page. */
#include <string.h>

#include "evict/evict_internal.h"

#define JOURNAL_FIRST 8u

pkv_status pkvi_journal_reserve(struct pkvi_journal *journal, struct pkvi_mem *mem, uint32_t n)
{
    if (n <= journal->capacity - journal->count) return PKV_OK;
    uint64_t capacity = journal->capacity != 0 ? journal->capacity : JOURNAL_FIRST;
    while (capacity - journal->count < n)
        capacity *= 2;
    if (capacity > UINT32_MAX / 2) return PKV_ENOMEM;
    struct pkvi_journal_entry *ring = pkvi_mem_array(mem, capacity, sizeof *ring);
    if (!ring) return PKV_ENOMEM;
    for (uint32_t i = 0; i < journal->count; i++)
        ring[i] = *pkvi_journal_at(journal, i);
    pkvi_mem_free_array(mem, journal->ring, journal->capacity, sizeof *ring);
    journal->ring = ring;
    journal->capacity = (uint32_t)capacity;
    journal->head = 0;
    return PKV_OK;
}

void pkvi_journal_add(struct pkvi_journal *journal, struct pkvi_pool *pool,
                      const struct pkvi_journal_entry *entry)
{
    pkvi_pool_ref(pool, 1, &entry->page);
    journal->count++;
    *pkvi_journal_at(journal, journal->count - 1) = *entry;
}

uint32_t pkvi_journal_release(struct pkvi_journal *journal, struct pkvi_pool *pool, uint32_t n)
{
    if (n > journal->count) n = journal->count;
    for (uint32_t i = 0; i < n; i++)
        pkvi_pool_unref(pool, 1, &pkvi_journal_at(journal, i)->page);
    if (n > 0) journal->head = (journal->head + n) & (journal->capacity - 1);
    journal->count -= n;
    return n;
}

void pkvi_journal_expire(struct pkvi_journal *journal, struct pkvi_pool *pool, uint64_t step)
{
    uint32_t n = 0;
    while (n < journal->count && pkvi_journal_at(journal, n)->step < step)
        n++;
    if (n > 0) pkvi_journal_release(journal, pool, n);
}

void pkvi_journal_free(struct pkvi_journal *journal, struct pkvi_pool *pool, struct pkvi_mem *mem)
{
    pkvi_journal_release(journal, pool, journal->count);
    if (journal->capacity != 0)
        pkvi_mem_free_array(mem, journal->ring, journal->capacity, sizeof *journal->ring);
    *journal = (struct pkvi_journal){0};
}
