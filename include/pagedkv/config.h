/* pagedkv: how a cache is described.
 *
 *     const pkv_group_config group = {.n_layers = 32, .kv_heads = 8, .q_heads = 32,
 *                                     .head_dim_k = 128};
 *     pkv_config config;
 *     pkv_config_init(&config, sizeof config);      // defaults
 *     config.groups = &group;
 *     config.n_groups = 1;
 *     pkv_cache_create(&config, &cache);
 *
 * Structs here grow in later versions, and programs compiled before go on working (docs/abi.md):
 * pkv_config_init notes the sizes the caller was compiled with, those of the array elements
 * included; fields that a program does not know are zero, which always means "as before". So start
 * every element from zero, `= {0}` or an initializer, never field by field on uninitialised
 * memory. */
#ifndef PAGEDKV_CONFIG_H
#define PAGEDKV_CONFIG_H

#include "types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Layers with the same geometry and attention span. */
typedef struct pkv_group_config {
    uint32_t n_layers;   /* layers in this group, >= 1 */
    uint32_t kv_heads;   /* KV heads per layer, 1..PKV_MAX_HEADS */
    uint32_t q_heads;    /* query heads per layer, a multiple of kv_heads; 0 = kv_heads */
    uint32_t head_dim_k; /* elements of a key, multiple of 8, 8..PKV_MAX_HEAD_DIM */
    uint32_t head_dim_v; /* elements of a value, same bounds; 0 = head_dim_k */
    uint32_t window;     /* sliding window in tokens (a query at p sees keys > p - window);
                          * 0 = full attention */
    pkv_dtype dtype;     /* format of keys and values: F32, F16 or BF16; 0 = PKV_DTYPE_F16. In a
                          * quantised group the format of open pages */
    uint32_t max_pages;  /* most pages this group may hold; 0 = bounded by memory_limit only */
    /* Model layer numbers of this group, n_layers entries, read during pkv_cache_create only.
     * NULL = the next n_layers numbers after those of the previous group. Over all groups every
     * layer number 0..total-1 must occur exactly once. */
    const uint32_t *layers;
    /* PKV_STORAGE_EXTERNAL: the group's buffer, and its size in bytes. Must stay valid until the
     * cache is destroyed, and no byte may belong to two groups (PKV_EINVAL). A device address is
     * fine: the library dereferences it in attention.h only. */
    void *external_base;
    size_t external_bytes;
    /* Format of keys and of values apart; 0 = dtype. One of K8, K4 (keys) or V8, V4 (values) makes
     * the group *quantised*: tokens are written to "open" pages of type dtype, and a page is
     * quantised once, when it is full ("sealed"); keys or values that are not quantised are then of
     * type dtype. Open pages lie in a pool of their own: one per sequence for its partial last page,
     * and during a step one for every page that gets new tokens. They count against memory_limit and
     * in admission, and show as pages_open in the statistics. Storage HOST or NONE; PKV_ENOTSUP with
     * EXTERNAL. What attention sees: attention.h. */
    pkv_dtype dtype_k, dtype_v;
    /* A *state group* (state.h): n_layers recurrent layers that each keep a state of state_bytes
     * bytes per sequence, instead of keys and values. Such groups stand behind those with pages, of
     * which there is at least one; only n_layers, max_pages (slots) and the external buffer are
     * theirs, and their layers have no model layer number.
     * (The field stands further down.) Of the other fields, not in this version, PKV_EINVAL with a
     * text unless zero: */
    pkv_storage storage;  /* storage of this group; 0 = as the cache */
    uint32_t page_tokens; /* tokens per page of this group; 0 = as the cache */
    uint32_t v_in_k;      /* 1 = a value is the leading head_dim_v elements of its key (MLA) */
    uint32_t chunk;       /* chunked-local attention: a query at p sees keys from p - p % chunk on */
    uint64_t state_bytes; /* 0, or a state group: bytes of one layer's state, see above */
    uint64_t reserved[8]; /* zero */
} pkv_group_config;

/* Where metadata comes from. All three are called with `user`; `size` in free is the size given to
 * alloc. Must be MT-safe if the cache is used from several threads. Alignment is a power of two. */
typedef struct pkv_allocator {
    void *user;
    void *(*alloc)(void *user, size_t size, size_t alignment);
    void (*free)(void *user, void *ptr, size_t size);
} pkv_allocator;

/* Log levels: the library itself only emits DEBUG; a message is one line without newline. */
enum { PKV_LOG_DEBUG = 0, PKV_LOG_INFO = 1, PKV_LOG_WARN = 2, PKV_LOG_ERROR = 3 };
typedef void (*pkv_log_fn)(void *user, int level, const char *message);

/* Monotonic clock in nanoseconds (TTL, statistics); NULL in the config = CLOCK_MONOTONIC. */
typedef uint64_t (*pkv_clock_fn)(void *user);

/* Rotary embedding the model applies to queries and keys before they reach the cache. Needed by
 * PKV_POSITION_COMPACT only (evict.h). Scaling: frequencies may be given explicitly. */
typedef struct pkv_rope_config {
    uint32_t rotary_dims;     /* leading dims that rotate, even; 0 = the group has no RoPE info */
    uint32_t interleaved;     /* 1: pairs (2i, 2i+1); 0: half-split pairs (i, i + rotary_dims/2) */
    double theta;             /* base; used when frequencies == NULL */
    double position_scale;    /* linear scaling: angle = position * position_scale * freq; 0 = 1 */
    const double *frequencies;/* rotary_dims/2 angular frequencies in rad/token, or NULL; copied */
    uint64_t reserved[4];     /* zero */
} pkv_rope_config;

/* Signals about keys that each page carries, or-ed into pkv_config.signals; computed when a page is
 * full, stored in the page (every layer's part grows by it), used by eviction (evict.h). HOST and
 * EXTERNAL storage. */
enum {
    PKV_SIGNAL_BOUNDS = 1u, /* minimum and maximum of every key element: TOPK and the regret meter.
                             * Groups with quantised keys have them anyway */
    PKV_SIGNAL_KEYSUM = 2u  /* sum of the normalised keys: KEYDIFF */
};

/* Debug aids, or-ed into pkv_config.debug. Cost: each touches whole pages. */
enum {
    PKV_DEBUG_POISON = 1u,   /* fill freed pages with NaN patterns (HOST storage) */
    PKV_DEBUG_CHECKSUM = 2u  /* checksum sealed pages; pkv_cache_verify compares (HOST storage) */
};

typedef struct pkv_config {
    size_t struct_size;       /* set by pkv_config_init */
    size_t group_size;        /* bytes from one entry of groups to the next: sizeof of the caller's
                               * pkv_group_config, set by pkv_config_init */
    size_t rope_size;         /* the same of rope */
    const pkv_group_config *groups; /* n_groups entries, the caller's array, read during create
                                     * only */
    uint32_t n_groups;        /* 1..PKV_MAX_GROUPS */
    uint32_t page_tokens;     /* tokens per page: 8, 16, 32, 64 or 128; default 16 */
    pkv_storage storage;      /* default PKV_STORAGE_HOST */
    uint32_t debug;           /* PKV_DEBUG_* */
    uint64_t memory_limit;    /* bytes of pages and metadata together; 0 = 1 GiB default */
    uint64_t region_bytes;    /* multiple of 2 MiB; 0 = chosen from the page sizes */
    uint32_t max_sequences;   /* most live sequences; default 65536 */
    uint32_t max_batches;     /* most open batches; default 64 */
    uint32_t event_capacity;  /* entries of the event ring, power of two; 0 = no events */
    uint32_t prefix;          /* 1 = keep a prefix index (prefix.h); default 1 */
    uint32_t huge_pages;      /* 1 = advise huge pages for regions; default 1 */
    int32_t numa_node;        /* preferred node of regions, -1 = none (default) */
    uint32_t watermark_pages; /* pages per group that admission keeps free; default 0 */
    uint32_t fork_policy;     /* 1 = MADV_DONTFORK on regions; default 0 */
    const pkv_allocator *allocator; /* copied; NULL = jemalloc with a private arena if the
                                     * process has jemalloc, else libc */
    pkv_log_fn log;           /* NULL = silent */
    void *log_user;
    pkv_clock_fn clock;       /* NULL = CLOCK_MONOTONIC */
    void *clock_user;
    const char *isa;          /* kernel override: "generic", "avx2", "avx512", "avx512bf16",
                               * "neon", …; NULL = best of this CPU */
    const pkv_rope_config *rope; /* n_groups entries or NULL; copied */
    uint32_t signals;            /* PKV_SIGNAL_*; default 0 */
    const char *prefix_policy;   /* replacement policy of cached prefixes by name (prefix.h);
                                  * NULL = "lru-leaf" */
    uint64_t prefix_key[2];   /* test override of the index's hash key; {0,0} = random per cache */
    uint64_t reserved[8];     /* zero */
} pkv_config;

/* Fills defaults. `size` is sizeof(pkv_config) as the caller was compiled: it tells the version of
 * the caller's headers, hence group_size and rope_size. PKV_EVERSION for a size this library does
 * not know, PKV_EINVAL for NULL; nothing is written then. MT-safe, O(1). */
PKV_API pkv_status pkv_config_init(pkv_config *config, size_t size);

/* Bounds of a numeric parameter by field name ("page_tokens", "head_dim_k", ...): PKV_EINVAL for an
 * unknown name. For page_tokens every power of two between the bounds is allowed. MT-safe, O(1). */
PKV_API pkv_status pkv_config_bounds(const char *field, uint64_t *min, uint64_t *max);

/* Checks a whole config without creating anything; on failure writes a text naming the field and
 * the reason ("groups[1].kv_heads: 0 is not in 1..512") to text[0..capacity), truncated and
 * NUL-terminated; text may be NULL. PKV_EINVAL, PKV_EVERSION (a struct size), PKV_ENOTSUP (isa, or
 * a page format of a later version). MT-safe, O(groups² + layers). */
PKV_API pkv_status pkv_config_check(const pkv_config *config, char *text, size_t capacity);

#ifdef __cplusplus
}
#endif
#endif
