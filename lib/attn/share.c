/* attn: which part of the items each thread takes. Everything here is a pure function of the plan
 * and the number of workers, so threads agree without talking. */
#include "plan.h"

/* The item whose cost interval contains `target`. */
static uint32_t find_item(const struct plan_group *group, uint64_t target)
{
    uint32_t lo = 0, hi = group->n_items;
    while (lo + 1 < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (group->cost[mid] <= target)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

struct plan_place pkvi_plan_share(const struct pkvi_attn_model *model,
                                  const struct plan_group *group, uint32_t w, uint32_t n)
{
    uint32_t items = group->n_items;
    if (items == 0 || w >= n) return (struct plan_place){items, 0};
    uint64_t total = group->cost[items];
    uint64_t target = total / n * w + total % n * w / n;
    uint32_t i = find_item(group, target);
    const struct plan_item *item = &group->items[i];
    uint64_t cost = group->cost[i + 1] - group->cost[i], rest = target - group->cost[i];
    struct plan_place here = {i, item->leaf0};
    struct plan_place next = {i + 1, i + 1 < items ? group->items[i + 1].leaf0 : 0};
    if (!item->splittable) return rest * 2 < cost ? here : next;

    /* The cut goes to the nearer end of the leaf that contains it; cost runs with pages. */
    const struct plan_pages *pages = &group->lanes[item->entry].pages;
    uint64_t n_pages = item->page1 - item->page0;
    if (n_pages == 0) return here;
    double at = (double)rest / (double)cost * (double)n_pages;
    uint32_t page = (uint32_t)at < n_pages ? (uint32_t)at : (uint32_t)n_pages - 1;
    uint32_t leaf = pages->logical[item->page0 + page] / plan_leaf_pages(model);
    uint32_t first = pkvi_plan_page_of_leaf(model, pages, item->page0, item->page1, leaf);
    uint32_t end = pkvi_plan_page_of_leaf(model, pages, item->page0, item->page1, leaf + 1);
    bool after = 2 * at >= (double)(first - item->page0) + (double)(end - item->page0);
    /* Leaves without pages (evicted) at either end belong to no part of their own. */
    uint32_t cut = after ? end : first;
    if (cut == item->page0) return here;
    if (cut == item->page1) return next;
    return (struct plan_place){i, after ? leaf + 1 : leaf};
}

/* The last worker of n that begins at or before a place: the one that works on that leaf. */
static uint32_t last_at(const struct pkvi_attn_model *model, const struct plan_group *group,
                        uint32_t item, uint32_t leaf, uint32_t n)
{
    uint32_t lo = 0, hi = n; /* share(lo) <= place < share(hi) */
    while (lo + 1 < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        struct plan_place at = pkvi_plan_share(model, group, mid, n);
        if (at.item < item || (at.item == item && at.leaf <= leaf))
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

uint32_t pkvi_plan_parts(const struct pkvi_attn_model *model, const struct plan_group *group,
                         uint32_t item, uint32_t n, uint32_t *first, uint32_t *last)
{
    const struct plan_item *at = &group->items[item];
    *first = last_at(model, group, item, at->leaf0, n);
    *last = at->splittable ? last_at(model, group, item, at->leaf1 - 1, n) : *first;
    uint32_t parts = 1;
    for (uint32_t w = *first + 1; w <= *last; w++)
        parts += !plan_idle(model, group, w, n);
    return parts;
}
