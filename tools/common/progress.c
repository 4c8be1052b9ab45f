#include "progress.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>

enum { BAR = 30 };
#define DRAW_EVERY_NS 100000000u

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void progress_start(progress *p, const char *label, uint64_t total)
{
    p->label = label;
    p->total = total == 0 ? 1 : total;
    p->shown = isatty(STDERR_FILENO) == 1;
    atomic_init(&p->done, 0);
    atomic_init(&p->next_draw_ns, p->shown ? now_ns() + DRAW_EVERY_NS : 0);
}

static void draw(const progress *p, uint64_t done)
{
    double share = (double)done / (double)p->total;
    if (share > 1) share = 1;
    int filled = (int)(share * BAR);
    char bar[BAR + 1];
    for (int i = 0; i < BAR; i++)
        bar[i] = i < filled ? '#' : '.';
    bar[BAR] = '\0';
    fprintf(stderr, "\r%s [%s] %3d%%", p->label, bar, (int)(share * 100));
    fflush(stderr);
}

void progress_add(progress *p, uint64_t n)
{
    uint64_t done = atomic_fetch_add_explicit(&p->done, n, memory_order_relaxed) + n;
    if (!p->shown) return;
    uint64_t now = now_ns();
    uint64_t due = atomic_load_explicit(&p->next_draw_ns, memory_order_relaxed);
    /* One thread wins the right to draw. */
    if (now < due || !atomic_compare_exchange_strong(&p->next_draw_ns, &due, now + DRAW_EVERY_NS))
        return;
    draw(p, done);
}

void progress_end(progress *p)
{
    if (p->shown) fputs("\r\033[K", stderr);
}
