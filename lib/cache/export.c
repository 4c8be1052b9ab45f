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
    if (n_indices == NULL) return pkvi_fail(cache, PKV_EINVAL, "export_csr: n_indices is NULL");
    if (indices == NULL && *n_indices != 0)
        return pkvi_fail(cache, PKV_EINVAL, "export_csr: indices is NULL");
    uint64_t total = 0;
    for (uint32_t i = 0; i < batch->n_entries; i++)
        total += batch->entries[i].seq->tables[group].resident;
    if (total > INT32_MAX)
        return pkvi_fail(cache, PKV_ERANGE, "export_csr: more than 2^31 - 1 indices");
    const uint32_t capacity = *n_indices;
    *n_indices = (uint32_t)total;
    if (capacity < total)
        return pkvi_fail(cache, PKV_ERANGE, "export_csr: room for %u of %llu indices", capacity,
                         (unsigned long long)total);
    if (indptr == NULL || (last_page_len == NULL && batch->n_entries != 0))
        return pkvi_fail(cache, PKV_EINVAL, "export_csr: indptr or last_page_len is NULL");
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

static pkv_status check_rows(const struct pkvi_batch *batch, uint32_t group, const char *caller,
                             const void *table, uint32_t row_stride)
{
    struct pkv_cache *cache = batch->cache;
    if (table == NULL && batch->n_entries != 0)
        return pkvi_fail(cache, PKV_EINVAL, "%s: table is NULL", caller);
    for (uint32_t i = 0; i < batch->n_entries; i++)
        if (batch->entries[i].seq->tables[group].next > row_stride)
            return pkvi_fail(cache, PKV_ERANGE, "%s: entry %u has %u pages, a row holds %u", caller,
                             i, batch->entries[i].seq->tables[group].next, row_stride);
    return PKV_OK;
}

/* Writes logical pages [lo, hi) of a row: the physical page, or -1 where none is held. */
static void write_row(const struct pkvi_table *table, int32_t *row, uint32_t lo, uint32_t hi)
{
    for (uint32_t l = lo; l < hi; l++)
        row[l] = -1;
    uint32_t slot = pkvi_table_seek(table, lo);
    for (; slot < table->end && table->logical[slot] < hi; slot++)
        if (table->page[slot] != PKVI_NO_PAGE)
            row[table->logical[slot]] = (int32_t)table->page[slot];
}

pkv_status pkv_export_block_table(pkv_batch handle, uint32_t group, int32_t *table,
                                  uint32_t row_stride)
{
    struct pkvi_batch *batch;
    pkv_status status = open_export(handle, group, "export_block_table", &batch);
    if (status == PKV_OK)
        status = check_rows(batch, group, "export_block_table", table, row_stride);
    if (status != PKV_OK) return status;
    for (uint32_t i = 0; i < batch->n_entries; i++)
        write_row(&batch->entries[i].seq->tables[group], table + (size_t)i * row_stride, 0,
                  row_stride);
    return PKV_OK;
}

pkv_status pkv_export_block_table_update(pkv_batch handle, uint32_t group, int32_t *table,
                                         uint32_t row_stride, uint32_t *first_changed)
{
    struct pkvi_batch *batch;
    pkv_status status = open_export(handle, group, "export_block_table_update", &batch);
    if (status == PKV_OK)
        status = check_rows(batch, group, "export_block_table_update", table, row_stride);
    if (status != PKV_OK) return status;
    if (first_changed == NULL && batch->n_entries != 0)
        return pkvi_fail(handle.cache, PKV_EINVAL,
                         "export_block_table_update: first_changed is NULL");
    for (uint32_t i = 0; i < batch->n_entries; i++) {
        struct pkvi_table *from = &batch->entries[i].seq->tables[group];
        int32_t *row = table + (size_t)i * row_stride;
        const uint32_t first = first_changed[i];
        if (first == 0) {
            write_row(from, row, 0, row_stride);
        } else {
            if (first < from->next) write_row(from, row, first, from->next);
            if (from->dirty_lo < from->dirty_hi)
                write_row(from, row, from->dirty_lo, pkvi_min_u32(from->dirty_hi, row_stride));
        }
        from->dirty_lo = from->dirty_hi = 0;
        first_changed[i] = from->next;
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
    if (slots == NULL && n != 0)
        return pkvi_fail(cache, PKV_EINVAL, "export_slot_mapping: slots is NULL");
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
