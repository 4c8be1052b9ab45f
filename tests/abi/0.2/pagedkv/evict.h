#ifndef PAGEDKV_EVICT_H
#define PAGEDKV_EVICT_H
#include "types.h"
#ifdef __cplusplus
extern "C" {
#endif
#define PKV_EVICT_FULL_GROUPS UINT32_MAX
typedef int32_t pkv_evict_kind;
enum {
    PKV_EVICT_NONE = 0,
    PKV_EVICT_WINDOW = 1,
    PKV_EVICT_SINK = 2,
    PKV_EVICT_MASS = 3,
    PKV_EVICT_OBS = 4,
    PKV_EVICT_KEYDIFF = 5,
    PKV_EVICT_LRU_MASS = 6,
    PKV_EVICT_RANDOM = 7,
    PKV_EVICT_CALLBACK = 8,
    PKV_EVICT_TOPK = 9
};
enum {
    PKV_BUDGET_TOKENS = 0,
    PKV_BUDGET_PAGES = 1,
    PKV_BUDGET_BYTES = 2
};
enum {
    PKV_POSITION_ORIGINAL = 0,
    PKV_POSITION_COMPACT = 1
};
#define PKV_EVICT_AUTO UINT32_MAX
typedef void (*pkv_evict_score_fn)(void *user, pkv_seq seq, uint32_t group, uint64_t n_tokens,
                                   const uint32_t *logical, float *scores, uint32_t n);
typedef struct pkv_evict_config {
    size_t struct_size;
    pkv_evict_kind kind;
    int32_t budget_unit;
    uint64_t budget;
    uint32_t sinks;
    uint32_t window;
    int32_t position_mode;
    float gamma;
    uint32_t normalize_age;
    uint32_t obs_rows;
    float epsilon;
    uint32_t pool;
    uint64_t seed;
    pkv_evict_score_fn score;
    void *score_user;
    uint32_t journal_steps;
    uint32_t regret;
    uint32_t regret_pages;
    uint32_t regret_every;
    uint32_t regret_rank;
    uint32_t mass_every;
    uint64_t reserved[8];
} pkv_evict_config;
PKV_API pkv_status pkv_evict_config_init(pkv_evict_config *config, size_t size, pkv_evict_kind kind,
                                         uint64_t budget_tokens);
PKV_API pkv_status pkv_evict_config_named(pkv_evict_config *config, size_t size, const char *name,
                                          uint64_t budget_tokens);
PKV_API const char *pkv_evict_kind_name(pkv_evict_kind kind);
PKV_API pkv_status pkv_evict_check(pkv_cache *cache, uint32_t group, const pkv_evict_config *config,
                                   char *text, size_t capacity);
PKV_API pkv_status pkv_cache_set_evict(pkv_cache *cache, uint32_t group,
                                       const pkv_evict_config *config);
PKV_API pkv_status pkv_seq_set_evict(pkv_seq seq, uint32_t group, const pkv_evict_config *config);
PKV_API pkv_status pkv_seq_get_evict(pkv_seq seq, uint32_t group, pkv_evict_config *config);
PKV_API pkv_status pkv_seq_position(pkv_seq seq, uint32_t group, uint64_t *position);
typedef struct pkv_evict_run {
    uint64_t first;
    uint64_t n_tokens;
    uint64_t shift;
    uint64_t reserved;
} pkv_evict_run;
PKV_API pkv_status pkv_seq_runs(pkv_seq seq, uint32_t group, pkv_evict_run *runs, uint32_t capacity,
                                uint32_t *n);
typedef struct pkv_evict_info {
    size_t struct_size;
    pkv_evict_kind kind;
    int32_t position_mode;
    uint32_t budget_pages;
    uint32_t sink_pages;
    uint32_t window_pages;
    uint32_t resident_pages;
    uint32_t journal_pages;
    uint32_t tainted;
    uint64_t dropped_tokens;
    uint64_t pages_evicted;
    uint64_t pages_restored;
    uint64_t salt;
    uint64_t mass_steps;
    uint64_t regret_checks;
    uint64_t regrets;
    uint64_t regret_steps;
} pkv_evict_info;
PKV_API pkv_status pkv_seq_evict_info(pkv_seq seq, uint32_t group, pkv_evict_info *info);
PKV_API pkv_status pkv_seq_tainted(pkv_seq seq, uint32_t *tainted);
PKV_API pkv_status pkv_seq_page_scores(pkv_seq seq, uint32_t group, uint32_t *logical,
                                       float *scores, uint32_t capacity, uint32_t *n);
PKV_API pkv_status pkv_seq_feed_mass(pkv_seq seq, uint32_t group, const float *mass, uint32_t n);
PKV_API pkv_status pkv_seq_wants_mass(pkv_seq seq, uint32_t group, uint32_t *wants);
#ifdef __cplusplus
}
#endif
#endif
