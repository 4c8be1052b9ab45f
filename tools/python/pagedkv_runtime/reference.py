"""Attention without pages: the references that the paged runtime is compared with.

``NoCache`` keeps nothing: every step runs over the whole sequence. ``ConcatCache`` is what a naive
runtime has: one array per layer that grows by concatenation.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .model import Model
from .weights import F32, ModelConfig


def attend_dense(
    q: F32, k: F32, v: F32, first: int, window: int, double: bool = True, block: int = 256
) -> F32:
    """Causal attention of rows at positions ``first ..`` over keys at positions ``0 ..``.

    q ``[n, heads, d]``, k and v ``[m, kv_heads, d]`` with ``m >= first + n``; a query at p sees
    keys in ``(p - window, p]`` (all up to p when window is 0). Softmax in double precision unless
    ``double`` is off. Returns ``[n, heads, d]`` float32.
    """
    dtype: Any = np.float64 if double else np.float32
    n, heads, d = q.shape
    kv_heads = k.shape[1]
    per = heads // kv_heads
    out = np.empty((n, heads, d), np.float32)
    keys = np.ascontiguousarray(k.transpose(1, 2, 0), dtype=dtype)  # [kv, d, m]
    values = np.ascontiguousarray(v.transpose(1, 0, 2), dtype=dtype)  # [kv, m, d]
    scale = dtype(1.0 / np.sqrt(d))
    for start in range(0, n, block):
        stop = min(n, start + block)
        low = 0 if window == 0 else max(0, first + start - window + 1)
        high = first + stop
        at = np.arange(first + start, high)[:, None]
        key_at = np.arange(low, high)[None, :]
        hidden = key_at > at
        if window:
            hidden |= key_at <= at - window
        for head in range(kv_heads):
            rows = q[start:stop, head * per : (head + 1) * per].astype(dtype)
            scores = (rows.reshape(-1, d) @ keys[head, :, low:high]) * scale
            scores = scores.reshape(stop - start, per, high - low)
            scores[np.broadcast_to(hidden[:, None, :], scores.shape)] = -np.inf
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=-1, keepdims=True)
            mixed = scores.reshape(-1, high - low) @ values[head, low:high]
            out[start:stop, head * per : (head + 1) * per] = mixed.reshape(stop - start, per, d)
    return out


class NoCache:
    """Recomputes everything: give the forward pass the whole sequence each time."""

    def __init__(self, config: ModelConfig, double: bool = True) -> None:
        self._windows = [span.window for span in config.spans]
        self._double = double

    def __call__(self, layer: int, q: F32, k: F32, v: F32) -> F32:
        return attend_dense(q, k, v, 0, self._windows[layer], self._double)


class ConcatCache:
    """One growing array per layer and tensor, reallocated and copied at every step."""

    def __init__(self, config: ModelConfig, double: bool = False) -> None:
        empty = np.empty((0, config.n_kv_heads, config.head_dim), np.float32)
        self._k = [empty] * config.n_layers
        self._v = [empty] * config.n_layers
        self._windows = [span.window for span in config.spans]
        self._double = double

    @property
    def length(self) -> int:
        """Tokens held."""
        return len(self._k[0])

    def __call__(self, layer: int, q: F32, k: F32, v: F32) -> F32:
        first = len(self._k[layer])
        self._k[layer] = np.concatenate([self._k[layer], k])
        self._v[layer] = np.concatenate([self._v[layer], v])
        return attend_dense(
            q, self._k[layer], self._v[layer], first, self._windows[layer], self._double
        )


def reference_logits(model: Model, ids: list[int], rows: list[int] | None = None) -> F32:
    """Logits of a whole sequence without any cache, softmax in double. ``[len(rows), vocab]``."""
    return model.forward(ids, np.arange(len(ids)), NoCache(model.config), rows)


def reference_generate(model: Model, prompt: list[int], n: int) -> list[int]:
    """Greedy tokens, recomputing the whole sequence for each: slow, and obviously right."""
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(reference_logits(model, ids, [len(ids) - 1])[0].argmax()))
    return ids[len(prompt) :]
