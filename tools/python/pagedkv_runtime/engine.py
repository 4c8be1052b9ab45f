"""Continuous batching: requests join and leave between steps, prefill runs in chunks beside decode,
memory pressure preempts and recomputes. A request is matched against the prefix index as late as
possible and may wait for another's pages (:mod:`.matching`)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from operator import index

import pagedkv

from .matching import Following, find_leader
from .model import Model
from .paged import Blocked, PagedStore, Step
from .sampling import Sampler, SamplingParams, draft_ngram
from .weights import F32

#: The cache has no room for another sequence now.
_FULL = (pagedkv.Unsafe, pagedkv.NoMemory, pagedkv.OutOfPages, pagedkv.OutOfRange)


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
    cached_tokens: int = 0  # taken from the prefix index instead of computed, before any preemption
    matched_at: int = -1  # what the engine had published when the request was matched last
    following: Following | None = None  # whose pages a waiting request waits for
    preemptions: int = 0
    drafted: int = 0
    accepted: int = 0
    submitted_at: float = 0.0
    first_token_at: float | None = None
    finished_at: float | None = None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("a request needs at least one prompt token")
        self.prompt = [index(token) for token in self.prompt]
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


class _Stuck(Exception):
    """No entry of a step may grow without leaving the safe states."""


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
    prefix      attach known prompt prefixes from the cache's index, if it has one
    namespace   prefix namespace (tenant, adapter): requests of other namespaces never match
    rollback    how rejected drafts leave the cache: "partial" (never committed) or "truncate"
    safe        admit with claims (banker's rule) so that nothing is ever preempted

    What goes wrong with one request (its callback raises, its rejected drafts cannot be taken back)
    makes that request FAILED with its ``error``; the others go on.
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
        self.prefix = prefix and _has_index(store.cache)
        self.namespace = namespace
        self.rollback = rollback
        self.safe = safe
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.stats = EngineStats()
        self._hold = False  # after a preemption nobody is admitted until pages came back
        self._published = 0  # steps that completed a page

    # requests

    def submit(self, request: Request, samples: int = 1) -> list[Request]:
        """Queues a request; with samples > 1 also siblings with the next seeds, which share its
        prompt's pages by forking. Returns all of them. ValueError for ids the model lacks."""
        vocabulary = self.model.config.vocab_size
        if min(request.prompt) < 0 or max(request.prompt) >= vocabulary:
            raise ValueError(f"a prompt's token ids must be in 0 to {vocabulary - 1}")
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
        try:
            while request.state in (State.WAITING, State.RUNNING):
                self.step()
                yield from request.output[given:]
                given = len(request.output)
        finally:
            self.cancel(request)  # whoever stops reading wants no more of it
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
        self._requeue(request)
        request.preemptions += 1
        self.stats.preemptions += 1
        self._hold = True

    def _requeue(self, request: Request) -> None:
        if request.seq is not None:
            request.seq.close()
            request.seq = None
        request.computed = 0
        request.state = State.WAITING
        self.running.remove(request)
        self.waiting.appendleft(request)

    def _fail(self, request: Request, error: BaseException) -> None:
        request.error = error
        self._finish(request, State.FAILED)

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
            if sibling.state is State.WAITING:
                self.waiting.append(sibling)
        request.siblings = []

    # a step

    def _admit(self) -> None:
        if not self.running:
            self._hold = False
        for request in list(self.waiting):
            if len(self.running) >= self.max_batch or self._hold:
                return
            if not self._must_wait(request) and not self._start(request):
                return

    def _must_wait(self, request: Request) -> bool:
        """Whether a running request is computing what this one needs next."""
        if not self.prefix:
            return False
        if request.following is None or not request.following.holds():
            request.following = find_leader(request, self.running, self._matched(request))
        return request.following is not None

    def _matched(self, request: Request) -> int:
        """Tokens that attaching would give a waiting request now."""
        tokens = request.tokens[:-1]
        if self.store.policy is None:
            return self.store.cache.prefix.match(tokens, self.namespace).n_tokens
        with self.store.cache.sequence() as seq:  # pages computed under the same policy count too
            seq.set_namespace(self.namespace)
            return seq.match(tokens).n_tokens

    def _start(self, request: Request) -> bool:
        """Admits a waiting request; False if nobody can be admitted before somebody ended."""
        try:
            seq, attached = self._open(request)
        except _FULL as error:
            if self.running:
                return False
            self.waiting.remove(request)
            self._fail(request, error)
            return True
        self.waiting.remove(request)
        self._hold_sequence(request, seq, attached)
        request.state = State.RUNNING
        self.running.append(request)
        return True

    def _open(self, request: Request) -> tuple[pagedkv.Sequence, int]:
        """A sequence with the request's known prefix and, if claims are used, its claim."""
        seq = self.store.cache.sequence()
        try:
            attached = 0
            claim = len(request.prompt) + request.params.max_tokens
            if self.prefix:
                attached = seq.attach_prefix(
                    request.tokens[:-1], self.namespace, claim if self.safe else None
                )
            elif self.safe:
                seq.admit(claim)
        except BaseException:
            seq.close()
            raise
        return seq, attached

    def _hold_sequence(self, request: Request, seq: pagedkv.Sequence, attached: int) -> None:
        gained = attached - request.computed
        request.seq = seq
        request.computed = attached
        request.matched_at = self._published
        if request.preemptions == 0:
            request.cached_tokens += gained
        self.stats.cached_tokens += gained

    def _match_again(self, request: Request) -> bool:
        """Before a chunk: takes what others published since, if that is a page more than what the
        request has. False if it had to go back to the queue."""
        if not self.prefix or request.matched_at == self._published:
            return True
        request.matched_at = self._published
        found = request.held.match(request.tokens[:-1]).n_tokens
        if found < request.computed + self.store.cache.page_tokens:
            return True
        request.held.close()  # its pages stay in the index
        request.seq = None
        try:
            self._hold_sequence(request, *self._open(request))
        except _FULL:
            self._requeue(request)
            return False
        return True

    def _entries(self) -> list[tuple[Request, list[int], int]]:
        """(request, new tokens, how many of them are drafts): every decoding request, then prompt
        chunks of the others in order of admission."""
        entries, left = [], self.chunk
        for request in self.running:
            if request.pending == 1 and request.output:
                room = request.params.max_tokens - len(request.output) - 1
                drafts = draft_ngram(request.tokens, min(self.drafts, room))
                entries.append((request, [request.output[-1], *drafts], len(drafts)))
        for request in list(self.running):
            if left and not (request.pending == 1 and request.output):
                if not self._match_again(request):
                    continue
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
            if not entries:  # all had to go back to the queue
                self._admit()
                continue
            try:
                step = self._reserve(entries)
            except (pagedkv.OutOfPages, pagedkv.NoMemory, _Stuck) as error:
                victim = self.running[-1]
                if len(self.running) > 1:
                    self._preempt(victim)
                elif any(drafts for _, _, drafts in entries):
                    return self._without_drafts()
                else:
                    self._fail(victim, error)
                    self._admit()
                continue
            with step:
                self._compute(step, entries)
            return len(step.tokens)
        return 0

    def _reserve(self, entries: list[tuple[Request, list[int], int]]) -> Step:
        """The step of these entries; entries that admission blocks are taken out of the list. With
        several groups and a prefix index admission is no proof (docs/architecture.md): if nobody
        may grow somebody is preempted, and who is alone grows as long as there are pages."""
        safe = self.safe
        while True:
            try:
                return self.store.step([(r.held, ids) for r, ids, _ in entries], safe)
            except Blocked as blocked:
                if len(entries) > 1:
                    del entries[blocked.entry]
                elif len(self.running) > 1:
                    raise _Stuck from None
                else:
                    safe = False

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
        self._account(step)
        interrupt: BaseException | None = None
        for (request, ids, drafts), n, new, (low, _) in zip(entries, kept, emitted, spans):
            page = self.store.cache.page_tokens
            if (request.computed + len(ids)) // page > request.computed // page:
                self._published += 1
            request.computed += n
            request.drafted += drafts
            request.accepted += max(0, len(new) - 1)
            self.stats.drafted += drafts
            self.stats.accepted += max(0, len(new) - 1)
            if new and request.siblings:
                self._fork_siblings(request, logits[low])
            try:
                self._deliver(request, new)
                if request.state is State.RUNNING and request.held.length > request.computed:
                    request.held.truncate(request.computed)
            except Exception as error:
                self._fail(request, error)
            except BaseException as error:  # the step is done: finish the books first
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _emit(self, request: Request, drafts: list[int], logits: F32) -> list[int]:
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

    def _fork_siblings(self, request: Request, logits: F32) -> None:
        """Starts the siblings from the parent's pages, each with its own first token."""
        siblings, request.siblings = request.siblings, []
        for sibling in siblings:
            if sibling.state is not State.WAITING:
                continue  # cancelled meanwhile
            token = sibling.sampler(logits)
            if not self._fork(request, sibling):
                self.waiting.append(sibling)
            try:
                self._deliver(sibling, [token])
            except Exception as error:
                self._fail(sibling, error)

    def _fork(self, request: Request, sibling: Request) -> bool:
        """Starts a sibling on the parent's pages if there is room for it."""
        if len(self.running) >= self.max_batch:
            return False
        seq = None
        try:
            seq = request.held.fork()
            if self.safe:
                seq.admit(len(sibling.prompt) + sibling.params.max_tokens)
        except pagedkv.PagedKVError:
            if seq is not None:
                seq.close()
            return False
        sibling.seq = seq
        sibling.computed = request.computed
        sibling.cached_tokens = request.computed
        sibling.state = State.RUNNING
        self.running.append(sibling)
        return True

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


def _has_index(cache: pagedkv.Cache) -> bool:
    """Whether the cache was created with a prefix index."""
    try:
        cache.prefix.match([0])
    except pagedkv.NotSupported:
        return False
    return True
