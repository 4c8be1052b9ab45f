#include "vocab.h"

#include <llama.h>
#include <stdlib.h>
#include <string.h>

struct vocab {
    struct llama_model *model;
    const struct llama_vocab *tokens;
    const char *chat_template;
};

static void only_errors(enum ggml_log_level level, const char *text, void *user)
{
    (void)user;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

vocab *vocab_open(const char *path, tool_error *err)
{
    vocab *v = calloc(1, sizeof *v);
    if (!v) {
        tool_fail(err, "not enough memory");
        return NULL;
    }
    llama_log_set(only_errors, NULL);
    struct llama_model_params params = llama_model_default_params();
    params.vocab_only = true;
    v->model = llama_model_load_from_file(path, params);
    if (!v->model) {
        tool_fail(err, "%.200s: libllama cannot read the vocabulary", path);
        free(v);
        return NULL;
    }
    v->tokens = llama_model_get_vocab(v->model);
    v->chat_template = llama_model_chat_template(v->model, NULL);
    return v;
}

void vocab_close(vocab *v)
{
    if (!v) return;
    llama_model_free(v->model);
    free(v);
}

int64_t vocab_encode(const vocab *v, const char *text, size_t size, bool special, int32_t **tokens,
                     tool_error *err)
{
    if (size > INT32_MAX / 2) return tool_fail(err, "a text of %zu bytes is too long", size);
    int32_t capacity = (int32_t)size + 8;
    int32_t *list = malloc((size_t)capacity * sizeof *list);
    if (!list) return tool_fail(err, "not enough memory");
    int32_t n = llama_tokenize(v->tokens, text, (int32_t)size, list, capacity, special, special);
    if (n < 0) {
        free(list);
        return tool_fail(err, "the text cannot be tokenised");
    }
    *tokens = list;
    return n;
}

size_t vocab_piece(const vocab *v, int32_t token, char *text, size_t capacity)
{
    int32_t n = llama_token_to_piece(v->tokens, token, text, (int32_t)capacity, 0, false);
    return n > 0 ? (size_t)n : 0;
}

bool vocab_ends(const vocab *v, int32_t token)
{
    return llama_vocab_is_eog(v->tokens, token);
}

int32_t vocab_size(const vocab *v)
{
    return llama_vocab_n_tokens(v->tokens);
}

int vocab_chat(const vocab *v, const char *const *roles, const char *const *contents, size_t n,
               char **text, tool_error *err)
{
    struct llama_chat_message *list = calloc(n ? n : 1, sizeof *list);
    char *buffer = NULL;
    int32_t size = 0;
    for (size_t i = 0; list && i < n; i++)
        list[i] = (struct llama_chat_message){roles[i], contents[i]};
    const char *form = v->chat_template ? v->chat_template : "chatml";
    if (list) size = llama_chat_apply_template(form, list, n, true, NULL, 0);
    if (size < 0) size = llama_chat_apply_template(form = "chatml", list, n, true, NULL, 0);
    if (size > 0) buffer = malloc((size_t)size + 1);
    if (buffer) {
        llama_chat_apply_template(form, list, n, true, buffer, size);
        buffer[size] = '\0';
    }
    free(list);
    if (!buffer) return tool_fail(err, "the chat template cannot be applied");
    *text = buffer;
    return 0;
}
