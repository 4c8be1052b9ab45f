/* pagedkv: admission. A sequence that is admitted declares the most tokens it will ever hold (its
 * claim). The rule: a state is safe if the admitted sequences can be ordered so that each can grow
 * to its claim using free pages plus what the ones before it release when they end (Dijkstra's
 * banker). Admitting keeps the state safe or is refused, so two half-admitted sequences can never
 * wait for each other. What counts as free and as released, what a host must do about forks, and
 * what the rule rests on and its one exception: docs/architecture.md, "Admission". Call these
 * functions, and step admitted sequences, from one thread at a time. */
#ifndef PAGEDKV_ADMISSION_H
#define PAGEDKV_ADMISSION_H

#include "prefix.h"
#include "types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Would admitting a new sequence of max_tokens be safe now, shared_tokens of which come from
 * somewhere: cached pages, for all that is known, which would be free no more? *safe = 1 or 0;
 * missing[0..n_groups) (may be NULL) = pages that must come free before the first sequence that is
 * stuck could go on (a lower bound), zeros if safe. Read-only. With a match at hand
 * pkv_admit_probe_match is exact. O(groups + tickets that changed) while all claims fit at once, see
 * docs/architecture.md. */
PKV_API pkv_status pkv_admit_probe(pkv_cache *cache, uint64_t max_tokens, uint64_t shared_tokens,
                                   uint32_t *safe, uint32_t *missing, uint32_t n_groups);

/* What admitting a sequence would mean. */
typedef struct pkv_admit_outlook {
    size_t struct_size;       /* set by the caller */
    uint32_t safe;            /* 1: pkv_admit_attach would agree now; else 0 */
    uint32_t reserved32;      /* 0 in this version */
    uint64_t claimed_bytes;   /* of pages that all admitted sequences and this one may still take */
    uint64_t available_bytes; /* of pages that can be had for it. A scheduler that wants nobody to wait
                               * for another keeps claimed_bytes below it */
    uint64_t reserved[4];     /* 0 in this version */
} pkv_admit_outlook;

/* Would admitting a new sequence of max_tokens that attaches what `match` found (NULL = nothing) be
 * safe now? Pages of the match that others hold cost nothing; those that nobody holds are free no
 * more. missing as in pkv_admit_probe. Read-only, but for other threads' use of the cache a moment's
 * answer. PKV_ESTALE and PKV_EFOREIGN as for pkv_seq_attach, PKV_EINVAL, PKV_EVERSION, PKV_ENOMEM.
 * O(pages of the match) beside the cost of pkv_admit_probe. */
PKV_API pkv_status pkv_admit_probe_match(pkv_cache *cache, const pkv_match *match,
                                         uint64_t max_tokens, pkv_admit_outlook *outlook,
                                         uint32_t *missing, uint32_t n_groups);

/* Admits a sequence with a claim: PKV_EUNSAFE if the state would not stay safe, PKV_ESTATE if it
 * has a ticket already. The ticket is dropped by pkv_admit_release or with the sequence. Cost as
 * pkv_admit_probe. */
PKV_API pkv_status pkv_admit(pkv_seq seq, uint64_t max_tokens);
PKV_API pkv_status pkv_admit_release(pkv_seq seq);

/* pkv_seq_attach and pkv_admit in one: the empty sequence holds the matched tokens and has its
 * ticket, or nothing has changed. No page of the match can vanish in between, no moment passes at
 * which the pages count and the claim does not, and a refusal (PKV_EUNSAFE) leaves the index's order
 * of replacement as it was. Other errors as for the two. max_tokens counts what is attached. O(pages
 * of the match) beside the cost of pkv_admit_probe. */
PKV_API pkv_status pkv_admit_attach(pkv_seq seq, const pkv_match *match, uint64_t max_tokens);

/* May this batch (not yet reserved) be reserved with the state staying safe (growing some sequence
 * now could strand another)? PKV_OK: its pages are there, too. Or PKV_EUNSAFE with *blocked = index
 * of the first entry to leave out: pkv_batch_remove it and ask again, until the answer is PKV_OK or
 * no entry is left. If the state is unsafe already, it must not become worse. */
PKV_API pkv_status pkv_admit_check_batch(pkv_batch batch, uint32_t *blocked);

#ifdef __cplusplus
}
#endif
#endif
