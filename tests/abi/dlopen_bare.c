/* Loads the shared library with dlopen into a process that has no jemalloc, uses it, and checks
 * that the host's malloc was not replaced. Built without linking anything of pagedkv. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <pagedkv/pagedkv.h>

typedef pkv_status init_fn(pkv_config *, size_t);
typedef pkv_status create_fn(const pkv_config *, pkv_cache **);
typedef void destroy_fn(pkv_cache *);
typedef pkv_status seq_create_fn(pkv_cache *, pkv_seq *);

/* Stores the address of a function; POSIX guarantees the representation, ISO C the memcpy. */
static int symbol(void *library, const char *name, void *function)
{
    void *address = dlsym(library, name);
    if (!address) fprintf(stderr, "dlsym %s: %s\n", name, dlerror());
    memcpy(function, &address, sizeof address);
    return address != NULL;
}

static int use(void *library)
{
    init_fn *init;
    create_fn *create;
    destroy_fn *destroy;
    seq_create_fn *seq_create;
    if (!symbol(library, "pkv_config_init", &init) ||
        !symbol(library, "pkv_cache_create", &create) ||
        !symbol(library, "pkv_cache_destroy", &destroy) ||
        !symbol(library, "pkv_seq_create", &seq_create))
        return 1;

    pkv_group_config group = {.n_layers = 1, .kv_heads = 1, .head_dim_k = 64};
    pkv_config config;
    pkv_cache *cache = NULL;
    pkv_seq seq;
    if (init(&config, sizeof config) != PKV_OK) return 1;
    config.groups = &group;
    config.n_groups = 1;
    if (create(&config, &cache) != PKV_OK) return 1;
    int failed = seq_create(cache, &seq) != PKV_OK;
    destroy(cache);
    return failed;
}

int main(int argc, char **argv)
{
    if (argc != 2) return 2;
    void *malloc_before = dlsym(RTLD_DEFAULT, "malloc");
    void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "dlopen: %s\n", dlerror());
        return 1;
    }
    if (dlsym(RTLD_DEFAULT, "mallocx")) {
        fprintf(stderr, "the process has jemalloc: this test would show nothing\n");
        return 1;
    }
    int failed = use(library) || dlsym(RTLD_DEFAULT, "malloc") != malloc_before;
    puts(failed ? "failed" : "ok");
    return failed;
}
