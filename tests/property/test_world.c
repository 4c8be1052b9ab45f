/* Random worlds over every public function (world/world.h). PKV_SEED repeats a run, PKV_OPS sets
 * the number of operations. The seed in a complaint, with PKV_OPS=1, is that of the world alone. */
#include <stdio.h>
#include <stdlib.h>

#include "random.h"
#include "world/world.h"

int main(void)
{
    static struct world sum;
    const char *text = getenv("PKV_OPS");
    const uint64_t n = text != NULL ? strtoull(text, NULL, 0) : 200000;
    sum.seed = pkvt_seed("world");
    world_run(&sum, n);
    printf("%llu operations in %llu worlds: %llu calls refused, %llu steps committed, %llu prefix "
           "hits of %llu tokens, %llu pages dropped, %llu put back, %llu steps attended\n",
           (unsigned long long)sum.op, (unsigned long long)sum.worlds,
           (unsigned long long)sum.refused, (unsigned long long)sum.commits,
           (unsigned long long)sum.hits, (unsigned long long)sum.hit_tokens,
           (unsigned long long)sum.evictions, (unsigned long long)sum.undone,
           (unsigned long long)sum.attends);
    return 0;
}
