#include "peer.h"

#include <llama.h>
#include <stdlib.h>

#include "sampler.h"

struct peer {
    struct llama_model *model;
    struct llama_context *ctx;
    llama_memory_t memory;
    struct llama_batch batch;
    uint32_t n_batch, n_vocab;
    uint8_t *state; /* of sequence 0 */
    size_t state_bytes;
};

static int open_context(peer *p, const peer_options *o, tool_error *err)
{
    struct llama_context_params c = llama_context_default_params();
    uint32_t context = (o->context + 255) / 256 * 256; /* libllama pads a sequence to 256 */
    c.n_ctx = context * o->n_sequences;
    c.n_seq_max = o->n_sequences;
    c.n_ubatch = o->rows;
    c.n_batch = o->rows > 2048 ? o->rows : 2048;
    c.n_threads = c.n_threads_batch = (int32_t)o->threads;
    c.flash_attn_type = o->plain ? LLAMA_FLASH_ATTN_TYPE_DISABLED : LLAMA_FLASH_ATTN_TYPE_ENABLED;
    c.type_k = c.type_v = o->kv_type;
    c.kv_unified = o->unified;
    c.no_perf = true;
    p->ctx = llama_init_from_model(p->model, c);
    if (!p->ctx) return tool_fail(err, "libllama cannot make a context of %u tokens", c.n_ctx);
    p->memory = llama_get_memory(p->ctx);
    p->n_batch = llama_n_batch(p->ctx);
    p->n_vocab = (uint32_t)llama_vocab_n_tokens(llama_model_get_vocab(p->model));
    p->batch = llama_batch_init((int32_t)p->n_batch, 0, 1);
    return 0;
}

static void only_errors(enum ggml_log_level level, const char *text, void *user)
{
    (void)user;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

peer *peer_open(const peer_options *o, tool_error *err)
{
    peer *p = calloc(1, sizeof *p);
    if (!p) {
        tool_fail(err, "not enough memory");
        return NULL;
    }
    llama_log_set(only_errors, NULL);
    p->model = llama_model_load_from_file(o->model, llama_model_default_params());
    if (!p->model) tool_fail(err, "libllama cannot load %.200s", o->model);
    if (p->model && open_context(p, o, err) == 0) return p;
    peer_close(p);
    return NULL;
}

void peer_close(peer *p)
{
    if (!p) return;
    if (p->n_batch) llama_batch_free(p->batch);
    if (p->ctx) llama_free(p->ctx);
    if (p->model) llama_model_free(p->model);
    free(p->state);
    free(p);
}

void peer_clear(peer *p)
{
    llama_memory_clear(p->memory, false);
}

static void add(peer *p, int32_t token, uint32_t position, uint32_t sequence, bool logits)
{
    int32_t i = p->batch.n_tokens++;
    p->batch.token[i] = token;
    p->batch.pos[i] = (llama_pos)position;
    p->batch.n_seq_id[i] = 1;
    p->batch.seq_id[i][0] = (llama_seq_id)sequence;
    p->batch.logits[i] = logits;
}

static int decode(peer *p, tool_error *err)
{
    int status = llama_decode(p->ctx, p->batch);
    return status
               ? tool_fail(err, "llama_decode of %d tokens returned %d", p->batch.n_tokens, status)
               : 0;
}

int peer_append(peer *p, uint32_t sequence, const int32_t *tokens, uint32_t n, uint32_t position,
                const float **logits, tool_error *err)
{
    for (uint32_t done = 0; done < n;) {
        p->batch.n_tokens = 0;
        for (; done < n && (uint32_t)p->batch.n_tokens < p->n_batch; done++)
            add(p, tokens[done], position + done, sequence, logits && done + 1 == n);
        if (decode(p, err)) return -1;
    }
    if (logits) *logits = llama_get_logits_ith(p->ctx, p->batch.n_tokens - 1);
    return 0;
}

int peer_step(peer *p, const int32_t *tokens, const uint32_t *positions, uint32_t n, int32_t *next,
              tool_error *err)
{
    p->batch.n_tokens = 0;
    for (uint32_t i = 0; i < n; i++)
        add(p, tokens[i], positions[i], i, true);
    if (decode(p, err)) return -1;
    const float *logits = llama_get_logits(p->ctx);
    for (uint32_t i = 0; i < n; i++)
        next[i] = (int32_t)sampler_argmax(logits + (size_t)i * p->n_vocab, p->n_vocab);
    return 0;
}

int peer_extend(peer *p, const int32_t *tokens, uint32_t per_sequence, uint32_t position,
                uint32_t n, int32_t *next, tool_error *err)
{
    uint32_t at_once = p->n_batch / per_sequence;
    for (uint32_t first = 0; first < n; first += at_once) {
        uint32_t end = n - first < at_once ? n : first + at_once;
        p->batch.n_tokens = 0;
        for (uint32_t s = first; s < end; s++)
            for (uint32_t t = 0; t < per_sequence; t++)
                add(p, tokens[s * per_sequence + t], position + t, s, t + 1 == per_sequence);
        if (decode(p, err)) return -1;
        const float *logits = llama_get_logits(p->ctx);
        for (uint32_t s = first; s < end; s++)
            next[s] =
                (int32_t)sampler_argmax(logits + (size_t)(s - first) * p->n_vocab, p->n_vocab);
    }
    return 0;
}

int peer_copy(peer *p, uint32_t to, uint32_t n, tool_error *err)
{
    size_t bytes = llama_state_seq_get_size(p->ctx, 0);
    if (bytes != p->state_bytes) {
        free(p->state);
        p->state = malloc(bytes);
        p->state_bytes = p->state ? llama_state_seq_get_data(p->ctx, p->state, bytes, 0) : 0;
    }
    if (!p->state_bytes ||
        !llama_state_seq_set_data(p->ctx, p->state, p->state_bytes, (llama_seq_id)to) ||
        !llama_memory_seq_rm(p->memory, (llama_seq_id)to, (llama_pos)n, -1))
        return tool_fail(err, "libllama cannot copy a sequence of %zu bytes", bytes);
    return 0;
}

void peer_share(peer *p, uint32_t to)
{
    llama_memory_seq_cp(p->memory, 0, (llama_seq_id)to, -1, -1);
}

uint32_t peer_vocab(const peer *p)
{
    return p->n_vocab;
}
