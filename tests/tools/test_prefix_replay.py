#!/usr/bin/env python3
"""pkv-sim prefix as a program: hit counts against naive implementations of the replacement policies
(written from their descriptions, scanning everything), outputs, and bad input.

    test_prefix_replay.py PKV-SIM
"""
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import unittest
import xml.dom.minidom

SIM = sys.argv.pop(1)
SEED = int(os.environ.get("PKV_SEED", random.randrange(1 << 31)))
NEVER = float("inf")


class Policy:
    """Pages in `pages`: id -> state. victim() picks among unpinned ones or returns None."""

    def __init__(self, capacity, parent, depth, next_use):
        self.capacity, self.parent, self.depth, self.next_use = capacity, parent, depth, next_use
        self.pages, self.clock = {}, 0

    def tick(self):
        self.clock += 1
        return self.clock

    def free(self, pinned):
        return [b for b in self.pages if b not in pinned]

    def leaves(self, pinned):
        parents = {self.parent[b] for b in self.pages}
        return [b for b in self.free(pinned) if b not in parents]

    def hit(self, b): ...
    def miss(self, b): ...
    def insert(self, b): self.pages[b] = None
    def drop(self, b): del self.pages[b]
    def end(self, blocks): ...
    def refuses(self, b, victim, now): return False


class Fifo(Policy):
    def insert(self, b): self.pages[b] = self.tick()
    def victim(self, pinned, now): return min(self.free(pinned), key=self.pages.get, default=None)


class Lru(Fifo):
    def hit(self, b): self.pages[b] = self.tick()


class LruLeaf(Fifo):
    def victim(self, pinned, now): return min(self.leaves(pinned), key=self.pages.get, default=None)

    def end(self, blocks):
        for b in reversed(blocks):
            if b in self.pages:
                self.pages[b] = self.tick()


class Lfu(Policy):
    def insert(self, b): self.pages[b] = (1, self.tick())
    def hit(self, b): self.pages[b] = (self.pages[b][0] + 1, self.tick())
    def victim(self, pinned, now): return min(self.free(pinned), key=self.pages.get, default=None)


class Sieve(Policy):
    """queue[0] is the oldest; the hand walks towards newer pages and wraps."""

    def __init__(self, *args):
        super().__init__(*args)
        self.queue, self.hand = [], None

    def insert(self, b):
        self.pages[b] = False
        self.queue.append(b)

    def hit(self, b): self.pages[b] = True

    def victim(self, pinned, now):
        if not self.free(pinned):
            return None
        at = self.queue.index(self.hand) if self.hand is not None else 0
        while True:
            b = self.queue[at]
            if b not in pinned:
                if not self.pages[b]:
                    return b
                self.pages[b] = False
            at = (at + 1) % len(self.queue)

    def drop(self, b):
        at = self.queue.index(b)
        self.hand = self.queue[at + 1] if at + 1 < len(self.queue) else None
        self.queue.remove(b)
        del self.pages[b]


class Opt(Policy):
    def far(self, now): return lambda b: (self.next_use(b, now), self.depth[b])
    def victim(self, pinned, now): return max(self.free(pinned), key=self.far(now), default=None)


class OptBypass(Opt):
    def victim(self, pinned, now): return max(self.leaves(pinned), key=self.far(now), default=None)
    def refuses(self, b, victim, now): return self.next_use(b, now) >= self.next_use(victim, now)


def oldest(queue, pinned):
    return next((b for b in queue if b not in pinned), None)


class Slru(Policy):
    """Lists run from the oldest to the newest."""

    def __init__(self, *args):
        super().__init__(*args)
        self.probation, self.protected = [], []

    def insert(self, b):
        self.pages[b] = None
        self.probation.append(b)

    def hit(self, b):
        (self.probation if b in self.probation else self.protected).remove(b)
        self.protected.append(b)
        while len(self.protected) > self.capacity * 4 // 5:
            self.probation.append(self.protected.pop(0))

    def victim(self, pinned, now):
        b = oldest(self.probation, pinned)
        return b if b is not None else oldest(self.protected, pinned)

    def drop(self, b):
        (self.probation if b in self.probation else self.protected).remove(b)
        del self.pages[b]


class TwoQ(Policy):
    def __init__(self, *args):
        super().__init__(*args)
        self.new, self.main, self.ghosts = [], [], []

    def insert(self, b):
        self.pages[b] = None
        if b in self.ghosts:
            self.ghosts.remove(b)
            self.main.append(b)
        else:
            self.new.append(b)

    def hit(self, b):
        if b in self.main:
            self.main.remove(b)
            self.main.append(b)

    def victim(self, pinned, now):
        order = (self.new, self.main) if len(self.new) > self.capacity // 4 else (self.main, self.new)
        b = oldest(order[0], pinned)
        return b if b is not None else oldest(order[1], pinned)

    def drop(self, b):
        del self.pages[b]
        if b in self.main:
            self.main.remove(b)
            return
        self.new.remove(b)
        self.ghosts.append(b)
        while len(self.ghosts) > self.capacity // 2:
            self.ghosts.pop(0)


class S3Fifo(Policy):
    def __init__(self, *args):
        super().__init__(*args)
        self.small, self.main, self.ghosts = [], [], []

    def insert(self, b):
        self.pages[b] = 0
        if b in self.ghosts:
            self.ghosts.remove(b)
            self.main.append(b)
        else:
            self.small.append(b)

    def hit(self, b): self.pages[b] = min(3, self.pages[b] + 1)

    def from_small(self, pinned):
        while (b := oldest(self.small, pinned)) is not None:
            if self.pages[b] <= 1:
                return b
            self.pages[b] = 0
            self.small.remove(b)
            self.main.append(b)
        return None

    def from_main(self, pinned):
        while (b := oldest(self.main, pinned)) is not None:
            if self.pages[b] == 0:
                return b
            self.pages[b] -= 1
            self.main.remove(b)
            self.main.append(b)
        return None

    def victim(self, pinned, now):
        order = (self.from_small, self.from_main)
        if len(self.small) < self.capacity // 10:
            order = order[::-1]
        b = order[0](pinned)
        return b if b is not None else order[1](pinned)

    def drop(self, b):
        del self.pages[b]
        if b in self.main:
            self.main.remove(b)
            return
        self.small.remove(b)
        self.ghosts.append(b)
        while len(self.ghosts) > self.capacity - self.capacity // 10:
            self.ghosts.pop(0)


class Arc(Policy):
    def __init__(self, *args):
        super().__init__(*args)
        self.t1, self.t2, self.b1, self.b2, self.p, self.case = [], [], [], [], 0.0, None

    def hit(self, b):
        (self.t1 if b in self.t1 else self.t2).remove(b)
        self.t2.append(b)

    def miss(self, b):
        self.case = "b1" if b in self.b1 else "b2" if b in self.b2 else None
        if self.case == "b1":
            self.p = min(self.capacity, self.p + max(len(self.b2) / len(self.b1), 1))
        elif self.case == "b2":
            self.p = max(0, self.p - max(len(self.b1) / len(self.b2), 1))

    def insert(self, b):
        self.pages[b] = None
        for ghosts in (self.b1, self.b2):
            if b in ghosts:
                ghosts.remove(b)
                self.t2.append(b)
                return
        self.t1.append(b)

    def replace(self, pinned):
        n = len(self.t1)
        first = n >= 1 and (n > self.p or (self.case == "b2" and n == self.p))
        order = (self.t1, self.t2) if first else (self.t2, self.t1)
        b = oldest(order[0], pinned)
        return b if b is not None else oldest(order[1], pinned)

    def victim(self, pinned, now):
        self.forget = False
        if self.case is not None:
            return self.replace(pinned)
        if len(self.t1) + len(self.b1) >= self.capacity:
            if not self.b1:
                b = oldest(self.t1, pinned)
                self.forget = b is not None
                return b if b is not None else self.replace(pinned)
            b = self.replace(pinned)
            if b is not None:
                self.b1.pop(0)
            return b
        b = self.replace(pinned)
        if b is not None and self.b2 and len(self.t1 + self.t2 + self.b1 + self.b2) >= 2 * self.capacity:
            self.b2.pop(0)
        return b

    def drop(self, b):
        del self.pages[b]
        held, ghosts = (self.t1, self.b1) if b in self.t1 else (self.t2, self.b2)
        held.remove(b)
        if not self.forget:
            ghosts.append(b)


POLICIES = {"fifo": Fifo, "lru": Lru, "lru-leaf": LruLeaf, "lfu": Lfu, "sieve": Sieve, "opt": Opt,
            "opt-bypass": OptBypass, "slru": Slru, "2q": TwoQ, "s3fifo": S3Fifo, "arc": Arc}


def replay(requests, policy, capacity, warmup):
    """requests: (input tokens, block size, ids). Returns hit blocks, blocks, hit tokens, tokens."""
    parent, depth, uses = {}, {}, {}
    for r, (_, _, ids) in enumerate(requests):
        for k, b in enumerate(ids):
            parent[b], depth[b] = ids[k - 1] if k else None, k
            uses.setdefault(b, []).append(r)
    p = POLICIES[policy](capacity, parent, depth,
                         lambda b, now: next((r for r in uses[b] if r > now), NEVER))
    counts = [0, 0, 0, 0]
    for r, (tokens, size, ids) in enumerate(requests):
        k = 0
        while k < len(ids) and ids[k] in p.pages:
            k += 1
        if r >= int(len(requests) * warmup):
            worth = [min(size, max(1, tokens - i * size)) for i in range(len(ids))]
            for at, n in enumerate((k, len(ids), sum(worth[:k]), sum(worth))):
                counts[at] += n
        pinned = set(ids)
        for b in ids:
            if b in p.pages:
                p.hit(b)
                continue
            p.miss(b)
            if len(p.pages) >= capacity:
                victim = p.victim(pinned, r)
                if victim is None or p.refuses(b, victim, r):
                    continue
                p.drop(victim)
            p.insert(b)
        p.end(ids)
    return tuple(counts)


def random_requests(rng, n):
    """Walks in a random trie: popular branches, new leaves, some requests longer than the cache."""
    children, root, fresh, out = {}, -1, 0, []
    for _ in range(n):
        size = rng.choice((64, 512)) if rng.random() < 0.2 else 128
        node, ids = root, []
        for _ in range(1 + min(60, int(rng.expovariate(1 / 7)))):
            known = children.setdefault(node, [])
            if known and rng.random() < 0.8:
                node = known[min(len(known) - 1, int(rng.expovariate(1.2)))]
            else:
                known.append(fresh)
                node = fresh
                fresh += 1
            ids.append(node)
        out.append((max(0, len(ids) * size - rng.randrange(size + 40)), size, ids))
    return out


class Base(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)

    def path(self, name):
        return os.path.join(self.directory.name, name)

    def trace(self, requests, name="t.jsonl"):
        with open(self.path(name), "w") as f:
            for k, (tokens, size, ids) in enumerate(requests):
                f.write(json.dumps({"timestamp": k, "input_length": tokens, "output_length": 1, "block_size": size,
                                    "hash_ids": ids}) + "\n")
        return self.path(name)

    def run_sim(self, *args, check=None):
        done = subprocess.run([SIM, "prefix", *map(str, args)], capture_output=True, text=True, timeout=120)
        if check is not None and done.returncode != check:
            raise AssertionError(f"{args}: exit status {done.returncode}, stderr: {done.stderr}")
        return done


class Counts(Base):
    def test_policies_against_naive_ones(self):
        rng = random.Random(SEED)
        for warmup in (0, 0.5):
            requests = random_requests(rng, 401)
            path = self.trace(requests)
            out = json.loads(self.run_sim("--trace", path, "--pages", "1,2,7,40,200,unlimited", "--policy",
                                          ",".join(POLICIES), "--warmup", warmup, "--verify", "--json",
                                          check=0).stdout)
            self.assertEqual(out["trace"], path)
            self.assertEqual(len(out["results"]), 6 * len(POLICIES))
            for r in out["results"]:
                pages = r["pages"] if isinstance(r["pages"], int) else 10**9
                want = replay(requests, r["policy"], pages, warmup)
                got = (r["hit_blocks"], r["total_blocks"], r["hit_tokens"], r["total_tokens"])
                self.assertEqual(got, want, f"{r['policy']} {r['pages']} warmup {warmup} seed {SEED}")
                self.assertAlmostEqual(r["hit_rate"], want[0] / want[1], delta=1e-12)

    def test_by_hand(self):
        # One page: the root stays only for lru-leaf while its child is gone.
        path = self.trace([(256, 128, [0, 1]), (256, 128, [0, 2]), (256, 128, [0, 1])])
        out = json.loads(self.run_sim("--trace", path, "--pages", 2, "--policy", "lru,lru-leaf,opt", "--json",
                                      check=0).stdout)
        self.assertEqual({r["policy"]: r["hit_blocks"] for r in out["results"]},
                         {"lru": 2, "lru-leaf": 2, "opt": 2})

    def test_every_policy_is_deterministic_and_bounded_by_opt(self):
        requests = random_requests(random.Random(SEED), 300)
        path = self.trace(requests)
        run = lambda: json.loads(self.run_sim("--trace", path, "--pages", "30", "--policy", "all", "--json", "--jobs",
                                              3, check=0).stdout)["results"]
        first, second = run(), run()
        strip = lambda rows: [{k: v for k, v in r.items() if "second" not in k} for r in rows]
        self.assertEqual(strip(first), strip(second))
        best = max(r["hit_blocks"] for r in first if r["policy"] in ("opt", "opt-bypass"))
        for r in first:
            self.assertLessEqual(r["hit_blocks"], best, f"{r['policy']} seed {SEED}")


class Outputs(Base):
    def test_table_csv_plot(self):
        table, plot = self.path("o.csv"), self.path("o.svg")
        out = self.run_sim("--synthetic", "chat,requests=100", "--pages", "10,100", "--policy", "lru,opt", "--csv",
                           table, "--plot", plot, check=0).stdout
        self.assertIn("lru", out)
        with open(table, newline="") as f:
            self.assertEqual(len(list(csv.DictReader(f))), 4)
        self.assertEqual(xml.dom.minidom.parse(plot).documentElement.tagName, "svg")
        self.assertIn("Usage: pkv-sim prefix", self.run_sim("--help", check=0).stdout)

    def test_several_traces(self):
        one, two = self.trace(random_requests(random.Random(1), 20), "1"), self.trace(
            random_requests(random.Random(2), 30), "2")
        out = self.run_sim("--trace", one, "--trace", two, "--pages", "5", "--policy", "lru", check=0).stdout
        self.assertEqual(len([line for line in out.splitlines() if "lru" in line]), 2)

    def test_bad_input(self):
        lengths = self.path("l.csv")
        with open(lengths, "w") as f:
            f.write("num_prefill_tokens,num_decode_tokens\n1,1\n")
        for status, args in ((2, ["--policy", "best"]), (2, ["--pages", "0"]), (2, ["--pages", "x"]),
                             (2, ["--warmup", "2"]), (2, ["--memory", "1GiB", "--model", "x"]), (2, ["extra"]),
                             (1, ["--trace", "/nonexistent"]), (1, ["--trace", lengths])):
            done = self.run_sim(*args)
            self.assertEqual(done.returncode, status, f"{args}: {done.stderr}")
            self.assertTrue(done.stderr.startswith("pkv-sim prefix: "), done.stderr)
            self.assertEqual(done.stdout, "")


if __name__ == "__main__":
    unittest.main()
