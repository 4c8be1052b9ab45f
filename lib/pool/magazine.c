/* Magazines: a small stack of free pages that one thread at a time uses without locks.
 *
 * A parked page has the MAGAZINE flag and no references. Taking it is a store (nobody else may
 * change a page without references); giving it back is one compare-and-swap from "exactly one
 * reference and still flagged", which also checks the generation. Anything else goes the way under
 * the lock. */
#include "pool/internal.h"

static size_t bytes_of(uint32_t capacity)
{
    return sizeof(pkv_magazine) + capacity * sizeof(pkv_page);
}

/* Only the owning thread writes these. */
static void set_parked(pkv_magazine *magazine, uint32_t n)
{
    atomic_store_explicit(&magazine->parked, n, memory_order_relaxed);
}

static uint32_t get_parked(const pkv_magazine *magazine)
{
    return atomic_load_explicit(&magazine->parked, memory_order_relaxed);
}

pkv_status pkvi_magazine_create(struct pkvi_pool *pool, uint32_t capacity, pkv_magazine **magazine)
{
    if (!capacity || capacity > 4096) return PKV_EINVAL;
    /* A cache line of its own: magazines of different threads must not share one. */
    size_t bytes = (bytes_of(capacity) + PKVI_CACHE_LINE - 1) & ~(size_t)(PKVI_CACHE_LINE - 1);
    pkv_magazine *made = pkvi_mem_alloc_aligned(pool->mem, bytes, PKVI_CACHE_LINE);
    if (!made) return PKV_ENOMEM;
    made->pool = pool;
    made->capacity = capacity;
    made->bytes = bytes;
    atomic_init(&made->parked, 0);
    atomic_init(&made->allocs, 0);
    atomic_init(&made->frees, 0);
    pkvi_mutex_lock(&pool->lock);
    pkvi_list_push_back(&pool->magazines, &made->link);
    pkvi_mutex_unlock(&pool->lock);
    *magazine = made;
    return PKV_OK;
}

/* Puts the n topmost pages back into the pool. Lock held. */
static void spill(pkv_magazine *magazine, uint32_t n)
{
    struct pkvi_pool *pool = magazine->pool;
    uint32_t top = get_parked(magazine);
    for (uint32_t i = 0; i < n; i++) {
        pkv_page id = magazine->ids[--top];
        store_word(word_at(pool, pkv_page_index(id)), generation_of(id));
        pkvi_pool_poison(pool, pkv_page_index(id)); /* it may never have been in use */
        pkvi_pool_put(pool, pkv_page_index(id));
    }
    counter_add(&pool->out, 0 - (uint64_t)n);
    set_parked(magazine, top);
}

void pkv_magazine_destroy(pkv_magazine *magazine)
{
    if (!magazine) return;
    struct pkvi_pool *pool = magazine->pool;
    pkvi_mutex_lock(&pool->lock);
    spill(magazine, get_parked(magazine));
    counter_add(&pool->allocs, counter_get(&magazine->allocs));
    counter_add(&pool->frees, counter_get(&magazine->frees));
    pkvi_list_remove(&magazine->link);
    pkvi_mutex_unlock(&pool->lock);
    pkvi_mem_free(pool->mem, magazine, magazine->bytes);
}

void pkvi_magazines_free_all(struct pkvi_pool *pool)
{
    while (!pkvi_list_empty(&pool->magazines))
        pkv_magazine_destroy(PKVI_CONTAINER_OF(pool->magazines.next, pkv_magazine, link));
}

static pkv_status refill(pkv_magazine *magazine)
{
    uint32_t got, half = (magazine->capacity + 1) / 2;
    struct taken to = {.holder = HOLDER_MAGAZINE, .ids = magazine->ids};
    pkv_status status = pkvi_pool_obtain(magazine->pool, 1, half, to, &got);
    if (status != PKV_OK) return status;
    /* Lowest index on top. */
    for (uint32_t i = 0; i < got / 2; i++) {
        pkv_page id = magazine->ids[i];
        magazine->ids[i] = magazine->ids[got - 1 - i];
        magazine->ids[got - 1 - i] = id;
    }
    set_parked(magazine, got);
    return PKV_OK;
}

pkv_status pkv_magazine_alloc(pkv_magazine *magazine, pkv_page *page)
{
    if (PKVI_UNLIKELY(!magazine || !page)) return PKV_EINVAL;
    uint32_t n = get_parked(magazine);
    if (PKVI_UNLIKELY(!n)) {
        pkv_status status = refill(magazine);
        if (status != PKV_OK) return status;
        n = get_parked(magazine);
    }
    struct pkvi_pool *pool = magazine->pool;
    pkv_page id = magazine->ids[n - 1];
    set_parked(magazine, n - 1);
    store_word(word_at(pool, pkv_page_index(id)), generation_of(id) | PKVI_WORD_MAGAZINE | 1);
    counter_add(&magazine->allocs, 1);
    if (pkvi_events_on(pool->stats))
        pkvi_event(pool->stats, PKV_EVENT_PAGE_ALLOC, pool->config.group, id, 0, 0);
    *page = id;
    return PKV_OK;
}

pkv_status pkv_magazine_free(pkv_magazine *magazine, pkv_page page)
{
    if (PKVI_UNLIKELY(!magazine)) return PKV_EINVAL;
    struct pkvi_pool *pool = magazine->pool;
    uint32_t index = pkv_page_index(page);
    if (index >= atomic_load_explicit(&pool->words.capacity, memory_order_acquire))
        return PKV_ESTALE;
    uint32_t n = get_parked(magazine);
    if (PKVI_UNLIKELY(n == magazine->capacity)) {
        pkvi_mutex_lock(&pool->lock);
        spill(magazine, (n + 1) / 2);
        pkvi_mutex_unlock(&pool->lock);
        n = get_parked(magazine);
    }
    uint64_t one_reference = generation_of(page) | PKVI_WORD_MAGAZINE | 1;
    pkv_page next = next_generation(page) | index;
    if (!atomic_compare_exchange_strong_explicit(word_at(pool, index), &one_reference,
                                                 generation_of(next) | PKVI_WORD_MAGAZINE,
                                                 memory_order_acq_rel, memory_order_relaxed))
        return pkvi_pool_unref_ids(pool, 1, &page);
    pkvi_pool_poison(pool, index);
    magazine->ids[n] = next;
    set_parked(magazine, n + 1);
    counter_add(&magazine->frees, 1);
    if (pkvi_events_on(pool->stats))
        pkvi_event(pool->stats, PKV_EVENT_PAGE_FREE, pool->config.group, page, 0, 0);
    return PKV_OK;
}
