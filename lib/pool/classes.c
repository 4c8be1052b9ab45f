/* Lists of regions by class, out of which pages are taken. The pool's lock is held. */
#include "pool/internal.h"

void pkvi_pool_unlink(struct pkvi_pool *pool, struct pkvi_region *region)
{
    if (region->class == CLASS_FULL) return; /* full regions are in no list */
    if (region->prev)
        region_at(pool, region->prev - 1)->next = region->next;
    else
        pool->class_head[region->class] = region->next;
    if (region->next) region_at(pool, region->next - 1)->prev = region->prev;
    region->class = CLASS_FULL;
    region->next = region->prev = 0;
}

static void link_region(struct pkvi_pool *pool, uint32_t slot, struct pkvi_region *region,
                        uint32_t class)
{
    region->class = (uint8_t) class;
    if (class == CLASS_FULL) return;
    region->prev = 0;
    region->next = pool->class_head[class];
    if (region->next) region_at(pool, region->next - 1)->prev = slot + 1;
    pool->class_head[class] = slot + 1;
    if (class != CLASS_EMPTY) return;
    /* Everything was freed: forget the stack, so that pages come out in ascending order again. */
    region->free_head = 0;
    region->fresh = 0;
}

void pkvi_pool_relink(struct pkvi_pool *pool, uint32_t slot, struct pkvi_region *region,
                      uint32_t class)
{
    pkvi_pool_unlink(pool, region);
    link_region(pool, slot, region, class);
}
