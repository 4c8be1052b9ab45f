/* What must hold at any time, and after each kind of step. */
#include <string.h>

#include "world.h"

bool world_pinned(const struct world_seq *s, uint32_t page_tokens, uint32_t logical)
{
    const uint32_t begin = logical * page_tokens, end = begin + page_tokens;
    for (uint32_t i = 0; i < s->n_pins; i++)
        if (s->pin[i].begin < end && begin < s->pin[i].end) return true;
    return false;
}

bool world_left(const struct world *w, uint32_t group, uint32_t logical, uint32_t length)
{
    const uint32_t window = w->group_config[group].window;
    /* The next query, at `length`, sees positions above length - window. */
    return window != 0 && (logical + 1) * w->page_tokens + window <= length + 1;
}

void world_look(struct world *w, struct world_seq *s)
{
    for (uint32_t g = 0; g < w->n_groups; g++) {
        const pkv_status status = pkv_seq_pages(s->handle, g, 0, s->n_pages, s->page[g]);
        WORLD_CHECK(w, status == PKV_OK, "pkv_seq_pages of %u: %s", s->n_pages,
                    pkv_status_name(status));
    }
}

/* ---- one sequence --------------------------------------------------------------------------- */

static void check_info(struct world *w, struct world_seq *s, uint32_t g)
{
    pkv_seq_info info = {.struct_size = sizeof info};
    WORLD_CHECK(w, pkv_seq_get_info(s->handle, g, &info) == PKV_OK, "info");
    uint32_t pages = 0, tokens = 0;
    for (uint32_t l = 0; l < s->n_pages; l++)
        pages += s->page[g][l] != PKV_PAGE_NONE;
    for (uint32_t t = 0; t < s->length; t++)
        tokens += s->page[g][t / w->page_tokens] != PKV_PAGE_NONE;
    WORLD_CHECK(w,
                info.length == s->length && info.resident_pages == pages &&
                    info.resident_tokens == tokens && info.dropped_pages == s->n_pages - pages &&
                    info.shared_pages <= pages && info.in_batch == (s->batch >= 0),
                "group %u: pkv_seq_get_info says %llu tokens, %u pages, not %u, %u", g,
                (unsigned long long)info.length, info.resident_pages, s->length, pages);
    pkv_evict_info evict = {.struct_size = sizeof evict};
    WORLD_CHECK(w, pkv_seq_evict_info(s->handle, g, &evict) == PKV_OK, "evict info");
    WORLD_CHECK(w,
                evict.kind == s->policy[g].kind && evict.resident_pages == pages &&
                    (evict.journal_pages == 0 || s->policy[g].journal > 0),
                "group %u: pkv_seq_evict_info says kind %d", g, evict.kind);
    uint64_t position;
    WORLD_CHECK(w, pkv_seq_position(s->handle, g, &position) == PKV_OK && position == s->length,
                "position");
    uint32_t logical[WORLD_PAGES], n = 0, i = 0;
    float scores[WORLD_PAGES];
    WORLD_CHECK(w,
                pkv_seq_page_scores(s->handle, g, logical, scores, WORLD_PAGES, &n) == PKV_OK &&
                    n == pages,
                "scores");
    for (uint32_t l = 0; l < s->n_pages; l++)
        if (s->page[g][l] != PKV_PAGE_NONE)
            WORLD_CHECK(w, logical[i++] == l, "scores are of other pages");
}

void world_check_seq(struct world *w, struct world_seq *s)
{
    uint64_t length = 0;
    WORLD_CHECK(w, pkv_seq_length(s->handle, &length) == PKV_OK && length == s->length,
                "sequence %d has %llu tokens, not %u", (int)(s - w->seq),
                (unsigned long long)length, s->length);
    for (uint32_t g = 0; g < w->n_groups; g++) {
        pkv_page page[WORLD_PAGES + 1];
        WORLD_CHECK(w, pkv_seq_pages(s->handle, g, 0, s->n_pages, page) == PKV_OK, "pages");
        WORLD_CHECK(w, pkv_seq_pages(s->handle, g, 0, s->n_pages + 1, page) == PKV_EINVAL,
                    "group %u: the table is longer than %u pages", g, s->n_pages);
        for (uint32_t l = 0; l < s->n_pages; l++)
            WORLD_CHECK(w, page[l] == s->page[g][l],
                        "sequence %d, group %u, page %u: %#llx instead of %#llx", (int)(s - w->seq),
                        g, l, (unsigned long long)page[l], (unsigned long long)s->page[g][l]);
        check_info(w, s, g);
    }
}

/* ---- references ----------------------------------------------------------------------------- */

static uint32_t holders(const struct world *w, uint32_t g, pkv_page page, uint32_t *others)
{
    uint32_t n = 0;
    *others = 1; /* the prefix index */
    for (int i = 0; i < WORLD_SEQS; i++) {
        const struct world_seq *s = &w->seq[i];
        if (!s->live) continue;
        if (s->policy[g].journal > 0) ++*others;
        for (uint32_t l = 0; l < s->n_pages; l++)
            n += s->page[g][l] == page;
    }
    for (int i = 0; i < WORLD_HOST_PAGES; i++)
        if (w->host_page[i].page == page && w->host_page[i].group == g) n += w->host_page[i].refs;
    for (int i = 0; i < WORLD_BATCHES; i++)
        if (w->batch[i].reserved) *others += (uint32_t)w->batch[i].n_entries;
    return n;
}

static void check_refs(struct world *w, const struct world_seq *s)
{
    for (uint32_t g = 0; g < w->n_groups; g++)
        for (uint32_t l = 0; l < s->n_pages; l++) {
            if (s->page[g][l] == PKV_PAGE_NONE) continue;
            uint32_t others, refs = 0;
            const uint32_t n = holders(w, g, s->page[g][l], &others);
            WORLD_CHECK(w, pkv_page_refs(w->cache, g, s->page[g][l], &refs) == PKV_OK,
                        "group %u: a held page has no references", g);
            WORLD_CHECK(w, refs >= n && refs <= n + others,
                        "group %u page %u: %u references for %u", g, l, refs, n);
        }
}

/* ---- everything ----------------------------------------------------------------------------- */

/* Open pages in use: those of partial tails, each once however many forks share it, and between
 * reserve and commit those of batches. */
static void check_open(const struct world *w, uint64_t pages_open)
{
    uint64_t n = 0, more = 0;
    for (uint32_t g = 0; g < w->n_groups; g++)
        for (int i = 0; i < WORLD_SEQS; i++) {
            const struct world_seq *s = &w->seq[i];
            bool counts = s->live && s->open[g] != PKV_PAGE_NONE;
            for (int j = 0; j < i; j++)
                counts = counts && !(w->seq[j].live && w->seq[j].open[g] == s->open[g]);
            n += counts;
        }
    for (int i = 0; i < WORLD_BATCHES; i++)
        for (int e = 0; w->batch[i].reserved && e < w->batch[i].n_entries; e++)
            more += w->n_groups * (WORLD_STEP / 8 + 2);
    WORLD_CHECK(w, pages_open >= n && pages_open <= n + more, "%llu open pages, not %llu",
                (unsigned long long)pages_open, (unsigned long long)n);
}

static void check_stats(struct world *w)
{
    pkv_stats stats = {.struct_size = sizeof stats};
    WORLD_CHECK(w, pkv_cache_stats(w->cache, &stats) == PKV_OK, "stats");
    uint64_t live = 0, sequences = 0, tokens = 0, batches = 0, total = 0, used = 0, cached = 0;
    for (int i = 0; i < WORLD_SEQS; i++) {
        const struct world_seq *s = &w->seq[i];
        if (!s->live) continue;
        sequences++;
        tokens += s->length;
        for (uint32_t g = 0; g < w->n_groups; g++)
            for (uint32_t t = 0; t < s->length; t++)
                if (s->page[g][t / w->page_tokens] != PKV_PAGE_NONE)
                    live += w->group[g].info.token_bytes;
    }
    for (int i = 0; i < WORLD_BATCHES; i++)
        batches += w->batch[i].live;
    for (uint32_t g = 0; g < w->n_groups; g++) {
        pkv_group_stats group = {.struct_size = sizeof group};
        WORLD_CHECK(w, pkv_cache_group_stats(w->cache, g, &group) == PKV_OK, "group stats");
        WORLD_CHECK(w,
                    group.pages_total == group.pages_used + group.pages_cached + group.pages_free,
                    "pages of group %u", g);
        const uint32_t most = w->group_config[g].max_pages;
        WORLD_CHECK(w, most == 0 || group.pages_used + group.pages_cached <= most,
                    "group %u holds %llu pages of %u", g,
                    (unsigned long long)(group.pages_used + group.pages_cached), most);
        total += group.pages_total;
        used += group.pages_used;
        cached += group.pages_cached;
    }
    check_open(w, stats.pages_open);
    WORLD_CHECK(
        w, stats.sequences == sequences && stats.tokens == tokens && stats.batches == batches,
        "counts: %llu sequences, %llu tokens, %llu batches", (unsigned long long)stats.sequences,
        (unsigned long long)stats.tokens, (unsigned long long)stats.batches);
    WORLD_CHECK(w, stats.bytes_live == live, "bytes_live %llu instead of %llu",
                (unsigned long long)stats.bytes_live, (unsigned long long)live);
    WORLD_CHECK(w,
                stats.pages_total == total && stats.pages_used == used &&
                    stats.pages_cached == cached && stats.memory_limit == w->limit,
                "sums over groups");
    if (w->config.storage != PKV_STORAGE_EXTERNAL)
        WORLD_CHECK(w, stats.region_bytes + stats.metadata_bytes <= w->limit,
                    "%llu + %llu bytes under a limit of %llu",
                    (unsigned long long)stats.region_bytes,
                    (unsigned long long)stats.metadata_bytes, (unsigned long long)w->limit);
}

static void check_spaces(struct world *w)
{
    if (!w->config.prefix) return;
    for (uint32_t i = 0; i < WORLD_SPACES; i++) {
        char bytes[8];
        const pkv_namespace space = world_space(i, bytes);
        pkv_prefix_stats stats = {.struct_size = sizeof stats};
        const pkv_status status = pkv_prefix_get_stats(w->cache, &space, &stats);
        if (status == PKV_EINVAL) continue; /* never used */
        WORLD_CHECK(w, status == PKV_OK, "prefix stats: %s", pkv_status_name(status));
        WORLD_CHECK(w,
                    stats.tokens_hit <= stats.tokens_asked &&
                        stats.pages_published >= stats.pages_reclaimed,
                    "counters of a namespace");
        if (w->quota_bound[i] == 0) continue;
        WORLD_CHECK(w, stats.pages <= w->quota_bound[i],
                    "namespace %u has %llu pages, at most %llu", i, (unsigned long long)stats.pages,
                    (unsigned long long)w->quota_bound[i]);
    }
}

void world_check_all(struct world *w)
{
    const bool armed = w->armed;
    const uint64_t at = w->allocator.fail_at, from = w->allocator.fail_from;
    w->allocator.fail_at = w->allocator.fail_from = 0;
    char text[256];
    const pkv_status status = pkv_cache_verify(w->cache, text, sizeof text);
    /* Verify needs memory itself, and a small limit may leave none. */
    WORLD_CHECK(w, status == PKV_OK || status == PKV_ENOMEM, "verify: %s", text);
    for (int i = 0; i < WORLD_SEQS; i++) {
        if (!w->seq[i].live) continue;
        world_check_seq(w, &w->seq[i]);
        if (world_once(w, 3)) world_check_contents(w, &w->seq[i]); /* the dearest */
        check_refs(w, &w->seq[i]);
    }
    check_stats(w);
    check_spaces(w);
    w->armed = armed;
    w->allocator.fail_at = at;
    w->allocator.fail_from = from;
}

/* ---- what a step may drop ------------------------------------------------------------------- */

static bool is_protected(const struct world *w, const struct world_seq *s, uint32_t g, uint32_t l)
{
    const struct world_policy *p = &s->policy[g];
    const uint32_t end = (l + 1) * w->page_tokens;
    if (end > s->length) return true; /* the partial tail */
    if (l < p->sinks || world_pinned(s, w->page_tokens, l)) return true;
    return end > s->length - (p->window < s->length ? p->window : s->length);
}

void world_check_drops(struct world *w, const struct world_seq *s,
                       pkv_page before[WORLD_GROUPS][WORLD_PAGES], bool attached)
{
    for (uint32_t g = 0; g < w->n_groups; g++) {
        const struct world_policy *p = &s->policy[g];
        const uint32_t full = s->length / w->page_tokens;
        uint32_t had = 0, has = 0, dropped = 0, evictable = 0, youngest = 0;
        for (uint32_t l = 0; l < world_pages_for(w, s->length); l++) {
            const bool held = before[g][l] != PKV_PAGE_NONE;
            const bool holds = s->page[g][l] != PKV_PAGE_NONE;
            const bool left = world_left(w, g, l, s->length);
            WORLD_CHECK(w, held || !holds, "group %u: page %u came from nowhere", g, l);
            WORLD_CHECK(w, !holds || s->page[g][l] == before[g][l],
                        "group %u: page %u was exchanged", g, l);
            WORLD_CHECK(w, !holds || !left || world_pinned(s, w->page_tokens, l),
                        "group %u: page %u is out of the window and still held", g, l);
            if (l < full) {
                had += held;
                has += holds;
                if (holds && !is_protected(w, s, g, l)) evictable++;
            }
            if (!held || holds) continue;
            WORLD_CHECK(w, !world_pinned(s, w->page_tokens, l), "group %u: pinned page %u went", g,
                        l);
            if (left) continue;
            WORLD_CHECK(w,
                        p->kind != PKV_EVICT_NONE && p->kind != PKV_EVICT_TOPK &&
                            !is_protected(w, s, g, l),
                        "group %u: page %u of %u tokens was dropped", g, l, s->length);
            dropped++;
            youngest = l;
        }
        if (p->kind == PKV_EVICT_NONE || p->kind == PKV_EVICT_TOPK) continue;
        const bool oldest = p->kind == PKV_EVICT_WINDOW || p->kind == PKV_EVICT_SINK;
        WORLD_CHECK(w, dropped <= (had > p->budget ? had - p->budget : 0),
                    "group %u: %u pages dropped of %u, the budget is %u", g, dropped, had,
                    p->budget);
        if (attached && !oldest) continue; /* others wait for a commit */
        WORLD_CHECK(w, has <= p->budget || evictable == 0,
                    "group %u: %u full pages, the budget is %u, %u could go", g, has, p->budget,
                    evictable);
        for (uint32_t l = 0; oldest && l < youngest; l++)
            WORLD_CHECK(w, s->page[g][l] == PKV_PAGE_NONE || is_protected(w, s, g, l),
                        "group %u: page %u was dropped, the older %u was not", g, youngest, l);
    }
}

/* ---- what must be found --------------------------------------------------------------------- */

void world_check_published(struct world *w, const struct world_seq *s)
{
    if (!w->config.prefix || s->silent || s->dep != 0 || s->born != w->disturbed) return;
    if (w->quota_bound[s->space] != 0) return;
    char bytes[8];
    const pkv_namespace space = world_space(s->space, bytes);
    pkv_match match = {.struct_size = sizeof match};
    const uint32_t full = s->length / w->page_tokens * w->page_tokens;
    WORLD_CHECK(w, pkv_prefix_match(w->cache, &space, s->token, full, &match) == PKV_OK, "match");
    if (w->n_states != 0) return; /* what is found ends with a state: test_state_prefix.c */
    WORLD_CHECK(w, match.n_tokens == full, "%llu of %u published tokens are found",
                (unsigned long long)match.n_tokens, full);
}

/* ---- exports -------------------------------------------------------------------------------- */

static void check_csr(struct world *w, struct world_batch *b, uint32_t g)
{
    int32_t indptr[WORLD_SEQS + 1], last[WORLD_SEQS], indices[WORLD_SEQS * WORLD_PAGES];
    uint32_t n = WORLD_SEQS * WORLD_PAGES;
    WORLD_CHECK(w, pkv_export_csr(b->handle, g, indptr, indices, &n, last) == PKV_OK, "csr");
    uint32_t at = 0;
    for (int e = 0; e < b->n_entries; e++) {
        const struct world_seq *s = b->entry[e].seq;
        const uint32_t length = s->length + b->entry[e].n;
        WORLD_CHECK(w, indptr[e] == (int32_t)at, "indptr");
        for (uint32_t l = 0; l < s->n_pages; l++)
            if (s->page[g][l] != PKV_PAGE_NONE)
                WORLD_CHECK(w, indices[at++] == (int32_t)pkv_page_index(s->page[g][l]), "indices");
        WORLD_CHECK(w, last[e] == (int32_t)((length - 1) % w->page_tokens + 1), "last_page_len");
    }
    WORLD_CHECK(w, indptr[b->n_entries] == (int32_t)at && n == at, "indptr's end");
}

static void check_row(struct world *w, const struct world_seq *s, uint32_t g, const int32_t *row,
                      int32_t hole)
{
    for (uint32_t l = 0; l < WORLD_PAGES; l++) {
        const bool held = l < s->n_pages && s->page[g][l] != PKV_PAGE_NONE;
        const int32_t expect = held ? (int32_t)pkv_page_index(s->page[g][l]) : hole;
        WORLD_CHECK(w, row[l] == expect,
                    "group %u: block table of sequence %d, page %u: %d, not %d", g,
                    (int)(s - w->seq), l, row[l], expect);
    }
}

static void check_table(struct world *w, struct world_batch *b, uint32_t g)
{
    int32_t whole[WORLD_SEQS][WORLD_PAGES], before[WORLD_SEQS][WORLD_PAGES];
    uint32_t rows[WORLD_SEQS];
    bool written[WORLD_SEQS] = {false};
    for (int e = 0; e < b->n_entries; e++) {
        rows[e] = (uint32_t)(b->entry[e].seq - w->seq);
        written[rows[e]] = true;
    }
    memcpy(before, w->table[g], sizeof before);
    const pkv_block_table fresh = {.struct_size = sizeof fresh,
                                   .data = whole[0],
                                   .n_rows = WORLD_SEQS,
                                   .row_stride = WORLD_PAGES,
                                   .hole = -1};
    const pkv_block_table kept = {.struct_size = sizeof kept,
                                  .data = w->table[g][0],
                                  .n_rows = WORLD_SEQS,
                                  .row_stride = WORLD_PAGES,
                                  .rows = rows,
                                  .state = w->table_state[g],
                                  .hole = w->hole};
    WORLD_CHECK(w, pkv_export_block_table(b->handle, g, &fresh) == PKV_OK, "a fresh block table");
    WORLD_CHECK(w, pkv_export_block_table(b->handle, g, &kept) == PKV_OK, "a kept block table");
    for (int e = 0; e < b->n_entries; e++) {
        check_row(w, b->entry[e].seq, g, whole[e], -1);
        check_row(w, b->entry[e].seq, g, w->table[g][rows[e]], w->hole);
    }
    for (uint32_t i = 0; i < WORLD_SEQS; i++)
        WORLD_CHECK(w, written[i] || memcmp(before[i], w->table[g][i], sizeof before[i]) == 0,
                    "the row of a sequence that is not in the batch was written");
}

void world_check_exports(struct world *w, struct world_batch *b)
{
    for (uint32_t g = 0; g < w->n_groups; g++) {
        check_csr(w, b, g);
        check_table(w, b, g);
        int64_t slots[WORLD_SEQS * WORLD_STEP];
        uint32_t entries = 0, at = 0;
        uint64_t n = 0;
        WORLD_CHECK(w,
                    pkv_batch_size(b->handle, &entries, &n) == PKV_OK &&
                        entries == (uint32_t)b->n_entries,
                    "batch size");
        WORLD_CHECK(w, pkv_export_slot_mapping(b->handle, g, slots, n) == PKV_OK, "slots");
        for (int e = 0; e < b->n_entries; e++)
            for (uint32_t t = 0; t < b->entry[e].n; t++) {
                const struct world_seq *s = b->entry[e].seq;
                const uint32_t p = s->length + t;
                const pkv_page page = s->page[g][p / w->page_tokens];
                WORLD_CHECK(w,
                            slots[at++] ==
                                (int64_t)pkv_page_index(page) * w->page_tokens + p % w->page_tokens,
                            "slot mapping");
            }
        WORLD_CHECK(w, at == n, "new tokens");
    }
}
