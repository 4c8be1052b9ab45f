/* SINK: keep the first tokens and the most recent pages (Xiao et al., "Efficient Streaming Language
 * Models with Attention Sinks"), at page granularity. */
#include "oldest.h"

const struct pkvi_evict_ops pkvi_evict_sink = {
    .name = "sink",
    .kind = PKV_EVICT_SINK,
    .by_length = true,
    .victim = pkvi_evict_oldest,
    .peek = pkvi_evict_age_score,
};
