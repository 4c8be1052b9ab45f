/* What a host does with a batch besides the step: entries taken out again, block tables whose rows
 * are its own. */
#include <check.h>
#include <string.h>

#include <pagedkv/pagedkv.h>
#include "suite.h"

enum { PAGE = 8, STRIDE = 8, ROWS = 6 };

static pkv_cache *cache;
static pkv_seq seqs[4];
static int32_t tokens[256];

/* Room for `pages` pages of 8 tokens. */
static void open_cache(uint32_t pages)
{
    const pkv_group_config group = {
        .n_layers = 1, .kv_heads = 1, .head_dim_k = 64, .max_pages = pages};
    pkv_config config;
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    config.groups = &group;
    config.n_groups = 1;
    config.page_tokens = PAGE;
    config.storage = PKV_STORAGE_NONE;
    ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_OK);
    for (int i = 0; i < 4; i++)
        ck_assert_int_eq(pkv_seq_create(cache, &seqs[i]), PKV_OK);
    for (int i = 0; i < 256; i++)
        tokens[i] = i * 3 + 1;
}

static void close_cache(void)
{
    char text[256];
    ck_assert_msg(pkv_cache_verify(cache, text, sizeof text) == PKV_OK, "%s", text);
    pkv_cache_destroy(cache);
}

static pkv_batch begin(void)
{
    pkv_batch batch;
    ck_assert_int_eq(pkv_batch_begin(cache, &batch), PKV_OK);
    return batch;
}

static void add(pkv_batch batch, int seq, const int32_t *ids, uint32_t n)
{
    ck_assert_int_eq(pkv_batch_add(batch, seqs[seq], ids, n), PKV_OK);
}

static uint64_t length(int seq)
{
    uint64_t n = 0;
    ck_assert_int_eq(pkv_seq_length(seqs[seq], &n), PKV_OK);
    return n;
}

static void size_is(pkv_batch batch, uint32_t n_entries, uint64_t n_tokens)
{
    uint32_t entries = 0;
    uint64_t rows = 0;
    ck_assert_int_eq(pkv_batch_size(batch, &entries, &rows), PKV_OK);
    ck_assert_uint_eq(entries, n_entries);
    ck_assert_uint_eq(rows, n_tokens);
}

static uint64_t matched(const int32_t *ids, uint64_t n)
{
    pkv_match match = {.struct_size = sizeof match};
    ck_assert_int_eq(pkv_prefix_match(cache, NULL, ids, n, &match), PKV_OK);
    return match.n_tokens;
}

/* ---- remove --------------------------------------------------------------------------------- */

/* What is left publishes its own tokens, not those of the entry that went. */
START_TEST(removed_entries_take_their_tokens_along)
{
    open_cache(64);
    pkv_batch batch = begin();
    add(batch, 0, tokens, 16);
    add(batch, 1, tokens + 16, 24);
    add(batch, 2, NULL, 5);
    add(batch, 3, tokens + 40, 32);
    ck_assert_int_eq(pkv_batch_remove(batch, 4), PKV_EINVAL);
    ck_assert_int_eq(pkv_batch_remove(batch, 1), PKV_OK);
    size_is(batch, 3, 53);
    ck_assert_int_eq(pkv_batch_remove(batch, 1), PKV_OK); /* without ids */
    size_is(batch, 2, 48);
    add(batch, 1, tokens + 80, 8); /* free again at once */
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_remove(batch, 0), PKV_ESTATE);
    int64_t slots[56];
    ck_assert_int_eq(pkv_export_slot_mapping(batch, 0, slots, 56), PKV_OK);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_remove(batch, 0), PKV_ESTALE);
    ck_assert_uint_eq(length(0), 16);
    ck_assert_uint_eq(length(1), 8);
    ck_assert_uint_eq(length(2), 0);
    ck_assert_uint_eq(length(3), 32);
    ck_assert_uint_eq(matched(tokens, 16), 16);
    ck_assert_uint_eq(matched(tokens + 40, 32), 32);
    ck_assert_uint_eq(matched(tokens + 80, 8), 8);
    ck_assert_uint_eq(matched(tokens + 16, 24), 0);
    close_cache();
}
END_TEST

START_TEST(a_failed_reserve_and_one_entry_less)
{
    open_cache(6);
    pkv_batch batch = begin(), other = begin();
    uint32_t missing = 0;
    add(batch, 0, tokens, 24);
    add(batch, 1, tokens + 24, 32);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_ENOPAGES);
    ck_assert_int_eq(pkv_batch_shortfall(batch, &missing, 1), PKV_OK);
    ck_assert_uint_eq(missing, 1);
    ck_assert_int_eq(pkv_batch_remove(batch, 0), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    add(other, 0, tokens, 16);
    ck_assert_int_eq(pkv_batch_reserve(other), PKV_OK);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_commit(other), PKV_OK);
    ck_assert_uint_eq(length(0), 16);
    ck_assert_uint_eq(length(1), 32);
    close_cache();
}
END_TEST

/* A fork's copy was planned by the failed reserve. */
START_TEST(an_empty_batch_ends_well)
{
    open_cache(3);
    pkv_batch batch = begin();
    pkv_seq child;
    add(batch, 0, NULL, 12);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
    ck_assert_int_eq(pkv_seq_fork(seqs[0], &child), PKV_OK);
    batch = begin();
    ck_assert_int_eq(pkv_batch_add(batch, child, NULL, 12), PKV_OK);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_ENOPAGES);
    ck_assert_int_eq(pkv_batch_remove(batch, 0), PKV_OK);
    size_is(batch, 0, 0);
    ck_assert_int_eq(pkv_seq_truncate(child, 8), PKV_OK); /* it is idle */
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
    close_cache();
}
END_TEST

/* The answer of pkv_admit_check_batch can be acted on: leave out whom it names, ask again. */
START_TEST(blocked_entries_are_left_out)
{
    open_cache(8);
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(pkv_admit(seqs[i], 6 * PAGE), PKV_OK);
    uint64_t steps = 0;
    for (bool ended[3] = {false}; !(ended[0] && ended[1] && ended[2]); steps++) {
        pkv_batch batch = begin();
        uint32_t entries = 0, blocked = 7;
        for (int i = 0; i < 3; i++) {
            if (ended[i]) continue;
            add(batch, i, NULL, PAGE);
            entries++;
        }
        pkv_status status;
        while ((status = pkv_admit_check_batch(batch, &blocked)) == PKV_EUNSAFE) {
            ck_assert_uint_lt(blocked, entries);
            ck_assert_int_eq(pkv_batch_remove(batch, blocked), PKV_OK);
            entries--;
        }
        ck_assert_int_eq(status, PKV_OK);
        ck_assert_uint_gt(entries, 0);
        ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
        ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
        for (int i = 0; i < 3; i++)
            if (!ended[i] && length(i) == 6 * PAGE) {
                ended[i] = true;
                ck_assert_int_eq(pkv_seq_destroy(seqs[i]), PKV_OK);
            }
    }
    ck_assert_uint_gt(steps, 6); /* not all at once */
    close_cache();
}
END_TEST

/* ---- block tables --------------------------------------------------------------------------- */

static int32_t data[ROWS * STRIDE];
static pkv_block_row state[ROWS];

static void export(pkv_batch batch, const uint32_t *rows, int32_t hole)
{
    const pkv_block_table to = {.struct_size = sizeof to,
                                .data = data,
                                .n_rows = ROWS,
                                .row_stride = STRIDE,
                                .rows = rows,
                                .state = state,
                                .hole = hole};
    ck_assert_int_eq(pkv_export_block_table(batch, 0, &to), PKV_OK);
}

/* Does a row hold exactly the pages of this sequence? */
static void row_is(uint32_t row, int seq, uint32_t n_pages, int32_t hole)
{
    pkv_page pages[STRIDE];
    ck_assert_int_eq(pkv_seq_pages(seqs[seq], 0, 0, n_pages, pages), PKV_OK);
    for (uint32_t i = 0; i < STRIDE; i++) {
        const bool held = i < n_pages && pages[i] != PKV_PAGE_NONE;
        ck_assert_int_eq(data[row * STRIDE + i], held ? (int32_t)pkv_page_index(pages[i]) : hole);
    }
}

static pkv_batch reserved(int first, int n, uint32_t n_tokens)
{
    pkv_batch batch = begin();
    for (int i = first; i < first + n; i++)
        add(batch, i, NULL, n_tokens);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    return batch;
}

/* The first of three sequences ends; the others' entries move up. */
START_TEST(an_entry_that_leaves_spoils_no_row)
{
    open_cache(64);
    memset(state, 0, sizeof state);
    pkv_batch batch = reserved(0, 3, 20);
    export(batch, NULL, -1);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
    batch = reserved(1, 2, 9);
    export(batch, NULL, -1);
    row_is(0, 1, 4, -1);
    row_is(1, 2, 4, -1);
    row_is(2, 2, 3, -1); /* nobody's row: as it was */
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
    batch = reserved(0, 3, 1); /* and back */
    export(batch, NULL, -1);
    for (uint32_t i = 0; i < 3; i++)
        row_is(i, (int)i, i == 0 ? 3 : 4, -1);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
    close_cache();
}
END_TEST

/* Rows of the caller's choice, his value for holes; what did not change is not written. */
START_TEST(rows_and_holes_are_the_callers)
{
    const uint32_t rows[3] = {5, 0, 3}, later[2] = {0, 3};
    open_cache(64);
    memset(state, 0, sizeof state);
    for (int i = 0; i < ROWS * STRIDE; i++)
        data[i] = -77;
    pkv_batch batch = reserved(0, 3, 20);
    export(batch, rows, 0);
    row_is(5, 0, 3, 0);
    row_is(0, 1, 3, 0);
    row_is(3, 2, 3, 0);
    for (int i = STRIDE; i < 3 * STRIDE; i++)
        ck_assert_int_eq(data[i], -77);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);

    batch = reserved(1, 2, 5);            /* sequence 1 and 2 grow to 25 tokens: a fourth page */
    data[0] = data[3 * STRIDE + 7] = -88; /* would be seen if whole rows were written */
    export(batch, later, 0);
    ck_assert_int_eq(data[0], -88);
    ck_assert_int_eq(data[3 * STRIDE + 7], -88);
    row_is(5, 0, 3, 0);
    pkv_page page;
    ck_assert_int_eq(pkv_seq_pages(seqs[1], 0, 3, 1, &page), PKV_OK);
    ck_assert_int_eq(data[3], (int32_t)pkv_page_index(page));

    export(batch, later, -1); /* another hole: whole rows */
    row_is(0, 1, 4, -1);
    row_is(3, 2, 4, -1);
    state[0] = (pkv_block_row){0};
    data[0] = -88;
    export(batch, later, -1); /* the caller changed row 0 and says so */
    row_is(0, 1, 4, -1);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
    close_cache();
}
END_TEST

/* A shorter sequence, a fork in another row, and the same row of a second table. */
START_TEST(rows_follow_truncation_and_forks)
{
    const uint32_t one[1] = {1}, two[1] = {2};
    open_cache(64);
    memset(state, 0, sizeof state);
    pkv_batch batch = reserved(0, 1, 40);
    export(batch, one, -1);
    row_is(1, 0, 5, -1);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
    ck_assert_int_eq(pkv_seq_destroy(seqs[1]), PKV_OK);
    ck_assert_int_eq(pkv_seq_fork(seqs[0], &seqs[1]), PKV_OK);
    ck_assert_int_eq(pkv_seq_truncate(seqs[0], 12), PKV_OK);
    batch = reserved(1, 1, 1);
    export(batch, two, -1);
    row_is(2, 1, 6, -1);
    ck_assert_int_eq(pkv_batch_abort(batch), PKV_OK);
    batch = reserved(0, 1, 1); /* copies its tail */
    export(batch, one, -1);
    row_is(1, 0, 2, -1);
    memset(data, 0, sizeof data);
    memset(state, 0, sizeof state);
    export(batch, two, -1); /* elsewhere: whole */
    row_is(2, 0, 2, -1);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
    close_cache();
}
END_TEST

/* ---- events --------------------------------------------------------------------------------- */

/* The last event of a kind so far; there is one. */
static pkv_event last_event(const pkv_event *events, uint32_t n, int32_t kind)
{
    for (uint32_t i = n; i-- > 0;)
        if (events[i].kind == kind) return events[i];
    ck_abort_msg("no event of kind %d", (int)kind);
    return (pkv_event){0};
}

static pkv_page page_of(int seq, uint32_t group, uint32_t logical)
{
    pkv_page page;
    ck_assert_int_eq(pkv_seq_pages(seqs[seq], group, logical, 1, &page), PKV_OK);
    return page;
}

#define HAS(kind, group_, page_, seq_, aux_)                                                       \
    do {                                                                                           \
        const pkv_event event_ = last_event(events, n, kind);                                      \
        ck_assert_uint_eq(event_.group, group_);                                                   \
        ck_assert_uint_eq(event_.page, page_);                                                     \
        ck_assert_uint_eq(event_.seq, seq_);                                                       \
        ck_assert_uint_eq(event_.aux, aux_);                                                       \
    } while (0)

static pkv_event events[512];

static uint32_t take(void)
{
    uint32_t n = 0;
    ck_assert_int_eq(pkv_cache_events(cache, events, 512, &n), PKV_OK);
    return n;
}

static void step(int seq, const int32_t *ids, uint32_t n)
{
    pkv_batch batch = begin();
    add(batch, seq, ids, n);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);
}

/* Every kind says about page, sequence and aux what stats.h promises. */
START_TEST(events_say_what_they_are_about)
{
    const pkv_group_config groups[2] = {
        {.n_layers = 1, .kv_heads = 1, .head_dim_k = 64},
        {.n_layers = 1, .kv_heads = 1, .head_dim_k = 64, .window = PAGE}};
    pkv_config config;
    ck_assert_int_eq(pkv_config_init(&config, sizeof config), PKV_OK);
    config.groups = groups;
    config.n_groups = 2;
    config.page_tokens = PAGE;
    config.storage = PKV_STORAGE_NONE;
    config.event_capacity = 512;
    ck_assert_int_eq(pkv_cache_create(&config, &cache), PKV_OK);
    ck_assert_int_eq(pkv_seq_create(cache, &seqs[0]), PKV_OK);
    for (int i = 0; i < 256; i++)
        tokens[i] = i;
    step(0, tokens, 20);
    uint32_t n = take();
    HAS(PKV_EVENT_REGION_MAP, 1, PKV_PAGE_NONE, 0, 0);
    HAS(PKV_EVENT_PAGE_ALLOC, 1, page_of(0, 1, 2), 0, 0);
    HAS(PKV_EVENT_PAGE_SEAL, 1, last_event(events, n, PKV_EVENT_PAGE_SEAL).page, seqs[0].id, 1);
    ck_assert_uint_ne(last_event(events, n, PKV_EVENT_PAGE_PUBLISH).page, PKV_PAGE_NONE);
    HAS(PKV_EVENT_PAGE_WINDOW, 1, last_event(events, n, PKV_EVENT_PAGE_WINDOW).page, seqs[0].id, 0);

    const pkv_page source = page_of(0, 0, 2);
    ck_assert_int_eq(pkv_seq_fork(seqs[0], &seqs[1]), PKV_OK);
    n = take();
    const pkv_event share = last_event(events, n, PKV_EVENT_PAGE_SHARE);
    ck_assert_uint_eq(share.seq | share.aux, 0);
    ck_assert_uint_eq(share.page, page_of(0, share.group, 2));
    pkv_batch batch = begin();
    add(batch, 1, NULL, 1);
    ck_assert_int_eq(pkv_batch_reserve(batch), PKV_OK);
    n = take();
    for (uint32_t i = 0; i < n; i++)
        if (events[i].kind == PKV_EVENT_PAGE_COPY && events[i].group == 0) {
            ck_assert_uint_eq(events[i].page, page_of(1, 0, 2));
            ck_assert_uint_eq(events[i].seq, seqs[1].id);
            ck_assert_uint_eq(events[i].aux, pkv_page_index(source));
        }
    HAS(PKV_EVENT_PAGE_COPY, 1, page_of(1, 1, 2), seqs[1].id, pkv_page_index(page_of(0, 1, 2)));
    ck_assert_int_eq(pkv_batch_commit(batch), PKV_OK);

    pkv_evict_config sink;
    ck_assert_int_eq(pkv_evict_config_init(&sink, sizeof sink, PKV_EVICT_SINK, 2 * PAGE), PKV_OK);
    ck_assert_int_eq(pkv_seq_set_evict(seqs[0], 0, &sink), PKV_OK);
    const pkv_page second = page_of(0, 0, 1);
    step(0, NULL, 4);
    n = take();
    HAS(PKV_EVENT_PAGE_EVICT, 0, second, seqs[0].id, 1);

    const pkv_page open = page_of(1, 0, 2);
    ck_assert_int_eq(pkv_seq_truncate(seqs[1], 2 * PAGE), PKV_OK);
    n = take();
    ck_assert_uint_eq(last_event(events, n, PKV_EVENT_PAGE_FREE).aux, 0);
    for (uint32_t i = 0; i < n; i++)
        if (events[i].group == 0) ck_assert_uint_eq(events[i].page, open);

    ck_assert_int_eq(pkv_seq_destroy(seqs[0]), PKV_OK);
    ck_assert_int_eq(pkv_seq_destroy(seqs[1]), PKV_OK);
    for (uint32_t g = 0; g < 2; g++)
        ck_assert_int_eq(pkv_prefix_reclaim(cache, g, 100, NULL), PKV_OK);
    n = take();
    const pkv_event reclaim = last_event(events, n, PKV_EVENT_PAGE_RECLAIM);
    ck_assert_uint_eq(reclaim.seq | reclaim.aux, 0);
    ck_assert_uint_ne(reclaim.page, PKV_PAGE_NONE);
    ck_assert_int_eq(pkv_cache_set_limit(cache, (uint64_t)64 << 20), PKV_OK);
    ck_assert_int_eq(pkv_cache_trim(cache, NULL), PKV_OK);
    n = take();
    HAS(PKV_EVENT_LIMIT, 0, PKV_PAGE_NONE, 0, (uint64_t)64 << 20);
    const pkv_event unmap = last_event(events, n, PKV_EVENT_REGION_UNMAP);
    ck_assert_uint_eq(unmap.page | unmap.seq | unmap.aux, 0);
    close_cache();
}
END_TEST

Suite *pkvt_suite(void)
{
    Suite *suite = suite_create("batch");
    TCase *tests = tcase_create("batch");
    tcase_add_test(tests, removed_entries_take_their_tokens_along);
    tcase_add_test(tests, a_failed_reserve_and_one_entry_less);
    tcase_add_test(tests, an_empty_batch_ends_well);
    tcase_add_test(tests, blocked_entries_are_left_out);
    tcase_add_test(tests, an_entry_that_leaves_spoils_no_row);
    tcase_add_test(tests, rows_and_holes_are_the_callers);
    tcase_add_test(tests, rows_follow_truncation_and_forks);
    tcase_add_test(tests, events_say_what_they_are_about);
    suite_add_tcase(suite, tests);
    return suite;
}
