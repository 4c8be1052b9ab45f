"""Every eviction policy once more, without the library: full attention that masks.

An :class:`Eviction` watches the reference model (:mod:`.plain`), which keeps every key, works out
from the policies' definitions (docs/eviction.md) which pages a sequence would still hold, and hides
the others. What the library does with tables, signals and plans must give the same logits. Chance
(``random``) is the one thing that is told from outside.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from .plain import Array, PlainModel

POLICIES = ("window", "sink", "mass", "h2o", "tova", "obs", "lru-mass", "keydiff", "random", "topk")
_GAMMA = {"mass": 0.99, "obs": 0.99, "h2o": 1.0, "tova": 0.0}
_OBSERVED_ROWS = 32
_EPSILON = 0.5


class Eviction:
    """One sequence under a policy with a budget in tokens, the library's defaults otherwise. An
    Observer of :class:`PlainModel`, whose layers must all attend to everything. Call
    :meth:`commit` after each step."""

    def __init__(
        self,
        model: PlainModel,
        policy: str,
        budget: int,
        page_tokens: int = 16,
        choose: Callable[[], list[int]] | None = None,
    ) -> None:
        if policy not in POLICIES:
            raise ValueError(f"policy {policy!r} is not one of {', '.join(POLICIES)}")
        self.policy, self.page = policy, page_tokens
        self.budget = max(1, budget // page_tokens)
        self.sinks = 0 if policy == "window" else 1
        room = self.budget - self.sinks
        self.recent = min(room, 2 if policy == "topk" else max(1, self.budget // 4))
        if policy in ("window", "sink"):
            self.recent = 0
        self.length = 0
        self.dropped: set[int] = set()
        self._choose = choose
        self._model = model
        self._heads = model.heads // model.kv_heads
        self._keys: dict[int, Array] = {}
        self._mass: npt.NDArray[np.float64] = np.zeros(0)
        self._score: dict[int, float] = {}
        self._age: dict[int, int] = {}
        self._replaced: set[int] = set()  # scores that an observed prompt gave
        self._used: dict[int, int] = {}
        self._step = 0

    @property
    def held(self) -> list[int]:
        """Full pages that are still there."""
        return [p for p in range(self.length // self.page) if p not in self.dropped]

    # what the model asks

    def hidden(self, layer: int, q: Array, keys: Array, first: int) -> Array | None:
        self._keys[layer] = keys
        m = keys.shape[1]
        gone = np.zeros(m, bool)
        for p in self.dropped:
            gone[p * self.page : (p + 1) * self.page] = True
        if self.policy == "topk":
            return self._not_chosen(q, keys, first)
        return gone[None, None, :] if gone.any() else None

    def _not_chosen(self, q: Array, keys: Array, first: int) -> Array | None:
        """TOPK: per KV head the best pages by the bounds of their keys, the first and the recent
        ones always; steps of more than a page's tokens read everything."""
        full = first // self.page
        if full <= self.budget or q.shape[1] > 16:
            return None
        hidden = np.zeros((q.shape[0], 1, keys.shape[1]), bool)
        for head in range(keys.shape[0]):
            pages = keys[head, : full * self.page].reshape(full, self.page, -1)
            low, high = pages.min(axis=1), pages.max(axis=1)  # [full, d]
            rows = q[head * self._heads : (head + 1) * self._heads].reshape(-1, q.shape[2])
            bound = np.where(rows[:, None] < 0, rows[:, None] * low, rows[:, None] * high)
            best = bound.sum(axis=-1).max(axis=0)
            fixed = set(range(self.sinks)) | set(range(full - self.recent, full))
            want = self.budget - len(fixed)
            others = [p for p in range(full) if p not in fixed]
            others.sort(key=lambda p: (-best[p], p))
            for p in others[want:]:
                at = slice(p * self.page, (p + 1) * self.page)
                hidden[head * self._heads : (head + 1) * self._heads, 0, at] = True
        return hidden

    def attended(self, layer: int, probabilities: Array) -> None:
        if self.policy not in ("mass", "h2o", "tova", "obs", "lru-mass"):
            return
        n, m = probabilities.shape[1:]
        rows = {"tova": 1, "obs": _OBSERVED_ROWS}.get(self.policy, n)
        given = probabilities[:, -min(rows, n) :].sum(axis=(0, 1))
        pages = -(-m // self.page)
        padded = np.zeros(pages * self.page)
        padded[:m] = given
        mass = padded.reshape(pages, self.page).sum(axis=1)
        self._mass = mass if layer == 0 else self._mass + mass

    # the end of a step

    def commit(self, n: int) -> list[int]:
        """n new tokens are there: the pages that go."""
        self.length += n
        self._step += 1
        if len(self._mass):
            self._observe(n)
        went: list[int] = []
        if self.policy == "topk":
            return went
        if self.policy == "random":
            went = self._choose() if self._choose is not None else []
            self.dropped |= set(went)
            return went
        while len(self.held) > self.budget:
            candidates = [
                p
                for p in self.held
                if p >= self.sinks and (p + 1) * self.page <= self.length - self.recent * self.page
            ]
            if not candidates:
                break
            values = self._values(candidates)
            victim = min(candidates, key=lambda p: (values[p], p))
            self.dropped.add(victim)
            went.append(victim)
        return went

    def _observe(self, n: int) -> None:
        """A step's mass into the pages' scores."""
        pages = [p for p in range(len(self._mass)) if p not in self.dropped]
        total = sum(self._mass[p] for p in pages)
        share = {p: self._mass[p] / total for p in pages}
        self._mass = np.zeros(0)
        if self.policy == "lru-mass":
            for p in pages:
                if share[p] > _EPSILON / len(pages) or p not in self._used:
                    self._used[p] = self._step
            return
        rows = min(n, {"tova": 1, "obs": _OBSERVED_ROWS}.get(self.policy, n))
        gamma = _GAMMA[self.policy]
        for p in pages:
            seen = min(rows, self.length - p * self.page)
            if seen <= 0:
                continue
            mean = share[p] * rows / seen
            if self.policy == "obs" and rows >= 16:
                self._score[p], self._age[p] = mean, 1
                self._replaced.add(p)
                continue
            self._age[p] = self._age.get(p, 0) + seen
            if gamma >= 1:
                self._score[p] = self._score.get(p, 0.0) + share[p] * rows
            else:
                decay = gamma**seen
                self._score[p] = decay * self._score.get(p, 0.0) + (1 - decay) * mean

    def _values(self, candidates: list[int]) -> dict[int, float]:
        """What a policy goes by: the lowest goes first."""
        if self.policy in ("window", "sink"):
            return {p: float(p) for p in candidates}
        if self.policy == "lru-mass":
            return {p: float(self._used.get(p, self._step)) for p in candidates}
        if self.policy == "keydiff":
            return self._likeness(candidates)
        gamma = _GAMMA[self.policy]
        values = {}
        for p in candidates:
            score, age = self._score.get(p, 0.0), self._age.get(p, 0)
            if p not in self._replaced and age:
                score /= age if gamma >= 1 else 1 - gamma**age
            values[p] = score
        return values

    def _likeness(self, candidates: list[int]) -> dict[int, float]:
        """KEYDIFF: minus how much a page's keys are like the mean key of the pages held, over
        layers and heads."""
        values = dict.fromkeys(candidates, 0.0)
        for keys in self._keys.values():
            wide = keys[:, : self.length // self.page * self.page].astype(np.float64)
            wide /= np.linalg.norm(wide, axis=-1, keepdims=True)
            sums = wide.reshape(len(wide), -1, self.page, wide.shape[-1]).sum(axis=2)
            mean = sums[:, self.held].sum(axis=1)
            mean /= np.linalg.norm(mean, axis=-1, keepdims=True)
            for p in candidates:
                values[p] -= float((sums[:, p] * mean).sum())
        return values
