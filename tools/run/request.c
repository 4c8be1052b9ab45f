#include "request.h"

#include <stdlib.h>
#include <string.h>

request *request_new(const sched_request *from, uint64_t id, uint32_t n_vocab, uint32_t n_draft)
{
    request *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    r->id = id;
    r->n_prompt = r->n_tokens = from->n_prompt;
    r->max_tokens = from->n_prompt + from->max_new;
    r->ignore_end = from->ignore_end;
    r->event = from->event;
    r->user = from->user;
    r->draft_length = n_draft;
    r->tokens = malloc(((size_t)r->max_tokens + n_draft + 1) * sizeof *r->tokens);
    r->sampler = sampler_new(&from->sampling, n_vocab);
    size_t space = from->space ? from->space->size : 0;
    r->space_bytes = malloc(space + 1);
    if (!r->tokens || !r->sampler || !r->space_bytes) {
        request_free(r);
        return NULL;
    }
    memcpy(r->tokens, from->prompt, from->n_prompt * sizeof *r->tokens);
    if (space) memcpy(r->space_bytes, from->space->bytes, space);
    r->space = (pkv_namespace){r->space_bytes, space};
    return r;
}

void request_free(request *r)
{
    if (!r) return;
    request_release(r);
    sampler_free(r->sampler);
    free(r->space_bytes);
    free(r->tokens);
    free(r);
}

void request_release(request *r)
{
    if (r->has_seq) pkv_seq_destroy(r->seq);
    r->has_seq = false;
    r->n_cached = r->n_drafted = 0;
}

/* Admits a new sequence that holds the known start of the tokens, or changes nothing. The last token
 * is never attached: the model must run on it to say what comes next. */
static pkv_status admit(const request *r, pkv_cache *cache, uint64_t claim, pkv_seq seq,
                        uint32_t *n_cached)
{
    pkv_match match = {.struct_size = sizeof match};
    pkv_status status = PKV_ESTALE;
    *n_cached = 0;
    for (int attempt = 0; attempt < 3 && status == PKV_ESTALE; attempt++) {
        /* pages may be reclaimed between the two */
        status = pkv_prefix_match(cache, &r->space, r->tokens, r->n_tokens - 1, &match);
        if (status == PKV_ENOTSUP) return pkv_admit(seq, claim); /* no prefix index */
        if (!status) status = pkv_admit_attach(seq, &match, claim);
    }
    if (!status) *n_cached = (uint32_t)match.n_tokens;
    return status;
}

pkv_status request_attach(request *r, pkv_cache *cache, uint32_t n_draft)
{
    pkv_seq seq;
    pkv_status status = pkv_seq_create(cache, &seq);
    if (status) return status;
    uint32_t n_cached = 0;
    status = admit(r, cache, (uint64_t)r->max_tokens + n_draft, seq, &n_cached);
    if (status) {
        pkv_seq_destroy(seq);
        return status;
    }
    r->seq = seq;
    r->has_seq = true;
    r->n_cached = n_cached;
    return PKV_OK;
}

pkv_status request_rematch(request *r, pkv_cache *cache, uint32_t page_tokens, uint32_t n_draft)
{
    pkv_match match = {.struct_size = sizeof match};
    if (pkv_prefix_match(cache, &r->space, r->tokens, r->n_tokens - 1, &match) ||
        match.n_tokens < r->n_cached + page_tokens)
        return PKV_OK;
    request_release(r); /* what was computed stays in the index, so nothing is lost */
    return request_attach(r, cache, n_draft);
}

uint32_t request_common(const request *a, const request *b)
{
    if (a->space.size != b->space.size ||
        memcmp(a->space.bytes, b->space.bytes, a->space.size) != 0)
        return 0;
    uint32_t n = a->n_tokens < b->n_tokens ? a->n_tokens : b->n_tokens, i = 0;
    while (i < n && a->tokens[i] == b->tokens[i])
        i++;
    return i;
}
