/* WINDOW: keep the most recent pages, drop the oldest. */
#include "oldest.h"

const struct pkvi_evict_ops pkvi_evict_window = {
    .name = "window",
    .kind = PKV_EVICT_WINDOW,
    .by_length = true,
    .victim = pkvi_evict_oldest, /* the policy resolves to 0 sink pages */
    .peek = pkvi_evict_age_score,
};
