/* evict: attention mass that the host feeds.
 *
 * Its unit is the host's own: one call may sum to 1 and another host's to 1e11, and only the
 * proportions matter. So a call's values are kept in fixed point relative to the call's largest, in
 * steps of BAND_BITS binary orders; the two highest bands of a commit are kept and lower ones left
 * out, which are below a millionth of the highest. The band of a call depends on the call alone and
 * the highest band on all calls, so the sums depend on no order. */
#include <math.h>
#include <string.h>

#include "evict/evict_internal.h"

/* A value is below 2^19 band units, so 2^21 calls at least fit into a sum. */
#define BAND_BITS 20
#define FRACTION_BITS 24

static int band_of(float largest)
{
    int exponent;
    frexp((double)largest, &exponent);
    return exponent >= 0 ? exponent / BAND_BITS : -((BAND_BITS - 1 - exponent) / BAND_BITS);
}

static pkv_status make_room(struct pkvi_evict_state *state, struct pkvi_mem *mem)
{
    struct pkvi_mass_feed *feed = &state->feed;
    if (state->acc_n <= feed->capacity) return PKV_OK;
    uint64_t *sum = pkvi_mem_array(mem, state->acc_capacity, 2 * sizeof *sum);
    if (!sum) return PKV_ENOMEM;
    pkvi_evict_feed_free(feed, mem);
    feed->sum = sum;
    feed->capacity = state->acc_capacity;
    return PKV_OK;
}

static uint64_t *sums(const struct pkvi_mass_feed *feed, int band)
{
    return feed->sum + (size_t)(feed->band - band) * feed->capacity;
}

/* Makes `band` the highest. */
static void raise_band(struct pkvi_mass_feed *feed, int band, uint32_t n)
{
    const size_t bytes = n * sizeof *feed->sum;
    uint64_t *top = feed->sum, *low = feed->sum + feed->capacity;
    if (feed->any && band == feed->band + 1)
        memcpy(low, top, bytes);
    else
        memset(low, 0, bytes);
    memset(top, 0, bytes);
    feed->band = band;
    feed->any = true;
}

static void add(struct pkvi_evict_state *state, const float *mass, float largest)
{
    struct pkvi_mass_feed *feed = &state->feed;
    const uint32_t n = state->acc_n;
    const int band = band_of(largest);
    if (!feed->any || band > feed->band) raise_band(feed, band, n);
    if (band < feed->band - 1) return;
    const double scale = ldexp(1, FRACTION_BITS - BAND_BITS * band);
    uint64_t *sum = sums(feed, band);
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t value = (uint64_t)((double)mass[i] * scale);
        sum[i] = sum[i] <= UINT64_MAX - value ? sum[i] + value : UINT64_MAX;
    }
}

pkv_status pkvi_evict_feed_any(struct pkvi_evict_seq *es, uint32_t group, const float *mass,
                               uint32_t n)
{
    if (!es) return PKV_OK;
    struct pkvi_evict_state *state = &es->groups[group];
    if (state->acc_n == 0 || n != state->acc_n) return PKV_OK;
    float largest = 0;
    for (uint32_t i = 0; i < n; i++)
        if (mass[i] > largest) largest = mass[i];
    if (!(largest > 0)) return PKV_OK;
    pkvi_mutex_lock(&es->feeding);
    const pkv_status status = make_room(state, es->evict->mem);
    if (status == PKV_OK) {
        add(state, mass, largest);
        atomic_store_explicit(&state->fed, 1, memory_order_relaxed);
    }
    pkvi_mutex_unlock(&es->feeding);
    return status;
}

double pkvi_evict_feed_sum(const struct pkvi_mass_feed *feed, uint32_t i)
{
    if (!feed->any) return 0;
    const int unit = BAND_BITS * feed->band - FRACTION_BITS;
    return ldexp((double)feed->sum[i], unit) +
           ldexp((double)feed->sum[feed->capacity + i], unit - BAND_BITS);
}

void pkvi_evict_feed_free(struct pkvi_mass_feed *feed, struct pkvi_mem *mem)
{
    if (feed->capacity != 0)
        pkvi_mem_free_array(mem, feed->sum, feed->capacity, 2 * sizeof *feed->sum);
    *feed = (struct pkvi_mass_feed){0};
}
