/* Page tables of a reserved batch in the formats of other kernels. */
#include <pagedkv/export.h>

#include <string.h>

#include "cache/cache_internal.h"

/* Common checks; on success *batch is reserved and `group` exists. */
static pkv_status open_export(pkv_batch handle, uint32_t group, const char *caller,
                              struct pkvi_batch **batch)
{
    const pkv_status status = pkvi_batch_get_reserved(handle, caller, batch);
    if (status != PKV_OK) return status;
    if (group >= handle.cache->n_groups)
        return pkvi_fail(handle.cache, PKV_EINVAL, "%s: group %u of %u", caller, group,
                         handle.cache->n_groups);
    return PKV_OK;
}

pkv_status pkv_export_csr(pkv_batch handle, uint32_t group, int32_t *indptr, int32_t *indices,
                          uint32_t *n_indices, int32_t *last_page_len)
{
    struct pkvi_batch *batch;
    const pkv_status status = open_export(handle, group, "export_csr", &batch);
    if (status != PKV_OK) return status;
    struct pkv_cache *cache = handle.cache;
    if (!n_indices) return pkvi_fail(cache, PKV_EINVAL, "export_csr: n_indices is NULL");
    const uint32_t capacity = *n_indices;
    if (!indices && capacity != 0)
        return pkvi_fail(cache, PKV_EINVAL, "export_csr: indices is NULL");
    uint64_t total = 0;
    for (uint32_t i = 0; i < batch->n_entries; i++)
        total += batch->entries[i].seq->tables[group].resident;
    if (total > INT32_MAX)
        return pkvi_fail(cache, PKV_ERANGE, "export_csr: more than 2^31 - 1 indices");
    if (capacity < total) {
        *n_indices = (uint32_t)total;
        return pkvi_fail(cache, PKV_ERANGE, "export_csr: room for %u of %llu indices", capacity,
                         (unsigned long long)total);
    }
    if (!indptr || (!last_page_len && batch->n_entries != 0))
        return pkvi_fail(cache, PKV_EINVAL, "export_csr: indptr or last_page_len is NULL");
    *n_indices = (uint32_t)total;
    const uint32_t mask = cache->page_tokens - 1;
    uint32_t at = 0;
    for (uint32_t i = 0; i < batch->n_entries; i++) {
        const struct pkvi_entry *entry = &batch->entries[i];
        indptr[i] = (int32_t)at;
        uint32_t cursor = 0;
        struct pkvi_resident r;
        while (pkvi_table_next(&entry->seq->tables[group], &cursor, &r))
            indices[at++] = (int32_t)r.page;
        last_page_len[i] = (int32_t)(((entry->seq->length + entry->n_tokens - 1) & mask) + 1);
    }
    indptr[batch->n_entries] = (int32_t)at;
    return PKV_OK;
}

#define LEAST_BLOCK_TABLE 48u /* up to hole */

static uint32_t row_of(const pkv_block_table *to, uint32_t entry)
{
    return to->rows ? to->rows[entry] : entry;
}

/* The caller's description as this library has it. */
static pkv_status read_block_table(struct pkv_cache *cache, const pkv_block_table *given,
                                   pkv_block_table *to)
{
    if (!given) return pkvi_fail(cache, PKV_EINVAL, "export_block_table: table is NULL");
    if (!pkvi_size_known(given->struct_size, LEAST_BLOCK_TABLE, sizeof *to))
        return pkvi_fail(cache, PKV_EVERSION, "export_block_table: struct_size %zu is unknown",
                         given->struct_size);
    pkvi_struct_read(to, sizeof *to, given, given->struct_size);
    uint64_t reserved = to->reserved32;
    for (size_t i = 0; i < sizeof to->reserved / sizeof to->reserved[0]; i++)
        reserved |= to->reserved[i];
    if (reserved != 0)
        return pkvi_fail(cache, PKV_EINVAL, "export_block_table: reserved is not zero");
    return PKV_OK;
}

static pkv_status check_rows(const struct pkvi_batch *batch, uint32_t group,
                             const pkv_block_table *to)
{
    struct pkv_cache *cache = batch->cache;
    if (!to->data && batch->n_entries != 0)
        return pkvi_fail(cache, PKV_EINVAL, "export_block_table: data is NULL");
    for (uint32_t i = 0; i < batch->n_entries; i++) {
        const uint32_t row = row_of(to, i), pages = batch->entries[i].seq->tables[group].next;
        if (row >= to->n_rows)
            return pkvi_fail(cache, PKV_EINVAL, "export_block_table: entry %u has row %u of %u", i,
                             row, to->n_rows);
        if (pages > to->row_stride)
            return pkvi_fail(cache, PKV_ERANGE,
                             "export_block_table: entry %u has %u pages, a row holds %u", i, pages,
                             to->row_stride);
    }
    return PKV_OK;
}

/* Writes logical pages [lo, hi) of a row: the physical page, or `hole` where none is held. */
static void write_row(const struct pkvi_table *table, int32_t *row, int32_t hole, uint32_t lo,
                      uint32_t hi)
{
    for (uint32_t l = lo; l < hi; l++)
        row[l] = hole;
    uint32_t slot = pkvi_table_seek(table, lo);
    for (; slot < table->end && table->logical[slot] < hi; slot++)
        if (table->page[slot] != PKVI_NO_PAGE)
            row[table->logical[slot]] = (int32_t)table->page[slot];
}

/* What a row's state says: which export it was (no two have the same stamp, so it also says of
 * which sequence), how many logical pages it wrote, with which hole, and where. */
enum { ROW_STAMP, ROW_PAGES, ROW_HOLE, ROW_ADDRESS };

/* Brings one row up to date. A table remembers what changed since its last export and that export's
 * stamp: the row is current but for that if it is the one that was written then. */
static void update_row(struct pkv_cache *cache, struct pkvi_table *table, const pkv_block_table *to,
                       uint32_t index)
{
    int32_t *row = to->data + (size_t)index * to->row_stride;
    uint64_t *state = to->state[index].opaque;
    const uint64_t hole = (uint32_t)to->hole, address = (uintptr_t)row;
    const bool known = state[ROW_STAMP] != 0 && state[ROW_STAMP] == table->exported &&
                       state[ROW_HOLE] == hole && state[ROW_ADDRESS] == address;
    if (!known) {
        write_row(table, row, to->hole, 0, to->row_stride);
    } else {
        const uint32_t before = (uint32_t)state[ROW_PAGES];
        if (before < table->next) write_row(table, row, to->hole, before, table->next);
        if (table->dirty_lo < table->dirty_hi)
            write_row(table, row, to->hole, table->dirty_lo,
                      pkvi_min_u32(table->dirty_hi, to->row_stride));
    }
    table->dirty_lo = table->dirty_hi = 0;
    table->exported = atomic_fetch_add_explicit(&cache->exports, 1, memory_order_relaxed);
    state[ROW_STAMP] = table->exported;
    state[ROW_PAGES] = table->next;
    state[ROW_HOLE] = hole;
    state[ROW_ADDRESS] = address;
}

pkv_status pkv_export_block_table(pkv_batch handle, uint32_t group, const pkv_block_table *given)
{
    struct pkvi_batch *batch;
    pkv_block_table to;
    pkv_status status = open_export(handle, group, "export_block_table", &batch);
    if (status == PKV_OK) status = read_block_table(handle.cache, given, &to);
    if (status == PKV_OK) status = check_rows(batch, group, &to);
    if (status != PKV_OK) return status;
    for (uint32_t i = 0; i < batch->n_entries; i++) {
        struct pkvi_table *table = &batch->entries[i].seq->tables[group];
        const uint32_t index = row_of(&to, i);
        if (to.state)
            update_row(handle.cache, table, &to, index);
        else
            write_row(table, to.data + (size_t)index * to.row_stride, to.hole, 0, to.row_stride);
    }
    return PKV_OK;
}

pkv_status pkv_export_slot_mapping(pkv_batch handle, uint32_t group, int64_t *slots, uint64_t n)
{
    struct pkvi_batch *batch;
    const pkv_status status = open_export(handle, group, "export_slot_mapping", &batch);
    if (status != PKV_OK) return status;
    struct pkv_cache *cache = handle.cache;
    if (n != batch->n_rows)
        return pkvi_fail(cache, PKV_EINVAL, "export_slot_mapping: room for %llu of %llu new tokens",
                         (unsigned long long)n, (unsigned long long)batch->n_rows);
    if (!slots && n != 0) return pkvi_fail(cache, PKV_EINVAL, "export_slot_mapping: slots is NULL");
    const uint32_t mask = cache->page_tokens - 1;
    for (uint32_t i = 0; i < batch->n_entries; i++) {
        const struct pkvi_entry *entry = &batch->entries[i];
        const struct pkvi_table *table = &entry->seq->tables[group];
        int64_t *out = slots + entry->first_row;
        const uint64_t end = entry->seq->length + entry->n_tokens;
        for (uint64_t t = entry->seq->length; t < end;) {
            /* All pages of new tokens are resident: they were just reserved. */
            const int64_t page = pkvi_table_page(table, (uint32_t)(t >> cache->page_shift));
            const int64_t base = page << cache->page_shift;
            do
                *out++ = base + (int64_t)(t & mask);
            while (++t < end && (t & mask) != 0);
        }
    }
    return PKV_OK;
}
