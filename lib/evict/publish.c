/* evict: what may be published about pages that were computed after an eviction. */
#include "evict/evict_internal.h"

static uint64_t mix(uint64_t h, uint64_t value)
{
    h = (h ^ value) * UINT64_C(0x9e3779b97f4a7c15);
    h = (h ^ (h >> 32)) * UINT64_C(0xd6e8feb86659fd93);
    return h ^ (h >> 32);
}

uint64_t pkvi_evict_salt(const struct pkvi_evict_seq *es)
{
    if (!es) return 0;
    uint64_t h = UINT64_C(0x73616c74);
    uint32_t n = 0;
    for (uint32_t g = 0; g < es->evict->n_groups; g++) {
        const struct pkvi_evict_policy *policy = es->groups[g].policy;
        if (!policy) continue;
        if (!policy->ops->by_length) return 0;
        h = mix(h, policy->salt);
        n++;
    }
    if (n == 0) return 0;
    return h != 0 ? h : 1;
}

void pkvi_evict_mark(struct pkvi_evict_seq *es, uint64_t length, bool taint)
{
    if (length < es->depend_from) es->depend_from = length;
    if (es->salt == 0) {
        es->salt = pkvi_evict_salt(es);
        if (es->salt == 0) taint = true; /* another group's policy depends on data */
    }
    if (taint && length < es->taint_from) es->taint_from = length;
}

void pkvi_evict_truncated(struct pkvi_evict_seq *es, uint64_t n_tokens)
{
    bool undone = true;
    for (uint32_t g = 0; g < es->evict->n_groups; g++)
        undone = undone && es->groups[g].gone == 0;
    /* Tokens that depended are gone; what comes depends only if something is still missing. */
    if (es->taint_from != UINT64_MAX && n_tokens <= es->taint_from)
        es->taint_from = undone ? UINT64_MAX : n_tokens;
    if (es->depend_from != UINT64_MAX && n_tokens <= es->depend_from) {
        es->depend_from = undone ? UINT64_MAX : n_tokens;
        if (undone) es->salt = 0;
    }
    if (es->irregular && es->depend_from != UINT64_MAX) pkvi_evict_mark(es, n_tokens, true);
    es->irregular = false;
}

enum pkvi_publication pkvi_evict_publication(const struct pkvi_evict_seq *es, uint32_t logical,
                                             uint64_t *salt)
{
    if (!es) return PKVI_PUBLISH_PLAIN;
    /* A page depends if its last token does. */
    const uint64_t end = ((uint64_t)logical + 1) << es->evict->page_shift;
    if (end > es->left_out) return PKVI_PUBLISH_NEVER;
    if (es->depend_from == UINT64_MAX) return PKVI_PUBLISH_PLAIN;
    if (end > es->taint_from) return PKVI_PUBLISH_NEVER;
    if (end <= es->depend_from) return PKVI_PUBLISH_PLAIN;
    *salt = es->salt;
    return PKVI_PUBLISH_SALTED;
}

void pkvi_evict_depend(struct pkvi_evict_seq *es, uint32_t first_salted)
{
    if (es) pkvi_evict_mark(es, (uint64_t)first_salted << es->evict->page_shift, false);
}

bool pkvi_evict_tainted(const struct pkvi_evict_seq *es)
{
    return es && es->taint_from != UINT64_MAX;
}
