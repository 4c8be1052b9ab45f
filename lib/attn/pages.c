/* attn: where the pages of a leaf are in a list of pages. */
#include "plan.h"

uint32_t pkvi_plan_page_of_leaf(const struct pkvi_attn_model *model, const struct plan_pages *pages,
                                uint32_t from, uint32_t to, uint32_t leaf)
{
    if (pages->packed) {
        uint64_t at = pages->page0 + (uint64_t)(leaf - pages->leaf0) * plan_leaf_pages(model);
        return at < from ? from : at < to ? (uint32_t)at : to;
    }
    uint64_t logical = (uint64_t)leaf * plan_leaf_pages(model);
    if (from >= to || pages->logical[from] >= logical) return from;
    if (pages->dense) {
        uint64_t at = logical - pages->logical[0];
        return at < to ? (uint32_t)at : to;
    }
    while (from < to) {
        uint32_t mid = from + (to - from) / 2;
        if (pages->logical[mid] < logical)
            from = mid + 1;
        else
            to = mid;
    }
    return from;
}
