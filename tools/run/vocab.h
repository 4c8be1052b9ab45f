/* Text to tokens and back, through libllama (vocabulary only, no weights). MT-safe after opening.
 */
#ifndef TOOLS_RUN_VOCAB_H
#define TOOLS_RUN_VOCAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tool_error.h"

typedef struct vocab vocab;

/* NULL with a text. */
vocab *vocab_open(const char *path, tool_error *err);
void vocab_close(vocab *v);

/* Tokens of text[0..size); with `special` the text's control tokens ("<|im_start|>") are parsed,
 * and a start token is added if the model wants one. *tokens is the caller's to free. Returns their
 * number, or -1 with a text. */
int64_t vocab_encode(const vocab *v, const char *text, size_t size, bool special, int32_t **tokens,
                     tool_error *err);

/* Bytes of a token (not NUL-terminated, maybe part of a UTF-8 character) into text[0..capacity);
 * returns how many; 0 for control tokens and if they do not fit. */
size_t vocab_piece(const vocab *v, int32_t token, char *text, size_t capacity);

/* Does this token end a generation? */
bool vocab_ends(const vocab *v, int32_t token);

int32_t vocab_size(const vocab *v);

/* The conversation as the model's chat template writes it, ready for an answer; roles and contents
 * have n entries. *text is the caller's to free. -1 with a text. */
int vocab_chat(const vocab *v, const char *const *roles, const char *const *contents, size_t n,
               char **text, tool_error *err);

#endif
