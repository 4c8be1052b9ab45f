/* Fuzzes everything at once: the bytes are the choices of a random world (../property/world), in
 * which every public function occurs. Whatever they are, what is read back is what was written, the
 * cache verifies, refused calls change nothing and nothing is left at the end. */
#include <stdint.h>
#include <stdlib.h>

#include "../property/world/world.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct world *w = calloc(1, sizeof *w);
    if (w == NULL) return 0;
    w->source.bytes = data;
    w->source.n_bytes = size;
    if (world_open(w)) {
        while (!world_exhausted(w))
            world_step(w);
        world_check_all(w);
    }
    world_close(w);
    free(w);
    return 0;
}
