#include "base/base.h"

#ifdef PKV_DEBUG
#include <stdio.h>
#include <stdlib.h>

_Noreturn void pkvi_assert_fail(const char *condition, const char *file, int line)
{
    fprintf(stderr, "pagedkv: %s:%d: internal invariant broken: %s\n", file, line, condition);
    abort();
}
#endif
