#include "lookup.h"

#include <string.h>

enum { LONGEST = 3, SHORTEST = 2 };

uint32_t lookup_draft(const int32_t *tokens, uint32_t n, int32_t *draft, uint32_t want)
{
    for (uint32_t gram = LONGEST; gram >= SHORTEST; gram--) {
        if (n <= gram) continue;
        const int32_t *last = tokens + n - gram;
        for (uint32_t at = n - gram; at-- > 0;) {
            if (memcmp(tokens + at, last, gram * sizeof *tokens) != 0) continue;
            uint32_t from = at + gram, count = n - from < want ? n - from : want;
            memmove(draft, tokens + from, count * sizeof *draft);
            return count;
        }
    }
    return 0;
}
