/* Operations on the cache: limits, single pages, magazines, counters, refusals, questions. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "world.h"

/* ---- limits --------------------------------------------------------------------------------- */

static void op_limit(struct world *w)
{
    const uint64_t most = w->config.memory_limit;
    uint64_t limit = most / 8 * (1 + world_below(w, 8));
    if (world_once(w, 3)) limit = most;
    pkv_limit_shortfall shortfall = {.struct_size = sizeof shortfall};
    WORLD_CHECK(w, pkv_cache_limit_shortfall(w->cache, limit, &shortfall) == PKV_OK, "shortfall");
    if (world_did(w, pkv_cache_set_limit(w->cache, limit), "pkv_cache_set_limit",
                  WORLD_OTHERS(PKV_EBUSY, PKV_EINVAL)))
        w->limit = limit;
    w->disturbed++;
    world_check_all(w);
}

static void op_trim(struct world *w)
{
    uint64_t bytes = 0;
    WORLD_CHECK(w, pkv_cache_trim(w->cache, world_once(w, 2) ? NULL : &bytes) == PKV_OK, "trim");
}

/* The host's part of moving pages. */
static pkv_status move_pages(void *user, uint32_t group, uint32_t n, const uint32_t *from,
                             const uint32_t *to)
{
    struct world *w = user;
    const size_t bytes = w->group[group].info.page_bytes;
    for (uint32_t i = 0; i < n; i++) {
        if (w->config.storage == PKV_STORAGE_NONE) {
            for (uint32_t t = 0; t < w->page_tokens; t++)
                *world_slot(w, group, to[i], t) = *world_slot(w, group, from[i], t);
        } else {
            char *base = w->group[group].buffer;
            memcpy(base + to[i] * bytes, base + from[i] * bytes, bytes);
        }
    }
    return PKV_OK;
}

static void op_compact(struct world *w)
{
    const bool own = w->config.storage == PKV_STORAGE_HOST;
    const uint64_t most = world_once(w, 2) ? UINT64_MAX : world_below(w, 1 << 20);
    uint64_t moved = 0;
    if (!own) WORLD_CHECK(w, pkv_cache_compact(w->cache, most, &moved) == PKV_ENOTSUP, "compact");
    const pkv_status status = own ? pkv_cache_compact(w->cache, most, &moved)
                                  : pkv_cache_compact_with(w->cache, most, move_pages, w, &moved);
    if (!world_did(w, status, "pkv_cache_compact", WORLD_NONE)) return;
    for (int i = 0; i < WORLD_SEQS; i++) {
        struct world_seq *s = &w->seq[i];
        if (!s->live) continue;
        const struct world_seq before = *s;
        world_look(w, s);
        for (uint32_t g = 0; g < w->n_groups; g++)
            for (uint32_t l = 0; l < s->n_pages; l++)
                WORLD_CHECK(w,
                            (before.page[g][l] == PKV_PAGE_NONE) ==
                                    (s->page[g][l] == PKV_PAGE_NONE) &&
                                (s->batch < 0 || !w->batch[s->batch].reserved ||
                                 before.page[g][l] == s->page[g][l]),
                            "group %u: compaction changed page %u of sequence %d", g, l, i);
    }
    world_check_all(w);
}

/* ---- refusals ------------------------------------------------------------------------------- */

static void op_arm(struct world *w)
{
    w->armed = true;
    if (world_once(w, 4))
        w->os.fail_map = w->os.maps + 1;
    else
        w->allocator.fail_at = w->allocator.calls + 1 + world_below(w, 12);
    if (world_once(w, 4)) w->allocator.fail_from = w->allocator.calls + 1 + world_below(w, 12);
    w->disturbed++; /* publication may be skipped */
}

static void op_disarm(struct world *w)
{
    world_disarm(w);
    w->disturbed++;
}

/* ---- single pages --------------------------------------------------------------------------- */

static void fill_page(struct world *w, struct world_host_page *h)
{
    h->content = ++w->unique;
    if (w->config.storage == PKV_STORAGE_NONE) {
        for (uint32_t t = 0; t < w->page_tokens; t++)
            *world_slot(w, h->group, h->page, t) = h->content;
        return;
    }
    if (w->group[h->group].quantised) return; /* these bytes are no codes */
    const pkv_group_info *info = &w->group[h->group].info;
    const size_t bytes = info->token_bytes / info->n_layers * w->page_tokens;
    unsigned char *plain = malloc(bytes);
    WORLD_CHECK(w, plain != NULL, "out of memory");
    for (uint32_t l = 0; l < info->n_layers; l++) {
        void *part;
        for (size_t i = 0; i < bytes; i++)
            plain[i] = (unsigned char)(world_mix(h->content, l + i / 2 * 2) & 0x3f);
        WORLD_CHECK(w, pkv_page_address(w->cache, h->group, h->page, l, &part) == PKV_OK,
                    "address");
        WORLD_CHECK(w,
                    pkv_page_pack(w->cache, h->group, part, PKV_LAYOUT_NHD, plain, bytes) == PKV_OK,
                    "pack");
    }
    free(plain);
}

static void check_page(struct world *w, const struct world_host_page *h)
{
    uint32_t refs = 0;
    WORLD_CHECK(w, pkv_page_refs(w->cache, h->group, h->page, &refs) == PKV_OK && refs >= h->refs,
                "references of a page");
    if (h->of_sequence) return;
    if (w->config.storage == PKV_STORAGE_NONE) {
        void *part;
        WORLD_CHECK(w, pkv_page_address(w->cache, h->group, h->page, 0, &part) == PKV_ENOTSUP,
                    "address without storage");
        for (uint32_t t = 0; t < w->page_tokens; t++)
            WORLD_CHECK(w, *world_slot(w, h->group, h->page, t) == h->content,
                        "a page of the host");
        return;
    }
    if (w->group[h->group].quantised) return;
    const pkv_group_info *info = &w->group[h->group].info;
    const size_t bytes = info->token_bytes / info->n_layers * w->page_tokens;
    unsigned char *plain = malloc(bytes);
    WORLD_CHECK(w, plain != NULL, "out of memory");
    for (uint32_t l = 0; l < info->n_layers; l++) {
        void *part;
        WORLD_CHECK(w, pkv_page_address(w->cache, h->group, h->page, l, &part) == PKV_OK,
                    "address");
        WORLD_CHECK(
            w, pkv_page_unpack(w->cache, h->group, part, PKV_LAYOUT_NHD, plain, bytes) == PKV_OK,
            "unpack");
        for (size_t i = 0; i < bytes; i++)
            WORLD_CHECK(w, plain[i] == (unsigned char)(world_mix(h->content, l + i / 2 * 2) & 0x3f),
                        "a page of the host was overwritten at byte %zu", i);
    }
    free(plain);
}

static void release(struct world *w, struct world_host_page *h)
{
    check_page(w, h);
    WORLD_CHECK(w, pkv_page_unref(w->cache, h->group, 1, &h->page) == PKV_OK, "unref");
    if (--h->refs > 0) return;
    bool elsewhere = false;
    for (int i = 0; i < WORLD_HOST_PAGES; i++)
        elsewhere = elsewhere || (&w->host_page[i] != h && w->host_page[i].page == h->page &&
                                  w->host_page[i].group == h->group);
    if (!elsewhere)
        WORLD_CHECK(w, pkv_page_unref(w->cache, h->group, 1, &h->page) == PKV_ESTALE,
                    "released once too often");
    h->page = PKV_PAGE_NONE;
}

static void op_page(struct world *w)
{
    struct world_host_page *h = &w->host_page[world_below(w, WORLD_HOST_PAGES)];
    if (h->page != PKV_PAGE_NONE) {
        if (world_once(w, 3)) {
            if (world_did(w, pkv_page_ref(w->cache, h->group, 1, &h->page), "pkv_page_ref",
                          WORLD_NONE))
                h->refs++;
        } else {
            release(w, h);
        }
        return;
    }
    h->group = world_below(w, w->n_groups);
    h->of_sequence = world_once(w, 3);
    if (h->of_sequence) {
        const struct world_seq *s = world_any_seq(w);
        if (s == NULL || s->n_pages == 0) return;
        const pkv_page page = s->page[h->group][world_below(w, s->n_pages)];
        if (page == PKV_PAGE_NONE) return;
        if (!world_did(w, pkv_page_ref(w->cache, h->group, 1, &page), "pkv_page_ref", WORLD_NONE))
            return;
        h->page = page;
        h->refs = 1;
        return;
    }
    pkv_page page;
    w->disturbed++; /* cached pages may have to go */
    if (!world_did(w, pkv_page_alloc(w->cache, h->group, 1, &page), "pkv_page_alloc",
                   WORLD_OTHERS(PKV_ENOPAGES)))
        return;
    h->page = page;
    h->refs = 1;
    fill_page(w, h);
}

static void op_magazine(struct world *w)
{
    const uint32_t i = world_below(w, WORLD_MAGAZINES);
    if (w->magazine[i].magazine == NULL) {
        const uint32_t g = world_below(w, w->n_groups);
        pkv_magazine *magazine;
        if (!world_did(w, pkv_magazine_create(w->cache, g, 1 + world_below(w, 6), &magazine),
                       "pkv_magazine_create", WORLD_NONE))
            return;
        w->magazine[i].magazine = magazine;
        w->magazine[i].group = g;
        return;
    }
    const uint32_t g = w->magazine[i].group;
    if (world_once(w, 6)) {
        pkv_magazine_destroy(w->magazine[i].magazine);
        w->magazine[i].magazine = NULL;
        return;
    }
    struct world_host_page *h = &w->host_page[world_below(w, WORLD_HOST_PAGES)];
    if (h->page == PKV_PAGE_NONE) {
        pkv_page page;
        if (!world_did(w, pkv_magazine_alloc(w->magazine[i].magazine, &page), "pkv_magazine_alloc",
                       WORLD_OTHERS(PKV_ENOPAGES)))
            return;
        *h = (struct world_host_page){.group = g, .page = page, .refs = 1};
        fill_page(w, h);
    } else if (h->group == g && h->refs == 1) {
        check_page(w, h);
        const pkv_status status = pkv_magazine_free(w->magazine[i].magazine, h->page);
        WORLD_CHECK(w, status == PKV_OK, "pkv_magazine_free: %s", pkv_status_name(status));
        h->page = PKV_PAGE_NONE;
    }
}

/* ---- counters and questions ----------------------------------------------------------------- */

static void op_events(struct world *w)
{
    pkv_event events[64];
    uint32_t n = 0;
    WORLD_CHECK(w, pkv_cache_events(w->cache, events, 64, &n) == PKV_OK && n <= 64, "events");
    for (uint32_t i = 0; i < n; i++) {
        WORLD_CHECK(w, events[i].number > w->last_event || w->last_event == 0,
                    "numbers of events do not grow");
        WORLD_CHECK(w, events[i].kind > 0 && events[i].group <= w->n_groups + w->n_states,
                    "an event of kind %d", events[i].kind);
        w->last_event = events[i].number;
    }
}

static void op_errors(struct world *w)
{
    char text[64], whole[256];
    WORLD_CHECK(w, pkv_page_alloc(w->cache, w->n_groups, 1, NULL) == PKV_EINVAL, "no such group");
    WORLD_CHECK(w, pkv_cache_last_error(w->cache, text, sizeof text) == PKV_EINVAL, "last error");
    WORLD_CHECK(w,
                pkv_cache_last_error(w->cache, whole, sizeof whole) == PKV_EINVAL &&
                    strncmp(text, whole, sizeof text - 1) == 0 && text[0] != '\0',
                "text of the last error");
    for (pkv_status s = 0; s >= -20; s--)
        WORLD_CHECK(w, pkv_status_text(s) != NULL && pkv_status_name(s) != NULL, "texts");
    const pkv_seq none = {w->cache, 0};
    uint64_t length;
    WORLD_CHECK(w, pkv_seq_length(none, &length) != PKV_OK, "a zeroed handle");
    WORLD_CHECK(w, pkv_batch_commit((pkv_batch){w->cache, 0}) != PKV_OK, "a zeroed batch");
}

static void op_questions(struct world *w)
{
    uint64_t low, high, tag;
    uint32_t n = 0;
    const char *name = NULL;
    WORLD_CHECK(w, pkv_config_bounds("page_tokens", &low, &high) == PKV_OK && low == 8, "bounds");
    WORLD_CHECK(w,
                pkv_version() >> 16 == PKV_VERSION_MAJOR &&
                    strcmp(pkv_version_string(), PKV_VERSION_STRING) == 0,
                "version");
    WORLD_CHECK(w, pkv_cache_group_count(w->cache, &n) == PKV_OK && n == w->n_groups, "groups");
    WORLD_CHECK(w, pkv_dtype_size(PKV_DTYPE_F16) == 2 && pkv_dtype_name(PKV_DTYPE_BF16)[0] == 'b',
                "dtypes");
    WORLD_CHECK(w, pkv_layout_tag(w->cache, 0, &tag) == PKV_OK && tag != 0, "layout tag");
    WORLD_CHECK(w, pkv_kernel_list(0, &name) == PKV_OK && name != NULL, "kernels");
    WORLD_CHECK(w, pkv_kernel_name(w->cache, &name) == PKV_OK && name != NULL, "kernel");
    float a[2] = {1, 1}, b[2] = {3, 5}, la = 0, lb = 0;
    WORLD_CHECK(w, pkv_merge_states(a, &la, b, &lb, 1, 2) == PKV_OK, "merge");
    WORLD_CHECK(w,
                fabsf(a[0] - 2) < 1e-5f && fabsf(a[1] - 3) < 1e-5f && fabsf(la - logf(2)) < 1e-5f,
                "merged states");
}

static void op_check(struct world *w)
{
    world_check_all(w);
    for (int i = 0; i < WORLD_HOST_PAGES; i++)
        if (w->host_page[i].page != PKV_PAGE_NONE) check_page(w, &w->host_page[i]);
}

static void op_time(struct world *w)
{
    w->time += world_below(w, 1500);
}

const struct world_op world_cache_ops[] = {{"limit", op_limit, 1},
                                           {"trim", op_trim, 1},
                                           {"compact", op_compact, 1},
                                           {"arm", op_arm, 2},
                                           {"disarm", op_disarm, 3},
                                           {"page", op_page, 6},
                                           {"magazine", op_magazine, 3},
                                           {"events", op_events, 2},
                                           {"errors", op_errors, 1},
                                           {"questions", op_questions, 1},
                                           {"check", op_check, 3},
                                           {"time", op_time, 3},
                                           {NULL, NULL, 0}};
