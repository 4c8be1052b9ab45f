/* A request inside the scheduler: its tokens, its sequence in the cache, and what it waits for. */
#ifndef TOOLS_RUN_REQUEST_H
#define TOOLS_RUN_REQUEST_H

#include "scheduler.h"

typedef struct request {
    uint64_t id;
    int32_t *tokens; /* prompt, then generated ones; room for drafts behind */
    uint32_t n_prompt, n_tokens, max_tokens;
    uint32_t n_cached;     /* tokens whose K and V the cache holds */
    uint32_t n_drafted;    /* behind n_tokens in this step */
    uint32_t draft_length; /* grows and shrinks with what is accepted */
    uint32_t draft_pause;  /* steps without a draft after misses */
    pkv_seq seq;
    bool has_seq, cancelled, started, ignore_end;
    void *space_bytes;
    pkv_namespace space;
    sampler *sampler;
    sched_event_fn event;
    void *user;
} request;

/* NULL if memory runs out. */
request *request_new(const sched_request *from, uint64_t id, uint32_t n_vocab, uint32_t n_draft);
/* Releases the sequence, too. */
void request_free(request *r);

/* Releases the pages; everything must be computed (or found) again. */
void request_release(request *r);

/* Makes a sequence that holds what the prefix index knows of the request's tokens, and admits it
 * with its claim. PKV_EUNSAFE: not now. The request has a sequence only on PKV_OK. */
pkv_status request_attach(request *r, pkv_cache *cache, uint32_t n_draft);

/* If others published more of the tokens than this sequence holds, goes over to their pages. On a
 * failure the request has no sequence any more. */
pkv_status request_rematch(request *r, pkv_cache *cache, uint32_t page_tokens, uint32_t n_draft);

/* Length of the common start of two requests of one namespace; 0 for different namespaces. */
uint32_t request_common(const request *a, const request *b);

/* Tokens that are known but not in the cache; 1 while decoding. */
static inline uint32_t request_missing(const request *r)
{
    return r->n_tokens - r->n_cached;
}

#endif
