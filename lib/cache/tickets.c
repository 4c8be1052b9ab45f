#include "cache/tickets.h"

#include <string.h>

#include "cache/open_pages.h"

/* ---- memory --------------------------------------------------------------------------------- */

static void free_arrays(struct pkv_cache *cache, struct pkvi_admission *admission)
{
    struct pkvi_mem *mem = &cache->mem;
    const size_t n = (size_t)admission->capacity + 1;
    pkvi_mem_free_array(mem, admission->seqs, n, sizeof *admission->seqs);
    pkvi_mem_free_array(mem, admission->counted, n * cache->n_groups, sizeof *admission->counted);
    pkvi_mem_free_array(mem, admission->holders, n, sizeof *admission->holders);
    pkvi_mem_free_array(mem, admission->pages, n * 3 * cache->n_groups, sizeof *admission->pages);
    pkvi_mem_free_array(mem, admission->order, n, sizeof *admission->order);
    pkvi_mem_free_array(mem, admission->steps, n, sizeof *admission->steps);
}

/* Moves to arrays of another capacity; *admission stays where it is. */
static pkv_status set_capacity(struct pkv_cache *cache, uint32_t capacity)
{
    struct pkvi_mem *mem = &cache->mem;
    struct pkvi_admission *admission = cache->admission;
    struct pkvi_admission grown = {.capacity = capacity};
    const size_t n = (size_t)capacity + 1, n_groups = cache->n_groups;
    grown.seqs = pkvi_mem_array(mem, n, sizeof *grown.seqs);
    grown.counted = pkvi_mem_array(mem, n * n_groups, sizeof *grown.counted);
    grown.holders = pkvi_mem_array(mem, n, sizeof *grown.holders);
    grown.pages = pkvi_mem_array(mem, n * 3 * n_groups, sizeof *grown.pages);
    grown.order = pkvi_mem_array(mem, n, sizeof *grown.order);
    grown.steps = pkvi_mem_array(mem, n, sizeof *grown.steps);
    if (!grown.seqs || !grown.counted || !grown.holders || !grown.pages || !grown.order ||
        !grown.steps) {
        free_arrays(cache, &grown);
        return PKV_ENOMEM;
    }
    if (admission->n != 0) {
        memcpy(grown.seqs, admission->seqs, admission->n * sizeof *grown.seqs);
        memcpy(grown.counted, admission->counted, admission->n * n_groups * sizeof *grown.counted);
    }
    free_arrays(cache, admission);
    admission->capacity = capacity;
    admission->seqs = grown.seqs;
    admission->counted = grown.counted;
    admission->holders = grown.holders;
    admission->pages = grown.pages;
    admission->order = grown.order;
    admission->steps = grown.steps;
    for (size_t i = 0; i < n; i++) {
        grown.holders[i].need = grown.pages + i * 3 * n_groups;
        grown.holders[i].back = grown.holders[i].need + n_groups;
        grown.holders[i].units = grown.holders[i].back + n_groups;
    }
    return PKV_OK;
}

pkv_status pkvi_tickets_init(struct pkv_cache *cache)
{
    cache->admission = pkvi_mem_zalloc(&cache->mem, sizeof *cache->admission);
    if (!cache->admission) return PKV_ENOMEM;
    pkvi_list_init(&cache->admission->marked);
    const pkv_status status = set_capacity(cache, 0);
    if (status != PKV_OK) {
        pkvi_mem_free(&cache->mem, cache->admission, sizeof *cache->admission);
        cache->admission = NULL;
    }
    return status;
}

void pkvi_tickets_destroy(struct pkv_cache *cache)
{
    free_arrays(cache, cache->admission);
    pkvi_mem_free(&cache->mem, cache->admission, sizeof *cache->admission);
    cache->admission = NULL;
}

pkv_status pkvi_tickets_make_room(struct pkv_cache *cache)
{
    const struct pkvi_admission *admission = cache->admission;
    if (admission->n < admission->capacity) return PKV_OK;
    return set_capacity(cache, 2 * admission->capacity + 16);
}

/* ---- needs ---------------------------------------------------------------------------------- */

uint64_t pkvi_ticket_most_held(const struct pkv_cache *cache, const struct pkvi_seq *seq,
                               uint32_t g)
{
    const uint32_t window = cache->groups[g].window;
    if (window == 0) return UINT64_MAX;
    uint64_t most = (((uint64_t)window + cache->page_tokens - 2) >> cache->page_shift) + 1;
    for (uint32_t i = 0; seq && i < seq->n_pins; i++) {
        const uint64_t end = pkvi_min_u64(seq->pins[i].end, seq->claim ? seq->claim : UINT32_MAX);
        if (seq->pins[i].begin >= end) continue;
        most += pkvi_pages_for(cache, end) - (seq->pins[i].begin >> cache->page_shift);
    }
    return most;
}

/* Must a step of n tokens copy the sequence's partial tail? */
static bool copies_tail(const struct pkvi_seq *seq, uint32_t g, uint32_t n_tokens)
{
    const struct pkv_cache *cache = seq->cache;
    if ((seq->length & (cache->page_tokens - 1u)) == 0) return false;
    const uint32_t page =
        pkvi_table_page(&seq->tables[g], (uint32_t)(seq->length >> cache->page_shift));
    if (page == PKVI_NO_PAGE) return false;
    return pkvi_pool_is_shared(&cache->groups[g].pool, page) || pkvi_open_reseals(seq, g, n_tokens);
}

void pkvi_ticket_need(const struct pkvi_seq *seq, const struct pkvi_step *step, const uint64_t *own,
                      uint64_t *need)
{
    const struct pkv_cache *cache = seq->cache;
    const uint64_t claimed = pkvi_pages_for(cache, seq->claim);
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        const uint64_t next = (uint64_t)seq->tables[g].next + step->adds;
        uint64_t more = claimed > next ? claimed - next : 0;
        const uint64_t most = pkvi_ticket_most_held(cache, seq, g);
        const uint64_t held = own ? own[g] + step->adds : 0;
        more = pkvi_min_u64(more, most > held ? most - held : 0);
        const uint64_t left = seq->claim > seq->length ? seq->claim - seq->length : 0;
        const uint32_t rest = (uint32_t)pkvi_min_u64(left, cache->page_tokens);
        if (step->n_tokens == 0 && rest != 0 && copies_tail(seq, g, rest)) more++;
        need[g] = more;
    }
}

uint64_t pkvi_ticket_takes(const struct pkvi_seq *seq, const struct pkvi_step *step, uint32_t g)
{
    return step->adds + (step->n_tokens != 0 && copies_tail(seq, g, step->n_tokens) ? 1u : 0u);
}

/* ---- tickets and their sum ------------------------------------------------------------------ */

static uint64_t *counted_of(const struct pkvi_seq *seq)
{
    return seq->cache->admission->counted + (size_t)seq->claim_index * seq->cache->n_groups;
}

static void count(struct pkvi_seq *seq)
{
    static const struct pkvi_step no_step;
    struct pkvi_admission *admission = seq->cache->admission;
    uint64_t *counted = counted_of(seq);
    for (uint32_t g = 0; g < seq->cache->n_groups; g++)
        admission->total[g] -= counted[g];
    pkvi_ticket_need(seq, &no_step, NULL, counted);
    for (uint32_t g = 0; g < seq->cache->n_groups; g++)
        admission->total[g] += counted[g];
    pkvi_list_remove(&seq->marked);
}

void pkvi_ticket_add(struct pkvi_seq *seq, uint64_t claim)
{
    struct pkvi_admission *admission = seq->cache->admission;
    seq->claim = claim;
    seq->claim_index = admission->n;
    admission->seqs[admission->n++] = seq;
    memset(counted_of(seq), 0, seq->cache->n_groups * sizeof(uint64_t));
    count(seq);
}

void pkvi_ticket_remove(struct pkvi_seq *seq)
{
    struct pkvi_admission *admission = seq->cache->admission;
    const uint32_t n_groups = seq->cache->n_groups;
    uint64_t *counted = counted_of(seq);
    for (uint32_t g = 0; g < n_groups; g++)
        admission->total[g] -= counted[g];
    struct pkvi_seq *last = admission->seqs[--admission->n];
    memmove(counted, admission->counted + (size_t)admission->n * n_groups,
            n_groups * sizeof *counted);
    admission->seqs[seq->claim_index] = last;
    last->claim_index = seq->claim_index;
    seq->claim = 0;
    seq->claim_index = 0;
    pkvi_list_remove(&seq->marked);
}

void pkvi_ticket_forget(struct pkvi_seq *seq)
{
    if (seq->claim == 0) return;
    struct pkv_cache *cache = seq->cache;
    pkvi_mutex_lock(&cache->admission_lock);
    pkvi_ticket_remove(seq);
    pkvi_mutex_unlock(&cache->admission_lock);
}

void pkvi_tickets_read_marked(struct pkv_cache *cache)
{
    struct pkvi_admission *admission = cache->admission;
    for (uint32_t i = 0; admission->all_marked && i < admission->n; i++)
        count(admission->seqs[i]);
    admission->all_marked = false;
    while (!pkvi_list_empty(&admission->marked))
        count(PKVI_CONTAINER_OF(admission->marked.next, struct pkvi_seq, marked));
}

static void mark(struct pkvi_seq *seq)
{
    if (pkvi_list_empty(&seq->marked))
        pkvi_list_push_back(&seq->cache->admission->marked, &seq->marked);
}

void pkvi_ticket_changed(struct pkvi_seq *seq)
{
    if (seq->claim == 0) return;
    pkvi_mutex_lock(&seq->cache->admission_lock);
    mark(seq);
    pkvi_mutex_unlock(&seq->cache->admission_lock);
}

void pkvi_tickets_changed(struct pkv_cache *cache)
{
    pkvi_mutex_lock(&cache->admission_lock);
    cache->admission->all_marked = true;
    pkvi_mutex_unlock(&cache->admission_lock);
}

void pkvi_tickets_changed_by(const struct pkvi_batch *batch)
{
    struct pkv_cache *cache = batch->cache;
    bool locked = false;
    for (uint32_t i = 0; i < batch->n_growing + batch->n_copies; i++) {
        const uint32_t entry = i < batch->n_growing ? batch->growing[i]
                                                    : batch->copies[i - batch->n_growing].entry;
        struct pkvi_seq *seq = batch->entries[entry].seq;
        if (seq->claim == 0) continue;
        if (!locked) pkvi_mutex_lock(&cache->admission_lock);
        locked = true;
        mark(seq);
    }
    if (locked) pkvi_mutex_unlock(&cache->admission_lock);
}
