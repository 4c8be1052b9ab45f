/* adaptive: the guard. What LRU would hold is known exactly: the pages last used since some
 * request, and the running ones. So its hits are counted beside the own ones, and so are the pages
 * that it would hold and the policy gave up ("missing"). Each of them costs at most one hit: when
 * it is asked for it comes back, in LRU's cache and in the own one.
 *
 *     credit   own hits, less (1 - ALLOWANCE) of LRU's; at most one per page of capacity, so that
 *              old merits do not pay for long losses
 *     risk     missing pages, times the share of such pages that was asked for before LRU dropped
 *              them too, as far as is known
 *
 * While credit is less than risk, no further page that LRU would hold is given up: the policy
 * chooses among those that it holds beyond LRU's. So what it may lose to LRU is bounded at every
 * moment, and what it may try grows with what it gains. */
#include "adaptive.h"

#define FULL PKVI_ADAPTIVE_FULL
#define PARTIAL PKVI_ADAPTIVE_PARTIAL
#define GROUPS PKVI_ADAPTIVE_GROUPS

#define ALLOWANCE 0.005  /* share of LRU's hits that may be lost, … */
#define START 32.0       /* so many, … */
#define START_SHARE 64.0 /* and one per so many pages of capacity */
#define DOUBT 32.0       /* missing pages that the assumption about them counts for … */
#define DOUBT_SHARE 0.5  /* … that so many are asked for */
#define SHARE_KEPT                                                                                 \
    4096.0 /* missing pages (or the capacity) after which their counts are halved                  \
            */

static struct pkvi_adaptive_moment *moment(const struct pkvi_adaptive *a, uint32_t time)
{
    return &a->guard.ring[time & (a->guard.ring_size - 1)];
}

static enum pkvi_adaptive_group group_of(const struct pkvi_member *m)
{
    return m->list == 0 ? PARTIAL : FULL;
}

/* LRU drops what it would have dropped next. */
static void drop_moment(struct pkvi_adaptive *a)
{
    struct pkvi_adaptive_guard *g = &a->guard;
    const struct pkvi_adaptive_moment *last = moment(a, g->from++);
    g->pages -= last->used;
    for (int k = 0; k < GROUPS; k++) {
        g->missing[k] -= last->missing[k];
        g->dropped[k] += last->missing[k];
        g->risk -= g->share[k] * last->missing[k];
    }
}

static void fit(struct pkvi_adaptive *a)
{
    struct pkvi_adaptive_guard *g = &a->guard;
    while (g->pages + g->held > a->base.capacity && g->from < a->now)
        drop_moment(a);
}

/* Makes the ring reach from before `from` to now; shortens LRU's reach when memory is refused. */
static void reach(struct pkvi_adaptive *a)
{
    struct pkvi_adaptive_guard *g = &a->guard;
    if (a->now - g->from + 1 < g->ring_size) return;
    struct pkvi_mem *mem = a->base.ix->mem;
    uint32_t wider = 2 * g->ring_size;
    struct pkvi_adaptive_moment *ring = pkvi_mem_array(mem, wider, sizeof *ring);
    if (!ring) {
        drop_moment(a);
        return;
    }
    for (uint32_t t = g->from ? g->from - 1 : 0; t != a->now; t++)
        ring[t & (wider - 1)] = *moment(a, t);
    pkvi_mem_free_array(mem, g->ring, g->ring_size, sizeof *ring);
    g->ring = ring;
    g->ring_size = wider;
}

bool pkvi_adaptive_guard_setup(struct pkvi_adaptive *a)
{
    struct pkvi_adaptive_guard *g = &a->guard;
    g->ring_size = 64;
    g->ring = pkvi_mem_array(a->base.ix->mem, g->ring_size, sizeof *g->ring);
    if (!g->ring) return false;
    for (uint32_t i = 0; i < g->ring_size; i++)
        g->ring[i] = (struct pkvi_adaptive_moment){0};
    g->credit = START + (double)a->base.capacity / START_SHARE;
    return true;
}

void pkvi_adaptive_guard_teardown(struct pkvi_adaptive *a)
{
    pkvi_mem_free_array(a->base.ix->mem, a->guard.ring, a->guard.ring_size, sizeof *a->guard.ring);
}

/* What is known of missing pages, anew. */
static void assess(struct pkvi_adaptive *a)
{
    struct pkvi_adaptive_guard *g = &a->guard;
    double most = SHARE_KEPT > (double)a->base.capacity ? SHARE_KEPT : (double)a->base.capacity;
    g->risk = 0;
    for (int k = 0; k < GROUPS; k++) {
        if (g->missed[k] + g->dropped[k] > most) {
            g->missed[k] /= 2;
            g->dropped[k] /= 2;
        }
        g->share[k] = (g->missed[k] + DOUBT * DOUBT_SHARE) / (g->missed[k] + g->dropped[k] + DOUBT);
        g->risk += g->share[k] * (double)g->missing[k];
    }
    if (g->credit > (double)a->base.capacity) g->credit = (double)a->base.capacity;
}

void pkvi_adaptive_guard_begin(struct pkvi_adaptive *a)
{
    reach(a);
    *moment(a, a->now) = (struct pkvi_adaptive_moment){0};
    fit(a);
    assess(a);
}

/* Has LRU room for a part of what was used just before `from`? The leading pages of a request are
 * the last to go and the first to be used again; each one used again takes from the room. */
static bool room_left(const struct pkvi_adaptive *a)
{
    return a->guard.pages + a->guard.held < a->base.capacity;
}

void pkvi_adaptive_guard_use(struct pkvi_adaptive *a, const struct pkvi_member *m, bool ghost)
{
    struct pkvi_adaptive_guard *g = &a->guard;
    if (!ghost) g->credit += 1;
    if (m->a >= g->from) {
        g->credit -= 1 - ALLOWANCE;
        if (!ghost) return;
        enum pkvi_adaptive_group k = group_of(m);
        g->missed[k] += 1;
        pkvi_adaptive_guard_forget(a, m);
    } else if (m->a + 1 == g->from && room_left(a)) {
        g->credit -= 1 - ALLOWANCE;
    }
}

void pkvi_adaptive_guard_enter(struct pkvi_adaptive *a)
{
    moment(a, a->now)->used++;
    a->guard.pages++;
    fit(a);
}

void pkvi_adaptive_guard_leave(struct pkvi_adaptive *a, uint32_t time)
{
    struct pkvi_adaptive_guard *g = &a->guard;
    if (time + 1 < g->from) return;
    moment(a, time)->used--;
    if (time >= g->from) g->pages--;
}

void pkvi_adaptive_guard_hold(struct pkvi_adaptive *a)
{
    a->guard.held++;
    fit(a);
}

void pkvi_adaptive_guard_release(struct pkvi_adaptive *a)
{
    if (a->guard.held) a->guard.held--;
}

void pkvi_adaptive_guard_evict(struct pkvi_adaptive *a, const struct pkvi_member *m)
{
    struct pkvi_adaptive_guard *g = &a->guard;
    if (m->a < g->from) return;
    enum pkvi_adaptive_group k = group_of(m);
    moment(a, m->a)->missing[k]++;
    g->missing[k]++;
    g->risk += g->share[k];
}

void pkvi_adaptive_guard_forget(struct pkvi_adaptive *a, const struct pkvi_member *m)
{
    struct pkvi_adaptive_guard *g = &a->guard;
    if (m->a < g->from) return;
    enum pkvi_adaptive_group k = group_of(m);
    moment(a, m->a)->missing[k]--;
    g->missing[k]--;
    g->risk -= g->share[k];
}
