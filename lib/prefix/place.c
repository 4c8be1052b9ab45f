/* Where states are kept. A state costs as much as many pages and is of use at one position only, so
 * the index does not have one at the end of every page:
 *
 *   - at the end of every step of a page or more that ends with a page: prompts are computed in
 *     such steps, and where they end is what pkv_seq_state_stop suggests:
 *       where others went on differently: pages matched, but no state was there (a junction:
 * whoever computes that stretch again leaves one); at the last page end before the prompt's own
 * end, for who comes with the same prompt; before it at distances that double, for who comes with a
 * part of it
 *   - while single tokens are generated, every PLACE_PAGES pages
 *   - where the host made a checkpoint (pkv_seq_checkpoint)
 *
 * What is of no use is the first to be reclaimed, in the order of the replacement policy. */
#include "internal.h"

#define PLACE_PAGES 16u

bool pkvi_place_wanted(const struct pkvi_prefix *px, uint64_t first, uint32_t n)
{
    if (!px->state_groups) return false;
    return n >= px->config.page_tokens || ((first + n) >> px->page_shift) % PLACE_PAGES == 0;
}

uint64_t pkvi_prefix_seq_stop(const struct pkvi_prefix *px, const struct pkvi_prefix_seq *seq,
                              uint64_t length, uint64_t n_tokens)
{
    const uint64_t end = n_tokens > 0 ? (n_tokens - 1) >> px->page_shift << px->page_shift : 0;
    if (end <= length) return n_tokens;
    uint64_t stop = end;
    for (uint64_t back = (uint64_t)PLACE_PAGES << px->page_shift; back < end && end - back > length;
         back *= 2)
        stop = end - back;
    const uint64_t junction = (uint64_t)seq->junction << px->page_shift;
    return junction > length ? pkvi_min_u64(stop, junction) : stop;
}
