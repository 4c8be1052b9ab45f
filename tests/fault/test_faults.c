/* Every allocation, every mapping and every other OS call of a scenario that touches every public
 * function is refused in turn, once alone and once with all later ones. */
#include <stdio.h>
#include <stdlib.h>

#include "scenario.h"

static struct scenario scenario;

static void play(uint64_t fail_at, uint64_t fail_from, uint64_t fail_map, uint64_t maps_from,
                 uint64_t fail_other)
{
    scenario_init(&scenario);
    scenario.allocator.fail_at = fail_at;
    scenario.allocator.fail_from = fail_from;
    scenario.os.fail_map = fail_map;
    scenario.os.fail_maps_from = maps_from;
    scenario.os.fail_other = fail_other;
    scenario_play(&scenario);
}

int main(void)
{
    play(0, 0, 0, 0, 0);
    const uint64_t allocations = scenario.allocator.calls;
    const uint64_t maps = scenario.os.maps;
    const uint64_t others = scenario.os.others;
    printf("test_faults: %llu allocations, %llu mappings, %llu other OS calls\n",
           (unsigned long long)allocations, (unsigned long long)maps, (unsigned long long)others);
    if (scenario.refused != 0 || allocations < 100 || maps < 2 || others < 2) {
        fprintf(stderr, "test_faults: the scenario without faults is not what it should be\n");
        return 1;
    }
    uint64_t refused = 0;
    for (uint64_t i = 1; i <= allocations; i++) {
        play(i, 0, 0, 0, 0);
        refused += scenario.refused;
        play(0, i, 0, 0, 0);
        refused += scenario.refused;
    }
    for (uint64_t i = 1; i <= maps; i++) {
        play(0, 0, i, 0, 0);
        /* Later mappings may be avoided by taking another pool's empty region. */
        if (i == 1 && scenario.refused == 0) {
            fprintf(stderr, "test_faults: the first mapping was refused and nobody noticed\n");
            return 1;
        }
        play(0, 0, 0, i, 0);
    }
    for (uint64_t i = 1; i <= others; i++)
        play(0, 0, 0, 0, i);
    printf("test_faults: %llu calls failed, all without a trace\n", (unsigned long long)refused);
    return refused == 0;
}
