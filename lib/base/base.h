/* base: what every other module stands on and what depends on nothing but libc: checked arithmetic,
 * exact division by an invariant, intrusive lists, bitmaps, locks with ranks, debug assertions and
 * the log sink. */
#ifndef PKVI_BASE_BASE_H
#define PKVI_BASE_BASE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <pagedkv/config.h>

/* ---- assertions: internal invariants only, never the caller's arguments --------------------- */

#ifdef PKV_DEBUG
#define PKVI_ASSERT(condition)                                                                     \
    ((condition) ? (void)0 : pkvi_assert_fail(#condition, __FILE__, __LINE__))
#else
#define PKVI_ASSERT(condition) ((void)sizeof(condition))
#endif
/* Names the assertion on stderr and aborts; reached in debug builds only. */
_Noreturn void pkvi_assert_fail(const char *condition, const char *file, int line);

#if defined(__GNUC__)
#define PKVI_LIKELY(x) __builtin_expect(!!(x), 1)
#define PKVI_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define PKVI_PRINTF(text, args) __attribute__((format(printf, text, args)))
#else
#define PKVI_LIKELY(x) (x)
#define PKVI_UNLIKELY(x) (x)
#define PKVI_PRINTF(text, args)
#endif

#define PKVI_CACHE_LINE 64

/* The struct that contains `member` at `ptr`. */
#define PKVI_CONTAINER_OF(ptr, type, member)                                                       \
    ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

/* ---- arithmetic: true and *out on success, false (and *out untouched) on overflow ----------- */

static inline bool pkvi_add_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    if (a > UINT64_MAX - b) return false;
    *out = a + b;
    return true;
}

static inline bool pkvi_mul_size(size_t a, size_t b, size_t *out)
{
    if (b && a > SIZE_MAX / b) return false;
    *out = a * b;
    return true;
}

static inline uint32_t pkvi_min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}
static inline uint32_t pkvi_max_u32(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}
static inline uint64_t pkvi_min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}
static inline uint64_t pkvi_max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* a / b rounded up; b > 0; cannot overflow. */
static inline uint64_t pkvi_ceil_div_u64(uint64_t a, uint64_t b)
{
    return a / b + (a % b != 0);
}

static inline bool pkvi_is_power_of_two(uint64_t x)
{
    return x && !(x & (x - 1));
}

/* Index of the highest set bit; x > 0. */
static inline uint32_t pkvi_log2_u32(uint32_t x)
{
    return 31u - (uint32_t)__builtin_clz(x);
}

/* Division of any uint32_t by a fixed 1 <= d < 2^32 with one multiplication (exact: with
 * m = ceil(2^64 / d) the error n * (m d - 2^64) stays below 2^64 for n, d < 2^32). */
struct pkvi_divisor {
    uint64_t magic; /* 0 stands for d = 1 */
    uint32_t d;
};

static inline struct pkvi_divisor pkvi_divisor(uint32_t d)
{
    return (struct pkvi_divisor){d == 1 ? 0 : UINT64_MAX / d + 1, d};
}

static inline uint32_t pkvi_div(struct pkvi_divisor by, uint32_t n)
{
    __extension__ typedef unsigned __int128 u128;
    return by.magic ? (uint32_t)(((u128)by.magic * n) >> 64) : n;
}

/* ---- public structs that carry their size -----------------------------------------------------
 * A program compiled against older headers passes a shorter struct: what it lacks reads as zero,
 * and outputs are cut to what it has. `least` is what a struct that the library reads had in its
 * first version, without spare fields, and never grows; longer structs than ours are unknown. */

static inline bool pkvi_size_known(size_t size, size_t least, size_t ours)
{
    return size >= least && size <= ours && size % 8 == 0;
}

/* Outputs may be cut anywhere behind their first field. */
#define PKVI_LEAST_OUTPUT 16u

/* Reads the caller's struct of `size` bytes into ours. */
static inline void pkvi_struct_read(void *to, size_t ours, const void *from, size_t size)
{
    memcpy(to, from, size);
    memset((char *)to + size, 0, ours - size);
}

/* Writes as much of ours as the caller's struct has; both start with their size. */
static inline void pkvi_struct_write(void *to, size_t size, const void *from)
{
    memcpy(to, from, size);
    memcpy(to, &size, sizeof size);
}

/* ---- intrusive doubly linked list: a ring with a head; not MT-safe -------------------------- */

struct pkvi_list {
    struct pkvi_list *next, *prev;
};

static inline void pkvi_list_init(struct pkvi_list *head)
{
    head->next = head->prev = head;
}
static inline bool pkvi_list_empty(const struct pkvi_list *head)
{
    return head->next == head;
}

static inline void pkvi_list_insert_before(struct pkvi_list *at, struct pkvi_list *node)
{
    node->prev = at->prev;
    node->next = at;
    at->prev->next = node;
    at->prev = node;
}

static inline void pkvi_list_push_back(struct pkvi_list *head, struct pkvi_list *node)
{
    pkvi_list_insert_before(head, node);
}

/* Unlinks a node and leaves it as an empty ring, so removing it twice is harmless. */
static inline void pkvi_list_remove(struct pkvi_list *node)
{
    node->prev->next = node->next;
    node->next->prev = node->prev;
    pkvi_list_init(node);
}

/* ---- bitmap over caller-owned words; not MT-safe -------------------------------------------- */

#define PKVI_BITMAP_WORDS(bits) (((size_t)(bits) + 63) / 64)
#define PKVI_BITMAP_NONE UINT32_MAX

static inline void pkvi_bitmap_set(uint64_t *words, uint32_t bit)
{
    words[bit / 64] |= UINT64_C(1) << (bit % 64);
}

static inline void pkvi_bitmap_clear(uint64_t *words, uint32_t bit)
{
    words[bit / 64] &= ~(UINT64_C(1) << (bit % 64));
}

/* First set bit at or after `from` among n_bits, or PKVI_BITMAP_NONE. O(words). */
uint32_t pkvi_bitmap_next(const uint64_t *words, uint32_t n_bits, uint32_t from);

/* ---- locks with ranks -------------------------------------------------------------------------
 * A thread may take a lock only if its rank is higher than that of every ranked lock it holds; so
 * no cycle of waiting can form. Debug builds check it: each cache owns a pkvi_lock_ranks table that
 * remembers which ranks each thread holds (a table, since the library uses no thread-local
 * storage). Release builds pay nothing. */

enum pkvi_rank {
    PKVI_RANK_CACHE = 1, /* handle tables: create and destroy of sequences and batches */
    PKVI_RANK_ADMISSION, /* claims */
    PKVI_RANK_EVICT,     /* policy state */
    PKVI_RANK_PREFIX,    /* prefix index */
    PKVI_RANK_GROW,      /* one pool's growth: held while a region is mapped */
    PKVI_RANK_REGIONS,   /* list of pools that may give up an empty region */
    PKVI_RANK_POOL,      /* one pool's page states; nothing is allocated under it */
    PKVI_RANK_EVENTS,    /* event ring */
    PKVI_RANK_BUDGET,    /* memory accounting */
    PKVI_RANK_ERROR,     /* text of the last failure */
    PKVI_RANK_COUNT
};

#define PKVI_LOCK_RANK_THREADS 64

/* Which ranks each thread holds. Zero-initialised; threads beyond the table go unchecked. */
struct pkvi_lock_ranks {
    struct {
        _Atomic uintptr_t thread; /* 0 = free */
        uint32_t held;            /* bit r = rank r; touched by its thread only */
    } entry[PKVI_LOCK_RANK_THREADS];
};

struct pkvi_mutex {
    pthread_mutex_t mutex;
#ifdef PKV_DEBUG
    struct pkvi_lock_ranks *ranks; /* NULL = unchecked */
    enum pkvi_rank rank;
#endif
};

/* ranks may be NULL. Returns false if the system refuses (then there is nothing to destroy). */
bool pkvi_mutex_init(struct pkvi_mutex *mutex, enum pkvi_rank rank, struct pkvi_lock_ranks *ranks);
void pkvi_mutex_destroy(struct pkvi_mutex *mutex);

#ifdef PKV_DEBUG
void pkvi_rank_enter(struct pkvi_mutex *mutex);
void pkvi_rank_leave(struct pkvi_mutex *mutex);
#endif

static inline void pkvi_mutex_lock(struct pkvi_mutex *mutex)
{
#ifdef PKV_DEBUG
    pkvi_rank_enter(mutex);
#endif
    pthread_mutex_lock(&mutex->mutex);
}

static inline void pkvi_mutex_unlock(struct pkvi_mutex *mutex)
{
    pthread_mutex_unlock(&mutex->mutex);
#ifdef PKV_DEBUG
    pkvi_rank_leave(mutex);
#endif
}

/* ---- log sink ------------------------------------------------------------------------------- */

/* Where messages go; fn NULL = nowhere. */
struct pkvi_log {
    pkv_log_fn fn;
    void *user;
};

/* Formats one line (cut at 255 bytes) and hands it to the sink at PKV_LOG_DEBUG. MT-safe if the
 * host's function is. */
void pkvi_log_debug(const struct pkvi_log *log, const char *format, ...) PKVI_PRINTF(2, 3);

/* snprintf into a caller's buffer that may be NULL or of size 0; always NUL-terminated otherwise.
 */
void pkvi_text(char *text, size_t capacity, const char *format, ...) PKVI_PRINTF(3, 4);

#endif
