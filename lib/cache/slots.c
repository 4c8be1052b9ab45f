#include "cache/slots.h"

static struct pkvi_slot *slot_at(const struct pkvi_slots *slots, uint32_t number)
{
    if (number >= atomic_load_explicit(&slots->slots.capacity, memory_order_acquire)) return NULL;
    return pkvi_segvec_at(&slots->slots, number, sizeof(struct pkvi_slot));
}

void pkvi_slots_init(struct pkvi_slots *slots, uint32_t limit, const struct pkvi_os *os)
{
    pkvi_segvec_init(&slots->slots, sizeof(struct pkvi_slot), os);
    slots->limit = limit;
    slots->live = 0;
    slots->used = 0;
    slots->free = 0;
}

void pkvi_slots_destroy(struct pkvi_slots *slots, struct pkvi_mem *mem)
{
    pkvi_segvec_destroy(&slots->slots, mem);
}

pkv_status pkvi_slots_insert(struct pkvi_slots *slots, struct pkvi_mem *mem, void *object,
                             uint64_t *id)
{
    if (slots->live >= slots->limit) return PKV_ERANGE;
    uint32_t number;
    struct pkvi_slot *slot;
    if (slots->free != 0) {
        number = slots->free - 1;
        slot = slot_at(slots, number);
        slots->free = slot->next;
    } else {
        if (slots->used >= PKVI_SEGVEC_MAX) return PKV_ERANGE;
        if (!pkvi_segvec_ensure(&slots->slots, mem, slots->used + 1)) return PKV_ENOMEM;
        number = slots->used++;
        slot = slot_at(slots, number);
        atomic_store_explicit(&slot->generation, 1, memory_order_relaxed);
    }
    const uint32_t generation = atomic_load_explicit(&slot->generation, memory_order_relaxed);
    atomic_store_explicit(&slot->object, object, memory_order_release);
    slots->live++;
    *id = (uint64_t)generation << 32 | number;
    return PKV_OK;
}

void pkvi_slots_remove(struct pkvi_slots *slots, uint64_t id)
{
    const uint32_t number = (uint32_t)id;
    struct pkvi_slot *slot = slot_at(slots, number);
    const uint32_t generation = atomic_load_explicit(&slot->generation, memory_order_relaxed) + 1;
    atomic_store_explicit(&slot->object, NULL, memory_order_release);
    atomic_store_explicit(&slot->generation, generation, memory_order_release);
    slots->live--;
    if (generation == 0) return; /* used up: never handed out again */
    slot->next = slots->free;
    slots->free = number + 1;
}

void *pkvi_slots_get(const struct pkvi_slots *slots, uint64_t id)
{
    const struct pkvi_slot *slot = slot_at(slots, (uint32_t)id);
    if (!slot) return NULL;
    const uint32_t generation = (uint32_t)(id >> 32);
    if (atomic_load_explicit(&slot->generation, memory_order_acquire) != generation) return NULL;
    return atomic_load_explicit(&slot->object, memory_order_acquire);
}

void *pkvi_slots_at(const struct pkvi_slots *slots, uint32_t number)
{
    const struct pkvi_slot *slot = slot_at(slots, number);
    return !slot ? NULL : atomic_load_explicit(&slot->object, memory_order_acquire);
}
