/* References inside the library: plain indices, the caller holds what it names. */
#include "pool/internal.h"

/* Pages whose last reference waits for the idle hook. */
struct pending {
    uint32_t n;
    uint32_t page[64];
};

static void flush(struct pkvi_pool *pool, struct pending *pending)
{
    if (pending->n) pool->idle(pool->idle_context, pool, pending->n, pending->page);
    pending->n = 0;
}

/* Adds a page; when the buffer is full, drops the lock to let the hook run. */
static void defer(struct pkvi_pool *pool, struct pending *pending, uint32_t page)
{
    pending->page[pending->n++] = page;
    if (pending->n < sizeof pending->page / sizeof *pending->page) return;
    pkvi_mutex_unlock(&pool->lock);
    flush(pool, pending);
    pkvi_mutex_lock(&pool->lock);
}

/* The page's word says FREE of the next generation already. Lock held. */
static void recycle(struct pkvi_pool *pool, uint32_t page, uint64_t word)
{
    pkvi_pool_poison(pool, page);
    pkvi_pool_put(pool, page);
    counter_add(&pool->frees, 1);
    if (pkvi_events_on(pool->stats))
        pkvi_event(pool->stats, PKV_EVENT_PAGE_FREE, pool->config.group, generation_of(word) | page,
                   0, 0);
}

void pkvi_pool_ref(struct pkvi_pool *pool, uint32_t n, const uint32_t *pages)
{
    uint64_t shared = 0, revived = 0;
    bool events = pkvi_events_on(pool->stats);
    struct word_cursor cursor = {0};
    pkvi_mutex_lock(&pool->lock);
    for (uint32_t i = 0; i < n; i++) {
        _Atomic uint64_t *word = cursor_word(pool, &cursor, pages[i]);
        uint64_t old = load_word(word), refs = refs_of(old);
        PKVI_ASSERT(refs || (old & PKVI_WORD_OWNED));
        PKVI_ASSERT(refs < PKVI_WORD_REFS && !(old & PKVI_WORD_MAGAZINE));
        store_word(word, old + 1);
        revived += refs == 0;
        shared += refs == 1;
        if (events && refs == 1)
            pkvi_event(pool->stats, PKV_EVENT_PAGE_SHARE, pool->config.group,
                       generation_of(old) | pages[i], 0, 0);
    }
    counter_add(&pool->shared, shared);
    counter_add(&pool->out, revived);
    counter_add(&pool->cached, 0 - revived);
    pkvi_mutex_unlock(&pool->lock);
}

/* Releases one reference of a page that has some: true if it was the last and the page has an
 * owner, then the reference stays until the idle hook has run. Lock held. */
static bool drop_ref(struct pkvi_pool *pool, struct word_cursor *cursor, uint32_t page)
{
    _Atomic uint64_t *word = cursor_word(pool, cursor, page);
    uint64_t old = load_word(word), refs = refs_of(old);
    PKVI_ASSERT(refs && !(old & PKVI_WORD_MAGAZINE));
    if (PKVI_LIKELY(refs > 1)) {
        store_word(word, old - 1);
        if (refs == 2) counter_add(&pool->shared, UINT64_MAX);
        return false;
    }
    if (old & PKVI_WORD_OWNED) return true;
    store_word(word, next_generation(old));
    counter_add(&pool->out, UINT64_MAX);
    recycle(pool, page, old);
    return false;
}

void pkvi_pool_unref(struct pkvi_pool *pool, uint32_t n, const uint32_t *pages)
{
    struct pending pending;
    pending.n = 0;
    struct word_cursor cursor = {0};
    pkvi_mutex_lock(&pool->lock);
    for (uint32_t i = 0; i < n; i++)
        if (drop_ref(pool, &cursor, pages[i])) defer(pool, &pending, pages[i]);
    pkvi_mutex_unlock(&pool->lock);
    flush(pool, &pending);
}

/* ---- owned pages ---------------------------------------------------------------------------- */

uint32_t pkvi_pool_release_owned(struct pkvi_pool *pool, uint32_t n, const uint32_t *pages,
                                 uint32_t *idle)
{
    uint32_t n_idle = 0;
    struct word_cursor cursor = {0};
    pkvi_mutex_lock(&pool->lock);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t page = pages[i];
        if (!drop_ref(pool, &cursor, page)) continue;
        _Atomic uint64_t *word = word_at(pool, page);
        store_word(word, load_word(word) - 1);
        counter_add(&pool->out, UINT64_MAX);
        counter_add(&pool->cached, 1);
        idle[n_idle++] = page;
    }
    pkvi_mutex_unlock(&pool->lock);
    return n_idle;
}

void pkvi_pool_free_cached(struct pkvi_pool *pool, uint32_t n, const uint32_t *pages)
{
    pkvi_mutex_lock(&pool->lock);
    for (uint32_t i = 0; i < n; i++) {
        _Atomic uint64_t *word = word_at(pool, pages[i]);
        uint64_t old = load_word(word);
        PKVI_ASSERT(refs_of(old) == 0 && (old & PKVI_WORD_OWNED));
        atomic_store_explicit(&aux_at(pool, pages[i])->owner, NULL, memory_order_release);
        store_word(word, next_generation(old));
        counter_add(&pool->cached, UINT64_MAX);
        recycle(pool, pages[i], old);
    }
    pkvi_mutex_unlock(&pool->lock);
}

void pkvi_pool_set_owner(struct pkvi_pool *pool, uint32_t page, void *owner)
{
    pkvi_mutex_lock(&pool->lock);
    _Atomic uint64_t *word = word_at(pool, page);
    uint64_t old = load_word(word);
    PKVI_ASSERT(owner && pool->idle && refs_of(old));
    PKVI_ASSERT(!(old & (PKVI_WORD_OWNED | PKVI_WORD_MAGAZINE)));
    atomic_store_explicit(&aux_at(pool, page)->owner, owner, memory_order_release);
    store_word(word, old | PKVI_WORD_OWNED);
    pkvi_mutex_unlock(&pool->lock);
}

void pkvi_pool_clear_owner(struct pkvi_pool *pool, uint32_t page)
{
    pkvi_mutex_lock(&pool->lock);
    _Atomic uint64_t *word = word_at(pool, page);
    uint64_t old = load_word(word);
    PKVI_ASSERT(refs_of(old) && (old & PKVI_WORD_OWNED));
    store_word(word, old & ~PKVI_WORD_OWNED);
    atomic_store_explicit(&aux_at(pool, page)->owner, NULL, memory_order_release);
    pkvi_mutex_unlock(&pool->lock);
}

/* ---- the host's references: ids, checked, all or nothing ------------------------------------ */

static const _Atomic uint64_t *word_of_id(const struct pkvi_pool *pool, pkv_page id)
{
    uint32_t page = pkv_page_index(id);
    if (page >= atomic_load_explicit(&pool->words.capacity, memory_order_acquire)) return NULL;
    return word_at(pool, page);
}

static bool names(pkv_page id, uint64_t word)
{
    return generation_of(word) == generation_of(id) && refs_of(word);
}

pkv_status pkvi_pool_lookup(const struct pkvi_pool *pool, pkv_page id, uint32_t *page)
{
    const _Atomic uint64_t *word = word_of_id(pool, id);
    if (!word || !names(id, atomic_load_explicit(word, memory_order_acquire))) return PKV_ESTALE;
    *page = pkv_page_index(id);
    return PKV_OK;
}

/* As lookup, and takes the MAGAZINE flag off the page, so that its word changes under the lock
 * only. Lock held. */
static bool hold_still(struct pkvi_pool *pool, pkv_page id, uint32_t *page)
{
    if (pkvi_pool_lookup(pool, id, page) != PKV_OK) return false;
    _Atomic uint64_t *word = word_at(pool, *page);
    uint64_t old = load_word(word);
    if (PKVI_LIKELY(!(old & PKVI_WORD_MAGAZINE))) return true;
    do {
        if (!names(id, old)) return false; /* its magazine was faster */
    } while (!atomic_compare_exchange_weak_explicit(word, &old, old & ~PKVI_WORD_MAGAZINE,
                                                    memory_order_acq_rel, memory_order_relaxed));
    aux_at(pool, *page)->host = (uint32_t)refs_of(old);
    return true;
}

/* Adds `step` (1 or -1) to the host's count of the first n pages. Lock held. */
static void add_host_refs(struct pkvi_pool *pool, uint32_t n, const pkv_page *ids, uint32_t step)
{
    for (uint32_t i = 0; i < n; i++)
        aux_at(pool, pkv_page_index(ids[i]))->host += step;
}

pkv_status pkvi_pool_ref_ids(struct pkvi_pool *pool, uint32_t n, const pkv_page *ids)
{
    pkv_status status = PKV_OK;
    bool events = pkvi_events_on(pool->stats);
    pkvi_mutex_lock(&pool->lock);
    for (uint32_t i = 0; i < n && status == PKV_OK; i++) {
        uint32_t page;
        if (!hold_still(pool, ids[i], &page))
            status = PKV_ESTALE;
        else if (aux_at(pool, page)->host >= MAX_HOST_REFS)
            status = PKV_ERANGE;
        if (status == PKV_OK)
            aux_at(pool, page)->host++;
        else
            add_host_refs(pool, i, ids, UINT32_MAX);
    }
    for (uint32_t i = 0; i < n && status == PKV_OK; i++) {
        _Atomic uint64_t *word = word_at(pool, pkv_page_index(ids[i]));
        uint64_t old = load_word(word);
        store_word(word, old + 1);
        if (refs_of(old) != 1) continue;
        counter_add(&pool->shared, 1);
        if (events) pkvi_event(pool->stats, PKV_EVENT_PAGE_SHARE, pool->config.group, ids[i], 0, 0);
    }
    pkvi_mutex_unlock(&pool->lock);
    return status;
}

pkv_status pkvi_pool_unref_ids(struct pkvi_pool *pool, uint32_t n, const pkv_page *ids)
{
    struct pending pending;
    pending.n = 0;
    struct word_cursor cursor = {0};
    pkvi_mutex_lock(&pool->lock);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t page;
        if (!hold_still(pool, ids[i], &page) || !aux_at(pool, page)->host) {
            add_host_refs(pool, i, ids, 1);
            pkvi_mutex_unlock(&pool->lock);
            return PKV_ESTALE;
        }
        aux_at(pool, page)->host--;
    }
    for (uint32_t i = 0; i < n; i++)
        if (drop_ref(pool, &cursor, pkv_page_index(ids[i])))
            defer(pool, &pending, pkv_page_index(ids[i]));
    pkvi_mutex_unlock(&pool->lock);
    flush(pool, &pending);
    return PKV_OK;
}

pkv_status pkvi_pool_refs_id(struct pkvi_pool *pool, pkv_page id, uint32_t *refs)
{
    const _Atomic uint64_t *word = word_of_id(pool, id);
    uint64_t value = word ? atomic_load_explicit(word, memory_order_acquire) : 0;
    if (!word || !names(id, value)) return PKV_ESTALE;
    *refs = (uint32_t)refs_of(value);
    return PKV_OK;
}

pkv_status pkvi_pool_address_id(struct pkvi_pool *pool, pkv_page id, uint32_t layer, void **address)
{
    uint32_t page;
    if (pool->config.storage == PKV_STORAGE_NONE) return PKV_ENOTSUP;
    pkv_status status = pkvi_pool_lookup(pool, id, &page);
    if (status != PKV_OK) return status;
    *address = (char *)pkvi_pool_address(pool, page) + layer * pool->config.layer_bytes;
    return PKV_OK;
}
