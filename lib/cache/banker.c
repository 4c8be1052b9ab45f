#include "cache/banker.h"

/* Units that `need` takes beyond the group's free pages; UINT64_MAX if it cannot have them. */
static uint64_t units_for(const struct pkvi_bank *bank, uint32_t g, uint64_t need)
{
    if (need > bank->cap[g]) return UINT64_MAX;
    if (need <= bank->free[g]) return 0;
    const uint64_t rest = need - bank->free[g];
    if (bank->per_unit[g] == 0) return UINT64_MAX;
    return rest / bank->per_unit[g] + (rest % bank->per_unit[g] != 0);
}

/* Takes the units that `need` takes out of *left bytes, if they are there. */
static bool serve(const struct pkvi_bank *bank, uint32_t g, uint64_t need, uint64_t *left)
{
    const uint64_t units = units_for(bank, g, need);
    if (units > *left / bank->unit_bytes[g]) return false;
    *left -= units * bank->unit_bytes[g];
    return true;
}

bool pkvi_bank_can(const struct pkvi_bank *bank, const uint64_t *need)
{
    uint64_t left = bank->stock;
    for (uint32_t g = 0; g < bank->n_groups; g++)
        if (!serve(bank, g, need[g] + bank->keep[g], &left)) return false;
    return true;
}

bool pkvi_bank_take(struct pkvi_bank *bank, const uint64_t *pages, uint64_t *opened)
{
    bool all = true;
    for (uint32_t g = 0; g < bank->n_groups; g++) {
        uint64_t want = pages[g];
        if (want > bank->cap[g]) {
            want = bank->cap[g];
            all = false;
        }
        const uint64_t most = bank->stock / bank->unit_bytes[g];
        uint64_t units = units_for(bank, g, want);
        if (units > most) {
            all = false;
            units = bank->per_unit[g] != 0 ? most : 0;
            want = bank->free[g] + units * bank->per_unit[g];
        }
        bank->cap[g] -= want;
        bank->stock -= units * bank->unit_bytes[g];
        bank->free[g] += units * bank->per_unit[g];
        bank->free[g] -= want;
        if (opened) opened[g] = units;
    }
    return all;
}

void pkvi_bank_missing(const struct pkvi_bank *bank, const uint64_t *need, uint32_t *missing)
{
    uint64_t left = bank->stock;
    for (uint32_t g = 0; g < bank->n_groups; g++) {
        const uint64_t wanted = need[g] + bank->keep[g];
        missing[g] = 0;
        if (serve(bank, g, wanted, &left)) continue;
        const uint64_t units = left / bank->unit_bytes[g];
        uint64_t most = bank->free[g] + units * bank->per_unit[g];
        if (most > bank->cap[g]) most = bank->cap[g];
        const uint64_t lacking = wanted > most ? wanted - most : 0;
        missing[g] = (uint32_t)(lacking > UINT32_MAX ? UINT32_MAX : lacking);
        serve(bank, g, most, &left);
    }
}

/* ---- safety --------------------------------------------------------------------------------- */

static uint64_t size_of(const struct pkvi_bank *bank, const struct pkvi_holder *holder)
{
    uint64_t bytes = 0;
    for (uint32_t g = 0; g < bank->n_groups; g++)
        bytes += holder->need[g] * bank->unit_bytes[g];
    return bytes;
}

/* Heap sort of `order` by need, ascending: no recursion, no memory. */
static void sift(const struct pkvi_bank *bank, const struct pkvi_holder *holders, uint32_t *order,
                 uint32_t at, uint32_t n)
{
    const uint32_t moved = order[at];
    const uint64_t key = size_of(bank, &holders[moved]);
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= n) break;
        if (child + 1 < n &&
            size_of(bank, &holders[order[child + 1]]) > size_of(bank, &holders[order[child]]))
            child++;
        if (size_of(bank, &holders[order[child]]) <= key) break;
        order[at] = order[child];
        at = child;
    }
    order[at] = moved;
}

static void sort_by_need(const struct pkvi_bank *bank, const struct pkvi_holder *holders,
                         uint32_t *order, uint32_t n)
{
    for (uint32_t i = n / 2; i-- > 0;)
        sift(bank, holders, order, i, n);
    for (uint32_t end = n; end > 1;) {
        end--;
        const uint32_t largest = order[0];
        order[0] = order[end];
        order[end] = largest;
        sift(bank, holders, order, 0, end);
    }
}

/* Can it end now? `total` is the sum of all needs and follows if this one has become smaller. */
static bool can_end(const struct pkvi_bank *bank, struct pkvi_holder *holder, uint64_t *total,
                    const struct pkvi_bank_ops *ops)
{
    if (pkvi_bank_can(bank, holder->need)) return true;
    if (!ops->refresh) return false;
    for (uint32_t g = 0; g < bank->n_groups; g++)
        total[g] -= holder->need[g];
    ops->refresh(ops->context, holder);
    for (uint32_t g = 0; g < bank->n_groups; g++)
        total[g] += holder->need[g];
    return pkvi_bank_can(bank, holder->need);
}

static void end(struct pkvi_bank *bank, struct pkvi_holder *holder, uint64_t *total,
                const struct pkvi_bank_ops *ops)
{
    ops->end(ops->context, holder);
    for (uint32_t g = 0; g < bank->n_groups; g++) {
        bank->free[g] += holder->back[g];
        bank->free[g] -= holder->units[g] * bank->per_unit[g];
        bank->stock += holder->units[g] * bank->unit_bytes[g];
        const uint64_t paid = bank->debt < bank->stock ? bank->debt : bank->stock;
        bank->debt -= paid;
        bank->stock -= paid;
        if (bank->cap[g] <= UINT64_MAX - holder->back[g]) bank->cap[g] += holder->back[g];
        total[g] -= holder->need[g];
    }
}

uint32_t pkvi_bank_stuck(struct pkvi_bank *bank, struct pkvi_holder *holders, uint32_t n,
                         uint32_t *order, const struct pkvi_bank_ops *ops, uint32_t *stuck)
{
    uint64_t total[PKV_MAX_GROUPS] = {0};
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t g = 0; g < bank->n_groups; g++)
            total[g] += holders[i].need[g];
    if (pkvi_bank_can(bank, total)) return 0;
    for (uint32_t i = 0; i < n; i++)
        order[i] = i;
    sort_by_need(bank, holders, order, n);
    uint32_t left = n;
    for (;;) {
        /* One round: whoever can end does; the others move up, in order. */
        uint32_t kept = 0;
        for (uint32_t i = 0; i < left; i++) {
            struct pkvi_holder *holder = &holders[order[i]];
            if (!can_end(bank, holder, total, ops)) {
                order[kept++] = order[i];
                continue;
            }
            end(bank, holder, total, ops);
            if (pkvi_bank_can(bank, total)) return 0;
        }
        if (kept == left) break;
        left = kept;
    }
    if (left != 0 && stuck) *stuck = order[0];
    return left;
}
