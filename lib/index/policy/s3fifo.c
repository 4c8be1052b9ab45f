/* S3-FIFO (Yang et al., SOSP 2023): a small FIFO (a tenth) filters pages that are used once, the
 * main FIFO gives a used page another round per use (at most three), and a ghost FIFO sends pages
 * that return soon straight to the main one. A page that moves to the main FIFO starts there with
 * no use counted. */
#include "index/policies.h"
#include "index/policy/filtered.h"

static void touch(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use)
{
    (void)use;
    struct pkvi_member *m = pkvi_policy_member(policy, id);
    if (m->count < 3) m->count++;
}

static void to_main(struct pkvi_filtered *s3, uint32_t id)
{
    pkvi_policy_member(&s3->base, id)->list = PKVI_FILTERED_MAIN;
    pkvi_queue_push_newest(&s3->base, &s3->queue[PKVI_FILTERED_MAIN], id);
}

/* The victim in the small queue, promoting what was used more than once; PKVI_NIL if all that is
 * left there is blocked. */
static uint32_t small_victim(struct pkvi_filtered *s3)
{
    uint32_t id;
    while ((id = pkvi_queue_oldest(&s3->base, &s3->queue[PKVI_FILTERED_NEW])) != PKVI_NIL) {
        struct pkvi_member *m = pkvi_policy_member(&s3->base, id);
        if (m->count <= 1) return id;
        m->count = 0;
        pkvi_queue_remove(&s3->base, &s3->queue[PKVI_FILTERED_NEW], id);
        to_main(s3, id);
    }
    return PKVI_NIL;
}

/* The victim in the main queue; at most four rounds. */
static uint32_t main_victim(struct pkvi_filtered *s3)
{
    uint32_t id;
    while ((id = pkvi_queue_oldest(&s3->base, &s3->queue[PKVI_FILTERED_MAIN])) != PKVI_NIL) {
        struct pkvi_member *m = pkvi_policy_member(&s3->base, id);
        if (m->count == 0) return id;
        m->count--;
        pkvi_queue_remove(&s3->base, &s3->queue[PKVI_FILTERED_MAIN], id);
        to_main(s3, id);
    }
    return PKVI_NIL;
}

static uint32_t victim(struct pkvi_policy *policy)
{
    struct pkvi_filtered *s3 = (struct pkvi_filtered *)policy;
    if (s3->queue[PKVI_FILTERED_NEW].size >= policy->capacity / 10) {
        uint32_t id = small_victim(s3);
        return id != PKVI_NIL ? id : main_victim(s3);
    }
    uint32_t id = main_victim(s3);
    return id != PKVI_NIL ? id : small_victim(s3);
}

static void remove_member(struct pkvi_policy *policy, uint32_t id, bool evicted)
{
    pkvi_filtered_remove(policy, id, evicted, policy->capacity - policy->capacity / 10);
}

const struct pkvi_policy_ops pkvi_policy_s3fifo = {
    .name = "s3fifo",
    .bytes = sizeof(struct pkvi_filtered),
    .setup = pkvi_filtered_setup,
    .touch = touch,
    .insert = pkvi_filtered_insert,
    .victim = victim,
    .remove = remove_member,
    .unpark = pkvi_filtered_unpark,
    .forget = pkvi_filtered_forget,
};
