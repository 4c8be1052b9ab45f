/* attn: arrays of a plan that grow and keep their memory from build to build. */
#include "plan.h"

bool pkvi_plan_room(struct pkvi_mem *mem, void **array, uint32_t *capacity, uint64_t need,
                    size_t size)
{
    if (need <= *capacity) return true;
    if (need > UINT32_MAX / 2) return false;
    uint32_t grown = *capacity + *capacity / 2 + 8;
    if (grown < need) grown = (uint32_t)need;
    void *wider = *array ? pkvi_mem_grow_array(mem, *array, *capacity, grown, size)
                         : pkvi_mem_array(mem, grown, size);
    if (!wider) return false;
    *array = wider;
    *capacity = grown;
    return true;
}
