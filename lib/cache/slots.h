/* Slot tables: generation-tagged handles to objects.
 *
 * A handle is generation << 32 | slot. Slots never move, so a lookup is lock-free:
 * it compares the generation. A slot's generation grows by one when its object is taken out, so a
 * stale handle never matches again (generations start at 1; a slot whose generation would wrap to 0
 * is retired).
 *
 * insert and remove need the owner's lock; get is MT-safe against both for handles of other
 * objects, and against a remove of the same object it answers either way. */
#ifndef PKVI_CACHE_SLOTS_H
#define PKVI_CACHE_SLOTS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include <pagedkv/status.h>

#include "mem/mem.h"

struct pkvi_slot {
    _Atomic uint32_t generation; /* of the object in it, or of the next one; 0 = never used */
    uint32_t next;               /* next free slot + 1, or 0 */
    void *_Atomic object;        /* NULL while free */
};

struct pkvi_slots {
    struct pkvi_segvec slots; /* of struct pkvi_slot */
    uint32_t limit;           /* most live objects */
    uint32_t live;            /* objects in it */
    uint32_t used;            /* slots ever handed out: iterate [0, used) */
    uint32_t free;            /* first free slot + 1, or 0 */
};

/* An empty table for at most `limit` live objects. */
void pkvi_slots_init(struct pkvi_slots *slots, uint32_t limit, const struct pkvi_os *os);

/* Gives the slots back; objects are the owner's business. */
void pkvi_slots_destroy(struct pkvi_slots *slots, struct pkvi_mem *mem);

/* Puts an object in. PKV_ERANGE when `limit` objects are live, PKV_ENOMEM. O(1) amortised. */
pkv_status pkvi_slots_insert(struct pkvi_slots *slots, struct pkvi_mem *mem, void *object,
                             uint64_t *id);

/* Takes the object out; its handle is stale from now on. The id must be live. O(1). */
void pkvi_slots_remove(struct pkvi_slots *slots, uint64_t id);

/* Object of a handle, or NULL if the handle is stale or was never valid. Lock-free, O(1). */
void *pkvi_slots_get(const struct pkvi_slots *slots, uint64_t id);

/* Object in a slot number below `used`, or NULL. For walks (verify, destroy). */
void *pkvi_slots_at(const struct pkvi_slots *slots, uint32_t slot);

#endif
