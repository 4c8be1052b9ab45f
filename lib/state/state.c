/* Slots and checkpoints of one sequence (state.h). */
#include "state/state.h"

#include <string.h>

static size_t states_bytes(const struct pkvi_state_set *set)
{
    return sizeof(struct pkvi_states) + set->n * sizeof(uint32_t);
}

static uint32_t *mark_row(const struct pkvi_state_set *set, const struct pkvi_states *states,
                          uint32_t place)
{
    return states->mark_rows + (size_t)place * set->n;
}

/* ---- references ----------------------------------------------------------------------------- */

void pkvi_state_ref(const struct pkvi_state_set *set, const uint32_t *row)
{
    for (uint32_t s = 0; s < set->n && row[0] != PKVI_NO_PAGE; s++)
        pkvi_pool_ref(&set->groups[s].pool, 1, &row[s]);
}

void pkvi_state_unref(const struct pkvi_state_set *set, const uint32_t *row)
{
    for (uint32_t s = 0; s < set->n && row[0] != PKVI_NO_PAGE; s++)
        pkvi_pool_unref(&set->groups[s].pool, 1, &row[s]);
}

/* ---- life ----------------------------------------------------------------------------------- */

struct pkvi_states *pkvi_states_create(const struct pkvi_state_set *set)
{
    struct pkvi_states *states = pkvi_mem_zalloc(set->mem, states_bytes(set));
    for (uint32_t s = 0; states && s < set->n; s++)
        states->live[s] = PKVI_NO_PAGE;
    return states;
}

static void free_marks(const struct pkvi_state_set *set, struct pkvi_states *states)
{
    const size_t n = states->mark_capacity;
    pkvi_mem_free_array(set->mem, states->marks, n, sizeof *states->marks);
    pkvi_mem_free_array(set->mem, states->mark_rows, n * set->n, sizeof *states->mark_rows);
}

/* Room for `capacity` checkpoints, more than there is. */
static pkv_status grow_marks(const struct pkvi_state_set *set, struct pkvi_states *states,
                             uint32_t capacity)
{
    uint64_t *marks = pkvi_mem_array(set->mem, capacity, sizeof *marks);
    if (!marks) return PKV_ENOMEM;
    uint32_t *rows = pkvi_mem_array(set->mem, (size_t)capacity * set->n, sizeof *rows);
    if (!rows) {
        pkvi_mem_free_array(set->mem, marks, capacity, sizeof *marks);
        return PKV_ENOMEM;
    }
    if (states->n_marks != 0) {
        memcpy(marks, states->marks, states->n_marks * sizeof *marks);
        memcpy(rows, states->mark_rows, (size_t)states->n_marks * set->n * sizeof *rows);
    }
    free_marks(set, states);
    states->marks = marks;
    states->mark_rows = rows;
    states->mark_capacity = capacity;
    return PKV_OK;
}

struct pkvi_states *pkvi_states_fork(const struct pkvi_state_set *set,
                                     const struct pkvi_states *parent)
{
    struct pkvi_states *states = pkvi_states_create(set);
    if (!states) return NULL;
    if (parent->n_marks != 0 && grow_marks(set, states, parent->n_marks) != PKV_OK) {
        pkvi_states_destroy(set, states);
        return NULL;
    }
    states->n_marks = parent->n_marks;
    for (uint32_t i = 0; i < parent->n_marks; i++) {
        states->marks[i] = parent->marks[i];
        memcpy(mark_row(set, states, i), mark_row(set, parent, i), set->n * sizeof(uint32_t));
        pkvi_state_ref(set, mark_row(set, states, i));
    }
    memcpy(states->live, parent->live, set->n * sizeof(uint32_t));
    pkvi_state_ref(set, states->live);
    return states;
}

void pkvi_states_destroy(const struct pkvi_state_set *set, struct pkvi_states *states)
{
    pkvi_state_unref(set, states->live);
    for (uint32_t i = 0; i < states->n_marks; i++)
        pkvi_state_unref(set, mark_row(set, states, i));
    free_marks(set, states);
    pkvi_mem_free(set->mem, states, states_bytes(set));
}

/* ---- forwards and back ---------------------------------------------------------------------- */

void pkvi_states_advance(const struct pkvi_state_set *set, struct pkvi_states *states,
                         const uint32_t *row)
{
    pkvi_state_unref(set, states->live);
    memcpy(states->live, row, set->n * sizeof *row);
}

uint32_t pkvi_states_find(const struct pkvi_states *states, uint64_t position)
{
    uint32_t low = 0, high = states->n_marks;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (states->marks[middle] < position)
            low = middle + 1;
        else
            high = middle;
    }
    return low < states->n_marks && states->marks[low] == position ? low : UINT32_MAX;
}

uint32_t pkvi_states_marked(const struct pkvi_states *states, uint32_t n, uint64_t position,
                            uint32_t group)
{
    const uint32_t place = states->n_marks != 0 ? pkvi_states_find(states, position) : UINT32_MAX;
    return place == UINT32_MAX ? PKVI_NO_PAGE : states->mark_rows[(size_t)place * n + group];
}

pkv_status pkvi_states_mark(const struct pkvi_state_set *set, struct pkvi_states *states,
                            uint64_t position)
{
    const uint32_t n = states->n_marks;
    PKVI_ASSERT(pkvi_states_has(states) && (n == 0 || states->marks[n - 1] < position));
    if (n == states->mark_capacity && grow_marks(set, states, n == 0 ? 4 : 2 * n) != PKV_OK)
        return PKV_ENOMEM;
    states->marks[n] = position;
    memcpy(mark_row(set, states, n), states->live, set->n * sizeof(uint32_t));
    pkvi_state_ref(set, states->live);
    states->n_marks++;
    return PKV_OK;
}

void pkvi_states_unmark(const struct pkvi_state_set *set, struct pkvi_states *states,
                        uint32_t place)
{
    pkvi_state_unref(set, mark_row(set, states, place));
    const uint32_t behind = --states->n_marks - place;
    memmove(&states->marks[place], &states->marks[place + 1], behind * sizeof *states->marks);
    memmove(mark_row(set, states, place), mark_row(set, states, place + 1),
            (size_t)behind * set->n * sizeof(uint32_t));
}

bool pkvi_states_can_rewind(const struct pkvi_states *states, uint64_t position)
{
    return position == 0 || pkvi_states_find(states, position) != UINT32_MAX;
}

void pkvi_states_rewind(const struct pkvi_state_set *set, struct pkvi_states *states,
                        uint64_t position)
{
    while (states->n_marks != 0 && states->marks[states->n_marks - 1] > position)
        pkvi_states_unmark(set, states, states->n_marks - 1);
    pkvi_state_unref(set, states->live);
    if (position == 0) {
        for (uint32_t s = 0; s < set->n; s++)
            states->live[s] = PKVI_NO_PAGE;
        return;
    }
    PKVI_ASSERT(states->n_marks != 0 && states->marks[states->n_marks - 1] == position);
    memcpy(states->live, mark_row(set, states, states->n_marks - 1), set->n * sizeof(uint32_t));
    pkvi_state_ref(set, states->live);
}

/* ---- verify --------------------------------------------------------------------------------- */

const char *pkvi_states_check(const struct pkvi_state_set *set, const struct pkvi_states *states,
                              uint64_t length, uint32_t group, uint32_t *holders, uint32_t n)
{
    const uint32_t live = states->live[group];
    if ((live != PKVI_NO_PAGE) != (length != 0))
        return length != 0 ? "tokens without a state" : "a state without tokens";
    if (live != PKVI_NO_PAGE && live >= n) return "its slot does not exist";
    if (live != PKVI_NO_PAGE) holders[live]++;
    uint64_t before = 0;
    for (uint32_t i = 0; i < states->n_marks; i++) {
        const uint32_t slot = mark_row(set, states, i)[group];
        if (states->marks[i] <= before) return "its checkpoints are not in order";
        if (states->marks[i] > length) return "a checkpoint lies behind its end";
        if (slot >= n) return "a checkpoint's slot does not exist";
        holders[slot]++;
        before = states->marks[i];
    }
    return NULL;
}
