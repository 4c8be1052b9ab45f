/* A host as it was compiled against the headers of one version (tests/abi/VERSION/ or the present
 * ones), run with the library of today: every struct that carries its size is passed as these
 * headers have it and cut to every shorter size that was promised; arrays with elements of a
 * promised size; a step whose numbers are known. */
#include <pagedkv/pagedkv.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *where;

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, where, #condition);                      \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)
#define OK(call) CHECK((call) == PKV_OK)

enum { GUARD = 0xa5, ROOM = 4096 };

/* A struct of `size` bytes that ends where foreign bytes begin. */
static union {
    unsigned char bytes[ROOM];
    uint64_t align;
    size_t struct_size;
} box;

static void *box_of(size_t size)
{
    memset(box.bytes, GUARD, sizeof box.bytes);
    memset(box.bytes, 0, size);
    box.struct_size = size;
    return box.bytes;
}

static void box_intact(size_t size)
{
    CHECK(box.struct_size == size);
    for (size_t i = size; i < sizeof box.bytes; i++)
        CHECK(box.bytes[i] == GUARD);
}

static pkv_cache *cache;
static pkv_seq seq;
static const int32_t tokens[40] = {5, 4, 3, 2, 1};

/* Every call takes a struct in the box, of the size that stands in it. */

static pkv_status call_group_info(void *box_)
{
    return pkv_cache_group_info(cache, 0, box_);
}
static pkv_status call_stats(void *box_)
{
    return pkv_cache_stats(cache, box_);
}
static pkv_status call_group_stats(void *box_)
{
    return pkv_cache_group_stats(cache, 0, box_);
}
static pkv_status call_seq_info(void *box_)
{
    return pkv_seq_get_info(seq, 0, box_);
}
static pkv_status call_evict_info(void *box_)
{
    return pkv_seq_evict_info(seq, 0, box_);
}
static pkv_status call_prefix_stats(void *box_)
{
    return pkv_prefix_get_stats(cache, NULL, box_);
}
static pkv_status call_match(void *box_)
{
    return pkv_prefix_match(cache, NULL, tokens, 40, box_);
}
static pkv_status call_get_evict(void *box_)
{
    return pkv_seq_get_evict(seq, 0, box_);
}

static pkv_status call_index_stats(void *box_)
{
    static pkv_index *index;
    pkv_index_config config;
    if (index == NULL) {
        OK(pkv_index_config_init(&config, sizeof config));
        OK(pkv_index_create(&config, &index));
        const uint64_t ids[3] = {7, 8, 9};
        uint32_t hits;
        OK(pkv_index_replay(index, ids, 3, NULL, 0, &hits));
    }
    return pkv_index_get_stats(index, box_);
}

static pkv_status call_quota(void *box_)
{
    const pkv_namespace space = {"quota", 5};
    ((pkv_prefix_quota *)box_)->share = 3;
    return pkv_prefix_set_quota(cache, &space, box_);
}

static pkv_status call_plan_options(void *box_)
{
    const size_t size = box.struct_size;
    pkv_status status = pkv_plan_options_init(box_, size);
    if (status != PKV_OK) return status;
    const pkv_plan_options *options = box_;
    CHECK(options->concurrent_layers == 1 && options->cascade == 1);
    pkv_plan *plan;
    status = pkv_plan_create(cache, box_, &plan);
    if (status == PKV_OK) pkv_plan_destroy(plan);
    return status;
}

static pkv_status call_evict_config(void *box_)
{
    const size_t size = box.struct_size;
    const pkv_status status = pkv_evict_config_init(box_, size, PKV_EVICT_SINK, 64);
    if (status != PKV_OK) return status;
    CHECK(((pkv_evict_config *)box_)->mass_every == 2);
    return pkv_evict_check(cache, 0, box_, NULL, 0);
}

static pkv_status call_index_config(void *box_)
{
    const size_t size = box.struct_size;
    pkv_status status = pkv_index_config_init(box_, size);
    if (status != PKV_OK) return status;
    CHECK(((pkv_index_config *)box_)->pages == PKV_INDEX_UNLIMITED);
    pkv_index *index;
    status = pkv_index_create(box_, &index);
    if (status == PKV_OK) pkv_index_destroy(index);
    return status;
}

static pkv_status call_config(void *box_)
{
    const pkv_group_config group = {.n_layers = 1, .kv_heads = 1, .head_dim_k = 64};
    const size_t size = box.struct_size;
    pkv_status status = pkv_config_init(box_, size);
    if (status != PKV_OK) return status;
    pkv_config *config = box_;
    CHECK(config->group_size == sizeof group && config->rope_size == sizeof(pkv_rope_config));
    CHECK(config->page_tokens == 16 && config->prefix == 1);
    config->groups = &group;
    config->n_groups = 1;
    pkv_cache *other;
    status = pkv_cache_create(config, &other);
    if (status == PKV_OK) pkv_cache_destroy(other);
    return status;
}

/* `least` is the size that every library of this soname accepts. */
static const struct {
    const char *name;
    pkv_status (*call)(void *box);
    size_t least, size;
    int output; /* a shorter struct gets the beginning of what a longer one gets */
} calls[] = {
    {"pkv_group_info", call_group_info, 16, sizeof(pkv_group_info), 1},
    {"pkv_stats", call_stats, 16, sizeof(pkv_stats), 1},
    {"pkv_group_stats", call_group_stats, 16, sizeof(pkv_group_stats), 1},
    {"pkv_seq_info", call_seq_info, 16, sizeof(pkv_seq_info), 1},
    {"pkv_evict_info", call_evict_info, 16, sizeof(pkv_evict_info), 1},
    {"pkv_index_stats", call_index_stats, 16, sizeof(pkv_index_stats), 1},
    {"pkv_prefix_stats", call_prefix_stats, 16, sizeof(pkv_prefix_stats), 1},
    {"pkv_match", call_match, 104, sizeof(pkv_match), 0},
    {"pkv_evict_config (get)", call_get_evict, 104, sizeof(pkv_evict_config), 1},
    {"pkv_evict_config", call_evict_config, 104, sizeof(pkv_evict_config), 0},
    {"pkv_prefix_quota", call_quota, 24, sizeof(pkv_prefix_quota), 0},
    {"pkv_plan_options", call_plan_options, 56, sizeof(pkv_plan_options), 0},
    {"pkv_index_config", call_index_config, 64, sizeof(pkv_index_config), 0},
    {"pkv_config", call_config, 240, sizeof(pkv_config), 0},
};

static void all_sizes(void)
{
    for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++) {
        unsigned char whole[ROOM];
        where = calls[i].name;
        OK(calls[i].call(box_of(calls[i].size)));
        box_intact(calls[i].size);
        memcpy(whole, box.bytes, sizeof whole);
        for (size_t size = calls[i].least; size < calls[i].size; size += 8) {
            OK(calls[i].call(box_of(size)));
            box_intact(size);
            /* Counters that move between the calls are not at these structs' beginnings. */
            if (calls[i].output && calls[i].call != call_prefix_stats)
                CHECK(memcmp(box.bytes + 8, whole + 8, size - 8) == 0);
        }
        CHECK(calls[i].call(box_of(calls[i].least - 8)) == PKV_EVERSION);
        CHECK(calls[i].call(box_of(calls[i].size - 4)) == PKV_EVERSION);
        CHECK(calls[i].call(box_of(2048)) == PKV_EVERSION);
        box_intact(2048);
#ifdef PRESENT_HEADERS
        CHECK(calls[i].call(box_of(calls[i].size + 8)) == PKV_EVERSION);
#endif
    }
}

/* Two groups of different geometry with a RoPE each, in arrays whose elements have these sizes. */
static void one_stride(size_t group_size, size_t rope_size)
{
    where = "strides";
    const pkv_group_config groups[2] = {{.n_layers = 2, .kv_heads = 2, .head_dim_k = 64},
                                        {.n_layers = 3,
                                         .kv_heads = 1,
                                         .head_dim_k = 32,
                                         .window = 128,
                                         .dtype_k = PKV_DTYPE_F32,
                                         .dtype_v = PKV_DTYPE_F32}};
    const pkv_rope_config ropes[2] = {{.rotary_dims = 64, .theta = 1e4},
                                      {.rotary_dims = 32, .theta = 1e6}};
    static uint64_t group_room[256], rope_room[256];
    memset(group_room, GUARD, sizeof group_room);
    memset(rope_room, GUARD, sizeof rope_room);
    for (size_t i = 0; i < 2; i++) {
        memcpy((char *)group_room + i * group_size, &groups[i], group_size);
        memcpy((char *)rope_room + i * rope_size, &ropes[i], rope_size);
    }
    pkv_config config;
    OK(pkv_config_init(&config, sizeof config));
    config.groups = (const pkv_group_config *)(const void *)group_room;
    config.rope = (const pkv_rope_config *)(const void *)rope_room;
    config.n_groups = 2;
    config.group_size = group_size;
    config.rope_size = rope_size;
    pkv_cache *other;
    char text[128];
    const pkv_status status = pkv_config_check(&config, text, sizeof text);
    if (status != PKV_OK) printf("%s\n", text);
    OK(status);
    OK(pkv_cache_create(&config, &other));
    pkv_group_info info = {.struct_size = sizeof info};
    OK(pkv_cache_group_info(other, 1, &info));
    CHECK(info.n_layers == 3 && info.head_dim_k == 32 && info.window == 128);
    CHECK(info.dtype_k == PKV_DTYPE_F32);
    pkv_evict_config compact; /* needs the second rope */
    OK(pkv_evict_config_init(&compact, sizeof compact, PKV_EVICT_SINK, 64));
    compact.position_mode = PKV_POSITION_COMPACT;
    OK(pkv_evict_check(other, 0, &compact, NULL, 0));
    pkv_cache_destroy(other);
}

static void all_strides(void)
{
    for (size_t group = 88; group <= sizeof(pkv_group_config); group += 8)
        one_stride(group, sizeof(pkv_rope_config));
    for (size_t rope = 32; rope <= sizeof(pkv_rope_config); rope += 8)
        one_stride(sizeof(pkv_group_config), rope);
}

enum { HEADS = 2, DIM = 64, STEP = 20 };

/* Keys of zero: row t of the output is the mean of values 0..t. */
static void one_step(pkv_plan *plan, pkv_batch batch, uint64_t before)
{
    static float k[STEP][HEADS][DIM], v[STEP][HEADS][DIM], out[STEP][HEADS][DIM];
    for (int t = 0; t < STEP; t++)
        for (int h = 0; h < HEADS; h++)
            for (int d = 0; d < DIM; d++)
                v[t][h][d] = (float)(before + (uint64_t)t);
    const pkv_rows rows = {.data = k,
                           .dtype = PKV_DTYPE_F32,
                           .heads = HEADS,
                           .dim = DIM,
                           .token_stride = sizeof k[0],
                           .head_stride = sizeof k[0][0]};
    pkv_rows values = rows;
    values.data = v;
    const pkv_rows_out result = {.data = out,
                                 .dtype = PKV_DTYPE_F32,
                                 .heads = HEADS,
                                 .dim = DIM,
                                 .token_stride = sizeof out[0],
                                 .head_stride = sizeof out[0][0]};
    OK(pkv_plan_build(plan, batch));
    OK(pkv_write(plan, 0, &rows, &values, 0, 1));
    OK(pkv_attend(plan, 0, &rows, &result, NULL, 0, 1));
    for (int t = 0; t < STEP; t++)
        CHECK(fabsf(out[t][1][DIM - 1] - (float)(before + (uint64_t)t) / 2) < 1e-4f);
}

static void array_elements(pkv_seq child)
{
    pkv_batch batch;
    pkv_copy copies[2];
    pkv_evict_run runs[2];
    pkv_event events[64];
    uint32_t n;
    where = "arrays that the library fills";
    OK(pkv_batch_begin(cache, &batch));
    OK(pkv_batch_add(batch, child, NULL, 1));
    OK(pkv_batch_reserve(batch));
    memset(copies, GUARD, sizeof copies);
    OK(pkv_batch_copies(batch, copies, 2, &n));
    CHECK(n == 1 && copies[0].n_tokens == 40 % 16 && copies[0].src != copies[0].dst);
    CHECK(((unsigned char *)&copies[1])[0] == GUARD);
    OK(pkv_batch_abort(batch));
    memset(runs, GUARD, sizeof runs);
    OK(pkv_seq_runs(child, 0, runs, 2, &n));
    CHECK(n == 1 && runs[0].first == 0 && runs[0].n_tokens == 40 && runs[0].shift == 0);
    CHECK(((unsigned char *)&runs[1])[0] == GUARD);
    memset(events, GUARD, sizeof events);
    OK(pkv_cache_events(cache, events, 64, &n));
    CHECK(n > 5 && n < 64 && ((unsigned char *)&events[n])[0] == GUARD);
    for (uint32_t i = 0; i < n; i++)
        CHECK(events[i].number == i && events[i].group == 0 && events[i].kind > 0);
}

int main(void)
{
    where = "start";
    CHECK(pkv_version() >= PKV_VERSION && pkv_version() >> 16 == PKV_VERSION_MAJOR);
    const pkv_group_config group = {
        .n_layers = 1, .kv_heads = HEADS, .head_dim_k = DIM, .dtype = PKV_DTYPE_F32};
    pkv_config config;
    OK(pkv_config_init(&config, sizeof config));
    config.groups = &group;
    config.n_groups = 1;
    config.event_capacity = 256;
    OK(pkv_cache_create(&config, &cache));
    OK(pkv_seq_create(cache, &seq));
    pkv_plan *plan;
    OK(pkv_plan_create(cache, NULL, &plan));
    for (int i = 0; i < 2; i++) {
        pkv_batch batch;
        where = "a step";
        OK(pkv_batch_begin(cache, &batch));
        OK(pkv_batch_add(batch, seq, tokens + i * STEP, STEP));
        OK(pkv_batch_reserve(batch));
        one_step(plan, batch, (uint64_t)(i * STEP));
        OK(pkv_batch_commit(batch));
    }
    pkv_match match = {.struct_size = sizeof match};
    pkv_seq child;
    where = "match and attach";
    OK(pkv_prefix_match(cache, NULL, tokens, 40, &match));
    CHECK(match.n_tokens == 32 && match.n_pages == 2);
    OK(pkv_seq_create(cache, &child));
    OK(pkv_seq_attach(child, &match));
    OK(pkv_seq_destroy(child));
    OK(pkv_seq_fork(seq, &child));
    array_elements(child);
    OK(pkv_seq_destroy(child));
    all_sizes();
    all_strides();
    char text[256];
    where = "end";
    OK(pkv_cache_verify(cache, text, sizeof text));
    pkv_plan_destroy(plan);
    pkv_cache_destroy(cache);
    printf("a host of %s works with %s\n", PKV_VERSION_STRING, pkv_version_string());
    return 0;
}
