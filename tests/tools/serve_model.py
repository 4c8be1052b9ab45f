"""The schedule of pkv-sim serve (docs/tools.md) written down a second time, token by token and page by page,
for watermark admission without prefixes: what it must do, not how. Slow and simple."""

PAGE = 16


class Model:
    """Layer groups as (layers, window or 0), and a machine without shares and overhead."""

    def __init__(self, groups, kv_heads, q_heads, dim, params, flops, bandwidth):
        self.groups, self.kv, self.q, self.dim = groups, kv_heads, q_heads, dim
        self.params, self.flops, self.bandwidth = params, flops, bandwidth
        self.token_bytes = [layers * kv_heads * dim * 2 * 2 for layers, _ in groups]

    def seconds(self, entries):
        """entries: (cached tokens, new tokens) of each sequence in the step."""
        flops, traffic = 0, 2 * self.params
        for before, n in entries:
            flops += 2 * self.params * n
            for (layers, window), size in zip(self.groups, self.token_bytes):
                keys = sum(min(before + k + 1, window or 1 << 60) for k in range(n))
                flops += 4 * layers * self.q * self.dim * keys
                traffic += size * (min(before, window or before) + 2 * n)
        return max(flops / self.flops, traffic / self.bandwidth)


def pages(tokens):
    return -(-tokens // PAGE)


class Sequence:
    def __init__(self, number, request, made):
        self.number, self.made = number, made
        self.prompt, self.out = max(request[1], 1), request[2]
        self.target, self.length, self.step, self.ran = self.prompt + made, 0, 0, False


class Schedule:
    def __init__(self, model, requests, limit, chunk, max_seqs, watermark=0.0, changes=()):
        self.m, self.requests, self.limit = model, requests, limit
        self.chunk, self.max_seqs, self.watermark = chunk, max_seqs, watermark
        self.changes = list(changes)
        self.page_bytes = [PAGE * size for size in model.token_bytes]
        self.now, self.running, self.aside = 0.0, [], []
        self.queue = sorted(range(len(requests)), key=lambda k: (requests[k][0], k))
        self.made, self.reached = [0] * len(requests), [0] * len(requests)
        self.first, self.done = {}, {}
        self.counts = dict.fromkeys(("steps", "preemptions", "computed_tokens", "computed_prompt_tokens",
                                     "recomputed_tokens", "never_fit", "limit_changes", "used_bytes_peak"), 0)

    # ---- memory ----

    def most(self, window):
        """Pages that a windowed group must hold: those of its last keys, and the next token's."""
        return (window + PAGE - 2) // PAGE + 1

    def held(self, window, length):
        return pages(length) - (max(0, length - window + 1) // PAGE if window else 0)

    def used(self):
        return sum(size * self.held(window, s.length) for s in self.running
                   for (_, window), size in zip(self.m.groups, self.page_bytes))

    def fits_step(self):
        taken = sum(size * (pages(s.length + s.step) - pages(s.length)) for s in self.running
                    for size in self.page_bytes)
        return self.used() + taken <= self.limit

    def final_bytes(self, k):
        final = max(self.requests[k][1], 1) + max(self.requests[k][2] - 1, 0)
        return sum(size * (min(pages(final), self.most(window)) if window else pages(final))
                   for (_, window), size in zip(self.m.groups, self.page_bytes))

    def prompt_to_come(self, s):
        total = 0
        for (_, window), size in zip(self.m.groups, self.page_bytes):
            more = pages(s.target) - pages(s.length)
            if window:
                more = min(more, max(0, self.most(window) - self.held(window, s.length)))
            total += more * size
        return total

    def may_start(self, s):
        wanted = sum(self.prompt_to_come(r) for r in self.running if r.length < r.target) + self.prompt_to_come(s)
        return not self.running or self.used() + wanted + self.watermark * self.limit <= self.limit

    # ---- schedule ----

    def set_aside(self, k):
        if self.changes:
            self.aside.append(k)
        else:
            self.counts["never_fit"] += 1

    def preempt(self):
        s = self.running.pop()
        self.counts["preemptions"] += s.ran
        self.made[s.number] = s.made
        self.queue.insert(0, s.number)

    def change_limit(self):
        while self.changes and self.changes[0][0] <= self.now:
            _, limit = self.changes.pop(0)
            while self.used() > limit:
                self.preempt()
            self.limit = limit
            self.counts["limit_changes"] += 1
            self.queue = sorted(self.aside, key=lambda k: (self.requests[k][0], k)) + self.queue
            self.aside = []

    def admit(self):
        while self.queue and len(self.running) < self.max_seqs and self.requests[self.queue[0]][0] <= self.now:
            k = self.queue[0]
            if self.final_bytes(k) > self.limit:
                self.set_aside(self.queue.pop(0))
                continue
            s = Sequence(k, self.requests[k], self.made[k])
            if not self.may_start(s):
                break
            self.queue.pop(0)
            self.running.append(s)

    def plan(self):
        budget = self.chunk
        while self.running:
            left, decoding = budget, 0
            for s in self.running:
                s.step = 1 if s.length >= s.target else min(s.target - s.length, left)
                decoding += s.length >= s.target
                left -= s.step if s.length < s.target else 0
            if self.fits_step():
                return True
            taken = budget - left
            budget = taken // 2
            if budget or (taken and decoding):
                continue
            alone = len(self.running) == 1
            self.preempt()
            if alone:
                self.set_aside(self.queue.pop(0))
            budget = self.chunk
        return False

    def work(self):
        entries = [(s.length, s.step) for s in self.running if s.step]
        self.now += self.m.seconds(entries)
        c = self.counts
        c["steps"] += 1
        for s in self.running:
            s.ran = s.ran or s.step > 0
            c["computed_tokens"] += s.step
            c["computed_prompt_tokens"] += s.step if s.length < s.target else 0
            for at in range(s.length, s.length + s.step):
                c["recomputed_tokens"] += at < self.reached[s.number]
            s.length += s.step
            self.reached[s.number] = max(self.reached[s.number], s.length)
        c["used_bytes_peak"] = max(c["used_bytes_peak"], self.used())
        for s in list(self.running):
            if not s.step or s.length < s.target:
                continue
            if s.made < s.out:
                s.made += 1
                self.first.setdefault(s.number, self.now)
            if s.made >= s.out:
                self.done[s.number] = self.now
                self.running.remove(s)

    def run(self):
        while self.running or self.queue or self.aside:
            self.change_limit()
            self.admit()
            if self.plan():
                self.work()
                continue
            to_come = [self.requests[k][0] for k in self.queue] + [at for at, _ in self.changes]
            if to_come:
                self.now = max(self.now, min(to_come))
        arrival = lambda k: self.requests[k][0]
        mean = lambda x: sum(x) / len(x) if x else None
        return {**self.counts, "completed": len(self.done), "simulated_seconds": max(self.done.values(), default=0),
                "ttft": mean([at - arrival(k) for k, at in self.first.items()]),
                "latency": mean([at - arrival(k) for k, at in self.done.items()])}
