/* Pins: they end by themselves, by release, or by giving way when nothing else is left. Two heaps
 * over the live pins: by the end of their time, and by who gives way first. */
#include "internal.h"

enum { BY_END, BY_PRIORITY };

void pkvi_pins_init(struct pkvi_prefix *px)
{
    px->pins = (struct pkvi_pins){.free = PKVI_NIL};
}

void pkvi_pins_destroy(struct pkvi_prefix *px)
{
    struct pkvi_pins *pins = &px->pins;
    if (!pins->capacity) return;
    pkvi_mem_free_array(px->mem, pins->pin, pins->capacity, sizeof *pins->pin);
    for (int h = 0; h < 2; h++)
        pkvi_mem_free_array(px->mem, pins->heap[h], pins->capacity, sizeof **pins->heap);
}

static bool first(const struct pkvi_pins *pins, int heap, uint32_t a, uint32_t b)
{
    const struct pkvi_pin *p = &pins->pin[a], *q = &pins->pin[b];
    if (heap == BY_PRIORITY && p->priority != q->priority) return p->priority < q->priority;
    return p->expires < q->expires;
}

static void set(struct pkvi_pins *pins, int heap, uint32_t place, uint32_t pin)
{
    pins->heap[heap][place] = pin;
    pins->pin[pin].place[heap] = place;
}

static void sift(struct pkvi_pins *pins, int heap, uint32_t place)
{
    uint32_t pin = pins->heap[heap][place];
    while (place > 0 && first(pins, heap, pin, pins->heap[heap][(place - 1) / 2])) {
        set(pins, heap, place, pins->heap[heap][(place - 1) / 2]);
        place = (place - 1) / 2;
    }
    for (;;) {
        uint32_t child = 2 * place + 1;
        if (child >= pins->n) break;
        if (child + 1 < pins->n &&
            first(pins, heap, pins->heap[heap][child + 1], pins->heap[heap][child]))
            child++;
        if (!first(pins, heap, pins->heap[heap][child], pin)) break;
        set(pins, heap, place, pins->heap[heap][child]);
        place = child;
    }
    set(pins, heap, place, pin);
}

/* Moves to wider arrays; false if memory is refused. */
static bool widen(struct pkvi_prefix *px)
{
    struct pkvi_pins *pins = &px->pins;
    uint32_t wider = pins->capacity ? 2 * pins->capacity : 16;
    struct pkvi_pin *pin = pkvi_mem_array(px->mem, wider, sizeof *pin);
    uint32_t *heap[2];
    for (int h = 0; h < 2; h++)
        heap[h] = pkvi_mem_array(px->mem, wider, sizeof **heap);
    if (!pin || !heap[0] || !heap[1]) {
        if (pin) pkvi_mem_free_array(px->mem, pin, wider, sizeof *pin);
        for (int h = 0; h < 2; h++)
            if (heap[h]) pkvi_mem_free_array(px->mem, heap[h], wider, sizeof **heap);
        return false;
    }
    for (uint32_t i = 0; i < pins->capacity; i++) {
        pin[i] = pins->pin[i];
        heap[0][i] = pins->heap[0][i];
        heap[1][i] = pins->heap[1][i];
    }
    for (uint32_t i = wider; i-- > pins->capacity;) {
        pin[i] =
            (struct pkvi_pin){.generation = 1, .place = {PKVI_NIL, PKVI_NIL}, .next = pins->free};
        pins->free = i;
    }
    struct pkvi_pins before = *pins;
    pkvi_pins_destroy(px);
    *pins = before;
    pins->pin = pin;
    pins->capacity = wider;
    pins->heap[0] = heap[0];
    pins->heap[1] = heap[1];
    return true;
}

/* Gives the pinned nodes up, if they are still the ones that were pinned. */
static void release_nodes(struct pkvi_prefix *px, const struct pkvi_pin *pin)
{
    if (pkvi_side(&px->core, pin->node)->generation != pin->node_generation) {
        px->pins.n_dead--;
        return;
    }
    struct pkvi_space *space = pkvi_space_of(px, pin->node);
    uint32_t id = pin->node;
    for (uint32_t i = 0; i < pin->n_nodes; i++) {
        uint32_t parent = pkvi_node(&px->core, id)->parent;
        pkvi_node_unpin(px, id);
        id = parent;
    }
    space->pins--;
    pkvi_space_settle(px, space);
}

static void end(struct pkvi_prefix *px, uint32_t slot)
{
    struct pkvi_pins *pins = &px->pins;
    struct pkvi_pin *pin = &pins->pin[slot];
    pins->n--;
    for (int h = 0; h < 2; h++) {
        uint32_t place = pin->place[h], last = pins->heap[h][pins->n];
        pin->place[h] = PKVI_NIL;
        if (last == slot) continue;
        set(pins, h, place, last);
        sift(pins, h, place);
    }
    release_nodes(px, pin);
    if (++pin->generation == 0) pin->generation = 1;
    pin->next = pins->free;
    pins->free = slot;
}

/* Room for one more pin, or false. Pins whose namespace was dropped and that nobody releases go
 * when they are the half: amortised O(1), plus O(log pins) each. */
static bool make_room(struct pkvi_prefix *px)
{
    struct pkvi_pins *pins = &px->pins;
    if (pins->free != PKVI_NIL) return true;
    if (pins->n_dead < pins->capacity / 2 || pins->n_dead == 0) return widen(px);
    for (uint32_t slot = 0; slot < pins->capacity; slot++) {
        const struct pkvi_pin *pin = &pins->pin[slot];
        if (pin->place[0] != PKVI_NIL &&
            pkvi_side(&px->core, pin->node)->generation != pin->node_generation)
            end(px, slot);
    }
    return true;
}

void pkvi_pins_expire(struct pkvi_prefix *px)
{
    struct pkvi_pins *pins = &px->pins;
    while (pins->n) {
        const uint64_t expires = pins->pin[pins->heap[BY_END][0]].expires;
        if (expires == UINT64_MAX || expires > px->now) return; /* never, or not yet */
        end(px, pins->heap[BY_END][0]);
    }
}

bool pkvi_pins_give_way(struct pkvi_prefix *px)
{
    struct pkvi_pins *pins = &px->pins;
    if (!pins->n || pins->pin[pins->heap[BY_PRIORITY][0]].priority >= PKV_PIN_FIRM) return false;
    end(px, pins->heap[BY_PRIORITY][0]);
    return true;
}

/* Are the pages still there? */
static bool intact(const struct pkvi_prefix *px, const pkv_match *match, uint32_t id,
                   uint32_t pages)
{
    for (uint32_t i = pages; i-- > 0; id = pkvi_node(&px->core, id)->parent) {
        uint64_t needed = 0;
        for (uint32_t g = 0; g < px->config.n_groups; g++)
            if (i >= pkvi_prefix_first(px, g, match->n_tokens)) needed |= UINT64_C(1) << g;
        if (needed & ~pkvi_node(&px->core, id)->resident) return false;
    }
    return true;
}

static pkv_status pin_found(struct pkvi_prefix *px, const pkv_match *match,
                            const struct pkvi_found *found, uint32_t priority, uint64_t ttl_ns,
                            pkv_pin *out)
{
    struct pkvi_pins *pins = &px->pins;
    uint32_t id = found->partial != PKVI_NIL ? found->partial : found->last;
    uint32_t pages = match->n_pages + (found->partial != PKVI_NIL);
    if (id == PKVI_NIL) return PKV_EINVAL;
    if (!intact(px, match, id, pages)) return PKV_ESTALE;
    if (!make_room(px)) return PKV_ENOMEM;
    uint32_t slot = pins->free;
    struct pkvi_pin *pin = &pins->pin[slot];
    pins->free = pin->next;
    pin->priority = priority;
    pin->expires = ttl_ns && ttl_ns < UINT64_MAX - px->now ? px->now + ttl_ns : UINT64_MAX;
    pin->node = id;
    pin->node_generation = pkvi_side(&px->core, id)->generation;
    pin->n_nodes = pages;
    for (uint32_t i = 0; i < pin->n_nodes; i++, id = pkvi_node(&px->core, id)->parent)
        pkvi_node_pin(px, id);
    found->space->pins++;
    pins->n++;
    for (int h = 0; h < 2; h++) {
        set(pins, h, pins->n - 1, slot);
        sift(pins, h, pins->n - 1);
    }
    pkvi_space_settle(px, found->space);
    *out = (uint64_t)pin->generation << 32 | slot;
    return PKV_OK;
}

pkv_status pkvi_prefix_pin(struct pkvi_prefix *px, const pkv_match *match, uint32_t priority,
                           uint64_t ttl_ns, pkv_pin *pin)
{
    if (priority > PKV_PIN_FIRM) return PKV_EINVAL;
    pkvi_prefix_lock(px);
    px->now = px->config.clock(px->config.clock_user);
    pkvi_pins_expire(px);
    struct pkvi_found found;
    pkv_status status = pkvi_match_resolve(px, match, &found);
    if (status == PKV_OK) status = pin_found(px, match, &found, priority, ttl_ns, pin);
    pkvi_prefix_unlock(px);
    return status;
}

pkv_status pkvi_prefix_unpin(struct pkvi_prefix *px, pkv_pin handle)
{
    uint32_t slot = (uint32_t)handle, generation = (uint32_t)(handle >> 32);
    pkvi_prefix_lock(px);
    px->now = px->config.clock(px->config.clock_user);
    pkvi_pins_expire(px);
    struct pkvi_pins *pins = &px->pins;
    pkv_status status = PKV_ESTALE;
    if (slot < pins->capacity && pins->pin[slot].place[0] != PKVI_NIL &&
        pins->pin[slot].generation == generation) {
        const struct pkvi_pin *pin = &pins->pin[slot];
        if (pkvi_side(&px->core, pin->node)->generation == pin->node_generation) status = PKV_OK;
        end(px, slot);
    }
    pkvi_prefix_unlock(px);
    return status;
}
