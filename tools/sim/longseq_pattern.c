/* Synthetic queries and keys with known attention patterns.
 *
 * Dims of a vector:  0           marks the first tokens (sinks)
 *                    2..33       the position, as 16 rotating pairs: their dot product falls off
 *                                with the distance
 *                    40..        content: small noise, or a code of unit length at marked tokens
 * A query writes, times sqrt(dim), how many nats it gives to each part. */
#include <math.h>
#include <string.h>

#include "longseq.h"

enum { SINK_TOKENS = 4, SINK_DIM = 0, PLACE_DIM = 2, PLACE_PAIRS = 16, CONTENT_DIM = 40 };
enum { NEEDLE_GAP = 500, FAMOUS_NEEDLES = 6 };

static const float sink_nats = 10, near_nats = 13, needle_nats = 14;
static const float key_noise = 0.03f, query_noise = 10;

static const char *const names[] = {"sinks", "local", "needle", "uniform", "mixed"};

int longseq_pattern_parse(const char *name, longseq_pattern *out, tool_error *err)
{
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(name, names[i]) != 0) continue;
        *out = (longseq_pattern)i;
        return 0;
    }
    return tool_fail(err,
                     "--pattern: unknown pattern '%.40s' (known: sinks, local, needle, uniform, "
                     "mixed)",
                     name);
}

const char *longseq_pattern_name(longseq_pattern pattern)
{
    return names[pattern];
}

static uint64_t hash(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

enum kind { KEY = 1, VALUE, QUERY, CODE, CHOICE };

static uint64_t stream(const longseq_source *s, enum kind kind, uint32_t seq, uint64_t position,
                       uint32_t layer, uint32_t head)
{
    const uint64_t where = hash(
        s->seed ^ hash((uint64_t)kind << 56 ^ (uint64_t)seq << 32 ^ (uint64_t)layer << 16 ^ head));
    return hash(where ^ position);
}

/* n uniform numbers of standard deviation `scale`. */
static void noise(uint64_t state, float scale, uint32_t n, float *out)
{
    const float width = scale * 3.4641016f / 65536.0f;
    uint64_t bits = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (i % 4 == 0) bits = state = hash(state);
        out[i] = ((float)(bits & 0xffff) - 32767.5f) * width;
        bits >>= 16;
    }
}

/* A code of unit length: signs. */
static void add_code(const longseq_source *s, uint32_t seq, uint64_t needle, uint32_t layer,
                     uint32_t kv_head, float scale, float *content)
{
    uint64_t state = stream(s, CODE, seq, needle, layer, kv_head), bits = 0;
    const uint32_t n = s->dim - CONTENT_DIM;
    scale /= sqrtf((float)n);
    for (uint32_t i = 0; i < n; i++) {
        if (i % 64 == 0) bits = state = hash(state);
        content[i] += bits & 1 ? scale : -scale;
        bits >>= 1;
    }
}

/* Needle n sits at a random place of the n-th span of NEEDLE_GAP tokens. */
static uint64_t needle_position(const longseq_source *s, uint32_t seq, uint64_t n)
{
    return n * NEEDLE_GAP + 32 + stream(s, CHOICE, seq, n, 0, 0) % (NEEDLE_GAP - 64);
}

/* Angles from half a radian per token down to one radian in 4,000 tokens. */
void longseq_place(uint64_t position, float place[LONGSEQ_PLACE])
{
    for (uint32_t i = 0; i < PLACE_PAIRS; i++) {
        const double angle = (double)position * 0.5 * pow(0.0005, i / (double)(PLACE_PAIRS - 1));
        place[2 * i] = (float)cos(angle);
        place[2 * i + 1] = (float)sin(angle);
    }
}

void longseq_key(const longseq_source *s, uint32_t seq, uint64_t position, const float *place,
                 uint32_t layer, uint32_t head, float *out)
{
    memset(out, 0, CONTENT_DIM * sizeof *out);
    noise(stream(s, KEY, seq, position, layer, head), key_noise, s->dim - CONTENT_DIM,
          out + CONTENT_DIM);
    if (position < SINK_TOKENS) out[SINK_DIM] = 1;
    memcpy(out + PLACE_DIM, place, LONGSEQ_PLACE * sizeof *out);
    const uint64_t needle = position / NEEDLE_GAP;
    if (needle_position(s, seq, needle) == position) {
        memset(out + CONTENT_DIM, 0, (s->dim - CONTENT_DIM) * sizeof *out);
        add_code(s, seq, needle, layer, head, 1, out + CONTENT_DIM);
    }
}

void longseq_value(const longseq_source *s, uint32_t seq, uint64_t position, uint32_t layer,
                   uint32_t head, float *out)
{
    noise(stream(s, VALUE, seq, position, layer, head), 1, s->dim, out);
}

/* The needle that the queries of this position look for; false if none. Half of the time one of the
 * first few, so that a policy can learn which pages matter. */
static bool wanted_needle(const longseq_source *s, uint32_t seq, uint64_t position, uint64_t *n)
{
    const uint64_t dice = stream(s, CHOICE, seq, position, 1, 1);
    uint64_t seen = position / NEEDLE_GAP;
    if (dice % 2 != 0 || seen == 0) return false;
    if (dice / 2 % 2 == 0 && seen > FAMOUS_NEEDLES) seen = FAMOUS_NEEDLES;
    *n = dice / 4 % seen;
    return true;
}

static longseq_pattern pattern_of_head(const longseq_source *s, uint32_t head)
{
    return s->pattern == PATTERN_MIXED ? (longseq_pattern)(head % 4) : s->pattern;
}

void longseq_query(const longseq_source *s, uint32_t seq, uint64_t position, const float *place,
                   uint32_t layer, uint32_t head, float *out)
{
    const float unit = sqrtf((float)s->dim);
    const longseq_pattern pattern = pattern_of_head(s, head);
    uint64_t needle;
    memset(out, 0, CONTENT_DIM * sizeof *out);
    noise(stream(s, QUERY, seq, position, layer, head), query_noise, s->dim - CONTENT_DIM,
          out + CONTENT_DIM);
    if (pattern == PATTERN_UNIFORM) return;
    if (pattern == PATTERN_SINKS || pattern == PATTERN_NEEDLE) out[SINK_DIM] = unit * sink_nats;
    for (uint32_t i = 0; i < LONGSEQ_PLACE; i++)
        out[PLACE_DIM + i] = unit * near_nats / PLACE_PAIRS * place[i];
    if (pattern == PATTERN_NEEDLE && wanted_needle(s, seq, position, &needle))
        add_code(s, seq, needle, layer, head / s->group_size, unit * needle_nats,
                 out + CONTENT_DIM);
}
