#include "attention_rows.h"

#define F32 PKV_DTYPE_F32
#define F16 PKV_DTYPE_F16
#define BF16 PKV_DTYPE_BF16
#define K 1024u

const attention_row attention_rows[] = {
    /* block, quick, case, q heads, kv heads, type, context, batch, new tokens, prefix */
    {0, true, "decode", 32, 32, F16, 16 * K, 1, 1, 0, false, false},
    {0, true, "decode", 32, 8, F16, 16 * K, 1, 1, 0, false, false},
    {0, true, "decode", 32, 4, F16, 16 * K, 1, 1, 0, false, false},
    {0, true, "decode", 28, 4, F16, 16 * K, 1, 1, 0, false, false},
    {0, true, "decode", 32, 8, F16, 16 * K, 1, 1, 0, true, false},
    {0, true, "decode", 32, 32, BF16, 16 * K, 1, 1, 0, false, false},
    {0, true, "decode", 32, 8, BF16, 16 * K, 1, 1, 0, false, false},
    {0, true, "decode", 32, 4, BF16, 16 * K, 1, 1, 0, false, false},
    {1, false, "decode", 32, 32, F16, 4 * K, 1, 1, 0, false, false},
    {1, false, "decode", 32, 8, F16, 4 * K, 1, 1, 0, false, false},
    {1, false, "decode", 32, 4, F16, 4 * K, 1, 1, 0, false, false},
    {1, false, "decode", 28, 4, F16, 4 * K, 1, 1, 0, false, false},
    {1, false, "decode", 32, 8, F16, 4 * K, 1, 1, 0, true, false},
    {1, false, "decode", 32, 8, BF16, 4 * K, 1, 1, 0, false, false},
    {2, false, "decode", 32, 32, F16, 64 * K, 1, 1, 0, false, false},
    {2, false, "decode", 32, 8, F16, 64 * K, 1, 1, 0, false, false},
    {2, false, "decode", 32, 4, F16, 64 * K, 1, 1, 0, false, false},
    {2, false, "decode", 32, 8, F16, 64 * K, 1, 1, 0, true, false},
    {2, false, "decode", 32, 8, BF16, 64 * K, 1, 1, 0, false, false},
    {2, false, "decode", 32, 8, F32, 64 * K, 1, 1, 0, false, false},
    {3, true, "decode-ragged", 32, 8, F16, 8 * K, 64, 1, 0, false, false},
    {3, false, "decode-ragged", 32, 8, BF16, 8 * K, 64, 1, 0, false, false},
    {4, true, "verify", 32, 8, F16, 16 * K, 1, 8, 0, false, false},
    {4, true, "verify", 32, 8, BF16, 16 * K, 1, 8, 0, false, false},
    {5, true, "prefill", 32, 8, F16, 512, 1, 512, 0, false, false},
    {5, true, "prefill", 32, 8, F16, 2 * K, 1, 512, 0, false, false},
    {5, true, "prefill", 32, 8, F16, 8 * K, 1, 512, 0, false, false},
    {5, true, "prefill", 32, 8, BF16, 2 * K, 1, 512, 0, false, false},
    {5, true, "prefill", 32, 8, BF16, 8 * K, 1, 512, 0, false, false},
    {6, true, "cascade", 32, 8, F16, 4 * K + 16, 64, 1, 4 * K, false, false},
    {6, true, "cascade", 32, 8, F16, 4 * K + 16, 64, 1, 4 * K, false, true},
    {6, true, "cascade", 32, 32, F16, 4 * K + 16, 64, 1, 4 * K, false, false},
    {6, true, "cascade", 32, 32, F16, 4 * K + 16, 64, 1, 4 * K, false, true},
    {7, false, "cascade", 32, 32, BF16, 4 * K + 16, 64, 1, 4 * K, false, false},
    {7, false, "cascade", 32, 32, BF16, 4 * K + 16, 64, 1, 4 * K, false, true},
};

const uint32_t attention_row_count = sizeof attention_rows / sizeof *attention_rows;
