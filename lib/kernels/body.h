/* The kernels of one row of the table, in terms of the vector operations. Included once per row
 * file after the ISA header and vec.h; the row file then fills a pkvi_kernels. */
#ifndef PKVI_BODY_H
#define PKVI_BODY_H

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "kernels.h"

/* How tile elements are read. F32 also serves panels (tiles converted to f32 in scratch). */
enum { KIND_F32, KIND_F16, KIND_BF16, KIND_BFDOT, KIND_K8, KIND_K4, KIND_V8, KIND_V4 };

enum {
    GROUP = 64, /* slots handled together: one step of the page loop */
    GROUP_VECS = GROUP / VL,
    GROUP_PAGES = GROUP / 8, /* most pages of a group */
    V4_GROUP = 32,           /* dims with a scale and minimum of their own */
    LEAST_CODE_PAGE = 16,    /* shorter pages with keys in codes pass through a panel */
    LEAF_GROUPS = PKVI_LEAF / GROUP,
    BRIDGE_BYTES = 2048, /* what memory delivers to a core in some 50 ns; see bridge() */
    S_STRIDE =
        PKVI_LEAF + 16 /* floats between score rows; not a power of two for the cache's sake */
};

/* Rows of one register block at most, and a list of the heights 1.. up to it. */
#if VREGS == 32 && VL == 16
#define BLOCK_ROWS 12
#define EACH_HEIGHT(M, a, b)                                                                       \
    M(a, b, 1)                                                                                     \
    M(a, b, 2)                                                                                     \
    M(a, b, 3)                                                                                     \
    M(a, b, 4)                                                                                     \
    M(a, b, 5) M(a, b, 6) M(a, b, 7) M(a, b, 8) M(a, b, 9) M(a, b, 10) M(a, b, 11) M(a, b, 12)
#elif VREGS == 32
#define BLOCK_ROWS 8
#define EACH_HEIGHT(M, a, b)                                                                       \
    M(a, b, 1) M(a, b, 2) M(a, b, 3) M(a, b, 4) M(a, b, 5) M(a, b, 6) M(a, b, 7) M(a, b, 8)
#else
#define BLOCK_ROWS 6
#define EACH_HEIGHT(M, a, b) M(a, b, 1) M(a, b, 2) M(a, b, 3) M(a, b, 4) M(a, b, 5) M(a, b, 6)
#endif

#include "body_qk.h"
#include "body_pv.h"
#include "body_mask.h"
#include "body_convert.h"
#include "body_codes.h"
#include "body_tile.h"
#include "body_pack.h"
#include "body_attend.h"
#include "body_move.h"
#include "body_seal.h"
#include "body_merge.h"
#include "body_digest.h"

#endif
