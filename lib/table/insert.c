/* Putting a dropped page back. */
#include <string.h>

#include "table/table.h"

/* First slot whose logical number is at least `logical`, holes included. */
static uint32_t slot_at_or_after(const struct pkvi_table *table, uint32_t logical)
{
    uint32_t low = table->head, high = table->end;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (table->logical[middle] < logical)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Makes slot `at` free for a new entry by moving [at, end) up. */
static void open_slot(struct pkvi_table *table, uint32_t at)
{
    const size_t n = table->end - at;
    memmove(table->logical + at + 1, table->logical + at, n * sizeof *table->logical);
    memmove(table->page + at + 1, table->page + at, n * sizeof *table->page);
    if (table->score) memmove(table->score + at + 1, table->score + at, n * sizeof *table->score);
    table->end++;
}

pkv_status pkvi_table_insert(struct pkvi_table *table, struct pkvi_mem *mem, uint32_t logical,
                             uint32_t page)
{
    uint32_t at = slot_at_or_after(table, logical);
    const bool hole = at < table->end && table->logical[at] == logical;
    if (!hole) {
        if (at == table->head && table->head > 0) {
            at = --table->head;
        } else {
            const pkv_status status = pkvi_table_reserve(table, mem, 1);
            if (status != PKV_OK) return status;
            at = slot_at_or_after(table, logical); /* the slots may have moved */
            open_slot(table, at);
        }
        table->logical[at] = logical;
    }
    table->page[at] = page;
    if (table->score) table->score[at] = (struct pkvi_page_score){0};
    table->resident++;
    pkvi_table_mark_dirty(table, logical, logical + 1);
    return PKV_OK;
}
