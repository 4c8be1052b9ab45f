/* A naive model of a cache: sequences as plain arrays of tokens and page pointers, reference counts
 * as plain integers, every rule written down from the documentation and none of the library's
 * tricks. It predicts the status of every call, the page every table holds, and what every token
 * slot contains. */
#ifndef PKVT_MODEL_H
#define PKVT_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include <pagedkv/pagedkv.h>

#define MODEL_PAGE_TOKENS 8
#define MODEL_GROUPS 3
#define MODEL_MAX_TOKENS 400
#define MODEL_MAX_PAGES (MODEL_MAX_TOKENS / MODEL_PAGE_TOKENS)
#define MODEL_SEQS 20
#define MODEL_BATCHES 3
#define MODEL_PINS 6
#define MODEL_POOL 120 /* most pages of a group */

/* Windows of the groups; 0 = full attention. */
extern const uint32_t model_windows[MODEL_GROUPS];

struct model_page {
    int refs; /* 0 = unused */
    pkv_page id;
};

struct model_seq {
    bool live;
    pkv_seq handle;
    uint32_t length;
    uint64_t token[MODEL_MAX_TOKENS];
    uint32_t n_pages; /* logical pages, reserved ones included */
    struct model_page *page[MODEL_GROUPS][MODEL_MAX_PAGES]; /* NULL = not held */
    uint32_t n_pins;
    struct {
        uint32_t begin, end;
    } pin[MODEL_PINS];
    int batch; /* open batch it is in, or -1 */
};

struct model_copy {
    int entry, group;
    uint32_t logical, n_tokens;
    struct model_page *src, *dst;
};

struct model_batch {
    bool live, reserved;
    pkv_batch handle;
    int n_entries;
    struct model_seq *seq[MODEL_SEQS];
    uint32_t n_tokens[MODEL_SEQS];
    uint64_t token[MODEL_SEQS][MODEL_MAX_TOKENS];
    int n_copies;
    struct model_copy copy[MODEL_SEQS * MODEL_GROUPS];
};

struct model {
    struct model_page pool[MODEL_GROUPS][MODEL_POOL];
    uint32_t used[MODEL_GROUPS];
    struct model_seq seq[MODEL_SEQS];
    struct model_batch batch[MODEL_BATCHES];
};

void model_init(struct model *model);

/* Pages for n tokens. */
uint32_t model_pages(uint32_t n_tokens);

/* A page that nobody holds, with one reference; NULL if all MODEL_POOL are in use. */
struct model_page *model_new_page(struct model *model, int group);
void model_ref(struct model_page *page);
void model_unref(struct model *model, int group, struct model_page *page);

/* Does a pinned range touch the page? */
bool model_pinned(const struct model_seq *seq, uint32_t logical);
/* Has the page left the window of the group, for a sequence of this length? */
bool model_left(int group, uint32_t logical, uint32_t length);
/* Releases what is outside of the windows and not pinned, among pages [first, end). */
void model_release(struct model *model, struct model_seq *seq, uint32_t first, uint32_t end);

/* Status that pkv_seq_truncate must return (PKV_EBUSY apart). */
pkv_status model_truncate_status(const struct model_seq *seq, uint32_t n_tokens);
void model_truncate(struct model *model, struct model_seq *seq, uint32_t n_tokens);
void model_fork(struct model *model, const struct model_seq *parent, struct model_seq *child);
void model_destroy(struct model *model, struct model_seq *seq);

/* Reserve: PKV_OK with tables and copies changed, or PKV_ENOPAGES with missing[] set. */
pkv_status model_reserve(struct model *model, struct model_batch *batch,
                         uint32_t missing[MODEL_GROUPS]);
/* accepted NULL = everything. */
void model_commit(struct model *model, struct model_batch *batch, const uint32_t *accepted);
void model_abort(struct model *model, struct model_batch *batch);

#endif
