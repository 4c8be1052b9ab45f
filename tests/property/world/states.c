/* Recurrent states: the state after a token is a number that depends on all tokens before it, as
 * its `history` does. */
#include <stdlib.h>
#include <string.h>

#include "world.h"

void world_choose_states(struct world *w)
{
    if (!world_once(w, w->config.prefix ? 4 : 2)) return;
    w->n_states = 1 + world_below(w, WORLD_STATES);
    w->config.n_groups += w->n_states;
    for (uint32_t s = 0; s < w->n_states; s++) {
        pkv_group_config *c = &w->group_config[w->n_groups + s];
        c->n_layers = 1 + world_below(w, 3);
        c->state_bytes = 8 + world_below(w, world_once(w, 2) ? 100 : 60000);
        if (world_once(w, 2)) c->max_pages = 8 + world_below(w, 60);
        if (w->config.storage != PKV_STORAGE_EXTERNAL) continue;
        c->external_bytes = (size_t)8 << 20;
        w->state[s].buffer = aligned_alloc(4096, c->external_bytes);
        c->external_base = w->state[s].buffer;
    }
}

/* ---- what is in a slot ---------------------------------------------------------------------- */

static uint64_t *shadow_of(struct world *w, uint32_t state, pkv_page slot)
{
    const uint32_t index = pkv_page_index(slot);
    if (index >= w->state[state].n_shadow) {
        const uint32_t n = index + 64;
        uint64_t *shadow = realloc(w->state[state].shadow, n * sizeof *shadow);
        WORLD_CHECK(w, shadow != NULL, "out of memory");
        memset(shadow + w->state[state].n_shadow, 0,
               (n - w->state[state].n_shadow) * sizeof *shadow);
        w->state[state].shadow = shadow;
        w->state[state].n_shadow = n;
    }
    return w->state[state].shadow + index;
}

/* First and last eight bytes of every layer. */
static void write_slot(struct world *w, uint32_t state, pkv_page slot, uint64_t value)
{
    const pkv_state_info *info = &w->state[state].info;
    if (w->config.storage == PKV_STORAGE_NONE) {
        *shadow_of(w, state, slot) = value;
        return;
    }
    for (uint32_t l = 0; l < info->n_layers; l++) {
        const uint64_t bits = world_mix(value, state * 16 + l);
        void *at;
        WORLD_CHECK(w, pkv_state_address(w->cache, state, slot, l, &at) == PKV_OK,
                    "state group %u: no address", state);
        WORLD_CHECK(w, (uintptr_t)at % 64 == 0, "a state is not aligned");
        memset(at, (int)(bits & 0xff), info->state_bytes);
        memcpy(at, &bits, sizeof bits);
    }
}

static bool slot_holds(struct world *w, uint32_t state, pkv_page slot, uint64_t value)
{
    const pkv_state_info *info = &w->state[state].info;
    if (w->config.storage == PKV_STORAGE_NONE) return *shadow_of(w, state, slot) == value;
    for (uint32_t l = 0; l < info->n_layers; l++) {
        const uint64_t bits = world_mix(value, state * 16 + l);
        void *at;
        if (pkv_state_address(w->cache, state, slot, l, &at) != PKV_OK) return false;
        const unsigned char last = ((unsigned char *)at)[info->state_bytes - 1];
        if (memcmp(at, &bits, sizeof bits) != 0) return false;
        if (info->state_bytes > sizeof bits && last != (bits & 0xff)) return false;
    }
    return true;
}

/* ---- steps ---------------------------------------------------------------------------------- */

void world_keep_states(struct world *w, struct world_batch *b, uint32_t entry)
{
    struct world_entry *e = &b->entry[entry];
    e->n_states = 1;
    if (world_once(w, 2)) return;
    const uint32_t n = 1 + world_below(w, e->n < 6 ? e->n : 6);
    const pkv_status status = pkv_batch_keep_states(b->handle, entry, n);
    WORLD_CHECK(w, status == (w->n_states > 0 ? PKV_OK : PKV_ENOTSUP), "pkv_batch_keep_states: %s",
                pkv_status_name(status));
    WORLD_CHECK(w, pkv_batch_keep_states(b->handle, entry, e->n + 1) != PKV_OK, "too many states");
    if (status == PKV_OK) e->n_states = n;
}

bool world_has_state(const struct world *w, const struct world_entry *e, uint32_t accepted)
{
    return w->n_states == 0 || accepted == 0 || e->n - accepted < e->n_states;
}

static void write_entry(struct world *w, struct world_batch *b, uint32_t entry, uint32_t state)
{
    const struct world_entry *e = &b->entry[entry];
    const struct world_seq *s = e->seq;
    pkv_page from, to[WORLD_STEP];
    uint32_t n = 0;
    WORLD_CHECK(w,
                pkv_batch_states(b->handle, entry, state, NULL, NULL, 0, &n) == PKV_ERANGE &&
                    n == e->n_states,
                "%u states, asked for %u", n, e->n_states);
    WORLD_CHECK(w,
                pkv_batch_states(b->handle, entry, state, &from, to, WORLD_STEP, &n) == PKV_OK &&
                    n == e->n_states,
                "the states of a batch");
    WORLD_CHECK(w, (from == PKV_PAGE_NONE) == (s->length == 0), "where a step starts");
    if (s->length > 0)
        WORLD_CHECK(w, slot_holds(w, state, from, s->history[s->length - 1]),
                    "state group %u: a step starts from another state", state);
    for (uint32_t i = 0; i < n; i++)
        write_slot(w, state, to[i], e->history[e->n - n + i]);
}

void world_write_states(struct world *w, struct world_batch *b)
{
    for (int e = 0; e < b->n_entries; e++)
        for (uint32_t s = 0; s < w->n_states; s++)
            write_entry(w, b, (uint32_t)e, s);
}

/* ---- sequences ------------------------------------------------------------------------------ */

void world_check_states(struct world *w, const struct world_seq *s)
{
    uint64_t at[WORLD_LENGTH];
    uint32_t n = 0, count = 0;
    if (w->n_states == 0) return;
    WORLD_CHECK(w, pkv_seq_checkpoints(s->handle, at, WORLD_LENGTH, &n) == PKV_OK, "checkpoints");
    for (uint32_t t = 0; t <= WORLD_LENGTH; t++) {
        if (!s->mark[t]) continue;
        WORLD_CHECK(w, count < n && at[count] == t, "the checkpoint at %u is missing", t);
        count++;
    }
    WORLD_CHECK(w, count == n, "%u checkpoints, expected %u", n, count);
    for (uint32_t g = 0; g < w->n_states; g++) {
        pkv_page slot;
        WORLD_CHECK(w, pkv_seq_state(s->handle, g, &slot) == PKV_OK, "state");
        WORLD_CHECK(w, (slot == PKV_PAGE_NONE) == (s->length == 0), "a state without tokens");
        if (s->length > 0)
            WORLD_CHECK(w, slot_holds(w, g, slot, s->history[s->length - 1]),
                        "state group %u: another state", g);
    }
}

static void op_checkpoint(struct world *w)
{
    struct world_seq *s = world_any_seq(w);
    if (s == NULL) return;
    const pkv_status status = pkv_seq_checkpoint(s->handle);
    if (s->batch >= 0)
        WORLD_CHECK(w, status == PKV_EBUSY, "a checkpoint of a busy sequence");
    else if (w->n_states == 0)
        WORLD_CHECK(w, status == PKV_ENOTSUP, "a checkpoint of what has no state");
    else if (s->length == 0)
        WORLD_CHECK(w, status == PKV_EINVAL, "a checkpoint of nothing");
    else if (world_did(w, status, "pkv_seq_checkpoint", WORLD_NONE))
        s->mark[s->length] = true;
}

static void op_drop_checkpoint(struct world *w)
{
    struct world_seq *s = world_any_seq(w);
    if (s == NULL || s->batch >= 0 || w->n_states == 0) return;
    uint32_t at = world_below(w, s->length + 1);
    while (at > 0 && !s->mark[at] && !world_once(w, 16))
        at--;
    const pkv_status status = pkv_seq_drop_checkpoint(s->handle, at);
    WORLD_CHECK(w, status == (s->mark[at] ? PKV_OK : PKV_EINVAL), "dropping a checkpoint: %s",
                pkv_status_name(status));
    s->mark[at] = false;
    world_check_states(w, s);
}

/* Back to a checkpoint, which a truncation to any position seldom meets. */
static void op_rewind(struct world *w)
{
    struct world_seq *s = world_any_seq(w);
    if (s == NULL || s->batch >= 0 || w->n_states == 0) return;
    uint32_t n = 0, at = world_below(w, s->length + 1);
    while (at > 0 && !s->mark[at])
        at--;
    WORLD_CHECK(w, pkv_cache_state_count(w->cache, &n) == PKV_OK && n == w->n_states, "count");
    uint64_t stop;
    WORLD_CHECK(w,
                pkv_seq_state_stop(s->handle, s->length + 50u, &stop) == PKV_OK &&
                    stop > s->length && stop <= s->length + 50u,
                "a step should end elsewhere");
    if (at > 0) world_truncate(w, s, at);
}

void world_end_states(struct world *w)
{
    for (uint32_t s = 0; s < WORLD_STATES; s++) {
        free(w->state[s].buffer);
        free(w->state[s].shadow);
    }
}

const struct world_op world_state_ops[] = {{"checkpoint", op_checkpoint, 8},
                                           {"drop checkpoint", op_drop_checkpoint, 2},
                                           {"rewind", op_rewind, 5},
                                           {NULL, NULL, 0}};
