/* Prompt lookup: a draft from the text itself. What followed the last earlier occurrence of the
 * newest n-gram is likely to follow again (code, quotations, summaries). */
#ifndef TOOLS_RUN_LOOKUP_H
#define TOOLS_RUN_LOOKUP_H

#include <stdint.h>

/* Looks for the last 3, else 2 tokens of tokens[0..n) further up; writes up to `want` tokens that
 * followed there to draft and returns how many. O(n). */
uint32_t lookup_draft(const int32_t *tokens, uint32_t n, int32_t *draft, uint32_t want);

#endif
