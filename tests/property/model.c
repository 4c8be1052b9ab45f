#include "model.h"

#include <string.h>

const uint32_t model_windows[MODEL_GROUPS] = {0, 20, 64};

void model_init(struct model *model)
{
    memset(model, 0, sizeof *model);
    for (int s = 0; s < MODEL_SEQS; s++)
        model->seq[s].batch = -1;
}

uint32_t model_pages(uint32_t n_tokens)
{
    return (n_tokens + MODEL_PAGE_TOKENS - 1) / MODEL_PAGE_TOKENS;
}

struct model_page *model_new_page(struct model *model, int group)
{
    for (int i = 0; i < MODEL_POOL; i++) {
        struct model_page *page = &model->pool[group][i];
        if (page->refs != 0) continue;
        page->refs = 1;
        page->id = PKV_PAGE_NONE;
        model->used[group]++;
        return page;
    }
    return NULL;
}

void model_ref(struct model_page *page)
{
    page->refs++;
}

void model_unref(struct model *model, int group, struct model_page *page)
{
    if (--page->refs == 0) model->used[group]--;
}

bool model_pinned(const struct model_seq *seq, uint32_t logical)
{
    for (uint32_t t = logical * MODEL_PAGE_TOKENS; t < (logical + 1) * MODEL_PAGE_TOKENS; t++)
        for (uint32_t i = 0; i < seq->n_pins; i++)
            if (seq->pin[i].begin <= t && t < seq->pin[i].end) return true;
    return false;
}

bool model_left(int group, uint32_t logical, uint32_t length)
{
    if (model_windows[group] == 0) return false;
    /* The next query, at position `length`, sees keys > length - window. */
    const int64_t last = (int64_t)(logical + 1) * MODEL_PAGE_TOKENS - 1;
    return last <= (int64_t)length - (int64_t)model_windows[group];
}

void model_release(struct model *model, struct model_seq *seq, uint32_t first, uint32_t end)
{
    for (int g = 0; g < MODEL_GROUPS; g++)
        for (uint32_t l = first; l < end && l < seq->n_pages; l++) {
            if (seq->page[g][l] == NULL || !model_left(g, l, seq->length) || model_pinned(seq, l))
                continue;
            model_unref(model, g, seq->page[g][l]);
            seq->page[g][l] = NULL;
        }
}

pkv_status model_truncate_status(const struct model_seq *seq, uint32_t n_tokens)
{
    if (n_tokens > seq->length) return PKV_EINVAL;
    if (n_tokens == seq->length) return PKV_OK;
    for (int g = 0; g < MODEL_GROUPS; g++) {
        const uint32_t tail = n_tokens / MODEL_PAGE_TOKENS;
        if (n_tokens % MODEL_PAGE_TOKENS != 0 && seq->page[g][tail] == NULL) return PKV_EDROPPED;
        for (uint32_t l = 0; l < model_pages(n_tokens); l++)
            if (!model_left(g, l, n_tokens) && model_left(g, l, seq->length) &&
                seq->page[g][l] == NULL)
                return PKV_EDROPPED;
    }
    return PKV_OK;
}

static void cut(struct model *model, struct model_seq *seq, uint32_t n_pages)
{
    for (int g = 0; g < MODEL_GROUPS; g++)
        for (uint32_t l = n_pages; l < seq->n_pages; l++) {
            if (seq->page[g][l] != NULL) model_unref(model, g, seq->page[g][l]);
            seq->page[g][l] = NULL;
        }
    seq->n_pages = n_pages;
}

void model_truncate(struct model *model, struct model_seq *seq, uint32_t n_tokens)
{
    if (n_tokens == seq->length) return;
    cut(model, seq, model_pages(n_tokens));
    seq->length = n_tokens;
}

void model_fork(struct model *model, const struct model_seq *parent, struct model_seq *child)
{
    (void)model;
    const pkv_seq handle = child->handle;
    *child = *parent;
    child->handle = handle;
    child->live = true;
    child->batch = -1;
    for (int g = 0; g < MODEL_GROUPS; g++)
        for (uint32_t l = 0; l < child->n_pages; l++)
            if (child->page[g][l] != NULL) model_ref(child->page[g][l]);
}

void model_destroy(struct model *model, struct model_seq *seq)
{
    cut(model, seq, 0);
    memset(seq, 0, sizeof *seq);
    seq->batch = -1;
}

/* Holders of the page that the batch gives no copy; one more if a copier would lose slots from
 * `first` on, should it get the page back. */
static int lookers(const struct model_batch *batch, const struct model_page *page, uint32_t first)
{
    int n = page->refs;
    bool harm = false;
    for (int i = 0; i < batch->n_copies; i++)
        if (batch->copy[i].src == page) {
            n--;
            harm = harm || batch->copy[i].n_tokens > first;
        }
    return n + harm;
}

/* Entries in order: a partial tail that somebody else still looks at is copied. */
static void plan_copies(struct model_batch *batch)
{
    batch->n_copies = 0;
    for (int e = 0; e < batch->n_entries; e++) {
        const struct model_seq *seq = batch->seq[e];
        if (seq->length % MODEL_PAGE_TOKENS == 0) continue;
        const uint32_t tail = seq->length / MODEL_PAGE_TOKENS;
        for (int g = 0; g < MODEL_GROUPS; g++) {
            struct model_page *page = seq->page[g][tail];
            if (lookers(batch, page, seq->length % MODEL_PAGE_TOKENS) <= 1) continue;
            batch->copy[batch->n_copies++] = (struct model_copy){
                .entry = e,
                .group = g,
                .logical = tail,
                .n_tokens = seq->length % MODEL_PAGE_TOKENS,
                .src = page,
            };
        }
    }
}

pkv_status model_reserve(struct model *model, struct model_batch *batch,
                         uint32_t missing[MODEL_GROUPS])
{
    uint32_t need[MODEL_GROUPS] = {0};
    plan_copies(batch);
    for (int i = 0; i < batch->n_copies; i++)
        need[batch->copy[i].group]++;
    for (int e = 0; e < batch->n_entries; e++)
        for (int g = 0; g < MODEL_GROUPS; g++)
            need[g] +=
                model_pages(batch->seq[e]->length + batch->n_tokens[e]) - batch->seq[e]->n_pages;
    bool enough = true;
    for (int g = 0; g < MODEL_GROUPS; g++) {
        missing[g] = 0;
        if (model->used[g] + need[g] <= MODEL_POOL) continue;
        missing[g] = model->used[g] + need[g] - MODEL_POOL;
        enough = false;
    }
    if (!enough) {
        batch->n_copies = 0;
        return PKV_ENOPAGES;
    }
    for (int i = 0; i < batch->n_copies; i++) {
        struct model_copy *copy = &batch->copy[i];
        copy->dst = model_new_page(model, copy->group);
        batch->seq[copy->entry]->page[copy->group][copy->logical] = copy->dst;
    }
    for (int e = 0; e < batch->n_entries; e++) {
        struct model_seq *seq = batch->seq[e];
        const uint32_t pages = model_pages(seq->length + batch->n_tokens[e]);
        for (; seq->n_pages < pages; seq->n_pages++)
            for (int g = 0; g < MODEL_GROUPS; g++)
                seq->page[g][seq->n_pages] = model_new_page(model, g);
    }
    batch->reserved = true;
    return PKV_OK;
}

static void undo_copies(struct model *model, struct model_batch *batch, int entry)
{
    for (int i = 0; i < batch->n_copies; i++) {
        struct model_copy *copy = &batch->copy[i];
        if (copy->entry != entry || copy->src == NULL) continue;
        model_unref(model, copy->group, copy->dst);
        batch->seq[entry]->page[copy->group][copy->logical] = copy->src;
        copy->src = NULL;
    }
}

static void end(struct model_batch *batch)
{
    for (int e = 0; e < batch->n_entries; e++)
        batch->seq[e]->batch = -1;
    batch->live = false;
    batch->reserved = false;
    batch->n_entries = 0;
    batch->n_copies = 0;
}

void model_commit(struct model *model, struct model_batch *batch, const uint32_t *accepted)
{
    for (int e = 0; e < batch->n_entries; e++) {
        struct model_seq *seq = batch->seq[e];
        const uint32_t n = accepted != NULL ? accepted[e] : batch->n_tokens[e];
        cut(model, seq, model_pages(seq->length + n));
        if (n == 0) undo_copies(model, batch, e);
        memcpy(seq->token + seq->length, batch->token[e], n * sizeof *seq->token);
        seq->length += n;
        model_release(model, seq, 0, seq->n_pages);
    }
    for (int i = 0; i < batch->n_copies; i++)
        if (batch->copy[i].src != NULL)
            model_unref(model, batch->copy[i].group, batch->copy[i].src);
    end(batch);
}

void model_abort(struct model *model, struct model_batch *batch)
{
    for (int e = 0; e < batch->n_entries && batch->reserved; e++) {
        cut(model, batch->seq[e], model_pages(batch->seq[e]->length));
        undo_copies(model, batch, e);
    }
    end(batch);
}
