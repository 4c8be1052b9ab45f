#include "base/base.h"

uint32_t pkvi_bitmap_next(const uint64_t *words, uint32_t n_bits, uint32_t from)
{
    if (from >= n_bits) return PKVI_BITMAP_NONE;
    size_t n_words = PKVI_BITMAP_WORDS(n_bits);
    size_t i = from / 64;
    uint64_t word = words[i] & (UINT64_MAX << (from % 64));
    while (!word) {
        if (++i == n_words) return PKVI_BITMAP_NONE;
        word = words[i];
    }
    uint64_t bit = i * 64 + (uint64_t)__builtin_ctzll(word);
    return bit < n_bits ? (uint32_t)bit : PKVI_BITMAP_NONE;
}
