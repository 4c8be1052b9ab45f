"""The exact rules of admission, written down a second time, for one workload: requests that share a system
prompt, then have tokens of their own and an answer. Pages are names in sets: each is counted once,
whoever holds it. Figures of Llama-3-8B on an A100 as in docs/tools.md, "Clock".
"""
import collections

LAYERS, KV, Q, DIM, PARAMS = 32, 8, 32, 128, 8.03e9
FLOPS, BANDWIDTH, OVERHEAD = 312e12 * 0.55, 2.04e12 * 0.8, 0.001
TOKEN_BYTES = LAYERS * KV * DIM * 2 * 2
P = 16
PAGE_BYTES = P * TOKEN_BYTES


def seconds(entries):
    tokens = sum(n for _, n in entries)
    keys = sum(n * before + n * (n + 1) / 2 for before, n in entries)
    flops = 2 * PARAMS * tokens + 4 * LAYERS * Q * DIM * keys
    traffic = 2 * PARAMS + TOKEN_BYTES * sum(before + 2 * n for before, n in entries)
    return max(flops / FLOPS, traffic / BANDWIDTH) + OVERHEAD


def pages_for(tokens):
    return -(-tokens // P)


class Memory:
    """Pages by name: how many hold each, which are published, and the cached ones, next victim last."""

    def __init__(self, total):
        self.total, self.refs, self.published = total, collections.Counter(), set()
        self.cached = collections.OrderedDict()

    def used(self):
        return len(self.refs)

    def known(self, name):
        return name in self.cached or (name in self.refs and name in self.published)

    def hold(self, name):
        self.cached.pop(name, None)
        self.refs[name] += 1

    def fit(self, n):
        """Room for n more pages, cached ones reclaimed; False if running requests hold too much."""
        if self.used() + n > self.total:
            return False
        while self.used() + len(self.cached) + n > self.total:
            self.cached.popitem()
        return True

    def let_go(self, names):
        for name in reversed(names):
            self.refs[name] -= 1
            if self.refs[name] == 0:
                del self.refs[name]
                if name in self.published:
                    self.cached[name] = True


class Workload:
    def __init__(self, n=150, shared=4096, own=100, out=120, gap=0.02, chunk=2048, watermark=0.01):
        self.n, self.shared, self.prompt, self.out = n, shared, shared + own, out
        self.gap, self.chunk, self.watermark = gap, chunk, watermark

    def name(self, k, page):
        return ("shared", page) if (page + 1) * P <= self.shared else (k, page)

    def trace(self):
        """Requests as in a trace: arrival, prompt, answer, block ids."""
        blocks = list(range(self.shared // 512))
        return [(k * self.gap, self.prompt, self.out, blocks + [1000 + k]) for k in range(self.n)]

    def run(self, memory_bytes, rule):
        """Output tokens per second. rule: "watermark" (prompts fit; the youngest is preempted) or "final"
        (the final lengths of all fit)."""
        spare = max((1 << 20) // 4 + memory_bytes // 1024 + (16 << 10), memory_bytes // 512 + (64 << 10))
        memory = Memory((memory_bytes - spare) // PAGE_BYTES)
        queue, running, made, now, end = collections.deque(range(self.n)), [], [0] * self.n, 0.0, 0.0
        while queue or running:
            self.start(memory, queue, running, made, now, rule)
            if not running:
                now = max(now, queue[0] * self.gap)
                continue
            self.reserve(memory, queue, running)
            now += seconds([(r["length"], r["step"]) for r in running if r["step"]])
            for r in list(running):
                before, r["length"] = r["length"], r["length"] + r["step"]
                memory.published.update(r["pages"][before // P : r["length"] // P])
                if not r["step"] or r["length"] < r["target"]:
                    continue
                made[r["k"]] += 1
                if made[r["k"]] == self.out:
                    running.remove(r)
                    memory.let_go(r["pages"])
                    end = now
        return self.n * self.out / end

    def start(self, memory, queue, running, made, now, rule):
        final = self.prompt + self.out - 1
        for k in list(queue):
            if k * self.gap > now + 1e-12:
                return
            target = self.prompt + made[k]
            found = 0
            while (found + 1) * P <= target - 1 and memory.known(self.name(k, found)):
                found += 1
            if self.follows(running, found * P, target):
                continue
            held = [self.name(k, i) for i in range(found)]
            idle = sum(name not in memory.refs for name in held)
            if rule == "watermark":
                coming = sum(max(0, pages_for(r["target"]) - len(r["pages"])) for r in running)
                wanted = pages_for(target) - found + coming + int(self.watermark * memory.total)
            else:
                coming = sum(pages_for(final) - len(r["pages"]) for r in running)
                wanted = pages_for(final) - found + coming
            if running and memory.used() + idle + wanted > memory.total:
                return
            queue.remove(k)
            for name in held:
                memory.hold(name)
            running.append({"k": k, "length": found * P, "pages": held, "target": target})

    def follows(self, running, found, target):
        common = min(self.shared, target - 1) // P * P
        return any(r["length"] < r["target"] and found <= r["length"] < common and common - found >= P
                   and 4 * (common - found) >= target - found for r in running)

    def reserve(self, memory, queue, running):
        while True:
            budget = self.chunk
            for r in running:
                left = r["target"] - r["length"]
                r["step"] = 1 if left <= 0 else min(budget, left)
                budget -= r["step"] if left > 0 else 0
            if memory.fit(sum(pages_for(r["length"] + r["step"]) - len(r["pages"]) for r in running)):
                break
            youngest = running.pop()
            memory.let_go(youngest["pages"])
            queue.appendleft(youngest["k"])
        for r in running:
            for page in range(len(r["pages"]), pages_for(r["length"] + r["step"])):
                name = self.name(r["k"], page)
                if name in memory.refs:
                    name = ("copy", r["k"], page)
                memory.hold(name)
                r["pages"].append(name)
