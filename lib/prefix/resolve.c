/* From a match back to the nodes it was about, if they are still there. */
#include "internal.h"

static pkv_status resolve_node(const struct pkvi_prefix *px, uint64_t ref, uint32_t space,
                               uint32_t *id)
{
    *id = PKVI_NIL;
    if (ref == UINT64_MAX) return PKV_OK;
    uint32_t at = (uint32_t)ref;
    if (at >= px->core.fresh_node) return PKV_EINVAL;
    if (pkvi_side(&px->core, at)->generation != ref >> 32 ||
        pkvi_node(&px->core, at)->space != space)
        return PKV_ESTALE;
    *id = at;
    return PKV_OK;
}

pkv_status pkvi_match_resolve(struct pkvi_prefix *px, const pkv_match *match,
                              struct pkvi_found *found)
{
    if (match->opaque[PKVI_MATCH_MARK] != PKVI_MATCH_MAGIC) return PKV_EINVAL;
    if (match->cache != px->config.cache) return PKV_EFOREIGN;
    uint32_t slot = (uint32_t)match->opaque[PKVI_MATCH_SPACE];
    if (slot >= px->n_spaces) return PKV_EINVAL;
    found->space = px->space[slot];
    if (!found->space->live || found->space->generation != match->opaque[PKVI_MATCH_SPACE] >> 32)
        return PKV_ESTALE;
    pkv_status status = resolve_node(px, match->opaque[PKVI_MATCH_LAST], slot, &found->last);
    if (status) return status;
    status = resolve_node(px, match->opaque[PKVI_MATCH_PARTIAL], slot, &found->partial);
    if (status) return status;
    /* A match that was tampered with must not lead astray. */
    const struct pkvi_index *ix = &px->core;
    uint32_t pages = found->last == PKVI_NIL ? 0 : pkvi_node(ix, found->last)->depth + 1;
    bool fits = pages == match->n_pages && match->partial_tokens < px->config.page_tokens &&
                (found->partial == PKVI_NIL) == (match->partial_tokens == 0) &&
                match->n_tokens == ((uint64_t)pages << px->page_shift) + match->partial_tokens;
    if (fits && found->partial != PKVI_NIL)
        fits = pkvi_node(ix, found->partial)->parent == found->last;
    return fits ? PKV_OK : PKV_EINVAL;
}
