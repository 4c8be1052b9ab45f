/* Open pages: the 16-bit pages of quantised groups.
 *
 * A table of a quantised group lists pages of the group's pool, as in any other group; they hold
 * quantised keys and values from the moment a page is full ("sealed"). Tokens of a page that is not
 * full yet live in an open page of a pool of its own. A sequence holds at most one open page per
 * group, that of its partial tail; during a step the batch holds one for every page that gets new
 * tokens, since a row reads its own page in 16 bits. A page is sealed once, by pkv_write, when its
 * last slot is filled.
 *
 * A tail without an open page (its page was sealed before: a truncate into it, or a prefix match
 * that ends inside it) is dequantised when the next step is reserved: counted as pages_unsealed. If
 * the step fills it, it is sealed into a copy.
 *
 * Bound to the cache through hooks (hooks.h) like a module, in the last slot. */
#ifndef PKVI_CACHE_OPEN_PAGES_H
#define PKVI_CACHE_OPEN_PAGES_H

#include "cache/cache_internal.h"

/* Binds if a group is quantised. */
void pkvi_open_bind(struct pkv_cache *cache);

/* Open page of a sequence's partial tail; PKVI_NO_PAGE if the group is not quantised, or there is
 * none. O(1). */
uint32_t pkvi_open_tail(const struct pkvi_seq *seq, uint32_t group);

/* Has the sequence an open page that nobody else sees? Then it writes on in it. O(1). */
bool pkvi_open_is_own(const struct pkvi_seq *seq, uint32_t group);

/* Would a step of n tokens quantise anew a page whose tokens so far exist in quantised form only?
 * Then it needs a copy of the page: quantising changes them, and an abort must bring them back.
 * O(1). */
bool pkvi_open_reseals(const struct pkvi_seq *seq, uint32_t group, uint64_t n_tokens);

/* pkv_cache_verify: adds the references of sequences and reserved batches on every open page of a
 * quantised group to holders[n]. PKV_ECORRUPT with a text if a sequence has a page that does not
 * exist, or without a partial tail. */
pkv_status pkvi_open_holders(const struct pkv_cache *cache, uint32_t group, uint32_t *holders,
                             uint32_t n, char *text, size_t capacity);

/* Open pages of a reserved batch's entry: [n_groups], each from the page of the first new token on;
 * NULL in groups that are not quantised, or if no group is. O(1). */
const uint32_t *const *pkvi_open_of_entry(const struct pkvi_batch *batch, uint32_t entry);

/* Open pages of `group` that reserving this entry takes. O(1). */
uint32_t pkvi_open_needed(const struct pkvi_entry *entry, uint32_t group);

#endif
