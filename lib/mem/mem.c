#include "mem/mem.h"

#include <string.h>

#include "mem/internal.h"

#define MIN_ALIGNMENT 16

pkv_status pkvi_mem_init(struct pkvi_mem *mem, const pkv_allocator *allocator)
{
    *mem = (struct pkvi_mem){0};
    if (allocator) {
        mem->allocator = *allocator;
    } else if (pkvi_jemalloc_present()) {
        if (!pkvi_jemalloc_create(&mem->allocator, &mem->arena)) return PKV_ENOMEM;
        mem->owns_arena = true;
    } else {
        pkvi_libc_allocator(&mem->allocator);
    }
    return PKV_OK;
}

bool pkvi_mem_attach(struct pkvi_mem *mem, struct pkvi_budget *budget, size_t bytes)
{
    if (!pkvi_budget_charge_metadata(budget, bytes)) return false;
    mem->budget = budget;
    return true;
}

void pkvi_mem_detach(struct pkvi_mem *mem, size_t bytes)
{
    if (!mem->budget) return;
    pkvi_budget_release_metadata(mem->budget, bytes);
    PKVI_ASSERT(atomic_load(&mem->budget->metadata) == 0);
    mem->budget = NULL;
}

void pkvi_mem_destroy(struct pkvi_mem *mem)
{
    PKVI_ASSERT(!mem->budget || atomic_load(&mem->budget->metadata) == 0);
    if (mem->owns_arena) pkvi_jemalloc_destroy(mem->arena);
    *mem = (struct pkvi_mem){0};
}

void *pkvi_mem_alloc_aligned(struct pkvi_mem *mem, size_t size, size_t alignment)
{
    PKVI_ASSERT(size > 0 && pkvi_is_power_of_two(alignment));
    if (mem->budget && !pkvi_budget_charge_metadata(mem->budget, size)) return NULL;
    if (alignment < MIN_ALIGNMENT) alignment = MIN_ALIGNMENT;
    void *ptr = mem->allocator.alloc(mem->allocator.user, size, alignment);
    if (!ptr && mem->budget) pkvi_budget_release_metadata(mem->budget, size);
    return ptr;
}

void *pkvi_mem_alloc(struct pkvi_mem *mem, size_t size)
{
    return pkvi_mem_alloc_aligned(mem, size, MIN_ALIGNMENT);
}

void *pkvi_mem_zalloc(struct pkvi_mem *mem, size_t size)
{
    void *ptr = pkvi_mem_alloc(mem, size);
    if (ptr) memset(ptr, 0, size);
    return ptr;
}

void *pkvi_mem_array(struct pkvi_mem *mem, size_t n, size_t size)
{
    size_t bytes;
    if (!pkvi_mul_size(n, size, &bytes)) return NULL;
    return pkvi_mem_zalloc(mem, bytes);
}

void pkvi_mem_free(struct pkvi_mem *mem, void *ptr, size_t size)
{
    if (!ptr) return;
    mem->allocator.free(mem->allocator.user, ptr, size);
    if (mem->budget) pkvi_budget_release_metadata(mem->budget, size);
}

void *pkvi_mem_scratch(struct pkvi_mem *mem, size_t n, size_t size)
{
    size_t bytes;
    if (!pkvi_mul_size(n, size, &bytes)) return NULL;
    void *ptr = mem->allocator.alloc(mem->allocator.user, bytes, MIN_ALIGNMENT);
    if (ptr) memset(ptr, 0, bytes);
    return ptr;
}

void pkvi_mem_free_scratch(struct pkvi_mem *mem, void *ptr, size_t n, size_t size)
{
    if (ptr) mem->allocator.free(mem->allocator.user, ptr, n * size);
}

void *pkvi_mem_grow_array(struct pkvi_mem *mem, void *ptr, size_t old_n, size_t new_n, size_t size)
{
    size_t bytes;
    if (!pkvi_mul_size(new_n, size, &bytes)) return NULL;
    void *grown = pkvi_mem_alloc(mem, bytes);
    if (!grown) return NULL;
    if (ptr) {
        memcpy(grown, ptr, old_n * size);
        pkvi_mem_free(mem, ptr, old_n * size);
    }
    return grown;
}

uint64_t pkvi_mem_allocator_bytes(struct pkvi_mem *mem)
{
    return mem->owns_arena ? pkvi_jemalloc_bytes(mem->arena) : 0;
}
