/* Stable digests of published pages, computed when asked for and kept beside the nodes. */
#include <string.h>

#include "internal.h"

#ifdef PKVI_HAVE_NETTLE
#include <nettle/sha2.h>

/* Digests of one chunk of nodes; valid[i] is the node's generation + 1, or 0. */
struct digest_chunk {
    pkv_digest digest[PKVI_NODE_CHUNK];
    uint64_t valid[PKVI_NODE_CHUNK];
};

static void put_u32(struct sha256_ctx *ctx, uint32_t value)
{
    uint8_t bytes[4] = {(uint8_t)value, (uint8_t)(value >> 8), (uint8_t)(value >> 16),
                        (uint8_t)(value >> 24)};
    sha256_update(ctx, sizeof bytes, bytes);
}

/* What the digest of the first page starts from. */
static void digest_space(const void *name, size_t size, uint32_t page_tokens, pkv_digest *out)
{
    static const char domain[] = "pagedkv prefix 1";
    struct sha256_ctx ctx;
    sha256_init(&ctx);
    sha256_update(&ctx, sizeof domain, (const uint8_t *)domain);
    put_u32(&ctx, page_tokens);
    if (size) sha256_update(&ctx, size, name);
    sha256_digest(&ctx, sizeof out->bytes, out->bytes);
}

static void digest_page(const pkv_digest *before, const uint32_t *tokens, uint32_t n, uint64_t salt,
                        pkv_digest *out)
{
    struct sha256_ctx ctx;
    sha256_init(&ctx);
    sha256_update(&ctx, sizeof before->bytes, before->bytes);
    for (uint32_t i = 0; i < n; i++)
        put_u32(&ctx, tokens[i]);
    if (salt) {
        put_u32(&ctx, (uint32_t)salt);
        put_u32(&ctx, (uint32_t)(salt >> 32));
    }
    sha256_digest(&ctx, sizeof out->bytes, out->bytes);
}

/* The chunk that keeps a node's digest, or NULL when memory is refused. */
static struct digest_chunk *chunk_of(struct pkvi_prefix *px, uint32_t id)
{
    uint32_t at = id >> PKVI_NODE_CHUNK_SHIFT;
    if (at >= px->n_digest_chunks) {
        uint32_t wider = px->n_digest_chunks ? 2 * px->n_digest_chunks : 8;
        while (wider <= at)
            wider *= 2;
        void **array = pkvi_mem_grow_array(px->mem, px->digest_chunk, px->n_digest_chunks, wider,
                                           sizeof *array);
        if (!array) return NULL;
        memset(array + px->n_digest_chunks, 0, (wider - px->n_digest_chunks) * sizeof *array);
        px->digest_chunk = array;
        px->n_digest_chunks = wider;
    }
    if (!px->digest_chunk[at])
        px->digest_chunk[at] = pkvi_mem_zalloc(px->mem, sizeof(struct digest_chunk));
    return px->digest_chunk[at];
}

/* Writes the digest of a node, given that of the page before it. */
static pkv_status digest_node(struct pkvi_prefix *px, uint32_t id, const pkv_digest *before,
                              pkv_digest *out)
{
    struct digest_chunk *chunk = chunk_of(px, id);
    if (!chunk) return PKV_ENOMEM;
    uint32_t at = id & (PKVI_NODE_CHUNK - 1);
    uint64_t valid = (uint64_t)pkvi_side(&px->core, id)->generation + 1;
    if (chunk->valid[at] != valid) {
        digest_page(before, pkvi_node_tokens(&px->core, id), px->config.page_tokens,
                    pkvi_node(&px->core, id)->id, &chunk->digest[at]);
        chunk->valid[at] = valid;
    }
    *out = chunk->digest[at];
    return PKV_OK;
}

/* nodes[0..n) is scratch for the path. */
static pkv_status digest_path(struct pkvi_prefix *px, const struct pkvi_found *found,
                              uint32_t *nodes, uint32_t n, pkv_digest *digests)
{
    uint32_t id = found->last;
    for (uint32_t i = n; i-- > 0; id = pkvi_node(&px->core, id)->parent)
        nodes[i] = id;
    pkv_digest start;
    digest_space(found->space->name, found->space->size, px->config.page_tokens, &start);
    pkv_status status = PKV_OK;
    for (uint32_t i = 0; i < n && status == PKV_OK; i++)
        status = digest_node(px, nodes[i], i ? &digests[i - 1] : &start, &digests[i]);
    return status;
}

pkv_status pkvi_prefix_digests(struct pkvi_prefix *px, const pkv_match *match, pkv_digest *digests,
                               uint32_t capacity)
{
    uint32_t n = match->n_pages;
    if (n > capacity) return PKV_ERANGE;
    size_t bytes = 0;
    if (!pkvi_mul_size(n, sizeof(uint32_t) + sizeof(pkv_digest), &bytes)) return PKV_ERANGE;
    pkv_digest *scratch = n ? pkvi_mem_alloc(px->mem, bytes) : NULL;
    if (n && !scratch) return PKV_ENOMEM;
    pkvi_prefix_lock(px);
    struct pkvi_found found;
    pkv_status status = pkvi_match_resolve(px, match, &found);
    if (status == PKV_OK && n)
        status = digest_path(px, &found, (uint32_t *)(void *)(scratch + n), n, scratch);
    pkvi_prefix_unlock(px);
    if (status == PKV_OK && n) memcpy(digests, scratch, n * sizeof *digests);
    if (scratch) pkvi_mem_free(px->mem, scratch, bytes);
    return status;
}

pkv_status pkv_digest_tokens(const pkv_namespace *space, uint32_t page_tokens,
                             const int32_t *tokens, uint64_t n, pkv_digest *digests,
                             uint64_t capacity)
{
    size_t size = space ? space->size : 0;
    if (page_tokens == 0 || (!tokens && n) || size > PKV_MAX_NAMESPACE_BYTES ||
        (size && !space->bytes))
        return PKV_EINVAL;
    uint64_t pages = n / page_tokens;
    if (pages > capacity) return PKV_ERANGE;
    if (pages && !digests) return PKV_EINVAL;
    pkv_digest before;
    digest_space(size ? space->bytes : NULL, size, page_tokens, &before);
    for (uint64_t i = 0; i < pages; i++) {
        digest_page(&before, (const uint32_t *)(const void *)(tokens + i * page_tokens),
                    page_tokens, 0, &digests[i]);
        before = digests[i];
    }
    return PKV_OK;
}

void pkvi_digests_destroy(struct pkvi_prefix *px)
{
    for (uint32_t i = 0; i < px->n_digest_chunks; i++)
        if (px->digest_chunk[i])
            pkvi_mem_free(px->mem, px->digest_chunk[i], sizeof(struct digest_chunk));
    if (px->digest_chunk)
        pkvi_mem_free_array(px->mem, px->digest_chunk, px->n_digest_chunks,
                            sizeof *px->digest_chunk);
}

#else /* a build without nettle */

pkv_status pkvi_prefix_digests(struct pkvi_prefix *px, const pkv_match *match, pkv_digest *digests,
                               uint32_t capacity)
{
    (void)px;
    (void)match;
    (void)digests;
    (void)capacity;
    return PKV_ENOTSUP;
}

pkv_status pkv_digest_tokens(const pkv_namespace *space, uint32_t page_tokens,
                             const int32_t *tokens, uint64_t n, pkv_digest *digests,
                             uint64_t capacity)
{
    (void)space;
    (void)page_tokens;
    (void)tokens;
    (void)n;
    (void)digests;
    (void)capacity;
    return PKV_ENOTSUP;
}

void pkvi_digests_destroy(struct pkvi_prefix *px)
{
    (void)px;
}

#endif
