"""Eviction without the library: a numpy model of WINDOW and SINK that masks instead of dropping.

It keeps every key, works out from token numbers alone which of them a policy would still hold, and,
for compact positions, turns the *keys* to their place inside the cache in double precision. Slow
and independent: what the library does with tables, runs and turned queries must agree with it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pagedkv_runtime.model import rope_frequencies
from pagedkv_runtime.weights import F32, ModelConfig


def resident(length: int, page_tokens: int, budget_pages: int, sink_pages: int) -> list[range]:
    """Token ranges that a sequence of ``length`` committed tokens still holds: the sink pages, the
    most recent full pages up to the budget, the partial tail."""
    full = length // page_tokens
    if full <= budget_pages:
        return [range(0, length)]
    sinks = min(sink_pages, budget_pages)
    first = full - (budget_pages - sinks)
    return [range(0, sinks * page_tokens), range(first * page_tokens, length)]


class SimulatedSequence:
    """One sequence under WINDOW (sinks = 0) or SINK. The model's Attention protocol: steps of any
    number of tokens that do not cross a page boundary give what the library gives.

    compact: distances are those inside the cache (survivors close up).
    """

    def __init__(
        self,
        config: ModelConfig,
        budget: int,
        sinks: int,
        page_tokens: int = 16,
        compact: bool = False,
    ) -> None:
        self._config = config
        self._page = page_tokens
        self._budget_pages = max(1, budget // page_tokens)
        self._sink_pages = -(-sinks // page_tokens)
        self._compact = compact
        self._capacity = 0
        self._k: F32 = np.empty(
            (config.n_layers, 0, config.n_kv_heads, config.head_dim), np.float32
        )
        self._v = self._k.copy()
        self.length = 0

    def held(self) -> npt.NDArray[np.int64]:
        """Positions of the committed tokens that are still held."""
        parts = resident(self.length, self._page, self._budget_pages, self._sink_pages)
        return np.concatenate([np.arange(r.start, r.stop) for r in parts])

    def _grow(self, n: int) -> None:
        if self.length + n <= self._capacity:
            return
        self._capacity = max(2 * self._capacity, self.length + n, 256)
        for name in ("_k", "_v"):
            old = getattr(self, name)
            new = np.empty((old.shape[0], self._capacity, *old.shape[2:]), np.float32)
            new[:, : self.length] = old[:, : self.length]
            setattr(self, name, new)

    def _turn(
        self, keys: npt.NDArray[np.float64], by: npt.NDArray[np.int64], theta: float
    ) -> npt.NDArray[np.float64]:
        """Keys ``[n, kv, d]`` turned by ``by[n]`` positions."""
        config = self._config
        angles = by[:, None] * rope_frequencies(theta, config.rotary_dims)
        cos, sin = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]
        out = keys.copy()
        n = config.rotary_dims
        if config.rope_interleaved:
            a, b = keys[..., 0:n:2], keys[..., 1:n:2]
            out[..., 0:n:2], out[..., 1:n:2] = a * cos - b * sin, b * cos + a * sin
        else:
            a, b = keys[..., : n // 2], keys[..., n // 2 : n]
            out[..., : n // 2], out[..., n // 2 : n] = a * cos - b * sin, b * cos + a * sin
        return out

    def __call__(self, layer: int, q: F32, k: F32, v: F32) -> F32:
        n, heads, d = q.shape
        self._grow(n)
        self._k[layer, self.length : self.length + n] = k
        self._v[layer, self.length : self.length + n] = v
        held = self.held()
        own = np.arange(self.length, self.length + n)
        at = np.concatenate([held, own])
        keys = self._k[layer, at].astype(np.float64)
        values = self._v[layer, at].astype(np.float64)
        if self._compact:
            # in-cache position = rank among the survivors; new tokens follow them
            ranks = np.arange(len(at))
            shift = self.length - len(
                held
            )  # what the true positions of new tokens exceed theirs by
            theta = self._config.spans[layer].theta
            keys = self._turn(keys, ranks + shift - at, theta)
        hidden = at[None, :] > own[:, None]
        out = np.empty(q.shape, np.float32)
        per = heads // k.shape[1]
        for head in range(k.shape[1]):
            rows = q[:, head * per : (head + 1) * per].astype(np.float64).reshape(-1, d)
            scores = (rows @ keys[:, head].T / np.sqrt(d)).reshape(n, per, -1)
            scores[np.broadcast_to(hidden[:, None, :], scores.shape)] = -np.inf
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=-1, keepdims=True)
            mixed = scores.reshape(n * per, -1) @ values[:, head]
            out[:, head * per : (head + 1) * per] = mixed.reshape(n, per, d)
        if layer == self._config.n_layers - 1:
            self.length += n
        return out
