/* The policies, one per file in policy/. */
#ifndef PKVI_INDEX_POLICIES_H
#define PKVI_INDEX_POLICIES_H

struct pkvi_policy_ops;

extern const struct pkvi_policy_ops pkvi_policy_fifo;
extern const struct pkvi_policy_ops pkvi_policy_lru;
extern const struct pkvi_policy_ops pkvi_policy_lru_leaf;
extern const struct pkvi_policy_ops pkvi_policy_lfu;
extern const struct pkvi_policy_ops pkvi_policy_sieve;
extern const struct pkvi_policy_ops pkvi_policy_s3fifo;
extern const struct pkvi_policy_ops pkvi_policy_arc;
extern const struct pkvi_policy_ops pkvi_policy_2q;
extern const struct pkvi_policy_ops pkvi_policy_slru;
extern const struct pkvi_policy_ops pkvi_policy_priority;
extern const struct pkvi_policy_ops pkvi_policy_adaptive;
extern const struct pkvi_policy_ops pkvi_policy_opt;
extern const struct pkvi_policy_ops pkvi_policy_opt_bypass;

#endif
