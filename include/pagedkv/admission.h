/* pagedkv: admission. A sequence that is admitted declares the most tokens it will ever hold (its
 * claim). The rule: a state is safe if the admitted sequences can be ordered so that each can grow
 * to its claim using free pages plus what the ones before it release when they end (Dijkstra's
 * banker). Admitting keeps the state safe or is refused, so two half-admitted sequences can never
 * wait for each other. What counts as free and as released, what a host must do about forks, and
 * what the rule rests on and its one exception: docs/architecture.md, "Admission". Call these
 * functions, and step admitted sequences, from one thread at a time. */
#ifndef PAGEDKV_ADMISSION_H
#define PAGEDKV_ADMISSION_H

#include "types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Would admitting a new sequence of max_tokens, of which shared_tokens come from a prefix match,
 * be safe now? *safe = 1 or 0; missing[0..n_groups) (may be NULL) = pages that must come free before
 * the first sequence that is stuck could go on (a lower bound), zeros if safe. Read-only.
 * O(admitted sequences) while there is plenty, see docs/architecture.md. */
PKV_API pkv_status pkv_admit_probe(pkv_cache *cache, uint64_t max_tokens, uint64_t shared_tokens,
                                   uint32_t *safe, uint32_t *missing, uint32_t n_groups);

/* Admits a sequence with a claim: PKV_EUNSAFE if the state would not stay safe, PKV_ESTATE if it
 * has a ticket already. The ticket is dropped by pkv_admit_release or with the sequence. */
PKV_API pkv_status pkv_admit(pkv_seq seq, uint64_t max_tokens);
PKV_API pkv_status pkv_admit_release(pkv_seq seq);

/* May this batch (not yet reserved) be reserved with the state staying safe (growing some sequence
 * now could strand another)? PKV_OK: its pages are there, too. Or PKV_EUNSAFE with *blocked = index
 * of the first entry to leave out: pkv_batch_remove it and ask again, until the answer is PKV_OK or
 * no entry is left. If the state is unsafe already, it must not become worse. */
PKV_API pkv_status pkv_admit_check_batch(pkv_batch batch, uint32_t *blocked);

#ifdef __cplusplus
}
#endif
#endif
