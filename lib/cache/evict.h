/* Binding of lib/evict: what the other bindings of lib/cache ask of it. */
#ifndef PKVI_CACHE_EVICT_H
#define PKVI_CACHE_EVICT_H

#include "attn/attn.h"
#include "cache/cache_internal.h"
#include "evict/evict.h"

/* What attention asks of eviction: fills `hooks` for pkvi_plan_make. The `seq` of every call is the
 * struct pkvi_seq of the entry. */
void pkvi_evict_attn_hooks(struct pkv_cache *cache, struct pkvi_attn_hooks *hooks);

/* Regret meter: called by pkv_attend after its own work, by every thread, with the arguments of the
 * call (layer: index in the group); looks at the entries whose policy asks for it in this step.
 * O(entries) if none does. */
void pkvi_evict_meter(const struct pkvi_attn_model *model, struct pkvi_batch *batch, uint32_t group,
                      uint32_t layer, const pkvi_tensor *q, uint32_t ith, uint32_t nth);

/* The cache's module object. */
struct pkvi_evict *pkvi_evict_of(const struct pkv_cache *cache);

/* A sequence's table of one group as the module wants it. */
struct pkvi_evict_target pkvi_evict_target_of(struct pkvi_seq *seq, uint32_t group);

/* The eviction state of a sequence for the functions of evict/evict.h, or NULL. */
static inline struct pkvi_evict_seq *pkvi_seq_evict(const struct pkvi_seq *seq)
{
    return seq->state[PKVI_HOOK_EVICT];
}

#endif
