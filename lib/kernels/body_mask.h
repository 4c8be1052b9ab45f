/* Which slots of a group the rows of a tile see. */

/* The rows' ranges summed up, so that most groups need no look at single rows. */
struct row_bounds {
    int64_t min_lo, max_lo; /* over rows that see anything */
    int64_t min_hi, max_hi;
    bool empty_row; /* some row sees nothing */
};

struct group {
    int64_t slot0;        /* first slot, may be negative or beyond the pages at the ends */
    uint32_t first, last; /* every slot seen by any row is in [first, last), relative to slot0 */
    bool full;            /* every row sees all GROUP slots; otherwise vis[] is set */
    bool mixed;           /* rows see different slots, or with gaps */
    uint64_t *vis;        /* [rows] bit s: the row sees slot0 + s */
};

static struct row_bounds row_bounds(const pkvi_attend_job *job, uint32_t row0, uint32_t rows)
{
    struct row_bounds b = {INT64_MAX, INT64_MIN, INT64_MAX, INT64_MIN, false};
    for (uint32_t r = row0; r < row0 + rows; r++) {
        int64_t lo = job->lo[r], hi = job->hi[r];
        if (lo >= hi) {
            b.empty_row = true;
            continue;
        }
        b.min_lo = lo < b.min_lo ? lo : b.min_lo;
        b.max_lo = lo > b.max_lo ? lo : b.max_lo;
        b.min_hi = hi < b.min_hi ? hi : b.min_hi;
        b.max_hi = hi > b.max_hi ? hi : b.max_hi;
    }
    return b;
}

/* Bits [lo, hi) of a word, bounds clamped to 0..64. */
static uint64_t bit_range(int64_t lo, int64_t hi)
{
    if (lo < 0) lo = 0;
    if (hi > 64) hi = 64;
    if (lo >= hi) return 0;
    uint64_t below_hi = hi == 64 ? UINT64_MAX : (UINT64_C(1) << hi) - 1;
    return below_hi & ~((UINT64_C(1) << lo) - 1);
}

/* The row's tree bits for the group, all ones outside the tree. */
static uint64_t tree_bits(const pkvi_attend_job *job, uint32_t row, int64_t slot0)
{
    const uint8_t *bits = job->tree_rows[row];
    if (!bits) return UINT64_MAX;
    uint64_t out = UINT64_MAX;
    for (uint32_t s = 0; s < GROUP; s++) {
        int64_t j = slot0 + s - (int64_t)job->tree_slot;
        if (j >= 0 && j < (int64_t)job->tree_n && !(bits[j / 8] >> (j % 8) & 1))
            out &= ~(UINT64_C(1) << s);
    }
    return out;
}

/* Fills *g for the slots from slot0; false if no row sees any of them. */
static __attribute__((noinline)) bool group_make(const pkvi_attend_job *job,
                                                 const struct row_bounds *b, uint32_t row0,
                                                 uint32_t rows, int64_t slot0, struct group *g,
                                                 uint64_t *vis)
{
    int64_t end = slot0 + GROUP;
    *g = (struct group){.slot0 = slot0, .first = 0, .last = GROUP, .full = true, .vis = vis};
    if (end <= b->min_lo || slot0 >= b->max_hi) return false;
    bool tree = job->tree_n > 0 && end > (int64_t)job->tree_slot &&
                slot0 < (int64_t)job->tree_slot + (int64_t)job->tree_n;
    if (!tree && !b->empty_row && slot0 >= b->max_lo && end <= b->min_hi) return true;

    uint64_t any = 0, all = UINT64_MAX;
    for (uint32_t r = 0; r < rows; r++) {
        vis[r] = bit_range((int64_t)job->lo[row0 + r] - slot0, (int64_t)job->hi[row0 + r] - slot0);
        if (tree) vis[r] &= tree_bits(job, row0 + r, slot0);
        any |= vis[r];
        all &= vis[r];
    }
    if (any == 0) return false;
    g->first = (uint32_t)__builtin_ctzll(any);
    g->last = 64 - (uint32_t)__builtin_clzll(any);
    g->full = all == UINT64_MAX;
    g->mixed = any != all || any != bit_range(g->first, g->last);
    return true;
}

/* The slots [*first, *last) of the group that rows [r, r + n) of the tile see; false if none. */
static bool group_block(const struct group *g, uint32_t r, uint32_t n, uint32_t *first,
                        uint32_t *last)
{
    uint64_t any = 0;
    *first = 0;
    *last = GROUP;
    if (g->full) return true;
    for (uint32_t i = 0; i < n; i++)
        any |= g->vis[r + i];
    if (any == 0) return false;
    *first = (uint32_t)__builtin_ctzll(any);
    *last = 64 - (uint32_t)__builtin_clzll(any);
    return true;
}
