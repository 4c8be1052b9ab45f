"""An independent, naive simulation of pkv-sim prefix: sets, dictionaries and linear searches, written
from the description of the policies alone."""
from collections import OrderedDict, defaultdict

NEVER = 1 << 60


def next_uses(requests):
    last, out = {}, [None] * len(requests)
    for i in reversed(range(len(requests))):
        out[i] = [last.get(b, NEVER) for b in requests[i]["hash_ids"]]
        for b in requests[i]["hash_ids"]:
            last[b] = i
    return out


def oldest(queue, pinned):
    return next((b for b in queue if b not in pinned), None)


class Policy:
    """queue: oldest first."""

    def __init__(self, capacity):
        self.capacity = capacity
        self.queue = OrderedDict()

    def miss(self, block):
        pass

    def hit(self, block, next_use):
        pass

    def insert(self, block, parent, next_use):
        self.queue[block] = True

    def end(self, blocks, resident, next_use):
        pass

    def victim(self, pinned):
        return oldest(self.queue, pinned)

    def refuses(self, victim, next_use):
        return False

    def evict(self, block):
        del self.queue[block]


class Lru(Policy):
    def hit(self, block, next_use):
        self.queue.move_to_end(block)


class LruLeaf(Policy):
    def __init__(self, capacity):
        super().__init__(capacity)
        self.children, self.parent = defaultdict(int), {}

    def insert(self, block, parent, next_use):
        super().insert(block, parent, next_use)
        self.parent[block] = parent
        self.children[parent] += 1

    def end(self, blocks, resident, next_use):
        for b in reversed(blocks):
            if b in resident:
                self.queue.move_to_end(b)

    def victim(self, pinned):
        return next((b for b in self.queue if b not in pinned and not self.children[b]), None)

    def evict(self, block):
        super().evict(block)
        self.children[self.parent[block]] -= 1


class Lfu(Policy):
    def __init__(self, capacity):
        super().__init__(capacity)
        self.uses = {}

    def insert(self, block, parent, next_use):
        super().insert(block, parent, next_use)
        self.uses[block] = 1

    def hit(self, block, next_use):
        self.queue.move_to_end(block)
        self.uses[block] += 1

    def victim(self, pinned):
        free = [b for b in self.queue if b not in pinned]
        return min(free, key=lambda b: self.uses[b]) if free else None  # the first: least recent


class Sieve(Policy):
    def __init__(self, capacity):
        super().__init__(capacity)
        self.line, self.used, self.hand = [], {}, 0

    def insert(self, block, parent, next_use):
        self.line.append(block)
        self.used[block] = False

    def hit(self, block, next_use):
        self.used[block] = True

    def victim(self, pinned):
        if all(b in pinned for b in self.line):
            return None
        while True:
            self.hand %= len(self.line)
            block = self.line[self.hand]
            if block not in pinned:
                if not self.used[block]:
                    return block
                self.used[block] = False
            self.hand += 1

    def evict(self, block):
        assert self.line.pop(self.hand) == block
        if self.hand == len(self.line):  # past the newest: the next walk starts at the oldest, even
            self.hand = 0                # if another block has been inserted by then


class S3Fifo(Policy):
    def __init__(self, capacity):
        super().__init__(capacity)
        self.small, self.main, self.ghosts, self.uses = (OrderedDict(), OrderedDict(),
                                                         OrderedDict(), {})
        self.small_size = capacity // 10

    def insert(self, block, parent, next_use):
        self.uses[block] = 0
        (self.main if self.ghosts.pop(block, None) else self.small)[block] = True

    def hit(self, block, next_use):
        self.uses[block] = min(3, self.uses[block] + 1)

    def from_small(self, pinned):
        while (block := oldest(self.small, pinned)) is not None and self.uses[block] > 1:
            del self.small[block]
            self.uses[block] = 0
            self.main[block] = True
        return block

    def from_main(self, pinned):
        while (block := oldest(self.main, pinned)) is not None and self.uses[block] > 0:
            self.uses[block] -= 1
            self.main.move_to_end(block)
        return block

    def victim(self, pinned):
        order = [self.from_small, self.from_main]
        if len(self.small) < self.small_size:
            order.reverse()
        block = order[0](pinned)
        return block if block is not None else order[1](pinned)

    def evict(self, block):
        if self.small.pop(block, None):
            self.ghosts[block] = True
            while len(self.ghosts) > self.capacity - self.small_size:
                self.ghosts.popitem(last=False)
        else:
            del self.main[block]


class Arc(Policy):
    def __init__(self, capacity):
        super().__init__(capacity)
        self.t1, self.t2, self.b1, self.b2 = (OrderedDict() for _ in range(4))
        self.target, self.source, self.remember = 0.0, None, True

    def miss(self, block):
        self.source = 1 if block in self.b1 else 2 if block in self.b2 else None
        if self.source == 1:
            self.target = min(self.capacity, self.target + max(len(self.b2) / len(self.b1), 1))
        elif self.source == 2:
            self.target = max(0, self.target - max(len(self.b1) / len(self.b2), 1))

    def hit(self, block, next_use):
        self.t1.pop(block, None)
        self.t2.pop(block, None)
        self.t2[block] = True

    def insert(self, block, parent, next_use):
        known = self.b1.pop(block, None) or self.b2.pop(block, None)
        (self.t2 if known else self.t1)[block] = True

    def replace(self, pinned):
        n = len(self.t1)
        first = n >= 1 and (n > self.target or (self.source == 2 and n == self.target))
        order = [self.t1, self.t2] if first else [self.t2, self.t1]
        block = oldest(order[0], pinned)
        return block if block is not None else oldest(order[1], pinned)

    def victim(self, pinned):
        self.remember = True
        c, l1 = self.capacity, len(self.t1) + len(self.b1)
        if self.source:
            return self.replace(pinned)
        if l1 >= c and not self.b1:
            block = oldest(self.t1, pinned)
            if block is not None:
                self.remember = False
                return block
        block = self.replace(pinned)
        if block is not None and l1 >= c and self.b1:
            self.b1.popitem(last=False)
        elif block is not None and l1 < c and l1 + len(self.t2) + len(self.b2) >= 2 * c and self.b2:
            self.b2.popitem(last=False)
        return block

    def evict(self, block):
        lists = (self.t1, self.b1) if block in self.t1 else (self.t2, self.b2)
        del lists[0][block]
        if self.remember:
            lists[1][block] = True


class TwoQ(Policy):
    def __init__(self, capacity):
        super().__init__(capacity)
        self.fresh, self.ghosts, self.main = OrderedDict(), OrderedDict(), OrderedDict()

    def hit(self, block, next_use):
        if block in self.main:
            self.main.move_to_end(block)

    def insert(self, block, parent, next_use):
        (self.main if self.ghosts.pop(block, None) else self.fresh)[block] = True

    def victim(self, pinned):
        order = [self.fresh, self.main]
        if len(self.fresh) <= self.capacity // 4:
            order.reverse()
        block = oldest(order[0], pinned)
        return block if block is not None else oldest(order[1], pinned)

    def evict(self, block):
        if self.fresh.pop(block, None):
            self.ghosts[block] = True
            while len(self.ghosts) > self.capacity // 2:
                self.ghosts.popitem(last=False)
        else:
            del self.main[block]


class Slru(Policy):
    def __init__(self, capacity):
        super().__init__(capacity)
        self.probation, self.kept = OrderedDict(), OrderedDict()

    def insert(self, block, parent, next_use):
        self.probation[block] = True

    def hit(self, block, next_use):
        self.probation.pop(block, None)
        self.kept.pop(block, None)
        self.kept[block] = True
        if len(self.kept) > self.capacity * 4 // 5:
            self.probation[self.kept.popitem(last=False)[0]] = True

    def victim(self, pinned):
        block = oldest(self.probation, pinned)
        return block if block is not None else oldest(self.kept, pinned)

    def evict(self, block):
        self.probation.pop(block, None)
        self.kept.pop(block, None)


class Opt(Policy):
    def __init__(self, capacity):
        super().__init__(capacity)
        self.next, self.depth = {}, {}

    def insert(self, block, parent, next_use):
        self.next[block] = next_use

    def end(self, blocks, resident, next_use):
        for depth, block in enumerate(blocks):
            self.depth[block] = depth
            if block in resident:
                self.next[block] = next_use[depth]

    def victim(self, pinned):
        free = [b for b in self.next if b not in pinned]
        return max(free, key=lambda b: (self.next[b], self.depth[b])) if free else None

    def evict(self, block):
        del self.next[block]


class OptBypass(Opt):
    def refuses(self, victim, next_use):
        return next_use >= self.next[victim]


POLICIES = {"fifo": Policy, "lru": Lru, "lru-leaf": LruLeaf, "priority": LruLeaf, "lfu": Lfu,
            "sieve": Sieve, "s3fifo": S3Fifo, "arc": Arc, "2q": TwoQ, "slru": Slru, "opt": Opt,
            "opt-bypass": OptBypass}


def simulate(requests, name, capacity, warmup=0.0):
    """Returns hit_blocks, total_blocks, hit_tokens, total_tokens."""
    policy, resident, uses = POLICIES[name](capacity), set(), next_uses(requests)
    sums = [0, 0, 0, 0]
    for i, request in enumerate(requests):
        blocks, size = request["hash_ids"], request.get("block_size", 512)
        tokens = [min(size, max(1, request["input_length"] - k * size)) for k in range(len(blocks))]
        hits = 0
        while hits < len(blocks) and blocks[hits] in resident:
            hits += 1
        if i >= int(len(requests) * warmup):
            for k, n in enumerate((hits, len(blocks), sum(tokens[:hits]), sum(tokens))):
                sums[k] += n
        pinned = set(blocks)
        for k, block in enumerate(blocks):
            if block in resident:
                policy.hit(block, uses[i][k])
                continue
            policy.miss(block)
            if len(resident) >= capacity:
                victim = policy.victim(pinned)
                if victim is None or policy.refuses(victim, uses[i][k]):
                    continue
                policy.evict(victim)
                resident.remove(victim)
            resident.add(block)
            policy.insert(block, blocks[k - 1] if k else None, uses[i][k])
        policy.end(blocks, resident, uses[i])
    return sums
