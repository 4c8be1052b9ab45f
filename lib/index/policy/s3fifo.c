/* S3-FIFO (Yang et al., SOSP 2023): a small FIFO (a tenth) filters pages that are used once, the
 * main FIFO gives a used page another round per use (at most three), and a ghost FIFO sends pages
 * that return soon straight to the main one. A page that moves to the main FIFO starts there with
 * no use counted. */
#include "index/policies.h"
#include "index/policy.h"

enum { SMALL, MAIN };

struct s3fifo {
    struct pkvi_policy base;
    struct pkvi_queue queue[2];
    struct pkvi_queue ghosts;
};

static bool setup(struct pkvi_policy *policy)
{
    struct s3fifo *s3 = (struct s3fifo *)policy;
    pkvi_queue_init(&s3->queue[SMALL]);
    pkvi_queue_init(&s3->queue[MAIN]);
    pkvi_queue_init(&s3->ghosts);
    return true;
}

static void touch(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use)
{
    (void)use;
    struct pkvi_member *m = pkvi_policy_member(policy, id);
    if (m->count < 3) m->count++;
}

static void place(struct s3fifo *s3, uint32_t id, uint8_t list)
{
    pkvi_policy_member(&s3->base, id)->list = list;
    pkvi_queue_push_newest(&s3->base, &s3->queue[list], id);
}

static void insert(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use)
{
    (void)use;
    struct s3fifo *s3 = (struct s3fifo *)policy;
    uint8_t list = SMALL;
    if (pkvi_is_ghost(policy, id)) {
        pkvi_ghost_revive(policy, &s3->ghosts, id);
        list = MAIN;
    }
    pkvi_policy_member(policy, id)->count = 0;
    place(s3, id, list);
}

/* The victim in the small queue, promoting what was used more than once; PKVI_NIL if all that is
 * left there is blocked. */
static uint32_t small_victim(struct s3fifo *s3)
{
    uint32_t id;
    while ((id = pkvi_queue_oldest(&s3->base, &s3->queue[SMALL])) != PKVI_NIL) {
        struct pkvi_member *m = pkvi_policy_member(&s3->base, id);
        if (m->count <= 1) return id;
        m->count = 0;
        pkvi_queue_remove(&s3->base, &s3->queue[SMALL], id);
        place(s3, id, MAIN);
    }
    return PKVI_NIL;
}

/* The victim in the main queue; at most four rounds. */
static uint32_t main_victim(struct s3fifo *s3)
{
    uint32_t id;
    while ((id = pkvi_queue_oldest(&s3->base, &s3->queue[MAIN])) != PKVI_NIL) {
        struct pkvi_member *m = pkvi_policy_member(&s3->base, id);
        if (m->count == 0) return id;
        m->count--;
        pkvi_queue_remove(&s3->base, &s3->queue[MAIN], id);
        place(s3, id, MAIN);
    }
    return PKVI_NIL;
}

static uint32_t victim(struct pkvi_policy *policy)
{
    struct s3fifo *s3 = (struct s3fifo *)policy;
    if (s3->queue[SMALL].size >= policy->capacity / 10) {
        uint32_t id = small_victim(s3);
        return id != PKVI_NIL ? id : main_victim(s3);
    }
    uint32_t id = main_victim(s3);
    return id != PKVI_NIL ? id : small_victim(s3);
}

static void remove_member(struct pkvi_policy *policy, uint32_t id, bool evicted)
{
    struct s3fifo *s3 = (struct s3fifo *)policy;
    uint8_t list = pkvi_policy_member(policy, id)->list;
    pkvi_queue_remove(policy, &s3->queue[list], id);
    uint64_t most = policy->capacity - policy->capacity / 10;
    if (!evicted || list != SMALL || most == 0) return;
    pkvi_ghost_push(policy, &s3->ghosts, id);
    while (s3->ghosts.size > most)
        pkvi_ghost_drop_oldest(policy, &s3->ghosts);
}

static void unpark(struct pkvi_policy *policy, uint32_t id)
{
    struct s3fifo *s3 = (struct s3fifo *)policy;
    pkvi_queue_unpark(policy, &s3->queue[pkvi_policy_member(policy, id)->list], id);
}

static void forget(struct pkvi_policy *policy, uint32_t id)
{
    pkvi_ghost_revive(policy, &((struct s3fifo *)policy)->ghosts, id);
}

const struct pkvi_policy_ops pkvi_policy_s3fifo = {
    .name = "s3fifo",
    .bytes = sizeof(struct s3fifo),
    .setup = setup,
    .touch = touch,
    .insert = insert,
    .victim = victim,
    .remove = remove_member,
    .unpark = unpark,
    .forget = forget,
};
