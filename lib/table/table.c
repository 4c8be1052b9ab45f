#include "table/table.h"

#include <string.h>

#include "mem/mem.h"
#include "pool/pool.h"

#define PKVI_TABLE_FIRST 8u /* slots of the first allocation */

void pkvi_table_init(struct pkvi_table *table)
{
    memset(table, 0, sizeof *table);
}

static void free_arrays(struct pkvi_table *table, struct pkvi_mem *mem)
{
    const size_t n = table->capacity;
    pkvi_mem_free(mem, table->logical, n * sizeof *table->logical);
    pkvi_mem_free(mem, table->page, n * sizeof *table->page);
    pkvi_mem_free(mem, table->score, n * sizeof *table->score);
}

/* Gives the references of slots [first, end) back, hole-free spans at a time. */
static void release_slots(struct pkvi_table *table, struct pkvi_pool *pool, uint32_t first,
                          uint32_t end)
{
    while (first < end) {
        if (table->page[first] == PKVI_NO_PAGE) {
            first++;
            continue;
        }
        uint32_t stop = first + 1;
        while (stop < end && table->page[stop] != PKVI_NO_PAGE)
            stop++;
        pkvi_pool_unref(pool, stop - first, table->page + first);
        first = stop;
    }
}

void pkvi_table_clear(struct pkvi_table *table, struct pkvi_mem *mem, struct pkvi_pool *pool)
{
    if (table->capacity != 0) {
        release_slots(table, pool, table->head, table->end);
        free_arrays(table, mem);
    }
    pkvi_table_init(table);
}

/* Copies the resident slots of `from` to the start of the given arrays, in order. */
static void squeeze(const struct pkvi_table *from, uint32_t *logical, uint32_t *page,
                    struct pkvi_page_score *score)
{
    const uint32_t head = from->head;
    const uint32_t slots = from->end - head;
    if (from->resident == slots) {
        if (slots == 0) return;
        memmove(logical, from->logical + head, slots * sizeof *logical);
        memmove(page, from->page + head, slots * sizeof *page);
        if (score && from->score) memmove(score, from->score + head, slots * sizeof *score);
        return;
    }
    uint32_t to = 0;
    for (uint32_t slot = head; slot < from->end; slot++) {
        if (from->page[slot] == PKVI_NO_PAGE) continue;
        logical[to] = from->logical[slot];
        page[to] = from->page[slot];
        if (score && from->score) score[to] = from->score[slot];
        to++;
    }
}

static void compact(struct pkvi_table *table)
{
    squeeze(table, table->logical, table->page, table->score);
    table->head = 0;
    table->end = table->resident;
}

/* Moves the table to arrays of `capacity` slots. */
static pkv_status grow(struct pkvi_table *table, struct pkvi_mem *mem, uint32_t capacity)
{
    const size_t n = capacity;
    uint32_t *logical = pkvi_mem_alloc(mem, n * sizeof *logical);
    uint32_t *page = pkvi_mem_alloc(mem, n * sizeof *page);
    struct pkvi_page_score *score = NULL;
    if (table->score) score = pkvi_mem_alloc(mem, n * sizeof *score);
    if (!logical || !page || (table->score && !score)) {
        pkvi_mem_free(mem, logical, n * sizeof *logical);
        pkvi_mem_free(mem, page, n * sizeof *page);
        pkvi_mem_free(mem, score, n * sizeof *score);
        return PKV_ENOMEM;
    }
    squeeze(table, logical, page, score);
    if (table->capacity != 0) free_arrays(table, mem);
    table->logical = logical;
    table->page = page;
    table->score = score;
    table->capacity = capacity;
    table->head = 0;
    table->end = table->resident;
    return PKV_OK;
}

pkv_status pkvi_table_reserve(struct pkvi_table *table, struct pkvi_mem *mem, uint32_t n)
{
    if (n <= table->capacity - table->end) return PKV_OK;
    const uint64_t needed = (uint64_t)table->resident + n;
    if (needed > UINT32_MAX / 2) return PKV_ENOMEM;
    /* Sliding the slots down is only worth it when it frees a good part of them: otherwise a table
     * that is full of resident pages would be moved at every append. */
    if (needed + table->capacity / 4 <= table->capacity) {
        compact(table);
        return PKV_OK;
    }
    uint64_t capacity = table->capacity == 0 ? PKVI_TABLE_FIRST : table->capacity;
    while (capacity < needed)
        capacity *= 2;
    if (capacity == table->capacity) capacity *= 2;
    return grow(table, mem, (uint32_t)capacity);
}

static void put(struct pkvi_table *table, uint32_t logical, uint32_t page)
{
    const uint32_t slot = table->end++;
    table->logical[slot] = logical;
    table->page[slot] = page;
    if (table->score) table->score[slot] = (struct pkvi_page_score){0};
}

void pkvi_table_append(struct pkvi_table *table, const uint32_t *pages, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        put(table, table->next++, pages[i]);
    table->resident += n;
}

void pkvi_table_attach(struct pkvi_table *table, uint32_t first, const uint32_t *pages, uint32_t n)
{
    table->next = first;
    table->released = first;
    pkvi_table_append(table, pages, n);
}

/* First slot whose logical number is at least `logical`. */
static uint32_t lower_bound(const struct pkvi_table *table, uint32_t logical)
{
    uint32_t low = table->head;
    uint32_t high = table->end;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (table->logical[middle] < logical)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

uint32_t pkvi_table_find(const struct pkvi_table *table, uint32_t logical)
{
    const uint32_t head = table->head;
    const uint32_t end = table->end;
    if (head == end) return PKVI_NO_SLOT;
    const uint32_t first = table->logical[head];
    const uint32_t last = table->logical[end - 1];
    if (logical < first || logical > last) return PKVI_NO_SLOT;
    uint32_t slot;
    if (last - first == end - 1 - head) {
        slot = head + (logical - first);
    } else {
        slot = lower_bound(table, logical);
        if (table->logical[slot] != logical) return PKVI_NO_SLOT;
    }
    return table->page[slot] == PKVI_NO_PAGE ? PKVI_NO_SLOT : slot;
}

uint32_t pkvi_table_seek(const struct pkvi_table *table, uint32_t logical)
{
    uint32_t slot = lower_bound(table, logical);
    while (slot < table->end && table->page[slot] == PKVI_NO_PAGE)
        slot++;
    return slot < table->end ? slot : PKVI_NO_SLOT;
}

uint32_t pkvi_table_page(const struct pkvi_table *table, uint32_t logical)
{
    const uint32_t slot = pkvi_table_find(table, logical);
    return slot == PKVI_NO_SLOT ? PKVI_NO_PAGE : table->page[slot];
}

uint32_t pkvi_table_replace(struct pkvi_table *table, uint32_t logical, uint32_t page)
{
    const uint32_t slot = pkvi_table_find(table, logical);
    if (slot == PKVI_NO_SLOT) return PKVI_NO_PAGE;
    const uint32_t old = table->page[slot];
    table->page[slot] = page;
    pkvi_table_mark_dirty(table, logical, logical + 1);
    return old;
}

/* Restores "first and last slot are never holes". */
static void trim(struct pkvi_table *table)
{
    while (table->head < table->end && table->page[table->head] == PKVI_NO_PAGE)
        table->head++;
    while (table->end > table->head && table->page[table->end - 1] == PKVI_NO_PAGE)
        table->end--;
    if (table->head == table->end) table->head = table->end = 0;
}

uint32_t pkvi_table_drop(struct pkvi_table *table, uint32_t logical)
{
    const uint32_t slot = pkvi_table_find(table, logical);
    if (slot == PKVI_NO_SLOT) return PKVI_NO_PAGE;
    const uint32_t page = table->page[slot];
    table->page[slot] = PKVI_NO_PAGE;
    table->resident--;
    pkvi_table_mark_dirty(table, logical, logical + 1);
    trim(table);
    if (table->end - table->head > 2 * table->resident) compact(table);
    return page;
}

uint32_t pkvi_table_truncate(struct pkvi_table *table, struct pkvi_pool *pool, uint32_t n_pages)
{
    if (n_pages >= table->next) return 0;
    const uint32_t first = lower_bound(table, n_pages);
    uint32_t released = 0;
    for (uint32_t slot = first; slot < table->end; slot++)
        released += table->page[slot] != PKVI_NO_PAGE;
    release_slots(table, pool, first, table->end);
    pkvi_table_mark_dirty(table, n_pages, table->next);
    table->end = first;
    table->resident -= released;
    table->next = n_pages;
    if (table->released > n_pages) table->released = n_pages;
    trim(table);
    if (table->end - table->head > 2 * table->resident) compact(table);
    return released;
}

pkv_status pkvi_table_fork(struct pkvi_table *dst, const struct pkvi_table *src,
                           struct pkvi_mem *mem, struct pkvi_pool *pool)
{
    struct pkvi_table table = {0};
    table.resident = src->resident;
    table.next = src->next;
    table.released = src->released;
    if (src->resident != 0) {
        /* Room for the child's own first pages, so that the next step does not move the table. */
        uint32_t capacity = src->resident + src->resident / 16 + 2;
        if (capacity < PKVI_TABLE_FIRST) capacity = PKVI_TABLE_FIRST;
        const size_t n = capacity;
        table.logical = pkvi_mem_alloc(mem, n * sizeof *table.logical);
        table.page = pkvi_mem_alloc(mem, n * sizeof *table.page);
        if (src->score) table.score = pkvi_mem_alloc(mem, n * sizeof *table.score);
        if (!table.logical || !table.page || (src->score && !table.score)) {
            table.capacity = capacity;
            free_arrays(&table, mem);
            return PKV_ENOMEM;
        }
        table.capacity = capacity;
        table.end = src->resident;
        squeeze(src, table.logical, table.page, table.score);
        pkvi_pool_ref(pool, table.resident, table.page);
    }
    *dst = table;
    return PKV_OK;
}

pkv_status pkvi_table_enable_scores(struct pkvi_table *table, struct pkvi_mem *mem)
{
    if (table->score) return PKV_OK;
    if (table->capacity == 0) {
        const pkv_status status = grow(table, mem, PKVI_TABLE_FIRST);
        if (status != PKV_OK) return status;
    }
    const size_t bytes = table->capacity * sizeof *table->score;
    table->score = pkvi_mem_alloc(mem, bytes);
    if (!table->score) return PKV_ENOMEM;
    memset(table->score, 0, bytes);
    return PKV_OK;
}

void pkvi_table_mark_dirty(struct pkvi_table *table, uint32_t lo, uint32_t hi)
{
    if (lo >= hi) return;
    if (table->dirty_lo >= table->dirty_hi) {
        table->dirty_lo = lo;
        table->dirty_hi = hi;
        return;
    }
    if (lo < table->dirty_lo) table->dirty_lo = lo;
    if (hi > table->dirty_hi) table->dirty_hi = hi;
}

const char *pkvi_table_check(const struct pkvi_table *table)
{
    if (table->head > table->end) return "table: head is past end";
    if (table->end > table->capacity) return "table: end is past capacity";
    if (table->capacity != 0 && (!table->logical || !table->page))
        return "table: arrays are missing";
    if (table->released > table->next) return "table: released is past next";
    uint32_t resident = 0;
    for (uint32_t slot = table->head; slot < table->end; slot++) {
        if (slot > table->head && table->logical[slot] <= table->logical[slot - 1])
            return "table: logical pages are not ascending";
        if (table->logical[slot] >= table->next) return "table: a logical page is past next";
        resident += table->page[slot] != PKVI_NO_PAGE;
    }
    if (resident != table->resident) return "table: resident does not match the slots";
    if (table->head != table->end) {
        if (table->page[table->head] == PKVI_NO_PAGE) return "table: the first slot is a hole";
        if (table->page[table->end - 1] == PKVI_NO_PAGE) return "table: the last slot is a hole";
    }
    return NULL;
}

bool pkvi_table_next_run(const struct pkvi_table *table, struct pkvi_run *cursor)
{
    uint32_t slot = cursor->first_slot + cursor->n_pages;
    if (slot < table->head) slot = table->head;
    while (slot < table->end && table->page[slot] == PKVI_NO_PAGE)
        slot++;
    if (slot >= table->end) return false;
    cursor->first_resident += cursor->n_pages;
    cursor->first_slot = slot;
    cursor->first_logical = table->logical[slot];
    uint32_t n = 1;
    while (slot + n < table->end && table->page[slot + n] != PKVI_NO_PAGE &&
           table->logical[slot + n] == cursor->first_logical + n)
        n++;
    cursor->n_pages = n;
    return true;
}
