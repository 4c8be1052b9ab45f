/* state: which slots hold the recurrent states of one sequence.
 *
 * A slot is a page of a state group's pool and holds one state of all layers of the group. States
 * are never changed: a step writes the next one to another slot. So a state can have several
 * holders (forks, checkpoints, a step that reads it), each with a reference, and nothing is ever
 * copied.
 *
 * A *row* is one slot per state group, all of the same position: either all of them, or
 * PKVI_NO_PAGE everywhere. Knows pools, but no sequence and no batch. */
#ifndef PKVI_STATE_STATE_H
#define PKVI_STATE_STATE_H

#include "mem/mem.h"
#include "pool/pool.h"
#include "table/table.h" /* PKVI_NO_PAGE */

/* Layers that each keep a state. Immutable after create, apart from the pool. */
struct pkvi_state_group {
    struct pkvi_pool pool;
    uint32_t n_layers;
    uint64_t state_bytes; /* one layer's, as the host gave it */
    uint64_t layer_bytes; /* from layer to layer in a slot: state_bytes, aligned */
    uint64_t slot_bytes;  /* n_layers * layer_bytes */
};

/* The state groups of a cache. */
struct pkvi_state_set {
    struct pkvi_mem *mem;
    uint32_t n;
    struct pkvi_state_group *groups; /* [n] */
};

/* Layers in a slot start at multiples of this. */
#define PKVI_STATE_ALIGNMENT 64u

/* What one sequence holds. */
struct pkvi_states {
    uint32_t n_marks, mark_capacity;
    uint64_t *marks;     /* [mark_capacity] positions of checkpoints, ascending */
    uint32_t *mark_rows; /* [mark_capacity][n] */
    uint32_t live[];     /* row: the state after the last token */
};

/* References of a row; a row without slots is fine. O(groups), MT-safe. */
void pkvi_state_ref(const struct pkvi_state_set *set, const uint32_t *row);
void pkvi_state_unref(const struct pkvi_state_set *set, const uint32_t *row);

/* No state, no checkpoint; NULL without memory. */
struct pkvi_states *pkvi_states_create(const struct pkvi_state_set *set);
/* The same states and checkpoints, shared; NULL without memory. O(checkpoints * groups). */
struct pkvi_states *pkvi_states_fork(const struct pkvi_state_set *set,
                                     const struct pkvi_states *parent);
void pkvi_states_destroy(const struct pkvi_state_set *set, struct pkvi_states *states);

static inline bool pkvi_states_has(const struct pkvi_states *states)
{
    return states->live[0] != PKVI_NO_PAGE;
}

/* Has the sequence a state that nobody else holds? Then a step ends with as many slots in use. */
static inline bool pkvi_states_own(const struct pkvi_state_set *set,
                                   const struct pkvi_states *states)
{
    return pkvi_states_has(states) && pkvi_pool_refs(&set->groups[0].pool, states->live[0]) == 1;
}

/* The state after further tokens; takes the row's references over and gives the old ones back. */
void pkvi_states_advance(const struct pkvi_state_set *set, struct pkvi_states *states,
                         const uint32_t *row);

/* Place of the checkpoint at a position, or UINT32_MAX. O(log checkpoints). */
uint32_t pkvi_states_find(const struct pkvi_states *states, uint64_t position);
/* The slot of one of n state groups of the checkpoint at a position, or PKVI_NO_PAGE. */
uint32_t pkvi_states_marked(const struct pkvi_states *states, uint32_t n, uint64_t position,
                            uint32_t group);
/* Keeps the present state as the checkpoint at `position`, behind all others. There must be a
 * state. PKV_ENOMEM. Amortised O(groups). */
pkv_status pkvi_states_mark(const struct pkvi_state_set *set, struct pkvi_states *states,
                            uint64_t position);
/* Gives the checkpoint at a place up. O(checkpoints). */
void pkvi_states_unmark(const struct pkvi_state_set *set, struct pkvi_states *states,
                        uint32_t place);
/* Can the sequence go on at `position`, before its end? */
bool pkvi_states_can_rewind(const struct pkvi_states *states, uint64_t position);
/* Back to the state at `position`, which can be had; later checkpoints go. */
void pkvi_states_rewind(const struct pkvi_state_set *set, struct pkvi_states *states,
                        uint64_t position);

/* Verification: adds the references on slots of one group to holders[n], and tells what is wrong
 * with the states of a sequence of `length` tokens; NULL if nothing. */
const char *pkvi_states_check(const struct pkvi_state_set *set, const struct pkvi_states *states,
                              uint64_t length, uint32_t group, uint32_t *holders, uint32_t n);

#endif
