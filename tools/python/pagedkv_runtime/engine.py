"""Continuous batching: requests join and leave between steps, prefill runs in chunks beside decode,
memory pressure preempts and recomputes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum

import pagedkv

from .model import Model
from .paged import Blocked, PagedStore, Step
from .sampling import Sampler, SamplingParams, draft_ngram


class State(Enum):
    """Where a request is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(eq=False)
class Request:
    """One generation request and everything known about it."""

    prompt: list[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    arrival: float = 0.0
    on_token: Callable[[Request, int], None] | None = None

    state: State = State.WAITING
    output: list[int] = field(default_factory=list)
    error: BaseException | None = None
    seq: pagedkv.Sequence | None = None
    #: Requests with the same prompt that fork off this one when its prefill ends.
    siblings: list[Request] = field(default_factory=list)
    computed: int = 0  # tokens of `tokens` whose K and V are in the cache
    cached_tokens: int = 0  # of these, attached from the prefix index at the first admission
    preemptions: int = 0
    drafted: int = 0
    accepted: int = 0
    submitted_at: float = 0.0
    first_token_at: float | None = None
    finished_at: float | None = None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("a request needs at least one prompt token")
        self.sampler = Sampler(self.params)

    @property
    def held(self) -> pagedkv.Sequence:
        """The sequence of a running request."""
        assert self.seq is not None, "only running requests hold a sequence"
        return self.seq

    @property
    def tokens(self) -> list[int]:
        """Prompt and output so far."""
        return self.prompt + self.output

    @property
    def pending(self) -> int:
        """Known tokens that are not in the cache yet; 1 while decoding."""
        return len(self.prompt) + len(self.output) - self.computed


@dataclass
class EngineStats:
    """Counters over an engine's life."""

    steps: int = 0
    computed_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    cached_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    peak_pages: int = 0
    peak_bytes: int = 0


class Engine:
    """Runs requests on one model and one paged cache.

    max_batch   most requests that run at once
    chunk       most prompt tokens computed in one step (decoding tokens come on top)
    drafts      speculative tokens per decoding request and step, 0 = off
    prefix      attach known prompt prefixes from the cache's index
    namespace   prefix namespace (tenant, adapter): requests of other namespaces never match
    rollback    how rejected drafts leave the cache: "partial" (never committed) or "truncate"
    safe        admit with claims (banker's rule) so that nothing is ever preempted
    """

    def __init__(
        self,
        model: Model,
        store: PagedStore,
        *,
        max_batch: int = 16,
        chunk: int = 256,
        drafts: int = 0,
        prefix: bool = True,
        namespace: bytes = b"",
        rollback: str = "partial",
        safe: bool = False,
    ) -> None:
        if max_batch < 1 or chunk < 1:
            raise ValueError("max_batch and chunk must be at least 1")
        if rollback not in ("partial", "truncate"):
            raise ValueError(f"rollback {rollback!r} is not 'partial' or 'truncate'")
        self.model = model
        self.store = store
        self.max_batch = max_batch
        self.chunk = chunk
        self.drafts = drafts
        self.prefix = prefix
        self.namespace = namespace
        self.rollback = rollback
        self.safe = safe
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.stats = EngineStats()
        self._hold = False  # after a preemption nobody is admitted until pages came back

    # requests

    def submit(self, request: Request, samples: int = 1) -> list[Request]:
        """Queues a request; with samples > 1 also siblings with the next seeds, which share its
        prompt's pages by forking. Returns all of them."""
        now = time.perf_counter()
        request.submitted_at = now
        for i in range(1, samples):
            params = replace(request.params, seed=request.params.seed + i)
            sibling = Request(request.prompt, params, request.arrival, request.on_token)
            sibling.submitted_at = now
            request.siblings.append(sibling)
        self.waiting.append(request)
        return [request, *request.siblings]

    def cancel(self, request: Request) -> None:
        """Takes a request out at once; its pages are released."""
        if request in self.waiting:
            self.waiting.remove(request)
        if request.state in (State.WAITING, State.RUNNING):
            self._finish(request, State.FAILED)

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def run(self) -> None:
        """Steps until every request is done."""
        while not self.idle:
            self.step()

    def stream(self, request: Request) -> Iterator[int]:
        """Submits a request and yields its tokens as they come; other requests run along."""
        self.submit(request)
        given = 0
        while request.state in (State.WAITING, State.RUNNING):
            self.step()
            yield from request.output[given:]
            given = len(request.output)
        if request.error is not None:
            raise request.error

    # memory

    def set_limit(self, n_bytes: int) -> None:
        """Changes the cache's memory limit, preempting running requests until it fits."""
        while True:
            try:
                self.store.cache.set_limit(n_bytes)
                return
            except pagedkv.Busy:
                if not self.running:
                    raise
                self._preempt(self.running[-1])

    def _preempt(self, request: Request) -> None:
        """Releases a request's pages and queues it first; its tokens will be recomputed."""
        request.held.close()
        request.seq = None
        request.computed = 0
        request.preemptions += 1
        request.state = State.WAITING
        self.running.remove(request)
        self.waiting.appendleft(request)
        self.stats.preemptions += 1
        self._hold = True

    def _finish(self, request: Request, state: State) -> None:
        request.state = state
        request.finished_at = time.perf_counter()
        if request.seq is not None:
            request.seq.close()
            request.seq = None
        if request in self.running:
            self.running.remove(request)
        self._hold = False
        for sibling in request.siblings:  # its prefill never ended: they stand on their own
            self.waiting.append(sibling)
        request.siblings = []

    # a step

    def _admit(self) -> None:
        if not self.running:
            self._hold = False
        while self.waiting and len(self.running) < self.max_batch and not self._hold:
            request = self.waiting[0]
            seq = self.store.cache.sequence()
            attached = 0
            if self.prefix:
                attached = seq.attach_prefix(request.tokens[:-1], self.namespace)
            if self.safe:
                try:
                    seq.admit(len(request.prompt) + request.params.max_tokens)
                except pagedkv.Unsafe as error:
                    seq.close()
                    if not self.running:
                        self.waiting.popleft()
                        request.error = error
                        self._finish(request, State.FAILED)
                        continue
                    return
            self.waiting.popleft()
            request.seq = seq
            request.computed = attached
            if request.preemptions == 0:
                request.cached_tokens = attached
            self.stats.cached_tokens += attached
            request.state = State.RUNNING
            self.running.append(request)

    def _entries(self) -> list[tuple[Request, list[int], int]]:
        """(request, new tokens, how many of them are drafts): every decoding request, then prompt
        chunks of the others in order of admission."""
        entries, left = [], self.chunk
        for request in self.running:
            if request.pending == 1 and request.output:
                room = request.params.max_tokens - len(request.output) - 1
                drafts = draft_ngram(request.tokens, min(self.drafts, room))
                entries.append((request, [request.output[-1], *drafts], len(drafts)))
        for request in self.running:
            if left and not (request.pending == 1 and request.output):
                n = min(left, request.pending)
                at = request.computed
                entries.append((request, request.tokens[at : at + n], 0))
                left -= n
        return entries

    def step(self) -> int:
        """Runs one model step; returns the number of tokens computed (0 if there was no work)."""
        self._admit()
        while self.running:
            entries = self._entries()
            try:
                step = self._reserve(entries)
            except pagedkv.OutOfPages as error:
                victim = self.running[-1]
                if len(self.running) > 1:
                    self._preempt(victim)
                elif any(drafts for _, _, drafts in entries):
                    return self._without_drafts()
                else:
                    victim.error = error
                    self._finish(victim, State.FAILED)
                    self._admit()
                continue
            with step:
                self._compute(step, entries)
            return len(step.tokens)
        return 0

    def _reserve(self, entries: list[tuple[Request, list[int], int]]) -> Step:
        """The step of these entries; entries that admission blocks are taken out of the list."""
        while True:
            try:
                return self.store.step(((r.held, ids) for r, ids, _ in entries), self.safe)
            except Blocked as blocked:
                if len(entries) == 1:
                    raise RuntimeError("a safe state lets somebody grow") from blocked
                del entries[blocked.entry]

    def _without_drafts(self) -> int:
        drafts, self.drafts = self.drafts, 0
        try:
            return self.step()
        finally:
            self.drafts = drafts

    def _compute(self, step: Step, entries: list[tuple[Request, list[int], int]]) -> None:
        rows: list[int] = []
        spans: list[tuple[int, int]] = []
        for (request, ids, drafts), stop in zip(entries, step.starts[1:]):
            # logits of every row that may emit: the last one and the drafts before it
            emits = len(ids) - drafts == request.pending
            first = int(stop) - (drafts + 1) if emits else int(stop)
            spans.append((len(rows), len(rows) + int(stop) - first))
            rows.extend(range(first, int(stop)))
        logits = self.model.forward(step.tokens, step.positions, step.attention, rows)
        kept, emitted = [], []
        for (request, ids, drafts), (low, high) in zip(entries, spans):
            new = self._emit(request, ids[len(ids) - drafts :], logits[low:high])
            emitted.append(new)
            kept.append(len(ids) - drafts + max(0, len(new) - 1))
        if self.rollback == "partial" and any(drafts for _, _, drafts in entries):
            step.commit_partial(kept)
        else:
            step.commit()
            for (request, ids, _), n in zip(entries, kept):
                if n < len(ids):
                    request.held.truncate(request.computed + n)
        self._account(step)
        for (request, _, drafts), n, new, (low, _) in zip(entries, kept, emitted, spans):
            request.computed += n
            request.drafted += drafts
            request.accepted += max(0, len(new) - 1)
            self.stats.drafted += drafts
            self.stats.accepted += max(0, len(new) - 1)
            if new and request.siblings:
                self._fork_siblings(request, logits[low])
            self._deliver(request, new)

    def _emit(self, request: Request, drafts: list[int], logits) -> list[int]:
        """Tokens that rows of logits give: draft after draft as long as they are what would have
        been chosen anyway, so speculation never changes the outcome."""
        new: list[int] = []
        for i, row in enumerate(logits):
            token = request.sampler(row)
            new.append(token)
            done = len(request.output) + len(new) >= request.params.max_tokens
            if done or token in request.params.stop_ids:
                break
            if i < len(drafts) and token != drafts[i]:
                break
        return new

    def _fork_siblings(self, request: Request, logits) -> None:
        """Starts the siblings from the parent's pages, each with its own first token."""
        siblings, request.siblings = request.siblings, []
        for sibling in siblings:
            token = sibling.sampler(logits)
            if len(self.running) < self.max_batch:
                sibling.seq = request.held.fork()
                sibling.computed = request.computed
                sibling.cached_tokens = request.computed
                sibling.state = State.RUNNING
                self.running.append(sibling)
            else:
                self.waiting.append(sibling)
            self._deliver(sibling, [token])

    def _deliver(self, request: Request, new: list[int]) -> None:
        if not new:
            return
        if request.first_token_at is None:
            request.first_token_at = time.perf_counter()
        for token in new:
            request.output.append(token)
            self.stats.output_tokens += 1
            if request.on_token is not None:
                request.on_token(request, token)
        if (
            len(request.output) >= request.params.max_tokens
            or request.output[-1] in request.params.stop_ids
        ):
            if request in self.waiting:
                self.waiting.remove(request)
            self._finish(request, State.DONE)

    def _account(self, step: Step) -> None:
        self.stats.steps += 1
        self.stats.computed_tokens += len(step.tokens)
        counters = self.store.cache.stats()
        self.stats.peak_pages = max(self.stats.peak_pages, counters.pages_used)
        self.stats.peak_bytes = max(self.stats.peak_bytes, counters.bytes_used)
        if self._hold and counters.pages_free + counters.pages_cached > counters.pages_used:
            self._hold = False
