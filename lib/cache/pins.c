/* Pinned token ranges: kept from eviction policies and sliding windows (release.c asks). */
#include "cache/cache_internal.h"

static pkv_status add_pin(struct pkvi_seq *seq, struct pkvi_range range)
{
    struct pkv_cache *cache = seq->cache;
    if (seq->n_pins == PKVI_MAX_PINS)
        return pkvi_fail(cache, PKV_ERANGE, "seq_pin: %u ranges are pinned, the most allowed",
                         PKVI_MAX_PINS);
    if (seq->n_pins == seq->pin_capacity) {
        const uint32_t capacity = pkvi_min_u32(2 * seq->pin_capacity + 2, PKVI_MAX_PINS);
        struct pkvi_range *pins =
            pkvi_mem_grow_array(&cache->mem, seq->pins, seq->pin_capacity, capacity, sizeof *pins);
        if (!pins) return pkvi_fail(cache, PKV_ENOMEM, "seq_pin: no memory for the range");
        seq->pins = pins;
        seq->pin_capacity = capacity;
    }
    seq->pins[seq->n_pins++] = range;
    return PKV_OK;
}

pkv_status pkv_seq_pin(pkv_seq handle, uint64_t begin, uint64_t end)
{
    struct pkvi_seq *seq;
    const pkv_status status = pkvi_seq_get_idle(handle, "seq_pin", &seq);
    if (status != PKV_OK) return status;
    if (begin >= end)
        return pkvi_fail(handle.cache, PKV_EINVAL, "seq_pin: [%llu, %llu) is empty",
                         (unsigned long long)begin, (unsigned long long)end);
    const pkv_status added = add_pin(seq, (struct pkvi_range){begin, end});
    if (added != PKV_OK || seq->claim == 0 || handle.cache->n_windows == 0) return added;
    if (pkvi_admission_bears_pin(seq)) return PKV_OK;
    seq->n_pins--;
    pkvi_ticket_changed(seq);
    return pkvi_fail(handle.cache, PKV_EUNSAFE,
                     "seq_pin: with [%llu, %llu) pinned not every admitted sequence could end",
                     (unsigned long long)begin, (unsigned long long)end);
}

pkv_status pkv_seq_unpin(pkv_seq handle, uint64_t begin, uint64_t end)
{
    struct pkvi_seq *seq;
    const pkv_status status = pkvi_seq_get_idle(handle, "seq_unpin", &seq);
    if (status != PKV_OK) return status;
    struct pkv_cache *cache = handle.cache;
    uint32_t at = 0;
    while (at < seq->n_pins && (seq->pins[at].begin != begin || seq->pins[at].end != end))
        at++;
    if (at == seq->n_pins)
        return pkvi_fail(cache, PKV_EINVAL, "seq_unpin: [%llu, %llu) is not pinned",
                         (unsigned long long)begin, (unsigned long long)end);
    seq->pins[at] = seq->pins[--seq->n_pins];
    seq->unpins++;
    pkvi_ticket_changed(seq);
    if (cache->n_windows != 0)
        pkvi_seq_release_unpinned(seq, begin >> cache->page_shift, pkvi_pages_for(cache, end));
    return PKV_OK;
}
