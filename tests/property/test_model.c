/* Random operations on a cache and on the naive model beside it: every status, every table, every
 * token slot and every export must agree.
 *
 *     test_model [operations [storage]]      storage: none, host or both (default)
 *     PKV_OPS=100000000 test_model           the long run
 *     PKV_SEED=… test_model                  repeats a run */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <pagedkv/pagedkv.h>

#include "cache/cache_internal.h"
#include "model.h"
#include "random.h"

#define HOST_REFS 8
#define MOST_NEW 40 /* tokens of an entry */
#define MODEL_STRIDE (MODEL_MAX_PAGES + 2)

/* A block table that incremental exports keep. */
struct model_rows {
    int32_t data[MODEL_SEQS * MODEL_STRIDE];
    pkv_block_row state[MODEL_SEQS];
};

struct run {
    struct model model;
    pkv_cache *cache;
    pkv_storage storage;
    uint64_t random, seed;
    uint64_t step;
    uint64_t next_token;
    /* NONE: what a device would hold, by page index and slot. HOST: what each page should hold. */
    uint64_t *shadow[MODEL_GROUPS];
    /* Pages the host holds references of. */
    struct {
        struct model_page *page;
        int group;
    } host[HOST_REFS];
    struct model_rows tables[MODEL_GROUPS][2];
    pkv_seq dead_seq;
    pkv_batch dead_batch;
    const char *op;
};

#define CHECK(run, condition, ...)                                                                 \
    do {                                                                                           \
        if (!(condition)) fail(run, __LINE__, #condition, __VA_ARGS__);                            \
    } while (0)

static void fail(struct run *run, int line, const char *condition, const char *format, ...)
    __attribute__((format(printf, 4, 5), noreturn));

static void fail(struct run *run, int line, const char *condition, const char *format, ...)
{
    char text[256];
    pkv_cache_last_error(run->cache, text, sizeof text);
    fprintf(stderr,
            "test_model.c:%d: %s: step %" PRIu64 " (seed %" PRIu64 ", storage %d): %s: ", line,
            run->op, run->step, run->seed, run->storage, condition);
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\nlast error: %s\n", text);
    exit(1);
}

static uint32_t below(struct run *run, uint32_t n)
{
    return pkvt_below(&run->random, n);
}

/* ---- what token slots hold ------------------------------------------------------------------ */

static uint64_t *slot_of(struct run *run, int group, pkv_page page, uint32_t slot)
{
    if (run->storage == PKV_STORAGE_NONE)
        return &run->shadow[group][(size_t)pkv_page_index(page) * MODEL_PAGE_TOKENS + slot];
    char *bytes = pkvi_pool_address(&run->cache->groups[group].pool, pkv_page_index(page));
    return (uint64_t *)(void *)bytes + slot;
}

/* ---- comparing ------------------------------------------------------------------------------ */

static void compare_pages(struct run *run, struct model_seq *seq, int g)
{
    pkv_page pages[MODEL_MAX_PAGES + 1];
    pkv_status status = pkv_seq_pages(seq->handle, (uint32_t)g, 0, seq->n_pages, pages);
    CHECK(run, status == PKV_OK, "pkv_seq_pages: %s", pkv_status_name(status));
    status = pkv_seq_pages(seq->handle, (uint32_t)g, 0, seq->n_pages + 1, pages);
    CHECK(run, status == PKV_EINVAL, "the table is longer than %u", seq->n_pages);
    for (uint32_t l = 0; l < seq->n_pages; l++) {
        struct model_page *page = seq->page[g][l];
        CHECK(run, (page == NULL) == (pages[l] == PKV_PAGE_NONE), "group %d page %u", g, l);
        if (page == NULL) continue;
        if (page->id == PKV_PAGE_NONE) {
            for (int i = 0; i < MODEL_POOL; i++)
                CHECK(run, run->model.pool[g][i].refs == 0 || run->model.pool[g][i].id != pages[l],
                      "group %d: page %#" PRIx64 " was handed out twice", g, pages[l]);
            page->id = pages[l];
        }
        CHECK(run, page->id == pages[l], "group %d page %u: %#" PRIx64 " instead of %#" PRIx64, g,
              l, pages[l], page->id);
        for (uint32_t s = 0; s < MODEL_PAGE_TOKENS; s++) {
            const uint32_t t = l * MODEL_PAGE_TOKENS + s;
            if (t >= seq->length) break;
            CHECK(run, *slot_of(run, g, pages[l], s) == seq->token[t], "group %d token %u is lost",
                  g, t);
        }
    }
}

static void compare(struct run *run, struct model_seq *seq)
{
    uint64_t length;
    CHECK(run, pkv_seq_length(seq->handle, &length) == PKV_OK, "length");
    CHECK(run, length == seq->length, "%" PRIu64 " instead of %u", length, seq->length);
    for (int g = 0; g < MODEL_GROUPS; g++)
        compare_pages(run, seq, g);
}

static void compare_info(struct run *run, const struct model_seq *seq)
{
    for (int g = 0; g < MODEL_GROUPS; g++) {
        uint32_t pages = 0, tokens = 0, shared = 0;
        for (uint32_t l = 0; l < seq->n_pages; l++) {
            if (seq->page[g][l] == NULL) continue;
            pages++;
            shared += seq->page[g][l]->refs > 1;
            for (uint32_t s = 0; s < MODEL_PAGE_TOKENS; s++)
                tokens += l * MODEL_PAGE_TOKENS + s < seq->length;
        }
        pkv_seq_info info = {.struct_size = sizeof info};
        CHECK(run, pkv_seq_get_info(seq->handle, (uint32_t)g, &info) == PKV_OK, "info");
        CHECK(run, info.length == seq->length && info.resident_pages == pages, "%u pages", pages);
        CHECK(run, info.resident_tokens == tokens, "%" PRIu64 " instead of %u",
              info.resident_tokens, tokens);
        CHECK(run, info.shared_pages == shared, "%u instead of %u", info.shared_pages, shared);
        CHECK(run, info.dropped_pages == seq->n_pages - pages, "%u", info.dropped_pages);
        CHECK(run, info.in_batch == (seq->batch >= 0), "%u", info.in_batch);
    }
}

static void compare_all(struct run *run)
{
    char text[256];
    const pkv_status status = pkv_cache_verify(run->cache, text, sizeof text);
    CHECK(run, status == PKV_OK, "verify: %s", text);
    for (int s = 0; s < MODEL_SEQS; s++)
        if (run->model.seq[s].live) {
            compare(run, &run->model.seq[s]);
            compare_info(run, &run->model.seq[s]);
        }
    for (int g = 0; g < MODEL_GROUPS; g++) {
        struct pkvi_pool_counts counts;
        pkvi_pool_counts(&run->cache->groups[g].pool, &counts);
        CHECK(run, counts.used == run->model.used[g], "group %d: %" PRIu64 " pages instead of %u",
              g, counts.used, run->model.used[g]);
        for (int i = 0; i < MODEL_POOL; i++) {
            const struct model_page *page = &run->model.pool[g][i];
            if (page->refs == 0 || page->id == PKV_PAGE_NONE) continue;
            const uint32_t refs =
                pkvi_pool_refs(&run->cache->groups[g].pool, pkv_page_index(page->id));
            CHECK(run, (int)refs == page->refs, "page %d: %u references instead of %d", i, refs,
                  page->refs);
        }
    }
}

/* ---- picking -------------------------------------------------------------------------------- */

static struct model_seq *any_seq(struct run *run)
{
    const uint32_t first = below(run, MODEL_SEQS);
    for (uint32_t i = 0; i < MODEL_SEQS; i++) {
        struct model_seq *seq = &run->model.seq[(first + i) % MODEL_SEQS];
        if (seq->live) return seq;
    }
    return NULL;
}

static struct model_seq *free_seq(struct run *run)
{
    for (int i = 0; i < MODEL_SEQS; i++)
        if (!run->model.seq[i].live) return &run->model.seq[i];
    return NULL;
}

static struct model_batch *any_batch(struct run *run)
{
    const uint32_t first = below(run, MODEL_BATCHES);
    for (uint32_t i = 0; i < MODEL_BATCHES; i++) {
        struct model_batch *batch = &run->model.batch[(first + i) % MODEL_BATCHES];
        if (batch->live) return batch;
    }
    return NULL;
}

/* ---- operations on sequences ---------------------------------------------------------------- */

static void op_create(struct run *run)
{
    struct model_seq *seq = free_seq(run);
    pkv_seq handle = {NULL, 77};
    const pkv_status status = pkv_seq_create(run->cache, &handle);
    if (seq == NULL) {
        CHECK(run, status == PKV_ERANGE && handle.id == 77, "%s", pkv_status_name(status));
        return;
    }
    CHECK(run, status == PKV_OK, "%s", pkv_status_name(status));
    memset(seq, 0, sizeof *seq);
    seq->live = true;
    seq->batch = -1;
    seq->handle = handle;
    compare(run, seq);
}

static void op_destroy(struct run *run)
{
    struct model_seq *seq = any_seq(run);
    if (seq == NULL) return;
    const pkv_status status = pkv_seq_destroy(seq->handle);
    if (seq->batch >= 0) {
        CHECK(run, status == PKV_EBUSY, "%s", pkv_status_name(status));
        return;
    }
    CHECK(run, status == PKV_OK, "%s", pkv_status_name(status));
    run->dead_seq = seq->handle;
    model_destroy(&run->model, seq);
}

static void op_fork(struct run *run)
{
    struct model_seq *parent = any_seq(run);
    if (parent == NULL) return;
    struct model_seq *child = free_seq(run);
    pkv_seq handle = {NULL, 77};
    const pkv_status status = pkv_seq_fork(parent->handle, &handle);
    if (parent->batch >= 0) {
        CHECK(run, status == PKV_EBUSY && handle.id == 77, "%s", pkv_status_name(status));
        return;
    }
    if (child == NULL) {
        CHECK(run, status == PKV_ERANGE && handle.id == 77, "%s", pkv_status_name(status));
        return;
    }
    CHECK(run, status == PKV_OK, "%s", pkv_status_name(status));
    child->handle = handle;
    model_fork(&run->model, parent, child);
    compare(run, child);
    compare(run, parent);
}

static void op_truncate(struct run *run)
{
    struct model_seq *seq = any_seq(run);
    if (seq == NULL) return;
    uint32_t n = below(run, 4) == 0
                     ? below(run, seq->length + 3)
                     : seq->length - below(run, seq->length < 9 ? seq->length + 1 : 9);
    const pkv_status status = pkv_seq_truncate(seq->handle, n);
    const pkv_status expected = seq->batch >= 0 ? PKV_EBUSY : model_truncate_status(seq, n);
    CHECK(run, status == expected, "to %u of %u: %s instead of %s", n, seq->length,
          pkv_status_name(status), pkv_status_name(expected));
    if (status != PKV_OK) return;
    model_truncate(&run->model, seq, n);
    compare(run, seq);
}

static void op_pin(struct run *run)
{
    struct model_seq *seq = any_seq(run);
    if (seq == NULL || seq->n_pins == MODEL_PINS) return;
    const uint32_t begin = below(run, seq->length + 20);
    const uint32_t end = begin + below(run, 30);
    const pkv_status status = pkv_seq_pin(seq->handle, begin, end);
    const pkv_status expected = seq->batch >= 0 ? PKV_EBUSY : begin == end ? PKV_EINVAL : PKV_OK;
    CHECK(run, status == expected, "%s", pkv_status_name(status));
    if (status != PKV_OK) return;
    seq->pin[seq->n_pins].begin = begin;
    seq->pin[seq->n_pins++].end = end;
}

static void op_unpin(struct run *run)
{
    struct model_seq *seq = any_seq(run);
    if (seq == NULL || seq->n_pins == 0) return;
    const uint32_t at = below(run, seq->n_pins);
    const uint32_t begin = seq->pin[at].begin;
    const uint32_t end = seq->pin[at].end;
    const pkv_status status = pkv_seq_unpin(seq->handle, begin, end);
    if (seq->batch >= 0) {
        CHECK(run, status == PKV_EBUSY, "%s", pkv_status_name(status));
        return;
    }
    CHECK(run, status == PKV_OK, "%s", pkv_status_name(status));
    seq->pin[at] = seq->pin[--seq->n_pins];
    model_release(&run->model, seq, begin / MODEL_PAGE_TOKENS, model_pages(end));
    compare(run, seq);
    CHECK(run, pkv_seq_unpin(seq->handle, 5000, 5001) == PKV_EINVAL,
          "unpinned what was not pinned");
}

/* What an eviction policy does. */
static void op_drop(struct run *run)
{
    struct model_seq *seq = any_seq(run);
    if (seq == NULL || seq->batch >= 0 || seq->n_pages == 0) return;
    const int g = (int)below(run, MODEL_GROUPS);
    const uint32_t l = below(run, seq->n_pages + 1);
    struct pkvi_seq *own = pkvi_slots_get(&run->cache->sequences, seq->handle.id);
    const pkv_status status = pkvi_seq_drop(own, (uint32_t)g, l);
    pkv_status expected = PKV_OK;
    if ((l + 1) * MODEL_PAGE_TOKENS > seq->length)
        expected = PKV_EINVAL;
    else if (seq->page[g][l] == NULL)
        expected = PKV_EDROPPED;
    else if (model_pinned(seq, l))
        expected = PKV_EBUSY;
    CHECK(run, status == expected, "page %u: %s instead of %s", l, pkv_status_name(status),
          pkv_status_name(expected));
    if (status != PKV_OK) return;
    model_unref(&run->model, g, seq->page[g][l]);
    seq->page[g][l] = NULL;
    compare(run, seq);
}

/* The host takes, or gives back, a reference of its own: writers must then copy. */
static void op_host_ref(struct run *run)
{
    const uint32_t i = below(run, HOST_REFS);
    if (run->host[i].page != NULL) {
        const int g = run->host[i].group;
        const pkv_status status =
            pkv_page_unref(run->cache, (uint32_t)g, 1, &run->host[i].page->id);
        CHECK(run, status == PKV_OK, "%s", pkv_status_name(status));
        model_unref(&run->model, g, run->host[i].page);
        run->host[i].page = NULL;
        return;
    }
    struct model_seq *seq = any_seq(run);
    if (seq == NULL || seq->batch >= 0 || seq->n_pages == 0) return;
    const int g = (int)below(run, MODEL_GROUPS);
    struct model_page *page = seq->page[g][seq->n_pages - 1 - below(run, seq->n_pages) / 8];
    if (page == NULL) return;
    const pkv_status status = pkv_page_ref(run->cache, (uint32_t)g, 1, &page->id);
    CHECK(run, status == PKV_OK, "%s", pkv_status_name(status));
    model_ref(page);
    run->host[i].page = page;
    run->host[i].group = g;
}

/* ---- operations on batches ------------------------------------------------------------------ */

static void op_begin(struct run *run)
{
    struct model_batch *batch = NULL;
    for (int i = 0; i < MODEL_BATCHES && batch == NULL; i++)
        if (!run->model.batch[i].live) batch = &run->model.batch[i];
    pkv_batch handle = {NULL, 77};
    const pkv_status status = pkv_batch_begin(run->cache, &handle);
    if (batch == NULL) {
        CHECK(run, status == PKV_ERANGE && handle.id == 77, "%s", pkv_status_name(status));
        return;
    }
    CHECK(run, status == PKV_OK, "%s", pkv_status_name(status));
    batch->live = true;
    batch->handle = handle;
}

static void op_add(struct run *run)
{
    struct model_batch *batch = any_batch(run);
    struct model_seq *seq = any_seq(run);
    if (batch == NULL || seq == NULL) return;
    const int number = (int)(batch - run->model.batch);
    uint32_t n = below(run, 3) == 0 ? 1 + below(run, MOST_NEW) : 1 + below(run, 3);
    if (seq->length + n > MODEL_MAX_TOKENS) n = 0;
    const pkv_status status = pkv_batch_add(batch->handle, seq->handle, NULL, n);
    pkv_status expected = PKV_OK;
    if (batch->reserved)
        expected = PKV_ESTATE;
    else if (n == 0 || seq->batch == number)
        expected = PKV_EINVAL;
    else if (seq->batch >= 0)
        expected = PKV_EBUSY;
    CHECK(run, status == expected, "%s instead of %s", pkv_status_name(status),
          pkv_status_name(expected));
    if (status != PKV_OK) return;
    const int e = batch->n_entries++;
    batch->seq[e] = seq;
    batch->n_tokens[e] = n;
    for (uint32_t i = 0; i < n; i++)
        batch->token[e][i] = ++run->next_token;
    seq->batch = number;
}

static void op_remove(struct run *run)
{
    struct model_batch *batch = any_batch(run);
    if (batch == NULL) return;
    const uint32_t e = below(run, (uint32_t)batch->n_entries + 1);
    const pkv_status status = pkv_batch_remove(batch->handle, e);
    const pkv_status expected = batch->reserved              ? PKV_ESTATE
                                : (int)e >= batch->n_entries ? PKV_EINVAL
                                                             : PKV_OK;
    CHECK(run, status == expected, "%s instead of %s", pkv_status_name(status),
          pkv_status_name(expected));
    if (status != PKV_OK) return;
    batch->seq[e]->batch = -1;
    batch->n_entries--;
    for (int i = (int)e; i < batch->n_entries; i++) {
        batch->seq[i] = batch->seq[i + 1];
        batch->n_tokens[i] = batch->n_tokens[i + 1];
        memcpy(batch->token[i], batch->token[i + 1], sizeof batch->token[i]);
    }
}

static void check_copies(struct run *run, struct model_batch *batch)
{
    pkv_copy copies[MODEL_SEQS * MODEL_GROUPS];
    uint32_t n = 12345;
    const pkv_status status =
        pkv_batch_copies(batch->handle, copies, MODEL_SEQS * MODEL_GROUPS, &n);
    CHECK(run, status == PKV_OK && (int)n == batch->n_copies, "%u copies instead of %d", n,
          batch->n_copies);
    for (uint32_t i = 0; i < n; i++) {
        const struct model_copy *copy = &batch->copy[i];
        CHECK(run,
              (int)copies[i].group == copy->group && copies[i].n_tokens == copy->n_tokens &&
                  copies[i].src == copy->src->id && copies[i].dst == copy->dst->id,
              "copy %u", i);
        if (run->storage != PKV_STORAGE_NONE) continue;
        for (uint32_t s = 0; s < copies[i].n_tokens; s++)
            *slot_of(run, copy->group, copies[i].dst, s) =
                *slot_of(run, copy->group, copies[i].src, s);
    }
}

/* The host's step: writes the new tokens where the slot mapping says. */
static void write_tokens(struct run *run, const struct model_batch *batch, int g)
{
    uint64_t n = 0;
    for (int e = 0; e < batch->n_entries; e++)
        n += batch->n_tokens[e];
    int64_t slots[MODEL_SEQS * (MOST_NEW + 1)];
    const pkv_status status = pkv_export_slot_mapping(batch->handle, (uint32_t)g, slots, n);
    CHECK(run, status == PKV_OK, "%s", pkv_status_name(status));
    uint64_t at = 0;
    for (int e = 0; e < batch->n_entries; e++)
        for (uint32_t i = 0; i < batch->n_tokens[e]; i++, at++) {
            const uint32_t t = batch->seq[e]->length + i;
            const pkv_page page = batch->seq[e]->page[g][t / MODEL_PAGE_TOKENS]->id;
            CHECK(run,
                  slots[at] ==
                      (int64_t)pkv_page_index(page) * MODEL_PAGE_TOKENS + t % MODEL_PAGE_TOKENS,
                  "slot mapping of entry %d token %u", e, i);
            *slot_of(run, g, page, t % MODEL_PAGE_TOKENS) = batch->token[e][i];
        }
}

static void check_csr(struct run *run, const struct model_batch *batch, int g)
{
    int32_t indptr[MODEL_SEQS + 1], last[MODEL_SEQS];
    int32_t indices[MODEL_SEQS * MODEL_MAX_PAGES];
    uint32_t n = 0;
    pkv_status status = pkv_export_csr(batch->handle, (uint32_t)g, NULL, NULL, &n, NULL);
    CHECK(run, status == (n != 0 ? PKV_ERANGE : PKV_EINVAL), "%s", pkv_status_name(status));
    status = pkv_export_csr(batch->handle, (uint32_t)g, indptr, indices, &n, last);
    CHECK(run, status == PKV_OK, "%s", pkv_status_name(status));
    uint32_t at = 0;
    for (int e = 0; e < batch->n_entries; e++) {
        const struct model_seq *seq = batch->seq[e];
        CHECK(run, indptr[e] == (int32_t)at, "indptr %d", e);
        for (uint32_t l = 0; l < seq->n_pages; l++)
            if (seq->page[g][l] != NULL) {
                CHECK(run, indices[at] == (int32_t)pkv_page_index(seq->page[g][l]->id),
                      "entry %d page %u", e, l);
                at++;
            }
        const uint32_t tokens = seq->length + batch->n_tokens[e];
        CHECK(run, last[e] == (int32_t)(tokens - (model_pages(tokens) - 1) * MODEL_PAGE_TOKENS),
              "last_page_len of entry %d", e);
    }
    CHECK(run, at == n && indptr[batch->n_entries] == (int32_t)n, "%u indices instead of %u", n,
          at);
}

/* One table for all sequences of a group, as a host has it, kept up to date over the whole run: an
 * entry's row is its place in the batch, or, in the other half of the tables, the sequence's own.
 * Beside it a table that is written whole. Rows of others stay as they are. */
static void check_block_table(struct run *run, struct model_batch *batch, int g)
{
    const int kept = (int)below(run, 2);
    struct model_rows *model = &run->tables[g][kept];
    int32_t whole[MODEL_SEQS * MODEL_STRIDE], before[MODEL_SEQS * MODEL_STRIDE];
    uint32_t rows[MODEL_SEQS];
    bool written[MODEL_SEQS] = {false};
    for (int e = 0; e < batch->n_entries; e++) {
        rows[e] = kept ? (uint32_t)(batch->seq[e] - run->model.seq) : (uint32_t)e;
        written[rows[e]] = true;
    }
    pkv_block_table to = {.struct_size = sizeof to,
                          .data = whole,
                          .n_rows = MODEL_SEQS,
                          .row_stride = MODEL_STRIDE,
                          .rows = kept ? rows : NULL,
                          .hole = -1};
    pkv_status status = pkv_export_block_table(batch->handle, (uint32_t)g, &to);
    CHECK(run, status == PKV_OK, "%s", pkv_status_name(status));
    memcpy(before, model->data, sizeof before);
    to.data = model->data;
    to.state = model->state;
    to.hole = below(run, 50) == 0 ? -2 : -1;
    status = pkv_export_block_table(batch->handle, (uint32_t)g, &to);
    CHECK(run, status == PKV_OK, "%s", pkv_status_name(status));
    for (int e = 0; e < batch->n_entries; e++) {
        const struct model_seq *seq = batch->seq[e];
        for (uint32_t l = 0; l < MODEL_STRIDE; l++) {
            const uint32_t at = rows[e] * MODEL_STRIDE + l;
            const bool held = l < seq->n_pages && seq->page[g][l] != NULL;
            const int32_t page = held ? (int32_t)pkv_page_index(seq->page[g][l]->id) : -1;
            CHECK(run, whole[at] == page, "entry %d page %u", e, l);
            CHECK(run, model->data[at] == (held ? page : to.hole),
                  "update: entry %d page %u: %d, %d", e, l, model->data[at], page);
        }
    }
    for (uint32_t r = 0; r < MODEL_SEQS; r++)
        CHECK(run,
              written[r] || memcmp(before + r * MODEL_STRIDE, model->data + r * MODEL_STRIDE,
                                   MODEL_STRIDE * sizeof *before) == 0,
              "row %u is not of this batch", r);
}

static void op_reserve(struct run *run)
{
    struct model_batch *batch = any_batch(run);
    if (batch == NULL) return;
    const pkv_status status = pkv_batch_reserve(batch->handle);
    if (batch->reserved) {
        CHECK(run, status == PKV_ESTATE, "%s", pkv_status_name(status));
        return;
    }
    uint32_t missing[MODEL_GROUPS], expected_missing[MODEL_GROUPS];
    const pkv_status expected = model_reserve(&run->model, batch, expected_missing);
    CHECK(run, status == expected, "%s instead of %s", pkv_status_name(status),
          pkv_status_name(expected));
    CHECK(run, pkv_batch_shortfall(batch->handle, missing, MODEL_GROUPS) == PKV_OK, "shortfall");
    for (int g = 0; g < MODEL_GROUPS; g++)
        CHECK(run, missing[g] == expected_missing[g], "group %d: shortfall %u instead of %u", g,
              missing[g], expected_missing[g]);
    for (int e = 0; e < batch->n_entries; e++)
        for (int g = 0; g < MODEL_GROUPS && status == PKV_OK; g++) {
            pkv_page pages[MODEL_MAX_PAGES];
            CHECK(run,
                  pkv_seq_pages(batch->seq[e]->handle, (uint32_t)g, 0, batch->seq[e]->n_pages,
                                pages) == PKV_OK,
                  "pages");
            for (uint32_t l = 0; l < batch->seq[e]->n_pages; l++)
                if (batch->seq[e]->page[g][l] != NULL &&
                    batch->seq[e]->page[g][l]->id == PKV_PAGE_NONE)
                    batch->seq[e]->page[g][l]->id = pages[l];
        }
    if (status == PKV_OK) check_copies(run, batch);
    for (int g = 0; g < MODEL_GROUPS && status == PKV_OK; g++) {
        write_tokens(run, batch, g);
        check_csr(run, batch, g);
        if (below(run, 3) != 0) check_block_table(run, batch, g);
    }
    for (int e = 0; e < batch->n_entries; e++)
        compare(run, batch->seq[e]);
}

/* n random new tokens of an entry go to its first places: ids, and bytes by the library's list. */
static void keep_path(struct run *run, struct model_batch *batch, int e, uint32_t *kept, uint32_t n)
{
    uint32_t got = 0;
    for (uint32_t at = 0; got < n; at++)
        if (below(run, batch->n_tokens[e] - at) < n - got) kept[got++] = at;
    for (int g = 0; g < MODEL_GROUPS; g++) {
        pkv_slot_copy copies[MOST_NEW];
        uint32_t n_copies = 0;
        const pkv_status status = pkv_batch_path_copies(batch->handle, (uint32_t)e, (uint32_t)g,
                                                        kept, n, copies, MOST_NEW, &n_copies);
        CHECK(run, status == PKV_OK, "%s", pkv_status_name(status));
        for (uint32_t i = 0; i < n_copies; i++)
            for (uint32_t t = 0; t < copies[i].n_tokens; t++)
                *slot_of(run, g, copies[i].dst, copies[i].dst_slot + t) =
                    *slot_of(run, g, copies[i].src, copies[i].src_slot + t);
    }
    for (uint32_t i = 0; i < n; i++)
        batch->token[e][i] = batch->token[e][kept[i]];
}

static void op_commit(struct run *run)
{
    struct model_batch *batch = any_batch(run);
    if (batch == NULL) return;
    struct model_seq *seqs[MODEL_SEQS];
    const int n = batch->n_entries;
    memcpy(seqs, batch->seq, sizeof seqs);
    uint32_t accepted[MODEL_SEQS];
    const bool partial = below(run, 2) == 0;
    for (int e = 0; e < n; e++)
        accepted[e] = below(run, 2) == 0 ? batch->n_tokens[e] : below(run, batch->n_tokens[e] + 1);
    uint32_t kept[MODEL_SEQS * MOST_NEW];
    const bool paths =
        partial && batch->reserved && run->storage == PKV_STORAGE_NONE && below(run, 2) == 0;
    uint32_t *to = kept;
    for (int e = 0; paths && e < n; e++) {
        keep_path(run, batch, e, to, accepted[e]);
        to += accepted[e];
    }
    const pkv_status status =
        paths     ? pkv_batch_commit_paths(batch->handle, kept, accepted, (uint32_t)n)
        : partial ? pkv_batch_commit_partial(batch->handle, accepted, (uint32_t)n)
                  : pkv_batch_commit(batch->handle);
    CHECK(run, status == (batch->reserved ? PKV_OK : PKV_ESTATE), "%s", pkv_status_name(status));
    if (status != PKV_OK) return;
    run->dead_batch = batch->handle;
    model_commit(&run->model, batch, partial ? accepted : NULL);
    for (int e = 0; e < n; e++)
        compare(run, seqs[e]);
}

static void op_abort(struct run *run)
{
    struct model_batch *batch = any_batch(run);
    if (batch == NULL) return;
    struct model_seq *seqs[MODEL_SEQS];
    const int n = batch->n_entries;
    memcpy(seqs, batch->seq, sizeof seqs);
    const pkv_status status = pkv_batch_abort(batch->handle);
    CHECK(run, status == PKV_OK, "%s", pkv_status_name(status));
    run->dead_batch = batch->handle;
    model_abort(&run->model, batch);
    for (int e = 0; e < n; e++)
        compare(run, seqs[e]);
}

static void op_stale(struct run *run)
{
    uint64_t length = 77;
    if (run->dead_seq.id != 0) {
        CHECK(run, pkv_seq_length(run->dead_seq, &length) == PKV_ESTALE && length == 77, "length");
        CHECK(run, pkv_seq_destroy(run->dead_seq) == PKV_ESTALE, "double destroy");
        CHECK(run, pkv_seq_truncate(run->dead_seq, 0) == PKV_ESTALE, "truncate");
    }
    if (run->dead_batch.id != 0) {
        CHECK(run, pkv_batch_abort(run->dead_batch) == PKV_ESTALE, "double abort");
        CHECK(run, pkv_batch_commit(run->dead_batch) == PKV_ESTALE, "double commit");
    }
    struct model_batch *batch = any_batch(run);
    if (batch != NULL && run->dead_seq.id != 0)
        CHECK(run,
              pkv_batch_add(batch->handle, run->dead_seq, NULL, 1) ==
                  (batch->reserved ? PKV_ESTATE : PKV_ESTALE),
              "append to a destroyed sequence");
}

static void op_trim(struct run *run)
{
    CHECK(run, pkv_cache_trim(run->cache, NULL) == PKV_OK, "trim");
}

/* A smaller limit for a moment: taken or refused, as the shortfall says, and nothing is lost. */
static void op_limit(struct run *run)
{
    const uint64_t most = UINT64_C(1) << 32, limit = below(run, 1u << 31);
    pkv_limit_shortfall shortfall = {.struct_size = sizeof shortfall};
    CHECK(run, pkv_cache_limit_shortfall(run->cache, limit, &shortfall) == PKV_OK, "shortfall");
    const pkv_status status = pkv_cache_set_limit(run->cache, limit);
    CHECK(run, status == PKV_OK || status == PKV_EBUSY || status == PKV_EINVAL, "%s",
          pkv_status_name(status));
    CHECK(run, (status == PKV_OK) == (shortfall.bytes == 0), "%s, short of %" PRIu64 " bytes",
          pkv_status_name(status), shortfall.bytes);
    CHECK(run, pkv_cache_set_limit(run->cache, most) == PKV_OK, "back to the old limit");
    compare_all(run);
}

static pkv_status move_pages(void *user, uint32_t group, uint32_t n, const uint32_t *from,
                             const uint32_t *to)
{
    uint64_t *shadow = ((struct run *)user)->shadow[group];
    for (uint32_t i = 0; i < n; i++)
        memcpy(shadow + (size_t)to[i] * MODEL_PAGE_TOKENS,
               shadow + (size_t)from[i] * MODEL_PAGE_TOKENS, MODEL_PAGE_TOKENS * sizeof *shadow);
    return PKV_OK;
}

/* Pages may have new ids afterwards, the same for all that hold one, but not those of open batches and
 * of the host. */
static void note_moves(struct run *run, struct model_seq *seq, int g, bool *moved)
{
    pkv_page pages[MODEL_MAX_PAGES];
    CHECK(run, pkv_seq_pages(seq->handle, (uint32_t)g, 0, seq->n_pages, pages) == PKV_OK, "pages");
    for (uint32_t l = 0; l < seq->n_pages; l++) {
        struct model_page *page = seq->page[g][l];
        if (page == NULL || page->id == PKV_PAGE_NONE || page->id == pages[l]) continue;
        CHECK(run, seq->batch < 0 && !moved[page - run->model.pool[g]], "page %u has moved", l);
        for (int i = 0; i < HOST_REFS; i++)
            CHECK(run, run->host[i].page != page, "a page of the host has moved");
        moved[page - run->model.pool[g]] = true;
        page->id = pages[l];
    }
}

static void op_compact(struct run *run)
{
    uint64_t bytes = 0;
    const uint64_t most = below(run, 2) ? UINT64_MAX : below(run, 1u << 24);
    const pkv_status status =
        run->storage == PKV_STORAGE_HOST
            ? pkv_cache_compact(run->cache, most, &bytes)
            : pkv_cache_compact_with(run->cache, most, move_pages, run, &bytes);
    CHECK(run, status == PKV_OK && bytes <= most, "%s", pkv_status_name(status));
    for (int g = 0; g < MODEL_GROUPS; g++) {
        bool moved[MODEL_POOL] = {false};
        for (int s = 0; s < MODEL_SEQS; s++)
            if (run->model.seq[s].live) note_moves(run, &run->model.seq[s], g, moved);
    }
    compare_all(run);
}

/* ---- a run ---------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    void (*run)(struct run *run);
    uint32_t weight;
} operations[] = {
    {"create", op_create, 4},     {"destroy", op_destroy, 3},   {"fork", op_fork, 4},
    {"truncate", op_truncate, 8}, {"pin", op_pin, 3},           {"unpin", op_unpin, 3},
    {"drop", op_drop, 8},         {"host ref", op_host_ref, 4}, {"begin", op_begin, 14},
    {"add", op_add, 50},          {"reserve", op_reserve, 16},  {"commit", op_commit, 16},
    {"abort", op_abort, 2},       {"stale", op_stale, 2},       {"remove", op_remove, 6},
};
/* One in so many operations is one of these: they look at everything. */
#define RARE 500
static void (*const rare_operations[])(struct run *run) = {op_trim, op_limit, op_compact};

static void open_run(struct run *run, pkv_storage storage, uint64_t seed)
{
    memset(run, 0, sizeof *run);
    run->op = "create";
    run->storage = storage;
    run->random = run->seed = seed;
    model_init(&run->model);
    pkv_config config;
    pkv_config_init(&config, sizeof config);
    pkv_group_config groups[MODEL_GROUPS] = {{0}};
    for (int g = 0; g < MODEL_GROUPS; g++) {
        /* NONE: few pages per region, so that regions come and go; HOST: small pages. */
        groups[g].n_layers = 1 + (uint32_t)g;
        groups[g].kv_heads = storage == PKV_STORAGE_NONE ? 32 : 1;
        groups[g].head_dim_k = storage == PKV_STORAGE_NONE ? 128 : 16;
        groups[g].window = model_windows[g];
        groups[g].dtype = PKV_DTYPE_F32;
        groups[g].max_pages = MODEL_POOL;
        run->shadow[g] = calloc((size_t)MODEL_POOL * 16 * MODEL_PAGE_TOKENS, sizeof(uint64_t));
    }
    config.groups = groups;
    config.n_groups = MODEL_GROUPS;
    config.page_tokens = MODEL_PAGE_TOKENS;
    config.storage = storage;
    config.max_sequences = MODEL_SEQS;
    config.max_batches = MODEL_BATCHES;
    config.memory_limit = (uint64_t)1 << 32;
    config.prefix = 0;
    if (storage == PKV_STORAGE_HOST) config.debug = PKV_DEBUG_CHECKSUM;
    const pkv_status status = pkv_cache_create(&config, &run->cache);
    if (status != PKV_OK) {
        fprintf(stderr, "pkv_cache_create: %s\n", pkv_status_name(status));
        exit(1);
    }
}

static void close_run(struct run *run)
{
    compare_all(run);
    pkv_cache_destroy(run->cache);
    for (int g = 0; g < MODEL_GROUPS; g++)
        free(run->shadow[g]);
}

static void play(struct run *run, uint64_t n)
{
    uint32_t total = 0;
    for (size_t i = 0; i < sizeof operations / sizeof operations[0]; i++)
        total += operations[i].weight;
    for (run->step = 0; run->step < n; run->step++) {
        uint32_t at = below(run, total);
        size_t i = 0;
        while (at >= operations[i].weight)
            at -= operations[i++].weight;
        run->op = operations[i].name;
        operations[i].run(run);
        if (below(run, RARE) == 0) {
            run->op = "trim, limit or compact";
            rare_operations[below(run, 3)](run);
        }
        if (run->step % 4096 == 0) compare_all(run);
        if (n >= 10000000 && (run->step + 1) % (n / 20) == 0)
            fprintf(stderr, "test_model: %" PRIu64 " of %" PRIu64 " operations\n", run->step + 1,
                    n);
    }
}

int main(int argc, char **argv)
{
    const uint64_t seed = pkvt_seed("test_model");
    const char *text = argc > 1 ? argv[1] : getenv("PKV_OPS");
    const uint64_t n = text != NULL ? strtoull(text, NULL, 10) : 1000000;
    const char *storage = argc > 2 ? argv[2] : "both";
    static struct run run;
    if (strcmp(storage, "host") != 0) {
        open_run(&run, PKV_STORAGE_NONE, seed);
        play(&run, strcmp(storage, "both") == 0 ? n - n / 4 : n);
        close_run(&run);
    }
    if (strcmp(storage, "none") != 0) {
        open_run(&run, PKV_STORAGE_HOST, seed + 1);
        play(&run, strcmp(storage, "both") == 0 ? n / 4 : n);
        close_run(&run);
    }
    printf("test_model: %" PRIu64 " operations, no difference\n", n);
    return 0;
}
