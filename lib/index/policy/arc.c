/* ARC (Megiddo and Modha, FAST 2003): T1 holds pages seen once, T2 pages seen again, B1 and B2
 * their ghosts. A hit in a ghost list moves the target size p of T1, a real number, towards the
 * list that would have helped.
 *
 * What the paper leaves open: a page is chosen that may go, from the other list if REPLACE's has
 * none. Where nothing can go, so that the block that was asked for is not inserted, p keeps what
 * the request taught it and the ghosts stay as they are, the block's own included. In a live index
 * pages also go without a request (memory is short), and c is what is held: then nothing comes from
 * B2, and the ghosts are cut to |L1| <= c and |L1| + |L2| <= 2c. */
#include "index/policies.h"
#include "index/policy.h"

enum { ONCE, AGAIN };

struct arc {
    struct pkvi_policy base;
    struct pkvi_queue queue[2];  /* T1, T2 */
    struct pkvi_queue ghosts[2]; /* B1, B2 */
    double target;               /* p */
    bool from_again;             /* the block on its way is in B2 */
    bool from_ghost;             /* … or in B1 */
    bool forget_victim;          /* B1 has no room for the victim (|T1| = c) */
};

static bool setup(struct pkvi_policy *policy)
{
    struct arc *arc = (struct arc *)policy;
    for (int i = 0; i < 2; i++) {
        pkvi_queue_init(&arc->queue[i]);
        pkvi_queue_init(&arc->ghosts[i]);
    }
    return true;
}

static void place(struct arc *arc, uint32_t id, uint8_t list)
{
    pkvi_policy_member(&arc->base, id)->list = list;
    pkvi_queue_push_newest(&arc->base, &arc->queue[list], id);
}

static void touch(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use)
{
    (void)use;
    struct arc *arc = (struct arc *)policy;
    pkvi_queue_remove(policy, &arc->queue[pkvi_policy_member(policy, id)->list], id);
    place(arc, id, AGAIN);
}

static double larger(double a, double b)
{
    return a > b ? a : b;
}
static double smaller(double a, double b)
{
    return a < b ? a : b;
}

static void miss(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use)
{
    (void)use;
    struct arc *arc = (struct arc *)policy;
    arc->from_ghost = arc->from_again = false;
    if (!pkvi_is_ghost(policy, id)) return;
    arc->from_ghost = true;
    arc->from_again = pkvi_policy_member(policy, id)->list == AGAIN;
    double b1 = arc->ghosts[ONCE].size, b2 = arc->ghosts[AGAIN].size;
    if (arc->from_again)
        arc->target = larger(arc->target - larger(b1 / b2, 1), 0);
    else
        arc->target = smaller(arc->target + larger(b2 / b1, 1), (double)policy->capacity);
}

static void insert(struct pkvi_policy *policy, uint32_t id, const struct pkvi_use *use)
{
    (void)use;
    struct arc *arc = (struct arc *)policy;
    uint8_t list = ONCE;
    if (pkvi_is_ghost(policy, id)) {
        pkvi_ghost_revive(policy, &arc->ghosts[pkvi_policy_member(policy, id)->list], id);
        list = AGAIN;
    }
    arc->from_ghost = arc->from_again = false;
    place(arc, id, list);
}

/* REPLACE of the paper: |T1| is not empty, and exceeds the target, or is equal to it and the block
 * is in B2. */
static uint32_t replace(struct arc *arc)
{
    double once = arc->queue[ONCE].size;
    bool take_once = once > 0 && (once > arc->target || (arc->from_again && !(once < arc->target)));
    int first = take_once ? ONCE : AGAIN;
    uint32_t id = pkvi_queue_oldest(&arc->base, &arc->queue[first]);
    return id != PKVI_NIL ? id : pkvi_queue_oldest(&arc->base, &arc->queue[!first]);
}

static uint32_t victim(struct pkvi_policy *policy)
{
    struct arc *arc = (struct arc *)policy;
    arc->forget_victim = false;
    arc->target = smaller(arc->target, (double)policy->capacity); /* it shrinks in a live index */
    if (arc->from_ghost) return replace(arc);
    uint64_t t1 = arc->queue[ONCE].size, b1 = arc->ghosts[ONCE].size;
    uint64_t t2 = arc->queue[AGAIN].size, b2 = arc->ghosts[AGAIN].size;
    if (t1 + b1 >= policy->capacity) {
        if (b1 == 0) {
            uint32_t id = pkvi_queue_oldest(policy, &arc->queue[ONCE]);
            arc->forget_victim = id != PKVI_NIL;
            return id != PKVI_NIL ? id : replace(arc);
        }
        uint32_t id = replace(arc);
        if (id != PKVI_NIL) pkvi_ghost_drop_oldest(policy, &arc->ghosts[ONCE]);
        return id;
    }
    uint32_t id = replace(arc);
    if (id != PKVI_NIL && b2 && t1 + t2 + b1 + b2 >= 2 * policy->capacity)
        pkvi_ghost_drop_oldest(policy, &arc->ghosts[AGAIN]);
    return id;
}

/* Never takes the newest ghost. In a replay nothing is ever beyond these bounds. */
static void bound_ghosts(struct arc *arc)
{
    const uint64_t c = arc->base.capacity;
    const struct pkvi_queue *t = arc->queue, *b = arc->ghosts;
    while (b[ONCE].size > 1 && t[ONCE].size + b[ONCE].size > c)
        pkvi_ghost_drop_oldest(&arc->base, &arc->ghosts[ONCE]);
    while (b[AGAIN].size > 1 && t[ONCE].size + b[ONCE].size + t[AGAIN].size + b[AGAIN].size > 2 * c)
        pkvi_ghost_drop_oldest(&arc->base, &arc->ghosts[AGAIN]);
}

static void remove_member(struct pkvi_policy *policy, uint32_t id, bool evicted)
{
    struct arc *arc = (struct arc *)policy;
    uint8_t list = pkvi_policy_member(policy, id)->list;
    pkvi_queue_remove(policy, &arc->queue[list], id);
    if (evicted && !arc->forget_victim) {
        pkvi_ghost_push(policy, &arc->ghosts[list], id);
        bound_ghosts(arc);
    }
    arc->forget_victim = false;
}

static void unpark(struct pkvi_policy *policy, uint32_t id)
{
    struct arc *arc = (struct arc *)policy;
    pkvi_queue_unpark(policy, &arc->queue[pkvi_policy_member(policy, id)->list], id);
}

static void forget(struct pkvi_policy *policy, uint32_t id)
{
    struct arc *arc = (struct arc *)policy;
    pkvi_ghost_revive(policy, &arc->ghosts[pkvi_policy_member(policy, id)->list], id);
}

const struct pkvi_policy_ops pkvi_policy_arc = {
    .name = "arc",
    .bytes = sizeof(struct arc),
    .setup = setup,
    .touch = touch,
    .miss = miss,
    .insert = insert,
    .victim = victim,
    .remove = remove_member,
    .unpark = unpark,
    .forget = forget,
};
