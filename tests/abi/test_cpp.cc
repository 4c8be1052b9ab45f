// The whole public interface from C++: create, one step of a sequence, destroy.
#include <pagedkv/pagedkv.h>

#include <cstdint>
#include <cstdio>

static bool one_step(pkv_cache *cache)
{
    pkv_seq seq{};
    pkv_batch batch{};
    const std::int32_t tokens[3] = {1, 2, 3};
    std::uint64_t length = 0;
    return pkv_seq_create(cache, &seq) == PKV_OK && pkv_batch_begin(cache, &batch) == PKV_OK &&
           pkv_batch_add(batch, seq, tokens, 3) == PKV_OK && pkv_batch_reserve(batch) == PKV_OK &&
           pkv_batch_commit(batch) == PKV_OK && pkv_seq_length(seq, &length) == PKV_OK &&
           length == 3 && pkv_seq_destroy(seq) == PKV_OK && pkv_seq_destroy(seq) == PKV_ESTALE;
}

int main()
{
    pkv_group_config group{};
    group.n_layers = 2;
    group.kv_heads = 2;
    group.head_dim_k = 64;
    pkv_config config{};
    if (pkv_config_init(&config, sizeof config) != PKV_OK) return 1;
    config.groups = &group;
    config.n_groups = 1;
    pkv_cache *cache = nullptr;
    if (pkv_cache_create(&config, &cache) != PKV_OK) return 1;
    const bool ok = one_step(cache);
    pkv_cache_destroy(cache);
    std::puts(ok ? "ok" : "failed");
    return ok ? 0 : 1;
}
