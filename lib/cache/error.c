/* The last failure of a cache, in words. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "cache/cache_internal.h"

pkv_status pkvi_fail(struct pkv_cache *cache, pkv_status status, const char *format, ...)
{
    if (!cache) return status;
    char text[sizeof cache->error_text];
    va_list arguments;
    va_start(arguments, format);
    if (vsnprintf(text, sizeof text, format, arguments) < 0) text[0] = '\0';
    va_end(arguments);
    pkvi_mutex_lock(&cache->error_lock);
    cache->error_status = status;
    memcpy(cache->error_text, text, sizeof text);
    pkvi_mutex_unlock(&cache->error_lock);
    pkvi_log_debug(&cache->log, "%s: %s", pkv_status_name(status), text);
    return status;
}

pkv_status pkv_cache_last_error(pkv_cache *cache, char *text, size_t capacity)
{
    if (!cache) return PKV_EINVAL;
    pkvi_mutex_lock(&cache->error_lock);
    const pkv_status status = cache->error_status;
    pkvi_text(text, capacity, "%s", cache->error_text);
    pkvi_mutex_unlock(&cache->error_lock);
    return status;
}

/* What a handle names: `kind` is what it is called, `end` what has become of one that is not there.
 */
static inline pkv_status find(struct pkv_cache *cache, const struct pkvi_slots *slots, uint64_t id,
                              const char *caller, const char *kind, const char *end, void **found)
{
    if (id == 0) return pkvi_fail(cache, PKV_EINVAL, "%s: a zeroed %s handle", caller, kind);
    *found = pkvi_slots_get(slots, id);
    if (PKVI_LIKELY(*found)) return PKV_OK;
    return pkvi_fail(cache, PKV_ESTALE, "%s: %s %#llx %s", caller, kind, (unsigned long long)id,
                     end);
}

pkv_status pkvi_seq_get(pkv_seq handle, const char *caller, struct pkvi_seq **seq)
{
    void *found;
    if (!handle.cache) return PKV_EINVAL;
    const pkv_status status = find(handle.cache, &handle.cache->sequences, handle.id, caller,
                                   "sequence", "is gone", &found);
    if (status == PKV_OK) *seq = found;
    return status;
}

pkv_status pkvi_seq_get_idle(pkv_seq handle, const char *caller, struct pkvi_seq **seq)
{
    struct pkvi_seq *found = NULL;
    const pkv_status status = pkvi_seq_get(handle, caller, &found);
    if (status != PKV_OK) return status;
    if (PKVI_UNLIKELY(atomic_load_explicit(&found->batch, memory_order_acquire) != 0))
        return pkvi_fail(handle.cache, PKV_EBUSY, "%s: sequence %#llx is in an open batch", caller,
                         (unsigned long long)handle.id);
    *seq = found;
    return PKV_OK;
}

pkv_status pkvi_batch_get(pkv_batch handle, const char *caller, struct pkvi_batch **batch)
{
    void *found;
    if (!handle.cache) return PKV_EINVAL;
    const pkv_status status =
        find(handle.cache, &handle.cache->batches, handle.id, caller, "batch", "has ended", &found);
    if (status == PKV_OK) *batch = found;
    return status;
}

pkv_status pkvi_batch_get_reserved(pkv_batch handle, const char *caller, struct pkvi_batch **batch)
{
    struct pkvi_batch *found = NULL;
    const pkv_status status = pkvi_batch_get(handle, caller, &found);
    if (status != PKV_OK) return status;
    if (PKVI_UNLIKELY(found->phase != PKVI_BATCH_RESERVED))
        return pkvi_fail(handle.cache, PKV_ESTATE, "%s: the batch is not reserved", caller);
    *batch = found;
    return PKV_OK;
}
