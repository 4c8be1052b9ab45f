/* evict: TOPK's choice of pages. */
#include <string.h>

#include "evict/evict_internal.h"
#include "kernels/kernels.h"

/* Order-preserving map of floats to unsigned integers (NaN lowest). */
static uint32_t ordered(float x)
{
    uint32_t bits;
    if (x != x) return 0;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

#define DIGIT_BITS 8u

/* The k-th largest of n keys, 1 <= k <= n, by radix from the first bit in which keys differ (bounds
 * are close together); *above = how many are larger. O(5 n). */
static uint32_t kth_largest(const uint32_t *keys, uint32_t n, uint32_t k, uint32_t *above)
{
    uint32_t any = 0, all = UINT32_MAX, greater = 0;
    for (uint32_t i = 0; i < n; i++) {
        any |= keys[i];
        all &= keys[i];
    }
    uint32_t left = any == all ? 0 : 32 - (uint32_t)__builtin_clz(any ^ all);
    uint32_t mask = left == 32 ? 0 : UINT32_MAX << left, prefix = all & mask;
    while (left > 0) {
        const uint32_t bits = pkvi_min_u32(DIGIT_BITS, left), digits = 1u << bits;
        uint32_t histogram[1u << DIGIT_BITS] = {0}, digit = digits - 1;
        left -= bits;
        for (uint32_t i = 0; i < n; i++)
            if ((keys[i] & mask) == prefix) histogram[keys[i] >> left & (digits - 1)]++;
        while (greater + histogram[digit] < k)
            greater += histogram[digit--];
        prefix |= digit << left;
        mask |= (digits - 1) << left;
    }
    *above = greater;
    return prefix;
}

uint32_t pkvi_evict_choose(const struct pkvi_evict_topk *rule, const uint32_t *logical,
                           uint32_t *keys, uint32_t n_pages, uint32_t n_full, uint32_t *chosen)
{
    uint32_t first = 0;
    while (first < n_full && logical[first] < rule->first)
        first++;
    const uint32_t recent = n_full - first > rule->recent ? n_full - rule->recent : first;
    const uint32_t fixed = first + (n_full - recent);
    const uint32_t want = rule->pages > fixed ? rule->pages - fixed : 0;
    const uint32_t candidates = recent - first;
    uint32_t n = 0;
    for (uint32_t i = 0; i < first; i++)
        chosen[n++] = i;
    if (want >= candidates) {
        for (uint32_t i = first; i < recent; i++)
            chosen[n++] = i;
    } else if (want > 0) {
        uint32_t above;
        const uint32_t limit = kth_largest(keys + first, candidates, want, &above);
        uint32_t ties = want - above; /* the oldest of those at the limit */
        for (uint32_t i = first; i < recent; i++) {
            if (keys[i] < limit || (keys[i] == limit && ties == 0)) continue;
            ties -= keys[i] == limit;
            chosen[n++] = i;
        }
    }
    for (uint32_t i = recent; i < n_pages; i++)
        chosen[n++] = i;
    return n;
}

void pkvi_evict_keys(const float *scores, uint32_t n_pages, uint32_t *keys)
{
    for (uint32_t i = 0; i < n_pages; i++)
        keys[i] = ordered(scores[i]);
}
