/* A FIFO that new pages pass before they get into the main queue, and ghosts of those that did not:
 * what S3-FIFO and 2Q have in common. In pkvi_member: list = the queue. */
#ifndef PKVI_INDEX_POLICY_FILTERED_H
#define PKVI_INDEX_POLICY_FILTERED_H

#include "index/policy.h"

enum { PKVI_FILTERED_NEW, PKVI_FILTERED_MAIN };

struct pkvi_filtered {
    struct pkvi_policy base;
    struct pkvi_queue queue[2];
    struct pkvi_queue ghosts;
};

/* Functions of pkvi_policy_ops. */
bool pkvi_filtered_setup(struct pkvi_policy *policy);
/* A ghost goes straight to the main queue. */
void pkvi_filtered_insert(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use);
void pkvi_filtered_unpark(struct pkvi_policy *policy, uint32_t id);
void pkvi_filtered_forget(struct pkvi_policy *policy, uint32_t id);
/* As pkvi_policy_ops.remove; at most `most` ghosts of evicted new pages are kept. */
void pkvi_filtered_remove(struct pkvi_policy *policy, uint32_t id, bool evicted, uint64_t most);

#endif
